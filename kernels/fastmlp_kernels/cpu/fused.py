"""`cpu.fused`, compiled: blocks of rows through all layers, then units of weights, by a team.

A step has two phases. First the rows are shared: each thread takes its own through the forward
pass, the loss and the backward pass of every layer, in cache and without talking to anybody. The
team meets. Then the weights are shared: each unit of a weight gradient is summed over the whole
batch by one thread and its update applied. The team meets again. Every number is the same chain of
operations whoever computes it: the result does not depend on the number of threads.
"""

from fastmlp_kernels.algebra import HYPER_WIDTH
from fastmlp_kernels.compile import kernel, part
from fastmlp_kernels.cpu.columns import first_layer, own_inputs, panel_owner
from fastmlp_kernels.cpu.gather import (
    collect_rows,
    gather_rows,
    gather_targets,
    spread_rows,
)
from fastmlp_kernels.cpu.intrinsics import (
    atomic_load,
    atomic_store,
    call,
    former_arithmetic,
    set_word,
    standard_arithmetic,
    word,
)
from fastmlp_kernels.cpu.linear import (
    layer_row,
    linear_backward,
    linear_forward,
    pack_unit,
    panels_of,
    weight_gradient,
)
from fastmlp_kernels.cpu.outputs import take_upstream, top_layer, write_losses, write_outputs
from fastmlp_kernels.cpu.simd import VECTORS_PER_PANEL
from fastmlp_kernels.cpu.skipping import column_lists, forget_row_lists, row_lists
from fastmlp_kernels.cpu.tables import (
    ABANDONED,
    BACKWARD,
    BATCH_SIZE,
    BATCHES,
    BELLS,
    CHECK,
    COLUMNS,
    CONTROL,
    DELTA,
    FAN_IN,
    FAN_OUT,
    FEATURE_TILE,
    FORWARD,
    GATHER,
    GRADIENT,
    HALT,
    HYPER,
    INPUT,
    INPUT_COLUMNS,
    INPUT_DELTA,
    INPUT_GRADIENT,
    INPUT_GRADIENT_ROWS,
    INPUTS,
    ITEM,
    KEPT,
    LANES,
    LARGEST,
    LAYERS,
    LOSS,
    LOSSES,
    LOSSES_PER_ROW,
    MEETING,
    MEMBERS,
    OUTPUT,
    OUTPUT_COLUMNS,
    OUTPUT_GRADIENT,
    PACK,
    PACKED,
    PANEL,
    PANEL_STRIDE,
    PLACES,
    ROW_BLOCK,
    ROW_LOSSES,
    ROWS,
    SCALES,
    SCRATCH,
    SCRATCH_STRIDE,
    SLOPE,
    SLOPE_TILE,
    SQUARES_OUT,
    STAGES,
    SUM_LOSSES,
    SUM_SQUARES,
    UNIT_COST,
    UNIT_SQUARES,
    UNITS,
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
from fastmlp_kernels.problem import BATCHES as FINISHED
from fastmlp_kernels.problem import STATUS, STOP


@part
def _backward(words, first, last):
    """Bring the gradient by the outputs down to the first layer; return the largest magnitude."""
    columns, item = word(words, OUTPUT_COLUMNS), word(words, ITEM)
    panel, stride = word(words, PANEL), word(words, PANEL_STRIDE)
    top = top_layer(words)
    seen = spread_rows(words, word(words, OUTPUT_GRADIENT), first, last, columns, word(top, DELTA))
    for j in range((columns + panel - 1) // panel):
        offset = (j * stride + first * panel) * item
        kept, delta = word(top, KEPT) + offset, word(top, DELTA) + offset
        seen = max(seen, call(word(top, SLOPE), (kept, delta, (last - first) * panel)))
    for layer in range(word(words, LAYERS) - 1, 0, -1):
        below = layer_row(words, layer - 1)
        slope, finish = word(below, SLOPE), word(below, SLOPE_TILE)
        out, kept = word(below, DELTA), word(below, KEPT)
        largest = linear_backward(words, layer, first, last, out, kept, slope, finish)
        seen = max(seen, largest)
    if word(words, STAGES) & INPUT_GRADIENT:
        out, columns = word(words, INPUT_DELTA), word(words, INPUT_COLUMNS)
        linear_backward(words, 0, first, last, out, word(words, INPUTS), word(words, CHECK), 0)
        collect_rows(words, out, first, last, columns, word(words, INPUT_GRADIENT_ROWS))
    return seen


@part
def _rows(words, member, start, scale, first, last):
    """Do the first phase for a block of rows; return the largest magnitude met."""
    stages, shared = word(words, STAGES), word(words, COLUMNS)
    seen = 0
    if stages & GATHER:
        if not shared:
            seen = gather_rows(words, start, first, last, word(words, INPUTS))
        if stages & LOSS:
            gather_targets(words, start, first, last)
    if stages & FORWARD:
        for layer in range(shared, word(words, LAYERS)):
            row = layer_row(words, layer)
            block = (first, last, 0, panels_of(words, word(row, FAN_OUT)))
            lists = column_lists(words, member, layer)
            seen = max(seen, linear_forward(words, layer, word(row, INPUT), block, lists))
    if stages & OUTPUT:
        write_outputs(words, start, first, last)
    if stages & LOSS:
        seen = max(seen, write_losses(words, start, scale, first, last))
    if stages & UPSTREAM:
        take_upstream(words, first, last)
    if stages & BACKWARD:
        seen = max(seen, _backward(words, first, last))
    return seen


@part
def unit_cost(words, layer, i, j):
    """Return the vectors of a unit's tiles: what a row of its weight gradient costs."""
    row, panel = layer_row(words, layer), word(words, PANEL)
    if word(row, FAN_OUT) == 1:
        return 1
    features = min(panel, word(row, FAN_IN) - i * panel)
    tile = word(words, FEATURE_TILE)
    narrow = word(row, FAN_OUT) - j * panel <= word(words, LANES)
    return (features + tile - 1) // tile * tile * (1 if narrow else VECTORS_PER_PANEL)


@part
def _units(words, member, packing, rows, hyper):
    """Do this member's share of the units of all layers: equal shares of their cost."""
    members, stages = word(words, MEMBERS), word(words, STAGES)
    scratch = word(words, SCRATCH) + member * word(words, SCRATCH_STRIDE)
    done = 0
    for layer in range(word(words, LAYERS)):
        row = layer_row(words, layer)
        inputs, outputs = panels_of(words, word(row, FAN_IN)), panels_of(words, word(row, FAN_OUT))
        if packing and not word(words, PACKED) and word(row, FAN_OUT) > 1:
            inputs = 1  # for the biases alone
        shared = layer == 0 and word(words, COLUMNS) != 0
        left = own_inputs(words, member) if shared else word(row, INPUT)
        transposed = layer > 0 or (stages & INPUT_GRADIENT) != 0
        for i in range(inputs):
            for j in range(outputs):
                if shared:
                    mine = panel_owner(j, outputs, members) == member
                else:
                    mine = done * members // word(words, UNIT_COST) == member
                    done += unit_cost(words, layer, i, j)
                if mine and packing:
                    pack_unit(words, layer, i, j, transposed)
                elif mine:
                    updates = transposed and (stages & UPDATE) != 0
                    lists = row_lists(words, member, layer)
                    weight_gradient(words, layer, i, j, left, rows, hyper, updates, scratch, lists)


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
    forget_row_lists(words, member)
    if word(words, COLUMNS):
        seen = first_layer(words, member, start, rows)
        meet(word(words, MEETING), members)
    for first in range(begin, end, word(words, ROW_BLOCK)):
        if atomic_load(control + STOP * WORD_BYTES):
            # All see it after the meeting: a batch is done by everybody or by nobody.
            atomic_store(words + ABANDONED * WORD_BYTES, 1)
            break
        last = min(first + word(words, ROW_BLOCK), end)
        seen = max(seen, _rows(words, member, start, scale, first, last))
    if seen >= word(words, LARGEST):
        atomic_store(control + STATUS * WORD_BYTES, batch + 1)
    if not stages & (LOSS | GRADIENT):
        # Nobody meets: each member stops by itself.
        return atomic_load(words + ABANDONED * WORD_BYTES) == 0
    meet(word(words, MEETING), members)
    if atomic_load(words + ABANDONED * WORD_BYTES):
        return False
    return _learn(words, member, batch, rows)


@part
def _learn(words, member, batch, rows):
    """Do the second phase: sum the losses, finish the weights; return whether to go on."""
    stages, members, control = word(words, STAGES), word(words, MEMBERS), word(words, CONTROL)
    good = atomic_load(control + STATUS * WORD_BYTES) == 0
    if stages & LOSS and not _sum(words, member, batch, rows) and good:
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
        if word(words, SQUARES_OUT):
            # Nobody sums squares again before this member has come to the next meeting.
            out = word(words, SQUARES_OUT) + batch * WORD_BYTES
            squares = (word(words, UNIT_SQUARES), word(words, UNITS), out)
            call(word(words, SUM_SQUARES), squares)
        atomic_store(control + FINISHED * WORD_BYTES, batch + 1)
    return word(words, HALT) == 0


@kernel
def run(words, member):
    """Do what ``word(words, STAGES)`` asks for, as one member of the team; see `cpu.tables`.

    Parameters
    ----------
    words : int
        Address of the program's tables.
    member : int
        `CALLER`, which returns False and does nothing if another member is not there; or the number
        of another, which does it for each call until there has been none for a while.
    """
    members, bells = word(words, MEMBERS), word(words, BELLS)
    if member == CALLER:
        set_word(words, HALT, 0)
        set_word(words, ABANDONED, 0)
    if member == CALLER and members == 1:
        _stages(words, 0)
        return True
    if word(words, PLACES):
        settle(word(words, PLACES), member)
    if member == CALLER:
        if not call_team(bells, members - 1):
            return False
        _stages(words, members - 1)
        wait_for_team(bells, members - 1)
        return True
    loyalty = FIRST_NANOSECONDS
    if arrives(bells, member):
        while is_called(bells, member, loyalty):
            _stages(words, member)
            has_done(bells, member)
            loyalty = NEXT_NANOSECONDS
    return True


@part
def _stages(words, member):
    former = standard_arithmetic()
    _all_stages(words, member)
    former_arithmetic(former)


@part
def _all_stages(words, member):
    if word(words, STAGES) & PACK:
        _units(words, member, True, 0, 0)
        meet(word(words, MEETING), word(words, MEMBERS))
    for batch in range(word(words, BATCHES)):
        if not _batch(words, member, batch):
            return
