"""The commands ``fastmlp predict`` and ``fastmlp info``: what a model in a file makes of rows."""

import csv
from typing import Any, TextIO

import numpy as np

from fastmlp.command.tables import read_features
from fastmlp.ensemble import Ensemble
from fastmlp.loading import load


def predict(path: str, rows: str, out: TextIO, delimiter: str = ",") -> int:
    """Write a line of outputs for each row of a file, and return how many.

    A model that was trained on a table takes its columns by their names, and leaves out others. Of
    an ensemble the mean of the networks is written.
    """
    model = load(path)
    features = read_features(rows, columns_of(model), delimiter)
    found = model.predict_mean(features) if isinstance(model, Ensemble) else model.predict(features)
    outputs = np.asarray(found)
    outputs = outputs.reshape(len(outputs), -1)
    several = outputs.shape[1] > 1
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([f"output_{k}" for k in range(outputs.shape[1])] if several else ["output"])
    # The shortest digits that read back as the same number.
    writer.writerows([[str(value) for value in row] for row in outputs])
    return len(outputs)


def columns_of(model: Any) -> list[str] | None:
    """Return the names of the columns that a model was trained on, if it was on any."""
    names = getattr(model, "feature_names_in_", getattr(model, "_columns", None))
    return None if names is None else [str(name) for name in names]


def describe(path: str) -> str:
    """Return what a file of a model holds."""
    model = load(path)
    lines = [str(model)]
    if hasattr(model, "summary"):
        lines.append(str(model.summary()))
    columns = columns_of(model)
    if columns is not None:
        lines.append(f"columns: {', '.join(columns)}")
    history = getattr(model, "history", None)
    if history is not None and len(history.loss):
        lines.append(f"trained for {len(history.loss)} epochs, the last loss {history.loss[-1]}")
    return "\n".join(lines)
