"""fastmlp's estimators against scikit-learn's, on whatever engine `make_engine` gives."""

import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from sklearn.exceptions import ConvergenceWarning

from fastmlp.sklearn import dispatch
from fastmlp.sklearn.engine import ScikitLearnEngine
from tests.scikit_learn.cases import (
    CLASSIFIED,
    PREDICTION_TOLERANCE,
    REGRESSED,
    check_same,
    close,
    data,
    pair,
)

EPOCHS = 50
KINDS = (*CLASSIFIED, *REGRESSED)
DTYPES = ("float64", "float32")

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.usefixtures("one_blas_thread", "few_rows_too"),
]

# No stopping before the last epoch.
ALL_EPOCHS = {"max_iter": EPOCHS, "tol": 0.0, "n_iter_no_change": 1000}
SGD = {"solver": "sgd", "learning_rate_init": 0.02}
SETTINGS = {
    "adam": {},
    "adam of other numbers": {"beta_1": 0.7, "beta_2": 0.95, "epsilon": 1e-3},
    "sgd": {**SGD, "momentum": 0},
    "sgd, momentum": {**SGD, "momentum": 0.9, "nesterovs_momentum": False},
    "sgd, nesterov": {**SGD, "momentum": 0.9},
    "sgd, nesterov without momentum": {**SGD, "momentum": 0, "nesterovs_momentum": True},
    "sgd, invscaling": {**SGD, "learning_rate": "invscaling", "power_t": 0.2},
    "sgd, adaptive": {**SGD, "learning_rate": "adaptive", "tol": 1e-2, "n_iter_no_change": 2},
    "alpha": {"alpha": 0.5},
    "alpha 0": {"alpha": 0},
    "in order": {"shuffle": False},
    "one batch": {"batch_size": 157},
    "batches of one": {"batch_size": 1, "max_iter": 5},
    "the automatic batch": {"batch_size": "auto"},
    "a last batch of one": {"batch_size": 12},
    "no hidden layer": {"hidden_layer_sizes": ()},
    "one hidden layer": {"hidden_layer_sizes": 16},
    "one hidden unit": {"hidden_layer_sizes": (1,)},
    "three hidden layers": {"hidden_layer_sizes": (5, 17, 3)},
}


def fit_both(kind, dtype="float64", sample_weight=None, **settings):
    ours, theirs = pair(kind, **{**ALL_EPOCHS, **settings})
    X, y = data(kind, dtype)
    for each in (ours, theirs):
        each.fit(X, y, sample_weight)
    return ours, theirs, X, y


def check_predictions(ours, theirs, X, dtype):
    """The same parameters give the same predictions: those of two fits differ by their rounding."""
    theirs.coefs_, theirs.intercepts_ = ours.coefs_, ours.intercepts_
    tolerance = PREDICTION_TOLERANCE if dtype == "float64" else 1e-5
    if hasattr(theirs, "predict_proba"):
        close(ours.predict_proba(X), theirs.predict_proba(X), tolerance, "predict_proba")
    mine, other = ours.predict(X), theirs.predict(X)
    if other.dtype.kind == "f":
        close(mine, other, tolerance, "predict")
    else:
        assert np.array_equal(mine, other)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["adam", "sgd, nesterov"])
def test_every_kind_of_target(kind, dtype, name):
    ours, theirs, X, y = fit_both(kind, dtype, **SETTINGS[name])
    assert ours.n_iter_ == EPOCHS
    check_same(ours, theirs, dtype)
    check_predictions(ours, theirs, X, dtype)
    assert ours.score(X, y) == pytest.approx(theirs.score(X, y), abs=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["multiclass", "regression"])
@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting(kind, dtype, name):
    ours, theirs, X, _ = fit_both(kind, dtype, **SETTINGS[name])
    check_same(ours, theirs, dtype)
    check_predictions(ours, theirs, X, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
def test_every_activation(kind, dtype, activation):
    ours, theirs, X, _ = fit_both(kind, dtype, activation=activation)
    check_same(ours, theirs, dtype)
    check_predictions(ours, theirs, X, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["adam", "sgd, momentum"])
def test_sample_weights(kind, dtype, name):
    weights = np.random.default_rng(5).uniform(0.1, 3.0, len(data(kind)[0])).astype(dtype)
    weights[::7] = 0
    ours, theirs, *_ = fit_both(kind, dtype, weights, **SETTINGS[name])
    check_same(ours, theirs, dtype)
    unweighted, *_ = fit_both(kind, dtype, **SETTINGS[name])
    assert abs(unweighted.loss_ - ours.loss_) > 1e-3 * ours.loss_


def test_labels_that_are_strings():
    # Not with early stopping, in which scikit-learn 1.7 cannot score them.
    X, y = data("multiclass")
    y = np.array(["none", "some", "many", "all"])[np.unique(y, return_inverse=True)[1]]
    ours, theirs = (each.fit(X, y) for each in pair("multiclass", **ALL_EPOCHS))
    check_same(ours, theirs, "float64")
    check_predictions(ours, theirs, X, "float64")


def test_float64_weights_of_float32_rows():
    weights = np.random.default_rng(5).uniform(0.1, 3.0, len(data("multiclass")[0]))
    ours, theirs, *_ = fit_both("multiclass", "float32", weights)
    # The state of the biases is then of float64 in scikit-learn, and of float32 here.
    assert [each._optimizer.ms[-1].dtype for each in (theirs, ours)] == ["float64", "float32"]
    check_same(ours, theirs, "float32")


@pytest.mark.parametrize("kind", ["multiclass", "regression"])
def test_a_batch_that_weighs_nothing(kind):
    X, y = data(kind)
    weights = np.where(np.arange(len(X)) < 32, 0.0, 1.0)
    for each in pair(kind, shuffle=False):
        with pytest.raises(ZeroDivisionError, match="Weights sum to zero"):
            each.fit(X, y, weights)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", CLASSIFIED)
def test_losses_of_outputs_that_are_certain(kind, dtype):
    """scikit-learn keeps probabilities a rounding away from 0 and 1 in the loss, and only there."""
    X, y = data(kind, dtype)
    starts = {"warm_start": True, "max_iter": 1, "shuffle": False, "activation": "identity"}
    ours, theirs = pair(kind, **starts, solver="sgd", learning_rate_init=1e-9, alpha=0)
    for each in (ours, theirs):
        each.fit(X, y)
        # Wrong, and sure of it.
        each.coefs_ = [weights * np.asarray(300, dtype) for weights in each.coefs_]
        each.fit(X, y)
    limit = -np.log(np.finfo(dtype).eps)
    assert 0.1 * limit < theirs.loss_ < 5 * limit
    check_same(ours, theirs, dtype)


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel", "regression"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_early_stopping(kind, weighted, solver):
    weights = np.random.default_rng(5).uniform(0.1, 3.0, len(data(kind)[0])) if weighted else None
    stopping = {"early_stopping": True, "tol": 1e-3, "n_iter_no_change": 4}
    rate = {"learning_rate_init": 0.01, "validation_fraction": 0.23}
    ours, theirs, X, _ = fit_both(kind, "float64", weights, solver=solver, **stopping, **rate)
    assert len(ours.validation_scores_) == ours.n_iter_
    check_same(ours, theirs, "float64")
    check_predictions(ours, theirs, X, "float64")


def test_early_stopping_stops_and_keeps_the_best():
    ours, theirs, *_ = fit_both(
        "binary", early_stopping=True, n_iter_no_change=3, max_iter=400, learning_rate_init=0.01
    )
    assert ours.n_iter_ < 400
    assert ours.coefs_ is ours._best_coefs
    check_same(ours, theirs, "float64")


@pytest.mark.parametrize("kind", ["multiclass", "regression"])
def test_stopping_without_improvement(kind):
    ours, theirs, *_ = fit_both(kind, max_iter=500, tol=1e-2, n_iter_no_change=3)
    assert ours.n_iter_ < 500
    check_same(ours, theirs, "float64")


@pytest.mark.parametrize("name", ["adam", "sgd, nesterov", "sgd, invscaling"])
@pytest.mark.parametrize("early", [False, True])
def test_warm_start(name, early):
    settings = {**ALL_EPOCHS, **SETTINGS[name], "max_iter": 7, "warm_start": True}
    ours, theirs = pair("multiclass", early_stopping=early, **settings)
    X, y = data("multiclass")
    for _ in range(3):
        for each in (ours, theirs):
            each.fit(X, y)
        check_same(ours, theirs, "float64")
    assert len(ours.loss_curve_) == 21


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["adam", "sgd, nesterov", "sgd, invscaling"])
def test_partial_fit(kind, name):
    ours, theirs = pair(kind, **SETTINGS[name])
    X, y = data(kind)
    classes = {"classes": np.unique(y)} if kind in ("binary", "multiclass") else {}
    if kind == "multilabel":
        classes = {"classes": [0, 1, 2, 3]}
    for start in range(0, 150, 30):
        rows = slice(start, start + 45)
        for each in (ours, theirs):
            each.partial_fit(X[rows], y[rows], **classes)
        check_same(ours, theirs, "float64")


@pytest.mark.parametrize("name", ["adam", "sgd, nesterov"])
def test_partial_fit_after_fit_and_fit_after_that(name):
    ours, theirs, X, y = fit_both("regression", **{**SETTINGS[name], "max_iter": 5})
    for _ in range(2):
        for each in (ours, theirs):
            each.partial_fit(X, y)
        check_same(ours, theirs, "float64")
    for each in (ours, theirs):
        each.fit(X[:90], y[:90])
    check_same(ours, theirs, "float64")


def test_a_random_state_that_is_shared_goes_on():
    draws = []
    for each in pair("multiclass", max_iter=4, random_state=np.random.RandomState(0)):
        each.set_params(random_state=np.random.RandomState(0))
        X, y = data("multiclass")
        each.fit(X, y).fit(X, y)
        draws.append(each)
    check_same(*draws, "float64")


@pytest.mark.parametrize("verbose", [True, 1])
@pytest.mark.parametrize("settings", [{"early_stopping": True}, SETTINGS["sgd, adaptive"]])
def test_what_is_printed(capsys, verbose, settings):
    settings = {**settings, "max_iter": 60, "tol": 0.05, "n_iter_no_change": 2}
    printed = []
    for each in pair("binary", verbose=verbose, **settings):
        each.fit(*data("binary"))
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] and printed[0].count("\n") > 3


def test_what_is_warned_of():
    said = []
    for each in pair("binary", max_iter=3, batch_size=1000):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            each.fit(*data("binary"))
        said.append([(each.category, str(each.message)) for each in caught])
    assert said[0] == said[1] and [kind for kind, _ in said[0]] == [UserWarning, ConvergenceWarning]


@pytest.mark.skipif(not dispatch.ENGINES, reason="only scikit-learn's arithmetic trains")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_none_of_these_settings_needs_scikit_learns_arithmetic(kind, dtype, monkeypatch):
    monkeypatch.setattr(ScikitLearnEngine, "epoch", None)
    for settings in SETTINGS.values():
        ours, _ = pair(kind, **{**settings, "max_iter": 1})
        ours.fit(*data(kind, dtype))


class Interruption:
    """Ctrl-C in the second batch of the third epoch, wherever scikit-learn's step runs."""

    def __init__(self, estimator, at):
        self.estimator, self.left, self.step = estimator, at, estimator._backprop

    def __call__(self, *arguments):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return self.step(*arguments)


def test_an_interrupt_keeps_what_was_learnt(monkeypatch):
    monkeypatch.setattr(dispatch, "ENGINES", ())
    fitted = []
    for each in pair("multiclass", **ALL_EPOCHS):
        each._backprop = Interruption(each, at=12)
        with pytest.warns(UserWarning, match="Training interrupted by user"):
            each.fit(*data("multiclass"))
        fitted.append(each)
    assert fitted[0].n_iter_ == 2
    check_same(*fitted, "float64")


@pytest.mark.parametrize("kind", ["multiclass", "regression"])
def test_training_that_diverges(kind):
    messages = []
    for each in pair(kind, solver="sgd", learning_rate_init=1e10, max_iter=60):
        with np.errstate(all="ignore"), pytest.raises(ValueError, match="non-finite") as caught:
            each.fit(*data(kind))
        messages.append((str(caught.value), each.n_iter_, len(each.loss_curve_)))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("kind", KINDS)
def test_the_engine_of_scikit_learn_gives_the_same_bits(kind, monkeypatch):
    monkeypatch.setattr(dispatch, "ENGINES", ())
    ours, theirs, *_ = fit_both(kind, "float32", max_iter=6)
    assert ours.loss_curve_ == theirs.loss_curve_
    assert type(ours.loss_) is type(theirs.loss_)
    for mine, other in zip(ours.coefs_, theirs.coefs_, strict=True):
        assert np.array_equal(mine, other)
