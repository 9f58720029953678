"""Copies of rows, between row-major matrices and panels."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from llvmlite import ir

from fastmlp_kernels.cpu.simd import VECTORS_PER_PANEL, Emitter

# What is written beyond a row's last element: zeros, up to the panel's end; what else is in the
# vector, as the rows that follow are written later; nothing.
PADDED, WHOLE, EXACT = range(3)


class _Row(NamedTuple):
    """What all rows of a copy have in common: columns, strides between panels, the last part."""

    columns: ir.Value
    source_panel: ir.Value
    out_panel: ir.Value
    tail: ir.Value
    masks: list[ir.Value]
    seen: ir.Value


def emit_copy_rows(e: Emitter) -> None:
    """Emit ``copy_rows``: rows in any order, between row-major matrices and panels.

    Parameters of the function (all words)
    --------------------------------------
    source, order, first, last, columns : row i of the copy is row ``order[i]`` (int64) of
        `source`, `columns` elements, for first <= i < last
    source_row, source_panel : elements from a row of `source` to the next, and from one panel's
        width of columns to the next (the width itself in a row-major matrix)
    out, out_row, out_panel : the same of the copy
    padded : 1 fills what is left of the last panel's rows with zeros

    Notes
    -----
    Returns the largest magnitude copied, as bits. Cost: a read and a write an element. Rows ahead
    are not prefetched: that gained nothing for shuffled rows out of 190 MB (0.9 to 1.1 times as
    fast for 100 and 784 columns, in turns, Zen 3, 2026-11-30).
    """
    arguments = e.begin("copy_rows", 11)
    source, order, first, last, columns, source_row, source_panel = arguments[:7]
    out, out_row, out_panel, padded = arguments[7:]
    builder = e.builder
    pads = builder.icmp_signed(">", padded, e.word(0))
    seen = e.variable(ir.Constant(e.bits, [0] * e.lanes))
    rows = order, source, source_row, out, out_row
    single = builder.icmp_signed("==", columns, e.word(1))
    with builder.if_else(single) as (one_column, several):
        with one_column, builder.if_else(pads) as (padding, exact):
            for way, fills in ((padding, True), (exact, False)):
                with way, _each_row(e, *rows, first, last) as (here, there):
                    _copy_element(e, here, there, fills, seen)
        with several:
            tail = builder.urem(columns, e.word(e.panel))
            # In the loop, a count would have to wait on the stack for its mask.
            masks = [
                e.mask(builder.sub(tail, e.word(v * e.lanes))) for v in range(VECTORS_PER_PANEL)
            ]
            row = _Row(columns, source_panel, out_panel, tail, masks, seen)
            # Of no columns at all nothing is written.
            narrow = builder.icmp_unsigned("<", builder.sub(columns, e.word(1)), e.word(e.lanes))
            with builder.if_else(narrow) as (one_vector, more):
                for way, copy in ((one_vector, _copy_narrow_row), (more, _copy_row)):
                    with way:
                        _copy_rows(e, rows, first, last, row, pads, copy)
    e.end(e.largest(e.get(seen, e.bits)))


def _copy_rows(e: Emitter, rows, first, last, row: _Row, pads, copy: Callable) -> None:
    """Emit the loops over rows of several columns, by what each of them is copied with."""
    with e.builder.if_else(pads) as (padding, exact):
        with padding, _each_row(e, *rows, first, last) as (here, there):
            copy(e, here, there, row, PADDED)
        with exact:
            middle = first
            if not e.target.mask_registers:
                middle = e.builder.sub(last, _rows_stored_exactly(e, row, rows[-1]))
                middle = e.larger(first, middle)
                with _each_row(e, *rows, first, middle) as (here, there):
                    copy(e, here, there, row, WHOLE)
            with _each_row(e, *rows, middle, last) as (here, there):
                copy(e, here, there, row, EXACT)


def _rows_stored_exactly(e: Emitter, row: _Row, out_row: ir.Value) -> ir.Value:
    """Emit the number of last rows whose last vector may not be stored whole.

    Where rows follow each other without a gap, what a whole vector writes beyond its row is written
    again with the next rows. 64 rows of 10 columns so take a third of the time (Zen 3, AVX2).
    """
    builder = e.builder
    vectors = builder.udiv(builder.add(row.tail, e.word(e.lanes - 1)), e.word(e.lanes))
    beyond = builder.sub(builder.mul(vectors, e.word(e.lanes)), row.tail)
    # The smallest number of rows that has as many elements. No division: there may be no columns.
    following, elements = e.word(0), e.word(0)
    for _ in range(e.lanes - 1):
        short = builder.icmp_signed("<", elements, beyond)
        following = builder.add(following, builder.zext(short, following.type))
        elements = builder.add(elements, row.columns)
    dense = builder.icmp_signed("==", out_row, row.columns)
    # As many as anybody can have.
    return builder.select(dense, following, e.word(2**62))


@contextmanager
def _each_row(e: Emitter, order, source, source_row, out, out_row, first, last) -> Iterator[tuple]:
    """Emit a loop over rows; give where each is and where it goes."""
    builder = e.builder
    place = e.variable(builder.add(order, builder.mul(first, e.word(8))))
    there = e.variable(e.address(out, builder.mul(first, out_row)))
    with e.repeat(builder.sub(last, first)):
        index = e.load(e.get(place), 0, ir.IntType(64))
        yield e.address(source, builder.mul(index, source_row)), e.get(there)
        e.put(place, builder.add(e.get(place), e.word(8)))
        e.advance(there, out_row)


def _copy_element(e: Emitter, here, there, fills: bool, seen) -> None:
    """Emit the copy of a row of one element."""
    first, zero = ir.Constant(ir.IntType(32), 0), e.constant(0.0)
    element = e.load(here, 0, e.scalar)
    vector = e.builder.insert_element(zero, element, first)
    note(e, seen, vector)
    if fills:
        e.store(vector, there)
        for v in range(1, VECTORS_PER_PANEL):
            e.store(zero, there, v * e.lanes)
    else:
        e.store(element, there)


def _copy_row(e: Emitter, source, out, row: _Row, ending: int) -> None:
    """Emit the copy of a row: whole panels, and what is left, vector by vector."""
    builder = e.builder
    here, there = e.variable(source), e.variable(out)
    with e.repeat(builder.udiv(row.columns, e.word(e.panel))):
        for v in range(VECTORS_PER_PANEL):
            value = e.load(e.get(here), v * e.lanes)
            e.store(value, e.get(there), v * e.lanes)
            note(e, row.seen, value)
        e.advance(here, row.source_panel)
        e.advance(there, row.out_panel)
    with builder.if_then(builder.icmp_signed(">", row.tail, e.word(0))):
        for v in range(VECTORS_PER_PANEL):
            count = builder.sub(row.tail, e.word(v * e.lanes))
            some = builder.icmp_signed(">", count, e.word(0))
            with builder.if_else(some) as (part, nothing):
                with part:
                    _copy_part(e, e.get(here), e.get(there), v, row, ending)
                with nothing:
                    if ending == PADDED:
                        e.store(e.constant(0.0), e.get(there), v * e.lanes)


def _copy_narrow_row(e: Emitter, source, out, row: _Row, ending: int) -> None:
    """Emit the copy of a row of at most one vector: no loop, and half of the instructions."""
    _copy_part(e, source, out, 0, row, ending)
    if ending == PADDED:
        for v in range(1, VECTORS_PER_PANEL):
            e.store(e.constant(0.0), out, v * e.lanes)


def _copy_part(e: Emitter, source, out, v: int, row: _Row, ending: int) -> None:
    """Emit the copy of what a row has in vector v of its last panel: some elements, or all."""
    value = e.load_masked(source, v * e.lanes, row.masks[v])
    note(e, row.seen, value)
    if ending == EXACT:
        count = e.smaller(e.builder.sub(row.tail, e.word(v * e.lanes)), e.word(e.lanes))
        e.store_first(value, out, v * e.lanes, count)
    else:
        e.store(value, out, v * e.lanes)


def note(e: Emitter, seen: ir.Value, value: ir.Value) -> None:
    """Keep the larger of the magnitudes seen so far and those of `value`, as bits."""
    magnitude = ir.Constant(e.bits, [2 ** (8 * e.item - 1) - 1] * e.lanes)
    bits = e.builder.and_(e.builder.bitcast(value, e.bits), magnitude)
    old = e.get(seen, e.bits)
    # No sign is left: an unsigned comparison of 64 bits would take more instructions.
    larger = e.builder.icmp_signed(">", bits, old)
    e.put(seen, e.builder.select(larger, bits, old))
