"""A file of settings (TOML), read and checked before anything is trained."""

import inspect
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastmlp import schedules
from fastmlp.callbacks import Checkpoint, EarlyStopping
from fastmlp.command.tables import Columns
from fastmlp.errors import DomainError, DTypeError, check_name, refuse_name
from fastmlp.model import MLP
from fastmlp.optimizer_base import Optimizer
from fastmlp.optimizers import by_name
from fastmlp.plateau import ReduceOnPlateau

DATA = {
    "train": str,
    "validation": str,
    "target": (str, list),
    "features": list,
    "weight": str,
    "delimiter": str,
    "scale": bool,
}
OUTPUT = {"model": str, "history": str}
# What `fit` is told; the rest of its arguments have tables of their own.
FIT = (
    "epochs",
    "batch_size",
    "shuffle",
    "l2",
    "validation_split",
    "metrics",
    "class_weight",
    "device",
    "kernel",
    "threads",
)
TABLES = ("data", "model", "optimizer", "schedule", "fit", "early_stopping", "checkpoint", "output")


@dataclass(frozen=True)
class Settings:
    """What a file of settings asks for.

    Attributes
    ----------
    train, validation : str and str or None
        Files of rows.
    columns : Columns
    delimiter : str
        Between the cells of a CSV file.
    scale : bool
        Whether features get mean 0 and variance 1 for the training.
    hidden : list
        Units of the hidden layers.
    model, fit : dict
        Keywords of `MLP` and of `fit`.
    optimizer : Optimizer or None
    early_stopping : EarlyStopping or None
    checkpoint : dict
        Keywords of `Checkpoint`; none where there shall be none.
    output, history : str and str or None
        Where the model goes, and a CSV file with a line an epoch.
    """

    train: str
    validation: str | None
    columns: Columns
    delimiter: str
    scale: bool
    hidden: list[Any]
    model: dict[str, Any]
    fit: dict[str, Any]
    optimizer: Optimizer | None
    early_stopping: EarlyStopping | None
    checkpoint: dict[str, Any]
    output: str
    history: str | None


def read_settings(path: str) -> Settings:
    """Return the checked settings of a file.

    Raises
    ------
    UnknownNameError, DTypeError, DomainError
        The message names the table and the key, what was got and what was wanted.
    """
    with open(path, "rb") as file:
        try:
            found = tomllib.load(file)
        except tomllib.TOMLDecodeError as error:
            raise DomainError(f"{path}: got no TOML: {error}") from None
    for name, table in found.items():
        check_name(path, name, TABLES, "table")
        if not isinstance(table, dict):
            raise DTypeError(f"{path}: got {name} = {table!r}, wanted a table, [{name}]")
    data, output = _typed("data", found, DATA), _typed("output", found, OUTPUT)
    for name, table, key in (("data", data, "train"), ("output", output, "model")):
        if key not in table:
            raise DomainError(f"[{name}] {key}: got none, wanted the name of a file")
    target = data.get("target", [])
    columns = Columns(
        (target,) if isinstance(target, str) else tuple(target),
        tuple(data.get("features", [])),
        data.get("weight"),
    )
    known = ("hidden", *(name for name in _keywords(MLP) if name != "sizes"))
    model = _known("model", found, known)
    return Settings(
        train=data["train"],
        validation=data.get("validation"),
        columns=columns,
        delimiter=data.get("delimiter", ","),
        scale=data.get("scale", False),
        hidden=_hidden(model.pop("hidden", [64, 64])),
        model=model,
        fit=_known("fit", found, FIT),
        optimizer=_optimizer(found),
        early_stopping=_made("early_stopping", found, EarlyStopping),
        checkpoint=_known("checkpoint", found, _keywords(Checkpoint)),
        output=output["model"],
        history=output.get("history"),
    )


def _keywords(called: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(called).parameters)


def _known(name: str, found: Mapping[str, Any], known: tuple[str, ...]) -> dict[str, Any]:
    """Return a table with keys of these names."""
    table = found.get(name, {})
    for key in table:
        if key not in known:
            refuse_name(f"[{name}]", key, known, "key")
    return dict(table)


def _typed(name: str, found: Mapping[str, Any], kinds: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table whose values are of these kinds."""
    table = _known(name, found, tuple(kinds))
    words = {str: "text", bool: "true or false", list: "a list of names"}
    for key, value in table.items():
        kind = kinds[key]
        several = isinstance(value, list) and not all(isinstance(each, str) for each in value)
        if not isinstance(value, kind) or several:
            wanted = kind if isinstance(kind, tuple) else (kind,)
            raise DTypeError(
                f"[{name}] {key}: got {value!r}, wanted {' or '.join(words[k] for k in wanted)}"
            )
    return table


def _hidden(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise DTypeError(f"[model] hidden: got {value!r}, wanted a list, the units of each layer")
    return value


def _made(name: str, found: Mapping[str, Any], kind: Any) -> Any:
    """Return an object of a table's keywords, or None without the table."""
    if name not in found:
        return None
    return kind(**_known(name, found, _keywords(kind)))


def _named(name: str, found: Mapping[str, Any], kinds: Mapping[str, Any], default: str) -> Any:
    """Return the kind that a table's key `name` names, and the rest of the table."""
    table = dict(found.get(name, {}))
    named = table.pop("name", default)
    if not isinstance(named, str):
        raise DTypeError(f"[{name}] name: got {named!r}, wanted text")
    kind = kinds[check_name(f"[{name}] name", named, kinds, name)]
    return kind, _known(name, {name: table}, _keywords(kind))


def _optimizer(found: Mapping[str, Any]) -> Optimizer | None:
    """Return the optimizer with its schedule."""
    if "optimizer" not in found and "schedule" not in found:
        return None
    kinds = {name: type(each) for name, each in by_name().items()}
    kind, keywords = _named("optimizer", found, kinds, "sgd")
    if "schedule" in found:
        if "learning_rate" in keywords:
            raise DomainError("[optimizer] learning_rate: got one and a [schedule], wanted one")
        rates: dict[str, Any] = {
            name: each
            for name, each in vars(schedules).items()
            if isinstance(each, type) and schedules.Schedule in each.__bases__
        }
        rates["ReduceOnPlateau"] = ReduceOnPlateau
        rate, numbers = _named("schedule", found, rates, "")
        keywords["learning_rate"] = rate(**numbers)
    made: Optimizer = kind(**keywords)
    return made
