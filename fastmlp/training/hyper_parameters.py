"""The hyper-parameters of epochs, computed before they are needed."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.errors import DomainError
from fastmlp.optimizers import Optimizer
from fastmlp.state.training_state import TrainingState
from fastmlp_kernels.algebra import HYPER_WIDTH, OPTIMIZERS
from fastmlp_kernels.algebra.dropout import step_keys
from fastmlp_kernels.algebra.optimizers import DROPOUT_KEY, WEIGHT_DECAY
from fastmlp_kernels.problem import Problem

Array = NDArray[Any]
Numbers = NDArray[np.float64]

# How many steps of all networks are computed together, at first and at most (a few megabytes). A
# table of any length costs as much as several steps of a small network.
FIRST_STEPS_AHEAD, STEPS_AHEAD = 2**12, 2**17
# Adam's numbers change until its corrections are 1: for 17,000 steps in float32 with beta2 = 0.999,
# and for 37,000 in float64. A handle computes so many ahead by itself. No run comes to step 2**50.
MOST_STEPS, LAST_POWER = 2**17, 50


def layers_of(problem: Problem) -> int | None:
    """Return how many layers have hyper-parameters of their own; None where all share theirs."""
    return len(problem.activations) if problem.layer_rates else None


def set_dropout_keys(problem: Problem, table: Array, seed: int, first: int) -> None:
    """Write the keys of steps, the first numbered `first`, into their hyper-parameters."""
    if problem.dropout:
        keys = step_keys(seed, first, len(table))
        table[:, DROPOUT_KEY], table[:, DROPOUT_KEY + 1] = keys.T


class HyperParameters:
    """The hyper-parameters of one epoch after another.

    Parameters
    ----------
    problem : Problem
    epochs : int or None
        How many there will be, at most, if that is known; then with the same optimizers.
    penalized, weighted : bool
        Whether there is an L2 penalty, and whether rows have weights.
    """

    def __init__(
        self, problem: Problem, epochs: int | None, penalized: bool, weighted: bool
    ) -> None:
        self._problem, self._penalized, self._weighted = problem, penalized, weighted
        # Optimizers that may be new each time pay for one epoch ahead, and no more.
        self._first = 1 if epochs is None else FIRST_STEPS_AHEAD
        self._left = sys.maxsize if epochs is None else epochs
        self._optimizers: Sequence[Optimizer] | None = None
        self._ahead: Array = np.zeros((0,))
        self._given = 0

    def forget(self) -> None:
        """Compute the next ones anew: the steps may be others than were foreseen."""
        self._optimizers = None

    def next(
        self, optimizers: Sequence[Optimizer], state: TrainingState, penalty: Numbers
    ) -> Array:
        """Return those of the next epoch: dtype[batches, hyper_columns] of each network.

        Those of the same object `optimizers` are computed ahead. `penalty`, float64[members or 1,
        batches], is added to the decay of the weights; without weights of rows it is the same in
        every epoch and for all networks.
        """
        new = optimizers is not self._optimizers
        if new or self._given == len(self._ahead):
            self._ahead, self._given = self._look_ahead(optimizers, state, penalty, new), 0
            self._optimizers = optimizers
        hyper = self._ahead[self._given]
        self._given, self._left = self._given + 1, self._left - 1
        if self._penalized and self._weighted:
            # The penalty of a mini-batch depends on its rows.
            decays = (self._decays + penalty)[..., None]
            places = hyper[..., WEIGHT_DECAY::HYPER_WIDTH]
            places[...] = decays[0] if self._problem.members == 1 else decays
        return hyper

    def _look_ahead(
        self, optimizers: Sequence[Optimizer], state: TrainingState, penalty: Numbers, new: bool
    ) -> Array:
        members, batches = self._problem.members, self._problem.batches
        columns = self._problem.hyper_columns
        layers = layers_of(self._problem)
        first, most = (max(1, n // (members * batches)) for n in (self._first, STEPS_AHEAD))
        epochs = min(first if new else 2 * len(self._ahead), most, self._left)
        constant = self._penalized and not self._weighted
        own = len(penalty) > 1 and constant
        if self._penalized and self._weighted and new:
            # Only a decay that belongs to the gradient counts here. The penalty is added to it.
            share = not OPTIMIZERS[self._problem.optimizer].decoupled
            decays = [share * each.settings["weight_decay"] for each in optimizers]
            self._decays = np.array(decays)[:, None]

        def numbers(optimizer: Optimizer, step: int, member: int) -> Array:
            penalties = np.tile(penalty[member if own else 0], epochs) if constant else 0.0
            rest = self._problem.dtype, penalties, layers
            table = optimizer.hyper(step + 1, epochs * batches, *rest)
            set_dropout_keys(self._problem, table, state.seed_of(member), step + 1)
            return table.reshape(epochs, batches, columns)

        if members == 1:
            return numbers(optimizers[0], state.steps, 0)
        tables = np.empty((epochs, members, batches, columns), dtype=self._problem.dtype)
        made: dict[Any, Array] = {}
        for member, given in enumerate(zip(optimizers, state.steps.tolist(), strict=True)):
            # Two networks with one optimizer have numbers of their own by dropout or by penalties.
            differs = penalty[member].tobytes() if own else b""
            key = id(given[0]), given[1], member if self._problem.dropout else 0, differs
            if key not in made:
                made[key] = numbers(*given, member)
            tables[:, member] = made[key]
        return tables


def numbers_of_steps(
    optimizer: Optimizer, problem: Problem, first: int, steps: int | None, seed: int
) -> tuple[Array, bool]:
    """Return the numbers of the steps from `first` on, and whether the last ones hold for ever.

    They come from the same function as those of a fit, so the bits are the same.

    Raises
    ------
    DomainError
        If they change for ever, as those of a schedule may, and `steps` is None.
    """
    layers = layers_of(problem)

    def table(start: int, count: int) -> Array:
        return optimizer.hyper(start, count, problem.dtype, 0.0, layers)

    reason = ""
    if callable(optimizer.settings["learning_rate"]):
        reason = "a schedule"
    elif problem.dropout:
        reason = "dropout"
    else:
        count = _steps_until_they_last(table, first)
        if count <= MOST_STEPS:
            return table(first, count), True
        reason = f"an optimizer whose numbers change for {count:,} steps"
    if steps is None:
        raise DomainError(
            f"max_steps: got None with {reason}, wanted how many steps there will be at most: "
            "their numbers are computed ahead"
        )
    found = table(first, steps)
    set_dropout_keys(problem, found, seed, first)
    return found, False


def numbers_by_rate(
    optimizer: Optimizer, problem: Problem, first: int, steps: int
) -> tuple[Numbers, NDArray[np.int64], Numbers, Numbers]:
    """Return the learning rates of steps, and how their numbers depend on the rate.

    Returns
    -------
    rates : ndarray
        float64[steps], or float64[1] where they have one.
    columns : ndarray
        int64[count], where the table of the numbers depends on the rate.
    bases, slopes : ndarray
        float64[steps, count]: a number is ``base + rate * slope`` there.
    """
    given: Any = optimizer
    # Not 0 and 1: no optimizer may have a rate of 0.
    constant = (replace(given, learning_rate=rate) for rate in (1.0, 2.0))
    layers = layers_of(problem)
    at_1, at_2 = (each.hyper(first, steps, np.float64, 0.0, layers) for each in constant)
    columns = np.flatnonzero((at_1 != at_2).any(axis=0))
    slopes = at_2[:, columns] - at_1[:, columns]
    rates = np.atleast_1d(np.asarray(optimizer.rates(first - 1, steps), dtype=np.float64))
    return rates, columns, at_1[:, columns] - slopes, slopes


def _steps_until_they_last(table: Callable[[int, int], Array], first: int) -> int:
    """Return after how many steps the numbers stay as they are."""
    last = table(first + 2**LAST_POWER, 1)

    def lasts(count: int) -> bool:
        # Not np.array_equal, which takes an exception of a signal handler for a difference.
        return table(first + count - 1, 1).tobytes() == last.tobytes()

    # All later ones are looked at, and not the first that is equal.
    power = LAST_POWER
    while power > 0 and lasts(2 ** (power - 1)):
        power -= 1
    low, high = (2**power) // 2, 2**power
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if lasts(middle) else (middle, high)
    return high
