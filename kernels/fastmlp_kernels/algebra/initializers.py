"""Initialisers: the spread of the weights as a function of the layer's fans.

Sources: X. Glorot and Y. Bengio, AISTATS 2010; K. He et al., ICCV 2015; Y. LeCun et al.,
Efficient BackProp, 1998; A. Saxe et al., ICLR 2014, arXiv:1312.6120 (orthogonal).
"""

from collections.abc import Callable
from dataclasses import dataclass

from fastmlp_kernels.algebra.tables import Table


@dataclass(frozen=True)
class Initializer:
    """One row: the variance of a weight by (fan_in, fan_out), and the distribution.

    That is "uniform" or "normal", of each weight by itself, or "orthogonal": of all matrices whose
    rows, or columns if those are fewer, are orthonormal.
    """

    name: str
    variance: Callable[[int, int], float]
    distribution: str


def _glorot(fan_in: int, fan_out: int) -> float:
    return 2 / (fan_in + fan_out)


def _he(fan_in: int, fan_out: int) -> float:
    return 2 / fan_in


def _lecun(fan_in: int, fan_out: int) -> float:
    return 1 / fan_in


def _orthogonal(fan_in: int, fan_out: int) -> float:
    # The smaller number of unit vectors, in the space of the larger one.
    return 1 / max(fan_in, fan_out)


def _zero(fan_in: int, fan_out: int) -> float:
    return 0.0


INITIALIZERS = Table(
    "initializer",
    (
        Initializer("glorot_uniform", _glorot, "uniform"),
        Initializer("glorot_normal", _glorot, "normal"),
        Initializer("he_uniform", _he, "uniform"),
        Initializer("he_normal", _he, "normal"),
        Initializer("lecun_uniform", _lecun, "uniform"),
        Initializer("lecun_normal", _lecun, "normal"),
        Initializer("orthogonal", _orthogonal, "orthogonal"),
        Initializer("zeros", _zero, "uniform"),
    ),
)
