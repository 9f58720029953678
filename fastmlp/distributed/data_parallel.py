"""The settings of a data-parallel fit."""

from dataclasses import dataclass
from typing import Any

from fastmlp.distributed.communicators import as_communicator
from fastmlp.distributed.shares import check_size
from fastmlp.errors import DomainError, DTypeError, known_keywords

# Bad parts are counted in the model's dtype: float32 counts to 2**24.
MOST_SHARDS = 2**16


@known_keywords
@dataclass(frozen=True)
class DataParallel:
    """How ranks train one model: ``fit(..., communicator=DataParallel(...))``.

    The rows of all ranks are cut into `shards` parts, one after another, by halving. A mini-batch
    takes its share of rows from each part, and each part is shuffled on its own, by the seed, the
    epoch and its number. Each rank computes the gradients of its neighbouring parts. They are
    summed by one binary tree over the parts, and every rank applies the same update. So 1, 2, 4, or
    8 ranks give the same bits.

    Parameters
    ----------
    communicator : object
        ``MPI.COMM_WORLD`` or another communicator of mpi4py, a process group of
        ``torch.distributed`` with gloo, or a `Communicator`. Its size is a power of two.
    shards : int
        The number of parts: a power of two, and at least the number of ranks. The result depends on
        it, so a fit that is resumed needs the same one.
    shared_rows : bool
        Whether each rank is given all rows, as of one file that all of them map, and takes its own
        part. By default each rank is given its own part alone: see `rows_of_rank`.

    Notes
    -----
    With one shard a fit differs from one without a communicator in nothing. With more it has the
    same sizes of batches and other orders of the rows.

    Examples
    --------
    >>> from fastmlp.distributed import DataParallel, run_on_threads
    >>> def train(communicator):
    ...     model = MLP([4, 16, 1], seed=0)
    ...     parallel = DataParallel(communicator, shared_rows=True)
    ...     return model.fit(X, y, epochs=3, communicator=parallel).loss
    >>> first, second = run_on_threads(2, train)
    >>> bool((first == second).all())
    True
    """

    communicator: Any
    shards: int = 8
    shared_rows: bool = False

    def __post_init__(self) -> None:
        """Check the settings."""
        carrier = as_communicator(self.communicator)
        shards = check_size(self.shards, "shards", MOST_SHARDS)
        if carrier.size & (carrier.size - 1) or carrier.size > shards:
            raise DomainError(
                f"communicator: got {carrier.size} ranks, wanted a power of two and at most "
                f"shards={shards}"
            )


def check_parallel(given: Any) -> DataParallel | None:
    """Return the settings of a data-parallel fit; None stands for a fit on one process."""
    if given is None or isinstance(given, DataParallel):
        return given
    if isinstance(given, type) and issubclass(given, DataParallel):
        raise DTypeError("communicator: got the class DataParallel, wanted DataParallel(...)")
    return DataParallel(given)
