"""Rows into panels and out of them: the only copies that a step makes."""

from fastmlp_kernels.compile import part
from fastmlp_kernels.cpu.intrinsics import call
from fastmlp_kernels.cpu.tables import WORD_BYTES


@part
def spread_rows(step, rows, first, last, columns, panels):
    """Copy a block of row-major rows into panels; return the largest magnitude as bits."""
    panel = step.panel
    into = (panels, panel, step.panel_stride, 1)
    source = (rows, step.identity, first, last, columns, columns, panel)
    return call(step.copy_rows, source + into)


@part
def collect_rows(step, panels, first, last, columns, rows):
    """Copy a block of rows out of panels into a row-major matrix."""
    panel = step.panel
    into = (rows, columns, panel, 0)
    source = (panels, step.identity, first, last, columns, panel, step.panel_stride)
    call(step.copy_rows, source + into)


@part
def copy_block(step, source, first, last, columns, out):
    """Copy a block of rows of a row-major matrix to another."""
    panel, before = step.panel, first * columns * step.item
    # As a single row: all but its end is then whole vectors.
    count = (last - first) * columns
    row = (source + before, step.identity, 0, 1, count, count, panel)
    call(step.copy_rows, row + (out + before, count, panel, 0))


@part
def gather_rows(step, start, first, last, inputs):
    """Bring a block of a mini-batch's rows of X into panels.

    Parameters
    ----------
    step : record
        The program's table, see `cpu.tables`: X and the order are read.
    start : int
        The mini-batch's first place in the order.
    first, last : int
        The block of rows.
    inputs : int
        Address of the panels that are written.

    Notes
    -----
    Returns the largest magnitude of X, as bits. Cost: a read and a write an element, in vectors.
    Aliasing: none of the arrays overlap. Source: the mini-batch of stochastic gradient descent.
    """
    panel, columns = step.panel, step.input_columns
    rows, order = _rows_of(step, step.X, columns, start)
    source = (rows, order, first, last, columns, columns, panel)
    return call(step.copy_rows, source + (inputs, panel, step.panel_stride, 1))


@part
def gather_targets(step, start, first, last):
    """Bring a block of a mini-batch's rows of y together, as `gather_rows` does those of X."""
    panel, columns = step.panel, step.target_columns
    rows, order = _rows_of(step, step.Y, columns, start)
    if step.sequential:
        copy_block(step, rows, first, last, columns, step.targets)
    else:
        source = (rows, order, first, last, columns, columns, panel)
        call(step.copy_rows, source + (step.targets, columns, panel, 0))


@part
def _rows_of(step, rows, columns, start):
    """Return where a mini-batch's rows are counted from, and their order."""
    if step.sequential:
        return rows + start * columns * step.item, step.identity
    return rows, step.order + start * WORD_BYTES
