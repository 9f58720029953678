"""What every provider must compute before it is timed: one epoch, in float64 with NumPy."""

from __future__ import annotations

import numpy as np

from benchmarks.cases import LEARNING_RATE, Case, Data, Weights

TOLERANCE = 1e-2
"""Largest error of a layer's weights or biases, relative to how far the epoch moved them.

float32 keeps 3e-4 and less of the movement; a wrong factor, rate, batch or bias loses all of it.
"""


class Disagreement(Exception):
    """A provider trains something else, so its time would compare nothing."""


def flatten(weights: Weights) -> np.ndarray:
    """Return weights and biases as one float64 vector, layer after layer, W row-major before b."""
    parts = [part.astype(np.float64).ravel() for layer in weights for part in layer]
    return np.concatenate(parts)


def expected_parameters(case: Case, data: Data, weights: Weights) -> np.ndarray:
    """Return the parameters after one epoch, in float64: shares no code with any provider."""
    layers = [(W.astype(np.float64), b.astype(np.float64)) for W, b in weights]
    for start in range(0, len(data.X), case.batch):
        activations = [data.X[start : start + case.batch].astype(np.float64)]
        for W, b in layers[:-1]:
            activations.append(np.maximum(activations[-1] @ W + b, 0))  # noqa: PERF401  a chain
        W, b = layers[-1]
        delta = activations[-1] @ W + b - data.y[start : start + case.batch]
        delta /= delta.size
        for index in reversed(range(len(layers))):
            W, b = layers[index]
            A = activations[index]
            below = (delta @ W.T) * (A > 0)
            layers[index] = (
                W - LEARNING_RATE * (A.T @ delta),
                b - LEARNING_RATE * delta.sum(axis=0),
            )
            delta = below
    return flatten(layers)


def validate(weights: Weights, expected: np.ndarray, got: np.ndarray) -> float:
    """Return the largest relative error of a layer's weights or biases; refuse a wrong provider.

    Parameters
    ----------
    weights : Weights
        What the epoch started from.
    expected, got : float64[P]
        The parameters after it: the oracle's and the provider's.
    """
    if got.shape != expected.shape:
        raise Disagreement(f"parameters: got shape {got.shape}, wanted {expected.shape}")
    initial, worst, start = flatten(weights), 0.0, 0
    for layer, parts in enumerate(weights):
        for name, part in zip(("weights", "biases"), parts, strict=True):
            here = slice(start, start + part.size)
            start = here.stop
            moved = np.linalg.norm(expected[here] - initial[here])
            error = float(np.linalg.norm(got[here] - expected[here]) / moved)
            # Written so that NaN is refused too.
            if not error <= TOLERANCE:
                raise Disagreement(
                    f"{name} of layer {layer + 1} after one epoch: their error is {error:.2g} of "
                    f"how far they should have moved; at most {TOLERANCE:g} is accepted"
                )
            worst = max(worst, error)
    return worst
