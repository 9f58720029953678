"""Checks of the host's data: made C-contiguous of the model's dtype, or refused.

An array that is so already is used without a copy, unless it holds labels: kernels index by those.
Every message names the argument, what was got and what was wanted, and nothing has changed when one
is raised.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastmlp.data import remedies
from fastmlp.data.frames import numbers_of
from fastmlp.errors import DomainError, DTypeError, ShapeError
from fastmlp.state.finite import all_finite
from fastmlp_kernels.algebra import Loss
from fastmlp_kernels.algebra.tables import Interval
from fastmlp_kernels.problem import Problem

Array = NDArray[Any]
DType = np.dtype[Any]

# How far the sum of a row of class probabilities may be from 1: float16 rounding of many classes.
PROBABILITY_SLACK = 1e-3


# DLPack's kinds of memory that a GPU reads: its own, and what is managed for both sides.
GPU_KINDS = (2, 13)


def check_inputs(X: Any, y: Any, columns: int, dtype: DType, of: str = "") -> Array:
    """Return checked inputs; a message says so where they look swapped with the targets."""
    try:
        return check_matrix(X, columns, dtype, f"{of}X")
    except ShapeError:
        if remedies.are_swapped(X, y, columns):
            raise ShapeError(
                f"{of}X: got shape {tuple(np.shape(X))}, wanted (rows, {columns}), which y has: "
                "are they swapped?"
            ) from None
        raise


def check_matrix(
    value: Any, columns: int, dtype: DType, argument: str, rows: int | None = None, least: int = 1
) -> Array:
    """Return a finite, C-contiguous dtype[rows, columns] of at least so many rows."""
    array = matrix_of(value, columns, argument, rows, least)
    try:
        return convert(array, dtype, argument)
    except DomainError as error:
        name = called(argument)
        hint = remedies.of_missing(value, array, name) or remedies.of_overflow(array, dtype, name)
        raise DomainError(f"{error}{hint}") from None


def check_in_place(
    array: Any,
    argument: str,
    dtype: DTypeLike,
    columns: int,
    rows: int | None = None,
    written: bool = False,
) -> int:
    """Return the rows of an array that is used where it lies, whatever is in it; refuse any other.

    One row may be a vector, and so may one column where the number of rows is known.
    """
    plain = isinstance(array, np.ndarray) and not isinstance(array, np.ma.MaskedArray)
    if not plain or array.dtype != dtype:
        got = array.dtype if plain else type(array).__name__
        raise DTypeError(f"{argument}: got {got}, wanted a NumPy array of {dtype}")
    count = (len(array) if array.ndim == 2 else 1) if rows is None else rows
    shapes: list[tuple[int, ...]] = [(count, columns)]
    if count == 1 or (columns == 1 and rows is not None):
        shapes.append((count * columns,))
    if array.shape not in shapes:
        wanted = f"({'rows' if rows is None else rows}, {columns})"
        raise ShapeError(f"{argument}: got shape {array.shape}, wanted {wanted}")
    if not array.flags.c_contiguous:
        raise ShapeError(
            f"{argument}: got strides {array.strides}, wanted rows without gaps: "
            f"np.ascontiguousarray({argument})"
        )
    if written and not array.flags.writeable:
        raise DTypeError(f"{argument}: got a read-only array, wanted one to write to")
    return count


def matrix_of(
    value: Any, columns: int, argument: str, rows: int | None = None, least: int = 1
) -> Array:
    """Return real numbers[rows, columns] of at least so many rows; the numbers may be any."""
    array = host_array(value, argument, least)
    if array.ndim != 2 or array.shape[1] != columns or rows not in (None, len(array)):
        wanted = f"({'rows' if rows is None else rows}, {columns})"
        hint = remedies.of_matrix(array.shape, columns, rows, called(argument))
        raise ShapeError(f"{argument}: got shape {array.shape}, wanted {wanted}{hint}")
    return array


def called(argument: str) -> str:
    """Return what the user has called an array: the last word of what messages call it."""
    return argument.rpartition(" ")[2]


def check_targets(
    value: Any, rows: int, outputs: int, loss: Loss, dtype: DType, of: str = ""
) -> tuple[Array, bool]:
    """Return dtype[rows, targets], or dtype[rows, 1] and True when they are class labels."""
    argument, outputs = f"{of}y", loss.target_columns(outputs)
    array = host_array(value, argument)
    flat = array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1)
    by_label = loss.label_rule is not None and flat
    if array.ndim not in (1, 2) or (not by_label and not (flat and outputs == 1)):
        if array.ndim != 2 or array.shape[1] != outputs:
            wanted = _wanted_targets(rows, outputs, loss)
            hint = remedies.of_targets(array, rows, outputs, loss, called(argument))
            raise ShapeError(f"{argument}: got shape {array.shape}, wanted {wanted}{hint}")
    if len(array) != rows:
        raise ShapeError(f"{argument}: got {len(array)} rows, wanted {rows}, as many as {of}X has")
    try:
        if by_label:
            return check_labels(array.reshape(rows), outputs, dtype, argument), True
        matrix = array if array.ndim == 2 else array.reshape(rows, outputs)
        targets = convert(matrix, dtype, argument)
    except DomainError as error:
        raise DomainError(
            f"{error}{_target_hint(array, outputs, dtype, by_label, argument)}"
        ) from None
    check_domain(targets, loss, argument)
    return targets, False


def labels_or_targets(value: Any, rows: int, problem: Problem) -> Array:
    """Return labels, or targets, as kernels for a problem take them; refuse the other kind."""
    array, columns = host_array(value, "y"), problem.target_columns
    shapes = [(rows, columns), (rows * columns,)]
    if array.shape not in shapes[: 1 + (1 in shapes[0])]:
        what = "labels" if problem.labels else "targets"
        raise ShapeError(f"y: got shape {array.shape}, wanted ({rows}, {columns}) {what}")
    dtype = np.dtype(problem.dtype)
    if problem.labels:
        return check_labels(array.reshape(rows), problem.sizes[-1], dtype, "y")
    return convert(array, dtype, "y")


def _target_hint(array: Array, outputs: int, dtype: DType, by_label: bool, argument: str) -> str:
    name = called(argument)
    if by_label:
        return remedies.of_labels(array.reshape(-1), outputs, name)
    return remedies.of_missing(array, array, name) or remedies.of_overflow(array, dtype, name)


def _wanted_targets(rows: int, outputs: int, loss: Loss) -> str:
    if loss.label_rule is not None:
        return f"({rows},) of class labels, or ({rows}, {outputs}) of class probabilities"
    return f"({rows}, {outputs})" + (f" or ({rows},)" if outputs == 1 else "")


def check_labels(array: Array, classes: int, dtype: DType, argument: str) -> Array:
    """Return class labels as dtype[rows, 1], in memory of their own; False is 0 and True is 1.

    A copy is what is checked, so nobody can put a bad label into it afterwards.
    """
    wanted = f"whole class labels from 0 to {classes - 1}"
    array = array.astype(dtype if array.dtype.kind == "b" else array.dtype)
    if array.dtype.kind == "f":
        check_finite(array, argument)
        refuse_first(array != np.floor(array), array, argument, wanted)
    refuse_first((array < 0) | (array >= classes), array, argument, wanted)
    return convert(array[:, None], dtype, argument)


def check_domain(targets: Array, loss: Loss, argument: str) -> None:
    """Refuse targets for which the loss is not defined."""
    domain = loss.target_domain
    # Nothing finite lies outside the real numbers, and most losses take them all.
    bounded = domain.low > -math.inf or domain.high < math.inf
    if bounded and not domain.contains(_range(targets)):
        outside = (targets < domain.low) | (targets > domain.high)
        outside |= (targets == domain.low) & (not domain.low_included)
        outside |= (targets == domain.high) & (not domain.high_included)
        hint = remedies.of_domain(targets, loss, called(argument))
        wanted = f"values in {domain}, where {loss.name} is defined{hint}"
        refuse_first(outside, targets, argument, wanted)
    if loss.label_rule is not None:
        sums = targets.sum(axis=1)
        wanted = "class probabilities: rows that sum to 1"
        refuse_first(np.abs(sums - 1) > PROBABILITY_SLACK, sums, f"{argument}.sum(axis=1)", wanted)


def _range(values: Array) -> Interval:
    return Interval(float(values.min()), float(values.max()), True, True)


def refuse_first(bad: Array, values: Array, argument: str, wanted: str) -> None:
    """Raise a DomainError that counts the bad values and shows the first one."""
    count = int(np.count_nonzero(bad))
    if count:
        where = tuple(int(each) for each in np.argwhere(bad)[0])
        index = where[0] if len(where) == 1 else where
        raise DomainError(
            f"{argument}: got {count} bad value{'s' if count > 1 else ''}, the first "
            f"{values[where]} at index {index}; wanted {wanted}"
        )


def check_finite(array: Array, argument: str) -> None:
    """Refuse NaN and infinity."""
    if not all_finite(array):
        refuse_first(~np.isfinite(array), array, argument, "finite numbers")


def is_vector(y: Any, sizes: tuple[int, ...]) -> bool:
    """Return whether targets of one output were given as a vector (rows,)."""
    # An array says it itself, in a tenth of the time.
    return sizes[-1] == 1 and (y.ndim if type(y) is np.ndarray else np.ndim(y)) == 1


def convert(array: Array, dtype: DType, argument: str) -> Array:
    """Return `array` in the compute dtype, C-contiguous, checked to be finite."""
    if array.dtype is dtype and array.flags.carray:
        check_finite(array, argument)
        return array
    with np.errstate(over="ignore"):
        result = np.require(array, dtype, ["C", "A"])
    if array.dtype.kind == "f":
        check_finite(result if result is array else array, argument)
    if result is not array and array.dtype.kind == "f" and array.dtype.itemsize > 4:
        refuse_first(~np.isfinite(result), array, argument, f"numbers that {dtype} can hold")
    return result if result.flags.writeable else writable(result)


class _Memory:
    """An array interface that says it may be written to."""

    def __init__(self, array: Array) -> None:
        self.array = array
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface


def writable(array: Array) -> Array:
    """Return a view that is not marked read-only.

    Kernels never write to their inputs, but they are compiled for writable arrays: a read-only one
    (every JAX array, a memory map) would be another type, and compile them all again.
    """
    return np.asarray(_Memory(array))


def host_array(value: Any, argument: str, least: int = 1) -> Array:
    """Return any array-like as a NumPy array of real numbers in this process's memory.

    It has at least one element, unless `least` is 0: then it may have no rows.
    """
    array = value if type(value) is np.ndarray else to_host(value, argument)
    if array.dtype.kind not in "fiub":
        numbers = numbers_of(value, argument)
        if numbers is None:
            kind = f"{type(value).__name__} of dtype {array.dtype}"
            hint = remedies.of_kind(value, array, called(argument))
            raise DTypeError(f"{argument}: got {kind}, wanted real numbers in a dense array{hint}")
        array = numbers
    if array.size == 0 and (least or array.ndim != 2 or len(array)):
        raise ShapeError(f"{argument}: got no data, shape {array.shape}; wanted at least one row")
    return array


def to_host(value: Any, argument: str) -> Array:
    """Bring array-likes, tensors and device arrays into a NumPy array."""
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        count = int(np.ma.count_masked(value))
        raise DomainError(f"{argument}: got {count} masked values, wanted finite numbers")
    # A tensor that records gradients refuses to be read.
    value = value.detach() if hasattr(value, "detach") else value
    try:
        if hasattr(value, "__cuda_array_interface__") or lies_on_gpu(value):
            return device_to_host(value)
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        if "inhomogeneous" in str(error):
            raise ShapeError(
                f"{argument}: got rows of different lengths{remedies.of_lengths(value)}, wanted a "
                "rectangular array"
            ) from None
        raise DTypeError(
            f"{argument}: got {type(value).__name__} that NumPy cannot read ({error}), "
            "wanted an array of real numbers"
        ) from error


def host_copy(array: Any) -> Array:
    """Return checked data as a NumPy array: itself, unless it lies on a device."""
    return array if type(array) is np.ndarray else device_to_host(array)


def lies_on_gpu(value: Any) -> bool:
    """Return whether an array-like is in a GPU's memory."""
    if getattr(value, "__cuda_ndarray__", False):
        return True
    try:
        if hasattr(value, "__dlpack_device__"):
            return int(value.__dlpack_device__()[0]) in GPU_KINDS
        return hasattr(value, "__cuda_array_interface__")
    except (RuntimeError, BufferError, TypeError, AttributeError):
        # A library that does not tell: its arrays are read as ever.
        return False


def device_to_host(value: Any) -> Array:
    """Copy a device array, by the way its library has."""
    if hasattr(value, "copy_to_host"):  # Numba
        return np.asarray(value.copy_to_host())
    if hasattr(value, "cpu"):  # PyTorch
        return np.asarray(value.cpu())
    if hasattr(value, "get"):  # CuPy
        return np.asarray(value.get())
    return np.from_dlpack(value, device="cpu")
