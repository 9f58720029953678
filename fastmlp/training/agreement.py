"""What the ranks of a fit tell each other, so that all go on or all stop.

Every rank makes the same calls in the same order. Each is a *round*: a sum, of the gradient of a
batch, or a gathering of records. A rank that fails anywhere takes part in the round that the others
will come to next, and says so there.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastmlp.distributed.communicators import as_communicator
from fastmlp.distributed.data_parallel import DataParallel
from fastmlp.distributed.ranks import Ranks
from fastmlp.errors import DomainError, RankFailedError
from fastmlp.training.interrupts import run_interruptibly
from fastmlp_kernels.problem import CONTROL_WORDS

Array = NDArray[Any]
T = TypeVar("T")

# The last numbers of each sum: the loss, how many parts are bad, and how many ranks have stopped.
LOSS, BAD, STOPPED = -3, -2, -1
MESSAGE_WORDS = 3
# Of a failure's message, what others are told.
LONGEST_REASON = 2000

# Which round comes next.
NONE, SUM, GATHERING = "none", "sum", "gathering"


class Agreement:
    """The rounds of one fit.

    Parameters
    ----------
    parallel : DataParallel

    Attributes
    ----------
    ranks : Ranks
    shards : int
    own : slice
        Which of the shards are this rank's.
    next : str
        The round that all ranks will come to next, unless one of them fails.
    message : ndarray
        Like what the next sum is of.
    """

    def __init__(self, parallel: DataParallel) -> None:
        self.ranks = ranks = Ranks(as_communicator(parallel.communicator))
        self.shards, self.shared_rows = parallel.shards, parallel.shared_rows
        share = self.shards // ranks.size
        self.own = slice(share * ranks.rank, share * (ranks.rank + 1))
        self.next = GATHERING
        self.message: Array = np.zeros(MESSAGE_WORDS)
        # Ranks that have failed by themselves, and why.
        self.failed: dict[int, str] = {}
        self._stopped = False

    def guard(self, work: Callable[[], T]) -> T:
        """Return ``work()``; whatever it raises, the other ranks are told of."""
        try:
            return work()
        except BaseException as failure:
            self._leave(failure)
            if isinstance(failure, RankFailedError):
                self._refuse()
            raise

    def sum(self, message: Array) -> None:
        """Sum a vector over the ranks: a round."""
        # What fails within a round is the communicator: there is nobody to tell.
        self.next = NONE
        self.ranks.sum(message)
        self.next = GATHERING if message[STOPPED] or message[BAD] else SUM

    def gather(
        self,
        record: Mapping[str, Any],
        raw: bytes = b"",
        then: Callable[[list[dict[str, Any]]], str] = lambda records: GATHERING,
    ) -> list[dict[str, Any]]:
        """Return what each rank tells, in their order: a round.

        Parameters
        ----------
        record : mapping
            What JSON can hold.
        raw : bytes
            What it cannot; in the records it is called "raw".
        then : callable
            Given the records; returns the round after this one.

        Raises
        ------
        RankFailedError
            If a rank has failed, so that it does not come to the same place.
        """
        records = _undisturbed(lambda: self._gather(record, raw, then))
        if self._stopped:
            raise RankFailedError
        return records

    def _gather(
        self,
        record: Mapping[str, Any],
        raw: bytes,
        then: Callable[[list[dict[str, Any]]], str],
    ) -> list[dict[str, Any]]:
        # Beside the thread that signals interrupt: a round is taken part in whole, or not at all.
        self.next = NONE
        found = []
        for message in self.ranks.gather(json.dumps(record).encode() + b"\n" + raw):
            head, _, tail = message.partition(b"\n")
            found.append({**json.loads(head), "raw": tail})
        told = [each.get("failure") for each in found]
        self.failed |= {rank: reason for rank, reason in enumerate(told) if reason}
        # Some only say that they have stopped too.
        self._stopped |= any(reason is not None for reason in told)
        self.next = NONE if self._stopped else then(found)
        return found

    def _leave(self, failure: BaseException) -> None:
        """Take part in the next rounds of the others, and tell them of a failure."""
        told = isinstance(failure, RankFailedError)
        reason = "" if told else f"{type(failure).__name__}: {failure}"[:LONGEST_REASON]

        def tell() -> None:
            if self.next == SUM:
                message = np.zeros_like(self.message)
                message[STOPPED] = 1
                self.sum(message)
            if self.next == GATHERING:
                self._gather({"failure": reason}, b"", lambda records: NONE)

        _undisturbed(tell)

    def _refuse(self) -> NoReturn:
        unknown = "another rank" if self._stopped else "a communicator that failed"
        known = [f"rank {rank}: {reason}" for rank, reason in self.failed.items()]
        reasons = "; ".join(known) or unknown
        raise RankFailedError(
            f"communicator: got a failure ({reasons}), wanted all ranks to go on. This rank has "
            "stopped too, and its model holds the last good parameters"
        ) from None


def agreed(communicator: Any, work: Callable[[], T]) -> T:
    """Return ``work()`` of this rank, once all ranks have done it without an error.

    It has no rounds, or is a fit, after which all ranks have failed or none has. Whatever is
    raised, one rank is to say so: the errors of all others have the attribute `said_by`, which is
    its number.

    Raises
    ------
    RankFailedError
        If another rank has failed.
    """
    carrier = as_communicator(communicator)
    try:
        agreement = Agreement(DataParallel(communicator))
    except DomainError as error:
        # All ranks find the same.
        if carrier.rank:
            vars(error)["said_by"] = 0
        raise

    def whole() -> T:
        found = work()
        agreement.gather({})
        return found

    try:
        return agreement.guard(whole)
    except Exception as error:
        first = min(agreement.failed, default=carrier.rank)
        if first != carrier.rank:
            vars(error)["said_by"] = first
        elif 0 < len(agreement.failed) < carrier.size:
            error.add_note(f"on rank {first}")
        raise


def check_alike(records: list[dict[str, Any]], hint: str = "") -> None:
    """Raise an error that names the first thing that differs between the ranks' records."""
    found = difference(records)
    if found is not None:
        raise DomainError(f"communicator: got {found}, wanted the same on all ranks{hint}")


def difference(records: list[dict[str, Any]]) -> str | None:
    """Return in words what differs between the ranks' records, or None."""
    first = records[0]
    for rank, record in enumerate(records):
        for name in sorted({*first, *record} - {"raw"}):
            one, other = first.get(name), record.get(name)
            if one != other:
                return f"{name}={one} on rank 0 and {name}={other} on rank {rank}"
    return None


def _undisturbed(work: Callable[[], T]) -> T:
    """Return ``work()``; an exception of a signal handler is raised after it."""
    return run_interruptibly(work, np.zeros(CONTROL_WORDS, dtype=np.int64), math.inf)
