"""Dropout: which outputs of a layer are left out of a training step, from a counter alone.

Whether an output is kept depends on the step's key, its layer, its row's place in the batch and its
unit, and on nothing else: neither on who computes it nor on when. So any number of threads leaves
out the same ones, and the backward pass asks again instead of remembering. What is kept is divided
by the share that is kept ("inverted" dropout, Srivastava et al., 2014), so that nothing has to be
scaled in a prediction.

The integers fit in 64 bits as they are, uncompiled and compiled. The finalizer is of the kind of
MurmurHash3's, with multipliers by C. Wellons ("Prospecting for hash functions", 2018).
"""

import numpy as np

MASK = 2**32 - 1
# Odd numbers that spread neighbours: the golden ratio, and the root of 2 and of 3.
UNIT_STEP, ROW_STEP, LAYER_STEP = 0x9E3779B9, 0x6A09E667, 0xBB67AE85
# A key is two numbers of so many bits, which float32 holds exactly.
KEY_BITS = 24


def mixed(number):
    """Return 32 bits, each of which depends on all bits of a number of 32."""
    number ^= number >> 16
    number = (number * 0x7FEB352D) & MASK
    number ^= number >> 15
    number = (number * 0x846CA68B) & MASK
    return number ^ (number >> 16)


def row_key(low, high, layer, row):
    """Return the key of a row of a layer in a step whose key is `low` and `high`."""
    return mixed(mixed((low + row * ROW_STEP) & MASK) ^ ((high + layer * LAYER_STEP) & MASK))


def is_kept(key, unit, threshold):
    """Return whether a unit of the row with this key is kept; `threshold` is `threshold_of`."""
    return mixed((key + unit * UNIT_STEP) & MASK) < threshold


def threshold_of(rate: float) -> int:
    """Return the number below which 32 bits lie with a probability of ``1 - rate``; 1 or more."""
    return max(1, round((1.0 - rate) * 2**32))


def keep_thresholds(rates: tuple[float, ...], layers: int) -> list[int]:
    """Return each layer's `threshold_of`, and 0 where all outputs are kept; of no rates too."""
    thresholds = [threshold_of(rate) if rate > 0 else 0 for rate in rates]
    return thresholds + [0] * (layers - len(rates))


def step_keys(seed: int, first: int, count: int) -> np.ndarray:
    """Return float64[count, 2]: the keys of steps, the first numbered `first` (from 1).

    Each is a number of `2 * KEY_BITS` bits, a finalizer of the seed and the number of the step
    (SplitMix64, Steele, Lea and Flood, 2014).
    """
    with np.errstate(over="ignore"):
        steps = np.arange(first, first + count, dtype=np.uint64)
        state = np.uint64(seed) + steps * np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    bits = np.uint64(KEY_BITS)
    low, high = state & np.uint64(2**KEY_BITS - 1), state >> (np.uint64(64) - bits)
    return np.stack([low, high], axis=1).astype(np.float64)
