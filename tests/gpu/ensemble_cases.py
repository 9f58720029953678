"""Ensembles on a GPU: each network is what it is alone there, and what it is on the CPU.

Not collected by itself: `test_case_files` runs this file in a process of its own, in Numba's
simulator (which must be chosen before Numba is imported) and, where there is one, on the GPU.
"""

from dataclasses import replace

import numpy as np
import pytest
from numba import cuda

from fastmlp import MLP, SGD, Adam, EarlyStopping, Ensemble, NonFiniteTrainingError
from fastmlp.data import device_arrays
from fastmlp.device import mirrors
from fastmlp.dispatch import planning
from fastmlp.errors import DeviceMemoryError
from fastmlp_kernels.compile import simulated
from fastmlp_kernels.cuda.device import streaming
from fastmlp_kernels.cuda.device.memory import DeviceMemory
from fastmlp_kernels.cuda.on_chip.placement import float_form, place
from fastmlp_kernels.cuda.resident.program import ResidentProgram
from tests.gpu.device import MARKS, TILES

pytestmark = MARKS

RNG = np.random.default_rng(6)
# Not a multiple of the batch size: the last mini-batch is smaller.
X = RNG.normal(size=(7, 2)).astype(np.float32)
Y = np.sin(X[:, :1] * 2).astype(np.float32)
WEIGHTS = np.array([1, 2, 0, 1, 3, 0.5, 1])
CHAIN = ([2, 3, 1], "tanh")
HERE = {"kernel": "cuda.resident", "batch_size": 3}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Have the simulator run few threads a block: it takes a Python thread for each."""
    if not simulated():
        return

    def build(problem, machine):
        placement = place(problem, float_form(problem.dtype, 2), 6, 1 << 20)
        return ResidentProgram(problem, machine, TILES[0], placement, threads=6)

    kernels = [
        replace(each, build=build) if each.name == "cuda.resident" else each
        for each in planning.KERNELS
    ]
    monkeypatch.setattr(planning, "KERNELS", tuple(kernels))


@pytest.fixture
def copies(monkeypatch):
    """Return the shapes of what is copied to the host; no copy is due because time has passed."""
    shapes, to_host = [], DeviceMemory.to_host

    def counted(self, array, out):
        shapes.append(out.shape)
        to_host(self, array, out)

    monkeypatch.setattr(DeviceMemory, "to_host", counted)
    monkeypatch.setattr(mirrors, "BACKUP_SECONDS", 1e9)
    return shapes


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize(
    ("more", "dropout"),
    [({}, 0.0), ({"sample_weight": WEIGHTS, "l2": 0.2}, 0.0), ({}, 0.4)],
    ids=["plain", "weighted", "dropout"],
)
def test_members_are_the_networks_that_they_would_be_alone(copies, members, more, dropout):
    optimizers = [Adam(0.01 * (1 + member)) for member in range(members)]
    given = {"seed": 3, "dropout": dropout}
    ensemble, on_cpu = (Ensemble(CHAIN[0], members, CHAIN[1], **given) for _ in range(2))
    history = ensemble.fit(X, Y, epochs=3, optimizer=optimizers, **HERE, **more)
    assert history.kernel == "cuda.resident" and history.device == "cuda"
    # Parameters and state, when the fit is over.
    assert len(copies) == 2
    expected = on_cpu.fit(X, Y, epochs=3, batch_size=3, optimizer=optimizers, device="cpu", **more)
    close = {"rtol": 1e-4, "atol": 1e-6}
    np.testing.assert_allclose(ensemble.parameters, on_cpu.parameters, **close)
    np.testing.assert_allclose(history.loss, expected.loss, **close)
    np.testing.assert_allclose(history.penalty, expected.penalty, **close)
    model = MLP(*CHAIN, seed=3 + members - 1, dropout=dropout)
    model.fit(X, Y, epochs=3, optimizer=optimizers[-1], **HERE, **more)
    np.testing.assert_array_equal(ensemble[-1].parameters, model.parameters)
    np.testing.assert_array_equal(ensemble[-1]._state.slots, model._state.slots)
    assert ensemble[-1]._state.steps == model._state.steps == 9


def test_what_the_host_writes_and_reads_between_fits_is_seen():
    chain = CHAIN[0], 2, CHAIN[1]
    ensemble, on_cpu = Ensemble(*chain), Ensemble(*chain)
    for each, where in ((ensemble, HERE), (on_cpu, {"device": "cpu", "batch_size": 3})):
        history = each.fit(X, Y, epochs=1, **where, validation_data=(X[:3], Y[:3]))
        each.parameters[:, 0] = 0.5
        each.fit(X, Y, epochs=1, **where)
        assert history.validation_loss.shape == (1, 2)
    np.testing.assert_allclose(ensemble.parameters, on_cpu.parameters, rtol=1e-4, atol=1e-6)
    outputs = ensemble.predict(X, kernel="cuda.resident")
    np.testing.assert_allclose(outputs, ensemble.predict(X, device="cpu"), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batch_size", [3, 7])
def test_networks_that_fail_keep_their_last_good_parameters(batch_size):
    """Of the batch before, or, where only a look at the parameters tells, of the epoch before."""
    more = {"kernel": "cuda.resident", "batch_size": batch_size}
    ensemble, model = Ensemble(CHAIN[0], 3, CHAIN[1]), MLP(*CHAIN, seed=2)
    for each in (ensemble, model):
        each.fit(X, Y, epochs=1, **more)
    before = ensemble.parameters.copy()
    # Of one batch: the weights are finite until they are multiplied by the rate.
    targets = Y if batch_size == 3 else 1e3 * Y
    with pytest.raises(NonFiniteTrainingError, match="members 1;") as caught:
        rates = [0.01, 1e38, 0.01]
        ensemble.fit(X, targets, epochs=2, optimizer=[SGD(rate) for rate in rates], **more)
    assert caught.value.members == (1,)
    assert ensemble.epochs_trained.tolist() == [2, 1, 2]
    batches = -(-7 // batch_size)
    failed = batches if batch_size == 7 else batches + caught.value.batch - 1
    assert ensemble._state.steps.tolist() == [2 * batches, failed, 2 * batches]
    model.fit(X, targets, epochs=1, optimizer=SGD(0.01), **more)
    np.testing.assert_array_equal(ensemble.parameters[2], model.parameters)
    assert np.isfinite(ensemble.parameters).all()
    assert (ensemble.parameters[1] == before[1]).all() == (batch_size == 7)


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("rows", [3, 6])
@pytest.mark.parametrize("more", [{}, {"sample_weight": WEIGHTS, "l2": 0.2}])
def test_streamed_rows_give_the_bits_of_resident_ones(monkeypatch, members, rows, more):
    plain, streamed = (Ensemble(CHAIN[0], members, CHAIN[1]) for _ in range(2))
    expected = plain.fit(X, Y, epochs=2, **HERE, **more)
    monkeypatch.setattr(DeviceMemory, "limit", 1)
    monkeypatch.setattr(streaming, "chunk_rows", lambda *_: rows)
    chunks, seen = streaming.StreamedRows.chunks, []

    def noted(self, order):
        for chunk in chunks(self, order):
            seen.append(chunk.order.shape)
            yield chunk

    monkeypatch.setattr(streaming.StreamedRows, "chunks", noted)
    history = streamed.fit(X, Y, epochs=2, **HERE, **more)
    parts = [rows] * (7 // rows) + [7 % rows]
    assert seen == 2 * [(part,) if members == 1 else (members, part) for part in parts]
    assert streamed.parameters.tobytes() == plain.parameters.tobytes()
    assert streamed._state.slots.tobytes() == plain._state.slots.tobytes()
    np.testing.assert_array_equal(history.loss, expected.loss)
    np.testing.assert_array_equal(history.penalty, expected.penalty)
    assert streamed.epochs_trained.tolist() == [2] * members


def test_a_network_that_fails_in_a_chunk_ends_alone(monkeypatch):
    """In the second of three chunks: the first and the third are those of the others too."""
    rates = [SGD(0.01), SGD(1e38), SGD(0.02)]
    plain, streamed = (Ensemble(CHAIN[0], 3, CHAIN[1]) for _ in range(2))
    errors = []
    for each in (plain, streamed):
        with pytest.raises(NonFiniteTrainingError) as caught:
            each.fit(X, Y, epochs=2, optimizer=rates, **HERE)
        errors.append(str(caught.value))
        monkeypatch.setattr(DeviceMemory, "limit", 1)
        monkeypatch.setattr(streaming, "chunk_rows", lambda *_: 3)
    assert errors[0] == errors[1] and "members 1; the first in batch 2 of 3" in errors[0]
    assert streamed._state.steps.tolist() == plain._state.steps.tolist() == [3, 1, 3]
    assert streamed.parameters.tobytes() == plain.parameters.tobytes()


@pytest.mark.parametrize("restore", [True, False])
def test_networks_stop_early_one_by_one(copies, restore):
    rule = EarlyStopping(1, 0.0, restore_best=restore)
    given = {"epochs": 8, "early_stopping": rule, "validation_data": (X[:3], Y[:3] + 1)}
    # The first one gets worse at once, and the second one is taken aside by a callback.
    optimizers = [SGD(2.0), SGD(0.01), SGD(0.02)]
    stop = lambda event: np.array([False, event.epoch == 3, False])  # noqa: E731
    ensemble = Ensemble(CHAIN[0], 3, CHAIN[1])
    history = ensemble.fit(X, Y, optimizer=optimizers, callbacks=stop, **HERE, **given)
    lengths = [len(each.history) for each in ensemble]
    assert lengths[1] == 3 and len(set(lengths)) == 3 and len(history) == max(lengths)
    for member, optimizer in enumerate(optimizers):
        model = MLP(*CHAIN, seed=member)
        until = (lambda event: event.epoch == 3) if member == 1 else ()
        model.fit(X, Y, optimizer=optimizer, callbacks=until, **HERE, **given)
        found = ensemble[member]
        assert found.parameters.tobytes() == model.parameters.tobytes()
        assert found._state.steps == model._state.steps
        np.testing.assert_array_equal(found.history.loss, model.history.loss)
        np.testing.assert_array_equal(found.history.validation_loss, model.history.validation_loss)
        assert found.history.best_epoch == model.history.best_epoch


def test_a_prediction_larger_than_the_memory_goes_in_pieces(monkeypatch):
    ensemble = Ensemble(CHAIN[0], 3, CHAIN[1])
    whole = ensemble.predict(X, kernel="cuda.layered")
    there = cuda.to_device(X)
    assert ensemble.predict(there).tobytes() == whole.tobytes()
    monkeypatch.setattr(DeviceMemory, "limit", 12 * 3)
    ((_, program),) = next(iter(ensemble._alone._kept.values()))._idle
    before = program.memory.traffic.copy()
    assert ensemble.predict(X, kernel="cuda.layered").tobytes() == whole.tobytes()
    since = program.memory.traffic.since(before)
    # The rows alone: the parameters are there, and have not changed.
    assert since.to_device == 3 and since.to_device_bytes == X.nbytes and since.to_host == 9
    np.testing.assert_allclose(whole, ensemble.predict(X, device="cpu"), rtol=1e-4, atol=1e-6)


def test_arrays_on_the_gpu_are_used_where_they_are():
    there = cuda.to_device(X), cuda.to_device(Y)
    ensemble, plain = (Ensemble(CHAIN[0], 2, CHAIN[1]) for _ in range(2))
    history = ensemble.fit(*there, epochs=1, batch_size=3, validation_data=there)
    assert history.device == "cuda"
    plain.fit(X, Y, epochs=1, batch_size=3, kernel=history.kernel, validation_data=(X, Y))
    assert ensemble.parameters.tobytes() == plain.parameters.tobytes()
    found, expected = ensemble.evaluate(*there), plain.evaluate(X, Y, device="cuda")
    np.testing.assert_array_equal(found.loss, expected.loss)
    np.testing.assert_array_equal(history.validation_loss[-1], found.loss)


def test_weights_metrics_and_a_held_out_part_of_arrays_on_the_gpu():
    there = cuda.to_device(X), cuda.to_device(Y)
    ensemble, plain = (Ensemble(CHAIN[0], 2, CHAIN[1]) for _ in range(2))
    asked = {"metrics": ["mae", "rmse"], "sample_weight": WEIGHTS}
    rest = {"epochs": 1, "batch_size": 2, "validation_split": 0.4, **asked}
    history = ensemble.fit(*there, **rest)
    expected = plain.fit(X, Y, kernel=history.kernel, **rest).values
    assert history.device == "cuda"
    for name, column in history.values.items():
        if name != "seconds":
            np.testing.assert_array_equal(column, expected[name])
    found, on_host = ensemble.evaluate(*there, **asked), plain.evaluate(X, Y, device="cpu", **asked)
    np.testing.assert_allclose(found.loss, on_host.loss, rtol=1e-5)
    for name, numbers in on_host.metrics.items():
        np.testing.assert_allclose(found.metrics[name], numbers, rtol=1e-5)


def test_an_error_of_the_device_is_raised_in_plain_words(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("[CUDA_ERROR_OUT_OF_MEMORY] Call to cuMemAlloc results in that")

    monkeypatch.setattr(device_arrays, "all_within", fail)
    with pytest.raises(DeviceMemoryError, match="X: got"):
        Ensemble(CHAIN[0], 2, CHAIN[1]).predict(cuda.to_device(X))
