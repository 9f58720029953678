"""Single calls: their numbers, what is kept between them, awkward arrays, and threads."""

import pickle
from dataclasses import replace

import numpy as np
import pytest

import fastmlp
from fastmlp import MLP, SGD, Adagrad, Adam, AdamW, RMSprop, optimizer_base, optimizers
from fastmlp.data.admission import admit
from fastmlp.data.arrays import check_finite
from fastmlp.device.machine import detect
from fastmlp.dispatch import planning
from fastmlp.dispatch.planning import ANYWHERE
from fastmlp.errors import DomainError, NonFiniteTrainingError
from fastmlp.state.finite import LARGEST_DOT
from fastmlp.training.steps import STEPS_AHEAD, StepNumbers
from fastmlp_kernels import cpu
from fastmlp_kernels.algebra import LOSSES, OPTIMIZERS, hyper_table
from fastmlp_kernels.problem import Problem

RNG = np.random.default_rng(11)
X = RNG.normal(size=(24, 6)).astype(np.float32)
Y = RNG.normal(size=(24, 3)).astype(np.float32)
LABELS = RNG.integers(0, 3, 24)
ALL_OPTIMIZERS = [
    SGD(0.1, weight_decay=0.01),
    SGD(0.1, momentum=0.9),
    SGD(0.1, momentum=0.9, nesterov=True),
    Adam(0.01, weight_decay=0.1),
    AdamW(0.01),
    RMSprop(0.01),
    Adagrad(0.1),
]
ALL_OPTIMIZERS += [
    each for each in optimizers.by_name().values() if type(each) not in map(type, ALL_OPTIMIZERS)
]


def by_rule(optimizer):
    return optimizer.rule


def table(optimizer, first, count, dtype):
    return hyper_table(OPTIMIZERS[optimizer.rule], optimizer.settings, first, count, dtype)


@pytest.fixture
def tables_made(monkeypatch):
    """Return the number of rows of each table of hyper-parameters that is computed."""
    counts = []

    def counting(rule, settings, first, count, dtype, penalty):
        counts.append(count)
        return hyper_table(rule, settings, first, count, dtype, penalty)

    monkeypatch.setattr(optimizer_base, "hyper_table", counting)
    return counts


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("optimizer", ALL_OPTIMIZERS, ids=by_rule)
def test_the_numbers_of_steps_have_the_bits_of_an_epoch(optimizer, dtype, tables_made):
    count = 3 * STEPS_AHEAD
    numbers = StepNumbers(Problem((1, 1), ("identity",), "squared_error", dtype=dtype))
    rows = np.concatenate([numbers.of(optimizer, k).copy() for k in range(1, count + 1)])
    assert rows.dtype == dtype
    assert rows.tobytes() == table(optimizer, 1, count, dtype).tobytes()
    # 1, 2, 4, ..., 256, 256, ...: computed ahead, a few hundred at a time.
    assert len(tables_made) < 20 and max(tables_made) == STEPS_AHEAD


def test_the_numbers_follow_another_optimizer_and_another_step(tables_made):
    numbers = StepNumbers(Problem((1, 1), ("identity",), "squared_error", dtype="float64"))
    one, other = Adam(0.01), Adam(0.02)
    asked = [(one, 1), (one, 2), (one, 3), (other, 4), (one, 5), (one, 40), (one, 2), (other, 3)]
    for optimizer, step in asked:
        expected = table(optimizer, step, 1, "float64")
        np.testing.assert_array_equal(numbers.of(optimizer, step), expected)
    # Whoever brings another optimizer in every step never pays for more than that step.
    tables_made.clear()
    for step in range(1, 20):
        numbers.of(SGD(0.1 / step), step)
    assert tables_made == [1] * 19
    # An equal one is the same one: `step(X, y, SGD(0.1))` computes ahead as well.
    tables_made.clear()
    for step in range(1, 20):
        numbers.of(SGD(0.5), step)
    assert sum(tables_made) > 19 and len(tables_made) == 5


def test_a_step_is_kept_for_batches_of_its_kind():
    model = MLP([6, 5, 3], loss="softmax_cross_entropy")
    model.step(X, LABELS)
    first = model._step
    model.step(X[:], LABELS, SGD(0.5))
    assert model._step is first
    for changed in (
        lambda: model.step(X[:7], LABELS[:7]),
        lambda: model.step(X[:7], np.eye(3)[LABELS[:7]]),
        lambda: model.step(X[:7], np.eye(3)[LABELS[:7]], Adam()),
    ):
        last = model._step
        changed()
        assert model._step is not last
    last, model.threads = model._step, 1
    model.step(X[:7], np.eye(3)[LABELS[:7]], Adam())
    assert model._step is not last
    assert pickle.loads(pickle.dumps(model))._step is None


def test_steps_of_changing_size_train_as_a_new_model_does():
    mixed, expected = MLP([6, 5, 3]), MLP([6, 5, 3])
    for rows, optimizer in ((24, Adam()), (7, Adam()), (24, Adam()), (24, SGD()), (7, SGD())):
        loss = mixed.step(X[:rows], Y[:rows], optimizer)
        # A copy has kept no step: it makes a new one.
        expected = pickle.loads(pickle.dumps(expected))
        assert loss == expected.step(X[:rows], Y[:rows], optimizer)
        assert mixed.parameters.tobytes() == expected.parameters.tobytes()


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def strided(array):
    wide = np.full((2 * len(array), *(3 * size for size in array.shape[1:])), 7, array.dtype)
    view = wide[(slice(None, None, 2), *(slice(1, None, 3) for _ in array.shape[1:]))]
    view[...] = array
    assert not view.flags.c_contiguous
    return view


def misaligned(array):
    buffer = np.zeros(array.nbytes + 1, np.uint8)
    view = buffer[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    assert not view.flags.aligned
    return view


def reversed_twice(array):
    return array[::-1].copy()[::-1]


AWKWARD = {
    "read-only": read_only,
    "strided": strided,
    "fortran": np.asfortranarray,
    "misaligned": misaligned,
    "backwards": reversed_twice,
    "read-only and misaligned": lambda array: read_only(misaligned(array)),
    "float64": lambda array: array.astype(np.float64),
    "big-endian": lambda array: array.astype(array.dtype.newbyteorder(">")),
    "subclass": lambda array: array.view(np.recarray),
}
TARGETS = {
    "matrix": (Y, "half_squared_error"),
    "whole labels": (LABELS, "softmax_cross_entropy"),
    "float labels": (LABELS.astype(np.float32), "softmax_cross_entropy"),
    "probabilities": (np.eye(3, dtype=np.float32)[LABELS], "softmax_cross_entropy"),
}


def calls(loss, x, y):
    """Return everything that the calls of a model make of a data set, as bytes."""
    model = MLP([6, 5, 3], loss=loss)
    made = [np.array(model.step(x, y, Adam())), model.parameters.copy()]
    history = model.fit(x, y, epochs=2, batch_size=7, optimizer=Adam())
    made += [history.loss, model.parameters.copy(), model.predict(x), model.predict(x[:1])]
    value, gradients = model.value_and_grad(x, y)
    made += [np.array(value), gradients.flat, model.forward(x)]
    made += [np.array(model.compute_loss(y)), model.backward()]
    return [array.tobytes() for array in made]


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("form", AWKWARD)
def test_awkward_arrays_give_the_bits_of_plain_ones(form, kind):
    y, loss = TARGETS[kind]
    given = AWKWARD[form](X), AWKWARD[form](y)
    before = [array.tobytes() for array in given]
    assert calls(loss, *given) == calls(loss, X, y)
    assert [array.tobytes() for array in given] == before


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("form", AWKWARD)
def test_kernels_see_one_kind_of_array(form, kind):
    """Any other one would compile them anew, or be read where it is not allowed to be."""
    y, loss = TARGETS[kind]
    given = AWKWARD[form](X), AWKWARD[form](y)
    for array in admit(*given, (6, 5, 3), LOSSES[loss], X.dtype, ANYWHERE)[0][:2]:
        assert type(array) is np.ndarray and array.dtype is X.dtype
        assert array.flags.c_contiguous and array.flags.aligned and array.flags.writeable


@pytest.mark.parametrize("rows", [1, 3, LARGEST_DOT // 4 + 1])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_finiteness_is_decided_exactly(dtype, rows):
    array = np.ones((rows, 4), dtype)
    check_finite(array, "X")
    # Neither the sum nor the squares of these can be held.
    check_finite(np.full((rows, 4), np.finfo(dtype).max), "X")
    check_finite(-np.full((rows, 4), np.finfo(dtype).max), "X")
    check_finite(np.full((rows, 4), np.finfo(dtype).smallest_subnormal), "X")
    for bad in (np.nan, np.inf, -np.inf):
        for index in (0, rows // 2, rows - 1):
            spoiled = array.copy()
            spoiled[index, 3] = bad
            with pytest.raises(DomainError, match=f"X: got 1 bad value.* index \\({index}, 3\\)"):
                check_finite(spoiled, "X")
    array[0, :2] = np.inf, -np.inf
    with pytest.raises(DomainError, match="2 bad values"):
        check_finite(array, "X")


@pytest.fixture
def cores_asked_for(monkeypatch):
    """Return the most threads of each program that is built."""
    seen = []

    def watching(kernel):
        def build(problem, machine):
            seen.append(machine.cores)
            return kernel.build(problem, machine)

        return replace(kernel, build=build)

    monkeypatch.setattr(planning, "KERNELS", tuple(map(watching, planning.KERNELS)))
    return seen


THREADED = {
    "fit": lambda model, **more: model.fit(X, Y, epochs=1, **more, batch_size=7),
    "predict": lambda model, **more: model.predict(X, **more),
    "evaluate": lambda model, **more: model.evaluate(X, Y, **more),
}
UNTHREADED = {
    "step": lambda model: model.step(X, Y),
    "value_and_grad": lambda model: model.value_and_grad(X, Y),
    "forward": lambda model: model.forward(X),
}


@pytest.mark.parametrize("name", [*THREADED, *UNTHREADED])
def test_threads_reach_the_kernel(name, cores_asked_for):
    call = {**THREADED, **UNTHREADED}[name]
    call(MLP([6, 5, 3]))
    assert set(cores_asked_for) == {detect().cores}
    cores_asked_for.clear()
    model = MLP([6, 5, 3])
    model.threads = 3
    call(model)
    assert set(cores_asked_for) == {3}
    if name in THREADED:
        cores_asked_for.clear()
        call(model, threads=5)
        assert set(cores_asked_for) == {5} and model.threads == 3


def test_validation_runs_on_the_threads_of_its_fit(cores_asked_for):
    validation = (X[:5], Y[:5])
    MLP([6, 5, 3]).fit(X, Y, epochs=1, batch_size=8, threads=2, validation_data=validation)
    assert len(cores_asked_for) == 2 and set(cores_asked_for) == {2}


def test_any_number_of_threads_gives_the_same_bits():
    wide = RNG.normal(size=(300, 40)).astype(np.float32)
    expected = None
    for threads in (None, 1, 2, 3, 8):
        model = MLP([40, 64, 3])
        model.threads = threads
        model.fit(wide, wide[:, :3], epochs=2, batch_size=128, optimizer=Adam())
        model.step(wide, wide[:, :3], Adam())
        results = [model.parameters.tobytes(), model.predict(wide).tobytes()]
        assert expected is None or results == expected
        expected = results


@pytest.mark.parametrize("bad", [0, -1, 1.5, "2", True])
def test_a_bad_number_of_threads_is_refused_everywhere(bad):
    model = MLP([6, 5, 3])
    with pytest.raises(fastmlp.FastMLPError, match="threads: got .* wanted a whole number >= 1"):
        model.threads = bad
    assert model.threads is None
    for call in (*THREADED.values(), fastmlp.explain):
        with pytest.raises(fastmlp.FastMLPError, match="threads: got .* wanted a whole number"):
            call(model, threads=bad)


def test_explain_shows_the_threads(monkeypatch):
    model = MLP([64, 256, 256, 8])
    machine = replace(
        detect(), cores=4, cuda_missing="no GPU", cpu_barrier_seconds=1e-7, cpu_thread_seconds=1e-6
    )
    monkeypatch.setattr(planning, "detect", lambda: machine)
    explanation = fastmlp.explain(model, 256, 25600)
    assert explanation.threads == 4
    assert "threads: 4 of 4; predicted" in str(explanation)
    alone, together = (
        planning.readable_time(cpu.epoch_seconds(explanation.plan.problem, machine, count))
        for count in (1, 4)
    )
    assert f"{alone} on 1, {together} on 4" in str(explanation)
    assert fastmlp.explain(model, 256, 25600, threads=2).threads == 2
    model.threads = 3
    assert fastmlp.explain(model, 256, 25600).threads == 3
    # Too little to share, where a thread costs a second.
    machine = replace(machine, cpu_thread_seconds=1.0)
    small = fastmlp.explain(model, 256)
    assert small.threads == 1 and "threads: 1 of 3" in str(small)
    assert fastmlp.explain(model, 256, kernel="reference").threads == 1


def copies(model):
    return model.parameters.copy(), model._state.slots.copy(), model._state.steps


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize(
    ("rate", "factor"), [(1e37, 1e4), (1.0, 1e30), (1e30, 1e12)], ids=["rate", "targets", "both"]
)
def test_a_step_that_overflows_the_parameters_changes_nothing(dtype, parts, warm, rate, factor):
    if dtype == "float64":
        rate, factor = rate**8, factor**4
    model = MLP([3, 4, 2], "identity", seed=0, dtype=dtype)
    inputs, y = np.ones((5, 3)), np.full((5, 2), -factor)
    if warm:
        model.step(inputs, np.ones((5, 2)), Adam(1e-3))
    before = copies(model)
    with pytest.raises(NonFiniteTrainingError, match="Nothing was changed"):
        for _ in range(3):
            if parts:
                model.forward(inputs)
                model.compute_loss(y)
                model.zero_grad()
                model.backward()
                model.apply(SGD(rate))
            else:
                model.step(inputs, y, SGD(rate))
            before = copies(model)
    for found, expected in zip(copies(model), before, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert np.isfinite(model.parameters).all()
    # Finite, and by then perhaps too large for another step.
    model.parameters = MLP([3, 4, 2], seed=0).parameters
    assert np.isfinite(model.step(inputs, np.ones((5, 2)), Adam(1e-3)))


def test_a_refused_step_keeps_the_state_of_the_other_optimizer():
    model, same = (MLP([3, 4, 2], seed=0) for _ in range(2))
    inputs, y = np.ones((5, 3)), np.ones((5, 2))
    for _ in range(3):
        model.step(inputs, y, Adam(1e-2))
        same.step(inputs, y, Adam(1e-2))
    for bad in (SGD(lambda step: -1.0), SGD(1e38, 0.9)):
        with pytest.raises((DomainError, NonFiniteTrainingError)):
            model.step(inputs, 1e30 * y, bad)
        with pytest.raises((DomainError, NonFiniteTrainingError)):
            model.fit(inputs, 1e30 * y, epochs=1, optimizer=bad)
    model.step(inputs, y, Adam(1e-2))
    same.step(inputs, y, Adam(1e-2))
    np.testing.assert_array_equal(model.parameters, same.parameters)
    assert model._state.steps == 4
