"""The estimators through skl2onnx: its graphs give what `predict` and `predict_proba` do."""

import sys

import numpy as np
import onnxruntime
import pytest
import skl2onnx
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fastmlp import MissingPackageError
from fastmlp.sklearn import MLPClassifier, MLPRegressor, register_onnx

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X = np.random.default_rng(0).normal(size=(80, 4))
THIRDS = np.digitize(X[:, 0], [-0.5, 0.5])
UNITS = 300


@pytest.fixture(autouse=True)
def registered():
    register_onnx()


def both(estimator, y, dtype, **options):
    """Return a fitted pipeline, the rows that it predicts, and what the graph gives for them."""
    rows = X.astype(dtype)
    pipeline = make_pipeline(StandardScaler(), estimator).fit(rows, y)
    model = skl2onnx.to_onnx(pipeline, rows[:1], options=options or None)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return pipeline, rows, session.run(None, {"X": rows})


def assert_close(found, wanted, dtype):
    bound = UNITS * np.finfo(dtype).eps
    assert found.dtype == dtype
    np.testing.assert_allclose(found, wanted, rtol=bound, atol=bound * abs(wanted).max())


TARGETS = {
    "truth values": X[:, 0] > 0,
    "numbers": 3 * THIRDS,
    "texts": np.array(["low", "middle", "high"])[THIRDS],
    "several": (X[:, :3] > 0).astype(int),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", TARGETS)
def test_a_classifier(kind, dtype):
    y = TARGETS[kind]
    estimator = MLPClassifier(
        (5, 4), ["gelu", "elu"], max_iter=20, learning_rate_init=0.05, random_state=0
    )
    pipeline, rows, (labels, probabilities) = both(estimator, y, dtype, zipmap=False)
    assert labels.shape == y.shape and len(np.unique(labels)) > 1
    np.testing.assert_array_equal(labels, pipeline.predict(rows))
    assert_close(probabilities, pipeline.predict_proba(rows), dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("loss", ["squared_error", "poisson"])
def test_a_regressor(loss, dtype):
    for y in (np.exp(X[:, 0]), np.exp(X[:, :2])):
        estimator = MLPRegressor(
            loss, (5,), "logistic", max_iter=20, learning_rate_init=0.05, random_state=0
        )
        pipeline, rows, (found,) = both(estimator, y, dtype)
        assert found.shape == (80, y[0].size)
        assert_close(found.reshape(y.shape), pipeline.predict(rows), dtype)


def test_options_of_skl2onnx_work():
    y = TARGETS["texts"]
    estimator = MLPClassifier((5,), max_iter=20, learning_rate_init=0.05, random_state=0)
    pipeline, rows, (labels, dictionaries) = both(estimator, y, "float32")
    assert set(dictionaries[0]) == set(y)
    options = {"zipmap": False, "nocl": True}
    numbers = both(estimator, y, "float32", **options)[2][0]
    np.testing.assert_array_equal(pipeline.classes_[numbers], labels)


def test_whole_numbers_are_converted():
    whole = (10 * X).astype(np.int64)
    estimator = MLPRegressor(hidden_layer_sizes=(5,), max_iter=3).fit(whole, X[:, 0])
    model = skl2onnx.to_onnx(estimator, whole[:1]).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    found = session.run(None, {"X": whole})[0]
    assert_close(found[:, 0], estimator.predict(whole), "float32")


def test_without_skl2onnx_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "skl2onnx", None)
    with pytest.raises(MissingPackageError, match="register_onnx: got no skl2onnx.*pip install"):
        register_onnx()
