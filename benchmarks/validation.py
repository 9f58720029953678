"""What every provider must compute before it is timed: one epoch, in float64 with NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from benchmarks.cases import ADAM, LEARNING_RATE, Case, Weights

TOLERANCES = {"float32": 1e-2, "tf32": 2.5e-2, "bfloat16": 2e-1}
"""Largest error of a layer's weights or biases, relative to how far the epoch moved them.

float32 keeps 3e-4 and less of the movement; a wrong factor, rate, batch or bias loses half of it or
more. With products in bfloat16 PyTorch and JAX have lost 0.007 to 0.08 on the networks of
`cases.GPU_CASES` (on a CPU, the large ones with batches of 1,024; 2026-11-24), and tf32 has three
bits more.
"""

FEW_STEPS, PARTED = 40, 0.3
"""Steps of Adam after which the parameters in float32 may have parted from those in float64.

Adam makes a parameter's steps about equally long, however small its gradient is: a ReLU that is on
here and off there soon shows. On `cases.SHUFFLED` fastmlp and PyTorch have lost 4e-6 to 2e-3 in 40
steps, and 4e-6 to 0.11 in the 234 to 468 of an epoch (2026-11-29); scikit-learn, whose epsilon is
beside another root, 0.016 and 0.12. Rows in another order lose everything.
"""


class Disagreement(Exception):
    """A provider trains something else, so its time would compare nothing."""


def flatten(members: list[Weights]) -> np.ndarray:
    """Return float64[members, P]: layer after layer, W row-major before b."""
    return np.stack(
        [
            np.concatenate([part.astype(np.float64).ravel() for layer in each for part in layer])
            for each in members
        ]
    )


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def _normal_distribution(z: np.ndarray) -> np.ndarray:
    erf = np.frompyfunc(math.erf, 1, 1)
    return 0.5 * (1 + erf(z / math.sqrt(2)).astype(np.float64))


def _gelu_slope(z: np.ndarray) -> np.ndarray:
    return _normal_distribution(z) + z * np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


Rule = Callable[[np.ndarray], np.ndarray]

ACTIVATIONS: dict[str, tuple[Rule, Rule]] = {
    "relu": (lambda z: np.maximum(z, 0), lambda z: (z > 0).astype(np.float64)),
    "sigmoid": (_sigmoid, lambda z: _sigmoid(z) * (1 - _sigmoid(z))),
    "tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2),
    "gelu": (lambda z: z * _normal_distribution(z), _gelu_slope),
}
"""Value and slope of each activation that a case may have."""


class Descent:
    """Plain gradient descent, or Adam with the moments of one array."""

    def __init__(self, optimizer: str, shape: tuple[int, ...]) -> None:
        self.optimizer, self.step = optimizer, 0
        self.first, self.second = np.zeros(shape), np.zeros(shape)

    def change(self, gradient: np.ndarray) -> np.ndarray:
        """Return what the next step subtracts."""
        if self.optimizer == "sgd":
            return LEARNING_RATE * gradient
        self.step += 1
        beta1, beta2 = ADAM["beta1"], ADAM["beta2"]
        self.first = beta1 * self.first + (1 - beta1) * gradient
        self.second = beta2 * self.second + (1 - beta2) * gradient**2
        mean = self.first / (1 - beta1**self.step)
        size = np.sqrt(self.second / (1 - beta2**self.step))
        return ADAM["learning_rate"] * mean / (size + ADAM["epsilon"])


def expected_parameters(case: Case) -> np.ndarray:
    """Return float64[members, P], the parameters after an epoch: shares no code with a provider."""
    data, members = case.data(), case.initial_weights()
    layers = [
        (np.stack(Ws).astype(np.float64), np.stack(bs).astype(np.float64)[:, None])
        for Ws, bs in ([*zip(*layer, strict=True)] for layer in zip(*members, strict=True))
    ]
    descents = [[Descent(case.optimizer, part.shape) for part in layer] for layer in layers]
    value, slope = ACTIVATIONS[case.activation]
    for rows in case.order().reshape(case.steps, case.batch):
        inputs = [data.X[None, rows].astype(np.float64)]
        sums = []
        for W, b in layers:
            sums.append(inputs[-1] @ W + b)
            inputs.append(value(sums[-1]))
        delta = sums[-1] - data.y[rows]
        delta /= delta[0].size
        for index in reversed(range(len(layers))):
            W, b = layers[index]
            of_weights, of_bias = descents[index]
            layers[index] = (
                W - of_weights.change(inputs[index].swapaxes(1, 2) @ delta),
                b - of_bias.change(delta.sum(axis=1, keepdims=True)),
            )
            if index:
                delta = (delta @ W.swapaxes(1, 2)) * slope(sums[index - 1])
    return flatten([[(W[k], b[k]) for W, b in layers] for k in range(case.members)])


def validate(case: Case, expected: np.ndarray, got: np.ndarray) -> float:
    """Return the largest relative error of a layer's weights or biases; refuse a wrong provider.

    Parameters
    ----------
    case : Case
    expected, got : float64[members, P]
        The parameters after an epoch: the oracle's and the provider's.
    """
    if got.shape != expected.shape:
        raise Disagreement(f"parameters: got shape {got.shape}, wanted {expected.shape}")
    weights, limit = case.initial_weights(), TOLERANCES[case.precision]
    if case.optimizer == "adam" and case.steps > FEW_STEPS:
        limit = max(limit, PARTED)
    initial, worst, start = flatten(weights), 0.0, 0
    for layer, parts in enumerate(weights[0]):
        for name, part in zip(("weights", "biases"), parts, strict=True):
            here = slice(start, start + part.size)
            start = here.stop
            moved = np.linalg.norm(expected[:, here] - initial[:, here], axis=1)
            # Of many members one may have come back to where a single bias began.
            moved = np.maximum(moved, moved.mean() / 2)
            errors = np.linalg.norm(got[:, here] - expected[:, here], axis=1) / moved
            # Written so that NaN is refused too.
            if not (errors <= limit).all():
                whose = f" of member {int(np.argmax(errors))}" if case.members > 1 else ""
                raise Disagreement(
                    f"{name} of layer {layer + 1}{whose} after one epoch: their error is "
                    f"{errors.max():.2g} of how far they should have moved; at most {limit:g} is "
                    f"accepted in {case.precision}"
                )
            worst = max(worst, float(errors.max()))
    return worst
