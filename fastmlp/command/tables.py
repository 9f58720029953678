"""Rows from files: CSV, Parquet and NPZ.

Of a table only the columns that are asked for are read, so that others may hold anything.
"""

import csv
import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.errors import DomainError, MissingPackageError, refuse_name

Array = NDArray[Any]
KINDS = (".csv", ".parquet", ".npz")
FROM_ZERO = "classes are numbered from 0"


@dataclass(frozen=True)
class Table:
    """Numbers with names of their columns, as `MLP.fit` takes them."""

    columns: tuple[str, ...]
    values: Array

    @property
    def dtypes(self) -> tuple[Any, ...]:
        """The dtype of each column."""
        return (self.values.dtype,) * len(self.columns)

    def __getitem__(self, rows: slice) -> "Table":
        return Table(self.columns, self.values[rows])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self.values if dtype is None else self.values.astype(dtype)


@dataclass(frozen=True)
class Rows:
    """What is trained on: features, targets and weights of the rows."""

    X: Table | Array
    y: Array
    sample_weight: Array | None = None


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are which.

    Attributes
    ----------
    target : tuple of str
    features : tuple of str
        If there are none, all that are nothing else.
    weight : str or None
        The column with the weights of the rows.
    """

    target: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    weight: str | None = None


def kind_of(path: str) -> str:
    """Return how a file ends; refuse what cannot be read."""
    ending = Path(path).suffix.lower()
    if ending not in KINDS:
        raise DomainError(f"file: got {path!r}, wanted a file of {', '.join(KINDS)}")
    return ending


def read_rows(path: str, columns: Columns, delimiter: str = ",") -> Rows:
    """Return the rows of a file to train on.

    An NPZ file has arrays X and y, and maybe sample_weight. Of a table, the target is named.
    """
    if kind_of(path) == ".npz":
        return _from_npz(path, columns)
    if not columns.target:
        raise DomainError(f"[data] target: got none, wanted the name of a column of {path}")
    names = column_names(path, delimiter)
    weight = () if columns.weight is None else (columns.weight,)
    for option, wanted in (("target", columns.target), ("weight", weight)):
        _check_columns(f"[data] {option}", wanted, names)
    others = (*columns.target, *weight)
    features = columns.features or tuple(name for name in names if name not in others)
    X = read_columns(path, features, delimiter)
    y = read_columns(path, columns.target, delimiter).values
    weights = read_columns(path, weight, delimiter).values[:, 0] if weight else None
    return Rows(X, y[:, 0] if y.shape[1] == 1 else y, weights)


def read_features(path: str, wanted: Sequence[str] | None, delimiter: str = ",") -> Table | Array:
    """Return the features of a file: the columns of these names, or all of them."""
    if kind_of(path) == ".npz":
        return _arrays(path, "X")["X"]
    return read_columns(path, wanted or column_names(path, delimiter), delimiter)


def column_names(path: str, delimiter: str = ",") -> tuple[str, ...]:
    """Return the names of a table's columns."""
    if kind_of(path) == ".parquet":
        return tuple(_parquet().read_schema(path).names)
    with open(path, newline="", encoding="utf-8-sig") as file:
        first = next(csv.reader(file, delimiter=delimiter), [])
    if not first or all(_is_number(cell) for cell in first):
        raise DomainError(f"{path}, line 1: got {first}, wanted the names of the columns")
    return tuple(cell.strip() for cell in first)


def read_columns(path: str, wanted: Sequence[str], delimiter: str = ",") -> Table:
    """Return columns of a table, in the order that is asked for.

    Raises
    ------
    UnknownNameError
        If there is no such column.
    DomainError
        If a cell is no number. The message has its line and its column.
    """
    names = column_names(path, delimiter)
    _check_columns(path, wanted, names)
    if kind_of(path) == ".parquet":
        return Table(tuple(wanted), _numbers_of_parquet(path, wanted))
    places = [names.index(name) for name in wanted]
    form: dict[str, Any] = {"delimiter": delimiter, "quotechar": '"', "comments": None}
    with open(path, encoding="utf-8-sig") as file, warnings.catch_warnings():
        # It warns of a file without rows, which is refused below.
        warnings.simplefilter("ignore", UserWarning)
        try:
            values = np.loadtxt(file, skiprows=1, usecols=places, ndmin=2, **form)
        except ValueError as error:
            _explain(path, names, places, delimiter)
            raise DomainError(f"{path}: {error}") from None
    if not len(values):
        raise DomainError(f"{path}: got no rows below the names of the columns")
    return Table(tuple(wanted), values)


def _explain(path: str, names: tuple[str, ...], places: list[int], delimiter: str) -> None:
    """Raise the error for the first line or cell that is wrong."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, delimiter=delimiter)
        next(reader)
        for cells in reader:
            where = f"{path}, line {reader.line_num}"
            if cells and len(cells) != len(names):
                raise DomainError(f"{where}: got {len(cells)} cells, wanted {len(names)}")
            for place in places if cells else ():
                if not _is_number(cells[place]):
                    raise DomainError(
                        f"{where}: got {cells[place]!r} in the column {names[place]!r}, wanted a "
                        f"number; {FROM_ZERO}, and [data] features names the columns to use"
                    )


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _check_columns(argument: str, wanted: Sequence[str], names: tuple[str, ...]) -> None:
    for name in wanted:
        if name not in names:
            refuse_name(argument, name, names, "column")


def _parquet() -> Any:
    if importlib.util.find_spec("pyarrow") is None:
        raise MissingPackageError(
            "Parquet files need pyarrow, which is not installed: pip install fastmlp[parquet]"
        )
    import pyarrow.parquet

    return pyarrow.parquet


def _numbers_of_parquet(path: str, wanted: Sequence[str]) -> Array:
    table = _parquet().read_table(path, columns=list(wanted))
    columns = [table.column(name).to_numpy() for name in wanted]
    for name, column in zip(wanted, columns, strict=True):
        if column.dtype.kind not in "fiub":
            raise DomainError(
                f"{path}: got {column.dtype} in the column {name!r}, wanted numbers; {FROM_ZERO}, "
                "and [data] features names the columns to use"
            )
    return np.column_stack([column.astype(np.float64) for column in columns])


def _arrays(path: str, *wanted: str) -> dict[str, Array]:
    with np.load(path, allow_pickle=False) as file:
        for name in wanted:
            if name not in file.files:
                refuse_name(path, name, file.files, "array")
        return {name: file[name] for name in file.files if name in (*wanted, "sample_weight")}


def _from_npz(path: str, columns: Columns) -> Rows:
    if columns != Columns():
        raise DomainError(
            f"[data]: got names of columns with {path}, whose arrays X and y have none"
        )
    arrays = _arrays(path, "X", "y")
    return Rows(arrays["X"], arrays["y"], arrays.get("sample_weight"))
