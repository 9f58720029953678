"""Targets given as a vector, and mini-batches that nobody asked for."""

import pickle

import numpy as np
import pytest

from fastmlp import MLP, DomainError, Ensemble

X = np.random.default_rng(0).normal(size=(20, 3))
Y = X[:, 0]


def trained_by(method, targets):
    model = MLP([3, 4, 1])
    getattr(model, method)(X, targets)
    return model


@pytest.mark.parametrize("method", ["fit", "step"])
def test_a_model_trained_on_a_vector_predicts_one(method):
    model = trained_by(method, Y)
    found = model.predict(X)
    assert found.shape == Y.shape and (Y - found).shape == Y.shape
    assert found.flags.c_contiguous
    assert model.predict(X[:0]).shape == (0,)
    assert pickle.loads(pickle.dumps(model)).predict(X).shape == Y.shape


@pytest.mark.parametrize("method", ["fit", "step"])
def test_a_model_trained_on_a_column_predicts_one(method):
    model = trained_by(method, Y[:, None])
    assert model.predict(X).shape == (20, 1) and model.predict(X[:0]).shape == (0, 1)
    model.fit(X, Y, epochs=1)
    assert model.predict(X).shape == (20,)
    # The last call decides, and a refused one is none.
    with pytest.raises(DomainError):
        model.fit(X, Y[:, None], epochs=1, l2=-1.0)
    assert model.predict(X).shape == (20,)


def test_the_numbers_are_the_same():
    vector, column = trained_by("fit", Y), trained_by("fit", Y[:, None])
    np.testing.assert_array_equal(vector.predict(X), column.predict(X)[:, 0])
    assert MLP([3, 4, 1]).predict(X).shape == (20, 1)


def test_an_ensemble_predicts_vectors():
    ensemble = Ensemble([3, 4, 1], 3)
    assert ensemble.predict(X).shape == (3, 20, 1)
    ensemble.fit(X, Y)
    assert ensemble.predict(X).shape == (3, 20) and ensemble.predict(X[:0]).shape == (3, 0)
    assert ensemble.predict_mean(X).shape == ensemble.predict_spread(X).shape == (20,)
    assert ensemble[1].predict(X).shape == (20,)


def test_labels_still_have_a_column_for_each_class():
    model = MLP([3, 4, 2], loss="softmax_cross_entropy")
    model.fit(X, Y > 0)
    assert model.predict(X).shape == (20, 2)


@pytest.mark.parametrize("made", [MLP, lambda sizes: Ensemble(sizes, 2)])
def test_a_default_batch_is_clipped_and_a_given_one_refused(made):
    by_default, given = made([3, 4, 1]), made([3, 4, 1])
    by_default.fit(X, Y, epochs=2)
    given.fit(X, Y, epochs=2, batch_size=20)
    np.testing.assert_array_equal(by_default.parameters, given.parameters)
    with pytest.raises(DomainError, match=r"batch_size: got 21, .*from 1 to 20"):
        given.fit(X, Y, batch_size=21)


def test_a_default_batch_of_many_rows_has_32():
    many, same = np.tile(X, (5, 1)), MLP([3, 4, 1])
    model = MLP([3, 4, 1])
    model.fit(many, many[:, 0], epochs=1)
    same.fit(many, many[:, 0], epochs=1, batch_size=32)
    np.testing.assert_array_equal(model.parameters, same.parameters)
