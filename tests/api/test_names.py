"""Names and keywords of other libraries: accepted where they mean one row, or answered."""

import inspect
import subprocess

import numpy as np
import pytest

import fastmlp
from fastmlp import MLP, SGD, Adam, EarlyStopping, Ensemble, synonyms
from fastmlp.callbacks import MONITORS
from fastmlp.dispatch.planning import DEVICES, check_place
from fastmlp.errors import UnknownKeywordError, UnknownNameError, check_name, look_up
from fastmlp.metrics import METRICS
from fastmlp.optimizers import Optimizer, check_optimizer
from fastmlp_kernels.problem import DTYPES, PRECISIONS, REDUCTIONS
from fastmlp_kernels.registry import KERNELS

TABLES = (fastmlp.ACTIVATIONS, fastmlp.LOSSES, fastmlp.INITIALIZERS)
KNOWN = {
    **{table.kind: table.names for table in TABLES},
    "device": DEVICES,
    "dtype": DTYPES,
    "precision": PRECISIONS,
    "reduction": REDUCTIONS,
    "metric": METRICS,
    "monitor": (*MONITORS, *(f"validation_{name}" for name in METRICS)),
    "kernel": [each.name for each in KERNELS],
}


def every(table):
    return [(kind, name) for kind, names in table.items() for name in names]


@pytest.mark.parametrize(("kind", "name"), every(synonyms.SYNONYMS))
def test_a_synonym_is_a_name_that_we_have(kind, name):
    assert synonyms.normal(name) == name and name not in synonyms.ANSWERS.get(kind, {})
    found = check_name(kind, name, KNOWN[kind])
    assert found in KNOWN[kind] and synonyms.normal(found) != name


@pytest.mark.parametrize(("kind", "name"), every(synonyms.ANSWERS))
def test_an_answer_is_given_to_a_name_that_we_do_not_have(kind, name):
    assert synonyms.normal(name) == name
    with pytest.raises(UnknownNameError) as caught:
        check_name(kind, name, KNOWN[kind])
    assert synonyms.ANSWERS[kind][name] in str(caught.value)


@pytest.mark.parametrize("kind", KNOWN)
def test_names_are_found_without_case_and_punctuation(kind):
    names = list(KNOWN[kind])
    assert len({synonyms.normal(each) for each in names}) == len(names)
    for each in names:
        assert check_name(kind, each, names) == each
        assert check_name(kind, each.upper().replace("_", "-"), names) == each


def test_what_is_stored_is_our_own_name():
    model = MLP([4, 3, 1], "Swish", "mse", reduction="avg", precision="fp32", dtype="double")
    assert (model.activations, model.loss_name) == (("silu", "identity"), "squared_error")
    assert (model.reduction, model.precision, model.dtype) == ("mean", "float32", "float64")
    assert look_up("activations[1]", fastmlp.ACTIVATIONS, "ReLU") is fastmlp.ACTIVATIONS["relu"]
    assert check_place("gpu", None) == ("cuda", None)


def test_synonyms_have_the_numbers_of_their_libraries():
    """PyTorch's, which defines the words: see its documentation of each loss."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(9, 4)), rng.normal(size=(9, 3))
    labels, bits = y.argmax(axis=1), (y > 0).astype(float)
    losses = torch.nn.functional
    cases = {
        "mse": ("identity", y, losses.mse_loss),
        "l1": ("identity", y, losses.l1_loss),
        "smooth_l1": ("identity", 3 * y, losses.smooth_l1_loss),
        "HuberLoss": ("identity", 3 * y, losses.huber_loss),
        "bce": ("sigmoid", bits, losses.binary_cross_entropy),
        "cross_entropy": ("identity", labels, losses.cross_entropy),
    }
    for name, (output, targets, theirs) in cases.items():
        model = MLP([4, 5, 3], ["swish", output], name, dtype="float64")
        expected = theirs(torch.tensor(model.forward(X)), torch.tensor(targets)).item()
        assert model.evaluate(X, targets).loss == pytest.approx(expected, rel=1e-12), name


def test_things_of_other_libraries_are_answered_with_our_names():
    def relu(x):
        return x

    class MSELoss:
        def __repr__(self):
            return "MSELoss()"

    class Device:
        def __repr__(self):
            return "cuda"

    for call, part in (
        (lambda: MLP([4, 1], relu), r"activations: got <function .*; did you mean 'relu'\?"),
        (lambda: MLP([4, 1], [np.tanh]), r"activations\[0\]: got .*; did you mean 'tanh'\?"),
        (lambda: MLP([4, 1], loss=MSELoss()), r"loss: got MSELoss\(\), .*'squared_error'\?"),
        (lambda: MLP([4, 1], loss=MSELoss), "loss: got <class .*'squared_error'"),
        (lambda: check_place(Device(), None), r"device: got cuda, .*; did you mean 'cuda'\?"),
    ):
        with pytest.raises(UnknownNameError, match=part):
            call()


def test_an_optimizer_by_its_name_has_the_default_numbers():
    for name in ("adam", "Adam", "sgd", "AdamW", "RMSprop", "adagrad"):
        assert isinstance(check_optimizer(name), Optimizer)
    assert check_optimizer("adam") == Adam() and check_optimizer("sgd") == SGD()
    X = np.linspace(-1, 1, 40).reshape(10, 4)
    by_name, by_object = MLP([4, 3, 1]), MLP([4, 3, 1])
    by_name.fit(X, X[:, 0], batch_size=5, optimizer="adam")
    by_object.fit(X, X[:, 0], batch_size=5, optimizer=Adam())
    by_name.step(X, X[:, 0], "adam")
    by_object.step(X, X[:, 0], Adam())
    assert by_name.parameters.tobytes() == by_object.parameters.tobytes()


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (lambda: MLP([4, 1], hiden=3), "MLP: got an unknown keyword 'hiden', wanted sizes,"),
        (lambda: MLP([4, 1], sead=3), "did you mean seed=?"),
        (lambda: Ensemble([4, 1], member=3), "Ensemble: got an unknown keyword 'member'"),
        (lambda: MLP([4, 1]).fit([[1.0] * 4], [1.0], epoch=3), "fit: got an unknown keyword"),
        (lambda: MLP([4, 1]).fit([[1.0] * 4], [1.0], epoch=3), "did you mean epochs=?"),
        (lambda: MLP([4, 1]).fit([[1.0] * 4], [1.0], members=3), "keyword of Ensemble(...)"),
        (lambda: MLP([4, 1]).fit([[1.0] * 4], [1.0], nothing_like_it=3), ", progress, verbose"),
        (lambda: Adam(lr=0.1), "Adam: got an unknown keyword 'lr', wanted learning_rate"),
        (lambda: EarlyStopping(patient=3), "did you mean patience=?"),
        (lambda: fastmlp.explain(MLP([4, 1]), batchsize=3), "explain: got an unknown keyword"),
    ],
)
def test_an_unknown_keyword_is_answered(call, part):
    with pytest.raises(UnknownKeywordError) as caught:
        call()
    assert part in str(caught.value) and isinstance(caught.value, TypeError)


def test_the_answers_to_keywords_name_keywords_that_there_are():
    calls = (MLP, Ensemble, MLP.fit, MLP.evaluate, EarlyStopping)
    calls = (*calls, *(type(each) for each in fastmlp.optimizers.by_name().values()))
    ours = {name for call in calls for name in inspect.signature(call).parameters}
    meant = {each for names in synonyms.KEYWORDS.values() for each in names.split()}
    assert meant <= ours and set(synonyms.HOMES) <= ours
    for name in (*synonyms.KEYWORDS, *synonyms.KEYWORD_ANSWERS):
        assert synonyms.normal(name) == name
    for method in ("fit", "evaluate"):
        for name in inspect.signature(getattr(MLP, method)).parameters:
            assert name in {"self", "X", "y", "metric"} or name in synonyms.HOMES


def test_no_answer_sends_to_the_call_that_has_been_made():
    for method in (MLP.fit, Ensemble.fit):
        known = list(inspect.signature(method).parameters)
        for name in {*synonyms.KEYWORDS, *synonyms.KEYWORD_ANSWERS, *synonyms.HOMES} - {*known}:
            hint = synonyms.keyword_hint(name, known) or ""
            assert not hint.endswith("is a keyword of fit"), name
    hint = synonyms.keyword_hint("alpha", ["learning_rate", "decay"])
    assert hint == "did you mean decay=?"
    assert synonyms.keyword_hint("alpha", ["epochs", "l2"]) == "did you mean l2=?"


def test_a_class_keeps_its_signature():
    assert list(inspect.signature(Adam).parameters)[:2] == ["learning_rate", "beta1"]
    assert next(iter(inspect.signature(MLP).parameters)) == "sizes"
    assert MLP.fit.__doc__.startswith("Train for a number of epochs")


def test_the_tables_show_their_rows():
    for table in (*TABLES, fastmlp.OPTIMIZERS):
        assert all(name in repr(table) for name in table.names) and table.kind in repr(table)


LISTED = """
import fastmlp
before = dir(fastmlp)
fastmlp.MLP([2, 1])
assert dir(fastmlp) == before, set(dir(fastmlp)) ^ set(before)
print(*before)
"""


def test_dir_lists_what_is_public_and_nothing_else(child_python, child_environment):
    done = subprocess.run(
        [child_python, "-c", LISTED], capture_output=True, text=True, env=child_environment
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == {*fastmlp.__all__, "sklearn"}
