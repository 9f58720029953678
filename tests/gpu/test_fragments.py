"""Which lane holds what of a matrix: against the PTX ISA's formulas, and as a warp in NumPy."""

import numpy as np
import pytest

from fastmlp_kernels.cuda.instructions import emulation, fragments
from fastmlp_kernels.cuda.on_chip.products import tensor_missing

LANES = range(fragments.LANES)
LANE = np.arange(fragments.LANES)
PRECISIONS = ("bfloat16", "tf32")
# Widths of padded rows in shared memory; their strides are 16 bytes longer.
WIDTHS = (32, 64, 96, 224)
ITEM = {"bfloat16": 2, "tf32": 4}


def stride(width, precision):
    return width + 16 // ITEM[precision]


def isa_left(precision, lane, i):
    """Return row and column of a_i, as the section of the instruction says."""
    group, thread = lane // 4, lane % 4
    if precision == "tf32":
        return (group if i in (0, 2) else group + 8), (thread if i in (0, 1) else thread + 4)
    row = group if 0 <= i < 2 or 4 <= i < 6 else group + 8
    column = thread * 2 + (i & 1) if i < 4 else thread * 2 + (i & 1) + 8
    return row, column


def isa_right(precision, lane, i):
    group, thread = lane // 4, lane % 4
    if precision == "tf32":
        return (thread if i == 0 else thread + 4), group
    return (thread * 2 + (i & 1) if i < 2 else thread * 2 + (i & 1) + 8), group


def isa_sum(lane, i):
    group, thread = lane // 4, lane % 4
    return (group if i < 2 else group + 8), thread * 2 + (i & 1)


def left_elements(precision):
    """Return (lane, element, row, column) for every element of A, from the functions."""
    for lane in LANES:
        for register in range(4):
            row = fragments.left_row(lane, register)
            if precision == "tf32":
                yield lane, register, row, fragments.left_column_tf32(lane, register)
            else:
                for half in range(2):
                    column = fragments.left_column_bfloat16(lane, register) + half
                    yield lane, 2 * register + half, row, column


def right_elements(precision):
    for lane in LANES:
        for register in range(2):
            column = fragments.right_column(lane, register)
            if precision == "tf32":
                yield lane, register, fragments.right_row_tf32(lane, register), column
            else:
                for half in range(2):
                    row = fragments.right_row_bfloat16(lane, register) + half
                    yield lane, 2 * register + half, row, column


def sum_elements():
    for lane in LANES:
        for r in range(4):
            yield lane, r, fragments.sum_row(lane, r), fragments.sum_column(lane, r)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_fragments_are_those_of_the_instruction_set(precision):
    for lane, i, *place in left_elements(precision):
        assert tuple(place) == isa_left(precision, lane, i)
    for lane, i, *place in right_elements(precision):
        assert tuple(place) == isa_right(precision, lane, i)
    for lane, i, *place in sum_elements():
        assert tuple(place) == isa_sum(lane, i)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_element_is_held_once(precision):
    depth = {"bfloat16": 16, "tf32": 8}[precision]
    for elements, rows, columns in (
        (left_elements(precision), 16, depth),
        (right_elements(precision), depth, 8),
        (sum_elements(), 16, 8),
    ):
        places = sorted((row, column) for _, _, row, column in elements)
        assert places == [(i, j) for i in range(rows) for j in range(columns)]


@pytest.mark.parametrize(
    "order", [fragments.in_order, fragments.interleaved, fragments.spread], ids=lambda f: f.__name__
)
def test_an_order_deals_every_row_once(order):
    assert sorted(order(s) for s in range(fragments.TILE)) == list(range(fragments.TILE))


def test_the_halves_of_a_tile_in_an_order_are_a_shift_apart():
    """What lets a tile of one fragment be the second one of its 32 rows."""
    for order in (fragments.in_order, fragments.spread):
        for s in range(fragments.FRAGMENT_ROWS):
            assert order(s + fragments.FRAGMENT_ROWS) == order(s) + order(fragments.FRAGMENT_ROWS)


def random_operands(shape, precision, seed):
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    if precision == "bfloat16":
        return emulation.bfloat16_bits(values)
    return emulation.tf32_values(values)


def exact(operands):
    return emulation.bfloat16_values(operands) if operands.dtype == np.uint16 else operands


def load_matrix(memory, places, transposed=False):
    """Do what ldmatrix does, as a warp in NumPy."""
    flat = memory.ravel()
    count = 16 // memory.itemsize
    rows = np.stack([flat[place : place + count] for place in places])
    return emulation.warp_matrices(rows.view(np.uint16), transposed)


def padded(matrix):
    """Return a matrix with 16 bytes of something else after each row."""
    spare = np.full((len(matrix), 16 // matrix.itemsize), 77, matrix.dtype)
    return np.hstack([matrix, spare])


def test_ldmatrix_moves_eight_rows_and_their_transposes():
    memory = np.arange(4 * 64, dtype=np.uint16).reshape(4, 8, 8)
    places = 8 * np.arange(32)
    plain, turned = (load_matrix(memory, places, transposed) for transposed in (False, True))
    for lane in LANES:
        for q in range(4):
            # PTX ISA, ldmatrix: thread T holds elements 2 (T % 4) and the next of row T / 4.
            row, column = lane // 4, 2 * (lane % 4)
            low, high = memory[q, row, column], memory[q, row, column + 1]
            assert plain[lane, q] == int(low) | int(high) << 16
            low, high = memory[q, column, row], memory[q, column + 1, row]
            assert turned[lane, q] == int(low) | int(high) << 16


WARP = {"bfloat16": emulation.warp_bfloat16, "tf32": emulation.warp_tf32}


def product(precision, a, b, C):
    rows, columns = (
        np.array([[f(t, r) for r in range(4)] for t in LANES])
        for f in (fragments.sum_row, fragments.sum_column)
    )
    D = np.full((16, 8), np.nan)
    D[rows, columns] = WARP[precision](a, b, C[rows, columns])
    return D


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_warp_multiplies_a_row_major_by_a_column_major_matrix(precision):
    depth, quarter = {"bfloat16": (16, 8), "tf32": (8, 4)}[precision]
    A, W = random_operands((16, depth), precision, 1), random_operands((16, depth), precision, 2)
    C = np.random.default_rng(3).normal(size=(16, 8)).astype(np.float32)
    step = stride(depth, precision)
    a = load_matrix(padded(A), fragments.address_down(LANE, step, quarter))
    b = load_matrix(padded(W), fragments.address_across(LANE, step, quarter))
    for tile in range(2):
        D = product(precision, a, b[:, 2 * tile : 2 * tile + 2], C)
        wanted = exact(A).astype(float) @ exact(W)[8 * tile : 8 * tile + 8].astype(float).T + C
        assert np.allclose(D, wanted, rtol=0, atol=1e-5)


def test_a_warp_multiplies_the_other_two_layouts():
    A, B = random_operands((16, 16), "bfloat16", 1), random_operands((16, 16), "bfloat16", 2)
    C = np.random.default_rng(3).normal(size=(16, 8)).astype(np.float32)
    a = load_matrix(padded(A), fragments.address_across(LANE, 24, 8), transposed=True)
    b = load_matrix(padded(B), fragments.address_down(LANE, 24, 8), transposed=True)
    for tile in range(2):
        D = product("bfloat16", a, b[:, 2 * tile : 2 * tile + 2], C)
        wanted = exact(A).astype(float).T @ exact(B)[:, 8 * tile : 8 * tile + 8].astype(float) + C
        assert np.allclose(D, wanted, rtol=0, atol=1e-5)


def test_interleaved_columns_come_from_interleaved_rows():
    W = random_operands((16, 8), "tf32", 2)
    b = load_matrix(padded(W), fragments.address_interleaved(LANE, 12, 4)).view(np.float32)
    for lane in LANES:
        for register in range(4):
            column = fragments.interleaved(8 * (register // 2) + lane // 4)
            assert b[lane, register] == W[column, lane % 4 + 4 * (register % 2)]


def banks(places, precision):
    """Return the banks of elements, counted from the start of an aligned matrix."""
    return np.asarray(places) * ITEM[precision] // 4 % 32


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_that_ldmatrix_reads_together_share_no_bank(precision, width):
    step, quarter = stride(width, precision), 16 // ITEM[precision]
    functions = [fragments.address_down, fragments.address_across]
    functions += [fragments.address_interleaved] * (precision == "tf32")
    for function in functions:
        for q in range(4):
            first = banks(function(LANE[8 * q : 8 * q + 8], step, quarter), precision)
            assert sorted(first) == list(range(0, 32, 4))


@pytest.mark.parametrize("width", WIDTHS)
def test_lanes_that_read_tf32_across_rows_share_no_bank(width):
    step = stride(width, "tf32")
    for q in range(4):
        for half in range(2):
            terms = LANE % 4 + 4 * half
            places = terms * step + fragments.spread(8 * q + LANE // 4)
            assert sorted(banks(places, "tf32")) == list(range(32))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("order", [fragments.interleaved, fragments.spread])
def test_lanes_that_write_tf32_share_no_bank(width, order):
    for register in range(4):
        for n in range(4):
            columns = order(8 * n + fragments.sum_column(LANE, register))
            places = fragments.sum_row(LANE, register) * stride(width, "tf32") + columns
            assert len(set(banks(places, "tf32"))) == 32


@pytest.mark.parametrize("width", WIDTHS)
def test_lanes_that_write_bfloat16_share_no_bank(width):
    for register in range(4):
        places = fragments.sum_row(LANE, register) * stride(width, "bfloat16")
        places = places + fragments.sum_column(LANE, register)
        assert len(set(banks(places, "bfloat16"))) == 32


def test_columns_in_order_would_share_banks():
    """The two orders are there for a reason, and the searches above can fail."""
    across = LANE % 4 * 36 + fragments.in_order(LANE // 4)
    assert len(set(banks(across, "tf32"))) < 32
    written = LANE // 4 * 36 + fragments.sum_column(LANE, 0)
    assert len(set(banks(written, "tf32"))) < 32


def neighbours(bits, dropped):
    """Return the two values that keep the high bits, in float64, and whether the lower is even.

    The one after the largest is taken to be as far on as its neighbours.
    """
    unit = np.uint64(1 << dropped)
    down = bits.astype(np.uint64) // unit * unit
    low = down.astype(np.uint32).view(np.float32).astype(np.float64)
    high = (down + unit).astype(np.uint32).view(np.float32).astype(np.float64)
    high = np.where(np.isinf(high), np.copysign(2.0**128, high), high)
    return low, high, down // unit % np.uint64(2) == 0


def with_tails(highs, dropped):
    """Return float32 numbers whose high bits are given, with tails at and beside a tie."""
    half = 1 << dropped - 1
    tails = np.array([0, 1, half - 1, half, half + 1, 2 * half - 1], np.uint32)
    return ((highs.astype(np.uint32) << dropped)[:, None] + tails).ravel().view(np.float32)


def test_every_bfloat16_and_all_ties_round_to_the_nearest_even():
    x = with_tails(np.arange(1 << 16), 16)
    rounded = emulation.bfloat16_values(emulation.bfloat16_bits(x)).astype(np.float64)
    finite = np.isfinite(x)
    low, high, even = neighbours(x[finite].view(np.uint32), 16)
    value = x[finite].astype(np.float64)
    to_low, to_high = np.abs(value - low), np.abs(high - value)
    wanted = np.where((to_low < to_high) | ((to_low == to_high) & even), low, high)
    wanted = np.where(np.abs(wanted) == 2.0**128, np.copysign(np.inf, wanted), wanted)
    assert np.array_equal(rounded[finite], wanted)
    assert np.array_equal(rounded[np.isinf(x)], x[np.isinf(x)])
    assert np.isnan(rounded[np.isnan(x)]).all()


def test_tf32_rounds_ties_away_from_zero():
    highs = np.random.default_rng(0).integers(0, 1 << 19, 20000)
    x = with_tails(np.append(highs, [0, 1 << 18, 0x3FBFF, 0x3FC00, 0x7FC00, 0x3FFFF]), 13)
    rounded = emulation.tf32_values(x).astype(np.float64)
    finite = np.isfinite(x)
    low, high, _ = neighbours(x[finite].view(np.uint32), 13)
    value = x[finite].astype(np.float64)
    wanted = np.where(np.abs(value - low) < np.abs(high - value), low, high)
    wanted = np.where(np.abs(wanted) == 2.0**128, np.copysign(np.inf, wanted), wanted)
    assert np.array_equal(rounded[finite], wanted)
    assert np.array_equal(rounded[np.isinf(x)], x[np.isinf(x)])
    assert np.isnan(rounded[np.isnan(x)]).all() and np.isnan(x).any() and np.isinf(x).any()


def test_an_operand_that_is_no_tf32_is_refused():
    a, b = np.zeros((32, 4), np.uint32), np.zeros((32, 2), np.uint32)
    a[3, 1] = np.float32(1 / 3).view(np.uint32)
    with pytest.raises(ValueError, match="got an operand that is no tf32, wanted to_tf32 of it"):
        emulation.warp_tf32(a, b, np.zeros((32, 4), np.float32))


def test_capabilities_without_tensor_products_are_named():
    assert tensor_missing((8, 0)) is None and tensor_missing((10, 0)) is None
    assert tensor_missing((7, 5)) == (
        "capability: got 7.5, wanted 8.0 or above for tf32 and bfloat16"
    )
