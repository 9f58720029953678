"""One epoch after another on one set of data: what every fit repeats, and no policy.

One network is trained as several are. The first axis of arrays is that of networks, except where a
program that trains a single network is given them. An epoch does nothing network by network: orders
and hyper-parameters are made ahead, and all else is one operation on the arrays of all networks.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.data.admission import Data
from fastmlp.data.batches import batch_rows
from fastmlp.data.weighting import Weights, row_factors
from fastmlp.device.mirrors import guarded, home_of
from fastmlp.dispatch.planning import ANYWHERE, Plan, Programs, Shelf, Where
from fastmlp.errors import DeviceLostError
from fastmlp.optimizer_base import Optimizer, Update
from fastmlp.state.training_state import TrainingState, applied_batches
from fastmlp.training.epochs import Epoch, Numbers
from fastmlp.training.hyper_parameters import HyperParameters
from fastmlp.training.interrupts import run_interruptibly
from fastmlp_kernels.device_memory import DeviceMemory
from fastmlp_kernels.problem import BATCHES, CONTROL_WORDS, STATUS, STOP, Program

Array = NDArray[Any]


class Trainer:
    """Trains a state on a set of data, epoch by epoch. Building it plans and allocates.

    Parameters
    ----------
    state : TrainingState
    programs : Programs
        Of the problem with all its networks.
    data : Data
    batch_size : int
    update : Update
        Of the optimizers that `run` will be given.
    where : Where
    weights : ndarray, optional
        float64[rows] or float64[members, rows], of the rows of the data.
    l2 : float or sequence of float
        ``l2 / 2`` times the sum of the squares of all weights, no biases, is added to the sum of a
        mini-batch's losses, before a mean divides it by the rows' weights; also one a network.
    lazy : bool
        Whether a GPU's parameters and state may be ahead of the host's after `run`; whoever reads
        those calls `fetch` before.
    epochs : int, optional
        How often `run` will be called, at most, if that is known; then with the same optimizers.
    whole : bool
        Whether the state counts an epoch for each call of `run`.
    """

    # What `run` goes through, and in how many parts.
    unit, chunks = "epoch", 1

    def __init__(
        self,
        state: TrainingState,
        programs: Programs,
        data: Data,
        batch_size: int,
        update: Update,
        where: Where = ANYWHERE,
        *,
        weights: Weights | None = None,
        l2: float | Sequence[float] = 0.0,
        lazy: bool = False,
        epochs: int | None = None,
        whole: bool = True,
    ) -> None:
        self.state, self.data, self.weights = state, data, weights
        self.l2 = np.reshape(l2, (-1, 1))
        # Of this fit alone, until `close` lets others have them.
        self._taken: list[tuple[Shelf, tuple[Plan, Program]]] = []
        self.plan, self.program = self._begin(programs, data, batch_size, where, update)
        problem = self.plan.problem
        self._counted = problem.batches if whole else 0
        self._programs, self._where, self._lazy = programs, where, lazy
        self._update = update
        penalized = bool(self.l2.any())
        self._hyper = HyperParameters(problem, epochs, penalized, weights is not None)
        sizes = batch_rows(problem.rows, batch_size).astype(np.float64)[None]
        even = np.ones_like(sizes) if problem.reduction == "sum" else 1.0 / sizes
        # Of rows without weights, the same for all networks.
        self._even: tuple[Numbers, Numbers] = even, sizes
        members, shape = problem.members, (problem.members, sizes.shape[1])
        if weights is not None:
            firsts = batch_size * np.arange(shape[1])
            # Where each mini-batch of each network begins, in the rows of all networks.
            self._starts = (problem.rows * np.arange(members)[:, None] + firsts).ravel()
        # The same arrays in every epoch: a program need not look again where they lie.
        self._losses = np.zeros(shape, dtype=problem.dtype)
        self._squares = np.zeros(shape) if penalized else None
        self._control = np.zeros((members, CONTROL_WORDS), dtype=np.int64)
        held = self._losses, self._control, self._squares
        self._losses_of, self._words, self._squares_of = map(self._of, held)
        self._well = np.ones(members, dtype=np.bool_)
        # Networks that are trained no more, or None; and how many are.
        self._left_out: NDArray[np.bool_] | None = None
        self._trained = members
        # A fit that fails before its first step goes back to this.
        self._at_first: Any = None

    def _begin(
        self, programs: Programs, data: Any, batch_size: int, where: Where, update: Update
    ) -> tuple[Plan, Any]:
        kind: dict[str, Any] = {"labels": data.labels, "update": update}
        return self._take(programs.shelf(len(data.X), batch_size, where, **kind))

    def _of(self, array: Any) -> Any:
        """Return an array as the program takes it: that of one network has no axis of networks."""
        return array[0] if array is not None and self.plan.problem.members == 1 else array

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
        self.state.prepare(self._update.rule, self.plan.problem.slots)
        try:
            self._prepare()
        except BaseException:
            self.state.now = self._at_first
            raise
        if self.state.slots is self._at_first[3]:
            # The optimizer's state stays.
            self._at_first = None

    def _prepare(self) -> None:
        flags = self.weights is not None, self._squares is not None
        with guarded(self.plan.kernel.device, "fit"):
            self._home = home_of(self.state, self.program)
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
        members = self.plan.problem.members
        together = [(rows, rows * members) for rows in sizes]
        return [(self._by_rows[rows], first[:all], second[:all]) for rows, all in together]

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

        problem = self.plan.problem
        return StreamedRows(memory, X, y, problem.batch_size, members=problem.members)

    def _program_of(self, rows: int) -> Program:
        """Return the program for a chunk of so many rows: the same kernel, the same batches."""
        where = self._where._replace(kernel=self.plan.kernel.name)
        batch_size = min(rows, self.plan.problem.batch_size)
        labels = self.data.labels
        shelf = self._programs.shelf(rows, batch_size, where, labels=labels, update=self._update)
        return self._take(shelf)[1]

    def upload(self) -> None:
        """Bring the parameters and the state to the device: the host has changed them."""
        # It may have changed the number of steps too.
        self._hyper.forget()
        with self._guarded():
            self._home.upload()

    def fetch(self) -> None:
        """Bring the parameters and the state to the host: somebody reads them."""
        home = self._home
        if self.program.memory is not None and not home.lost:
            with self._guarded():
                home.fetch()

    def leave_out(self, members: Sequence[int]) -> None:
        """Train these networks no more."""
        left_out = ~self._well if self._left_out is None else self._left_out.copy()
        left_out[list(members)] = True
        self._left_out, self._trained = left_out, int((~left_out).sum())

    def _factors(self, order: NDArray[np.int64]) -> tuple[Array | None, Numbers, Numbers]:
        """Return the rows' factors, each batch's own, and what the batches weigh."""
        given = self.weights
        if given is None:
            return None, *self._even
        weights = given[order] if given.ndim == 1 else np.take_along_axis(given, order, axis=1)
        # As if all networks' rows were those of one epoch.
        flat, shape = weights.ravel(), self._losses.shape
        factors, of_batch = row_factors(self.plan.problem, flat, self._starts)
        totals = np.add.reduceat(flat, self._starts)
        return factors.reshape(weights.shape), of_batch.reshape(shape), totals.reshape(shape)

    def run(
        self,
        order: NDArray[np.int64],
        optimizers: Sequence[Optimizer],
        waiting: Callable[[int], None] = lambda done: None,
    ) -> Epoch:
        """Train for an epoch; a network that is not finite after it is where it was before.

        Every network that does all of its batches has finished the epoch, whatever the others do.

        Parameters
        ----------
        order : ndarray
            int64[members, rows]
        optimizers : sequence of Optimizer
            One a network. The numbers of the same object are computed ahead.
        waiting : callable
            Told how many batches of each network are done, if that takes long.
        """
        state, control = self.state, self._control
        try:
            factors, of_batch, weights = self._factors(order)
            penalty = self.l2 * of_batch
            hyper = self._hyper.next(optimizers, state, penalty)
            state.settle()
            control.fill(0)
            if self._left_out is not None:
                control[self._left_out, STOP] = 1
            arrays: Any = (
                *(self._of(order), hyper, self._losses_of, self._words),
                *(self._of(factors), self._squares_of),
            )
            # Whoever computes takes the lock: for a long epoch that is another thread.
            seconds, finite = run_interruptibly(
                lambda: state.lock.epoch(self._epoch, arrays),
                control,
                self.plan.seconds,
                lambda done: waiting(done // self._trained),
            )
        except BaseException:
            self._keep_the_other_optimizer()
            raise
        self._keep_the_other_optimizer()
        self._at_first = None
        penalties = penalty if self._squares is None else 0.5 * penalty * self._squares
        losses, bad_batches = self._losses.astype(np.float64), control[:, STATUS].copy()
        failed = finite is not self._well or bool(bad_batches.any())
        rest = finite, failed, self.program.straight
        return Epoch(losses, penalties, weights, seconds, bad_batches, *rest)

    def _keep_the_other_optimizer(self) -> None:
        """Go back to the former optimizer's state, unless this one has taken a step."""
        if self._at_first is not None and not np.any(applied_batches(self._words)):
            self.state.now = self._at_first

    def _epoch(self, arrays: Any) -> tuple[float, NDArray[np.bool_]]:
        """Compute an epoch; return how long it took, and which networks it left finite."""
        state, home, memory = self.state, self._home, self.program.memory
        with contextlib.nullcontext() if memory is None else self._on_device(memory):
            home.keep()
            state.backup = home.backup
            state.watch(self._words, self._counted)
            started = time.perf_counter()
            try:
                if memory is None:
                    held = (home.parameters, home.slots, self._X, self._y)
                    self.program.epoch(*held, *arrays)
                else:
                    self._epoch_there(*arrays)
            finally:
                # Also after an error: the state is then that of the last finished batches.
                state.settle()
                state.backup = None
                home.trained()
                if not self._lazy:
                    home.fetch()
            seconds = time.perf_counter() - started
            finite = self._well if home.is_finite() else self._finite()
            if finite is not self._well:
                home.undo(~finite if finite.any() else None)
                if not self._lazy:
                    home.fetch()
        return seconds, finite

    def _finite(self) -> NDArray[np.bool_]:
        """Return which networks' parameters and state are finite."""
        members = len(self._well)
        if members == 1:
            return ~self._well
        self._home.fetch()
        held = self.state.parameters, self.state.slots
        good = [np.isfinite(each.reshape(members, -1)).all(axis=1) for each in held]
        return np.asarray(good[0] & good[1], dtype=np.bool_)

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
        squares: Numbers | None,
    ) -> None:
        """Run an epoch on a device, chunk by chunk where its rows do not fit there."""
        program, held = self.program, (self._home.parameters, self._home.slots)
        if self._rows is None:
            arrays: Any = (order, hyper, losses, control, factors, squares)
            program.epoch(*held, self._X, self._y, *arrays)
            return
        # A chunk's own words: it is short, so a stop is heard soon enough between two of them.
        own, words = np.zeros_like(self._control), self._control
        with contextlib.closing(self._rows.chunks(order)) as chunks:
            for chunk in chunks:
                goes_on = (words[:, STOP] == 0) & (words[:, STATUS] == 0)
                if not goes_on.any():
                    return
                count, first = chunk.order.shape[-1], chunk.batch
                rows = slice(chunk.start, chunk.start + count)
                steps = slice(first, first - (-count // self.plan.problem.batch_size))
                own.fill(0)
                own[~goes_on, STOP] = 1
                self._by_rows[count].epoch(
                    *held,
                    chunk.X,
                    chunk.y,
                    chunk.order,
                    hyper[..., steps, :],
                    losses[..., steps],
                    self._of(own),
                    None if factors is None else factors[..., rows],
                    None if squares is None else squares[..., steps],
                )
                words[goes_on, BATCHES] = first + own[goes_on, BATCHES]
                failed = own[:, STATUS] > 0
                words[failed, STATUS] = first + own[failed, STATUS]

    def undo(self, networks: NDArray[np.bool_] | None = None) -> None:
        """Go back to what was before the last epoch; with `networks`, only those of several."""
        self._hyper.forget()
        with self._guarded():
            self._home.undo(networks)
            if not self._lazy:
                self._home.fetch()
