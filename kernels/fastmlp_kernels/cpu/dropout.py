"""Dropout of a block of rows of a panel: see `algebra.dropout`."""

import functools

from numba.core import types

from fastmlp_kernels.algebra.dropout import is_kept, row_key
from fastmlp_kernels.algebra.optimizers import DROPOUT_KEY
from fastmlp_kernels.compile import leaf
from fastmlp_kernels.cpu.activation import NUMBERS
from fastmlp_kernels.cpu.intrinsics import read, write

WORD = types.int64


@functools.cache
def dropout(dtype: str, in_place: bool) -> int:
    """Return the address of the leaf that leaves out some numbers of a panel, and scales the rest.

    Parameters
    ----------
    dtype : str
    in_place : bool
        Whether `out` is `source`; otherwise they do not overlap.

    Notes
    -----
    The leaf is ``(source, out, rows, panel, hyper, layer, row, unit, threshold, scale)``: `rows`
    rows of `panel` numbers, the first that of row `row` and unit `unit` of the layer. Cost: about
    12 integer operations, a read and a write a number. Source: `algebra.dropout`.
    """
    into = 0 if in_place else 1
    key_of, kept = row_key, is_kept

    def leave_out(source, out, rows, panel, hyper, layer, row, unit, threshold, scale):
        low, high = WORD(hyper[DROPOUT_KEY]), WORD(hyper[DROPOUT_KEY + 1])
        factor = scale[0]
        for r in range(rows):
            key = key_of(low, high, layer, row + r)
            for c in range(panel):
                k = r * panel + c
                value = read(source, k, 0) * factor
                write(out, k, value if kept(key, unit + c, threshold) else factor - factor, into)
        return 0

    pointer = types.CPointer(NUMBERS[dtype])
    signature = WORD(pointer, pointer, *[WORD] * 2, pointer, *[WORD] * 4, pointer)
    kind = "in_place" if in_place else "copy"
    return leaf(leave_out, f"dropout-{kind}-{dtype}", signature).address
