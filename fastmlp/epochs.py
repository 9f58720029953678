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
from fastmlp.planning import ANYWHERE, Plan, Programs, Shelf, Where
from fastmlp.residency import OnDevice, OnHost, guarded
from fastmlp.training_state import TrainingState, applied_batches
from fastmlp.weighting import Weights, row_factors
from fastmlp_kernels.problem import BATCHES, CONTROL_WORDS, STATUS, STOP, DeviceMemory, Program

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
        Whether the parameters and the optimizer's state were; if not, they are those from before.
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
        # Of this fit alone, until `close` lets others have them.
        self._taken: list[tuple[Shelf, tuple[Plan, Program]]] = []
        shelf = programs.shelf(len(data.X), batch_size, where, labels=data.labels, rule=rule)
        self.plan, self.program = self._take(shelf)
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
        # What a fit goes back to that fails before its first step.
        self._at_first: Any = None

    def _take(self, shelf: Shelf) -> tuple[Plan, Program]:
        pair = shelf.take()
        self._taken.append((shelf, pair))
        return pair

    def close(self) -> None:
        """Let others have the programs, after a fit that has ended well."""
        while self._taken:
            shelf, pair = self._taken.pop()
            shelf.put_back(pair)

    def prepare(self) -> None:
        """Bring everything to the device, and compile or load what an epoch runs."""
        self._at_first = self.state.settled()
        self.state.prepare(self._rule, self.plan.problem.slots)
        try:
            self._prepare()
        except BaseException:
            self.state.now = self._at_first
            raise

    def _prepare(self) -> None:
        flags = self.weights is not None, self._squares is not None
        if self.program.memory is None:
            self._home: OnHost | OnDevice = OnHost(self.state)
            home, self._X, self._y = self._home, self.data.X, self.data.y
            self.program.prepare(home.parameters, home.slots, self._X, self._y, *flags)
            return
        with guarded(self.plan.kernel.device, "fit"):
            self._home = OnDevice(self.state, self.program.memory)
            self._rows = self._stream()
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
        from fastmlp_kernels.cuda.device.streaming import StreamedRows

        return StreamedRows(memory, X, y, self.plan.problem.batch_size)

    def _program_of(self, rows: int) -> Program:
        """Return the program for a chunk of so many rows: the same kernel, the same batches."""
        where = self._where._replace(kernel=self.plan.kernel.name)
        batch_size = min(rows, self.plan.problem.batch_size)
        labels = self.data.labels
        shelf = self._programs.shelf(rows, batch_size, where, labels=labels, rule=self._rule)
        return self._take(shelf)[1]

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
        """Train on the rows in an order; `waiting` is told how many batches are done, if long.

        An epoch after which the parameters or the state are not finite is undone.
        """
        state, control = self.state, self._control
        factors, of_batch, weights = self._factors(order)
        penalty = self.l2 * of_batch
        try:
            hyper = self._hyper(optimizer, penalty)
            state.settle()
            control.fill(0)
            arrays: Any = (order, hyper, self._losses, control, factors, self._squares)
            # Whoever computes takes the lock: for a long epoch that is another thread.
            seconds, finite = run_interruptibly(
                lambda: state.lock.epoch(self._epoch, arrays), control, self.plan.seconds, waiting
            )
        except BaseException:
            if self._at_first is not None and not applied_batches(control):
                # Another optimizer's state is given up only for a step of this one.
                state.now = self._at_first
            raise
        if applied_batches(control):
            self._at_first = None
        elif self._at_first is not None and control[STATUS]:
            state.now = self._at_first
        penalties = penalty if self._squares is None else 0.5 * penalty * self._squares
        losses = self._losses.astype(np.float64)
        return Epoch(losses, penalties, weights, seconds, int(control[STATUS]), finite)

    def _epoch(self, arrays: Any) -> tuple[float, bool]:
        """Compute an epoch; return how long it took, and whether what it left is finite."""
        state, home, memory = self.state, self._home, self.program.memory
        with contextlib.nullcontext() if memory is None else self._on_device(memory):
            home.keep()
            state.backup = home.backup
            state.watch(arrays[3], self.plan.problem.batches)
            started = time.perf_counter()
            try:
                if memory is None:
                    held = (home.parameters, home.slots, self._X, self._y)
                    self.program.epoch(*held, *arrays)
                else:
                    self._epoch_there(*arrays)
            finally:
                # Also after an error: the state is then that of the last finished batch.
                state.settle()
                state.backup = None
                home.trained()
                if not self._lazy:
                    home.fetch()
            seconds, finite = time.perf_counter() - started, home.is_finite()
            if not finite:
                home.undo()
                if not self._lazy:
                    home.fetch()
        return seconds, finite

    @contextlib.contextmanager
    def _on_device(self, memory: DeviceMemory) -> Iterator[None]:
        with self._guarded(), memory.here():
            yield

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
        if self._rows is None:
            arrays: Any = (order, hyper, losses, control, factors, squares)
            program.epoch(*held, self._X, self._y, *arrays)
            return
        # A chunk's own words: it is short, so a stop is heard soon enough between two of them.
        own = np.zeros_like(control)
        with contextlib.closing(self._rows.chunks(order)) as chunks:
            for chunk in chunks:
                if control[STOP]:
                    return
                count, first = len(chunk.order), chunk.batch
                rows = slice(chunk.start, chunk.start + count)
                steps = slice(first, first - (-count // self.plan.problem.batch_size))
                own.fill(0)
                self._by_rows[count].epoch(
                    *held,
                    chunk.X,
                    chunk.y,
                    chunk.order,
                    hyper[steps],
                    losses[steps],
                    own,
                    None if factors is None else factors[rows],
                    None if squares is None else squares[steps],
                )
                control[BATCHES] = first + own[BATCHES]
                if own[STATUS]:
                    control[STATUS] = first + own[STATUS]
                    return

    def undo(self) -> None:
        """Go back to the parameters and the state from before the last epoch."""
        with self._guarded():
            self._home.undo()
            if not self._lazy:
                self._home.fetch()
