"""fastmlp among its peers: a kernel alone, and the whole of `fit`. See `baselines`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.baselines import Baseline
from benchmarks.cases import LEARNING_RATE, Case, Data, Weights
from benchmarks.validation import flatten

LOSS = "half_squared_error"


class Fastmlp(Baseline):
    """One kernel of fastmlp, driven by its `Program`: an epoch without the checks of `fit`."""

    module = "fastmlp"
    packages = ("fastmlp", "numba", "llvmlite", "numpy", "numba-cuda")
    role = "ours"

    def available(self) -> str | None:
        """Return what the kernel says of this machine."""
        self.load()
        from fastmlp.machine import detect

        if self.entry.device == "cuda":
            return detect().cuda_missing
        return None

    def load(self) -> None:
        """Import what a user imports: `import fastmlp` alone would load nothing yet."""
        from fastmlp import MLP

        self.MLP = MLP

    def prepare(self, case: Case, data: Data, weights: Weights) -> Callable[[], None]:
        """Build the program and give it its arrays, once."""
        from fastmlp.machine import detect
        from fastmlp_kernels.algebra import OPTIMIZERS
        from fastmlp_kernels.algebra.optimizers import hyper_table
        from fastmlp_kernels.problem import BATCHES, CONTROL_WORDS
        from fastmlp_kernels.registry import KERNELS

        (kernel,) = [kernel for kernel in KERNELS if kernel.name == self.entry.kernel]
        self.program = kernel.build(problem(case), detect())
        self.host = flatten(weights).astype(np.float32)
        self.on_device = self.program.to_device(self.host)
        state = self.program.to_device(np.zeros((0, len(self.host)), np.float32))
        X, y = self.program.to_device(data.X), self.program.to_device(data.y)
        order = np.arange(len(data.X))
        settings = {"learning_rate": LEARNING_RATE, "weight_decay": 0.0}
        hyper = hyper_table(OPTIMIZERS["sgd"], settings, 1, case.steps, np.float32)
        losses = np.empty(case.steps, np.float32)
        control = np.zeros(CONTROL_WORDS, np.int64)

        def epoch() -> None:
            control[:] = 0
            self.program.epoch(self.on_device, state, X, y, order, hyper, losses, control)
            if control[BATCHES] != case.steps:
                raise RuntimeError(f"only {control[BATCHES]} of {case.steps} steps were taken")

        return epoch

    def parameters(self) -> np.ndarray:
        """Return the flat vector, which has the validation's order."""
        self.program.to_host(self.on_device, self.host)
        return self.host.astype(np.float64)

    def predict_row(self, row: np.ndarray) -> np.ndarray:
        """Run the program on one row."""
        out = np.empty((1, self.program.problem.sizes[-1]), np.float32)
        on_device = self.program.to_device(out)
        self.program.predict(self.on_device, self.program.to_device(row), on_device, True)
        self.program.to_host(on_device, out)
        return out


class FastmlpFit(Fastmlp):
    """fastmlp as its users call it: an epoch is ``fit(epochs=1)``, with all its checks."""

    role = "also"

    def prepare(self, case: Case, data: Data, weights: Weights) -> Callable[[], None]:
        """Make the model."""
        from fastmlp import SGD

        self.model = self.MLP(list(case.sizes), "relu", LOSS, seed=0, reduction="mean")
        self.model.weights = [W for W, _ in weights]
        self.model.biases = [b for _, b in weights]
        settings = {
            "epochs": 1,
            "batch_size": case.batch,
            "optimizer": SGD(LEARNING_RATE),
            "shuffle": False,
            "device": self.entry.device,
            "kernel": self.entry.kernel or None,
            "progress": False,
        }

        def epoch() -> None:
            self.model.fit(data.X, data.y, **settings)

        return epoch

    def parameters(self) -> np.ndarray:
        """Return the model's flat vector."""
        return np.asarray(self.model.parameters, dtype=np.float64)

    def predict_row(self, row: np.ndarray) -> np.ndarray:
        """Call the model."""
        return self.model.predict(row, device=self.entry.device)


def problem(case: Case) -> Any:
    """Return the case as fastmlp's kernels see it."""
    from fastmlp_kernels.problem import Problem

    return Problem(
        sizes=case.sizes,
        activations=(*["relu"] * (len(case.sizes) - 2), "identity"),
        loss=LOSS,
        batch_size=case.batch,
        rows=case.rows,
    )


def kernels(case: Case, device: str) -> list[tuple[str, bool]]:
    """Return fastmlp's kernels for a case on a device, and which of them dispatch chooses."""
    from fastmlp.machine import detect
    from fastmlp_kernels.registry import KERNELS

    # The reference is for reading: dispatch never chooses it, and it would take minutes.
    rows = [kernel for kernel in KERNELS if kernel.device == device and kernel.name != "reference"]
    able = [kernel for kernel in rows if kernel.supports(problem(case), detect()) is None]
    chosen = min(able or rows, key=lambda kernel: kernel.cost(problem(case), detect()))
    return [(kernel.name, kernel is chosen) for kernel in able or rows]
