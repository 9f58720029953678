"""Checkpoints: a fit that was killed ends with the bits of one that ran through."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import fastmlp
from fastmlp import MLP, Adam, Checkpoint, EarlyStopping, Ensemble, ModelFileError, load, schedules
from fastmlp.training import checkpoints

RNG = np.random.default_rng(3)
X = RNG.normal(size=(96, 4)).astype(np.float32)
Y = np.sin(X[:, :1]) + 0.3 * RNG.normal(size=(96, 1)).astype(np.float32)
HELD = X[:30] + 1, np.sin(X[:30, :1])
RATE = schedules.CosineDecay(0.05, 60)
STOPPING = EarlyStopping(2, 0.2)


class Killed(BaseException):
    """What ends a fit after an epoch, as nothing that a fit expects."""


def killed_after(epoch):
    def callback(event):
        if event.epoch == epoch:
            raise Killed

    return callback


def options(**more):
    return {"batch_size": 16, "optimizer": Adam(RATE), "validation_data": HELD, "l2": 1e-3, **more}


MODELS = {
    "one": lambda: MLP([4, 12, 1]),
    "float64": lambda: MLP([4, 6, 1], "tanh", dtype="float64", seed=9),
    "ensemble": lambda: Ensemble([4, 12, 1], 4),
    "ensemble of one": lambda: Ensemble([4, 12, 1], 1),
}


def assert_same_fit(one, other):
    assert one.parameters.tobytes() == other.parameters.tobytes()
    assert one._state.slots.tobytes() == other._state.slots.tobytes()
    np.testing.assert_array_equal(one.epochs_trained, other.epochs_trained)
    np.testing.assert_array_equal(one._state.steps, other._state.steps)
    for name in ("loss", "penalty", "learning_rate", "validation_loss", "validation_score"):
        assert getattr(one.history, name).tobytes() == getattr(other.history, name).tobytes(), name
    np.testing.assert_array_equal(one.history.best_epoch, other.history.best_epoch)


@pytest.mark.parametrize("stopping", [None, STOPPING, EarlyStopping(1, 0.2, restore_best=False)])
@pytest.mark.parametrize("kind", MODELS)
def test_killed_at_any_epoch_a_fit_ends_with_the_same_bits(kind, stopping, tmp_path):
    epochs, whole = 12, MODELS[kind]()
    whole.fit(X, Y, epochs=epochs, early_stopping=stopping, **options())
    if stopping is not None:
        # Otherwise nothing here is about stopping early.
        assert np.min(whole.epochs_trained) < epochs
    for epoch in range(1, len(whole.history) + 1):
        path = tmp_path / f"after {epoch}"
        rest = options(early_stopping=stopping, epochs=epochs, resume=path)
        saving = Checkpoint(path, every=2)
        first = MODELS[kind]()
        with pytest.raises(Killed):
            first.fit(X, Y, callbacks=[saving, killed_after(epoch)], **rest)
        again = MODELS[kind]()
        again.fit(X, Y, callbacks=saving, **rest)
        assert_same_fit(whole, again)


def test_without_a_file_the_fit_begins_and_with_a_finished_one_it_is_over(tmp_path):
    path = tmp_path / "fit"
    rest = options(epochs=4, callbacks=Checkpoint(path), resume=True)
    one, other = MLP([4, 12, 1]), MLP([4, 12, 1])
    one.fit(X, Y, **rest)
    assert load(path).parameters.tobytes() == one.parameters.tobytes()
    other.fit(X, Y, **rest)
    assert_same_fit(one, other)
    assert one.history.seconds.tobytes() == other.history.seconds.tobytes()


def test_more_epochs_go_on_where_the_fit_ended(tmp_path):
    path, whole, half = tmp_path / "fit", MLP([4, 12, 1]), MLP([4, 12, 1])
    whole.fit(X, Y, epochs=9, early_stopping=EarlyStopping(50), **options())
    rest = options(callbacks=Checkpoint(path, every=3), early_stopping=EarlyStopping(50))
    half.fit(X, Y, epochs=5, **rest)
    again = MLP([4, 12, 1])
    again.fit(X, Y, epochs=9, resume=path, **rest)
    assert_same_fit(whole, again)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, caplog):
    path, whole, model = tmp_path / "fit", MLP([4, 12, 1]), MLP([4, 12, 1])
    whole.fit(X, Y, epochs=6, **options())
    rest = options(epochs=6, resume=path)
    with pytest.raises(Killed):
        model.fit(X, Y, callbacks=[Checkpoint(path), killed_after(4)], **rest)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["fit", "fit.1"]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    model = MLP([4, 12, 1])
    model.fit(X, Y, **rest)
    assert_same_fit(whole, model)
    assert "one from before it is tried" in caplog.text
    (tmp_path / "fit.1").write_bytes(b"")
    with pytest.raises(ModelFileError, match="changed or cut off"):
        MLP([4, 12, 1]).fit(X, Y, **rest)
    path.unlink()
    with pytest.raises(ModelFileError, match="another kind"):
        MLP([4, 12, 1]).fit(X, Y, **rest)


def test_between_two_renames_the_older_one_is_found(tmp_path):
    path, model = tmp_path / "fit", MLP([4, 12, 1])
    model.fit(X, Y, epochs=3, callbacks=Checkpoint(path), **options())
    path.unlink()
    again, whole = MLP([4, 12, 1]), MLP([4, 12, 1])
    again.fit(X, Y, epochs=4, resume=path, **options())
    whole.fit(X, Y, epochs=4, **options())
    assert_same_fit(whole, again)


def test_a_checkpoint_of_another_fit_is_refused_and_nothing_changes(tmp_path):
    path = tmp_path / "fit"
    MLP([4, 12, 1]).fit(X, Y, epochs=2, callbacks=Checkpoint(path), **options())
    cases = [
        (MLP([4, 11, 1]), {}, "model="),
        (MLP([4, 12, 1], seed=1), {}, "model="),
        (MLP([4, 12, 1]), {"batch_size": 8}, "batch_size=16, wanted batch_size=8"),
        (MLP([4, 12, 1]), {"optimizer": "sgd"}, "optimizer="),
        (MLP([4, 12, 1]), {"l2": 0.0}, "l2="),
        (MLP([4, 12, 1]), {"early_stopping": True}, "early_stopping="),
        (Ensemble([4, 12, 1], 2), {}, "wanted a checkpoint of a fit of Ensemble"),
    ]
    for model, more, message in cases:
        before = model.parameters.copy()
        with pytest.raises(ModelFileError, match=message):
            model.fit(X, Y, epochs=3, resume=path, **options(**more))
        assert (model.parameters == before).all() and model.history is None
    MLP([4, 12, 1]).save(path)
    with pytest.raises(ModelFileError, match="wanted a checkpoint"):
        MLP([4, 12, 1]).fit(X, Y, epochs=3, resume=path, **options())


def test_the_optimizers_of_a_fit_that_goes_on_are_those_of_the_same_networks(tmp_path):
    one, other = Adam(0.01), Adam(0.02)
    for first, second in (([one, other, one], [one, other, other]), ([one] * 3, [one, one, other])):
        rest = {"callbacks": Checkpoint(tmp_path / f"{first.count(one)}"), "resume": True}
        Ensemble([4, 3, 1], 3).fit(X, Y, epochs=1, **options(optimizer=first, **rest))
        with pytest.raises(ModelFileError, match="of a fit with optimizer="):
            Ensemble([4, 3, 1], 3).fit(X, Y, epochs=2, **options(optimizer=second, **rest))
        again = Ensemble([4, 3, 1], 3)
        again.fit(X, Y, epochs=2, **options(optimizer=first, **rest))
        assert again.epochs_trained.tolist() == [2] * 3


def test_equal_optimizers_are_written_once(tmp_path):
    """So did earlier versions, and their checkpoints can be resumed."""
    equal, path = [Adam(0.01) for _ in range(3)], tmp_path / "fit"
    Ensemble([4, 3, 1], 3).fit(X, Y, epochs=1, optimizer=equal, callbacks=Checkpoint(path))
    assert path.read_bytes().count(b"Adam(learning_rate") == 1


def test_a_direction_of_early_stopping_is_compared(tmp_path):
    def bias(y, prediction):
        return float(np.mean(prediction - y))

    path = tmp_path / "fit"
    rest = {"metrics": bias, "callbacks": Checkpoint(path), "resume": True}
    up, down = (EarlyStopping(5, 0, "validation_bias", higher_is_better=k) for k in (True, False))
    MLP([4, 3, 1]).fit(X, Y, epochs=1, **options(early_stopping=up, **rest))
    with pytest.raises(ModelFileError, match="higher_is_better=True, wanted higher_is_better=Fals"):
        MLP([4, 3, 1]).fit(X, Y, epochs=2, **options(early_stopping=down, **rest))
    again = MLP([4, 3, 1])
    again.fit(X, Y, epochs=2, **options(early_stopping=up, **rest))
    assert again.epochs_trained == 2


def test_other_data_is_refused(tmp_path):
    path = tmp_path / "fit"
    weights = np.linspace(0.5, 1.5, 96)
    rest = options(callbacks=Checkpoint(path), sample_weight=weights)
    MLP([4, 12, 1]).fit(X, Y, epochs=2, **rest)
    changed, held = X.copy(), HELD[0].copy()
    changed[50, 2] += 1e-6
    held[3, 1] += 1e-6
    cases = [
        ((changed, Y), {}, "other X, y or weights"),
        ((X, Y + 1), {}, "other X, y or weights"),
        ((X, Y), {"sample_weight": 2 * weights}, "other X, y or weights"),
        ((X, Y), {"sample_weight": None}, "other X, y or weights"),
        ((X, Y), {"validation_data": (held, HELD[1])}, "other validation_data"),
    ]
    for data, more, message in cases:
        with pytest.raises(ModelFileError, match=message):
            MLP([4, 12, 1]).fit(*data, epochs=3, resume=path, **{**rest, **more})
    again, whole = MLP([4, 12, 1]), MLP([4, 12, 1])
    again.fit(X.copy(), Y.copy(), epochs=3, resume=path, **rest)
    whole.fit(X, Y, epochs=3, **{**rest, "callbacks": None})
    assert_same_fit(whole, again)


def test_the_newest_checkpoint_is_there_at_every_moment(tmp_path, monkeypatch):
    path, seen = tmp_path / "fit", []
    for name in ("replace", "rename"):
        real = getattr(pathlib.Path, name)

        def moved(*arguments, real=real):
            seen.append(path.exists() and load(path).epochs_trained)
            found = real(*arguments)
            seen.append(path.exists() and load(path).epochs_trained)
            return found

        monkeypatch.setattr(pathlib.Path, name, moved)
    MLP([4, 12, 1]).fit(X, Y, epochs=4, callbacks=Checkpoint(path, keep=3), **options())
    # Before the first one there is none.
    assert seen[0] is False and all(seen[1:]) and seen == sorted(seen)
    ages = [load(each).epochs_trained for each in (path, tmp_path / "fit.1", tmp_path / "fit.2")]
    assert ages == [4, 3, 2]
    assert len(list(tmp_path.iterdir())) == 3


def test_who_keeps_fewer_deletes_the_older_ones(tmp_path):
    path, model = tmp_path / "fit", MLP([4, 12, 1])
    (tmp_path / "fit.7").write_text("of somebody else")
    model.fit(X, Y, epochs=6, callbacks=Checkpoint(path, keep=5), **options())
    assert {each.name for each in tmp_path.iterdir()} == {
        "fit",
        *(f"fit.{k}" for k in (1, 2, 3, 4, 7)),
    }
    model.fit(X, Y, epochs=8, callbacks=Checkpoint(path, keep=2), resume=True, **options())
    assert {each.name for each in tmp_path.iterdir()} == {"fit", "fit.1", "fit.7"}
    assert [load(tmp_path / each).epochs_trained for each in ("fit", "fit.1")] == [8, 7]


def test_a_name_may_be_as_long_as_the_system_allows(tmp_path):
    longest = os.pathconf(tmp_path, "PC_NAME_MAX")
    model, path = MLP([4, 12, 1]), tmp_path / ("é" * (longest // 2 - 1))
    model.fit(X, Y, epochs=3, callbacks=Checkpoint(path), **options())
    assert load(path).epochs_trained == 3 and len(list(tmp_path.iterdir())) == 2
    with pytest.raises(OSError, match="too long"):
        model.fit(X, Y, callbacks=Checkpoint(tmp_path / ("a" * longest)), **options())
    assert model.epochs_trained == 3


def test_where_files_cannot_have_two_names_they_are_moved(tmp_path, monkeypatch):
    def link(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    path = tmp_path / "fit"
    MLP([4, 12, 1]).fit(X, Y, epochs=3, callbacks=Checkpoint(path), **options())
    assert [load(each).epochs_trained for each in (path, tmp_path / "fit.1")] == [3, 2]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_path_is_that_of_the_fits_beginning(tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "one")
    (tmp_path / "one" / "link").symlink_to(tmp_path / "two" / "far")

    def wander(event):
        os.chdir(tmp_path / ("one", "two")[event.epoch % 2])

    checkpoints_ = [Checkpoint("near"), Checkpoint("link"), wander]
    MLP([4, 12, 1]).fit(X, Y, epochs=3, callbacks=checkpoints_, **options())
    names = {each.relative_to(tmp_path).as_posix() for each in tmp_path.rglob("*")}
    assert names == {"one", "two", "one/near", "one/near.1", "one/link", "two/far", "two/far.1"}
    assert (tmp_path / "one" / "link").is_symlink()


def test_a_hopeless_path_is_refused_before_the_first_epoch(tmp_path):
    model = MLP([4, 12, 1])
    with pytest.raises(FileNotFoundError, match="wanted one in a folder that is there"):
        model.fit(X, Y, callbacks=Checkpoint(tmp_path / "nowhere" / "fit"), **options())
    assert model.history is None and model.epochs_trained == 0


def test_functions_as_schedules_are_the_same_in_every_process(tmp_path):
    path, models = tmp_path / "fit", []
    for _ in range(2):
        models.append(MLP([4, 12, 1]))
        # Another object each time, as in another process.
        optimizer = Adam(lambda step: 0.1 / (step + 1))
        rest = {"optimizer": optimizer, "callbacks": Checkpoint(path), "resume": True}
        models[-1].fit(X, Y, epochs=2, **rest)
    assert_same_fit(*models)
    # The second fit found the first one's end: no epoch was run again.
    assert models[0].history.seconds.tobytes() == models[1].history.seconds.tobytes()


def test_arguments_are_checked(tmp_path):
    for wrong in (0, True, 1.5):
        with pytest.raises(fastmlp.FastMLPError, match="every: got"):
            Checkpoint(tmp_path / "fit", every=wrong)
    with pytest.raises(fastmlp.DTypeError, match="path: got 3"):
        Checkpoint(3)
    model = MLP([4, 12, 1])
    with pytest.raises(fastmlp.DomainError, match="resume: got True with 0 Checkpoint"):
        model.fit(X, Y, resume=True)
    with pytest.raises(fastmlp.DTypeError, match="resume: got 7"):
        model.fit(X, Y, resume=7)
    with pytest.raises(fastmlp.DTypeError, match="callbacks: got"):
        model.fit(X, Y, callbacks=Checkpoint)


def test_a_full_disk_does_not_end_the_fit(tmp_path, monkeypatch, caplog):
    path, whole, model = tmp_path / "fit", MLP([4, 12, 1]), MLP([4, 12, 1])
    whole.fit(X, Y, epochs=6, **options())
    real, calls = checkpoints.write, []

    def write(*arguments):
        calls.append(model.epochs_trained)
        if len(calls) in (1, 2):
            raise OSError(28, "No space left on device")
        real(*arguments)

    monkeypatch.setattr(checkpoints, "write", write)
    model.fit(X, Y, epochs=6, callbacks=Checkpoint(path, every=3), **options())
    # Tried again after the next epochs, until it works.
    assert calls == [3, 4, 5, 6]
    assert caplog.text.count("No space left") == 2
    assert_same_fit(whole, model)
    calls.clear()
    with pytest.raises(OSError, match="No space") as caught:
        MLP([4, 12, 1]).fit(X, Y, epochs=1, callbacks=Checkpoint(path), **options())
    assert "the model is trained" in caught.value.__notes__[0]


FIT = """
import sys
import numpy as np
from fastmlp import Adam, Checkpoint, EarlyStopping, Ensemble, MLP
X = np.random.default_rng(0).normal(size=(64, 4)).astype("f4")
y = np.sin(X[:, :1])
model = Ensemble([4, 8, 1], 3) if "many" in sys.argv else MLP([4, 8, 1])
print("begun", flush=True)
model.fit(
    X, y, epochs=40, batch_size=16, optimizer=Adam(0.01), resume=True, threads=1,
    early_stopping=EarlyStopping(15), validation_data=(X[:9] + 1, y[:9]),
    callbacks=[Checkpoint(sys.argv[1]), lambda event: print(event.epoch, flush=True)],
)
print("end", model.parameters.tobytes().hex(), flush=True)
"""


@pytest.mark.parametrize("kind", ["one", "many"])
def test_a_process_that_is_killed_at_any_moment_goes_on(kind, tmp_path):
    kills = int(os.environ.get("FASTMLP_KILLS", "6"))
    last = run_fit(tmp_path / "whole", kind)
    generator, turns = random.Random(0), 0
    while turns < kills:
        path = tmp_path / f"killed {turns}"
        while True:
            # The fit lasts some tenths of a second, and most of the kills are within it.
            end = run_fit(path, kind, generator.random() * 0.08)
            turns += end is None
            # Each run trains an epoch at least, of 40.
            assert turns < kills + 60
            if end is not None:
                break
        assert end == last
        assert load(path).sizes == (4, 8, 1)


def run_fit(path, kind, seconds=None):
    """Return what the fit ended with; None if it was killed so long after its first epoch."""
    command = [sys.executable, "-c", FIT, str(path), kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        text = ""
        if seconds is not None:
            # The second line is of the first epoch, or the end of a fit that was over before.
            text += child.stdout.readline() + child.stdout.readline()
            time.sleep(seconds)
            child.send_signal(signal.SIGKILL)
        text += child.stdout.read()
    found = [line for line in text.splitlines() if line.startswith("end")]
    return found[0] if found else None
