"""The three products of a linear layer, in blocks of rows and units of weights, over panels."""

from fastmlp_kernels.compile import part
from fastmlp_kernels.cpu.direct import direct_panels, direct_rows
from fastmlp_kernels.cpu.intrinsics import call, field_word, next_record, record_at
from fastmlp_kernels.cpu.row_tiles import PANELS_OF_A_ROW
from fastmlp_kernels.cpu.skipping import listed_product, listed_sum
from fastmlp_kernels.cpu.tables import EDGES, LAYER, PANELS, PLAIN_TILE, TILE, UNPACKED, WIDE


@part
def layer_of(step, index):
    """Return a layer's record."""
    return record_at(step.chain, LAYER, index)


@part
def panels_of(step, columns):
    """Return the number of panels that columns take."""
    return (columns + step.panel - 1) // step.panel


@part
def _product(step, left, right, initial, out, ending, block):
    """Write ``left @ right`` plus the initial row: a block of rows, of k and of column panels.

    `ending` is an index in the tiles, and where the layer below keeps its activation, for tiles
    that end with one. Returns the largest magnitude met.
    """
    right, right_stride, columns = right
    initial, initial_stride = initial
    index, kept = ending
    first, last, start, count, first_panel, last_panel = block
    item, panel, lanes = step.item, step.panel, step.lanes
    stride = step.panel_stride
    left += start * stride // panel * item
    seen = 0
    if last - first == 1:
        tile = record_at(step.tiles, TILE, 0)
        while tile.rows > 1:
            tile = next_record(tile)
        operands = left, (right, right_stride), (initial, initial_stride), out, ending, block
        seen, first_panel = row_product(step, tile, columns, *operands)
    for j in range(first_panel, last_panel):
        wide = 0 if columns - j * panel <= lanes else WIDE
        right_j = right + (j * right_stride + start * panel) * item
        out_j = out + j * stride * item
        begin = initial + j * initial_stride * item
        row, tile = first, record_at(step.tiles, TILE, 0)
        while row < last:
            while tile.rows > last - row:
                tile = next_record(tile)
            here = out_j + row * panel * item
            from_row = left + row * panel * item
            above = here if start > 0 else begin
            rows = panel if start > 0 else 0
            tiles = (last - row) // tile.rows
            operands = from_row, stride, right_j, count, above, rows, here, kept + here - out
            seen = max(seen, call(field_word(tile, index + wide), (*operands, tiles)))
            row += tiles * tile.rows
    return seen


@part
def row_product(step, tile, columns, left, right, initial, out, ending, block):
    """Do the part of `_product` that is several panels of a single row, by a tile of one row.

    Returns the largest magnitude, and the first panel that is left.
    """
    right, right_stride = right
    initial, initial_stride = initial
    index, kept = ending
    row, _, start, count, first_panel, last_panel = block
    item, panel, stride, lanes = step.item, step.panel, step.panel_stride, step.lanes
    left += row * panel * item
    seen, j = 0, first_panel
    # The last of them may be a part of a panel, but no narrow one.
    while j + PANELS_OF_A_ROW <= last_panel and columns - (j + PANELS_OF_A_ROW - 1) * panel > lanes:
        here = out + (j * stride + row * panel) * item
        above = here if start > 0 else initial + j * initial_stride * item
        apart = stride if start > 0 else initial_stride
        weights = right + (j * right_stride + start * panel) * item, right_stride
        operands = (left, stride, *weights, count, above, apart, here, stride, kept + here - out)
        seen = max(seen, call(field_word(tile, index + PANELS), operands))
        j += PANELS_OF_A_ROW
    return seen, j


@part
def _finish(step, leaf, kept, data, block):
    """Call an activation's leaf on a block of rows of some panels; return the largest magnitude."""
    first, last, first_panel, last_panel = block
    item, panel, stride = step.item, step.panel, step.panel_stride
    seen = 0
    for j in range(first_panel, last_panel):
        offset = (j * stride + first * panel) * item
        seen = max(seen, call(leaf, (kept + offset, data + offset, (last - first) * panel)))
    return seen


@part
def dot_rows(step, layer, left, first, last):
    """Compute Z of a layer with one output, inputs in the lanes; return the largest magnitude."""
    item, panel = step.item, step.panel
    left, out = (left + first * panel * item), (layer.Z + first * panel * item)
    panels = panels_of(step, layer.fan_in)
    right, stride = layer.transposed, layer.transposed_stride
    weights = (left, step.panel_stride, right, stride, panels)
    return call(step.dot_rows, weights + (last - first, layer.B, out))


@part
def linear_forward(step, layer, left, block, lists):
    """Compute ``Z = A W + b`` and ``f(Z)`` of a block of rows; return the largest |Z| as bits.

    Parameters
    ----------
    step : record
        The program's table, see `cpu.tables`: the layer's W and b in panels are read,
        its Z and A written.
    layer : record
    left : int
        Address of the panels of A.
    block : (int, int, int, int)
        First and last row, first and last panel of columns; all panels where the layer has one
        output, or is not packed.
    lists : int
        Address of this thread's lists of k, or 0 for a product with all of them.

    Notes
    -----
    Cost: ``2 rows fan_in fan_out`` flops. Aliasing: Z and A are the same panels exactly when the
    activation keeps its output; nothing else overlaps. Accuracy: each element is one chain of fused
    multiply-adds from the bias on, k ascending, whatever the rows beside it: error at most
    ``(fan_in + 1) u (|A| |W| + |b|)``. Source: the derivation sheet, ``z = W x + b``.
    """
    first, last, first_panel, last_panel = block
    # Where it is, the product has seen all that the activation's leaf would look at.
    identity = layer.value == step.check
    seen = 0
    if layer.fan_out == 1:
        seen = dot_rows(step, layer, left, first, last)
        if identity:
            return seen
    elif step.packed == UNPACKED:
        direct_rows(step, layer, left, first, last)
    elif lists:
        listed_product(step, layer, left, block, lists)
    else:
        depth, finish = layer.fan_in, layer.value_tile
        if step.packed == EDGES:
            first_panel, finish = direct_panels(step, layer, left, first, last), 0
            identity = False
        weights = layer.W, layer.W_stride, layer.fan_out
        bias = layer.B, step.panel
        for start in range(0, depth, step.depth_block):
            count = min(step.depth_block, depth - start)
            ending = finish if finish and start + count == depth else PLAIN_TILE, 0
            here = first, last, start, count, first_panel, last_panel
            seen = _product(step, left, weights, bias, layer.Z, ending, here)
        if finish or identity:
            return seen
    if step.claims and layer.value == step.check:
        # Nobody asks how large predictions are.
        return seen
    return _finish(step, layer.value, layer.Z, layer.A, block)


@part
def blockwise_forward(step, layer, first, last, copy):
    """Do `linear_forward` of a block of rows with weights that lie where the caller has them.

    A block of a panel of weights is copied, and multiplied with all rows, before the next one. It
    is then in this core's own caches, and nothing comes from another core. Two threads that copied
    weights for each other took 1.1 to 1.6 times as long (64 to 128 rows, 2-core AMD EPYC, Zen 3,
    2026-11-30).

    Parameters
    ----------
    step, layer, first, last
        See `linear_forward`; a layer of several outputs.
    copy : int
        Address of this thread's block of weights, which is written.

    Notes
    -----
    Cost and accuracy: those of `linear_forward`, bit for bit, and a copy of the weights.
    """
    item, panel, columns, depth = step.item, step.panel, layer.fan_out, layer.fan_in
    panels = panels_of(step, columns)
    weights, bias = step.parameters + layer.weight * item, (layer.B, panel)
    finish = layer.value_tile
    for j in range(panels):
        width = min(panel, columns - j * panel)
        for start in range(0, depth, step.weight_block_depth):
            count = min(step.weight_block_depth, depth - start)
            source = weights + (start * columns + j * panel) * item
            rows = (source, step.identity, 0, count, width, columns, panel)
            call(step.copy_rows, rows + (copy, panel, panel, 1))
            ending = finish if finish and start + count == depth else PLAIN_TILE, 0
            # As if the panel's first row of weights came before the copy.
            right = copy - start * panel * item, 0, columns
            here = first, last, start, count, j, j + 1
            _product(step, layer.input, right, bias, layer.Z, ending, here)
    if not finish and layer.value != step.check:
        _finish(step, layer.value, layer.Z, layer.A, (first, last, 0, panels))


@part
def linear_backward(step, layer, first, last, dA, kept, slope, finish):
    """Compute ``dA = dZ W^T`` of a block of rows, and what the layer below makes of it.

    Parameters
    ----------
    step : record
        The program's table, see `cpu.tables`: the layer's dZ and transposed weights
        are read.
    layer : record
    first, last : int
        The block of rows.
    dA : int
        Address of the panels that are written.
    kept, slope, finish : int
        Addresses of what the layer below kept, and of its `activation_backward`; the column of the
        tiles that apply it, or 0.

    Notes
    -----
    Returns the largest magnitude written, as bits. Cost: ``2 rows fan_in fan_out`` flops. Accuracy:
    one chain of fused multiply-adds, error at most ``fan_out u |dZ| |W|^T``. Source: the chain
    rule, ``dl/da = W dl/dz``.
    """
    depth, panels, seen = layer.fan_out, panels_of(step, layer.fan_in), 0
    weights = layer.transposed, layer.transposed_stride, layer.fan_in
    for start in range(0, depth, step.depth_block):
        count = min(step.depth_block, depth - start)
        ending = finish if finish and start + count == depth else PLAIN_TILE, kept
        here = first, last, start, count, 0, panels
        zeros = step.zeros, 0
        seen = _product(step, layer.delta, weights, zeros, dA, ending, here)
    if finish or slope == step.unit_slope:
        return seen
    return _finish(step, slope, kept, dA, (first, last, 0, panels))


@part
def _sum_unit(step, tile, left, right, rows, features, scratch):
    """Sum a unit of a weight gradient over the batch, a block of rows at a time.

    `tile` is the address of a tile, and its rows.
    """
    tile, height = tile
    item, panel, block = step.item, step.panel, step.sum_block
    tiles = (features + height - 1) // height
    for start in range(0, rows, block):
        count = min(block, rows - start)
        here = left + start * panel * item, right + start * panel * item
        if start > 0:
            call(tile, (*here, count, scratch, panel, scratch, tiles))
        else:
            call(tile, (*here, count, step.zeros, 0, scratch, tiles))


@part
def weight_gradient(step, layer, i, j, left, rows, tile, lists):
    """Compute a unit of ``dW = A^T dZ``, and of ``db`` where it is the first of its columns.

    Parameters
    ----------
    step : record
        The program's table, see `cpu.tables`: the layer's input and dZ panels are read.
    layer : record
    i, j : int
        The unit: panel i of the layer's inputs, panel j of its outputs.
    left : int
        Address of the panels of A.
    rows : int
        Summed over, from the first.
    tile : int
        Address of the unit's tile, which is written: a row for the biases, and a square of a
        panel's width.
    lists : int
        Address of this thread's lists of rows, or 0 for a sum over all of them.

    Notes
    -----
    Cost: ``2 rows`` flops a weight. Accuracy: one chain of fused multiply-adds an element, rows
    ascending; error at most ``rows u |A|^T |dZ|``. Source: the derivation sheet,
    ``dl/dW = x dl/dz``.
    """
    item, panel = step.item, step.panel
    features = min(panel, layer.fan_in - i * panel)
    columns = min(panel, layer.fan_out - j * panel)
    left += i * step.panel_stride * item
    right = layer.delta + j * step.panel_stride * item
    square = tile + panel * item
    if layer.fan_out == 1:
        call(step.gradient_single, (right, left, rows, step.zeros, 0, square, 1))
    elif lists:
        listed_sum(step, i, left, right, (rows, features, columns), square, lists)
    else:
        product = step.gradient_wide, step.feature_tile
        if columns <= step.lanes:
            product = step.gradient_narrow, step.narrow_feature_tile
        _sum_unit(step, product, left, right, rows, features, square)
    if i == 0:
        call(step.column_sum, (right, rows, tile))
