"""Activations over arrays: the algebra's rows as loops, selected by code outside the loop."""

import numpy as np

from fastmlp_kernels.algebra import ACTIVATIONS
from fastmlp_kernels.compile import cpu_switch, kernel


def _value_loop(value):
    def activate(a):
        for i in range(a.size):
            a[i] = value(a[i])

    return activate


def _slope_loop(slope, keeps_input):
    # Reading only the array that the row keeps lets the loop vectorise when Z and A are one.
    def multiply_by_input_slope(z, a, d):
        for i in range(d.size):
            d[i] *= slope(z[i], z[i])

    def multiply_by_output_slope(z, a, d):
        for i in range(d.size):
            d[i] *= slope(a[i], a[i])

    return multiply_by_input_slope if keeps_input else multiply_by_output_slope


KEEPS_INPUT = np.array([row.keeps == "input" for row in ACTIVATIONS])
_activate = cpu_switch([_value_loop(row.value) for row in ACTIVATIONS])
_multiply = cpu_switch([_slope_loop(row.slope, row.keeps == "input") for row in ACTIVATIONS])


@kernel
def activation_forward(Z, activation, rows, out):
    """Write f(Z) to `out`.

    Parameters
    ----------
    Z, out : dtype[batch, units], C-contiguous
        Read and written; may be the same array.
    activation : int
        Code of the row of ACTIVATIONS.
    rows : int
        Rows used, from the first.

    Notes
    -----
    Cost: one read and one write of ``rows * units`` elements, in place in vectors.
    Accuracy: 2 units in the last place for the exponential family. Source: `algebra.activations`.
    """
    count = rows * out.shape[1]
    result = out.ravel()[:count]
    if Z.ctypes.data != out.ctypes.data:
        result[:] = Z.ravel()[:count]
    _activate(activation, result)


@kernel
def activation_backward(Z, A, activation, rows, dZ):
    """Multiply dZ, which holds dA on entry, by the slope of the activation, in place.

    Parameters
    ----------
    Z, A : dtype[batch, units], C-contiguous
        Pre-activation and activation, of which the one that the activation keeps is read; may be
        the same array.
    activation, rows : int
        Code of the row of ACTIVATIONS, and the rows used, from the first.
    dZ : dtype[batch, units], C-contiguous
        Read and written; distinct from Z and A.

    Notes
    -----
    Cost: two reads and a write of ``rows * units`` elements. Source: ``dZ = dA * f'(Z)``,
    with f' from `algebra.activations`.
    """
    count = rows * dZ.shape[1]
    _multiply(activation, Z.ravel()[:count], A.ravel()[:count], dZ.ravel()[:count])
