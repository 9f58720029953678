"""What carries messages between ranks: MPI, PyTorch, or anything with one method.

Nothing here imports mpi4py or PyTorch. Whoever gives a communicator of theirs has done so.
"""

import sys
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from fastmlp.errors import DeviceError, DomainError, DTypeError

Array = NDArray[Any]

# Of all messages, so that they are not taken for a user's own.
TAG = 8217


@runtime_checkable
class Communicator(Protocol):
    """Carries messages between ranks. An object of your own with these three names will do.

    Attributes
    ----------
    rank, size : int
        The number of this rank, from 0, and how many ranks there are.

    Examples
    --------
    >>> from fastmlp.distributed import Communicator, run_on_threads
    >>> run_on_threads(2, lambda each: (each.rank, isinstance(each, Communicator)))
    [(0, True), (1, True)]
    """

    @property
    def rank(self) -> int:
        """The number of this rank, from 0."""

    @property
    def size(self) -> int:
        """How many ranks there are."""

    def exchange(self, partner: int, sent: Array, received: Array) -> None:
        """Send an array to another rank, which does the same, and receive that rank's.

        Parameters
        ----------
        partner : int
            The other rank.
        sent, received : ndarray
            C-contiguous and of one dtype; their lengths may differ. `received` is as long as what
            the other rank sends.
        """


class MPICommunicator:
    """A communicator of mpi4py."""

    def __init__(self, communicator: Any) -> None:
        self.rank, self.size = int(communicator.Get_rank()), int(communicator.Get_size())
        self._exchange = communicator.Sendrecv
        mpi = sys.modules.get("mpi4py.MPI")
        if mpi is not None and mpi.Query_thread() < mpi.THREAD_SERIALIZED:
            raise DomainError(
                "communicator: got an MPI that was started for one thread, wanted one that any "
                "thread may call, as mpi4py starts it by default"
            )

    def exchange(self, partner: int, sent: Array, received: Array) -> None:
        """See `Communicator.exchange`."""
        self._exchange(sent, partner, TAG, received, partner, TAG)


class TorchCommunicator:
    """A process group of ``torch.distributed`` whose tensors lie in the host's memory."""

    def __init__(self, group: Any) -> None:
        distributed = sys.modules["torch.distributed"]
        backend = distributed.get_backend(group)
        if backend not in ("gloo", "mpi"):
            raise DeviceError(
                f"communicator: got a process group of {backend}, wanted one of gloo, as data-"
                "parallel training runs on the CPU: torch.distributed.new_group(backend='gloo')"
            )
        self.rank = int(distributed.get_rank(group))
        self.size = int(distributed.get_world_size(group))
        self._group, self._distributed = group, distributed
        self._tensor: Any = sys.modules["torch"].from_numpy

    def exchange(self, partner: int, sent: Array, received: Array) -> None:
        """See `Communicator.exchange`."""
        other = self._distributed.get_global_rank(self._group, partner)
        rest: dict[str, Any] = {"group": self._group, "tag": TAG}
        works = [
            self._distributed.isend(self._tensor(sent), other, **rest),
            self._distributed.irecv(self._tensor(received), other, **rest),
        ]
        for work in works:
            work.wait()


def as_communicator(given: Any) -> Communicator:
    """Return a communicator for what a user gives as one.

    Raises
    ------
    DTypeError
        If it is none.
    """
    if isinstance(given, Communicator) and not isinstance(given, type):
        return given
    if hasattr(given, "Sendrecv") and hasattr(given, "Get_rank"):
        return MPICommunicator(given)
    if type(given).__module__.startswith("torch") and hasattr(given, "rank"):
        return TorchCommunicator(given)
    raise DTypeError(
        f"communicator: got {given!r}, wanted one of mpi4py as MPI.COMM_WORLD, a process group of "
        "torch.distributed, DataParallel(...), or an object with rank, size and exchange"
    )
