"""The tables that describe a program to compiled code: records of named words, all int64.

Compiled kernels hold no shape, dtype or function: everything is an address or a number in these
tables, so that one compilation serves every problem. Addresses are those of arrays that the
program keeps alive. Each table is declared here, once, as a NumPy dtype. Compiled code reads its
fields by name from `intrinsics.record_at`; Python fills them by name, and those that a call sets by
their index (`at`).
"""

from itertools import product
from types import ModuleType

import numpy as np

from fastmlp_kernels.cpu import finishing_tiles
from fastmlp_kernels.cpu.finishing_tiles import FINISHES
from fastmlp_kernels.records import table

# What a call does, as bits of ``step.stages``, in the order in which they are done.
PACK, GATHER, FORWARD, OUTPUT, LOSS, UPSTREAM, BACKWARD, INPUT_GRADIENT, GRADIENT, UPDATE = (
    1 << k for k in range(10)
)
# Whether the forward and the backward pass are those of a training step.
DROPOUT = 1 << 10
# Whether updates are made in the panels, and copied to where the caller has the weights at the end.
UNPACK = 1 << 11

# What ``step.skips`` holds, one bit each: the forward product over lists of k, the weight gradient
# over lists of rows.
SKIPS_COLUMNS, SKIPS_ROWS = 1, 2

# What ``step.packed`` holds. Biases and single columns are in panels always; of other weights,
# none, all, those in columns that do not fill a panel, or a block at a time, copied by whoever
# multiplies with it.
UNPACKED, PACKED, EDGES, BLOCKWISE = range(4)

WORD_BYTES = 8
CACHE_LINE = 64


def indices(record: np.dtype) -> ModuleType:
    """Return where each word of a record stands in an array of int64, by its name."""
    assert record.fields is not None
    # A module: Python reads no other object's attributes as fast.
    places = ModuleType("indices")
    for name, (_, offset) in record.fields.items():
        setattr(places, name, offset // WORD_BYTES)
    return places


# Strides and offsets are in elements; a name of an array or of a function is its address.

# Of a step: what is the same for all programs of a problem, an instruction set and a number of
# threads.
STEP_FIXED = table(
    "layers",  # rows of the chain
    "item",  # bytes of an element
    "panel",  # columns of a panel
    "lanes",  # elements of a vector
    "feature_tile",  # rows of a weight-gradient tile that is a panel wide
    "narrow_feature_tile",  # and of one that is a vector wide
    "capacity",  # rows that a panel has room for
    "row_block",  # rows that go through all layers together
    "depth_block",  # k of a product before the next column panel, a multiple of a panel
    "sum_block",  # rows of a weight gradient before the next tile
    "largest",  # magnitudes from here on are not finite
    "batch_size",
    "input_columns",
    "target_columns",
    "output_columns",
    "losses_per_row",
    "units",
    "keeps_output",  # 1: output_value works in place
    "inputs_stride",  # bytes from a thread's panels of X to the next's
    "scratch_stride",  # of a tile of a gradient: a square of a panel, and a row for the biases
    "hyper_stride",  # bytes from a batch's hyper-parameters to the next's
    "layer_hyper_stride",  # bytes from a layer's to the next's: 0 where all have the same
    "clipping",  # index in CLIPPINGS
    "column_lists_stride",  # bytes from a thread's lists to the next's
    "column_list_bytes",
    "row_lists_stride",
    "row_list_bytes",
    "weight_block_stride",  # bytes from a thread's block of weights to the next's
    "weight_block_depth",  # rows of such a block
    # Functions.
    "copy_rows",
    "transpose",
    "dot_rows",
    "direct_row",  # or 0 where the instruction set has no masks
    "gradient_single",
    "gradient_narrow",
    "gradient_wide",
    "column_sum",
    "list_columns",
    "list_rows",
    "listed_gradient_narrow",
    "listed_gradient_wide",
    "sum_losses",
    "sum_squares",
    "clip",
    "clip_scale",
    "dropout_copy",
    "dropout_in_place",
    "check",  # the identity's leaf, which changes nothing and returns the largest magnitude
    "unit_slope",  # and that of its slope
)

# Of a step: the arrays of a program.
STEP_MEMORY = table(
    "chain",  # of LAYER, one a layer
    "tiles",  # of TILE, one a height, the largest first
    "meeting",  # the team's MEETING
    "bells",  # the team's BELLs
    "identity",  # 0, 1, 2, ... as an order
    "inputs",
    "own_targets",
    "row_losses",
    "predictions",
    "slopes",
    "input_delta",
    "scratch",
    "column_lists",
    "row_lists",
    "weight_blocks",  # each thread's block of a panel of weights
    "zeros",
    "scales",
    "unit_squares",  # float64 sums of squares of the units of weights
    "gradient_squares",  # those of each unit's gradient: of its weights, of its biases
    "one",  # the number 1
    "unused",  # 8 bytes that nobody reads
)

# Of a step: what a call sets, or compiled code itself.
STEP_CALL = table(
    "stages",
    "threads",  # of the team
    "places",  # the team's processors, or 0
    "halt",  # set by thread 0 for all: stop before the next batch
    "abandoned",  # set by any thread for all: somebody said stop, the batch stays unfinished
    "rows",  # of the epoch
    "batches",
    "first_row",  # the place of the first row in its whole batch, of which others have the rest
    "columns",  # 1: the team shares the columns of the first layer, each with its own X in panels
    "skips",  # lists that the first layer's products walk: bits above
    "packed",  # what of the weights is in panels: see below
    "sequential",  # 1: rows in their own order, X and out advancing by whole batches
    "panel_stride",  # from a panel of activations to the next
    "claims",  # 1: threads take blocks of rows, one after another, that nobody has taken
    "claim_rows",  # that a thread takes at once
    "own_rows",  # of them, those that go through all layers together
    "direct_rows",  # a prediction of up to so many reads the weights where the caller has them
    "few_rows",  # and of up to so many one row after another
    "not_finite",  # set by any thread: X of a prediction holds a number that is not
    "called",  # threads that were called to a prediction
    "unit_cost",  # of all units of weights together
    # The phases of a whole batch in a straight line, or 0; see `cpu.straight_line`.
    "rows_code",
    "units_code",  # gradients, and their update where no norm is limited
    "finishing_code",  # the update where one is
    # The caller's arrays.
    "X",
    "Y",
    "order",
    "hyper",
    "losses",
    "control",
    "gradient",  # of the caller, to be applied in place of the rows' own; or 0
    "squares_out",  # of the caller: a float64 sum of squares for each batch, or 0
    "target",  # flat vector that `finish` writes: parameters, or a gradient
    "first",
    "second",
    "parameters",
    "out",
    "upstream_rows",
    "input_gradient_rows",
    "factors",  # of each row of the epoch, in its order; 0: one of the scales for all rows
    "targets",  # the caller's, or own_targets
    "output_gradient",  # row-major: what BACKWARD starts from, and UPSTREAM writes
    # Functions.
    "loss_rule",
    "finish",
    "finish_row",  # of the gradient of a single row, which is not computed before; or 0
    "link",
    "output_value",
    "output_slope",
)

STEP = table(*STEP_FIXED.names, *STEP_MEMORY.names, *STEP_CALL.names)
# NumPy takes five times as long to set a field as an element of an array of int64.
at = indices(STEP)

# Of a layer: what is the same for all programs of a problem, an instruction set and a number of
# threads.
LAYER_FIXED = table(
    "fan_in",
    "fan_out",
    "weight",  # offsets in the flat vector
    "bias",
    "W_stride",  # between the panels of both copies of the weights
    "transposed_stride",
    "keep_threshold",  # see `algebra.dropout`; 0 where all outputs are kept
    "value_tile",  # index in TILE of the tiles that apply value and slope to a product, or 0
    "slope_tile",
    # Functions.
    "value",
    "slope",
)

# Of a layer: the arrays of a program.
LAYER_MEMORY = table(
    "W",  # both copies of the weights
    "transposed",
    "B",
    "input",  # panels of activations
    "training_input",  # those that are left after dropout
    "keep_scale",
    "Z",
    "A",
    "kept",
    "delta",
    "gradient",  # the first unit's tile, where norms are clipped
    "gradient_squares",  # the first unit's sums
    "squares",  # the first unit's sum
)

LAYER = table(*LAYER_FIXED.names, *LAYER_MEMORY.names)


def _finishing_name(activation: str, direction: str, width: str) -> str:
    return f"{activation}_{direction}_{width}"


# Of a height of tiles: rows, and functions for one vector of columns, for two, and for several
# panels: of one row alone, 0 in the others.
WIDTHS = ("narrow", "wide", "panels")
NARROW, WIDE, PANELS = range(3)
TILE = table(
    "rows",
    *WIDTHS,
    *(
        _finishing_name(*names)
        for names in product(FINISHES, (finishing_tiles.FORWARD, finishing_tiles.BACKWARD), WIDTHS)
    ),
    "direct",
    "listed_narrow",
    "listed_wide",
)
# An index of tiles is that of the narrow ones, which the others follow. These store a product as it
# is.
TILE_INDICES = indices(TILE)
PLAIN_TILE = TILE_INDICES.narrow

# A team's meeting place: words in cache lines of their own.
MEETING = np.dtype(
    {
        "names": ["arrived", "generation", "taken_weights", "copied_weights", "taken_rows"],
        "formats": [np.int64] * 5,
        "offsets": [CACHE_LINE * k for k in range(5)],
        "itemsize": 5 * CACHE_LINE,
    },
    align=True,
)
# A team's bells: the first one's word counts the threads that are done, each other one is a
# thread's.
BELL = np.dtype(
    {"names": ["state"], "formats": [np.int64], "offsets": [0], "itemsize": CACHE_LINE}, align=True
)
# Of a set of processors, as the C library keeps it.
MASK_BYTES = 128


def finishing_tile(activation: str, direction: str) -> int:
    """Return the index in TILE of the tiles that end with an activation or its slope."""
    return getattr(TILE_INDICES, _finishing_name(activation, direction, "narrow"))


def address(array: np.ndarray) -> int:
    """Return where an array's data begins."""
    # Not `__array_interface__`, which describes all fields of a record as well.
    return array.ctypes.data
