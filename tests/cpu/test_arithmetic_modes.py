"""The same bits also in a thread whose arithmetic another library has changed."""

import platform

import numpy as np
import pytest

from fastmlp import MLP, Adam
from fastmlp_kernels.compile import CPU_FLAGS, part
from fastmlp_kernels.cpu.intrinsics import former_arithmetic, standard_arithmetic

pytestmark = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="the control word is that of x86"
)
STANDARD, STATUS_FLAGS = 0x1F80, 0x3F
FLUSH_TO_ZERO, DENORMALS_ARE_ZERO = 0x8000, 0x40


def _set(word):
    former_arithmetic(word)


def _get():
    former = standard_arithmetic()
    former_arithmetic(former)
    return former


@pytest.fixture
def control_word():
    change, read = part(_set, **CPU_FLAGS), part(_get, **CPU_FLAGS)
    former = read()
    yield change, read
    change(former)


GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(64, 6)).astype(np.float32)
# Gradients and steps of these are subnormal numbers.
Y = (X[:, :1] * 1e-39).astype(np.float32)
START = (GENERATOR.normal(size=65) * 1e-38).astype(np.float32)


def trained(threads):
    model = MLP([6, 8, 1], "tanh", seed=1)
    model.parameters[...] = START
    model.fit(X, Y, epochs=3, batch_size=16, threads=threads)
    model.step(X, Y)
    model.forward(X)
    model.compute_loss(Y)
    model.backward()
    model.apply()
    model.fit(X, Y, epochs=1, optimizer=Adam(1e-3))
    loss, gradients = model.value_and_grad(X, Y)
    return b"".join(
        np.ascontiguousarray(each).tobytes()
        for each in (model.parameters, model.predict(X), gradients.flat, loss)
    )


@pytest.mark.parametrize("threads", [1, 2])
def test_a_changed_mode_changes_no_bit_and_stays_as_it_was(control_word, threads):
    change, read = control_word
    mode = FLUSH_TO_ZERO | DENORMALS_ARE_ZERO
    expected = trained(threads)
    change(STANDARD | mode)
    found = trained(threads)
    left = read()
    change(STANDARD)
    assert found == expected
    assert left & ~STATUS_FLAGS == STANDARD | mode


def test_the_mode_matters(control_word):
    """The test above can fail: NumPy, which changes nothing, flushes these numbers to zero."""
    change, _ = control_word
    change(STANDARD | FLUSH_TO_ZERO | DENORMALS_ARE_ZERO)
    flushed = START * np.float32(0.5)
    change(STANDARD)
    assert not np.array_equal(flushed, START * np.float32(0.5))
