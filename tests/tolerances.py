"""The one tolerance policy: a running error bound beside a float64 oracle.

Every quantity of a training step is carried as a `Bounded`: its float64 value, and for each
element a bound on how far a correct kernel of the problem's dtype can be from it. The bounds are
the standard ones (N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2002, chapter 3):
a sum of n products, in any order, with or without fused multiply-adds, errs by at most
``n u / (1 - n u)`` times the sum of the products' sizes. So they hold for every tiling, thread
count and device, and no test has a tolerance of its own. Non-linear functions are bounded by
their change over the interval that their argument may lie in, which also widens the bound
exactly where a ReLU may flip.

`compare` is the only comparison: it also fails when the comparison could not have failed.
"""

import itertools
from dataclasses import dataclass

import numpy as np

from fastmlp_kernels.algebra import ACTIVATIONS, LOSSES, OPTIMIZERS, loss_rule
from fastmlp_kernels.algebra.optimizers import (
    BIAS_DECAY,
    CLIP_NORM,
    CLIP_VALUE,
    HYPER_WIDTH,
    RULE_START,
    WEIGHT_DECAY,
    clip_scale,
)
from fastmlp_kernels.problem import Problem, parameter_layout
from fastmlp_kernels.reference import elementwise, keep_masks

# Roundings in one scalar rule (an activation, a slope, a loss): the elementary functions are
# within 4 units of u by test_algebra, and no rule has more than a dozen operations.
RULE_ROUNDINGS = 16
# A bound above this share of the values would pass a wrong kernel.
COARSEST = 0.05
FEWEST_NON_ZEROS = 0.1


@dataclass(frozen=True)
class Bounded:
    """Float64 values, and for each a bound on the error of a correct kernel."""

    value: np.ndarray
    error: np.ndarray

    @staticmethod
    def exact(value) -> "Bounded":
        """Return values that the kernel is given, not computed."""
        value = np.asarray(value, dtype=np.float64)
        return Bounded(value, np.zeros_like(value))

    @property
    def size(self) -> np.ndarray:
        """Largest magnitude that the kernel's value may have."""
        return np.abs(self.value) + self.error

    @property
    def T(self) -> "Bounded":  # noqa: N802 (as NumPy spells it)
        """Return the transpose."""
        return Bounded(self.value.T, self.error.T)


# What the factors of a product may be rounded by: bfloat16 keeps 8 bits, to nearest; of a tf32 the
# hardware may cut off what is behind 11.
OPERAND_UNITS = {"float32": 0.0, "tf32": 2.0**-10, "bfloat16": 2.0**-9}


@dataclass(frozen=True)
class Precision:
    """The arithmetic of the kernel under test; the oracle's own rounding is included."""

    dtype: str
    operand_unit: float = 0.0

    @staticmethod
    def of(problem: Problem) -> "Precision":
        """Return the arithmetic that a problem permits."""
        single = problem.dtype == "float32"
        return Precision(problem.dtype, OPERAND_UNITS[problem.precision] if single else 0.0)

    @property
    def unit(self) -> float:
        """Unit roundoff of the kernel plus the oracle's."""
        return np.finfo(self.dtype).eps / 2 + np.finfo(np.float64).eps / 2

    @property
    def tiny(self) -> float:
        """What may be lost to underflow, flushing to zero allowed."""
        return float(np.finfo(self.dtype).tiny)

    def gamma(self, terms: int) -> float:
        """Return the relative error of a sum of that many products."""
        return terms * self.unit / (1 - terms * self.unit)

    def product(self, A: Bounded, B: Bounded) -> Bounded:
        """Return ``A @ B``."""
        terms = A.value.shape[1]
        error = A.error @ B.size + np.abs(A.value) @ B.error
        rounded = self.operand_unit * (2 + self.operand_unit)
        error += (self.gamma(terms + 1) + rounded) * (A.size @ B.size) + (terms + 1) * self.tiny
        return Bounded(A.value @ B.value, error)

    def sum_rows(self, A: Bounded) -> Bounded:
        """Return the sum over the rows."""
        share = self.gamma(len(A.value) + 1) + self.operand_unit
        error = A.error.sum(axis=0) + share * A.size.sum(axis=0)
        return Bounded(A.value.sum(axis=0), error)

    def times(self, A: Bounded, B: Bounded) -> Bounded:
        """Return the elementwise product."""
        error = A.error * B.size + np.abs(A.value) * B.error + 2 * self.unit * A.size * B.size
        return Bounded(A.value * B.value, error + self.tiny)


def _spread(function, centre: np.ndarray, *neighbours: np.ndarray):
    """Return ``function(centre)`` and its largest change at the neighbours."""
    value = function(centre)
    changes = [np.abs(function(neighbour) - value) for neighbour in neighbours]
    return value, np.maximum.reduce(changes)


def activation_bound(row, Z: Bounded, precision: Precision) -> Bounded:
    """Return the activation of `Z` and its bound."""
    value, change = _spread(
        lambda z: elementwise(row.value, z), Z.value, Z.value - Z.error, Z.value + Z.error
    )
    if row.name in ("identity", "relu"):
        return Bounded(value, change)
    # Some rules subtract nearly equal numbers no larger than the pre-activation (GELU's tail).
    rounding = np.abs(value) + np.minimum(np.abs(Z.value), 8)
    return Bounded(value, change + RULE_ROUNDINGS * precision.unit * rounding + precision.tiny)


def slope_bound(row, Z: Bounded, A: Bounded, precision: Precision) -> Bounded:
    """Return the slope at `Z` and `A`, of which the kept one is read, and its bound."""
    kept = A if row.keeps == "output" else Z
    # An activation may be kept as the factor of a product that it is.
    reach = kept.error + (precision.operand_unit * kept.size if row.keeps == "output" else 0)
    value, change = _spread(
        lambda x: elementwise(row.slope, x, x),
        kept.value,
        kept.value - reach,
        kept.value + reach,
    )
    if row.name in ("identity", "relu"):
        return Bounded(value, change)
    rounding = np.maximum(np.abs(value), 1)
    return Bounded(value, change + RULE_ROUNDINGS * precision.unit * rounding)


@dataclass(frozen=True)
class Forward:
    """Every layer's pre-activation and activation; the activations begin with the inputs."""

    pre_activations: list
    activations: list
    outputs: Bounded


def masked(precision: Precision, A: Bounded, masks, layer: int) -> Bounded:
    """Return what dropout leaves of a hidden layer's activation, or of the derivative by it."""
    return precision.times(A, Bounded.exact(masks[layer])) if masks and layer >= 0 else A


def forward(problem: Problem, parameters, X, masks=()) -> Forward:
    """Return the forward pass; `outputs` are what `Program.forward` writes."""
    precision = Precision.of(problem)
    parameters = np.asarray(parameters, dtype=np.float64)
    pre_activations, activations = [], [Bounded.exact(X)]
    layout = parameter_layout(problem.sizes)
    for index, name in enumerate(problem.training_activations):
        layer = layout[index]
        W = Bounded.exact(parameters[layer.weight].reshape(layer.fan_in, layer.fan_out))
        b = parameters[layer.bias]
        Z = precision.product(masked(precision, activations[-1], masks, index - 1), W)
        more = precision.gamma(layer.fan_in + 2) * np.abs(b)
        Z = Bounded(Z.value + b, Z.error + more)
        pre_activations.append(Z)
        activations.append(activation_bound(ACTIVATIONS[name], Z, precision))
    outputs = activations[-1]
    if problem.fused_output:
        outputs = activation_bound(ACTIVATIONS[problem.activations[-1]], outputs, precision)
    return Forward(pre_activations, activations, outputs)


def element_loss(problem: Problem, A: Bounded, y: np.ndarray, unit: float):
    rule = loss_rule(problem.rule).rule
    low, high = -np.inf, np.inf
    if not problem.fused_output:
        domain = LOSSES[problem.loss].prediction_domain
        low = domain.low if domain.low_included else domain.low + 1e-300
        high = domain.high

    def losses_and_slopes(predictions):
        inside = np.clip(predictions, low, high)
        pairs = [rule(p, t) for p, t in zip(inside.ravel(), y.ravel(), strict=True)]
        return np.array(pairs, dtype=np.float64).T.reshape(2, *A.value.shape)

    (losses, slopes), (loss_change, slope_change) = _spread(
        losses_and_slopes, A.value, A.value - A.error, A.value + A.error
    )
    terms = np.abs(losses) + A.size * (1 + np.abs(y)) + np.abs(y)
    loss_error = loss_change + RULE_ROUNDINGS * unit * terms
    slope_error = slope_change + RULE_ROUNDINGS * unit * (np.abs(slopes) + 2 * np.abs(y))
    return Bounded(losses, loss_error), Bounded(slopes, slope_error)


def softmax_loss(problem: Problem, Z: Bounded, y: np.ndarray, unit: float):
    classes = Z.value.shape[1]
    if problem.labels:
        y = np.eye(classes)[y[:, 0].astype(int)]
    mass = y.sum(axis=1, keepdims=True)
    gap = Z.value.max(axis=1, keepdims=True) - Z.value
    p = np.exp(-gap) / np.exp(-gap).sum(axis=1, keepdims=True)
    shift = Z.error.max(axis=1, keepdims=True)
    losses = (y * gap).sum(axis=1, keepdims=True) - mass * np.log(p.max(axis=1, keepdims=True))
    # The shift by the largest logit is itself rounded, in proportion to the gap.
    gaps = gap + (p * gap).sum(axis=1, keepdims=True)
    p_error = p * (np.expm1(2 * shift) + (classes + RULE_ROUNDINGS) * unit + 2 * unit * gaps)
    rounding = mass + np.abs(losses) + (y * gap).sum(axis=1, keepdims=True)
    loss_error = 2 * mass * shift + (classes + RULE_ROUNDINGS) * unit * rounding
    slopes = mass * p - y
    slope_error = mass * p_error + classes * unit * mass * p + 2 * unit * (mass * p + y)
    return Bounded(losses, loss_error), Bounded(slopes, slope_error)


def row_loss(problem: Problem, A: Bounded, y: np.ndarray, unit: float):
    """Return what `softmax_loss` does, of any row rule: more coarsely, from the rule alone."""
    rule = loss_rule(problem.rule).rule

    def losses_and_slopes(predictions):
        slopes = np.empty_like(predictions)
        losses = [rule(predictions, y, i, slopes) for i in range(len(slopes))]
        return np.column_stack([losses, slopes])

    centre = losses_and_slopes(A.value)
    change = np.zeros_like(centre)
    # One prediction after the other to either end of its interval: changes of first order add up.
    for j in range(A.value.shape[1]):
        error = np.zeros_like(A.error)
        error[:, j] = A.error[:, j]
        ends = [np.abs(losses_and_slopes(A.value + sign * error) - centre) for sign in (-1, 1)]
        change += np.maximum(*ends)
    sizes = (A.size + np.abs(y).max(axis=1, keepdims=True)).sum(axis=1, keepdims=True)
    error = 2 * change + RULE_ROUNDINGS * unit * (np.abs(centre) + sizes)
    return Bounded(centre[:, :1], error[:, :1]), Bounded(centre[:, 1:], error[:, 1:])


def _losses_of(problem: Problem):
    """Return which of the three bounds holds for the problem's losses."""
    loss = LOSSES[problem.loss]
    if not loss.by_row:
        return element_loss
    # Smoothed targets are others than those that are given.
    softmax = loss.link is LOSSES["softmax_cross_entropy"].link and not any(loss.numbers.values())
    return softmax_loss if softmax else row_loss


def loss_and_gradient(problem: Problem, A: Bounded, y, factors=None) -> tuple[Bounded, Bounded]:
    """Return the batch's loss, as one element, and its gradient by what the loss rule reads."""
    precision = Precision(problem.dtype)
    y = np.asarray(y, dtype=np.float64)
    losses, slopes = _losses_of(problem)(problem, A, y, precision.unit)
    scale = np.full(len(y), problem.scale(len(y))) if factors is None else np.asarray(factors)
    scale = scale.astype(np.float64)[:, None]
    total = (np.abs(scale) * (np.abs(losses.value) + losses.error)).sum()
    error = (np.abs(scale) * losses.error).sum() + precision.gamma(losses.value.size + 3) * total
    loss = Bounded(np.array([(losses.value * scale).sum()]), np.array([error]))
    return loss, precision.times(slopes, Bounded.exact(slopes.value * 0 + scale))


def backward(problem: Problem, parameters, passed: Forward, dA: Bounded, names, masks=()) -> tuple:
    """Return the gradient by the flat parameters, and by the inputs."""
    precision = Precision.of(problem)
    parameters = np.asarray(parameters, dtype=np.float64)
    value, error = np.empty_like(parameters), np.empty_like(parameters)
    layout = parameter_layout(problem.sizes)
    for index in reversed(range(len(layout))):
        layer, A = layout[index], passed.activations[index + 1]
        if index == len(layout) - 1 and names == problem.activations:
            A = passed.outputs
        slope = slope_bound(ACTIVATIONS[names[index]], passed.pre_activations[index], A, precision)
        dZ = precision.times(dA, slope)
        below = masked(precision, passed.activations[index], masks, index - 1)
        dW, db = precision.product(below.T, dZ), precision.sum_rows(dZ)
        value[layer.weight], error[layer.weight] = dW.value.ravel(), dW.error.ravel()
        value[layer.bias], error[layer.bias] = db.value, db.error
        W = parameters[layer.weight].reshape(layer.fan_in, layer.fan_out)
        dA = masked(precision, precision.product(dZ, Bounded.exact(W.T)), masks, index - 1)
    return Bounded(value, error), dA


@dataclass(frozen=True)
class Step:
    """What a batch gives: outputs, its loss as one element, and the gradients."""

    outputs: Bounded
    loss: Bounded
    gradient: Bounded
    input_gradient: Bounded


def squares(problem: Problem, parameters) -> Bounded:
    """Return the sum of the squares of the weights, as one element."""
    layers = parameter_layout(problem.sizes)
    W = np.concatenate([parameters[layer.weight] for layer in layers]).astype(np.float64)
    total = (W * W).sum(keepdims=True)
    return Bounded(total, (W.size + RULE_ROUNDINGS) * Precision(problem.dtype).unit * total)


def step(problem: Problem, parameters, X, y, factors=None, hyper=None) -> Step:
    """Return the oracle of one batch, `Program.value_and_gradient` and more.

    With the `hyper` of a step, that of an epoch's batch, which leaves out some outputs.
    """
    masks = () if hyper is None else keep_masks(problem, hyper, len(X))
    with np.errstate(all="ignore"):
        passed = forward(problem, parameters, X, masks)
        loss, dA = loss_and_gradient(problem, passed.activations[-1], y, factors)
        names = problem.training_activations
        gradients = backward(problem, parameters, passed, dA, names, masks)
    return Step(passed.outputs, loss, *gradients)


def pulled_back(problem: Problem, parameters, X, upstream) -> tuple[Bounded, Bounded]:
    """Return the gradients by parameters and inputs, given the one by the outputs."""
    with np.errstate(all="ignore"):
        passed = forward(problem, parameters, X)
        dA = Bounded.exact(upstream)
        return backward(problem, parameters, passed, dA, problem.activations)


def clipped(problem: Problem, gradient: Bounded, hyper) -> Bounded:
    """Return a gradient whose elements and norm are limited."""
    if problem.clipping == "none":
        return gradient
    limit = hyper[CLIP_VALUE]
    # A limit brings no two numbers further apart.
    g, error = np.clip(gradient.value, -limit, limit), gradient.error
    if problem.clipping == "value":
        return Bounded(g, error)
    norm, unit = np.linalg.norm(g), Precision(problem.dtype).unit
    scale = clip_scale(norm**2, hyper[CLIP_NORM])
    # The norm is off by at most that of the errors, and by the roundings of a sum of so many.
    off = np.linalg.norm(error) / norm + (len(g) + RULE_ROUNDINGS) * unit
    return Bounded(scale * g, scale * (error + np.abs(g) * off))


def updated(problem: Problem, parameters, gradient: Bounded, state, hyper) -> tuple:
    """Return the parameters, and a list of the state's rows, after one optimizer step."""
    unit = Precision(problem.dtype).unit
    rule = OPTIMIZERS[problem.optimizer].update
    p = np.asarray(parameters, dtype=np.float64)
    slots = [np.asarray(row, dtype=np.float64) for row in state]
    m, v = [*slots, np.zeros_like(p), np.zeros_like(p)][:2]
    hyper = np.asarray(hyper, dtype=np.float64)
    decay, numbers = np.empty_like(p), []
    for index, layer in enumerate(parameter_layout(problem.sizes)):
        own = hyper[index * HYPER_WIDTH :] if problem.layer_rates else hyper
        decay[layer.weight], decay[layer.bias] = own[WEIGHT_DECAY], own[BIAS_DECAY]
        numbers += [tuple(own[RULE_START:HYPER_WIDTH])] * ((layer.fan_in + 1) * layer.fan_out)

    def apply(g, m, v):
        g = g + decay * p
        rows = [rule(*row, h) for *row, h in zip(p, g, m, v, numbers, strict=True)]
        return np.array(rows).T

    gradient = clipped(problem, gradient, hyper)
    g = gradient.value
    reach = gradient.error + RULE_ROUNDINGS * unit * (np.abs(g) + np.abs(p * decay))
    centre = apply(g, m, v)
    change = np.zeros_like(centre)
    # A state that there is not is zero, and has no corners.
    of_m, of_v = ((-1, 1) if k < len(slots) else (1,) for k in range(2))
    for sign_g, sign_m, sign_v in itertools.product((-1, 1), of_m, of_v):
        corner = apply(g + sign_g * reach, m * (1 + sign_m * 8 * unit), v * (1 + sign_v * 8 * unit))
        change = np.maximum(change, np.abs(corner - centre))
    moved = np.abs(centre[0] - p)
    rounding = np.stack([np.abs(p) + moved, *np.abs(centre[1:])])
    tiny = Precision(problem.dtype).tiny
    error = change + RULE_ROUNDINGS * unit * rounding + tiny
    rows = [Bounded(*row) for row in zip(centre, error, strict=True)]
    return rows[0], rows[1 : 1 + len(slots)]


def vacuous(oracle: Bounded) -> str | None:
    """Return why a comparison with `oracle` would prove nothing, or None."""
    value, error = oracle.value, oracle.error
    if value.size == 0:
        return "there are no elements"
    if not (np.isfinite(value).all() and np.isfinite(error).all()):
        return "the oracle is not finite"
    if np.count_nonzero(value) < FEWEST_NON_ZEROS * value.size:
        return "nearly all elements are zero"
    if value.size > 1 and np.ptp(value) == 0:
        return "all elements are the same"
    if np.linalg.norm(error) > COARSEST * np.linalg.norm(value):
        return f"the bound is {np.linalg.norm(error) / np.linalg.norm(value):.2g} of the values"
    return None


def compare(actual, oracle: Bounded, what: str = "result") -> float:
    """Fail unless every element is within its bound and the comparison can fail.

    Returns
    -------
    float
        The largest error, as a share of its bound.
    """
    actual = np.atleast_1d(np.asarray(actual, dtype=np.float64))
    assert actual.shape == oracle.value.shape, f"{what}: {actual.shape}, not {oracle.value.shape}"
    reason = vacuous(oracle)
    assert reason is None, f"{what}: the comparison is vacuous, as {reason}"
    wrong = ~(np.abs(actual - oracle.value) <= oracle.error)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.nan_to_num(np.abs(actual - oracle.value) / oracle.error)
    if wrong.any():
        worst = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise AssertionError(
            f"{what}: {int(wrong.sum())} of {wrong.size} elements beyond their bound; at {worst} "
            f"got {actual[worst]!r}, wanted {oracle.value[worst]!r} "
            f"within {oracle.error[worst]:.3g}"
        )
    return float(ratio.max())
