"""The record of a handle, who may work with it, and what its calls answer."""

from fastmlp_kernels.compile import part
from fastmlp_kernels.cpu.atomics import atomic_store, compare_and_swap
from fastmlp_kernels.cpu.intrinsics import field_address
from fastmlp_kernels.records import table

# The kinds of calls, each with a table of its own.
CALLS = (
    "predict",
    "forward",
    "backward",
    "input_backward",
    "gradient",
    "weighted_gradient",
    "step",
    "weighted_step",
    "apply",
)

HANDLE = table(
    "busy",  # 1 while a call works with the handle
    "run",  # function: `fused.run`
    *(f"{name}_table" for name in CALLS),
    *(f"enter_{name}" for name in ("predict", "forward", "backward", "gradient", "step", "apply")),
    "inputs",
    "outputs",
    "target_columns",
    "parameter_count",
    "labels",  # 1: targets are class labels
    "batch_size",  # the most rows of any call but a prediction
    "item",
    "slots",  # of the optimizer's state
    "largest",  # magnitudes from here on are not finite
    "parameters",
    "state",  # of the optimizer
    "control",
    "loss",  # of the last step or gradient
    "targets",  # room for targets that have to be converted
    "factors",  # room for a factor of each row's loss
    "factor",  # float64: the factor of a batch of each number of rows, from 0 on
    "scales",  # the same, rounded to the dtype
    "numbers",  # a table, `handle_numbers.NUMBERS`: the optimizer's numbers of steps
    "rate",  # float64: a learning rate in the place of the optimizer's; NaN if there is none
    "row",  # room for the numbers of a step at that rate
    "row_tile",  # the TILE of one row
    "taken",  # steps since the numbers were set
    "changes",  # steps and other changes of the parameters, since they were set as a whole
    "origin",  # a number of whoever set them as a whole
    "copies",  # which copies of the weights are up to date: see below
    "rows",  # of the last forward pass, if a backward pass may follow; else 0
)
# No copies are up to date; all are but the first layer's transposed one, which only the gradient of
# the inputs needs; all are.
STALE, FOR_TRAINING, ALL = range(3)

# What a call answers.
DONE, BUSY, NOT_FINITE, NO_NUMBERS, NO_FORWARD, NO_CLASS = range(6)


@part
def claim(handle):
    """Claim a handle for one call; return whether nobody else has it."""
    return compare_and_swap(field_address(handle, "busy"), 0, 1)


@part
def release(handle):
    """Let others have a handle."""
    atomic_store(field_address(handle, "busy"), 0)
