"""Typed constants for the scalar rules.

A literal such as ``1.0`` is a float64 to Numba, and one of them turns a whole float32 kernel into
float64 arithmetic. A ``numpy.float32`` constant keeps float32 data in float32 and is promoted,
exactly, when the data is float64. A constant that float32 cannot hold is therefore given as a
pair ``HIGH + LOW`` (see `elementary.times`): float32 code uses, in effect, ``HIGH`` alone, and
float64 code gets about 48 bits of it.
"""

import math

import numpy as np

ZERO = np.float32(0)
HALF = np.float32(0.5)
ONE = np.float32(1)
TWO = np.float32(2)
THREE = np.float32(3)
TWENTY = np.float32(20)
# Floors that keep infinity out: of what is divided by, and of a logarithm.
SMALLEST, FLOOR = TWO**-126, -ONE * 100
# More classes than a layer can have, and an integer in either dtype.
LARGEST_LABEL = TWO**30


def split(value: float) -> tuple[np.float32, np.float32]:
    """Return the float32 pair whose exact sum is nearest to `value`."""
    high = np.float32(value)
    return high, np.float32(value - float(high))


LEAKY_SLOPE_HIGH, LEAKY_SLOPE_LOW = split(0.01)
SELU_SCALE_HIGH, SELU_SCALE_LOW = split(1.0507009873554804934193349852946)
SELU_ALPHA_HIGH, SELU_ALPHA_LOW = split(1.6732632423543772848170429916717)
SQRT_HALF_HIGH, SQRT_HALF_LOW = split(math.sqrt(0.5))
NORMAL_DENSITY_HIGH, NORMAL_DENSITY_LOW = split(1 / math.sqrt(2 * math.pi))
SQRT_EIGHT_OVER_PI_HIGH, SQRT_EIGHT_OVER_PI_LOW = split(math.sqrt(8 / math.pi))
GELU_CUBIC_HIGH, GELU_CUBIC_LOW = split(0.044715)
CLIP_MARGIN_HIGH, CLIP_MARGIN_LOW = split(1e-6)
ONE_SIXTH_HIGH, ONE_SIXTH_LOW = split(1 / 6)
