"""The first layer's products without the terms that are zero: lists of k and of rows, and walks.

`Program.prepare` looks at X and decides whether that pays, for the forward product and for the
weight gradient apart; `SKIPS` says so. Lists are written where they are used: those of k by who
computes a block of rows, right after it is gathered, and those of rows by who owns a unit of
weights. So nobody waits for them.
"""

from fastmlp_kernels.compile import part
from fastmlp_kernels.cpu.intrinsics import call, set_word, word
from fastmlp_kernels.cpu.listed_tiles import COLUMN_ENTRY_BYTES, HEADER_BYTES, ROW_ENTRY_BYTES
from fastmlp_kernels.cpu.tables import (
    COLUMN_LIST_BYTES,
    COLUMN_LISTS,
    COLUMN_LISTS_STRIDE,
    DEPTH_BLOCK,
    FAN_IN,
    FAN_OUT,
    FEATURE_TILE,
    ITEM,
    LANES,
    LIST_COLUMNS,
    LIST_ROWS,
    LISTED_GRADIENT_NARROW,
    LISTED_GRADIENT_WIDE,
    PANEL,
    PANEL_STRIDE,
    ROW_LIST_BYTES,
    ROW_LISTS,
    ROW_LISTS_STRIDE,
    SKIPS,
    SKIPS_COLUMNS,
    SKIPS_ROWS,
    SUM_BLOCK,
    TILE_COLUMNS,
    TILE_LISTED_NARROW,
    TILE_LISTED_WIDE,
    TILE_ROWS,
    TILES,
    W_STRIDE,
    WORD_BYTES,
    ZEROS,
    B,
    W,
    Z,
)


@part
def column_lists(words, member, layer):
    """Return the address of a member's lists of k, or 0 for a layer that has none."""
    if layer > 0 or not word(words, SKIPS) & SKIPS_COLUMNS:
        return 0
    return word(words, COLUMN_LISTS) + member * word(words, COLUMN_LISTS_STRIDE)


@part
def row_lists(words, member, layer):
    """Return the address of a member's lists of rows, or 0 for a layer that has none."""
    if layer > 0 or not word(words, SKIPS) & SKIPS_ROWS:
        return 0
    return word(words, ROW_LISTS) + member * word(words, ROW_LISTS_STRIDE)


@part
def forget_row_lists(words, member):
    """Mark a member's lists of rows as those of no panel: its inputs are another batch's."""
    lists = row_lists(words, member, 0)
    if lists:
        set_word(_listed_panel(words, lists), 0, -1)


@part
def _listed_panel(words, lists):
    """Return the address of the word behind a member's lists of rows: whose panel's they are."""
    return lists + word(words, ROW_LISTS_STRIDE) - WORD_BYTES


@part
def _tile_for(words, rows):
    """Return the address of the tallest tile that fits."""
    tile = word(words, TILES)
    while word(tile, TILE_ROWS) > rows:
        tile += TILE_COLUMNS * WORD_BYTES
    return tile


@part
def _list_columns(words, row, left, first, last, lists):
    """List the k of each tile of a block of rows; return the length of the longest list."""
    item, panel, longest, i = word(words, ITEM), word(words, PANEL), 0, first
    panels = (word(row, FAN_IN) + panel - 1) // panel
    while i < last:
        rows = word(_tile_for(words, last - i), TILE_ROWS)
        source = (left + i * panel * item, word(words, PANEL_STRIDE), panels, rows)
        longest = max(longest, call(word(words, LIST_COLUMNS), source + (lists,)))
        lists += word(words, COLUMN_LIST_BYTES)
        i += rows
    return longest


@part
def _walk_tiles(words, row, left, j, lists, block):
    """Add a block of the entries of each tile's list to column panel j of a block of rows."""
    first, last, start, depth = block
    item, panel = word(words, ITEM), word(words, PANEL)
    narrow = word(row, FAN_OUT) - j * panel <= word(words, LANES)
    right = word(row, W) + j * word(row, W_STRIDE) * item
    out_j = word(row, Z) + j * word(words, PANEL_STRIDE) * item
    i = first
    while i < last:
        tile = _tile_for(words, last - i)
        count = min(depth, word(lists, 0) - start)
        out = out_j + i * panel * item
        begin, step = (word(row, B) + j * panel * item, 0) if start == 0 else (out, panel)
        if start == 0 or count > 0:
            entries = lists + HEADER_BYTES + start * COLUMN_ENTRY_BYTES
            call(
                word(tile, TILE_LISTED_NARROW if narrow else TILE_LISTED_WIDE),
                (left + i * panel * item, right, entries, count, begin, step, out),
            )
        lists += word(words, COLUMN_LIST_BYTES)
        i += word(tile, TILE_ROWS)


@part
def listed_product(words, row, left, block, lists):
    """Compute Z of a block of rows and of column panels, without the k that are zero.

    Parameters
    ----------
    words : int
        Address of the program's tables, see `cpu.tables`.
    row : int
        Address of the layer's row of the chain.
    left : int
        Address of the panels of the layer's inputs.
    block : (int, int, int, int)
        First and last row, first and last panel of columns.
    lists : int
        Address of this thread's lists of k, which are written.

    Notes
    -----
    Cost: ``2 columns`` flops for each row and listed k, and a read of the inputs. A block of
    `DEPTH_BLOCK` entries spans more k than one of a dense product, but touches as many of the
    weights for a tile. Accuracy: as `linear.linear_forward`, but for the sign of a zero.
    """
    first, last, first_panel, last_panel = block
    longest = _list_columns(words, row, left, first, last, lists)
    depth = word(words, DEPTH_BLOCK)
    # Also where all of X is zero: the bias has to be written.
    for start in range(0, max(1, longest), depth):
        for j in range(first_panel, last_panel):
            _walk_tiles(words, row, left, j, lists, (first, last, start, depth))


@part
def listed_sum(words, i, left, right, sizes, scratch, lists):
    """Sum a unit of the first layer's weight gradient over the rows that are not zero.

    Parameters
    ----------
    words : int
        Address of the program's tables, see `cpu.tables`.
    i : int
        The panel of inputs.
    left, right : int
        Addresses of that panel, and of one of dZ.
    sizes : (int, int, int)
        Rows, and features and columns of the unit.
    scratch : int
        Address of the square that is written.
    lists : int
        Address of this thread's lists of rows: one for each tile of a panel's features, and a word,
        the panel that they describe. They are written where they describe another.

    Notes
    -----
    A thread's units come panel by panel, so that a list is written once for all panels of columns.
    Cost: ``2 columns`` flops for each feature and listed row. Accuracy: as
    `linear.weight_gradient`, but for the sign of a zero.
    """
    rows, features, columns = sizes
    size, block = word(words, ROW_LIST_BYTES), word(words, SUM_BLOCK)
    described = _listed_panel(words, lists)
    if word(described, 0) != i:
        call(word(words, LIST_ROWS), (left, rows, lists, size))
        set_word(described, 0, i)
    item, panel, height = word(words, ITEM), word(words, PANEL), word(words, FEATURE_TILE)
    narrow = columns <= word(words, LANES)
    tile = word(words, LISTED_GRADIENT_NARROW if narrow else LISTED_GRADIENT_WIDE)
    for start in range(0, rows, block):
        for m in range(0, features, height):
            here = lists + m // height * size
            count = min(block, word(here, 0) - start)
            out = scratch + m * panel * item
            begin, step = (word(words, ZEROS), 0) if start == 0 else (out, panel)
            if start == 0 or count > 0:
                entries = here + HEADER_BYTES + start * ROW_ENTRY_BYTES
                call(tile, (left + m * item, right, entries, count, begin, step, out))
