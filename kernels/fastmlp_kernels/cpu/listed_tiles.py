"""Register tiles that walk a list of the terms that are not zero, and what makes the lists.

A product with an exact zero adds nothing. Where rows of X hold many, the first layer's tiles of
`microkernels` leave out what is zero for all of a tile:

    forward          a list of the k of which one of the tile's rows has a nonzero left element
    weight gradient  a list of the rows in which one of the tile's features is not zero

The terms that are left are added in the same order: the sums have the bits of the dense tiles', but
for the sign of a zero.

A list is a word, the number of its entries, and the entries after it: offsets from the tile's first
element, in elements, which the sums need for nothing but addresses. One of k holds two of 32 bits
in a word, the left operand's in the lower half; one of rows a single offset of 32 bits, the same in
both operands.
"""

from llvmlite import ir

from fastmlp_kernels.cpu.microkernels import (
    UNROLL,
    fill_narrow,
    load_totals,
    multiply_rows,
    store_totals,
)
from fastmlp_kernels.cpu.simd import POINTER, VECTORS_PER_PANEL, WORD, Emitter

HALF = ir.IntType(32)
HALF_BITS = 32
COLUMN_ENTRY_BYTES = 8
ROW_ENTRY_BYTES = 4
HEADER_BYTES = 8


def listed_product_name(rows: int, vectors: int) -> str:
    """Return the symbol of a forward tile that walks a list."""
    return f"listed_product_{rows}x{vectors}"


def listed_gradient_name(vectors: int) -> str:
    """Return the symbol of a weight-gradient tile that walks a list."""
    return f"listed_gradient_{vectors}"


def _load_entry(e: Emitter, entries: ir.Value, place: int, kind: ir.IntType) -> ir.Value:
    """Return the entry at a constant place of a list, as a word."""
    size = kind.width // 8
    start = e.builder.inttoptr(entries, POINTER)
    pointer = e.builder.gep(start, [e.word(place * size)], source_etype=ir.IntType(8))
    value = e.builder.load(pointer, typ=kind, align=size)
    return value if kind == WORD else e.builder.zext(value, WORD)


def _add_column(e: Emitter, entries: ir.Value, place: int, left, right) -> tuple:
    """Return the addresses of both operands of one k."""
    entry = _load_entry(e, entries, place, WORD)
    low = e.builder.and_(entry, e.word(2**HALF_BITS - 1))
    high = e.builder.lshr(entry, e.word(HALF_BITS))
    return e.address(left, low), e.address(right, high)


def _add_row(e: Emitter, entries: ir.Value, place: int, left, right) -> tuple:
    """Return the addresses of both operands of one row."""
    offset = _load_entry(e, entries, place, HALF)
    return e.address(left, offset), e.address(right, offset)


def _walk(e: Emitter, tile: tuple, of_row: int, operands: tuple, listed: tuple, totals) -> None:
    """Emit the loop over the entries of a list, four at a time and then one."""
    rows, vectors = tile
    entries, count, size, find = listed
    place = e.variable(entries)

    def one(step: int) -> None:
        left, right = find(e, e.get(place), step, *operands)
        slots = e.variable(left), e.variable(right)
        multiply_rows(e, rows, vectors, lambda m: m * of_row, *slots, totals)

    with e.repeat(e.builder.lshr(count, e.word(UNROLL.bit_length() - 1))):
        for step in range(UNROLL):
            one(step)
        e.put(place, e.builder.add(e.get(place), e.word(UNROLL * size)))
    with e.repeat(e.builder.and_(count, e.word(UNROLL - 1))):
        one(0)
        e.put(place, e.builder.add(e.get(place), e.word(size)))


def emit_listed_product(e: Emitter, rows: int, vectors: int) -> None:
    """Emit ``listed_product_{rows}x{vectors}``: a forward tile over a list of k.

    Parameters of the function (all words)
    --------------------------------------
    left : address of element (0, 0) of `rows` rows in the first panel
    right : address of row 0 of a column panel
    entries, count : address of the first entry of a list of k, and how many of them
    initial, initial_stride, out : as in `microkernels.emit_product`

    Notes
    -----
    Cost: ``2 * rows * vectors * lanes * count`` flops. Aliasing: `out` may be `initial`. Accuracy:
    the chain of `microkernels.emit_product` without the terms that are zero for all rows.
    """
    arguments = e.begin(listed_product_name(rows, vectors), 7)
    left, right, entries, count, initial, initial_stride, out = arguments
    totals = load_totals(e, rows, vectors, initial, initial_stride)
    listed = entries, count, COLUMN_ENTRY_BYTES, _add_column
    _walk(e, (rows, vectors), e.panel, (left, right), listed, totals)
    # A term of +0 makes a total of -0 a +0, and what a row's list holds depends on the rows of its
    # tile, so on the number of threads. Adding one zero more gives them all the same bits.
    zero = ir.Constant(e.vector, [0.0] * e.lanes)
    for row in totals:
        for slot in row:
            e.put(slot, e.builder.fadd(e.get(slot, e.vector), zero))
    store_totals(e, fill_narrow(e, totals, vectors), out)
    e.end()


def emit_listed_gradient(e: Emitter, vectors: int) -> None:
    """Emit ``listed_gradient_{vectors}``: a tile of a weight gradient over a list of rows.

    Parameters of the function (all words)
    --------------------------------------
    left : address of feature 0 of row 0 in a panel of activations
    right : address of row 0 in a panel of dZ
    entries, count : address of the first entry of a list of rows, and how many of them
    initial, initial_stride, out : as in `microkernels.emit_gradient`

    Notes
    -----
    Cost: ``2 * features * vectors * lanes * count`` flops. Aliasing: `out` may be `initial`.
    Accuracy: the chain of `microkernels.emit_gradient` without the terms that are zero for all
    features.
    """
    left, right, entries, count, initial, initial_stride, out = e.begin(
        listed_gradient_name(vectors), 7
    )
    tile = e.target.feature_tile, vectors
    totals = load_totals(e, *tile, initial, initial_stride)
    _walk(e, tile, 1, (left, right), (entries, count, ROW_ENTRY_BYTES, _add_row), totals)
    store_totals(e, totals, out)
    e.end()


def _load_bits(e: Emitter, base: ir.Value, elements: int) -> ir.Value:
    """Return a vector's bits without the signs: zero for either zero."""
    magnitude = ir.Constant(e.bits, [2 ** (8 * e.item - 1) - 1] * e.lanes)
    return e.builder.and_(e.load(base, elements, e.bits), magnitude)


def _nonzero_lanes(e: Emitter, vectors: list[ir.Value]) -> ir.Value:
    """Return a word with a bit for each lane of some vectors: whether it is not zero."""
    zero, found = ir.Constant(e.bits, [0] * e.lanes), e.word(0)
    for v, vector in enumerate(vectors):
        lanes = e.builder.icmp_unsigned("!=", vector, zero)
        bits = e.builder.zext(e.builder.bitcast(lanes, ir.IntType(e.lanes)), WORD)
        found = e.builder.or_(found, e.builder.shl(bits, e.word(v * e.lanes)))
    return found


def _append(e: Emitter, place: ir.Value, entry: ir.Value, one: ir.Value, size: int) -> None:
    """Write an entry, and keep it if `one` is a word of 1 and not of 0: no branch to mispredict."""
    here = e.get(place)
    e.builder.store(entry, e.builder.inttoptr(here, POINTER), align=size)
    e.put(place, e.builder.add(here, e.builder.mul(one, e.word(size))))


def _store_count(e: Emitter, out: ir.Value, place: ir.Value, size: int) -> ir.Value:
    """Write a list's first word, and return it."""
    used = e.builder.sub(e.get(place), e.builder.add(out, e.word(HEADER_BYTES)))
    count = e.builder.lshr(used, e.word(size.bit_length() - 1))
    e.builder.store(count, e.builder.inttoptr(out, POINTER), align=HEADER_BYTES)
    return count


def emit_list_columns(e: Emitter) -> None:
    """Emit ``list_columns``: the k of which a tile of rows has an element that is not zero.

    Parameters of the function (all words)
    --------------------------------------
    left, panel_stride : address of the first row in the first panel; elements between panels
    panels, rows : how many of both
    out : address of the list, with room for an entry for each column of all panels

    Notes
    -----
    Returns the number of entries. What pads the last panel must be zero. Cost: a read an element,
    and a write a column. Aliasing: none. Accuracy: exact; -0 is zero.
    """
    left, panel_stride, panels, rows, out = e.begin("list_columns", 5)
    builder = e.builder
    panel_left, entry = e.variable(left), e.variable(e.word(0))
    place = e.variable(builder.add(out, e.word(HEADER_BYTES)))
    step = e.word(1 + (e.panel << HALF_BITS))
    to_next = builder.sub(panel_stride, e.word(e.panel))
    zero = ir.Constant(e.bits, [0] * e.lanes)
    with e.repeat(panels):
        row = e.variable(e.get(panel_left))
        seen = [e.variable(zero) for _ in range(VECTORS_PER_PANEL)]
        with e.repeat(rows):
            start = e.get(row)
            for v, slot in enumerate(seen):
                e.put(slot, builder.or_(e.get(slot, e.bits), _load_bits(e, start, v * e.lanes)))
            e.advance(row, e.panel)
        found = _nonzero_lanes(e, [e.get(slot, e.bits) for slot in seen])
        for column in range(e.panel):
            one = builder.and_(builder.lshr(found, e.word(column)), e.word(1))
            _append(e, place, e.get(entry), one, COLUMN_ENTRY_BYTES)
            e.put(entry, builder.add(e.get(entry), step))
        e.put(entry, builder.add(e.get(entry), to_next))
        e.advance(panel_left, panel_stride)
    e.end(_store_count(e, out, place, COLUMN_ENTRY_BYTES))


def emit_list_rows(e: Emitter) -> None:
    """Emit ``list_rows``: for each tile of a panel's features, the rows that have a nonzero there.

    Parameters of the function (all words)
    --------------------------------------
    panel, rows : address of row 0 of a panel, and the number of its rows
    out, out_stride : address of the first tile's list; bytes to the next tile's. Each has room for
        an entry a row.

    Notes
    -----
    Cost: a read an element, and a write for each tile and row. Aliasing: none. Accuracy: exact; -0
    is zero.
    """
    panel, rows, out, out_stride = e.begin("list_rows", 4)
    builder, features = e.builder, e.target.feature_tile
    lists = [
        builder.add(out, builder.mul(out_stride, e.word(m))) for m in range(e.panel // features)
    ]
    places = [e.variable(builder.add(start, e.word(HEADER_BYTES))) for start in lists]
    row, offset = e.variable(panel), e.variable(e.word(0))
    with e.repeat(rows):
        start = e.get(row)
        vectors = [_load_bits(e, start, v * e.lanes) for v in range(VECTORS_PER_PANEL)]
        found, entry = _nonzero_lanes(e, vectors), builder.trunc(e.get(offset), HALF)
        for m, place in enumerate(places):
            of_tile = builder.and_(found, e.word((2**features - 1) << (m * features)))
            one = builder.zext(builder.icmp_unsigned("!=", of_tile, e.word(0)), WORD)
            _append(e, place, entry, one, ROW_ENTRY_BYTES)
        e.advance(row, e.panel)
        e.put(offset, builder.add(e.get(offset), e.word(e.panel)))
    for start, place in zip(lists, places, strict=True):
        _store_count(e, start, place, ROW_ENTRY_BYTES)
    e.end()
