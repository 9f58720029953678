"""Tables with named columns, such as those of pandas and Polars: their columns and numbers.

Neither library is imported: a table is whatever has `columns` and `dtypes`.
"""

from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from fastmlp.errors import DomainError, DTypeError, ShapeError

Columns = tuple[str, ...]

# Columns that a message names, at most.
NAMED = 5
CLASS_NAMES = (
    "classes, y = numpy.unique(y, return_inverse=True), or use fastmlp.sklearn.MLPClassifier, "
    "which takes names"
)


def is_table(value: Any) -> bool:
    """Return whether a value is a table whose rows can be sliced."""
    if type(value) is np.ndarray or not (hasattr(value, "columns") and hasattr(value, "dtypes")):
        return False
    return len(getattr(value, "shape", ())) == 2 and (hasattr(value, "iloc") or _is_polars(value))


def column_names(value: Any) -> Columns | None:
    """Return the names of a table's columns; None for anything else, or if a name is not text."""
    if type(value) is np.ndarray or not (hasattr(value, "columns") and hasattr(value, "dtypes")):
        return None
    names = tuple(value.columns)
    return names if names and all(isinstance(each, str) for each in names) else None


def check_columns(value: Any, remembered: Columns | None, argument: str) -> None:
    """Refuse a table unless its columns are those of the model's first fit, in the same order.

    Anything without names, such as an array, is accepted.

    Raises
    ------
    ShapeError
        If they differ. The message says how, and how to select the right columns.
    """
    names = None if remembered is None else column_names(value)
    if remembered is None or names is None or names == remembered:
        return
    name = argument.rpartition(" ")[2]
    missing = [each for each in remembered if each not in names]
    added = [each for each in names if each not in remembered]
    if missing or added:
        parts = [f"without {_listed(missing)}"] if missing else []
        parts += [f"with {_listed(added)}"] if added else []
        got = f"got columns {' and '.join(parts)}, wanted those of the first fit"
    else:
        at = next(
            k for k, pair in enumerate(zip(names, remembered, strict=False)) if len({*pair}) > 1
        )
        got = (
            f"got columns in another order than in the first fit ({names[at]!r} at {at}), wanted "
            f"{remembered[at]!r} there"
        )
    hint = "" if missing else f"; in the right order they are {name}[{_listed([*remembered])}]"
    raise ShapeError(f"{argument}: {got}{hint}")


def _listed(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:NAMED]))
    return f"[{shown}{', ...' if len(names) > NAMED else ''}]"


def numbers_of(frame: Any, argument: str) -> NDArray[Any] | None:
    """Return a table of numbers as float64, or None if it is no table.

    This is for tables that NumPy would read as objects: numbers beside truth values, and pandas's
    numbers that may be missing.

    Raises
    ------
    DTypeError, DomainError
        If a column holds anything else, or misses values; the message names it.
    """
    if type(frame) is np.ndarray or not (hasattr(frame, "columns") and hasattr(frame, "dtypes")):
        return None
    names, name = list(frame.columns), argument.rpartition(" ")[2]
    for column, dtype in zip(names, list(frame.dtypes), strict=True):
        held = frame[column]
        missing = _missing(held)
        if _are_numbers(dtype):
            if missing:
                raise DomainError(
                    f"{argument}: got no value in {missing} rows of column {column!r}, wanted "
                    f"numbers{missing_hint(frame, name)}"
                )
        else:
            _refuse_column(frame, column, dtype, argument, name)
    columns = [np.asarray(frame[column], dtype=np.float64) for column in names]
    return np.stack(columns, axis=1)


def missing_hint(frame: Any, name: str) -> str:
    """Return what to do about missing values of a table, as the end of a message."""
    if _is_polars(frame):
        fill, leave_out = "fill_null(strategy='mean')", "drop_nulls()"
    else:
        fill, leave_out = f"fillna({name}.mean())", "dropna()"
    return f": {name}.{fill} fills them, {name}.{leave_out} leaves out their rows"


def _is_polars(frame: Any) -> bool:
    return type(frame).__module__.startswith("polars")


def _are_numbers(dtype: Any) -> bool:
    if getattr(dtype, "kind", None) is not None:
        return dtype.kind in "fiub"
    # Polars has kinds of its own.
    return str(dtype) == "Boolean" or bool(getattr(dtype, "is_numeric", lambda: False)())


def _missing(column: Any) -> int:
    if hasattr(column, "isna"):
        return int(np.asarray(column.isna()).sum())
    return int(column.null_count()) if hasattr(column, "null_count") else 0


def _refuse_column(frame: Any, column: Any, dtype: Any, argument: str, name: str) -> NoReturn:
    kind = str(dtype).lower()
    polars = _is_polars(frame)
    if getattr(dtype, "kind", "") in ("M", "m") or kind.startswith(("date", "time", "duration")):
        got = f"of times (dtype {dtype})"
        days = f"{name}[{column!r}] - {name}[{column!r}].min()"
        after = "total_days()" if polars else "days"
        hint = f"write them as numbers, such as days: ({days}).dt.{after}"
    else:
        values = [each for each in list(frame[column]) if each == each and each is not None]
        first = f", the first {str(values[0])!r}" if values else ""
        categories = kind.startswith(("categor", "enum"))
        got = f"of {'categories' if categories else 'text or objects'} (dtype {dtype}{first})"
        if name == "y":
            hint = f"class names become labels by {CLASS_NAMES}"
        elif values and _is_number(values[0]) and not categories:
            convert = "cast(float)" if polars else "astype(float)"
            hint = f"numbers written as text are read by {name}[{column!r}].{convert}"
        else:
            encode = f"{name}.to_dummies" if polars else f"pandas.get_dummies({name}, columns="
            encode += f"([{column!r}])" if polars else f"[{column!r}])"
            drop = f"{name}.drop({'' if polars else 'columns='}[{column!r}])"
            hint = f"one column of 0 and 1 for each value: {encode}; or leave it out: {drop}"
    raise DTypeError(
        f"{argument}: got column {column!r} {got}, wanted numbers in every column; {hint}"
    )


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True
