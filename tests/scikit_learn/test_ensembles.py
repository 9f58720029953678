"""Ensembles of estimators: each member is what it is alone; their mean and their spread."""

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from sklearn.datasets import make_classification, make_regression
from sklearn.linear_model import LogisticRegression
from sklearn.utils.estimator_checks import parametrize_with_checks

from fastmlp.sklearn import (
    EnsembleClassifier,
    EnsembleRegressor,
    MLPClassifier,
    MLPRegressor,
    meeting,
)

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X, LABELS = make_classification(90, 6, n_informative=4, n_classes=3, random_state=0)
Y = make_regression(90, 6, random_state=0)[1] / 50
FEW = {"hidden_layer_sizes": (9,), "max_iter": 8}

CHECKS = parametrize_with_checks(
    [
        EnsembleClassifier(
            MLPClassifier((20,), max_iter=30, learning_rate_init=0.05), n_estimators=2
        ),
        EnsembleRegressor(
            MLPRegressor(hidden_layer_sizes=(20,), max_iter=30, learning_rate_init=0.05),
            n_estimators=2,
        ),
    ]
).mark


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(CHECKS.args[0], list(CHECKS.args[1]), ids=CHECKS.kwargs["ids"])
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def test_each_member_is_what_it_is_alone(monkeypatch):
    sizes = []

    class Counted(meeting.Together):
        def __init__(self, seats):
            sizes.append(len(seats))
            super().__init__(seats)

    monkeypatch.setattr(meeting, "Together", Counted)
    ensemble = EnsembleRegressor(MLPRegressor(**FEW), n_estimators=5, random_state=0).fit(X, Y)
    assert sizes == [5]
    seeds = [each.random_state for each in ensemble.estimators_]
    assert len(set(seeds)) == 5
    for member in ensemble.estimators_:
        alone = MLPRegressor(**FEW, random_state=member.random_state).fit(X, Y)
        assert alone.loss_curve_ == member.loss_curve_
        for one, other in zip(alone.coefs_, member.coefs_, strict=True):
            assert one.tobytes() == other.tobytes()


def test_mean_and_spread():
    ensemble = EnsembleRegressor(MLPRegressor(**FEW), n_estimators=4, random_state=1).fit(X, Y)
    every = np.array([each.predict(X) for each in ensemble.estimators_])
    mean, spread = ensemble.predict(X, return_std=True)
    np.testing.assert_allclose(mean, every.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(spread, every.std(axis=0), rtol=1e-12)
    assert ensemble.predict(X).tobytes() == mean.tobytes()


@pytest.mark.parametrize("y", [LABELS, np.array(["b", "a"])[LABELS % 2]], ids=["three", "texts"])
def test_mean_probabilities(y):
    ensemble = EnsembleClassifier(MLPClassifier(**FEW), n_estimators=3, random_state=1).fit(X, y)
    every = np.array([each.predict_proba(X) for each in ensemble.estimators_])
    mean, spread = ensemble.predict_proba(X, return_std=True)
    np.testing.assert_allclose(mean, every.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(spread, every.std(axis=0), rtol=1e-12)
    assert ensemble.predict(X).tolist() == ensemble.classes_[mean.argmax(axis=1)].tolist()


def test_several_labels_a_row_and_several_outputs():
    labels = np.stack([LABELS > 0, LABELS > 1], axis=1).astype(int)
    ensemble = EnsembleClassifier(MLPClassifier(**FEW), n_estimators=2, random_state=0)
    predicted = ensemble.fit(X, labels).predict(X)
    assert predicted.shape == labels.shape and set(np.unique(predicted)) <= {0, 1}
    targets = np.stack([Y, -Y], axis=1)
    several = EnsembleRegressor(MLPRegressor(**FEW), n_estimators=2, random_state=0)
    mean, spread = several.fit(X, targets).predict(X, return_std=True)
    assert mean.shape == spread.shape == targets.shape


def test_other_estimators_and_weights_of_rows():
    ensemble = EnsembleClassifier(LogisticRegression(), n_estimators=2).fit(X, LABELS)
    assert ensemble.predict_proba(X, return_std=True)[1].max() == 0
    weights = np.linspace(0.5, 1.5, len(Y))
    member = EnsembleRegressor(MLPRegressor(**FEW), n_estimators=2, random_state=0)
    member.fit(X, Y, sample_weight=weights)
    seed = member.estimators_[1].random_state
    alone = MLPRegressor(**FEW, random_state=seed).fit(X, Y, sample_weight=weights)
    assert alone.loss_curve_ == member.estimators_[1].loss_curve_


def test_what_a_member_refuses_is_refused():
    broken = X.copy()
    broken[0, 0] = np.inf
    with pytest.raises(ValueError, match="infinity"):
        EnsembleRegressor(n_estimators=3).fit(broken, Y)
    with pytest.raises(ValueError, match="n_estimators"):
        EnsembleRegressor(n_estimators=0).fit(X, Y)
