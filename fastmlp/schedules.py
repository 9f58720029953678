"""Learning rates that depend on the step: any function of the step's number, and four of them.

An optimizer's `learning_rate` may be a callable ``step -> rate``, with steps counted from 0 as
optax counts them. Those here also take an array of steps.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np


class Schedule:
    """A schedule that takes an array of steps at once."""

    def __call__(self, step: Any) -> Any:
        """Return the rate of a step, or of each step of an array."""
        raise NotImplementedError


@dataclass(frozen=True)
class ExponentialDecay(Schedule):
    """``initial * decay ** (step / every)``."""

    initial: float
    decay: float
    every: int = 1

    def __call__(self, step: Any) -> Any:
        """Return the rate of a step."""
        return self.initial * self.decay ** (step / self.every)


@dataclass(frozen=True)
class InverseScaling(Schedule):
    """``initial / (step + 1) ** power``."""

    initial: float
    power: float = 0.5

    def __call__(self, step: Any) -> Any:
        """Return the rate of a step."""
        return self.initial / (step + 1.0) ** self.power


@dataclass(frozen=True)
class CosineDecay(Schedule):
    """From `initial` to `final` along half a cosine over `steps` steps (SGDR, arXiv:1608.03983)."""

    initial: float
    steps: int
    final: float = 0.0

    def __call__(self, step: Any) -> Any:
        """Return the rate of a step."""
        along = np.minimum(step, self.steps) / self.steps
        return self.final + (self.initial - self.final) * 0.5 * (1 + np.cos(np.pi * along))


@dataclass(frozen=True)
class LinearWarmup(Schedule):
    """In a straight line from 0 over `steps` steps, then another schedule from its own step 0."""

    steps: int
    then: Schedule

    def __call__(self, step: Any) -> Any:
        """Return the rate of a step."""
        rising = self.then(0) * (step + 1.0) / self.steps
        return np.where(step < self.steps, rising, self.then(np.maximum(step - self.steps, 0)))
