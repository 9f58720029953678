"""Tiles of a product that apply an activation, or its slope, before they are stored.

Where a layer has few inputs, reading and writing its outputs once more for the activation costs as
much as a part of the product. The activations that are a comparison and no more are applied while
the tile is in registers; all others have their leaf.
"""

from itertools import product

from llvmlite import ir

from fastmlp_kernels.cpu.microkernels import note, product_totals
from fastmlp_kernels.cpu.simd import VECTORS_PER_PANEL, Emitter

FORWARD, BACKWARD = "forward", "backward"


def _relu(e: Emitter, z: ir.Value) -> ir.Value:
    """Return relu(z) as the algebra has it: a NaN passes, as a comparison with it is false."""
    zero = e.constant(0.0)
    return e.builder.select(e.builder.fcmp_ordered("<=", z, zero), zero, z)


def _relu_slope(e: Emitter, a: ir.Value) -> ir.Value:
    above = e.builder.fcmp_ordered(">", a, e.constant(0.0))
    return e.builder.select(above, e.constant(1.0), e.constant(0.0))


# By the activation's name: its value of a vector, and its slope of what it keeps, the output.
FINISHES = {"relu": (_relu, _relu_slope)}


def finishing_name(direction: str, activation: str, rows: int, vectors: int) -> str:
    """Return the symbol of a tile that ends with an activation."""
    return f"{direction}_{activation}_{rows}x{vectors}"


def emit_finishing_products(e: Emitter, rows: int, vectors: int) -> None:
    """Emit ``{direction}_{activation}_{rows}x{vectors}`` for both directions of every finish.

    Parameters of the functions (all words)
    ---------------------------------------
    left, panel_stride, right, count, initial, initial_stride, out : as of `emit_product`
    kept : address of the tile in the panels that the layer below kept; only the backward tile
        reads it, of A

    Notes
    -----
    The forward tile stores f(Z) and returns the largest |Z| as bits, the backward one stores
    ``dA * f'(Z)`` and returns the largest magnitude of it: the bits of `emit_product` and the
    activation's leaf one after the other. Cost: that of the product, and 4 operations a vector.
    """
    for activation, (value, slope) in FINISHES.items():
        for direction in (FORWARD, BACKWARD):
            *arguments, kept = e.begin(finishing_name(direction, activation, rows, vectors), 8)
            totals = product_totals(e, rows, vectors, *arguments[:-1])
            seen = e.variable(ir.Constant(e.bits, [0] * e.lanes))
            for m, v in product(range(rows), range(VECTORS_PER_PANEL)):
                # Stored one by one: kept until the end, the results would not leave registers
                # enough for their own computation.
                place = m * e.panel + v * e.lanes
                if v >= vectors:
                    result = e.constant(0.0)
                elif direction == FORWARD:
                    z = e.get(totals[m][v], e.vector)
                    note(e, seen, z)
                    result = value(e, z)
                else:
                    dA = e.get(totals[m][v], e.vector)
                    result = e.builder.fmul(dA, slope(e, e.load(kept, place)))
                    note(e, seen, result)
                e.store(result, arguments[-1], place)
            e.end(e.largest(e.get(seen, e.bits)))
