"""The rows of the last layer: outputs for the caller, their losses, a gradient from the caller."""

from fastmlp_kernels.compile import part
from fastmlp_kernels.cpu.gather import collect_rows, copy_block
from fastmlp_kernels.cpu.intrinsics import call, word
from fastmlp_kernels.cpu.linear import layer_row
from fastmlp_kernels.cpu.tables import (
    FACTORS,
    ITEM,
    KEEPS_OUTPUT,
    LAYERS,
    LINK,
    LOSS_RULE,
    LOSSES_PER_ROW,
    OUT,
    OUTPUT_COLUMNS,
    OUTPUT_GRADIENT,
    OUTPUT_SLOPE,
    OUTPUT_VALUE,
    PREDICTIONS,
    ROW_LOSSES,
    SLOPES,
    TARGET_COLUMNS,
    TARGETS,
    UPSTREAM_ROWS,
    A,
)


@part
def top_layer(words):
    """Return the address of the last layer's row of the chain."""
    return layer_row(words, word(words, LAYERS) - 1)


@part
def write_outputs(words, start, first, last):
    """Write the outputs of a block of rows where the caller wants them."""
    columns, item = word(words, OUTPUT_COLUMNS), word(words, ITEM)
    last_A = word(top_layer(words), A)
    out = word(words, OUT) + start * columns * item
    here = out + first * columns * item
    count = (last - first) * columns
    if word(words, OUTPUT_VALUE) and not word(words, KEEPS_OUTPUT):
        collect_rows(words, last_A, first, last, columns, word(words, PREDICTIONS))
        kept = word(words, PREDICTIONS) + first * columns * item
        call(word(words, OUTPUT_VALUE), (kept, here, count))
    else:
        collect_rows(words, last_A, first, last, columns, out)
        if word(words, OUTPUT_VALUE):
            call(word(words, OUTPUT_VALUE), (here, here, count))
    if word(words, LINK):
        call(word(words, LINK), (here, last - first, columns))


@part
def write_losses(words, start, scale, first, last):
    """Write the losses of a block of rows and their slopes; return the largest magnitude."""
    if word(words, FACTORS):
        scale = word(words, FACTORS) + (start + first) * word(words, ITEM)
    columns, targets, item = (
        word(words, OUTPUT_COLUMNS),
        word(words, TARGET_COLUMNS),
        word(words, ITEM),
    )
    collect_rows(words, word(top_layer(words), A), first, last, columns, word(words, PREDICTIONS))
    return call(
        word(words, LOSS_RULE),
        (
            word(words, PREDICTIONS) + first * columns * item,
            word(words, TARGETS) + first * targets * item,
            last - first,
            columns,
            targets,
            scale,
            word(words, ROW_LOSSES) + first * word(words, LOSSES_PER_ROW) * item,
            word(words, SLOPES) + first * columns * item,
        ),
    )


@part
def take_upstream(words, first, last):
    """Take the caller's gradient by the outputs instead of the loss's."""
    columns, item = word(words, OUTPUT_COLUMNS), word(words, ITEM)
    offset, count = first * columns * item, (last - first) * columns
    copy_block(
        words, word(words, UPSTREAM_ROWS), first, last, columns, word(words, OUTPUT_GRADIENT)
    )
    if word(words, OUTPUT_SLOPE):
        # The output activation belongs to the loss's rule, which is not asked here.
        kept = word(words, PREDICTIONS) + offset
        collect_rows(
            words, word(top_layer(words), A), first, last, columns, word(words, PREDICTIONS)
        )
        if word(words, KEEPS_OUTPUT):
            call(word(words, OUTPUT_VALUE), (kept, kept, count))
        call(word(words, OUTPUT_SLOPE), (kept, word(words, OUTPUT_GRADIENT) + offset, count))
