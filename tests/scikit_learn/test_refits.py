"""Estimators that are fitted again with other data, other settings or edited parameters.

Kernels read memory by the shapes of their problem, and scikit-learn checks few shapes before a
step: whatever does not fit together must give what scikit-learn gives, and never reach a kernel.
"""

import copy
import subprocess
import sys
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

import fastmlp
from fastmlp.sklearn import MLPRegressor
from fastmlp.sklearn.engine import ScikitLearnEngine
from tests.scikit_learn.cases import CLASSIFIED, data, pair

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.usefixtures("one_blas_thread", "few_rows_too"),
]


def outcome(estimator, action):
    """Return what an action does: the error, or None."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            action(estimator)
        except Exception as error:
            return error
    return None


def check_same_outcome(ours, theirs, action, what=""):
    """Do one thing to both; fail unless they end in the same error or in the same state."""
    mine, other = outcome(ours, action), outcome(theirs, action)
    # The first line: others hold the numbers that were given.
    texts = [str(each).partition("\n")[0] for each in (mine, other)]
    assert type(mine) is type(other) and texts[0] == texts[1], (what, texts)
    same_numbers(ours, theirs, what)
    return other


def same_numbers(ours, theirs, what):
    """Fail unless two estimators have the same attributes, to what rounding gathers."""
    for name in ("loss_curve_", "coefs_", "intercepts_", "n_iter_", "t_", "n_outputs_", "loss_"):
        mine, other = getattr(ours, name, None), getattr(theirs, name, None)
        assert (mine is None) == (other is None), (what, name)
        if not isinstance(other, list | tuple):
            mine, other = [mine], [other]
        if name == "loss_curve_":
            # Of fits one after another under `warm_start`.
            mine, other = [np.array(mine, float)], [np.array(other, float)]
        assert len(mine) == len(other), (what, name)
        for one, two in zip(mine, other, strict=True):
            if two is None:
                continue
            one, two = np.asarray(one), np.asarray(two)
            assert one.shape == two.shape and one.dtype == two.dtype, (what, name)
            tolerance = 1e-6 if two.dtype == np.float64 else 1e-2
            if name in ("loss_curve_", "loss_"):
                tolerance = 1e-2 if any(np.float32 == each.dtype for each in coefs(ours)) else 1e-6
            assert np.allclose(one, two, tolerance, tolerance, equal_nan=True), (what, name)


def coefs(estimator):
    """Return what of the parameters is an array."""
    return [each for each in getattr(estimator, "coefs_", ()) if isinstance(each, np.ndarray)]


# Targets of another number of columns.


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("solver", ["sgd", "adam"])
@pytest.mark.parametrize("how", ["fit", "partial_fit"])
@pytest.mark.parametrize(("before", "after"), [(300, 1), (2, 1), (1, 2), (3, 2), (1, 300), (7, 7)])
def test_another_number_of_outputs(before, after, how, solver, weighted):
    generator = np.random.default_rng(0)
    X, Y = generator.normal(size=(50, 4)), generator.normal(size=(50, 300))
    weights = generator.uniform(1, 2, 50) if weighted else None
    ours, theirs = pair("regression", solver=solver, warm_start=True, max_iter=2, batch_size=20)
    for columns in (before, after, before):
        y = Y[:, :columns] if columns > 1 else Y[:, 0]
        check_same_outcome(ours, theirs, lambda each, y=y: getattr(each, how)(X, y, weights))
        # Where scikit-learn's own predictions broadcast or raise, too.
        check_same_outcome(ours, theirs, lambda each, y=y: each.score(X, y))


def test_no_kernel_sees_targets_of_another_shape(monkeypatch):
    X, y = data("regression")
    ours, _ = pair("multioutput", max_iter=1, warm_start=True)
    ours.fit(X, np.stack([y, y], axis=1))
    ran = []
    original = ScikitLearnEngine.epoch
    monkeypatch.setattr(
        ScikitLearnEngine, "epoch", lambda *given: ran.append(given) or original(*given)
    )
    ours.fit(X, y)
    assert len(ran) == 1


def test_what_only_kernels_have_says_what_does_not_fit():
    X, y = data("multioutput")
    ours = MLPRegressor(optimizer=fastmlp.AdamW(), max_iter=1, warm_start=True).fit(X, y)
    with pytest.raises(ValueError, match=r"y: got shape \(157, 1\), wanted \(157, 3\).*warm_start"):
        ours.fit(X, y[:, 0])
    ours.partial_fit(X, y)
    ours.coefs_ = [ours.coefs_[0][:, :5].copy(), ours.coefs_[1][:5].copy()]
    ours.intercepts_[0] = ours.intercepts_[0][:5].copy()
    with pytest.raises(ValueError, match="the optimizer's state is that of other parameters"):
        ours.partial_fit(X, y)
    assert np.isfinite(ours.fit(X, y).loss_)


# Settings that change between two fits, and do not change the network.


@pytest.mark.parametrize("how", ["fit", "partial_fit"])
@pytest.mark.parametrize(
    "settings",
    [
        {"hidden_layer_sizes": (4, 3)},
        {"hidden_layer_sizes": (9,)},
        {"hidden_layer_sizes": (9, 7, 3)},
        {"hidden_layer_sizes": ()},
        {"loss": "poisson"},
        {"solver": "sgd", "momentum": 1.0},
        {"activation": "tanh"},
        {"early_stopping": True},
        {"alpha": 1.0},
        {"batch_size": 500},
        {"learning_rate_init": True},
    ],
)
@pytest.mark.parametrize("solver", ["sgd", "adam"])
def test_settings_that_change(how, settings, solver):
    X, y = data("regression")
    ours, theirs = pair("regression", max_iter=2, warm_start=True, solver=solver, momentum=0.5)
    for each in (ours, theirs):
        each.fit(X, abs(y))
        each.set_params(**settings)
    for _ in range(2):
        check_same_outcome(ours, theirs, lambda each: getattr(each, how)(X, abs(y)))


def test_a_momentum_of_1_that_partial_fit_keeps():
    X, y = data("regression")
    ours, theirs = pair("regression", solver="sgd", momentum=1, max_iter=2)
    for change in ({}, {"momentum": 0.5}, {"solver": "adam"}):
        for each in (ours, theirs):
            each.set_params(**change)
        assert check_same_outcome(ours, theirs, lambda each: each.partial_fit(X, y)) is None


def test_a_learning_rate_that_becomes_0():
    X, y = data("regression")
    settings = {"learning_rate": "invscaling", "power_t": 60.0, "learning_rate_init": 1e-200}
    ours, theirs = pair("regression", max_iter=5, solver="sgd", **settings)
    assert check_same_outcome(ours, theirs, lambda each: each.fit(X, y)) is None
    assert ours._optimizer.learning_rate == 0
    assert check_same_outcome(ours, theirs, lambda each: each.partial_fit(X, y)) is None


# Parameters that users edit.


def replace_first(change):
    def edit(each):
        each.coefs_[0] = change(each.coefs_[0])

    return edit


def read_only(array):
    array.flags.writeable = False
    return array


def share(each):
    each.coefs_[1] = each.coefs_[0][:9, :7]


def fewer_hidden(each):
    each.coefs_[0], each.intercepts_[0] = each.coefs_[0][:, :5], each.intercepts_[0][:5]
    each.coefs_[1] = each.coefs_[1][:5]


EDITS = {
    "Fortran order": replace_first(np.asfortranarray),
    "not contiguous": replace_first(lambda array: np.repeat(array, 2, axis=1)[:, ::2]),
    "float32": replace_first(lambda array: array.astype("float32")),
    "integers": replace_first(lambda array: np.ones(array.shape, int)),
    "complex": replace_first(lambda array: array.astype(complex)),
    "a list": replace_first(lambda array: array.tolist()),
    "a matrix": replace_first(np.asmatrix),
    "read-only": replace_first(read_only),
    "broadcast": replace_first(lambda array: np.broadcast_to(array[:1], array.shape)),
    "another shape": replace_first(lambda array: array[:, :5].copy()),
    "one column": replace_first(lambda array: array[:, :1].copy()),
    "flat": replace_first(lambda array: array.ravel()),
    "three dimensions": replace_first(lambda array: array[None]),
    "more inputs": replace_first(lambda array: np.concatenate([array, array])),
    "none": replace_first(lambda array: None),
    "fewer hidden units": fewer_hidden,
    "shared memory": share,
    "a tuple": lambda each: setattr(each, "coefs_", tuple(each.coefs_)),
    "two tuples": lambda each: (
        setattr(each, "coefs_", tuple(each.coefs_)),
        setattr(each, "intercepts_", tuple(each.intercepts_)),
    ),
    "one layer less": lambda each: each.coefs_.pop(),
    "one layer more": lambda each: each.coefs_.append(each.coefs_[-1]),
    "no coefs_": lambda each: delattr(each, "coefs_"),
    "no intercepts_": lambda each: delattr(each, "intercepts_"),
    "wide intercepts": lambda each: each.intercepts_.__setitem__(0, np.zeros((1, 9))),
    "a long intercept": lambda each: each.intercepts_.__setitem__(0, np.zeros(10)),
    "a short intercept": lambda each: each.intercepts_.__setitem__(0, np.zeros(1)),
    "complex intercepts": lambda each: each.intercepts_.__setitem__(0, np.zeros(9, complex)),
    "n_layers_": lambda each: setattr(each, "n_layers_", each.n_layers_ - 1),
    "state of other shapes": lambda each: edit_state(each, lambda array: array[..., :1]),
    "state of one row": lambda each: edit_state(each, lambda array: np.atleast_2d(array)[:1]),
    "state of float32": lambda each: edit_state(each, lambda array: array.astype("float32")),
    "less state": lambda each: edit_state(each, None),
    "out_activation_": lambda each: setattr(each, "out_activation_", "exp"),
}


def edit_state(each, change):
    """Change what scikit-learn's optimizer keeps of each parameter."""
    optimizer = each._optimizer
    for name in ("velocities", "ms", "vs"):
        if hasattr(optimizer, name):
            kept = getattr(optimizer, name)
            setattr(optimizer, name, kept[:-2] if change is None else [change(k) for k in kept])


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("kind", ["multiclass", "regression"])
@pytest.mark.parametrize("solver", ["sgd", "adam"])
def test_parameters_that_are_edited(kind, solver, edit):
    X, y = data(kind)
    ours, theirs = pair(kind, max_iter=2, warm_start=True, solver=solver)
    for each in (ours, theirs):
        each.fit(X, y)
        EDITS[edit](each)
    for action in (
        lambda each: each.predict(X),
        lambda each: each.partial_fit(X, y),
        lambda each: each.predict(X),
        lambda each: each.fit(X, y),
    ):
        check_same_outcome(ours, theirs, action)


@pytest.mark.parametrize("edit", EDITS)
def test_predictions_of_edited_parameters(edit):
    X, y = data("regression")
    ours, theirs = pair("regression", max_iter=2)
    found = []
    for each in (ours, theirs):
        each.fit(X, y)
    theirs.coefs_ = [each.copy() for each in ours.coefs_]
    theirs.intercepts_ = [each.copy() for each in ours.intercepts_]
    for each in (ours, theirs):
        EDITS[edit](each)
        try:
            found.append(each.predict(X))
        except Exception as error:
            found.append(error)
    mine, other = found
    if isinstance(other, Exception):
        assert (type(mine), str(mine)) == (type(other), str(other))
    else:
        assert mine.dtype == other.dtype and mine.shape == other.shape
        assert np.allclose(mine, other, 1e-5 if "32" in edit else 1e-12)


# Targets that scikit-learn refuses in its first step.


@pytest.mark.parametrize("how", ["fit", "partial_fit"])
@pytest.mark.parametrize("dtype", [str, "S", bool, int, "float16", "uint8", "longdouble", object])
@pytest.mark.parametrize("solver", ["sgd", "lbfgs"])
def test_targets_of_any_dtype(how, dtype, solver):
    X, y = data("poisson")
    y = y.astype(dtype)
    ours, theirs = pair("regression", max_iter=2, solver=solver)
    check_same_outcome(ours, theirs, lambda each: getattr(each, how)(X, y))


def test_classes_that_change():
    X, y = data("multiclass")
    for settings in ({"warm_start": True}, {}):
        ours, theirs = pair("multiclass", max_iter=2, **settings)
        for labels in (y, np.where(y == y[0], 99, y), y % 2, y[:, None], np.eye(4)[y % 4]):
            for how in ("fit", "partial_fit"):
                check_same_outcome(
                    ours, theirs, lambda each, how=how, y=labels: getattr(each, how)(X, y)
                )
        for each in (ours, theirs):
            # It learns them again, and the network stays.
            del each.classes_
        labels = np.stack([y > 0, y > 2, y > 5, y < 0], axis=1).astype(int)
        check_same_outcome(ours, theirs, lambda each, y=labels: each.fit(X, y))
        check_same_outcome(ours, theirs, lambda each, y=labels: each.fit(X, y))


@pytest.mark.parametrize("scale", [0.0, -1.0, 1e-300, 1e300, 1e308])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_weights_of_any_size(scale, dtype):
    X, y = data("regression", dtype)
    weights = np.random.default_rng(0).uniform(0.5, 1.5, len(X)) * scale
    ours, theirs = pair("regression", max_iter=2)
    check_same_outcome(ours, theirs, lambda each: each.fit(X, y, weights))
    for wrong in (weights[:5], weights[:, None], np.ones((len(X), 2)), 2.0):
        check_same_outcome(ours, theirs, lambda each, w=wrong: each.fit(X, y, w))


# Sequences of all of these, drawn at random.


def random_settings(generator):
    choices = {
        "hidden_layer_sizes": [(9, 7), (4, 3), (9,), (5, 4, 3), ()],
        "solver": ["sgd", "adam", "adam", "lbfgs"],
        "warm_start": [True, True, False],
        "momentum": [0.0, 0.9, 1.0],
        "early_stopping": [False, False, False, True],
        "batch_size": [16, 31, "auto", np.int64(20), 400],
        "activation": ["relu", "tanh", "logistic", "identity"],
        "max_iter": [1, 2, 3],
        "alpha": [0, 1e-4, np.float64(0.1)],
        "shuffle": [True, False],
        "learning_rate": ["constant", "invscaling", "adaptive"],
    }
    name = str(generator.choice(list(choices)))
    return {name: choices[name][generator.integers(len(choices[name]))]}


def random_data(kind, generator):
    dtype = str(generator.choice(["float64", "float64", "float64", "float32"]))
    rows = int(generator.integers(20, 157))
    if generator.random() < 0.15:
        kind = str(generator.choice([*CLASSIFIED, "regression", "multioutput", "poisson"]))
    X, y = data(kind, dtype, rows, seed=int(generator.integers(3)))
    if generator.random() < 0.1:
        X = X[:, :7]
    if y.ndim == 2 and generator.random() < 0.3:
        y = y[:, : int(generator.integers(1, y.shape[1] + 1))]
    elif y.ndim == 1 and generator.random() < 0.1:
        y = np.stack([y] * int(generator.integers(1, 4)), axis=1)
    if generator.random() < 0.1:
        y = y.astype(generator.choice(["U", "int64", "float32", "bool"]))
    weights = None
    if generator.random() < 0.3:
        weights = generator.uniform(-0.1, 2, rows if generator.random() < 0.9 else 5)
    return X, y, weights


def random_action(kind, generator):
    """Return a name and what is done to each of two estimators."""
    draw = generator.random()
    if draw < 0.45:
        X, y, weights = random_data(kind, generator)
        how = str(generator.choice(["fit", "partial_fit"]))
        arguments = [X, y, weights]
        if how == "partial_fit" and kind in CLASSIFIED and generator.random() < 0.8:
            arguments.append([0, 1, 2, 3] if kind == "multilabel" else np.unique(data(kind)[1]))
        return f"{how} {X.shape} {y.shape}", lambda each: getattr(each, how)(*arguments)
    if draw < 0.65:
        X, y, _ = random_data(kind, generator)
        how = str(generator.choice(["predict", "predict_proba", "score"]))
        arguments = [X, y] if how == "score" else [X]
        return how, lambda each: getattr(each, how)(*arguments)
    if draw < 0.85:
        settings = random_settings(generator)
        return f"set {settings}", lambda each: each.set_params(**settings)
    edit = str(generator.choice(list(EDITS)))
    return edit, EDITS[edit]


def run_sequences(first, count):
    """Compare random sequences; what has failed is printed by its number."""
    from sklearn.exceptions import ConvergenceWarning  # noqa: F401  (imported before a crash could)

    fastmlp.sklearn.prediction.FEW_ROWS = 0
    for number in range(first, first + count):
        generator = np.random.default_rng(number)
        kind = str(generator.choice([*CLASSIFIED, "regression", "multioutput", "poisson"]))
        ours, theirs = pair(kind, max_iter=2, warm_start=True)
        done = []
        for _ in range(8):
            name, action = random_action(kind, generator)
            done.append(name)
            print(number, kind, done, flush=True)
            # An edit must not reach the other's arrays.
            theirs_before = copy.deepcopy(vars(theirs))
            try:
                check_same_outcome(ours, theirs, action, done)
            except AssertionError:
                if chaotic(theirs, theirs_before, action):
                    break
                raise


def chaotic(theirs, before, action):
    """Return whether scikit-learn's own answer moves where its parameters move by a rounding."""
    again = object.__new__(type(theirs))
    again.__dict__.update(before)
    for each in coefs(again):
        if each.flags.writeable and each.dtype.kind == "f":
            each *= 1 + 4 * np.finfo(each.dtype).eps
    if outcome(again, action) is not None:
        return False
    try:
        same_numbers(again, theirs, "moved")
    except AssertionError:
        return True
    return False


SEQUENCES = 50
PROGRAM = "from tests.scikit_learn.test_refits import run_sequences; run_sequences({}, {})"


@pytest.mark.parametrize("first", [0, 1000, 2000])
def test_random_sequences_do_what_scikit_learn_does(first, child_environment):
    command = ["-X", "faulthandler", "-W", "ignore", "-c", PROGRAM.format(first, SEQUENCES)]
    result = subprocess.run(
        [sys.executable, *command],
        env={**child_environment, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    last = "\n".join(result.stdout.splitlines()[-1:])
    assert result.returncode == 0, f"{last}\n{result.stderr[-3000:]}"
    assert len(result.stdout.splitlines()) > 6 * SEQUENCES
