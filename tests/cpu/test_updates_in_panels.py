"""Updates of an epoch: in panels, at once, of single rows. The parameters have the same bits."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmlp_kernels.cpu.program import FusedProgram
from fastmlp_kernels.problem import CONTROL_WORDS, STATUS, Problem
from tests.machines import team
from tests.samples import sample

sizes = st.integers(1, 40)
# An optimizer without a state, with one vector of it, and with two.
OPTIMIZERS = (("sgd", "float32"), ("rmsprop", "float64"), ("adam", "float32"))


@st.composite
def problems(draw, batch):
    inputs, hidden, outputs, rows = draw(sizes), draw(sizes), draw(sizes), draw(st.integers(2, 9))
    optimizer, dtype = draw(st.sampled_from(OPTIMIZERS))
    return Problem(
        (inputs, hidden, outputs),
        ("relu", "identity"),
        "half_squared_error",
        optimizer,
        dtype=dtype,
        batch_size=batch,
        rows=rows * batch,
    )


def parameters_after(problem, data, threads, batches=None, penalized=False):
    """Return the parameters and the state after an epoch, whole or batch by batch."""
    steps = problem.batches
    whole = batches is None
    program = FusedProgram(problem if whole else replace(problem, rows=batches), team(threads))
    parameters, state = data.parameters.copy(), data.state.copy()
    count, losses = (steps if whole else 1), np.zeros(steps, problem.dtype)
    squares = np.zeros(count) if penalized else None
    for first in range(0, steps, count):
        rows = slice(first * problem.batch_size, (first + count) * problem.batch_size)
        control, places = np.zeros(CONTROL_WORDS, np.int64), slice(first, first + count)
        program.epoch(
            parameters,
            state,
            data.X,
            data.y,
            data.order[rows].copy(),
            data.hyper[places].copy(),
            losses[places].copy(),
            control,
            None,
            squares,
        )
        assert control[STATUS] == 0
    return parameters, state


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("threads", [1, 3])
@settings(max_examples=25)
@given(data=st.data())
def test_an_epoch_is_its_batches_one_after_another(batch, threads, data):
    problem = data.draw(problems(batch))
    drawn = sample(problem, seed=3)
    whole = parameters_after(problem, drawn, threads)
    alone = parameters_after(problem, drawn, threads, batches=batch)
    assert whole[0].tobytes() == alone[0].tobytes()
    assert whole[1].tobytes() == alone[1].tobytes()
    # The squares of a penalty are summed by the general code, also of single rows.
    general = parameters_after(problem, drawn, 1, penalized=True)
    assert whole[0].tobytes() == general[0].tobytes()
    assert whole[1].tobytes() == general[1].tobytes()
