"""Searches with our estimators inside have scikit-learn's results, and train side by side."""

import os
import signal
import threading
import warnings
import zlib

import numpy as np
import pytest
from joblib import parallel_config
from sklearn.datasets import make_classification, make_regression
from sklearn.exceptions import ConvergenceWarning, FitFailedWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV as PlainGridSearchCV
from sklearn.model_selection import KFold
from sklearn.model_selection import RandomizedSearchCV as PlainRandomizedSearchCV
from sklearn.model_selection._search_successive_halving import (
    HalvingGridSearchCV as PlainHalvingGridSearchCV,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import fastmlp
from fastmlp.sklearn import (
    GridSearchCV,
    HalvingGridSearchCV,
    MLPClassifier,
    MLPRegressor,
    RandomizedSearchCV,
    acceleration,
    meeting,
    searches,
)

# Few epochs are enough here.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

# Classes that are not evenly many, and folds of two lengths.
X, LABELS = make_classification(83, 6, n_informative=4, n_classes=3, random_state=0)
Y = make_regression(83, 6, random_state=0)[1] / 50
SETTINGS = {"hidden_layer_sizes": (7,), "max_iter": 6, "random_state": 3, "batch_size": 16}


def fingerprint(estimator, X, y):
    """Return numbers that are equal only if two fits have left the same bits."""
    network = estimator[-1] if hasattr(estimator, "steps") else estimator
    arrays = [*network.coefs_, *network.intercepts_]
    optimizer = getattr(network, "_optimizer", None)
    state = [*getattr(optimizer, "ms", []), *getattr(optimizer, "velocities", [])]
    drawn = network._random_state.get_state()[1]
    return {
        "parameters": zlib.crc32(b"".join(each.tobytes() for each in arrays)),
        "state": zlib.crc32(b"".join(np.ascontiguousarray(each).tobytes() for each in state)),
        "steps": getattr(optimizer, "t", 0),
        "rate": getattr(optimizer, "learning_rate", 0.0),
        "drawn": zlib.crc32(drawn.tobytes()),
        "loss": network.loss_,
        "epochs": network.n_iter_,
        "score": estimator.score(X, y),
    }


def results_of(search, y, X=X):
    """Return everything that a search has found, but for its times."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        search.fit(X, y)
    return {name: each for name, each in search.cv_results_.items() if "time" not in name}


def assert_same(ours, theirs):
    """Compare the results of two searches."""
    assert ours.keys() == theirs.keys()
    for name, each in ours.items():
        if name.startswith(("param_", "params")):
            assert str(each) == str(theirs[name]), name
        else:
            assert np.array_equal(each, theirs[name], equal_nan=True), name


@pytest.fixture
def groups(monkeypatch):
    """Return the numbers of fits that are trained together, as they happen."""
    sizes = []

    class Counted(meeting.Together):
        def __init__(self, seats):
            sizes.append(len(seats))
            super().__init__(seats)

    monkeypatch.setattr(meeting, "Together", Counted)
    return sizes


RATES = {"learning_rate_init": [1e-3, 1e-2, 5e-2], "alpha": [0.0, 1e-7, 1e-2]}
EPOCHS = {"resource": "max_iter", "max_resources": 9}
CASES = {
    "classifier": (MLPClassifier(**SETTINGS), RATES, LABELS),
    "two classes": (MLPClassifier(**SETTINGS), {"random_state": [0, 1]}, LABELS > 0),
    "regressor": (MLPRegressor(**SETTINGS), {**RATES, "hidden_layer_sizes": [(3,), (4, 3)]}, Y),
    "sgd": (
        MLPRegressor(**{**SETTINGS, "max_iter": 40}, solver="sgd", tol=1e-2, n_iter_no_change=2),
        {"learning_rate": ["constant", "invscaling", "adaptive"], "momentum": [0.0, 0.9]},
        Y,
    ),
    "stops early": (
        MLPRegressor(**{**SETTINGS, "max_iter": 60}, tol=0.02, n_iter_no_change=2),
        {"learning_rate_init": [1e-3, 1e-2, 0.1, 0.3]},
        Y,
    ),
    "diverges": (
        MLPRegressor(**SETTINGS, solver="sgd"),
        {"learning_rate_init": [1e-3, 1e4, 1e-2, 1e200]},
        Y,
    ),
    "optimizer": (
        MLPClassifier(**SETTINGS),
        {"optimizer": [fastmlp.AdamW(1e-2), fastmlp.AdamW(2e-2), fastmlp.RMSprop(1e-3), None]},
        LABELS,
    ),
    "pipeline": (
        make_pipeline(StandardScaler(), MLPClassifier(**SETTINGS)),
        {"standardscaler__with_mean": [True, False], "mlpclassifier__alpha": [1e-4, 1e-2]},
        LABELS,
    ),
    "not all together": (
        MLPClassifier(**SETTINGS),
        [
            {"solver": ["lbfgs", "adam"], "alpha": [1e-4, 1e-3]},
            {"early_stopping": [True]},
            {"batch_size": [5, 500]},
        ],
        LABELS,
    ),
    "float32": (MLPRegressor(**SETTINGS), {"alpha": [1e-3, 1e-2]}, Y.astype(np.float32)),
    # Losses near the largest number, whose epochs scikit-learn trains itself.
    "huge targets": (MLPRegressor(**SETTINGS), RATES, (Y * 1e16).astype(np.float32)),
}


@pytest.mark.parametrize("case", CASES)
def test_results_are_scikit_learns(case, groups):
    estimator, grid, y = CASES[case]
    given = {"cv": KFold(3), "scoring": fingerprint, "refit": False, "error_score": -1.0}
    rows = X.astype(y.dtype) if y.dtype == np.float32 else X
    ours = results_of(GridSearchCV(estimator, grid, **given), y, rows)
    assert groups and min(groups) > 1
    theirs = results_of(PlainGridSearchCV(estimator, grid, **given), y, rows)
    assert_same(ours, theirs)


def test_a_warning_that_is_an_error_fails_its_fit_alone(groups):
    estimator = MLPRegressor(**SETTINGS, tol=0.5, n_iter_no_change=2)
    given = {"cv": KFold(3), "refit": False, "error_score": -100.0}
    scores = []
    for search in (GridSearchCV, PlainGridSearchCV):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FitFailedWarning)
            warnings.simplefilter("error", ConvergenceWarning)
            found = search(estimator, {"max_iter": [1, 300]}, **given).fit(X, Y)
        scores.append(found.cv_results_["mean_test_score"].tolist())
    assert scores[0] == scores[1]
    assert scores[0][0] == -100.0 < scores[0][1]
    assert groups == [2] * 3


def test_the_best_is_scikit_learns_too():
    given = MLPClassifier(**SETTINGS), RATES
    ours, theirs = GridSearchCV(*given, cv=3), PlainGridSearchCV(*given, cv=3)
    assert_same(results_of(ours, LABELS), results_of(theirs, LABELS))
    assert ours.best_params_ == theirs.best_params_
    assert ours.best_score_ == theirs.best_score_
    assert ours.predict_proba(X).tobytes() == theirs.predict_proba(X).tobytes()
    assert vars(ours).keys() == vars(theirs).keys()


def test_one_search_is_fitted_by_several_threads_at_once():
    given = MLPClassifier(**SETTINGS), RATES
    alone = PlainGridSearchCV(*given, cv=3).fit(X, LABELS).cv_results_["mean_test_score"]
    shared, failed = GridSearchCV(*given, cv=3), []
    start = threading.Barrier(4)

    def fit():
        start.wait()
        try:
            shared.fit(X, LABELS)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=fit) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert failed == []
    assert shared.cv_results_["mean_test_score"].tolist() == alone.tolist()


def test_all_candidates_of_a_fold_are_one_group(groups):
    search = GridSearchCV(MLPClassifier(**SETTINGS), {"random_state": range(5)}, cv=KFold(4))
    results_of(search, LABELS)
    assert groups == [5] * 4


@pytest.mark.parametrize(
    ("ours", "plain", "more"),
    [
        (RandomizedSearchCV, PlainRandomizedSearchCV, {"n_iter": 5}),
        (HalvingGridSearchCV, PlainHalvingGridSearchCV, {}),
        (HalvingGridSearchCV, PlainHalvingGridSearchCV, EPOCHS),
    ],
    ids=["randomized", "halving", "halving epochs"],
)
def test_other_searches_are_scikit_learns(ours, plain, more, groups):
    given = MLPRegressor(**SETTINGS), RATES
    rest = {"cv": 3, "random_state": 0, **more}
    assert_same(results_of(ours(*given, **rest), Y), results_of(plain(*given, **rest), Y))
    assert groups


def test_other_estimators_are_searched_by_scikit_learn(caplog, monkeypatch):
    monkeypatch.setattr(acceleration, "_said", set())
    monkeypatch.setattr(searches, "Meeting", None)
    caplog.set_level("INFO", "fastmlp")
    for estimator in (LogisticRegression(), make_pipeline(StandardScaler(), LogisticRegression())):
        name = "C" if isinstance(estimator, LogisticRegression) else "logisticregression__C"
        search = GridSearchCV(estimator, {name: [0.1, 1.0]}, cv=2).fit(X, LABELS)
        assert search.best_score_ > 0.4
    assert "neither fastmlp's nor a pipeline" in caplog.text
    with parallel_config("threading", n_jobs=2):
        GridSearchCV(MLPClassifier(**SETTINGS), {"alpha": [0.1]}, cv=2).fit(X, LABELS)
    assert "the active backend of joblib is ThreadingBackend" in caplog.text


def test_bad_candidates_fail_as_in_scikit_learn():
    grid = {"learning_rate_init": [1e-3, -1.0, 1e-2]}
    for search in (GridSearchCV, PlainGridSearchCV):
        with (
            pytest.warns(UserWarning, match="scores are non-finite"),
            pytest.warns(FitFailedWarning, match="3 fits failed"),
        ):
            found = search(MLPClassifier(**SETTINGS), grid, cv=3).fit(X, LABELS)
        assert np.isnan(found.cv_results_["mean_test_score"]).tolist() == [False, True, False]
        with pytest.raises(ValueError, match="learning_rate_init"):
            search(MLPClassifier(**SETTINGS), grid, cv=3, error_score="raise").fit(X, LABELS)
    broken = X.copy()
    broken[3, 2] = np.nan
    folds = [(np.arange(40), np.arange(40, 83))]
    with pytest.raises(ValueError, match="All the 3 fits failed"):
        GridSearchCV(MLPClassifier(**SETTINGS), {"alpha": [0, 1, 2]}, cv=folds).fit(broken, LABELS)
    with pytest.raises(ValueError, match="No fits were performed|non-empty|not empty"):
        GridSearchCV(MLPClassifier(**SETTINGS), {"alpha": []}, cv=3).fit(X, LABELS)
    with pytest.raises(ValueError, match="Invalid parameter 'alhpa'"):
        GridSearchCV(MLPClassifier(**SETTINGS), {"alhpa": [1]}, cv=3).fit(X, LABELS)


def test_an_error_of_the_kernels_fails_every_fit_of_a_group(monkeypatch):
    given = {"alpha": [1e-3, 1]}
    own = results_of(GridSearchCV(MLPClassifier(**SETTINGS), given, cv=2), LABELS)

    whole = meeting.Together.run

    def broken(self, look):
        train, trained = self._trainer.run, []

        def fail(*given):
            if len(trained) == 2:
                raise MemoryError("no room")
            trained.append(given)
            return train(*given)

        self._trainer.run = fail
        whole(self, look)

    monkeypatch.setattr(meeting.Together, "run", broken)
    steps = make_pipeline(StandardScaler(), MLPClassifier(**SETTINGS))
    several = {"mlpclassifier__alpha": given["alpha"]}
    with pytest.raises(MemoryError, match="no room"):
        GridSearchCV(steps, several, cv=2, error_score="raise").fit(X, LABELS)
    # Candidates of a queue begin again, each alone.
    search = GridSearchCV(MLPClassifier(**SETTINGS), given, cv=2, error_score="raise")
    assert_same(results_of(search, LABELS), own)


def test_ctrl_c_ends_a_search_and_its_threads(interrupts_heard):
    before = threading.active_count()
    estimator = MLPClassifier((50,), max_iter=10**6, tol=0, n_iter_no_change=10**6, random_state=0)
    search = GridSearchCV(estimator, {"alpha": [1e-4, 1e-3]}, cv=2)
    timer = threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        search.fit(X, LABELS)
    deadline = threading.Event()
    for _ in range(100):
        # Those of joblib's pool, and its handlers.
        if threading.active_count() <= before + 1:
            break
        deadline.wait(0.1)
    assert threading.active_count() <= before + 1


def test_one_place_is_no_meeting():
    """A thread that is alone waits for nobody."""
    alone = meeting.Meeting(1)
    alone.expect(3)

    def fit():
        return MLPRegressor(**SETTINGS).fit(X, Y)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, expected = alone.attended(fit)(), fit()
    assert found.loss_ == expected.loss_
    alone.close()
    with pytest.raises(fastmlp.errors.CallOrderError, match="a search that has ended"):
        alone.attended(fit)()


@pytest.mark.parametrize("scoring", [fingerprint, None], ids=["meeting", "queue"])
@pytest.mark.parametrize("pre_dispatch", [1, 2, "n_jobs // 20", "n_jobs", "2*n_jobs", "all"])
def test_nobody_waits_for_fits_that_are_not_handed_out(pre_dispatch, scoring):
    given = {"cv": KFold(3), "scoring": scoring, "refit": False, "pre_dispatch": pre_dispatch}
    estimator, grid = MLPRegressor(**SETTINGS), {"alpha": [1e-4, 1e-3]}
    ours = results_of(GridSearchCV(estimator, grid, **given), Y)
    assert_same(ours, results_of(PlainGridSearchCV(estimator, grid, **given), Y))


@pytest.mark.parametrize("pre_dispatch", [0, -1, 1.5, None, "nonsense"])
def test_a_bad_pre_dispatch_is_refused_as_by_scikit_learn(pre_dispatch):
    estimator, grid = MLPRegressor(**SETTINGS), {"alpha": [1e-4, 1e-3]}
    said = []
    for search in (GridSearchCV, PlainGridSearchCV):
        try:
            found = search(estimator, grid, cv=3, pre_dispatch=pre_dispatch).fit(X, Y)
            said.append(found.best_params_)
        except Exception as error:
            said.append((type(error), str(error).replace(search.__module__, "")))
    assert said[0] == said[1]
