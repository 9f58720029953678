"""The orders of the rows, drawn before they are needed."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# The most rows, of all networks, whose orders are drawn together. That is two megabytes, and many
# epochs where an epoch is short.
ROWS_AHEAD = 2**18
# In the place of a chunk's number, where the chunks are drawn.
CHUNKS_THEMSELVES = 2**64 - 1
# The most threads that draw beside an epoch. They share Python's lock.
MOST_DRAWERS = 8

# Generators that nobody draws from. Whoever draws takes one out: another thread, or a signal
# handler in the midst of a drawing, then draws from another one.
_idle: list[tuple[np.random.Generator, Any]] = []


def draw_orders(orders: Array, seeds: Sequence[int], first: Sequence[int], chunk: int = 0) -> None:
    """Write the shuffled order of each network's rows: a function of its seed and of the epoch.

    So training can be resumed bit by bit. Each pair of a seed and an epoch is the key of a stream
    of a counter-based generator, and the number of a chunk of rows is a part of the counter.

    Parameters
    ----------
    orders : ndarray
        int64[epochs, members, rows]
    seeds, first : sequence of int
        The seed of each network, and the number of its first epoch.

    Notes
    -----
    A generator's state is set for each order. That takes 1.1 us; to make a generator takes 14 us
    and holds Python's lock. A shuffle of 320 rows takes 6 us without the lock, so several threads
    draw side by side (2-core AMD EPYC, 2026-11-29).
    """
    generator, fresh = _take_generator()
    fresh["state"]["counter"][3] = chunk
    in_order = np.arange(orders.shape[2])
    for epoch, of_epoch in enumerate(orders):
        for order, seed, number in zip(of_epoch, seeds, first, strict=True):
            fresh["state"]["key"][:] = seed, number + epoch
            generator.bit_generator.state = fresh
            order[:] = in_order
            generator.shuffle(order)
    _idle.append((generator, fresh))


def _take_generator() -> tuple[np.random.Generator, Any]:
    """Return a generator that nobody else draws from, and a fresh state."""
    try:
        return _idle.pop()
    except IndexError:
        generator = np.random.Generator(np.random.Philox(key=0))
        return generator, generator.bit_generator.state


class ChunkedOrder(NamedTuple):
    """The order of an epoch whose rows lie in chunks.

    Attributes
    ----------
    chunks : list of int
        The numbers of the chunks, in their order.
    seeds, epochs : list of int
        Of each network.
    shuffled : bool
    """

    chunks: list[int]
    seeds: list[int]
    epochs: list[int]
    shuffled: bool

    def rows(self, chunk: int, count: int) -> Array:
        """Return int64[members, count], the order of the rows of a chunk."""
        order = np.empty((1, len(self.seeds), count), dtype=np.int64)
        order[:] = np.arange(count)
        if self.shuffled:
            draw_orders(order, self.seeds, self.epochs, chunk)
        return order[0]


def chunked_order(
    seeds: Sequence[int], epochs: Sequence[int], count: int, shuffle: bool
) -> ChunkedOrder:
    """Return the order of so many chunks: a function of the first seed and of the last epoch.

    The rows of one chunk alone are in the order that `Orders` gives.
    """
    chunks = np.arange(count, dtype=np.int64)[None, None]
    if shuffle:
        draw_orders(chunks, seeds[:1], [max(epochs)], CHUNKS_THEMSELVES)
    return ChunkedOrder(chunks.ravel().tolist(), [*seeds], [*epochs], shuffle)


class Orders:
    """The orders of the rows in the epochs of a fit: those of `draw_orders`, drawn ahead.

    Those of an epoch at first, and then twice as many each time: a fit may stop early.

    Parameters
    ----------
    seeds : sequence of int
        Of the networks.
    first : sequence of int
        The number of each network's first epoch.
    rows, epochs : int
        Rows of an epoch, and the epochs of the fit.
    shuffle : bool
    threads : int
        How many may draw while an epoch runs. With 1, nobody draws beside it. Drawing an order
        takes as long as ten steps of a small network.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        first: Sequence[int],
        rows: int,
        epochs: int,
        *,
        shuffle: bool,
        threads: int,
    ) -> None:
        members = len(seeds)
        self._seeds, self._first, self._shape = seeds, first, (members, rows)
        self._left = epochs if shuffle else 0
        self._most, self._together = max(1, ROWS_AHEAD // (members * rows)), 1
        self._begun = self._given = 0
        self._chunk: Array | tuple[()] = ()
        self._coming: Array | None = None
        self._drawing: list[Future[None]] = []
        self._beside = threads > 1 and self._left > self._most
        shares = min(threads, MOST_DRAWERS, members) if self._beside else 1
        cuts = [members * share // shares for share in range(shares + 1)]
        self._shares = [slice(*ends) for ends in pairwise(cuts)]
        self._drawers: ThreadPoolExecutor | None = None
        self._in_order = None if shuffle else np.tile(np.arange(rows, dtype=np.int64), (members, 1))

    def next(self) -> Array:
        """Return int64[members, rows]; it is valid until the next call."""
        if self._in_order is not None:
            return self._in_order
        if self._given == len(self._chunk):
            self._turn()
        self._given += 1
        return self._chunk[self._given - 1]

    def _turn(self) -> None:
        """Take the orders that have been drawn, and have those after them drawn."""
        coming = self._begin() if self._coming is None else self._coming
        for share in self._drawing:
            share.result()
        self._chunk, self._given, self._drawing, self._coming = coming, 0, [], None
        if self._beside and self._left:
            self._coming = self._begin()

    def _begin(self) -> Array:
        """Draw the next orders, or have them drawn: each thread those of some networks."""
        count = min(self._together, self._left)
        self._together = min(2 * count, self._most)
        coming = np.empty((count, *self._shape), dtype=np.int64)
        first = [number + self._begun for number in self._first]
        work = [(coming[:, share], self._seeds[share], first[share]) for share in self._shares]
        if self._beside:
            self._draw_beside(work)
        if not self._beside:
            for each in work:
                draw_orders(*each)
        self._begun, self._left = self._begun + count, self._left - count
        return coming

    def _draw_beside(self, work: list[Any]) -> None:
        self._drawers = self._drawers or ThreadPoolExecutor(
            len(self._shares), thread_name_prefix="fastmlp-orders"
        )
        try:
            self._drawing = [self._drawers.submit(draw_orders, *each) for each in work]
        except RuntimeError:
            # The system starts no more threads, or Python is about to end. Those that have begun
            # write to the same array: they are waited for.
            self.close()
            self._beside, self._drawing = False, []

    def close(self) -> None:
        """End the threads that draw."""
        if self._drawers is not None:
            self._drawers.shutdown(cancel_futures=True)
