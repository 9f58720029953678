"""The first layer's products without the terms that are zero: lists of k and of rows, and walks.

`Program.prepare` looks at X and decides whether that pays, for the forward product and for the
weight gradient apart; `skips` says so. Lists are written where they are used: those of k by who
computes a block of rows, right after it is gathered, and those of rows by who owns a unit of
weights. So nobody waits for them.
"""

from fastmlp_kernels.compile import part
from fastmlp_kernels.cpu.intrinsics import call, next_record, record_at, set_word, word
from fastmlp_kernels.cpu.listed_tiles import COLUMN_ENTRY_BYTES, HEADER_BYTES, ROW_ENTRY_BYTES
from fastmlp_kernels.cpu.tables import SKIPS_COLUMNS, SKIPS_ROWS, TILE, WORD_BYTES


@part
def column_lists(step, thread, index):
    """Return the address of a thread's lists of k, or 0 for a layer that has none."""
    if index > 0 or not step.skips & SKIPS_COLUMNS:
        return 0
    return step.column_lists + thread * step.column_lists_stride


@part
def row_lists(step, thread, index):
    """Return the address of a thread's lists of rows, or 0 for a layer that has none."""
    if index > 0 or not step.skips & SKIPS_ROWS:
        return 0
    return step.row_lists + thread * step.row_lists_stride


@part
def forget_row_lists(step, thread):
    """Mark a thread's lists of rows as those of no panel: its inputs are another batch's."""
    lists = row_lists(step, thread, 0)
    if lists:
        set_word(_listed_panel(step, lists), 0, -1)


@part
def _listed_panel(step, lists):
    """Return the address of the word behind a thread's lists of rows: whose panel's they are."""
    return lists + step.row_lists_stride - WORD_BYTES


@part
def _tile_for(step, rows):
    """Return the record of the tallest tiles that fit."""
    tile = record_at(step.tiles, TILE, 0)
    while tile.rows > rows:
        tile = next_record(tile)
    return tile


@part
def _list_columns(step, layer, left, first, last, lists):
    """List the k of each tile of a block of rows; return the length of the longest list."""
    item, panel, longest, i = step.item, step.panel, 0, first
    panels = (layer.fan_in + panel - 1) // panel
    while i < last:
        rows = _tile_for(step, last - i).rows
        source = (left + i * panel * item, step.panel_stride, panels, rows)
        longest = max(longest, call(step.list_columns, source + (lists,)))
        lists += step.column_list_bytes
        i += rows
    return longest


@part
def _walk_tiles(step, layer, left, j, lists, block):
    """Add a block of the entries of each tile's list to column panel j of a block of rows."""
    first, last, start, depth = block
    item, panel = step.item, step.panel
    narrow = layer.fan_out - j * panel <= step.lanes
    right = layer.W + j * layer.W_stride * item
    out_j = layer.Z + j * step.panel_stride * item
    i = first
    while i < last:
        tile = _tile_for(step, last - i)
        count = min(depth, word(lists, 0) - start)
        out = out_j + i * panel * item
        begin, begin_stride = (layer.B + j * panel * item, 0) if start == 0 else (out, panel)
        if start == 0 or count > 0:
            entries = lists + HEADER_BYTES + start * COLUMN_ENTRY_BYTES
            call(
                tile.listed_narrow if narrow else tile.listed_wide,
                (left + i * panel * item, right, entries, count, begin, begin_stride, out),
            )
        lists += step.column_list_bytes
        i += tile.rows


@part
def listed_product(step, layer, left, block, lists):
    """Compute Z of a block of rows and of column panels, without the k that are zero.

    Parameters
    ----------
    step : record
        The program's table, see `cpu.tables`.
    layer : record
    left : int
        Address of the panels of the layer's inputs.
    block : (int, int, int, int)
        First and last row, first and last panel of columns.
    lists : int
        Address of this thread's lists of k, which are written.

    Notes
    -----
    Cost: ``2 columns`` flops for each row and listed k, and a read of the inputs. A block of
    `depth_block` entries spans more k than one of a dense product, but touches as many of the
    weights for a tile. Accuracy: as `linear.linear_forward`, but for the sign of a zero.
    """
    first, last, first_panel, last_panel = block
    longest = _list_columns(step, layer, left, first, last, lists)
    depth = step.depth_block
    # Also where all of X is zero: the bias has to be written.
    for start in range(0, max(1, longest), depth):
        for j in range(first_panel, last_panel):
            _walk_tiles(step, layer, left, j, lists, (first, last, start, depth))


@part
def listed_sum(step, i, left, right, sizes, scratch, lists):
    """Sum a unit of the first layer's weight gradient over the rows that are not zero.

    Parameters
    ----------
    step : record
        The program's table, see `cpu.tables`.
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
    Cost: ``2 columns`` flops for each feature and listed layer. Accuracy: as
    `linear.weight_gradient`, but for the sign of a zero.
    """
    rows, features, columns = sizes
    size, block = step.row_list_bytes, step.sum_block
    described = _listed_panel(step, lists)
    if word(described, 0) != i:
        call(step.list_rows, (left, rows, lists, size))
        set_word(described, 0, i)
    item, panel, height = step.item, step.panel, step.feature_tile
    narrow = columns <= step.lanes
    tile = step.listed_gradient_narrow if narrow else step.listed_gradient_wide
    for start in range(0, rows, block):
        for m in range(0, features, height):
            here = lists + m // height * size
            count = min(block, word(here, 0) - start)
            out = scratch + m * panel * item
            begin, begin_stride = (step.zeros, 0) if start == 0 else (out, panel)
            if start == 0 or count > 0:
                entries = here + HEADER_BYTES + start * ROW_ENTRY_BYTES
                call(tile, (left + m * item, right, entries, count, begin, begin_stride, out))
