"""The optimizer's step over the flat parameter vector."""

from fastmlp_kernels.algebra import OPTIMIZERS
from fastmlp_kernels.compile import cpu_switch, kernel
from fastmlp_kernels.problem import STATUS


def _update_loop(rule, slots):
    def no_state(p, g, first, second, h):
        for i in range(p.size):
            p[i], _, _ = rule(p[i], g[i], g[i], g[i], h)

    def one_state(p, g, first, second, h):
        for i in range(p.size):
            p[i], first[i], _ = rule(p[i], g[i], first[i], g[i], h)

    def two_states(p, g, first, second, h):
        for i in range(p.size):
            p[i], first[i], second[i] = rule(p[i], g[i], first[i], second[i], h)

    return (no_state, one_state, two_states)[slots]


_update = cpu_switch([_update_loop(row.update, row.slots) for row in OPTIMIZERS])


@kernel
def update(parameters, gradient, first, second, rule, hyper, batch, status):
    """Apply one optimizer step to every parameter, unless training has stopped being finite.

    Parameters
    ----------
    parameters : dtype[P], read and written
    gradient : dtype[P], read
    first, second : dtype[P], read and written
        The optimizer's state; those that the rule does not use are not touched and may be empty.
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
    Cost: about 10 flops and 3 to 7 memory accesses a parameter. Source: `algebra.optimizers`.
    """
    if status[STATUS] != 0:
        return
    h = (
        hyper[batch, 0],
        hyper[batch, 1],
        hyper[batch, 2],
        hyper[batch, 3],
        hyper[batch, 4],
        hyper[batch, 5],
    )
    _update(rule, parameters, gradient, first, second, h)
