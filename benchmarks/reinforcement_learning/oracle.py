"""The environment, the losses and their gradients in NumPy and float64, which all are held to."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from benchmarks.reinforcement_learning import (
    FARTHEST,
    FORCE,
    GRAVITY,
    HALF_POLE,
    POLE_MASS,
    SECONDS,
    STEEPEST,
    TOTAL_MASS,
    Settings,
)
from benchmarks.validation import Disagreement

TOLERANCE = 1e-5
"""Largest error in float32, relative to the largest number of an array: 2e-6 was seen."""

Weights = list[tuple[np.ndarray, np.ndarray]]


def push(cart: np.ndarray, right: bool) -> tuple[np.ndarray, bool]:
    """Return a cart one step later, and whether it has left the limits.

    These are the equations of Barto, Sutton and Anderson (1983), without friction, as they stand:
    the angular acceleration first, then that of the cart.
    """
    x, speed, angle, spin = (float(each) for each in cart)
    force = FORCE if right else -FORCE
    sine, cosine = math.sin(angle), math.cos(angle)
    momentum = POLE_MASS * HALF_POLE
    numerator = GRAVITY * sine + cosine * (-force - momentum * spin**2 * sine) / TOTAL_MASS
    turn = numerator / (HALF_POLE * (4 / 3 - POLE_MASS * cosine**2 / TOTAL_MASS))
    pull = (force + momentum * (spin**2 * sine - turn * cosine)) / TOTAL_MASS
    changes = np.array([speed, pull, spin, turn])
    moved = np.array([x, speed, angle, spin]) + SECONDS * changes
    return moved, bool(abs(moved[0]) > FARTHEST or abs(moved[2]) > STEEPEST)


@dataclass(frozen=True)
class Batch:
    """Rows to learn from.

    Attributes
    ----------
    X : float32[rows, 4]
    chosen : int64[rows]
    chances : float32[rows]
        What probability the action had when it was chosen.
    advantages, targets : float32[rows]
    """

    X: np.ndarray
    chosen: np.ndarray
    chances: np.ndarray
    advantages: np.ndarray
    targets: np.ndarray


def sample(settings: Settings) -> tuple[Weights, Weights, Batch, np.ndarray]:
    """Return the weights of an actor and of a critic, a batch, and carts for a step."""
    generator = np.random.default_rng(0)
    sizes = [4, *settings.hidden]

    def weights(outputs: int) -> Weights:
        pairs = zip(sizes, [*sizes[1:], outputs], strict=True)
        return [
            (
                (generator.standard_normal(shape) / math.sqrt(shape[0])).astype(np.float32),
                (0.1 * generator.standard_normal(shape[1])).astype(np.float32),
            )
            for shape in pairs
        ]

    rows = settings.batch
    # Chances from 0.2 to 0.8: many ratios are beyond the limits of PPO, on both sides.
    batch = Batch(
        generator.standard_normal((rows, 4)).astype(np.float32),
        generator.integers(0, 2, rows),
        generator.uniform(0.2, 0.8, rows).astype(np.float32),
        (3 * generator.standard_normal(rows) + 5).astype(np.float32),
        generator.uniform(0, 100, rows).astype(np.float32),
    )
    carts = generator.uniform(-1, 1, (rows, 4)) * [2.5, 3.0, 0.25, 3.0]
    return weights(2), weights(1), batch, carts


def _forward(weights: Weights, X: np.ndarray) -> list[np.ndarray]:
    layers = [X.astype(np.float64)]
    for index, (W, b) in enumerate(weights):
        z = layers[-1] @ W.astype(np.float64) + b
        layers.append(np.tanh(z) if index < len(weights) - 1 else z)
    return layers


def _backward(weights: Weights, layers: list[np.ndarray], slope: np.ndarray) -> np.ndarray:
    found: list[np.ndarray] = []
    for index in range(len(weights) - 1, -1, -1):
        found = [(layers[index].T @ slope).ravel(), slope.sum(axis=0), *found]
        slope = (slope @ weights[index][0].T.astype(np.float64)) * (1 - layers[index] ** 2)
    return np.concatenate(found)


@dataclass(frozen=True)
class Answers:
    """What a program says of a sample: two losses, two gradients (layer after layer, W before b).

    With them, float[rows, 4] carts after a step, and bool[rows] whether they have left the limits.
    """

    losses: tuple[float, float]
    policy_gradient: np.ndarray
    value_gradient: np.ndarray
    carts: np.ndarray
    failed: np.ndarray


def answers(settings: Settings) -> Answers:
    """Return the right ones."""
    actor, critic, batch, carts = sample(settings)
    layers = _forward(actor, batch.X)
    exponentials = np.exp(layers[-1] - layers[-1].max(axis=1, keepdims=True))
    chances = exponentials / exponentials.sum(axis=1, keepdims=True)
    rows = np.arange(len(batch.X))
    ratios = chances[rows, batch.chosen] / batch.chances
    advantages = batch.advantages.astype(np.float64)
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    clipped = np.clip(ratios, 1 - settings.clip, 1 + settings.clip)
    free = ratios * advantages <= clipped * advantages
    policy_loss = -np.minimum(ratios * advantages, clipped * advantages).mean()
    slope = chances - np.eye(2)[batch.chosen]
    slope *= (free * ratios * advantages / len(rows))[:, None]
    policy_gradient = _backward(actor, layers, slope)
    layers = _forward(critic, batch.X)
    errors = layers[-1] - batch.targets[:, None]
    value_gradient = _backward(critic, layers, errors / len(rows))
    losses = float(policy_loss), float((errors**2).mean() / 2)
    pushed = [push(cart, bool(right)) for cart, right in zip(carts, batch.chosen, strict=True)]
    moved, failed = (np.array(each) for each in zip(*pushed, strict=True))
    return Answers(losses, policy_gradient, value_gradient, moved, failed)


def check(got: Answers, wanted: Answers) -> float:
    """Return the largest relative error.

    Raises
    ------
    Disagreement
        If it is above the tolerance, or if other carts have left the limits.
    """
    worst = 0.0
    for name in ("losses", "policy_gradient", "value_gradient", "carts"):
        mine, theirs = np.asarray(getattr(got, name)), np.asarray(getattr(wanted, name))
        # Each loss by itself; of the arrays, relative to their largest number.
        size = np.abs(theirs) if name == "losses" else np.abs(theirs).max()
        error = float((np.abs(mine - theirs) / size).max())
        if not error < TOLERANCE:
            raise Disagreement(f"{name}: relative error {error:.1e}, wanted {TOLERANCE:g} at most")
        worst = max(worst, error)
    if (got.failed != wanted.failed).any():
        raise Disagreement("failed: other carts have left the limits")
    return worst
