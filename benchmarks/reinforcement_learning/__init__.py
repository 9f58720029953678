"""Proximal policy optimisation on CartPole: fastmlp in one compiled program, JAX and PyTorch.

``python -m benchmarks.reinforcement_learning`` checks everybody, and then measures in turns how
many steps of the environment each takes in a second, and after how many steps the task is solved.
All train the same two networks by the same algorithm, `Settings`:

- **fastmlp** (`ours`): the program of ``docs/gallery/plot_reinforcement_learning.py``. The actor
  and the critic learn on a thread each.
- **JAX** (`jax_program`): the environment by `vmap`, and the whole training one jitted function
  of nested `lax.scan`.
- **PyTorch** (`torch_program`): the environment and the actor's choices in NumPy, on all carts at
  once; the update compiled by `torch.compile`, and Adam fused.

Before that, each gives its steps of the environment, its losses and its gradients on one batch,
which are held against NumPy in float64 (`oracle`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

SOLVED, EPISODES = 475, 100
"""CartPole-v1 is solved at a mean return of so much, over so many episodes."""


@dataclass(frozen=True)
class Settings:
    """What everybody trains with.

    Attributes
    ----------
    updates, steps, carts : int
        `carts` run for `steps` steps before each update.
    epochs, batch : int
        How often the networks see these rows, and in batches of how many.
    rate : float
        Adam's first learning rate; it falls to 0 along a line.
    """

    updates: int = 100
    steps: int = 64
    carts: int = 32
    epochs: int = 4
    batch: int = 256
    rate: float = 2e-3
    gamma: float = 0.99
    smoothing: float = 0.95
    clip: float = 0.2
    epsilon: float = 1e-5
    largest_norm: float = 0.5
    hidden: tuple[int, ...] = (64, 64)

    @property
    def rows(self) -> int:
        """Rows of an update."""
        return self.steps * self.carts

    @property
    def environment_steps(self) -> int:
        """Steps of a training, those of all carts together."""
        return self.updates * self.rows

    @property
    def batches(self) -> int:
        """Batches of a training."""
        return self.updates * self.epochs * self.rows // self.batch


GRAVITY, POLE_MASS, TOTAL_MASS, HALF_POLE, FORCE, SECONDS = 9.8, 0.1, 1.1, 0.5, 10.0, 0.02
FARTHEST, STEEPEST, LONGEST, SPREAD = 2.4, math.radians(12), 500, 0.05
"""The constants of CartPole-v1, in SI units."""


def running_mean(returns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return steps of the environment, and the mean return of the last episodes by then.

    `returns` has, for each step of each cart, the return of the episode that ends there, or 0.
    """
    flat = returns.ravel()
    ends = np.flatnonzero(flat)
    sums = np.cumsum(np.concatenate([[0.0], flat[ends]]))
    return ends[EPISODES - 1 :] + 1, (sums[EPISODES:] - sums[:-EPISODES]) / EPISODES


def steps_until_solved(returns: np.ndarray) -> int | None:
    """Return after how many steps of the environment it is solved, or None."""
    steps, means = running_mean(returns)
    solved = means >= SOLVED
    return int(steps[solved.argmax()]) if solved.any() else None
