"""One epoch after another on one set of data: what every fit repeats, and no policy."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmlp.arrays import Data, all_finite
from fastmlp.batches import batch_rows
from fastmlp.interrupts import run_interruptibly
from fastmlp.optimizers import Optimizer
from fastmlp.parameters import TrainingState
from fastmlp.planning import ANYWHERE, Programs, Where
from fastmlp.steps import applied_batches
from fastmlp.weighting import Weights, row_factors
from fastmlp_kernels.problem import CONTROL_WORDS, STATUS

Array = NDArray[Any]


class Epoch(NamedTuple):
    """What an epoch gave.

    Attributes
    ----------
    losses, penalties : ndarray
        float64[batches]: the reduced loss of each mini-batch, and its L2 penalty.
    weights : ndarray
        float64[batches]: what a mean over mini-batches weighs them by.
    seconds : float
    bad_batch : int
        0, or the mini-batch, from 1, at which something was not finite: parameters and state are
        then those after the one before.
    finite : bool
        Whether the parameters and the optimizer's state are. If not, `Trainer.undo` goes back.
    """

    losses: NDArray[np.float64]
    penalties: NDArray[np.float64]
    weights: NDArray[np.float64]
    seconds: float
    bad_batch: int
    finite: bool


# Steps whose hyper-parameters are computed together, at most: a table costs as much as several
# steps of a small network, whatever its length.
STEPS_AHEAD = 4096


class Trainer:
    """Trains a state on a set of data, epoch by epoch. Building it plans and allocates.

    Parameters
    ----------
    state : TrainingState
    programs : Programs
    data : Data
    batch_size : int
    rule : str
        Of the optimizers that `run` will be given.
    where : Where
    weights : ndarray, optional
        float64[rows], of the rows of the data.
    l2 : float
        ``l2 / 2`` times the sum of the squares of all weights, no biases, is added to the sum of
        the losses of each mini-batch, before a mean divides it by the rows' weights.
    """

    def __init__(
        self,
        state: TrainingState,
        programs: Programs,
        data: Data,
        batch_size: int,
        rule: str,
        where: Where = ANYWHERE,
        *,
        weights: Weights | None = None,
        l2: float = 0.0,
    ) -> None:
        self.state, self.data, self.weights, self.l2 = state, data, weights, l2
        self.plan, self.program = programs.get(
            len(data.X), batch_size, where, labels=data.labels, rule=rule
        )
        problem = self.plan.problem
        self._rule = rule
        self._sizes = batch_rows(problem.rows, batch_size)
        self._starts = np.cumsum(self._sizes) - self._sizes
        # The same arrays in every epoch: a program need not look again where they lie.
        self._losses = np.zeros(problem.batches, dtype=problem.dtype)
        self._squares = np.zeros(problem.batches) if l2 else None
        self._control = np.zeros(CONTROL_WORDS, dtype=np.int64)
        sizes = self._sizes.astype(np.float64)
        self._even = np.ones(len(sizes)) if problem.reduction == "sum" else 1.0 / sizes, sizes
        self._optimizer: Optimizer | None = None
        self._ahead, self._first_ahead = np.zeros((0, 0)), 0

    def prepare(self) -> None:
        """Bring everything to the device, and compile or load what an epoch runs."""
        self.state.prepare(self._rule, self.plan.problem.slots)
        to_device = self.program.to_device
        self._X, self._y = to_device(self.data.X), to_device(self.data.y)
        self.upload()
        self._before = self.state.snapshot()
        arrays = (self._parameters, self._slots, self._X, self._y)
        self.program.prepare(*arrays, self.weights is not None, self._squares is not None)

    def upload(self) -> None:
        """Bring the parameters and the state to the device: the host has changed them."""
        self._parameters = self.program.to_device(self.state.parameters)
        self._slots = self.program.to_device(self.state.slots)

    def _factors(self, order: NDArray[np.int64]) -> tuple[Array | None, Any, NDArray[np.float64]]:
        """Return the rows' factors, each batch's own, and what the batches weigh."""
        if self.weights is None:
            return None, *self._even
        weights = self.weights[order]
        factors, of_batch = row_factors(self.plan.problem, weights, self._starts)
        return factors, of_batch, np.add.reduceat(weights, self._starts)

    def _hyper(self, optimizer: Optimizer, penalty: NDArray[np.float64]) -> Array:
        """Return the hyper-parameters of the next epoch, computed ahead where that can be."""
        count, step = len(penalty), self.state.steps + 1
        dtype = self.plan.problem.dtype
        if self.weights is not None and self.l2:
            # The penalty of a mini-batch depends on its rows.
            return optimizer.hyper(step, count, dtype, penalty)
        start = step - self._first_ahead
        same = optimizer is self._optimizer
        if not (same and 0 <= start <= len(self._ahead) - count):
            # Those of one epoch at first: an optimizer that is new each time pays for no more.
            steps = min(2 * len(self._ahead), max(STEPS_AHEAD, count)) if same else count
            epochs = max(1, steps // count)
            self._ahead = optimizer.hyper(step, epochs * count, dtype, np.tile(penalty, epochs))
            self._optimizer, self._first_ahead, start = optimizer, step, 0
        return self._ahead[start : start + count]

    def run(
        self,
        order: NDArray[np.int64],
        optimizer: Optimizer,
        waiting: Callable[[int], None] = lambda done: None,
    ) -> Epoch:
        """Train on the rows in an order; `waiting` is told how many batches are done, if long."""
        state, program, control = self.state, self.program, self._control
        factors, of_batch, weights = self._factors(order)
        penalty = self.l2 * of_batch
        hyper = self._hyper(optimizer, penalty)
        state.save(self._before)
        control.fill(0)
        arrays = (self._parameters, self._slots, self._X, self._y, order, hyper, self._losses)

        def work() -> None:
            program.epoch(*arrays, control, factors, self._squares)

        started = time.perf_counter()
        try:
            run_interruptibly(work, control, self.plan.seconds, waiting)
        finally:
            # Also after an interrupt: the state is then that of the last finished batch.
            program.to_host(self._parameters, state.parameters)
            program.to_host(self._slots, state.slots)
            state.steps += applied_batches(control)
        seconds = time.perf_counter() - started
        penalties = penalty if self._squares is None else 0.5 * penalty * self._squares
        finite = all_finite(state.parameters) and all_finite(state.slots)
        losses = self._losses.astype(np.float64)
        return Epoch(losses, penalties, weights, seconds, int(control[STATUS]), finite)

    def undo(self) -> None:
        """Go back to the parameters and the state from before the last epoch."""
        self.state.restore(self._before)
        self.upload()
