"""`cpu.fused`, compiled: blocks of rows through all layers, then units of weights, by a team.

A step has two phases. First the rows are shared: each thread takes its own through the forward
pass, the loss and the backward pass of every layer, in cache and without talking to anybody. The
team meets. Then the weights are shared: each unit of a weight gradient is summed over the whole
batch by one thread and its update applied. The team meets again. Every number is the same chain of
operations whoever computes it: the result does not depend on the number of threads.
"""

from fastmlp_kernels.algebra import HYPER_WIDTH
from fastmlp_kernels.compile import kernel, part
from fastmlp_kernels.cpu.gather import collect_rows, copy_block, gather_rows, spread_rows
from fastmlp_kernels.cpu.intrinsics import atomic_load, atomic_store, call, set_word, word
from fastmlp_kernels.cpu.linear import (
    layer_row,
    linear_backward,
    linear_forward,
    pack_unit,
    weight_gradient,
)
from fastmlp_kernels.cpu.tables import (
    BACKWARD,
    BATCH_SIZE,
    BATCHES,
    CHECK,
    CONTROL,
    DELTA,
    FAN_IN,
    FAN_OUT,
    FORWARD,
    GATHER,
    GRADIENT,
    HALT,
    HYPER,
    INPUT_COLUMNS,
    INPUT_DELTA,
    INPUT_GRADIENT,
    INPUT_GRADIENT_ROWS,
    INPUTS,
    ITEM,
    KEEPS_OUTPUT,
    KEPT,
    LARGEST,
    LAYERS,
    LINK,
    LOSS,
    LOSS_RULE,
    LOSSES,
    LOSSES_PER_ROW,
    MEETING,
    MEMBERS,
    OUT,
    OUTPUT,
    OUTPUT_COLUMNS,
    OUTPUT_GRADIENT,
    OUTPUT_SLOPE,
    OUTPUT_VALUE,
    PACK,
    PACKED,
    PANEL,
    PANEL_STRIDE,
    PREDICTIONS,
    ROW_BLOCK,
    ROW_LOSSES,
    ROWS,
    SCALES,
    SCRATCH,
    SCRATCH_STRIDE,
    SLOPE,
    SLOPES,
    STAGES,
    SUM_LOSSES,
    TARGET_COLUMNS,
    TARGETS,
    UNIT_COST,
    UPDATE,
    UPSTREAM,
    UPSTREAM_ROWS,
    WORD_BYTES,
    A,
)
from fastmlp_kernels.cpu.team import meet
from fastmlp_kernels.problem import BATCHES as FINISHED
from fastmlp_kernels.problem import STATUS, STOP


@part
def _top(words):
    return layer_row(words, word(words, LAYERS) - 1)


@part
def _output(words, start, first, last):
    """Write the outputs of a block of rows where the caller wants them."""
    columns, item = word(words, OUTPUT_COLUMNS), word(words, ITEM)
    last_A = word(_top(words), A)
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
def _loss(words, scale, first, last):
    """Write the losses of a block of rows and their slopes; return the largest magnitude."""
    columns, targets, item = (
        word(words, OUTPUT_COLUMNS),
        word(words, TARGET_COLUMNS),
        word(words, ITEM),
    )
    collect_rows(words, word(_top(words), A), first, last, columns, word(words, PREDICTIONS))
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
def _upstream(words, first, last):
    """Take the caller's gradient by the outputs instead of the loss's."""
    columns, item = word(words, OUTPUT_COLUMNS), word(words, ITEM)
    offset, count = first * columns * item, (last - first) * columns
    copy_block(
        words, word(words, UPSTREAM_ROWS), first, last, columns, word(words, OUTPUT_GRADIENT)
    )
    if word(words, OUTPUT_SLOPE):
        # The output activation belongs to the loss's rule, which is not asked here.
        kept = word(words, PREDICTIONS) + offset
        collect_rows(words, word(_top(words), A), first, last, columns, word(words, PREDICTIONS))
        if word(words, KEEPS_OUTPUT):
            call(word(words, OUTPUT_VALUE), (kept, kept, count))
        call(word(words, OUTPUT_SLOPE), (kept, word(words, OUTPUT_GRADIENT) + offset, count))


@part
def _backward(words, first, last):
    """Bring the gradient by the outputs down to the first layer; return the largest magnitude."""
    columns, item = word(words, OUTPUT_COLUMNS), word(words, ITEM)
    panel, stride = word(words, PANEL), word(words, PANEL_STRIDE)
    top = _top(words)
    seen = spread_rows(words, word(words, OUTPUT_GRADIENT), first, last, columns, word(top, DELTA))
    for j in range((columns + panel - 1) // panel):
        offset = (j * stride + first * panel) * item
        kept, delta = word(top, KEPT) + offset, word(top, DELTA) + offset
        seen = max(seen, call(word(top, SLOPE), (kept, delta, (last - first) * panel)))
    for layer in range(word(words, LAYERS) - 1, 0, -1):
        below = layer_row(words, layer - 1)
        largest = linear_backward(
            words, layer, first, last, word(below, DELTA), word(below, KEPT), word(below, SLOPE)
        )
        seen = max(seen, largest)
    if word(words, STAGES) & INPUT_GRADIENT:
        out, columns = word(words, INPUT_DELTA), word(words, INPUT_COLUMNS)
        linear_backward(words, 0, first, last, out, word(words, INPUTS), word(words, CHECK))
        collect_rows(words, out, first, last, columns, word(words, INPUT_GRADIENT_ROWS))
    return seen


@part
def _rows(words, start, scale, first, last):
    """Do the first phase for a block of rows; return the largest magnitude met."""
    stages = word(words, STAGES)
    seen = 0
    if stages & GATHER:
        seen = gather_rows(words, start, first, last)
    if stages & FORWARD:
        for layer in range(word(words, LAYERS)):
            seen = max(seen, linear_forward(words, layer, first, last))
    if stages & OUTPUT:
        _output(words, start, first, last)
    if stages & LOSS:
        seen = max(seen, _loss(words, scale, first, last))
    if stages & UPSTREAM:
        _upstream(words, first, last)
    if stages & BACKWARD:
        seen = max(seen, _backward(words, first, last))
    return seen


@part
def _units(words, member, packing, rows, hyper):
    """Do this member's share of the units of all layers, in the order of their cost."""
    panel, members = word(words, PANEL), word(words, MEMBERS)
    scratch = word(words, SCRATCH) + member * word(words, SCRATCH_STRIDE)
    done = 0
    for layer in range(word(words, LAYERS)):
        inputs = (word(layer_row(words, layer), FAN_IN) + panel - 1) // panel
        outputs = (word(layer_row(words, layer), FAN_OUT) + panel - 1) // panel
        if packing and not word(words, PACKED) and word(layer_row(words, layer), FAN_OUT) > 1:
            inputs = 1  # for the biases alone
        transposed = layer > 0 or (word(words, STAGES) & INPUT_GRADIENT) != 0
        for i in range(inputs):
            for j in range(outputs):
                if done * members // word(words, UNIT_COST) == member:
                    if packing:
                        pack_unit(words, layer, i, j, transposed)
                    else:
                        updates = (word(words, STAGES) & UPDATE) != 0
                        weight_gradient(
                            words, layer, i, j, rows, hyper, transposed and updates, scratch
                        )
                done += 1


@part
def _sum(words, member, batch, rows):
    """Sum the batch's losses; return whether the sum is finite, to every member the same."""
    # All members sum, so that none has to wait for another's answer; one of them writes it down.
    own = word(words, SCRATCH) + member * word(words, SCRATCH_STRIDE)
    out = word(words, LOSSES) + batch * word(words, ITEM) if member == 0 else own
    count = rows * word(words, LOSSES_PER_ROW)
    return call(word(words, SUM_LOSSES), (word(words, ROW_LOSSES), count, out)) < word(
        words, LARGEST
    )


@part
def _batch(words, member, batch):
    """Take one batch through all stages that are asked for; return whether to go on."""
    stages, members, control = word(words, STAGES), word(words, MEMBERS), word(words, CONTROL)
    start = batch * word(words, BATCH_SIZE)
    rows = min(word(words, BATCH_SIZE), word(words, ROWS) - start)
    scale = word(words, SCALES) + (word(words, ITEM) if rows < word(words, BATCH_SIZE) else 0)
    # Shares of a full batch also for a smaller one: where nobody meets, a member may be a batch
    # ahead of another, and must not touch its rows.
    begin = min(rows, word(words, BATCH_SIZE) * member // members)
    end = min(rows, word(words, BATCH_SIZE) * (member + 1) // members)
    seen = 0
    for first in range(begin, end, word(words, ROW_BLOCK)):
        last = min(first + word(words, ROW_BLOCK), end)
        seen = max(seen, _rows(words, start, scale, first, last))
    if not stages & (LOSS | GRADIENT):
        return True
    if seen >= word(words, LARGEST):
        atomic_store(control + STATUS * WORD_BYTES, batch + 1)
    meet(word(words, MEETING), members)
    good = atomic_load(control + STATUS * WORD_BYTES) == 0
    if stages & LOSS:
        finite = _sum(words, member, batch, rows)
        if good and not finite:
            atomic_store(control + STATUS * WORD_BYTES, batch + 1)
            good = False
    if stages & UPDATE and not good:
        return False
    if stages & GRADIENT:
        hyper = word(words, HYPER) + batch * HYPER_WIDTH * word(words, ITEM)
        _units(words, member, False, rows, hyper)
    if member == 0:
        set_word(words, HALT, atomic_load(control + STOP * WORD_BYTES))
    meet(word(words, MEETING), members)
    if member == 0:
        atomic_store(control + FINISHED * WORD_BYTES, batch + 1)
    return word(words, HALT) == 0


@kernel
def run(words, member):
    """Do what ``word(words, STAGES)`` asks for, as one member of the team; see `cpu.tables`."""
    if word(words, STAGES) & PACK:
        _units(words, member, True, 0, 0)
        meet(word(words, MEETING), word(words, MEMBERS))
    for batch in range(word(words, BATCHES)):
        if not _batch(words, member, batch):
            return
