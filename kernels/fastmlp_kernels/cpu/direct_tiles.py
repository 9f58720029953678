"""Tiles of a forward product for a few rows, with weights that lie where the caller has them.

To copy the weights into panels would cost as much as the product of some tens of rows.
"""

from fastmlp_kernels.cpu.microkernels import UNROLL, load_totals, store_totals
from fastmlp_kernels.cpu.simd import VECTORS_PER_PANEL, Emitter

# Rows of weights that one row's product reads side by side.
ROWS_AT_ONCE = 8


def direct_name(rows: int) -> str:
    """Return the symbol of a tile."""
    return f"direct_{rows}"


def emit_direct(e: Emitter, rows: int) -> None:
    """Emit ``direct_{rows}``: a tile of a forward product, a panel wide.

    Parameters of the function (all words)
    --------------------------------------
    left, panel_stride : address of the first row in the first panel; elements between panels
    right, right_row : address of a panel's first column in row-major weights; elements to the next
        row
    count : k
    initial : address of the initial values, a bias in panels
    out : address of the tile's first row

    Notes
    -----
    Cost: ``2 * rows * panel * count`` flops. Accuracy: the chain of `emit_product`, bit for bit.
    """
    left, panel_stride, right, right_row, count, initial, out = e.begin(direct_name(rows), 7)
    builder, panel = e.builder, e.word(e.panel)
    # Where products take a register of their own, there is none for more.
    unroll = 1 if e.target.name == "portable" else UNROLL
    totals = load_totals(e, rows, VECTORS_PER_PANEL, initial, e.word(0))
    panel_left, weights, rest = e.variable(left), e.variable(right), e.variable(count)
    panels = builder.udiv(builder.add(count, e.word(e.panel - 1)), panel)
    with e.repeat(panels):
        here = e.smaller(e.get(rest), panel)
        element = e.variable(e.get(panel_left))
        with e.repeat(builder.udiv(here, e.word(unroll))):
            for step in range(unroll):
                _multiply(e, e.get(element), step, e.get(weights), totals)
                e.advance(weights, right_row)
            e.advance(element, unroll)
        with e.repeat(builder.urem(here, e.word(unroll))):
            _multiply(e, e.get(element), 0, e.get(weights), totals)
            e.advance(weights, right_row)
            e.advance(element, 1)
        e.advance(panel_left, panel_stride)
        e.put(rest, builder.sub(e.get(rest), here))
    store_totals(e, totals, out)
    e.end()


def _multiply(e: Emitter, element, step: int, weights, totals: list) -> None:
    """Emit one k: the rows' elements times the vectors of a row of weights."""
    values = [e.load(weights, v * e.lanes) for v in range(VECTORS_PER_PANEL)]
    for m, row in enumerate(totals):
        factor = e.broadcast(element, m * e.panel + step)
        for slot, value in zip(row, values, strict=True):
            e.put(slot, e.multiply_add(factor, value, e.get(slot, e.vector)))


def emit_direct_row(e: Emitter) -> None:
    """Emit ``direct_row``: the forward product of one row.

    Parameters of the function (all words)
    --------------------------------------
    left, panel_stride : address of the row in the first panel; elements between panels
    right, columns : address of row-major weights; their columns
    count : k
    initial : address of the initial values, a bias in panels
    out, out_stride : address of the row in the first panel that is written; elements to the next

    Notes
    -----
    One row is as fast as its weights are read. So some rows of them are read side by side from end
    to end, and the sums wait in the first cache. Cost: ``2 * columns * count`` flops. Accuracy: the
    chain of `emit_product`, bit for bit.
    """
    left, panel_stride, right, columns, count, initial, out, out_stride = e.begin("direct_row", 8)
    builder, panel = e.builder, e.word(e.panel)
    begin, start = e.variable(initial), e.variable(out)
    with e.repeat(builder.udiv(builder.add(columns, e.word(e.panel - 1)), panel)):
        for v in range(VECTORS_PER_PANEL):
            e.store(e.load(e.get(begin), v * e.lanes), e.get(start), v * e.lanes)
        e.advance(begin, e.panel)
        e.advance(start, out_stride)
    panel_left, weights, rest = e.variable(left), e.variable(right), e.variable(count)
    sums = out, out_stride, columns
    with e.repeat(builder.udiv(builder.add(count, e.word(e.panel - 1)), panel)):
        here = e.smaller(e.get(rest), panel)
        element = e.variable(e.get(panel_left))
        for rows, times in (
            (ROWS_AT_ONCE, builder.udiv(here, e.word(ROWS_AT_ONCE))),
            (1, builder.urem(here, e.word(ROWS_AT_ONCE))),
        ):
            with e.repeat(times):
                _add_rows(e, rows, e.get(element), e.get(weights), *sums)
                e.advance(element, rows)
                e.advance(weights, builder.mul(columns, e.word(rows)))
        e.advance(panel_left, panel_stride)
        e.put(rest, builder.sub(e.get(rest), here))
    e.end()


def _add_rows(e: Emitter, rows: int, element, weights, out, out_stride, columns) -> None:
    """Emit the sum of so many rows of weights, each times its element, onto a row in panels."""
    builder = e.builder
    factors = [e.broadcast(element, m) for m in range(rows)]
    starts = [e.variable(e.address(weights, builder.mul(columns, e.word(m)))) for m in range(rows)]
    target = e.variable(out)
    with e.repeat(builder.udiv(columns, e.word(e.panel))):
        for v in range(VECTORS_PER_PANEL):
            total = e.load(e.get(target), v * e.lanes)
            for factor, start in zip(factors, starts, strict=True):
                total = e.multiply_add(factor, e.load(e.get(start), v * e.lanes), total)
            e.store(total, e.get(target), v * e.lanes)
        for start in starts:
            e.advance(start, e.panel)
        e.advance(target, out_stride)
    tail = builder.urem(columns, e.word(e.panel))
    for v in range(VECTORS_PER_PANEL):
        with builder.if_then(builder.icmp_signed(">", tail, e.word(v * e.lanes))):
            # Nothing is read beyond the last column.
            mask = e.mask(builder.sub(tail, e.word(v * e.lanes)))
            total = e.load(e.get(target), v * e.lanes)
            for factor, start in zip(factors, starts, strict=True):
                value = e.load_masked(e.get(start), v * e.lanes, mask)
                total = e.multiply_add(factor, value, total)
            e.store(total, e.get(target), v * e.lanes)
