"""One epoch after another on data in chunks: each chunk is an epoch of a trainer of its own."""

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.data.admission import ChunkedData, Data
from fastmlp.data.shuffling import ChunkedOrder, chunked_order
from fastmlp.data.weighting import Weights
from fastmlp.dispatch.planning import Programs, Where
from fastmlp.optimizer_base import Optimizer, Update
from fastmlp.state.training_state import TrainingState
from fastmlp.training.epochs import Epoch, joined
from fastmlp.training.trainer import Trainer


class ChunkedOrders:
    """What `Orders` is, for data in chunks: the next order is a function of the state alone.

    An ensemble has one order of the chunks, and each network has its own order of their rows.
    """

    def __init__(self, state: TrainingState, members: int, chunks: int, shuffle: bool) -> None:
        self._state, self._rest = state, (chunks, shuffle)
        self._seeds = [state.seed_of(member) for member in range(members)]

    def next(self) -> ChunkedOrder:
        """Return the order of the next epoch."""
        return chunked_order(self._seeds, np.atleast_1d(self._state.epochs).tolist(), *self._rest)

    def close(self) -> None:
        """Do nothing: nobody draws ahead."""


class ChunkedTrainer:
    """What `Trainer` is, for data in chunks; the arguments are those of `Trainer`.

    Attributes
    ----------
    plan : Plan
        The plan of the first chunk, if it had a whole mini-batch. Its kernel trains all chunks.
    program : None
        Each chunk has its own.
    data : Data or ChunkedData
        The chunk that was trained on last; before the first one, all of the data.
    chunks : int
        How many there are.
    rows : int
        Rows of an epoch; an estimate until the first epoch is over.
    """

    unit = "chunk"

    def __init__(
        self,
        state: TrainingState,
        programs: Programs,
        data: ChunkedData,
        batch_size: int,
        update: Update,
        where: Where,
        *,
        weights: Callable[[Data], Weights] | None,
        l2: float,
        lazy: bool,
        epochs: int,
    ) -> None:
        self._state, self._chunks, self._weights = state, data, weights
        self._programs, self._batch_size, self._update, self._l2 = programs, batch_size, update, l2
        rows = max(data.rows, batch_size)
        shelf = programs.shelf(rows, batch_size, where, labels=data.labels, update=update)
        self.plan, self.program = shelf.plan, None
        self._where = where._replace(kernel=self.plan.kernel.name)
        self.data: Any = data
        self.chunks = data.chunks.count
        self.rows = self.chunks * data.rows
        self._left_out: list[int] = []

    def prepare(self) -> None:
        """Do nothing: each chunk is prepared when its turn comes."""

    def upload(self) -> None:
        """Do nothing: each chunk begins with the host's parameters."""

    def fetch(self) -> None:
        """Do nothing: each chunk leaves the host's parameters as they are to be."""

    def close(self) -> None:
        """Do nothing: each chunk has let others have its program."""

    def leave_out(self, members: Sequence[int]) -> None:
        """Train these networks no more."""
        self._left_out += members

    def run(
        self,
        order: ChunkedOrder,
        optimizers: Sequence[Optimizer],
        waiting: Callable[[int], None] = lambda done: None,
    ) -> Epoch:
        """Train for an epoch, or up to the chunk in which something was not finite."""
        loader, whole = ThreadPoolExecutor(1, thread_name_prefix="fastmlp-chunks"), False
        try:
            epoch = self._run(loader, order, optimizers, waiting)
            whole = True
        finally:
            # Ctrl-C does not wait for a chunk that nobody will train on.
            loader.shutdown(wait=whole, cancel_futures=True)
        return epoch

    def _run(
        self,
        loader: ThreadPoolExecutor,
        order: ChunkedOrder,
        optimizers: Sequence[Optimizer],
        waiting: Callable[[int], None],
    ) -> Epoch:
        parts: list[Epoch] = []
        batches = rows = 0
        coming = self._begin(loader, order.chunks[0])
        for number, following in zip_longest(order.chunks, order.chunks[1:]):
            # The chunk before this one is not held any more: the memory has room for two.
            self.data = coming()
            if following is not None:
                coming = self._begin(loader, following)
            own = order.rows(number, self.data.rows)
            part = self._train(own, optimizers, following is None, waiting, batches)
            parts.append(part)
            batches, rows = batches + part.losses.shape[1], rows + own.shape[1]
            if part.failed:
                return joined(parts)
        self.rows = rows
        return joined(parts)

    def _train(
        self,
        order: NDArray[np.int64],
        optimizers: Sequence[Optimizer],
        last: bool,
        waiting: Callable[[int], None],
        done: int,
    ) -> Epoch:
        """Train on the present chunk, after so many batches of this epoch are done."""
        data = self.data
        trainer = Trainer(
            self._state,
            self._programs,
            data,
            min(self._batch_size, data.rows),
            self._update,
            self._where,
            weights=None if self._weights is None else self._weights(data),
            l2=self._l2,
            epochs=1,
            whole=last,
        )
        if self._left_out:
            trainer.leave_out(self._left_out)
        self._state.lock.epoch(trainer.prepare)
        part = trainer.run(order, optimizers, lambda new: waiting(done + new))
        trainer.close()
        bad = part.bad_batches
        return part._replace(bad_batches=bad + done * (bad > 0))

    def _begin(self, loader: ThreadPoolExecutor, number: int) -> Callable[[], Data]:
        """Have a chunk loaded; return what waits for it."""
        try:
            return loader.submit(self._chunks.load, number).result
        except RuntimeError:
            # The system starts no more threads: it is loaded here.
            return functools.partial(self._chunks.load, number)
