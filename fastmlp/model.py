"""The multilayer perceptron as users see it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastmlp import steps, training
from fastmlp.arrays import check_data, check_integer, check_matrix, check_targets
from fastmlp.errors import CallOrderError, DTypeError, NonFiniteTrainingError, look_up
from fastmlp.gradients import Gradients
from fastmlp.history import History
from fastmlp.metrics import Evaluation, check_metric
from fastmlp.optimizers import Optimizer, check_optimizer
from fastmlp.parameters import (
    ParameterViews,
    TrainingState,
    aligned_zeros,
    bias_views,
    check_values,
    initialize,
    weight_views,
)
from fastmlp.planning import Programs, Where, check_threads, make_problem
from fastmlp_kernels.algebra import ACTIVATIONS, INITIALIZERS, LOSSES
from fastmlp_kernels.problem import LayerLayout, parameter_layout

Array = NDArray[Any]

# The generators take 64 bits.
LARGEST_SEED = 2**64 - 1


class MLP:
    """A multilayer perceptron: linear, activation, linear, ..., and a loss.

    Parameters
    ----------
    sizes : sequence of int
        Units per layer, inputs first: ``[784, 256, 10]``.
    activations : str, row, or sequence of them
        One name for all hidden layers, with the identity at the output; or one per layer.
    loss : str or row
        Its name in the table `LOSSES`.
    seed : int
        Of the first weights and of the order of the rows in `fit`.
    dtype : {"float32", "float64"}
        Of the parameters and of everything computed.
    reduction : {"mean", "sum", "batch_mean"}
        Of the loss over a batch: the mean over all elements (over rows for a loss of whole rows),
        the sum, or the sum over outputs and mean over rows.
    initializer : str or row, optional
        For all layers; by default each activation brings the one that suits it.

    Attributes
    ----------
    history : History or None
        Of the last `fit`, also of one that was interrupted.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activations: Any = "relu",
        loss: Any = "half_squared_error",
        *,
        seed: int = 0,
        dtype: DTypeLike = "float32",
        reduction: str = "mean",
        initializer: Any = None,
    ) -> None:
        self.seed = check_integer(seed, "seed", 0, LARGEST_SEED)
        self.template = make_problem(sizes, activations, loss, dtype, reduction)
        self._loss = LOSSES[self.template.loss]
        if initializer is None:
            rows = [ACTIVATIONS[name] for name in self.activations]
            chosen = [INITIALIZERS[row.initializer] for row in rows]
        else:
            chosen = [look_up("initializer", INITIALIZERS, initializer)] * len(self.activations)
        parameters = aligned_zeros((self.template.parameter_count,), self.template.dtype)
        initialize(parameters, self._layout(), chosen, self.seed)
        self._state = TrainingState(parameters, self.seed)
        self._gradient: Array | None = None
        self._where = Where()
        self.history: History | None = None
        # Most targets of a loss that takes labels are labels.
        self._labels = self._loss.label_rule is not None
        self._forget()

    def _layout(self) -> tuple[LayerLayout, ...]:
        return parameter_layout(self.sizes)

    def _forget(self) -> None:
        self._programs = Programs(self.template)
        self._step: steps.Step | None = None
        self._pass: steps.Pass | None = None
        self._kernel: str | None = None

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
        threads = self.threads if threads is None else check_threads(threads)
        return Where(device, kernel, threads)

    @property
    def epochs_trained(self) -> int:
        """Finished epochs of all fits."""
        return self._state.epochs

    @property
    def parameters(self) -> Array:
        """All parameters as one flat vector, layer by layer: weights row by row, then biases."""
        return self._state.parameters

    @parameters.setter
    def parameters(self, values: Any) -> None:
        self._state.parameters[:] = check_values("parameters", values, self._state.parameters)
        self._changed()

    @property
    def weights(self) -> ParameterViews:
        """The weight matrices (inputs, outputs), one per layer: views, which may be assigned to."""
        views = weight_views(self._state.parameters, self._layout())
        return ParameterViews("weights", views, self._changed)

    @weights.setter
    def weights(self, values: Any) -> None:
        self.weights.assign(values)

    @property
    def biases(self) -> ParameterViews:
        """The bias vectors, one per layer: views, which may be assigned to."""
        views = bias_views(self._state.parameters, self._layout())
        return ParameterViews("biases", views, self._changed)

    @biases.setter
    def biases(self, values: Any) -> None:
        self.biases.assign(values)

    @property
    def gradients(self) -> Gradients:
        """What `backward` has accumulated since `zero_grad`."""
        if self._gradient is None:
            self._gradient = aligned_zeros(self.parameters.shape, self.dtype)
        return self._gradients_of(self._gradient)

    def _gradients_of(self, flat: Array) -> Gradients:
        weights = ParameterViews("gradients.weights", weight_views(flat, self._layout()))
        biases = ParameterViews("gradients.biases", bias_views(flat, self._layout()))
        return Gradients(flat, weights, biases)

    def _changed(self) -> None:
        # The backward pass of a forward pass with other parameters would be no gradient at all.
        self._pass = None

    def __repr__(self) -> str:
        return (
            f"MLP({list(self.sizes)}, activations={list(self.activations)}, "
            f"loss={self.loss_name!r}, seed={self.seed}, dtype={self.dtype.name!r}, "
            f"reduction={self.reduction!r})"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the programs: workspaces and compiled code, which are made again."""
        left_out = ("_programs", "_step", "_pass", "_kernel", "_loss")
        return {name: value for name, value in vars(self).items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copied or unpickled model."""
        self.__dict__.update(state)
        self._loss = LOSSES[self.template.loss]
        self._state.realign()
        self._forget()

    def fit(
        self,
        X: Any,
        y: Any,
        *,
        epochs: int = 10,
        batch_size: int = 32,
        optimizer: Optimizer | None = None,
        validation_data: tuple[Any, Any] | None = None,
        shuffle: bool = True,
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
            y also as (rows,) of a single output, or (rows,) of class labels.
        epochs, batch_size : int
            The last mini-batch of an epoch may be smaller.
        optimizer : Optimizer, optional
            ``SGD(0.01)`` by default. Its state stays in the model.
        validation_data : (X, y), optional
            Evaluated after each epoch.
        shuffle : bool
            Whether each epoch has an order of its own, by seed and number of the epoch.
        device : {"auto", "cpu", "cuda"}; kernel : str, optional; threads : int, optional
            See `explain`; by default the fastest kernel, on at most ``self.threads`` threads.
        progress : bool, optional
            A progress bar always or never; by default in a terminal, after two seconds.
        verbose : int
            With 1, a line about every second.

        Returns
        -------
        History

        Raises
        ------
        NonFiniteTrainingError
            If a loss, gradient or parameter becomes infinite or NaN; the last good ones stay.
        """
        data = self._data(X, y)
        validation = None
        if validation_data is not None:
            if not isinstance(validation_data, tuple | list) or len(validation_data) != 2:
                raise DTypeError(
                    f"validation_data: got {type(validation_data).__name__}, wanted a pair (X, y)"
                )
            validation = self._data(*validation_data, of="validation ")
        options = training.Options(
            epochs=check_integer(epochs, "epochs", 1),
            batch_size=check_integer(batch_size, "batch_size", 1, len(data.X), ", the rows of X"),
            optimizer=check_optimizer(optimizer),
            metric=check_metric(None, self._loss),
            shuffle=bool(shuffle),
            where=self._asked(device, kernel, threads),
            progress=progress,
            verbose=verbose,
        )
        # Weights written through a view are not checked on the way in.
        check_values("parameters", self.parameters, self.parameters)
        run = training.Fit(self._state, self._programs, data, validation, options)
        self.history = run.history
        self._changed()
        run.run()
        return run.history

    def predict(
        self,
        X: Any,
        *,
        device: str = "auto",
        kernel: str | None = None,
        threads: int | None = None,
    ) -> Array:
        """Return the outputs (rows, outputs); class probabilities for a softmax loss."""
        sizes = self.template.sizes
        inputs = check_matrix(X, sizes[0], self.dtype, "X")
        where = self._asked(device, kernel, threads)
        return steps.predict(self._state.parameters, self._programs, inputs, sizes[-1], where)

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

        `metric` is "accuracy" or "r2"; by default the one that suits the loss.
        """
        data = self._data(X, y)
        name = check_metric(metric, self._loss)
        where = self._asked(device, kernel, threads)
        return training.evaluate(self.parameters, self._programs, data, self.template, name, where)

    def step(self, X: Any, y: Any, optimizer: Optimizer | None = None) -> float:
        """Take one training step on a batch, in one fused call; return the loss before it."""
        data = self._data(X, y)
        chosen = check_optimizer(optimizer)
        self._changed()
        batch = (len(data.X), data.labels, chosen.rule, self._where)
        if self._step is None or not self._step.serves(*batch):
            self._step = steps.Step(self._programs, *batch)
        return self._step.take(self._state, data, chosen)

    def value_and_grad(self, X: Any, y: Any) -> tuple[float, Gradients]:
        """Return the loss of a batch and its gradient; nothing is updated or accumulated."""
        data = self._data(X, y)
        flat = aligned_zeros(self.parameters.shape, self.dtype)
        loss = steps.value_and_gradient(self.parameters, self._programs, data, flat, self._where)
        return loss, self._gradients_of(flat)

    def _data(self, X: Any, y: Any, of: str = "") -> Any:
        return check_data(X, y, self.template.sizes, self._loss, self.dtype, of)

    def forward(self, X: Any) -> Array:
        """Return the outputs of a batch (logits for a softmax loss); keep what `backward` needs."""
        return self._forward(check_matrix(X, self.sizes[0], self.dtype, "X"), self._labels)

    def _forward(self, X: Array, labels: bool) -> Array:
        new = steps.Pass(self._programs, X, labels, self._where)
        outputs = new.forward(self.parameters)
        self._pass, self._kernel = new, new.kernel
        return outputs

    def _last_pass(self, method: str) -> steps.Pass:
        if self._pass is None:
            raise CallOrderError(
                f"{method}: got no forward pass with the present parameters, "
                "wanted a call of forward(X) first"
            )
        return self._pass

    def compute_loss(self, y: Any) -> float:
        """Return the loss of the last `forward`, and keep its gradient for `backward`."""
        last = self._last_pass("compute_loss")
        targets, labels = check_targets(y, len(last.X), self.sizes[-1], self._loss, self.dtype)
        if labels != last.labels:
            # The program was built for the other kind of targets. The next guess is better.
            self._labels = labels
            self._forward(last.X, labels)
            last = self._last_pass("compute_loss")
        return last.loss(targets)

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
        return last.backward(self.parameters, upstream, self.gradients.flat)

    def apply(self, optimizer: Optimizer | None = None) -> None:
        """Take one step of the optimizer along the accumulated gradients."""
        chosen = check_optimizer(optimizer)
        flat = self.gradients.flat
        if not np.isfinite(flat).all():
            count = int((~np.isfinite(flat)).sum())
            raise NonFiniteTrainingError(
                f"gradients: got {count} that are not finite, wanted finite numbers. "
                "Nothing was changed; call zero_grad() and try a smaller learning rate"
            )
        where = self._where._replace(kernel=self._kernel)
        steps.apply(self._state, self._programs, flat, chosen, where)
        self._changed()
