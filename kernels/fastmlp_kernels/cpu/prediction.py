"""Predictions: blocks of rows that threads take one after another, straight from the caller's X."""

from fastmlp_kernels.compile import kernel, part
from fastmlp_kernels.cpu.atomics import atomic_add, atomic_load, atomic_store
from fastmlp_kernels.cpu.caller_arrays import ARRAY, OBJECT_HEAD, point_at
from fastmlp_kernels.cpu.gather import gather_rows
from fastmlp_kernels.cpu.intrinsics import (
    field_address,
    former_arithmetic,
    record_at,
    standard_arithmetic,
    word,
)
from fastmlp_kernels.cpu.linear import blockwise_forward, layer_of, linear_forward, panels_of
from fastmlp_kernels.cpu.outputs import write_outputs
from fastmlp_kernels.cpu.tables import (
    BLOCKWISE,
    EDGES,
    MEETING,
    PACK,
    PACKED,
    STEP,
    TILE,
    UNPACKED,
    WORD_BYTES,
    at,
)
from fastmlp_kernels.cpu.team import CALLER, call_present, settle, wait_for, wait_for_team, withdraw
from fastmlp_kernels.cpu.units import pack_biases, pack_rows, pack_unit
from fastmlp_kernels.problem import STOP

# Compiled code reads no attributes of a class.
AT_X, AT_OUT = at.X, at.out
# Claims of a thread, at most: the last one keeps the others waiting no longer than that share.
CLAIMS = 64
# What `predict` returns.
DONE, FINITE, TOGETHER = 1, 2, 4


@part
def _stride(rows, tallest):
    """Return the rows from a panel to the next, as `workspace.row_capacity` has it."""
    return rows if rows <= tallest else tallest + (rows - tallest + 31) // 32 * 32


@part
def _share_out(step, rows, threads):
    """Cut rows into claims, and these into blocks that a thread's own panels hold."""
    tallest = record_at(step.tiles, TILE, 0).rows
    step.rows, step.threads = rows, threads
    step.packed = PACKED
    if rows <= threads * step.direct_rows:
        step.packed = EDGES
    elif step.direct_rows and rows <= threads * step.row_block:
        step.packed = BLOCKWISE
    if rows <= step.few_rows:
        step.packed = UNPACKED
    # As many claims for each thread.
    own = max(1, min(step.row_block, step.batch_size // threads))
    claims = (rows + own * threads - 1) // (own * threads) * threads
    claims = min(claims, CLAIMS * threads)
    share = max(1, (rows + claims - 1) // claims)
    # Whole tiles, unless the last of them would be a block of its own.
    whole = (share + tallest - 1) // tallest * tallest
    step.claim_rows = whole if whole <= own else share
    step.own_rows = min(own, step.claim_rows)
    stride = min(step.capacity, _stride(step.own_rows * threads, tallest))
    step.panel_stride = stride * step.panel


@part
def _first_packed(step, layer, outputs):
    """Return the first panel of a layer's outputs that is copied unit by unit, if any is."""
    if layer.fan_out == 1:
        return 0
    return layer.fan_out // step.panel if step.packed == EDGES else outputs


@part
def _pack(step):
    """Copy the weights into panels, rows of units of a layer at a time, until all are there."""
    meeting = record_at(step.meeting, MEETING, 0)
    taken, copied = (
        field_address(meeting, "taken_weights"),
        field_address(meeting, "copied_weights"),
    )
    place, mine = 0, atomic_add(taken, 1)
    for index in range(step.layers):
        layer = layer_of(step, index)
        inputs, outputs = panels_of(step, layer.fan_in), panels_of(step, layer.fan_out)
        begin = _first_packed(step, layer, outputs)
        if begin == outputs and step.packed != PACKED:
            inputs = 1  # for the biases alone
        for i in range(inputs):
            if place == mine:
                if i == 0:
                    pack_biases(step, layer)
                if begin == outputs and step.packed == PACKED:
                    pack_rows(step, layer, i)
                for j in range(begin, outputs):
                    pack_unit(step, layer, i, j, 0)
                atomic_add(copied, 1)
                mine = atomic_add(taken, 1)
            place += 1
    wait_for(copied, place)


@part
def predict_claims(step, thread):
    """Write the outputs of the rows that this thread takes.

    Parameters
    ----------
    step : record
        The program's table, see `cpu.tables`: X and the parameters are read, the copies of the
        weights and out are written, and `not_finite` where X holds a number that is not.
    thread : int

    Notes
    -----
    A thread's panels hold one block of rows, and are used again for the next: they stay in its
    caches, and no number of rows takes more memory. A thread that comes late finds less to do, and
    is waited for only while it works. Cost: ``2 rows P`` flops; X is read once, and out is written
    once. Accuracy: see `linear_forward`; each row has its own chain of operations, so the bits do
    not depend on the shares.
    """
    if step.stages & PACK:
        _pack(step)
    taken = field_address(record_at(step.meeting, MEETING, 0), "taken_rows")
    copy = step.weight_blocks + thread * step.weight_block_stride
    own, stop, others = thread * step.own_rows, step.control + STOP * WORD_BYTES, step.threads - 1
    seen = 0
    while not atomic_load(stop):
        first = atomic_add(taken, step.claim_rows)
        if first >= step.rows:
            break
        last = min(first + step.claim_rows, step.rows)
        for start in range(first, last, step.own_rows):
            # Counted from there, this thread's panels hold the rows.
            origin, end = start - own, own + min(step.own_rows, last - start)
            seen = max(seen, gather_rows(step, origin, own, end, step.inputs))
            for index in range(step.layers):
                layer = layer_of(step, index)
                if step.packed == BLOCKWISE and layer.fan_out > 1:
                    blockwise_forward(step, layer, own, end, copy)
                else:
                    block = (own, end, 0, panels_of(step, layer.fan_out))
                    linear_forward(step, layer, layer.input, block, 0)
            write_outputs(step, origin, own, end)
        if thread == others and step.called < others:
            step.called += call_present(step.bells, others)
    if seen >= step.largest:
        atomic_store(field_address(step, "not_finite"), 1)


@kernel
def predict(table, X, out, threads):
    """Predict rows of X, with those threads of a team that are there.

    Parameters
    ----------
    table : int
        Address of the program's table.
    X, out : int
        The ``id`` of each array, of the problem's dtype.
    threads : int
        Of the whole team, the caller too.

    Returns
    -------
    int
        As bits: `DONE`, unless X and out have other shapes (see `caller_arrays.point_at`): nothing
        is computed then; `FINITE` where all of X is; `TOGETHER` if all threads were called.
    """
    step = record_at(table, STEP, 0)
    array = record_at(X + OBJECT_HEAD, ARRAY, 0)
    rows = word(array.shape, 0) if array.dimensions > 0 else 0
    good = point_at(table, AT_X, X, rows, step.input_columns)
    if not (good and point_at(table, AT_OUT, out, rows, step.output_columns)):
        return 0
    _share_out(step, rows, threads)
    meeting = record_at(step.meeting, MEETING, 0)
    meeting.taken_weights = meeting.copied_weights = meeting.taken_rows = step.not_finite = 0
    if threads > 1 and step.places:
        settle(step.places, CALLER)
    step.called = call_present(step.bells, threads - 1)
    former = standard_arithmetic()
    predict_claims(step, threads - 1)
    former_arithmetic(former)
    # A thread that was called and has no processor yet is not waited for.
    wait_for_team(step.bells, step.called - withdraw(step.bells, threads - 1))
    found = DONE if step.not_finite else DONE | FINITE
    return found | TOGETHER if step.called == threads - 1 else found
