"""Training and evaluation on checked data: epochs, history, the last good parameters."""

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.arrays import Data, host_copy, largest_magnitude
from fastmlp.batches import CHUNK_ROWS, batch_rows, combine_losses, epoch_order
from fastmlp.callbacks import Callback, EarlyStopping, EpochEnd, Patience
from fastmlp.epochs import Epoch, Trainer
from fastmlp.errors import NonFiniteTrainingError
from fastmlp.history import History
from fastmlp.metrics import Evaluation, score
from fastmlp.optimizers import Optimizer
from fastmlp.planning import Programs, Where
from fastmlp.progress import Report
from fastmlp.residency import blank, guarded, resident
from fastmlp.training_state import TrainingState
from fastmlp.weighting import Weights
from fastmlp_kernels.problem import Problem

Array = NDArray[Any]


@dataclass(frozen=True)
class Options:
    """The checked arguments of a fit."""

    epochs: int
    batch_size: int
    optimizer: Optimizer
    metric: str
    shuffle: bool = True
    weights: Weights | None = None
    l2: float = 0.0
    early_stopping: EarlyStopping | None = None
    callbacks: tuple[Callback, ...] = ()
    where: Where = Where()
    progress: bool | None = None
    verbose: int = 0


class Fit:
    """One call of `fit`. Building it plans and allocates; `run` changes the state."""

    def __init__(
        self,
        model: Any,
        state: TrainingState,
        programs: Programs,
        data: Data,
        validation: Data | None,
        options: Options,
    ) -> None:
        self.model, self.state, self.programs, self.options = model, state, programs, options
        self.data, self.validation = data, validation
        self.trainer = Trainer(
            state,
            programs,
            data,
            options.batch_size,
            options.optimizer.rule,
            options.where,
            weights=options.weights,
            l2=options.l2,
            lazy=True,
        )
        self.problem = self.trainer.plan.problem
        chosen = self.trainer.plan.kernel
        self.history = History(chosen.name, chosen.device, options.metric, len(data.X))
        rule = options.early_stopping
        self.patience = None if rule is None else Patience(rule, validation is not None)

    def run(self) -> None:
        """Train; the history grows with every finished epoch."""
        self._started = time.perf_counter()
        lock = self.state.lock
        lock.epoch(self.trainer.prepare)
        options, batches = self.options, self.problem.batches
        report = Report(options.epochs, batches, self.history, options.progress, options.verbose)
        try:
            for _ in range(options.epochs):
                self._epoch(report)
                if self._stops():
                    break
        finally:
            report.close()
            # Also after an interrupt or an error.
            lock.epoch(self.trainer.fetch)
        if self.patience is not None:
            self.history.best_epoch = self.patience.best_epoch
            if self.patience.best_parameters is not None:
                lock.epoch(self._restore, self.patience.best_parameters)
        self.trainer.close()

    def _restore(self, parameters: Array) -> None:
        self.state.touch()
        self.state.parameters[...] = parameters

    def _epoch(self, report: Report) -> None:
        state, problem, optimizer = self.state, self.problem, self.options.optimizer
        order = epoch_order(state.seed, state.epochs, problem.rows, self.options.shuffle)
        epoch = self.trainer.run(order, optimizer, report.batch)
        if epoch.bad_batch or not epoch.finite:
            self._refuse(epoch)
        loss, penalty = (
            combine_losses(values, epoch.weights, problem.reduction)
            for values in (epoch.losses, epoch.penalties)
        )
        rates = optimizer.rates(state.steps - 1, 1)
        self.history.record(loss, epoch.seconds, penalty, float(np.max(rates)))
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

    def _stops(self) -> bool:
        """Tell everybody of the last epoch; return whether anybody wants to stop."""
        if self.patience is None and not self.options.callbacks:
            return False
        self.trainer.fetch()
        known = self.history.last()
        event = EpochEnd(
            epochs=self.options.epochs,
            step=self.state.steps,
            model=self.model,
            seconds=time.perf_counter() - self._started,
            epoch_seconds=known.pop("seconds"),
            **known,
        )
        stops = [bool(callback(event)) for callback in self.options.callbacks]
        if self.patience is not None:
            # Without the penalty's part the loss alone would look worse than what is minimised.
            watched = replace(event, loss=event.loss + event.penalty)
            stops.append(self.patience.observe(watched, self.state.parameters))
        return any(stops)

    def _refuse(self, epoch: Epoch) -> None:
        """Raise as the epoch met a number that is not finite, and leave good parameters."""
        if epoch.finite:
            kept = "those after the last good batch"
        else:
            # An overflow of the parameters shows one batch later, too late to name a good one.
            kept = "those from before this epoch"
        bad, losses = epoch.bad_batch, epoch.losses
        good = losses[: bad - 1] if bad else losses
        finite = good[np.isfinite(good)]
        last = float(finite[-1]) if finite.size else None
        if last is None and len(self.history):
            last = float(self.history.loss[-1])
        number, batch = len(self.history) + 1, bad or len(losses)
        largest = largest_magnitude(host_copy(self.data.X))
        rate = float(np.max(self.options.optimizer.rates(self.state.steps, 1)))
        raise NonFiniteTrainingError.at(
            f"fit: got a loss, gradient or parameter that is not finite in epoch {number}, batch "
            f"{batch} of {len(losses)}, wanted finite numbers (last finite loss: {last}). "
            f"The model's parameters are {kept}. Try a smaller learning rate than "
            f"{rate:g}, and inputs and targets of "
            f"the order of 1: the largest |X| is {largest:.3g}",
            number,
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
        with programs.taken(size, size, where, labels=data.labels) as (plan, program):
            with guarded(plan.kernel.device, "evaluate"):
                out = blank(program, outputs[part])
                held = resident(program, parameters), program.to_device(data.X[part])
                program.forward(*held, out)
                losses.append(program.loss(program.to_device(data.y[part])))
                program.to_host(out, outputs[part])
    loss = combine_losses(losses, sizes, problem.reduction)
    return Evaluation(loss, score(metric, outputs, host_copy(data.y), data.labels), metric)
