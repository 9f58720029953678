"""What becomes of a finished tile of a gradient: an optimizer's step, or a place in memory."""

import functools
from collections.abc import Callable

from numba.core import types

from fastmlp_kernels.algebra import OPTIMIZERS
from fastmlp_kernels.algebra.elementary import plus
from fastmlp_kernels.algebra.optimizers import RULE_START
from fastmlp_kernels.compile import leaf
from fastmlp_kernels.compilers import VectorCompiler
from fastmlp_kernels.cpu.activation import NUMBERS
from fastmlp_kernels.cpu.intrinsics import read, write

WORD = types.int64
# Streams of memory that never overlap: see `intrinsics.read`.
PARAMETERS, FIRST, SECOND, GRADIENT, COPY = range(5)


def _signature(dtype):
    pointer = types.CPointer(NUMBERS[dtype])
    total = types.CPointer(types.float64)
    return WORD(*[pointer] * 5, WORD, WORD, WORD, WORD, pointer, pointer, pointer, total)


@functools.cache
def update(  # noqa: C901 (loops that are compiled as one function)
    name: str, dtype: str, panel: int, penalized: bool = False, clipped: bool = False
) -> int:
    """Return the address of the leaf that applies an optimizer's step to a tile.

    Parameters
    ----------
    name : str
        Row of OPTIMIZERS.
    dtype : str
    panel : int
        Columns of a panel: the new parameters are also written to a tile of panels.
    penalized : bool
        Whether the squares of the old parameters are summed, for an L2 penalty.
    clipped : bool
        Whether the gradient is multiplied by `scale`, as where its norm is limited.

    Notes
    -----
    The leaf is ``(p, first, second, g, copy, rows, columns, stride, width, hyper, decay, scale,
    total)``: `rows` runs of `columns` elements, `stride` apart in the flat vectors p, first and
    second (the parameters and the optimizer's state: those that the rule does not use are not
    touched) and `width` apart in the tiles g and copy. `hyper` is the step's row, `decay` the one
    of its two decays that holds here; the sum of squares goes to `total` (float64, summed in
    `dtype`). None of the arrays overlap. Afterwards g holds nothing of use. Cost: about 12 flops
    and 3 to 8 memory accesses a parameter. Source: `algebra.optimizers`.
    """
    row = OPTIMIZERS[name]
    element = _element(row.update, row.slots, clipped)
    in_run = _element(row.update, row.slots, clipped, copied=False)
    in_one_run = row.slots == 2 and not penalized
    # Closed over, as `leaf` compiles what a function closes over.
    numbers, add = _numbers, plus

    def step(  # noqa: C901 (as above)
        p, first, second, g, copy, rows, columns, stride, width, hyper, decay, scale, total
    ):
        h = numbers(hyper, decay, scale)
        squares = decay[0] - decay[0]
        if columns == panel:
            # A whole row of a panel, of a length known here, is two vectors and no loop.
            for r in range(rows):
                for j in range(panel):
                    old = element(p, first, second, g, copy, r * stride + j, r * panel + j, h)
                    if penalized:
                        squares = add(squares, old * old)
        elif in_one_run and columns == stride and 2 * columns < panel:
            # Rows shorter than a vector follow each other without a gap. Once those of the tile do
            # too, all are one run of vectors: 0.6 of the time for 4 columns of Adam (AVX2).
            for r in range(1, rows):
                for j in range(columns):
                    write(g, r * columns + j, read(g, r * width + j, GRADIENT), GRADIENT)
            for k in range(rows * columns):
                in_run(p, first, second, g, copy, k, k, h)
            for r in range(rows):
                for j in range(columns):
                    write(copy, r * width + j, read(p, r * columns + j, PARAMETERS), COPY)
        else:
            for r in range(rows):
                for j in range(columns):
                    old = element(p, first, second, g, copy, r * stride + j, r * width + j, h)
                    if penalized:
                        squares = add(squares, old * old)
        if penalized:
            total[0] = squares
        return 0

    kind = f"tile{panel}" + ("-penalized" if penalized else "") + ("-clipped" if clipped else "")
    name = f"update-{name}-{kind}-{dtype}"
    return leaf(step, name, _signature(dtype), compiler=VectorCompiler).address


def _numbers(hyper, decay, scale):
    """Return the decay, what the gradient is multiplied by, and the numbers of the rule."""
    return (
        decay[0],
        scale[0],
        (
            hyper[RULE_START],
            hyper[RULE_START + 1],
            hyper[RULE_START + 2],
            hyper[RULE_START + 3],
            hyper[RULE_START + 4],
            hyper[RULE_START + 5],
            hyper[RULE_START + 6],
            hyper[RULE_START + 7],
        ),
    )


def _element(rule: Callable, slots: int, clipped: bool, copied: bool = True) -> Callable:
    """Return the update of element k of the flat vectors, `there` in the tiles."""

    def element(p, first, second, g, copy, k, there, numbers):
        decay, scale, h = numbers
        old = read(p, k, PARAMETERS)
        slope = read(g, there, GRADIENT)
        # The decay's product is the one that is fused: a scale of 1 then changes no bit.
        slope = decay * old + (slope * scale if clipped else slope)
        m = read(first, k, FIRST) if slots > 0 else slope
        v = read(second, k, SECOND) if slots > 1 else slope
        new, m, v = rule(old, slope, m, v, h)
        write(p, k, new, PARAMETERS)
        if slots > 0:
            write(first, k, m, FIRST)
        if slots > 1:
            write(second, k, v, SECOND)
        if copied:
            write(copy, there, new, COPY)
        return old

    return element


@functools.cache
def write_gradient(dtype: str, accumulate: bool) -> int:
    """Return the address of the leaf that keeps a tile of a gradient, with `update`'s parameters.

    Parameters
    ----------
    dtype : str
    accumulate : bool
        Whether it is added to what is there.

    Notes
    -----
    p is the flat gradient; first, second, copy, hyper, decay, scale and total are not used. Cost:
    one read and one or two accesses an element. Source: the derivation sheet's separate calls of a
    training step.
    """

    def keep(p, first, second, g, copy, rows, columns, stride, width, hyper, decay, scale, total):
        for r in range(rows):
            for j in range(columns):
                k = r * stride + j
                slope = read(g, r * width + j, GRADIENT)
                write(p, k, read(p, k, PARAMETERS) + slope if accumulate else slope, PARAMETERS)
        return 0

    kind = "accumulate" if accumulate else "store"
    return leaf(keep, f"gradient-{kind}-{dtype}", _signature(dtype)).address
