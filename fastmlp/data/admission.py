"""The door for data: each array is classified once, checked, and copied only if it must be.

What comes out is a NumPy array in this process's memory, or lies on the GPU where the call runs.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmlp.data.arrays import (
    DType,
    check_inputs,
    check_matrix,
    check_targets,
    is_vector,
    lies_on_gpu,
)
from fastmlp.data.device_arrays import follow, matrix_there, stays, targets_there
from fastmlp.data.frames import Columns, check_columns
from fastmlp.device.mirrors import guarded
from fastmlp.dispatch.planning import Where
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
    def on_host(self) -> bool:
        """Whether nothing of it lies on a GPU."""
        return type(self.X) is np.ndarray and type(self.y) is np.ndarray


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
) -> tuple[Array, Where]:
    """Return checked inputs, which may have no rows, and where the call runs: see `admit`."""
    if type(X) is not np.ndarray:
        check_columns(X, columns, "X")
        on_gpu = lies_on_gpu(X)
        where = follow(where) if on_gpu else where
        there = _inputs_there(X, inputs, dtype, "X") if on_gpu and stays(where) else None
        if there is not None:
            return there, where
    return check_matrix(X, inputs, dtype, "X", least=0), where


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
