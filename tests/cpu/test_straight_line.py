"""Whole batches in a straight line: the same bits as the loops give, for every kind of call."""

import gc
import subprocess
import sys
import time

import numpy as np
import pytest

import fastmlp
from fastmlp_kernels import shield
from fastmlp_kernels.cpu import straight_line
from fastmlp_kernels.cpu.handle_record import CALLS
from fastmlp_kernels.cpu.program import FusedProgram
from fastmlp_kernels.cpu.tables import at

ROWS, BATCH = 70, 12
# Each leaves a smaller batch at the end, and has a layer wider than a panel or a vector.
NETWORKS = {
    "relu": {"sizes": (5, 40, 3), "activations": ["relu", "identity"]},
    "one output": {"sizes": (33, 17, 1), "activations": ["tanh", "sigmoid"]},
    "softmax": {
        "sizes": (3, 16, 16, 4),
        "activations": ["gelu_tanh", "relu", "identity"],
        "loss": "cross_entropy",
    },
    "deep": {"sizes": (7, 9, 8, 33, 2), "activations": ["relu", "softplus", "relu", "identity"]},
    "dropout": {"sizes": (20, 40, 40, 2), "dropout": 0.3},
    "float64": {"sizes": (6, 20, 5), "dtype": "float64"},
}
OPTIMIZERS = {
    "sgd": fastmlp.SGD(0.05),
    "momentum": fastmlp.SGD(0.05, momentum=0.9),
    "adam": fastmlp.Adam(0.01),
    "adamw": fastmlp.AdamW(0.01, weight_decay=0.1),
    "norm": fastmlp.SGD(0.05, clip_norm=0.3),
    "value": fastmlp.Adam(0.01, clip_value=0.01),
}


@pytest.fixture
def lines(monkeypatch):
    """Straight lines at once: after the first epoch, on the caller's thread; count them."""
    made = []

    class Counted(straight_line.StraightLine):
        def __init__(self, phases, target):
            super().__init__(phases, target)
            made.append(phases)

    monkeypatch.setattr(straight_line, "StraightLine", Counted)
    monkeypatch.setattr(straight_line, "PATIENCE", 0.0)
    monkeypatch.setattr(straight_line, "later", lambda work: work())
    return made


@pytest.fixture
def loops(monkeypatch):
    """Return what runs a function without straight lines."""

    def run(function):
        with monkeypatch.context() as patch:
            patch.setattr(straight_line, "suits", lambda *given: False)
            return function()

    return run


def _data(settings, rows=ROWS):
    rng = np.random.default_rng(3)
    inputs, *_, outputs = settings["sizes"]
    X = rng.normal(size=(rows, inputs))
    labels = settings.get("loss") == "cross_entropy"
    y = rng.integers(0, outputs, size=rows) if labels else rng.random((rows, outputs))
    return X, y


def _bytes(model):
    return b"".join(each.tobytes() for each in (*model.weights, *model.biases))


def _fit(settings, optimizer, kind=fastmlp.MLP, **more):
    X, y = _data(settings)
    model = kind(**settings, seed=1)
    history = model.fit(X, y, epochs=3, batch_size=BATCH, optimizer=optimizer, **more)
    return _bytes(model), history.loss.tobytes()


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("settings", NETWORKS.values(), ids=NETWORKS)
def test_epochs_have_the_same_bits(settings, optimizer, lines, loops):
    wanted = loops(lambda: _fit(settings, optimizer))
    assert not lines
    assert _fit(settings, optimizer) == wanted
    assert len(lines) == 1


@pytest.mark.parametrize(
    "more", [{"l2": 0.1}, {"sample_weight": np.linspace(0.5, 2, ROWS)}], ids=["l2", "weights"]
)
def test_kinds_of_epochs_have_lines_of_their_own(more, lines, loops):
    settings, optimizer = NETWORKS["deep"], OPTIMIZERS["adam"]
    X, y = _data(settings)

    def fits():
        model = fastmlp.MLP(**settings, seed=1)
        for kind in ({}, more, {}):
            model.fit(X, y, epochs=2, batch_size=BATCH, optimizer=optimizer, **kind)
        return _bytes(model)

    wanted = loops(fits)
    assert fits() == wanted
    assert len(lines) == 2


def test_networks_side_by_side_have_the_same_bits(lines, loops):
    settings = NETWORKS["deep"] | {"members": 5}
    optimizer = OPTIMIZERS["adam"]

    def fit():
        return _fit(settings, optimizer, fastmlp.Ensemble)

    assert fit() == loops(fit)
    assert lines


def _handled(settings, optimizer):
    """Return the bytes of everything that a handle says of whole batches and smaller ones."""
    X, y = (np.ascontiguousarray(each) for each in _data(settings))
    model = fastmlp.MLP(**settings, seed=1)
    X = X.astype(model.dtype)
    handle = model.compiled(optimizer=optimizer, batch_size=BATCH, max_steps=100)
    found = []
    weights = np.linspace(0.5, 2, BATCH)
    for start in range(0, ROWS, BATCH):
        part = slice(start, start + BATCH)
        rows = X[part]
        factors = weights[: len(rows)]
        gradient = np.zeros(handle.parameter_count, model.dtype)
        out = np.zeros((len(rows), handle.outputs), model.dtype)
        dX = np.zeros_like(rows)
        found += [handle.step(rows, y[part]), handle.step(rows, y[part], factors)]
        found.append(handle.value_and_grad(rows, y[part], gradient))
        found.append(handle.value_and_grad(rows, y[part], gradient, factors))
        handle.forward(rows, out)
        handle.backward(out * 0.1, gradient)
        handle.backward(out * 0.1, gradient, dX)
        handle.apply(gradient)
        found += [gradient.copy(), out, dX]
    handle.get_parameters(gradient)
    return [np.asarray(each).tobytes() for each in (*found, gradient)]


@pytest.mark.parametrize("optimizer", ["adam", "norm"])
@pytest.mark.parametrize("settings", NETWORKS.values(), ids=NETWORKS)
def test_handles_have_the_same_bits(settings, optimizer, lines, loops):
    wanted = loops(lambda: _handled(settings, OPTIMIZERS[optimizer]))
    assert not lines
    assert _handled(settings, OPTIMIZERS[optimizer]) == wanted
    assert len(lines) == 1
    assert sum(name.startswith("rows") for name in lines[0]) == len(CALLS)


def test_what_skips_zeros_or_takes_several_threads_has_no_line(lines):
    settings = {"sizes": (64, 32, 1)}
    X, y = np.zeros((640, 64)), np.ones((640, 1))
    fastmlp.MLP(**settings).fit(X, y, epochs=3, batch_size=64)
    assert not lines
    X[:] = 1.0
    fastmlp.MLP(**settings).fit(X, y, epochs=3, batch_size=640)
    assert not lines


def test_a_large_network_has_no_line(lines):
    """Its calls would take minutes to compile, and it would gain nothing."""
    settings = {"sizes": (700, 500, 1)}
    X, y = _data(settings)
    model = fastmlp.MLP(**settings)
    model.fit(X, y, epochs=3, batch_size=BATCH, optimizer="sgd", threads=1)
    model.compiled(batch_size=BATCH)
    assert not lines


def test_a_fork_waits_for_a_line(monkeypatch):
    """A child would wait for ever for the compiler's lock."""
    monkeypatch.setattr(straight_line, "PATIENCE", 0.0)
    seen, at_work = [], []
    record = straight_line.phases_of

    def watched(*given):
        at_work.append(dict(shield._at_work))
        seen.append(record(*given))
        return seen[-1]

    monkeypatch.setattr(straight_line, "phases_of", watched)
    _fit(NETWORKS["relu"], OPTIMIZERS["sgd"])
    deadline = time.monotonic() + 60
    while not seen and time.monotonic() < deadline:
        time.sleep(0.001)
    assert len(seen) == len(at_work) == 1 and at_work[0]


def test_a_short_fit_starts_no_compiler(monkeypatch):
    begun = []
    monkeypatch.setattr(straight_line, "later", begun.append)
    _fit(NETWORKS["relu"], OPTIMIZERS["sgd"])
    assert not begun
    monkeypatch.setattr(straight_line, "PATIENCE", 0.0)
    _fit(NETWORKS["relu"], OPTIMIZERS["sgd"])
    assert len(begun) == 1


def test_a_handle_that_was_dropped_gets_no_line(lines, monkeypatch):
    begun = []
    monkeypatch.setattr(straight_line, "later", begun.append)
    kept, _ = (fastmlp.MLP((5, 40, 3)).compiled(batch_size=BATCH) for _ in range(2))
    del _
    gc.collect()
    for work in begun:
        work()
    assert len(begun) == 2 and len(lines) == 1
    assert kept._lines


def test_a_long_fit_goes_on_in_a_straight_line(monkeypatch):
    programs = []
    took = FusedProgram.took
    monkeypatch.setattr(
        FusedProgram, "took", lambda self, s: (programs.append(self), took(self, s))
    )
    monkeypatch.setattr(straight_line, "PATIENCE", 0.001)
    settings = NETWORKS["relu"]
    X, y = _data(settings)
    model = fastmlp.MLP(**settings)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        model.fit(X, y, epochs=5, batch_size=BATCH, optimizer="sgd")
        if programs[-1].words[at.rows_code]:
            break
    words = programs[-1].words
    assert words[at.rows_code] and words[at.units_code] and not words[at.finishing_code]


def test_a_program_may_end_while_a_line_is_written(child_environment):
    program = (
        "import numpy as np, fastmlp\n"
        "from fastmlp_kernels.cpu import straight_line\n"
        "straight_line.PATIENCE = 0.0\n"
        "X = np.random.default_rng(0).normal(size=(64, 100))\n"
        "model = fastmlp.MLP((100, 100, 100, 1))\n"
        "model.fit(X, X[:, :1], epochs=1, batch_size=64)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=child_environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_history_counts_the_epochs_in_a_straight_line(lines):
    settings = NETWORKS["relu"]
    X, y = _data(settings)
    model = fastmlp.MLP(**settings)
    first = model.fit(X, y, epochs=5, batch_size=BATCH, optimizer="sgd")
    second = model.fit(X, y, epochs=5, batch_size=BATCH, optimizer="sgd")
    # After the first epoch there is one.
    assert (first.straight_epochs, second.straight_epochs) == (4, 5)
