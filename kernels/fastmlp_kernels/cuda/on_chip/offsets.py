"""Offsets in shared memory, and how the compiler is told what it needs to know of them."""

from fastmlp_kernels.compile import cuda_part, simulated
from fastmlp_kernels.cuda.instructions.intrinsics import record_at
from fastmlp_kernels.cuda.on_chip.tables import (
    EPOCH,
    EPOCH_PLACE,
    LAYER,
    LAYER_WORDS,
    LAYERS_PLACE,
    TILE,
)

# An offset or a stride is not negative, and below 2^18, as no block has a megabyte. Said of each
# number in so many words, the compiler drops Numba's test for an index from the end, and divides in
# 32 bits.
SMALL = (1 << 18) - 1
# What an epoch counts has no such bound.
ANY = -1


def multiple_of(count: int) -> int:
    """Return the mask that says of an offset that it is a small multiple of a power of two.

    Of a multiple of 16 bytes: four loads of float32 become one. An address is the sum of one such
    number that the loop leaves alone and one that all operands share (with a mask around each sum
    instead, a step of 64 multiply-adds has 40 other instructions in place of 29; sm_90).
    """
    return SMALL - (count - 1)


@cuda_part
def tile_of(words):
    """Return the table's record of a tile; its numbers are small."""
    return record_at(words, TILE, 0, SMALL)


@cuda_part
def epoch_of(words):
    """Return the table's record of an epoch."""
    return record_at(words, EPOCH, EPOCH_PLACE, ANY)


@cuda_part
def layer_of(words, index):
    """Return the table's record of a layer; its numbers are small."""
    return record_at(words, LAYER, LAYERS_PLACE + index * LAYER_WORDS, SMALL)


@cuda_part
def keep_threshold_of(words, index):
    """Return a layer's `keep_threshold`, its one number that may not be small."""
    return record_at(words, LAYER, LAYERS_PLACE + index * LAYER_WORDS, ANY).keep_threshold


# Of dynamic shared memory, where a load of 16 bytes may begin; the simulator has nothing to align.
SHARED_ALIGNMENT = None if simulated() else 16
