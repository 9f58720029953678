"""Metrics: scikit-learn's numbers, those of one's own, and what is refused before a fit."""

import numpy as np
import pytest

from fastmlp import MLP, DomainError, DTypeError, Ensemble, UnknownNameError
from fastmlp.metrics import METRICS

RNG = np.random.default_rng(7)
X = RNG.normal(size=(57, 4)).astype(np.float32)
# Ties: rows of different classes have one prediction.
X[10:30] = X[10]
Y = RNG.normal(size=(57, 3)).astype(np.float32)
LABELS = RNG.integers(0, 3, 57)
BITS = (RNG.random((57, 3)) < 0.4).astype(np.float32)
# Some rows count nothing, and one for many.
WEIGHTS = np.where(np.arange(57) % 5 == 0, 0.0, RNG.uniform(0.1, 9, 57))


def networks(dtype="float64"):
    """Return a network and its targets, for each kind of target."""
    more = {"dtype": dtype, "seed": 3}
    sigmoid = ["tanh", "sigmoid"]
    return {
        "numbers": (MLP([4, 5, 3], **more), Y),
        "vector": (MLP([4, 5, 1], **more), Y[:, 0]),
        "labels": (MLP([4, 5, 3], "tanh", "softmax_cross_entropy", **more), LABELS),
        "one-hot": (MLP([4, 5, 3], "tanh", "softmax_cross_entropy", **more), np.eye(3)[LABELS]),
        "two classes": (MLP([4, 5, 2], "tanh", "softmax_cross_entropy", **more), LABELS % 2),
        "binary": (MLP([4, 5, 1], sigmoid, "binary_cross_entropy", **more), BITS[:, 0]),
        "several": (MLP([4, 5, 3], sigmoid, "binary_cross_entropy", **more), BITS),
    }


def peers():
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")

    def log_loss(y, p, w):
        if np.ndim(y) == 2 and not np.allclose(y.sum(axis=1), 1):
            # Outputs that are no classes of one row: the mean of each one's.
            return np.mean([log_loss(*each, w) for each in zip(y.T, p.T, strict=True)])
        y = y.argmax(axis=1) if np.ndim(y) == 2 else y
        labels = range(p.shape[1] if p.ndim == 2 else 2)
        return metrics.log_loss(y, p, sample_weight=w, labels=labels)

    def roc_auc(y, p, w):
        if np.ndim(y) == 1 and p.ndim == 2:
            y = np.eye(p.shape[1])[y]
        return metrics.roc_auc_score(y, p, sample_weight=w)

    def accuracy(y, p, w):
        if p.ndim == 2 and (np.ndim(y) == 1 or np.allclose(y.sum(axis=1), 1)):
            y = y.argmax(axis=1) if np.ndim(y) == 2 else y
            return metrics.accuracy_score(y, p.argmax(axis=1), sample_weight=w)
        pairs = zip(*(np.atleast_2d(each.T) > 0.5 for each in (y, p)), strict=True)
        return np.mean([metrics.accuracy_score(*each, sample_weight=w) for each in pairs])

    return {
        "accuracy": accuracy,
        "r2": lambda y, p, w: metrics.r2_score(y, p, sample_weight=w),
        "mae": lambda y, p, w: metrics.mean_absolute_error(y, p, sample_weight=w),
        "rmse": lambda y, p, w: metrics.root_mean_squared_error(y, p, sample_weight=w),
        "log_loss": log_loss,
        "roc_auc": roc_auc,
    }


OF_NUMBERS, OF_CLASSES = ("r2", "mae", "rmse"), ("accuracy", "log_loss", "roc_auc")
SUITING = {
    "numbers": OF_NUMBERS,
    "vector": OF_NUMBERS,
    "labels": OF_CLASSES,
    "one-hot": OF_CLASSES,
    "two classes": OF_CLASSES,
    "binary": (*OF_NUMBERS, *OF_CLASSES),
    "several": (*OF_NUMBERS, *OF_CLASSES),
}


@pytest.mark.peer
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["", "weighted"])
@pytest.mark.parametrize("kind", SUITING)
def test_metrics_are_scikit_learns(kind, weights):
    theirs = peers()
    model, y = networks()[kind]
    model.fit(X, y, epochs=3)
    found = model.evaluate(X, y, metrics=SUITING[kind], sample_weight=weights)
    assert set(found.metrics) == {found.metric, *SUITING[kind]}
    assert found.score == found.metrics[found.metric]
    for name in SUITING[kind]:
        expected = theirs[name](y, model.predict(X).astype(float), weights)
        assert found.metrics[name] == pytest.approx(expected, rel=1e-12, abs=1e-14), name
    alone = {name: model.evaluate(X, y, name, sample_weight=weights) for name in SUITING[kind]}
    assert {name: each.score for name, each in alone.items()} == {
        name: found.metrics[name] for name in SUITING[kind]
    }


@pytest.mark.peer
def test_a_log_loss_of_saturated_float32_is_scikit_learns():
    """It clips by the epsilon of the predictions' dtype, and the two sides are not alike."""
    theirs = peers()["log_loss"]
    for kind in ("binary", "labels"):
        model, y = networks("float32")[kind]
        model.weights[1] *= 300
        found = model.evaluate(X, y, metrics="log_loss").metrics["log_loss"]
        assert found == pytest.approx(theirs(y, model.predict(X).squeeze(), None), rel=1e-6)
        assert found > 2


@pytest.mark.parametrize("reduction", ["mean", "sum", "batch_mean"])
@pytest.mark.parametrize("kind", ["numbers", "labels"])
def test_a_weighted_loss_is_that_of_a_training_step(kind, reduction):
    rows = np.tile(X, (40, 1))
    model, y = networks()[kind]
    model = MLP(model.sizes, "tanh", model.loss_name, reduction=reduction, dtype="float64")
    y, weights = np.concatenate([y] * 40), RNG.uniform(0, 5, 57 * 40)
    # A chunk of rows without any weight.
    weights[1024:2048] = 0
    expected = model.value_and_grad(rows, y, sample_weight=weights)[0]
    found = model.evaluate(rows, y, sample_weight=weights)
    assert found.loss == pytest.approx(expected, rel=1e-12)
    assert found.loss != pytest.approx(model.evaluate(rows, y).loss, rel=1e-3)


def test_a_weight_is_as_many_rows():
    model, y = networks()["labels"]
    counts = np.arange(57) % 4
    of_weights = model.evaluate(X, y, metrics=OF_CLASSES, sample_weight=counts)
    of_rows = model.evaluate(np.repeat(X, counts, 0), np.repeat(y, counts), metrics=OF_CLASSES)
    assert of_weights.loss == pytest.approx(of_rows.loss, rel=1e-12)
    assert of_weights.metrics == pytest.approx(of_rows.metrics, rel=1e-12)


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("apart", [False, True])
def test_an_ensemble_has_a_number_for_each_network(members, apart):
    ensemble = Ensemble([4, 5, 3], members, "tanh", "softmax_cross_entropy")
    weights = RNG.uniform(0, 2, (members, 57) if apart else 57)
    mine = lambda y, p, sample_weight: sample_weight @ p[:, 0] + y.sum()  # noqa: E731
    mine.__name__ = "mine"
    asked = {"metrics": [*OF_CLASSES, mine]}
    found = ensemble.evaluate(X, LABELS, sample_weight=weights, **asked)
    for member, model in enumerate(ensemble):
        own = weights[member] if apart else weights
        expected = model.evaluate(X, LABELS, sample_weight=own, **asked)
        assert found.loss[member] == pytest.approx(expected.loss, rel=1e-12)
        numbers = {name: each[member] for name, each in found.metrics.items()}
        assert numbers == expected.metrics
    assert all(numbers.shape == (members,) for numbers in found.metrics.values())


@pytest.mark.parametrize("kind", SUITING)
def test_a_function_is_given_what_predict_returns_and_targets_as_they_were(kind):
    given = []

    def first(y, prediction):
        given.append((y, prediction))
        return prediction.ravel()[0]

    model, y = networks()[kind]
    model.fit(X, y, epochs=1)
    found = model.evaluate(X, y, metrics=first)
    ((targets, prediction),) = given
    np.testing.assert_array_equal(prediction, model.predict(X))
    np.testing.assert_array_equal(targets, y)
    assert targets.shape == np.shape(y)
    assert targets.dtype == (np.int64 if kind in ("labels", "two classes") else np.float64)
    assert found.metrics["first"] == float(prediction.ravel()[0])


def unweighted(y, prediction):
    return 0.5


def rmse(y, prediction):
    return 0.5


class Nameless:
    def __call__(self, y, prediction):
        return 0.5


ONE_CLASS = np.ones(57)
REFUSED = {
    "unknown": ("numbers", {"metrics": ["rmsee"]}, UnknownNameError, "did you mean 'rmse'?"),
    "f1": ("binary", {"metrics": "f1"}, UnknownNameError, "a function f(y, prediction) is"),
    "mse": ("numbers", {"metrics": "mse"}, UnknownNameError, "did you mean 'rmse', its root?"),
    "no metric": ("numbers", {"metrics": [3]}, DTypeError, "metrics: got 3, wanted names (acc"),
    "nameless": ("numbers", {"metrics": Nameless()}, DTypeError, "that have a __name__"),
    "twice": ("numbers", {"metrics": ["rmse", rmse]}, DomainError, "two that are called 'rmse'"),
    "numbers of classes": ("labels", {"metrics": "mae"}, DomainError, "wanted 'accuracy', 'log_"),
    "metric": ("labels", {"metric": "r2"}, DomainError, "metric: got 'r2' with softmax_cross_"),
    "classes of numbers": ("vector", {"metrics": "accuracy"}, DomainError, "targets such as "),
    "no probabilities": ("numbers", {"metrics": "log_loss"}, DomainError, "with 'identity' at the"),
    "ranks of numbers": ("vector", {"metrics": "roc_auc"}, DomainError, "wanted classes: labels"),
    "weights": (
        "vector",
        {"metrics": [unweighted], "sample_weight": WEIGHTS},
        DomainError,
        "'unweighted' without a parameter sample_weight, whose rows have weights",
    ),
    "no weight": ("vector", {"sample_weight": 0 * WEIGHTS}, DomainError, "got only zeros"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_suit_is_refused_before_anything_is_trained(case):
    kind, asked, error, part = REFUSED[case]
    model, y = networks()[kind]
    with pytest.raises(error) as caught:
        model.evaluate(X, y, **asked)
    assert part in str(caught.value)
    asked = {name: each for name, each in asked.items() if name == "metrics"}
    if not asked:
        return
    before = model.parameters.tobytes()
    validation = (X, y, WEIGHTS) if case == "weights" else (X, y)
    with pytest.raises(error) as caught:
        model.fit(X, y, validation_data=validation, **asked)
    assert part in str(caught.value)
    assert model.parameters.tobytes() == before and model.history is None


def test_an_area_needs_rows_of_every_class_with_a_weight():
    binary, bits = networks()["binary"]
    with pytest.raises(DomainError, match="'roc_auc' and rows of one class, wanted"):
        binary.evaluate(X, ONE_CLASS, "roc_auc")
    with pytest.raises(DomainError, match="'roc_auc' and rows of one class, wanted"):
        binary.evaluate(X, bits, "roc_auc", sample_weight=bits)
    model, _ = networks()["labels"]
    with pytest.raises(DomainError, match="and no rows of class 2, wanted"):
        model.fit(X, LABELS, validation_data=(X, LABELS % 2), metrics="roc_auc")
    sets = {"good": (X, LABELS), "bad": (X, LABELS % 2)}
    with pytest.raises(DomainError, match="'roc_auc' for 'bad' and no rows of class 2"):
        model.fit(X, LABELS, validation_data=sets, metrics="roc_auc")


def test_log_loss_needs_targets_from_0_to_1():
    model = MLP([4, 3, 1], ["tanh", "sigmoid"])
    with pytest.raises(DomainError, match="targets such as .*, wanted targets from 0 to 1"):
        model.evaluate(X, Y[:, 0], "log_loss")
    assert model.evaluate(X, BITS[:, 0], "log_loss").metric == "log_loss"


@pytest.mark.parametrize("kind", networks())
def test_a_function_can_change_no_rows(kind):
    model, y = networks()[kind]
    held = np.array(y, dtype=y.dtype if y.dtype.kind == "i" else "float64")
    before, seen = held.copy(), []

    def destroying(*rows, sample_weight):
        for each in (*rows, sample_weight):
            with pytest.raises(ValueError, match="read-only"):
                each[:] = 0
            seen.append(each)
        return 0.0

    asked = {"metrics": destroying, "sample_weight": WEIGHTS}
    assert model.evaluate(X, held, **asked).metrics["destroying"] == 0.0
    assert held.tobytes() == before.tobytes() and len(seen) == 3


def test_what_a_function_returns_must_be_a_number():
    model, y = networks()["vector"]

    def words(y, prediction):
        return "good"

    with pytest.raises(DTypeError, match="metrics: got 'good' from words, wanted a number"):
        model.evaluate(X, y, metrics=words)


def test_a_network_that_is_not_finite_has_no_area():
    model, y = networks()["binary"]
    model.weights[1][...] = np.inf
    with np.errstate(invalid="ignore"):
        assert np.isnan(model.evaluate(X, y, "roc_auc").score)


def test_metrics_of_the_default_cost_no_second_pass(monkeypatch):
    """Predictions through the link are asked for by the metrics that read them, and no others."""
    calls = []
    model, y = networks()["labels"]
    with model._alone.taken(57, 57, labels=True) as (_, program):
        kind = type(program)
    predict = kind.predict
    monkeypatch.setattr(kind, "predict", lambda *a: calls.append(a[-1]) or predict(*a))
    model.evaluate(X, y)
    assert calls.count(True) == 0
    model.evaluate(X, y, metrics=list(METRICS)[4:])
    assert calls.count(True) == 1
