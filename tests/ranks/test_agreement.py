"""What one rank does alone: all stop with one clear message, and nobody waits for ever."""

import threading

import numpy as np
import pytest

import fastmlp
from fastmlp import MLP, Adam, Checkpoint
from fastmlp.distributed import DataParallel, rows_of_rank, run_on_threads, threads
from fastmlp.errors import (
    DeviceError,
    DomainError,
    DTypeError,
    NonFiniteTrainingError,
    RankFailedError,
    ShapeError,
    UnknownNameError,
)
from fastmlp.training.agreement import NONE, SUM

RNG = np.random.default_rng(12)
X = RNG.normal(size=(80, 4)).astype(np.float32)
Y = RNG.normal(size=(80, 1)).astype(np.float32)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Notice a rank that waits for nobody, long before a test would end by its own limit."""
    monkeypatch.setattr(threads, "PATIENCE_SECONDS", 20.0)


def errors(change, size=2, **options):
    """Return what a fit raises on each rank, and its model, where `change` acts on one of them."""

    def work(communicator):
        model = MLP([4, 8, 1], seed=0)
        given = {"X": X, "y": Y, "epochs": 4, "batch_size": 16, "optimizer": "adam", **options}
        given["communicator"] = DataParallel(communicator, shared_rows=True)
        model = change(communicator, model, given) or model
        try:
            model.fit(**given)
        except BaseException as error:
            return error, model
        return None, model

    found = run_on_threads(size, work)
    assert not [each for each in threading.enumerate() if each.name.startswith("fastmlp-epoch")]
    return found


def on_one(**changes):
    """Return a change of the arguments of rank 1."""

    def change(communicator, model, given):
        if communicator.rank == 1:
            given.update(changes)

    return change


BAD = np.where(np.arange(80)[:, None] == 50, np.nan, X)
ALONE = {
    "columns": (on_one(X=X[:, :3]), ShapeError),
    "a bad number": (on_one(X=BAD), DomainError),
    "a name": (on_one(optimizer="adamm"), UnknownNameError),
    "epochs": (on_one(epochs=0), DomainError),
    "no rows": (on_one(X=X[:0], y=Y[:0]), DomainError),
    "a list": (on_one(X=X.tolist()), DTypeError),
    "a callback": (on_one(callbacks=lambda event: 1 / 0), ZeroDivisionError),
}


@pytest.mark.parametrize("name", ALONE)
def test_an_error_of_one_rank_stops_all(name):
    change, kind = ALONE[name]
    (other, _), (own, _) = errors(change)
    assert type(own) is kind
    assert type(other) is RankFailedError
    assert f"rank 1: {kind.__name__}: {own}" in str(other)


def other_network(communicator, model, given):
    return MLP([4, 8 + communicator.rank, 1])


def other_weights(communicator, model, given):
    model.biases[0][:] = communicator.rank


def other_shards(communicator, model, given):
    given["communicator"] = DataParallel(communicator, 8 << communicator.rank, True)


def changed_later(communicator, model, given):
    def callback(event):
        if communicator.rank == 1 and event.epoch == 2:
            event.model.biases[0][:] = 1

    given["callbacks"] = callback


DIFFERENT = {
    "epochs": (on_one(epochs=5), "epochs=4 on rank 0 and epochs=5 on rank 1"),
    "a rate": (on_one(optimizer=Adam(0.5)), "learning_rate=0.5"),
    "a batch size": (on_one(batch_size=8), "batch_size=16 on rank 0 and batch_size=8"),
    "weights of rows": (on_one(sample_weight=np.ones(80)), "sample_weight or class_weight=False"),
    "a validation": (on_one(validation_data=(X, Y)), "validation"),
    "a network": (other_network, "model=MLP"),
    "first weights": (other_weights, "the state="),
    "shards": (other_shards, "shards=8 on rank 0 and shards=16 on rank 1"),
    "a change by a callback": (changed_later, "callbacks may change a model only if"),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_differs_between_ranks_is_refused_on_all(name):
    change, message = DIFFERENT[name]
    for error, _ in errors(change):
        assert type(error) is DomainError
        assert message in str(error)


REFUSED = {
    "a split": ({"validation_split": 0.2}, DomainError, "wanted validation_data="),
    "balanced": ({"class_weight": "balanced"}, DomainError, "wanted a dict of weights"),
    "a GPU": ({"device": "cuda"}, DeviceError, "wanted 'cpu'"),
    "chunks": ({"X": fastmlp.Chunks([(X, Y)]), "y": None}, DomainError, "mmap_mode"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_is_refused(name):
    options, kind, message = REFUSED[name]
    for error, _ in errors(lambda *given: None, **options):
        assert type(error) is kind
        assert message in str(error)


def test_an_ensemble_is_refused():
    for error, _ in errors(lambda *given: fastmlp.Ensemble([4, 8, 1], 2)):
        assert "with an Ensemble" in str(error)


def own_rows(cut):
    def change(communicator, model, given):
        rows = cut(communicator.rank)
        given.update(X=X[rows], y=Y[rows], communicator=communicator)

    return change


def test_parts_of_other_sizes_and_the_same_rows_are_refused():
    for error, _ in errors(own_rows(lambda rank: slice(30 * rank, 30 + 35 * rank))):
        assert "got [30, 35] rows on the ranks, wanted [32, 33]" in str(error)
    for error, _ in errors(own_rows(lambda rank: slice(40))):
        assert "got the same first 40 rows on all 2 ranks" in str(error)


def test_frames_with_other_columns_are_refused():
    pandas = pytest.importorskip("pandas")

    def change(communicator, model, given):
        rows, names = rows_of_rank(80, communicator.rank, 2), list("abcd")
        frame = pandas.DataFrame(X[rows], columns=names[:: -1 if communicator.rank else 1])
        given.update(X=frame, y=Y[rows], communicator=communicator)

    for error, _ in errors(change):
        assert "names of the columns=['a', 'b', 'c', 'd'] on rank 0 and" in str(error)


def test_numbers_that_overflow_on_one_rank_stop_all_before_the_update():
    rows = X.copy()

    def change(communicator, model, given):
        def spoil(event):
            if event.epoch == 2:
                kept[communicator.rank] = event.model.parameters.copy()
                if communicator.rank == 1:
                    mine[:] = 1e38

        own = slice(40 * communicator.rank, 40 + 40 * communicator.rank)
        mine = rows[own]
        given.update(X=mine, y=Y[own], callbacks=spoil, communicator=communicator)

    kept = {}
    for rank, (error, model) in enumerate(errors(change, optimizer=fastmlp.SGD(1e-3))):
        assert type(error) is NonFiniteTrainingError
        assert (error.epoch, error.batch) == (3, 1)
        assert error.__notes__ == ["communicator: the numbers are those of rank 1"]
        assert model.parameters.tobytes() == kept[rank].tobytes() == kept[0].tobytes()
        assert len(model.history) == 2


def test_one_rank_that_wants_to_stop_stops_all():
    def change(communicator, model, given):
        given["callbacks"] = lambda event: communicator.rank == 2 and event.epoch == 3

    for error, model in errors(change, size=4):
        assert error is None
        assert len(model.history) == 3


def test_a_model_that_is_busy_stops_all():
    class Busy(MLP):
        def fit(self, **given):
            return self._state.lock.fit("fit", lambda: super(Busy, self).fit(**given))

    (other, _), (own, _) = errors(lambda each, *given: Busy([4, 8, 1]) if each.rank else None)
    assert type(own) is fastmlp.BusyError
    assert "rank 1: BusyError" in str(other)


def test_the_first_rank_alone_writes_files_and_lines(tmp_path, capsys):
    def change(communicator, model, given):
        path = tmp_path / f"{communicator.rank}.fastmlp"
        given.update(callbacks=Checkpoint(path), progress=True, verbose=1)

    assert [error for error, _ in errors(change)] == [None, None]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["0.fastmlp", "0.fastmlp.1"]
    text = capsys.readouterr().err
    assert text.count("4 epochs") <= 1


class Killed(BaseException):
    """What ends a fit after an epoch, as nothing that a fit expects."""


@pytest.mark.parametrize("ranks", [(2, 4), (4, 1), (1, 8)], ids=["2 4", "4 1", "1 8"])
def test_a_fit_goes_on_with_another_number_of_ranks(tmp_path, ranks):
    path = tmp_path / "fit.fastmlp"

    def train(communicator, end=None):
        def stop(event):
            if event.epoch == end:
                raise Killed

        model = MLP([4, 8, 1], seed=0, dropout=0.2)
        callbacks = [stop, Checkpoint(path)]
        model.fit(
            *(X, Y),
            epochs=6,
            optimizer="adam",
            validation_data=(X[:20], Y[:20]),
            early_stopping=fastmlp.EarlyStopping(4),
            callbacks=callbacks if end else callbacks[1:],
            resume=True,
            communicator=DataParallel(communicator, shared_rows=True),
        )
        return model.parameters.tobytes(), model.history.loss.tobytes(), len(model.history)

    (whole,) = run_on_threads(1, train)
    for each in tmp_path.iterdir():
        each.unlink()
    with pytest.raises(Killed):
        run_on_threads(ranks[0], lambda each: train(each, 3))
    assert set(run_on_threads(ranks[1], train)) == {whole}


def test_a_checkpoint_of_other_shards_or_of_a_plain_fit_is_refused(tmp_path):
    path = tmp_path / "fit.fastmlp"

    def train(communicator, shards, epochs):
        parallel = communicator and DataParallel(communicator, shards, True)
        options = {"callbacks": Checkpoint(path), "resume": True, "communicator": parallel}
        MLP([4, 8, 1], seed=0).fit(X, Y, epochs=epochs, **options)

    run_on_threads(2, lambda each: train(each, 8, 2))
    with pytest.raises(fastmlp.ModelFileError, match="shards=8, wanted shards=4"):
        run_on_threads(2, lambda each: train(each, 4, 4))
    with pytest.raises(fastmlp.ModelFileError, match="shards=8, wanted shards=1"):
        train(None, 1, 4)


@pytest.mark.parametrize("given", [3, "mpi", DataParallel, object()], ids=type)
def test_what_is_no_communicator_is_refused(given):
    with pytest.raises(DTypeError, match="communicator: got"):
        MLP([4, 8, 1]).fit(X, Y, communicator=given)


@pytest.mark.parametrize("shards", [0, 3, 2**70, True, 2.0], ids=repr)
def test_shards_that_are_no_power_of_two_are_refused(shards):
    def make(communicator):
        DataParallel(communicator, shards)

    with pytest.raises((DomainError, DTypeError), match="shards: got"):
        run_on_threads(1, make)


def test_more_ranks_than_shards_are_refused():
    with pytest.raises(DomainError, match="got 4 ranks, wanted a power of two and at most"):
        run_on_threads(4, lambda each: DataParallel(each, 2))


def test_a_number_of_ranks_that_is_no_power_of_two_is_refused():
    class Three:
        rank, size = 1, 3

        def exchange(self, partner, sent, received):
            raise AssertionError

    with pytest.raises(DomainError, match="got 3 ranks, wanted a power of two"):
        MLP([4, 8, 1]).fit(X, Y, communicator=Three())


def test_a_failure_between_two_rounds_is_told_in_the_next_one():
    """Whatever the round is that the others come to: a sum, or a gathering of records."""
    from fastmlp.training.agreement import MESSAGE_WORDS, STOPPED, Agreement

    def work(communicator, wanted):
        agreement = Agreement(DataParallel(communicator))
        agreement.message = np.zeros(5 + MESSAGE_WORDS)
        agreement.next = wanted

        def go_on():
            if communicator.rank == 0:
                raise KeyError("mine")
            if wanted == SUM:
                message = np.ones(5 + MESSAGE_WORDS) * 0
                agreement.sum(message)
                assert message[STOPPED] == 1
                raise RankFailedError
            agreement.gather({})

        try:
            agreement.guard(go_on)
        except (KeyError, RankFailedError) as error:
            assert agreement.next == NONE
            return str(error)

    for wanted in (SUM, "gathering"):
        found = run_on_threads(4, lambda each, wanted=wanted: work(each, wanted))
        assert found[0] == "'mine'"
        assert all("rank 0: KeyError: 'mine'" in each for each in found[1:])
