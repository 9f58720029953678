"""The error function as straight-line arithmetic.

Below 1, ``erf(z) = z + z R(z^2)``. From there on it is 1 less a small number, and all that counts
is the absolute error of that number: ``erfc(x) = (1 + h)**-16`` with a polynomial h (the form of
Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.28; the coefficients are ours). The
four squarings are ``h (h + 2)``, not of ``1 + h``: a rounding of h is small beside one of 1 + h.

The coefficients are minimax, by Remez's exchange in 60-digit arithmetic (mpmath): R on [0, 1] for
``erf(sqrt u) / sqrt u - 1``, weighted by ``sqrt u / erf(sqrt u)``, error 1.2e-9 (float32) and
7.3e-18 (float64); h for ``erfc(x)**(-1/16) - 1``, weighted by ``16 erfc(x)**(17/16)``, on [1, 4],
error 7.8e-10 (float32), and on [1, 6], error 1.6e-17 (float64); beyond, erf is 1 to the last bit.
"""

import math

import numpy as np

from fastmlp_kernels.algebra.constants import ONE, ZERO

LAST_32, LAST_64 = np.float32(4), np.float64(6)

R0, R1, R2, R3, R4, R5, R6 = (
    np.float32(value)
    for value in (
        0.12837917,
        -0.37612626,
        0.112835854,
        -0.026853815,
        0.0051883305,
        -8.0102024e-04,
        7.85385e-05,
    )
)
H0, H1, H2, H3, H4, H5, H6, H7 = (
    np.float32(value)
    for value in (
        -1.04112965e-04,
        0.071070954,
        0.041032653,
        0.010887481,
        -0.0011396811,
        9.1209396e-04,
        -1.3309519e-04,
        2.0858673e-05,
    )
)
S0, S1, S2, S3, S4, S5, S6, S7, S8, S9, S10, S11 = (
    np.float64(value)
    for value in (
        0.12837916709551256,
        -0.3761263890318352,
        0.112837916709442,
        -0.026866170643113415,
        0.005223977606130842,
        -0.0008548325929766244,
        0.0001205529358693695,
        -1.4924712439534814e-05,
        1.6447132699786621e-06,
        -1.6206318752969208e-07,
        1.3710988704190523e-08,
        -7.779462971761597e-10,
    )
)
T0, T1, T2, T3, T4, T5, T6, T7, T8, T9, T10, T11, T12, T13, T14, T15, T16 = (
    np.float64(value)
    for value in (
        5.91396656085201e-08,
        0.07052310936225185,
        0.042278259204582544,
        0.009279984752084464,
        0.00016448278667871103,
        0.00020989393080708994,
        0.00013066153803977833,
        -5.371403894478738e-05,
        1.7062649383937256e-05,
        -2.828867863013859e-06,
        1.0771417782796069e-07,
        9.964555534092357e-08,
        -3.27412994354618e-08,
        5.673876015812768e-09,
        -6.004931149847475e-10,
        3.702546265097242e-11,
        -1.0094505769204781e-12,
    )
)


def _joined(z, size, relative, h):
    """Return erf from ``R(z^2)`` below 1, else from the h of ``(1 + h)**-16``."""
    near = z + z * relative
    h = h * h + (h + h)
    h = h * h + (h + h)
    h = h * h + (h + h)
    h = h * h + (h + h)
    far = ONE - ONE / (ONE + h)
    far = -far if z < ZERO else far
    return near if size < ONE else far


def erf_float32(z):
    """Return `erf` of a float32."""
    size = min(abs(z), LAST_32)
    u = size * size
    relative = R5 + u * R6
    relative = R3 + u * (R4 + u * relative)
    relative = R0 + u * (R1 + u * (R2 + u * relative))
    h = H6 + size * H7
    h = H4 + size * (H5 + size * h)
    h = H2 + size * (H3 + size * h)
    h = H0 + size * (H1 + size * h)
    return _joined(z, size, relative, h)


def erf_float64(z):
    """Return `erf` of a float64."""
    size = min(abs(z), LAST_64)
    u = size * size
    relative = S10 + u * S11
    relative = S8 + u * (S9 + u * relative)
    relative = S6 + u * (S7 + u * relative)
    relative = S4 + u * (S5 + u * relative)
    relative = S2 + u * (S3 + u * relative)
    relative = S0 + u * (S1 + u * relative)
    h = T15 + size * T16
    h = T13 + size * (T14 + size * h)
    h = T11 + size * (T12 + size * h)
    h = T9 + size * (T10 + size * h)
    h = T7 + size * (T8 + size * h)
    h = T5 + size * (T6 + size * h)
    h = T3 + size * (T4 + size * h)
    h = T1 + size * (T2 + size * h)
    return _joined(z, size, relative, T0 + size * h)


def erf_cuda(z):
    """Return `erf` by the GPU's own library."""
    return math.erf(z)
