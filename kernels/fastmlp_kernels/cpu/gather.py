"""Rows into panels and out of them: the only copies that a step makes."""

from fastmlp_kernels.compile import part
from fastmlp_kernels.cpu.intrinsics import call, word
from fastmlp_kernels.cpu.tables import (
    COPY_ROWS,
    IDENTITY,
    INPUT_COLUMNS,
    ITEM,
    ORDER,
    PANEL,
    PANEL_STRIDE,
    SEQUENTIAL,
    TARGET_COLUMNS,
    TARGETS,
    WORD_BYTES,
    X,
    Y,
)


@part
def spread_rows(words, rows, first, last, columns, panels):
    """Copy a block of row-major rows into panels; return the largest magnitude as bits."""
    panel = word(words, PANEL)
    into = (panels, panel, word(words, PANEL_STRIDE), 1)
    source = (rows, word(words, IDENTITY), first, last, columns, columns, panel)
    return call(word(words, COPY_ROWS), source + into)


@part
def collect_rows(words, panels, first, last, columns, rows):
    """Copy a block of rows out of panels into a row-major matrix."""
    panel = word(words, PANEL)
    into = (rows, columns, panel, 0)
    source = (
        panels,
        word(words, IDENTITY),
        first,
        last,
        columns,
        panel,
        word(words, PANEL_STRIDE),
    )
    call(word(words, COPY_ROWS), source + into)


@part
def copy_block(words, source, first, last, columns, out):
    """Copy a block of rows of a row-major matrix to another."""
    panel = word(words, PANEL)
    rows = (source, word(words, IDENTITY), first, last, columns, columns, panel)
    call(word(words, COPY_ROWS), rows + (out, columns, panel, 0))


@part
def gather_rows(words, start, first, last, inputs):
    """Bring a block of a mini-batch's rows of X into panels.

    Parameters
    ----------
    words : int
        Address of the program's tables, see `cpu.tables`: X and the order are read.
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
    panel, columns = word(words, PANEL), word(words, INPUT_COLUMNS)
    rows, order = _rows_of(words, word(words, X), columns, start)
    source = (rows, order, first, last, columns, columns, panel)
    return call(word(words, COPY_ROWS), source + (inputs, panel, word(words, PANEL_STRIDE), 1))


@part
def gather_targets(words, start, first, last):
    """Bring a block of a mini-batch's rows of y together, as `gather_rows` does those of X."""
    panel, columns = word(words, PANEL), word(words, TARGET_COLUMNS)
    rows, order = _rows_of(words, word(words, Y), columns, start)
    source = (rows, order, first, last, columns, columns, panel)
    call(word(words, COPY_ROWS), source + (word(words, TARGETS), columns, panel, 0))


@part
def _rows_of(words, rows, columns, start):
    """Return where a mini-batch's rows are counted from, and their order."""
    if word(words, SEQUENTIAL):
        return rows + start * columns * word(words, ITEM), word(words, IDENTITY)
    return rows, word(words, ORDER) + start * WORD_BYTES
