"""Optimizers: what depends on the step alone, one scalar update, and a row each.

``update(p, g, m, v, h) -> (p, m, v)`` takes a parameter, its gradient, its two state values
(unused ones pass through) and the step's `RULE_NUMBERS` numbers. Those numbers are computed once a
step in float64 by ``hyper(settings, step)`` and rounded once to the dtype of the parameters, so
that the bias corrections of Adam lose nothing and a learning-rate schedule costs nothing.
The formulas, and the place of every epsilon, are PyTorch's (torch.optim), but for the two
variants of Keras and scikit-learn that say so.

What decays is none of a rule's business: before it is asked, ``decay * p`` is added to the
gradient, with a decay for the weights and one for the biases. PyTorch's weight decay is the same
for both; an L2 penalty ``l2 / 2 |W|^2`` has the gradient ``l2 W``, and none for the biases.

Before that, a gradient may be clipped: each element to a range, then all of them together by
`clip_scale` of their norm. Both are PyTorch's (torch.nn.utils.clip_grad_value_, clip_grad_norm_).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from fastmlp_kernels.algebra.constants import CLIP_MARGIN_HIGH, CLIP_MARGIN_LOW, ONE
from fastmlp_kernels.algebra.tables import POSITIVE, Interval, Table

# Columns of a table of hyper-parameters: both decays, the limits of the gradient's elements and of
# its norm (infinity where there is none), the key of the step's dropout (two numbers), then the
# rule's own numbers.
WEIGHT_DECAY, BIAS_DECAY, CLIP_VALUE, CLIP_NORM, DROPOUT_KEY, RULE_START = 0, 1, 2, 3, 4, 6
RULE_NUMBERS = 8
HYPER_WIDTH = RULE_START + RULE_NUMBERS
# What becomes of a gradient before the update: nothing, a limit of its elements, or (also) of its
# norm. A kernel that clips norms needs all of a gradient before it updates anything.
CLIPPINGS = ("none", "value", "norm")

FRACTION = Interval(0.0, 1.0, True, False)
# What a setting may be, by its name; one that is not here may be any number of at least 0.
RANGES: Mapping[str, Interval] = {
    **dict.fromkeys(("learning_rate", "epsilon", "clip_norm", "clip_value"), POSITIVE),
    **dict.fromkeys(("momentum", "beta1", "beta2", "decay"), FRACTION),
}


@dataclass(frozen=True)
class PublicClass:
    """The class that `fastmlp.optimizers` makes for a rule.

    Parameters
    ----------
    name : str
        Of the class. The name of the rule, as a string, stands for it with its defaults.
    summary : str
        The first line of its docstring.
    defaults : mapping of str to float
        Its settings, "learning_rate" first. "weight_decay" follows by itself, and is 0 unless it is
        given here.
    """

    name: str
    summary: str
    defaults: Mapping[str, float]


@dataclass(frozen=True)
class OptimizerRule:
    """One row of the table of optimizers.

    Parameters
    ----------
    name : str
        The rule's name.
    update : callable
        ``update(p, g, m, v, h) -> (p, m, v)``, on scalars; `h` is a tuple of `RULE_NUMBERS`.
    hyper : callable
        ``hyper(settings, step) -> columns``: `settings` maps names to numbers (the learning rate
        also to an array, one for each step), `step` is the array of step numbers counted from 1;
        at most `RULE_NUMBERS` columns (scalars or arrays).
    slots : int
        How many of the two state values it uses.
    formula : str
        The update as Python statements on p, g, m, v, the number of the step t (from 1) and the
        settings, with `sqrt` and `sign`: the pages show it, and the tests compare the rule with it.
    decoupled : bool
        Whether the rule itself sees to ``settings["weight_decay"]``.
    public : PublicClass, optional
        What users write. None where a class that is written out in `fastmlp.optimizers`, with a
        signature that type checkers read, stands for the rule.
    """

    name: str
    update: Callable
    hyper: Callable[[Mapping[str, float], np.ndarray], tuple]
    slots: int
    formula: str
    decoupled: bool = False
    public: PublicClass | None = None


def clip_scale(squares, limit):
    """Return what a gradient is multiplied by, for the sum of its squares and a limit."""
    # A zero of the right dtype: uncompiled, a root is a Python float, which float32 pulls down.
    margin = squares - squares + CLIP_MARGIN_HIGH + CLIP_MARGIN_LOW
    return min(ONE, limit / (math.sqrt(squares) + margin))


def sgd(p, g, m, v, h):
    rate = h[0]
    return p - rate * g, m, v


def sgd_hyper(s, step):
    return (s["learning_rate"],)


def momentum(p, g, m, v, h):
    rate, keep = h[:2]
    m = keep * m + g
    return p - rate * m, m, v


def nesterov(p, g, m, v, h):
    rate, keep = h[:2]
    m = keep * m + g
    return p - rate * (g + keep * m), m, v


def velocity(p, g, m, v, h):
    rate, keep = h[:2]
    m = keep * m - rate * g
    return p + m, m, v


def nesterov_velocity(p, g, m, v, h):
    rate, keep = h[:2]
    m = keep * m - rate * g
    return p + (keep * m - rate * g), m, v


def momentum_hyper(s, step):
    return s["learning_rate"], s["momentum"]


def adam(p, g, m, v, h):
    rate, beta1, rest1, beta2, rest2, correction, epsilon, _ = h
    m = beta1 * m + rest1 * g
    v = beta2 * v + rest2 * g * g
    return p - rate * m / (math.sqrt(v) * correction + epsilon), m, v


def adamw(p, g, m, v, h):
    rate, beta1, rest1, beta2, rest2, correction, epsilon, shrink = h
    m = beta1 * m + rest1 * g
    v = beta2 * v + rest2 * g * g
    return p * shrink - rate * m / (math.sqrt(v) * correction + epsilon), m, v


def adam_hyper(s, step):
    beta1, beta2 = s["beta1"], s["beta2"]
    rate = s["learning_rate"] / (1 - beta1**step)
    root = np.sqrt(1 - beta2**step)
    # 1 - 0.999 in float32 is wrong by 1.3e-5, and by so much the second moment of the first steps
    # would be: a fit in float32 then strays ten times as far from one in float64.
    betas = (beta1, 1 - beta1, beta2, 1 - beta2)
    if s.get("epsilon_hat"):
        # Kingma and Ba's efficient form (section 2): the epsilon is beside the raw root of v.
        return rate * root, *betas, 1.0, s["epsilon"]
    return rate, *betas, 1 / root, s["epsilon"]


def adamw_hyper(s, step):
    return *adam_hyper(s, step), 1 - s["learning_rate"] * s["weight_decay"]


def rmsprop(p, g, m, v, h):
    rate, keep, rest, epsilon = h[:4]
    m = keep * m + rest * g * g
    return p - rate * g / (math.sqrt(m) + epsilon), m, v


def rmsprop_hyper(s, step):
    return s["learning_rate"], s["decay"], 1 - s["decay"], s["epsilon"]


def adagrad(p, g, m, v, h):
    rate, epsilon = h[:2]
    m = m + g * g
    return p - rate * g / (math.sqrt(m) + epsilon), m, v


def adagrad_hyper(s, step):
    return s["learning_rate"], s["epsilon"]


ADAM_FORMULA = (
    "m = beta1 * m + (1 - beta1) * g; v = beta2 * v + (1 - beta2) * g**2; "
    "p -= learning_rate * m / (1 - beta1**t) / (sqrt(v / (1 - beta2**t)) + epsilon)"
)

OPTIMIZERS = Table(
    "optimizer",
    (
        OptimizerRule("sgd", sgd, sgd_hyper, 0, "p -= learning_rate * g"),
        OptimizerRule(
            "momentum", momentum, momentum_hyper, 1, "m = momentum * m + g; p -= learning_rate * m"
        ),
        OptimizerRule(
            "nesterov",
            nesterov,
            momentum_hyper,
            1,
            "m = momentum * m + g; p -= learning_rate * (g + momentum * m)",
        ),
        # Where the rate changes, these two remember the rates of the time (Keras, scikit-learn).
        OptimizerRule(
            "velocity", velocity, momentum_hyper, 1, "m = momentum * m - learning_rate * g; p += m"
        ),
        OptimizerRule(
            "nesterov_velocity",
            nesterov_velocity,
            momentum_hyper,
            1,
            "m = momentum * m - learning_rate * g; p += momentum * m - learning_rate * g",
        ),
        OptimizerRule("adam", adam, adam_hyper, 2, ADAM_FORMULA),
        OptimizerRule(
            "adamw",
            adamw,
            adamw_hyper,
            2,
            f"p -= learning_rate * weight_decay * p; {ADAM_FORMULA}",
            decoupled=True,
        ),
        OptimizerRule(
            "rmsprop",
            rmsprop,
            rmsprop_hyper,
            1,
            "m = decay * m + (1 - decay) * g**2; p -= learning_rate * g / (sqrt(m) + epsilon)",
        ),
        OptimizerRule(
            "adagrad",
            adagrad,
            adagrad_hyper,
            1,
            "m += g**2; p -= learning_rate * g / (sqrt(m) + epsilon)",
        ),
    ),
)


def hyper_table(
    rule: OptimizerRule,
    settings: Mapping[str, float],
    first: int,
    steps: int,
    dtype,
    penalty: float | np.ndarray = 0.0,
):
    """Return the hyper-parameters of `steps` steps, the first numbered `first` (from 1).

    Parameters
    ----------
    rule : OptimizerRule
    settings : mapping of str to float
        Of a user's optimizer; the learning rate may be an array of `steps`. "clip_value" and
        "clip_norm" may be missing or None.
    first, steps : int
    dtype : dtype
    penalty : float or ndarray of `steps`
        Added to the decay of the weights alone: the factor of W in the gradient of an L2 penalty.

    Returns
    -------
    ndarray
        dtype[steps, HYPER_WIDTH], computed in float64 and rounded once.
    """
    table = np.zeros((steps, HYPER_WIDTH))
    decay = 0.0 if rule.decoupled else settings["weight_decay"]
    table[:, WEIGHT_DECAY], table[:, BIAS_DECAY] = decay + penalty, decay
    for column, name in ((CLIP_VALUE, "clip_value"), (CLIP_NORM, "clip_norm")):
        limit = settings.get(name)
        table[:, column] = np.inf if limit is None else limit
    columns = rule.hyper(settings, np.arange(first, first + steps, dtype=np.float64))
    for index, column in enumerate(columns, start=RULE_START):
        table[:, index] = column
    return table.astype(dtype)
