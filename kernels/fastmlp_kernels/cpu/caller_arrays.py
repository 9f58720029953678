"""The door of callers' arrays: where each lies, if it has the shape that its problem wants."""

from fastmlp_kernels.compile import kernel
from fastmlp_kernels.cpu.intrinsics import set_word, word
from fastmlp_kernels.cpu.tables import ITEM

# The fields of NumPy's array object, in words after its head. Those who ask for them by the macros
# PyArray_DATA, _NDIM, _DIMS and _STRIDES have this layout compiled into them: it is a promise.
OBJECT_HEAD = object.__basicsize__
DATA, DIMENSIONS, SHAPE, STRIDES = range(4)


@kernel
def point_at(words, index, identity, rows, columns):
    """Set a word of the tables to where a caller's array keeps its data, if it has the right shape.

    Every array of a call comes in by this door: none of another shape than the problem's reaches
    compiled code. NumPy takes 1.5 us to say where an array lies, and a compiled function that took
    the array itself would be compiled once more for each kind of array, a read-only one for
    example.

    Parameters
    ----------
    words : int
        Address of the program's tables.
    index : int
        Of the word.
    identity : int
        The array's ``id``.
    rows, columns : int
        Its shape; of a vector, its length and minus the bytes of an element.

    Returns
    -------
    bool
        Whether it has that shape, row after row without gaps. If not, the word is 0.
    """
    head = identity + OBJECT_HEAD
    shape, strides, item = word(head, SHAPE), word(head, STRIDES), word(words, ITEM)
    # The number of dimensions is half a word.
    dimensions = word(head, DIMENSIONS) & 0xFFFFFFFF
    good = dimensions == (1 if columns < 0 else 2) and word(shape, 0) == rows
    if good and columns >= 0:
        good = word(shape, 1) == columns and (columns < 2 or word(strides, 1) == item)
    if good and rows > 1:
        good = word(strides, 0) == (-columns if columns < 0 else columns * item)
    set_word(words, index, word(head, DATA) if good else 0)
    return good
