"""The calls that a part of a kernel makes for one problem, written down and not made.

A part is a plain Python function before it is compiled. Here Python runs it, with the tables of a
program as plain numbers. What only a batch knows, such as where its rows begin, is a symbol. Each
call of a leaf is written down with its arguments. All loops over layers, panels and tiles are gone
then, and all tables.
"""

import builtins
import dis
import threading
import types
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import numpy as np
from numba.core.dispatcher import Dispatcher

from fastmlp_kernels.cpu.intrinsics import call, field_word, next_record, record_at
from fastmlp_kernels.cpu.tables import STEP_CALL, STEP_FIXED, STEP_MEMORY

# Words of a step that may differ between two calls of one kind. A recording reads them as symbols.
SYMBOLS = ("X", "Y", "order", "target", "first", "second", "out", "upstream_rows")
SYMBOLS += ("input_gradient_rows",)
# These too, where a kind of call has them at all.
OPTIONAL = ("factors", "gradient")
# Those that no recording may read, as nothing that is written down could follow them.
UNKNOWN = {"halt", "abandoned", "rows", "batches", "not_finite", "called", "hyper", "losses"}
UNKNOWN |= {"control", "squares_out", "parameters", "scales"}


class Sum:
    """A number that is known when a batch is: a constant, and symbols with factors."""

    __slots__ = ("constant", "terms")

    def __init__(self, terms: tuple[tuple[str, int], ...], constant: int = 0) -> None:
        self.terms, self.constant = terms, constant

    def __add__(self, other: "Sum | int") -> "Sum":
        if isinstance(other, Sum):
            return Sum(tuple(sorted((*self.terms, *other.terms))), self.constant + other.constant)
        return Sum(self.terms, self.constant + other)

    __radd__ = __add__

    def __mul__(self, factor: int) -> "Sum":
        terms = tuple((name, count * factor) for name, count in self.terms)
        return Sum(terms, self.constant * factor)

    __rmul__ = __mul__


def symbol(name: str) -> Sum:
    """Return a symbol as a number."""
    return Sum(((name, 1),))


class Largest:
    """The largest of what some calls return, by their places among all."""

    __slots__ = ("places",)

    def __init__(self, places: frozenset[int]) -> None:
        self.places = places


class Call(NamedTuple):
    """A call of a leaf: its address, and numbers and sums."""

    leaf: int
    arguments: tuple[Any, ...]


class Record(types.SimpleNamespace):
    """A record of a table: its words by their names, also as a list, and what follows it."""


class Recording:
    """What parts are run with: records of tables, and the calls that have been written down.

    Parameters
    ----------
    step, chain, tiles : ndarray
        Records of STEP, of LAYER and of TILE. `step` is that of a kind of call.
    """

    def __init__(self, step: np.ndarray, chain: np.ndarray, tiles: np.ndarray) -> None:
        (whole,) = _records(step)
        names = {*STEP_FIXED.names, *STEP_MEMORY.names, *STEP_CALL.names} - UNKNOWN
        self._step = Record(**{name: getattr(whole, name) for name in names})
        for name in (*SYMBOLS, *(each for each in OPTIONAL if getattr(whole, each))):
            setattr(self._step, name, symbol(name))
        self.tables = {whole.chain: _records(chain), whole.tiles: _records(tiles)}
        self.calls: list[Call] = []

    def run(self, part: Any, *arguments: Any) -> tuple[list[Call], frozenset[int]]:
        """Return the calls that a part makes of leaves, and the places of those it returns.

        `arguments` are what the part is given after the step. Its result is the largest of what the
        calls at those places return, or 0.
        """
        self.calls = []
        _current.recording = self
        try:
            found = _twin(part)(self._step, *arguments)
        finally:
            _current.recording = None
        return self.calls, found.places if isinstance(found, Largest) else frozenset()


# A thread's own: two may record at once.
_current = threading.local()


def _records(array: np.ndarray) -> list[Record]:
    """Return records as objects of plain numbers, each with the one that follows it."""
    assert array.dtype.names is not None
    rows = array.view(np.int64).reshape(len(array), -1).tolist()
    records = [Record(words=row, **dict(zip(array.dtype.names, row, strict=True))) for row in rows]
    for record, following in zip(records, records[1:], strict=False):
        record.following = following
    return records


def _call(leaf: int, arguments: tuple[Any, ...]) -> Largest:
    calls = _current.recording.calls
    calls.append(Call(leaf, arguments))
    return Largest(frozenset((len(calls) - 1,)))


def _record_at(address: int, dtype: np.dtype, index: int) -> Record:
    return _current.recording.tables[address][index]


def _next_record(record: Record) -> Record:
    return record.following


def _field_word(record: Record, index: int) -> int:
    return record.words[index]


def _max(*numbers: Any) -> Any:
    places = [each.places for each in numbers if isinstance(each, Largest)]
    return Largest(frozenset().union(*places)) if places else builtins.max(*numbers)


# What a part calls, and what is called in its place. Any other intrinsic fails: Python cannot call
# it.
STAND_INS: dict[Any, Callable] = {
    call: _call,
    record_at: _record_at,
    next_record: _next_record,
    field_word: _field_word,
}
_twins: dict[Any, Callable] = {}


def _twin(part: Any) -> Callable:
    """Return a part as a Python function that writes down the calls of leaves."""
    found = _twins.get(part)
    if found is None:
        function = part.py_func
        names = dict(function.__globals__, max=_max)
        # Not co_names: it holds attributes too, and the field `dot_rows` is not the part.
        loads = {i.argval for i in dis.get_instructions(function) if i.opname == "LOAD_GLOBAL"}
        for name in loads & function.__globals__.keys():
            value = names[name]
            if isinstance(value, Dispatcher):
                names[name] = _twin(value)
            elif isinstance(value, Hashable):
                names[name] = STAND_INS.get(value, value)
        found = types.FunctionType(function.__code__, names, function.__name__)
        _twins[part] = found
    return found
