"""Elementary functions that a compiler can vectorise.

``math.exp`` is one library call an element; the polynomials below are straight-line arithmetic,
so that a loop over them becomes vector code. Called from plain Python, `exp`, `expm1` and
`log1p` are NumPy's: an independent oracle for the compiled forms. `fastmlp_kernels.compile`
substitutes the row of `FORMS` for the target and the dtype.

Range reduction ``z = k log 2 + r, |r| <= log 2 / 2`` with log 2 split in two so that ``k * HIGH``
is exact, a Taylor polynomial in ``r``, and ``2**k`` built in the exponent bits (W. J. Cody and
W. Waite, Software Manual for the Elementary Functions, 1980).
"""

import math

import numpy as np

from fastmlp_kernels.algebra.constants import ONE, TWENTY, TWO, ZERO

# Beyond these, exp overflows to infinity or is taken as 0 (the subnormal results are flushed;
# nothing in a network can tell them from 0). 2**k is applied as two factors so that k = 128
# and k = 1024 are reached without an overflow on the way.
LARGEST_32, SMALLEST_32 = np.float32(88.72284), np.float32(-87.33654)
LARGEST_64, SMALLEST_64 = np.float64(709.782712893384), np.float64(-708.3964185322641)
INFINITY_32, INFINITY_64 = np.float32(np.inf), np.float64(np.inf)

LOG2_E_32, LOG2_E_64 = np.float32(1 / math.log(2)), np.float64(1 / math.log(2))
HALF_32, HALF_64 = np.float32(0.5), np.float64(0.5)
# Cody and Waite's split: the high part has few bits, so that k times it is exact.
LOG2_HIGH_32, LOG2_LOW_32 = np.float32(0.693359375), np.float32(-2.12194440e-4)
LOG2_HIGH_64, LOG2_LOW_64 = (
    np.float64(6.93147180369123816490e-01),
    np.float64(1.90821492927058770002e-10),
)
BIAS_32, MANTISSA_32 = np.int32(127), np.int32(23)
BIAS_64, MANTISSA_64 = np.int64(1023), np.int64(52)

# 1/n! : at |r| <= 0.3466 the first term left out is below 2e-9 (float32) and 2e-18 (float64)
# of the result.
F2, F3, F4, F5, F6, F7, F8 = (np.float32(1 / math.factorial(n)) for n in range(2, 9))
D2, D3, D4, D5, D6, D7, D8, D9, D10, D11, D12, D13, D14 = (
    np.float64(1 / math.factorial(n)) for n in range(2, 15)
)

# 2 atanh(s) = 2s (1 + s^2/3 + s^4/5 + ...), s = u / (2 + u) <= 1/3 for u <= 1.
L1, L2, L3, L4, L5, L6, L7 = (np.float32(1 / (2 * n + 1)) for n in range(1, 8))
M1, M2, M3, M4, M5, M6, M7, M8, M9, M10, M11, M12, M13, M14, M15 = (
    np.float64(1 / (2 * n + 1)) for n in range(1, 16)
)


def times(z, high, low):
    """Return ``z * (high + low)``, the constant rounded to the dtype of `z`."""
    return z * high + z * low


def one_like(a):
    """Return 1 in the dtype of `a` (a bare ``ONE`` times a split constant is float32)."""
    return ONE + ZERO * a


def exp(z):
    """Return e to the `z`; 2 units in the last place, overflow gives infinity."""
    return np.exp(z)


def expm1(z):
    """Return ``exp(z) - 1`` without cancellation near 0."""
    return np.expm1(z)


def log1p(u):
    """Return ``log(1 + u)`` for ``0 <= u <= 1``, which is what a loss needs."""
    return np.log1p(u)


def erf(z):
    """Return the error function, a library call for each element."""
    # math.erf gives a Python float, which NumPy lets a float32 constant pull down to float32.
    return type(z)(math.erf(z))


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


def _scaled_exponent_32(k):
    return np.int32((k + BIAS_32) << MANTISSA_32).view(np.float32)


def _scaled_exponent_64(k):
    return np.int64((k + BIAS_64) << MANTISSA_64).view(np.float64)


def _reduced_32(z):
    steps = np.floor(z * LOG2_E_32 + HALF_32)
    r = (z - steps * LOG2_HIGH_32) - steps * LOG2_LOW_32
    p = F7 + r * F8
    p = F5 + r * (F6 + r * p)
    p = F3 + r * (F4 + r * p)
    return np.int32(steps), r + r * r * (F2 + r * p)


def _reduced_64(z):
    steps = np.floor(z * LOG2_E_64 + HALF_64)
    r = (z - steps * LOG2_HIGH_64) - steps * LOG2_LOW_64
    p = D13 + r * D14
    p = D11 + r * (D12 + r * p)
    p = D9 + r * (D10 + r * p)
    p = D7 + r * (D8 + r * p)
    p = D5 + r * (D6 + r * p)
    p = D3 + r * (D4 + r * p)
    return np.int64(steps), r + r * r * (D2 + r * p)


def exp_float32(z):
    """Return `exp` of a float32 as straight-line float32 arithmetic."""
    k, p = _reduced_32(min(max(z, SMALLEST_32), LARGEST_32))
    half = k >> np.int32(1)
    value = (p * _scaled_exponent_32(half) + _scaled_exponent_32(half)) * _scaled_exponent_32(
        k - half
    )
    value = INFINITY_32 if z > LARGEST_32 else value
    value = np.float32(0) if z < SMALLEST_32 else value
    return z if z != z else value


def exp_float64(z):
    """Return `exp` of a float64 as straight-line float64 arithmetic."""
    k, p = _reduced_64(min(max(z, SMALLEST_64), LARGEST_64))
    half = k >> np.int64(1)
    value = (p * _scaled_exponent_64(half) + _scaled_exponent_64(half)) * _scaled_exponent_64(
        k - half
    )
    value = INFINITY_64 if z > LARGEST_64 else value
    value = np.float64(0) if z < SMALLEST_64 else value
    return z if z != z else value


def expm1_float32(z):
    """Return `expm1` of a float32; below -17.3 it is -1 to the last bit, and is clamped there."""
    k, p = _reduced_32(min(max(z, np.float32(-20)), LARGEST_32))
    half = k >> np.int32(1)
    # 2^k (1 + p) - 1 as 2^(k-h) (2^h p + (2^h - 2^(h-k))): small z loses nothing, and k = 128
    # (1024) is reached without an overflow on the way.
    low = _scaled_exponent_32(half)
    value = (p * low + (low - _scaled_exponent_32(half - k))) * _scaled_exponent_32(k - half)
    value = INFINITY_32 if z > LARGEST_32 else value
    return z if z != z else value


def expm1_float64(z):
    """Return `expm1` of a float64; below -37.4 it is -1 to the last bit, and is clamped there."""
    k, p = _reduced_64(min(max(z, np.float64(-40)), LARGEST_64))
    half = k >> np.int64(1)
    # 2^k (1 + p) - 1 as 2^(k-h) (2^h p + (2^h - 2^(h-k))): small z loses nothing, and k = 128
    # (1024) is reached without an overflow on the way.
    low = _scaled_exponent_64(half)
    value = (p * low + (low - _scaled_exponent_64(half - k))) * _scaled_exponent_64(k - half)
    value = INFINITY_64 if z > LARGEST_64 else value
    return z if z != z else value


def log1p_float32(u):
    """Return `log1p` of a float32 in [0, 1] by the series of 2 atanh(u / (2 + u))."""
    s = u / (np.float32(2) + u)
    q = s * s
    p = L5 + q * (L6 + q * L7)
    p = L3 + q * (L4 + q * p)
    p = L1 + q * (L2 + q * p)
    return (s + s) + (s + s) * (q * p)


def log1p_float64(u):
    """Return `log1p` of a float64 in [0, 1] by the series of 2 atanh(u / (2 + u))."""
    s = u / (np.float64(2) + u)
    q = s * s
    p = M13 + q * (M14 + q * M15)
    p = M11 + q * (M12 + q * p)
    p = M9 + q * (M10 + q * p)
    p = M7 + q * (M8 + q * p)
    p = M5 + q * (M6 + q * p)
    p = M3 + q * (M4 + q * p)
    p = M1 + q * (M2 + q * p)
    return (s + s) + (s + s) * (q * p)


def exp_cuda(z):
    """Return `exp` by the GPU's own library."""
    return math.exp(z)


def expm1_cuda(z):
    """Return `expm1` by the GPU's own library."""
    return math.expm1(z)


def log1p_cuda(u):
    """Return `log1p` by the GPU's own library."""
    return math.log1p(u)


def erf_library(z):
    """Return `erf` by the C library's or the GPU's own function of the dtype."""
    return math.erf(z)


# plain form -> (CPU float32, CPU float64, CUDA)
FORMS = {
    exp: (exp_float32, exp_float64, exp_cuda),
    expm1: (expm1_float32, expm1_float64, expm1_cuda),
    log1p: (log1p_float32, log1p_float64, log1p_cuda),
    erf: (erf_library, erf_library, erf_library),
}
