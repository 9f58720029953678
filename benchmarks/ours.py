"""fastmlp among its peers: a kernel alone, `fit` and `step`. See `baselines`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.baselines import Baseline, Entry, Missing
from benchmarks.cases import ADAM, LEARNING_RATE, Case, Data, Weights
from benchmarks.validation import flatten

LOSS = "half_squared_error"


class Fastmlp(Baseline):
    """One kernel of fastmlp, driven by its `Program`: an epoch without the checks of `fit`."""

    module = "fastmlp"
    packages = ("fastmlp", "numba", "llvmlite", "numpy", "numba-cuda")
    role = "ours"
    suites = ("training", "variants", "shuffled", "ensembles", "overhead")
    family = "fastmlp"

    def available(self) -> str | None:
        """Return what the kernel says of this machine."""
        self.load()
        from fastmlp.device.machine import detect

        if self.entry.device == "cuda":
            return detect().cuda_missing
        return None

    def load(self) -> None:
        """Import what a user imports: `import fastmlp` alone would load nothing yet."""
        from fastmlp import MLP

        self.MLP = MLP

    def load_what_follows(self) -> None:
        """Import the compiler."""
        import numba  # noqa: F401

    def prepare(self, case: Case, data: Data, weights: list[Weights]) -> Callable[[], None]:
        """Build the program and give it its arrays, once."""
        from fastmlp.state.parameters import aligned_zeros
        from fastmlp_kernels.algebra import OPTIMIZERS
        from fastmlp_kernels.algebra.optimizers import hyper_table
        from fastmlp_kernels.problem import BATCHES, CONTROL_WORDS
        from fastmlp_kernels.registry import KERNELS

        (kernel,) = [kernel for kernel in KERNELS if kernel.name == self.entry.kernel]
        asked = problem(case)
        self.program = program = kernel.build(asked, machine_with(self.entry, asked))

        def shaped(*shape: int) -> tuple[int, ...]:
            return (case.members, *shape) if case.members > 1 else shape

        # As `MLP` keeps its parameters: NumPy aligns to 16 bytes only.
        self.host = aligned_zeros(shaped(asked.parameter_count), case.dtype)
        self.host[:] = flatten(weights).reshape(self.host.shape)
        self.on_device = program.to_device(self.host)
        state = np.zeros(shaped(asked.slots, asked.parameter_count), case.dtype)
        arrays = (self.on_device, *map(program.to_device, (state, data.X, data.y)))
        order = np.broadcast_to(case.order(), shaped(case.rows)).copy()
        sgd = {"learning_rate": LEARNING_RATE, "weight_decay": 0.0}
        settings = {"sgd": sgd, "adam": ADAM}[case.optimizer]
        table = hyper_table(OPTIMIZERS[case.optimizer], settings, 1, case.steps, case.dtype)
        hyper = np.broadcast_to(table, shaped(*table.shape)).copy()
        losses = np.empty(shaped(case.steps), case.dtype)
        control = np.zeros(shaped(CONTROL_WORDS), np.int64)
        program.prepare(*arrays)

        def epoch() -> None:
            control[:] = 0
            program.epoch(*arrays, order, hyper, losses, control)
            if (control[..., BATCHES] != case.steps).any():
                raise RuntimeError(f"only {control[..., BATCHES].min()} of {case.steps} steps")

        return epoch

    def parameters(self) -> np.ndarray:
        """Return the flat vectors, which have the validation's order."""
        self.program.to_host(self.on_device, self.host)
        return self.host.astype(np.float64).reshape(self.program.problem.members, -1)

    def notes(self) -> dict[str, Any]:
        """Return what the program takes its products and its launches from, and why nothing better.

        `cuda.layered` runs without cuBLASLt and without CUDA graphs too, only slower: a time means
        nothing without knowing.
        """
        parts = {
            "products": getattr(self.program, "products", None),
            "graphs": getattr(self.program, "steps", None),
        }
        return {
            name: ", ".join(filter(None, (getattr(part, "name", ""), part.reason)))
            for name, part in parts.items()
            if hasattr(part, "reason")
        }

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Run the program on one row."""
        out = np.empty((1, self.program.problem.sizes[-1]), np.float32)
        on_device = self.program.to_device(out)
        self.program.predict(self.on_device, self.program.to_device(rows), on_device, True)
        self.program.to_host(on_device, out)
        return out


class FastmlpFit(Fastmlp):
    """fastmlp as its users call it: an epoch is ``fit(epochs=1)``, with all its checks."""

    role = "also"
    suites = ("training", "overhead")

    def make_model(self, case: Case, weights: list[Weights]) -> None:
        """Make the model; it may use as many threads as this process has processors."""
        if case.members > 1:
            raise Missing("the members' initial weights are those of their seeds")
        settings = {"dtype": case.dtype, "reduction": "mean", "precision": case.precision}
        self.model = self.MLP(list(case.sizes), case.activation, LOSS, seed=0, **settings)
        self.model.weights = [W for W, _ in weights[0]]
        self.model.biases = [b for _, b in weights[0]]

    def prepare(self, case: Case, data: Data, weights: list[Weights]) -> Callable[[], None]:
        """Make the model."""
        from fastmlp import SGD

        self.make_model(case, weights)
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

    def notes(self) -> dict[str, Any]:
        """Return nothing: the kernel stands beside it."""
        return {}

    def parameters(self) -> np.ndarray:
        """Return the model's flat vector."""
        return np.asarray(self.model.parameters, dtype=np.float64)[None]

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Call the model."""
        return self.model.predict(rows, device=self.entry.device)


class FastmlpStep(FastmlpFit):
    """fastmlp in a loop of one's own: `step` once a mini-batch."""

    devices = ("cpu",)
    suites = ("overhead",)

    def prepare(self, case: Case, data: Data, weights: list[Weights]) -> Callable[[], None]:
        """Make the model and slice the mini-batches."""
        from fastmlp import SGD

        self.make_model(case, weights)
        step, optimizer = self.model.step, SGD(LEARNING_RATE)
        starts = range(0, case.rows, case.batch)
        batches = [(data.X[k : k + case.batch], data.y[k : k + case.batch]) for k in starts]

        def epoch() -> None:
            for X, y in batches:
                step(X, y, optimizer)

        return epoch


def problem(case: Case) -> Any:
    """Return the case as fastmlp's kernels see it."""
    from fastmlp_kernels.problem import Problem

    return Problem(
        sizes=case.sizes,
        activations=(*[case.activation] * (len(case.sizes) - 2), "identity"),
        loss=LOSS,
        optimizer=case.optimizer,
        dtype=case.dtype,
        batch_size=case.batch,
        rows=case.rows,
        precision=case.precision,
        members=case.members,
    )


def machine_with(entry: Entry, asked: Any) -> Any:
    """Return this machine, on which a CPU kernel runs `asked` on the entry's threads.

    What dispatch chooses runs as it does for users: it tries one thread too, where that is
    predicted to take not much longer. Regret is measured against all numbers, so that all others
    are forced: there a thread is said to cost nothing.
    """
    from fastmlp.device.machine import detect
    from fastmlp_kernels.cpu import best_threads

    if entry.device != "cpu":
        return detect()
    machine = replace(detect(), cores=entry.threads)
    if entry.threads > 1 and not entry.chosen:
        machine = replace(machine, cpu_barrier_seconds=0.0, cpu_thread_seconds=0.0)
    if best_threads(asked, machine) != entry.threads:
        raise RuntimeError(f"threads: {entry.threads} could not be forced upon {entry.kernel}")
    return machine


@dataclass(frozen=True)
class Choice:
    """A kernel on a number of threads, and whether it is what dispatch chooses."""

    kernel: str
    threads: int
    chosen: bool


def choices(case: Case, device: str, threads: list[int]) -> list[Choice]:
    """Return the ways in which fastmlp can run a case where it may use the most of `threads`."""
    from fastmlp.device.machine import detect
    from fastmlp_kernels.cpu import best_threads
    from fastmlp_kernels.registry import KERNELS

    asked, machine = problem(case), replace(detect(), cores=max(threads))
    # The reference is for reading: dispatch never chooses it, and it would take minutes.
    rows = [kernel for kernel in KERNELS if kernel.device == device and kernel.name != "reference"]
    able = [kernel for kernel in rows if kernel.supports(asked, machine) is None] or rows
    chosen = min(able, key=lambda kernel: kernel.cost(asked, machine))
    # On a GPU one host thread submits the work.
    best = best_threads(asked, machine) if device == "cpu" else 1
    counts = sorted({*threads, best}) if device == "cpu" else [1]
    return [
        Choice(kernel.name, count, kernel is chosen and count == best)
        for kernel in able
        for count in counts
    ]
