"""Callbacks that write a fit down, and errors that callbacks raise."""

import copy
import csv
import pickle
import sys

import numpy as np
import pytest

from fastmlp import MLP, Adam, Checkpoint, CSVLogger, EarlyStopping, Ensemble, TensorBoard
from fastmlp.errors import DTypeError, MissingPackageError, UnknownKeywordError

RNG = np.random.default_rng(2)
X = RNG.normal(size=(60, 4)).astype(np.float32)
Y = np.sin(X[:, :1])
SETS = {"near": (X[:20], Y[:20] + 0.3), "far": (2 * X[:9], Y[:9])}
ASKED = {"batch_size": 15, "validation_data": SETS, "metrics": "mae", "l2": 0.01}


def fresh(members=None):
    return MLP([4, 6, 1], "tanh") if members is None else Ensemble([4, 6, 1], members, "tanh")


class Stop(Exception):
    """As `optuna.TrialPruned`."""


def stop_at(epoch):
    def callback(event):
        if event.epoch == epoch:
            raise Stop

    return callback


@pytest.mark.parametrize("members", [None, 3])
def test_a_csv_file_grows_with_the_epochs_and_is_that_of_the_history(members, tmp_path):
    path, sizes = tmp_path / "fit.csv", []
    path.write_text("of a fit before\n" * 100)
    model = fresh(members)
    rule = EarlyStopping(2, 0.05, "near_mae")
    rest = {"epochs": 12, "early_stopping": rule, "optimizer": Adam(0.05)}
    sized = lambda event: sizes.append(len(path.read_bytes().splitlines()))  # noqa: E731
    model.fit(X, Y, callbacks=[CSVLogger(path), sized], **rest, **ASKED)
    # A line each for the networks that are still trained.
    trained = np.cumsum((~np.isnan(model.history.loss)).reshape(len(model.history), -1).sum(1))
    assert sizes == (1 + trained).tolist() and len(sizes) > 2
    model.history.to_csv(tmp_path / "whole.csv")
    assert path.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    with path.open(newline="") as file:
        first = next(csv.DictReader(file))
    assert float(first["far_mae"]) == np.ravel(model.history.values["far_mae"])[0]


def test_one_csv_logger_serves_one_fit_after_another(tmp_path):
    logger, model = CSVLogger(str(tmp_path / "fit.csv")), fresh()
    for epochs, asked in ((4, ASKED), (2, {})):
        model.fit(X, Y, epochs=epochs, callbacks=logger, **asked)
        model.history.to_csv(tmp_path / "whole.csv")
        assert (tmp_path / "fit.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


@pytest.mark.parametrize("members", [None, 2])
def test_a_penalty_that_begins_at_zero_has_its_column(members, tmp_path):
    model = MLP([4, 1]) if members is None else Ensemble([4, 1], members)
    model.parameters = np.zeros_like(model.parameters)
    rest = {"epochs": 4, "callbacks": CSVLogger(tmp_path / "fit.csv"), "l2": 0.1}
    model.fit(X, Y, batch_size=len(X), **rest)
    assert not np.any(model.history.penalty[0]) and np.all(model.history.penalty[-1])
    model.history.to_csv(tmp_path / "whole.csv")
    assert "penalty" in (tmp_path / "whole.csv").read_text().splitlines()[0]
    assert (tmp_path / "fit.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_the_csv_file_of_a_resumed_fit_has_each_epoch_once(tmp_path):
    """The checkpoint may be older than the file."""
    path = tmp_path / "fit.csv"
    saving = {"resume": True, "epochs": 6, **ASKED}
    with pytest.raises(Stop):
        checkpoint = Checkpoint(tmp_path / "fit", every=2)
        fresh().fit(X, Y, callbacks=[checkpoint, CSVLogger(path), stop_at(5)], **saving)
    again = fresh()
    again.fit(X, Y, callbacks=[Checkpoint(tmp_path / "fit", every=2), CSVLogger(path)], **saving)
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [int(line["epoch"]) for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [float(line["loss"]) for line in lines] == again.history.loss.tolist()


def events(folder):
    """Return the curves that TensorBoard would show: numbers by step, by name."""
    from tensorboardX.proto.event_pb2 import Event

    # Each file has the numbers of a writer.
    data = b"".join(path.read_bytes() for path in folder.glob("events.*"))
    place, curves = 0, {}
    while place < len(data):
        length = int.from_bytes(data[place : place + 8], "little")
        event = Event.FromString(data[place + 12 : place + 12 + length])
        place += 12 + length + 4
        for value in event.summary.value:
            curves.setdefault(value.tag, {})[event.step] = value.simple_value
    return curves


@pytest.mark.parametrize("members", [None, 2])
def test_tensorboard_shows_every_number_of_every_epoch(members, tmp_path):
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    folder = tmp_path / "run"
    model, board = fresh(members), TensorBoard(folder)
    assert not folder.exists()
    histories = []
    rule = EarlyStopping(1, 0.02, "near_mae")
    rest = {"epochs": 6, "early_stopping": rule, "optimizer": Adam(0.05)}
    first = model.fit(X, Y, callbacks=board, **rest, **ASKED)
    trained = np.atleast_1d(model.epochs_trained).tolist()
    histories = [first, model.fit(X, Y, epochs=2, callbacks=board, **ASKED)]
    board.close()
    curves = events(folder)
    for name in histories[0].values:
        for member in range(members or 1):
            of_all = members is None or name == "seconds"
            found = curves[name if of_all else f"{name}/{member}"]
            columns = [each.values[name] for each in histories]
            columns = [each if of_all else each[:, member] for each in columns]
            numbers = np.concatenate([each[~np.isnan(each)] for each in columns])
            assert list(found.values()) == pytest.approx(numbers.tolist(), rel=1e-6), name
            last = trained[member] if name != "seconds" else max(trained)
            assert max(found) == last + 2 and min(found) == 1
    board.close()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_a_tensorboard_that_has_written_can_be_copied(copied, tmp_path):
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    board, model = TensorBoard(tmp_path / "run"), fresh()
    model.fit(X, Y, epochs=1, callbacks=board)
    again = copied(board)
    assert again.path == board.path
    model.fit(X, Y, epochs=1, callbacks=again)
    board.close()
    again.close()
    assert sorted(events(tmp_path / "run")["loss"]) == [1, 2]


def test_without_tensorboardx_one_is_told_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(MissingPackageError, match=r"no tensorboardX.*fastmlp\[tensorboard\]"):
        TensorBoard(tmp_path)


@pytest.mark.parametrize("kind", [CSVLogger, TensorBoard])
def test_bad_settings(kind):
    with pytest.raises(DTypeError, match="path: got 3, wanted a path"):
        kind(3)
    with pytest.raises(UnknownKeywordError, match=f"{kind.__name__}: got an unknown keyword"):
        kind("a", append=True)


def test_a_file_that_cannot_be_written_ends_the_fit_and_keeps_the_model(tmp_path):
    model = fresh()
    with pytest.raises(OSError, match="nowhere"):
        model.fit(X, Y, epochs=5, callbacks=CSVLogger(tmp_path / "nowhere" / "fit.csv"))
    assert model.epochs_trained == len(model.history) == 1


def test_a_model_goes_on_after_an_error_of_a_callback():
    """As when a search prunes a trial: the bits are those of the epochs that were finished."""
    pruned, whole = fresh(), fresh()
    rest = {"optimizer": Adam(0.01), **ASKED}
    with pytest.raises(Stop):
        pruned.fit(X, Y, epochs=9, callbacks=stop_at(3), early_stopping=True, **rest)
    assert len(pruned.history) == 3
    whole.fit(X, Y, epochs=5, **rest)
    pruned.fit(X, Y, epochs=2, **rest)
    assert pruned.parameters.tobytes() == whole.parameters.tobytes()
    assert pruned.predict(X).tobytes() == whole.predict(X).tobytes()
