"""Data in chunks: the bits of a fit on arrays, and no more memory than a few chunks take."""

import os
import signal
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from fastmlp import MLP, Adam, Checkpoint, Chunks, EarlyStopping, Ensemble, FastMLPError, schedules
from fastmlp.data.admission import admit_chunks
from fastmlp.data.shuffling import Orders, chunked_order
from fastmlp.errors import DomainError, DTypeError, MissingPackageError, ShapeError
from fastmlp.training import chunked_trainer
from tests.api.test_checkpoints import Killed, assert_same_fit, killed_after

RNG = np.random.default_rng(4)
X = RNG.normal(size=(90, 4)).astype(np.float32)
Y = np.sin(X[:, 0]) + 0.3 * RNG.normal(size=90).astype(np.float32)
LABELS = (Y > 0).astype(np.int64)
HELD = X[:20] + 1, np.sin(X[:20, 0])
# Of unequal length, and one with fewer rows than a mini-batch.
PARTS = [slice(0, 40), slice(40, 82), slice(82, 90)]
MODELS = {"one": lambda: MLP([4, 8, 1]), "ensemble": lambda: Ensemble([4, 8, 1], 3)}


def chunks():
    return Chunks([(X[part], Y[part]) for part in PARTS])


def options(**more):
    rate = schedules.CosineDecay(0.05, 40)
    return {"epochs": 4, "batch_size": 16, "optimizer": Adam(rate), "l2": 1e-3, **more}


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("kind", MODELS)
def test_one_chunk_gives_the_bits_of_arrays(kind, shuffle):
    more = {"shuffle": shuffle, "validation_data": HELD, "early_stopping": EarlyStopping(1, 0.3)}
    arrays, chunked = MODELS[kind](), MODELS[kind]()
    for model, data in ((arrays, (X, Y)), (chunked, (Chunks([(X, Y)]),))):
        model.fit(*data, **options(epochs=6, **more))
    assert_same_fit(arrays, chunked)
    assert chunked.history.rows == 90 and chunked.predict(X).shape == arrays.predict(X).shape


def test_class_weights_are_those_of_each_chunk():
    # The last chunk has one class of two.
    order = np.argsort(LABELS, kind="stable")
    parts = [slice(0, 50), slice(50, 90)]
    weights = {0: 0.5, 1: 3.0}
    one, chunked = (MLP([4, 8, 2], loss="softmax_cross_entropy") for _ in range(2))
    data = Chunks([(X[order][each], LABELS[order][each]) for each in parts])
    chunked.fit(data, shuffle=False, class_weight=weights, **options(batch_size=10))
    one.fit(X[order], LABELS[order], shuffle=False, class_weight=weights, **options(batch_size=10))
    assert_same_fit(one, chunked)


def test_batches_end_with_their_chunk_and_schedules_go_on():
    chunked, stepped = MLP([4, 8, 1]), MLP([4, 8, 1])
    optimizer = options()["optimizer"]
    chunked.fit(chunks(), shuffle=False, **options(epochs=2, l2=0))
    means = []
    for _ in range(2):
        losses = []
        for part in PARTS:
            rows, targets = X[part], Y[part]
            for first in range(0, len(rows), 16):
                batch = rows[first : first + 16], targets[first : first + 16]
                losses += [stepped.step(*batch, optimizer)] * len(batch[0])
        means.append(np.mean(losses))
    assert chunked.parameters.tobytes() == stepped.parameters.tobytes()
    assert chunked._state.steps == stepped._state.steps == 2 * 7
    np.testing.assert_allclose(chunked.history.loss, means, rtol=1e-6)
    assert chunked.history.rows == 90 and chunked.epochs_trained == 2


def test_orders_are_those_of_the_seed_and_the_epoch():
    order = chunked_order([7, 8], [3, 3], 20, True)
    assert sorted(order.chunks) == list(range(20)) != order.chunks
    rows = order.rows(5, 30)
    assert (np.sort(rows) == np.arange(30)).all()
    key = np.array([8, 3], dtype=np.uint64)
    generator = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, 5]))
    np.testing.assert_array_equal(rows[1], generator.permutation(30))
    others = chunked_order([7, 8], [4, 4], 20, True), chunked_order([6, 8], [3, 3], 20, True)
    assert all(other.chunks != order.chunks for other in others)
    assert chunked_order([7, 8], [3, 3], 20, False).chunks == list(range(20))
    alone = Orders([7, 8], [3, 3], 30, 1, shuffle=True, threads=1).next()
    np.testing.assert_array_equal(chunked_order([7, 8], [3, 3], 1, True).rows(0, 30), alone)
    np.testing.assert_array_equal(chunked_order([7], [0], 1, False).rows(0, 3), [[0, 1, 2]])


def test_every_epoch_visits_every_chunk_in_its_own_order():
    visited = []

    def load(number):
        visited.append(number)
        return X[PARTS[number % 3]], Y[PARTS[number % 3]]

    MLP([4, 8, 1]).fit(Chunks(load, count=6), **options())
    # The first one is loaded once more where it is not the first in its epoch.
    epochs = [visited[k : k + 6] for k in range(len(visited) - 24, len(visited), 6)]
    assert all(sorted(each) == list(range(6)) for each in epochs)
    assert len({*map(tuple, epochs)}) > 1 and len(visited) - 24 in (0, 1)


@pytest.mark.parametrize("kind", MODELS)
def test_a_killed_fit_goes_on_to_the_same_bits(kind, tmp_path):
    more = {"validation_data": HELD, "early_stopping": EarlyStopping(1, 0.2)}
    whole, resumed = MODELS[kind](), MODELS[kind]()
    whole.fit(chunks(), **options(epochs=7, **more))
    checkpoint = Checkpoint(tmp_path / "fit")
    for stop in (2, 3, 99):
        resumed = MODELS[kind]()
        callbacks = [checkpoint, killed_after(stop)]
        try:
            resumed.fit(chunks(), resume=True, callbacks=callbacks, **options(epochs=7, **more))
        except Killed:
            assert stop < 99
    assert_same_fit(whole, resumed)
    others = [
        Chunks([(X, Y)]),
        Chunks([(X[40:], Y[40:]), (X, Y), (X, Y)]),
        Chunks([(X[part], Y[part] + 1) for part in PARTS]),
    ]
    for other in others:
        with pytest.raises(FastMLPError, match="of a fit with"):
            resumed.fit(other, resume=True, callbacks=checkpoint, **options(epochs=7, **more))


# Chunks of 2 MiB: while one is loaded another is trained on. A chunk is copied once: float64, which
# takes twice as much, is converted instead.
@pytest.mark.parametrize(
    ("lasting", "dtype", "held"), [(True, "f4", 2), (False, "f4", 3), (False, "f8", 4)]
)
def test_memory_holds_two_chunks_and_a_copy(lasting, dtype, held):
    y, model = np.zeros(2**12, np.float32), MLP([128, 1])

    def load(number):
        return np.full((2**12, 128), number, dtype), y

    data = Chunks(load, count=5)
    data.lasting = lasting
    model.fit(data, epochs=1, batch_size=2**12)
    tracemalloc.start()
    model.fit(data, epochs=2, batch_size=2**12)
    most = tracemalloc.get_traced_memory()[1] / 2**21
    tracemalloc.stop()
    assert most < held + 0.5


class Refilled:
    """A sequence whose items are the same arrays, filled anew."""

    def __init__(self):
        self.X, self.y = X[:30].copy(), Y[:30, None].copy()

    def __len__(self):
        return 3

    def __getitem__(self, number):
        part = slice(30 * number, 30 * number + 30)
        self.X[:], self.y[:, 0] = X[part], Y[part]
        return self.X, self.y


@pytest.mark.parametrize("as_function", [True, False])
def test_the_same_arrays_may_be_filled_for_every_chunk(as_function):
    plain, refilled = MLP([4, 8, 1]), MLP([4, 8, 1])
    plain.fit(Chunks.from_arrays(X, Y[:, None], 30), **options())
    made = Refilled()
    refilled.fit(Chunks(made.__getitem__, count=3) if as_function else Chunks(made), **options())
    assert_same_fit(plain, refilled)


def test_only_what_may_be_overwritten_is_copied():
    def admitted(data, y=Y):
        rest = MLP([4, 8, 1])
        found = admit_chunks(data, None, rest.sizes, rest._loss, rest.dtype).first
        return np.may_share_memory(found.X, X), np.may_share_memory(found.y, y)

    held = [(X, Y)]
    assert admitted(Chunks(held)) == admitted(Chunks.from_arrays(X, Y, 90)) == (True, True)
    assert admitted(Chunks(held.__getitem__, count=1)) == (False, False)


@pytest.mark.parametrize("batch_size", [None, 50])
def test_a_small_first_chunk_leaves_the_mini_batches_of_others(batch_size):
    wanted = batch_size or 32
    model, stepped = MLP([4, 8, 1]), MLP([4, 8, 1])
    parts = [slice(0, 3), slice(3, 90)]
    data = Chunks([(X[part], Y[part]) for part in parts])
    model.fit(data, shuffle=False, **options(epochs=1, l2=0, batch_size=batch_size))
    for part in parts:
        rows, targets = X[part], Y[part]
        for first in range(0, len(rows), wanted):
            batch = slice(first, first + wanted)
            stepped.step(rows[batch], targets[batch], options()["optimizer"])
    assert model._state.steps == stepped._state.steps == 1 + -(-87 // wanted)
    assert model.parameters.tobytes() == stepped.parameters.tobytes()


def test_mini_batches_may_be_larger_than_any_chunk():
    models = MLP([4, 8, 1]), MLP([4, 8, 1])
    for model, batch_size in zip(models, (42, 2**70), strict=True):
        model.fit(chunks(), **options(batch_size=batch_size))
    assert_same_fit(*models)
    assert models[1]._state.steps == 4 * 3


@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot send itself Ctrl-C")
@pytest.mark.usefixtures("interrupts_heard")
def test_an_interrupt_does_not_wait_for_a_chunk():
    model = MLP([4, 8, 1])
    begun, release, ended = (threading.Event() for _ in range(3))
    calls = []

    def load(number):
        calls.append(number)
        if len(calls) > 1:
            begun.set()
            os.kill(os.getpid(), signal.SIGINT)
            release.wait(3)
            ended.set()
        return X, Y

    with pytest.raises(KeyboardInterrupt):
        model.fit(Chunks(load, count=3), shuffle=False, **options())
    assert begun.is_set() and not ended.is_set()
    release.set()
    for thread in threading.enumerate():
        if "fastmlp-chunks" in thread.name:
            thread.join()
    assert ended.is_set() and len(calls) == 2
    model.fit(chunks(), **options())
    assert np.isfinite(model.parameters).all()


def test_no_thread_stays_and_none_is_needed(monkeypatch):
    plain, threadless = MLP([4, 8, 1]), MLP([4, 8, 1])
    plain.fit(chunks(), **options())
    assert not [each for each in threading.enumerate() if "chunks" in each.name]

    def submit(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(chunked_trainer.ThreadPoolExecutor, "submit", submit)
    threadless.fit(chunks(), **options())
    assert_same_fit(plain, threadless)


def test_an_error_in_a_chunk_leaves_a_model_that_goes_on():
    model = MLP([4, 8, 1])
    bad = [*[(X[part], Y[part]) for part in PARTS], (X[:, :3], Y)]
    with pytest.raises(ShapeError, match=r"chunk 3 X: got shape \(90, 3\), wanted \(rows, 4\)"):
        model.fit(Chunks(bad), shuffle=False, **options())
    assert model._state.steps == 7 and model.epochs_trained == 0 and len(model.history) == 0
    model.fit(chunks(), **options())
    assert model.epochs_trained == 4 and model._state.steps == 7 + 4 * 7


@pytest.mark.parametrize("kind", MODELS)
def test_a_number_that_is_not_finite_is_found_in_its_batch(kind):
    model = MODELS[kind]()
    rows = X[PARTS[1]].copy()
    rows[20] = 1e30
    data = Chunks([(X[PARTS[0]], Y[PARTS[0]]), (rows, Y[PARTS[1]]), (X[PARTS[2]], Y[PARTS[2]])])
    with pytest.raises(FastMLPError, match=r"in epoch 1.*the largest \|X\| is 1e\+30") as caught:
        model.fit(data, shuffle=False, **options())
    assert (caught.value.epoch, caught.value.batch) == (1, 5)
    assert np.isfinite(model.parameters).all() and not np.any(model.epochs_trained)
    assert np.all(model._state.steps == 4)


def test_what_makes_no_sense_is_refused_before_anything_changes():
    model = MLP([4, 8, 2], loss="softmax_cross_entropy")
    labelled = Chunks([(X, LABELS)])
    shares = np.stack([LABELS, 1 - LABELS], 1).astype(np.float32)
    cases = [
        (DomainError, "y: got ndarray beside Chunks", (labelled, LABELS), {}),
        (DomainError, "sample_weight: got ndarray with", (labelled,), {"sample_weight": Y}),
        (
            DomainError,
            "class_weight: got 'balanced' with",
            (labelled,),
            {"class_weight": "balanced"},
        ),
        (DomainError, "no weight of class 1", (labelled,), {"class_weight": {0: 1.0}}),
        (DTypeError, "chunk 0: got ndarray, wanted a pair", (Chunks([X]),), {}),
        (DomainError, "chunk 0 y: got 90 bad values.*9 ", (Chunks([(X, LABELS + 9)]),), {}),
        (DomainError, "chunk 0 X: got 360 bad values", (Chunks([(X + np.nan, LABELS)]),), {}),
        (DomainError, "batch_size: got 91", (labelled,), {"batch_size": 91}),
    ]
    before = model.parameters.copy()
    for error, message, data, more in cases:
        with pytest.raises(error, match=message):
            model.fit(*data, **{**options(), **more})
    with pytest.raises(DTypeError, match="chunk 1 y: got a matrix of targets, wanted class labels"):
        model.fit(Chunks([(X, LABELS), (X, shares)]), shuffle=False, epochs=1, batch_size=90)
    assert model._state.steps == 1 and (before != model.parameters).any()
    with pytest.raises(DTypeError, match="X: got Chunks"):
        model.evaluate(labelled, LABELS)


def test_chunks_are_checked():
    for error, message, make in (
        (DomainError, "count: got None with a function", lambda: Chunks(print)),
        (DomainError, "count: got 0", lambda: Chunks(print, count=0)),
        (DTypeError, "chunks: got int", lambda: Chunks(3)),
        (ShapeError, "chunks: got 0 of them", lambda: Chunks([])),
        (ShapeError, "chunks: got 1 of them and count=2", lambda: Chunks([(X, Y)], count=2)),
        (ShapeError, "y: got 80 rows, wanted 90", lambda: Chunks.from_arrays(X, Y[:80], 10)),
        (DomainError, "rows: got 0", lambda: Chunks.from_arrays(X, Y, 0)),
        (ShapeError, "files: got none", lambda: Chunks.from_tables([], "y")),
    ):
        with pytest.raises(error, match=message):
            make()
    assert repr(Chunks.from_arrays(X, Y, 40)) == "<Chunks: 3>"


def test_arrays_in_files_are_opened_when_their_turn_comes(tmp_path):
    paths = tmp_path / "X.npy", tmp_path / "y.npy"
    for path, array in zip(paths, (X, Y), strict=True):
        np.save(path, array)
    maps = [np.load(path, mmap_mode="r") for path in paths]
    plain = MLP([4, 8, 1])
    plain.fit(Chunks.from_arrays(X, Y, 40), **options())
    files = Chunks([paths]), Chunks([tuple(maps)])
    for data in (Chunks.from_arrays(*paths, 40), Chunks.from_arrays(*maps, 40)):
        model = MLP([4, 8, 1])
        model.fit(data, **options())
        assert_same_fit(plain, model)
    for data in files:
        found = data.load(0)[0]
        assert type(found) is np.memmap and (found == X).all() and found is not maps[0]


@pytest.mark.parametrize("mode", ["c", "r+"])
def test_what_is_written_to_a_memory_map_is_seen(mode, tmp_path):
    path = tmp_path / "X.npy"
    np.save(path, X)
    written = np.load(path, mmap_mode=mode)
    written[:40] = 2
    for rows in (written, written[3:], written[:, 1:]):
        np.testing.assert_array_equal(Chunks([(rows, Y)]).load(0)[0], rows)


def resident():
    """Return the bytes of this process's memory, and of files that are mapped into it."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    found = dict(line.split(":", 1) for line in text.splitlines() if line.startswith("Rss"))
    return 1024 * sum(int(found[name].split()[0]) for name in ("RssAnon", "RssFile"))


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Return the path of 48 MB of rows, and their targets."""
    path, rows = tmp_path_factory.mktemp("large") / "X.npy", 3 * 2**18
    written = np.lib.format.open_memmap(path, "w+", np.float32, (rows, 16))
    for first in range(0, rows, 2**16):
        written[first : first + 2**16] = RNG.normal(size=16)
    return path, np.zeros(rows, np.float32)


def test_a_memory_map_is_not_copied(large):
    path, y = large
    rows, model = np.load(path, mmap_mode="r"), MLP([16, 1])
    model.fit(rows[:2048], y[:2048], epochs=1, batch_size=2048)
    tracemalloc.start()
    model.fit(rows, y, epochs=1, batch_size=2**14, shuffle=False)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The order of the rows takes a part of that.
    assert most < rows.nbytes / 2


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_memory_stays_small_whatever_the_file(large):
    path, y = large
    rows, model, most = np.load(path, mmap_mode="r"), MLP([16, 1]), []
    model.fit(rows[:2048], y[:2048], epochs=1, batch_size=2048)
    data, before = Chunks.from_arrays(rows, y, 2**16), resident()

    def load(number):
        most.append(resident())
        return data.load(number)

    watched = Chunks(load, count=data.count)
    watched.lasting = True
    model.fit(watched, epochs=2, batch_size=2**14)
    # Chunks of 4 MB, of a file of 48.
    assert max(most) - before < 16 * 2**20 < rows.nbytes / 2


@pytest.fixture
def table():
    pyarrow = pytest.importorskip("pyarrow")
    columns = {f"x{k}": X[:, k] for k in range(3)}
    return pyarrow.table({**columns, "flag": X[:, 3] > 0, "y": Y, "name": ["a"] * 90})


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
def test_tables_in_files(ending, table, tmp_path):
    import pyarrow
    import pyarrow.parquet

    path, names = tmp_path / f"table{ending}", ["x0", "x1", "x2", "flag"]
    if ending == ".parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=40)
    else:
        with pyarrow.ipc.new_file(str(path), table.schema) as file:
            file.write_table(table, max_chunksize=40)
    data = Chunks.from_tables(path, "y", names)
    assert (data.count, data.columns) == (3, tuple(names))
    rows = np.column_stack([X[:, :3], X[:, 3] > 0]).astype(np.float32)
    plain, model = MLP([4, 8, 1]), MLP([4, 8, 1])
    plain.fit(Chunks.from_arrays(rows, Y, 40), **options())
    model.fit(data, **options())
    assert_same_fit(plain, model)
    assert model.predict(rows).ndim == 1
    with pytest.raises(
        ShapeError, match=r"X: got columns \('x1',\), wanted those of the first fit"
    ):
        model.fit(Chunks.from_tables([path], "y", ["x1"]))
    matrix = Chunks.from_tables([path], ["y", "x0"], ["x1", "x2"])
    assert matrix.load(1)[1].shape == (40, 2)
    with pytest.raises(DTypeError, match=r"got column 'name' of string, wanted numbers.*inputs="):
        Chunks.from_tables(path, "y").load(0)
    with pytest.raises(ShapeError, match="got no column 'z' among"):
        Chunks.from_tables(path, "z")
    with pytest.raises(DomainError, match=r"files: got .*table.csv, wanted names that end in"):
        Chunks.from_tables(tmp_path / "table.csv", "y")


def test_without_pyarrow_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingPackageError, match=r"pip install fastmlp\[parquet\]"):
        Chunks.from_tables("table.parquet", "y")
