"""Weights of classes, as weights of rows."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.class_weight import compute_class_weight

from fastmlp.errors import DomainError

Array = NDArray[Any]


def check_class_weight(class_weight: Any, incremental: bool) -> None:
    """Refuse "balanced" for `partial_fit`, which cannot know how many rows a class has."""
    if incremental and class_weight == "balanced":
        raise DomainError(
            "class_weight: got 'balanced' in partial_fit, wanted a dict: one call does not see "
            "all rows. sklearn.utils.class_weight.compute_class_weight gives it for all labels"
        )


def weigh_classes(estimator: Any, X: Any, y: Array, sample_weight: Array | None) -> Array | None:
    """Return the rows' weights times those of their classes.

    Parameters
    ----------
    estimator : MLPClassifier
        Initialised, with its `classes_`.
    X : array or sparse matrix (rows, inputs)
        Its dtype is used for the weights where `sample_weight` is None.
    y : ndarray of bool (rows, outputs)
    sample_weight : ndarray (rows,) or None
    """
    if estimator.class_weight is None:
        return sample_weight
    if estimator._label_binarizer.y_type_.startswith("multilabel"):
        raise DomainError(
            "class_weight: got a y of several labels a row, wanted one class a row; weigh the rows "
            "with sample_weight"
        )
    index = y.ravel().astype(int) if y.shape[1] == 1 else y.argmax(axis=1)
    classes = estimator.classes_
    weights = compute_class_weight(estimator.class_weight, classes=classes, y=classes[index])
    of_rows = np.asarray(weights, dtype=X.dtype)[index]
    return of_rows if sample_weight is None else sample_weight * of_rows
