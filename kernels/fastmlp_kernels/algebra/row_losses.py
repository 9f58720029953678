"""Row rules: losses that read all outputs of a row at once (see `losses`), and their links."""

from fastmlp_kernels.algebra.constants import LARGEST_LABEL, ONE, ZERO
from fastmlp_kernels.algebra.elementary import epsilon, exp, log, log_epsilon, plus


def clipped(loss):
    """Return ``-log p`` as it is of a probability p that is kept in [epsilon, 1 - epsilon]."""
    # -log(1 - epsilon) is epsilon to the last bit.
    return min(max(loss, epsilon(loss)), -log_epsilon(loss))


def shift_from_largest(logits, i, shifted):
    """Write row `i` of `logits` less its largest element to `shifted`, perhaps `logits` itself."""
    top = logits[i, 0]
    for j in range(1, logits.shape[1]):
        top = max(top, logits[i, j])
    for j in range(logits.shape[1]):
        shifted[i, j] = logits[i, j] - top


def exponentiate(shifted, i):
    """Replace row `i` by its exponentials; return their sum."""
    # shifted[i, 0] - shifted[i, 0] is a zero of the right dtype: infinite logits give NaN, rightly.
    total = shifted[i, 0] - shifted[i, 0]
    for j in range(shifted.shape[1]):
        power = exp(shifted[i, j])
        shifted[i, j] = power
        total = plus(total, power)
    return total


def softmax(logits, i):
    shift_from_largest(logits, i, logits)
    scale = ONE / exponentiate(logits, i)
    for j in range(logits.shape[1]):
        logits[i, j] *= scale


def softmax_cross_entropy(logits, target, i, slope):
    shift_from_largest(logits, i, slope)
    mass = slope[i, 0] - slope[i, 0]
    loss = mass
    for j in range(slope.shape[1]):
        mass = plus(mass, target[i, j])
        # A target of 0 contributes 0 whatever its logit: the gap is finite, no 0 * infinity.
        loss = plus(loss, -target[i, j] * slope[i, j])
    total = exponentiate(slope, i)
    scale = mass / total
    for j in range(slope.shape[1]):
        slope[i, j] = scale * slope[i, j] - target[i, j]
    return loss + mass * log(total)


def class_of(target, i, classes):
    """Return the class that row `i` of the labels names, the nearest there is if it names none."""
    # Labels are checked before a kernel runs, but their memory may be somebody else's, who writes
    # to it meanwhile: without this, the slope is written outside its array. In floating point
    # first, as no integer stands for a NaN (which is not above 0: a 0 comes of it) or for what is
    # too large: what a conversion makes of them differs between processors, and Python raises.
    number = min(max(ZERO, target[i, 0]), LARGEST_LABEL)
    return min(int(number), classes - 1)


def softmax_cross_entropy_of_label(logits, target, i, slope):
    label = class_of(target, i, slope.shape[1])
    shift_from_largest(logits, i, slope)
    gap = slope[i, label]
    total = exponentiate(slope, i)
    scale = ONE / total
    for j in range(slope.shape[1]):
        slope[i, j] *= scale
    slope[i, label] -= ONE
    return log(total) - gap


def clipped_softmax_cross_entropy(logits, target, i, slope):
    shift_from_largest(logits, i, slope)
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
