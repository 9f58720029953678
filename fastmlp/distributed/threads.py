"""Ranks that are threads of one process: for tests, and to try out a script."""

import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from numpy.typing import NDArray

from fastmlp.distributed.shares import check_size
from fastmlp.errors import RankFailedError

Array = NDArray[Any]
T = TypeVar("T")

# A rank that has ended without a word is noticed by the others after this time.
PATIENCE_SECONDS = 60.0


class ThreadCommunicator:
    """The communicator of a rank that is a thread."""

    def __init__(self, rank: int, boxes: list[list["queue.SimpleQueue[Array]"]]) -> None:
        self.rank, self.size, self._boxes = rank, len(boxes), boxes

    def exchange(self, partner: int, sent: Array, received: Array) -> None:
        """See `Communicator.exchange`."""
        self._boxes[self.rank][partner].put(sent.copy())
        try:
            received[...] = self._boxes[partner][self.rank].get(timeout=PATIENCE_SECONDS)
        except queue.Empty:
            raise RankFailedError(
                f"communicator: got no message from rank {partner} for {PATIENCE_SECONDS:g} s, "
                "wanted all ranks to make the same calls"
            ) from None


def run_on_threads(size: int, work: Callable[[Any], T]) -> list[T]:
    """Return ``work(communicator)`` of so many ranks, each of which is a thread of this process.

    Parameters
    ----------
    size : int
        How many ranks: a power of two.
    work : callable
        Given a `Communicator`.

    Raises
    ------
    Exception
        That of the first rank that has failed by itself.

    Examples
    --------
    >>> from fastmlp.distributed import run_on_threads
    >>> run_on_threads(4, lambda communicator: communicator.rank)
    [0, 1, 2, 3]
    """
    ranks = range(check_size(size))
    boxes: list[list[queue.SimpleQueue[Array]]]
    boxes = [[queue.SimpleQueue() for _ in ranks] for _ in ranks]
    results: dict[int, T] = {}
    failures: dict[int, BaseException] = {}

    def run(rank: int) -> None:
        try:
            results[rank] = work(ThreadCommunicator(rank, boxes))
        except BaseException as failure:
            failures[rank] = failure

    threads = [threading.Thread(target=run, args=(rank,), name=f"rank-{rank}") for rank in ranks]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    own = [one for _, one in sorted(failures.items()) if not isinstance(one, RankFailedError)]
    if failures:
        raise (own or [*failures.values()])[0]
    return [results[rank] for rank in ranks]
