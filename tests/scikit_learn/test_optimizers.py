"""Every optimizer of fastmlp with every schedule, in the place of scikit-learn's solver."""

import functools
import itertools
import pickle

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

import fastmlp
from fastmlp import optimizers
from fastmlp.schedules import (
    CosineDecay,
    ExponentialDecay,
    InverseScaling,
    LinearDecay,
    LinearWarmup,
    OneCycle,
    PiecewiseConstant,
    Schedule,
    StepDecay,
)
from fastmlp.sklearn import MLPClassifier, MLPRegressor
from tests.scikit_learn.cases import close, data

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.usefixtures("one_blas_thread"),
]


def stairs(step):
    """A schedule of one's own: of one step at a time."""
    return 0.01 if step < 7 else 0.002


OPTIMIZERS = {
    **{type(each).__name__: type(each) for each in optimizers.by_name().values()},
    "momentum": functools.partial(optimizers.SGD, momentum=0.9),
    "nesterov": functools.partial(optimizers.SGD, momentum=0.9, nesterov=True),
    "velocity": functools.partial(optimizers.SGD, momentum=0.9, rate_in_velocity=True),
    "Adam, epsilon_hat": functools.partial(optimizers.Adam, epsilon_hat=True),
}
RATES = {
    "a number": 0.01,
    "ExponentialDecay": ExponentialDecay(0.01, 0.9, every=3),
    "InverseScaling": InverseScaling(0.01),
    "CosineDecay": CosineDecay(1e-2, steps=10),
    "LinearDecay": LinearDecay(1e-2, 10),
    "OneCycle": OneCycle(1e-2, 10),
    "StepDecay": StepDecay(1e-2, 0.5, every=3),
    "PiecewiseConstant": PiecewiseConstant((3, 6), (1e-2, 1e-3, 1e-4)),
    "LinearWarmup": LinearWarmup(4, CosineDecay(1e-2, steps=10)),
    "a callable": stairs,
}
TABLE = list(itertools.product(OPTIMIZERS, RATES))
ROWS, BATCH, EPOCHS = 100, 32, 3


def sampled():
    """Return the table: all optimizers with two rates, two with all; the rest is exhaustive.

    A schedule gives numbers, whatever scikit-learn does with a number.
    """
    marks = {
        True: [],
        False: [pytest.mark.any_version],
        None: [pytest.mark.any_version, pytest.mark.exhaustive],
    }
    kinds = {
        (name, rate): rate.startswith("a ") or (None, False)[name in ("SGD", "Adam")]
        for name, rate in TABLE
    }
    return [pytest.param(*each, marks=marks[kind]) for each, kind in kinds.items()]


def test_the_table_is_whole():
    made = {type(make(0.1)) for make in OPTIMIZERS.values()}
    ours = {each for each in optimizers.Optimizer.__subclasses__() if "fastmlp" in each.__module__}
    assert made == ours
    # Also other tests have schedules of their own.
    own = {each for each in Schedule.__subclasses__() if each.__module__ == "fastmlp.schedules"}
    assert {type(rate) for rate in RATES.values()} >= own


def trained_by_steps(start, loss, X, y, optimizer):
    """Return the parameters that single steps of a model reach from those of an estimator."""
    sizes = [X.shape[1], *(len(each) for each in start.intercepts_)]
    hidden = ["relu"] * (len(sizes) - 2)
    model = fastmlp.MLP(sizes, [*hidden, "identity"], loss, reduction="batch_mean", dtype="float64")
    model.weights, model.biases = start.coefs_, start.intercepts_
    for _ in range(EPOCHS):
        for first in range(0, ROWS, BATCH):
            model.step(X[first : first + BATCH], y[first : first + BATCH], optimizer)
    return [*model.weights, *model.biases]


def settings_of(optimizer):
    return {
        "hidden_layer_sizes": (8,),
        "optimizer": optimizer,
        "shuffle": False,
        "alpha": 0,
        "batch_size": BATCH,
        "max_iter": EPOCHS,
        "random_state": 0,
    }


@pytest.mark.parametrize(("name", "rate"), sampled())
@pytest.mark.parametrize("kind", ["multiclass", "regression"])
def test_fits_are_the_steps_of_a_model(kind, name, rate):
    X, y = data(kind, rows=ROWS)
    optimizer = OPTIMIZERS[name](RATES[rate])
    make = MLPClassifier if kind == "multiclass" else MLPRegressor
    ours = make(**settings_of(optimizer))
    # The first random numbers are those of the parameters.
    start = clone(ours).set_params(optimizer=fastmlp.SGD(1e-300)).fit(X, y)
    # scikit-learn's labels are not the places of its outputs.
    targets = np.unique(y, return_inverse=True)[1] if kind == "multiclass" else y
    loss = "clipped_softmax_cross_entropy" if kind == "multiclass" else "half_squared_error"
    expected = trained_by_steps(start, loss, X, targets, optimizer)

    ours.fit(X, y)
    for mine, other in zip([*ours.coefs_, *ours.intercepts_], expected, strict=True):
        close(mine, np.asarray(other), 1e-12, "fit")
    steps = EPOCHS * -(-ROWS // BATCH)
    assert ours._optimizer.steps == steps
    last = RATES[rate]
    last = last(steps - 1) if callable(last) else last
    assert ours._optimizer.learning_rate == pytest.approx(float(last), abs=1e-15)

    # As many calls of `partial_fit`, with copies of all kinds between them.
    parts = make(**settings_of(optimizer))
    for _ in range(EPOCHS):
        classes = (np.unique(y),) if kind == "multiclass" else ()
        parts.partial_fit(X, y, None, *classes)
        parts = pickle.loads(pickle.dumps(parts))
        assert parts._optimizer.optimizer == optimizer
    for mine, other in zip(parts.coefs_, ours.coefs_, strict=True):
        assert np.array_equal(mine, other)

    # A fit under `warm_start` begins with a fresh state and the schedule's first step.
    for each in (parts, ours):
        each.set_params(warm_start=True, max_iter=1).fit(X, y)
        assert each._optimizer.steps == -(-ROWS // BATCH)
    assert np.array_equal(parts.coefs_[0], ours.coefs_[0])
    assert clone(ours).set_params(warm_start=False).fit(X, y).get_params()["optimizer"] == optimizer


@pytest.mark.parametrize("make", [MLPClassifier, MLPRegressor])
def test_a_grid_search_over_optimizers(make):
    X, y = data("multiclass" if make is MLPClassifier else "regression")
    grid = [each(rate) for each in OPTIMIZERS.values() for rate in RATES.values()]
    ours = make((5,) if make is MLPClassifier else "squared_error", max_iter=2, random_state=0)
    search = GridSearchCV(ours, {"optimizer": [None, *grid]}, cv=2, error_score="raise").fit(X, y)
    assert len(search.cv_results_["params"]) == len(grid) + 1
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    found = GridSearchCV(ours, {"optimizer": grid[:4]}, cv=2, n_jobs=2).fit(X, y)
    assert found.best_params_["optimizer"] in grid


def test_callbacks_are_told_the_rate_of_the_last_step():
    X, y = data("regression", rows=ROWS)
    told = []
    schedule = CosineDecay(1e-2, steps=12)
    settings = {**settings_of(fastmlp.Adam(schedule)), "callbacks": [told.append]}
    MLPRegressor(**settings).fit(X, y)
    batches = -(-ROWS // BATCH)
    expected = [schedule((epoch + 1) * batches - 1) for epoch in range(EPOCHS)]
    assert [each.learning_rate for each in told] == pytest.approx(expected)


def test_a_schedule_that_gives_no_rate_is_named():
    X, y = data("regression")
    with pytest.raises(ValueError, match="learning_rate: got nan from the schedule at step 0"):
        MLPRegressor(optimizer=fastmlp.Adam(lambda step: np.nan)).fit(X, y)
    later = fastmlp.Adam(lambda step: 0.01 if step < 5 else -1.0)
    ours = MLPRegressor(optimizer=later, batch_size=50, random_state=0)
    with pytest.raises(ValueError, match=r"learning_rate: got -1\.0 from the schedule at step 5"):
        ours.fit(X, y)
    # The epoch before it has been trained, and counts.
    assert ours.n_iter_ == 1 and np.isfinite(ours.predict(X)).all()
    with pytest.raises(ValueError, match="from the schedule at step 5"):
        ours.partial_fit(X, y)
    assert np.isfinite(ours.set_params(optimizer=None, max_iter=2).fit(X, y).loss_)
