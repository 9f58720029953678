"""Data frames: scikit-learn's own messages come through unchanged."""

import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed")
pytest.importorskip("pandas", reason="pandas is not installed")

import pandas

from tests.scikit_learn.cases import data, pair

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.usefixtures("one_blas_thread", "few_rows_too"),
]


def frame_of(X):
    return pandas.DataFrame(X, columns=[f"column {i}" for i in range(X.shape[1])])


def with_column(frame, values):
    return frame.assign(**{"column 3": values})


MISTAKES = {
    "another order": lambda frame: frame[frame.columns[::-1]],
    "another name": lambda frame: frame.rename(columns={"column 0": "another"}),
    "one column less": lambda frame: frame.drop(columns="column 2"),
    "one column more": lambda frame: frame.assign(more=1.0),
    "text": lambda frame: with_column(frame, "red"),
    "text and numbers": lambda frame: with_column(frame, ["red", *range(len(frame) - 1)]),
    "a category": lambda frame: with_column(frame, pandas.Categorical(["red"] * len(frame))),
    "dates": lambda frame: with_column(frame, pandas.Timestamp("2026-11-28")),
    "a missing number": lambda frame: with_column(frame, [np.nan, *range(len(frame) - 1)]),
    "a missing value of pandas": lambda frame: with_column(
        frame, pandas.array([None, *range(len(frame) - 1)], dtype="Int64")
    ),
    "infinity": lambda frame: with_column(frame, np.inf),
    "no rows": lambda frame: frame[:0],
    "no names": lambda frame: frame.to_numpy(),
    "numbers for names": lambda frame: frame.set_axis(range(frame.shape[1]), axis=1),
    "names of two kinds": lambda frame: frame.rename(columns={"column 0": 0}),
    "whole numbers": lambda frame: (10 * frame).astype("int32"),
    "a series": lambda frame: frame["column 0"],
}


def told(estimator, action):
    """Return what an action says: its warnings, and its error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            action(estimator)
            error = None
        except Exception as raised:
            error = (type(raised), str(raised))
    return [(each.category, str(each.message)) for each in caught], error


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("kind", ["multiclass", "regression"])
@pytest.mark.parametrize("how", ["fit", "partial_fit", "predict", "score"])
def test_the_words_are_scikit_learns(how, kind, mistake):
    X, y = data(kind)
    frame, series = frame_of(X), pandas.Series(y)
    wrong = MISTAKES[mistake](frame)
    found = []
    for each in pair(kind, max_iter=2, warm_start=True):
        each.fit(frame, series)
        arguments = (wrong,) if how == "predict" else (wrong, series)
        found.append(told(each, lambda each, a=arguments: getattr(each, how)(*a)))
    assert found[0] == found[1]
    if mistake in ("another order", "another name", "text", "a missing number", "dates"):
        # Each of them is an error, and not only the same silence.
        assert found[1][1] is not None


@pytest.mark.parametrize("how", ["fit", "partial_fit"])
@pytest.mark.parametrize("values", [[np.nan], ["red"], [None], [pandas.NA], [np.inf], [True]])
def test_targets_that_are_no_numbers(how, values):
    X, y = data("regression")
    series = pandas.Series([*values, *y[1:]], dtype=object)
    ours, theirs = pair("regression", max_iter=2)
    found = [told(each, lambda each: getattr(each, how)(X, series)) for each in (ours, theirs)]
    assert found[0] == found[1]


def test_labels_that_are_text_or_categories():
    X, y = data("multiclass")
    names = np.array(["none", "some", "many", "all"])[np.unique(y, return_inverse=True)[1]]
    for labels in (pandas.Series(names), pandas.Series(names, dtype="category")):
        ours, theirs = (each.fit(frame_of(X), labels) for each in pair("multiclass", max_iter=3))
        assert np.array_equal(ours.classes_, theirs.classes_)
        assert np.array_equal(ours.predict(frame_of(X)), theirs.predict(frame_of(X)))
