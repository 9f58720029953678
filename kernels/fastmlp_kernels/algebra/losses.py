"""Losses: a scalar rule, or a rule for a whole row, and a row of the table each.

An element rule ``rule(prediction, target) -> (loss, slope)`` gives the loss of one output and its
derivative by the first argument. A row rule ``rule(prediction, target, i, slope) -> loss`` reads
row `i` of two matrices and writes the derivative into row `i` of `slope`, which may be the matrix
of predictions itself. Where an output activation and a loss simplify together, ``fused`` holds the
rule in terms of the pre-activation (for the sigmoid under cross-entropy the derivative is
``sigmoid(z) - y``, and no logit overflows it); any other pair goes through the activation's slope.
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fastmlp_kernels.algebra.activations import ACTIVATIONS, Activation
from fastmlp_kernels.algebra.constants import HALF, ONE, TWO, ZERO
from fastmlp_kernels.algebra.elementary import epsilon, exp, log, log1p, log_epsilon, plus, sigmoid
from fastmlp_kernels.algebra.tables import POSITIVE, REAL, Interval, Table


@dataclass(frozen=True)
class Loss:
    """One row of the table of losses.

    Parameters
    ----------
    name : str
        What users write.
    rule : callable
        The element or row rule, on predictions (after the output activation).
    formula : str
        The loss of one output as a Python expression in the prediction p and the target y, with the
        functions of `math`, and ``inside(p)`` for p kept in [eps, 1 - eps]; for a row rule, words.
        The pages show it, and the tests compare an element rule with it.
    prediction_domain : Interval
        The predictions for which the rule is defined.
    target_domain : Interval
        The targets for which the loss is defined; anything else is refused before a fit.
    fused : mapping of str to callable
        Output activation to the rule on its pre-activation.
    by_row : bool
        Whether the rules are row rules; "mean" then averages over rows, not over elements.
    label_rule : callable, optional
        The row rule for targets given as one class index a row.
    link : callable, optional
        ``link(prediction, i)`` turns row `i` of the outputs into what `predict` returns, in place.
    metric : {"r2", "accuracy"}
        The score that `evaluate` gives beside the loss.
    kinks : tuple of float
        Values of prediction - target at which the slope jumps.
    """

    name: str
    rule: Callable
    formula: str
    prediction_domain: Interval = REAL
    target_domain: Interval = REAL
    fused: Mapping[str, Callable] = field(default_factory=dict)
    by_row: bool = False
    label_rule: Callable | None = None
    link: Callable | None = None
    metric: str = "r2"
    kinks: tuple[float, ...] = ()

    def refusal(self, activation: Activation) -> str | None:
        """Return why `activation` cannot be the output activation under this loss, or None."""
        if activation.name in self.fused:
            return None
        if self.by_row and not activation.range.contains(self.prediction_domain):
            return (
                f"{self.name} needs logits that can take any value in {self.prediction_domain}, "
                f"but {activation.name} gives only {activation.range}: use 'identity'"
            )
        if not self.prediction_domain.contains(activation.range):
            better = " or ".join(repr(name) for name in self.fused)
            return (
                f"{self.name} is defined for predictions in {self.prediction_domain}, but "
                f"{activation.name} gives {activation.range}"
                + (f": use {better}" if better else "")
            )
        return None


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


def huber(prediction, target):
    error = prediction - target
    size = abs(error)
    clipped = min(max(error, -ONE), ONE)
    return (HALF * error * error if size <= ONE else size - HALF), clipped


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


def clipped(loss):
    """Return ``-log p`` as it is of a probability p that is kept in [epsilon, 1 - epsilon]."""
    # -log(1 - epsilon) is epsilon to the last bit.
    return min(max(loss, epsilon(loss)), -log_epsilon(loss))


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


def _shift_from_largest(logits, i, shifted):
    """Write row `i` of `logits` less its largest element to `shifted`, perhaps `logits` itself."""
    top = logits[i, 0]
    for j in range(1, logits.shape[1]):
        top = max(top, logits[i, j])
    for j in range(logits.shape[1]):
        shifted[i, j] = logits[i, j] - top


def _exponentiate(shifted, i):
    """Replace row `i` by its exponentials; return their sum."""
    # shifted[i, 0] - shifted[i, 0] is a zero of the right dtype: infinite logits give NaN, rightly.
    total = shifted[i, 0] - shifted[i, 0]
    for j in range(shifted.shape[1]):
        power = exp(shifted[i, j])
        shifted[i, j] = power
        total = plus(total, power)
    return total


def softmax(logits, i):
    _shift_from_largest(logits, i, logits)
    scale = ONE / _exponentiate(logits, i)
    for j in range(logits.shape[1]):
        logits[i, j] *= scale


def softmax_cross_entropy(logits, target, i, slope):
    _shift_from_largest(logits, i, slope)
    mass = slope[i, 0] - slope[i, 0]
    loss = mass
    for j in range(slope.shape[1]):
        mass = plus(mass, target[i, j])
        # A target of 0 contributes 0 whatever its logit: the gap is finite, no 0 * infinity.
        loss = plus(loss, -target[i, j] * slope[i, j])
    total = _exponentiate(slope, i)
    scale = mass / total
    for j in range(slope.shape[1]):
        slope[i, j] = scale * slope[i, j] - target[i, j]
    return loss + mass * log(total)


def _class_of(target, i, classes):
    """Return the class that row `i` of the labels names, the nearest there is if it names none."""
    # Labels are checked before a kernel runs, but their memory may be somebody else's, who writes
    # to it meanwhile: without this, the slope is written outside its array. In floating point
    # first, as no integer stands for a NaN (which is not above 0: a 0 comes of it) or for what is
    # too large: what a conversion makes of them differs between processors, and Python raises.
    number = min(max(ZERO, target[i, 0]), LARGEST_LABEL)
    return min(int(number), classes - 1)


def softmax_cross_entropy_of_label(logits, target, i, slope):
    label = _class_of(target, i, slope.shape[1])
    _shift_from_largest(logits, i, slope)
    gap = slope[i, label]
    total = _exponentiate(slope, i)
    scale = ONE / total
    for j in range(slope.shape[1]):
        slope[i, j] *= scale
    slope[i, label] -= ONE
    return log(total) - gap


def clipped_softmax_cross_entropy(logits, target, i, slope):
    _shift_from_largest(logits, i, slope)
    mass = slope[i, 0] - slope[i, 0]
    for j in range(slope.shape[1]):
        mass = plus(mass, target[i, j])
    total = mass - mass
    for j in range(slope.shape[1]):
        total = plus(total, exp(slope[i, j]))
    level, loss = log(total), mass - mass
    for j in range(slope.shape[1]):
        loss = plus(loss, target[i, j] * clipped(level - slope[i, j]))
    scale = mass / total
    for j in range(slope.shape[1]):
        slope[i, j] = scale * exp(slope[i, j]) - target[i, j]
    return loss


def clipped_softmax_cross_entropy_of_label(logits, target, i, slope):
    return clipped(softmax_cross_entropy_of_label(logits, target, i, slope))


SMALLEST, FLOOR = TWO**-126, -ONE * 100
# More classes than a layer can have, and an integer in either dtype.
LARGEST_LABEL = TWO**30
UNIT = Interval(0.0, 1.0, True, True)
COUNT = Interval(0.0, math.inf, True, False)

LOSSES = Table(
    "loss",
    (
        Loss("half_squared_error", half_squared_error, "(p - y)**2 / 2"),
        Loss("squared_error", squared_error, "(p - y)**2"),
        Loss("absolute_error", absolute_error, "abs(p - y)", kinks=(0.0,)),
        Loss("huber", huber, "(p - y)**2 / 2 if abs(p - y) <= 1 else abs(p - y) - 1 / 2"),
        Loss(
            "binary_cross_entropy",
            binary_cross_entropy,
            "-y * log(p) - (1 - y) * log(1 - p)",
            prediction_domain=UNIT,
            target_domain=UNIT,
            fused={"sigmoid": binary_cross_entropy_of_logit},
            metric="accuracy",
        ),
        Loss(
            "softmax_cross_entropy",
            softmax_cross_entropy,
            "-sum_j y_j log(softmax(z)_j)",
            target_domain=UNIT,
            by_row=True,
            label_rule=softmax_cross_entropy_of_label,
            link=softmax,
            metric="accuracy",
        ),
        # As scikit-learn has them: the losses of clipped probabilities, the slopes of free ones.
        Loss(
            "clipped_binary_cross_entropy",
            clipped_binary_cross_entropy,
            "-y * log(inside(p)) - (1 - y) * log(1 - inside(p))",
            # Open: only what saturates as smoothly as the logit's own rule.
            prediction_domain=Interval(0.0, 1.0, False, False),
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
    """Return every rule that a network can have, in a fixed order: its position is its code."""
    rules = []
    for loss in LOSSES:
        accepted = {row.name for row in ACTIVATIONS if loss.refusal(row) is None}
        if accepted != set(loss.fused):
            rules.append(LossRule(loss.name, loss.rule, loss.by_row))
        rules += [
            LossRule(f"{loss.name}/{name}", rule, loss.by_row) for name, rule in loss.fused.items()
        ]
        if loss.label_rule is not None:
            rules.append(LossRule(f"{loss.name}/labels", loss.label_rule, True))
    return tuple(rules)


def rule_name(loss: Loss, output_activation: str, labels: bool) -> str:
    """Return the name of the rule that trains `loss` behind `output_activation`."""
    if labels:
        return f"{loss.name}/labels"
    return f"{loss.name}/{output_activation}" if output_activation in loss.fused else loss.name
