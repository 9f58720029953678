"""Tiles of a forward or backward-data product of one row: several panels of columns side by side.

A sum is a chain of multiply-adds, each of which waits four cycles for the one before. A panel has
two sums of a row, and a processor begins two multiply-adds a cycle: four panels keep it busy.
"""

from llvmlite import ir

from fastmlp_kernels.cpu.finishing_tiles import BACKWARD, FINISHES, FORWARD, finished
from fastmlp_kernels.cpu.microkernels import UNROLL
from fastmlp_kernels.cpu.row_copies import note
from fastmlp_kernels.cpu.simd import VECTORS_PER_PANEL, Emitter

PANELS_OF_A_ROW = 4
ROW_PRODUCT = "product_row"


def finishing_row_name(direction: str, activation: str) -> str:
    """Return the symbol of a tile that ends with an activation."""
    return f"{direction}_{activation}_row"


def emit_row_products(e: Emitter) -> None:
    """Emit ``product_row``, and ``{direction}_{activation}_row`` of every finish.

    Parameters of the functions (all words)
    ---------------------------------------
    left, panel_stride : address of the row in the first panel; elements between panels
    right, right_stride : address of row 0 of the first column panel; elements to the next one
    count : k, over all panels
    initial, initial_stride : address of the first panel's initial values; elements to the next
        panel's
    out, out_stride : address of the row in the first panel that is written; elements to the next.
        May be the initial values
    kept : as in `finishing_tiles.emit_finishing_products`, `out_stride` to the next panel's

    Notes
    -----
    Cost: ``2 * PANELS_OF_A_ROW * panel * count`` flops. Accuracy: the bits of `emit_product` and of
    `finishing_tiles.emit_finishing_products`.
    """
    ways = [(ROW_PRODUCT, "", None)]
    ways += [
        (finishing_row_name(direction, activation), direction, clamp)
        for activation, clamp in FINISHES.items()
        for direction in (FORWARD, BACKWARD)
    ]
    for name, direction, clamp in ways:
        *operands, out, out_stride, kept = e.begin(name, 10)
        totals = _totals(e, *operands)
        seen = e.variable(ir.Constant(e.bits, [0] * e.lanes))
        for panel, vectors in enumerate(totals):
            here = e.builder.mul(out_stride, e.word(panel))
            stored, below = e.address(out, here), e.address(kept, here)
            for v, slot in enumerate(vectors):
                result = e.get(slot, e.vector)
                if clamp is None:
                    note(e, seen, result)
                else:
                    result = finished(e, direction, clamp, result, (below, v * e.lanes), seen)
                e.store(result, stored, v * e.lanes)
        e.end(e.largest(e.get(seen, e.bits)))


def _totals(e: Emitter, left, panel_stride, right, right_stride, count, initial, initial_stride):
    """Emit the sums of all panels; return their variables."""
    builder, panel = e.builder, e.word(e.panel)
    panels, vectors = range(PANELS_OF_A_ROW), range(VECTORS_PER_PANEL)
    begins = [e.address(initial, builder.mul(initial_stride, e.word(p))) for p in panels]
    totals = [[e.variable(e.load(begin, v * e.lanes)) for v in vectors] for begin in begins]
    weights = [e.variable(e.address(right, builder.mul(right_stride, e.word(p)))) for p in panels]
    panel_left, rest = e.variable(left), e.variable(count)

    def add(element, step: int) -> None:
        factor = e.broadcast(element, step)
        for p in panels:
            for v, slot in zip(vectors, totals[p], strict=True):
                value = e.load(e.get(weights[p]), step * e.panel + v * e.lanes)
                e.put(slot, e.multiply_add(factor, value, e.get(slot, e.vector)))

    def advance(element, steps: int) -> None:
        e.advance(element, steps)
        for each in weights:
            e.advance(each, steps * e.panel)

    with e.repeat(builder.udiv(builder.add(count, e.word(e.panel - 1)), panel)):
        here = e.smaller(e.get(rest), panel)
        element = e.variable(e.get(panel_left))
        with e.repeat(builder.udiv(here, e.word(UNROLL))):
            for step in range(UNROLL):
                add(e.get(element), step)
            advance(element, UNROLL)
        with e.repeat(builder.urem(here, e.word(UNROLL))):
            add(e.get(element), 0)
            advance(element, 1)
        e.advance(panel_left, panel_stride)
        e.put(rest, builder.sub(e.get(rest), here))
    return totals
