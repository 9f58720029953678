"""Who holds what when a warp multiplies matrices: which lane, which register, which element.

Plain functions of whole numbers: kernels compile them, and the emulated warp and the tests call
them. ``D = A B + C`` is computed by 32 lanes together: A (16 rows) is the left fragment of four
32-bit registers a lane, B (8 columns) the right one of two, C and D (16 x 8, float32) the sums of
four. A register of bfloat16 holds a pair along the reduction axis, the first in its low half; one
of tf32 holds one number. Source of every formula: PTX ISA, "Warp-level matrix instructions",
mma.m16n8k16 with .bf16, mma.m16n8k8 with .tf32, and ldmatrix.

A warp's tile of a result is 32 columns wide and 16 or 32 rows high, so of four fragments side by
side and one or two below each other. Rows and columns of it may be dealt to the fragments in any
order that every lane agrees on: slot s of the fragments holds row or column ``order(s)`` of the
tile. Two orders beside the plain one keep lanes out of each other's memory banks.
"""

LANES = 32
# Rows or columns of a warp's tile.
TILE = 32
# Rows of the left fragment and of the sums; columns of the right one and of the sums.
FRAGMENT_ROWS, FRAGMENT_COLUMNS = 16, 8
# ldmatrix moves matrices of eight rows of 16 bytes.
MATRIX_ROWS, MATRIX_BYTES = 8, 16


def group(lane):
    """Return the lane's row in a left fragment and its column in a right one."""
    return lane >> 2


def member(lane):
    """Return the number of the lane among the four of its group."""
    return lane & 3


def left_row(lane, register):
    """Return the row of A that one of four registers holds."""
    return group(lane) + 8 * (register & 1)


def left_column_bfloat16(lane, register):
    """Return the column of A of the first of the pair that one of four registers holds."""
    return 2 * member(lane) + 8 * (register >> 1)


def left_column_tf32(lane, register):
    """Return the column of A that one of four registers holds."""
    return member(lane) + 4 * (register >> 1)


def right_row_bfloat16(lane, register):
    """Return the row of B of the first of the pair that one of two registers holds."""
    return 2 * member(lane) + 8 * register


def right_row_tf32(lane, register):
    """Return the row of B that one of two registers holds."""
    return member(lane) + 4 * register


def right_column(lane, register):
    """Return the column of B that either register holds."""
    return group(lane) + 0 * register


def sum_row(lane, register):
    """Return the row of C and D that one of four registers holds."""
    return group(lane) + 8 * (register >> 1)


def sum_column(lane, register):
    """Return the column of C and D that one of four registers holds."""
    return 2 * member(lane) + (register & 1)


def matrix_row(lane):
    """Return the row, in a matrix that ldmatrix moves, whose half-words the lane receives.

    It receives two half-words in a register, `matrix_column` and the next; transposed, those of
    two rows and one column, with the two functions' values exchanged.
    """
    return lane >> 2


def matrix_column(lane):
    """Return the first column of the half-words that the lane receives (see `matrix_row`)."""
    return 2 * (lane & 3)


def address_down(lane, stride, across):
    """Return the offset that a lane gives to ldmatrix for four matrices in column-major order.

    The matrices are the quarters of a block: 8 rows further down is a distance of ``8 * stride``,
    one matrix to the right one of `across` elements. Lane ``8 q + r`` gives row r of matrix q. So
    the registers are a left fragment of a row-major A; transposed, two right fragments side by side
    of a row-major B.
    """
    matrix, row = lane >> 3, lane & 7
    return (row + 8 * (matrix & 1)) * stride + across * (matrix >> 1)


def address_across(lane, stride, across):
    """Return the same for the matrices in row-major order (see `address_down`).

    The registers are two right fragments, one below the other, of a column-major B (W as [n, k]);
    transposed, a left fragment of a column-major A.
    """
    matrix, row = lane >> 3, lane & 7
    return (row + 8 * (matrix >> 1)) * stride + across * (matrix & 1)


def address_interleaved(lane, stride, across):
    """Return `address_across` for right fragments whose columns are `interleaved`."""
    matrix, row = lane >> 3, lane & 7
    return interleaved(row + 8 * (matrix >> 1)) * stride + across * (matrix & 1)


def in_order(slot):
    """Return the row or column of a tile that a slot of its fragments holds: the same."""
    return slot


def interleaved(slot):
    """Return the row or column for a slot, even slots of a fragment before odd ones.

    A lane's sums are of two columns, slots 2m and 2m + 1: here the four lanes of a group write to
    columns m, then to m + 4, one after the other instead of every second one. With rows of
    32 a + 4 words the eight groups then write to 32 banks; in order they would meet in pairs.
    """
    return (slot & ~7) + ((slot & 7) >> 1) + 4 * (slot & 1)


def spread(slot):
    """Return the row or column for a slot, when tf32 is read along the rows of its matrix.

    Lane 4g + m then reads row k + m and column ``spread(g)``; with rows of 32 a + 4 words that is
    bank ``4 m + spread(g)``, so eight slots must be four columns and another four 16 further on, or
    lanes meet in pairs. Even slots are the former, for the sake of what a group writes (see
    `interleaved`).
    """
    return 4 * (slot >> 3) + ((slot & 7) >> 1) + 16 * (slot & 1)
