"""Models in files: what comes back, what is refused, and what a crash leaves."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import fastmlp
from fastmlp import MLP, SGD, Ensemble, ModelFileError, atomic_writing, load
from fastmlp.files.container import pack, unpack
from fastmlp.files.contents import Contents, describe
from fastmlp.optimizers import by_name
from fastmlp_kernels.algebra import ACTIVATIONS, LOSSES
from tests.samples import EVERY_LOSS
from tests.tables import Table

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 4)).astype(np.float32)
Y = np.sin(X[:, :1])


def models():
    return [
        MLP([4, 8, 1]),
        MLP([4, 5, 3], "tanh", "softmax_cross_entropy", seed=2**64 - 1, dtype="float64"),
        Ensemble([4, 8, 1], 3, reduction="batch_mean"),
        Ensemble([4, 8, 1], 1),
    ]


def targets(model):
    return np.arange(60) % 3 if model.sizes[-1] == 3 else Y


def saved(model, folder):
    path = folder / "model.fastmlp"
    model.save(path)
    return load(path)


def assert_same(one, other):
    assert type(one) is type(other)
    assert repr(one) == repr(other)
    mine, theirs = one._state, other._state
    assert mine.parameters.tobytes() == theirs.parameters.tobytes()
    assert mine.slots.tobytes() == theirs.slots.tobytes() and mine.slots.shape == theirs.slots.shape
    assert mine.rule == theirs.rule
    np.testing.assert_array_equal(mine.steps, theirs.steps)
    np.testing.assert_array_equal(mine.epochs, theirs.epochs)
    assert type(mine.steps) is type(theirs.steps)
    assert one.predict(X).tobytes() == other.predict(X).tobytes()
    assert one.predict(X).shape == other.predict(X).shape


@pytest.mark.parametrize("model", models(), ids=repr)
def test_a_loaded_model_goes_on_as_the_saved_one(model, tmp_path):
    assert_same(model, saved(model, tmp_path))
    y = targets(model)
    rest = {"validation_data": (X, y), "batch_size": 16}
    model.fit(X, y, epochs=3, optimizer="adam", early_stopping=True, **rest)
    twin = saved(model, tmp_path)
    assert_same(model, twin)
    for name in ("loss", "seconds", "penalty", "learning_rate", "validation_loss"):
        mine, theirs = getattr(model.history, name), getattr(twin.history, name)
        assert mine.tobytes() == theirs.tobytes() and mine.shape == theirs.shape
    np.testing.assert_array_equal(model.history.best_epoch, twin.history.best_epoch)
    assert repr(model.history) == repr(twin.history)
    for each in (model, twin):
        each.fit(X, y, epochs=2, optimizer="adam", **rest)
    assert_same(model, twin)


def test_every_optimizer_goes_on(tmp_path):
    momentum = [SGD(momentum=0.9), SGD(momentum=0.9, nesterov=True)]
    for optimizer in (*by_name().values(), *momentum):
        model = MLP([4, 5, 1])
        model.step(X, Y, optimizer)
        twin = saved(model, tmp_path)
        for each in (model, twin):
            each.step(X, Y, optimizer)
        assert_same(model, twin)


def test_every_activation_and_loss_comes_back_by_its_name(tmp_path):
    for activation in ACTIVATIONS.names:
        model = MLP([4, 5, 2], activation)
        assert_same(model, saved(model, tmp_path))
    for loss in EVERY_LOSS:
        last = next(row.name for row in ACTIVATIONS if LOSSES[loss].refusal(row) is None)
        model = MLP([4, 5, 2], ["relu", last], loss)
        assert saved(model, tmp_path).loss_name == loss


def test_vectors_columns_and_special_numbers_come_back(tmp_path):
    names = ["a", 'sha256":"0', "ü", "d"]
    model = MLP([4, 5, 1])
    table = Table(**dict(zip(names, X.T, strict=True)))
    model.fit(table, Y[:, 0], epochs=1)
    model.parameters[0] = -0.0
    twin = saved(model, tmp_path)
    assert_same(model, twin)
    with pytest.raises(fastmlp.ShapeError, match="columns"):
        twin.predict(table[names[::-1]])


def test_a_history_with_an_epoch_that_an_interrupt_cut_short(tmp_path):
    model = MLP([4, 5, 1])
    model.fit(X, Y, epochs=2, validation_data=(X, Y))
    model.history._epochs[-1] = model.history._epochs[-1]._replace(validation=None)
    twin = saved(model, tmp_path)
    np.testing.assert_array_equal(model.history.validation_loss, twin.history.validation_loss)


def small_file():
    model = MLP([1, 1])
    model.step(X[:, :1], Y, "adam")
    header, arrays = describe(Contents(model.template, None, model._state, model.history))
    return {"kind": "MLP", **header}, arrays


def refused(data, tmp_path):
    path = tmp_path / "damaged"
    path.write_bytes(data)
    with pytest.raises(ModelFileError) as caught:
        load(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_every_truncation_and_every_flipped_bit_is_refused():
    data = pack(*small_file())
    assert unpack(data, "whole")
    for length in range(len(data)):
        with pytest.raises(ModelFileError):
            unpack(data[:length], "cut off")
    for place in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[place] ^= 1 << bit
            with pytest.raises(ModelFileError):
                unpack(bytes(changed), "changed")
    for more in (b"\0", b" ", data):
        with pytest.raises(ModelFileError):
            unpack(data + more, "longer")


def test_the_header_of_another_file_is_refused(tmp_path):
    one, other = (pack(*small_file()) for _ in range(2))
    model = MLP([1, 1], seed=5)
    model.save(tmp_path / "other")
    other = (tmp_path / "other").read_bytes()
    length = 8 + int.from_bytes(one[:8], "little")
    refused(one[:length] + other[8 + int.from_bytes(other[:8], "little") :], tmp_path)


# With a digest that is right: made by somebody, not by accident.
CHANGES = [None, True, -1, 0, 3, 2**63, 2**70, 0.5, "", "x", "relu", [], [[]], [2**62, 2**62], {}]


def test_no_header_leads_to_anything_but_the_one_error(tmp_path):
    header, arrays = small_file()
    header["history"] = {"kernel": "k", "device": "d", "metric": "r2", "rows": 1, "best_epoch": 1}
    assert load(written(tmp_path, header, arrays)).sizes == (1, 1)
    accepted: set[tuple[str, str]] = set()
    for key in (*header, "format"):
        for change in CHANGES:
            if header.get(key, 1) is change:
                continue
            try:
                load(written(tmp_path, {**header, key: change}, arrays))
                accepted.add((key, json.dumps(change)))
            except ModelFileError:
                pass
    for key in header["history"]:
        for change in CHANGES:
            inner = {**header, "history": {**header["history"], key: change}}
            try:
                load(written(tmp_path, inner, arrays))
                accepted.add((f"history.{key}", json.dumps(change)))
            except ModelFileError:
                pass
    # Other numbers and texts that make sense, and what is only for the reader.
    permitted = {"seed", "epochs", "steps", "vector", "columns", "history", "fastmlp", "optimizer"}
    assert {key for key, _ in accepted if not key.startswith("history.")} <= permitted
    assert ("optimizer", '"x"') not in accepted and ("seed", "-1") not in accepted


def written(folder, header, arrays):
    path = folder / "made"
    path.write_bytes(pack(header, arrays))
    return path


def test_arrays_must_fit_the_header(tmp_path):
    header, arrays = small_file()
    wrong = [
        {},
        {"parameters": arrays["parameters"]},
        {**arrays, "parameters": arrays["parameters"].astype(np.float64)},
        {**arrays, "parameters": arrays["parameters"][:1]},
        {**arrays, "parameters": arrays["parameters"][None]},
        {**arrays, "parameters": arrays["parameters"] + 1},
        {**arrays, "optimizer_state": arrays["optimizer_state"][:1]},
    ]
    for each in wrong:
        refused(pack(header, each), tmp_path)
    for name, array in (("int32", np.zeros(2, np.int32)), ("bool", np.zeros(2, np.bool_))):
        assert name in refused(pack(header, {**arrays, "more": array}), tmp_path)


def test_messages_say_what_is_wrong(tmp_path):
    header, arrays = small_file()
    cases = {
        b"": "another kind",
        b"\x80\x04\x95pickle": "another kind",
        pack({**header, "format": 2}, arrays): "got format 2, wanted at most 1.*newer fastmlp",
        pack({**header, "loss": "huberr"}, arrays): "loss: got 'huberr'.*did you mean 'huber'",
        pack({**header, "optimizer": "lion"}, arrays): "optimizer='lion', wanted one of",
        pack({**header, "kind": "Forest"}, arrays): "wanted one of MLP, Ensemble",
        pack({**header, "kind": "Ensemble"}, arrays): "Ensemble with members=None",
    }
    for data, message in cases.items():
        path = tmp_path / "file"
        path.write_bytes(data)
        with pytest.raises(ModelFileError, match=message):
            load(path)
    import safetensors.numpy

    path.write_bytes(safetensors.numpy.save(arrays))
    with pytest.raises(ModelFileError, match="another program"):
        load(path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nowhere")


def test_without_safetensors_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(fastmlp.MissingPackageError, match=r"save: .*pip install fastmlp\[save\]"):
        MLP([4, 5, 1]).save(tmp_path / "model")
    assert not list(tmp_path.iterdir())


OPERATIONS = ("open", "write", "fsync", "fchmod", "close")


@pytest.mark.parametrize("error", [OSError(28, "no space"), KeyboardInterrupt()])
def test_whichever_operation_fails_the_file_is_the_old_one_or_the_new_one(
    error, monkeypatch, tmp_path
):
    path = tmp_path / "model"
    old, new = MLP([4, 5, 1], seed=1), MLP([4, 5, 1], seed=2)
    failed = []
    for k in range(100):
        old.save(path)
        count = [0]

        def failing(name, real, count=count, k=k):
            def call(*arguments, **more):
                count[0] += 1
                if count[0] == k + 1:
                    failed.append(name)
                    raise error
                return real(*arguments, **more)

            return call

        with monkeypatch.context() as patch:
            for name in OPERATIONS:
                patch.setattr(atomic_writing.os, name, failing(name, getattr(os, name)))
            patch.setattr(
                atomic_writing.Path, "replace", failing("replace", atomic_writing.Path.replace)
            )
            try:
                new.save(path)
            except type(error):
                pass
        assert load(path).seed in (1, 2)
        assert [each.name for each in tmp_path.iterdir()] == ["model"]
        if count[0] <= k:
            break
    else:
        pytest.fail("a save took more than a hundred operations")
    # Each of them was met, and the last turn met none.
    assert set(failed) == {*OPERATIONS, "replace"}


def test_the_order_is_write_sync_move_sync(monkeypatch, tmp_path):
    seen = []
    for name in ("write", "fsync"):
        real = getattr(os, name)
        monkeypatch.setattr(
            atomic_writing.os,
            name,
            lambda *a, real=real, name=name: (seen.append(name), real(*a))[1],
        )
    real_replace = atomic_writing.Path.replace
    monkeypatch.setattr(
        atomic_writing.Path, "replace", lambda *a: (seen.append("replace"), real_replace(*a))[1]
    )
    atomic_writing.write_atomically(tmp_path / "file", b"content")
    assert seen == ["write", "fsync", "replace", "fsync"]


KILLED = """
import sys
from fastmlp import MLP
first, second = MLP([50, 400, 1], seed=1), MLP([50, 400, 1], seed=2)
first.save(sys.argv[1])
print("begun", flush=True)
while True:
    second.save(sys.argv[1])
    first.save(sys.argv[1])
"""


def test_a_process_that_is_killed_leaves_a_whole_file(tmp_path):
    path, seeds = tmp_path / "model", set()
    for turn in range(12):
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True
        )
        with child:
            assert child.stdout.readline() == "begun\n"
            time.sleep(0.003 * turn)
            child.send_signal(signal.SIGKILL)
        seeds.add(load(path).seed)
    assert seeds <= {1, 2}


def test_a_link_is_followed_and_permissions_stay(tmp_path):
    place, link = tmp_path / "place", tmp_path / "link"
    MLP([4, 5, 1]).save(place)
    place.chmod(0o640)
    link.symlink_to(place)
    MLP([4, 5, 1], seed=7).save(link)
    assert link.is_symlink() and load(place).seed == 7
    assert place.stat().st_mode & 0o777 == 0o640


def test_a_fit_may_be_saved_while_it_goes_on(tmp_path):
    path, model = tmp_path / "model", MLP([4, 8, 1])

    def keep(event):
        event.model.save(path)
        assert load(path).parameters.tobytes() == event.model.parameters.tobytes()
        assert load(path).epochs_trained == event.epoch

    model.fit(X, Y, epochs=3, optimizer="adam", callbacks=keep)


class Own(MLP):
    """A class that no file can bring back."""


def test_a_class_of_ones_own_is_refused_before_anything_is_written(tmp_path):
    path = tmp_path / "model"
    MLP([4, 5, 1]).save(path)
    for make in (lambda: Own([4, 5, 1]).save(path), lambda: fit_of_own(path)):
        with pytest.raises(fastmlp.DTypeError, match="got a Own, a class of your own"):
            make()
    assert load(path).sizes == (4, 5, 1)


def fit_of_own(path):
    Own([4, 5, 1]).fit(X, Y, epochs=1, callbacks=fastmlp.Checkpoint(path))


def test_only_regular_files_are_written_and_read(tmp_path):
    fifo, folder, loop = tmp_path / "fifo", tmp_path / "folder", tmp_path / "loop"
    os.mkfifo(fifo)
    folder.mkdir()
    (folder / "thesis").write_text("x")
    loop.symlink_to(loop)
    model = MLP([4, 5, 1])
    for path, error in ((fifo, FileExistsError), (folder, FileExistsError), (loop, OSError)):
        with pytest.raises(error):
            model.save(path)
        with pytest.raises(error):
            model.fit(X, Y, epochs=1, callbacks=fastmlp.Checkpoint(path))
    for path in (fifo, folder):
        with pytest.raises(ModelFileError, match="no regular file"):
            load(path)
    with pytest.raises(FileNotFoundError, match="wanted one in a folder that is there"):
        model.save(tmp_path / "nowhere" / "model")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["fifo", "folder", "loop"]
    assert (folder / "thesis").read_text() == "x"
    assert model.history is None
