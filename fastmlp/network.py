"""Networks of one shape, one or many: what an `MLP` and an `Ensemble` have in common."""

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fastmlp.arguments import check_integer, check_number
from fastmlp.callbacks import (
    EarlyStopping,
    check_callbacks,
    check_early_stopping,
    check_resume,
)
from fastmlp.data.admission import (
    ChunkedData,
    Data,
    admit,
    admit_chunks,
    admit_inputs,
    admit_validation,
)
from fastmlp.data.batches import check_batch_size
from fastmlp.data.chunks import Chunks
from fastmlp.data.frames import Columns, column_names
from fastmlp.data.weighting import check_weights
from fastmlp.dispatch.planning import Programs, Where, asked, check_threads
from fastmlp.errors import known_keywords
from fastmlp.files.contents import Contents
from fastmlp.history import History
from fastmlp.metrics import Evaluation, check_metric
from fastmlp.optimizers import Optimizer, check_optimizer
from fastmlp.progress import shows_progress
from fastmlp.saving import Savable
from fastmlp.state.parameters import (
    ParameterViews,
    bias_views,
    check_finite_values,
    check_values,
    weight_views,
)
from fastmlp.training.fit import Fit, Options
from fastmlp.training.inference import evaluate, predict
from fastmlp_kernels.algebra import LOSSES
from fastmlp_kernels.problem import LayerLayout, parameter_layout

Array = NDArray[Any]


class Network(Savable):
    """A network, or several of one shape: see `MLP` and `Ensemble`.

    Attributes
    ----------
    history : History or None
        Of the last `fit`, also of one that was interrupted.
    """

    # Workspaces and compiled code, which are made again.
    _not_saved: tuple[str, ...] = ("_programs", "_alone", "_loss")

    def _begin(self, contents: Contents) -> None:
        """Become the network that is described."""
        self.template, self._members = contents.template, contents.members
        self._state, self.seed = contents.state, contents.state.seed
        self._where = Where()
        self._columns = contents.columns
        self.history = contents.history
        # Whether the targets of one output were a vector when the model was last trained.
        self._vector = contents.vector
        self._forget()

    @classmethod
    def _from(cls, contents: Contents) -> Self:
        model = cls.__new__(cls)
        model._begin(contents)
        return model

    def _contents(self) -> Contents:
        parts = self.template, self._members, self._state, self.history
        return Contents(*parts, self._columns, self._vector)

    def _layout(self) -> tuple[LayerLayout, ...]:
        return parameter_layout(self.sizes)

    def _forget(self) -> None:
        self._loss = LOSSES[self.template.loss]
        # Of all networks, and of one: predictions and evaluations go through networks in turn.
        self._programs = self._alone = Programs(self.template)
        if self.template.members > 1:
            self._alone = Programs(replace(self.template, members=1))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Units per layer, inputs first."""
        return self.template.sizes

    @property
    def activations(self) -> tuple[str, ...]:
        """The activation of each layer."""
        return self.template.activations

    @property
    def loss_name(self) -> str:
        """The loss."""
        return self.template.loss

    @property
    def reduction(self) -> str:
        """How the loss of a batch is made of those of its rows."""
        return self.template.reduction

    @property
    def precision(self) -> str:
        """The coarsest rounding that matrix products may use."""
        return self.template.precision

    @property
    def dropout(self) -> tuple[float, ...]:
        """The share of each hidden layer's outputs that training leaves out; empty without any."""
        return self.template.dropout

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the parameters."""
        return self._state.parameters.dtype

    @property
    def threads(self) -> int | None:
        """The most threads of a method that is not told otherwise; may be assigned to.

        None, as at first, stands for what the process may use. Work too small to share stays on
        one thread, and results have the same bits on any number.
        """
        return self._where.threads

    @threads.setter
    def threads(self, count: int | None) -> None:
        self._where = Where(threads=check_threads(count))

    def _asked(self, device: str, kernel: str | None, threads: int | None) -> Where:
        if device == "auto" and kernel is None and threads is None:
            return self._where
        return asked(device, kernel, threads, self.threads)

    @property
    def epochs_trained(self) -> Any:
        """Finished epochs of all fits; of an ensemble, of each network."""
        epochs = self._state.epochs
        return epochs if self._members is None else np.array(epochs, ndmin=1)

    @property
    def parameters(self) -> Array:
        """All parameters as one flat vector, layer by layer: weights row by row, then biases.

        Of an ensemble (members, parameters of a network).
        """
        held = self._state.parameters
        return held if self._members is None else held.reshape(self._members, -1)

    @parameters.setter
    def parameters(self, values: Any) -> None:
        held = self.parameters
        checked = check_values("parameters", values, held)
        self._state.change("parameters", lambda: np.copyto(held, checked))

    @property
    def weights(self) -> ParameterViews:
        """The weight matrices (inputs, outputs), one per layer: views, which may be assigned to.

        Of an ensemble (members, inputs, outputs).
        """
        views = weight_views(self.parameters, self._layout())
        return ParameterViews("weights", views, self._state.change)

    @weights.setter
    def weights(self, values: Any) -> None:
        self.weights.assign(values)

    @property
    def biases(self) -> ParameterViews:
        """The bias vectors, one per layer: views, which may be assigned to.

        Of an ensemble (members, outputs).
        """
        views = bias_views(self.parameters, self._layout())
        return ParameterViews("biases", views, self._state.change)

    @biases.setter
    def biases(self, values: Any) -> None:
        self.biases.assign(values)

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
        validation_data: tuple[Any, Any] | None = None,
        shuffle: bool = True,
        sample_weight: Any = None,
        class_weight: Any = None,
        l2: float = 0.0,
        early_stopping: EarlyStopping | bool | None = None,
        callbacks: Any = None,
        resume: str | PathLike[str] | bool | None = None,
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
        validation_data : (X, y), optional; shuffle : bool
            Evaluated after each epoch; whether an epoch has an order of its own, by its number.
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
        """
        data, where, columns = self._admit_rows(X, y, self._asked(device, kernel, threads))
        validation = self._admit_validation(validation_data, where, columns)
        called, checkpoints = check_callbacks(callbacks)
        options = Options(
            epochs=check_integer(epochs, "epochs", 1),
            batch_size=check_batch_size(batch_size, data.rows),
            optimizers=self._optimizers(optimizer),
            metric=check_metric(None, self._loss),
            shuffle=bool(shuffle),
            weights=check_weights(sample_weight, class_weight, data, self._members),
            l2=check_number(l2, "l2"),
            early_stopping=check_early_stopping(early_stopping, validation is not None),
            callbacks=called,
            checkpoints=checkpoints,
            resume=check_resume(resume, checkpoints),
            where=where,
            progress=progress,
            verbose=verbose,
        )
        return self._state.lock.fit("fit", lambda: self._train(data, validation, options, columns))

    def _train(
        self,
        data: Data | ChunkedData,
        validation: Data | None,
        options: Options,
        columns: Columns | None,
    ) -> History:
        # Weights written through a view are not checked on the way in.
        check_finite_values("parameters", self.parameters)
        programs = self._programs, self._alone
        run = Fit(self, self._state, *programs, data, validation, options, self._members)
        self._columns, self._vector = columns, data.vector
        self.history = run.history
        run.run()
        return run.history

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

    def _admit_validation(self, pair: Any, where: Where, columns: Columns | None) -> Data | None:
        return admit_validation(pair, self.sizes, self._loss, self.dtype, where, columns)

    def predict(
        self,
        X: Any,
        *,
        device: str = "auto",
        kernel: str | None = None,
        threads: int | None = None,
    ) -> Array:
        """Return the outputs (rows, outputs); class probabilities for a softmax loss.

        A network with one output that was last trained on a vector of targets predicts a vector
        (rows,), so that ``y - model.predict(X)`` is one. No rows give an array of no rows. Of an
        ensemble (members, rows, outputs) or (members, rows).
        """
        sizes, where = self.template.sizes, self._asked(device, kernel, threads)
        inputs, where = admit_inputs(X, sizes[0], self.dtype, where, self._columns)
        if len(inputs):
            rest = (self._alone, inputs, sizes[-1], where)
            outputs = self._state.read("predict", predict, *rest)
        else:
            outputs = np.empty((self.template.members, 0, sizes[-1]), self.dtype)
            outputs = outputs[0] if self._members is None else outputs
        if self._members is not None:
            outputs = outputs.reshape(self._members, *outputs.shape[-2:])
        return outputs[..., 0] if self._vector else outputs

    @known_keywords
    def evaluate(
        self,
        X: Any,
        y: Any,
        metric: str | None = None,
        *,
        device: str = "auto",
        kernel: str | None = None,
        threads: int | None = None,
    ) -> Evaluation:
        """Return the loss of all rows, reduced as in training, and a score.

        `metric` is "accuracy" or "r2"; by default the one that suits the loss. An accuracy needs
        targets that are classes.
        """
        data, where = self._admit(X, y, self._asked(device, kernel, threads))
        metric = check_metric(metric, self._loss, data)
        rest = (self._alone, data, self.template, metric, where)
        found = self._state.read("evaluate", evaluate, *rest)
        if self._members is None:
            return found
        return Evaluation(np.atleast_1d(found.loss), np.atleast_1d(found.score), metric)

    def __repr__(self) -> str:
        members = "" if self._members is None else f"members={self._members}, "
        left_out = f", dropout={list(self.dropout)}" if self.dropout else ""
        rounded = "" if self.precision == "float32" else f", precision={self.precision!r}"
        return (
            f"{type(self).__name__}({list(self.sizes)}, {members}"
            f"activations={list(self.activations)}, loss={self.loss_name!r}, seed={self.seed}, "
            f"dtype={self.dtype.name!r}, reduction={self.reduction!r}{rounded}{left_out})"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the programs: workspaces and compiled code, which are made again."""
        return {name: each for name, each in vars(self).items() if name not in self._not_saved}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copied or unpickled model."""
        self.__dict__.update(state)
        self._forget()
