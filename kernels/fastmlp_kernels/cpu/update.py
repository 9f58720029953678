"""What becomes of a finished tile of a gradient: an optimizer's step, or a place in memory."""

import functools
from collections.abc import Callable

from numba.core import types

from fastmlp_kernels.algebra import OPTIMIZERS
from fastmlp_kernels.algebra.elementary import plus
from fastmlp_kernels.algebra.optimizers import RULE_START, OptimizerRule
from fastmlp_kernels.compile import leaf
from fastmlp_kernels.compilers import VectorCompiler
from fastmlp_kernels.cpu.activation import NUMBERS
from fastmlp_kernels.cpu.intrinsics import read, write
from fastmlp_kernels.cpu.simd import VECTORS_PER_PANEL
from fastmlp_kernels.problem import Problem

WORD = types.int64
# Streams of memory that never overlap: see `intrinsics.read`.
PARAMETERS, FIRST, SECOND, LEFT, GRADIENT, COPY = range(6)


def _signature(dtype):
    pointer = types.CPointer(NUMBERS[dtype])
    total = types.CPointer(types.float64)
    return WORD(*[pointer] * 6, WORD, WORD, WORD, WORD, pointer, pointer, pointer, total)


@functools.cache
def update(
    name: str,
    dtype: str,
    panel: int,
    penalized: bool = False,
    clipped: bool = False,
    in_panels: bool = False,
    one_row: bool = False,
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
    in_panels : bool
        Whether the parameters are those of the tile of panels. The flat ones are then out of date
        afterwards, but for rows that are much shorter than a vector.
    one_row : bool
        Whether the gradient is the product of `left`, one number a run, and of g, one row.

    Notes
    -----
    The leaf is ``(p, first, second, left, g, copy, rows, columns, stride, width, hyper, decay,
    scale, total)``: `rows` runs of `columns` elements, `stride` apart in the flat vectors p, first
    and second (the parameters and the optimizer's state: those that the rule does not use are not
    touched) and `width` apart in the tiles g and copy. `hyper` is the step's row, `decay` the one
    of its two decays that holds here; the sum of squares goes to `total` (float64, summed in
    `dtype`). None of the arrays overlap. Afterwards g holds nothing of use, unless it is one row.
    Cost: about 12 flops and 2 to 8 memory accesses a parameter. Source: `algebra.optimizers`.
    """
    step = _step(OPTIMIZERS[name], panel, penalized, clipped, in_panels, one_row)
    ways = {"-penalized": penalized, "-clipped": clipped, "-panels": in_panels, "-row": one_row}
    kind = f"tile{panel}" + "".join(way for way, is_so in ways.items() if is_so)
    name = f"update-{name}-{kind}-{dtype}"
    return leaf(step, name, _signature(dtype), compiler=VectorCompiler).address


def _step(  # noqa: C901 (loops that are compiled as one function)
    row: OptimizerRule, panel: int, penalized: bool, clipped: bool, in_panels: bool, one_row: bool
) -> Callable:
    """Return what `update` compiles."""
    element = _element(row.update, row.slots, clipped, in_panels, one_row)
    in_run = _element(row.update, row.slots, clipped, copied=False)
    in_one_run = row.slots == 2 and not penalized and not one_row
    # Where nothing but tiles is touched, what pads a row may be computed too: it stays 0.
    padded, lanes = in_panels and row.slots == 0 and not penalized, panel // VECTORS_PER_PANEL
    # Closed over, as `leaf` compiles what a function closes over.
    numbers, add = _numbers, plus

    def step(  # noqa: C901 (as above)
        p, first, second, left, g, copy, rows, columns, stride, width, hyper, decay, scale, total
    ):
        h = numbers(hyper, decay, scale)
        squares = decay[0] - decay[0]
        if columns == panel:
            # A whole row of a panel, of a length known here, is two vectors and no loop.
            for r in range(rows):
                for j in range(panel):
                    places = (r * stride + j, r * panel + j, r, j)
                    old = element(p, first, second, left, g, copy, places, h)
                    if penalized:
                        squares = add(squares, old * old)
        elif padded and rows > 1 and columns > lanes:
            for r in range(rows):
                for j in range(panel):
                    places = (r * stride + j, r * panel + j, r, j)
                    element(p, first, second, left, g, copy, places, h)
        elif padded and rows > 1:
            for r in range(rows):
                for j in range(lanes):
                    places = (r * stride + j, r * panel + j, r, j)
                    element(p, first, second, left, g, copy, places, h)
        elif in_one_run and columns == stride and 2 * columns < panel:
            # Rows shorter than a vector follow each other without a gap. Once those of the tile do
            # too, all are one run of vectors: 0.6 of the time for 4 columns of Adam (AVX2).
            for r in range(1, rows):
                for j in range(columns):
                    write(g, r * columns + j, read(g, r * width + j, GRADIENT), GRADIENT)
            for k in range(rows * columns):
                in_run(p, first, second, left, g, copy, (k, k, k, k), h)
            for r in range(rows):
                for j in range(columns):
                    write(copy, r * width + j, read(p, r * columns + j, PARAMETERS), COPY)
        else:
            for r in range(rows):
                for j in range(columns):
                    places = (r * stride + j, r * width + j, r, j)
                    old = element(p, first, second, left, g, copy, places, h)
                    if penalized:
                        squares = add(squares, old * old)
        if penalized:
            total[0] = squares
        return 0

    return step


def updates_of(
    problem: Problem, panel: int, penalized: bool = False, in_panels: bool = False
) -> tuple[int, int]:
    """Return the addresses of a problem's update, and of that by the gradient of a row.

    The second is 0 unless an epoch has several batches of a single row, whose gradient need not be
    written down.
    """
    row, dtype, clipped = problem.optimizer, problem.dtype, problem.clipping == "norm"
    found = update(row, dtype, panel, penalized, clipped, in_panels)
    if problem.batch_size > 1 or not in_panels or penalized or problem.clipping != "none":
        return found, 0
    return found, update(row, dtype, panel, in_panels=True, one_row=True)


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


def _element(
    rule: Callable,
    slots: int,
    clipped: bool,
    in_panels: bool = False,
    one_row: bool = False,
    copied: bool = True,
) -> Callable:
    """Return the update of an element: of the flat vectors, of the tiles, of its run and column."""

    def element(p, first, second, left, g, copy, places, numbers):
        decay, scale, h = numbers
        k, there, run, column = places
        old = read(copy, there, COPY) if in_panels else read(p, k, PARAMETERS)
        if one_row:
            # As the sum over rows begins with it: a product may be -0.
            zero = decay - decay
            slope = read(left, run, LEFT) * read(g, column, GRADIENT) + zero
        else:
            slope = read(g, there, GRADIENT)
        # The decay's product is the one that is fused: a scale of 1 then changes no bit.
        slope = decay * old + (slope * scale if clipped else slope)
        m = read(first, k, FIRST) if slots > 0 else slope
        v = read(second, k, SECOND) if slots > 1 else slope
        new, m, v = rule(old, slope, m, v, h)
        if not in_panels:
            write(p, k, new, PARAMETERS)
        if slots > 0:
            write(first, k, m, FIRST)
        if slots > 1:
            write(second, k, v, SECOND)
        if copied or in_panels:
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
    p is the flat gradient; first, second, left, copy, hyper, decay, scale and total are not used.
    Cost: one read and one or two accesses an element. Source: the derivation sheet's separate calls
    of a training step.
    """

    def keep(  # as `update`'s
        p, first, second, left, g, copy, rows, columns, stride, width, hyper, decay, scale, total
    ):
        for r in range(rows):
            for j in range(columns):
                k = r * stride + j
                slope = read(g, r * width + j, GRADIENT)
                write(p, k, read(p, k, PARAMETERS) + slope if accumulate else slope, PARAMETERS)
        return 0

    kind = "accumulate" if accumulate else "store"
    return leaf(keep, f"gradient-{kind}-{dtype}", _signature(dtype)).address
