"""Arrays of other libraries that lie on a GPU: checked there, and used without a copy.

What is right goes this way: C-contiguous, of the model's dtype, and nothing wrong with its values.
Everything else goes the host's way, as an array that lies there: it is converted, or refused in the
same words. A wrong value is rare, and its message shows the first one, so the array is brought to
the host for it.
"""

from typing import Any

from fastmlp.data.arrays import PROBABILITY_SLACK, DType
from fastmlp.device.machine import detect
from fastmlp.dispatch.planning import Where
from fastmlp_kernels.algebra import Loss


def follow(where: Where) -> Where:
    """Return where a call runs whose inputs lie on a GPU: they speak for it, if nothing else does.

    Without a GPU that can be used they say nothing.
    """
    automatic = where.device == "auto" and where.kernel is None
    if automatic and detect().cuda_missing is None:
        return where._replace(device="cuda")
    return where


def stays(where: Where) -> bool:
    """Return whether arrays on a GPU are used there: whether that is where the call runs."""
    device, kernel, _ = where
    there = device == "cuda" or (device == "auto" and str(kernel).startswith("cuda."))
    return there and detect().cuda_missing is None


def as_device(value: Any, argument: str) -> Any | None:
    """Return an array on the GPU as kernels take it, without a copy; None if they cannot."""
    from fastmlp_kernels.cuda.device.foreign import as_device

    # A tensor that records gradients refuses to be read.
    value = value.detach() if hasattr(value, "detach") else value
    try:
        return as_device(value, argument)
    except (TypeError, ValueError, BufferError):
        # Of numbers that NumPy has no dtype for (bfloat16), or masked.
        return None


def all_within(array: Any, low: float, high: float, kind: int = 0) -> bool:
    """Return whether all elements are finite and within bounds; see `checks.find_outside`."""
    from fastmlp_kernels.cuda.device.checks import Outside

    return not Outside(array.dtype, low, high, kind).any([array])


def are_probabilities(matrix: Any) -> bool:
    """Return whether every row sums to 1."""
    from fastmlp_kernels.cuda.device.checks import any_bad_sum

    return not any_bad_sum(matrix, PROBABILITY_SLACK)


def matrix_there(value: Any, columns: int, dtype: DType, argument: str) -> Any | None:
    """Return dtype[rows, columns] where it lies; None if it must go the host's way."""
    array = _usable(value, dtype, argument)
    if array is None or array.ndim != 2 or array.shape[1] != columns:
        return None
    return array if all_within(array, -float("inf"), float("inf")) else None


def targets_there(
    value: Any, rows: int, outputs: int, loss: Loss, dtype: DType, argument: str
) -> tuple[Any, bool] | None:
    """Return targets, and whether they are labels, where they lie; None for the host's way.

    Labels too are used without a copy, which would cost every step an allocation on the GPU: what
    the caller writes to them in the meantime changes numbers, and no more.
    """
    from fastmlp_kernels.cuda.device.checks import OPEN_HIGH, OPEN_LOW, WHOLE

    array, outputs = _usable(value, dtype, argument), loss.target_columns(outputs)
    if array is None or array.ndim not in (1, 2) or len(array) != rows:
        return None
    flat = array.ndim == 1 or array.shape[1] == 1
    if loss.label_rule is not None and flat:
        good = all_within(array, 0, outputs - 1, WHOLE)
        return (array.reshape(rows, 1), True) if good else None
    if array.size != rows * outputs:
        return None
    domain = loss.target_domain
    kind = (0 if domain.low_included else OPEN_LOW) | (0 if domain.high_included else OPEN_HIGH)
    matrix = array.reshape(rows, outputs)
    if not all_within(matrix, domain.low, domain.high, kind):
        return None
    if loss.label_rule is not None and not are_probabilities(matrix):
        return None
    return matrix, False


def _usable(value: Any, dtype: DType, argument: str) -> Any | None:
    """Return the array where it lies if the kernels can read it as it is, else None."""
    array = as_device(value, argument)
    if array is None or array.dtype != dtype or array.size == 0 or not array.is_c_contiguous():
        return None
    return array
