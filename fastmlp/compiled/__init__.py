"""A network that a user's own compiled code calls: handles, see `MLP.compiled`.

A handle works on a copy of the model's parameters and of the optimizer's state. So nothing that
compiled code does beside Python can tear what other threads read of the model. `pull` and `push`
move them, all at once.
"""

import ctypes
from dataclasses import replace
from typing import Any, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from fastmlp.arguments import check_integer, check_number
from fastmlp.compiled.exchange import Exchanging
from fastmlp.data.arrays import check_in_place, labels_or_targets
from fastmlp.data.weighting import batch_factors, check_batch_weights
from fastmlp.device.machine import physical_memory
from fastmlp.dispatch.planning import updated_by
from fastmlp.errors import DTypeError, ShapeError
from fastmlp.optimizers import Optimizer
from fastmlp.state.parameters import check_finite_values
from fastmlp.state.training_state import TrainingState
from fastmlp_kernels.algebra.optimizers import HYPER_WIDTH
from fastmlp_kernels.cpu.handle_record import DONE, NOT_FINITE
from fastmlp_kernels.problem import Problem

Array = NDArray[Any]


def handle_of(
    state: TrainingState,
    template: Problem,
    optimizer: Optimizer,
    batch_size: Any,
    max_steps: Any,
    labels: bool,
) -> "CompiledMLP":
    """Return a handle: see `MLP.compiled`."""
    row = 4 * np.dtype(template.dtype).itemsize * sum(template.sizes)
    _check_room("batch_size", batch_size, row)
    if max_steps is not None:
        _check_room("max_steps", max_steps, 8 * HYPER_WIDTH * len(template.activations))
    shape = replace(template, rows=batch_size, batch_size=batch_size, labels=labels)
    return CompiledMLP(state, updated_by(shape, optimizer.update), optimizer, max_steps)


def _check_room(argument: str, value: Any, each: int) -> None:
    """Refuse what is no whole number, or more than the memory has room for at `each` bytes."""
    most = max(1, physical_memory() // each)
    check_integer(value, argument, 1, most, ", which is what the memory has room for")


class CompiledMLP(Exchanging):
    """A handle of a network, which `MLP.compiled` makes: see there.

    Each method may be called from Python, and from functions that Numba compiles, which take the
    handle as an argument. X is (rows, inputs), or (inputs,) for one row, and other arrays likewise.
    All are of the network's dtype and lie row after row without gaps, but for targets and weights,
    which are converted. In compiled code errors are built-in ones with a fixed text, and no value
    is checked but a label.

    One thread at a time may use a handle. A call that finds another thread at work raises an error
    (a RuntimeError) and changes nothing.

    Attributes
    ----------
    inputs, outputs, parameter_count : int
        Also in compiled code.

    Examples
    --------
    >>> with model.compiled(optimizer=SGD(0.1)) as net:
    ...     loss = net.step(X[:32], y[:32])
    """

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step. Assign one, and all steps from then on have it.

        It may be read and assigned in compiled code too. An assigned rate takes the place of a
        schedule, but not of `max_steps`.

        Raises
        ------
        BusyError
            If another thread uses the handle.
        """
        rate = np.empty(1)
        answer = self._enter("read_rate", _place(rate))
        if answer != DONE:
            self._refuse("learning_rate", answer)
        return float(rate[0])

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        rate = np.array([check_number(value, "learning_rate")])
        answer = self._enter("write_rate", _place(rate))
        if answer != DONE:
            self._refuse("learning_rate", answer)

    def __enter__(self) -> Self:
        """Return the handle."""
        return self

    def __exit__(self, *error: object) -> None:
        """Give the model what the handle has learnt, also after an error: see `push`."""
        self.push()

    def predict(self, x: Array, out: Array) -> None:
        """Write the outputs of any number of rows to `out`: those of `MLP.predict`."""
        rows = self._check(x, "x", self.inputs)
        self._check(out, "out", self.outputs, rows, written=True)
        if rows:
            self._call("predict", _place(x), _place(out), rows)

    def forward(self, X: Array, out: Array) -> None:
        """Write the outputs of a batch to `out`, and keep what `backward` needs.

        They are those of `MLP.forward`: logits for a softmax loss.
        """
        rows = self._check(X, "X", self.inputs)
        self._check_batch(rows)
        self._check(out, "out", self.outputs, rows, written=True)
        self._call("forward", _place(X), _place(out), rows)

    def backward(self, dyhat: Array, gradient: Array, dX: Array | None = None) -> None:
        """Add to `gradient` that of anything whose derivative by the outputs is `dyhat`.

        Parameters
        ----------
        dyhat : ndarray (rows, outputs)
            By the outputs of the `forward` right before. No other call may be in between.
        gradient : ndarray (parameters,)
            In the order of `MLP.parameters`.
        dX : ndarray (rows, inputs), optional
            The derivative by the inputs is written to it.
        """
        rows = self._check(dyhat, "dyhat", self.outputs)
        self._check(gradient, "gradient", self.parameter_count, 1, written=True)
        if dX is not None:
            self._check(dX, "dX", self.inputs, rows, written=True)
        into = 0 if dX is None else _place(dX)
        self._call("backward", _place(dyhat), _place(gradient), into, rows)

    def value_and_grad(self, X: Array, y: Any, gradient: Array, loss_weight: Any = None) -> float:
        """Return the loss of a batch, and write its gradient to `gradient`.

        The numbers are those of `MLP.value_and_grad`.
        """
        rows = self._check(X, "X", self.inputs)
        self._check_batch(rows)
        self._check(gradient, "gradient", self.parameter_count, 1, written=True)
        targets = labels_or_targets(y, rows, self.problem)
        factors = self._factors(loss_weight, rows)
        places = _place(X), _place(targets), rows, 0 if factors is None else _place(factors)
        return self._call("gradient", *places, _place(gradient))

    def step(self, X: Array, y: Any, loss_weight: Any = None) -> float:
        """Take one training step on a batch; return the loss before it.

        The numbers are those of `MLP.step`, with the optimizer that the handle was made with.
        Parameters that a step has brought to infinity are noticed at the next one, and by `push`.

        Parameters
        ----------
        X : ndarray (rows, inputs)
        y : array of numbers (rows, outputs), or (rows,) of one output or of class labels
        loss_weight : array of numbers (rows,), optional

        Raises
        ------
        NonFiniteTrainingError
            If a loss or a gradient is infinite or NaN (a FloatingPointError in compiled code);
            nothing has changed.
        """
        rows = self._check(X, "X", self.inputs)
        self._check_batch(rows)
        targets = labels_or_targets(y, rows, self.problem)
        factors = self._factors(loss_weight, rows)
        places = _place(X), _place(targets), rows, 0 if factors is None else _place(factors)
        return self._call("step", *places)

    def apply(self, gradient: Array) -> None:
        """Take one step of the optimizer along a gradient, as `MLP.apply` does."""
        self._check(gradient, "gradient", self.parameter_count, 1)
        if not np.isfinite(gradient).all():
            self._refuse("apply", NOT_FINITE)
        self._call("apply", _place(gradient))

    def get_parameters(self, out: Array) -> None:
        """Write all parameters to `out`, a vector in the order of `MLP.parameters`."""
        self._check(out, "out", self.parameter_count, 1, written=True)
        out[...] = self._checked(self._read())[0].reshape(out.shape)

    def set_parameters(self, values: Array) -> None:
        """Set all parameters, in the order of `MLP.parameters`; they have to be finite."""
        self._check(values, "values", self.parameter_count, 1)
        check_finite_values("values", values)
        self._call("set_parameters", _place(values))

    @property
    def address(self) -> int:
        """The address of ``int map(const T *x, T *out)``: see `c_function`."""
        return ctypes.cast(self.c_function, ctypes.c_void_p).value or 0

    @property
    def c_function(self) -> Any:
        """A function of ctypes, ``int map(const T *x, T *out)``, that predicts one row.

        It returns 0, or 1 if another thread uses the handle; nothing is written then. It keeps the
        handle alive. The bare address does not: keep the handle for as long as it may be called.
        """
        return self._kept_alive_by(self.functions.map)

    @property
    def integrand(self) -> Any:
        """A function of ctypes, ``double integrand(int n, double *x)``, for SciPy's integrals.

        ``scipy.LowLevelCallable(net.integrand)`` keeps the handle alive. It gives NaN for another
        number n than there are inputs, or if another thread uses the handle.

        Raises
        ------
        DTypeError, ShapeError
            If the network is not of float64 or has several outputs.
        """
        if self.functions.integrand is None:
            if self.outputs > 1:
                raise ShapeError(f"integrand: got {self.outputs} outputs, wanted a network with 1")
            raise DTypeError("integrand: got a network in float32, wanted dtype='float64'")
        return self._kept_alive_by(self.functions.integrand)

    def _kept_alive_by(self, function: Any) -> Any:
        function = type(function)(ctypes.cast(function, ctypes.c_void_p).value)
        function.handle = self
        return function

    def __reduce__(self) -> NoReturn:
        raise DTypeError(
            "pickle: got a compiled handle, which holds addresses of this process; wanted the "
            "model: push() to it, and copy or pickle that"
        )

    def __repr__(self) -> str:
        sizes = list(self.problem.sizes)
        return f"<CompiledMLP {sizes}, dtype={self.problem.dtype!r}, {self._optimizer!r}>"

    def _call(self, entry: str, *words: int) -> float:
        """Call an entry; return the loss that the handle has then."""
        loss = np.empty(1, self.problem.dtype)
        answer = self._enter(entry, *words, loss=_place(loss))
        if answer != DONE:
            self._refuse(entry, answer)
        return float(loss[0])

    def _check(self, array: Any, argument: str, columns: int, *rest: Any, **kind: Any) -> int:
        return check_in_place(array, argument, self.problem.dtype, columns, *rest, **kind)

    def _check_batch(self, rows: int) -> None:
        most = self.problem.batch_size
        if not 1 <= rows <= most:
            raise ShapeError(
                f"X: got {rows} rows, wanted 1 to {most}, as compiled(batch_size={most}) has it"
            )

    def _factors(self, weights: Any, rows: int) -> Array | None:
        return batch_factors(self.problem, check_batch_weights(None, weights, rows))


def _place(array: Array) -> int:
    return array.ctypes.data
