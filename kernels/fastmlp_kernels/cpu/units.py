"""Units of weights: into panels and out of them, and what becomes of a unit's gradient."""

from fastmlp_kernels.algebra.optimizers import BIAS_DECAY, CLIP_VALUE, WEIGHT_DECAY
from fastmlp_kernels.compile import part
from fastmlp_kernels.cpu.columns import panel_owner
from fastmlp_kernels.cpu.intrinsics import call
from fastmlp_kernels.cpu.linear import layer_of, panels_of
from fastmlp_kernels.cpu.simd import VECTORS_PER_PANEL
from fastmlp_kernels.cpu.tables import EDGES, INPUT_GRADIENT, PACKED, UNPACKED, WORD_BYTES


@part
def unit_cost(step, layer, i, j):
    """Return the vectors of a unit's tiles: what a row of its weight gradient costs."""
    panel = step.panel
    if layer.fan_out == 1:
        return 1
    features = min(panel, layer.fan_in - i * panel)
    tile = step.feature_tile
    narrow = layer.fan_out - j * panel <= step.lanes
    return (features + tile - 1) // tile * tile * (1 if narrow else VECTORS_PER_PANEL)


@part
def _transpose_unit(step, layer, i, j, features, columns):
    """Bring the transposed copy of a unit of weights up to date, or of those that follow it too."""
    item, panel, lanes = step.item, step.panel, step.lanes
    source = layer.W + (j * layer.W_stride + i * panel * panel) * item
    out = layer.transposed + (i * layer.transposed_stride + j * panel * panel) * item
    blocks, across = (features + lanes - 1) // lanes, (columns + lanes - 1) // lanes
    call(step.transpose, (source, out, blocks, layer.transposed_stride, across))


@part
def pack_unit(step, layer, i, j, transposed):
    """Copy a unit of weights, panel i of its rows and j of its columns, into panels.

    Where ``step.packed`` says so, of some units the biases alone are copied.

    Parameters
    ----------
    step : record
        The program's table, see `cpu.tables`.
    layer : record
    i, j : int
    transposed : int
        Whether backward-data needs the transposed copy.

    Notes
    -----
    Cost: a read and two writes an element. Source: the one layout of `cpu.microkernels`.
    """
    item, panel = step.item, step.panel
    features = min(panel, layer.fan_in - i * panel)
    columns = min(panel, layer.fan_out - j * panel)
    start = step.parameters + (layer.weight + i * panel * layer.fan_out + j * panel) * item
    out = layer.W + (j * layer.W_stride + i * panel * panel) * item
    order = step.identity
    if layer.fan_out == 1:
        # One column: as a row, it is contiguous, and the only copy that is read.
        out = layer.transposed + i * layer.transposed_stride * item
        rows = (start, order, 0, 1, features, features, panel)
        call(step.copy_rows, rows + (out, panel, panel, 1))
    elif step.packed == PACKED or (step.packed == EDGES and columns < panel):
        rows = (start, order, 0, features, columns, layer.fan_out, panel)
        call(step.copy_rows, rows + (out, panel, panel, 1))
        if transposed:
            _transpose_unit(step, layer, i, j, features, columns)
    if i == 0:
        start = step.parameters + (layer.bias + j * panel) * item
        out = layer.B + j * panel * item
        call(
            step.copy_rows,
            (start, order, 0, 1, columns, columns, panel, out, panel, panel, 1),
        )


@part
def pack_rows(step, layer, i):
    """Copy panel i of the rows of a layer's weights into panels, of all its columns.

    Faster than unit by unit, as it reads whole rows. Cost: a read and a write an element. Source:
    the one layout of `cpu.microkernels`.
    """
    item, panel, columns = step.item, step.panel, layer.fan_out
    features = min(panel, layer.fan_in - i * panel)
    start = step.parameters + (layer.weight + i * panel * columns) * item
    rows = (start, step.identity, 0, features, columns, columns, panel)
    out = layer.W + i * panel * panel * item
    call(step.copy_rows, rows + (out, panel, layer.W_stride, 1))


@part
def pack_biases(step, layer):
    """Copy a layer's biases into panels. Cost: a read and a write an element."""
    columns, panel = layer.fan_out, step.panel
    rows = (step.parameters + layer.bias * step.item, step.identity, 0, 1, columns, columns, panel)
    call(step.copy_rows, rows + (layer.B, panel, panel, 1))


@part
def unpack_unit(step, layer, i, j):
    """Copy a unit of weights out of the panels, to where the caller has them: see `pack_unit`.

    Cost: a read and a write an element. Source: the one layout of `cpu.microkernels`.
    """
    item, panel = step.item, step.panel
    features = min(panel, layer.fan_in - i * panel)
    columns = min(panel, layer.fan_out - j * panel)
    out = step.parameters + (layer.weight + i * panel * layer.fan_out + j * panel) * item
    if layer.fan_out == 1:
        source = layer.transposed + i * layer.transposed_stride * item
        rows = (source, step.identity, 0, 1, features, panel, panel)
        call(step.copy_rows, rows + (out, features, panel, 0))
    else:
        source = layer.W + (j * layer.W_stride + i * panel * panel) * item
        rows = (source, step.identity, 0, features, columns, panel, panel)
        call(step.copy_rows, rows + (out, layer.fan_out, panel, 0))
    if i == 0:
        source, out = layer.B + j * panel * item, layer.bias + j * panel
        rows = (source, step.identity, 0, 1, columns, panel, panel)
        call(step.copy_rows, rows + (step.parameters + out * item, columns, panel, 0))


@part
def copy_units(step, thread, into_panels):
    """Copy this thread's share of the weights into panels, or back to where the caller has them.

    Cost: that of `pack_unit` or of `unpack_unit` for each unit. Source: as theirs.
    """
    threads, stages = step.threads, step.stages
    done = 0
    for index in range(step.layers):
        layer = layer_of(step, index)
        inputs, outputs = panels_of(step, layer.fan_in), panels_of(step, layer.fan_out)
        if step.packed == UNPACKED and layer.fan_out > 1:
            inputs = 1  # for the biases alone
        shared = index == 0 and step.columns != 0
        transposed = index > 0 or (stages & INPUT_GRADIENT) != 0
        for i in range(inputs):
            for j in range(outputs):
                if shared:
                    mine = panel_owner(j, outputs, threads) == thread
                else:
                    mine = done * threads // step.units == thread
                    done += 1
                if mine and into_panels:
                    pack_unit(step, layer, i, j, transposed)
                elif mine:
                    unpack_unit(step, layer, i, j)


@part
def load_unit(step, layer, i, j, tile):
    """Copy a unit of the caller's gradient into its tile: what `weight_gradient` computes.

    Cost: a read and a write an element. Source: the one layout of `cpu.microkernels`.
    """
    item, panel = step.item, step.panel
    features = min(panel, layer.fan_in - i * panel)
    columns = min(panel, layer.fan_out - j * panel)
    start = step.gradient + (layer.weight + i * panel * layer.fan_out + j * panel) * item
    rows = (1, features, features) if layer.fan_out == 1 else (features, columns, layer.fan_out)
    count, width, stride = rows
    out = (panel, tile + panel * item, panel, panel, 1)
    call(step.copy_rows, (start, step.identity, 0, count, width, stride, *out))
    if i == 0:
        start = step.gradient + (layer.bias + j * panel) * item
        out = (panel, tile, panel, panel, 1)
        call(step.copy_rows, (start, step.identity, 0, 1, columns, columns, *out))


@part
def clip_unit(step, layer, i, j, tile, hyper, squares):
    """Limit the elements of a unit's gradient, and sum their squares.

    `hyper` and `squares` are addresses: of the layer's hyper-parameters, and of two sums (float64),
    the weights' and the biases'. Cost: 4 flops, a read and a write an element. Source:
    `algebra.optimizers`.
    """
    item, panel = step.item, step.panel
    features = min(panel, layer.fan_in - i * panel)
    columns = min(panel, layer.fan_out - j * panel)
    limit = hyper + CLIP_VALUE * item
    rows, width = (1, features) if layer.fan_out == 1 else (features, columns)
    square = tile + panel * item
    call(step.clip, (square, rows, width, panel, limit, squares))
    if i == 0:
        call(step.clip, (tile, 1, columns, panel, limit, squares + WORD_BYTES))


@part
def finish_unit(step, layer, i, j, tile, hyper, scale, transposed):
    """Finish a unit of a gradient: an update, or a store.

    Parameters
    ----------
    step, layer, i, j, tile
        See `weight_gradient`.
    hyper, scale : int
        Addresses of the layer's hyper-parameters, and of what the gradient is multiplied by where
        its norm is limited.
    transposed : int
        Whether the transposed copy of the weights is kept up to date.

    Notes
    -----
    Where `finish` sums squares, that of the unit goes to its place among the layer's `squares`.
    Cost and source: see `cpu.update`.
    """
    item, panel = step.item, step.panel
    features = min(panel, layer.fan_in - i * panel)
    squares = layer.squares + (i * panels_of(step, layer.fan_out) + j) * WORD_BYTES
    if layer.fan_out == 1:
        copy, rows = layer.transposed + i * layer.transposed_stride * item, (1, features, features)
    else:
        columns = min(panel, layer.fan_out - j * panel)
        copy = layer.W + (j * layer.W_stride + i * panel * panel) * item
        rows = features, columns, layer.fan_out
    offset = (layer.weight + i * panel * layer.fan_out + j * panel) * item
    operands = (step.unused, tile + panel * item), (scale, squares)
    _apply(step, step.finish, (offset, copy), rows, operands, hyper, hyper + WEIGHT_DECAY * item)
    if transposed and layer.fan_out > 1:
        _transpose_unit(step, layer, i, j, rows[0], rows[1])
    if i == 0:
        operands = (step.unused, tile), (scale, step.unused)
        _finish_biases(step, step.finish, layer, j, operands, hyper)


@part
def finish_columns(step, layer, j, left, hyper, transposed):
    """Update all units of a panel of outputs by the gradient of a single row.

    Parameters
    ----------
    step, layer, j, left
        See `weight_gradient`.
    hyper, transposed
        See `finish_unit`.

    Notes
    -----
    The gradient, a product of two rows, is nowhere written. Cost: 2 flops a weight beside the
    update's. Accuracy: the bits of `weight_gradient` and `finish_unit`. Source: the derivation
    sheet, ``dl/dW = x dl/dz``.
    """
    item, panel, fan_in, leaf = step.item, step.panel, layer.fan_in, step.finish_row
    right = layer.delta + j * step.panel_stride * item
    numbers, decay = (step.unused, step.unused), hyper + WEIGHT_DECAY * item
    columns = min(panel, layer.fan_out - j * panel)
    if layer.fan_out > 1:
        place = (layer.weight + j * panel) * item, layer.W + j * layer.W_stride * item
        operands = (left, right), numbers
        _apply(step, leaf, place, (fan_in, columns, layer.fan_out), operands, hyper, decay)
        if transposed:
            _transpose_unit(step, layer, 0, j, fan_in, columns)
    else:
        for i in range(panels_of(step, fan_in)):
            features = min(panel, fan_in - i * panel)
            # Inputs are in the lanes, and the one number is the output's.
            offset = (layer.weight + i * panel) * item
            place = offset, layer.transposed + i * layer.transposed_stride * item
            operands = (right, left + i * step.panel_stride * item), numbers
            _apply(step, leaf, place, (1, features, features), operands, hyper, decay)
    _finish_biases(step, leaf, layer, j, ((step.one, right), numbers), hyper)


@part
def _finish_biases(step, leaf, layer, j, operands, hyper):
    item, panel = step.item, step.panel
    columns = min(panel, layer.fan_out - j * panel)
    place = (layer.bias + j * panel) * item, layer.B + j * panel * item
    _apply(step, leaf, place, (1, columns, columns), operands, hyper, hyper + BIAS_DECAY * item)


@part
def _apply(step, leaf, place, rows, operands, hyper, decay):
    """Call an update's leaf: see `update.update`."""
    offset, copy = place
    rows, columns, stride = rows
    gradient, (scale, squares) = operands
    state = step.first + offset, step.second + offset
    sizes = rows, columns, stride, step.panel
    numbers = hyper, decay, scale, squares
    call(leaf, (step.target + offset, *state, *gradient, copy, *sizes, *numbers))
