"""The records of the table of words, as device code reads them."""

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

# Offsets, strides and widths in shared memory have 32 bits; what an epoch counts has 64.
NARROW, WIDE = True, False


@cuda_part
def tile_of(words):
    """Return the table's record of a tile."""
    return record_at(words, TILE, 0, NARROW)


@cuda_part
def epoch_of(words):
    """Return the table's record of an epoch."""
    return record_at(words, EPOCH, EPOCH_PLACE, WIDE)


@cuda_part
def layer_of(words, index):
    """Return the table's record of a layer."""
    return record_at(words, LAYER, LAYERS_PLACE + index * LAYER_WORDS, NARROW)


@cuda_part
def keep_threshold_of(words, index):
    """Return a layer's `keep_threshold`, its one number that has more bits."""
    return record_at(words, LAYER, LAYERS_PLACE + index * LAYER_WORDS, WIDE).keep_threshold


# Of dynamic shared memory, where a load of 16 bytes may begin; the simulator has nothing to align.
SHARED_ALIGNMENT = None if simulated() else 16
