"""The first layer where a team shares its columns and not its rows; see `Layout`."""

from fastmlp_kernels.compile import part
from fastmlp_kernels.cpu.gather import gather_rows
from fastmlp_kernels.cpu.linear import layer_of, linear_forward, panels_of
from fastmlp_kernels.cpu.skipping import column_lists


@part
def own_inputs(step, thread):
    """Return the address of a thread's panels of X: its own where the first layer is shared."""
    return step.inputs + thread * step.columns * step.inputs_stride


@part
def first_layer(step, thread, start, rows):
    """Compute a thread's columns of the first layer for all rows; return the largest magnitude.

    Where the first layer's weights are larger than its rows, sharing its columns instead of its
    rows keeps each weight in the cache of the one thread that reads and updates it.
    """
    threads = step.threads
    layer, inputs = layer_of(step, 0), own_inputs(step, thread)
    lists = column_lists(step, thread, 0)
    seen = gather_rows(step, start, 0, rows, inputs)
    panels = panels_of(step, layer.fan_out)
    begin, end = panels * thread // threads, panels * (thread + 1) // threads
    for first in range(0, rows, step.row_block):
        block = (first, min(first + step.row_block, rows), begin, end)
        seen = max(seen, linear_forward(step, layer, inputs, block, lists))
    return seen


@part
def panel_owner(j, panels, threads):
    """Return the thread whose share of the panels, as `first_layer` makes it, holds panel j."""
    return ((j + 1) * threads - 1) // panels
