"""What fastmlp's estimators have beyond scikit-learn's, what falls back, and what is refused."""

import importlib.util
import logging

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from scipy.sparse import csr_array, csr_matrix
from sklearn.base import clone
from sklearn.utils._param_validation import InvalidParameterError
from sklearn.utils.class_weight import compute_class_weight

import fastmlp
from fastmlp.device.machine import detect
from fastmlp.errors import DeviceError
from fastmlp.sklearn import EpochEnd, MLPClassifier, MLPRegressor, acceleration, dispatch
from fastmlp.sklearn.optimizers import KernelOptimizer
from tests.scikit_learn.cases import RecordingEngine, check_same, close, data, pair

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.usefixtures("one_blas_thread", "few_rows_too"),
]


@pytest.fixture
def recording(monkeypatch):
    monkeypatch.setattr(RecordingEngine, "made", [])
    monkeypatch.setattr(RecordingEngine, "reason", None)
    monkeypatch.setattr(dispatch, "ENGINES", (RecordingEngine,))
    return RecordingEngine


@pytest.fixture
def said(caplog, monkeypatch):
    """Return a function that gives, and forgets, what has been logged."""
    monkeypatch.setattr(acceleration, "_said", set())
    caplog.set_level(logging.INFO, logger="fastmlp")

    def lines():
        prefix = "scikit-learn's own code runs: "
        found = [each.getMessage() for each in caplog.records if each.name == "fastmlp"]
        caplog.clear()
        return [line.removeprefix(prefix) for line in found if line.startswith(prefix)]

    return lines


# Engines.


def test_an_engine_gets_every_epoch_and_its_order(recording):
    X, y = data("multiclass")
    MLPClassifier(max_iter=4, batch_size=32, random_state=0).fit(X, y)
    (made,) = recording.made
    assert (made.rows, made.batch_size, len(made.orders)) == (len(X), 32, 4)
    assert all(np.array_equal(np.sort(order), np.arange(len(X))) for order in made.orders)
    assert not np.array_equal(made.orders[0], made.orders[1])
    MLPClassifier(max_iter=2, shuffle=False).fit(X, y)
    assert np.array_equal(recording.made[-1].orders[1], np.arange(len(X)))


def test_the_reason_of_an_engine_is_logged_once(recording, said):
    recording.reason = "it is too late"
    X, y = data("multiclass")
    for _ in range(3):
        MLPClassifier(max_iter=1).fit(X, y)
    assert said() == ["it is too late"] and not recording.made


def test_without_a_reason_nothing_is_logged(recording, said):
    X, y = data("multiclass")
    MLPClassifier(max_iter=1).fit(X, y).predict(X)
    assert said() == [] and len(recording.made) == 1


class OwnStep(MLPClassifier):
    """A user's class with a step of its own."""

    def _backprop(self, *arguments):
        self.steps_ = getattr(self, "steps_", 0) + 1
        return super()._backprop(*arguments)


@pytest.mark.parametrize(
    ("kind", "settings", "reason"),
    [
        ("multiclass", {"solver": "lbfgs"}, "the solver is 'lbfgs'"),
        ("regression", {"solver": "lbfgs"}, "the solver is 'lbfgs'"),
        ("multiclass", {"solver": "sgd", "momentum": 1}, "the momentum is 1"),
    ],
)
def test_settings_that_fall_back(recording, said, kind, settings, reason):
    X, y = data(kind)
    ours, theirs = pair(kind, max_iter=5, **settings)
    for _ in range(2):
        ours.fit(X, y)
    theirs.fit(X, y)
    assert said() == [reason] and not recording.made
    close(ours.coefs_[0], theirs.coefs_[0], 1e-9, "coefs_")
    assert ours.loss_ == pytest.approx(theirs.loss_, rel=1e-9)


@pytest.mark.parametrize("sparse", [csr_matrix, csr_array])
@pytest.mark.parametrize("kind", ["multiclass", "regression"])
def test_sparse_rows_fall_back(recording, said, kind, sparse):
    X, y = data(kind)
    X = sparse(np.where(X > 0.5, X, 0))
    ours, theirs = (each.fit(X, y) for each in pair(kind, max_iter=3, early_stopping=True))
    check_same(ours, theirs, "float64")
    assert np.array_equal(ours.predict(X), theirs.predict(X))
    assert said() == ["the input is sparse"] and not recording.made


def test_a_step_of_ones_own_falls_back(recording, said):
    X, y = data("multiclass")
    own = OwnStep(max_iter=2, batch_size=50, random_state=0).fit(X, y)
    assert own.steps_ == 2 * 4
    assert said() == ["OwnStep overrides _backprop"] and not recording.made


def test_another_dtype_than_the_parameters_falls_back(recording, said):
    X, y = data("multiclass")
    ours, theirs = pair("multiclass", max_iter=2)
    recording.reason = "not now"
    for each in (ours, theirs):
        each.fit(X, y)
        each.partial_fit(X.astype("float32"), y)
    assert said() == ["not now", "the parameters are not of the dtype of X, float32"]
    assert ours.loss_curve_ == pytest.approx(theirs.loss_curve_, rel=1e-4)


# Weights of classes.


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_class_weights_multiply_those_of_rows(kind, weighted, solver):
    X, y = data(kind)
    classes = np.unique(y)
    own = np.random.default_rng(0).uniform(0.5, 2, len(X)) if weighted else None
    for class_weight in ("balanced", {classes[0]: 3.0, classes[-1]: 0.25}):
        weights = compute_class_weight(class_weight, classes=classes, y=y)
        of_rows = weights[np.searchsorted(classes, y)] * (1 if own is None else own)
        settings = {"max_iter": 5, "solver": solver}
        ours, theirs = pair(kind, class_weight=class_weight, **settings)
        ours.fit(X, y, own)
        theirs.fit(X, y, of_rows)
        assert ours.loss_ == pytest.approx(theirs.loss_, rel=1e-9)
        close(ours.coefs_[0], theirs.coefs_[0], 1e-7, "coefs_")
        assert abs(clone(theirs).fit(X, y, own).loss_ - ours.loss_) > 1e-3 * ours.loss_


def test_class_weights_keep_float32():
    X, y = data("binary", "float32")
    ours = MLPClassifier(max_iter=2, class_weight="balanced").fit(X, y)
    assert {each.dtype.name for each in ours._optimizer.ms} == {"float32"}


def test_class_weights_in_partial_fit():
    X, y = data("multiclass")
    classes = np.unique(y)
    ours, theirs = pair("multiclass", class_weight={classes[0]: 5.0})
    few = y != classes[-1]
    for _ in range(2):
        ours.partial_fit(X[few], y[few], classes=classes)
        theirs.partial_fit(X[few], y[few], np.where(y[few] == classes[0], 5.0, 1.0), classes)
    check_same(ours, theirs, "float64")
    with pytest.raises(ValueError, match="class_weight: got 'balanced' in partial_fit"):
        MLPClassifier(class_weight="balanced").partial_fit(X, y, classes=classes)


def test_class_weights_of_several_labels_are_refused():
    with pytest.raises(ValueError, match="class_weight: got a y of several labels"):
        MLPClassifier(class_weight="balanced").fit(*data("multilabel"))


# Callables.


def test_callbacks_are_told_of_epochs():
    X, y = data("multiclass")
    events = []
    ours = MLPClassifier(max_iter=4, batch_size=50, callbacks=[events.append], random_state=0)
    ours.fit(X, y)
    assert all(type(event) is EpochEnd for event in events)
    assert [event.epoch for event in events] == [1, 2, 3, 4]
    assert [event.step for event in events] == [4, 8, 12, 16]
    assert [event.loss for event in events] == ours.loss_curve_
    assert all(event.estimator is ours and event.validation_score is None for event in events)
    seconds = [event.seconds for event in events]
    assert seconds == sorted(seconds) and seconds[0] > 0


def test_callbacks_see_validation_scores_and_learning_rates():
    X, y = data("regression")
    events = []
    ours = MLPRegressor(
        max_iter=6,
        early_stopping=True,
        callbacks=(events.append,),
        solver="sgd",
        learning_rate="invscaling",
        learning_rate_init=0.1,
        random_state=0,
    ).fit(X, y)
    assert [event.validation_score for event in events] == ours.validation_scores_
    rows = ours.t_ // 6
    expected = [0.1] + [0.1 / (k * rows + 1) ** 0.5 for k in range(1, 6)]
    assert [event.learning_rate for event in events] == pytest.approx(expected)


@pytest.mark.filterwarnings("error")
def test_a_callback_that_returns_true_stops():
    X, y = data("multiclass")
    seen = []
    stop = [lambda event: event.epoch == 3, seen.append]
    ours = MLPClassifier(max_iter=50, callbacks=stop).fit(X, y)
    assert ours.n_iter_ == len(ours.loss_curve_) == len(seen) == 3


def test_an_error_in_a_callback_is_the_users():
    def fail(event):
        raise KeyError(event.epoch)

    X, y = data("multiclass")
    with pytest.raises(KeyError, match="1"):
        MLPClassifier(callbacks=[fail]).fit(X, y)


# scikit-learn's callbacks.

HAS_CALLBACKS = importlib.util.find_spec("sklearn.callback") is not None
with_scikit_learns_callbacks = pytest.mark.skipif(
    not HAS_CALLBACKS, reason="this scikit-learn has no callbacks"
)


class Recorder:
    """A callback of scikit-learn's protocol that remembers, and stops after some epochs."""

    def __init__(self, last=None):
        self.calls, self.last, self.seen = [], last, []

    def setup(self, estimator, context):
        self.calls.append("setup")

    def on_fit_task_begin(self, estimator, context):
        self.calls.append(f"begin {context.task_name}")

    def on_fit_task_end(self, estimator, context, *, X, y, fitted_estimator, metadata):
        self.calls.append(f"end {context.task_name}")
        if context.task_name == "epoch":
            self.seen.append((X, y, fitted_estimator, metadata))
        return len(self.seen) == self.last

    def teardown(self, estimator, context):
        self.calls.append("teardown")


@with_scikit_learns_callbacks
@pytest.mark.parametrize("kind", ["multiclass", "multilabel", "regression", "multioutput"])
def test_scikit_learns_callbacks_are_called(kind):
    X, y = data(kind)
    recorder = Recorder()
    ours, theirs = pair(kind, max_iter=2)
    weights = np.full(len(X), 2.0)
    ours.set_callbacks(recorder).fit(X, y, weights)
    theirs.fit(X, y, weights)
    epoch = ["begin epoch", "end epoch"]
    assert recorder.calls == ["setup", "begin fit", *epoch, *epoch, "end fit", "teardown"]
    told, targets, then, metadata = recorder.seen[0]
    assert np.array_equal(told, X) and np.array_equal(targets, y)
    assert np.array_equal(metadata["sample_weight"], weights)
    # As it was then, and not as it has become.
    assert not np.array_equal(then.coefs_[0], ours.coefs_[0])
    assert then.predict(X).shape == y.shape
    assert ours.loss_curve_ == pytest.approx(theirs.loss_curve_, rel=1e-9)


@with_scikit_learns_callbacks
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("early", [False, True])
def test_scikit_learns_callbacks_stop(early):
    recorder = Recorder(last=4)
    ours = MLPClassifier(max_iter=50, early_stopping=early).set_callbacks(recorder)
    ours.fit(*data("multiclass"))
    assert ours.n_iter_ == 4 and recorder.calls[-2:] == ["end fit", "teardown"]


@with_scikit_learns_callbacks
def test_scikit_learns_callbacks_of_lbfgs_and_partial_fit():
    recorder = Recorder()
    ours = MLPClassifier(max_iter=2, solver="lbfgs").set_callbacks(recorder)
    ours.fit(*data("multiclass"))
    assert recorder.calls == ["setup", "begin fit", "end fit", "teardown"]
    recorder.calls.clear()
    X, y = data("multiclass")
    MLPClassifier().set_callbacks(recorder).partial_fit(X, y, classes=np.unique(y))
    names = ["begin partial_fit", "begin epoch", "end epoch", "end partial_fit"]
    assert recorder.calls == ["setup", *names, "teardown"]


@with_scikit_learns_callbacks
def test_the_score_monitor():
    from sklearn.callback import ScoringMonitor

    X, y = data("multiclass")
    monitor = ScoringMonitor(scoring="accuracy")
    ours = MLPClassifier(max_iter=3, random_state=0).set_callbacks(monitor).fit(X, y)
    rows = monitor.get_logs().data
    assert [row["task_name"] for row in rows] == ["fit", "epoch", "epoch", "epoch"]
    assert rows[-1]["accuracy"] == rows[0]["accuracy"] == ours.score(X, y)


@with_scikit_learns_callbacks
def test_the_progress_bar(capsys):
    pytest.importorskip("rich", reason="rich is not installed")
    from sklearn.callback import ProgressBar
    from sklearn.model_selection import GridSearchCV

    X, y = data("multiclass")
    MLPClassifier(max_iter=3).set_callbacks(ProgressBar()).fit(X, y)
    assert "MLPClassifier" in capsys.readouterr().out
    search = GridSearchCV(MLPClassifier(max_iter=2), {"alpha": [0, 1]}, cv=2)
    search.set_callbacks(ProgressBar(max_propagation_depth=None)).fit(X, y)
    assert "MLPClassifier" in capsys.readouterr().out


# Optimizers and activations that only kernels have.


def test_an_optimizer_takes_the_place_of_the_solver(recording):
    X, y = data("multiclass")
    ours = MLPClassifier(max_iter=2, optimizer=fastmlp.AdamW(1e-2)).fit(X, y)
    assert isinstance(ours._optimizer, KernelOptimizer)
    assert ours._optimizer.learning_rate == 1e-2
    kept = ours._optimizer
    ours.partial_fit(X, y)
    assert ours._optimizer is kept
    ours.set_params(optimizer=fastmlp.RMSprop()).partial_fit(X, y)
    assert ours._optimizer.optimizer == fastmlp.RMSprop()
    ours.set_params(optimizer=None).partial_fit(X, y)
    assert not isinstance(ours._optimizer, KernelOptimizer)


@pytest.mark.parametrize(
    ("activation", "names"),
    [
        ("gelu", ("gelu", "gelu")),
        ("sigmoid", ("sigmoid", "sigmoid")),
        (["relu", "logistic"], ("relu", "sigmoid")),
        (("elu", "tanh"), ("elu", "tanh")),
    ],
)
def test_activations_of_fastmlp(recording, activation, names):
    X, y = data("multiclass")
    ours = MLPClassifier((6, 5), activation, max_iter=1, random_state=0).fit(X, y)
    model = fastmlp.MLP(
        [12, 6, 5, 4], [*names, "identity"], "softmax_cross_entropy", dtype="float64"
    )
    model.weights, model.biases = ours.coefs_, ours.intercepts_
    close(ours.predict_proba(X), model.predict(X), 1e-12, "predict_proba")
    assert len(recording.made) == 1
    # float32 rows would go to scikit-learn's code otherwise, which lacks these activations.
    close(ours.predict_proba(X.astype("float32")), model.predict(X), 1e-5, "predict_proba")


def test_sigmoid_starts_as_logistic_does(recording):
    X, y = data("multiclass")
    starts = {}
    for name in ("logistic", "sigmoid", "tanh"):
        starts[name] = MLPClassifier((6,), name, max_iter=1, random_state=0).fit(X, y).coefs_[0]
    close(starts["sigmoid"], starts["logistic"], 1e-12, "coefs_")
    assert not np.allclose(starts["tanh"], starts["logistic"])


# Errors.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": fastmlp.Adam(), "solver": "lbfgs"}, "optimizer: got Adam.*solver='lbfgs'"),
        ({"activation": "gelu", "solver": "lbfgs"}, "activation: got 'gelu' with solver='lbfgs'"),
        ({"activation": ["relu"]}, r"activation: got 1 names, wanted 2, one for each hidden"),
        ({"activation": ["relu", "rellu"]}, r"activation\[1\]: got 'rellu'.*mean 'relu'"),
    ],
)
def test_additions_that_do_not_fit(settings, message):
    X, y = data("multiclass")
    ours = MLPClassifier((4, 3), max_iter=1).fit(X, y)
    before = [each.copy() for each in ours.coefs_]
    with pytest.raises(ValueError, match=message):
        ours.set_params(**settings).fit(X, y)
    assert all(np.array_equal(*both) for both in zip(before, ours.coefs_, strict=True))


def test_what_only_kernels_have_is_refused_where_none_runs(recording):
    X, y = data("multiclass")
    recording.reason = "it is too late"
    for settings in ({"optimizer": fastmlp.AdamW()}, {"activation": "gelu"}):
        with pytest.raises(ValueError, match="wanted one that scikit-learn has, as it is too late"):
            MLPClassifier(**settings).fit(X, y)
    with pytest.raises(ValueError, match="activation: got 'gelu'.*as the input is sparse"):
        MLPClassifier(activation="gelu").fit(csr_matrix(X), y)
    recording.reason = None
    ours = MLPClassifier(activation="gelu", max_iter=1).fit(X, y)
    with pytest.raises(ValueError, match="activation: got 'gelu'.*as the input is sparse"):
        ours.predict(csr_matrix(X))


@pytest.mark.parametrize(
    "settings",
    [
        {"device": "tpu"},
        {"threads": 0},
        {"threads": 1.5},
        {"optimizer": "adamw"},
        {"activation": "rellu"},
        {"activation": 3},
        {"class_weight": "even"},
    ],
)
def test_scikit_learn_validates_the_additions(settings):
    X, y = data("multiclass")
    (name,) = settings
    with pytest.raises(InvalidParameterError, match=f"The '{name}' parameter of MLPClassifier"):
        MLPClassifier(**settings).fit(X, y)


def test_callbacks_must_be_callable():
    X, y = data("multiclass")
    with pytest.raises(TypeError, match=r"callbacks\[1\]: got 'print', wanted a callable"):
        MLPClassifier(callbacks=[print, "print"]).fit(X, y)
    for alone in (print, fastmlp.Checkpoint("fit"), [fastmlp.Checkpoint("fit")]):
        with pytest.raises(TypeError, match="callbacks.*: got .*Checkpoint is for fastmlp's own"):
            MLPRegressor(callbacks=alone).fit(X, y)


@pytest.mark.skipif(detect().cuda_missing is None, reason="there is a GPU")
def test_a_device_that_is_not_here():
    X, y = data("multiclass")
    with pytest.raises(DeviceError, match="device: got 'cuda'"):
        MLPClassifier(device="cuda").fit(X, y)


@pytest.mark.parametrize(
    "limit", [{"clip_norm": 1e-9}, {"clip_value": 1e-9}], ids=["norm", "value"]
)
def test_limits_of_a_gradient_hold(limit):
    """As those of a model do: steps of rate 0.1 along gradients of that size go nowhere."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(100, 4))

    def fitted(epochs):
        settings = {"hidden_layer_sizes": (8,), "max_iter": epochs, "random_state": 0, "alpha": 0}
        optimizer = fastmlp.SGD(0.1, **limit)
        return MLPRegressor(**settings, optimizer=optimizer).fit(X, X[:, 0]).coefs_

    for first, last in zip(fitted(1), fitted(5), strict=True):
        assert 0 < np.abs(last - first).max() < 1e-8


def test_a_layer_of_rate_0_stays():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(100, 4))

    def fitted(epochs):
        settings = {"hidden_layer_sizes": (8,), "max_iter": epochs, "random_state": 0}
        optimizer = fastmlp.Adam(0.01, layer_rates=[0, 1])
        return MLPRegressor(**settings, optimizer=optimizer).fit(X, X[:, 0]).coefs_

    (frozen, free), (still_frozen, later) = fitted(1), fitted(5)
    assert np.array_equal(frozen, still_frozen) and not np.array_equal(free, later)
