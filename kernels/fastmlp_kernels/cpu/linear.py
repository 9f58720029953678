"""The three products of a linear layer, in blocks of rows and units of weights, over panels."""

from fastmlp_kernels.algebra.optimizers import BIAS_DECAY, WEIGHT_DECAY
from fastmlp_kernels.compile import part
from fastmlp_kernels.cpu.intrinsics import call, word
from fastmlp_kernels.cpu.microkernels import DIRECT_VECTORS
from fastmlp_kernels.cpu.skipping import listed_product, listed_sum
from fastmlp_kernels.cpu.tables import (
    BIAS,
    CHAIN,
    CHAIN_COLUMNS,
    COLUMN_SUM,
    COPY_ROWS,
    DELTA,
    DEPTH_BLOCK,
    DIRECT,
    DOT_ROWS,
    FAN_IN,
    FAN_OUT,
    FEATURE_TILE,
    FINISH,
    FIRST,
    GRADIENT_NARROW,
    GRADIENT_SINGLE,
    GRADIENT_WIDE,
    IDENTITY,
    INPUT,
    ITEM,
    LANES,
    PACKED,
    PANEL,
    PANEL_STRIDE,
    PARAMETERS,
    SECOND,
    SQUARES,
    SUM_BLOCK,
    TARGET,
    TILE_COLUMNS,
    TILE_NARROW,
    TILE_ROWS,
    TILE_WIDE,
    TILES,
    TRANSPOSE,
    TRANSPOSED,
    TRANSPOSED_STRIDE,
    UNUSED,
    VALUE,
    VALUE_TILE,
    W_STRIDE,
    WEIGHT,
    WORD_BYTES,
    ZEROS,
    A,
    B,
    W,
    Z,
)


@part
def layer_row(words, layer):
    """Return the address of a layer's row of the chain."""
    return word(words, CHAIN) + layer * CHAIN_COLUMNS * WORD_BYTES


@part
def panels_of(words, columns):
    """Return the number of panels that columns take."""
    return (columns + word(words, PANEL) - 1) // word(words, PANEL)


@part
def _product(words, left, right, initial, out, ending, block):
    """Write ``left @ right`` plus the initial row: a block of rows, of k and of column panels.

    `ending` is a column of the tiles, and where the layer below keeps its activation, for tiles
    that end with one: those return the largest magnitude that they met, and others 0.
    """
    right, right_stride, columns = right
    initial, step = initial
    column, kept = ending
    first, last, start, count, first_panel, last_panel = block
    item, panel, lanes = word(words, ITEM), word(words, PANEL), word(words, LANES)
    stride = word(words, PANEL_STRIDE)
    left += start * stride // panel * item
    seen = 0
    for j in range(first_panel, last_panel):
        wide = 0 if columns - j * panel <= lanes else TILE_WIDE - TILE_NARROW
        right_j = right + (j * right_stride + start * panel) * item
        out_j = out + j * stride * item
        begin = initial + j * step * item
        row, tile = first, word(words, TILES)
        while row < last:
            while word(tile, TILE_ROWS) > last - row:
                tile += TILE_COLUMNS * WORD_BYTES
            here = out_j + row * panel * item
            from_row = left + row * panel * item
            above = here if start > 0 else begin
            rows = panel if start > 0 else 0
            operands = (from_row, stride, right_j, count, above, rows, here, kept + here - out)
            seen = max(seen, call(word(tile, column + wide), operands))
            row += word(tile, TILE_ROWS)
    return seen


@part
def _finish(words, leaf, kept, data, block):
    """Call an activation's leaf on a block of rows of some panels; return the largest magnitude."""
    first, last, first_panel, last_panel = block
    item, panel, stride = word(words, ITEM), word(words, PANEL), word(words, PANEL_STRIDE)
    seen = 0
    for j in range(first_panel, last_panel):
        offset = (j * stride + first * panel) * item
        seen = max(seen, call(leaf, (kept + offset, data + offset, (last - first) * panel)))
    return seen


@part
def _dot_rows(words, row, first, last):
    """Compute Z of a layer with one output, inputs in the lanes: a panel has room for many."""
    item, panel = word(words, ITEM), word(words, PANEL)
    left, out = (word(row, INPUT) + first * panel * item), (word(row, Z) + first * panel * item)
    panels = panels_of(words, word(row, FAN_IN))
    right, stride = word(row, TRANSPOSED), word(row, TRANSPOSED_STRIDE)
    weights = (left, word(words, PANEL_STRIDE), right, stride, panels)
    call(word(words, DOT_ROWS), weights + (last - first, word(row, B), out))


@part
def _direct(words, row, first, last):
    """Compute Z of a few rows from the weights as the caller has them."""
    item, panel, stride = word(words, ITEM), word(words, PANEL), word(words, PANEL_STRIDE)
    columns = word(row, FAN_OUT)
    weights = word(words, PARAMETERS) + word(row, WEIGHT) * item
    width = DIRECT_VECTORS * word(words, LANES)
    for here in range(first, last):
        left = word(row, INPUT) + here * panel * item
        out = word(row, Z) + here * panel * item
        for j in range(0, columns, width):
            right = (weights + j * item, columns, word(row, FAN_IN), columns - j)
            into = (word(row, B) + j * item, out + j // panel * stride * item, stride)
            call(word(words, DIRECT), (left, stride) + right + into)


@part
def linear_forward(words, layer, left, block, lists):
    """Compute ``Z = A W + b`` and ``f(Z)`` of a block of rows; return the largest |Z| as bits.

    Parameters
    ----------
    words : int
        Address of the program's tables, see `cpu.tables`: the layer's W and b in panels are read,
        its Z and A written.
    layer : int
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
    row = layer_row(words, layer)
    first, last, first_panel, last_panel = block
    if word(row, FAN_OUT) == 1:
        _dot_rows(words, row, first, last)
    elif not word(words, PACKED):
        _direct(words, row, first, last)
    elif lists:
        listed_product(words, row, left, block, lists)
    else:
        depth, finish, seen = word(row, FAN_IN), word(row, VALUE_TILE), 0
        weights = word(row, W), word(row, W_STRIDE), word(row, FAN_OUT)
        bias = word(row, B), word(words, PANEL)
        for start in range(0, depth, word(words, DEPTH_BLOCK)):
            count = min(word(words, DEPTH_BLOCK), depth - start)
            ending = finish if finish and start + count == depth else TILE_NARROW, 0
            here = first, last, start, count, first_panel, last_panel
            seen = _product(words, left, weights, bias, word(row, Z), ending, here)
        if finish:
            return seen
    return _finish(words, word(row, VALUE), word(row, Z), word(row, A), block)


@part
def linear_backward(words, layer, first, last, dA, kept, slope, finish):
    """Compute ``dA = dZ W^T`` of a block of rows, and what the layer below makes of it.

    Parameters
    ----------
    words : int
        Address of the program's tables, see `cpu.tables`: the layer's dZ and transposed weights
        are read.
    layer : int
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
    row = layer_row(words, layer)
    depth, panels, seen = word(row, FAN_OUT), panels_of(words, word(row, FAN_IN)), 0
    weights = word(row, TRANSPOSED), word(row, TRANSPOSED_STRIDE), word(row, FAN_IN)
    for start in range(0, depth, word(words, DEPTH_BLOCK)):
        count = min(word(words, DEPTH_BLOCK), depth - start)
        ending = finish if finish and start + count == depth else TILE_NARROW, kept
        here = first, last, start, count, 0, panels
        zeros = word(words, ZEROS), 0
        seen = _product(words, word(row, DELTA), weights, zeros, dA, ending, here)
    if finish:
        return seen
    return _finish(words, slope, kept, dA, (first, last, 0, panels))


@part
def _transpose_unit(words, layer, i, j, features, columns):
    """Bring the transposed copy of a unit of weights up to date."""
    item, panel, lanes = word(words, ITEM), word(words, PANEL), word(words, LANES)
    row = layer_row(words, layer)
    source = word(row, W) + (j * word(row, W_STRIDE) + i * panel * panel) * item
    out = word(row, TRANSPOSED) + (i * word(row, TRANSPOSED_STRIDE) + j * panel * panel) * item
    for r in range(0, features, lanes):
        for c in range(0, columns, lanes):
            call(
                word(words, TRANSPOSE),
                (source + (r * panel + c) * item, out + (c * panel + r) * item),
            )


@part
def pack_unit(words, layer, i, j, transposed):
    """Copy a unit of weights, panel i of its rows and j of its columns, into panels.

    Parameters
    ----------
    words : int
        Address of the program's tables, see `cpu.tables`.
    layer, i, j : int
    transposed : int
        Whether backward-data needs the transposed copy.

    Notes
    -----
    Cost: a read and two writes an element. Source: the one layout of `cpu.microkernels`.
    """
    item, panel = word(words, ITEM), word(words, PANEL)
    row = layer_row(words, layer)
    features = min(panel, word(row, FAN_IN) - i * panel)
    columns = min(panel, word(row, FAN_OUT) - j * panel)
    start = (
        word(words, PARAMETERS)
        + (word(row, WEIGHT) + i * panel * word(row, FAN_OUT) + j * panel) * item
    )
    out = word(row, W) + (j * word(row, W_STRIDE) + i * panel * panel) * item
    order = word(words, IDENTITY)
    if word(row, FAN_OUT) == 1:
        # One column: as a row, it is contiguous, and the only copy that is read.
        out = word(row, TRANSPOSED) + i * word(row, TRANSPOSED_STRIDE) * item
        rows = (start, order, 0, 1, features, features, panel)
        call(word(words, COPY_ROWS), rows + (out, panel, panel, 1))
    elif word(words, PACKED):
        rows = (start, order, 0, features, columns, word(row, FAN_OUT), panel)
        call(word(words, COPY_ROWS), rows + (out, panel, panel, 1))
        if transposed:
            _transpose_unit(words, layer, i, j, features, columns)
    if i == 0:
        start = word(words, PARAMETERS) + (word(row, BIAS) + j * panel) * item
        out = word(row, B) + j * panel * item
        call(
            word(words, COPY_ROWS),
            (start, order, 0, 1, columns, columns, panel, out, panel, panel, 1),
        )


@part
def _sum_unit(words, tile, left, right, rows, features, scratch):
    """Sum a unit of a weight gradient over the batch, a block of rows at a time."""
    item, panel, block = word(words, ITEM), word(words, PANEL), word(words, SUM_BLOCK)
    for start in range(0, rows, block):
        count = min(block, rows - start)
        here = right + start * panel * item
        for m in range(0, features, word(words, FEATURE_TILE)):
            out = scratch + m * panel * item
            from_row = left + (start * panel + m) * item
            if start > 0:
                call(tile, (from_row, here, count, out, panel, out))
            else:
                call(tile, (from_row, here, count, word(words, ZEROS), 0, out))


@part
def weight_gradient(words, layer, i, j, left, rows, hyper, transposed, scratch, lists):
    """Compute a unit of ``dW = A^T dZ`` (and of ``db``), and finish it: an update, or a store.

    Parameters
    ----------
    words : int
        Address of the program's tables, see `cpu.tables`: the layer's input and dZ panels are read.
    layer, i, j : int
        The unit: panel i of the layer's inputs, panel j of its outputs.
    left : int
        Address of the panels of A.
    rows : int
        Summed over, from the first.
    hyper : int
        Address of the step's hyper-parameters.
    transposed : int
        Whether the transposed copy of the weights is kept up to date.
    scratch : int
        Address of a square of a panel's width, of this thread's own.
    lists : int
        Address of this thread's lists of rows, or 0 for a sum over all of them.

    Notes
    -----
    Where FINISH sums squares, that of the unit goes to its place among the layer's SQUARES.
    Cost: ``2 rows`` flops a weight. Accuracy: one chain of fused multiply-adds an element, rows
    ascending; error at most ``rows u |A|^T |dZ|``. Source: the derivation sheet,
    ``dl/dW = x dl/dz``.
    """
    item, panel = word(words, ITEM), word(words, PANEL)
    row = layer_row(words, layer)
    features = min(panel, word(row, FAN_IN) - i * panel)
    columns = min(panel, word(row, FAN_OUT) - j * panel)
    left += i * word(words, PANEL_STRIDE) * item
    right = word(row, DELTA) + j * word(words, PANEL_STRIDE) * item
    offset = (word(row, WEIGHT) + i * panel * word(row, FAN_OUT) + j * panel) * item
    weight_decay = hyper + WEIGHT_DECAY * item
    squares = word(row, SQUARES) + (i * panels_of(words, word(row, FAN_OUT)) + j) * WORD_BYTES
    if word(row, FAN_OUT) == 1:
        product = word(words, GRADIENT_SINGLE)
        call(product, (right, left, rows, word(words, ZEROS), 0, scratch))
        copy = word(row, TRANSPOSED) + i * word(row, TRANSPOSED_STRIDE) * item
        tile = (offset, scratch, copy, 1, features, features)
        _apply(words, tile, hyper, weight_decay, squares)
    else:
        if lists:
            listed_sum(words, i, left, right, (rows, features, columns), scratch, lists)
        else:
            product = GRADIENT_NARROW if columns <= word(words, LANES) else GRADIENT_WIDE
            _sum_unit(words, word(words, product), left, right, rows, features, scratch)
        copy = word(row, W) + (j * word(row, W_STRIDE) + i * panel * panel) * item
        tile = (offset, scratch, copy, features, columns, word(row, FAN_OUT))
        _apply(words, tile, hyper, weight_decay, squares)
        if transposed:
            _transpose_unit(words, layer, i, j, features, columns)
    if i == 0:
        call(word(words, COLUMN_SUM), (right, rows, scratch))
        offset = (word(row, BIAS) + j * panel) * item
        tile = (offset, scratch, word(row, B) + j * panel * item, 1, columns, columns)
        _apply(words, tile, hyper, hyper + BIAS_DECAY * item, word(words, UNUSED))


@part
def _apply(words, tile, hyper, decay, squares):
    offset, gradient, copy, rows, columns, stride = tile
    call(
        word(words, FINISH),
        (
            word(words, TARGET) + offset,
            word(words, FIRST) + offset,
            word(words, SECOND) + offset,
            gradient,
            copy,
            rows,
            columns,
            stride,
            word(words, PANEL),
            hyper,
            decay,
            squares,
        ),
    )
