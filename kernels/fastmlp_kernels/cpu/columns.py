"""The first layer where a team shares its columns and not its rows; see `Layout`."""

from fastmlp_kernels.compile import part
from fastmlp_kernels.cpu.gather import gather_rows
from fastmlp_kernels.cpu.intrinsics import word
from fastmlp_kernels.cpu.linear import layer_row, linear_forward, panels_of
from fastmlp_kernels.cpu.skipping import column_lists
from fastmlp_kernels.cpu.tables import (
    COLUMNS,
    FAN_OUT,
    INPUTS,
    INPUTS_STRIDE,
    MEMBERS,
    ROW_BLOCK,
)


@part
def own_inputs(words, member):
    """Return the address of a member's panels of X: its own where the first layer is shared."""
    return word(words, INPUTS) + member * word(words, COLUMNS) * word(words, INPUTS_STRIDE)


@part
def first_layer(words, member, start, rows):
    """Compute a member's columns of the first layer for all rows; return the largest magnitude.

    Where the first layer's weights are larger than its rows, sharing its columns instead of its
    rows keeps each weight in the cache of the one thread that reads and updates it.
    """
    members = word(words, MEMBERS)
    inputs = own_inputs(words, member)
    seen = gather_rows(words, start, 0, rows, inputs)
    panels = panels_of(words, word(layer_row(words, 0), FAN_OUT))
    begin, end = panels * member // members, panels * (member + 1) // members
    for first in range(0, rows, word(words, ROW_BLOCK)):
        block = (first, min(first + word(words, ROW_BLOCK), rows), begin, end)
        seen = max(seen, linear_forward(words, 0, inputs, block, column_lists(words, member, 0)))
    return seen


@part
def panel_owner(j, panels, members):
    """Return the member whose share of the panels, as `first_layer` makes it, holds panel j."""
    return ((j + 1) * members - 1) // panels
