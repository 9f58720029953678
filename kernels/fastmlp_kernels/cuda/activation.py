"""Activations over device arrays: one thread an element, the algebra's rows selected by code."""

from numba import cuda

from fastmlp_kernels.algebra import ACTIVATIONS
from fastmlp_kernels.compile import cuda_kernel, cuda_switch

# `linear` fuses the first into its product. Every thread of a launch takes the same branch.
activation_value = cuda_switch([row.value for row in ACTIVATIONS])
activation_slope = cuda_switch([row.slope for row in ACTIVATIONS])


@cuda_kernel
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
    Launch: a thread an element of the rows used. Cost: one read and one write of ``rows * units``
    elements. Accuracy: that of CUDA's library, 2 units in the last place for the exponential
    family. Source: `algebra.activations`.
    """
    index = cuda.grid(1)
    units = out.shape[1]
    if index < rows * units:
        i = index // units
        j = index - i * units
        out[i, j] = activation_value(activation, Z[i, j])


@cuda_kernel
def activation_backward(Z, A, activation, rows, dZ):
    """Multiply dZ, which holds dA on entry, by the slope of the activation, in place.

    Parameters
    ----------
    Z, A : dtype[batch, units], C-contiguous
        Pre-activation and activation, of which the one that the activation keeps counts; may be
        the same array.
    activation, rows : int
        Code of the row of ACTIVATIONS, and the rows used, from the first.
    dZ : dtype[batch, units], C-contiguous
        Read and written; distinct from Z and A.

    Notes
    -----
    Launch: a thread an element of the rows used. Cost: three reads and a write of
    ``rows * units`` elements. Source: ``dZ = dA * f'(Z)``, with f' from `algebra.activations`.
    """
    index = cuda.grid(1)
    units = dZ.shape[1]
    if index < rows * units:
        i = index // units
        j = index - i * units
        dZ[i, j] *= activation_slope(activation, Z[i, j], A[i, j])
