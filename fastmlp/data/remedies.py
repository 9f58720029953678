"""What to write instead: the endings of messages about arrays that are refused.

A remedy is looked for after the refusal, so it may take its time. Each function returns the text
that follows a message, with its semicolon, or nothing. `name` is what the message calls the array.
"""

import math
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.data.frames import CLASS_NAMES, column_names, missing_hint
from fastmlp_kernels.algebra import Loss

Array = NDArray[Any]

# At most so many elements of an array of objects are looked at.
LOOKED_AT = 10_000


def of_lengths(value: Any) -> str:
    """Say which rows of a list have different lengths."""
    try:
        lengths = [len(each) for each in value]
    except TypeError:
        return ""
    for index, length in enumerate(lengths):
        if length != lengths[0]:
            return f" (row 0 has {lengths[0]} values, row {index} has {length})"
    return ""


def of_kind(value: Any, array: Array, name: str) -> str:
    """Say how to make real numbers of values that are none."""
    if hasattr(value, "toarray"):
        return f"; a sparse matrix is made dense by {name}.toarray()"
    kind = array.dtype.kind
    if kind == "c":
        return (
            f"; the real part is {name}.real, and both parts are columns of "
            f"numpy.hstack([{name}.real, {name}.imag])"
        )
    if kind in "Mm":
        return f"; times are numbers by {name}.astype('datetime64[s]').astype(float)"
    if kind in "UST":
        return _of_text(array.ravel()[:1].tolist(), name)
    if kind == "O" and array.ndim:
        return _of_objects(array, name)
    return ""


def _of_text(some: list[Any], name: str) -> str:
    try:
        float(some[0])
    except (IndexError, TypeError, ValueError):
        if name == "y":
            return f"; class names become labels by {CLASS_NAMES}"
        return "; text has to be encoded, such as one column of 0 and 1 for each word"
    return f"; numbers written as text are read by numpy.asarray({name}, dtype=float)"


def _of_objects(array: Array, name: str) -> str:
    flat = array.ravel()[:LOOKED_AT]
    for place, each in enumerate(flat.tolist()):
        if isinstance(each, Real):
            continue
        where = tuple(map(int, np.unravel_index(place, array.shape)))
        index = where[0] if len(where) == 1 else where
        found = f"; the first that is no number is {each!r:.40} at index {index}"
        return found + (_of_text([each], name) if isinstance(each, str) else "")
    return f"; if all of them are numbers: {name}.astype(float)"


def of_matrix(shape: tuple[int, ...], columns: int, rows: int | None, name: str) -> str:
    """Say how to reshape an array that is not (rows, columns)."""
    size = math.prod(shape)
    if len(shape) == 1:
        if size == columns and rows in (None, 1):
            return f"; one row is written {name}[None, :]"
        if columns == 1:
            return f"; one column is written {name}[:, None]"
        if size and size % columns == 0 and rows in (None, size // columns):
            return f"; rows that lie one after another: {name}.reshape(-1, {columns})"
    if len(shape) > 2 and size:
        flat = size // shape[0]
        needed = "" if flat == columns else f", for a network with sizes[0] = {flat}"
        return f"; {name}.reshape(len({name}), -1) makes a row of each, {flat} columns{needed}"
    if len(shape) == 2 and shape[0] == columns and rows in (None, shape[1]):
        return f"; it looks transposed: {name}.T"
    if name == "X" and len(shape) == 2:
        return "; the columns of X are the network's inputs, sizes[0]"
    return ""


def are_swapped(X: Any, y: Any, columns: int) -> bool:
    """Return whether inputs and targets look as if they had been swapped."""
    try:
        inputs, targets = np.shape(X), np.shape(y)
    except ValueError:
        return False
    return len(targets) == 2 and targets[1] == columns and inputs[:1] == targets[:1]


def of_targets(array: Array, rows: int, outputs: int, loss: Loss, name: str) -> str:
    """Say how to write targets of the wrong shape, or which network they are for."""
    if array.ndim == 2 and array.shape[0] == outputs and array.shape[1] == rows != outputs:
        return f"; it looks transposed: {name}.T"
    flat = array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1)
    if array.ndim == 2 and not flat:
        classes = array.shape[1]
        if not _one_hot(array):
            needed = classes * loss.outputs_per_target
            return f"; {classes} columns are the targets of {needed} outputs, sizes[-1]"
        needed = f"; one-hot rows of {classes} classes need sizes[-1] = {classes}"
        if loss.label_rule is not None:
            return needed
        labels = f"{name}[:, 1]" if classes == 2 else f"{name}.argmax(axis=1)"
        return f"{needed} and loss='softmax_cross_entropy'; as labels they are {labels}"
    if flat and len(array) == rows and outputs > 1:
        if array.dtype.kind in "iub":
            return (
                f"; class labels need loss='softmax_cross_entropy', or one-hot rows: "
                f"numpy.eye({outputs})[{name}]"
            )
        return f"; one target a row is for a network with sizes[-1] = {loss.outputs_per_target}"
    if array.ndim > 2 and math.prod(array.shape) == rows * outputs:
        return f"; {name}.reshape(len({name}), -1) makes a row of each"
    return ""


def _one_hot(array: Array) -> bool:
    bits = ((array == 0) | (array == 1)).all()
    return bool(bits) and bool((array.sum(axis=1) == 1).all())


def of_labels(labels: Array, classes: int, name: str) -> str:
    """Say what was probably meant by labels that are not 0 to classes - 1."""
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        return of_missing(labels, labels, name)
    found = np.unique(labels)
    if labels.dtype.kind == "f" and (found != np.floor(found)).any():
        return "; numbers that are no classes need another loss, such as 'half_squared_error'"
    if found.tolist() == [-1, 1]:
        return f"; -1 and 1 become 0 and 1 by ({name} + 1) // 2"
    if found[0] == 1 and found[-1] == classes:
        return f"; they start at 1: {name} - 1"
    if found[0] >= 0 and len(found) == found[-1] + 1:
        return f"; {len(found)} classes need {len(found)} outputs, sizes[-1]"
    return f"; labels from 0: classes, {name} = numpy.unique({name}, return_inverse=True)"


def of_domain(targets: Array, loss: Loss, name: str) -> str:
    """Say what was probably meant by targets outside a loss's domain."""
    if loss.target_domain.high != 1:
        return ""
    found = np.unique(targets)
    if found.tolist() == [-1, 1]:
        return f"; -1 and 1 become 0 and 1 by ({name} + 1) / 2"
    if found.tolist() == [1, 2]:
        return f"; 1 and 2 become 0 and 1 by {name} - 1"
    if (found == np.floor(found)).all() and len(found) <= found[-1] + 1 and found[0] >= 0:
        return "; labels of several classes need loss='softmax_cross_entropy', an output for each"
    return f"; numbers are scaled by ({name} - {name}.min()) / ({name}.max() - {name}.min())"


def of_missing(value: Any, array: Array, name: str) -> str:
    """Say where values are missing and how to fill them; for inputs, also in which columns."""
    missing = np.isnan(array) if array.dtype.kind == "f" else np.zeros(array.shape, dtype=bool)
    if not missing.any():
        return ""
    names = column_names(value)
    if names is not None and array.ndim == 2:
        column = int(np.flatnonzero(missing.any(axis=0))[0])
        count = int(np.count_nonzero(missing[:, column]))
        hint = missing_hint(value, name)
        return f"; column {names[column]!r} has none in {count} of its rows{hint}"
    if name == "y":
        return "; rows without a target are left out: keep = ~numpy.isnan(y); X[keep], y[keep]"
    if name != "X":
        return ""
    return (
        f"; missing values are filled, with the columns' means for example: numpy.where("
        f"numpy.isnan({name}), numpy.nanmean({name}, axis=0), {name})"
    )


def of_overflow(array: Array, dtype: Any, name: str) -> str:
    """Say what to do about numbers that are too large for the network's dtype."""
    finite = array.dtype.kind == "f" and np.isfinite(array).all()
    if not finite or str(dtype) == "float64":
        return ""
    return f"; scale {name} to the order of 1, or make the network with dtype='float64'"
