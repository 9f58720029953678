"""The model as a value: construction, parameters, the separate parts, prediction, evaluation."""

import copy
import pickle
import subprocess

import numpy as np
import pytest

import fastmlp
from fastmlp import MLP, SGD, Adam
from fastmlp.data.arrays import check_matrix, check_targets
from fastmlp.device.machine import detect
from fastmlp.dispatch.planning import plan
from fastmlp.errors import CallOrderError
from fastmlp_kernels.algebra import ACTIVATIONS, INITIALIZERS, LOSSES
from fastmlp_kernels.problem import Machine

RNG = np.random.default_rng(3)
X = RNG.normal(size=(40, 5)).astype(np.float32)
Y = RNG.normal(size=(40, 2)).astype(np.float32)


def classifier(**arguments):
    return MLP([5, 7, 3], ["tanh", "identity"], "softmax_cross_entropy", **arguments)


def test_import_is_light(child_python, child_environment):
    code = (
        "import time; start = time.perf_counter(); import fastmlp, sys; "
        "seconds = time.perf_counter() - start; "
        "assert not {'numpy', 'numba', 'llvmlite'} & set(sys.modules); print(seconds)"
    )
    command = [child_python, "-c", code]
    runs = [
        subprocess.run(command, capture_output=True, text=True, env=child_environment)
        for _ in range(5)
    ]
    assert all(run.returncode == 0 for run in runs), runs[0].stderr
    assert min(float(run.stdout) for run in runs) < 0.05


def test_every_public_name_exists():
    for name in fastmlp.__all__:
        assert getattr(fastmlp, name) is not None
    assert set(fastmlp.__all__) <= set(dir(fastmlp))
    with pytest.raises(AttributeError, match="no attribute 'MPL'"):
        _ = fastmlp.MPL


def test_one_activation_name_is_for_the_hidden_layers():
    assert MLP([5, 4, 3, 2], "tanh").activations == ("tanh", "tanh", "identity")
    rows = [ACTIVATIONS["relu"], "sigmoid"]
    model = MLP([5, 4, 1], rows, LOSSES["binary_cross_entropy"])
    assert model.activations == ("relu", "sigmoid")
    assert model.loss_name == "binary_cross_entropy"


@pytest.mark.parametrize("name", INITIALIZERS.names)
def test_initializer_gives_its_variance(name):
    model = MLP([200, 300], ["identity"], initializer=name, dtype="float64")
    expected = INITIALIZERS[name].variance(200, 300)
    assert np.var(model.weights[0]) == pytest.approx(expected, rel=0.05)
    assert not model.biases[0].any()


def test_seed_decides_the_weights_in_every_dtype():
    one, same, other = MLP([5, 3]), MLP([5, 3], dtype="float64"), MLP([5, 3], seed=1)
    np.testing.assert_array_equal(one.parameters, same.parameters.astype(np.float32))
    assert not np.array_equal(one.parameters, other.parameters)
    assert one.parameters.ctypes.data % 64 == 0


def test_parameters_are_views_that_can_be_assigned():
    model = MLP([5, 4, 2])
    assert [w.shape for w in model.weights] == [(5, 4), (4, 2)]
    assert [b.shape for b in model.biases] == [(4,), (2,)]
    model.weights[1] = np.ones((4, 2))
    model.weights[0][:] = 2
    model.weights[0] += 1
    model.biases = [[1, 2, 3, 4], [5, 6]]
    expected = [3] * 20 + [1, 2, 3, 4] + [1] * 8 + [5, 6]
    np.testing.assert_array_equal(model.parameters, expected)
    model.parameters = np.arange(34)
    np.testing.assert_array_equal(model.weights[0], np.arange(20).reshape(5, 4))
    model.weights = model.weights[:]
    np.testing.assert_array_equal(model.parameters, np.arange(34))


def test_assignment_checks_everything_before_it_changes_anything():
    model = MLP([5, 4, 2])
    before = model.parameters.copy()
    with pytest.raises(
        fastmlp.ShapeError, match=r"weights\[1\]: got shape \(2, 4\), wanted \(4, 2"
    ):
        model.weights = [np.zeros((5, 4)), np.zeros((2, 4))]
    with pytest.raises(fastmlp.ShapeError, match="biases: got 1 arrays, wanted 2"):
        model.biases = [np.zeros(4)]
    with pytest.raises(fastmlp.DomainError, match=r"biases\[0\]: got 4 non-finite"):
        model.biases[0] = np.full(4, np.nan)
    with pytest.raises(fastmlp.DTypeError, match=r"weights\[0\]: got str"):
        model.weights[0] = "zeros"
    np.testing.assert_array_equal(model.parameters, before)


def test_forward_is_the_chain_of_the_sheet():
    model = MLP([5, 7, 2], ["relu", "sigmoid"], dtype="float64")
    model.biases = [RNG.normal(size=7), RNG.normal(size=2)]
    hidden = np.maximum(X @ model.weights[0] + model.biases[0], 0)
    expected = 1 / (1 + np.exp(-(hidden @ model.weights[1] + model.biases[1])))
    np.testing.assert_allclose(model.forward(X), expected, rtol=1e-12)
    np.testing.assert_allclose(model.predict(X), expected, rtol=1e-12)


def test_softmax_belongs_to_predict_and_not_to_forward():
    model = classifier()
    logits = model.forward(X)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(
        model.predict(X), powers / powers.sum(axis=1, keepdims=True), rtol=1e-5
    )


def test_backward_takes_any_upstream_gradient():
    model = MLP([5, 7, 2], "tanh", reduction="sum", dtype="float64")
    outputs = model.forward(X)
    model.compute_loss(Y)
    from_loss = model.backward()
    gradient = model.gradients.flat.copy()
    model.zero_grad()
    assert not model.gradients.flat.any()
    from_upstream = model.backward(outputs - Y)
    np.testing.assert_allclose(from_upstream, from_loss, rtol=1e-12)
    np.testing.assert_allclose(model.gradients.flat, gradient, rtol=1e-12)
    model.backward(outputs - Y)
    np.testing.assert_allclose(model.gradients.flat, 2 * gradient, rtol=1e-12)
    assert from_loss.shape == X.shape
    assert [w.shape for w in model.gradients.weights] == [(5, 7), (7, 2)]


def test_a_prediction_does_not_disturb_the_backward_pass():
    model = MLP([5, 7, 2])
    model.forward(X)
    model.compute_loss(Y)
    expected = model.value_and_grad(X, Y)[1].flat.copy()
    model.predict(-X)
    model.evaluate(-X, Y)
    model.value_and_grad(-X, Y)
    model.backward()
    np.testing.assert_array_equal(model.gradients.flat, expected)


@pytest.mark.parametrize("change", ["apply", "step", "fit", "assign"])
def test_backward_refuses_a_pass_of_other_parameters(change):
    model = MLP([5, 7, 2])
    model.forward(X)
    if change == "apply":
        model.apply(SGD())
    elif change == "step":
        model.step(X, Y, SGD())
    elif change == "fit":
        model.fit(X, Y, epochs=1)
    else:
        model.biases[0] = np.ones(7)
    with pytest.raises(CallOrderError, match=r"backward: got .*, wanted a call of forward"):
        model.backward(Y)


def test_calls_out_of_order_are_named():
    model = MLP([5, 7, 2])
    with pytest.raises(CallOrderError, match=r"compute_loss: got .* wanted"):
        model.compute_loss(Y)
    model.forward(X)
    with pytest.raises(CallOrderError, match=r"backward: got .* wanted"):
        model.backward()
    with pytest.raises(fastmlp.ShapeError, match=r"dyhat: got shape \(40, 3\), wanted \(40, 2\)"):
        model.backward(np.ones((40, 3)))
    with pytest.raises(fastmlp.ShapeError, match=r"dyhat: got shape \(39, 2\), wanted \(40, 2\)"):
        model.backward(np.ones((39, 2)))
    assert not model.gradients.flat.any()


def test_value_and_grad_changes_nothing():
    model = MLP([5, 7, 2])
    model.forward(X)
    before = pickle.dumps(model)
    loss, gradients = model.value_and_grad(X, Y)
    assert pickle.dumps(model) == before
    assert loss == pytest.approx(np.square(model.forward(X) - Y).mean() / 2, rel=1e-5)
    assert gradients.flat.shape == model.parameters.shape
    assert np.shares_memory(gradients.weights[1], gradients.flat)


@pytest.mark.parametrize("reduction", ["mean", "sum", "batch_mean"])
def test_evaluate_is_exact_over_chunks(reduction):
    many = RNG.normal(size=(2500, 5))
    targets = RNG.normal(size=(2500, 2))
    model = MLP([5, 6, 2], "tanh", reduction=reduction, dtype="float64")
    errors = np.square(model.predict(many) - targets) / 2
    expected = {"mean": errors.mean(), "sum": errors.sum(), "batch_mean": errors.sum() / 2500}
    result = model.evaluate(many, targets)
    assert result.loss == pytest.approx(expected[reduction], rel=1e-12)
    assert result.metric == "r2"
    spread = np.square(targets - targets.mean(axis=0)).sum(axis=0)
    assert result.score == pytest.approx((1 - 2 * errors.sum(axis=0) / spread).mean(), rel=1e-12)


def test_r2_of_a_constant_target():
    model = MLP([5, 1])
    model.parameters = np.zeros(6)
    assert model.evaluate(X, np.zeros(40)).score == 1
    assert model.evaluate(X, np.ones(40)).score == 0


def test_accuracy_of_labels_and_of_one_hot_rows_agree():
    model = classifier()
    labels = RNG.integers(0, 3, 40)
    expected = np.mean(model.predict(X).argmax(axis=1) == labels)
    by_label, by_row = model.evaluate(X, labels), model.evaluate(X, np.eye(3)[labels])
    assert by_label.score == by_row.score == pytest.approx(expected)
    assert by_label.loss == pytest.approx(by_row.loss, rel=1e-6)
    squared = MLP([5, 7, 3], ["tanh", "sigmoid"])
    expected = np.mean(squared.predict(X).argmax(axis=1) == labels)
    assert squared.evaluate(X, np.eye(3)[labels], "accuracy").score == pytest.approx(expected)


def test_accuracy_of_one_output_is_by_its_side_of_a_half():
    model = MLP([5, 7, 1], ["relu", "sigmoid"], "binary_cross_entropy")
    targets = (X[:, 0] > 0).astype(float)
    expected = np.mean((model.predict(X)[:, 0] > 0.5) == targets)
    assert model.evaluate(X, targets).score == pytest.approx(expected)


def test_prediction_of_any_number_of_rows():
    model = classifier(dtype="float64")
    many = RNG.normal(size=(2051, 5))
    whole = model.predict(many)
    for rows in (1, 2, 3, 33, 1024, 1025):
        np.testing.assert_allclose(model.predict(many[:rows]), whole[:rows], rtol=1e-12)


@pytest.mark.parametrize(
    "given",
    [
        X.astype(np.float64),
        X.tolist(),
        np.asfortranarray(X),
        np.repeat(X, 2, axis=0)[::2],
        X.astype(">f4"),
        np.ma.masked_array(X),
    ],
    ids=["float64", "list", "fortran", "strided", "big-endian", "unmasked"],
)
def test_any_array_like_means_the_same(given):
    model = MLP([5, 7, 2])
    np.testing.assert_array_equal(model.predict(given), model.predict(X))


def test_tensors_are_read_also_while_they_record_gradients():
    torch = pytest.importorskip("torch")
    model = MLP([5, 7, 2])
    tensor = torch.tensor(X, requires_grad=True)
    np.testing.assert_array_equal(model.predict(tensor), model.predict(X))


def test_device_arrays_are_copied_by_their_own_library():
    class DeviceArray:
        __cuda_array_interface__ = {"shape": X.shape, "typestr": "<f4", "data": (0, True)}

        def copy_to_host(self):
            return X

    assert check_matrix(DeviceArray(), 5, np.dtype("float32"), "X") is X


def test_good_arrays_are_used_without_a_copy():
    assert check_matrix(X, 5, np.dtype("float32"), "X") is X
    frozen = X.view()
    frozen.flags.writeable = False
    used = check_matrix(frozen, 5, np.dtype("float32"), "X")
    # Another view: kernels are compiled for writable arrays, and would be again for read-only ones.
    assert np.shares_memory(used, X) and used.flags.writeable and not frozen.flags.writeable
    targets, labels = check_targets(X[:, 0].copy(), 40, 1, LOSSES["squared_error"], X.dtype)
    assert targets.shape == (40, 1) and not labels


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_trains_on_alone_to_the_same_bits(clone):
    model = MLP([5, 7, 2])
    model.fit(X, Y, epochs=2, optimizer=Adam())
    twin = clone(model)
    assert twin.parameters.ctypes.data % 64 == 0
    model.fit(X, Y, epochs=2, optimizer=Adam())
    assert not np.array_equal(model.parameters, twin.parameters)
    twin.fit(X, Y, epochs=2, optimizer=Adam())
    np.testing.assert_array_equal(model.parameters, twin.parameters)
    np.testing.assert_array_equal(twin.weights[0], twin.parameters[:35].reshape(5, 7))


def test_repr_can_be_evaluated():
    model = classifier(seed=4, dtype="float64")
    twin = eval(repr(model))
    np.testing.assert_array_equal(model.parameters, twin.parameters)
    assert repr(twin) == repr(model)
    assert "(5, 7), (7, 3)" in repr(model.weights)


def test_explain_names_the_chosen_and_every_rejected_kernel():
    explanation = fastmlp.explain(classifier(), batch_size=16, rows=160, optimizer=Adam())
    text = str(explanation)
    for name, reason in explanation.rejected.items():
        assert name in text and reason in text
    assert f"{explanation.kernel}" in text and "chosen" in text and "10 batches of 16" in text
    assert explanation.device in ("cpu", "cuda") and explanation.seconds > 0
    assert explanation.rejected["reference"].endswith("chosen only by name")


def test_the_cheapest_kernel_wins():
    problem = MLP([500, 4000, 4000, 10]).template
    cheap = {"gpu_launch_seconds": 1e-9, "gpu_copy_seconds": 1e-9, "gpu_copy_bytes": 1e15}
    gpu = Machine(cores=1, cuda_missing=None, gpu="a GPU", **cheap)
    assert plan(problem, machine=gpu).kernel.device == "cuda"
    assert plan(problem, "cpu", machine=gpu).kernel.device == "cpu"
    slow = Machine(cores=1, cuda_missing=None, gpu="a GPU", gpu_launch_seconds=10.0)
    chosen = plan(problem, machine=slow)
    assert chosen.kernel.device == "cpu"
    assert "x slower" in dict(chosen.rejected)["cuda.layered"]


def test_the_reference_runs_when_it_is_named():
    model, same = MLP([5, 3, 2], dtype="float64"), MLP([5, 3, 2], dtype="float64")
    history = model.fit(X, Y, epochs=2, optimizer=Adam(), kernel="reference")
    assert history.kernel == "reference"
    same.fit(X, Y, epochs=2, optimizer=Adam(), device="cpu")
    np.testing.assert_allclose(model.parameters, same.parameters, rtol=1e-9, atol=1e-12)


@pytest.mark.skipif(detect().cuda_missing is None, reason="there is a GPU")
def test_a_missing_gpu_says_what_was_looked_for():
    before = (model := MLP([5, 2])).parameters.copy()
    for arguments in ({"device": "cuda"}, {"kernel": "cuda.layered"}):
        with pytest.raises(fastmlp.DeviceError, match="got 'cuda.*wanted") as caught:
            model.fit(X, Y, **arguments)
        assert detect().cuda_missing in str(caught.value)
    np.testing.assert_array_equal(model.parameters, before)


def test_any_number_of_threads_may_be_asked_for_and_takes_no_time():
    alone, many = (MLP([3, 4, 1]) for _ in range(2))
    X, y = np.ones((8, 3), np.float32), np.ones((8, 1), np.float32)
    many.threads = 2**70
    alone.threads = 1
    for model in (alone, many):
        model.fit(X, y, epochs=2)
    assert alone.parameters.tobytes() == many.parameters.tobytes()
