"""No label writes astray: a rule takes what names no class as the nearest one, on every device.

Labels are checked before a kernel runs and are the model's own copy. The rules hold for themselves
all the same: the memory of arrays on a GPU is the caller's, and a buffer may not be filled yet.
"""

import json
import subprocess
import sys

import numpy as np
import pytest

from fastmlp import MLP
from fastmlp.data.arrays import check_labels
from fastmlp_kernels.algebra import LOSSES
from fastmlp_kernels.problem import DTYPES
from tests.cpu.test_memory import SCRIPT, linux
from tests.machines import HOST
from tests.samples import EVERY_LOSS

LABELLED = [LOSSES[name] for name in EVERY_LOSS if LOSSES[name].label_rule is not None]
CLASSES = 5
# What names no class, and the class that is taken: conversions to integers of 32 and of 64 bits
# overflow, and NaN and infinity have none.
BAD = {
    np.nan: 0,
    np.inf: 4,
    -np.inf: 0,
    -5.0: 0,
    -0.5: 0,
    -(2.0**63): 0,
    5.0: 4,
    1e9: 4,
    2.0**31: 4,
    2.0**40: 4,
    2.0**63: 4,
    3e38: 4,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("label", BAD)
@pytest.mark.parametrize("loss", LABELLED, ids=lambda loss: loss.name)
def test_the_nearest_class_is_taken(loss, label, dtype):
    z = np.random.default_rng(0).normal(0, 2, (1, CLASSES)).astype(dtype)
    found, expected = np.full_like(z, np.nan), np.full_like(z, np.nan)
    value = loss.label_rule(z, np.array([[label]], dtype), 0, found)
    assert value == loss.label_rule(z, np.array([[BAD[label]]], dtype), 0, expected)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", LABELLED, ids=lambda loss: loss.name)
def test_a_label_that_names_a_class_is_taken_at_its_word(loss, dtype):
    for label in range(CLASSES):
        slope = np.zeros((1, CLASSES), dtype)
        loss.label_rule(slope.copy(), np.array([[label]], dtype), 0, slope)
        assert slope.argmin() == label and (slope < 0).sum() == 1


def run(environment, script, *arguments):
    """Return the last line that a process prints: one that writes astray may not live to do so."""
    finished = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**environment, "PYTHONFAULTHANDLER": "", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, (finished.returncode, finished.stderr[-2000:])
    return json.loads(finished.stdout.splitlines()[-1])


COMMON = """
import numpy as np
BAD = np.array([np.nan, np.inf, -np.inf, -5, -(2.0**63), 1e9, 2.0**31, 2.0**40, 2.0**63, 3e38, 40])
def spoil(array, value=None):
    array[...] = np.resize(BAD, array.shape) if value is None else value
def problems(batch_size, rows, sizes=(4, 5, 3)):
    from fastmlp_kernels.problem import DTYPES, Problem
    for loss in ("softmax_cross_entropy", "clipped_softmax_cross_entropy"):
        for dtype in DTYPES:
            yield Problem(sizes, ("tanh", "identity"), loss, "adam", dtype=dtype, labels=True,
                          batch_size=batch_size, rows=rows)
"""

# Each array ends, or begins, at a page that faults.
GUARDED = (
    SCRIPT
    + COMMON
    + """
done = 0
for outputs in (1, 2, 5, 33):
    for problem in problems(13, 40, (7, 9, outputs)):
        data = sample(problem, spare_rows=0, weighted=True)
        for name, array in vars(data).items():
            if array is not None and array.size:
                setattr(data, name, guarded(array))
        spoil(data.y)
        program = build(problem, None, 0)
        program.epoch(*data.arguments())
        assert data.control.tolist() == [0, problem.batches, 0], data.control
        assert np.isfinite(data.losses).all() and np.isfinite(data.parameters).all()
        X, y = guarded(data.X[:13]), guarded(data.y[:13])
        out, gradient = guarded(np.zeros((13, outputs), problem.dtype)), guarded(data.parameters)
        program.forward(data.parameters, X, out)
        assert np.isfinite(program.loss(y))
        assert np.isfinite(program.value_and_gradient(data.parameters, X, y, gradient))
        done += 1
print(json.dumps(done))
"""
)


@linux
@pytest.mark.parametrize("threads", ["1", "3"])
@pytest.mark.parametrize("side", ["after", "before"])
def test_bad_labels_in_a_kernel_stay_inside_every_array(child_environment, side, threads):
    assert run(child_environment, GUARDED, side, HOST[0], threads) == 16


# X and y change while epochs run, where lists of what is not zero in X are written and walked.
CHANGING = (
    SCRIPT
    + COMMON
    + """
import threading
def change(arrays, over):
    generator = np.random.default_rng(0)
    while not over.is_set():
        for array in arrays:
            array[generator.random(array.shape) < 0.5] = 0
            spoil(array, generator.choice(BAD))
done = 0
for problem in problems(105, 315, (64, 64, 5)):
    data = sample(problem, spare_rows=0)
    for name, array in vars(data).items():
        if array is not None and array.size:
            setattr(data, name, guarded(array))
    start = data.parameters.copy()
    program, over = build(problem, None, 3), threading.Event()
    writer = threading.Thread(target=change, args=((data.X, data.y), over))
    writer.start()
    for _ in range(60):
        data.parameters[...] = start
        data.control[...] = 0
        program.epoch(*data.arguments())
        done += 1
    over.set()
    writer.join()
print(json.dumps(done))
"""
)


@linux
@pytest.mark.parametrize("threads", ["1", "3"])
@pytest.mark.parametrize("side", ["after", "before"])
def test_data_that_changes_while_epochs_run_stays_inside_every_array(
    child_environment, side, threads
):
    assert run(child_environment, CHANGING, side, HOST[0], threads) == 240


# As the first steps on a buffer that nothing has filled.
ON_CUDA = (
    COMMON
    + """
import json
from fastmlp_kernels.cuda.layered.program import LayeredProgram
from tests.gpu import fused_cases, resident_cases
from tests.gpu.device import TILES
from tests.samples import sample
build = {
    "layered": lambda problem: LayeredProgram(problem, TILES[0]),
    "fused": lambda problem: fused_cases.build(problem, fused_cases.SIZES[0]),
    "resident": lambda problem: resident_cases.build(problem, resident_cases.SIZES[0]),
}
done = 0
for name, make in build.items():
    for problem in problems(4, 7):
        data = sample(problem, spare_rows=0)
        spoil(data.y)
        program = make(problem)
        held = [program.to_device(each) for each in (data.parameters, data.state, data.X, data.y)]
        program.prepare(*held)
        program.epoch(*held, *data.arguments()[4:])
        assert data.control.tolist() == [0, problem.batches, 0], data.control
        assert np.isfinite(data.losses).all()
        program.to_host(held[0], data.parameters)
        assert np.isfinite(data.parameters).all()
        done += 1
print(json.dumps(done))
"""
)


def test_bad_labels_on_cuda_stay_inside_every_array(child_environment):
    assert run({**child_environment, "NUMBA_ENABLE_CUDASIM": "1"}, ON_CUDA) == 12


FORMS = {
    "float32": lambda labels: labels.astype(np.float32),
    "float64": lambda labels: labels.astype(np.float64),
    "column": lambda labels: labels.astype(np.float32)[:, None],
    "strided": lambda labels: np.repeat(labels.astype(np.float32), 2)[::2],
    "backwards": lambda labels: labels.astype(np.float32)[::-1].copy()[::-1],
    "int64": lambda labels: labels,
    "uint8": lambda labels: labels.astype(np.uint8),
    "other byte order": lambda labels: labels.astype(">f4"),
}
ROWS = 60
LABELS = np.arange(ROWS) % 3
X = np.random.default_rng(0).normal(0, 1, (ROWS, 4)).astype(np.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_labels_are_a_copy(form, dtype):
    given = FORMS[form](LABELS)
    found = check_labels(given.reshape(ROWS), 3, np.dtype(dtype), "y")
    assert not np.shares_memory(found, given)
    assert found.dtype == dtype and found.flags.carray and found.shape == (ROWS, 1)
    np.testing.assert_array_equal(found[:, 0], LABELS)


def fitted(y, **settings):
    model = MLP([4, 8, 3], "tanh", "softmax_cross_entropy", seed=1)
    history = model.fit(X, y, epochs=6, batch_size=7, **settings)
    return model.parameters.tobytes(), [*history.loss, *history.validation_loss]


def test_labels_that_change_in_a_callback_change_nothing():
    y, other = LABELS.astype(np.float32), LABELS.astype(np.float32)

    def spoil(event):
        y[:] = 1e9
        other[:] = np.nan

    expected = fitted(LABELS, validation_data=(X, LABELS))
    assert fitted(y, validation_data=(X, other), callbacks=[spoil]) == expected
    assert y[0] == 1e9 and np.isnan(other[0])


def test_truths_are_labels():
    truths = LABELS > 0
    model, expected = (MLP([4, 8, 2], "tanh", "softmax_cross_entropy", seed=1) for _ in range(2))
    model.fit(X, truths, epochs=2, batch_size=7)
    expected.fit(X, truths.astype(int), epochs=2, batch_size=7)
    assert model.parameters.tobytes() == expected.parameters.tobytes()
    assert model.evaluate(X, truths.tolist()) == expected.evaluate(X, truths.astype(int))


# The whole way from the caller's arrays, which a thread overwrites all the time.
FITS = (
    COMMON
    + """
import json, threading, time
from fastmlp import MLP, FastMLPError
generator = np.random.default_rng(0)
good_X = generator.normal(0, 1, (20_000, 20)).astype(np.float32)
good_y = generator.integers(0, 5, len(good_X)).astype(np.float32)
X, y, over = good_X.copy(), good_y.copy(), threading.Event()
def change():
    # Good for most of the time: bad data is refused before a fit.
    while not over.is_set():
        spoil(y)
        spoil(X[::100])
        y[...] = good_y
        X[...] = good_X
        time.sleep(0.003)
writer = threading.Thread(target=change)
writer.start()
outcomes = {"fitted": 0, "refused": 0}
for seed in range(40):
    model = MLP([20, 16, 5], "relu", "softmax_cross_entropy", seed=seed)
    for call in (model.fit, model.step, model.evaluate, model.value_and_grad):
        try:
            call(X, y)
            outcomes["fitted"] += 1
        except FastMLPError:
            outcomes["refused"] += 1
over.set()
writer.join()
print(json.dumps(outcomes))
"""
)


def test_fits_on_arrays_that_a_thread_overwrites(child_environment):
    outcomes = run(child_environment, FITS)
    assert sum(outcomes.values()) == 160 and outcomes["fitted"] > 20, outcomes
