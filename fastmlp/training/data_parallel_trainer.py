"""One epoch after another on rows that ranks share, to the same bits for any number of ranks."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.data.admission import OwnRows
from fastmlp.data.batches import batch_rows
from fastmlp.data.weighting import Weights, row_factors
from fastmlp.dispatch.planning import Plan, Programs, Where
from fastmlp.errors import RankFailedError
from fastmlp.optimizer_base import Update
from fastmlp.state.finite import all_finite
from fastmlp.state.parameters import aligned_zeros
from fastmlp.training.agreement import BAD, GATHERING, LOSS, MESSAGE_WORDS, STOPPED, SUM, Agreement
from fastmlp.training.epochs import Numbers
from fastmlp.training.sharding import Part, Sharding
from fastmlp.training.trainer import Trainer
from fastmlp_kernels.problem import BATCHES, STATUS, STOP, Problem, Program, parameter_layout

Array = NDArray[Any]


class ShardOrders:
    """What `Orders` is, for rows that ranks share: the order of this rank's rows."""

    def __init__(self, state: Any, part: Part, shuffle: bool) -> None:
        self._state, self._part, self._shuffle = state, part, shuffle

    def next(self) -> NDArray[np.int64]:
        """Return int64[1, own rows]."""
        return self._part.order(self._state.seed, int(self._state.epochs), self._shuffle)

    def close(self) -> None:
        """Do nothing: nobody draws ahead."""


class DataParallelTrainer(Trainer):
    """What `Trainer` is, on the rows of all ranks, of which each has its own.

    Parameters
    ----------
    agreement : Agreement
    state, programs, data, batch_size, update, where
        As of `Trainer`. The rows of `data` are this rank's, and `batch_size` is of all ranks.
    weights : ndarray, optional
        float64[rows], of the rows of all ranks.
    options : dict
        The others of `Trainer`.
    """

    def __init__(
        self,
        agreement: Agreement,
        state: Any,
        programs: Programs,
        data: OwnRows,
        batch_size: int,
        update: Update,
        where: Where,
        *,
        weights: Weights | None,
        shuffle: bool,
        **options: Any,
    ) -> None:
        self.agreement, self._shuffle = agreement, shuffle
        self.sharding = Sharding(data.rows, batch_size, agreement.shards)
        self.part = self.sharding.part(agreement.own)
        given: Any = data
        super().__init__(
            state, programs, given, batch_size, update, where, weights=weights, **options
        )
        # Each row has the factor of its whole batch, so that the parts of a sum are only added.
        rows = batch_rows(data.rows, batch_size)
        scales = np.array([self.plan.problem.scale(count) for count in rows.tolist()])
        own = (self.part.ends - self.part.begins).sum(axis=1)
        self._own_factors = np.repeat(scales, own).astype(self.plan.problem.dtype)[None]
        if weights is not None:
            self._all = self.sharding.part(slice(None))
            first, last = self.part.numbers[0], self.part.numbers[-1]
            mine = (self._all.shard_of >= first) & (self._all.shard_of <= last)
            self._mine = np.flatnonzero(mine)

    def _begin(
        self, programs: Programs, data: Any, batch_size: int, where: Where, update: Update
    ) -> tuple[Plan, Any]:
        kind: dict[str, Any] = {"labels": data.labels, "update": update}
        plan = programs.shelf(data.rows, batch_size, where, **kind).plan
        where = where._replace(kernel=plan.kernel.name)
        most = self.sharding.most
        own = self._take(programs.shelf(most, most, where, **kind))[1]
        program = ShardedProgram(plan.problem, own, self.agreement, self.part)
        # However short an epoch is: the thread that signals interrupt takes part in no sum.
        return replace(plan, seconds=math.inf), program

    def _factors(self, order: NDArray[np.int64]) -> tuple[Array | None, Numbers, Numbers]:
        given = self.weights
        if given is None:
            return self._own_factors, *self._even
        state = self.state
        whole = self._all.order(state.seed, int(state.epochs), self._shuffle)[0]
        weights = given[whole]
        factors, of_batch = row_factors(self.plan.problem, weights, self._starts)
        totals = np.add.reduceat(weights, self._starts)
        return factors[self._mine][None], of_batch[None], totals[None]


class ShardedProgram:
    """A `Program` of epochs alone, whose gradients are sums over the shards of all ranks.

    Parameters
    ----------
    problem : Problem
        With the rows of all ranks.
    program : Program
        Of the most rows that a shard has in a batch.
    agreement : Agreement
    part : Part
        This rank's shards.

    Attributes
    ----------
    bad : bool
        Whether a batch was refused for numbers of this rank.
    """

    memory, straight = None, False

    def __init__(
        self, problem: Problem, program: Program, agreement: Agreement, part: Part
    ) -> None:
        self.problem, self._program, self._agreement = problem, program, agreement
        self._part, self.bad, self._unchanged = part, False, False
        length = problem.parameter_count + MESSAGE_WORDS
        # Sums that wait for their neighbours: one for each level of the tree over own shards.
        levels = len(part.numbers).bit_length()
        self._sums = [aligned_zeros((length,), problem.dtype) for _ in range(levels)]
        agreement.message = self._sums[0]
        most = program.problem.batch_size
        self._X = np.empty((most, problem.sizes[0]), dtype=problem.dtype)
        self._y = np.empty((most, problem.target_columns), dtype=problem.dtype)
        self.control = program.control

    def to_device(self, array: Array) -> Array:
        """Return the array itself."""
        return array

    def to_host(self, array: Array, out: Array) -> None:
        """Copy, unless it is the same array."""
        self._program.to_host(array, out)

    def prepare(
        self, parameters: Array, state: Array, X: Array, y: Array, weighted: bool, penalized: bool
    ) -> None:
        """See `Program.prepare`."""
        self._program.prepare(parameters, state, X, y, True, False)

    def epoch(
        self,
        parameters: Array,
        state: Array,
        X: Array,
        y: Array,
        order: NDArray[np.int64],
        hyper: Array,
        losses: Array,
        control: NDArray[np.int64],
        factors: Array,
        squares: Numbers | None = None,
    ) -> None:
        """See `Program.epoch`. `order` and `factors` are those of this rank's rows."""
        agreement, update = self._agreement, self._program.update
        # The first call looks at the parameters anew.
        self._unchanged = False
        for batch in range(self.problem.batches):
            failure: BaseException | None = None
            numbers = hyper[batch : batch + 1]
            try:
                message = self._sum_own(batch, parameters, X, y, order, numbers, factors)
            except BaseException as error:
                failure, message = error, self._sums[0]
                message.fill(0)
            message[STOPPED] = failure is not None or control[STOP] != 0
            self.bad = bool(message[BAD])
            agreement.sum(message)
            if failure is not None:
                raise failure
            if message[STOPPED]:
                if control[STOP]:
                    return
                raise RankFailedError
            gradient = message[:-MESSAGE_WORDS]
            if message[BAD] or not self._is_finite(message[LOSS], gradient):
                control[STATUS], agreement.next = batch + 1, GATHERING
                return
            if squares is not None:
                squares[batch] = self._squares(parameters)
            last = batch == self.problem.batches - 1
            update(parameters, gradient, state, numbers)
            losses[batch] = message[LOSS]
            control[BATCHES] = batch + 1
            agreement.next = GATHERING if last else SUM

    def _sum_own(
        self,
        batch: int,
        parameters: Array,
        X: Array,
        y: Array,
        order: NDArray[np.int64],
        numbers: Array,
        factors: Array,
    ) -> Array:
        """Return the sum of a batch's message over this rank's shards, by a binary tree."""
        part, sums, waiting = self._part, self._sums, 0
        for shard in range(len(part.numbers)):
            begin, end = int(part.begins[batch, shard]), int(part.ends[batch, shard])
            out, rows = sums[waiting], slice(begin, end)
            dropout = (numbers, int(part.firsts[batch, shard])) if self.problem.dropout else None
            self._gradient(out, parameters, X, y, order[rows], factors[rows], dropout)
            waiting += 1
            # As many neighbours are whole as the number of shards so far is divisible by two.
            whole = shard + 1
            while whole % 2 == 0:
                waiting -= 1
                np.add(sums[waiting - 1], sums[waiting], out=sums[waiting - 1])
                whole //= 2
        return sums[0]

    def _gradient(
        self,
        out: Array,
        parameters: Array,
        X: Array,
        y: Array,
        rows: NDArray[np.int64],
        factors: Array,
        dropout: Any,
    ) -> None:
        """Write the message of some rows: their gradient, their loss, and whether it is bad."""
        count, program = len(rows), self._program
        if count == 0:
            out.fill(0)
            return
        own_X, own_y = self._X[:count], self._y[:count]
        np.take(X, rows, axis=0, out=own_X, mode="clip")
        np.take(y, rows, axis=0, out=own_y, mode="clip")
        gradient = out[:-MESSAGE_WORDS]
        rest = factors, dropout, self._unchanged
        loss = program.value_and_gradient(parameters, own_X, own_y, gradient, *rest)
        self._unchanged = True
        bad = program.control[STATUS] != 0 or not math.isfinite(loss)
        out[LOSS], out[BAD], out[STOPPED] = loss, bad, 0

    def _is_finite(self, loss: float, gradient: Array) -> bool:
        """Return whether a whole batch may update the parameters."""
        # The norm of the gradient scales all of it.
        by_norm = self.problem.clipping == "norm"
        return math.isfinite(loss) and not (by_norm and not all_finite(gradient))

    def _squares(self, parameters: Array) -> float:
        """Return the sum of the squares of all weights."""
        layers = parameter_layout(self.problem.sizes)
        return sum(
            float(np.square(parameters[layer.weight], dtype=np.float64).sum()) for layer in layers
        )
