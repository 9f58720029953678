"""Tables with named columns: what is read of them, refused, and remembered."""

import copy
import pickle

import numpy as np
import pytest

from fastmlp import MLP, SGD, DomainError, DTypeError, Ensemble, ShapeError
from fastmlp.data.frames import check_columns, column_names
from tests.tables import Column, Table

RNG = np.random.default_rng(3)
X = RNG.normal(size=(12, 4))
Y = np.sin(X[:, 0])
NAMES = ["a", "b", "c", "d"]
OTHER_ORDER = ["b", "a", "c", "d"]


def table(names=NAMES, values=X):
    return Table(**dict(zip(names, values.T, strict=True)))


def fitted(of):
    model = MLP([4, 3, 1], dtype="float64") if of is MLP else Ensemble([4, 3, 1], 2)
    model.fit(table(), Y, epochs=1, batch_size=4)
    return model


def calls_with(model, bad):
    calls = {
        "fit": lambda: model.fit(bad, Y, batch_size=4),
        "validation": lambda: model.fit(table(), Y, batch_size=4, validation_data=(bad, Y)),
        "predict": lambda: model.predict(bad),
        "evaluate": lambda: model.evaluate(bad, Y),
    }
    if isinstance(model, MLP):
        calls["step"] = lambda: model.step(bad, Y, SGD())
        calls["value_and_grad"] = lambda: model.value_and_grad(bad, Y)
        calls["forward"] = lambda: model.forward(bad)
    return calls


@pytest.mark.parametrize("of", [MLP, Ensemble])
def test_columns_in_another_order_are_refused_everywhere(of):
    model = fitted(of)
    for name, call in calls_with(model, table(OTHER_ORDER)).items():
        before = model.parameters.copy()
        with pytest.raises(ShapeError, match=r"X: got columns in another order .*'b' at 0") as got:
            call()
        assert str(got.value).startswith("validation X" if name == "validation" else "X")
        assert np.array_equal(model.parameters, before)
    for call in calls_with(model, table(["a", "b", "c", "z"])).values():
        with pytest.raises(ShapeError, match=r"got columns without \['d'\] and with \['z'\]"):
            call()


def test_the_columns_of_the_first_fit_hold_for_its_validation_too():
    model = MLP([4, 3, 1])
    with pytest.raises(ShapeError, match="validation X: got columns in another order"):
        model.fit(table(), Y, batch_size=4, validation_data=(table(OTHER_ORDER), Y))
    # Nothing is remembered of a fit that was refused.
    model.fit(table(OTHER_ORDER), Y, batch_size=4, epochs=1)


@pytest.mark.parametrize("of", [MLP, Ensemble])
def test_the_right_columns_and_arrays_are_accepted(of):
    model = fitted(of)
    for good in (table(), X, X.tolist()):
        for call in calls_with(model, good).values():
            call()
    expected = model.predict(X)
    assert np.array_equal(model.predict(table(OTHER_ORDER, X[:, [1, 0, 2, 3]])[NAMES]), expected)


def test_copies_and_members_remember_the_columns():
    model = fitted(MLP)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), fitted(Ensemble)[1]]
    for each in copies:
        with pytest.raises(ShapeError, match="another order"):
            each.predict(table(OTHER_ORDER))


def test_a_fit_on_an_array_remembers_nothing():
    model = MLP([4, 3, 1])
    model.fit(X, Y, batch_size=4, epochs=1)
    assert np.array_equal(model.predict(table(OTHER_ORDER)), model.predict(X))


def test_names_that_are_no_text_are_no_names():
    numbered = Table(a=X[:, 0], b=X[:, 1])
    numbered._columns = dict(enumerate(numbered._columns.values()))
    assert column_names(numbered) is None and column_names(X) is None
    assert column_names(table()) == tuple(NAMES)
    check_columns(numbered, ("a", "b"), "X")


def test_numbers_beside_truth_values_are_read():
    """As one column of 0 and 1 for each value is made: NumPy reads such a table as objects."""
    mixed = Table(a=X[:, 0], b=X[:, 1] > 0, c=Column([1] * 12, "Int64"))
    assert np.asarray(mixed).dtype == object
    model = MLP([3, 2])
    plain = np.stack([X[:, 0], X[:, 1] > 0, np.ones(12)], axis=1)
    assert np.array_equal(model.predict(mixed), model.predict(plain))


WORDS = np.array(["red", "green", "blue"])[np.arange(12) % 3]
BAD_COLUMNS = {
    "text": (WORDS, DTypeError, "column 'bad' of text.*the first 'red'.*get_dummies"),
    "categories": (Column(WORDS, "category"), DTypeError, "of categories.*get_dummies"),
    "numbers as text": (Column(X[:, 0].astype(str), "str"), DTypeError, r"\['bad'\].astype\(float"),
    "times": (np.arange(12).astype("datetime64[D]"), DTypeError, "column 'bad' of times.*dt.days"),
    "missing": (Column([1, None] * 6, "Int64"), DomainError, "no value in 6 rows of column 'bad'"),
    "NaN": (
        np.where(X[:, 0] > 0, np.nan, 1.0),
        DomainError,
        "column 'bad' has none in .* X.fillna",
    ),
}


@pytest.mark.parametrize("case", BAD_COLUMNS)
def test_a_bad_column_is_named_with_what_to_do(case):
    column, error, message = BAD_COLUMNS[case]
    model = MLP([2, 1])
    bad = Table(good=X[:, 0], bad=column)
    with pytest.raises(error, match=f"^X: .*{message}"):
        model.predict(bad)
    with pytest.raises(error, match="^validation X: .*'bad'"):
        model.fit(X[:, :2], Y, batch_size=4, validation_data=(bad, Y))


def test_class_names_in_a_table_are_numbered_and_not_encoded():
    model = MLP([4, 3], loss="softmax_cross_entropy")
    with pytest.raises(DTypeError, match=r"^y: .*numpy.unique\(y, return_inverse=True\)"):
        model.fit(X, Table(colour=WORDS), batch_size=4)


def test_a_table_of_polars_is_told_what_polars_has():
    class DataFrame(Table):
        """A table of the other library, by where its class stands."""

    DataFrame.__module__ = "polars.dataframe.frame"
    model = MLP([2, 1])
    with pytest.raises(DTypeError, match=r"X.to_dummies\(\['bad'\]\); .*X.drop\(\['bad'\]\)"):
        model.predict(DataFrame(good=X[:, 0], bad=WORDS))
    with pytest.raises(DomainError, match=r"X.fill_null\(strategy='mean'\) .*X.drop_nulls\(\)"):
        model.predict(DataFrame(good=X[:, 0], bad=np.where(X[:, 0] > 0, np.nan, 1.0)))
    with pytest.raises(DTypeError, match=r"\.dt\.total_days\(\)"):
        model.predict(DataFrame(good=X[:, 0], bad=np.arange(12).astype("datetime64[D]")))
