"""Checks of single numbers that users give."""

import math
import secrets
from numbers import Integral, Real
from typing import Any

from fastmlp.errors import DomainError, DTypeError
from fastmlp_kernels.algebra.tables import NON_NEGATIVE, POSITIVE, REAL, Interval

_WANTED = {
    POSITIVE: "a finite number > 0",
    NON_NEGATIVE: "a finite number >= 0",
    REAL: "a finite number",
}


def check_integer(
    value: Any, argument: str, low: int, high: int | None = None, why: str = ""
) -> int:
    """Return a whole number in [low, high]; `why` explains the upper end."""
    wanted = f"a whole number >= {low}" if high is None else f"a whole number from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise DTypeError(f"{argument}: got {value!r}, wanted {wanted}{why}")
    number = int(value)
    if number < low or (high is not None and number > high):
        raise DomainError(f"{argument}: got {number}, wanted {wanted}{why}")
    return number


def check_seed(value: Any, argument: str, high: int, why: str = "") -> int:
    """Return a seed; None stands for one that is drawn, so that it can be read and used again."""
    # As many bits as a float holds, so that a seed survives JSON.
    return secrets.randbits(53) if value is None else check_integer(value, argument, 0, high, why)


def check_within(value: Any, argument: str, allowed: Interval, other: str = "") -> float:
    """Return a finite number in an interval; `other` says what else the argument may be."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise DTypeError(f"{argument}: got {value!r}, wanted a number{other}")
    number = float(value)
    if not (math.isfinite(number) and allowed.contains(Interval(number, number, True, True))):
        wanted = _WANTED.get(allowed, f"a number in {allowed}")
        raise DomainError(f"{argument}: got {value!r}, wanted {wanted}")
    return number


def check_number(value: Any, argument: str, low: float = 0.0) -> float:
    """Return a finite number of at least `low`."""
    wanted = f"a finite number >= {low:g}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise DTypeError(f"{argument}: got {value!r}, wanted {wanted}")
    number = float(value)
    if not (math.isfinite(number) and number >= low):
        raise DomainError(f"{argument}: got {value!r}, wanted {wanted}")
    return number
