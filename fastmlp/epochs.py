"""One epoch after another on one set of data: what every fit repeats, and no policy."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmlp.arrays import Data
from fastmlp.batches import batch_rows
from fastmlp.errors import DeviceLostError
from fastmlp.interrupts import run_interruptibly
from fastmlp.optimizers import Optimizer
from fastmlp.parameters import TrainingState
from fastmlp.planning import ANYWHERE, Programs, Where
from fastmlp.residency import guarded, home_of
from fastmlp.steps import applied_batches
from fastmlp.weighting import Weights, row_factors
from fastmlp_kernels.problem import BATCHES, CONTROL_WORDS, STATUS, STOP, Program

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
    lazy : bool
        Whether a GPU's parameters and state may be ahead of the host's after `run`; whoever reads
        those calls `fetch` before.
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
        lazy: bool = False,
    ) -> None:
        self.state, self.data, self.weights, self.l2 = state, data, weights, l2
        self.plan, self.program = programs.get(
            len(data.X), batch_size, where, labels=data.labels, rule=rule
        )
        problem = self.plan.problem
        self._programs, self._where, self._lazy = programs, where, lazy
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
        with guarded(self.plan.kernel.device, "fit"):
            self._home = home_of(self.state, self.program)
            self._rows = self._stream()
            flags = self.weights is not None, self._squares is not None
            for program, X, y in self._places():
                program.prepare(self._home.parameters, self._home.slots, X, y, *flags)

    def _places(self) -> list[tuple[Program, Any, Any]]:
        """Bring the rows to the device; return each program that an epoch runs, and its rows."""
        X, y = self.data.X, self.data.y
        if self._rows is None:
            to_device = self.program.to_device
            self._X, self._y = to_device(X), to_device(y)
            return [(self.program, self._X, self._y)]
        full, (first, second) = self._rows.rows, self._rows.buffers
        sizes = {min(full, len(X)), len(X) % full} - {0}
        self._by_rows = {rows: self._program_of(rows) for rows in sizes}
        return [(self._by_rows[rows], first[:rows], second[:rows]) for rows in sizes]

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Raise a device's errors in plain words; go back to the host's values if it is lost."""
        try:
            with guarded(self.plan.kernel.device, "fit"):
                yield
        except DeviceLostError:
            self._home.lose()
            raise

    def _stream(self) -> Any:
        """Return the rows as chunks where they do not fit in the device's memory, or None."""
        memory, X, y = self.program.memory, self.data.X, self.data.y
        # Rows that are there already have their place.
        if memory is None or type(X) is not np.ndarray or type(y) is not np.ndarray:
            return None
        if X.nbytes + y.nbytes <= memory.available():
            return None
        from fastmlp_kernels.cuda.streaming import StreamedRows

        return StreamedRows(memory, X, y, self.plan.problem.batch_size)

    def _program_of(self, rows: int) -> Program:
        """Return the program for a chunk of so many rows: the same kernel, the same batches."""
        where = self._where._replace(kernel=self.plan.kernel.name)
        batch_size = min(rows, self.plan.problem.batch_size)
        _, program = self._programs.get(
            rows, batch_size, where, labels=self.data.labels, rule=self._rule, purpose="chunk"
        )
        return program

    def upload(self) -> None:
        """Bring the parameters and the state to the device: the host has changed them."""
        with self._guarded():
            self._home.upload()

    def fetch(self) -> None:
        """Bring the parameters and the state to the host: somebody reads them."""
        home = self._home
        if self.program.memory is not None and not home.lost:
            with self._guarded():
                home.fetch()

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
        program, control = self.program, self._control
        factors, of_batch, weights = self._factors(order)
        penalty = self.l2 * of_batch
        hyper = self._hyper(optimizer, penalty)
        control.fill(0)
        arrays = (order, hyper, self._losses, control, factors, self._squares)
        run = self._run_here if program.memory is None else self._run_there
        seconds, finite = run(arrays, waiting)
        penalties = penalty if self._squares is None else 0.5 * penalty * self._squares
        losses = self._losses.astype(np.float64)
        return Epoch(losses, penalties, weights, seconds, int(control[STATUS]), finite)

    def _run_here(self, arrays: Any, waiting: Callable[[int], None]) -> tuple[float, bool]:
        """Run an epoch on the host; return its seconds, and whether all is finite after it."""
        home, control, program = self._home, self._control, self.program
        held = (home.parameters, home.slots, self._X, self._y)

        def work() -> None:
            program.epoch(*held, *arrays)

        home.keep()
        started = time.perf_counter()
        try:
            run_interruptibly(work, control, self.plan.seconds, waiting)
        finally:
            # Also after an interrupt: the state is then that of the last finished batch.
            self.state.steps += applied_batches(control)
        return time.perf_counter() - started, home.is_finite()

    def _run_there(self, arrays: Any, waiting: Callable[[int], None]) -> tuple[float, bool]:
        """Run an epoch on a device; the host's arrays follow when they are needed, or at once."""
        home, control = self._home, self._control

        def work() -> None:
            self._epoch_there(*arrays)

        with self._guarded():
            home.keep()
            started = time.perf_counter()
            try:
                run_interruptibly(work, control, self.plan.seconds, waiting)
            finally:
                self.state.steps += applied_batches(control)
                home.trained()
                if not self._lazy:
                    home.fetch()
            return time.perf_counter() - started, home.is_finite()

    def _epoch_there(
        self,
        order: NDArray[np.int64],
        hyper: Array,
        losses: Array,
        control: NDArray[np.int64],
        factors: Array | None,
        squares: NDArray[np.float64] | None,
    ) -> None:
        """Run an epoch on a device, chunk by chunk where its rows do not fit there."""
        program, held = self.program, (self._home.parameters, self._home.slots)
        assert program.memory is not None
        with program.memory.here():
            if self._rows is None:
                arrays: Any = (order, hyper, losses, control, factors, squares)
                program.epoch(*held, self._X, self._y, *arrays)
                return
            with contextlib.closing(self._rows.chunks(order)) as chunks:
                for chunk in chunks:
                    count, first = len(chunk.order), chunk.batch
                    rows = slice(chunk.start, chunk.start + count)
                    steps = slice(first, first - (-count // self.plan.problem.batch_size))
                    control[BATCHES] = 0
                    self._by_rows[count].epoch(
                        *held,
                        chunk.X,
                        chunk.y,
                        chunk.order,
                        hyper[steps],
                        losses[steps],
                        control,
                        None if factors is None else factors[rows],
                        None if squares is None else squares[steps],
                    )
                    control[BATCHES] += first
                    if control[STATUS]:
                        control[STATUS] += first
                    if control[STATUS] or control[STOP]:
                        return

    def undo(self) -> None:
        """Go back to the parameters and the state from before the last epoch."""
        with self._guarded():
            self._home.undo()
            if not self._lazy:
                self._home.fetch()
