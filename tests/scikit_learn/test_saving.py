"""Estimators in files: they come back with their bits, and a file cannot do more than that."""

import copy
import json
import pickle
import warnings

import numpy as np
import pytest
from sklearn.exceptions import InconsistentVersionWarning

import fastmlp
from fastmlp import AdamW, ModelFileError, load, schedules
from fastmlp.files.container import pack, unpack
from fastmlp.sklearn import MLPClassifier, MLPRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

RNG = np.random.default_rng(1)
X = RNG.normal(size=(120, 4))
NUMBER = np.sin(X[:, 0])
TWO = np.where(X[:, 0] > 0, "no", "yes")
MANY = (X[:, 0] * 3).astype(int)
RATE = schedules.LinearWarmup(10, schedules.CosineDecay(0.01, 100))

CASES = {
    "adam": (MLPRegressor, {}, NUMBER),
    "sgd": (MLPRegressor, {"solver": "sgd", "learning_rate": "adaptive"}, NUMBER),
    "invscaling": (MLPRegressor, {"solver": "sgd", "learning_rate": "invscaling"}, NUMBER),
    "lbfgs": (MLPRegressor, {"solver": "lbfgs"}, NUMBER),
    "outputs": (MLPRegressor, {"hidden_layer_sizes": (7, 5)}, X[:, :2]),
    "stopping": (MLPClassifier, {"early_stopping": True, "validation_fraction": 0.3}, MANY),
    "strings": (MLPClassifier, {"max_fun": np.int64(9), "n_iter_no_change": np.int64(50)}, TWO),
    "integers": (MLPClassifier, {"class_weight": "balanced"}, MANY),
    "by class": (MLPClassifier, {"class_weight": {"no": 2.0, "yes": 1}}, TWO),
    "objects": (MLPClassifier, {}, TWO.astype(object)),
    "many labels": (MLPClassifier, {}, (X[:, :3] > 0).astype(int)),
    "ours": (MLPRegressor, {"activation": ["gelu"], "optimizer": AdamW(RATE)}, NUMBER),
    "state": (MLPRegressor, {"random_state": np.random.RandomState(5)}, NUMBER),
}


def fitted(name, **more):
    kind, settings, y = CASES[name]
    settings = {"random_state": 0, "max_iter": 4, **copy.deepcopy(settings), **more}
    return kind(**settings).fit(X, y), y


def round_trip(estimator, folder):
    path = folder / "estimator"
    estimator.save(path)
    return load(path)


def assert_same(one, other):
    assert type(one) is type(other)
    mine, theirs = one.predict(X), other.predict(X)
    assert mine.dtype == theirs.dtype and (mine == theirs).all()
    for name in ("coefs_", "intercepts_"):
        for a, b in zip(getattr(one, name), getattr(other, name), strict=True):
            assert a.dtype == b.dtype and a.tobytes() == b.tobytes()
    assert vars(one).keys() - {"_network"} == vars(other).keys() - {"_network"}
    for name in ("loss_", "best_loss_", "n_iter_", "t_", "classes_", "loss_curve_"):
        if hasattr(one, name):
            a, b = getattr(one, name), getattr(other, name)
            assert type(a) is type(b)
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", CASES)
def test_an_estimator_comes_back_and_goes_on(name, tmp_path):
    estimator, y = fitted(name)
    twin = round_trip(estimator, tmp_path)
    assert_same(estimator, twin)
    assert name == "state" or repr(estimator) == repr(twin)
    for each in (estimator, twin):
        if (
            each.solver != "lbfgs"
            and not each.early_stopping
            and getattr(each, "class_weight", None) != "balanced"
        ):
            each.partial_fit(X, y)
    assert_same(estimator, twin)
    for each in (estimator, twin):
        each.fit(X, y)
    assert_same(estimator, twin)


def test_one_that_was_not_fitted_comes_back(tmp_path):
    estimator = MLPClassifier((3, 4), solver="sgd", random_state=7, max_iter=3)
    twin = round_trip(estimator, tmp_path)
    assert repr(estimator) == repr(twin)
    for each in (estimator, twin):
        each.fit(X, TWO)
    assert_same(estimator, twin)


def test_the_names_of_columns_come_back(tmp_path):
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(X, columns=["a", "b", "c", "ü"])
    estimator = MLPRegressor(max_iter=2, random_state=0).fit(table, NUMBER)
    twin = round_trip(estimator, tmp_path)
    assert twin.feature_names_in_.tolist() == ["a", "b", "c", "ü"]
    assert twin.feature_names_in_.dtype == object
    assert (twin.predict(table) == estimator.predict(table)).all()


def test_numbers_that_json_has_not_come_back(tmp_path):
    estimator = MLPRegressor(tol=float("inf"), alpha=float("-inf"), epsilon=np.float32(0.1))
    twin = round_trip(estimator.set_params(power_t=float("nan")), tmp_path)
    assert (twin.tol, twin.alpha) == (float("inf"), float("-inf")) and np.isnan(twin.power_t)
    assert type(twin.epsilon) is np.float32 and twin.epsilon == np.float32(0.1)


def test_a_plain_twin_of_a_loaded_one_predicts_the_same(tmp_path):
    twin = round_trip(fitted("integers")[0], tmp_path)
    plain = pickle.loads(pickle.dumps(twin.to_sklearn()))
    assert (plain.predict(X) == twin.predict(X)).all()


def test_what_a_file_cannot_hold_is_named(tmp_path):
    path = tmp_path / "estimator"
    for more, message in (
        ({"callbacks": [print]}, r"save: got callbacks\.0=<built-in.*set callbacks to None"),
        ({"optimizer": fastmlp.Adam(lambda step: 0.1)}, r"got optimizer\.learning_rate=<function"),
    ):
        with pytest.raises(fastmlp.DTypeError, match=message):
            MLPRegressor(**more).save(path)
    assert not path.exists()


def test_another_version_of_scikit_learn_is_warned_of(tmp_path):
    path = tmp_path / "estimator"
    fitted("adam")[0].save(path)
    header, arrays = unpack(path.read_bytes(), "it")
    header["scikit_learn"] = "0.1"
    path.write_bytes(pack(header, arrays))
    with pytest.warns(InconsistentVersionWarning, match=r"0\.1"):
        load(path)


# What may stand anywhere in a header whose digest is right.
CHANGES = [None, True, -1, 2**70, 0.5, "", "x", [], [[]], {}, {"x": 1}, {"array": "t_"}]
CHANGES += [{"array": 3}, {"tuple": 3}, {"dict": [[1]]}, {"dict": [[[], 1]]}, {"float": "one"}]
CHANGES += [{"scalar": "O", "of": 1}, {"scalar": "<i8", "of": "a"}, {"list": [1]}]
CHANGES += [{"list": [1, 2], "dtype": "<i8", "shape": [3]}, {"random_state": "nowhere"}]
CHANGES += [{"objects": [1], "shape": [2**62]}, {"KernelOptimizer": {"__class__": 1}}]
CHANGES += [{"LabelBinarizer": {"fit": 1}}, {"LabelBinarizer": 3}, {"Adam": {"learning_rate": -1}}]
CHANGES += [{"list": ["a" * 50], "dtype": "<U2000000000", "shape": [1]}, {"subprocess": {}}]


def places(value, path=()):
    """Yield the path to every value within a header."""
    yield path
    pairs = value.items() if isinstance(value, dict) else ()
    for key, each in enumerate(value) if isinstance(value, list) else pairs:
        yield from places(each, (*path, key))


@pytest.mark.any_version
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.InconsistentVersionWarning")
@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("name", ["stopping", "ours", "state", "by class"])
def test_no_header_leads_to_anything_but_the_one_error(name, every, tmp_path):
    """Of every so many changes, others at each place: each place meets some, each change many."""
    estimator, _ = fitted(name, hidden_layer_sizes=[3])
    path = tmp_path / "estimator"
    estimator.save(path)
    header, arrays = unpack(path.read_bytes(), "it")
    refused = 0
    for number, place in enumerate(list(places(header["estimator"]))[1:]):
        for change in CHANGES[number % every :: every]:
            made = copy.deepcopy(header)
            inner = made["estimator"]
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = change
            path.write_bytes(pack(made, arrays))
            refused += not usable(path)
    assert refused > len(CHANGES)


def usable(path):
    """Return whether a file is loaded; what was loaded predicts, or says why not."""
    try:
        found = load(path)
    except ModelFileError:
        return False
    assert type(found) in (MLPClassifier, MLPRegressor)
    assert callable(found.fit) and callable(found.predict)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found.predict(X)
        except (AttributeError, LookupError, TypeError, ValueError, fastmlp.FastMLPError):
            pass
    return True


@pytest.mark.any_version
def test_every_flipped_bit_is_refused(tmp_path):
    path = tmp_path / "estimator"
    MLPRegressor(hidden_layer_sizes=(1,), max_iter=1, random_state=0).fit(X, NUMBER).save(path)
    data = path.read_bytes()
    for place in range(0, len(data), 7):
        changed = bytearray(data)
        changed[place] ^= 1 << (place % 8)
        with pytest.raises(ModelFileError):
            unpack(bytes(changed), "changed")


def test_a_method_cannot_be_replaced(tmp_path):
    path = tmp_path / "estimator"
    fitted("adam")[0].save(path)
    header, arrays = unpack(path.read_bytes(), "it")
    for name in ("predict", "_fit", "_plain", "__class__", "__dict__"):
        made = json.loads(json.dumps(header))
        made["estimator"][name] = 1
        path.write_bytes(pack(made, arrays))
        with pytest.raises(ModelFileError, match="got an attribute"):
            load(path)
