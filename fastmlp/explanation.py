"""What would run, in words: kernel, device, threads, and why nothing else."""

from dataclasses import dataclass, replace
from typing import Protocol

from fastmlp.arrays import check_integer
from fastmlp.machine_file import stored_constants
from fastmlp.optimizers import Optimizer, check_optimizer
from fastmlp.planning import ONLY_BY_NAME, Plan, check_threads, machine_with, plan, readable_time
from fastmlp_kernels.algebra import LOSSES
from fastmlp_kernels.cpu import best_threads, close_threads, epoch_seconds
from fastmlp_kernels.cuda import launches
from fastmlp_kernels.problem import Machine, Problem


class Planned(Protocol):
    """What `explain` reads of a model."""

    @property
    def template(self) -> Problem:
        """The model's problem, for one row."""

    @property
    def threads(self) -> int | None:
        """The most threads that the model uses where it is not told otherwise."""


@dataclass(frozen=True)
class Explanation:
    """What would run, and why; its text is a table."""

    plan: Plan
    machine: Machine

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
            f"costs: by the constants {_origin()}",
            "",
        ]
        verdicts = {self.kernel: f"chosen: predicted {readable_time(self.seconds)} an epoch"}
        verdicts.update(self.rejected)
        width = max(map(len, verdicts))
        lines += [f"{name:<{width}}  {verdict}" for name, verdict in verdicts.items()]
        if self._in_team:
            lines += ["", self._about_threads()]
        if self.device == "cuda":
            state = 1 if problem.slots else 0
            lines += [
                "",
                f"a fit copies {3 + state} arrays to the GPU (X, y, parameters"
                f"{', optimizer state' if state else ''}); an epoch copies {1 + state} back "
                f"and makes {launches(problem):,} launches",
            ]
        return "\n".join(lines)

    def _about_threads(self) -> str:
        cores = self.machine.cores
        counts = sorted({1, self.threads, cores})
        times = (epoch_seconds(self.plan.problem, self.machine, count) for count in counts)
        predicted = [
            f"{readable_time(each)} on {count}" for each, count in zip(times, counts, strict=True)
        ]
        line = f"threads: {self.threads} of {cores}; predicted {', '.join(predicted)}"
        others = close_threads(self.plan.problem, self.machine)[1:]
        return line + "".join(f"; a fit tries {other} too and keeps the faster" for other in others)

    def __repr__(self) -> str:
        return str(self)


def explain(
    model: Planned,
    batch_size: int = 32,
    rows: int | None = None,
    optimizer: Optimizer | None = None,
    device: str = "auto",
    kernel: str | None = None,
    threads: int | None = None,
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

    Returns
    -------
    Explanation
        Prints as a table.
    """
    batch_size = check_integer(batch_size, "batch_size", 1)
    rows = batch_size if rows is None else check_integer(rows, "rows", batch_size)
    problem = replace(
        model.template,
        batch_size=batch_size,
        rows=rows,
        optimizer=check_optimizer(optimizer).rule,
        labels=LOSSES[model.template.loss].label_rule is not None,
    )
    machine = machine_with(model.threads if threads is None else check_threads(threads))
    return Explanation(plan(problem, device, kernel, machine), machine)


def _origin() -> str:
    if stored_constants():
        return "that 'fastmlp calibrate' has measured on this machine"
    return "that are shipped; 'python -m fastmlp calibrate' measures this machine's"
