"""What would run, in words: the kernel, the device, the threads, and why no other kernel."""

from dataclasses import dataclass, replace
from typing import Any, Protocol

from fastmlp.arguments import check_integer
from fastmlp.device.machine_file import stored_constants, stored_gpu_constants
from fastmlp.dispatch.parallel import about_ranks, cost_of_ranks
from fastmlp.dispatch.planning import (
    ONLY_BY_NAME,
    Plan,
    check_threads,
    machine_with,
    plan,
    readable_time,
    updated_by,
)
from fastmlp.distributed.costs import ParallelCost
from fastmlp.errors import DTypeError, known_keywords
from fastmlp.optimizers import Optimizer, check_optimizer
from fastmlp_kernels.algebra import LOSSES
from fastmlp_kernels.cpu import best_threads, close_threads, epoch_seconds
from fastmlp_kernels.cuda import launches
from fastmlp_kernels.cuda.costs import copies
from fastmlp_kernels.problem import Machine, Problem


class Planned(Protocol):
    """What `explain` reads of a model."""

    @property
    def template(self) -> Problem:
        """The model's problem, for one row."""

    @property
    def threads(self) -> int | None:
        """The most threads that the model uses by default."""


@dataclass(frozen=True)
class Explanation:
    """What would run, and why; its text is a table."""

    plan: Plan
    machine: Machine
    parallel: ParallelCost | None = None

    @property
    def kernel(self) -> str:
        """The chosen kernel."""
        return self.plan.kernel.name

    @property
    def device(self) -> str:
        """The device that the chosen kernel runs on."""
        return self.plan.kernel.device

    @property
    def seconds(self) -> float:
        """Predicted seconds of an epoch."""
        return self.plan.seconds

    @property
    def threads(self) -> int:
        """How many threads the chosen kernel would use."""
        if not self._in_team:
            return 1
        return best_threads(self.plan.problem, self.machine)

    @property
    def _in_team(self) -> bool:
        return self.device == "cpu" and self.kernel != ONLY_BY_NAME

    @property
    def rejected(self) -> dict[str, str]:
        """Why each other kernel was not chosen."""
        return dict(self.plan.rejected)

    def __str__(self) -> str:
        problem = self.plan.problem
        sizes = "-".join(map(str, problem.sizes))
        members = problem.members
        side_by_side = f"{members:,} networks side by side, each " if members > 1 else ""
        lines = [
            f"{side_by_side}{sizes}, {problem.loss}, {problem.optimizer}, {problem.dtype}",
            f"{problem.rows:,} rows an epoch in {problem.batches:,} batches of "
            f"{problem.batch_size:,}; {problem.flops:.3g} floating-point operations",
            f"machine: at most {self.machine.cores} CPU threads, "
            f"GPU: {self.machine.gpu or self.machine.cuda_missing}",
            f"costs: by the constants {_origin(self.machine)}",
            "",
        ]
        verdicts = {self.kernel: f"chosen: predicted {readable_time(self.seconds)} an epoch"}
        verdicts.update(self.rejected)
        width = max(map(len, verdicts))
        lines += [f"{name:<{width}}  {verdict}" for name, verdict in verdicts.items()]
        if self._in_team:
            lines += ["", self._about_threads()]
        if self.device == "cuda":
            lines += ["", self._about_copies()]
        if self.parallel is not None:
            lines += ["", about_ranks(self.parallel)]
        return "\n".join(lines)

    def _about_copies(self) -> str:
        problem, found = self.plan.problem, copies(self.plan.problem)
        return (
            f"a fit makes {found.fit} copies to the GPU and back ({readable_bytes(found.fit_bytes)}"
            f": X, y, parameters{', optimizer state' if problem.slots else ''}); an epoch makes "
            f"{found.epoch} ({readable_bytes(found.epoch_bytes)}) and "
            f"{launches(self.kernel, problem, self.machine):,} launches"
        )

    def _about_threads(self) -> str:
        cores = self.machine.cores
        counts = sorted({1, self.threads, cores})
        times = (epoch_seconds(self.plan.problem, self.machine, count) for count in counts)
        predicted = [
            f"{readable_time(each)} on {count}" for each, count in zip(times, counts, strict=True)
        ]
        line = f"threads: {self.threads} of {cores}; predicted {', '.join(predicted)}"
        others = close_threads(self.plan.problem, self.machine)[1:]
        line += "".join(f"; a fit tries {other} too and keeps the faster" for other in others)
        if 1 not in (self.threads, *others):
            return line
        # As `cpu.straight_line` has it.
        return (
            f"{line}\ncode: on one thread, a fit longer than a second goes on in code of its own "
            "for whole batches, if they and the network are small"
        )

    def __repr__(self) -> str:
        return str(self)


@known_keywords
def explain(
    model: Planned,
    batch_size: int = 32,
    rows: int | None = None,
    optimizer: Optimizer | str | None = None,
    device: str = "auto",
    kernel: str | None = None,
    threads: int | None = None,
    ranks: Any = None,
) -> Explanation:
    """Say which kernel would train a model, on which device, why, and what was rejected.

    Parameters
    ----------
    model : MLP or Ensemble
    batch_size : int
    rows : int, optional
        Rows of an epoch; one batch by default.
    optimizer, device, kernel, threads
        As in `MLP.fit`.
    ranks : int, MPI communicator or DataParallel, optional
        What a step would take on them, and whether that pays. Of a number of ranks each is taken
        to have a machine like this one. With a communicator the sum of the gradient is measured,
        and all its ranks have to call this.

    Returns
    -------
    Explanation
        Prints as a table. It has `kernel`, `device`, `threads` and the predicted `seconds`. Its
        `parallel` has the `gain` of the ranks, and whether it `pays`.

    Raises
    ------
    DTypeError
        If `model` is none.
    DeviceError
        If the device or the kernel cannot run it.

    Examples
    --------
    >>> fastmlp.explain(model, batch_size=32, rows=200, device="cpu").kernel
    'cpu.fused'
    """
    if not hasattr(model, "template"):
        raise DTypeError(f"model: got {type(model).__name__}, wanted an MLP or an Ensemble")
    batch_size = check_integer(batch_size, "batch_size", 1)
    rows = batch_size if rows is None else check_integer(rows, "rows", batch_size)
    labels = LOSSES[model.template.loss].label_rule is not None
    shape = replace(model.template, batch_size=batch_size, rows=rows, labels=labels)
    problem = updated_by(shape, check_optimizer(optimizer).update)
    machine = machine_with(model.threads if threads is None else check_threads(threads))
    chosen = plan(problem, device, kernel, machine)
    parallel = None if ranks is None else cost_of_ranks(ranks, problem, machine)
    return Explanation(chosen, machine, parallel)


def readable_bytes(count: float) -> str:
    """Return a number of bytes in the unit that suits it."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f} bytes"


def _origin(machine: Machine) -> str:
    measured: Any = stored_constants()
    if machine.cuda_missing is None:
        measured = measured and stored_gpu_constants(machine.gpu)
    if measured:
        return "that 'fastmlp calibrate' has measured on this machine"
    return "that are shipped; 'python -m fastmlp calibrate' measures this machine's"
