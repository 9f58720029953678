"""Which rows of which shard are in which batch, and in what order."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmlp.data.shuffling import draw_orders
from fastmlp.distributed.shares import shares

Integers = NDArray[np.int64]


class Sharding:
    """How the rows of all ranks, and of each batch, are shared by the shards.

    Shard v has the part v of all rows. The first k batches together have the first of its rows in
    the epoch's order: as many as part v of the rows of k batches. So each batch has as many rows
    as it has in any fit, whatever does not divide.

    Parameters
    ----------
    rows, batch_size : int
        Of all shards together.
    shards : int
    """

    def __init__(self, rows: int, batch_size: int, shards: int) -> None:
        self.shards = shards
        self.batches = -(-rows // batch_size)
        ends = np.minimum(batch_size * np.arange(self.batches + 1), rows)
        # Rows of each shard that the batches before each one have had: int64[batches + 1, shards].
        self._had = shares(ends, shards)
        self.sizes = self._had[-1]
        self.counts = np.diff(self._had, axis=0)
        # The place of each shard's first row in its batch.
        self.firsts = np.cumsum(self.counts, axis=1) - self.counts
        self.most = int(self.counts.max())

    def part(self, own: slice) -> "Part":
        """Return the part of some neighbouring shards."""
        numbers = range(*own.indices(self.shards))
        batches = np.arange(self.batches)
        of_rows = [np.repeat(batches, self.counts[:, shard]) for shard in numbers]
        places = np.argsort(np.concatenate(of_rows), kind="stable")
        counts = self.counts[:, own]
        ends = np.cumsum(counts.ravel()).reshape(counts.shape)
        sizes = self.sizes[own]
        shard_of = np.repeat(np.arange(self.shards)[own], sizes)[places]
        return Part(numbers, sizes, places, ends - counts, ends, self.firsts[:, own], shard_of)


class Part(NamedTuple):
    """Neighbouring shards: what lies where in an epoch of their rows alone.

    Attributes
    ----------
    numbers : range
        The shards.
    sizes : ndarray
        int64[shards], the rows of each.
    places : ndarray
        int64[rows]: which of the rows, shard after shard and each in its order, is the next in the
        epoch, batch after batch.
    begins, ends : ndarray
        int64[batches, shards]: where the rows of each shard and batch lie in the epoch.
    firsts : ndarray
        int64[batches, shards]: the place of the first of them in the whole batch.
    shard_of : ndarray
        int64[rows]: whose row each row of the epoch is.
    """

    numbers: range
    sizes: Integers
    places: Integers
    begins: Integers
    ends: Integers
    firsts: Integers
    shard_of: Integers

    def order(self, seed: int, epoch: int, shuffle: bool) -> Integers:
        """Return int64[1, rows], the order of these shards' rows in an epoch.

        Each shard has an order of its own: a function of the seed, the epoch and its number.
        """
        drawn = np.arange(len(self.places), dtype=np.int64)
        first = 0
        for shard, size in zip(self.numbers, self.sizes.tolist(), strict=True):
            if shuffle:
                own = np.empty((1, 1, size), dtype=np.int64)
                draw_orders(own, [seed], [epoch], shard)
                drawn[first : first + size] = first + own.ravel()
            first += size
        return drawn[self.places][None]
