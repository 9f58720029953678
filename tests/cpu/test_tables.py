"""The tables of a program: what is fixed, where arrays are and what a call sets, told apart."""

import numpy as np
import pytest

from fastmlp_kernels.cpu import tables
from fastmlp_kernels.cpu.program import FusedProgram
from fastmlp_kernels.problem import Problem
from tests.machines import team
from tests.samples import sample

PROBLEM = Problem(
    (5, 9, 3), ("relu", "sigmoid"), "binary_cross_entropy", "adam", batch_size=8, rows=21
)
# Python 3.11 finds those of an object that has more in a dictionary: 0.3 us a prediction.
FASTEST_ATTRIBUTES = 30
GROUPS = {
    "step": (tables.STEP, (tables.STEP_FIXED, tables.STEP_MEMORY, tables.STEP_CALL)),
    "chain": (tables.LAYER, (tables.LAYER_FIXED, tables.LAYER_MEMORY)),
}


def fields(program, name, group):
    """Return the words of a table of a program that belong to a group of its fields."""
    table = getattr(program, name)
    return {field: table[field].tolist() for field in group.names}


def call_everything(program, data):
    """Make every call that a program has, the ones of an epoch with all that may be left out."""
    rows = PROBLEM.batch_size
    X, y = data.X[:rows].copy(), data.y[:rows].copy()
    out, gradient = np.zeros_like(y), np.zeros_like(data.parameters)
    program.prepare(data.parameters, data.state, data.X, data.y, True, True)
    program.epoch(*data.arguments())
    assert data.control.tolist() == [0, PROBLEM.batches, 0]
    program.predict(data.parameters, X, out, True)
    program.forward(data.parameters, X, out)
    program.loss(y, data.factors[:rows].copy())
    program.backward(data.parameters, out, gradient, np.zeros_like(X))
    program.value_and_gradient(data.parameters, X, y, gradient)
    program.update(data.parameters, gradient, data.state, data.hyper[:1].copy())


@pytest.mark.parametrize("name", GROUPS)
def test_groups_of_fields_are_adjacent_words(name):
    """What is specialised on one group finds the others where they were."""
    table, groups = GROUPS[name]
    assert table.names == tuple(field for group in groups for field in group.names)
    assert table.itemsize == sum(group.itemsize for group in groups)
    places = [table.fields[field] for field in table.names]
    assert places == [(np.dtype(np.int64), 8 * k) for k in range(len(places))]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", GROUPS)
def test_no_call_sets_what_is_fixed(name, threads):
    program, data = FusedProgram(PROBLEM, team(threads)), sample(PROBLEM, 0, 3, True, True)
    groups = [each for each in GROUPS[name][1] if each is not tables.STEP_CALL]
    before = [fields(program, name, group) for group in groups]
    called = fields(program, "step", tables.STEP_CALL)
    call_everything(program, data)
    assert [fields(program, name, group) for group in groups] == before
    assert fields(program, "step", tables.STEP_CALL) != called


def test_a_program_has_few_enough_attributes_to_be_fast():
    program, data = FusedProgram(PROBLEM, team(3)), sample(PROBLEM, 0, 3, True, True)
    call_everything(program, data)
    assert len(vars(program)) <= FASTEST_ATTRIBUTES


@pytest.mark.parametrize("name", GROUPS)
def test_fixed_words_are_those_of_any_program_of_a_problem(name):
    """So that one kernel that is specialised on them serves all of these programs."""
    one, other = (FusedProgram(PROBLEM, team(2)) for _ in range(2))
    fixed, memory = GROUPS[name][1][:2]
    assert fields(one, name, fixed) == fields(other, name, fixed)
    apart = fields(one, name, memory), fields(other, name, memory)
    assert all(apart[0][field] != apart[1][field] for field in memory.names)
