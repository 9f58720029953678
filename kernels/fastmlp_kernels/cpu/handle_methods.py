"""What a user's compiled functions call of a handle: arrays are checked, then an entry is called.

`fastmlp.compiled` documents the methods, where Python calls them.
"""

import math

from numba.core.imputils import lower_setattr
from numba.extending import overload_attribute, overload_method

from fastmlp_kernels.cpu.handle_arrays import (
    MATRIX,
    VECTOR,
    all_finite,
    check_array,
    check_batch,
    check_gradient,
    check_numbers,
    check_targets,
    check_weights,
    claim_alone,
    factors_of,
    fits,
    is_given,
    optional_address,
    optional_fits,
    record_of,
    refuse,
    rows_of,
    targets_of,
)
from fastmlp_kernels.cpu.handle_calls import written
from fastmlp_kernels.cpu.handle_numbers import rate_of, set_rate
from fastmlp_kernels.cpu.handle_record import NO_CLASS, NOT_FINITE, release
from fastmlp_kernels.cpu.handle_type import HandleType, data_address, handle_address, numbers
from fastmlp_kernels.cpu.intrinsics import call


@overload_method(HandleType, "predict")
def _predict(net, x, out):
    check_array(net, "x", x, MATRIX)
    check_array(net, "out", out, MATRIX, written=True)

    def predict(net, x, out):
        handle, rows = record_of(net), rows_of(x)
        if not fits(x, rows, handle.inputs):
            raise ValueError("x: wanted as many columns as the network has inputs, without gaps")
        if not fits(out, rows, handle.outputs):
            raise ValueError("out: wanted a row of all outputs for each row of x, without gaps")
        if rows == 0:
            return
        claim_alone(handle)
        place = handle_address(net)
        call(handle.enter_predict, (place, data_address(x), data_address(out), rows, 0, 0))
        release(handle)

    return predict


@overload_method(HandleType, "forward")
def _forward(net, X, out):
    check_array(net, "X", X, MATRIX)
    check_array(net, "out", out, MATRIX, written=True)

    def forward(net, X, out):
        handle, rows = record_of(net), rows_of(X)
        check_batch(handle, X, rows)
        if not fits(out, rows, handle.outputs):
            raise ValueError("out: wanted a row of all outputs for each row of X, without gaps")
        claim_alone(handle)
        place = handle_address(net)
        call(handle.enter_forward, (place, data_address(X), data_address(out), rows, 0, 0))
        release(handle)

    return forward


@overload_method(HandleType, "backward")
def _backward(net, dyhat, gradient, dX=None):
    check_array(net, "dyhat", dyhat, MATRIX)
    check_array(net, "gradient", gradient, VECTOR, written=True)
    if is_given(dX):
        check_array(net, "dX", dX, MATRIX, written=True)

    def backward(net, dyhat, gradient, dX=None):
        handle, rows = record_of(net), rows_of(dyhat)
        if not fits(dyhat, rows, handle.outputs):
            raise ValueError("dyhat: wanted the shape of the outputs of forward, without gaps")
        if not optional_fits(dX, rows, handle.inputs):
            raise ValueError("dX: wanted the shape of the X of forward, without gaps")
        check_gradient(handle, gradient)
        claim_alone(handle)
        arrays = data_address(dyhat), data_address(gradient), optional_address(dX)
        answer = call(handle.enter_backward, (handle_address(net),) + arrays + (rows, 0))
        release(handle)
        if answer:
            refuse(answer)

    return backward


@overload_method(HandleType, "value_and_grad")
def _value_and_grad(net, X, y, gradient, loss_weight=None):
    check_array(net, "X", X, MATRIX)
    check_numbers("y", y, MATRIX)
    check_array(net, "gradient", gradient, VECTOR, written=True)
    if is_given(loss_weight):
        check_numbers("loss_weight", loss_weight, VECTOR)

    def value_and_grad(net, X, y, gradient, loss_weight=None):
        handle, rows = record_of(net), rows_of(X)
        check_batch(handle, X, rows)
        check_targets(handle, y, rows)
        check_weights(loss_weight, rows)
        check_gradient(handle, gradient)
        claim_alone(handle)
        targets, answer = targets_of(net, handle, y), NO_CLASS
        if targets:
            factors = factors_of(net, handle, loss_weight, rows)
            arrays = handle_address(net), data_address(X), targets
            into = rows, factors, data_address(gradient)
            answer = call(handle.enter_gradient, arrays + into)
        loss = numbers(net, handle.loss)[0]
        release(handle)
        if answer:
            refuse(answer)
        return loss

    return value_and_grad


@overload_method(HandleType, "step")
def _step(net, X, y, loss_weight=None):
    check_array(net, "X", X, MATRIX)
    check_numbers("y", y, MATRIX)
    if is_given(loss_weight):
        check_numbers("loss_weight", loss_weight, VECTOR)

    def step(net, X, y, loss_weight=None):
        handle, rows = record_of(net), rows_of(X)
        check_batch(handle, X, rows)
        check_targets(handle, y, rows)
        check_weights(loss_weight, rows)
        claim_alone(handle)
        targets, answer = targets_of(net, handle, y), NO_CLASS
        if targets:
            factors = factors_of(net, handle, loss_weight, rows)
            arrays = handle_address(net), data_address(X), targets
            answer = call(handle.enter_step, arrays + (rows, factors, 0))
        loss = numbers(net, handle.loss)[0]
        release(handle)
        if answer:
            refuse(answer)
        return loss

    return step


@overload_method(HandleType, "apply")
def _apply(net, gradient):
    check_array(net, "gradient", gradient, VECTOR)

    def apply(net, gradient):
        handle = record_of(net)
        check_gradient(handle, gradient)
        if not all_finite(handle, gradient):
            refuse(NOT_FINITE)
        claim_alone(handle)
        place = handle_address(net)
        answer = call(handle.enter_apply, (place, data_address(gradient), 0, 0, 0, 0))
        release(handle)
        if answer:
            refuse(answer)

    return apply


@overload_method(HandleType, "get_parameters")
def _get_parameters(net, out):
    check_array(net, "out", out, VECTOR, written=True)

    def get_parameters(net, out):
        handle = record_of(net)
        if not fits(out, 1, handle.parameter_count):
            raise ValueError("out: wanted a vector as long as the parameters, without gaps")
        claim_alone(handle)
        held = numbers(net, handle.parameters)
        for i in range(handle.parameter_count):
            out[i] = held[i]
        release(handle)

    return get_parameters


@overload_method(HandleType, "set_parameters")
def _set_parameters(net, values):
    check_array(net, "values", values, VECTOR)

    def set_parameters(net, values):
        handle = record_of(net)
        if not fits(values, 1, handle.parameter_count):
            raise ValueError("values: wanted a vector as long as the parameters, without gaps")
        if not all_finite(handle, values):
            raise ValueError("values: wanted finite numbers; nothing has changed")
        claim_alone(handle)
        held = numbers(net, handle.parameters)
        for i in range(handle.parameter_count):
            held[i] = values[i]
        written(handle)
        release(handle)

    return set_parameters


@overload_attribute(HandleType, "inputs")
def _inputs(net):
    return lambda net: record_of(net).inputs


@overload_attribute(HandleType, "outputs")
def _outputs(net):
    return lambda net: record_of(net).outputs


@overload_attribute(HandleType, "parameter_count")
def _parameter_count(net):
    return lambda net: record_of(net).parameter_count


@overload_attribute(HandleType, "learning_rate")
def _learning_rate(net):
    def learning_rate(net):
        handle = record_of(net)
        claim_alone(handle)
        rate = rate_of(handle)
        release(handle)
        return rate

    return learning_rate


@lower_setattr(HandleType, "learning_rate")
def _set_learning_rate(context, builder, signature, arguments):
    """Compile ``net.learning_rate = rate``, for which Numba has no decorator of its own."""

    def set_learning_rate(net, rate):
        if not 0 <= rate < math.inf:
            raise ValueError("learning_rate: wanted a finite number of at least 0")
        handle = record_of(net)
        claim_alone(handle)
        set_rate(handle, rate)
        release(handle)

    return context.compile_internal(builder, set_learning_rate, signature, arguments)
