"""Many networks of one shape, trained side by side on the same rows."""

import operator
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, NoReturn, SupportsIndex

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastmlp import arrays
from fastmlp.arrays import Data, check_integer, check_matrix, check_number, host_copy
from fastmlp.batches import CHUNK_ROWS, check_batch_size
from fastmlp.device_arrays import follows, matrix_there, stays
from fastmlp.ensemble_history import EnsembleHistory
from fastmlp.errors import DTypeError, NonFiniteTrainingError, known_keywords
from fastmlp.frames import Columns, check_columns, column_names
from fastmlp.metrics import check_metric
from fastmlp.model import MLP
from fastmlp.network import LARGEST_SEED
from fastmlp.optimizers import Optimizer
from fastmlp.parameters import aligned_zeros, check_finite_values, check_values
from fastmlp.planning import Programs, Where, asked, check_threads
from fastmlp.problems import check_memory
from fastmlp.progress import Report, shows_progress
from fastmlp.residency import blank, guarded
from fastmlp.side_by_side import (
    MembersEpoch,
    MembersState,
    MembersTrainer,
    check_optimizers,
)
from fastmlp.training import evaluate
from fastmlp.weighting import check_weights
from fastmlp_kernels.algebra import LOSSES

Array = NDArray[Any]


class Evaluations(NamedTuple):
    """What `Ensemble.evaluate` returns: `loss` and `score` have one number a network."""

    loss: NDArray[np.float64]
    score: NDArray[np.float64]
    metric: str


class Ensemble:
    """Networks of one shape that differ in their seeds, and if asked in their optimizers.

    Network k is what ``MLP(..., seed=seed + k)`` is: the same first weights, the same order of the
    rows, and the same bits after any fit on the CPU. Together they are trained faster: on the CPU
    each thread takes one network after another, on a GPU one launch trains all of them.

    Parameters
    ----------
    sizes, activations, loss, dtype, reduction, precision, initializer
        As in `MLP`, of every network.
    members : int
        How many networks.
    seed : int
        Of the first network; each other one has the next.

    Attributes
    ----------
    history : EnsembleHistory or None
        Of the last `fit`, also of one that was interrupted.

    Examples
    --------
    ``ensemble[k]`` is network k as an `MLP` of its own: a copy.
    """

    @known_keywords
    def __init__(
        self,
        sizes: Sequence[int],
        members: int = 8,
        activations: Any = "relu",
        loss: Any = "half_squared_error",
        *,
        seed: int | None = 0,
        dtype: DTypeLike = "float32",
        reduction: str = "mean",
        precision: str = "float32",
        initializer: Any = None,
    ) -> None:
        count = check_integer(members, "members", 1)
        self.seed = arrays.check_seed(
            seed, "seed", LARGEST_SEED - count + 1, ", as each network has the next"
        )
        given: dict[str, Any] = {"dtype": dtype, "reduction": reduction, "precision": precision}
        given["initializer"] = initializer
        seeds = range(self.seed, self.seed + count)
        first = MLP(sizes, activations, loss, seed=seeds[0], **given)
        self.template = check_memory(replace(first.template, members=count))
        parameters = aligned_zeros((count, first.parameters.size), first.dtype)
        parameters[0] = first.parameters
        for member, own in enumerate(seeds[1:], start=1):
            parameters[member] = MLP(sizes, activations, loss, seed=own, **given).parameters
        self._state = MembersState(parameters, tuple(seeds))
        self._threads: int | None = None
        self._columns: Columns | None = None
        self._vector = False
        self.history: EnsembleHistory | None = None
        self._forget()

    def _forget(self) -> None:
        self._single = replace(self.template, members=1)
        self._loss = LOSSES[self.template.loss]
        # Of all networks, and of one: predictions and evaluations go through the networks in turn.
        self._together, self._alone = Programs(self.template), Programs(self._single)

    @property
    def parameters(self) -> Array:
        """All parameters, (members, parameters of a network): may be written to."""
        return self._state.parameters

    @parameters.setter
    def parameters(self, values: Any) -> None:
        state = self._state
        checked = check_values("parameters", values, state.parameters)
        state.change("parameters", lambda: np.copyto(state.parameters, checked))

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the parameters."""
        return self._state.parameters.dtype

    @property
    def epochs_trained(self) -> NDArray[np.int64]:
        """Finished epochs of all fits, of each network."""
        return self._state.epochs.copy()

    @property
    def threads(self) -> int | None:
        """The most threads of a method that is not told otherwise; may be assigned to."""
        return self._threads

    @threads.setter
    def threads(self, count: int | None) -> None:
        self._threads = check_threads(count)

    def __len__(self) -> int:
        """Return the number of networks."""
        return self.template.members

    def __getitem__(self, member: SupportsIndex) -> MLP:
        """Return a copy of a network, with its optimizer's state: it goes on independently."""
        try:
            number = operator.index(member)
        except TypeError:
            raise DTypeError(f"member: got {member!r}, wanted a whole number") from None
        count = len(self)
        if not -count <= number < count:
            raise IndexError(f"member: got {number}, wanted a whole number from 0 to {count - 1}")
        index, problem = number % count, self.template
        names = ("activations", "loss", "dtype", "reduction", "precision")
        same = {name: getattr(problem, name) for name in names}
        model = MLP(problem.sizes, seed=self._state.seeds[index], **same)
        model._state = self._state.member(index)
        model.history = None if self.history is None else self.history.member(index)
        model.threads = self.threads
        model._columns, model._vector = self._columns, self._vector
        return model

    def __iter__(self) -> Iterator[MLP]:
        """Yield a copy of each network."""
        return (self[member] for member in range(len(self)))

    @shows_progress
    @known_keywords
    def fit(
        self,
        X: Any,
        y: Any,
        *,
        epochs: int = 10,
        batch_size: int | None = None,
        optimizer: Optimizer | str | Sequence[Optimizer] | None = None,
        validation_data: tuple[Any, Any] | None = None,
        shuffle: bool = True,
        sample_weight: Any = None,
        class_weight: Any = None,
        l2: float = 0.0,
        device: str = "auto",
        kernel: str | None = None,
        threads: int | None = None,
        progress: bool | None = None,
        verbose: int = 0,
    ) -> EnsembleHistory:
        """Train all networks; a second call goes on where the first one ended.

        Parameters
        ----------
        optimizer : Optimizer or sequence of Optimizer, optional
            One for all, or one for each network, all of one class: a sweep of learning rates.
        X, y, epochs, batch_size, validation_data, shuffle, sample_weight, class_weight, l2
            As in `MLP.fit`.
        device, kernel, threads, progress, verbose
            As in `MLP.fit`.

        Returns
        -------
        EnsembleHistory

        Raises
        ------
        NonFiniteTrainingError
            If a number of some networks becomes infinite or NaN: after the others have finished
            the epoch. Those that failed keep their last good parameters.
        """
        where, there = self._place(X, device, kernel, threads)
        data, columns = self._data(X, y, "", there), self._columns or column_names(X)
        validation = self._validation(validation_data, there, columns)
        rows = check_batch_size(batch_size, len(data.X))
        vector = arrays.is_vector(y, self.template.sizes)
        settings: dict[str, Any] = {
            "epochs": check_integer(epochs, "epochs", 1),
            "shuffle": bool(shuffle),
            "weights": check_weights(sample_weight, class_weight, data),
            "l2": check_number(l2, "l2"),
        }
        arguments = (data, rows, check_optimizers(optimizer, len(self)), where)

        def train() -> EnsembleHistory:
            check_finite_values("parameters", self.parameters)
            trainer = MembersTrainer(self._state, self._together, *arguments, **settings)
            self._columns, self._vector = columns, vector
            return self._train(trainer, settings["epochs"], validation, progress, verbose)

        return self._state.lock.fit("fit", train)

    def _train(
        self, trainer: MembersTrainer, epochs: int, validation: Data | None, *shown: Any
    ) -> EnsembleHistory:
        plan, metric, lock = trainer.plan, check_metric(None, self._loss), self._state.lock
        rows, kernel = len(trainer.data.X), plan.kernel
        history = EnsembleHistory(kernel.name, kernel.device, metric, rows, len(self))
        self.history = history
        lock.epoch(trainer.prepare)
        report = Report(epochs, plan.problem.batches, history, *shown)
        try:
            for _ in range(epochs):
                self._epoch(trainer, history, report.batch)
                if validation is not None:
                    lock.epoch(trainer.fetch)
                    found = self._evaluate(self.parameters, validation, metric, trainer.where)
                    history.record_validation(found.loss, found.score)
                report.epoch()
        finally:
            trainer.close()
            report.close()
            # Also after an interrupt or an error.
            lock.epoch(trainer.fetch)
        trainer.put_back()
        return history

    def _epoch(self, trainer: MembersTrainer, history: EnsembleHistory, waiting: Any) -> None:
        epoch = trainer.run(waiting)
        if epoch.bad_batches.any() or not epoch.finite.all():
            self._refuse(trainer, history, epoch)
        history.record(
            trainer.combine(epoch.losses, epoch.weights),
            epoch.seconds,
            trainer.combine(epoch.penalties, epoch.weights),
            trainer.last_rates(),
        )

    def _refuse(
        self, trainer: MembersTrainer, history: EnsembleHistory, epoch: MembersEpoch
    ) -> NoReturn:
        """Raise as some networks met a number that is not finite, and leave good parameters."""
        bad = np.flatnonzero((epoch.bad_batches > 0) | ~epoch.finite)
        first, batches = int(bad[0]), epoch.losses.shape[1]
        stopped = int(epoch.bad_batches[first])
        number, batch = len(history) + 1, stopped or batches
        good = epoch.losses[first, : stopped - 1 if stopped else batches]
        finite = good[np.isfinite(good)]
        last = float(finite[-1]) if finite.size else None
        if last is None and len(history):
            last = float(history.loss[-1, first])
        names = ", ".join(map(str, bad))
        largest = arrays.largest_magnitude(host_copy(trainer.data.X))
        error = NonFiniteTrainingError.at(
            f"fit: got a loss, gradient or parameter that is not finite in epoch {number} of "
            f"{len(bad)} of {len(self)} networks (members {names}; the first in batch {batch} of "
            f"{batches}), wanted finite numbers (its last finite loss: {last}). Their parameters "
            "are the last good ones, and the other networks have finished the epoch. Try smaller "
            f"learning rates than {trainer.rate(first):g}, and inputs and targets of the order of "
            f"1: the largest |X| is {largest:.3g}",
            number,
            batch,
            last,
        )
        error.members = tuple(map(int, bad))
        raise error

    def predict(
        self,
        X: Any,
        *,
        device: str = "auto",
        kernel: str | None = None,
        threads: int | None = None,
    ) -> Array:
        """Return every network's outputs, (members, rows, outputs) or (members, rows).

        The latter after a fit to a vector of targets: see `MLP.predict`.
        """
        sizes = self.template.sizes
        where, there = self._place(X, device, kernel, threads)
        check_columns(X, self._columns, "X")
        inputs = matrix_there(X, sizes[0], self.dtype, "X") if there else None
        if inputs is None:
            inputs = check_matrix(X, sizes[0], self.dtype, "X", least=0)
        return self._state.read("predict", self._predict, inputs, where)

    def _predict(self, of_each: Array, inputs: Array, where: Where) -> Array:
        rows, outputs = len(inputs), self.template.sizes[-1]
        if not rows:
            return np.empty((len(self), 0, outputs)[: 2 if self._vector else 3], dtype=self.dtype)
        capacity = 1 << (rows - 1).bit_length()
        result = np.empty((len(of_each), rows, outputs), dtype=self.dtype)
        with (
            self._alone.taken(capacity, min(capacity, CHUNK_ROWS), where) as (plan, program),
            guarded(plan.kernel.device, "predict"),
        ):
            given, out = program.to_device(inputs), blank(program, result[0])
            for parameters, own in zip(of_each, result, strict=True):
                out = own if program.memory is None else out
                program.predict(program.to_device(parameters), given, out, True)
                program.to_host(out, own)
        return result[..., 0] if self._vector else result

    def predict_mean(self, X: Any, **where: Any) -> Array:
        """Return the mean of the networks' predictions, (rows, outputs); see `predict`."""
        return self.predict(X, **where).mean(axis=0, dtype=np.float64).astype(self.dtype)

    def predict_spread(self, X: Any, **where: Any) -> Array:
        """Return their standard deviation, (rows, outputs): how far the networks disagree."""
        return self.predict(X, **where).std(axis=0, dtype=np.float64).astype(self.dtype)

    def evaluate(
        self,
        X: Any,
        y: Any,
        metric: str | None = None,
        *,
        device: str = "auto",
        kernel: str | None = None,
        threads: int | None = None,
    ) -> Evaluations:
        """Return the loss and the score of every network; see `MLP.evaluate`."""
        where, there = self._place(X, device, kernel, threads)
        data = self._data(X, y, "", there)
        rest = (data, check_metric(metric, self._loss, data), where)
        return self._state.read("evaluate", self._evaluate, *rest)

    def _evaluate(self, of_each: Array, data: Data, metric: str, where: Where) -> Evaluations:
        found = [
            evaluate(parameters, self._alone, data, self._single, metric, where)
            for parameters in of_each
        ]
        losses, scores = ([each[k] for each in found] for k in range(2))
        return Evaluations(np.array(losses), np.array(scores), metric)

    def _place(self, X: Any, device: Any, kernel: Any, threads: Any) -> tuple[Where, bool]:
        """Return where a call runs, and whether arrays on a GPU are used there as they are."""
        where = asked(device, kernel, threads, self.threads)
        where = where._replace(device=follows(X, where.device, where.kernel))
        return where, stays(where.device, where.kernel)

    def _data(self, X: Any, y: Any, of: str, there: bool, columns: Columns | None = None) -> Data:
        rest = (self._loss, self.dtype, of, there, columns or self._columns)
        return arrays.check_data(X, y, self.template.sizes, *rest)

    def _validation(self, pair: Any, there: bool, columns: Columns | None) -> Data | None:
        if pair is None:
            return None
        return self._data(*arrays.check_pair(pair), "validation ", there, columns)

    def __repr__(self) -> str:
        problem = self.template
        rounded = "" if problem.precision == "float32" else f", precision={problem.precision!r}"
        return (
            f"Ensemble({list(problem.sizes)}, members={len(self)}, "
            f"activations={list(problem.activations)}, loss={problem.loss!r}, seed={self.seed}, "
            f"dtype={problem.dtype!r}, reduction={problem.reduction!r}{rounded})"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the programs: workspaces and compiled code, which are made again."""
        left_out = ("_together", "_alone", "_loss", "_single")
        return {name: value for name, value in vars(self).items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copied or unpickled ensemble."""
        self.__dict__.update(state)
        self._forget()
