"""The networks that are measured, their data and their initial weights: the same for everybody.

Every case is trained with plain gradient descent on half the squared error, averaged over all
elements, with ReLU in the hidden layers and the identity at the output, in float32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

LEARNING_RATE = 0.1
SEED = 20


class Data(NamedTuple):
    """The rows of an epoch, in the order in which they are trained on."""

    X: np.ndarray
    y: np.ndarray


Weights = list[tuple[np.ndarray, np.ndarray]]
"""W (in, out) and b (out,) of each layer, float32."""


@dataclass(frozen=True)
class Case:
    """A network and a batch size.

    Parameters
    ----------
    name : str
        The sizes, joined: what ``--cases`` takes.
    sizes : tuple of int
        Units per layer, input first.
    batch : int
        Rows of a mini-batch.
    steps : int
        Mini-batches of an epoch: what one timing covers, so that it lasts tens of milliseconds.
    reason : str
        Why it is measured.
    """

    name: str
    sizes: tuple[int, ...]
    batch: int
    steps: int
    reason: str

    @property
    def rows(self) -> int:
        """Rows of an epoch."""
        return self.batch * self.steps

    @property
    def flops_per_step(self) -> float:
        """Floating-point operations of a step's matrix products (a multiply-add is two)."""
        products = [fan_in * fan_out for fan_in, fan_out in pairwise(self.sizes)]
        # Forward and weight gradient of every layer, backward-data of all but the first.
        return 2.0 * self.batch * (2 * sum(products) + sum(products[1:]))

    def with_steps(self, steps: int) -> Case:
        """Return the same case with another length of an epoch."""
        return replace(self, steps=steps)

    def data(self) -> Data:
        """Return the epoch's rows: noise, since what is learnt does not change the work."""
        generator = np.random.default_rng(SEED)
        X = generator.standard_normal((self.rows, self.sizes[0]), dtype=np.float32)
        y = generator.standard_normal((self.rows, self.sizes[-1]), dtype=np.float32)
        return Data(X, y)

    def initial_weights(self) -> Weights:
        """Return He's initial weights, and biases that are not zero so that each one matters."""
        generator = np.random.default_rng(SEED + 1)
        weights = []
        for fan_in, fan_out in pairwise(self.sizes):
            W = generator.standard_normal((fan_in, fan_out), dtype=np.float32)
            b = generator.standard_normal(fan_out, dtype=np.float32)
            weights.append((W * np.float32(np.sqrt(2 / fan_in)), b * np.float32(0.1)))
        return weights


CASES = (
    Case("2-20-5", (2, 20, 5), 10, 500, "a toy: nothing but overhead, under a vector's width"),
    Case("16-64-1", (16, 64, 1), 32, 400, "a tabular model or a critic: one output"),
    Case("64-64-10", (64, 64, 10), 64, 200, "a small classifier: all of it in the first cache"),
    Case("64-256-256-8", (64, 256, 256, 8), 256, 40, "a policy network: two equal hidden layers"),
    Case("784-128-10", (784, 128, 10), 128, 80, "digits: the first layer has nearly all the work"),
    Case("256-512-512-16", (256, 512, 512, 16), 512, 12, "a surrogate: beyond the second cache"),
    Case("784-2048-2048-10", (784, 2048, 2048, 10), 1024, 4, "large: matrix products only"),
)
QUICK_CASES = tuple(case.name for case in CASES[:3])


def find(name: str) -> Case:
    """Return the case of that name."""
    for case in CASES:
        if case.name == name:
            return case
    known = ", ".join(case.name for case in CASES)
    raise ValueError(f"case: got {name!r}, wanted one of {known}")
