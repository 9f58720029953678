"""What every table of the algebra shares: rows by name, rows by code, intervals."""

import difflib
import math
from collections.abc import Iterator, Mapping
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


def with_numbers(name: str, numbers: Mapping[str, float]) -> str:
    """Return the name of a row that has other numbers than its table's: "huber(delta=2.0)"."""
    return f"{name}({', '.join(f'{each}={number!r}' for each, number in numbers.items())})"


def split_numbers(name: str) -> tuple[str, dict[str, float]]:
    """Return the name of a table's row and the numbers that `with_numbers` has put after it.

    Raises
    ------
    ValueError
        If the numbers are not written as there.
    """
    row, parenthesis, rest = name.partition("(")
    if not parenthesis:
        return row, {}
    if not rest.endswith(")"):
        raise ValueError(f"{name!r} has no end")
    pairs = [each.split("=") for each in rest[:-1].split(",")]
    numbers = {key.strip(): float(number) for key, number in pairs}
    if len(numbers) < len(pairs):
        raise ValueError(f"{name!r} has a number twice")
    return row.strip(), numbers


class Table:
    """Rows in a fixed order: a row's position is its code in compiled kernels.

    Codes live in memory only: whatever is saved stores names, so that rows may be reordered. A row
    that is made of another one by other numbers has a name and no code: it is made when its name is
    looked up, so that the name is all that any process needs.

    Parameters
    ----------
    kind : str
        What one row is, for error messages.
    rows : tuple
        Objects with a ``name``.

    Examples
    --------
    >>> fastmlp.ACTIVATIONS["relu"].formula
    'max(z, 0)'
    >>> "adam" in fastmlp.OPTIMIZERS.names
    True
    """

    def __init__(self, kind: str, rows: tuple) -> None:
        self.kind = kind
        self.rows = rows
        self._made: dict[str, Any] = {}

    def __iter__(self) -> Iterator:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, row: Any) -> bool:
        return any(row is each for each in (*self.rows, *self._made.copy().values()))

    def __repr__(self) -> str:
        return f"<{len(self)} rows of kind {self.kind!r}: {', '.join(self.names)}>"

    @property
    def names(self) -> list[str]:
        """The names of the rows, in the order of their codes."""
        return [row.name for row in self.rows]

    def __getitem__(self, name: str) -> Any:
        """Return the row called `name`; raise KeyError with the nearest known name.

        A name has one row, always the same object, whichever thread asks first.
        """
        for row in self.rows:
            if row.name == name:
                return row
        if "(" in str(name):
            made = self._made.get(name)
            return made or self._made.setdefault(name, self._make(name))
        near = difflib.get_close_matches(str(name), self.names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise KeyError(f"unknown {self.kind} {name!r}; {hint}known: {', '.join(self.names)}")

    def _make(self, name: str) -> Any:
        row, numbers = split_numbers(name)
        made = self[row].with_numbers(**numbers)
        # Another spelling of a name would be another row, with code of its own.
        if made.name != name:
            raise KeyError(f"{self.kind} {name!r} is called {made.name!r}")
        return made

    def code(self, name: str) -> int:
        """Return the position of the row called `name`."""
        return self.rows.index(self[name])

    def append(self, row: Any) -> None:
        """Add a row before anything is compiled; a compiled switch does not see later rows."""
        self.rows = (*self.rows, row)
