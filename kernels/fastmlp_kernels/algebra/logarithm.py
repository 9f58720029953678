"""The logarithm as straight-line arithmetic.

``z = 2**k m`` with ``sqrt(1/2) <= m < sqrt 2`` by the bits of z, and with ``f = m - 1`` and
``s = f / (2 + f)``: ``log m = 2 atanh s = 2s + s^3 P(s^2) = f - s (f - s^2 P)``, in whose last form
f is exact and only a small correction is rounded (after the method of the C library fdlibm).
P is minimax for ``(2 atanh s - 2s) / s^3`` over ``|s| <= 0.1717``, by Remez's exchange in 60-digit
arithmetic (mpmath); its share of the error is 3e-9 (float32) and 5e-18 (float64).
"""

import math

import numpy as np

from fastmlp_kernels.algebra.constants import HALF, ONE, TWO, ZERO

# Cody and Waite's split: the high part has few bits, so that k times it is exact.
LOG2_HIGH_32, LOG2_LOW_32 = np.float32(0.693359375), np.float32(-2.12194440e-4)
LOG2_HIGH_64, LOG2_LOW_64 = (
    np.float64(6.93147180369123816490e-01),
    np.float64(1.90821492927058770002e-10),
)
P0, P1, P2 = np.float32(0.66666687), np.float32(0.39988697), np.float32(0.29583088)
Q0, Q1, Q2, Q3, Q4, Q5, Q6 = (
    np.float64(value)
    for value in (
        0.666666666666667,
        0.3999999999989789,
        0.2857142862665141,
        0.22222211031749325,
        0.18182896207631685,
        0.15331497764506818,
        0.1461909699201228,
    )
)

SMALLEST_NORMAL_32, SMALLEST_NORMAL_64 = np.finfo(np.float32).tiny, np.finfo(np.float64).tiny
INFINITY_32, INFINITY_64 = np.float32(np.inf), np.float64(np.inf)
NAN_32, NAN_64 = np.float32(np.nan), np.float64(np.nan)
# A subnormal number is first made a normal one.
LIFT_32, LIFTED_32 = np.float32(2.0**24), np.float32(24)
LIFT_64, LIFTED_64 = np.float64(2.0**54), np.float64(54)
# Unsigned throughout: AVX2 has no arithmetic shift of 64-bit integers.
MANTISSA_32, FRACTION_32 = np.uint32(23), np.uint32(2**23 - 1)
MANTISSA_64, FRACTION_64 = np.uint64(52), np.uint64(2**52 - 1)
ROOT_HALF_32 = np.float32(math.sqrt(0.5)).view(np.uint32)
ROOT_HALF_64 = np.float64(math.sqrt(0.5)).view(np.uint64)
# What takes a number at sqrt(1/2) to an exponent field of 127 (1023) and a fraction of 0.
OFFSET_32 = np.uint32(np.float32(1).view(np.uint32) - ROOT_HALF_32)
OFFSET_64 = np.uint64(np.float64(1).view(np.uint64) - ROOT_HALF_64)
# An integer below 2**23 (2**52) put into the fraction of this number is that number plus it: a
# conversion to a float that every instruction set has.
COUNTER_32, COUNTER_64 = np.float32(2.0**23), np.float64(2.0**52)
COUNTER_BITS_32, COUNTER_BITS_64 = COUNTER_32.view(np.uint32), COUNTER_64.view(np.uint64)
COUNTED_32, COUNTED_64 = COUNTER_32 + np.float32(127), COUNTER_64 + np.float64(1023)
ROOT_TWO_LESS_ONE = np.float32(math.sqrt(2) - 1)


def _correction_32(f):
    s = f / (TWO + f)
    q = s * s
    return s * (f - q * (P0 + q * (P1 + q * P2)))


def _correction_64(f):
    s = f / (TWO + f)
    q = s * s
    p = Q5 + q * Q6
    p = Q3 + q * (Q4 + q * p)
    p = Q1 + q * (Q2 + q * p)
    return s * (f - q * (Q0 + q * p))


def log_float32(z):
    """Return `log` of a float32."""
    small = z < SMALLEST_NORMAL_32
    lifted = z * LIFT_32 if small else z
    bits = np.uint32(np.float32(lifted).view(np.uint32) + OFFSET_32)
    counter = np.uint32((bits >> MANTISSA_32) | COUNTER_BITS_32).view(np.float32)
    k = (counter - COUNTED_32) - (LIFTED_32 if small else np.float32(0))
    f = np.uint32((bits & FRACTION_32) + ROOT_HALF_32).view(np.float32) - ONE
    value = k * LOG2_HIGH_32 + (f - (_correction_32(f) - k * LOG2_LOW_32))
    value = INFINITY_32 if z == INFINITY_32 else value
    return value if z > ZERO else (-INFINITY_32 if z == ZERO else NAN_32)


def log_float64(z):
    """Return `log` of a float64."""
    small = z < SMALLEST_NORMAL_64
    lifted = z * LIFT_64 if small else z
    bits = np.float64(lifted).view(np.uint64) + OFFSET_64
    counter = np.uint64((bits >> MANTISSA_64) | COUNTER_BITS_64).view(np.float64)
    k = (counter - COUNTED_64) - (LIFTED_64 if small else np.float64(0))
    f = np.uint64((bits & FRACTION_64) + ROOT_HALF_64).view(np.float64) - ONE
    value = k * LOG2_HIGH_64 + (f - (_correction_64(f) - k * LOG2_LOW_64))
    value = INFINITY_64 if z == INFINITY_64 else value
    return value if z > ZERO else (-INFINITY_64 if z == ZERO else NAN_64)


def log1p_float32(u):
    """Return `log1p` of a float32 in [0, 1]."""
    # log(1 + u) = log 2 + log((1 + u) / 2), where f = (u - 1) / 2. The low part of log 2 is added
    # with its sign turned, not subtracted. To subtract 0 is to do nothing: vector code with masks
    # skips it and fuses no product with it, where code for one element does, and the last bit of a
    # loss depended on where it stood in its loop. To add 0 turns -0 into 0, so it is not skipped.
    large = u > ROOT_TWO_LESS_ONE
    f = (u - ONE) * HALF if large else u
    high = LOG2_HIGH_32 if large else np.float32(0)
    low = -LOG2_LOW_32 if large else np.float32(0)
    return high + (f - (_correction_32(f) + low))


def log1p_float64(u):
    """Return `log1p` of a float64 in [0, 1]."""
    large = u > ROOT_TWO_LESS_ONE
    f = (u - ONE) * HALF if large else u
    high = LOG2_HIGH_64 if large else np.float64(0)
    low = -LOG2_LOW_64 if large else np.float64(0)
    return high + (f - (_correction_64(f) + low))


def log_cuda(z):
    """Return `log` by the GPU's own library."""
    return math.log(z)


def log1p_cuda(u):
    """Return `log1p` by the GPU's own library."""
    return math.log1p(u)
