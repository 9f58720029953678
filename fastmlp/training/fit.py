"""The policy of a fit: orders, validation, early stopping, history, the last good parameters.

Numbers have an axis of networks, of which a model that is a single network has one.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from fastmlp.callbacks import EpochEnd, Patience, check_answer
from fastmlp.data.admission import ChunkedData, Data, OwnRows
from fastmlp.data.arrays import host_copy
from fastmlp.data.batches import combine_losses
from fastmlp.data.shuffling import Orders
from fastmlp.data.validation import UNNAMED, Validation
from fastmlp.dispatch.planning import Programs, machine_with
from fastmlp.errors import NonFiniteTrainingError
from fastmlp.files.contents import kind_of
from fastmlp.history import History
from fastmlp.metrics import monitors
from fastmlp.optimizer_base import joint_update
from fastmlp.plateau import Plateaus
from fastmlp.progress import Report
from fastmlp.state.finite import largest_magnitude
from fastmlp.state.training_state import TrainingState
from fastmlp.training.checkpoints import (
    CheckpointWriter,
    progress_of,
    read_checkpoint,
    restore_states,
    states_of,
    take_up,
)
from fastmlp.training.chunked_trainer import ChunkedOrders, ChunkedTrainer
from fastmlp.training.epochs import Epoch
from fastmlp.training.inference import evaluate
from fastmlp.training.options import Options, settings_of
from fastmlp.training.trainer import Trainer

# What an `EpochEnd` has by names of its own.
REPORTED = (
    *("epoch", "values", "loss", "penalty", "learning_rate"),
    *("validation_loss", "validation_score"),
)

Array = NDArray[Any]
Numbers = NDArray[np.float64]


class Fit:
    """One call of `fit`. Building it plans and allocates; `run` changes the state.

    Parameters
    ----------
    model : MLP or Ensemble
        What callbacks are given.
    state : TrainingState
    together, alone : Programs
        That train all networks, and that evaluate one.
    data : Data or ChunkedData
    validation : mapping of str to Validation
    options : Options
    members : int or None
        Networks of an ensemble, or None.
    """

    def __init__(
        self,
        model: Any,
        state: TrainingState,
        together: Programs,
        alone: Programs,
        data: Data | ChunkedData | OwnRows,
        validation: Mapping[str, Validation],
        options: Options,
        members: int | None,
    ) -> None:
        self.model, self.state, self.alone, self.options = model, state, alone, options
        self.data, self.validation, self.members = data, validation, members
        self.trainer = self._trainer(
            state,
            together,
            data,
            options.batch_size,
            joint_update(options.optimizers),
            options.where,
            weights=options.weights,
            l2=options.l2,
            lazy=True,
            epochs=options.epochs,
        )
        self.problem = self.trainer.plan.problem
        chosen, rows = self.trainer.plan.kernel, data.rows
        names = options.metrics[0].name, rows * self.trainer.chunks, members
        self.history = History(chosen.name, chosen.device, *names, next(iter(validation), UNNAMED))
        # The networks that are still trained.
        self._training = list(range(self.problem.members))
        # Added to the numbers of an epoch: NaN for each network that has stopped.
        self._stopped = np.zeros(self.problem.members)
        rule, known = options.early_stopping, monitors(validation, options.metrics)
        self.patience = [Patience(rule, known) for _ in self._training if rule is not None]
        self._plateaus = Plateaus(options.optimizers, known)
        self.checkpoints: list[CheckpointWriter] = []
        if options.checkpoints or options.resume is not None:
            self._begin_checkpoints(validation)
        self.orders = self._orders(rows)
        self._take_rates()

    def _trainer(self, *arguments: Any, **options: Any) -> Any:
        kind: Any = ChunkedTrainer if isinstance(self.data, ChunkedData) else Trainer
        return kind(*arguments, **options)

    def _take_rates(self) -> None:
        """Train on with the learning rates as plateaus have left them."""
        # New objects: the trainer looks their rates up anew.
        self._optimizers = self._plateaus.optimizers()
        rates = [each.settings["learning_rate"] for each in self._optimizers]
        # Only a schedule has to be asked again.
        self._scheduled = [member for member, rate in enumerate(rates) if callable(rate)]
        self._rates = np.array([np.nan if callable(rate) else rate for rate in rates])

    def _orders(self, rows: int) -> Any:
        state, members, options = self.state, self.problem.members, self.options
        if isinstance(self.data, ChunkedData):
            return ChunkedOrders(state, members, self.trainer.chunks, options.shuffle)
        return Orders(
            [state.seed_of(member) for member in range(members)],
            np.atleast_1d(state.epochs).tolist(),
            rows,
            options.epochs,
            shuffle=options.shuffle,
            threads=options.where.threads or machine_with(None).cores,
        )

    def _settings(self, validation: Mapping[str, Validation]) -> dict[str, str]:
        """Return what decides the result of the fit, as texts."""
        return settings_of(self.model, self.data, validation, self.options, self.patience)

    def _begin_checkpoints(self, validation: Mapping[str, Validation]) -> None:
        """Go on from a checkpoint, if that is wanted and there is one."""
        options, kind = self.options, kind_of(self.model, "Checkpoint")
        settings = self._settings(validation)
        # What no file can hold is refused now.
        states_of(options.callbacks)
        self.checkpoints = [CheckpointWriter(each, kind, settings) for each in options.checkpoints]
        found = options.resume and read_checkpoint(options.resume, kind, settings)
        if not found:
            return
        contents, progress = found
        restore_states(options.callbacks, progress.callbacks)
        self.state.lock.epoch(self.state.adopt, contents.state)
        if contents.history is not None:
            self.history.append(contents.history)
        self._training = take_up(progress, self.patience)
        self._plateaus.take_up(progress.plateau_best, progress.plateau_counts)
        self._leave_out([k for k in range(self.problem.members) if k not in self._training])

    def run(self) -> None:
        """Train; the history grows with every finished epoch."""
        self._started = time.perf_counter()
        self.state.lock.epoch(self.trainer.prepare)
        options, batches = self.options, self.problem.batches * self.trainer.chunks
        report = Report(options.epochs, batches, self.history, options.progress, options.verbose)
        try:
            while self._training and len(self.history) < options.epochs:
                self._epoch(report)
                self._end(self._stopping())
                if self._plateaus and self._plateaus.observe(self.history.last(), self._training):
                    self._take_rates()
                self._write_checkpoints()
        finally:
            self.orders.close()
            report.close()
            # Also after an interrupt or an error.
            self._fetch()
            if isinstance(self.trainer, ChunkedTrainer):
                self.history.rows = self.trainer.rows
        self._end(self._training)
        if self.patience:
            best = [each.best_epoch for each in self.patience]
            self.history.best_epoch = best[0] if self.members is None else np.array(best)
        self.trainer.close()
        for each in self.checkpoints:
            each.end()

    def _write_checkpoints(self) -> None:
        last = not self._training or len(self.history) == self.options.epochs
        due = [each for each in self.checkpoints if last or each.due(len(self.history))]
        if not due:
            return
        self._fetch()
        held = self.state.parameters.reshape(self.problem.members, -1)
        progress = progress_of(self.patience, self._training, held)
        states = states_of(self.options.callbacks)
        progress = progress._replace(**self._plateaus.progress(), callbacks=states)
        for each in due:
            each.write(self.model._contents(), progress)

    def _epoch(self, report: Report) -> None:
        options, reduction = self.options, self.problem.reduction
        epoch = self.trainer.run(self.orders.next(), self._optimizers, report.batch)
        if epoch.failed:
            self._refuse(epoch)
        loss = combine_losses(epoch.losses, epoch.weights, reduction)
        # Nothing to combine without a penalty.
        penalty = self._stopped
        if options.l2:
            penalty = combine_losses(epoch.penalties, epoch.weights, reduction)
        loss, penalty, rates = (self._own(each) for each in (loss, penalty, self._last_rates()))
        self.history.record(loss, epoch.seconds, penalty, rates)
        self.history.straight_epochs += epoch.straight
        if self.validation:
            self._validate()
        report.epoch()

    def _fetch(self) -> None:
        """Bring the parameters and the state to the host, if they are elsewhere."""
        program = self.trainer.program
        if program is not None and program.memory is not None:
            self.state.lock.epoch(self.trainer.fetch)

    def _own(self, numbers: Any) -> Any:
        """Return an epoch's numbers of all networks as the model's: one network's is a float."""
        return float(numbers[0]) if self.members is None else numbers + self._stopped

    def _validate(self) -> None:
        options, found = self.options, {}
        rest = self.problem, options.metrics, options.where
        for name, rows in self.validation.items():
            result = evaluate(self.state.parameters, self.alone, rows, *rest)
            for metric, numbers in {"loss": result.loss, **result.metrics}.items():
                found[name, metric] = self._own(np.atleast_1d(numbers))
        self.history.record_validation(found)

    def _rate(self, member: int, steps: int = 0) -> float:
        """Return the learning rate of a network's next step, or of one so many steps from it."""
        first = int(np.atleast_1d(self.state.steps)[member]) + steps
        return float(np.max(self._optimizers[member].rates(first, 1)))

    def _last_rates(self) -> Numbers:
        """Return float64[members]: the learning rate of each network's last step."""
        for member in self._scheduled:
            self._rates[member] = self._rate(member, -1)
        return self._rates

    def _stopping(self) -> Sequence[int]:
        """Tell everybody of the last epoch; return the networks that are to stop."""
        if not self.patience and not self.options.callbacks:
            return ()
        self._fetch()
        known = self.history.last()
        stopping: set[int] = set()
        if self.options.callbacks:
            event = EpochEnd(
                epochs=self.options.epochs,
                step=self.state.steps + 0,
                model=self.model,
                seconds=time.perf_counter() - self._started,
                epoch_seconds=known["seconds"],
                **{name: known[name] for name in REPORTED},
            )
            for callback in self.options.callbacks:
                stopping.update(check_answer(callback(event), self.problem.members))
        if self.patience:
            values = np.atleast_1d(self.patience[0].watched(known)).tolist()
            held = self.state.parameters.reshape(len(values), -1)
            for member in self._training:
                watching = self.patience[member]
                if watching.observe(known["epoch"], values[member], held[member]):
                    stopping.add(member)
        return [member for member in self._training if member in stopping]

    def _end(self, members: Sequence[int]) -> None:
        """Train these networks no more: each goes back to its best parameters, if it has any."""
        if not members:
            return
        better = [member for member in members if self._best(member) is not None]
        if better:
            self.state.lock.epoch(self._restore, better)
        self._training = [member for member in self._training if member not in members]
        if self._training:
            self._leave_out(members)
            self.state.lock.epoch(self.trainer.upload)

    def _leave_out(self, members: Sequence[int]) -> None:
        if members:
            # A new array: the history holds the old one.
            self._stopped = self._stopped.copy()
            self._stopped[list(members)] = np.nan
            self.trainer.leave_out(members)

    def _best(self, member: int) -> Any:
        return self.patience[member].best_parameters if self.patience else None

    def _restore(self, members: Sequence[int]) -> None:
        state = self.state
        state.touch()
        held = state.parameters.reshape(self.problem.members, -1)
        for member in members:
            held[member] = self._best(member)

    def _refuse(self, epoch: Epoch) -> NoReturn:
        """Raise as some networks met a number that is not finite, and leave good parameters."""
        bad = np.flatnonzero((epoch.bad_batches > 0) | ~epoch.finite)
        first, batches, unit = int(bad[0]), epoch.losses.shape[1], self.trainer.unit
        stopped, number = int(epoch.bad_batches[first]), len(self.history) + 1
        batch = stopped or batches
        good = epoch.losses[first, : stopped - 1 if stopped else batches]
        finite = good[np.isfinite(good)]
        last = float(finite[-1]) if finite.size else None
        if last is None and len(self.history):
            last = float(np.atleast_1d(self.history.loss[-1])[first])
        largest = largest_magnitude(host_copy(self.trainer.data.X))
        if self.members is None:
            # An overflow of the parameters shows one batch later, too late to name a good one.
            kept = (
                "after the last good batch" if epoch.finite[first] else f"from before this {unit}"
            )
            where = f", batch {batch} of {batches}"
            what = f"last finite loss: {last}). The model's parameters are those {kept}"
            rate = "a smaller learning rate"
        else:
            where = (
                f" of {len(bad)} of {self.members} networks (members {', '.join(map(str, bad))}; "
                f"the first in batch {batch} of {batches})"
            )
            what = (
                f"its last finite loss: {last}). Their parameters are the last good ones, and the "
                f"other networks have finished the {unit}"
            )
            rate = "smaller learning rates"
        error = NonFiniteTrainingError.at(
            f"fit: got a loss, gradient or parameter that is not finite in epoch {number}{where}, "
            f"wanted finite numbers ({what}. Try {rate} than {self._rate(first):g}, and inputs and "
            f"targets of the order of 1: the largest |X| is {largest:.3g}",
            number,
            batch,
            last,
        )
        if self.members is not None:
            error.members = tuple(map(int, bad))
        raise error
