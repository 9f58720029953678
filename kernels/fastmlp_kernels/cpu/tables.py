"""The tables that describe a program to compiled code: words, chain and tiles, all int64.

Compiled kernels hold no shape, dtype or function: everything is an address or a number in these
tables, so that one compilation serves every problem. Addresses are those of arrays that the
program keeps alive.
"""

import numpy as np

from fastmlp_kernels.cpu.finishing_tiles import FINISHES

# What a call does, as bits of ``words[STAGES]``, in the order in which they are done.
PACK, GATHER, FORWARD, OUTPUT, LOSS, UPSTREAM, BACKWARD, INPUT_GRADIENT, GRADIENT, UPDATE = (
    1 << k for k in range(10)
)

WORD_BYTES = 8

# Words of the program. Strides and offsets are in elements, "address" says an address.
(
    STAGES,
    MEMBERS,  # threads of the team
    PLACES,  # address of the team's processors, or 0
    MEETING,  # address of its meeting place
    BELLS,  # address of its bells
    HALT,  # set by member 0 for all: stop before the next batch
    ABANDONED,  # set by any member for all: the present batch stays unfinished, somebody said stop
    CHAIN,  # address of the chain
    LAYERS,  # rows of the chain
    TILES,  # address of the tiles
    ITEM,  # bytes of an element
    PANEL,  # columns of a panel
    LANES,  # elements of a vector
    FEATURE_TILE,  # rows of a weight-gradient tile
    PANEL_STRIDE,  # from a panel of activations to the next
    ROW_BLOCK,  # rows that go through all layers together
    DEPTH_BLOCK,  # k of a product before the next column panel, a multiple of PANEL
    SUM_BLOCK,  # rows of a weight gradient before the next tile
    LARGEST,  # magnitudes from here on are not finite
    BATCH_SIZE,
    ROWS,  # of the epoch
    BATCHES,
    COLUMNS,  # 1: the team shares the columns of the first layer, each with its own X in panels
    SKIPS,  # lists that the first layer's products walk: bits below
    PACKED,  # 0: only biases and single columns are in panels
    SEQUENTIAL,  # 1: rows in their own order, X and OUT advancing by whole batches
    INPUT_COLUMNS,
    TARGET_COLUMNS,
    OUTPUT_COLUMNS,
    UNIT_COST,  # of all units of weights together
    KEEPS_OUTPUT,  # 1: OUTPUT_VALUE works in place
    # Addresses of the caller's arrays.
    X,
    Y,
    ORDER,
    HYPER,
    LOSSES,
    CONTROL,
    SQUARES_OUT,  # of the caller: a float64 sum of squares for each batch, or 0
    TARGET,  # flat vector that FINISH writes: parameters, or a gradient
    FIRST,
    SECOND,
    PARAMETERS,
    OUT,
    UPSTREAM_ROWS,
    INPUT_GRADIENT_ROWS,
    # Addresses within the workspace.
    IDENTITY,  # 0, 1, 2, ... as an order
    INPUTS,
    INPUTS_STRIDE,  # bytes from a member's panels of X to the next's
    TARGETS,
    ROW_LOSSES,
    LOSSES_PER_ROW,
    PREDICTIONS,
    SLOPES,
    OUTPUT_GRADIENT,  # row-major: what BACKWARD starts from, and UPSTREAM writes
    INPUT_DELTA,
    SCRATCH,
    SCRATCH_STRIDE,
    COLUMN_LISTS,
    COLUMN_LISTS_STRIDE,  # bytes from a member's lists to the next's
    COLUMN_LIST_BYTES,
    ROW_LISTS,
    ROW_LISTS_STRIDE,
    ROW_LIST_BYTES,
    ZEROS,
    SCALES,
    FACTORS,  # of each row of the epoch, in its order; 0: one of SCALES for all rows
    UNIT_SQUARES,  # float64 sums of squares of the units of weights
    UNITS,
    UNUSED,  # 8 bytes that nobody reads
    # Addresses of functions.
    COPY_ROWS,
    TRANSPOSE,
    DOT_ROWS,
    DIRECT,
    GRADIENT_SINGLE,
    GRADIENT_NARROW,
    GRADIENT_WIDE,
    COLUMN_SUM,
    LIST_COLUMNS,
    LIST_ROWS,
    LISTED_GRADIENT_NARROW,
    LISTED_GRADIENT_WIDE,
    LOSS_RULE,
    SUM_LOSSES,
    SUM_SQUARES,
    FINISH,
    LINK,
    OUTPUT_VALUE,
    OUTPUT_SLOPE,
    CHECK,
    WORDS,
) = range(90)

# What SKIPS holds, one bit each: the forward product over lists of k, the weight gradient over
# lists of rows.
SKIPS_COLUMNS, SKIPS_ROWS = 1, 2

# Columns of the chain, one row a layer.
(
    FAN_IN,
    FAN_OUT,
    WEIGHT,  # offsets in the flat vector
    BIAS,
    W,  # addresses of both copies of the weights, and the strides between their panels
    W_STRIDE,
    TRANSPOSED,
    TRANSPOSED_STRIDE,
    B,
    INPUT,  # addresses of panels of activations
    Z,
    A,
    KEPT,
    DELTA,
    SQUARES,  # address of the first unit's sum
    VALUE_TILE,  # columns of the tiles that apply value and slope to a product, or 0
    SLOPE_TILE,
    VALUE,  # addresses of functions
    SLOPE,
    CHAIN_COLUMNS,
) = range(20)

# Columns of the tiles, one row a height, the largest first; from TILE_FINISHING on those that end
# with an activation, two for each and its direction: see `Layout`.
TILE_ROWS, TILE_NARROW, TILE_WIDE, TILE_FINISHING = range(4)
TILE_LISTED_NARROW = TILE_FINISHING + 2 * 2 * len(FINISHES)
TILE_LISTED_WIDE = TILE_LISTED_NARROW + 1
TILE_COLUMNS = TILE_LISTED_WIDE + 1


def address(array: np.ndarray) -> int:
    """Return where an array's data begins."""
    return array.__array_interface__["data"][0]
