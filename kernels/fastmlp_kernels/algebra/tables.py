"""What every table of the algebra shares: rows by name, rows by code, intervals."""

import difflib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Interval:
    """An interval of the real line, each end included or not."""

    low: float
    high: float
    low_included: bool
    high_included: bool

    def contains(self, other: "Interval") -> bool:
        """Return whether every point of `other` is in this interval."""
        low = self.low < other.low or (
            self.low == other.low and (self.low_included or not other.low_included)
        )
        high = self.high > other.high or (
            self.high == other.high and (self.high_included or not other.high_included)
        )
        return low and high

    def __str__(self) -> str:
        left = "[" if self.low_included else "("
        right = "]" if self.high_included else ")"
        return f"{left}{self.low:g}, {self.high:g}{right}"


REAL = Interval(-math.inf, math.inf, False, False)
NON_NEGATIVE = Interval(0.0, math.inf, True, False)
POSITIVE = Interval(0.0, math.inf, False, False)


class Table:
    """Rows in a fixed order: a row's position is its code in compiled kernels.

    Codes live in memory only: whatever is saved stores names, so that rows may be reordered.

    Parameters
    ----------
    kind : str
        What one row is, for error messages.
    rows : tuple
        Objects with a ``name``.
    """

    def __init__(self, kind: str, rows: tuple) -> None:
        self.kind = kind
        self.rows = rows

    def __iter__(self) -> Iterator:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"<{len(self)} rows of kind {self.kind!r}: {', '.join(self.names)}>"

    @property
    def names(self) -> list[str]:
        """The names of the rows, in the order of their codes."""
        return [row.name for row in self.rows]

    def __getitem__(self, name: str) -> Any:
        """Return the row called `name`; raise KeyError with the nearest known name."""
        for row in self.rows:
            if row.name == name:
                return row
        near = difflib.get_close_matches(str(name), self.names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise KeyError(f"unknown {self.kind} {name!r}; {hint}known: {', '.join(self.names)}")

    def code(self, name: str) -> int:
        """Return the position of the row called `name`."""
        return self.rows.index(self[name])

    def append(self, row: Any) -> None:
        """Add a row before anything is compiled; a compiled switch does not see later rows."""
        self.rows = (*self.rows, row)
