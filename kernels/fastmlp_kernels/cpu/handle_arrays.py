"""The arrays that a user's compiled functions give to a handle: checked, and converted if need be.

A type that does not fit is refused while the function is compiled. The messages of a wrong shape
have no numbers, which would need the interpreter.
"""

import math

from numba import types
from numba.core.errors import TypingError
from numba.extending import overload, register_jitable

from fastmlp_kernels.cpu.handle_record import (
    HANDLE,
    NO_CLASS,
    NO_FORWARD,
    NO_NUMBERS,
    NOT_FINITE,
    claim,
)
from fastmlp_kernels.cpu.handle_type import data_address, doubles, handle_address, numbers
from fastmlp_kernels.cpu.intrinsics import magnitude, record_at

MATRIX, VECTOR = (1, 2), (1,)


def check_array(net, argument, kind, dimensions, written=False):
    """Refuse, while a function is being compiled, what is no array of the network's numbers."""
    good = isinstance(kind, types.Array) and kind.dtype == net.number and kind.ndim in dimensions
    if not good or (written and not kind.mutable):
        rank = " or ".join(map(str, dimensions))
        able = " that can be written to" if written else ""
        raise TypingError(
            f"{argument}: got {kind}, wanted an array of {net.number} of {rank} dimensions{able}"
        )


def check_numbers(argument, kind, dimensions):
    """Refuse what is no array of real numbers."""
    real = types.Integer | types.Float | types.Boolean
    good = isinstance(kind, types.Array) and isinstance(kind.dtype, real)
    if not good or kind.ndim not in dimensions:
        rank = " or ".join(map(str, dimensions))
        raise TypingError(f"{argument}: got {kind}, wanted numbers, an array of {rank} dimensions")


def is_given(kind):
    """Return whether an optional argument, of some type, is there."""
    return not (kind is None or isinstance(kind, types.NoneType | types.Omitted))


@register_jitable
def record_of(net):
    """Return a handle's record."""
    return record_at(handle_address(net), HANDLE, 0)


def rows_of(X):
    """Return the rows of a matrix; a vector is one."""


@overload(rows_of)
def _overload_rows_of(X):
    if X.ndim == 1:
        return lambda X: 1
    return lambda X: X.shape[0]


def _is_dense(array):
    """Return whether an array lies row after row without gaps."""


@overload(_is_dense)
def _overload_is_dense(array):
    if array.layout == "C":
        return lambda array: True
    if array.ndim == 1:
        return lambda array: array.shape[0] < 2 or array.strides[0] == array.itemsize

    def is_dense(array):
        rows, columns = array.shape
        row, element = array.strides
        return (columns < 2 or element == array.itemsize) and (
            rows < 2 or row == columns * array.itemsize
        )

    return is_dense


def _has_shape(array, rows, columns):
    """Return whether an array has so many rows and columns; one row or column may be a vector."""


@overload(_has_shape)
def _overload_has_shape(array, rows, columns):
    if array.ndim == 1:
        return lambda array, rows, columns: (
            array.shape[0] == rows * columns and (rows == 1 or columns == 1)
        )
    return lambda array, rows, columns: array.shape[0] == rows and array.shape[1] == columns


@register_jitable
def fits(array, rows, columns):
    """Return whether an array has so many rows and columns, row after row without gaps."""
    return _has_shape(array, rows, columns) and _is_dense(array)


def optional_address(array):
    """Return where an array's data begins; 0 for None."""


@overload(optional_address)
def _overload_optional_address(array):
    if is_given(array):
        return lambda array: data_address(array)
    return lambda array: 0


def _optional_has_shape(array, rows, columns):
    """Return whether an array has so many rows and columns; None does."""


@overload(_optional_has_shape)
def _overload_optional_has_shape(array, rows, columns):
    if is_given(array):
        return lambda array, rows, columns: _has_shape(array, rows, columns)
    return lambda array, rows, columns: True


def optional_fits(array, rows, columns):
    """Return whether an array fits; None does."""


@overload(optional_fits)
def _overload_optional_fits(array, rows, columns):
    if is_given(array):
        return lambda array, rows, columns: fits(array, rows, columns)
    return lambda array, rows, columns: True


@register_jitable
def check_batch(handle, X, rows):
    """Refuse an X that is no batch."""
    if not fits(X, rows, handle.inputs):
        raise ValueError("X: wanted as many columns as the network has inputs, without gaps")
    if rows < 1 or rows > handle.batch_size:
        raise ValueError("X: wanted 1 row to as many as compiled(batch_size=) says")


@register_jitable
def check_targets(handle, y, rows):
    """Refuse targets of another shape."""
    if not _has_shape(y, rows, handle.target_columns):
        raise ValueError("y: wanted a target for each row of X and each output, or a label")


@register_jitable
def check_gradient(handle, gradient):
    """Refuse what is not as long as the parameters."""
    if not fits(gradient, 1, handle.parameter_count):
        raise ValueError("gradient: wanted a vector as long as the parameters, without gaps")


@register_jitable
def claim_alone(handle):
    """Claim a handle, or refuse the call."""
    if not claim(handle):
        raise RuntimeError(
            "handle: got a call while another thread uses it, wanted a handle for each thread"
        )


@register_jitable
def refuse(answer):
    """Raise what an entry's answer means."""
    if answer == NOT_FINITE:
        raise FloatingPointError("got a loss or a gradient that is not finite; nothing has changed")
    if answer == NO_NUMBERS:
        raise ValueError("got more steps than compiled(max_steps=) has rates for")
    if answer == NO_FORWARD:
        raise ValueError("backward: wanted forward(X, out) of as many rows right before it")
    if answer == NO_CLASS:
        raise ValueError("y: got a label that is no class, wanted 0 to the number of outputs - 1")


@register_jitable
def _is_class(handle, label):
    number = types.float64(label)
    return 0 <= number < handle.outputs and number == math.floor(number)


def _converted(net, handle, y):
    """Return the address of targets in the network's dtype; 0 if there is a label of no class."""


@overload(_converted)
def _overload_converted(net, handle, y):
    number = net.number
    if y.ndim == 1:

        def convert(net, handle, y):
            room = numbers(net, handle.targets)
            for i in range(y.shape[0]):
                if handle.labels and not _is_class(handle, y[i]):
                    return 0
                room[i] = number(y[i])
            return handle.targets

    else:

        def convert(net, handle, y):
            room = numbers(net, handle.targets)
            rows, columns = y.shape
            for i in range(rows):
                for j in range(columns):
                    if handle.labels and not _is_class(handle, y[i, j]):
                        return 0
                    room[i * columns + j] = number(y[i, j])
            return handle.targets

    return convert


def targets_of(net, handle, y):
    """Return the address of targets as kernels take them, see `_converted`."""


@overload(targets_of)
def _overload_targets(net, handle, y):
    if y.dtype == net.number and y.layout == "C":
        return lambda net, handle, y: (
            _converted(net, handle, y) if handle.labels else data_address(y)
        )
    return lambda net, handle, y: _converted(net, handle, y)


def factors_of(net, handle, weights, rows):
    """Return the address of the factors of all rows' losses; 0 where they have no weights."""


@overload(factors_of)
def _overload_factors(net, handle, weights, rows):
    if not is_given(weights):
        return lambda net, handle, weights, rows: 0
    number = net.number

    def factors(net, handle, weights, rows):
        room, factor = numbers(net, handle.factors), doubles(handle.factor)[rows]
        for i in range(rows):
            room[i] = number(types.float64(weights[i]) * factor)
        return handle.factors

    return factors


@register_jitable
def check_weights(weights, rows):
    """Refuse weights of another shape."""
    if not _optional_has_shape(weights, rows, 1):
        raise ValueError("loss_weight: wanted a vector with a weight for each row of X")


@register_jitable
def all_finite(handle, array):
    """Return whether all elements of a vector are finite."""
    seen = magnitude(array[0])
    for i in range(1, array.shape[0]):
        seen = max(seen, magnitude(array[i]))
    return seen < handle.largest
