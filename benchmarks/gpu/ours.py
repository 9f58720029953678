"""fastmlp among its peers on a GPU: each kernel by its `Program`, and `fit` as users call it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.cases import LEARNING_RATE, Data, Weights
from benchmarks.gpu.cases import GpuCase
from benchmarks.gpu.provider import Provider, way
from benchmarks.gpu.steps import Skipped
from benchmarks.ours import LOSS
from benchmarks.validation import flatten


def problem(case: GpuCase) -> Any:
    """Return the case as fastmlp's kernels see it."""
    from fastmlp_kernels.problem import Problem

    return Problem(
        sizes=case.sizes,
        activations=(*["relu"] * (len(case.sizes) - 2), "identity"),
        loss=LOSS,
        batch_size=case.batch,
        rows=case.rows,
        precision=case.precision,
        members=case.members,
    )


def kernels_for(case: GpuCase, device: str) -> dict[str, float]:
    """Return the kernels of a device that can run a case, with the seconds that they predict."""
    from fastmlp.device.machine import detect
    from fastmlp_kernels.registry import KERNELS

    asked, machine = problem(case), detect()
    # The reference is for reading, and would take minutes.
    rows = [each for each in KERNELS if each.device == device and each.name != "reference"]
    able = [each for each in rows if each.supports(asked, machine) is None]
    return {each.name: each.cost(asked, machine) for each in able}


class Fastmlp(Provider):
    """A kernel driven by its `Program`: an epoch without the checks of `fit`."""

    name = "fastmlp"
    role = "ours"

    @classmethod
    def ways(cls, case: GpuCase, device: str) -> list[dict[str, Any]]:
        """Return every kernel; the one that is predicted to be the fastest is what users get."""
        found = kernels_for(case, device)
        chosen = min(found, key=found.__getitem__) if found else ""
        return [way(cls, name, name == chosen) for name in found]

    def prepare(self, case: GpuCase, data: Data, weights: list[Weights]) -> Callable[[], None]:
        """Build the program and give it its arrays, once."""
        from fastmlp.device.machine import detect
        from fastmlp.state.parameters import aligned_zeros
        from fastmlp_kernels.algebra import OPTIMIZERS
        from fastmlp_kernels.algebra.optimizers import hyper_table
        from fastmlp_kernels.problem import BATCHES, CONTROL_WORDS
        from fastmlp_kernels.registry import KERNELS

        (kernel,) = [each for each in KERNELS if each.name == self.kernel]
        asked, self.members = problem(case), case.members
        self.program = program = kernel.build(asked, detect())

        def shaped(*shape: int) -> tuple[int, ...]:
            return (case.members, *shape) if case.members > 1 else shape

        self.host = aligned_zeros(shaped(asked.parameter_count), "float32")
        self.host[:] = np.stack([flatten(each) for each in weights]).reshape(self.host.shape)
        self.on_device = program.to_device(self.host)
        state = np.zeros(shaped(asked.slots, asked.parameter_count), np.float32)
        arrays = (self.on_device, *map(program.to_device, (state, data.X, data.y)))
        order = np.broadcast_to(np.arange(case.rows), shaped(case.rows)).copy()
        settings = {"learning_rate": LEARNING_RATE, "weight_decay": 0.0}
        table = hyper_table(OPTIMIZERS["sgd"], settings, 1, case.steps, "float32")
        hyper = np.broadcast_to(table, shaped(*table.shape)).copy()
        losses = np.empty(shaped(case.steps), np.float32)
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
        return self.host.astype(np.float64).reshape(self.members, -1)

    def notes(self) -> dict[str, str]:
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


class FastmlpFit(Provider):
    """fastmlp as its users call it: an epoch is a ``fit`` of NumPy arrays, with all its checks."""

    name = "fastmlp.fit"
    role = "also"

    def prepare(self, case: GpuCase, data: Data, weights: list[Weights]) -> Callable[[], None]:
        """Make the model or, for several members, the ensemble."""
        import fastmlp

        self.case = case
        settings = {
            "epochs": 1,
            "batch_size": case.batch,
            "optimizer": fastmlp.SGD(LEARNING_RATE),
            "shuffle": False,
            "device": self.device,
            "progress": False,
        }
        if case.members > 1:
            raise Skipped("the members' initial weights are those of their seeds")
        self.model = fastmlp.MLP(
            list(case.sizes), "relu", LOSS, seed=0, reduction="mean", precision=case.precision
        )
        self.model.weights = [W for W, _ in weights[0]]
        self.model.biases = [b for _, b in weights[0]]

        def epoch() -> None:
            self.model.fit(data.X, data.y, **settings)

        return epoch

    def parameters(self) -> np.ndarray:
        """Return the model's flat vector."""
        return np.asarray(self.model.parameters, dtype=np.float64)[None]
