"""No array of another shape than its problem's reaches a kernel, whoever calls the program."""

from dataclasses import replace

import numpy as np
import pytest

from fastmlp_kernels.contract import check_epoch
from fastmlp_kernels.cpu.members import SideBySideProgram
from fastmlp_kernels.cpu.program import FusedProgram
from fastmlp_kernels.problem import Problem
from fastmlp_kernels.reference import ReferenceProgram
from tests.machines import team
from tests.samples import sample

PROBLEM = Problem(
    (5, 7, 3), ("tanh", "identity"), "half_squared_error", "adam", batch_size=8, rows=20
)
DATA = sample(PROBLEM, weighted=True, penalized=True)
ARRAYS = list(vars(DATA))


def shorter(array):
    return array[:-1].copy()


def longer(array):
    return np.concatenate([array, array[-1:]])


def narrower(array):
    return np.ascontiguousarray(array[..., :-1])


def transposed(array):
    return np.asfortranarray(array)


def spread(array):
    """Return the same elements with gaps between them."""
    wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    wide[..., ::2] = array
    return wide[..., ::2]


def deeper(array):
    return array[None]


CHANGES = (shorter, longer, narrower, transposed, spread, deeper)


def cases(names=ARRAYS, data=DATA):
    for name in names:
        for change in CHANGES:
            array = getattr(data, name)
            changed = change(array)
            same = changed.shape == array.shape and changed.strides == array.strides
            # X and y may have more rows than an epoch visits, though as many as each other.
            if not same:
                yield pytest.param(name, change, id=f"{name}-{change.__name__}")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("name", "change"), list(cases()))
def test_an_epoch_refuses_other_shapes_and_changes_nothing(name, change, threads):
    data = DATA.copy()
    setattr(data, name, change(getattr(data, name)))
    before = data.copy()
    program = FusedProgram(PROBLEM, team(threads))
    with pytest.raises(ValueError, match="a kernel was given"):
        program.epoch(*data.arguments())
    for each in ARRAYS:
        assert getattr(data, each).tobytes() == getattr(before, each).tobytes(), each
    # The program goes on with good arrays.
    good, expected = DATA.copy(), DATA.copy()
    program.epoch(*good.arguments())
    FusedProgram(PROBLEM, team(1)).epoch(*expected.arguments())
    assert good.parameters.tobytes() == expected.parameters.tobytes()


SHAPES = [shorter, longer, narrower, deeper]


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("change", SHAPES)
def test_the_other_programs_refuse_other_shapes(name, change):
    data = DATA.copy()
    setattr(data, name, change(getattr(data, name)))
    for refuse in (
        lambda: check_epoch(PROBLEM, *data.arguments()),
        lambda: ReferenceProgram(PROBLEM).epoch(*data.arguments()),
    ):
        with pytest.raises(ValueError, match="a kernel was given"):
            refuse()


def test_networks_side_by_side_refuse_another_number_of_networks():
    problem = replace(PROBLEM, members=3)
    program = SideBySideProgram(problem, team(2))
    X, y = DATA.X, DATA.y
    for members in (2, 4):
        own = {name: np.stack([getattr(DATA, name)] * members) for name in ARRAYS}
        arrays = [own[name] for name in ARRAYS if name not in ("X", "y")]
        with pytest.raises(ValueError, match="a kernel was given"):
            program.epoch(*arrays[:2], X, y, *arrays[2:])


ROWS = PROBLEM.batch_size
X, Y = DATA.X[:ROWS].copy(), DATA.y[:ROWS].copy()
OUT = np.zeros((ROWS, 3), np.float32)
GRADIENT = np.zeros_like(DATA.parameters)
# The arrays of each call, by their place in it.
CALLS = {
    "predict": lambda p, P, x, out: p.predict(P, x, out, True),
    "forward": lambda p, P, x, out: p.forward(P, x, out),
    "value_and_gradient": lambda p, P, x, y, g: p.value_and_gradient(P, x, y, g),
    "loss": lambda p, y, f: p.loss(y, f),
    "backward": lambda p, P, u, g, dx: p.backward(P, u, g, dx),
    "update": lambda p, P, g, s, h: p.update(P, g, s, h),
}
GIVEN = {
    "predict": (DATA.parameters, X, OUT),
    "forward": (DATA.parameters, X, OUT),
    "value_and_gradient": (DATA.parameters, X, Y, GRADIENT),
    "loss": (Y, DATA.factors[:ROWS].copy()),
    "backward": (DATA.parameters, OUT, GRADIENT, X),
    "update": (DATA.parameters, GRADIENT, DATA.state, DATA.hyper[:1].copy()),
}


def ready():
    program = FusedProgram(PROBLEM, team(1))
    program.forward(DATA.parameters, X, np.zeros_like(OUT))
    program.loss(Y)
    return program


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("change", CHANGES)
def test_every_call_refuses_other_shapes(call, change):
    refused = 0
    for place, array in enumerate(GIVEN[call]):
        changed = change(array.copy())
        if changed.shape == array.shape and changed.strides == array.strides:
            continue
        given = [each.copy() for each in GIVEN[call]]
        given[place] = changed
        # Rows may be fewer: then all that belong to them are.
        with pytest.raises(ValueError, match="a kernel was given"):
            CALLS[call](ready(), *given)
        refused += 1
    assert refused
    CALLS[call](ready(), *[each.copy() for each in GIVEN[call]])


def test_more_rows_than_a_batch_are_refused_where_they_are_kept():
    many = np.zeros((ROWS + 1, 5), np.float32)
    with pytest.raises(ValueError, match="9 rows at once"):
        ready().forward(DATA.parameters, many, np.zeros((ROWS + 1, 3), np.float32))
    with pytest.raises(ValueError, match="9 rows at once"):
        y = np.zeros((ROWS + 1, 3), np.float32)
        ready().value_and_gradient(DATA.parameters, many, y, GRADIENT.copy())
