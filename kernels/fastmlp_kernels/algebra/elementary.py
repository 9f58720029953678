"""Elementary functions that a compiler can vectorise.

``math.exp`` is one library call an element; the forms below are straight-line arithmetic, so that
a loop over them becomes vector code. Called from plain Python, they are NumPy's (erf: the C
library's): an independent oracle for the compiled forms. `fastmlp_kernels.compile` substitutes
the row of `FORMS` for the target and the dtype.

Range reduction ``z = k log 2 + r, |r| <= log 2 / 2`` with log 2 split in two so that ``k * HIGH``
is exact, a polynomial in ``r``, and k added to the exponent bits (W. J. Cody and W. Waite,
Software Manual for the Elementary Functions, 1980).
"""

import math

import numpy as np

from fastmlp_kernels.algebra.constants import HALF, ONE, TWENTY, TWO, ZERO
from fastmlp_kernels.algebra.error_function import erf_cuda, erf_float32, erf_float64
from fastmlp_kernels.algebra.logarithm import (
    INFINITY_32,
    INFINITY_64,
    LOG2_HIGH_32,
    LOG2_HIGH_64,
    LOG2_LOW_32,
    LOG2_LOW_64,
    log1p_cuda,
    log1p_float32,
    log1p_float64,
    log_cuda,
    log_float32,
    log_float64,
)

# Beyond these, exp overflows to infinity or is taken as 0 (the subnormal results are flushed;
# nothing in a network can tell them from 0).
LARGEST_32, SMALLEST_32 = np.float32(88.72284), np.float32(-87.33654)
LARGEST_64, SMALLEST_64 = np.float64(709.782712893384), np.float64(-708.3964185322641)

LOG2_E_32, LOG2_E_64 = np.float32(1 / math.log(2)), np.float64(1 / math.log(2))
EPSILON_32, EPSILON_64 = np.float32(2.0**-23), np.float64(2.0**-52)
EPSILON_64_SINGLE = np.float32(EPSILON_64)
LOG_EPSILON_32, LOG_EPSILON_64 = np.float32(-23 * math.log(2)), np.float64(-52 * math.log(2))
# Added to a number, it rounds that number to an integer and leaves it in the low bits: no
# conversion between floats and integers, which AVX2 lacks for 64 bits.
ROUNDER_32, ROUNDER_64 = np.float32(1.5 * 2.0**23), np.float64(1.5 * 2.0**52)
MANTISSA_32, MANTISSA_64 = np.int32(23), np.int64(52)
HALF_BITS_32, HALF_BITS_64 = np.float32(0.5).view(np.int32), np.float64(0.5).view(np.int64)

# exp(r) = 1 + r + r^2 p(r), p minimax for (exp(r) - 1 - r) / r^2 on |r| <= log 2 / 2 by Remez's
# exchange in 60-digit arithmetic (mpmath); its share of the error is below 1.1e-8 (float32) and
# 1.8e-17 (float64).
F0, F1, F2, F3, F4 = (
    np.float32(value) for value in (0.5, 0.16666576, 0.041666374, 0.008363184, 0.0013941121)
)
D0, D1, D2, D3, D4, D5, D6, D7, D8, D9 = (
    np.float64(value)
    for value in (
        0.5000000000000001,
        0.16666666666666674,
        0.04166666666662412,
        0.008333333333322207,
        0.0013888888917217457,
        0.00019841269886591,
        2.4801521290973345e-05,
        2.7557242336680357e-06,
        2.7620090518499427e-07,
        2.5110049895858716e-08,
    )
)


def times(z, high, low):
    """Return ``z * (high + low)``, the constant rounded to the dtype of `z`."""
    return z * high + z * low


def one_like(a):
    """Return 1 in the dtype of `a` (a bare ``ONE`` times a split constant is float32)."""
    return ONE + ZERO * a


def plus(total, term):
    """Return ``total + term``, for a sum along a row: a compiler may split it over lanes."""
    return total + term


def exp(z):
    """Return e to the `z`; 1 unit in the last place, overflow gives infinity."""
    return np.exp(z)


def expm1(z):
    """Return ``exp(z) - 1`` without cancellation near 0."""
    return np.expm1(z)


def log(z):
    """Return the natural logarithm: -infinity at 0, which is no accident, and NaN below."""
    with np.errstate(divide="ignore"):
        return np.log(z)


def log1p(u):
    """Return ``log(1 + u)`` for ``0 <= u <= 1``, which is what a loss needs."""
    return np.log1p(u)


def erf(z):
    """Return the error function, odd and 1 to the last bit where it has saturated."""
    # math.erf gives a Python float, which NumPy lets a float32 constant pull down to float32.
    return type(z)(math.erf(z))


def epsilon(z):
    """Return the gap between 1 and the next number of the dtype of `z`."""
    return np.finfo(type(z)).eps


def log_epsilon(z):
    """Return the natural logarithm of `epsilon`."""
    return np.log(np.finfo(type(z)).eps)


def sigmoid(z):
    """Return ``1 / (1 + exp(-z))``; never overflows, as ``1 / inf`` is 0."""
    return ONE / (ONE + exp(-z))


def tanh(z):
    """Return the hyperbolic tangent from `expm1`, accurate near 0 and saturating exactly."""
    # exp(2|z|) overflows where tanh is 1 to the last bit; the clamp keeps infinity / infinity out.
    size = min(abs(z), TWENTY)
    growth = expm1(size + size)
    value = growth / (growth + TWO)
    value = -value if z < ZERO else value
    return z if z != z else value


def _reduced_32(z):
    """Return k, shifted to where a float keeps its exponent, and ``exp(r) - 1``."""
    counter = z * LOG2_E_32 + ROUNDER_32
    k = counter - ROUNDER_32
    r = (z - k * LOG2_HIGH_32) - k * LOG2_LOW_32
    p = F3 + r * F4
    p = F0 + r * (F1 + r * (F2 + r * p))
    return np.int32(np.float32(counter).view(np.int32) << MANTISSA_32), r + r * r * p


def _reduced_64(z):
    """Return k, shifted to where a float keeps its exponent, and ``exp(r) - 1``."""
    counter = z * LOG2_E_64 + ROUNDER_64
    k = counter - ROUNDER_64
    r = (z - k * LOG2_HIGH_64) - k * LOG2_LOW_64
    p = D8 + r * D9
    p = D6 + r * (D7 + r * p)
    p = D4 + r * (D5 + r * p)
    p = D2 + r * (D3 + r * p)
    p = D0 + r * (D1 + r * p)
    return np.int64(np.float64(counter).view(np.int64) << MANTISSA_64), r + r * r * p


def exp_float32(z):
    """Return `exp` of a float32 as straight-line float32 arithmetic."""
    k, p = _reduced_32(min(max(z, SMALLEST_32), LARGEST_32))
    value = np.int32(np.float32(ONE + p).view(np.int32) + k).view(np.float32)
    value = INFINITY_32 if z > LARGEST_32 else value
    value = np.float32(0) if z < SMALLEST_32 else value
    # Not `z` itself: in place, LLVM would store what has changed alone, under a mask (see `anew`).
    return z + z if z != z else value


def exp_float64(z):
    """Return `exp` of a float64 as straight-line float64 arithmetic."""
    k, p = _reduced_64(min(max(z, SMALLEST_64), LARGEST_64))
    value = np.int64(np.float64(ONE + p).view(np.int64) + k).view(np.float64)
    value = INFINITY_64 if z > LARGEST_64 else value
    value = np.float64(0) if z < SMALLEST_64 else value
    return z + z if z != z else value


def expm1_float32(z):
    """Return `expm1` of a float32; below -17.3 it is -1 to the last bit, and is clamped there."""
    k, p = _reduced_32(min(max(z, np.float32(-20)), LARGEST_32))
    # 2^k (1 + p) - 1 as twice h p + (h - 1/2), h = 2^(k-1): small z loses nothing, and k = 128 is
    # reached without an overflow on the way.
    h = np.int32(k + HALF_BITS_32).view(np.float32)
    value = p * h + (h - HALF)
    value = INFINITY_32 if z > LARGEST_32 else value + value
    return z if z != z else value


def expm1_float64(z):
    """Return `expm1` of a float64; below -37.4 it is -1 to the last bit, and is clamped there."""
    k, p = _reduced_64(min(max(z, np.float64(-40)), LARGEST_64))
    h = np.int64(k + HALF_BITS_64).view(np.float64)
    value = p * h + (h - HALF)
    value = INFINITY_64 if z > LARGEST_64 else value + value
    return z if z != z else value


def exp_cuda(z):
    """Return `exp` by the GPU's own library."""
    return math.exp(z)


def expm1_cuda(z):
    """Return `expm1` by the GPU's own library."""
    return math.expm1(z)


def epsilon_float32(z):
    """Return `epsilon` of float32."""
    return EPSILON_32


def epsilon_float64(z):
    """Return `epsilon` of float64."""
    return EPSILON_64


def epsilon_cuda(z):
    """Return `epsilon`, of float64 where a sum with that one is not lost."""
    one = ONE + ZERO * min(abs(z), ONE)
    return one * EPSILON_32 if one + EPSILON_64_SINGLE == one else one * EPSILON_64_SINGLE


def log_epsilon_float32(z):
    """Return `log_epsilon` of float32."""
    return LOG_EPSILON_32


def log_epsilon_float64(z):
    """Return `log_epsilon` of float64."""
    return LOG_EPSILON_64


def log_epsilon_cuda(z):
    """Return `log_epsilon` by the GPU's own logarithm."""
    return math.log(epsilon_cuda(z))


# plain form -> (CPU float32, CPU float64, CUDA)
FORMS = {
    exp: (exp_float32, exp_float64, exp_cuda),
    expm1: (expm1_float32, expm1_float64, expm1_cuda),
    log: (log_float32, log_float64, log_cuda),
    log1p: (log1p_float32, log1p_float64, log1p_cuda),
    erf: (erf_float32, erf_float64, erf_cuda),
    epsilon: (epsilon_float32, epsilon_float64, epsilon_cuda),
    log_epsilon: (log_epsilon_float32, log_epsilon_float64, log_epsilon_cuda),
}
