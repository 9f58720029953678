"""Bad input: one clear error that names the argument, what was got and wanted; nothing changes."""

import pickle

import numpy as np
import pytest

import fastmlp
from fastmlp import MLP, SGD, Adagrad, Adam, AdamW, EarlyStopping, Huber, ReduceOnPlateau, RMSprop
from fastmlp.errors import (
    DomainError,
    DTypeError,
    FastMLPError,
    NonFiniteTrainingError,
    ShapeError,
    UnknownNameError,
)
from fastmlp.schedules import LinearWarmup, OneCycle
from fastmlp_kernels import cpu

CPU_KERNEL = cpu.KERNELS[0].name
ROWS = 12
X = np.linspace(-1, 1, ROWS * 4).reshape(ROWS, 4)
Y = np.linspace(-1, 1, ROWS)
LABELS = np.arange(ROWS) % 3


def changed(array, index, value):
    array = np.array(array, dtype=float)
    array[index] = value
    return array


BAD_X = {
    "ragged": ([[1, 2, 3, 4], [1, 2]], ShapeError, "different lengths"),
    "empty": (np.zeros((0, 4)), ShapeError, "no data"),
    "nothing": ([], ShapeError, "no data"),
    "one row": (np.ones(4), ShapeError, "(rows, 4); one row is written X[None, :]"),
    "three axes": (np.ones((2, 3, 4)), ShapeError, "(2, 3, 4)"),
    "number": (3.0, ShapeError, "()"),
    "columns": (np.ones((ROWS, 5)), ShapeError, f"({ROWS}, 5), wanted (rows, 4)"),
    "text": ([["a"] * 4] * ROWS, DTypeError, "<U1"),
    "complex": (X + 1j, DTypeError, "complex128"),
    "objects": (X.astype(object), DTypeError, "object"),
    "dates": (X.astype("datetime64[s]"), DTypeError, "datetime64"),
    "none": (None, DTypeError, "NoneType"),
    "nan": (changed(X, (3, 1), np.nan), DomainError, "1 bad value, the first nan at index (3, 1)"),
    "inf": (changed(X, [[2], [5]], np.inf), DomainError, "8 bad values, the first inf at"),
    "nan in float32": (
        changed(X, (3, 1), np.nan).astype(np.float32),
        DomainError,
        "1 bad value, the first nan at index (3, 1)",
    ),
    "inf in float32": (changed(X, (3, 1), np.inf).astype(np.float32), DomainError, "1 bad value"),
    "minus inf": (changed(X, (0, 0), -np.inf), DomainError, "-inf at index (0, 0)"),
    "inf and -inf": (changed(X, (0, [0, 1]), [-np.inf, np.inf]), DomainError, "2 bad values"),
    "too large": (changed(X, (1, 2), 1e300), DomainError, "float32 can hold"),
    "masked": (np.ma.masked_greater(X, 0.5), DomainError, "masked"),
}
BAD_Y = {
    "ragged": ([[1], [1, 2]], ShapeError, "different lengths"),
    "empty": ([], ShapeError, "no data"),
    "rows": (Y[:-1], ShapeError, f"{ROWS - 1} rows, wanted {ROWS}"),
    "columns": (np.ones((ROWS, 2)), ShapeError, f"({ROWS}, 2), wanted ({ROWS}, 1) or ({ROWS},)"),
    "transposed": (Y[None, :], ShapeError, f"(1, {ROWS})"),
    "three axes": (Y[:, None, None], ShapeError, f"({ROWS}, 1, 1)"),
    "number": (1.0, ShapeError, "()"),
    "text": (["a"] * ROWS, DTypeError, "<U1"),
    "complex": (Y * 1j, DTypeError, "complex128"),
    "nan": (changed(Y, 7, np.nan), DomainError, "nan at index (7, 0)"),
    "inf": (changed(Y, 7, np.inf), DomainError, "inf at index (7, 0)"),
    "nan in float32": (
        changed(Y[:, None], 7, np.nan).astype(np.float32),
        DomainError,
        "nan at index (7, 0)",
    ),
}
BAD_LABELS = {
    "rows": (LABELS[1:], ShapeError, f"{ROWS - 1} rows, wanted {ROWS}"),
    "negative": (LABELS - 1, DomainError, "4 bad values, the first -1 at index 0"),
    "too large": (LABELS + 1, DomainError, "the first 3 at index 2"),
    "fraction": (LABELS + 0.5, DomainError, "the first 0.5 at index 0"),
    "nan": (changed(LABELS, 1, np.nan), DomainError, "nan at index 1"),
    "text": (["cat"] * ROWS, DTypeError, "<U3"),
    "columns": (np.ones((ROWS, 2)) / 2, ShapeError, f"({ROWS}, 3) of class probabilities"),
    "sums": (np.full((ROWS, 3), 0.5), DomainError, "rows that sum to 1"),
    "range": (np.tile([1.5, -0.5, 0.0], (ROWS, 1)), DomainError, "values in [0, 1]"),
}


def trained(loss="half_squared_error", activations="relu", outputs=1, y=Y):
    model = MLP([4, 3, outputs], activations, loss)
    model.fit(X, y, epochs=1, batch_size=4, optimizer=Adam())
    return model


@pytest.fixture(scope="module")
def regressor():
    return trained()


@pytest.fixture(scope="module")
def classifier():
    return trained("softmax_cross_entropy", outputs=3, y=LABELS)


def assert_refused(model, call, error, argument, part=""):
    before = pickle.dumps(model)
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert isinstance(caught.value, FastMLPError)
    assert message.startswith(f"{argument}")
    assert "got" in message and "wanted" in message
    assert message.index("got") < message.index("wanted")
    assert part in message
    assert pickle.dumps(model) == before


@pytest.mark.parametrize("case", BAD_X)
def test_bad_inputs(regressor, case):
    value, error, part = BAD_X[case]
    calls = {
        "fit": lambda: regressor.fit(value, Y, batch_size=4, optimizer=SGD()),
        # Without a row there is nothing to predict: see below.
        "predict": lambda: regressor.predict(value) if case != "empty" else regressor.fit(value, Y),
        "forward": lambda: regressor.forward(value),
        "step": lambda: regressor.step(value, Y, SGD()),
        "evaluate": lambda: regressor.evaluate(value, Y),
        "value_and_grad": lambda: regressor.value_and_grad(value, Y),
    }
    for call in calls.values():
        assert_refused(regressor, call, error, "X:", part)
    pair = (value, Y)
    assert_refused(
        regressor,
        lambda: regressor.fit(X, Y, batch_size=4, optimizer=SGD(), validation_data=pair),
        error,
        "validation X:",
    )


@pytest.mark.parametrize("case", BAD_Y)
def test_bad_targets(regressor, case):
    value, error, part = BAD_Y[case]
    regressor.forward(X)
    for call in (
        lambda: regressor.fit(X, value, batch_size=4, optimizer=SGD()),
        lambda: regressor.step(X, value, SGD()),
        lambda: regressor.evaluate(X, value),
        lambda: regressor.value_and_grad(X, value),
        lambda: regressor.compute_loss(value),
    ):
        assert_refused(regressor, call, error, "y:", part)


@pytest.mark.parametrize("case", BAD_LABELS)
def test_bad_labels(classifier, case):
    value, error, part = BAD_LABELS[case]
    classifier.forward(X)
    for call in (
        lambda: classifier.fit(X, value, batch_size=4, optimizer=SGD()),
        lambda: classifier.step(X, value, SGD()),
        lambda: classifier.compute_loss(value),
    ):
        assert_refused(classifier, call, error, "y", part)


@pytest.mark.parametrize(
    ("loss", "activations", "targets"),
    [
        ("binary_cross_entropy", ["relu", "sigmoid"], changed(abs(Y), 2, 1.5)),
        ("binary_cross_entropy", ["relu", "sigmoid"], changed(abs(Y), 2, -1e-3)),
        ("poisson", ["relu", "exp"], changed(abs(Y), 2, -1.0)),
    ],
)
def test_targets_outside_the_domain_of_the_loss(loss, activations, targets):
    model = trained(loss, activations, y=abs(Y))
    for y in (targets, targets.astype(np.float32), targets.astype(np.float32)[:, None]):
        assert_refused(
            model, lambda y=y: model.step(X, y, SGD()), DomainError, "y:", "at index (2, 0)"
        )


@pytest.mark.parametrize(
    ("arguments", "error", "part"),
    [
        ({"epochs": 0}, DomainError, "got 0, wanted a whole number >= 1"),
        ({"epochs": 1.5}, DTypeError, "got 1.5"),
        ({"epochs": True}, DTypeError, "got True"),
        ({"batch_size": 0}, DomainError, "got 0"),
        ({"batch_size": -1}, DomainError, "got -1"),
        ({"batch_size": 2.0}, DTypeError, "got 2.0"),
        ({"batch_size": "32"}, DTypeError, "got '32'"),
        ({"batch_size": ROWS + 1}, DomainError, "from 1 to 12, the rows of X"),
        ({"optimizer": "adan"}, UnknownNameError, "did you mean 'adam'?"),
        ({"optimizer": Adam}, DTypeError, "got the class Adam, wanted"),
        ({"optimizer": 0.1}, DTypeError, "SGD(0.1)"),
        ({"device": "tpu"}, UnknownNameError, "one of auto, cpu, cuda; did you mean 'cpu'?"),
        ({"kernel": 5}, UnknownNameError, "got 5, wanted one of"),
        ({"kernel": []}, UnknownNameError, "got [], wanted one of"),
        ({"device": None}, UnknownNameError, "None"),
        ({"kernel": CPU_KERNEL[:-1]}, UnknownNameError, f"did you mean {CPU_KERNEL!r}?"),
        ({"threads": 0}, DomainError, "got 0, wanted a whole number >= 1"),
        ({"threads": -2}, DomainError, "got -2, wanted a whole number >= 1"),
        ({"threads": 1.0}, DTypeError, "got 1.0, wanted a whole number >= 1"),
        ({"threads": True}, DTypeError, "got True"),
        ({"threads": "2"}, DTypeError, "got '2'"),
        ({"validation_data": X}, DTypeError, "a pair (X, y)"),
    ],
)
def test_bad_arguments_of_fit(regressor, arguments, error, part):
    given = {"batch_size": 4, "optimizer": SGD(), **arguments}
    (argument,) = arguments
    assert_refused(regressor, lambda: regressor.fit(X, Y, **given), error, argument + ":", part)


def test_an_ensemble_that_fits_in_no_memory():
    with pytest.raises(ShapeError, match=r"members: got 1,000,000,000 networks of 1,001,000 param"):
        fastmlp.Ensemble([1000, 1000], 10**9)


def test_kernel_on_another_device(regressor):
    call = lambda: regressor.predict(X, device="cpu", kernel="cuda.layered")  # noqa: E731
    assert_refused(regressor, call, fastmlp.DeviceError, "kernel:")


@pytest.mark.parametrize("kernel", [5, [], {}, 1.5, b"cpu.fused"])
def test_kernels_that_are_no_names(regressor, kernel):
    """Also with inputs that are no array, which are first asked where they lie."""
    for inputs in (X, X.tolist()):
        for call in (
            lambda: regressor.predict(inputs, kernel=kernel),  # noqa: B023
            lambda: regressor.evaluate(inputs, Y, kernel=kernel),  # noqa: B023
            lambda: regressor.fit(inputs, Y, batch_size=4, kernel=kernel),  # noqa: B023
        ):
            assert_refused(regressor, call, UnknownNameError, "kernel:", f"got {kernel!r}")
    with pytest.raises(UnknownNameError, match="kernel: got"):
        fastmlp.Ensemble([4, 3, 1], 2).predict(X.tolist(), kernel=kernel)


@pytest.mark.parametrize(
    ("metric", "part"), [("r2", "wanted 'accuracy'"), ("acuracy", "did you mean 'accuracy'")]
)
def test_bad_metrics(classifier, metric, part):
    call = lambda: classifier.evaluate(X, LABELS, metric)  # noqa: E731
    assert_refused(classifier, call, ValueError, "metric:", part)


@pytest.mark.parametrize(
    ("arguments", "error", "argument", "part"),
    [
        ({"sizes": [4]}, ShapeError, "sizes", "at least two"),
        ({"sizes": 4}, DTypeError, "sizes", "at least two"),
        ({"sizes": [4, 0, 1]}, DomainError, "sizes[1]", "got 0"),
        ({"sizes": [4, 2.5]}, DTypeError, "sizes[1]", "got 2.5"),
        ({"activations": "rellu"}, UnknownNameError, "activations", "did you mean 'relu'?"),
        ({"activations": ["relu"]}, ShapeError, "activations", "got 1, wanted 2"),
        ({"activations": ["relu", "tan"]}, UnknownNameError, "activations[1]", "'tanh'"),
        ({"activations": 3}, DTypeError, "activations", "got 3"),
        ({"loss": "poison"}, UnknownNameError, "loss", "did you mean 'poisson'?"),
        ({"loss": "binary_cross_entropy"}, DomainError, "activations", "use 'sigmoid'"),
        ({"loss": "poisson"}, DomainError, "activations", "use 'exp'"),
        ({"loss": "softmax_cross_entropy"}, ShapeError, "sizes", ">= 2 classes"),
        (
            {
                "loss": "softmax_cross_entropy",
                "activations": ["relu", "sigmoid"],
                "sizes": [4, 3, 2],
            },
            DomainError,
            "activations",
            "use 'identity'",
        ),
        ({"dtype": "float16"}, DTypeError, "dtype", "'float32' or 'float64'"),
        ({"dtype": "flot32"}, DTypeError, "dtype", "got 'flot32'"),
        ({"dtype": None}, DTypeError, "dtype", "got None"),
        ({"reduction": "men"}, UnknownNameError, "reduction", "did you mean 'mean'?"),
        ({"seed": -1}, DomainError, "seed", "got -1"),
        ({"seed": 1.0}, DTypeError, "seed", "got 1.0"),
        ({"sizes": [10**10, 10**10]}, ShapeError, "sizes", "fits in the memory"),
        ({"initializer": "he"}, UnknownNameError, "initializer", "one of glorot_uniform"),
    ],
)
def test_bad_models(arguments, error, argument, part):
    given = {"sizes": [4, 3, 1], **arguments}
    assert_refused(None, lambda: MLP(**given), error, argument + ":", part)


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: SGD(0), "learning_rate"),
        (lambda: SGD(-1.0), "learning_rate"),
        (lambda: SGD(np.nan), "learning_rate"),
        (lambda: SGD(np.inf), "learning_rate"),
        (lambda: SGD("0.1"), "learning_rate"),
        (lambda: SGD(True), "learning_rate"),
        (lambda: SGD(momentum=1.0), "momentum"),
        (lambda: SGD(nesterov=True), "momentum"),
        (lambda: SGD(momentum=0.9, nesterov=1), "nesterov"),
        (lambda: SGD(weight_decay=-1e-9), "weight_decay"),
        (lambda: Adam(beta1=-0.1), "beta1"),
        (lambda: Adam(beta2=1), "beta2"),
        (lambda: AdamW(epsilon=0), "epsilon"),
        (lambda: AdamW(weight_decay=np.inf), "weight_decay"),
        (lambda: RMSprop(decay=1.5), "decay"),
        (lambda: Adagrad(learning_rate=None), "learning_rate"),
        (lambda: SGD(OneCycle), "learning_rate"),
        (lambda: SGD(LinearWarmup(5, OneCycle)), "then"),
        (lambda: SGD(ReduceOnPlateau(OneCycle)), "initial"),
    ],
)
def test_bad_numbers_of_optimizers(make, argument):
    assert_refused(None, make, (ValueError, TypeError), argument + ":")


@pytest.mark.parametrize("digits", [400, 5000])
@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda large: SGD(large), "learning_rate"),
        (lambda large: SGD(momentum=-large), "momentum"),
        (lambda large: Adam(clip_norm=large), "clip_norm"),
        (lambda large: Adam(layer_rates=[1, large]), "layer_rates[1]"),
        (lambda large: OneCycle(large, 10), "maximum"),
        (lambda large: EarlyStopping(patience=large), "patience"),
        (lambda large: EarlyStopping(tolerance=large), "tolerance"),
        (lambda large: Huber(large), "delta"),
        (lambda large: MLP([large, 1]), "sizes[0]"),
        (lambda large: MLP([4, 1], seed=large), "seed"),
        (lambda large: MLP([4, 1], gain=large), "gain"),
        (lambda large: MLP([4, 1]).fit(X, Y, validation_split=large), "validation_split"),
    ],
)
def test_a_number_beyond_all_floats_is_refused_in_few_words(make, argument, digits):
    """Python itself turns no such number into a float, and writes none of 5000 digits."""
    assert_refused(None, lambda: make(10**digits), DomainError, argument + ":", " bits, wanted ")


def test_a_weight_of_a_class_beyond_all_floats(classifier):
    weights = {10**400: 1.0}
    with pytest.raises(DomainError, match=r"^class_weight: got a weight of class 10+, wanted"):
        classifier.fit(X, LABELS, batch_size=4, class_weight=weights)


def test_weights_that_are_not_finite_are_refused_before_training():
    model = trained()
    model.weights[0][1, 2] = np.nan
    call = lambda: model.fit(X, Y, batch_size=4, optimizer=SGD())  # noqa: E731
    assert_refused(model, call, DomainError, "parameters:", "1 non-finite")


def test_gradients_that_are_not_finite_are_not_applied():
    model = trained()
    model.gradients.flat[3] = np.inf
    call = lambda: model.apply(SGD())  # noqa: E731
    assert_refused(model, call, NonFiniteTrainingError, "gradients:", "got 1")


def test_errors_are_also_the_built_in_ones_and_can_be_pickled():
    assert issubclass(ShapeError, ValueError) and issubclass(DomainError, ValueError)
    assert issubclass(DTypeError, TypeError) and issubclass(UnknownNameError, ValueError)
    assert issubclass(NonFiniteTrainingError, RuntimeError)
    error = pickle.loads(pickle.dumps(NonFiniteTrainingError.at("fit: ...", 3, 17, 0.5)))
    assert (str(error), error.epoch, error.batch, error.last_loss) == ("fit: ...", 3, 17, 0.5)
