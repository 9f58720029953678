"""Tiles of a product that apply an activation, or its slope, before they are stored.

Where a layer has few inputs, reading and writing its outputs once more for the activation costs as
much as a part of the product. The activations that only keep z between two ends (``clamp`` of their
row) are applied while the tile is in registers; all others have their leaf.
"""

import math
from itertools import product

from llvmlite import ir

from fastmlp_kernels.algebra import ACTIVATIONS
from fastmlp_kernels.cpu.microkernels import PRODUCT_PARAMETERS, product_tiles
from fastmlp_kernels.cpu.row_copies import note
from fastmlp_kernels.cpu.simd import VECTORS_PER_PANEL, Emitter

FORWARD, BACKWARD = "forward", "backward"
# The two ends, by the activation's name.
FINISHES = {row.name: row.clamp for row in ACTIVATIONS if row.clamp is not None}


def _clamped(e: Emitter, z: ir.Value, clamp: tuple[float, float]) -> ir.Value:
    """Return z kept between two ends; a NaN passes, as a comparison with it is false."""
    for sign, end in zip(("<=", ">="), clamp, strict=True):
        if math.isfinite(end):
            limit = e.constant(end)
            z = e.builder.select(e.builder.fcmp_ordered(sign, z, limit), limit, z)
    return z


def _clamped_slope(e: Emitter, a: ir.Value, clamp: tuple[float, float]) -> ir.Value:
    """Return 1 where the activation is strictly between its ends, and 0 elsewhere."""
    slope, zero = e.constant(1.0), e.constant(0.0)
    for sign, end in zip((">", "<"), clamp, strict=True):
        if math.isfinite(end):
            inside = e.builder.fcmp_ordered(sign, a, e.constant(end))
            slope = e.builder.select(inside, slope, zero)
    return slope


def finished(
    e: Emitter, direction: str, clamp: tuple, total: ir.Value, kept: tuple, seen: ir.Value
):
    """Return f(Z) of a vector of Z, or ``dA * f'(Z)`` of one of dA, and note its magnitude.

    `kept` is where the layer below keeps A: an address, and elements from there.
    """
    if direction == FORWARD:
        note(e, seen, total)
        return _clamped(e, total, clamp)
    result = e.builder.fmul(total, _clamped_slope(e, e.load(*kept), clamp))
    note(e, seen, result)
    return result


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
    tiles : as of `emit_product`

    Notes
    -----
    The forward tile stores f(Z) and returns the largest |Z| as bits, the backward one stores
    ``dA * f'(Z)`` and returns the largest magnitude of it: the bits of `emit_product` and the
    activation's leaf one after the other. Cost: that of the product, and 4 operations a vector.
    """
    for activation, clamp in FINISHES.items():
        for direction in (FORWARD, BACKWARD):
            name = finishing_name(direction, activation, rows, vectors)
            arguments = e.begin(name, PRODUCT_PARAMETERS)
            seen = e.variable(ir.Constant(e.bits, [0] * e.lanes))
            with product_tiles(e, rows, vectors, *arguments) as (totals, out, kept):
                for m, v in product(range(rows), range(VECTORS_PER_PANEL)):
                    # Stored one by one: kept until the end, the results would not leave registers
                    # enough for their own computation.
                    place = m * e.panel + v * e.lanes
                    if v >= vectors:
                        result = e.constant(0.0)
                    else:
                        total = e.get(totals[m][v], e.vector)
                        result = finished(e, direction, clamp, total, (kept, place), seen)
                    e.store(result, out, place)
            e.end(e.largest(e.get(seen, e.bits)))
