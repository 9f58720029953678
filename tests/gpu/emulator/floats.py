"""Arithmetic of floats that NumPy lacks: fused, directed rounding, short formats, conversions."""

import numpy as np
from numba import vectorize
from numba.extending import intrinsic

from tests.gpu.emulator.registers import F32, F64, U16, U32, U64

TO_INTEGER = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}


@intrinsic
def _fma(context, a, b, c):
    return a(a, b, c), lambda context, builder, signature, given: builder.fma(*given)


@vectorize(["float32(float32, float32, float32)", "float64(float64, float64, float64)"], cache=True)
def fused(a, b, c):
    """Return ``a * b + c``, rounded once."""
    return _fma(a, b, c)


def fused_directed(a, b, c, mode):
    return to_float(np.asarray(a, F64) * np.asarray(b, F64) + np.asarray(c, F64), mode)


def add_directed(a, b, mode):
    return to_float(np.asarray(a, F64) + np.asarray(b, F64), mode)


def to_float(exact, mode):
    """Return a float64 as float32, rounded down ("rm"), up ("rp") or towards zero ("rz")."""
    near = exact.astype(F32)
    wide = near.astype(F64)
    wrong = {"rm": wide > exact, "rp": wide < exact, "rz": np.abs(wide) > np.abs(exact)}[mode]
    towards = {"rm": F32(-np.inf), "rp": F32(np.inf), "rz": F32(0)}[mode]
    return np.where(wrong, np.nextafter(near, towards), near)


def to_integer(x, kind, mode):
    """Return the nearest number that the type has; NaN is 0, or 1 << 63 where 64 bits take part."""
    ends = np.iinfo(kind)
    rounded = TO_INTEGER[mode](x.astype(F64))
    inside = (rounded >= float(ends.min)) & (rounded < float(ends.max) + (ends.max < 2**53))
    result = np.where(inside, rounded, 0).astype(kind)
    result = np.where(~inside & (rounded > 0), ends.max, result)
    result = np.where(~inside & (rounded < 0), ends.min, result)
    if x.dtype.itemsize == 8 or np.dtype(kind).itemsize == 8:
        lowest = ends.min if ends.min < 0 else (ends.max >> 1) + 1
        result = np.where(np.isnan(x), np.array(lowest, kind), result)
    return result.astype(kind)


def saturated(x):
    """Return `x` between 0 and 1; NaN is 0."""
    return np.where(np.isnan(x), x.dtype.type(0), np.clip(x, 0, 1))


def to_bfloat16(x):
    """Return the bits of the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(x, F32).view(U32)
    odd = (bits >> U32(16)) & U32(1)
    rounded = ((bits + U32(0x7FFF) + odd) >> U32(16)).astype(U16)
    return np.where(np.isnan(x), U16(0x7FFF), rounded)


def from_bfloat16(bits):
    return (bits.astype(U32) << U32(16)).view(F32)


def to_tf32(x):
    """Return the bits of the nearest tf32, ties away from zero."""
    bits = np.ascontiguousarray(x, F32).view(U32)
    return np.where(np.isfinite(x), (bits + U32(0x1000)) & U32(0xFFFFE000), bits)


def short_reciprocal(x):
    """Return the reciprocal of float64 cut to the upper half of its bits, as documented."""
    bits = np.ascontiguousarray(1.0 / x).view(U64)
    return (bits & U64(0xFFFFFFFF00000000)).view(F64)
