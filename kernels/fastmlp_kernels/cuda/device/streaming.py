"""Data larger than the GPU's memory: an epoch's rows, chunk by chunk, through two buffers a side.

While the GPU trains on one chunk, another thread gathers the rows of the next one on the host, in
the order of the epoch, into page-locked memory, and copies them on a stream of its own.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from fastmlp_kernels.device_memory import DeviceMemory

# A chunk of so many bytes takes milliseconds on the bus, many times what launching a copy and
# waiting for it take; and page-locked memory is taken from everybody.
CHUNK_BYTES = 64e6
# Two buffers, and as much again for whatever else is to be had.
BUFFERS = 2


class Chunk(NamedTuple):
    """Whole mini-batches of an epoch on the GPU, in the order of the epoch.

    Attributes
    ----------
    X, y : device arrays
        Valid until the chunk after the next one is asked for.
    order : ndarray
        int64[rows], 0 to rows - 1: the rows are in order already. Of several networks
        int64[members, rows]: those of one lie after those of another.
    start, batch : int
        Where the chunk begins in the epoch: its first row, and its first mini-batch.
    """

    X: Any
    y: Any
    order: np.ndarray
    start: int
    batch: int


def chunk_rows(available: float, row_bytes: int, batch_size: int, largest: float) -> int:
    """Return the rows of a chunk: whole mini-batches, one at least.

    Parameters
    ----------
    available : float
        Bytes that the buffers on the GPU may take: they take a half.
    row_bytes : int
        Of a row of X and of y together.
    batch_size : int
    largest : float
        Bytes of a chunk, at most.
    """
    room = min(largest, available / (2 * BUFFERS))
    return batch_size * max(1, int(room // (row_bytes * batch_size)))


class StreamedRows:
    """The rows of X and y on their way to the GPU, an epoch at a time.

    Parameters
    ----------
    memory : DeviceMemory
        Of the program that trains on them; it counts the copies.
    X, y : ndarray
        Host arrays, C-contiguous.
    batch_size : int
    largest : float
        Bytes of a chunk, at most.
    members : int
        Networks, each with an order of its own: a chunk holds the rows of each.

    Attributes
    ----------
    rows : int
        Rows of every chunk but the last one, for each network.
    buffers : list of device arrays
        One that chunks of X lie in, and one of y.

    Notes
    -----
    The numbers are those of resident data: kernels are given the same rows in the same order. A
    buffer is written again only when the chunk that lay in it has been trained on, which holds
    because a program's `epoch` returns when its last kernel has ended.
    """

    def __init__(
        self,
        memory: DeviceMemory,
        X: np.ndarray,
        y: np.ndarray,
        batch_size: int,
        largest: float = CHUNK_BYTES,
        members: int = 1,
    ) -> None:
        self._memory, self._batch_size = memory, batch_size
        self._sources = (X, y)
        row_bytes = members * sum(each.nbytes // len(each) for each in self._sources)
        rows = chunk_rows(memory.available(), row_bytes, batch_size, largest)
        self.rows = min(rows, -(-len(X) // batch_size) * batch_size)
        shapes = [(members * self.rows, *each.shape[1:]) for each in self._sources]
        self._pinned = [self._allocate(cuda.pinned_array, shapes) for _ in range(BUFFERS)]
        self._buffers = [self._allocate(memory.empty, shapes) for _ in range(BUFFERS)]
        self.buffers = self._buffers[0]
        # Not the program's: a copy on that one would wait for the kernels of the chunk before.
        self._stream = cuda.stream()

    def _allocate(self, make: Any, shapes: list[tuple[int, ...]]) -> list[Any]:
        pairs = zip(shapes, self._sources, strict=True)
        return [make(shape, source.dtype) for shape, source in pairs]

    def chunks(self, order: np.ndarray) -> Iterator[Chunk]:
        """Yield the chunks of an epoch in an order of the rows; each is trained on at once.

        `order` is int64[rows], or int64[members, rows].
        """
        count = order.shape[-1]
        starts = range(0, count, self.rows)
        with ThreadPoolExecutor(1, thread_name_prefix="fastmlp-rows") as thread:
            coming = thread.submit(self._bring, order, 0, 0)
            for number, start in enumerate(starts):
                X, y = coming.result()
                # Counted here: the other thread's additions could be lost.
                for each in (X, y):
                    self._memory.traffic.add("to_device", each.nbytes)
                if start + self.rows < count:
                    # Its buffer is that of the chunk before this one, which has been trained on.
                    coming = thread.submit(self._bring, order, start + self.rows, number + 1)
                shape = *order.shape[:-1], min(self.rows, count - start)
                local = np.arange(len(X), dtype=np.int64).reshape(shape)
                yield Chunk(X, y, local, start, start // self._batch_size)

    def _bring(self, order: np.ndarray, start: int, number: int) -> list[Any]:
        """Gather the rows of a chunk and copy them; return when they are on the GPU."""
        chosen = order[..., start : start + self.rows].ravel()
        pinned, buffers = self._pinned[number % BUFFERS], self._buffers[number % BUFFERS]
        brought = []
        with self._memory.here():
            for source, host, held in zip(self._sources, pinned, buffers, strict=True):
                part, there = host[: len(chosen)], held[: len(chosen)]
                # "clip" writes straight into `out`; the indices are checked, so none is clipped.
                np.take(source, chosen, axis=0, out=part, mode="clip")
                there.copy_to_device(part, stream=self._stream)
                brought.append(there)
            self._stream.synchronize()
        return brought
