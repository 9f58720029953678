"""The rows of the last layer: outputs for the caller, their losses, a gradient from the caller."""

from fastmlp_kernels.compile import part
from fastmlp_kernels.cpu.gather import collect_rows, copy_block
from fastmlp_kernels.cpu.intrinsics import call
from fastmlp_kernels.cpu.linear import layer_of


@part
def top_layer(step):
    """Return the last layer's record."""
    return layer_of(step, step.layers - 1)


@part
def write_outputs(step, start, first, last):
    """Write the outputs of a block of rows where the caller wants them."""
    columns, item = step.output_columns, step.item
    last_A = top_layer(step).A
    out = step.out + start * columns * item
    here = out + first * columns * item
    count = (last - first) * columns
    if step.output_value and not step.keeps_output:
        collect_rows(step, last_A, first, last, columns, step.predictions)
        kept = step.predictions + first * columns * item
        call(step.output_value, (kept, here, count))
    else:
        collect_rows(step, last_A, first, last, columns, out)
        if step.output_value:
            call(step.output_value, (here, here, count))
    if step.link:
        call(step.link, (here, last - first, columns))


@part
def write_losses(step, start, scale, first, last):
    """Write the losses of a block of rows and their slopes; return the largest magnitude."""
    if step.factors:
        scale = step.factors + (start + first) * step.item
    columns, targets, item = (
        step.output_columns,
        step.target_columns,
        step.item,
    )
    collect_rows(step, top_layer(step).A, first, last, columns, step.predictions)
    return call(
        step.loss_rule,
        (
            step.predictions + first * columns * item,
            step.targets + first * targets * item,
            last - first,
            columns,
            targets,
            scale,
            step.row_losses + first * step.losses_per_row * item,
            step.slopes + first * columns * item,
        ),
    )


@part
def take_upstream(step, first, last):
    """Take the caller's gradient by the outputs instead of the loss's."""
    columns, item = step.output_columns, step.item
    offset, count = first * columns * item, (last - first) * columns
    copy_block(step, step.upstream_rows, first, last, columns, step.output_gradient)
    if step.output_slope:
        # The output activation belongs to the loss's rule, which is not asked here.
        kept = step.predictions + offset
        collect_rows(step, top_layer(step).A, first, last, columns, step.predictions)
        if step.keeps_output:
            call(step.output_value, (kept, kept, count))
        call(step.output_slope, (kept, step.output_gradient + offset, count))
