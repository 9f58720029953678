"""The multilayer perceptron as users see it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp import steps, training
from fastmlp.arrays import (
    check_data,
    check_integer,
    check_matrix,
    check_number,
    check_pair,
    check_targets,
    is_vector,
)
from fastmlp.batches import check_batch_size
from fastmlp.callbacks import EarlyStopping, check_callbacks, check_early_stopping
from fastmlp.device_arrays import follows, inputs_there, stays
from fastmlp.errors import CallOrderError, NonFiniteTrainingError, known_keywords
from fastmlp.frames import Columns, check_columns, column_names
from fastmlp.gradients import Gradients
from fastmlp.history import History
from fastmlp.metrics import Evaluation, check_metric
from fastmlp.network import Network
from fastmlp.optimizers import Optimizer, check_optimizer
from fastmlp.parameters import aligned_zeros, check_finite_values
from fastmlp.planning import Where
from fastmlp.progress import shows_progress
from fastmlp.weighting import check_sample_weight, check_weights

Array = NDArray[Any]


class MLP(Network):
    """A multilayer perceptron: linear, activation, linear, ..., and a loss.

    Parameters
    ----------
    sizes : sequence of int
        Units per layer, inputs first: ``[784, 256, 10]``.
    activations : str, row, or sequence of them
        One name for all hidden layers, with the identity at the output; or one per layer.
    loss : str or row
        Its name in the table `LOSSES`.
    seed : int or None
        Of the first weights and of the order of the rows in `fit`. None draws one, which `repr`
        and ``model.seed`` show.
    dtype : {"float32", "float64"}
        Of the parameters and of everything computed.
    reduction : {"mean", "sum", "batch_mean"}
        Of the loss over a batch: the mean over all elements (over rows for a loss of whole rows),
        the sum, or the sum over outputs and mean over rows.
    precision : {"float32", "tf32", "bfloat16"}
        The coarsest rounding of the factors of matrix products that a kernel may use, as a GPU's
        tensor cores do; sums, parameters and the optimizer's state stay float32. A permission: CPU
        kernels are exact to float32 whatever it says.
    initializer : str or row, optional
        For all layers; by default each activation brings the one that suits it.

    Attributes
    ----------
    history : History or None
        Of the last `fit`, also of one that was interrupted.
    """

    @shows_progress
    @known_keywords
    def fit(
        self,
        X: Any,
        y: Any,
        *,
        epochs: int = 10,
        batch_size: int | None = None,
        optimizer: Optimizer | str | None = None,
        validation_data: tuple[Any, Any] | None = None,
        shuffle: bool = True,
        sample_weight: Any = None,
        class_weight: Any = None,
        l2: float = 0.0,
        early_stopping: EarlyStopping | bool | None = None,
        callbacks: Any = None,
        device: str = "auto",
        kernel: str | None = None,
        threads: int | None = None,
        progress: bool | None = None,
        verbose: int = 0,
    ) -> History:
        """Train for a number of epochs; a second call goes on where the first one ended.

        Parameters
        ----------
        X, y : array-like (rows, inputs) and (rows, outputs)
            y also as (rows,) of one output or of class labels. Arrays on a GPU, contiguous and of
            the model's dtype, are used there; "auto" then means "cuda".
        epochs : int; batch_size : int, optional
            Rows of a mini-batch, at most those of X: by default 32, or all of fewer. The last
            mini-batch of an epoch may be smaller.
        optimizer : Optimizer, optional
            ``SGD(0.01)`` by default; "adam" is ``Adam()``. Its rate may be a schedule: see
            `fastmlp.schedules`. Its state stays; one of another rule starts afresh and is logged.
        validation_data : (X, y), optional; shuffle : bool
            Evaluated after each epoch; whether an epoch has an order of its own, by its number.
        sample_weight : array-like (rows,); class_weight : "balanced" or dict, optional
            Of the rows' losses, none below 0, and by class, as a product; means become weighted.
        l2 : float
            ``l2 / 2`` times the squares of all weights (no biases) is added to the sum of a
            batch's losses, before a mean divides it: scikit-learn's ``alpha``; ``history.penalty``.
        early_stopping : EarlyStopping or True, optional; callbacks : callable or several, optional
            When to stop early. Called with an `EpochEnd` after each epoch: True stops the fit.
            Callbacks may read the model, and not train it.
        device : {"auto", "cpu", "cuda"}; kernel : str, optional; threads : int, optional
            See `explain`; by default the fastest kernel, on at most ``self.threads`` threads.
        progress : bool, optional; verbose : int
            A line about the fit always or never; by default for a person, after two seconds. With
            ``verbose=1``, also a line about every second.

        Returns
        -------
        History

        Raises
        ------
        NonFiniteTrainingError
            If a loss, gradient or parameter becomes infinite or NaN; the last good ones stay.
        BusyError
            If another fit is training this model.
        """
        where, there = self._place(self._asked(device, kernel, threads), X)
        data, columns = self._data(X, y, "", there), self._columns or column_names(X)
        validation = self._validation(validation_data, there, columns)
        options = training.Options(
            epochs=check_integer(epochs, "epochs", 1),
            batch_size=check_batch_size(batch_size, len(data.X)),
            optimizer=check_optimizer(optimizer),
            metric=check_metric(None, self._loss),
            shuffle=bool(shuffle),
            weights=check_weights(sample_weight, class_weight, data),
            l2=check_number(l2, "l2"),
            early_stopping=check_early_stopping(early_stopping, validation is not None),
            callbacks=check_callbacks(callbacks),
            where=where,
            progress=progress,
            verbose=verbose,
        )
        rest = (data, validation, options, columns, is_vector(y, self.sizes))
        return self._state.lock.fit("fit", lambda: self._train(*rest))

    def _train(
        self,
        data: Any,
        validation: Any,
        options: training.Options,
        columns: Columns | None,
        vector: bool,
    ) -> History:
        # Weights written through a view are not checked on the way in.
        check_finite_values("parameters", self.parameters)
        run = training.Fit(self, self._state, self._programs, data, validation, options)
        self._columns, self._vector = columns, vector
        self.history = run.history
        run.run()
        return run.history

    def _place(self, where: Where, X: Any) -> tuple[Where, bool]:
        """Return where a call runs, and whether arrays on a GPU are used there as they are."""
        if type(X) is np.ndarray:
            return where, False
        where = where._replace(device=follows(X, where.device, where.kernel))
        return where, stays(where.device, where.kernel)

    def _validation(self, pair: Any, there: bool, columns: Columns | None) -> Any:
        if pair is None:
            return None
        X, y = check_pair(pair)
        return self._data(X, y, "validation ", there, columns)

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
        (rows,), so that ``y - model.predict(X)`` is one. No rows give an array of no rows.
        """
        sizes = self.template.sizes
        where, there = self._asked(device, kernel, threads), False
        if type(X) is not np.ndarray:
            check_columns(X, self._columns, "X")
            where, there = self._place(where, X)
        if there:
            inputs = inputs_there(X, sizes[0], self.dtype)
        else:
            inputs = check_matrix(X, sizes[0], self.dtype, "X", least=0)
        if not len(inputs):
            return self._shaped(np.empty((0, sizes[-1]), self.dtype))
        rest = (self._programs, inputs, sizes[-1], where)
        return self._shaped(self._state.read("predict", steps.predict, *rest))

    def _shaped(self, outputs: Array) -> Array:
        return outputs[:, 0] if self._vector else outputs

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
        where, there = self._place(self._asked(device, kernel, threads), X)
        data = self._data(X, y, there=there)
        metric = check_metric(metric, self._loss, data)
        rest = (self._programs, data, self.template, metric, where)
        return self._state.read("evaluate", training.evaluate, *rest)

    def step(
        self, X: Any, y: Any, optimizer: Optimizer | str | None = None, *, sample_weight: Any = None
    ) -> float:
        """Take one training step on a batch, in one fused call; return the loss before it."""
        # Without `_place` where nothing speaks for the GPU: its call is seen in a step's time.
        if type(X) is np.ndarray:
            where, data = self._where, self._data(X, y)
        else:
            where, there = self._place(self._where, X)
            data = self._data(X, y, "", there)
        weights = check_sample_weight(sample_weight, len(data.X))
        chosen = check_optimizer(optimizer)
        vector = is_vector(y, self.template.sizes)
        return self._state.lock.change(
            "step", self._take_step, data, chosen, weights, where, vector
        )

    def _take_step(
        self, data: Any, optimizer: Optimizer, weights: Any, where: Where, vector: bool
    ) -> float:
        # Taken out while it is used: one that an exception leaves halfway is not believed again.
        step, self._step = self._step, None
        batch = (len(data.X), data.labels, optimizer.rule, where)
        if step is None or step.serves != batch:
            if step is not None:
                step.end()
            step = steps.Step(self._programs, *batch)
        loss = step.take(self._state, data, optimizer, weights)
        self._step = step
        if step.refused:
            raise step.refusal(self._state)
        self._vector = vector
        return loss

    def value_and_grad(
        self, X: Any, y: Any, *, sample_weight: Any = None
    ) -> tuple[float, Gradients]:
        """Return the loss of a batch and its gradient; nothing is updated or accumulated."""
        where, there = self._place(self._where, X)
        data = self._data(X, y, there=there)
        weights = check_sample_weight(sample_weight, len(data.X))
        flat = aligned_zeros(self.parameters.shape, self.dtype)
        rest = (self._programs, data, flat, where, weights)
        loss = self._state.read("value_and_grad", steps.value_and_gradient, *rest)
        return loss, self._gradients_of(flat)

    def _data(
        self, X: Any, y: Any, of: str = "", there: bool = False, columns: Columns | None = None
    ) -> Any:
        columns = columns or self._columns
        return check_data(X, y, self.template.sizes, self._loss, self.dtype, of, there, columns)

    def forward(self, X: Any) -> Array:
        """Return the outputs (rows, outputs) of a batch; keep what `backward` needs.

        They are logits for a softmax loss, and a matrix whatever the targets are.
        """
        check_columns(X, self._columns, "X")
        inputs = check_matrix(X, self.sizes[0], self.dtype, "X")
        return self._state.lock.hold("forward", self._forward, inputs, self._labels)

    def _forward(self, X: Array, labels: bool) -> Array:
        last, self._pass = self._pass, None
        if last is not None:
            last.end()
        new = steps.Pass(self._programs, X, labels, self._where)
        outputs = new.forward(self._state)
        self._pass, self._kernel = new, new.kernel
        return outputs

    def _last_pass(self, method: str, rows: int | None = None) -> steps.Pass:
        last = self._pass
        # The backward pass of a forward pass with other parameters would be no gradient at all, and
        # another thread may have put one of other rows in the place of the one that was looked at.
        stale = last is None or last.version is not self._state.now
        if last is None or stale or rows not in (None, len(last.X)):
            raise CallOrderError(
                f"{method}: got no forward pass with the present parameters, "
                "wanted a call of forward(X) first"
            )
        return last

    def compute_loss(self, y: Any, *, sample_weight: Any = None) -> float:
        """Return the loss of the last `forward`, and keep its gradient for `backward`."""
        rows = len(self._last_pass("compute_loss").X)
        weights = check_sample_weight(sample_weight, rows)
        targets, labels = check_targets(y, rows, self.sizes[-1], self._loss, self.dtype)
        hold = self._state.lock.hold
        return hold("compute_loss", self._compute_loss, targets, labels, weights)

    def _compute_loss(self, targets: Array, labels: bool, weights: Any) -> float:
        last = self._last_pass("compute_loss", len(targets))
        if labels != last.labels:
            # The program was built for the other kind of targets. The next guess is better.
            self._labels = labels
            self._forward(last.X, labels)
            last = self._last_pass("compute_loss")
        self._pass = None
        loss = last.loss(targets, weights)
        self._pass = last
        return loss

    def zero_grad(self) -> None:
        """Set the accumulated gradients to zero."""
        self.gradients.flat[:] = 0

    def backward(self, dyhat: Any = None) -> Array:
        """Add the gradient of the parameters to `gradients`; return that of the inputs.

        Parameters
        ----------
        dyhat : array-like (rows, outputs), optional
            Derivative of anything by the outputs of the last `forward`; by default that of the
            last `compute_loss`.
        """
        last = self._last_pass("backward")
        upstream = None
        if dyhat is not None:
            upstream = check_matrix(dyhat, self.sizes[-1], self.dtype, "dyhat", len(last.X))
        elif not last.has_loss:
            raise CallOrderError("backward: got neither, wanted compute_loss(y) before it or dyhat")
        return self._state.lock.hold("backward", self._backward, upstream, len(last.X))

    def _backward(self, upstream: Array | None, rows: int) -> Array:
        last = self._last_pass("backward", rows)
        if upstream is None and not last.has_loss:
            raise CallOrderError("backward: got another forward pass, wanted compute_loss(y) of it")
        self._pass = None
        result = last.backward(self.parameters, upstream, self.gradients.flat)
        self._pass = last
        return result

    def apply(self, optimizer: Optimizer | str | None = None) -> None:
        """Take one step of the optimizer along the accumulated gradients."""
        self._state.lock.change("apply", self._apply, check_optimizer(optimizer))

    def _apply(self, optimizer: Optimizer) -> None:
        flat = self.gradients.flat
        if not np.isfinite(flat).all():
            count = int((~np.isfinite(flat)).sum())
            raise NonFiniteTrainingError(
                f"gradients: got {count} that are not finite, wanted finite numbers. "
                "Nothing was changed; call zero_grad() and try a smaller learning rate"
            )
        where = self._where._replace(kernel=self._kernel)
        steps.apply(self._state, self._programs, flat, optimizer, where)
