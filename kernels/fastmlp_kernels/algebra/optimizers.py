"""Optimizers: what depends on the step alone, one scalar update, and a row each.

``update(p, g, m, v, h) -> (p, m, v)`` takes a parameter, its gradient, its two state values
(unused ones pass through) and the step's `HYPER_WIDTH` numbers. Those numbers are computed once a
step in float64 by ``hyper(settings, step)`` and rounded once to the dtype of the parameters, so
that the bias corrections of Adam lose nothing and a learning-rate schedule costs nothing.
The formulas, and the place of every epsilon, are PyTorch's (torch.optim).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from fastmlp_kernels.algebra.constants import ONE
from fastmlp_kernels.algebra.tables import Table

HYPER_WIDTH = 6


@dataclass(frozen=True)
class OptimizerRule:
    """One row of the table of optimizers.

    Parameters
    ----------
    name : str
        The rule's name; a user-facing class of `fastmlp.optimizers` names it.
    update : callable
        ``update(p, g, m, v, h) -> (p, m, v)``, on scalars; `h` is a tuple of `HYPER_WIDTH`.
    hyper : callable
        ``hyper(settings, step) -> columns``: `settings` maps names to floats, `step` is the array
        of step numbers counted from 1; at most `HYPER_WIDTH` columns (scalars or arrays).
    slots : int
        How many of the two state values it uses.
    """

    name: str
    update: Callable
    hyper: Callable[[Mapping[str, float], np.ndarray], tuple]
    slots: int
    formula: str


def sgd(p, g, m, v, h):
    rate, decay, _, _, _, _ = h
    return p - rate * (g + decay * p), m, v


def sgd_hyper(s, step):
    return s["learning_rate"], s["weight_decay"]


def momentum(p, g, m, v, h):
    rate, decay, keep, _, _, _ = h
    m = keep * m + (g + decay * p)
    return p - rate * m, m, v


def nesterov(p, g, m, v, h):
    rate, decay, keep, _, _, _ = h
    g = g + decay * p
    m = keep * m + g
    return p - rate * (g + keep * m), m, v


def momentum_hyper(s, step):
    return s["learning_rate"], s["weight_decay"], s["momentum"]


def adam(p, g, m, v, h):
    rate, decay, beta1, beta2, correction, epsilon = h
    g = g + decay * p
    m = beta1 * m + (ONE - beta1) * g
    v = beta2 * v + (ONE - beta2) * g * g
    return p - rate * m / (math.sqrt(v) * correction + epsilon), m, v


def adamw(p, g, m, v, h):
    rate, shrink, beta1, beta2, correction, epsilon = h
    m = beta1 * m + (ONE - beta1) * g
    v = beta2 * v + (ONE - beta2) * g * g
    return p * shrink - rate * m / (math.sqrt(v) * correction + epsilon), m, v


def adam_hyper(s, step):
    rate = s["learning_rate"] / (1 - s["beta1"] ** step)
    correction = 1 / np.sqrt(1 - s["beta2"] ** step)
    return rate, s["weight_decay"], s["beta1"], s["beta2"], correction, s["epsilon"]


def adamw_hyper(s, step):
    rate, _, beta1, beta2, correction, epsilon = adam_hyper(s, step)
    return rate, 1 - s["learning_rate"] * s["weight_decay"], beta1, beta2, correction, epsilon


def rmsprop(p, g, m, v, h):
    rate, decay, keep, epsilon, _, _ = h
    g = g + decay * p
    m = keep * m + (ONE - keep) * g * g
    return p - rate * g / (math.sqrt(m) + epsilon), m, v


def rmsprop_hyper(s, step):
    return s["learning_rate"], s["weight_decay"], s["decay"], s["epsilon"]


def adagrad(p, g, m, v, h):
    rate, decay, epsilon, _, _, _ = h
    g = g + decay * p
    m = m + g * g
    return p - rate * g / (math.sqrt(m) + epsilon), m, v


def adagrad_hyper(s, step):
    return s["learning_rate"], s["weight_decay"], s["epsilon"]


OPTIMIZERS = Table(
    "optimizer",
    (
        OptimizerRule("sgd", sgd, sgd_hyper, 0, "p - r g"),
        OptimizerRule("momentum", momentum, momentum_hyper, 1, "m = k m + g; p - r m"),
        OptimizerRule("nesterov", nesterov, momentum_hyper, 1, "m = k m + g; p - r (g + k m)"),
        OptimizerRule("adam", adam, adam_hyper, 2, "p - r m / (sqrt v + e), both corrected"),
        OptimizerRule("adamw", adamw, adamw_hyper, 2, "adam, with p shrunk by 1 - r d first"),
        OptimizerRule(
            "rmsprop", rmsprop, rmsprop_hyper, 1, "m = k m + (1-k) g^2; p - r g/(sqrt m + e)"
        ),
        OptimizerRule("adagrad", adagrad, adagrad_hyper, 1, "m = m + g^2; p - r g/(sqrt m + e)"),
    ),
)


def hyper_table(rule: OptimizerRule, settings: Mapping[str, float], first: int, steps: int, dtype):
    """Return the hyper-parameters of `steps` steps, the first numbered `first` (from 1).

    Returns
    -------
    ndarray
        dtype[steps, HYPER_WIDTH], computed in float64 and rounded once.
    """
    table = np.zeros((steps, HYPER_WIDTH))
    columns = rule.hyper(settings, np.arange(first, first + steps, dtype=np.float64))
    for index, column in enumerate(columns):
        table[:, index] = column
    return table.astype(dtype)
