"""What a file of a model holds: its description by names and numbers, and its arrays."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmlp.atomic_writing import write_atomically
from fastmlp.dispatch.problems import check_memory, make_problem
from fastmlp.errors import DTypeError, FastMLPError, ModelFileError
from fastmlp.files.container import pack
from fastmlp.history import EpochRecord, History
from fastmlp.state.parameters import aligned
from fastmlp.state.training_state import TrainingState
from fastmlp.version import VERSION
from fastmlp_kernels.algebra import OPTIMIZERS
from fastmlp_kernels.problem import Problem

Array = NDArray[Any]
Header = dict[str, Any]
Arrays = dict[str, Array]

# Of a problem, what describes the network.
DESCRIBED = ("sizes", "activations", "loss", "reduction", "dtype", "precision")
# Written where it is not empty, and so read by what was there before it was.
DROPOUT = "dropout"
LARGEST_COUNT = 2**63 - 1


class Contents(NamedTuple):
    """A model as a file holds it.

    Attributes
    ----------
    template : Problem
    members : int or None
        Networks of an ensemble, or None.
    state : TrainingState
    history : History or None
    columns : tuple of str or None
        The names of the columns of the data that it was trained on.
    vector : bool
        Whether the targets of one output were a vector.
    """

    template: Problem
    members: int | None
    state: TrainingState
    history: History | None = None
    columns: tuple[str, ...] | None = None
    vector: bool = False


def write(
    path: str | PathLike[str],
    kind: str,
    contents: Contents,
    more: Mapping[str, Any] | None = None,
    more_arrays: Mapping[str, Array] | None = None,
) -> None:
    """Write a model, and more beside it; `kind` is the class that `fastmlp.load` makes of it."""
    header, arrays = describe(contents)
    whole = {"kind": kind, **header, **(more or {})}
    write_atomically(path, pack(whole, {**arrays, **(more_arrays or {})}))


def kind_of(model: Any, method: str) -> str:
    """Return the name by which `fastmlp.load` knows the class of a model.

    Raises
    ------
    DTypeError
        If it is a class of somebody else, which no file can bring back.
    """
    kind: str | None = vars(type(model)).get("_kind")
    if kind is None:
        raise DTypeError(
            f"{method}: got a {type(model).__name__}, a class of your own that a file cannot bring "
            "back, wanted one of fastmlp itself; pickle it"
        )
    return kind


def describe(contents: Contents) -> tuple[Header, Arrays]:
    """Return the header and the arrays of a file; the state is copied while nobody changes it."""
    held = contents.state.__getstate__()
    steps, epochs, rule, slots, _, _ = held["now"]
    parameters = held["parameters"]
    header: Header = {name: getattr(contents.template, name) for name in DESCRIBED}
    if contents.template.dropout:
        header[DROPOUT] = contents.template.dropout
    header.update(
        fastmlp=VERSION,
        members=contents.members,
        seed=contents.state.seed,
        epochs=np.asarray(epochs).tolist(),
        steps=np.asarray(steps).tolist(),
        optimizer=rule,
        columns=contents.columns,
        vector=contents.vector,
        parameters_sha256=_digest(parameters),
        history=None,
    )
    arrays = {"parameters": parameters}
    if slots.size:
        arrays["optimizer_state"] = slots
    if contents.history is not None:
        header["history"], columns = _describe_history(contents.history)
        arrays |= columns
    return header, arrays


def restore(header: Mapping[str, Any], arrays: Mapping[str, Array], name: str) -> Contents:
    """Return what a file holds: see `describe`.

    Raises
    ------
    ModelFileError
        If anything is missing or does not fit the rest. `name` is what the message calls the file.
    """
    given = _Given(header, arrays, name)
    members = given.number("members", 1) if given.has("members") else None
    count = members or 1
    template = _template(given, count)
    networks = (count,) if count > 1 else ()
    state = _state(given, template, networks)
    columns = given.names("columns") if given.has("columns") else None
    history = _history(given, members) if given.has("history") else None
    return Contents(template, members, state, history, columns, given.of(bool, "vector"))


class _Given:
    """What a file holds, asked for by name; an error says what is wrong."""

    def __init__(self, header: Mapping[str, Any], arrays: Mapping[str, Array], name: str) -> None:
        self._header, self.arrays, self.name = header, arrays, name

    def refuse(self, what: str, wanted: str) -> ModelFileError:
        return ModelFileError(f"{self.name}: got {what}, wanted {wanted}")

    def has(self, key: str) -> bool:
        return self._header.get(key) is not None

    def of(self, kind: type, key: str) -> Any:
        value = self._header.get(key)
        if type(value) is not kind:
            raise self.refuse(f"{key}={value!r}", f"{key} as {kind.__name__}")
        return value

    def number(self, key: str, least: int = 0, most: int = LARGEST_COUNT) -> int:
        value: int = self.of(int, key)
        if not least <= value <= most:
            raise self.refuse(f"{key}={value}", f"a whole number from {least} to {most}")
        return value

    def counts(self, key: str, networks: tuple[int, ...]) -> Any:
        """Return a number, or of several networks int64[members]."""
        if not networks:
            return self.number(key)
        values = self.of(list, key)
        good = all(type(each) is int and 0 <= each <= LARGEST_COUNT for each in values)
        if len(values) != networks[0] or not good:
            raise self.refuse(f"{key}={values!r}", f"{networks[0]} whole numbers from 0")
        return np.array(values, dtype=np.int64)

    def names(self, key: str) -> tuple[str, ...]:
        values = self.of(list, key)
        if not all(isinstance(each, str) for each in values):
            raise self.refuse(f"{key}={values!r}", "a list of names")
        return tuple(values)

    def array(self, key: str, shape: tuple[int, ...], dtype: Any) -> Array:
        array, wanted = self.arrays.get(key), f"{key} of shape {shape} and {np.dtype(dtype)}"
        if array is None:
            raise self.refuse(f"no {key}", wanted)
        if array.shape != shape or array.dtype != dtype:
            raise self.refuse(f"{key} of shape {array.shape} and {array.dtype}", wanted)
        return array

    def checked(self, work: Callable[[], Any]) -> Any:
        """Return what `work` makes; an error of it is one of the file."""
        try:
            return work()
        except FastMLPError as error:
            raise ModelFileError(f"{self.name}: {error}") from None


def _digest(parameters: Array) -> str:
    return hashlib.sha256(parameters.data).hexdigest()


def _template(given: _Given, members: int) -> Problem:
    def make() -> Problem:
        units = given.of(list, "sizes"), given.of(list, "activations")
        names = [given.of(str, key) for key in DESCRIBED[2:]]
        dropout = given.of(list, DROPOUT) if given.has(DROPOUT) else ()
        problem = make_problem(*units, names[0], names[2], names[1], names[3], dropout)
        return check_memory(replace(problem, members=members))

    template: Problem = given.checked(make)
    return template


def _state(given: _Given, template: Problem, networks: tuple[int, ...]) -> TrainingState:
    size, dtype = template.parameter_count, np.dtype(template.dtype)
    parameters = given.array("parameters", (*networks, size), dtype)
    if _digest(parameters) != given.of(str, "parameters_sha256"):
        raise given.refuse("other parameters", "those that the header was written for")
    seed = given.number("seed", 0, 2**64 - template.members)
    counts = given.counts("epochs", networks), given.counts("steps", networks)
    state = TrainingState(aligned(parameters), seed, *counts)
    if not given.has("optimizer"):
        return state
    rule = given.of(str, "optimizer")
    if rule not in OPTIMIZERS.names:
        raise given.refuse(f"optimizer={rule!r}", f"one of {', '.join(OPTIMIZERS.names)}")
    slots = state.fresh_slots(OPTIMIZERS[rule].slots)
    if slots.size:
        slots[...] = given.array("optimizer_state", slots.shape, dtype)
    state.now = (counts[1], counts[0], rule, slots, None, 0)
    return state


def _describe_history(history: History) -> tuple[Header, Arrays]:
    best = history.best_epoch
    header = {name: getattr(history, name) for name in ("kernel", "device", "metric", "rows")}
    header["best_epoch"] = None if best is None else np.asarray(best).tolist()
    columns = {f"history.{name}": getattr(history, name) for name in EpochRecord._fields}
    return header, {name: each for name, each in columns.items() if len(each)}


def _history(whole: _Given, members: int | None) -> History:
    given = _Given(whole.of(dict, "history"), whole.arrays, f"{whole.name}: history")
    names = [given.of(str, key) for key in ("kernel", "device", "metric")]
    history = History(names[0], names[1], names[2], given.number("rows"), members)
    if given.has("best_epoch"):
        networks = () if members is None else (members,)
        history.best_epoch = given.counts("best_epoch", networks)
    if "history.loss" not in whole.arrays:
        return history
    epochs = len(whole.arrays["history.loss"])
    shape = (epochs,) if members is None else (epochs, members)
    columns = {}
    for name in EpochRecord._fields:
        # Those with a default, of the validation, may be missing.
        if name not in EpochRecord._field_defaults or f"history.{name}" in whole.arrays:
            size = (epochs,) if name == "seconds" else shape
            columns[name] = given.array(f"history.{name}", size, np.float64)
    for epoch in range(epochs):
        # Numbers of one network are plain floats.
        row = {name: column[epoch] for name, column in columns.items()}
        plain = {n: float(v) if np.ndim(v) == 0 else v for n, v in row.items()}
        history._epochs.append(EpochRecord(**plain))
    return history
