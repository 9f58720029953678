"""Networks of one shape, one or many: what an `MLP` and an `Ensemble` have in common."""

import functools
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.arguments import check_integer, check_number, check_switch
from fastmlp.callbacks import (
    EarlyStopping,
    check_callbacks,
    check_early_stopping,
    check_resume,
)
from fastmlp.data.admission import (
    ChunkedData,
    Data,
    Rows,
    admit,
    admit_chunks,
    admit_inputs,
    admit_validation,
)
from fastmlp.data.arrays import check_matrix
from fastmlp.data.batches import check_batch_size
from fastmlp.data.chunks import Chunks
from fastmlp.data.frames import Columns, column_names
from fastmlp.data.inputs import check_out
from fastmlp.data.validation import Validation, check_validation, hold_out, validation_of
from fastmlp.data.weighting import check_weights
from fastmlp.description import Described
from fastmlp.dispatch.planning import Where, asked
from fastmlp.distributed.data_parallel import check_parallel
from fastmlp.errors import DomainError, known_keywords
from fastmlp.history import History
from fastmlp.metrics import Evaluation, check_metrics, monitors
from fastmlp.optimizers import Optimizer, check_optimizer
from fastmlp.progress import shows_progress
from fastmlp.state.parameters import check_finite_values
from fastmlp.training.agreement import Agreement
from fastmlp.training.data_parallel_fit import (
    DataParallelFit,
    check_supported,
    share,
    share_weights,
    take_own,
)
from fastmlp.training.fit import Fit
from fastmlp.training.inference import evaluate, predict, predict_array
from fastmlp.training.options import Options

Array = NDArray[Any]


class Network(Described):
    """A network, or several of one shape: see `MLP` and `Ensemble`.

    Attributes
    ----------
    history : History or None
        Of the last `fit`, also of one that was interrupted.
    """

    # Of `backward` and `apply`, once somebody has asked for it.
    _gradient: Array | None = None

    def _asked(self, device: str, kernel: str | None, threads: int | None) -> Where:
        if device == "auto" and kernel is None and threads is None:
            return self._where
        return asked(device, kernel, threads, self.threads)

    def _optimizer(self, given: Any) -> Optimizer:
        """Return a checked optimizer for a network of this shape."""
        return check_optimizer(given).for_layers(len(self.activations))

    def _optimizers(self, given: Any) -> tuple[Optimizer, ...]:
        """Return checked optimizers, one for each network."""
        raise NotImplementedError

    @shows_progress
    @known_keywords
    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        epochs: int = 10,
        batch_size: int | None = None,
        optimizer: Optimizer | str | Sequence[Optimizer] | None = None,
        validation_data: Any = None,
        validation_split: float | None = None,
        metrics: Any = None,
        shuffle: bool = True,
        sample_weight: Any = None,
        class_weight: Any = None,
        l2: float = 0.0,
        early_stopping: EarlyStopping | bool | None = None,
        callbacks: Any = None,
        resume: str | PathLike[str] | bool | None = None,
        communicator: Any = None,
        device: str = "auto",
        kernel: str | None = None,
        threads: int | None = None,
        progress: bool | None = None,
        verbose: int = 0,
    ) -> History:
        """Train for a number of epochs, and return their history; a second call goes on from there.

        Parameters
        ----------
        X, y : array-like (rows, inputs) and (rows, outputs)
            y also as (rows,) of one output or of class labels. Arrays on a GPU, contiguous and of
            the model's dtype, are used there; "auto" then means "cuda". `Chunks` stand for both.
        epochs : int; batch_size : int, optional
            Rows of a mini-batch, the last of an epoch maybe fewer; by default 32, or all of fewer.
        optimizer : Optimizer, optional
            ``SGD(0.01)`` by default; "adam" is ``Adam()``. Its rate may be a schedule: see
            `fastmlp.schedules`. Its state stays; one of another rule starts afresh and is logged.
            For an ensemble also one for each network, all of one class: a sweep of rates.
        validation_data : (X, y), (X, y, weights) or dict of such; validation_split : float
            Evaluated after each epoch. A split is a share of the rows, held out at random by the
            seed: the same ones in every fit of as many rows, with their `sample_weight`.
        metrics : str, callable or several, optional; shuffle : bool
            Of the validation, beside the score: see `evaluate`. Whether an epoch has an order of
            its own, by its number.
        sample_weight : array-like (rows,); class_weight : "balanced" or dict, optional
            Of the rows' losses, none below 0 (also (members, rows)), and by class, as a product.
        l2 : float
            ``l2 / 2`` times the squares of all weights (no biases) is added to the sum of a
            batch's losses, before a mean divides it: scikit-learn's ``alpha``; ``history.penalty``.
        early_stopping : EarlyStopping or True, optional; callbacks : callable or several, optional
            When to stop early, each network of an ensemble for itself. Called with an `EpochEnd`
            after each epoch, to read the model: True stops the fit, an array of bool its networks.
        resume : path or True, optional
            A `Checkpoint` to go on from, to the same bits; True is that of `callbacks`.
        communicator : MPI communicator or DataParallel, optional
            Trains on the rows of all its ranks: see `fastmlp.distributed`.
        device : {"auto", "cpu", "cuda"}; kernel : str, optional; threads : int, optional
            See `explain`; by default the fastest kernel, on at most ``self.threads`` threads.
        progress : bool, optional; verbose : int
            A line always or never; by default for a person. ``verbose=1`` adds one a second.

        Raises
        ------
        NonFiniteTrainingError
            If a loss, gradient or parameter becomes infinite or NaN; the last good ones stay.
        BusyError
            If another fit is training this model.

        Examples
        --------
        >>> history = model.fit(X, y, epochs=20, validation_split=0.2, early_stopping=True)
        >>> history.validation_loss.shape == history.loss.shape
        True
        """
        return self._fit(X, y, locals())

    def _fit(self, X: Any, y: Any, given: Mapping[str, Any]) -> History:
        """Train, once all arguments of `fit` have been checked, which are `given` by name."""
        parallel = check_parallel(given["communicator"])
        if parallel is None:
            return self._fit_rows(X, y, given, None)
        agreement = Agreement(parallel)
        return agreement.guard(lambda: self._fit_rows(X, y, given, agreement))

    def _fit_rows(
        self, X: Any, y: Any, given: Mapping[str, Any], agreement: Agreement | None
    ) -> History:
        where = self._asked(given["device"], given["kernel"], given["threads"])
        sample_weight = given["sample_weight"]
        if agreement is not None:
            where = check_supported(given, X, self._members, where)
            X, y, sample_weight = take_own(agreement, X, y, sample_weight)
        data: Rows
        data, where, columns = self._admit_rows(X, y, where)
        if agreement is not None:
            data, where = share(agreement, data, where, columns)
        if given["validation_split"] is None:
            validation = self._admit_validation(given["validation_data"], where, columns)
        else:
            split = given["validation_split"], given["validation_data"]
            data, sample_weight, validation = self._hold_out(*split, data, sample_weight)
        metrics = check_metrics(given["metrics"], self.template, validation)
        rule, watched = given["early_stopping"], monitors(validation, metrics)
        callbacks, checkpoints = check_callbacks(given["callbacks"])
        options = Options(
            epochs=check_integer(given["epochs"], "epochs", 1),
            batch_size=check_batch_size(given["batch_size"], data.batch_limit),
            optimizers=self._optimizers(given["optimizer"]),
            metrics=metrics,
            shuffle=check_switch(given["shuffle"], "shuffle"),
            weights=check_weights(sample_weight, given["class_weight"], data, self._members),
            l2=check_number(given["l2"], "l2"),
            early_stopping=check_early_stopping(rule, watched),
            callbacks=callbacks,
            checkpoints=checkpoints,
            resume=check_resume(given["resume"], checkpoints),
            where=where,
            progress=given["progress"],
            verbose=given["verbose"],
        )
        kind: Any = Fit
        if agreement is not None:
            options, of_data = share_weights(agreement, data, options)
            kind = functools.partial(DataParallelFit, agreement, of_data)
        work = functools.partial(self._train, kind, data, validation, options, columns)
        return self._state.lock.fit("fit", work)

    def _train(
        self,
        kind: Any,
        data: Rows,
        validation: dict[str, Validation],
        options: Options,
        columns: Columns | None,
    ) -> History:
        # Weights written through a view are not checked on the way in.
        check_finite_values("parameters", self.parameters)
        programs = self._programs, self._alone
        run = kind(self, self._state, *programs, data, validation, options, self._members)
        self._columns, self._vector = columns, data.vector
        self.history = history = run.history
        run.run()
        return history

    def _admit_rows(
        self, X: Any, y: Any, where: Where
    ) -> tuple[Data | ChunkedData, Where, Columns | None]:
        """Return checked data of a fit, where it runs, and the names of the columns."""
        if isinstance(X, Chunks):
            chunked = admit_chunks(X, y, self.sizes, self._loss, self.dtype, self._columns)
            return chunked, where, chunked.columns
        return *self._admit(X, y, where), self._columns or column_names(X)

    def _admit(self, X: Any, y: Any, where: Where) -> tuple[Data, Where]:
        return admit(X, y, self.sizes, self._loss, self.dtype, where, self._columns)

    def _admit_validation(
        self, given: Any, where: Where, columns: Columns | None
    ) -> dict[str, Validation]:
        rest = self.sizes, self._loss, self.dtype, where, columns

        def admit_set(pair: tuple[Any, Any], of: str) -> Data:
            return admit_validation(pair, *rest, of)

        return check_validation(given, admit_set, self._members)

    def _hold_out(
        self, share: Any, beside: Any, data: Rows, sample_weight: Any
    ) -> tuple[Data, Any, dict[str, Validation]]:
        """Return what is left to train on, its weights, and a part that is held out."""
        if not isinstance(data, Data):
            raise DomainError(
                f"validation_split: got {share!r} with Chunks, wanted validation_data="
            )
        if beside is not None:
            raise DomainError(
                f"validation_split: got {share!r} beside validation_data, wanted one of the two"
            )
        rest = hold_out(share, data, sample_weight, self.seed, self._members)
        return rest[0], rest[1], {"validation": rest[2]}

    def predict(
        self,
        X: Any,
        *,
        out: Array | None = None,
        device: str = "auto",
        kernel: str | None = None,
        threads: int | None = None,
    ) -> Array:
        """Return the outputs (rows, outputs); class probabilities for a softmax loss.

        A network with one output that was last trained on a vector of targets predicts a vector
        (rows,), so that ``y - model.predict(X)`` is one. No rows give an array of no rows. Of an
        ensemble (members, rows, outputs) or (members, rows).

        Parameters
        ----------
        X : array-like (rows, inputs)
            Read where it is if it is C-contiguous and of the model's dtype; of anything else a
            block of rows at a time is converted.
        out : ndarray, optional
            Where the outputs go, which is then returned: C-contiguous, of the result's shape and
            the model's dtype, in memory that neither X nor the model lies in. If X is refused for
            a number that is not finite, a part of it may have been written.
        device, kernel, threads
            As in `fit`.

        Raises
        ------
        DomainError
            If X or `out` does not suit.
        DTypeError, ShapeError
            If the kind or the shape of one of them does not.

        Examples
        --------
        >>> model, X = fastmlp.MLP([4, 8, 2]), np.zeros((3, 4), "float32")
        >>> out = np.empty((3, 2), "float32")
        >>> model.predict(X, out=out) is out
        True
        """
        sizes, where = self.template.sizes, self._asked(device, kernel, threads)
        if type(X) is np.ndarray and out is None and self._members is None:
            found = predict_array(self._state, self._alone, X, sizes, where)
            if found is not None:
                return found[:, 0] if self._vector else found
        inputs, where = admit_inputs(X, sizes[0], self.dtype, where, self._columns)
        rows, into = len(inputs), None
        if out is not None:
            shape = self._shape_of_predictions(rows)
            own = self._state.parameters, self._gradient
            into = check_out(out, shape, self.dtype, inputs, *own)
            into = into.reshape(*self._state.parameters.shape[:-1], rows, sizes[-1])
        if rows:
            rest = (self._alone, inputs, sizes[-1], where, into)
            outputs = self._state.read("predict", predict, *rest)
            if outputs is None:
                # A copy: what was not finite may have been changed since.
                copied = np.array(check_matrix(X, sizes[0], self.dtype, "X"))
                return self.predict(copied, out=out, device=device, kernel=kernel, threads=threads)
        else:
            outputs = np.empty((self.template.members, 0, sizes[-1]), self.dtype)
            outputs = outputs[0] if self._members is None else outputs
        if out is not None:
            return out
        if self._members is not None:
            outputs = outputs.reshape(self._members, *outputs.shape[-2:])
        return outputs[..., 0] if self._vector else outputs

    def _shape_of_predictions(self, rows: int) -> tuple[int, ...]:
        members = () if self._members is None else (self._members,)
        return (*members, rows) if self._vector else (*members, rows, self.template.sizes[-1])

    @known_keywords
    def evaluate(
        self,
        X: Any,
        y: Any,
        metric: str | None = None,
        *,
        metrics: Any = None,
        sample_weight: Any = None,
        device: str = "auto",
        kernel: str | None = None,
        threads: int | None = None,
    ) -> Evaluation:
        """Return the loss of all rows, reduced as in training, a score and other metrics.

        Parameters
        ----------
        metric : str, optional
            What the score is; by default what suits the loss, "accuracy" or "r2".
        metrics : str, callable or several, optional
            More of them: "mae", "rmse", "r2", "accuracy", "log_loss", "roc_auc", as scikit-learn
            defines them, or functions ``f(y, prediction) -> float``, which are given y as labels
            or numbers, what `predict` returns, and ``sample_weight=`` where rows have weights: all
            read-only.
        sample_weight : array-like (rows,), optional
            Of the rows in all means; of an ensemble also (members, rows).

        Raises
        ------
        DomainError
            If a metric does not suit the loss, the targets or the weights.

        Examples
        --------
        >>> found = model.evaluate(X, y, metrics=["mae", "rmse"])
        >>> sorted(found.metrics)
        ['mae', 'r2', 'rmse']
        """
        data, where = self._admit(X, y, self._asked(device, kernel, threads))
        rows = validation_of(data, sample_weight, self._members)
        chosen = check_metrics(metrics, self.template, {"": rows}, metric)
        rest = (self._alone, rows, self.template, chosen, where)
        found = self._state.read("evaluate", evaluate, *rest)
        if self._members is None:
            return found
        several = {name: np.atleast_1d(each) for name, each in found.metrics.items()}
        return Evaluation(np.atleast_1d(found.loss), several[found.metric], found.metric, several)
