"""The door for data: each array is classified once, checked, and copied only if it must be.

What comes out is a NumPy array in this process's memory, or lies on the GPU where the call runs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmlp.data.arrays import (
    DType,
    check_inputs,
    check_targets,
    is_vector,
    lies_on_gpu,
)
from fastmlp.data.chunks import Chunks
from fastmlp.data.device_arrays import follow, matrix_there, stays, targets_there
from fastmlp.data.frames import Columns, check_columns, column_names
from fastmlp.data.inputs import Inputs, straight
from fastmlp.device.mirrors import guarded
from fastmlp.dispatch.planning import Where
from fastmlp.errors import DomainError, DTypeError, ShapeError
from fastmlp_kernels.algebra import Loss

Array = NDArray[Any]


class Data(NamedTuple):
    """Checked inputs and targets of as many rows.

    `labels` says whether y is one class index a row; `vector`, whether the targets of one output
    were given as a vector (rows,).
    """

    X: Array
    y: Array
    labels: bool
    vector: bool = False

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.X)

    @property
    def batch_limit(self) -> int | None:
        """How many rows a mini-batch may have."""
        return len(self.X)

    @property
    def extent(self) -> str:
        """How many rows there are, in words."""
        return str(len(self.X))

    @property
    def on_host(self) -> bool:
        """Whether nothing of it lies on a GPU."""
        return type(self.X) is np.ndarray and type(self.y) is np.ndarray


class OwnRows(NamedTuple):
    """What `Data` is, of one of several ranks; `rows` says how many all of them have."""

    X: Array
    y: Array
    labels: bool
    vector: bool
    rows: int

    @property
    def batch_limit(self) -> int:
        """How many rows a mini-batch may have."""
        return self.rows

    @property
    def extent(self) -> str:
        """How many rows there are, in words."""
        return str(self.rows)


@dataclass
class ChunkedData:
    """Data in chunks, each of which is checked when it is loaded.

    Attributes
    ----------
    chunks : Chunks
    check : callable
        ``check(X, y, of) -> Data``
    labels, vector : bool
        As of `Data`, by the first chunk.
    rows, outputs : int
        Rows of the first chunk; units of the network's output.
    columns : tuple of str or None
    first : Data or None
        The first chunk, until it is loaded the first time or given up.
    """

    chunks: Chunks
    check: Callable[[Any, Any, str], Data]
    labels: bool
    vector: bool
    rows: int
    outputs: int
    columns: Columns | None
    first: Data | None

    @property
    def batch_limit(self) -> int | None:
        """How many rows a mini-batch may have, if that is known: later chunks may be longer."""
        return self.rows if self.chunks.count == 1 else None

    @property
    def extent(self) -> str:
        """How many rows there are, as far as that is known."""
        return f"{self.chunks.count} chunks, and {self.rows} in the first"

    def load(self, number: int) -> Data:
        """Return a checked chunk."""
        kept, self.first = self.first, None
        if number == 0 and kept is not None:
            return kept
        data = self.check(*self.chunks.load(number), f"chunk {number} ")
        if data.labels != self.labels:
            kinds = {True: "class labels", False: "a matrix of targets"}
            raise DTypeError(
                f"chunk {number} y: got {kinds[data.labels]}, wanted {kinds[self.labels]}, as in "
                "chunk 0"
            )
        return data


Rows = Data | OwnRows | ChunkedData


def admit_chunks(
    chunks: Chunks,
    y: Any,
    sizes: tuple[int, ...],
    loss: Loss,
    dtype: DType,
    columns: Columns | None = None,
) -> ChunkedData:
    """Return data in chunks, of which the first one has been loaded and checked."""
    if y is not None:
        raise DomainError(f"y: got {type(y).__name__} beside Chunks, wanted none: they hold it")
    if chunks.columns is not None and columns not in (None, chunks.columns):
        raise ShapeError(
            f"X: got columns {chunks.columns}, wanted those of the first fit, {columns}"
        )
    X, targets = chunks.load(0)
    known = columns or chunks.columns or column_names(X)

    def check(X: Any, y: Any, of: str) -> Data:
        check_columns(X, known, f"{of}X")
        data = _admit(X, y, False, False, sizes, loss, dtype, of)
        return data if chunks.lasting else data._replace(X=_own(data.X, X), y=_own(data.y, y))

    first = check(X, targets, "chunk 0 ")
    rest = first.labels, first.vector, first.rows, sizes[-1], known, first
    return ChunkedData(chunks, check, *rest)


def _own(checked: Array, given: Any) -> Array:
    """Return checked data in memory that whoever gave it cannot write to."""
    # Of other kinds nobody knows whose memory it is.
    converted = type(given) is np.ndarray and not np.may_share_memory(checked, given)
    return checked if converted else checked.copy()


def admit(
    X: Any,
    y: Any,
    sizes: tuple[int, ...],
    loss: Loss,
    dtype: DType,
    where: Where,
    columns: Columns | None = None,
) -> tuple[Data, Where]:
    """Return checked inputs and targets, and where the call runs.

    An array X on a GPU speaks for the GPU where the caller does not say. `columns` are the names
    that a table's columns must have.
    """
    if type(X) is np.ndarray:
        # The common case, kept short: it is seen in a step's time.
        inputs = check_inputs(X, y, sizes[0], dtype)
        targets, labels = check_targets(y, len(inputs), sizes[-1], loss, dtype)
        return Data(inputs, targets, labels, is_vector(y, sizes)), where
    check_columns(X, columns, "X")
    on_gpu = lies_on_gpu(X)
    where = follow(where) if on_gpu else where
    return _admit(X, y, on_gpu, stays(where), sizes, loss, dtype), where


def admit_validation(
    pair: tuple[Any, Any],
    sizes: tuple[int, ...],
    loss: Loss,
    dtype: DType,
    where: Where,
    columns: Columns | None = None,
    of: str = "validation ",
) -> Data:
    """Return checked validation data of a fit that runs `where`; `of` is put before their names."""
    X, y = pair
    check_columns(X, columns, f"{of}X")
    there = stays(where)
    return _admit(X, y, there and lies_on_gpu(X), there, sizes, loss, dtype, of)


def admit_inputs(
    X: Any, inputs: int, dtype: DType, where: Where, columns: Columns | None = None
) -> tuple[Any, Where]:
    """Return rows to predict, which may be none, and where the call runs: see `admit`.

    What lies on the host has the right shape, and its numbers are not looked at: see `Inputs`.
    """
    if type(X) is not np.ndarray:
        check_columns(X, columns, "X")
        on_gpu = lies_on_gpu(X)
        where = follow(where) if on_gpu else where
        there = _inputs_there(X, inputs, dtype, "X") if on_gpu and stays(where) else None
        if there is not None:
            return there, where
    elif straight(X, inputs, dtype):
        return X, where
    return Inputs(X, inputs, dtype), where


def _inputs_there(X: Any, inputs: int, dtype: DType, argument: str) -> Any | None:
    with guarded("cuda", argument):
        return matrix_there(X, inputs, dtype, argument)


def _admit(
    X: Any,
    y: Any,
    on_gpu: bool,
    there: bool,
    sizes: tuple[int, ...],
    loss: Loss,
    dtype: DType,
    of: str = "",
) -> Data:
    """Return checked inputs, of which is known whether they are `on_gpu`, and targets.

    `there` says whether arrays on a GPU stay there; `of` is put before their names in messages.
    """
    inputs = _inputs_there(X, sizes[0], dtype, f"{of}X") if on_gpu and there else None
    if inputs is None:
        inputs = check_inputs(X, y, sizes[0], dtype, of)
    found = None
    if there and lies_on_gpu(y):
        with guarded("cuda", f"{of}y"):
            found = targets_there(y, len(inputs), sizes[-1], loss, dtype, f"{of}y")
    if found is None:
        found = check_targets(y, len(inputs), sizes[-1], loss, dtype, of)
    targets, labels = found
    return Data(inputs, targets, labels, is_vector(y, sizes))
