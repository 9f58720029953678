"""Checks of single numbers that users give."""

import math
import secrets
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

from fastmlp.errors import DomainError, DTypeError
from fastmlp_kernels.algebra.tables import NON_NEGATIVE, POSITIVE, REAL, Interval

BETWEEN = Interval(0.0, 1.0, False, False)
_WANTED = {
    POSITIVE: "a finite number > 0",
    NON_NEGATIVE: "a finite number >= 0",
    REAL: "a finite number",
}

# A sequence of the codes of its characters is never what is meant.
TEXTS = (str, bytes, bytearray)
LARGEST_SHOWN = 10**100
# Of what is counted: a float can hold it.
LARGEST_INTEGER = 2**1000 - 1


def check_integer(
    value: Any, argument: str, low: int, high: int | None = None, why: str = ""
) -> int:
    """Return a whole number in [low, high]; `why` explains the upper end."""
    wanted = f"a whole number >= {low}" if high is None else f"a whole number from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise DTypeError(f"{argument}: got {value!r}, wanted {wanted}{why}")
    number = int(value)
    if high is None and number > LARGEST_INTEGER:
        raise DomainError(f"{argument}: got {_shown(number)}, wanted {wanted} and < 2**1000")
    if number < low or (high is not None and number > high):
        raise DomainError(f"{argument}: got {_shown(number)}, wanted {wanted}{why}")
    return number


def check_seed(value: Any, argument: str, high: int, why: str = "") -> int:
    """Return a seed; None stands for one that is drawn, so that it can be read and used again."""
    # As many bits as a float holds, so that a seed survives JSON.
    return secrets.randbits(53) if value is None else check_integer(value, argument, 0, high, why)


def check_within(value: Any, argument: str, allowed: Interval, other: str = "") -> float:
    """Return a finite number in an interval; `other` says what else the argument may be."""
    number = _as_float(value, argument, f"a number{other}")
    if not (math.isfinite(number) and allowed.contains(Interval(number, number, True, True))):
        wanted = _WANTED.get(allowed, f"a number in {allowed}")
        raise DomainError(f"{argument}: got {_shown(value)}, wanted {wanted}")
    return number


def check_number(value: Any, argument: str, low: float = 0.0) -> float:
    """Return a finite number of at least `low`."""
    wanted = f"a finite number >= {low:g}"
    number = _as_float(value, argument, wanted)
    if not (math.isfinite(number) and number >= low):
        raise DomainError(f"{argument}: got {_shown(value)}, wanted {wanted}")
    return number


def check_positive(value: Any, argument: str) -> float:
    """Return a finite number above 0."""
    return check_within(value, argument, POSITIVE)


def check_switch(value: Any, argument: str) -> bool:
    """Return True or False, and take nothing else for one of them."""
    if not isinstance(value, bool | np.bool_):
        raise DTypeError(f"{argument}: got {value!r}, wanted True or False")
    return bool(value)


def is_sequence(value: Any) -> bool:
    """Return whether a value is a sequence: neither text nor an array without an axis."""
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    return isinstance(value, Sequence) and not isinstance(value, TEXTS)


def _as_float(value: Any, argument: str, wanted: str) -> float:
    """Return a number as a float; what exceeds all floats is infinite."""
    real = isinstance(value, Real) and not isinstance(value, bool)
    if not real:
        raise DTypeError(f"{argument}: got {value!r}, wanted {wanted}")
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _shown(value: Any) -> str:
    """Return a number as a message shows it: Python itself refuses to write very long ones."""
    if isinstance(value, Integral) and abs(int(value)) > LARGEST_SHOWN:
        return f"a whole number of {int(value).bit_length()} bits"
    return repr(value)
