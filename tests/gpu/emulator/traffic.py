"""How many transfers accesses take: sectors of global memory, wavefronts of shared memory."""

import numpy as np

from tests.gpu.emulator.registers import WARP

SECTOR_BYTES = 32
BANKS, BANK_BYTES = 32, 4


def count(counts, blocks, access):
    """Count an instruction's accesses of one kind of memory."""
    counter, warp = counts[blocks.launch.label], blocks.warp[access.threads]
    if access.space == "global":
        sectors = access.place[:, None] // SECTOR_BYTES
        last = (access.place[:, None] + access.size - 1) // SECTOR_BYTES
        touched = np.concatenate([sectors, last], axis=1)
        counter["global requests"] += np.unique(warp).size
        counter["global sectors"] += len(distinct(np.repeat(warp, 2), touched.ravel()))
        counter["global bytes"] += access.size * len(access.place)
        return
    # 4 bytes or fewer are a warp at a time, 8 half a warp, 16 a quarter.
    lanes = WARP if access.size <= 4 else WARP * 4 // access.size
    request = warp * 8 + blocks.lane[access.threads] // lanes
    words = access.place[:, None] // BANK_BYTES + np.arange(max(1, access.size // BANK_BYTES))
    pairs = distinct(np.repeat(request, words.shape[1]), words.ravel())
    requests, banks = pairs[:, 0], pairs[:, 1] % BANKS
    of_bank, times = np.unique(requests * BANKS + banks, return_counts=True)
    # A bank gives one word a wavefront.
    starts = np.flatnonzero(np.diff(of_bank // BANKS, prepend=-1))
    wavefronts = int(np.maximum.reduceat(times, starts).sum())
    counter["shared wavefronts"] += wavefronts
    counter["shared wavefronts without conflicts"] += len(starts)
    if wavefronts > len(starts):
        counter[f"conflicts at {blocks.where()[1]}"] += wavefronts - len(starts)


def distinct(*columns):
    """Return the distinct rows, in order."""
    return np.unique(np.stack(columns, axis=1), axis=0)
