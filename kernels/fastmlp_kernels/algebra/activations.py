"""Activations: two scalar functions and a row each.

``value(z)`` is the activation of a pre-activation; ``slope(z, a)`` its derivative, given the
pre-activation and the activation, of which it may read only the one that the row keeps. To add
an activation, write the two functions and append a row: both targets, the gradient checks, the
type-stability test, the tables of the pages and the benchmarks follow from it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from fastmlp_kernels.algebra import constants as c
from fastmlp_kernels.algebra.constants import HALF, ONE, THREE, TWENTY, TWO, ZERO
from fastmlp_kernels.algebra.elementary import (
    erf,
    exp,
    expm1,
    log1p,
    one_like,
    sigmoid,
    tanh,
    times,
)
from fastmlp_kernels.algebra.tables import NON_NEGATIVE, POSITIVE, REAL, Interval, Table


@dataclass(frozen=True)
class Activation:
    """One row of the table of activations.

    Parameters
    ----------
    name : str
        What users write.
    value : callable
        ``value(z) -> a``, on scalars.
    slope : callable
        ``slope(z, a) -> da/dz``, on scalars.
    keeps : {"output", "input"}
        Which argument of `slope` the backward pass must still have: "output" costs no memory,
        as the next layer needs the activation anyway.
    range : Interval
        The values that `value` can take; a loss refuses an output activation that leaves its
        domain.
    initializer : str
        The initialiser whose variance suits it (see `initializers`).
    formula : str
        `value` as a Python expression in z, with the functions of `math`: the pages show it, and
        the tests compare the value with it.
    kinks : tuple of float
        Pre-activations at which the slope jumps; finite differences are not taken across them.
    short : bool
        Whether `value` and a `slope` of the input are a few instructions each, with no exponential
        and no division: a CUDA tile applies them as it stores, and needs no second pass.
    clamp : (float, float), optional
        The two ends, where the activation is z kept between two ends (finite or not), and its slope
        1 strictly between them and 0 elsewhere: CPU tiles then apply it in registers.
    sign_only : bool
        Whether `slope` reads no more of the activation than its sign, so that what dropout keeps
        will do.
    """

    name: str
    value: Callable
    slope: Callable
    keeps: str
    range: Interval
    initializer: str
    formula: str
    kinks: tuple[float, ...] = ()
    short: bool = False
    clamp: tuple[float, float] | None = None
    sign_only: bool = False


def identity(z):
    return z


def identity_slope(z, a):
    return ONE


def relu(z):
    # Written so that a NaN passes through: a comparison with NaN is false.
    return ZERO if z <= ZERO else z


def relu_slope(z, a):
    return ONE if a > ZERO else ZERO


def leaky_relu(z):
    return times(z, c.LEAKY_SLOPE_HIGH, c.LEAKY_SLOPE_LOW) if z <= ZERO else z


def leaky_relu_slope(z, a):
    return ONE if a > ZERO else times(one_like(a), c.LEAKY_SLOPE_HIGH, c.LEAKY_SLOPE_LOW)


def elu(z):
    return expm1(min(z, ZERO)) if z <= ZERO else z


def elu_slope(z, a):
    return a + ONE if a <= ZERO else ONE


def selu(z):
    negative = times(expm1(min(z, ZERO)), c.SELU_ALPHA_HIGH, c.SELU_ALPHA_LOW)
    return times(negative if z <= ZERO else z, c.SELU_SCALE_HIGH, c.SELU_SCALE_LOW)


def selu_slope(z, a):
    scale = times(one_like(a), c.SELU_SCALE_HIGH, c.SELU_SCALE_LOW)
    return a + times(scale, c.SELU_ALPHA_HIGH, c.SELU_ALPHA_LOW) if a <= ZERO else scale


def sigmoid_slope(z, a):
    return a * (ONE - a)


def tanh_slope(z, a):
    return (ONE - a) * (ONE + a)


def softplus(z):
    return max(z, ZERO) + log1p(exp(-abs(z)))


def softplus_slope(z, a):
    return sigmoid(z)


def silu(z):
    return z * sigmoid(z)


def silu_slope(z, a):
    # With e = exp(-|z|), sigmoid(|z|) = 1 / (1 + e) and sigmoid(-|z|) = e / (1 + e): one
    # exponential for both, no overflow, and no cancellation in 1 - sigmoid(z).
    e = exp(-abs(z))
    large = ONE / (ONE + e)
    small = e * large
    return large * (ONE + z * small) if z >= ZERO else small * (ONE + z * large)


def gelu(z):
    return HALF * z * (ONE + erf(times(z, c.SQRT_HALF_HIGH, c.SQRT_HALF_LOW)))


def gelu_slope(z, a):
    density = times(exp(-HALF * z * z), c.NORMAL_DENSITY_HIGH, c.NORMAL_DENSITY_LOW)
    return HALF * (ONE + erf(times(z, c.SQRT_HALF_HIGH, c.SQRT_HALF_LOW))) + z * density


def _clamped(z):
    # The sigmoid has saturated long before 20; the cube of a huge z would overflow to inf - inf.
    # In the dtype of z: of what plain Python computes, a float32 here would make all of it float32.
    limit = type(z)(TWENTY)
    return min(max(z, -limit), limit)


def _twice_gelu_tanh_argument(near):
    inner = near + times(near * near * near, c.GELU_CUBIC_HIGH, c.GELU_CUBIC_LOW)
    return times(inner, c.SQRT_EIGHT_OVER_PI_HIGH, c.SQRT_EIGHT_OVER_PI_LOW)


def gelu_tanh(z):
    # (1 + tanh x) / 2 = sigmoid(2x): cheaper, and no cancellation in 1 + tanh x for z far below 0.
    return z * sigmoid(_twice_gelu_tanh_argument(_clamped(z)))


def gelu_tanh_slope(z, a):
    near = _clamped(z)
    # As in silu_slope: both sigmoids from one exponential.
    e = exp(-abs(_twice_gelu_tanh_argument(near)))
    large = ONE / (ONE + e)
    small = e * large
    growth = times(
        ONE + THREE * times(near * near, c.GELU_CUBIC_HIGH, c.GELU_CUBIC_LOW),
        c.SQRT_EIGHT_OVER_PI_HIGH,
        c.SQRT_EIGHT_OVER_PI_LOW,
    )
    return (large if near >= ZERO else small) + near * growth * (large * small)


def hard_sigmoid(z):
    return min(max(times(z, c.ONE_SIXTH_HIGH, c.ONE_SIXTH_LOW) + HALF, ZERO), ONE)


def hard_sigmoid_slope(z, a):
    sixth = times(one_like(a), c.ONE_SIXTH_HIGH, c.ONE_SIXTH_LOW)
    return sixth if ZERO < a < ONE else ZERO


def hard_swish(z):
    return z * hard_sigmoid(z)


def hard_swish_slope(z, a):
    inside = times(TWO * z + THREE, c.ONE_SIXTH_HIGH, c.ONE_SIXTH_LOW)
    return (ONE if z >= THREE else inside) if z > -THREE else ZERO


def exponential(z):
    return exp(z)


def exponential_slope(z, a):
    return a


ACTIVATIONS = Table(
    "activation",
    (
        Activation(
            "identity",
            identity,
            identity_slope,
            "output",
            REAL,
            "glorot_uniform",
            "z",
            short=True,
            sign_only=True,
        ),
        Activation(
            "relu",
            relu,
            relu_slope,
            "output",
            NON_NEGATIVE,
            "he_normal",
            "max(z, 0)",
            (0.0,),
            short=True,
            clamp=(0.0, math.inf),
            sign_only=True,
        ),
        Activation(
            "leaky_relu",
            leaky_relu,
            leaky_relu_slope,
            "output",
            REAL,
            "he_normal",
            "z if z > 0 else 0.01 * z",
            (0.0,),
            short=True,
            sign_only=True,
        ),
        Activation(
            "elu",
            elu,
            elu_slope,
            "output",
            Interval(-1.0, math.inf, True, False),
            "he_normal",
            "z if z > 0 else exp(z) - 1",
        ),
        Activation(
            "selu",
            selu,
            selu_slope,
            "output",
            Interval(-1.7580993408473766, math.inf, True, False),
            "lecun_normal",
            "1.0507009873554805 * (z if z > 0 else 1.6732632423543772 * (exp(z) - 1))",
            (0.0,),
        ),
        Activation(
            "sigmoid",
            sigmoid,
            sigmoid_slope,
            "output",
            Interval(0.0, 1.0, True, True),
            "glorot_uniform",
            "1 / (1 + exp(-z))",
        ),
        Activation(
            "tanh",
            tanh,
            tanh_slope,
            "output",
            Interval(-1.0, 1.0, True, True),
            "glorot_uniform",
            "tanh(z)",
        ),
        Activation(
            "softplus", softplus, softplus_slope, "input", POSITIVE, "he_normal", "log(1 + exp(z))"
        ),
        Activation(
            "silu",
            silu,
            silu_slope,
            "input",
            Interval(-0.2784645427610738, math.inf, True, False),
            "he_normal",
            "z / (1 + exp(-z))",
        ),
        Activation(
            "gelu",
            gelu,
            gelu_slope,
            "input",
            Interval(-0.16997120747990369, math.inf, True, False),
            "he_normal",
            "z * (1 + erf(z / sqrt(2))) / 2",
        ),
        Activation(
            "gelu_tanh",
            gelu_tanh,
            gelu_tanh_slope,
            "input",
            Interval(-0.17004075, math.inf, True, False),
            "he_normal",
            "z * (1 + tanh(sqrt(2 / pi) * (z + 0.044715 * z**3))) / 2",
        ),
        Activation(
            "hard_sigmoid",
            hard_sigmoid,
            hard_sigmoid_slope,
            "output",
            Interval(0.0, 1.0, True, True),
            "glorot_uniform",
            "min(max(z / 6 + 1 / 2, 0), 1)",
            (-3.0, 3.0),
            short=True,
        ),
        Activation(
            "hard_swish",
            hard_swish,
            hard_swish_slope,
            "input",
            Interval(-0.375, math.inf, True, False),
            "he_normal",
            "z * min(max(z / 6 + 1 / 2, 0), 1)",
            (-3.0, 3.0),
            short=True,
        ),
        Activation(
            "exp", exponential, exponential_slope, "output", POSITIVE, "glorot_uniform", "exp(z)"
        ),
    ),
)
