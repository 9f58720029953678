"""The forward product of a few rows, from weights that lie where the caller has them."""

from fastmlp_kernels.compile import part
from fastmlp_kernels.cpu.intrinsics import call, next_record, record_at
from fastmlp_kernels.cpu.tables import TILE


@part
def direct_rows(step, layer, left, first, last):
    """Compute Z of some rows, one after another: nothing but the bias is in panels."""
    item, panel, stride = step.item, step.panel, step.panel_stride
    weights = step.parameters + layer.weight * item, layer.fan_out, layer.fan_in
    for row in range(first, last):
        here = row * panel * item
        out = layer.B, layer.Z + here, stride
        call(step.direct_row, (left + here, stride) + weights + out)


@part
def direct_panels(step, layer, left, first, last):
    """Compute Z of a block of rows in all columns that fill a panel; return how many panels."""
    item, panel, stride = step.item, step.panel, step.panel_stride
    columns = layer.fan_out
    weights = step.parameters + layer.weight * item
    panels = columns // panel
    for j in range(panels):
        right = (weights + j * panel * item, columns, layer.fan_in, layer.B + j * panel * item)
        out = layer.Z + j * stride * item
        row, tile = first, record_at(step.tiles, TILE, 0)
        while row < last:
            while tile.rows > last - row:
                tile = next_record(tile)
            here = row * panel * item
            call(tile.direct, (left + here, stride) + right + (out + here,))
            row += tile.rows
    return panels
