"""One tile of a product on tensor cores, by one warp: loads, multiplications, where sums belong.

A tile of the result is 32 columns wide and `height` fragments of 16 rows high, with its sums in
registers. Per step of the reduction axis a warp loads `height` left fragments and four right ones,
and multiplies each with each. Loads meet no bank twice: operands are rows of ``32 a + 4`` words
(bfloat16: ``16 a + 4``), and by their shape are read

- along the reduction axis by ldmatrix (eight rows of 16 bytes, 4 words apart modulo 32 or an odd
  multiple of it: eight distinct quads of banks);
- across it by ldmatrix.trans in bfloat16, and in tf32, which cannot be transposed in halves, by
  plain loads whose columns are dealt to lanes by `fragments.spread`.
"""

from typing import Any, NamedTuple

from numba import cuda, types

from fastmlp_kernels.algebra.constants import ZERO
from fastmlp_kernels.compile import cuda_function, cuda_inlined, cuda_part
from fastmlp_kernels.cuda.instructions import fragments, intrinsics
from fastmlp_kernels.cuda.instructions.fragments import FRAGMENT_COLUMNS, FRAGMENT_ROWS, TILE
from fastmlp_kernels.cuda.instructions.index32 import index32

# Registers of the four right fragments of a tile, and of the sums of one left fragment with them.
RIGHT_REGISTERS, ROW_SUMS = 8, 16
# Sums that an epilogue is called for before the others move up.
GROUP = 8

sum_row, sum_column = cuda_function(fragments.sum_row), cuda_function(fragments.sum_column)
group, member = cuda_function(fragments.group), cuda_function(fragments.member)
address_down = cuda_function(fragments.address_down)
address_across = cuda_function(fragments.address_across)
address_interleaved = cuda_function(fragments.address_interleaved)
spread = cuda_function(fragments.spread)


class Form(NamedTuple):
    """What differs between the precisions.

    Attributes
    ----------
    step : int
        Terms of the reduction axis that one instruction multiplies.
    quarter : int
        Elements of a row of a matrix that ldmatrix moves.
    multiply, to_operand, to_number : callable
    columns, backward_columns, gradient_rows : callable
        The orders of `fragments`: of the columns of a tile in `forward` and `weight_gradient`, of
        those in `backward`, of the rows in `weight_gradient`. Other rows are in order.
    """

    step: int
    quarter: int
    multiply: Any
    to_operand: Any
    to_number: Any
    columns: Any
    backward_columns: Any
    gradient_rows: Any


@cuda_part
def _same(value):
    return value


FORMS = {
    "bfloat16": Form(
        step=16,
        quarter=8,
        multiply=intrinsics.mma_bfloat16,
        to_operand=intrinsics.to_bfloat16,
        to_number=intrinsics.from_bfloat16,
        columns=fragments.in_order,
        backward_columns=fragments.in_order,
        gradient_rows=fragments.in_order,
    ),
    "tf32": Form(
        step=8,
        quarter=4,
        multiply=intrinsics.mma_tf32,
        to_operand=intrinsics.to_tf32,
        to_number=_same,
        columns=fragments.spread,
        backward_columns=fragments.interleaved,
        gradient_rows=fragments.spread,
    ),
}


class Side(NamedTuple):
    """How the fragments of one factor are loaded.

    Attributes
    ----------
    start : callable
        ``start(stride, lane)``: offset of the lane's first load from the tile's first element.
    load : callable
        ``load(operands, place, stride, registers)``: fills the registers of a step.
    along : bool
        Whether the reduction axis runs along the rows in memory; else down them.
    """

    start: Any
    load: Any
    along: bool


def left_along(form: Form, height: int) -> Side:
    """Return how to load `height` left fragments of a factor that is row-major, [row, term]."""
    quarter = form.quarter

    @cuda_part
    def start(stride, lane):
        return address_down(lane, stride, quarter)

    @cuda_inlined
    def load(operands, place, stride, registers):
        for m in range(height):
            found = intrinsics.load_matrix_x4(operands, place + index32(FRAGMENT_ROWS * m) * stride)
            for r in range(4):
                registers[4 * m + r] = found[r]

    return Side(start, load, True)


def left_across(form: Form, height: int) -> Side:
    """Return how to load `height` left fragments of a factor that lies as [term, row]."""
    if form.step == 8:
        return _left_across_tf32(height)

    @cuda_part
    def start(stride, lane):
        return address_across(lane, stride, 8)

    @cuda_inlined
    def load(operands, place, stride, registers):
        for m in range(height):
            at = place + index32(FRAGMENT_ROWS * m)
            found = intrinsics.load_matrix_x4_transposed(operands, at)
            for r in range(4):
                registers[4 * m + r] = found[r]

    return Side(start, load, False)


def _left_across_tf32(height: int) -> Side:
    @cuda_inlined
    def load(operands, place, stride, registers):
        for m in range(height):
            for r in range(4):
                # Slots 8 further on are 4 rows on, terms 4 further on are 4 rows of memory.
                at = place + index32(4 * (2 * m + (r & 1))) + index32(4 * (r >> 1)) * stride
                registers[4 * m + r] = intrinsics.load_bits(operands, at)

    return Side(_across_tf32_start, load, False)


@cuda_part
def _across_tf32_start(stride, lane):
    return member(lane) * stride + spread(group(lane))


def right_along(form: Form) -> Side:
    """Return how to load four right fragments of a factor that lies as [column, term]."""
    quarter = form.quarter
    address = address_across if form.backward_columns is fragments.in_order else address_interleaved

    @cuda_part
    def start(stride, lane):
        return address(lane, stride, quarter)

    @cuda_inlined
    def load(operands, place, stride, registers):
        for pair in range(2):
            at = place + index32(2 * FRAGMENT_COLUMNS * pair) * stride
            found = intrinsics.load_matrix_x4(operands, at)
            for r in range(4):
                registers[4 * pair + r] = found[r]

    return Side(start, load, True)


def right_across(form: Form) -> Side:
    """Return how to load four right fragments of a factor that is row-major, [term, column]."""
    if form.step == 8:
        return Side(_across_tf32_start, _right_across_tf32_load, False)

    @cuda_part
    def start(stride, lane):
        return address_down(lane, stride, 8)

    @cuda_inlined
    def load(operands, place, stride, registers):
        for pair in range(2):
            at = place + index32(2 * FRAGMENT_COLUMNS * pair)
            found = intrinsics.load_matrix_x4_transposed(operands, at)
            for r in range(4):
                registers[4 * pair + r] = found[r]

    return Side(start, load, False)


@cuda_inlined
def _right_across_tf32_load(operands, place, stride, registers):
    for n in range(4):
        for r in range(2):
            at = place + index32(4 * n) + index32(4 * r) * stride
            registers[2 * n + r] = intrinsics.load_bits(operands, at)


def multiply_tile(form: Form, height: int, left_side: Side, right_side: Side) -> Any:
    """Return ``multiply(operands, left, left_stride, right, right_stride, depth, sums, lane)``.

    `left` and `right` are the offsets of the first terms of the tile's first row and column,
    `depth` the length of the reduction axis. ``sums[16 * m + 4 * n + r]`` is register r of the sum
    of left fragment m and right fragment n.
    """
    step, mma = form.step, form.multiply
    left_registers = 4 * height
    left_start, left_load, left_along = left_side
    right_start, right_load, right_along = right_side

    @cuda_inlined
    def multiply(operands, left, left_stride, right, right_stride, depth, sums, lane):
        a = cuda.local.array(left_registers, types.uint32)
        b = cuda.local.array(RIGHT_REGISTERS, types.uint32)
        left += left_start(left_stride, lane)
        right += right_start(right_stride, lane)
        left_step = index32(step) if left_along else step * left_stride
        right_step = index32(step) if right_along else step * right_stride
        k = index32(0)
        while k < depth:
            left_load(operands, left, left_stride, a)
            right_load(operands, right, right_stride, b)
            for m in range(height):
                for n in range(4):
                    s = ROW_SUMS * m + 4 * n
                    found = mma(
                        (a[4 * m], a[4 * m + 1], a[4 * m + 2], a[4 * m + 3]),
                        (b[2 * n], b[2 * n + 1]),
                        (sums[s], sums[s + 1], sums[s + 2], sums[s + 3]),
                    )
                    for r in range(4):
                        sums[s + r] = found[r]
            left += left_step
            right += right_step
            k += step

    return multiply


class Places(NamedTuple):
    """Where the sums of a tile of `height` left fragments lie in the result.

    Attributes
    ----------
    top : callable
        ``top(unit)``: the row of the result that the offsets of a row of tiles count from.
    row, column : callable
        ``row(s, lane)``: offset in the tile of sum number s (see `multiply_tile`).
    """

    top: Any
    row: Any
    column: Any


def tile_places(height: int, row_order: Any, column_order: Any) -> Places:
    """Return the places for rows and columns that are dealt to slots in the given orders."""
    # Where a tile of one fragment is the second one of its 32 rows.
    second = row_order(FRAGMENT_ROWS)
    rows, columns = cuda_function(row_order), cuda_function(column_order)

    @cuda_part
    def top(unit):
        fragment = unit * height
        return TILE * (fragment // 2) + second * (fragment & 1)

    @cuda_part
    def row(s, lane):
        return rows(FRAGMENT_ROWS * (s // ROW_SUMS) + sum_row(lane, s & 3))

    @cuda_part
    def column(s, lane):
        return columns(FRAGMENT_COLUMNS * (s % ROW_SUMS // 4) + sum_column(lane, s & 3))

    return Places(top, row, column)


def hand_out(height: int, one: Any) -> Any:
    """Return ``hand_out(context, sums, lane)``, which adds up ``one(context, lane, s, value)``.

    It is called for every sum of a tile, by its number. An epilogue is long, so there are eight
    copies of it and not one for each sum; and as registers cannot be numbered, the sums move up by
    eight places after each eight. Loops over an array of the thread's own must be short enough for
    the compiler to unroll, or the array lies in local memory: hence the calls one by one.
    """
    count = ROW_SUMS * height

    @cuda_inlined
    def hand(context, sums, lane):
        s, seen = index32(0), ZERO
        while s < count:
            seen += one(context, lane, s, sums[0])
            seen += one(context, lane, s + 1, sums[1])
            seen += one(context, lane, s + 2, sums[2])
            seen += one(context, lane, s + 3, sums[3])
            seen += one(context, lane, s + 4, sums[4])
            seen += one(context, lane, s + 5, sums[5])
            seen += one(context, lane, s + 6, sums[6])
            seen += one(context, lane, s + 7, sums[7])
            for k in range(count - GROUP):
                sums[k] = sums[k + GROUP]
            s += GROUP
        return seen

    return hand
