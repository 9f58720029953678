"""The optimizer's step over the flat parameter vector."""

from numba import cuda

from fastmlp_kernels.algebra import OPTIMIZERS
from fastmlp_kernels.compile import cuda_kernel, cuda_switch
from fastmlp_kernels.problem import STATUS

_rule = cuda_switch([row.update for row in OPTIMIZERS])


@cuda_kernel
def update(parameters, gradient, first, second, rule, hyper, batch, status):
    """Apply one optimizer step to every parameter, unless training has stopped being finite.

    Parameters
    ----------
    parameters : dtype[P], read and written
    gradient : dtype[P], read
    first, second : dtype[P], read and written
        The optimizer's state; those that the rule does not use keep their values and may be empty.
    rule : int
        Code of the row of OPTIMIZERS.
    hyper : dtype[batches, 6], read
        One row a step.
    batch : int
        The row of `hyper`.
    status : int64[3], read
        Nothing is written when ``status[STATUS]`` is not 0.

    Notes
    -----
    Launch: a thread a parameter. Aliasing: none of the arrays overlap. Cost: about 10 flops and
    3 to 7 memory accesses a parameter. Source: `algebra.optimizers`.
    """
    i = cuda.grid(1)
    if i >= parameters.size or status[STATUS] != 0:
        return
    zero = parameters.dtype.type(0)
    h = (
        hyper[batch, 0],
        hyper[batch, 1],
        hyper[batch, 2],
        hyper[batch, 3],
        hyper[batch, 4],
        hyper[batch, 5],
    )
    m = first[i] if i < first.size else zero
    v = second[i] if i < second.size else zero
    parameters[i], m, v = _rule(rule, parameters[i], gradient[i], m, v, h)
    if i < first.size:
        first[i] = m
    if i < second.size:
        second[i] = v
