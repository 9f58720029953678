"""The door of callers' arrays: where each lies, if it has the shape that its problem wants."""

import numpy as np

from fastmlp_kernels.compile import kernel
from fastmlp_kernels.cpu.intrinsics import record_at, set_word, word
from fastmlp_kernels.cpu.tables import STEP, WORD_BYTES, at

# The fields of NumPy's array object after its head. Those who ask for them by the macros
# PyArray_DATA, _NDIM, _DIMS and _STRIDES have this layout compiled into them: it is a promise.
OBJECT_HEAD = object.__basicsize__
ARRAY = np.dtype(
    [("data", "i8"), ("dimensions", "i4"), ("shape", "i8"), ("strides", "i8")], align=True
)

# Compiled code reads no attributes of a class.
AT_X, AT_Y, AT_ORDER, AT_HYPER = at.X, at.Y, at.order, at.hyper


@kernel
def point_at(table, index, identity, rows, columns):
    """Set a word of the table to where a caller's array keeps its data, if it has the right shape.

    Every array of a call comes in by this door: none of another shape than the problem's reaches
    compiled code. NumPy takes 1.5 us to say where an array lies, and a compiled function that took
    the array itself would be compiled once more for each kind of array, a read-only one for
    example.

    Parameters
    ----------
    table : int
        Address of the program's table.
    index : int
        Of the word, see `tables.at`.
    identity : int
        The array's ``id``.
    rows, columns : int
        Its shape; of a vector, its length and minus the bytes of an element.

    Returns
    -------
    bool
        Whether it has that shape, row after row without gaps. If not, the word is 0.
    """
    array, item = record_at(identity + OBJECT_HEAD, ARRAY, 0), record_at(table, STEP, 0).item
    good = array.dimensions == (1 if columns < 0 else 2) and word(array.shape, 0) == rows
    if good and columns >= 0:
        good = word(array.shape, 1) == columns and (columns < 2 or word(array.strides, 1) == item)
    if good and rows > 1:
        good = word(array.strides, 0) == (-columns if columns < 0 else columns * item)
    set_word(table, index, array.data if good else 0)
    return good


@kernel
def point_at_data(table, X, y, order, hyper, count):
    """Point a table at the arrays that each epoch is given anew, all in one call.

    Parameters
    ----------
    table : int
        Address of the program's table, of a step whose rows and batches are set.
    X, y, order, hyper : int
        The ``id`` of each array.
    count : int
        Rows of X and y.

    Returns
    -------
    bool
        Whether all have their shapes: see `point_at`.
    """
    step = record_at(table, STEP, 0)
    return (
        point_at(table, AT_X, X, count, step.input_columns)
        and point_at(table, AT_Y, y, count, step.target_columns)
        and point_at(table, AT_ORDER, order, step.rows, -WORD_BYTES)
        and point_at(table, AT_HYPER, hyper, step.batches, step.hyper_stride // step.item)
    )
