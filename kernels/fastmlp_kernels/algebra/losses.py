"""Losses: a scalar rule, or a rule for a whole row, and a row of the table each.

An element rule ``rule(prediction, target) -> (loss, slope)`` gives the loss of one output and its
derivative by the first argument. A row rule ``rule(prediction, target, i, slope) -> loss`` reads
row `i` of two matrices and writes the derivative into row `i` of `slope`, which may be the matrix
of predictions itself. Where an output activation and a loss simplify together, ``fused`` holds the
rule in terms of the pre-activation (for the sigmoid under cross-entropy the derivative is
``sigmoid(z) - y``, and no logit overflows it); any other pair goes through the activation's slope.

A loss may have numbers of its own. The table has it with their defaults, and makes the row of any
others when it is looked up: ``LOSSES["huber(delta=2.0)"]``.
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastmlp_kernels.algebra import losses_with_numbers as numbered
from fastmlp_kernels.algebra.activations import ACTIVATIONS
from fastmlp_kernels.algebra.constants import FLOOR, HALF, ONE, SMALLEST, TWO, ZERO
from fastmlp_kernels.algebra.elementary import epsilon, exp, log, log1p, plus, sigmoid
from fastmlp_kernels.algebra.loss_row import OPEN_UNIT, Loss
from fastmlp_kernels.algebra.row_losses import (
    clipped_softmax_cross_entropy,
    clipped_softmax_cross_entropy_of_label,
    softmax,
    softmax_cross_entropy,
    softmax_cross_entropy_of_label,
)
from fastmlp_kernels.algebra.tables import POSITIVE, Interval, Table


def half_squared_error(prediction, target):
    error = prediction - target
    return HALF * error * error, error


def squared_error(prediction, target):
    error = prediction - target
    return error * error, TWO * error


def absolute_error(prediction, target):
    error = prediction - target
    # PyTorch's choice at the kink: a slope of 0 where the error is 0.
    return abs(error), ZERO * error + (ONE if error > ZERO else (-ONE if error < ZERO else ZERO))


def binary_cross_entropy(prediction, target):
    # The floors keep infinity out: a prediction that has saturated on the wrong side gives a loss
    # of 100, as PyTorch's BCELoss does, and a large finite slope.
    outside = ONE - prediction
    loss = -target * max(log(prediction), FLOOR) - (ONE - target) * max(log(outside), FLOOR)
    return loss, (prediction - target) / max(prediction * outside, SMALLEST)


def binary_cross_entropy_of_logit(logit, target):
    # max(z, 0) - z y + log(1 + exp(-|z|)) = -y log s(z) - (1 - y) log(1 - s(z)), no overflow.
    e = exp(-abs(logit))
    loss = max(logit, ZERO) - logit * target + log1p(e)
    large = ONE / (ONE + e)
    return loss, (large if logit >= ZERO else e * large) - target


def clipped_binary_cross_entropy(prediction, target):
    inside = min(max(prediction, epsilon(prediction)), ONE - epsilon(prediction))
    outside = ONE - inside
    loss = -target * log(inside) - (ONE - target) * log(outside)
    return loss, (prediction - target) / (inside * outside)


def clipped_binary_cross_entropy_of_logit(logit, target):
    # By way of the probability, also where it is rounded so near to 1 that its distance from 1 has
    # lost its digits: the logit's own loss, which has not, is up to 2e-4 away from scikit-learn's
    # for inputs that are not scaled.
    p = sigmoid(logit)
    inside = min(max(p, epsilon(p)), ONE - epsilon(p))
    return -target * log(inside) - (ONE - target) * log(ONE - inside), p - target


def poisson(prediction, target):
    # A softplus far below 0 gives 0, and a count of 0 there would be 0 * infinity.
    rate = max(prediction, SMALLEST)
    return prediction - target * log(rate), ONE - target / rate


def poisson_of_log(log_rate, target):
    rate = exp(log_rate)
    return rate - target * log_rate, rate - target


def half_poisson_deviance(prediction, target):
    # y log(y / p) - y + p, and its limit where y is 0.
    rate = max(prediction, SMALLEST)
    surprise = target * (log(max(target, SMALLEST)) - log(rate))
    return surprise - target + prediction, ONE - target / rate


def half_poisson_deviance_of_log(log_rate, target):
    rate = exp(log_rate)
    # By way of the rate: where it has underflowed to 0, scikit-learn's loss is infinite, or not a
    # number for a target of 0, and y (log y - z) would be finite.
    ratio = target / rate
    # A zero that is not a number where the ratio is not finite: max alone would hide that.
    surprise = target * log(max(ratio, SMALLEST)) + ZERO * ratio
    return surprise - target + rate, rate - target


def _with_defaults(
    name: str, make: Callable[..., dict[str, Any]], numbers: Mapping[str, float], **more: Any
) -> Loss:
    return Loss(name=name, make=make, numbers=numbers, **make(**numbers), **more)


UNIT = Interval(0.0, 1.0, True, True)
COUNT = Interval(0.0, math.inf, True, False)

LOSSES = Table(
    "loss",
    (
        Loss("half_squared_error", half_squared_error, "(p - y)**2 / 2"),
        Loss("squared_error", squared_error, "(p - y)**2"),
        Loss("absolute_error", absolute_error, "abs(p - y)", kinks=(0.0,)),
        _with_defaults(
            "huber",
            numbered.huber,
            {"delta": 1.0},
            formula="(p - y)**2 / 2 if abs(p - y) <= delta else delta * (abs(p - y) - delta / 2)",
        ),
        _with_defaults(
            "quantile",
            numbered.quantile,
            {"level": 0.5},
            formula="max(level * (y - p), (level - 1) * (y - p))",
            kinks=(0.0,),
        ),
        Loss(
            "binary_cross_entropy",
            binary_cross_entropy,
            "-y * log(p) - (1 - y) * log(1 - p)",
            prediction_domain=UNIT,
            target_domain=UNIT,
            fused={"sigmoid": binary_cross_entropy_of_logit},
            metric="accuracy",
        ),
        _with_defaults(
            "binary_focal",
            numbered.binary_focal,
            {"gamma": 2.0, "alpha": 0.25},
            formula="(y * alpha + (1 - y) * (1 - alpha)) * (p * (1 - y) + (1 - p) * y)**gamma "
            "* (-y * log(p) - (1 - y) * log(1 - p))",
            # Open: see below.
            prediction_domain=OPEN_UNIT,
            target_domain=UNIT,
            metric="accuracy",
        ),
        Loss(
            "softmax_cross_entropy",
            softmax_cross_entropy,
            "-sum_j ((1 - label_smoothing) y_j + label_smoothing / classes) log(softmax(z)_j)",
            target_domain=UNIT,
            by_row=True,
            label_rule=softmax_cross_entropy_of_label,
            link=softmax,
            metric="accuracy",
            numbers={"label_smoothing": 0.0},
            make=numbered.softmax_cross_entropy,
        ),
        # As scikit-learn has them: the losses of clipped probabilities, the slopes of free ones.
        Loss(
            "clipped_binary_cross_entropy",
            clipped_binary_cross_entropy,
            "-y * log(inside(p)) - (1 - y) * log(1 - inside(p))",
            # Open: only what saturates as smoothly as the logit's own rule.
            prediction_domain=OPEN_UNIT,
            target_domain=UNIT,
            fused={"sigmoid": clipped_binary_cross_entropy_of_logit},
            metric="accuracy",
        ),
        Loss(
            "clipped_softmax_cross_entropy",
            clipped_softmax_cross_entropy,
            "-sum_j y_j log(inside(softmax(z)_j))",
            target_domain=UNIT,
            by_row=True,
            label_rule=clipped_softmax_cross_entropy_of_label,
            link=softmax,
            metric="accuracy",
        ),
        Loss(
            "half_poisson_deviance",
            half_poisson_deviance,
            "y * log(y / p) - y + p",
            prediction_domain=POSITIVE,
            target_domain=COUNT,
            fused={"exp": half_poisson_deviance_of_log},
        ),
        _with_defaults(
            "gaussian_nll",
            numbered.gaussian_nll,
            {"epsilon": 1e-6},
            formula="sum_j (log(v_j) + (m_j - y_j)**2 / v_j) / 2, m_j = z_j, "
            "v_j = max(exp(z_(targets + j)), epsilon)",
            by_row=True,
            outputs_per_target=2,
        ),
        Loss(
            "poisson",
            poisson,
            "p - y * log(p)",
            prediction_domain=POSITIVE,
            target_domain=COUNT,
            fused={"exp": poisson_of_log},
        ),
    ),
)


def row_of_element(element):
    """Return the row rule that applies an element rule to each output and sums the losses."""

    def row(prediction, target, i, slope):
        # Copied first: a loop that reads and writes one matrix is vector code even where `slope` is
        # the matrix of predictions, which a loop over two overlapping ones is not.
        for j in range(slope.shape[1]):
            slope[i, j] = prediction[i, j]
        # A zero of the right dtype.
        total = target[i, 0] - target[i, 0]
        for j in range(slope.shape[1]):
            loss, slope[i, j] = element(slope[i, j], target[i, j])
            total = plus(total, loss)
        return total

    return row


@dataclass(frozen=True)
class LossRule:
    """One compiled rule: a loss on predictions, on a fused pre-activation, or on labels."""

    name: str
    rule: Callable
    by_row: bool

    @property
    def row(self) -> Callable:
        """The rule as a row rule, which is what kernels call."""
        return self.rule if self.by_row else row_of_element(self.rule)


@functools.cache
def loss_rules() -> tuple[LossRule, ...]:
    """Return every rule of the losses as the table has them, in a fixed order."""
    return tuple(rule for loss in LOSSES for rule in rules_of(loss))


def rules_of(loss: Loss) -> list[LossRule]:
    """Return every rule of a loss, with any numbers."""
    rules = []
    accepted = {row.name for row in ACTIVATIONS if loss.refusal(row) is None}
    if accepted != set(loss.fused):
        rules.append(LossRule(loss.name, loss.rule, loss.by_row))
    rules += [
        LossRule(f"{loss.name}/{name}", rule, loss.by_row) for name, rule in loss.fused.items()
    ]
    if loss.label_rule is not None:
        rules.append(LossRule(f"{loss.name}/labels", loss.label_rule, True))
    return rules


@functools.cache
def loss_rule(name: str) -> LossRule:
    """Return the rule that `rule_name` names, of a loss with any numbers."""
    return next(rule for rule in rules_of(LOSSES[name.partition("/")[0]]) if rule.name == name)


def rule_name(loss: Loss, output_activation: str, labels: bool) -> str:
    """Return the name of the rule that trains `loss` behind `output_activation`."""
    if labels:
        return f"{loss.name}/labels"
    return f"{loss.name}/{output_activation}" if output_activation in loss.fused else loss.name
