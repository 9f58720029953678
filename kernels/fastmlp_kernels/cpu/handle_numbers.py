"""The optimizer's numbers of a handle's steps, and its learning rate, which may be set.

The numbers are computed ahead in NumPy, since powers of the C library have other bits. Those that
depend on the learning rate do so along a line: ``base + rate * slope``. So compiled code has
them for any rate, to a rounding of float64.
"""

import numpy as np
from numba.core import types

from fastmlp_kernels.compile import part
from fastmlp_kernels.cpu.handle_type import doubles, singles
from fastmlp_kernels.cpu.intrinsics import copy_bytes, record_at, word
from fastmlp_kernels.cpu.tables import address
from fastmlp_kernels.records import table

NUMBERS = table(
    "hyper",  # rows of numbers, of one step after another, in the handle's dtype
    "rows",
    "stride",  # bytes of a row
    "lasting",  # 1: the last of those rows holds for all steps that follow
    "rates",  # float64: the optimizer's learning rate of each step, or one for all
    "rate_count",
    "columns",  # int64: where a row depends on the rate
    "column_count",
    "bases",  # float64[rows, columns]: those numbers at a rate of 0
    "slopes",  # float64[rows, columns]: by how much they grow with the rate
)


class StepNumbers:
    """The optimizer's numbers of steps, in memory that compiled code reads.

    Parameters
    ----------
    hyper : ndarray
        dtype[steps, hyper_columns].
    lasting : bool
        Whether the last of them hold for ever.
    rates : ndarray
        float64[steps], or float64[1] for all.
    columns : ndarray
        int64[count], where the numbers depend on the learning rate.
    bases, slopes : ndarray
        float64[steps, count]: a number is ``base + rate * slope`` there.
    """

    def __init__(
        self,
        hyper: np.ndarray,
        lasting: bool,
        rates: np.ndarray,
        columns: np.ndarray,
        bases: np.ndarray,
        slopes: np.ndarray,
    ) -> None:
        self.record = np.zeros(1, dtype=NUMBERS)
        arrays = {
            "hyper": np.ascontiguousarray(hyper),
            "rates": np.ascontiguousarray(rates, dtype=np.float64),
            "columns": np.ascontiguousarray(columns, dtype=np.int64),
            "bases": np.ascontiguousarray(bases, dtype=np.float64),
            "slopes": np.ascontiguousarray(slopes, dtype=np.float64),
        }
        self._kept = arrays
        for name, array in arrays.items():
            self.record[name] = address(array)
        self.record["rows"], self.record["stride"] = len(hyper), arrays["hyper"].strides[0]
        self.record["lasting"] = lasting
        self.record["rate_count"], self.record["column_count"] = len(rates), len(columns)

    @property
    def place(self) -> int:
        """The address of the record."""
        return address(self.record)


@part
def rate_of(handle):
    """Return the learning rate of the next step."""
    rate, numbers = doubles(handle.rate)[0], record_at(handle.numbers, NUMBERS, 0)
    if rate == rate:
        return rate
    return doubles(numbers.rates)[min(handle.taken, numbers.rate_count - 1)]


@part
def set_rate(handle, rate):
    """Have all steps from now on take a learning rate."""
    doubles(handle.rate)[0] = rate


@part
def set_numbers(handle, step):
    """Point a table at the optimizer's numbers of the next step; return whether there are any."""
    numbers, index = record_at(handle.numbers, NUMBERS, 0), handle.taken
    if index >= numbers.rows:
        if numbers.lasting == 0:
            return False
        index = numbers.rows - 1
    step.hyper = numbers.hyper + index * numbers.stride
    rate = doubles(handle.rate)[0]
    # NaN is no rate: those of the optimizer hold.
    if rate != rate:
        return True
    copy_bytes(handle.row, step.hyper, numbers.stride)
    step.hyper = handle.row
    for k in range(numbers.column_count):
        column, at = word(numbers.columns, k), index * numbers.column_count + k
        number = doubles(numbers.bases)[at] + rate * doubles(numbers.slopes)[at]
        if handle.item == 4:
            singles(handle.row)[column] = types.float32(number)
        else:
            doubles(handle.row)[column] = number
    return True
