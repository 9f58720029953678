"""Where a fit's numbers are and what moves: mirrors, arrays on the GPU, streamed rows, errors.

Not collected by itself: `test_case_files` runs this file, as it does `program_cases`.
"""

import functools
import gc
import math
import time

import numpy as np
import pytest
from numba import cuda

from fastmlp import MLP, SGD, Adam, Chunks, EarlyStopping
from fastmlp.data import device_arrays
from fastmlp.data.admission import Data
from fastmlp.device import mirrors
from fastmlp.dispatch.planning import Where
from fastmlp.errors import (
    DeviceError,
    DeviceLostError,
    DeviceMemoryError,
    DomainError,
    NonFiniteTrainingError,
    ShapeError,
)
from fastmlp.optimizer_base import Update
from fastmlp.training.trainer import Trainer
from fastmlp_kernels.compile import simulated
from fastmlp_kernels.cuda.device import checks, failures, memory, streaming
from fastmlp_kernels.cuda.fused import program as fused_program
from fastmlp_kernels.cuda.layered import program as layered
from fastmlp_kernels.cuda.resident import program as resident_program
from fastmlp_kernels.problem import BATCHES, STATUS, STOP
from tests.gpu.device import MARKS, TILES, emulated_device
from tests.samples import epoch_order

pytestmark = MARKS

# They take the class that `small_blocks` replaces: they are to be imported before.
HOLDERS = (fused_program.FusedProgram, resident_program.ResidentProgram)
ROWS = 7
GPU = Where(device="cuda", kernel="cuda.layered")
LAYERED = {"kernel": "cuda.layered"}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Programs and checks in blocks of a few threads; a context that is not lost."""
    program = functools.partial(layered.LayeredProgram, tiles=TILES[0])
    monkeypatch.setattr(layered, "LayeredProgram", program)
    monkeypatch.setattr(checks, "THREADS", 4)
    monkeypatch.setattr(failures.Process, "lost", None)
    # The simulator's epochs take as long as what is waited for.
    monkeypatch.setattr(mirrors, "BACKUP_SECONDS", 1e9)


def data(seed=0, rows=ROWS, dtype="float32"):
    generator = np.random.default_rng(seed)
    X, y = generator.normal(size=(rows, 2)), generator.normal(size=(rows, 2))
    return X.astype(dtype), y.astype(dtype)


def network(**settings):
    return MLP([2, 3, 2], "tanh", **settings)


def trainer(model, X, y, batch_size=4, rule="adam", labels=False, **settings):
    rows = Data(X, y, labels)
    made = Trainer(model._state, model._programs, rows, batch_size, Update(rule), GPU, **settings)
    made.prepare()
    return made


def run(made, epochs=1, optimizer=None, first=0):
    optimizers = (Adam(0.02) if optimizer is None else optimizer,)
    orders = [epoch_order(5, first + k, len(made.data.X))[None] for k in range(epochs)]
    return [made.run(order, optimizers) for order in orders]


def moved(made):
    """Return a function that says what has moved since the last time it was asked."""
    traffic = made.program.memory.traffic
    before = [traffic.copy()]

    def since():
        difference, before[0] = traffic.since(before[0]), traffic.copy()
        return difference

    return since


# Counts and copies ------------------------------------------------------------------------------


def test_every_copy_is_counted_with_its_bytes():
    device, host = memory.DeviceMemory(), np.arange(6, dtype=np.float64)
    held = device.to_device(host)
    assert device.to_device(held) is held
    other = device.empty(6, np.float64)
    device.copy(held, other)
    out = np.zeros(6)
    device.to_host(other, out)
    device.write(out[:3], other[:3])
    assert out.tolist() == host.tolist()
    assert device.traffic == memory.Traffic(2, 72, 1, 48, 1, 48, 2, 96)
    before = device.traffic.copy()
    device.to_host(held, out)
    assert device.traffic.since(before) == memory.Traffic(to_host=1, to_host_bytes=48)


def test_copies_and_checks_go_on_the_stream_of_the_program():
    class Stream(type(cuda.stream())):
        waited = 0

        def synchronize(self):
            self.waited += 1

    stream = Stream() if simulated() else cuda.stream()
    device, host = memory.DeviceMemory(stream), np.arange(6, dtype=np.float32)
    held, out = device.to_device(host), np.zeros_like(host)
    device.copy(held, device.empty(6, np.float32))
    device.to_host(held, out)
    assert device.all_finite(held, held) and out.tobytes() == host.tobytes()
    # A copy to or from the host is done when the call returns.
    assert not simulated() or stream.waited == 3


def test_nothing_is_copied_of_an_empty_array():
    device, empty = memory.DeviceMemory(), np.zeros((0, 5), np.float32)
    held = device.to_device(empty)
    device.to_host(held, empty)
    device.copy(held, held)
    assert held.shape == (0, 5) and device.all_finite(held)
    assert device.traffic == memory.Traffic(allocations=1)


# Checks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_seen_wherever_it_is(monkeypatch, dtype, bad):
    # Fewer threads than elements: each takes several.
    monkeypatch.setattr(checks, "LARGEST_GRID", 2)
    finite = checks.Outside(dtype)
    array = np.linspace(-1e30, 1e30, 19).astype(dtype)
    assert not finite.any([cuda.to_device(array)])
    for place in (0, 7, 18):
        spoilt = array.copy()
        spoilt[place] = bad
        assert finite.any([cuda.to_device(array), cuda.to_device(spoilt)]), place
        assert not finite.any([cuda.to_device(array)])


@pytest.mark.parametrize(
    ("low", "high", "kind", "good", "bad"),
    [
        (0, 2, checks.WHOLE, [0, 1, 2], [-1, 3, 0.5, 1.5, np.nan, np.inf]),
        (0, 1, 0, [0, 0.5, 1], [-1e-7, 1.0000001, np.nan]),
        (0, 1, checks.OPEN_LOW, [1e-9, 1], [0, -0.0, 2]),
        (0, math.inf, checks.OPEN_HIGH, [0, 1e30], [-1, np.inf]),
        (0, 1, checks.OPEN_HIGH, [0], [1]),
    ],
)
def test_bounds_are_those_of_the_host(low, high, kind, good, bad):
    outside = checks.Outside(np.float32, low, high, kind)
    assert not outside.any([cuda.to_device(np.array(good, np.float32))])
    for value in bad:
        array = np.array([*good, value], np.float32)
        assert outside.any([cuda.to_device(array)]), value


def test_rows_of_probabilities_sum_to_one():
    rows = np.array([[0.25, 0.75], [1, 0], [0.5, 0.4999], [0, 1], [0.125, 0.875]], np.float32)
    assert not checks.any_bad_sum(cuda.to_device(rows), 1e-3)
    for value in (0.6, 0.4, np.nan):
        spoilt = rows.copy()
        spoilt[4, 1] = value
        assert checks.any_bad_sum(cuda.to_device(spoilt), 1e-3), value


# Within a fit -----------------------------------------------------------------------------------


def test_nothing_but_losses_comes_back_from_a_lazy_epoch():
    X, y = data()
    eager, lazy = trainer(network(), X, y), trainer(network(), X, y, lazy=True)
    start = lazy.state.parameters.copy()
    seen = moved(lazy)
    losses = [epoch.losses for epoch in run(lazy, 3)]
    during = seen()
    assert (during.to_host, during.to_device, during.allocations) == (0, 0, 0)
    # What `undo` goes back to: parameters and state, an epoch each.
    assert during.on_device == 6
    assert lazy.state.parameters.tobytes() == start.tobytes()
    lazy.fetch()
    assert seen() == memory.Traffic(to_host=2, to_host_bytes=3 * start.nbytes)
    lazy.fetch()
    assert seen() == memory.Traffic()
    expected = [epoch.losses for epoch in run(eager, 3)]
    assert [each.tobytes() for each in losses] == [each.tobytes() for each in expected]
    assert lazy.state.parameters.tobytes() == eager.state.parameters.tobytes()
    assert lazy.state.slots.tobytes() == eager.state.slots.tobytes()
    assert lazy.state.steps == eager.state.steps == 6


def test_a_fit_on_the_gpu_is_that_on_the_host():
    X, y = data()
    there, here = network(), network()
    given = {"epochs": 2, "batch_size": 4, "optimizer": Adam(0.02)}
    history = there.fit(X, y, **given, **LAYERED, validation_data=(X, y))
    expected = here.fit(X, y, **given, device="cpu", validation_data=(X, y))
    assert history.device == "cuda"
    np.testing.assert_allclose(there.parameters, here.parameters, rtol=0, atol=1e-5)
    np.testing.assert_allclose(history.validation_loss, expected.validation_loss, atol=1e-5)


def test_data_in_chunks():
    X, y = data()
    arrays, alone, there, here = (network() for _ in range(4))
    given = {"epochs": 2, "batch_size": 4, "optimizer": Adam(0.02), "validation_data": (X, y)}
    arrays.fit(X, y, **given, **LAYERED)
    history = alone.fit(Chunks([(X, y)]), **given, **LAYERED)
    assert history.device == "cuda"
    assert alone.parameters.tobytes() == arrays.parameters.tobytes()
    there.fit(Chunks.from_arrays(X, y, 5), **given, **LAYERED)
    here.fit(Chunks.from_arrays(X, y, 5), **given, device="cpu")
    np.testing.assert_allclose(there.parameters, here.parameters, rtol=0, atol=1e-5)
    assert there._state.steps == here._state.steps and there.epochs_trained == 2


def test_an_epoch_is_undone_on_the_device():
    X, y = data()
    made = trainer(network(), X, y, lazy=True)
    run(made)
    made.fetch()
    before, steps = made.state.snapshot(), made.state.steps
    run(made, first=1)
    seen = moved(made)
    made.undo()
    assert seen().to_device == 0 and made.state.steps == steps
    made.fetch()
    assert made.state.parameters.tobytes() == before.parameters.tobytes()
    assert made.state.slots.tobytes() == before.slots.tobytes()


def test_parameters_that_overflow_are_seen_on_the_device():
    X, y = data()
    model = network()
    with pytest.raises(NonFiniteTrainingError) as caught:
        model.fit(X, y, epochs=3, batch_size=ROWS, optimizer=SGD(1e38), **LAYERED)
    assert np.isfinite(model.parameters).all() and "not finite" in str(caught.value)
    made = trainer(network(), X, 1e4 * y, ROWS, "sgd", lazy=True)
    before = made.state.parameters.copy()
    epoch = run(made, 1, SGD(3e38))[0]
    assert epoch.finite == [False] and epoch.bad_batches == [0]
    made.undo()
    made.fetch()
    assert made.state.parameters.tobytes() == before.tobytes()


def test_callbacks_and_early_stopping_see_the_present_parameters():
    X, y = data()
    seen, model, mirror = [], network(), trainer(network(), X, y, rule="sgd")

    def callback(event):
        seen.append(model.parameters.tobytes())

    stopping = EarlyStopping(patience=1, tolerance=1e9, monitor="loss", restore_best=True)
    model.fit(
        X, y, epochs=4, batch_size=4, optimizer=SGD(8.0), callbacks=callback,
        early_stopping=stopping, **LAYERED,
    )  # fmt: skip
    expected = []
    for epoch in range(2):
        mirror.run(epoch_order(0, epoch, ROWS)[None], (SGD(8.0),))
        expected.append(mirror.state.parameters.tobytes())
    assert seen == expected
    # The first epoch was the best: at that rate the loss grows.
    assert model.history.best_epoch == 1
    assert model.parameters.tobytes() == expected[0]


def test_an_interrupt_leaves_the_last_parameters_on_the_host(monkeypatch):
    X, y = data()
    model, plain = network(), network()
    plain.fit(X, y, epochs=2, batch_size=4, optimizer=Adam(0.02), **LAYERED)
    record = type(model.history or plain.history).record

    def interrupted(history, *arguments):
        record(history, *arguments)
        if len(history) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(type(plain.history), "record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, y, epochs=4, batch_size=4, optimizer=Adam(0.02), **LAYERED)
    assert model.parameters.tobytes() == plain.parameters.tobytes()
    assert model._state.steps == plain._state.steps


def test_the_host_has_a_copy_that_is_an_epoch_old_where_one_is_due(monkeypatch):
    X, y = data()
    monkeypatch.setattr(mirrors, "BACKUP_SECONDS", 0.0)
    monkeypatch.setattr(mirrors, "BACKUP_SHARE", 1e9)
    made, plain = trainer(network(), X, y, lazy=True), trainer(network(), X, y)
    run(made, 3)
    run(plain, 2)
    assert made.state.parameters.tobytes() == plain.state.parameters.tobytes()


# Between calls ----------------------------------------------------------------------------------


def idle_programs(model):
    """Return the programs that calls have given back, those of the first kind of call first."""
    shelves = model._programs._kept.values()
    return [program for shelf in shelves for _, program in shelf._idle]


def fitted():
    X, y = data()
    model = network()
    model.fit(X, y, epochs=1, batch_size=4, optimizer=Adam(0.02), **LAYERED)
    (program,) = idle_programs(model)
    return model, X, y, program.memory


def test_what_the_device_has_is_not_sent_again():
    model, X, y, device = fitted()
    before = device.traffic.copy()
    model.fit(X, y, epochs=1, batch_size=4, optimizer=Adam(0.02), **LAYERED)
    since = device.traffic.since(before)
    assert since.to_device_bytes == X.nbytes + y.nbytes and since.to_device == 2
    model.predict(X, **LAYERED)
    (other,) = [each for each in idle_programs(model) if each.memory is not device]
    assert other.memory.traffic.to_device_bytes == X.nbytes
    assert other.memory.traffic.to_host == 1


def test_steps_send_their_batch_alone():
    model = network()
    X, y = data()
    model._where = GPU
    model.step(X, y, Adam(0.02))
    device = model._step._program.memory
    before = device.traffic.copy()
    model.step(X, y, Adam(0.02))
    since = device.traffic.since(before)
    # Users hold views of the parameters, so those come back after each step.
    assert since.to_device_bytes == X.nbytes + y.nbytes and since.to_host == 2
    here = network()
    for _ in range(2):
        here.step(X, y, Adam(0.02))
    np.testing.assert_allclose(model.parameters, here.parameters, rtol=0, atol=1e-5)


@pytest.mark.parametrize("value", [0.5, -0.0])
def test_a_write_through_a_view_is_seen(value):
    model, X, y, device = fitted()
    model.biases[0][1] = 0.0
    model.predict(X, **LAYERED)
    mirror = mirrors.mirror_of(model.parameters, device)
    view = model.parameters[:]
    place = 2 * 3 + 1
    view[place] = value
    assert mirror.current(model.parameters, device)[place] == value
    assert np.signbit(mirror.current(model.parameters, device)[place]) == np.signbit(value)
    again = network()
    again.parameters = model.parameters
    assert model.predict(X, **LAYERED).tobytes() == again.predict(X, **LAYERED).tobytes()


def test_the_separate_parts_see_a_write_as_well():
    model, X, y, _ = fitted()
    model._where = GPU
    model.biases[1][:] = 7.0
    fresh = network()
    fresh.parameters = model.parameters
    fresh._where = GPU
    for each in (model, fresh):
        each.forward(X)
        each.compute_loss(y)
        each.backward()
        each.apply(SGD(0.1))
    assert model.parameters.tobytes() == fresh.parameters.tobytes()


def test_a_copy_of_a_model_has_a_mirror_of_its_own():
    model, X, y, device = fitted()
    import copy

    other = copy.deepcopy(model)
    other.fit(X, y, epochs=1, batch_size=4, optimizer=Adam(0.02), **LAYERED)
    first = mirrors.mirror_of(model.parameters, device)
    assert first is not mirrors.mirror_of(other.parameters, device)
    assert first.current(model.parameters, device).copy_to_host().tobytes() == (
        model.parameters.tobytes()
    )


def test_a_mirror_goes_with_its_array():
    model, *_ = fitted()
    key = id(model._state.parameters)
    assert key in mirrors._mirrors
    del model
    gc.collect()
    assert key not in mirrors._mirrors


def test_parameters_ahead_on_the_gpu_are_fetched_for_the_host():
    X, y = data()
    model = network()
    made = trainer(model, X, y, lazy=True)
    run(made)
    there = mirrors.mirror_of(model.parameters, made.program.memory).device.copy_to_host()
    assert there.tobytes() != model.parameters.tobytes()
    model.evaluate(X, y, device="cpu")
    assert there.tobytes() == model.parameters.tobytes()


# Arrays that lie on the GPU ---------------------------------------------------------------------


def test_arrays_on_the_gpu_are_used_where_they_are():
    X, y = data()
    there = cuda.to_device(X), cuda.to_device(y)
    model, plain = network(), network()
    history = model.fit(*there, epochs=2, batch_size=4, optimizer=Adam(0.02), **LAYERED)
    plain.fit(X, y, epochs=2, batch_size=4, optimizer=Adam(0.02), **LAYERED)
    assert history.device == "cuda"
    assert model.parameters.tobytes() == plain.parameters.tobytes()
    (program,) = idle_programs(model)
    sizes = model.parameters.nbytes, model._state.slots.nbytes
    assert program.memory.traffic.to_device_bytes == sum(sizes)
    assert model.predict(there[0]).tobytes() == plain.predict(X, **LAYERED).tobytes()
    assert model.evaluate(*there) == plain.evaluate(X, y, **LAYERED)
    plain._where = GPU
    assert model.step(*there) == plain.step(X, y)
    assert model.value_and_grad(*there)[0] == plain.value_and_grad(X, y)[0]
    weighted = {"sample_weight": np.arange(ROWS), "batch_size": 4, "epochs": 1}
    assert model.fit(*there, **weighted, **LAYERED).device == "cuda"
    # Whichever kernel is the fastest by prediction, it is one of the GPU.
    assert network().fit(*there, batch_size=4, epochs=1).device == "cuda"


@pytest.mark.parametrize("change", ["dtype", "layout", "labels"])
def test_arrays_on_the_gpu_of_another_form_are_converted(change):
    X, _ = data()
    labels = np.arange(ROWS) % 2
    model = network(loss="softmax_cross_entropy")
    expected = network(loss="softmax_cross_entropy")
    given = {
        "dtype": (cuda.to_device(X.astype(np.float64)), labels),
        "layout": (cuda.to_device(np.asfortranarray(X)), labels),
        "labels": (cuda.to_device(X), cuda.to_device(labels)),
    }[change]
    there = device_arrays.matrix_there(given[0], 2, model.dtype, "X")
    assert (there is None) == (change != "labels")
    history = model.fit(*given, batch_size=4, epochs=1, **LAYERED)
    expected.fit(X, labels, batch_size=4, epochs=1, **LAYERED)
    assert history.device == "cuda"
    assert model.parameters.tobytes() == expected.parameters.tobytes()


def test_labels_on_the_gpu_stay_there_and_have_weights_by_class():
    X, _ = data()
    labels = (np.arange(ROWS) % 2).astype(np.float32)
    model = network(loss="softmax_cross_entropy")
    expected = network(loss="softmax_cross_entropy")
    given = {"batch_size": 4, "epochs": 1, "class_weight": "balanced"}
    assert device_arrays.targets_there(
        cuda.to_device(labels), ROWS, 2, model._loss, model.dtype, "y"
    )[1]
    model.fit(cuda.to_device(X), cuda.to_device(labels), **given, **LAYERED)
    expected.fit(X, labels, **given, **LAYERED)
    assert model.parameters.tobytes() == expected.parameters.tobytes()


@pytest.mark.parametrize("column", [0, 1])
def test_a_single_column_of_targets_may_be_flat(column):
    X, y = data()
    model, expected = MLP([2, 1]), MLP([2, 1])
    flat = y[:, column].copy()
    model.fit(cuda.to_device(X), cuda.to_device(flat), epochs=1, batch_size=4, **LAYERED)
    expected.fit(X, flat, epochs=1, batch_size=4, **LAYERED)
    assert model.parameters.tobytes() == expected.parameters.tobytes()


def test_bad_values_on_the_gpu_are_refused_in_the_words_of_the_host():
    X, y = data()
    half = np.full((ROWS, 2), 0.5, np.float32)
    cases = [
        ("half_squared_error", (5, 1), np.nan, X, y, "X", DomainError),
        ("half_squared_error", (3, 1), np.inf, X, y, "y", DomainError),
        ("softmax_cross_entropy", (3, 1), 0.9, X, half, "y", DomainError),
        ("softmax_cross_entropy", (3, 1), 7.0, X, np.zeros((ROWS, 1), "f4"), "y", DomainError),
        ("half_squared_error", None, None, X[:, :1].copy(), y, "X", ShapeError),
        ("half_squared_error", None, None, X, y[:-1], "y", ShapeError),
    ]
    for loss, place, value, inputs, targets, which, error in cases:
        arrays = {"X": inputs.copy(), "y": targets.copy()}
        if place is not None:
            row, column = place
            arrays[which][row, min(column, arrays[which].shape[1] - 1)] = value
        model = network(loss=loss)
        before = model.parameters.copy()
        messages = []
        for there in (True, False):
            given = [cuda.to_device(each) if there else each for each in arrays.values()]
            with pytest.raises(error) as caught:
                model.fit(*given, batch_size=4, epochs=1, device="cuda")
            messages.append(str(caught.value))
        assert messages[0] == messages[1] and messages[0].startswith(which), loss
        assert model.parameters.tobytes() == before.tobytes()


def test_arrays_on_the_gpu_are_copied_for_the_host():
    X, y = data()
    model, expected = network(), network()
    history = model.fit(cuda.to_device(X), cuda.to_device(y), batch_size=4, epochs=1, device="cpu")
    expected.fit(X, y, batch_size=4, epochs=1, device="cpu")
    assert history.device == "cpu"
    assert model.parameters.tobytes() == expected.parameters.tobytes()
    assert model.predict(cuda.to_device(X), kernel="cpu.fused").shape == (ROWS, 2)


# Rows that do not fit ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("available", "row_bytes", "batch", "largest", "rows"),
    [
        (1e9, 100, 32, 64e3, 640),
        (4000, 100, 8, 1e9, 8),
        (0, 100, 8, 1e9, 8),
        (4800, 100, 4, 1e9, 12),
    ],
)
def test_a_chunk_is_of_whole_batches(available, row_bytes, batch, largest, rows):
    assert streaming.chunk_rows(available, row_bytes, batch, largest) == rows


def test_every_row_passes_once_in_the_order_of_the_epoch(monkeypatch):
    X, y = data(rows=23)
    device = memory.DeviceMemory()
    rows = streaming.StreamedRows(device, X, y, 4, largest=8 * 16)
    assert rows.rows == 8
    bring, brought = rows._bring, []

    def noted(*arguments):
        there = bring(*arguments)
        brought.append(len(there[0]))
        return there

    monkeypatch.setattr(rows, "_bring", noted)
    for epoch in range(2):
        order = np.random.default_rng(epoch).permutation(23)
        seen = []
        brought.clear()
        for chunk in rows.chunks(order):
            seen.append(len(chunk.order))
            # The next chunk is on its way while this one is used: it must not lie in its place.
            while len(brought) < min(3, len(seen) + 1):
                time.sleep(0.001)
            part = order[chunk.start : chunk.start + len(chunk.order)]
            assert chunk.batch * 4 == chunk.start
            np.testing.assert_array_equal(chunk.order, np.arange(len(part)))
            np.testing.assert_array_equal(chunk.X.copy_to_host(), X[part])
            np.testing.assert_array_equal(chunk.y.copy_to_host(), y[part])
        assert seen == brought == [8, 8, 7]
    assert device.traffic.to_device_bytes == 2 * (X.nbytes + y.nbytes)


@pytest.mark.parametrize(("rows", "chunk"), [(11, 4), (12, 8), (5, 100)])
@pytest.mark.parametrize("weighted", [False, True])
def test_streamed_rows_give_the_bits_of_resident_ones(monkeypatch, rows, chunk, weighted):
    X, y = data(rows=rows)
    settings = {"weights": np.linspace(0.5, 2, rows), "l2": 0.1} if weighted else {}
    plain = trainer(network(), X, y, **settings)
    monkeypatch.setattr(memory.DeviceMemory, "limit", 1)
    monkeypatch.setattr(streaming, "chunk_rows", lambda *_: chunk)
    streamed = trainer(network(), X, y, **settings)
    assert plain._rows is None and streamed._rows is not None
    for one, other in zip(run(plain), run(streamed), strict=True):
        assert one.losses.tobytes() == other.losses.tobytes()
        assert one.penalties.tobytes() == other.penalties.tobytes()
    assert plain.state.parameters.tobytes() == streamed.state.parameters.tobytes()
    assert plain.state.slots.tobytes() == streamed.state.slots.tobytes()
    assert plain.state.steps == streamed.state.steps


def test_streamed_labels_give_the_bits_of_resident_ones(monkeypatch):
    """Before the first chunk is there a step is prepared, and computes with labels, too."""
    X, _ = data(rows=11)
    labels = (np.arange(11) % 2).astype(np.float32)[:, None]
    settings = {"loss": "softmax_cross_entropy"}
    plain = trainer(network(**settings), X, labels, labels=True)
    monkeypatch.setattr(memory.DeviceMemory, "limit", 1)
    monkeypatch.setattr(streaming, "chunk_rows", lambda *_: 4)
    streamed = trainer(network(**settings), X, labels, labels=True)
    assert plain._rows is None and streamed._rows is not None
    run(plain)
    run(streamed)
    assert plain.state.parameters.tobytes() == streamed.state.parameters.tobytes()


def test_a_bad_batch_of_a_later_chunk_ends_the_epoch(monkeypatch):
    X, y = data(rows=15)
    order = epoch_order(5, 0, 15)
    X[order[9]] = np.nan
    plain = trainer(network(), X, y)
    monkeypatch.setattr(memory.DeviceMemory, "limit", 1)
    monkeypatch.setattr(streaming, "chunk_rows", lambda *_: 8)
    streamed = trainer(network(), X, y)
    for made in (plain, streamed):
        epoch = made.run(order[None], (Adam(0.02),))
        assert epoch.bad_batches == [3] and epoch.finite == [True] and made.state.steps == 2
        assert made._control[0, STATUS] == 3
    assert plain.state.parameters.tobytes() == streamed.state.parameters.tobytes()


def test_a_stop_ends_a_streamed_epoch_after_its_chunk(monkeypatch):
    X, y = data(rows=15)
    monkeypatch.setattr(memory.DeviceMemory, "limit", 1)
    monkeypatch.setattr(streaming, "chunk_rows", lambda *_: 8)
    made = trainer(network(), X, y)
    chunks = made._rows.chunks

    def stopping(order):
        for chunk in chunks(order):
            yield chunk
            if chunk.start == 0:
                # Between two chunks: the next one sees it before its first batch.
                made._control[0, STOP] = 1

    monkeypatch.setattr(made._rows, "chunks", stopping)
    run(made)
    assert made._control[0, BATCHES] == 2 and made.state.steps == 2


def test_what_fails_while_rows_are_gathered_is_raised(monkeypatch):
    X, y = data(rows=15)
    monkeypatch.setattr(memory.DeviceMemory, "limit", 1)
    monkeypatch.setattr(streaming, "chunk_rows", lambda *_: 8)
    made = trainer(network(), X, y)
    monkeypatch.setattr(made._rows, "_bring", failing("CUDA_ERROR_OUT_OF_MEMORY"))
    with pytest.raises(DeviceMemoryError):
        run(made)


def test_a_prediction_larger_than_the_memory_goes_in_pieces(monkeypatch):
    X, _ = data(rows=15)
    model = network()
    whole = model.predict(X, **LAYERED)
    monkeypatch.setattr(memory.DeviceMemory, "limit", 16 * 7)
    (program,) = idle_programs(model)
    before = program.memory.traffic.copy()
    assert model.predict(X, **LAYERED).tobytes() == whole.tobytes()
    assert program.memory.traffic.since(before).to_device == -(-15 // 7)


# Errors -----------------------------------------------------------------------------------------


class DriverError(Exception):
    """As the driver's errors are raised: with their name in the message."""


def failing(name):
    def fail(*_, **__):
        raise DriverError(f"[{name}] Call to cuSomething results in {name}")

    return fail


@pytest.mark.parametrize(("backup", "epochs"), [(0.0, 2), (1e9, 0)])
def test_a_lost_context_leaves_the_last_parameters_of_the_host(monkeypatch, backup, epochs):
    X, y = data()
    monkeypatch.setattr(mirrors, "BACKUP_SECONDS", backup)
    monkeypatch.setattr(mirrors, "BACKUP_SHARE", 1e9)
    model, plain = network(), network()
    given = {"batch_size": 4, "optimizer": Adam(0.02)}
    if epochs:
        plain.fit(X, y, epochs=epochs, **given, **LAYERED)
    epoch = layered.LayeredProgram.func.epoch
    calls = []

    def dying(program, *arguments):
        calls.append(1)
        if len(calls) == 3:
            failing("CUDA_ERROR_ILLEGAL_ADDRESS")()
        epoch(program, *arguments)

    monkeypatch.setattr(layered.LayeredProgram.func, "epoch", dying)
    with pytest.raises(DeviceLostError, match="CUDA_ERROR_ILLEGAL_ADDRESS") as caught:
        model.fit(X, y, epochs=5, **given, **LAYERED)
    assert "fit: got" in str(caught.value) and "context is lost" in str(caught.value)
    assert model.parameters.tobytes() == plain.parameters.tobytes()
    assert model._state.epochs == epochs and model._state.steps == 2 * epochs
    there = cuda.to_device(X)
    # Every later call says the same, and touches no driver.
    monkeypatch.setattr(cuda, "to_device", failing("CUDA_ERROR_SOMETHING"))
    monkeypatch.setattr(cuda, "device_array", failing("CUDA_ERROR_SOMETHING"))
    model._where = GPU
    for call in (
        lambda: model.fit(X, y, **given, **LAYERED),
        lambda: network().fit(X, y, **given, **LAYERED),
        lambda: model.predict(X, **LAYERED),
        lambda: model.evaluate(X, y, **LAYERED),
        lambda: model.step(X, y, Adam(0.02)),
        lambda: model.value_and_grad(X, y),
        lambda: model.forward(X),
        lambda: model.predict(there),
        lambda: model.fit(there, y, **given),
    ):
        with pytest.raises(DeviceLostError) as again:
            call()
        assert str(again.value) == str(caught.value)
    # And the host works on.
    model._where = Where()
    model.fit(X, y, epochs=1, **given, device="cpu")
    plain.fit(X, y, epochs=1, **given, device="cpu")
    assert model.parameters.tobytes() == plain.parameters.tobytes()


@pytest.mark.parametrize("where", ["epoch", "copy"])
def test_a_lost_context_takes_back_a_step(monkeypatch, where):
    X, y = data()
    model = network()
    model._where = GPU
    model.step(X, y, Adam(0.02))
    before, steps = model.parameters.copy(), model._state.steps
    place = {
        "epoch": (layered.LayeredProgram.func, "epoch"),
        # The step is taken, and what it gave does not reach the host.
        "copy": (memory.DeviceMemory, "to_host"),
    }[where]
    monkeypatch.setattr(*place, failing("CUDA_ERROR_LAUNCH_FAILED"))
    with pytest.raises(DeviceLostError, match="step: got"):
        model.step(X, y, Adam(0.02))
    assert model.parameters.tobytes() == before.tobytes() and model._state.steps == steps


def test_no_memory_says_how_much_was_asked_and_leaves_the_model(monkeypatch):
    X, y = data()
    model = network()
    before = model.parameters.copy()
    monkeypatch.setattr(memory, "memory_info", lambda: (2e9, 8e9))
    monkeypatch.setattr(memory.cuda, "device_array", failing("CUDA_ERROR_OUT_OF_MEMORY"))
    with pytest.raises(DeviceMemoryError, match="of 8 GB, wanted what fits: a smaller batch_size"):
        model.fit(X, y, batch_size=4, **LAYERED)
    assert model.parameters.tobytes() == before.tobytes()
    with pytest.raises(failures.OutOfDeviceMemory, match="X: got a need of 4 MB more.* 2 GB free"):
        with memory.device_errors("X"):
            memory.DeviceMemory().empty(1_000_000, np.float32)
    # Not an error after which nothing works.
    monkeypatch.undo()
    model.predict(X, **LAYERED)


def test_an_array_on_another_gpu_is_refused(monkeypatch):
    X, y = data()

    class Elsewhere:
        def __dlpack_device__(self):
            return (2, 1)

    with pytest.raises(DeviceError, match="X: got an array on GPU 1, wanted one on GPU 0"):
        network().fit(Elsewhere(), y, batch_size=4)


if not simulated() and emulated_device() is None:

    @pytest.mark.parametrize("column_major", [False, True])
    def test_arrays_of_pytorch_are_used_without_a_copy(column_major):
        torch = pytest.importorskip("torch")
        X, _ = data()
        tensor = torch.tensor(X, device="cuda")
        if column_major:
            tensor = tensor.T.contiguous().T
        used = device_arrays.matrix_there(tensor, 2, np.dtype("float32"), "X")
        if column_major:
            assert used is None
        else:
            assert used.device_ctypes_pointer.value == tensor.data_ptr()
