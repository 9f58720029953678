"""Training and evaluation on checked data: epochs, history, the last good parameters."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.arrays import Data
from fastmlp.batches import CHUNK_ROWS, batch_rows, combine_losses, epoch_order
from fastmlp.errors import NonFiniteTrainingError
from fastmlp.history import History
from fastmlp.interrupts import run_interruptibly
from fastmlp.metrics import Evaluation, score
from fastmlp.optimizers import Optimizer
from fastmlp.parameters import TrainingState
from fastmlp.planning import Programs, Where
from fastmlp.progress import Report
from fastmlp.steps import applied_batches
from fastmlp_kernels.algebra import OPTIMIZERS, hyper_table
from fastmlp_kernels.problem import CONTROL_WORDS, STATUS, Problem

Array = NDArray[Any]


@dataclass(frozen=True)
class Options:
    """The checked arguments of a fit."""

    epochs: int
    batch_size: int
    optimizer: Optimizer
    metric: str
    shuffle: bool = True
    where: Where = Where()
    progress: bool | None = None
    verbose: int = 0


class Fit:
    """One call of `fit`. Building it plans and allocates; `run` changes the state."""

    def __init__(
        self,
        state: TrainingState,
        programs: Programs,
        data: Data,
        validation: Data | None,
        options: Options,
    ) -> None:
        self.state, self.programs, self.options = state, programs, options
        self.data, self.validation = data, validation
        self.plan, self.program = programs.get(
            len(data.X),
            options.batch_size,
            options.where,
            labels=data.labels,
            rule=options.optimizer.rule,
        )
        chosen = self.plan.kernel
        self.history = History(chosen.name, chosen.device, options.metric, len(data.X))
        problem = self.plan.problem
        # The same arrays in every epoch: a program need not look again where they lie.
        self.losses = np.zeros(problem.batches, dtype=problem.dtype)
        self.control = np.zeros(CONTROL_WORDS, dtype=np.int64)

    def run(self) -> None:
        """Train; the history grows with every finished epoch."""
        state, program = self.state, self.program
        state.prepare(self.options.optimizer.rule, self.plan.problem.slots)
        X, y = program.to_device(self.data.X), program.to_device(self.data.y)
        parameters = program.to_device(state.parameters)
        slots = program.to_device(state.slots)
        program.prepare(parameters, slots, X, y)
        options, batches = self.options, self.plan.problem.batches
        report = Report(options.epochs, batches, self.history, options.progress, options.verbose)
        try:
            for _ in range(options.epochs):
                self._epoch(parameters, slots, X, y, report)
        finally:
            report.close()

    def _epoch(self, parameters: Any, slots: Any, X: Any, y: Any, report: Report) -> None:
        state, problem, optimizer = self.state, self.plan.problem, self.options.optimizer
        before = state.snapshot()
        order = epoch_order(state.seed, state.epochs, problem.rows, self.options.shuffle)
        rule = OPTIMIZERS[optimizer.rule]
        hyper = hyper_table(
            rule, optimizer.settings, state.steps + 1, problem.batches, problem.dtype
        )
        losses, control = self.losses, self.control
        control.fill(0)

        def work() -> None:
            self.program.epoch(parameters, slots, X, y, order, hyper, losses, control)

        started = time.perf_counter()
        try:
            run_interruptibly(work, control, self.plan.seconds, report.batch)
        finally:
            # Also after an interrupt: the state is then that of the last finished batch.
            self.program.to_host(parameters, state.parameters)
            self.program.to_host(slots, state.slots)
            state.steps += applied_batches(control)
        seconds = time.perf_counter() - started

        self._check_finite(before, losses, control)
        state.epochs += 1
        sizes = batch_rows(problem.rows, problem.batch_size)
        self.history.record(combine_losses(losses, sizes, problem.reduction), seconds)
        if self.validation is not None:
            result = evaluate(
                self.state.parameters,
                self.programs,
                self.validation,
                problem,
                self.options.metric,
                self.options.where,
            )
            self.history.record_validation(result.loss, result.score)
        report.epoch()

    def _check_finite(
        self, before: tuple[Array, Array, int], losses: Array, control: NDArray[np.int64]
    ) -> None:
        """Raise if the epoch met a number that is not finite, and leave good parameters."""
        state = self.state
        bad = int(control[STATUS])
        if bad == 0 and state.finite:
            return
        if state.finite:
            kept = "those after the last good batch"
        else:
            # An overflow of the parameters shows one batch later, too late to name a good one.
            state.restore(before)
            kept = "those from before this epoch"
        good = losses[: bad - 1] if bad else losses
        finite = good[np.isfinite(good)]
        last = float(finite[-1]) if finite.size else None
        if last is None and len(self.history):
            last = float(self.history.loss[-1])
        epoch, batch = len(self.history) + 1, bad or len(losses)
        largest = float(np.abs(self.data.X).max())
        raise NonFiniteTrainingError.at(
            f"fit: got a loss, gradient or parameter that is not finite in epoch {epoch}, batch "
            f"{batch} of {len(losses)}, wanted finite numbers (last finite loss: {last}). "
            f"The model's parameters are {kept}. Try a smaller learning rate than "
            f"{self.options.optimizer.settings['learning_rate']:g}, and inputs and targets of "
            f"the order of 1: the largest |X| is {largest:.3g}",
            epoch,
            batch,
            last,
        )


def evaluate(
    parameters: Array,
    programs: Programs,
    data: Data,
    problem: Problem,
    metric: str,
    where: Where,
) -> Evaluation:
    """Return loss and score of all rows, in chunks that need little memory."""
    rows = len(data.X)
    sizes = batch_rows(rows, min(rows, CHUNK_ROWS))
    outputs = np.empty((rows, problem.sizes[-1]), dtype=problem.dtype)
    losses = []
    start = 0
    for size in map(int, sizes):
        part = slice(start, start + size)
        start += size
        _, program = programs.get(size, size, where, labels=data.labels)
        out = program.to_device(outputs[part])
        program.forward(program.to_device(parameters), program.to_device(data.X[part]), out)
        losses.append(program.loss(program.to_device(data.y[part])))
        program.to_host(out, outputs[part])
    loss = combine_losses(losses, sizes, problem.reduction)
    return Evaluation(loss, score(metric, outputs, data.y, data.labels), metric)
