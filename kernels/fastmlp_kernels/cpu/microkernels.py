"""Register tiles and data movement in vector code: the innermost loops of every product.

Every matrix is kept in *column panels* ``[columns / width][rows][width]``, the width being two
vectors. A tile of an output is then stored as it is read later, and no operand is ever packed:

    forward, backward-data   out[m, :] += left[m, k] * right[k, :]      left[m, k] at m * width + k
    weight gradient          out[m, :] += left[k, m] * right[k, :]      left[k, m] at k * width + m

Left elements are broadcast from constant offsets of one pointer, right ones are whole vectors, and
the accumulators stay in registers over the whole sum. Each element of the output is one chain of
fused multiply-adds with k ascending, whatever the tile: tiles, blocks and threads do not change a
bit of the result.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from llvmlite import ir

from fastmlp_kernels.cpu.row_copies import note
from fastmlp_kernels.cpu.simd import VECTORS_PER_PANEL, Emitter

PRODUCT_PARAMETERS = 9
# Iterations of the sum in one pass of its loop: hides the loop's own instructions.
UNROLL = 4
# Rows that the product of a single output takes at once: each weight is then loaded once for them.
DOT_ROWS = 4


def product_name(rows: int, vectors: int) -> str:
    """Return the symbol of a forward tile."""
    return f"product_{rows}x{vectors}"


def gradient_name(rows: int, vectors: int) -> str:
    """Return the symbol of a weight-gradient tile."""
    return f"gradient_{rows}x{vectors}"


@contextmanager
def successive(
    e: Emitter, tiles: ir.Value, places: Sequence[tuple[ir.Value, ir.Value | int]]
) -> Iterator[list[ir.Value]]:
    """Emit a loop over tiles; give its body the addresses of each one's arrays.

    `places` holds the first tile's, and the elements from one tile to the next. A tile of few k is
    done in less time than a call takes.
    """
    slots = [e.variable(first) for first, _ in places]
    with e.repeat(tiles):
        yield [e.get(slot) for slot in slots]
        for slot, (_, step) in zip(slots, places, strict=True):
            e.advance(slot, step)


def multiply_rows(e: Emitter, rows: int, vectors: int, left_at, left, right, totals) -> None:
    """Emit one k: `rows` broadcasts times `vectors` vectors, added to the totals."""
    base = e.get(right)
    values = [e.load(base, v * e.lanes) for v in range(vectors)]
    start = e.get(left)
    for m in range(rows):
        factor = e.broadcast(start, left_at(m))
        for v in range(vectors):
            slot = totals[m][v]
            e.put(slot, e.multiply_add(factor, values[v], e.get(slot, e.vector)))


def _sum_over(e: Emitter, rows: int, vectors: int, strides, left, right, totals, count) -> None:
    """Emit the loop over `count` values of k, four at a time and then one."""
    of_row, of_step = strides
    fours = e.builder.lshr(count, e.word(UNROLL.bit_length() - 1))
    with e.repeat(fours):
        for step in range(UNROLL):
            right_now = e.variable(e.address(e.get(right), step * e.panel))
            multiply_rows(
                e,
                rows,
                vectors,
                lambda m, step=step: m * of_row + step * of_step,
                left,
                right_now,
                totals,
            )
        e.advance(left, UNROLL * of_step)
        e.advance(right, UNROLL * e.panel)
    with e.repeat(e.builder.and_(count, e.word(UNROLL - 1))):
        multiply_rows(e, rows, vectors, lambda m: m * of_row, left, right, totals)
        e.advance(left, of_step)
        e.advance(right, e.panel)


def load_totals(e: Emitter, rows: int, vectors: int, initial, initial_stride) -> list:
    """Emit the start of a tile: a variable for each of its vectors, with its initial value."""
    totals = []
    for m in range(rows):
        start = e.address(initial, e.builder.mul(initial_stride, e.word(m)))
        totals.append([e.variable(e.load(start, v * e.lanes)) for v in range(vectors)])
    return totals


def store_totals(e: Emitter, totals: list, out) -> None:
    """Emit the end of a tile: its variables, written to rows of a panel."""
    for m, row in enumerate(totals):
        for v, slot in enumerate(row):
            e.store(e.get(slot, e.vector), out, m * e.panel + v * e.lanes)


def fill_narrow(e: Emitter, totals: list, vectors: int) -> list:
    """Return a tile's variables and zeros for the vectors of a panel that it leaves out.

    A narrow tile leaves no stale half behind: activations work on whole panels, in place, and what
    they make of their own old results may overflow.
    """
    zero = e.variable(ir.Constant(e.vector, [0.0] * e.lanes))
    return [row + [zero] * (VECTORS_PER_PANEL - vectors) for row in totals]


def emit_product(e: Emitter, rows: int, vectors: int) -> None:
    """Emit ``product_{rows}x{vectors}``: tiles of a forward or backward-data product.

    Parameters of the function (all words)
    --------------------------------------
    left : address of element (0, 0) of `rows` rows in the first panel
    panel_stride : elements between panels of the left operand
    right : address of row 0 of a column panel
    count : k, over all panels
    initial, initial_stride : address of the first row of initial values; elements between rows
        (0 repeats one row: a bias)
    out : address of the tile's first row; may be `initial`
    kept : not read; tiles that end with an activation have it
    tiles : how many there are, each of the rows after those of the one before; only the tallest
        tiles are ever more than one, and others do not read it

    Notes
    -----
    Returns the largest magnitude stored, as bits. With fewer vectors than a panel has, the rest of
    the tile's rows is zero. Cost: ``2 * tiles * rows * vectors * lanes * count`` flops. Accuracy:
    one chain of fused multiply-adds.
    """
    arguments = e.begin(product_name(rows, vectors), PRODUCT_PARAMETERS)
    seen = e.variable(ir.Constant(e.bits, [0] * e.lanes))
    with product_tiles(e, rows, vectors, *arguments) as (totals, out, _):
        for slot in itertools.chain.from_iterable(totals):
            note(e, seen, e.get(slot, e.vector))
        store_totals(e, fill_narrow(e, totals, vectors), out)
    e.end(e.largest(e.get(seen, e.bits)))


@contextmanager
def product_tiles(
    e: Emitter, rows: int, vectors: int, left, panel_stride, right, count, *ending
) -> Iterator[tuple[list, ir.Value, ir.Value]]:
    """Emit a loop over tiles of `emit_product`; give its body the variables of one's sums.

    Beside them the addresses of the tile's first row, where it is stored, and in `kept`.
    """
    initial, initial_stride, out, kept, tiles = ending
    if rows < e.target.row_tiles[0]:
        # Without a loop, whose own registers would have to be saved: 10 % of a step of 2-20-5.
        operands = left, panel_stride, right, count, initial, initial_stride
        yield product_totals(e, rows, vectors, *operands), out, kept
        return
    size = rows * e.panel
    begin = initial, e.builder.mul(initial_stride, e.word(rows))
    with successive(e, tiles, [(left, size), begin, (out, size), (kept, size)]) as places:
        from_row, above, here, below = places
        operands = from_row, panel_stride, right, count, above, initial_stride
        yield product_totals(e, rows, vectors, *operands), here, below


def product_totals(
    e: Emitter, rows, vectors, left, panel_stride, right, count, initial, initial_stride
) -> list:
    """Emit the sums of a tile of `emit_product`; return its variables."""
    totals = load_totals(e, rows, vectors, initial, initial_stride)
    left_slot, right_slot, rest = e.variable(left), e.variable(right), e.variable(count)
    panel = e.word(e.panel)
    # Rounded up: the last panel of k may be a part of one.
    panels = e.builder.udiv(e.builder.add(count, e.word(e.panel - 1)), panel)
    with e.repeat(panels):
        here = e.smaller(e.get(rest), panel)
        start = e.get(left_slot)
        _sum_over(e, rows, vectors, (e.panel, 1), left_slot, right_slot, totals, here)
        e.put(left_slot, e.address(start, panel_stride))
        e.put(rest, e.builder.sub(e.get(rest), here))
    return totals


def emit_gradient(e: Emitter, rows: int, vectors: int) -> None:
    """Emit ``gradient_{rows}x{vectors}``: tiles of a weight gradient.

    Parameters of the function (all words)
    --------------------------------------
    left : address of feature 0 of the first row in a panel of activations
    right : address of the first row in a panel of dZ
    count : rows summed over
    initial, initial_stride, out : as in `emit_product`
    tiles : how many there are, each of the features after those of the one before

    Notes
    -----
    Cost: ``2 * tiles * rows * vectors * lanes * count`` flops. Accuracy: one chain of fused
    multiply-adds an element, rows ascending.
    """
    arguments = e.begin(gradient_name(rows, vectors), 7)
    left, right, count, initial, initial_stride, out, tiles = arguments
    begin = initial, e.builder.mul(initial_stride, e.word(rows))
    with successive(e, tiles, [(left, rows), begin, (out, rows * e.panel)]) as places:
        from_feature, above, here = places
        totals = load_totals(e, rows, vectors, above, initial_stride)
        slots = e.variable(from_feature), e.variable(right)
        _sum_over(e, rows, vectors, (1, e.panel), *slots, totals, count)
        store_totals(e, totals, here)
    e.end()


def emit_column_sum(e: Emitter) -> None:
    """Emit ``column_sum(panel, rows, out)``: the sum of the rows of a panel, rows ascending."""
    panel, rows, out = e.begin("column_sum", 3)
    zero = ir.Constant(e.vector, [0.0] * e.lanes)
    totals = [e.variable(zero) for _ in range(VECTORS_PER_PANEL)]
    source = e.variable(panel)
    with e.repeat(rows):
        start = e.get(source)
        for v, slot in enumerate(totals):
            e.put(slot, e.builder.fadd(e.get(slot, e.vector), e.load(start, v * e.lanes)))
        e.advance(source, e.panel)
    store_totals(e, [totals], out)
    e.end()


def emit_transpose(e: Emitter) -> None:
    """Emit ``transpose``: rows of one panel, to columns of the panels of the transposed matrix.

    Parameters of the function (all words)
    --------------------------------------
    source, out : address of the first row, in its panel; of the first column
    blocks : rows, in vectors
    out_stride : elements from a panel of `out` to the next
    across : columns that are read, in vectors

    Notes
    -----
    Rows of all panels lie a panel's width apart. Whole square blocks of a vector's width are read
    and written. Cost: a read, a write and log2(lanes) shuffles a vector.
    """
    source, out, blocks, out_stride, across = e.begin("transpose", 5)
    builder, width = e.builder, e.word(e.lanes * e.item)
    to_next_panel = builder.sub(builder.mul(out_stride, e.word(e.item)), width)
    first_row, first_column = e.variable(source), e.variable(out)
    with e.repeat(across):
        row, column = e.variable(e.get(first_row)), e.variable(e.get(first_column))
        second = e.variable(e.word(0))
        with e.repeat(blocks):
            _transpose_block(e, e.get(row), e.get(column))
            e.advance(row, e.lanes * e.panel)
            ends = builder.icmp_signed("!=", e.get(second), e.word(0))
            step = builder.select(ends, to_next_panel, width)
            e.put(column, builder.add(e.get(column), step))
            e.put(second, builder.sub(e.word(1), e.get(second)))
        e.advance(first_row, e.lanes)
        e.advance(first_column, e.lanes * e.panel)
    e.end()


def _transpose_block(e: Emitter, source, out) -> None:
    """Emit a square block of one vector's width, by log2(lanes) rounds of swapping.

    Round r exchanges the off-diagonal blocks of 2^r rows and columns between pairs of registers.
    """
    rows = [e.load(source, r * e.panel) for r in range(e.lanes)]
    index = ir.VectorType(ir.IntType(32), e.lanes)
    size = 1
    while size < e.lanes:
        low = [c if not c & size else e.lanes + c - size for c in range(e.lanes)]
        high = [c + size if not c & size else e.lanes + c for c in range(e.lanes)]
        for r in range(e.lanes):
            if not r & size:
                pair = rows[r], rows[r + size]
                rows[r] = e.builder.shuffle_vector(*pair, ir.Constant(index, low))
                rows[r + size] = e.builder.shuffle_vector(*pair, ir.Constant(index, high))
        size *= 2
    for r, row in enumerate(rows):
        e.store(row, out, r * e.panel)


def _sum_lanes(e: Emitter, vector: ir.Value) -> ir.Value:
    """Return the sum of a vector's elements, by halves: always in the same order."""
    index = ir.VectorType(ir.IntType(32), e.lanes)
    half = e.lanes // 2
    while half:
        # What lies in the upper lanes is not used again.
        moved = ir.Constant(index, [(lane + half) % e.lanes for lane in range(e.lanes)])
        vector = e.builder.fadd(vector, e.builder.shuffle_vector(vector, vector, moved))
        half //= 2
    return e.element(vector, 0)


def emit_dot_rows(e: Emitter) -> None:
    """Emit ``dot_rows``: the forward product of a layer with one output.

    Parameters of the function (all words)
    --------------------------------------
    left, panel_stride : address of the first row in the first panel; elements between panels
    right, right_stride : address of the weights of the first panel; elements to the next panel's
    panels : of both
    rows : of the left operand
    initial : address of the bias
    out : address of the first row of a panel, which gets the sum and zeros

    Notes
    -----
    Returns the largest magnitude stored, as bits. Lanes are inputs, so that the padding of both
    operands is multiplied: that of the weights is zero, that of the activations finite. Cost:
    ``2 * rows * panels * panel`` flops. Accuracy: one sum a lane, panels ascending, and then the
    lanes by halves; the same for any rows beside it.
    """
    arguments = e.begin("dot_rows", 8)
    left, panel_stride, right, right_stride, panels, rows, initial, out = arguments
    bias, zero = e.load(initial, 0, e.scalar), e.constant(0.0)
    seen = e.variable(ir.Constant(e.bits, [0] * e.lanes))
    row_left, row_out = e.variable(left), e.variable(out)
    tiles, rest = (divide(rows, e.word(DOT_ROWS)) for divide in (e.builder.udiv, e.builder.urem))
    for height, count in (DOT_ROWS, tiles), (1, rest):
        with e.repeat(count):
            here, weights = e.variable(e.get(row_left)), e.variable(right)
            totals = [[e.variable(zero) for _ in range(VECTORS_PER_PANEL)] for _ in range(height)]
            with e.repeat(panels):
                for v in range(VECTORS_PER_PANEL):
                    w = e.load(e.get(weights), v * e.lanes)
                    for m in range(height):
                        slot, a = totals[m][v], e.load(e.get(here), m * e.panel + v * e.lanes)
                        e.put(slot, e.multiply_add(a, w, e.get(slot, e.vector)))
                e.advance(here, panel_stride)
                e.advance(weights, right_stride)
            for m, row in enumerate(totals):
                total = e.builder.fadd(*(e.get(slot, e.vector) for slot in row))
                result = e.builder.fadd(_sum_lanes(e, total), bias)
                vector = e.builder.insert_element(zero, result, ir.Constant(ir.IntType(32), 0))
                note(e, seen, vector)
                e.store(vector, e.get(row_out), m * e.panel)
                for v in range(1, VECTORS_PER_PANEL):
                    e.store(zero, e.get(row_out), m * e.panel + v * e.lanes)
            e.advance(row_left, height * e.panel)
            e.advance(row_out, height * e.panel)
    e.end(e.largest(e.get(seen, e.bits)))
