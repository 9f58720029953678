"""Networks of one shape on one set of data, one epoch after another: what all of them repeat.

`epochs` is the same for one network. Here nothing is done once a network and epoch: orders and
hyper-parameters are made ahead, and all else is one operation on the arrays of all networks.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmlp.arrays import Data
from fastmlp.batches import batch_rows
from fastmlp.errors import DeviceLostError, DomainError, ShapeError
from fastmlp.interrupts import run_interruptibly
from fastmlp.optimizers import Optimizer, check_optimizer
from fastmlp.orders import Orders
from fastmlp.parameters import aligned, aligned_zeros
from fastmlp.planning import Programs, Where, machine_with
from fastmlp.residency import OnDevice, OnHost, guarded, home_of
from fastmlp.training_state import TrainingState
from fastmlp.weighting import Weights, row_factors
from fastmlp_kernels.algebra import HYPER_WIDTH
from fastmlp_kernels.algebra.optimizers import WEIGHT_DECAY
from fastmlp_kernels.problem import BATCHES, CONTROL_WORDS, STATUS

Array = NDArray[Any]
Count = NDArray[np.int64]

# Steps of all networks whose hyper-parameters are computed together, at most: a few megabytes, and
# many epochs where an epoch is short.
STEPS_AHEAD = 2**17


class MembersState(TrainingState):
    """Everything that training changes, with one more axis, the first.

    Parameters
    ----------
    parameters : ndarray
        dtype[members, P]
    seeds : tuple of int

    Attributes
    ----------
    epochs, steps : ndarray
        int64[members], not to be written to: a network that failed, or an interrupt, leaves them
        uneven.
    slots : ndarray
        dtype[members, slots, P]
    """

    def __init__(self, parameters: Array, seeds: tuple[int, ...]) -> None:
        members = len(seeds)
        epochs, steps = np.zeros((2, members), dtype=np.int64)
        slots = np.zeros((members, 0, 0), dtype=parameters.dtype)
        super().__init__(parameters, seeds[0], epochs, steps, None, slots)
        self.seeds = seeds

    def _applied(self, control: Any) -> Any:
        failed = control[:, STATUS]
        return np.where(failed > 0, failed - 1, control[:, BATCHES])

    def fresh_slots(self, count: int) -> Array:
        """Return the optimizer's state as it begins."""
        members, size = self.parameters.shape
        return aligned_zeros((members, count, size), self.parameters.dtype)

    def member(self, index: int) -> TrainingState:
        """Return a copy of the state of one network, made while nobody changes it."""
        return self.lock.copied("ensemble[k]", lambda: self._member(index))

    def _member(self, index: int) -> TrainingState:
        steps, epochs, rule, slots, _, _ = self.settled()
        return TrainingState(
            aligned(self.parameters[index]),
            self.seeds[index],
            epochs=int(epochs[index]),
            steps=int(steps[index]),
            rule=rule,
            slots=aligned(slots[index]),
        )


def check_optimizers(given: Any, members: int) -> tuple[Optimizer, ...]:
    """Return one optimizer a network, all of one rule; one may stand for all of them."""
    if not isinstance(given, list | tuple):
        return (check_optimizer(given),) * members
    if len(given) != members:
        raise ShapeError(
            f"optimizer: got {len(given)} of them, wanted one, or {members}, one for each network"
        )
    checked = tuple(check_optimizer(each) for each in given)
    rules = dict.fromkeys(each.rule for each in checked)
    if len(rules) > 1:
        raise DomainError(
            f"optimizer: got the rules {', '.join(rules)}, wanted one rule for all networks"
        )
    return checked


class MembersEpoch(NamedTuple):
    """What an epoch gave: see `epochs.Epoch`.

    Attributes
    ----------
    losses, penalties, weights : ndarray
        float64[members, batches]
    seconds : float
    bad_batches : ndarray
        int64[members]
    finite : ndarray
        bool[members]
    """

    losses: NDArray[np.float64]
    penalties: NDArray[np.float64]
    weights: NDArray[np.float64]
    seconds: float
    bad_batches: Count
    finite: NDArray[np.bool_]


class MembersTrainer:
    """Trains networks on a set of data, epoch by epoch. Building it plans and allocates.

    Parameters
    ----------
    state : MembersState
    programs : Programs
        Of the problem with all its members.
    data : Data
    batch_size : int
    optimizers : sequence of Optimizer
        One a network, of one rule.
    where : Where
    epochs : int
        How often `run` will be called, at most.
    shuffle : bool
    weights : ndarray, optional
        float64[rows], of the rows of the data.
    l2 : float
    """

    def __init__(
        self,
        state: MembersState,
        programs: Programs,
        data: Data,
        batch_size: int,
        optimizers: Sequence[Optimizer],
        where: Where,
        *,
        epochs: int,
        shuffle: bool,
        weights: Weights | None = None,
        l2: float = 0.0,
    ) -> None:
        self.state, self.data, self.weights, self.l2 = state, data, weights, l2
        self._optimizers, self._rule, self._left = optimizers, optimizers[0].rule, epochs
        self.where = where
        self._shelf = programs.shelf(
            len(data.X), batch_size, where, labels=data.labels, rule=self._rule
        )
        self.plan, self.program = self._pair = self._shelf.take()
        problem = self.plan.problem
        rows, shape = problem.rows, (problem.members, problem.batches)
        threads = machine_with(where.threads).cores
        self._orders = Orders(
            state.seeds, state.epochs, rows, epochs, shuffle=shuffle, threads=threads
        )
        sizes = batch_rows(rows, batch_size).astype(np.float64)
        firsts = batch_size * np.arange(problem.batches)
        # Where each mini-batch of each network begins, in the rows of all networks.
        self._starts = (rows * np.arange(problem.members)[:, None] + firsts).ravel()
        of_batch = np.ones(len(sizes)) if problem.reduction == "sum" else 1.0 / sizes
        self._even = np.tile(of_batch, (problem.members, 1)), np.tile(sizes, (problem.members, 1))
        self._losses = np.zeros(shape, dtype=problem.dtype)
        self._squares = np.zeros(shape) if l2 else None
        self._control = np.zeros((problem.members, CONTROL_WORDS), dtype=np.int64)
        self._ahead: Array = np.zeros((0, *shape, HYPER_WIDTH), dtype=problem.dtype)
        self._given = 0
        self._home: OnHost | OnDevice | None = None
        # Only a schedule has to be asked again.
        settings = [each.settings["learning_rate"] for each in optimizers]
        self._scheduled = [k for k, rate in enumerate(settings) if callable(rate)]
        self._rates = np.array([np.nan if callable(rate) else rate for rate in settings])

    def prepare(self) -> None:
        """Bring everything to the device, and compile or load what an epoch runs."""
        state = self.state
        # What a fit goes back to that fails before its first step.
        self._at_first: Any = state.settled()
        state.prepare(self._rule, self.plan.problem.slots)
        try:
            self._prepare()
        except BaseException:
            state.now = self._at_first
            raise

    def _prepare(self) -> None:
        state, to_device = self.state, self.program.to_device
        # Decays that belong to the gradient, and not to the rule: the penalty's is beside them.
        steps = state.steps.tolist() if self.l2 else []
        tables = [
            optimizer.hyper(step + 1, 1, np.float64)
            for optimizer, step in zip(self._optimizers, steps, strict=False)
        ]
        self._decays = np.array([table[0, WEIGHT_DECAY] for table in tables])[:, None]
        # What is held there has one more axis than a network's, or, of one network, is its own.
        held = TrainingState(
            self._of(state.parameters), state.seeds[0], rule=state.rule, slots=self._of(state.slots)
        )
        self._held: Any = held
        self._note()
        with guarded(self.plan.kernel.device, "fit"):
            self._home = home = home_of(held, self.program)
            self._X, self._y = to_device(self.data.X), to_device(self.data.y)
            arrays = (home.parameters, home.slots, self._X, self._y)
            self.program.prepare(*arrays, self.weights is not None, self._squares is not None)

    def _note(self) -> None:
        """Tell whoever holds parameters and state how many steps and epochs they are after."""
        self._held.steps, self._held.epochs = self.state.steps, self.state.epochs

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Raise a device's errors in plain words; go back to the host's values if it is lost."""
        try:
            with guarded(self.plan.kernel.device, "fit"):
                yield
        except DeviceLostError:
            assert self._home is not None
            self._home.lose()
            self.state.steps, self.state.epochs = self._held.steps, self._held.epochs
            raise

    def fetch(self) -> None:
        """Bring the parameters and the state to the host: somebody reads them."""
        if self._home is not None and not self._home.lost:
            with self._guarded():
                self._home.fetch()

    def close(self) -> None:
        """End what works beside the epochs."""
        self._orders.close()

    def put_back(self) -> None:
        """Let others have the program, after a fit that has ended well."""
        self._shelf.put_back(self._pair)

    def _of(self, array: Any) -> Any:
        """Return the array as programs take it: that of one network has no axis of networks."""
        return array[0] if array is not None and self.plan.problem.members == 1 else array

    def _factors(self, order: Array) -> tuple[Array | None, Any, Any]:
        """Return the rows' factors, each batch's own, and what the batches weigh."""
        if self.weights is None:
            return None, *self._even
        weights = self.weights[order]
        # As if all networks' rows were those of one epoch.
        factors, of_batch = row_factors(self.plan.problem, weights.ravel(), self._starts)
        totals = np.add.reduceat(weights.ravel(), self._starts)
        shape = self._losses.shape
        return factors.reshape(weights.shape), of_batch.reshape(shape), totals.reshape(shape)

    def _hyper(self, penalty: Array) -> Array:
        """Return the hyper-parameters of the next epoch."""
        if self._given == len(self._ahead):
            self._ahead, self._given = self._look_ahead(), 0
        hyper = self._ahead[self._given]
        self._given += 1
        if self.l2:
            hyper[..., WEIGHT_DECAY] = self._decays + penalty
        return hyper

    def _look_ahead(self) -> Array:
        members, batches = self._losses.shape
        epochs = max(1, min(self._left, STEPS_AHEAD // (members * batches)))
        self._left -= epochs
        dtype = self.plan.problem.dtype
        table = np.empty((epochs, members, batches, HYPER_WIDTH), dtype=dtype)
        made: dict[tuple[int, int], Array] = {}
        steps = self.state.steps.tolist()
        for member, (optimizer, step) in enumerate(zip(self._optimizers, steps, strict=True)):
            key = id(optimizer), step
            if key not in made:
                numbers = optimizer.hyper(step + 1, epochs * batches, dtype)
                made[key] = numbers.reshape(epochs, batches, HYPER_WIDTH)
            table[:, member] = made[key]
        return table

    def run(self, waiting: Callable[[int], None] = lambda done: None) -> MembersEpoch:
        """Train for an epoch; `waiting` is told how many batches are done, if it is long.

        Every network that does all of its batches has finished the epoch, whatever the others do.
        """
        state, control = self.state, self._control
        try:
            order = self._orders.next()
            factors, of_batch, weights = self._factors(order)
            penalty = self.l2 * of_batch
            hyper = self._hyper(penalty)
            state.settle()
            control.fill(0)
            own = (order, hyper, self._losses, control, factors, self._squares)
            # Whoever computes takes the lock: for a long epoch that is another thread.
            seconds, finite = run_interruptibly(
                lambda: state.lock.epoch(self._epoch, own),
                control,
                self.plan.seconds,
                lambda done: waiting(done // len(control)),
            )
        except BaseException:
            if self._at_first is not None and not state._applied(control).any():
                # Another optimizer's state is given up only for a step of this one.
                state.now = self._at_first
            raise
        if self._at_first is not None and not state._applied(control).any():
            state.now = self._at_first
        self._at_first = None
        penalties = penalty if self._squares is None else 0.5 * penalty * self._squares
        losses = self._losses.astype(np.float64)
        failed = control[:, STATUS].copy()
        return MembersEpoch(losses, penalties, weights, seconds, failed, finite)

    def _epoch(self, own: Any) -> tuple[float, NDArray[np.bool_]]:
        """Compute an epoch; return how long it took, and which networks it left finite.

        Networks that are not are brought back to where they were before it.
        """
        state, home, memory = self.state, self._home, self.program.memory
        assert home is not None
        with self._guarded(), contextlib.nullcontext() if memory is None else memory.here():
            home.keep()
            state.backup = home.backup
            before = state.steps, state.epochs
            state.watch(own[3], self.plan.problem.batches)
            started = time.perf_counter()
            try:
                held = (home.parameters, home.slots, self._X, self._y)
                self.program.epoch(*held, *map(self._of, own))
            finally:
                # Also after an error: the state is then that of the last finished batches.
                state.settle()
                state.backup = None
                self._note()
                home.trained()
            seconds = time.perf_counter() - started
            finite = self._finite(home)
            if not finite.all():
                self._undo(~finite, before)
        return seconds, finite

    def _finite(self, home: OnHost | OnDevice) -> NDArray[np.bool_]:
        parameters, slots = self.state.parameters, self.state.slots
        if home.is_finite():
            return np.ones(len(parameters), dtype=np.bool_)
        home.fetch()
        good = np.isfinite(parameters).all(axis=1) & np.isfinite(slots).all(axis=(1, 2))
        return np.asarray(good, dtype=np.bool_)

    def combine(self, values: NDArray[np.float64], weights: NDArray[np.float64]) -> Any:
        """Return float64[members]: `batches.combine_losses` of each network."""
        if self.plan.problem.reduction == "sum":
            return values.sum(axis=1)
        return (values * weights).sum(axis=1) / weights.sum(axis=1)

    def rate(self, member: int, steps: int = 0) -> float:
        """Return the learning rate of a network's next step, or of one so many steps from it."""
        first = int(self.state.steps[member]) + steps
        return float(np.max(self._optimizers[member].rates(first, 1)))

    def last_rates(self) -> NDArray[np.float64]:
        """Return float64[members]: the learning rate of each network's last step."""
        for member in self._scheduled:
            self._rates[member] = self.rate(member, -1)
        return self._rates.copy()

    def _undo(self, members: NDArray[np.bool_], counts: tuple[Count, Count]) -> None:
        """Bring some networks back to where they were before the epoch; no epoch follows."""
        home, state = self._home, self.state
        assert home is not None
        home.fetch()
        now = state.parameters.copy(), state.slots.copy()
        home.undo()
        home.fetch()
        for array, later in zip((state.parameters, state.slots), now, strict=True):
            array[~members] = later[~members]
        steps, epochs = (
            np.where(members, before, after)
            for before, after in zip(counts, (state.steps, state.epochs), strict=True)
        )
        state.now = (steps, epochs, state.rule, state.slots, None, 0)
