"""Losses with numbers of their own, as users write them: from `MLP(loss=...)` to files and back."""

import copy
import pickle
import subprocess

import numpy as np
import pytest

import fastmlp
from fastmlp import (
    LOSSES,
    MLP,
    Adam,
    BinaryFocal,
    Checkpoint,
    DomainError,
    DTypeError,
    Ensemble,
    GaussianNLL,
    Huber,
    Quantile,
    ShapeError,
    SoftmaxCrossEntropy,
    UnknownKeywordError,
    UnknownNameError,
    explain,
    load,
)
from fastmlp.losses import LossWithNumbers
from tests import gradients

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 3))
VALUES = X[:, 0] + 0.3 * RNG.normal(size=40)
CLASSES = (VALUES > 0).astype(int)
# Each with a network's outputs and last activation, and targets.
CASES = {
    "huber(delta=0.5)": (Huber(0.5), 1, "identity", VALUES),
    "quantile(level=0.9)": (Quantile(0.9), 1, "identity", VALUES),
    "binary_focal(gamma=1.5, alpha=0.7)": (BinaryFocal(1.5, 0.7), 1, "sigmoid", CLASSES),
    "softmax_cross_entropy(label_smoothing=0.1)": (
        SoftmaxCrossEntropy(label_smoothing=0.1),
        2,
        "identity",
        CLASSES,
    ),
    "gaussian_nll(epsilon=0.01)": (GaussianNLL(0.01), 2, "identity", VALUES),
}
FIT = {"epochs": 3, "batch_size": 16, "optimizer": Adam(1e-2)}


def network(name, **more):
    loss, outputs, last, _ = CASES[name]
    return MLP([3, 5, outputs], ["tanh", last], loss, **more)


@pytest.mark.parametrize("name", CASES)
def test_a_model_knows_its_loss_by_its_name(name):
    loss, outputs, last, y = CASES[name]
    model = network(name)
    assert loss.name == model.loss_name == name
    assert f"loss={name!r}" in repr(model) and f", {name}, " in str(explain(model))
    sizes, activations = [3, 5, outputs], ["tanh", last]
    model.fit(X, y, **FIT)
    for same in (name, LOSSES[name], copy.copy(loss), pickle.loads(pickle.dumps(loss))):
        twin = MLP(sizes, activations, same)
        twin.fit(X, y, **FIT)
        assert twin.loss_name == name
        assert twin.parameters.tobytes() == model.parameters.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_the_kernel_trains_as_the_reference_does(name, dtype):
    y = CASES[name][3]
    weight = RNG.uniform(0.5, 2, len(X))
    models = [network(name, dtype=dtype) for _ in range(2)]
    for model, kernel in zip(models, ("cpu.fused", "reference"), strict=True):
        model.fit(X, y, kernel=kernel, sample_weight=weight, **FIT)
    tolerance = 1e-4 if dtype == "float32" else 1e-12
    ours, wanted = (model.parameters for model in models)
    np.testing.assert_allclose(ours, wanted, rtol=tolerance, atol=tolerance)
    assert np.ptp(models[0].history.loss) > 0
    ours, wanted = (model.evaluate(X, y) for model in models)
    assert ours.loss == pytest.approx(wanted.loss, rel=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_that_of_the_loss(name):
    y, model = CASES[name][3], network(name, dtype="float64")

    def loss_at(parameters):
        model.parameters = parameters
        return model.value_and_grad(X, y)[0]

    start = model.parameters.copy()
    gradient = model.value_and_grad(X, y)[1].flat.copy()
    gradients.assert_derivative(gradient, gradients.gradient(loss_at, start))
    model.parameters = start
    # And the same from its parts.
    model.forward(X)
    whole = model.compute_loss(y)
    model.backward()
    assert whole == pytest.approx(model.evaluate(X, y).loss)
    np.testing.assert_allclose(model.gradients.flat, gradient, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", CASES)
def test_files_pickles_and_checkpoints_bring_it_back(name, tmp_path):
    y, model = CASES[name][3], network(name)
    model.fit(X, y, callbacks=Checkpoint(tmp_path / "checkpoint"), **FIT)
    model.save(tmp_path / "model")
    for twin in (load(tmp_path / "model"), pickle.loads(pickle.dumps(model))):
        assert twin.loss_name == name
        assert twin.predict(X).tobytes() == model.predict(X).tobytes()
        assert twin.evaluate(X, y) == model.evaluate(X, y)
    resumed = network(name)
    resumed.fit(X, y, resume=tmp_path / "checkpoint", **{**FIT, "epochs": 5})
    straight = network(name)
    straight.fit(X, y, **{**FIT, "epochs": 5})
    assert resumed.parameters.tobytes() == straight.parameters.tobytes()


IN_ANOTHER_PROCESS = """
import pickle, sys
import numpy as np
import fastmlp
X = np.load(sys.argv[1])
for path in sys.argv[2:]:
    model = pickle.load(open(path, "rb")) if path.endswith("pickle") else fastmlp.load(path)
    print(model.predict(X).tobytes().hex(), model.evaluate(X, X[:, 0]).loss)
"""


def test_a_process_that_has_never_seen_the_numbers_makes_the_same_loss(
    tmp_path, child_python, child_environment
):
    model = MLP([3, 4, 2], loss=GaussianNLL(0.037))
    X32 = X.astype("float32")
    np.save(tmp_path / "X.npy", X32)
    model.save(tmp_path / "model")
    (tmp_path / "pickle").write_bytes(pickle.dumps(model))
    paths = [str(tmp_path / each) for each in ("X.npy", "model", "pickle")]
    done = subprocess.run(
        [child_python, "-c", IN_ANOTHER_PROCESS, *paths],
        env=child_environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    loss = model.evaluate(X32, X32[:, 0]).loss
    assert done.stdout.splitlines() == [f"{model.predict(X32).tobytes().hex()} {loss}"] * 2


@pytest.mark.parametrize("name", CASES)
def test_an_ensemble_is_its_networks(name):
    loss, outputs, last, y = CASES[name]
    many = Ensemble([3, 5, outputs], 2, ["tanh", last], loss)
    many.fit(X, y, **FIT)
    for seed, member in enumerate(many):
        alone = network(name, seed=seed)
        alone.fit(X, y, **FIT)
        assert member.loss_name == name
        assert member.parameters.tobytes() == alone.parameters.tobytes()
    assert many.evaluate(X, y).loss.shape == (2,)


def test_default_numbers_are_the_plain_loss_to_the_bit():
    for loss in (Huber(), Huber(delta=1), SoftmaxCrossEntropy(0), BinaryFocal(), GaussianNLL()):
        assert loss.name == loss.row and loss.name in LOSSES.names
    models = MLP([3, 5, 1], loss=Huber(np.float32(1))), MLP([3, 5, 1], loss="huber")
    for model in models:
        model.fit(X, VALUES, **FIT)
    assert models[0].parameters.tobytes() == models[1].parameters.tobytes()
    assert repr(Huber(np.int64(2))) == "Huber(delta=2.0)"
    assert Huber(2) == Huber(2.0) and BinaryFocal(-0.0).name == BinaryFocal(0.0).name


def test_every_row_with_numbers_has_a_class_of_the_same_numbers():
    classes = {each.row: each for each in LossWithNumbers.__subclasses__()}
    for row in LOSSES:
        if row.numbers:
            made = classes.pop(row.name)()
            assert vars(made) == row.numbers and getattr(fastmlp, type(made).__name__)
    assert not classes


def test_a_quantile_has_its_share_of_targets_below_it():
    y = RNG.normal(size=200)
    for level in (0.1, 0.8):
        model = MLP([1, 1], loss=Quantile(level), dtype="float64")
        model.fit(np.zeros((200, 1)), y, epochs=200, batch_size=200, optimizer=Adam(0.05))
        assert (y < model.predict(np.zeros((1, 1)))[0]).mean() == pytest.approx(level, abs=0.02)


def test_gaussian_outputs_are_means_and_variances():
    y = np.c_[VALUES, 2 * VALUES + 1]
    model = MLP([3, 5, 4], loss=GaussianNLL(), dtype="float64")
    model.fit(X, y, validation_data=(X, y), **FIT)
    outputs, predicted = model.forward(X), model.predict(X)
    np.testing.assert_array_equal(predicted[:, :2], outputs[:, :2])
    np.testing.assert_allclose(predicted[:, 2:], np.exp(outputs[:, 2:]), rtol=1e-14)
    mean, variance = predicted[:, :2], predicted[:, 2:]
    loss = np.mean((np.log(variance) + (y - mean) ** 2 / variance) / 2)
    score = 1 - ((y - mean) ** 2).sum(axis=0) / ((y - y.mean(axis=0)) ** 2).sum(axis=0)
    found = model.evaluate(X, y)
    assert found.metric == "r2" and found.score == pytest.approx(score.mean())
    assert found.loss == pytest.approx(loss) == model.history.validation_loss[-1]
    # One target may be a vector. What is predicted of it has two columns all the same.
    model = MLP([3, 5, 2], loss="gaussian_nll")
    model.fit(X, VALUES, **FIT)
    assert model.predict(X).shape == (40, 2) and model.predict(X[:0]).shape == (0, 2)
    # An accuracy looks at the mean alone.
    model.weights, model.biases = [np.zeros((3, 5)), np.zeros((5, 2))], [np.zeros(5), [0.9, 3.0]]
    assert model.evaluate(X, np.ones(40), "accuracy").score == 1.0
    assert model.evaluate(X, np.zeros(40), "accuracy").score == 0.0


def test_the_reduction_counts_targets_and_not_outputs():
    y = np.c_[VALUES, VALUES]
    losses = {
        reduction: MLP([3, 5, 4], loss="gaussian_nll", reduction=reduction).evaluate(X, y).loss
        for reduction in ("mean", "sum", "batch_mean")
    }
    assert losses["sum"] == pytest.approx(80 * losses["mean"], rel=1e-5)
    assert losses["batch_mean"] == pytest.approx(2 * losses["mean"], rel=1e-5)


MISTAKES = [
    (lambda: Huber(-1), DomainError, "delta: got -1, wanted a finite number > 0"),
    (lambda: Huber(np.inf), DomainError, "delta: got inf, wanted a finite number > 0"),
    (lambda: Huber("2"), DTypeError, "delta: got '2', wanted a number"),
    (lambda: Huber(True), DTypeError, "delta: got True, wanted a number"),
    (lambda: Huber(1e-40), DomainError, "wanted one of a size from 1e-30 to 1e+30"),
    (lambda: Huber(delat=1), UnknownKeywordError, "did you mean delta=?"),
    (lambda: Quantile(90), DomainError, "level: got 90, wanted a number in (0, 1)"),
    (lambda: BinaryFocal(gamma=-1), DomainError, "gamma: got -1, wanted a finite number >= 0"),
    (lambda: BinaryFocal(alpha=1), DomainError, "alpha: got 1, wanted a number in (0, 1)"),
    (lambda: SoftmaxCrossEntropy(1), DomainError, "label_smoothing: got 1, wanted a number in [0"),
    (lambda: GaussianNLL(0), DomainError, "epsilon: got 0, wanted a finite number > 0"),
    (lambda: MLP([3, 1], loss=Huber), DTypeError, "loss: got the class Huber, wanted an object"),
    (lambda: MLP([3, 1], loss="huber(2)"), DomainError, "such as 'huber(delta=1.0)'"),
    (lambda: MLP([3, 1], loss="huber(delta=0)"), DomainError, "delta: got 0.0, wanted a finite"),
    (lambda: MLP([3, 1], loss="huber(level=1)"), UnknownKeywordError, "huber: got an unknown"),
    (lambda: MLP([3, 1], loss="mse(a=1)"), DomainError, "wanted 'squared_error', which has no"),
    (lambda: MLP([3, 1], loss="hubbr(delta=2)"), UnknownNameError, "did you mean 'huber'?"),
    (lambda: MLP([3, 1], loss=GaussianNLL()), ShapeError, "got 1 outputs with gaussian_nll"),
    (lambda: MLP([3, 2], ["tanh"], GaussianNLL()), DomainError, "use 'identity'"),
    (lambda: MLP([3, 1], loss=BinaryFocal()), DomainError, "use 'sigmoid'"),
    (
        lambda: MLP([3, 2], loss=GaussianNLL()).fit(X, X),
        ShapeError,
        "y: got shape (40, 3), wanted (40, 1) or (40,); 3 columns are the targets of 6 outputs",
    ),
]


@pytest.mark.parametrize(
    ("mistake", "error", "message"), MISTAKES, ids=map(str, range(len(MISTAKES)))
)
def test_mistakes_are_answered(mistake, error, message):
    with pytest.raises(error) as caught:
        mistake()
    assert message in str(caught.value)


def test_other_spellings_are_the_same_loss():
    for text in ("Huber(delta=2)", "huber( delta = 2.0 )", "smooth_l1(delta=2)"):
        assert MLP([3, 1], loss=text).loss_name == "huber(delta=2.0)"
    assert MLP([3, 1], loss="huber(delta=1)").loss_name == "huber"
    text = "binary_focal(alpha=0.5)"
    assert MLP([3, 1], ["sigmoid"], text).loss_name == "binary_focal(gamma=2.0, alpha=0.5)"


def test_a_file_with_bad_numbers_is_refused(tmp_path):
    from fastmlp.files.container import pack, read_whole, unpack

    path = tmp_path / "model"
    MLP([3, 1], loss=Huber(2.0)).save(path)
    header, arrays = unpack(read_whole(path), "model")
    for loss in ("huber(delta=-2.0)", "huber(delta=", "huber(level=2.0)"):
        path.write_bytes(bytes(pack({**header, "loss": loss}, arrays)))
        with pytest.raises(fastmlp.ModelFileError, match="delta|numbers|unknown"):
            load(path)
