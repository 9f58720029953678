"""The multilayer perceptron as users see it."""

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastmlp.data.admission import Data, admit
from fastmlp.data.arrays import check_matrix, check_targets
from fastmlp.data.frames import check_columns
from fastmlp.data.weighting import BatchWeights, check_batch_weights
from fastmlp.dispatch.planning import Where
from fastmlp.errors import CallOrderError, DomainError, NonFiniteTrainingError, known_keywords
from fastmlp.files.contents import Contents
from fastmlp.gradients import Gradients
from fastmlp.initialization import new_network
from fastmlp.network import Network
from fastmlp.optimizers import Optimizer
from fastmlp.pytorch import check_state, make_module, state_names
from fastmlp.state.parameters import ParameterViews, aligned_zeros, bias_views, weight_views
from fastmlp.training import steps
from fastmlp_kernels.shield import shield

if TYPE_CHECKING:
    from fastmlp.compiled import CompiledMLP

Array = NDArray[Any]


class MLP(Network):
    """A multilayer perceptron: linear, activation, linear, ..., and a loss.

    Parameters
    ----------
    sizes : sequence of int
        Units per layer, inputs first: ``[784, 256, 10]``.
    activations : str, row, or sequence of them
        One name for all hidden layers, with the identity at the output; or one per layer.
    loss : str, row or object
        Its name in the table `LOSSES`, or with numbers of its own ``Huber(delta=2.0)`` and its
        like; see `fastmlp.losses`.
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
    initializer : str or row, or sequence of them, optional
        One for all layers, or one per layer, of the table `INITIALIZERS`. By default, and where a
        layer has None, its activation brings the one that suits it. "orthogonal" is PyTorch's
        ``orthogonal_``; the last bits depend on NumPy's LAPACK.
    gain : float, or sequence of them
        What the first weights are multiplied by, of all layers or per layer: see the example.
    dropout : float or sequence of float, optional
        The share of a hidden layer's outputs that each step of `fit` and `step` leaves out, and the
        others are divided by the rest; one for all hidden layers, or one for each. All other
        methods use all outputs. The seed and the optimizer's count of steps decide which.

    Attributes
    ----------
    history : History or None
        Of the last `fit`, also of one that was interrupted.

    Examples
    --------
    >>> model = MLP([4, 16, 1], "silu", seed=0)
    >>> history = model.fit(X, y, epochs=5, optimizer=Adam(1e-2))
    >>> model.predict(X).shape
    (200,)

    A policy as PPO begins with it, whose first actions hardly depend on what it observes:

    >>> gains = [2**0.5, 2**0.5, 0.01]
    >>> policy = MLP([8, 64, 64, 2], "tanh", initializer="orthogonal", gain=gains)

    A step in its parts, which gives the bits of ``model.step(X, y, Adam(1e-2))``:

    >>> outputs = model.forward(X)
    >>> loss = model.compute_loss(y)
    >>> model.zero_grad()
    >>> dX = model.backward()
    >>> model.apply(Adam(1e-2))
    """

    _kind = "MLP"
    _not_saved = (*Network._not_saved, "_step", "_pass", "_kernel")

    @known_keywords
    def __init__(
        self,
        sizes: Sequence[int],
        activations: Any = "relu",
        loss: Any = "half_squared_error",
        *,
        seed: int | None = 0,
        dtype: DTypeLike = "float32",
        reduction: str = "mean",
        precision: str = "float32",
        initializer: Any = None,
        gain: float | Sequence[float] = 1.0,
        dropout: float | Sequence[float] = 0.0,
    ) -> None:
        shape, drawn = (sizes, activations, loss), (initializer, gain)
        self._begin(new_network(*shape, seed, dtype, reduction, precision, *drawn, dropout))

    def _begin(self, contents: Contents) -> None:
        super()._begin(contents)
        self._gradient = None
        # Most targets of a loss that takes labels are labels.
        self._labels = self._loss.label_rule is not None

    def _forget(self) -> None:
        super()._forget()
        self._step: steps.Step | None = None
        self._pass: steps.Pass | None = None
        self._kernel: str | None = None

    def _optimizers(self, given: Any) -> tuple[Optimizer, ...]:
        return (self._optimizer(given),)

    def state_dict(self) -> dict[str, Array]:
        """Return copies of the parameters by the names and in the shapes of PyTorch.

        ``"0.weight"`` (outputs, inputs), ``"0.bias"``, ``"2.weight"`` and so on, as the module has
        them that `to_torch` makes: each activation is a module between two.

        Examples
        --------
        >>> model.load_state_dict(model.state_dict())
        """
        pairs = zip(state_names(len(self.activations)), self.weights, self.biases, strict=True)
        state = {}
        for (weight, bias), W, b in pairs:
            state[weight], state[bias] = W.T.copy(), b.copy()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set the parameters from arrays, or tensors, as `state_dict` names them.

        Raises
        ------
        DTypeError, DomainError, ShapeError
            If a name or a shape is another one, or a number is not finite; nothing has changed.
        """
        shapes = [((each.fan_out, each.fan_in), (each.fan_out,)) for each in self._layout()]
        layers = check_state(state, shapes)
        self.parameters = np.concatenate([np.r_[W.T.ravel(), b] for W, b in layers])

    def to_torch(self) -> Any:
        """Return a torch.nn.Sequential with copies of the parameters.

        It gives the outputs of `forward`, which are logits for a softmax loss, up to rounding.

        Raises
        ------
        DomainError
            If PyTorch has no module of an activation.
        MissingPackageError
            If PyTorch is not installed.
        """
        return make_module(list(self.weights), list(self.biases), self.activations)

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

    def step(
        self,
        X: Any,
        y: Any,
        optimizer: Optimizer | str | None = None,
        *,
        sample_weight: Any = None,
        loss_weight: Any = None,
    ) -> float:
        """Take one training step on a batch, in one fused call; return the loss before it.

        Parameters
        ----------
        X, y : array-like (rows, inputs) and (rows, outputs), or (rows,)
        optimizer : Optimizer or str, optional
            As in `fit`.
        sample_weight : array-like (rows,), optional
            None below 0. A mean of the losses is their weighted mean, as in `fit`.
        loss_weight : array-like (rows,), optional
            What each row's loss is multiplied by, of either sign, as the advantages of a policy
            gradient are. A mean divides by the number of rows, as ``(weight * loss).mean()`` does.

        Raises
        ------
        NonFiniteTrainingError
            If a loss, gradient or parameter would be infinite or NaN; nothing has changed.

        Examples
        --------
        >>> policy = MLP([4, 32, 2], "tanh", "softmax_cross_entropy")
        >>> loss = policy.step(X, labels, Adam(1e-3), loss_weight=y)
        """
        # Without `_admit`: its call is seen in a step's time.
        rest = (self.template.sizes, self._loss, self._state.parameters.dtype)
        data, where = admit(X, y, *rest, self._where, self._columns)
        weights = check_batch_weights(sample_weight, loss_weight, len(data.X))
        chosen = self._optimizer(optimizer)
        return self._state.lock.change("step", self._take_step, data, chosen, weights, where)

    def _take_step(
        self, data: Data, optimizer: Optimizer, weights: BatchWeights | None, where: Where
    ) -> float:
        # Taken out while it is used: one that an exception leaves halfway is not believed again.
        step, self._step = self._step, None
        batch = (len(data.X), data.labels, optimizer.update, where)
        if step is None or step.serves != batch:
            if step is not None:
                step.end()
            step = steps.Step(self._programs, *batch)
        loss = step.take(self._state, data, optimizer, weights)
        self._step = step
        if step.refused:
            raise step.refusal(self._state)
        self._vector = data.vector
        return loss

    def value_and_grad(
        self, X: Any, y: Any, *, sample_weight: Any = None, loss_weight: Any = None
    ) -> tuple[float, Gradients]:
        """Return the loss of a batch and its gradient; nothing is updated or accumulated.

        The weights are those of `step`.

        Examples
        --------
        >>> loss, gradients = model.value_and_grad(X, y)
        >>> gradients.weights[0].shape
        (4, 16)
        """
        data, where = self._admit(X, y, self._where)
        weights = check_batch_weights(sample_weight, loss_weight, len(data.X))
        flat = aligned_zeros(self.parameters.shape, self.dtype)
        rest = (self._programs, data, flat, where, weights)
        loss = self._state.read("value_and_grad", steps.value_and_gradient, *rest)
        return loss, self._gradients_of(flat)

    def compiled(
        self,
        *,
        batch_size: int = 32,
        optimizer: Optimizer | str | None = None,
        max_steps: int | None = None,
        labels: bool | None = None,
    ) -> "CompiledMLP":
        """Return a handle of this network, which functions compiled by Numba call: `CompiledMLP`.

        It begins with a copy of the parameters, the optimizer's state and the count of steps.
        ``push()`` gives the model what it has learnt, as the end of ``with model.compiled()`` does.

        Parameters
        ----------
        batch_size : int
            The most rows of a call; predictions take any number.
        optimizer : Optimizer or str, optional
            As in `fit`.
        max_steps : int, optional
            How many steps there will be at most: needed for a learning rate that is a schedule, and
            with dropout, as the numbers of all steps are computed ahead.
        labels : bool, optional
            Whether targets are class labels; by default if the loss takes them.

        Examples
        --------
        >>> @numba.njit
        ... def train(net, X, y):
        ...     for k in range(len(X)):
        ...         net.step(X[k : k + 1], y[k : k + 1])
        >>> with model.compiled(optimizer=Adam(1e-3)) as net:
        ...     train(net, X, y)
        """
        # Numba is loaded where it is needed, and an interrupt must not leave that half done.
        module: Any = shield(lambda: importlib.import_module("fastmlp.compiled"))
        takes = self._loss.label_rule is not None
        chosen = takes if labels is None else bool(labels)
        if chosen and not takes:
            raise DomainError(f"labels: got True with {self.loss_name}, which takes no labels")
        rest = self._optimizer(optimizer), batch_size, max_steps, chosen
        return module.handle_of(self._state, self.template, *rest)

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

    def compute_loss(self, y: Any, *, sample_weight: Any = None, loss_weight: Any = None) -> float:
        """Return the loss of the last `forward`, and keep its gradient for `backward`.

        The weights are those of `step`.
        """
        rows = len(self._last_pass("compute_loss").X)
        weights = check_batch_weights(sample_weight, loss_weight, rows)
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
        self._state.lock.change("apply", self._apply, self._optimizer(optimizer))

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
