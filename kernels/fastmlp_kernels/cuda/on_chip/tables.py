"""The table of words that describes a network in shared memory: a tile, an epoch, layer by layer.

Each record is declared here, once. Python fills it by name, and device code reads it by name
through `offsets`. What a placement fixes, and what a program sets, are records of their own.
Offsets and strides are in elements of their own array: `operands` for X, the weights, hidden
activations and dZ, `numbers` for anything else. Device code reads two neighbouring words at once,
so a record has an even number of them. Plain NumPy, without Numba.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from fastmlp_kernels.records import table

# Fixed by a placement.
TILE = table(
    "layers",
    "parameters",
    "numbers_used",
    "rows",
    "inputs",
    "X",
    "X_stride",
    "target_columns",
    "targets",
    "target_stride",
    "outputs",
    "logits",
    "logit_stride",
    "loss_gradient",
    "loss_gradient_stride",
    "row_losses",
    "partial",
    "hyper",
    "gradient",
    "first",  # the optimizer's state
    "second",
    "master",  # parameters as numbers, where operands are others
)

# Set by the program: a tile may be of fewer rows than its batches.
EPOCH = table("batch_size", "rows")

# Fixed by a placement, for each layer. A thread that walks over W takes some elements `together`. A
# row has `across` times as many. Then it goes `down` and `along`.
LAYER = table(
    "fan_in",
    "fan_out",
    "W",
    "W_stride",
    "b",
    "weights",  # how many it has
    "A",  # what it reads
    "A_stride",
    "out",  # its activation: the last layer's is in `numbers`
    "out_stride",
    # What its slope reads: Z in `numbers` where `keeps_input` is 1, else the whole activation, or
    # `out`: where all outputs are kept, or the slope reads no more than the sign.
    "kept",
    "kept_stride",
    "keeps_input",
    "keep_threshold",  # see `algebra.dropout`; 0 where all outputs are kept
    "dZ",
    "dZ_stride",
    "start",  # of its parameters in the flat vector
    "activation",
    "together",
    "across",
    "down",
    "along",
)

# Where the records begin, in words.
EPOCH_PLACE = len(TILE.names)
LAYERS_PLACE = EPOCH_PLACE + len(EPOCH.names)
LAYER_WORDS = len(LAYER.names)


def _in_order(record: np.dtype, values: Mapping[str, int]) -> list[int]:
    if values.keys() != set(record.names):
        raise ValueError(f"fields: got {sorted(values)}, wanted {sorted(record.names)}")
    return [values[name] for name in record.names]


def whole(
    tile: Mapping[str, int], epoch: Mapping[str, int], layers: Sequence[Mapping[str, int]]
) -> np.ndarray:
    """Return the table, as an array of int64."""
    words = _in_order(TILE, tile) + _in_order(EPOCH, epoch)
    for layer in layers:
        words += _in_order(LAYER, layer)
    return np.array(words, np.int64)
