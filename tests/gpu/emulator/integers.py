"""Arithmetic of integers and bits that NumPy lacks, or does otherwise than PTX."""

import numpy as np

from tests.gpu.emulator.registers import S64, U64, Fault


def divide(a, b):
    """Return the quotient, cut towards zero."""
    if np.any(b == 0):
        raise Fault("an integer is divided by zero")
    a, b = np.broadcast_arrays(a, b)
    if a.dtype.kind == "u":
        return a // b
    quotient = np.abs(a) // np.abs(b)
    return np.where((a < 0) != (b < 0), -quotient, quotient)


def remainder(a, b):
    return a - divide(a, b) * b


def high_product(a, b):
    """Return the upper half of the product."""
    a, b = np.broadcast_arrays(a, b)
    if a.dtype.itemsize == 4:
        wide = U64 if a.dtype.kind == "u" else S64
        return (a.astype(wide) * b.astype(wide) >> wide(32)).astype(a.dtype)
    mask, half = U64(0xFFFFFFFF), U64(32)
    x, y = np.ascontiguousarray(a).view(U64), np.ascontiguousarray(b).view(U64)
    x_low, x_high, y_low, y_high = x & mask, x >> half, y & mask, y >> half
    one = x_high * y_low + (x_low * y_low >> half)
    other = x_low * y_high + (one & mask)
    high = x_high * y_high + (one >> half) + (other >> half)
    if a.dtype.kind == "i":
        # A negative number is 2**64 more as an unsigned one.
        high = high - np.where(a < 0, y, U64(0)) - np.where(b < 0, x, U64(0))
        return high.view(S64)
    return high


def shift_left(a, count, bits):
    """Return `a` shifted; by as many bits as it has, or more, it is 0."""
    inside = np.minimum(count, bits - 1).astype(a.dtype)
    return np.where(np.asarray(count) < bits, a << inside, a.dtype.type(0))


def shift_right(a, count, bits):
    """Return `a` shifted; of a signed number the sign comes in."""
    inside = np.minimum(count, bits - 1).astype(a.dtype)
    if a.dtype.kind == "i":
        return a >> inside
    return np.where(np.asarray(count) < bits, a >> inside, a.dtype.type(0))


def insert_bits(a, b, start, length, bits):
    """Return `b` with the low bits of `a` in the place of some of its own."""
    mask = ((1 << (length & 255)) - 1) << (start & 255) & ((1 << bits) - 1)
    kind = b.dtype.type
    return (b & kind(~mask & ((1 << bits) - 1))) | ((a << kind(start)) & kind(mask))
