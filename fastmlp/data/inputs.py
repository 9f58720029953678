"""Rows to predict: used where they are if they can be, else converted a block at a time.

A prediction looks at every number anyway, so that it finds itself whether all of X is finite. Only
the shape is checked before.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.data.arrays import DType, check_matrix, host_array, matrix_of
from fastmlp.data.frames import is_table
from fastmlp.errors import DomainError, DTypeError, FastMLPError, ShapeError

Array = NDArray[Any]

# Bytes of a block that is converted: it stays in a cache until it is read, and has rows enough for
# a team.
BLOCK_BYTES = 1 << 20


def straight(X: Array, columns: int, dtype: DType) -> bool:
    """Return whether an array of at least one row is what kernels read: then nothing is copied."""
    shape = X.shape
    if X.dtype is not dtype or len(shape) != 2 or shape[1] != columns:
        return False
    flags = X.flags
    return shape[0] > 0 and flags.c_contiguous and flags.aligned


class Inputs:
    """Rows of any dtype and layout that have the right shape.

    Parameters
    ----------
    value : array-like
        What the user has given.
    columns : int
    dtype : dtype
        Of the model.
    """

    def __init__(self, value: Any, columns: int, dtype: DType) -> None:
        self._value, self._columns, self._dtype = value, columns, dtype
        # A table may have a dtype for each column: as one array it would be a copy.
        self._table = is_table(value) and value.shape[1] == columns
        self._held = value if self._table else matrix_of(value, columns, "X", least=0)

    def __len__(self) -> int:
        return int(self._held.shape[0])

    def checked(self) -> Array:
        """Return all rows as one array of the model's dtype, or refuse them."""
        return check_matrix(self._value, self._columns, self._dtype, "X", least=0)

    def blocks(self) -> Iterator[tuple[slice, Array]]:
        """Yield slices of the rows, and those rows as the kernels read them; use each at once."""
        held, rows = self._held, len(self)
        if not self._table and straight(held, self._columns, self._dtype):
            yield slice(0, rows), held
            return
        count = max(1, BLOCK_BYTES // (self._columns * self._dtype.itemsize))
        buffer = np.empty((min(count, rows), self._columns), self._dtype)
        for start in range(0, rows, count):
            part = slice(start, min(start + count, rows))
            block = buffer[: part.stop - start]
            # A number too large for the dtype becomes infinite, and is found as such.
            with np.errstate(over="ignore"):
                np.copyto(block, self._numbers(part), casting="unsafe")
            yield part, block

    def _numbers(self, part: slice) -> Array:
        if not self._table:
            return self._held[part]
        rows = self._held
        if len(rows) > part.stop - part.start:
            rows = rows.iloc[part] if hasattr(rows, "iloc") else rows[part]
        try:
            return host_array(rows, "X")
        except FastMLPError:
            # In the words for the whole table.
            self.checked()
            raise

    def overlap(self, out: Array) -> bool:
        """Return whether memory that is written to may be that of the rows."""
        held: Any = self._held
        arrays = [held[name] for name in held.columns] if self._table else [held]
        return any(np.may_share_memory(out, np.asarray(each)) for each in arrays)


def check_out(
    out: Any,
    shape: tuple[int, ...],
    dtype: DType,
    X: Any,
    parameters: Array,
    gradient: Array | None = None,
) -> Array:
    """Return the caller's array for predictions, or refuse it.

    Parameters
    ----------
    out : object
    shape : tuple of int
        That of the result.
    dtype : dtype
        Of the model.
    X : ndarray or Inputs
        What is predicted.
    parameters, gradient : ndarray
        Of the model. There may be no gradient.

    Raises
    ------
    DTypeError, ShapeError, DomainError
    """
    wanted = f"an array of shape {shape} and dtype {dtype}"
    if not isinstance(out, np.ndarray) or isinstance(out, np.ma.MaskedArray):
        raise DTypeError(
            f"out: got {type(out).__name__}, wanted {wanted}: numpy.empty({shape}, '{dtype}')"
        )
    if out.dtype != dtype:
        raise DTypeError(f"out: got dtype {out.dtype}, wanted {dtype}, that of the model")
    if out.shape != shape:
        raise ShapeError(f"out: got shape {out.shape}, wanted {shape}, that of the predictions")
    flags = out.flags
    if not (flags.c_contiguous and flags.aligned):
        raise DomainError(
            "out: got an array whose numbers do not lie row after row without gaps, wanted a "
            f"C-contiguous one: numpy.empty({shape}, '{dtype}')"
        )
    if not flags.writeable:
        raise DomainError("out: got a read-only array, wanted one that may be written to")
    if np.may_share_memory(out, parameters):
        raise DomainError("out: got memory of the model's parameters, wanted memory of its own")
    if gradient is not None and np.may_share_memory(out, gradient):
        raise DomainError("out: got memory of the model's gradients, wanted memory of its own")
    shared = X.overlap(out) if isinstance(X, Inputs) else np.may_share_memory(out, X)
    if shared:
        raise DomainError("out: got memory that X lies in too, wanted memory of its own")
    return out.view(np.ndarray)
