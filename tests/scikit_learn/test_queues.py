"""Searches that check rows once a fold have scikit-learn's results."""

import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import FitFailedWarning
from sklearn.model_selection import GridSearchCV as PlainGridSearchCV
from sklearn.model_selection import GroupKFold, KFold
from sklearn.model_selection._search_successive_halving import (
    HalvingGridSearchCV as PlainHalvingGridSearchCV,
)
from sklearn.neural_network import MLPClassifier as PlainClassifier

import fastmlp
from fastmlp.sklearn import (
    GridSearchCV,
    HalvingGridSearchCV,
    MLPClassifier,
    MLPRegressor,
    meeting,
    queueing,
)
from tests.scikit_learn.test_searches import LABELS, RATES, SETTINGS, X, Y, assert_same, results_of

# Few epochs are enough here.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

CLASSIFIER, REGRESSOR = MLPClassifier(**SETTINGS), MLPRegressor(**SETTINGS)
NAMES = np.array(["blue", "green", "red"])[LABELS]
# Losses show every bit of a network.
SEVERAL = ["neg_log_loss", "accuracy", "f1_macro"]
CASES = {
    "by default": (CLASSIFIER, RATES, LABELS, None),
    "two classes": (CLASSIFIER, RATES, LABELS > 0, None),
    "names of classes": (CLASSIFIER, RATES, NAMES, None),
    "floats as classes": (CLASSIFIER, RATES, LABELS + 0.0, None),
    "labels as objects": (CLASSIFIER, {"alpha": [0.1, 1.0]}, NAMES.astype(object), None),
    "several labels": (CLASSIFIER, RATES, np.eye(3, dtype=int)[LABELS], None),
    "classifier": (CLASSIFIER, RATES, LABELS, SEVERAL),
    "regressor": (REGRESSOR, {**RATES, "hidden_layer_sizes": [(3,), (4, 3)]}, Y, None),
    "regressor by loss": (REGRESSOR, RATES, Y, "neg_mean_squared_error"),
    "several outputs": (REGRESSOR, RATES, np.stack([Y, -Y], axis=1), None),
    "diverges": (
        MLPRegressor(**SETTINGS, solver="sgd"),
        {"learning_rate_init": [1e-3, 1e4, 1e-2]},
        Y,
        "neg_mean_squared_error",
    ),
    "not all together": (
        CLASSIFIER,
        [{"solver": ["lbfgs", "adam"]}, {"early_stopping": [True]}, {"batch_size": [5, 500]}],
        LABELS,
        SEVERAL,
    ),
    "weights of classes": (
        CLASSIFIER,
        {"class_weight": [None, "balanced"], "alpha": [0.1, 1.0]},
        LABELS,
        SEVERAL,
    ),
    "optimizers": (
        CLASSIFIER,
        {"optimizer": [fastmlp.AdamW(1e-2), fastmlp.RMSprop(1e-3), None]},
        LABELS,
        SEVERAL,
    ),
}


@pytest.fixture
def attended(monkeypatch):
    """Return of each call that is left to scikit-learn's code whether its estimator is fitted."""
    calls, attend = [], meeting.Meeting.attended

    def counted(self, function):
        calls.extend(hasattr(given[0], "coefs_") for _, given, _ in function.items)
        return attend(self, function)

    monkeypatch.setattr(meeting.Meeting, "attended", counted)
    return calls


@pytest.mark.parametrize("case", CASES)
def test_results_are_scikit_learns(case, attended):
    estimator, grid, y, scoring = CASES[case]
    given = {"cv": KFold(3), "scoring": scoring, "refit": False, "return_train_score": True}
    ours = results_of(GridSearchCV(estimator, grid, **given), y)
    # Parameters that are not finite are an error, in scikit-learn's words.
    assert attended == ([False] * 3 if case == "diverges" else [])
    assert_same(ours, results_of(PlainGridSearchCV(estimator, grid, **given), y))


def test_rows_are_checked_once_a_fold(monkeypatch):
    checked, check = [], PlainClassifier._validate_input

    def counted(self, X, y, *rest, **more):
        checked.append(len(X))
        return check(self, X, y, *rest, **more)

    monkeypatch.setattr(PlainClassifier, "_validate_input", counted)
    search = GridSearchCV(CLASSIFIER, RATES, cv=KFold(3), refit=False)
    results_of(search, LABELS)
    assert checked == [55, 55, 56]
    # Other rows are other rows.
    results_of(search, LABELS[::-1])
    assert len(checked) == 6


def test_epochs_and_rows_of_halving_are_scikit_learns(attended, monkeypatch):
    kept, expect = [], queueing.Queue.expect

    def counted(self, *given):
        kept.append(len(self._folds))
        expect(self, *given)

    monkeypatch.setattr(queueing.Queue, "expect", counted)
    for more in ({}, {"resource": "max_iter", "max_resources": 9}):
        rest = {"cv": 3, "random_state": 0, "scoring": "neg_mean_squared_error", **more}
        ours = results_of(HalvingGridSearchCV(REGRESSOR, RATES, **rest), Y)
        assert_same(ours, results_of(PlainHalvingGridSearchCV(REGRESSOR, RATES, **rest), Y))
    assert not attended
    # The rows of one round are not kept in the next one.
    assert max(kept) == 3 < len(kept) * 3


@pytest.mark.parametrize("limit", ["MOST_CANDIDATES", "MOST_BYTES", "MOST_BYTES_OF_FOLDS"])
def test_limits_change_no_bit(limit, monkeypatch, attended):
    given = {"cv": KFold(3), "scoring": SEVERAL, "refit": False}
    expected = results_of(PlainGridSearchCV(CLASSIFIER, RATES, **given), LABELS)
    monkeypatch.setattr(queueing, limit, 4)
    assert_same(results_of(GridSearchCV(CLASSIFIER, RATES, **given), LABELS), expected)
    assert bool(attended) == (limit == "MOST_BYTES_OF_FOLDS")


def fits_and_warnings(search):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        search.fit(X, LABELS)
    scores = search.cv_results_["mean_test_score"].tolist()
    return scores, {(each.category, str(each.message).split("\n")[0]) for each in said}


@pytest.mark.parametrize("jobs", [None, 2])
def test_one_bad_candidate_is_scikit_learns_alone(jobs, attended):
    grid = {"learning_rate_init": [1e-3, -1.0, 1e-2], "alpha": [0.1, 1.0]}
    given = {"cv": KFold(3), "error_score": -1.0, "refit": False}
    scores, said = fits_and_warnings(GridSearchCV(CLASSIFIER, grid, n_jobs=jobs, **given))
    assert len(attended) == 6
    plain, also_said = fits_and_warnings(PlainGridSearchCV(CLASSIFIER, grid, **given))
    assert scores == plain
    assert FitFailedWarning in {category for category, _ in said}
    # Other processes say by themselves what they have to say.
    assert said == also_said or jobs


@pytest.mark.parametrize(
    "grid",
    [
        {"random_state": [np.random.RandomState(0)], "alpha": [0.1, 1.0]},
        {"callbacks": [[lambda event: event.epoch > 1]], "alpha": [0.1, 1.0]},
        {"verbose": [True], "alpha": [0.1, 1.0]},
    ],
    ids=["generator", "callbacks", "verbose"],
)
def test_what_is_used_up_by_a_fit_is_left_to_scikit_learn(grid, attended):
    given = {"cv": KFold(3), "scoring": "neg_log_loss", "refit": False}
    ours = results_of(GridSearchCV(CLASSIFIER, grid, **given), LABELS)
    assert len(attended) == 6
    assert_same(ours, results_of(PlainGridSearchCV(CLASSIFIER, grid, **given), LABELS))


class Own(MLPClassifier):
    """A subclass, whose `score` may be anything."""

    def score(self, X, y, sample_weight=None):
        return -1.0


def test_what_may_see_more_is_left_to_scikit_learn(attended):
    searches = [
        GridSearchCV(Own(**SETTINGS), {"alpha": [0.1]}, cv=3),
        GridSearchCV(CLASSIFIER, {"alpha": [0.1]}, cv=3, verbose=2),
        GridSearchCV(CLASSIFIER, {"alpha": [0.1]}, cv=3, scoring={"own": "accuracy"}, refit="own"),
    ]
    for number, search in enumerate(searches, 1):
        results_of(search, LABELS)
        assert len(attended) == 3 * number
    assert searches[0].best_score_ == -1.0
    weights = np.linspace(1, 2, len(X))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = GridSearchCV(CLASSIFIER, RATES, cv=3).fit(X, LABELS, sample_weight=weights)
        plain = PlainGridSearchCV(CLASSIFIER, RATES, cv=3).fit(X, LABELS, sample_weight=weights)
    assert ours.cv_results_["mean_test_score"].tolist() == (
        plain.cv_results_["mean_test_score"].tolist()
    )


def test_groups_of_rows_are_those_of_the_folds(attended):
    given = {"cv": GroupKFold(3), "scoring": "neg_log_loss", "refit": False}
    found = [search(CLASSIFIER, RATES, **given) for search in (GridSearchCV, PlainGridSearchCV)]
    for search in found:
        search.fit(X, LABELS, groups=np.arange(len(X)) % 7)
    assert not attended
    ours, plain = (each.cv_results_["mean_test_score"].tolist() for each in found)
    assert ours == plain


def test_several_processes_have_the_same_results(attended):
    rest = {"cv": KFold(3), "return_train_score": True, "refit": False}
    for estimator, y, scoring in ((CLASSIFIER, LABELS, SEVERAL), (REGRESSOR, Y, None)):
        given = {**rest, "scoring": scoring}
        grid = {**RATES, "hidden_layer_sizes": [(5,), (3, 4)]}
        ours = results_of(GridSearchCV(estimator, grid, n_jobs=2, **given), y)
        assert_same(ours, results_of(PlainGridSearchCV(estimator, grid, **given), y))
    assert not attended


def test_candidates_are_shared_out_by_their_folds(monkeypatch):
    parts = []

    class InThisProcess:
        def __init__(self, n_jobs):
            assert n_jobs == 2

        def __call__(self, calls):
            parts.extend(given[0] for _, given, _ in calls)
            return [queueing.results_of_part(part, True) for part in parts]

    monkeypatch.setattr(queueing, "Parallel", InThisProcess)
    given = {"cv": KFold(4), "refit": False}
    ours = results_of(GridSearchCV(CLASSIFIER, RATES, n_jobs=2, **given), LABELS)
    assert_same(ours, results_of(PlainGridSearchCV(CLASSIFIER, RATES, **given), LABELS))
    folds = [{id(keywords["test"]) for [(_, keywords)] in part} for part in parts]
    assert [len(each) for each in folds] == [2, 2]
    assert not folds[0] & folds[1]


@pytest.mark.parametrize(
    "bad",
    [{"n_jobs": 0}, {"n_jobs": "two"}, {"verbose": "much"}, {"scoring": "none"}],
    ids=["no jobs", "jobs", "verbose", "scoring"],
)
def test_bad_arguments_are_refused_as_by_scikit_learn(bad):
    said = []
    for search in (GridSearchCV, PlainGridSearchCV):
        with pytest.raises(Exception) as error:
            search(CLASSIFIER, RATES, cv=3, **bad).fit(X, LABELS)
        said.append((error.type, str(error.value)))
    assert said[0] == said[1]


def test_names_of_parameters_are_those_of_the_constructor_now():
    class Shorter(MLPRegressor):
        def __init__(self, alpha=0.1):
            super().__init__(alpha=alpha)

    assert Shorter._get_param_names() == ["alpha"]
    assert clone(Shorter(0.5)).alpha == 0.5
    assert "alpha" in MLPRegressor._get_param_names()
    assert len(MLPRegressor._get_param_names()) > 20
    Shorter.__init__ = lambda self, beta_1=0.9: None
    assert Shorter._get_param_names() == ["beta_1"]
