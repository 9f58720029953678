"""Calls of a handle, compiled: what a user's own compiled code enters by address.

A handle is a record of words, `handle_record.HANDLE`. It has a settled table (`tables.STEP`) for
each kind of call. A call here sets the few words in which two calls of a kind differ, and runs the
table on one thread. Who calls has checked all shapes, and has claimed the handle: `claim` and
`release`.
"""

import functools
from typing import NamedTuple

from numba.core import types

from fastmlp_kernels.compile import address_of, kernel, leaf, part
from fastmlp_kernels.cpu.fused import run
from fastmlp_kernels.cpu.gather import spread_rows
from fastmlp_kernels.cpu.handle_numbers import rate_of, set_numbers, set_rate
from fastmlp_kernels.cpu.handle_record import (
    ALL,
    BUSY,
    DONE,
    FOR_TRAINING,
    HANDLE,
    NO_FORWARD,
    NO_NUMBERS,
    NOT_FINITE,
    STALE,
    claim,
    release,
)
from fastmlp_kernels.cpu.handle_type import doubles
from fastmlp_kernels.cpu.intrinsics import (
    call,
    copy_bytes,
    field_word,
    former_arithmetic,
    record_at,
    set_word,
    standard_arithmetic,
    word,
)
from fastmlp_kernels.cpu.linear import dot_rows, layer_of, panels_of, row_product
from fastmlp_kernels.cpu.outputs import write_outputs
from fastmlp_kernels.cpu.tables import PACK, PLAIN_TILE, STEP, TILE, WIDE
from fastmlp_kernels.cpu.team import CALLER
from fastmlp_kernels.problem import CONTROL_WORDS, STATUS


@part
def _run(handle, place, copies):
    """Run a table, on one thread, with so many of the copies of the weights brought up to date."""
    step, control = record_at(place, STEP, 0), handle.control
    stages = step.stages
    if handle.copies < copies:
        step.stages = stages | PACK
    for index in range(CONTROL_WORDS):
        set_word(control, index, 0)
    call(handle.run, (place, CALLER))
    step.stages = stages
    handle.copies = max(handle.copies, copies)
    return word(control, STATUS)


@part
def _set_batch(handle, step, X, rows):
    """Point a table at a batch, and at the reduction's factor of so many rows."""
    step.X, step.rows = X, rows
    # A smaller batch than the full one reads the second of two factors.
    smaller = 1 if rows < handle.batch_size else 0
    step.scales = handle.scales + (rows - smaller) * handle.item


@part
def _row_of_layer(step, tile, layer, left):
    """Compute f(Z) of the first row of a layer, as `linear_forward` does; return where A is.

    Parameters
    ----------
    step, tile, layer : record
        `tile` is of one row.
    left : int
        Address of the row in the first panel of the layer's inputs.
    """
    item, panel, stride = step.item, step.panel, step.panel_stride
    finish = layer.value_tile
    if layer.fan_out == 1:
        dot_rows(step, layer, left, 0, 1)
        finish = 0
    else:
        index = finish if finish else PLAIN_TILE
        panels = panels_of(step, layer.fan_out)
        operands = (left, (layer.W, layer.W_stride), (layer.B, panel), layer.Z, (index, 0))
        block = 0, 1, 0, layer.fan_in, 0, panels
        _, whole = row_product(step, tile, layer.fan_out, *operands, block)
        for j in range(whole, panels):
            wide = 0 if layer.fan_out - j * panel <= step.lanes else WIDE
            right, bias = layer.W + j * layer.W_stride * item, layer.B + j * panel * item
            out = layer.Z + j * stride * item
            call(
                field_word(tile, index + wide),
                (left, stride, right, layer.fan_in, bias, 0, out, 0, 1),
            )
    if not finish and layer.value != step.check:
        for j in range(panels_of(step, layer.fan_out)):
            offset = j * stride * item
            call(layer.value, (layer.Z + offset, layer.A + offset, panel))
    return layer.A


@part
def _predict_row(handle, step, X):
    """Bring one row through all layers, without the stages of a batch."""
    tile, first = record_at(handle.row_tile, TILE, 0), layer_of(step, 0)
    left, columns = X, step.output_columns
    if step.input_columns > step.panel or first.fan_out == 1:
        left = step.inputs
        spread_rows(step, X, 0, 1, step.input_columns, left)
    for index in range(step.layers):
        left = _row_of_layer(step, tile, layer_of(step, index), left)
    if step.output_value or step.link or columns > step.panel:
        write_outputs(step, 0, 0, 1)
    else:
        copy_bytes(step.out, left, columns * step.item)


def _predict(address, X, out, rows, unused, unused_too):
    """Write the outputs of any number of rows, through the loss's link."""
    handle = record_at(address, HANDLE, 0)
    step = record_at(handle.predict_table, STEP, 0)
    handle.rows = 0
    step.out = out
    if rows == 1 and handle.copies != STALE:
        former = standard_arithmetic()
        _predict_row(handle, step, X)
        former_arithmetic(former)
        return DONE
    step.X, step.rows = X, rows
    step.batches = (rows + handle.batch_size - 1) // handle.batch_size
    _run(handle, handle.predict_table, FOR_TRAINING)
    return DONE


def _forward(address, X, out, rows, unused, unused_too):
    """Write the outputs of a batch, without the link, and keep what `_backward` needs."""
    handle = record_at(address, HANDLE, 0)
    step = record_at(handle.forward_table, STEP, 0)
    step.X, step.out, step.rows = X, out, rows
    _run(handle, handle.forward_table, FOR_TRAINING)
    handle.rows = rows
    return DONE


def _backward(address, upstream, gradient, input_gradient, rows, unused):
    """Add to a gradient, for any derivative by the outputs; write the inputs' if it has a place."""
    handle = record_at(address, HANDLE, 0)
    place = handle.input_backward_table if input_gradient else handle.backward_table
    step = record_at(place, STEP, 0)
    if handle.rows == 0 or handle.rows != rows:
        return NO_FORWARD
    step.upstream_rows, step.target, step.rows = upstream, gradient, rows
    step.input_gradient_rows = input_gradient
    _run(handle, place, ALL if input_gradient else FOR_TRAINING)
    return DONE


def _gradient(address, X, targets, rows, factors, gradient):
    """Compute the loss of a batch and its gradient."""
    handle = record_at(address, HANDLE, 0)
    place = handle.weighted_gradient_table if factors else handle.gradient_table
    step = record_at(place, STEP, 0)
    _set_batch(handle, step, X, rows)
    step.Y, step.factors, step.target = targets, factors, gradient
    handle.rows = 0
    _run(handle, place, FOR_TRAINING)
    return DONE


@part
def _has_updated(handle):
    """Count a step, which has left all copies of the weights up to date but one."""
    handle.copies = FOR_TRAINING
    handle.taken += 1
    handle.changes += 1
    return DONE


def _step(address, X, targets, rows, factors, unused):
    """Take a step of training, or change nothing."""
    handle = record_at(address, HANDLE, 0)
    place = handle.weighted_step_table if factors else handle.step_table
    step = record_at(place, STEP, 0)
    if not set_numbers(handle, step):
        return NO_NUMBERS
    _set_batch(handle, step, X, rows)
    step.Y, step.factors = targets, factors
    handle.rows = 0
    if _run(handle, place, FOR_TRAINING):
        return NOT_FINITE
    return _has_updated(handle)


def _apply(address, gradient, unused, unused_too, neither, nor_this):
    """Take a step along a gradient, or change nothing."""
    handle = record_at(address, HANDLE, 0)
    step = record_at(handle.apply_table, STEP, 0)
    if not set_numbers(handle, step):
        return NO_NUMBERS
    step.gradient = gradient
    handle.rows = 0
    # The update itself writes all copies.
    if _run(handle, handle.apply_table, STALE):
        return NOT_FINITE
    return _has_updated(handle)


@part
def _copy(handle, source, out, count):
    """Copy so many numbers."""
    step = record_at(handle.step_table, STEP, 0)
    panel = step.panel
    rows = (source, step.identity, 0, 1, count, count, panel)
    call(step.copy_rows, rows + (out, count, panel, 0))


def _read(address, parameters, state, counts, unused, unused_too):
    """Copy parameters and the optimizer's state out, with the steps, the changes and the origin."""
    handle = record_at(address, HANDLE, 0)
    count = handle.parameter_count
    _copy(handle, handle.parameters, parameters, count)
    _copy(handle, handle.state, state, handle.slots * count)
    set_word(counts, 0, handle.taken)
    set_word(counts, 1, handle.changes)
    set_word(counts, 2, handle.origin)
    return DONE


def _write(address, parameters, state, numbers, origin, unused):
    """Copy parameters and the optimizer's state in; take the numbers of the steps from there on.

    One call sets all that belongs together, and no interrupt falls in between.
    """
    handle = record_at(address, HANDLE, 0)
    count = handle.parameter_count
    _copy(handle, parameters, handle.parameters, count)
    _copy(handle, state, handle.state, handle.slots * count)
    handle.numbers, handle.origin = numbers, origin
    handle.taken = handle.rows = handle.changes = 0
    handle.copies = STALE
    return DONE


@part
def written(handle):
    """Have the next call see parameters that somebody has written."""
    handle.copies = STALE
    handle.rows = 0
    handle.changes += 1


def _set_parameters(address, values, unused, unused_too, neither, nor_this):
    """Copy parameters in."""
    handle = record_at(address, HANDLE, 0)
    _copy(handle, values, handle.parameters, handle.parameter_count)
    written(handle)
    return DONE


def _read_rate(address, out, unused, unused_too, neither, nor_this):
    """Copy out the learning rate of the next step, in float64."""
    doubles(out)[0] = rate_of(record_at(address, HANDLE, 0))
    return DONE


def _write_rate(address, rate, unused, unused_too, neither, nor_this):
    """Take a learning rate, in float64, for all steps from now on."""
    set_rate(record_at(address, HANDLE, 0), doubles(rate)[0])
    return DONE


def _predict_alone(handle, X, out, rows, unused, unused_too):
    """Claim a handle, predict, and release it: what C code calls."""
    record = record_at(handle, HANDLE, 0)
    if not claim(record):
        return BUSY
    call(record.enter_predict, (handle, X, out, rows, 0, 0))
    release(record)
    return DONE


class Entries(NamedTuple):
    """The addresses of compiled calls, each of six words; see the functions above."""

    predict: int
    forward: int
    backward: int
    gradient: int
    step: int
    apply: int
    set_parameters: int
    read: int
    write: int
    read_rate: int
    write_rate: int
    predict_alone: int
    run: int


@functools.cache
def entries() -> Entries:
    """Compile the calls, or load them, and return their addresses."""
    whole = types.int64
    training = _predict, _forward, _backward, _gradient, _step, _apply
    moving = _set_parameters, _read, _write
    signature = whole(*[whole] * 6)
    leaves = [
        leaf(each, f"handle{each.__name__}", signature).address
        for each in (*training, *moving, _read_rate, _write_rate, _predict_alone)
    ]
    return Entries(*leaves, address_of(run, (whole, whole)))


@kernel
def enter(entry, handle, a, b, c, d, e, loss):
    """Claim a handle and call one of its entries; return what it answers: for Python.

    Parameters
    ----------
    entry : int
        Of `entries`.
    handle : int
        Address of the HANDLE.
    a, b, c, d, e : int
        The other words.
    loss : int
        Address that the loss is copied to, before another thread may claim the handle; or 0.

    Notes
    -----
    Cost: two atomic words beside the entry's own.
    """
    record = record_at(handle, HANDLE, 0)
    if not claim(record):
        return BUSY
    answer = call(entry, (handle, a, b, c, d, e))
    if loss:
        copy_bytes(loss, record.loss, record.item)
    release(record)
    return answer
