"""`cpu.fused`, compiled: blocks of rows through all layers, then units of weights, by a team.

A step has two phases. First the rows are shared: each thread takes its own through the forward
pass, the loss and the backward pass of every layer, in cache and without talking to anybody. The
team meets. Then the weights are shared: each unit of a weight gradient is summed over the whole
batch by one thread and its update applied. The team meets again. Every number is the same chain of
operations whoever computes it: the result does not depend on the number of threads.
"""

from fastmlp_kernels.algebra.optimizers import CLIP_NORM, CLIPPINGS
from fastmlp_kernels.compile import kernel, part
from fastmlp_kernels.cpu.atomics import atomic_load, atomic_store, publish
from fastmlp_kernels.cpu.columns import first_layer, own_inputs, panel_owner
from fastmlp_kernels.cpu.gather import (
    collect_rows,
    gather_rows,
    gather_targets,
    spread_rows,
)
from fastmlp_kernels.cpu.intrinsics import (
    call,
    field_address,
    former_arithmetic,
    record_at,
    standard_arithmetic,
)
from fastmlp_kernels.cpu.linear import (
    layer_of,
    linear_backward,
    linear_forward,
    panels_of,
    weight_gradient,
)
from fastmlp_kernels.cpu.outputs import take_upstream, top_layer, write_losses, write_outputs
from fastmlp_kernels.cpu.prediction import predict_claims
from fastmlp_kernels.cpu.skipping import column_lists, forget_row_lists, row_lists
from fastmlp_kernels.cpu.tables import (
    BACKWARD,
    DROPOUT,
    FORWARD,
    GATHER,
    GRADIENT,
    INPUT_GRADIENT,
    LOSS,
    OUTPUT,
    PACK,
    STEP,
    UNPACK,
    UPDATE,
    UPSTREAM,
    WORD_BYTES,
)
from fastmlp_kernels.cpu.team import (
    CALLER,
    FIRST_NANOSECONDS,
    NEXT_NANOSECONDS,
    arrives,
    call_team,
    has_done,
    is_called,
    meet,
    settle,
    wait_for_team,
)
from fastmlp_kernels.cpu.units import (
    clip_unit,
    copy_units,
    finish_columns,
    finish_unit,
    load_unit,
    unit_cost,
)
from fastmlp_kernels.problem import BATCHES, STATUS, STOP

# What a pass over the units of weights does, as bits: compute a gradient, finish it.
COMPUTING, FINISHING = 1, 2
CLIPS_NORM = CLIPPINGS.index("norm")


@part
def _drop(step, index, first, last, hyper, source, out, leaf):
    """Leave out some outputs of a layer, of a block of rows."""
    layer, item, panel = layer_of(step, index), step.item, step.panel
    for j in range(panels_of(step, layer.fan_out)):
        offset = (j * step.panel_stride + first * panel) * item
        place = (index, step.first_row + first, j * panel, layer.keep_threshold, layer.keep_scale)
        call(leaf, (source + offset, out + offset, last - first, panel, hyper) + place)


@part
def _backward(step, first, last, hyper):
    """Bring the gradient by the outputs down to the first layer; return the largest magnitude."""
    columns, item = step.output_columns, step.item
    panel, stride = step.panel, step.panel_stride
    top = top_layer(step)
    seen = spread_rows(step, step.output_gradient, first, last, columns, top.delta)
    # Where the slope is 1, nothing is to be multiplied, and all has been seen.
    for j in range(0 if top.slope == step.unit_slope else panels_of(step, columns)):
        offset = (j * stride + first * panel) * item
        kept, delta = top.kept + offset, top.delta + offset
        seen = max(seen, call(top.slope, (kept, delta, (last - first) * panel)))
    for index in range(step.layers - 1, 0, -1):
        layer, below = layer_of(step, index), layer_of(step, index - 1)
        slope, finish = below.slope, below.slope_tile
        out, kept = below.delta, below.kept
        largest = linear_backward(step, layer, first, last, out, kept, slope, finish)
        seen = max(seen, largest)
        if below.keep_threshold and step.stages & DROPOUT:
            _drop(step, index - 1, first, last, hyper, out, out, step.dropout_in_place)
    if step.stages & INPUT_GRADIENT:
        out, columns = step.input_delta, step.input_columns
        layer = layer_of(step, 0)
        linear_backward(step, layer, first, last, out, step.inputs, step.unit_slope, 0)
        collect_rows(step, out, first, last, columns, step.input_gradient_rows)
    return seen


@part
def _forward(step, thread, first, last, hyper):
    """Bring a block of rows up to the outputs; return the largest magnitude met."""
    shared, training, seen = step.columns, step.stages & DROPOUT, 0
    for index in range(shared, step.layers):
        layer = layer_of(step, index)
        left = layer.training_input if training else layer.input
        if left != layer.input:
            _drop(step, index - 1, first, last, hyper, layer.input, left, step.dropout_copy)
        block = (first, last, 0, panels_of(step, layer.fan_out))
        lists = column_lists(step, thread, index)
        seen = max(seen, linear_forward(step, layer, left, block, lists))
    return seen


@part
def _rows(step, thread, start, scale, first, last, hyper):
    """Do the first phase for a block of rows; return the largest magnitude met."""
    stages, shared = step.stages, step.columns
    seen = 0
    if stages & GATHER:
        if not shared:
            seen = gather_rows(step, start, first, last, step.inputs)
        if stages & LOSS:
            gather_targets(step, start, first, last)
    if stages & FORWARD:
        seen = max(seen, _forward(step, thread, first, last, hyper))
    if stages & OUTPUT:
        write_outputs(step, start, first, last)
    if stages & LOSS:
        seen = max(seen, write_losses(step, start, scale, first, last))
    if stages & UPSTREAM:
        take_upstream(step, first, last)
    if stages & BACKWARD:
        seen = max(seen, _backward(step, first, last, hyper))
    return seen


@part
def _units(step, thread, work, rows, hyper):
    """Do this thread's share of the units of all layers: equal shares of their cost."""
    threads, stages = step.threads, step.stages
    done = 0
    for index in range(step.layers):
        layer = layer_of(step, index)
        inputs, outputs = panels_of(step, layer.fan_in), panels_of(step, layer.fan_out)
        shared = index == 0 and step.columns != 0
        inside = layer.training_input if stages & DROPOUT else layer.input
        left = own_inputs(step, thread) if shared else inside
        transposed = index > 0 or (stages & INPUT_GRADIENT) != 0
        # The gradient of a single row is made while it is applied, to all of a panel's weights.
        by_columns = step.finish_row != 0 and rows == 1
        for i in range(1 if by_columns else inputs):
            for j in range(outputs):
                if shared:
                    mine = panel_owner(j, outputs, threads) == thread
                else:
                    mine = done * threads // step.unit_cost == thread
                    for below in range(i, inputs if by_columns else i + 1):
                        done += unit_cost(step, layer, below, j)
                if mine and by_columns:
                    finish_columns(step, layer, j, left, hyper, transposed)
                elif mine:
                    updates = transposed and (stages & UPDATE) != 0
                    unit = (index, i, j, i * outputs + j)
                    _unit(step, thread, layer, unit, work, left, rows, hyper, updates)
        hyper += step.layer_hyper_stride


@part
def _unit(step, thread, layer, unit, work, left, rows, hyper, transposed):
    """Compute a unit of a gradient, or finish it, or both."""
    index, i, j, place = unit
    scratch = step.scratch + thread * step.scratch_stride
    by_norm = step.clipping == CLIPS_NORM and (step.stages & UPDATE) != 0
    # All of a gradient is there before any of it is finished.
    tile = layer.gradient + place * step.scratch_stride if by_norm else scratch
    if work & COMPUTING:
        if step.gradient and step.stages & UPDATE:
            load_unit(step, layer, i, j, tile)
        else:
            lists = row_lists(step, thread, index)
            weight_gradient(step, layer, i, j, left, rows, tile, lists)
        if step.clipping and step.stages & UPDATE:
            squares = layer.gradient_squares + 2 * place * WORD_BYTES
            clip_unit(step, layer, i, j, tile, hyper, squares)
    if work & FINISHING:
        # Where a norm is limited, the scratch holds the scale.
        finish_unit(step, layer, i, j, tile, hyper, scratch, transposed)


@part
def _sum(step, thread, batch, rows):
    """Sum the batch's losses; return whether the sum is finite, to every thread the same."""
    # All threads sum, so that none has to wait for another's answer; one of them writes it down.
    own = step.scratch + thread * step.scratch_stride
    out = step.losses + batch * step.item if thread == 0 else own
    count = rows * step.losses_per_row
    return call(step.sum_losses, (step.row_losses, count, out)) < step.largest


@part
def _batch(step, thread, batch):
    """Take one batch through all stages that are asked for; return whether to go on."""
    stages, threads, control = step.stages, step.threads, step.control
    start = batch * step.batch_size
    rows = min(step.batch_size, step.rows - start)
    scale = step.scales + (step.item if rows < step.batch_size else 0)
    hyper = step.hyper + batch * step.hyper_stride
    # Shares of a full batch also for a smaller one: where nobody meets, a thread may be a batch
    # ahead of another, and must not touch its rows.
    begin = min(rows, step.batch_size * thread // threads)
    end = min(rows, step.batch_size * (thread + 1) // threads)
    seen = 0
    forget_row_lists(step, thread)
    if step.columns:
        seen = first_layer(step, thread, start, rows)
        meet(step.meeting, threads)
    for first in range(begin, end, step.row_block):
        if atomic_load(control + STOP * WORD_BYTES):
            # All see it after the meeting: a batch is done by everybody or by nobody.
            atomic_store(field_address(step, "abandoned"), 1)
            break
        last = min(first + step.row_block, end)
        if step.rows_code and last - first == step.batch_size:
            seen = call(step.rows_code, (start, scale, hyper, field_address(step, "layers")))
        else:
            seen = max(seen, _rows(step, thread, start, scale, first, last, hyper))
    if seen >= step.largest:
        atomic_store(control + STATUS * WORD_BYTES, batch + 1)
    if not stages & (LOSS | GRADIENT):
        # Nobody meets: each thread stops by itself.
        return atomic_load(field_address(step, "abandoned")) == 0
    meet(step.meeting, threads)
    if atomic_load(field_address(step, "abandoned")):
        return False
    return _learn(step, thread, batch, rows)


@part
def _gradient(step, thread, batch, rows):
    """Compute the gradient and finish it; return False if its norm has to be finite and is not."""
    hyper = step.hyper + batch * step.hyper_stride
    by_norm = step.clipping == CLIPS_NORM and (step.stages & UPDATE) != 0
    work = COMPUTING if by_norm else COMPUTING | FINISHING
    # One place that calls it: each would be compiled with a copy of all that it calls.
    while True:
        code = step.finishing_code if work == FINISHING else step.units_code
        # A gradient that the caller gives is that of any number of rows.
        if code and (rows == step.batch_size or step.gradient):
            call(code, (0, 0, hyper, field_address(step, "layers")))
        else:
            _units(step, thread, work, rows, hyper)
        if work != COMPUTING:
            return True
        meet(step.meeting, step.threads)
        # All threads sum, as in `_sum`.
        scale = step.scratch + thread * step.scratch_stride
        limit = hyper + CLIP_NORM * step.item
        norm = call(step.clip_scale, (step.gradient_squares, 2 * step.units, limit, scale))
        if norm >= step.largest:
            atomic_store(step.control + STATUS * WORD_BYTES, batch + 1)
            return False
        work = FINISHING


@part
def _learn(step, thread, batch, rows):
    """Do the second phase: sum the losses, finish the weights; return whether to go on."""
    stages, threads, control = step.stages, step.threads, step.control
    good = atomic_load(control + STATUS * WORD_BYTES) == 0
    if stages & LOSS and not _sum(step, thread, batch, rows) and good:
        atomic_store(control + STATUS * WORD_BYTES, batch + 1)
        good = False
    if stages & UPDATE and not good:
        return False
    if stages & GRADIENT and not _gradient(step, thread, batch, rows):
        return False
    if thread == 0:
        step.halt = atomic_load(control + STOP * WORD_BYTES)
    meet(step.meeting, threads)
    if thread == 0:
        if step.squares_out:
            # Nobody sums squares again before this thread has come to the next meeting.
            out = step.squares_out + batch * WORD_BYTES
            squares = (step.unit_squares, step.units, out)
            call(step.sum_squares, squares)
        publish(control + BATCHES * WORD_BYTES, batch + 1)
    return step.halt == 0


@kernel
def run(table, thread):
    """Do what ``step.stages`` asks for, as one thread of the team; see `cpu.tables`.

    Parameters
    ----------
    table : int
        Address of the program's table.
    thread : int
        `CALLER`, which returns False and does nothing if another thread is not there; or the number
        of another, which does it for each call until there has been none for a while.
    """
    step = record_at(table, STEP, 0)
    threads, bells = step.threads, step.bells
    if thread == CALLER:
        step.halt = step.abandoned = 0
    if thread == CALLER and threads == 1:
        _stages(step, 0)
        return True
    if step.places:
        settle(step.places, thread)
    if thread == CALLER:
        if not call_team(bells, threads - 1):
            return False
        _stages(step, threads - 1)
        wait_for_team(bells, threads - 1)
        return True
    loyalty = FIRST_NANOSECONDS
    if arrives(bells, thread):
        while is_called(bells, thread, loyalty, step.places):
            _stages(step, thread)
            has_done(bells, thread)
            loyalty = NEXT_NANOSECONDS
    return True


@part
def _stages(step, thread):
    former = standard_arithmetic()
    _all_stages(step, thread)
    former_arithmetic(former)


@part
def _all_stages(step, thread):
    if step.claims:
        predict_claims(step, thread)
        return
    if step.stages & PACK:
        copy_units(step, thread, True)
        meet(step.meeting, step.threads)
    for batch in range(step.batches):
        if not _batch(step, thread, batch):
            break
    # All have met since a weight was last written.
    if step.stages & UNPACK:
        copy_units(step, thread, False)
