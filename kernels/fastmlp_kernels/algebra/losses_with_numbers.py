"""Losses that have numbers of their own: each function makes the rules for given numbers.

What it returns are fields of a `losses.Loss`. The rules close over the numbers, which are constants
of the compiled code: kernels see rules as any other. A number is a float32 pair, as all constants
are (see `constants`).
"""

import math
from collections.abc import Callable
from typing import Any

from fastmlp_kernels.algebra.constants import FLOOR, HALF, ONE, SMALLEST, TWO, ZERO, split
from fastmlp_kernels.algebra.elementary import exp, log, log1p, one_like, plus, times
from fastmlp_kernels.algebra.row_losses import class_of, exponentiate, shift_from_largest


def huber(delta: float) -> dict[str, Any]:
    """Return the rule that is quadratic up to `delta` and linear beyond, as torch.nn.HuberLoss."""
    high, low = split(delta)

    def rule(prediction, target):
        error = prediction - target
        size, limit = abs(error), times(one_like(error), high, low)
        clipped = min(max(error, -limit), limit)
        return (HALF * error * error if size <= limit else limit * (size - HALF * limit)), clipped

    return {"rule": rule}


def quantile(level: float) -> dict[str, Any]:
    """Return the pinball rule, whose least mean is at the quantile of that level."""
    under_high, under_low = split(level)
    over_high, over_low = split(1 - level)

    def rule(prediction, target):
        error = prediction - target
        one = one_like(error)
        over, under = times(one, over_high, over_low), times(one, under_high, under_low)
        # A slope of 0 where the error is 0, as the absolute error has.
        slope = over if error > ZERO else (-under if error < ZERO else ZERO * error)
        return slope * error, slope

    return {"rule": rule}


def _power(exponent: float) -> Callable:
    """Return the power of a number in [0, 1]; the usual exponents need no logarithm."""
    high, low = split(exponent)

    def nought(base):
        return one_like(base)

    def same(base):
        return base

    def square(base):
        return base * base

    def power(base):
        return exp(times(log(max(base, SMALLEST)), high, low))

    return {0.0: nought, 1.0: same, 2.0: square}.get(exponent, power)


def binary_focal(gamma: float, alpha: float) -> dict[str, Any]:
    """Return the focal rules (arXiv:1708.02002, equation 5), as torchvision's sigmoid_focal_loss.

    With ``m = p (1 - y) + (1 - p) y``, which is by how much the probability misses a target of 0 or
    1, the loss is ``a m^gamma`` times the cross-entropy, a = alpha for targets of 1 and 1 - alpha
    for those of 0.
    """
    power = _power(gamma)
    gamma_high, gamma_low = split(gamma)
    alpha_high, alpha_low = split(alpha)
    rest_high, rest_low = split(1 - alpha)

    def focus(miss, target):
        one = one_like(miss)
        positive, negative = times(one, alpha_high, alpha_low), times(one, rest_high, rest_low)
        return (target * positive + (ONE - target) * negative) * power(miss)

    def turn(weight, miss, target, cross_entropy):
        # The slope of `focus` times the cross-entropy: m' = 1 - 2 y by the probability.
        slope = cross_entropy * (ONE - TWO * target) * weight / max(miss, SMALLEST)
        return times(slope, gamma_high, gamma_low)

    def rule(prediction, target):
        outside = ONE - prediction
        loss = -target * max(log(prediction), FLOOR) - (ONE - target) * max(log(outside), FLOOR)
        miss = prediction * (ONE - target) + outside * target
        weight = focus(miss, target)
        slope = (prediction - target) / max(prediction * outside, SMALLEST)
        return weight * loss, weight * slope + turn(weight, miss, target, loss)

    def rule_of_logit(logit, target):
        e = exp(-abs(logit))
        loss = max(logit, ZERO) - logit * target + log1p(e)
        large = ONE / (ONE + e)
        small = e * large
        # Both to their last digits: 1 - p has none of its own where p is near 1.
        inside, outside = (large if logit >= ZERO else small), (small if logit >= ZERO else large)
        miss = inside * (ONE - target) + outside * target
        weight = focus(miss, target)
        slope = weight * (inside * (ONE - target) - outside * target)
        return weight * loss, slope + turn(weight, miss, target, loss) * inside * outside

    return {"rule": rule, "fused": {"sigmoid": rule_of_logit}}


def softmax_cross_entropy(label_smoothing: float) -> dict[str, Any]:
    """Return the rules for targets that are mixed with equal shares of all classes.

    Source: arXiv:1512.00567, section 7; `label_smoothing` of torch.nn.CrossEntropyLoss.
    """
    high, low = split(label_smoothing)
    keep_high, keep_low = split(1 - label_smoothing)

    def share_of(slope):
        # A class's share of the smoothing, in the dtype of the slopes.
        number = slope.dtype.type
        return times(number(1), high, low) / number(slope.shape[1])

    def rule(logits, target, i, slope):
        shift_from_largest(logits, i, slope)
        share = share_of(slope)
        mass = slope[i, 0] - slope[i, 0]
        loss = mass
        for j in range(slope.shape[1]):
            smooth = times(target[i, j], keep_high, keep_low) + share
            mass = plus(mass, smooth)
            loss = plus(loss, -smooth * slope[i, j])
        total = exponentiate(slope, i)
        scale = mass / total
        for j in range(slope.shape[1]):
            smooth = times(target[i, j], keep_high, keep_low) + share
            slope[i, j] = scale * slope[i, j] - smooth
        return loss + mass * log(total)

    def rule_of_label(logits, target, i, slope):
        label = class_of(target, i, slope.shape[1])
        shift_from_largest(logits, i, slope)
        share, gap = share_of(slope), slope[i, label]
        gaps = slope[i, 0] - slope[i, 0]
        for j in range(slope.shape[1]):
            gaps = plus(gaps, slope[i, j])
        total = exponentiate(slope, i)
        scale = ONE / total
        for j in range(slope.shape[1]):
            slope[i, j] = scale * slope[i, j] - share
        keep = times(one_like(share), keep_high, keep_low)
        slope[i, label] -= keep
        return log(total) - keep * gap - share * gaps

    return {"rule": rule, "label_rule": rule_of_label}


def gaussian_nll(epsilon: float) -> dict[str, Any]:
    """Return the rule and the link of a normal distribution for each target.

    The first half of a row are the means, the second half the logarithms of the variances
    (arXiv:1703.04977, section 3.2): of those, any number is a variance, and none is divided by. A
    variance below `epsilon` counts as `epsilon`, and its slope is that of torch.nn.GaussianNLLLoss:
    it fades, but does not stop, so that a variance finds its way back.
    """
    high, low = split(math.log(epsilon))

    def rule(prediction, target, i, slope):
        targets = target.shape[1]
        # Copied first: see `losses.row_of_element`.
        for j in range(slope.shape[1]):
            slope[i, j] = prediction[i, j]
        # Views: of an index that is a sum a compiler does not know that it is not negative.
        means, logarithms = slope[i, :targets], slope[i, targets:]
        total = target[i, 0] - target[i, 0]
        for j in range(targets):
            error, raw = means[j] - target[i, j], logarithms[j]
            level = max(raw, times(one_like(error), high, low))
            precision = exp(-level)
            share = error * error * precision
            means[j] = error * precision
            logarithms[j] = HALF * (ONE - share) * exp(raw - level)
            total = plus(total, HALF * (level + share))
        return total

    def variances(prediction, i):
        targets = prediction.shape[1] // 2
        for j in range(targets, prediction.shape[1]):
            raw = prediction[i, j]
            prediction[i, j] = exp(max(raw, times(one_like(raw), high, low)))

    return {"rule": rule, "link": variances}
