"""scikit-learn's conventions: its checks, what estimators are put into, and what data may be."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

import joblib
from scipy.sparse import csr_matrix
from sklearn import config_context
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import BaggingClassifier
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.parallel import Parallel, delayed

import fastmlp
from fastmlp.device.machine import detect
from fastmlp.sklearn import MLPClassifier, MLPRegressor, prediction
from fastmlp.sklearn.acceleration import threads_of
from tests.scikit_learn.cases import (
    CLASSIFIED,
    PLAIN,
    PREDICTION_TOLERANCE,
    REGRESSED,
    close,
    data,
    pair,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.usefixtures("one_blas_thread", "few_rows_too"),
]


# With no list of expected failures: scikit-learn's own estimators have none either.
CHECKS = parametrize_with_checks([MLPClassifier(max_iter=100), MLPRegressor(max_iter=100)]).mark


# In scikit-learn 1.7 they are a generator, of which pytest warns.
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(CHECKS.args[0], list(CHECKS.args[1]), ids=CHECKS.kwargs["ids"])
def test_scikit_learns_checks(estimator, check):
    check(estimator)


FEW_ROWS = prediction.FEW_ROWS


def fitted(kind="multiclass", dtype="float64", **settings):
    ours, theirs = pair(kind, max_iter=5, **settings)
    X, y = data(kind, dtype)
    return ours.fit(X, y), theirs.fit(X, y), X, y


@pytest.mark.parametrize("kind", [*CLASSIFIED, *REGRESSED])
def test_parameters_and_attributes_are_scikit_learns(kind):
    ours, theirs, *_ = fitted(kind)
    mine, other = ours.get_params(), theirs.get_params()
    assert {name: mine[name] for name in other} == other
    assert set(mine) - set(other) == set(type(ours)._additions)
    attributes = {name for name in vars(theirs) if name.endswith("_")}
    assert {name for name in vars(ours) if name.endswith("_")} == attributes
    assert is_classifier(ours) == is_classifier(theirs)
    assert is_regressor(ours) == is_regressor(theirs)
    assert isinstance(ours, PLAIN[type(ours)])
    assert repr(ours) == repr(theirs)
    assert type(ours).__name__ in ours._repr_html_()


def test_the_constructors_take_scikit_learns_positions():
    assert MLPClassifier((3,), "tanh").activation == "tanh"
    assert MLPRegressor("poisson", (3,), "tanh").loss == "poisson"
    for ours, theirs in PLAIN.items():
        defaults = theirs().get_params()
        assert {name: ours().get_params()[name] for name in defaults} == defaults


def same_training(one, two, X):
    assert one.loss_curve_ == two.loss_curve_
    assert np.array_equal(one.predict(X), two.predict(X))


def test_copies(tmp_path):
    ours, _, X, y = fitted()
    ours.predict(X)
    joblib.dump(ours, tmp_path / "model")
    copies = [pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours), copy.copy(ours)]
    copies += [joblib.load(tmp_path / "model")]
    expected = copy.deepcopy(ours).partial_fit(X, y).predict_proba(X)
    for each in copies:
        same_training(ours, each, X)
    for each in copies[:2] + copies[3:]:
        assert np.array_equal(each.partial_fit(X, y).predict_proba(X), expected)
    assert "_network" in vars(ours) and "_network" not in ours.__getstate__()


def test_a_clone_is_unfitted_and_trains_the_same():
    ours, _, X, y = fitted(device="cpu", threads=1, class_weight={-1: 2.0})
    twin = clone(ours)
    assert not hasattr(twin, "coefs_") and twin.get_params() == ours.get_params()
    same_training(ours, twin.fit(X, y), X)


@pytest.mark.parametrize("kind", ["multiclass", "multioutput"])
def test_layouts_of_the_data(kind, tmp_path):
    ours, _, X, y = fitted(kind)
    joblib.dump(X, tmp_path / "X")
    mapped = joblib.load(tmp_path / "X", mmap_mode="r")
    assert not mapped.flags.writeable
    wide = np.repeat(X, 2, axis=1)
    for same in (mapped, np.asfortranarray(X), X.tolist(), wide[:, ::2]):
        again = clone(ours).fit(same, y)
        close(again.loss_curve_, ours.loss_curve_, 1e-12, "loss_curve_")
        assert np.array_equal(ours.predict(same), ours.predict(X))


def test_frames():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    X, y = data("multiclass")
    frame = pandas.DataFrame(X, columns=[f"column {i}" for i in range(X.shape[1])])
    ours, theirs = (each.set_params(max_iter=3).fit(frame, y) for each in pair("multiclass"))
    assert list(ours.feature_names_in_) == list(frame.columns)
    assert ours.loss_curve_ == pytest.approx(theirs.loss_curve_, rel=1e-9)
    with pytest.raises(ValueError, match="feature names should match"):
        ours.predict(frame.rename(columns={"column 0": "another"}))
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        ours.predict(X)


@pytest.mark.parametrize("kind", [*CLASSIFIED, *REGRESSED])
@pytest.mark.parametrize("trained", ["float64", "float32"])
@pytest.mark.parametrize("asked", ["float64", "float32", "int32", "bool"])
def test_predictions_in_any_dtype(kind, trained, asked):
    ours, theirs, X, _ = fitted(kind, trained)
    theirs.coefs_, theirs.intercepts_ = ours.coefs_, ours.intercepts_
    X = (3 * X).astype(asked)
    mine, other = ours._forward_pass_fast(X), theirs._forward_pass_fast(X)
    tolerance = PREDICTION_TOLERANCE if other.dtype == "float64" else 1e-5
    close(mine, other, tolerance, "outputs")
    assert np.array_equal(ours.predict(X[:1]).shape, theirs.predict(X[:1]).shape)


def test_predictions_follow_parameters_that_users_change():
    ours, theirs, X, _ = fitted()
    before = ours.predict_proba(X)
    for change in (
        lambda each: each.coefs_[0].__imul__(0.5),
        lambda each: each.coefs_.__setitem__(1, each.coefs_[1] * 2),
        lambda each: each.intercepts_.__setitem__(1, each.intercepts_[1] + 1),
        lambda each: setattr(each, "coefs_", [-weights for weights in each.coefs_]),
        lambda each: each.set_params(activation="tanh"),
    ):
        change(ours)
        theirs.set_params(activation=ours.activation)
        theirs.coefs_, theirs.intercepts_ = ours.coefs_, ours.intercepts_
        after = ours.predict_proba(X)
        close(after, theirs.predict_proba(X), PREDICTION_TOLERANCE, "predict_proba")
        assert np.abs(after - before).max() > 1e-3
        before = after


def test_predictions_run_on_the_kernels(monkeypatch):
    ours, _, X, _ = fitted()
    monkeypatch.setattr(PLAIN[MLPClassifier], "_forward_pass_fast", None)
    assert ours.predict(X[:1]).shape == (1,)
    with pytest.raises(TypeError):
        ours.predict(csr_matrix(X))


def test_a_few_rows_are_predicted_by_scikit_learn_without_a_word(monkeypatch, caplog):
    ours, theirs, X, _ = fitted()
    rows = np.resize(X, (FEW_ROWS, X.shape[1]))
    monkeypatch.setattr(prediction, "FEW_ROWS", FEW_ROWS)
    asked = []
    original = prediction.inference.predict
    monkeypatch.setattr(
        prediction.inference, "predict", lambda *given: asked.append(given) or original(*given)
    )
    with caplog.at_level("INFO", logger="fastmlp"):
        few = ours.predict_proba(rows[:-1])
    assert not asked and not caplog.records
    assert np.array_equal(few, theirs_with(ours, theirs).predict_proba(rows[:-1]))
    many = ours.predict_proba(rows)
    assert len(asked) == 1
    close(many[:-1], few, PREDICTION_TOLERANCE, "probabilities")


def theirs_with(ours, theirs):
    """Return scikit-learn's estimator with our parameters."""
    theirs.coefs_, theirs.intercepts_ = ours.coefs_, ours.intercepts_
    return theirs


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_parameters_that_are_not_finite(bad):
    ours, theirs, X, _ = fitted("regression")
    ours.coefs_[0][0, 0] = bad
    theirs.coefs_, theirs.intercepts_ = ours.coefs_, ours.intercepts_
    with np.errstate(all="ignore"):
        assert np.array_equal(ours.predict(X), theirs.predict(X), equal_nan=True)
        assert not np.isfinite(theirs.predict(X)).all()


def test_an_output_that_overflows():
    ours, theirs, X, _ = fitted("poisson")
    ours.coefs_[-1] *= 1e4
    theirs.coefs_, theirs.intercepts_ = ours.coefs_, ours.intercepts_
    outputs = []
    for each in (ours, theirs):
        with pytest.warns(RuntimeWarning, match="overflow"):
            outputs.append(each.predict(X))
    assert np.array_equal(*outputs) and np.isinf(outputs[0]).any()


def test_predictions_from_several_threads():
    # Long enough for two to overlap in compiled code.
    X, y = data("multiclass", rows=3000)
    ours = MLPClassifier((100, 100), max_iter=1).fit(X, y)
    expected = ours.predict_proba(X)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: ours.predict_proba(X[i : i + 2100]), range(0, 900, 30)))
    for start, each in zip(range(0, 900, 30), found, strict=True):
        close(each, expected[start : start + 2100], PREDICTION_TOLERANCE, f"from row {start}")


CANCER = load_breast_cancer(return_X_y=True)


def test_a_pipeline_in_cross_validation_scores_as_scikit_learns():
    scores = [
        cross_val_score(make_pipeline(StandardScaler(), each), *CANCER, cv=3)
        for each in pair("binary", max_iter=20, batch_size=100)
    ]
    assert np.array_equal(*scores) and scores[0].min() > 0.9


def test_a_grid_search_in_two_processes():
    """Workers get the rows as read-only memory maps."""
    X, y = StandardScaler().fit_transform(CANCER[0]), CANCER[1]
    searches = []
    with joblib.parallel_config(max_nbytes=1000):
        for each in pair("binary", max_iter=8, batch_size=100):
            grid = {"alpha": [1e-4, 1.0], "hidden_layer_sizes": [(5,), (9, 4)]}
            searches.append(GridSearchCV(each, grid, cv=2, n_jobs=2).fit(X, y))
    ours, theirs = searches
    assert ours.best_params_ == theirs.best_params_
    for name in ("mean_test_score", "std_test_score"):
        assert np.allclose(ours.cv_results_[name], theirs.cv_results_[name], atol=1e-12)
    assert isinstance(ours.best_estimator_, MLPClassifier)


@pytest.mark.parametrize("make", [CalibratedClassifierCV, BaggingClassifier])
def test_meta_estimators(make):
    X, y = StandardScaler().fit_transform(CANCER[0]), CANCER[1]
    extra = {"n_estimators": 3, "random_state": 0} if make is BaggingClassifier else {"cv": 2}
    found = [make(each, **extra).fit(X, y) for each in pair("binary", max_iter=8, batch_size=100)]
    close(found[0].predict_proba(X), found[1].predict_proba(X), 1e-9, "predict_proba")


def test_set_output_and_sample_weight_routing():
    ours, theirs = pair("binary", max_iter=3)
    X, y = data("binary")
    pipeline = make_pipeline(StandardScaler().set_output(transform="default"), ours)
    pipeline.fit(X, y, mlpclassifier__sample_weight=np.ones(len(X)))
    theirs.fit(StandardScaler().fit_transform(X), y)
    assert ours.loss_curve_ == pytest.approx(theirs.loss_curve_, rel=1e-9)
    with config_context(enable_metadata_routing=True):
        request = ours.set_fit_request(sample_weight=True).get_metadata_routing()
    assert request.fit.requests["sample_weight"] is True


def test_set_output_of_pandas_in_front():
    pytest.importorskip("pandas", reason="pandas is not installed")
    X, y = data("binary")
    ours, _ = pair("binary", max_iter=3)
    make_pipeline(StandardScaler().set_output(transform="pandas"), ours).fit(X, y)
    assert list(ours.feature_names_in_) == [f"x{i}" for i in range(X.shape[1])]


def threads_in_a_worker(estimator):
    return threads_of(estimator) or detect().cores


def test_workers_share_the_processors():
    found = Parallel(n_jobs=2)(delayed(threads_in_a_worker)(MLPClassifier()) for _ in range(2))
    left = max(1, joblib.cpu_count() // 2)
    assert found == [min(left, detect().cores)] * 2
    assert threads_of(MLPClassifier(threads=3)) == 3


def test_threads_keep_to_limits_of_openmp():
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="openmp"):
        expected = 1 if detect().cores > 1 else None
        assert threads_of(MLPRegressor()) == expected


def test_the_threads_reach_the_programs(monkeypatch):
    ours, _, X, _ = fitted(threads=1, device="cpu")
    asked = []
    original = prediction.inference.predict
    monkeypatch.setattr(
        prediction.inference, "predict", lambda *a: asked.append(a[-1]) or original(*a)
    )
    ours.predict(X)
    assert [(each.device, each.threads) for each in asked] == [("cpu", 1)]


def test_the_core_names_it_without_importing_it():
    assert fastmlp.sklearn.MLPClassifier is MLPClassifier
    assert "sklearn" not in fastmlp.__all__
    with pytest.raises(AttributeError, match="no attribute 'Perceptron'"):
        _ = fastmlp.sklearn.Perceptron
    assert "MLPRegressor" in dir(fastmlp.sklearn)
