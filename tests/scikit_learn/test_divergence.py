"""Fits that diverge: as many epochs, the same losses, warnings and errors as scikit-learn's."""

import itertools
import logging
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

import fastmlp
from fastmlp.errors import NonFiniteTrainingError
from fastmlp.sklearn import MLPRegressor, acceleration, dispatch
from fastmlp.sklearn.engine import ScikitLearnEngine
from tests.scikit_learn.cases import REGRESSED, data, pair

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.usefixtures("one_blas_thread", "few_rows_too"),
]


@pytest.fixture
def said(caplog, monkeypatch):
    """Return a function that gives the reasons that have been logged."""
    monkeypatch.setattr(acceleration, "_said", set())
    caplog.set_level(logging.INFO, logger="fastmlp")
    prefix = "scikit-learn's own code runs: "

    def reasons():
        lines = [each.getMessage() for each in caplog.records if each.name == "fastmlp"]
        return [line.removeprefix(prefix) for line in lines if line.startswith(prefix)]

    return reasons


def story(estimator, X, y, weights=None):
    """Return what a fit tells: its warnings, its error, and its losses."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            estimator.fit(X, y, weights)
            error = None
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
    told = sorted((each.category.__name__, str(each.message)) for each in caught)
    losses = getattr(estimator, "loss_curve_", [])
    return told, error, np.array(losses, float), [type(each) for each in losses]


def same_story(ours, theirs, tolerance=1e-6):
    """Return whether two fits tell the same."""
    return (
        ours[:2] == theirs[:2]
        and ours[3] == theirs[3]
        and len(ours[2]) == len(theirs[2])
        and np.allclose(ours[2], theirs[2], tolerance, equal_nan=True)
    )


COUNTS = {"solver": "sgd", "momentum": 0, "learning_rate_init": 0.05, "max_iter": 20}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("zeros", [False, True])
def test_a_rate_that_underflows(dtype, zeros, said):
    """In scikit-learn y / p is then infinite, or 0 / 0, while y (log y - z) is a number."""
    X, y = data("poisson", dtype)
    y = np.zeros_like(y) if zeros else y + 1
    found = []
    for each in pair("poisson", hidden_layer_sizes=(), warm_start=True, max_iter=2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            each.fit(X, y)
        each.intercepts_[-1][:] = -2000
        found.append(story(each, X, y))
    assert same_story(*found, 1e-3 if dtype == "float32" else 1e-6)
    told, _, losses, _ = found[1]
    assert not np.isfinite(losses[-1]) and any("divide" in text for _, text in told)
    assert said() == ["an epoch met a number that is not finite"]


def draw(number):
    """Return the estimators and the data of one fit that probably diverges."""
    generator = np.random.default_rng(number)
    kind = str(generator.choice(["poisson", "poisson", "regression", "multiclass", "multilabel"]))
    dtype = str(generator.choice(["float64", "float64", "float32"]))
    X, y = data(kind, dtype, rows=int(generator.integers(30, 157)), seed=number)
    X = X * np.asarray(10 ** generator.uniform(-1, 4), dtype)
    if kind in REGRESSED:
        y = y * np.asarray(10 ** generator.uniform(0, 6), dtype)
    settings = {
        "hidden_layer_sizes": [(), (5,), (6, 4)][generator.integers(3)],
        "activation": str(generator.choice(["relu", "tanh", "identity", "logistic"])),
        "solver": str(generator.choice(["sgd", "sgd", "adam"])),
        "momentum": float(generator.choice([0, 0.9])),
        "learning_rate": str(generator.choice(["constant", "adaptive"])),
        "learning_rate_init": 10 ** generator.uniform(-4, generator.choice([1, 12])),
        "alpha": float(generator.choice([0, 1e-4, 1e3])),
        "batch_size": int(generator.integers(5, 64)),
        "max_iter": 16,
        "n_iter_no_change": 3,
    }
    weights = generator.uniform(0.1, 3, len(X)) if generator.random() < 0.2 else None
    return kind, dtype, settings, X, y, weights


def moved(X, number):
    """Return X as another order of the same sums might see it: moved by its roundings."""
    noise = np.random.default_rng(number).choice([-1, 0, 1], X.shape)
    return X * (1 + noise * np.finfo(X.dtype).eps).astype(X.dtype)


def test_random_fits_that_diverge_tell_what_scikit_learn_tells():
    followed = diverged = 0
    for number in range(150):
        kind, dtype, settings, X, y, weights = draw(number)
        tolerance = 1e-2 if dtype == "float32" else 1e-6
        ours, theirs = pair(kind, **settings)
        other = story(theirs, X, y, weights)
        # Chaos multiplies a rounding until it shows in the losses: nothing to be compared with.
        again = [story(pair(kind, **settings)[1], moved(X, k), y, weights) for k in range(2)]
        if not all(same_story(each, other, tolerance / 10) for each in again):
            continue
        followed += 1
        diverged += other[1] is not None or any(not np.isfinite(each) for each in other[2])
        mine = story(ours, X, y, weights)
        assert same_story(mine, other, tolerance), (number, kind, settings, mine, other)
    assert followed >= 75 and diverged >= 20, (followed, diverged)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_losses_that_overflow_in_scikit_learns_sums(dtype, said):
    """It sums the squares of a batch before it divides by its rows; kernels do not."""
    X, y = data("regression", dtype)
    y = np.full_like(y, np.sqrt(np.finfo(dtype).max) / 4)
    found = [story(each, X, y) for each in pair("regression", max_iter=2, solver="sgd")]
    assert same_story(*found)
    assert said()[0].startswith("an epoch met")


def test_ordinary_large_numbers_stay_on_the_kernels(monkeypatch):
    monkeypatch.setattr(ScikitLearnEngine, "epoch", None)
    for dtype, size in (("float64", 1e60), ("float32", 1e8)):
        for alpha in (0, 1e-4):
            X, y = data("regression", dtype)
            ours = MLPRegressor(max_iter=2, alpha=alpha).fit(X, y * np.asarray(size, dtype))
            assert ours.loss_ > size


# What is logged.


def test_epochs_that_fall_back_are_logged_once(said):
    X, y = data("regression")
    weights = np.where(np.arange(len(X)) < 32, 0.0, 1.0)
    ours = MLPRegressor(batch_size=32, shuffle=False, max_iter=3)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            ours.fit(X, y, weights)
        with pytest.raises(ValueError, match="non-finite"), np.errstate(all="ignore"):
            MLPRegressor(solver="sgd", learning_rate_init=1e10).fit(X, y)
    assert said() == [
        "the weights of a mini-batch sum to 0",
        "an epoch met a number that is not finite",
    ]


@pytest.mark.filterwarnings("ignore")
def test_predictions_that_fall_back_are_logged_once(said):
    X, y = data("poisson")
    ours = MLPRegressor(loss="poisson", max_iter=1).fit(X, y)
    ours.coefs_[-1] *= 1e6
    for _ in range(2):
        assert not np.isfinite(ours.predict(X)).all()
    ours.coefs_[0] = ours.coefs_[0][:, :3]
    with pytest.raises(ValueError, match="broadcast"):
        ours.predict(X)
    assert said() == [
        "a prediction is not finite",
        "the shapes of coefs_ and intercepts_ do not fit together",
    ]


def test_targets_that_fall_back_are_logged(said):
    X, y = data("regression")
    with pytest.raises(TypeError):
        MLPRegressor().fit(X, y.astype(str))
    with np.errstate(all="ignore"):
        MLPRegressor(loss="poisson", max_iter=1).fit(X, y)
    assert said() == ["the targets are of dtype <U32", "a target of the Poisson loss is negative"]


# What only kernels have cannot go on in scikit-learn.


def test_a_fit_of_ones_own_optimizer_that_diverges():
    X, y = data("regression")
    events = []
    ours = MLPRegressor(optimizer=fastmlp.SGD(1e10), callbacks=[events.append], max_iter=50)
    with pytest.raises(NonFiniteTrainingError, match="in which an epoch met .*smaller learning"):
        ours.fit(X, y)
    assert len(events) == len(ours.loss_curve_) == ours.n_iter_
    assert all(np.isfinite(each).all() for each in [*ours.coefs_, *ours.intercepts_])


# The type of a loss.


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel", "regression", "poisson"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_losses_are_of_scikit_learns_type(kind, dtype, every):
    """Of every third case: all pairs of choices are there."""
    X, y = data(kind, dtype)
    targets = [y, y.astype("float64"), y.astype("float32"), y.astype(int)]
    weights = [None, np.ones(len(X), "float32"), np.ones(len(X))]
    batches = ["auto", 32, np.int64(32), np.int32(32)]
    settings = [{}, {"alpha": np.float64(1e-4)}, {"alpha": 0}, {"early_stopping": True}]
    cases = itertools.product(targets if kind in REGRESSED else [y], weights, batches, settings)
    for target, weight, batch_size, extra in itertools.islice(cases, None, None, every):
        ours, theirs = pair(kind, max_iter=2, **{"batch_size": batch_size, **extra})
        for each in (ours, theirs):
            each.fit(X, target, weight)
        for name in ("loss_", "best_loss_", "best_validation_score_"):
            assert type(getattr(ours, name)) is type(getattr(theirs, name)), (name, extra)
        for name in ("loss_curve_", "validation_scores_"):
            mine, other = getattr(ours, name) or [], getattr(theirs, name) or []
            assert [type(each) for each in mine] == [type(each) for each in other]
        assert [each.dtype for each in ours.coefs_] == [each.dtype for each in theirs.coefs_]


def test_the_loss_of_float32_is_one():
    X, y = data("regression", "float32")
    assert type(MLPRegressor(max_iter=1).fit(X, y).loss_) is np.float32
    # An integer of NumPy makes it float64, in scikit-learn too.
    assert type(MLPRegressor(max_iter=1, batch_size=np.int64(50)).fit(X, y).loss_) is np.float64


def test_kernels_take_over_again_after_an_epoch_of_scikit_learn():
    """Here the second and the fourth epoch are its own, as a callback has set the rate to 0."""
    X, y = data("regression")
    settings = {"solver": "sgd", "momentum": 0.9, "max_iter": 4, "batch_size": 32}

    def change(event):
        event.estimator._optimizer.learning_rate = next(rates)

    found = []
    for engines in (dispatch.ENGINES, ()):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(dispatch, "ENGINES", engines)
            rates = iter([0.0, 1e-2, 0.0, 1e-2])
            ours = MLPRegressor(callbacks=[change], random_state=0, **settings).fit(X, y)
            found.append(ours)
    assert found[0].loss_curve_ == pytest.approx(found[1].loss_curve_, rel=1e-9)
