"""To ONNX: onnxruntime computes of a file what `predict` gives; what has no form there is named."""

import sys
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest

import fastmlp
from fastmlp import MLP, DomainError, Ensemble, MissingPackageError, onnx_export
from fastmlp.pytorch import MODULES
from fastmlp_kernels.algebra import ACTIVATIONS, LOSSES
from tests.samples import in_a_chain, output_activations

# Rounding of sums in another order, and of elementary functions of another library.
UNITS = 300


def formed(name):
    """Return whether an activation has a form in ONNX; a refusal says why not."""
    try:
        onnx_export.Graph("float32").activation(name, "z")
    except DomainError as error:
        assert f"to_onnx: got activation '{name}' of the formula" in str(error)
        assert "no ONNX form" in str(error)
        return False
    return True


FORMED = [row.name for row in ACTIVATIONS if formed(row.name)]
LINKED = [row.name for row in LOSSES if row.link is None or row.link.__name__ in onnx_export.LINKS]


def outputs(path, X):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_inputs()] == ["X"]
    assert [each.name for each in session.get_outputs()] == ["y"]
    return session.run(None, {"X": X})[0]


def check(model, X, path):
    X = X.astype(model.dtype)
    model.to_onnx(path)
    found, wanted = outputs(path, X), model.predict(X)
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    bound = UNITS * np.finfo(model.dtype).eps
    np.testing.assert_allclose(found, wanted, rtol=bound, atol=bound * abs(wanted).max())
    return wanted


def test_every_activation_has_a_form():
    assert set(MODULES) | {"exp"} <= set(FORMED)
    assert {"softmax_cross_entropy", "squared_error"} <= set(LINKED)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_activation_from_end_to_end_of_the_dtype(dtype, tmp_path):
    X = np.random.default_rng(0).normal(size=(60, 2)) * 3
    # Where a formula overflows that is not the activation's own.
    X[:6, 0] = 90, -90, 1e4, -1e4, 1e-5, 0
    for name in FORMED:
        own = X if name == in_a_chain(name) else X[6:]
        check(MLP([2, 4], [name], dtype=dtype), own, tmp_path / "model.onnx")


def random_chain(number):
    """Return a network of any depth, activations, loss and dtype, and what it is made of."""
    generator = np.random.default_rng(number)
    sizes = generator.integers(1, 9, generator.integers(2, 6)).tolist()
    # No loss of classes has one of them.
    sizes[-1] += 1
    loss = str(generator.choice(LINKED))
    last = [each for each in output_activations(loss) if each in FORMED]
    hidden = [in_a_chain(each) for each in generator.choice(FORMED, len(sizes) - 2).tolist()]
    activations = [*hidden, str(generator.choice(last))]
    dtype = ["float32", "float64"][number % 2]
    return MLP(sizes, activations, loss, seed=number, dtype=dtype)


def test_random_chains(tmp_path):
    seen = set()
    for number in range(200):
        model = random_chain(number)
        X = np.random.default_rng(number).normal(size=(7, model.sizes[0]))
        wanted = check(model, X, tmp_path / "model.onnx")
        seen.update((model.loss_name, *model.activations))
        if LOSSES[model.loss_name].link is not None:
            np.testing.assert_allclose(wanted.sum(axis=1), 1, rtol=1e-5)
    assert seen == {*LINKED, *FORMED}


@pytest.mark.parametrize("members", [1, 3])
def test_an_ensemble_is_one_graph(members, tmp_path):
    X = np.random.default_rng(2).normal(size=(9, 3)).astype(np.float32)
    model = Ensemble([3, 5, 4], members, "gelu", "softmax_cross_entropy")
    model.biases[0] = np.random.default_rng(3).normal(size=(members, 5))
    wanted = check(model, X, tmp_path / "model.onnx")
    assert wanted.shape == (members, 9, 4)
    for member, own in enumerate(model):
        np.testing.assert_array_equal(check(own, X, tmp_path / "own.onnx"), wanted[member])


def test_a_network_of_a_vector_gives_a_vector(tmp_path):
    X = np.random.default_rng(4).normal(size=(9, 3)).astype(np.float32)
    for model in (MLP([3, 1]), Ensemble([3, 1], 2)):
        assert check(model, X, tmp_path / "model.onnx").shape[-2:] == (9, 1)
        model.fit(X, X[:, 0], epochs=1)
        assert check(model, X, tmp_path / "model.onnx").shape[-1] == 9


def test_the_file_says_what_it_is(tmp_path):
    path = tmp_path / "model.onnx"
    MLP([3, 5, 4], "relu", "softmax_cross_entropy").to_onnx(path)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert (model.producer_name, model.producer_version) == ("fastmlp", fastmlp.__version__)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 13)]
    assert [each.op_type for each in model.graph.node] == [
        *("MatMul", "Add", "Relu", "MatMul", "Add", "Softmax")
    ]
    dimensions = model.graph.input[0].type.tensor_type.shape.dim
    assert [each.dim_param or each.dim_value for each in dimensions] == ["rows", 3]


def test_what_has_no_form_is_named_and_the_old_file_stays(tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    bad = [
        *("erfc(z)", "z @ z", "if z", "z if z in (1, 2) else 0", "max(z, key=2)", "other"),
        "the largest of all",
    ]
    for formula in bad:
        monkeypatch.setitem(onnx_export.FORMULAS, "elu", formula)
        with pytest.raises(DomainError, match="to_onnx: got activation 'elu' of the formula"):
            MLP([2, 3, 1], "elu").to_onnx(path)
    monkeypatch.delitem(onnx_export.LINKS, "softmax")
    with pytest.raises(DomainError, match="got loss 'softmax_cross_entropy'.* no ONNX form"):
        MLP([2, 3], loss="softmax_cross_entropy").to_onnx(path)
    monkeypatch.setattr(onnx_export, "LARGEST_BYTES", 10)
    with pytest.raises(DomainError, match="got parameters of 36 bytes, wanted at most 10"):
        MLP([2, 3]).to_onnx(path)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingPackageError, match=r"pip install fastmlp\[onnx\]"):
        MLP([2, 3]).to_onnx(path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match="wanted a file"):
        monkeypatch.undo()
        MLP([2, 3]).to_onnx(tmp_path)


def test_a_new_row_needs_no_more_than_its_formula(monkeypatch):
    row = replace(ACTIVATIONS["tanh"], name="softsign", formula="z / (1 + abs(z))")
    monkeypatch.setattr(onnx_export, "ACTIVATIONS", {"softsign": row})
    graph = onnx_export.Graph("float64")
    graph.activation("softsign", "z")
    assert [each.operator for each in graph.nodes] == ["Abs", "Add", "Div"]
