"""Searches: each candidate on each fold is what `fit` alone makes of it, whoever computes it."""

import os
import signal
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest

import fastmlp
from fastmlp import MLP, Adam, Ensemble, ReduceOnPlateau, schedules
from fastmlp.errors import (
    DomainError,
    DTypeError,
    NonFiniteTrainingError,
    ShapeError,
    UnknownKeywordError,
)
from fastmlp.searching import parts as parts_of
from fastmlp.searching import progress as progress_of
from fastmlp.searching.folds import make_folds
from fastmlp.searching.rows import bootstrap_counts
from fastmlp.searching.search import rungs

RNG = np.random.default_rng(3)
# Not a multiple of the batch size, and folds of two lengths.
X = RNG.normal(size=(71, 5)).astype(np.float32)
LABELS = (X[:, 0] + X[:, 1] ** 2 > 0.5).astype(int) + (X[:, 2] > 1)
Y = np.sin(X[:, :2] * 2)
CLASSES = {"loss": "softmax_cross_entropy", "optimizer": "adam"}
GRID = {
    "hidden_sizes": [(8,), (4, 3)],
    "learning_rate": [1e-2, 5e-2],
    "l2": [0.0, 1e-2, 0.3],
    "seed": [0, 7],
}
NUMBERS = ("score", "spread", "loss", "train_loss", "rank", "epochs")


def numbers_of(found):
    """Return the bytes of everything that a search has found, but for its times."""
    parts = [np.asarray(found.columns[name]).tobytes() for name in NUMBERS]
    model = b"" if found.best_model is None else found.best_model.parameters.tobytes()
    return [*parts, found.fold_scores.tobytes(), model]


def fitted(candidate, rows, y, **more):
    """Return the network of a candidate, trained by `fit` alone."""
    names = ("seed", "dtype", "dropout", "gain", "initializer")
    outputs = y.shape[1] if y.ndim > 1 else y.max() + 1
    shape = [X.shape[1], *candidate["hidden_sizes"], outputs]
    kept = {name: candidate[name] for name in names}
    model = MLP(shape, candidate["activations"], candidate["loss"], **kept)
    optimizer = more.pop("optimizer", None) or Adam(candidate["learning_rate"])
    more = {
        name: candidate[name] for name in ("batch_size", "l2", "shuffle", "class_weight")
    } | more
    model.fit(X[rows], y[rows], optimizer=optimizer, progress=False, **more)
    return model


KINDS = {
    "plain": {},
    "dropout": {"dropout": 0.3},
    "balanced": {"class_weight": "balanced", "shuffle": False},
    "bootstrap": {"bootstrap": True},
    "float64": {"dtype": "float64", "activations": "tanh", "batch_size": 16},
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_candidate_is_what_fit_makes_of_it_on_each_fold(kind, monkeypatch):
    trained = []

    def keep(part):
        found = parts_of.train_part(part)
        trained.extend((part, outcome) for outcome in found[1])
        return found

    monkeypatch.setattr(progress_of, "train_part", keep)
    more = KINDS[kind]
    found = fastmlp.search(X, LABELS, GRID, cv=3, epochs=3, refit=False, **CLASSES, **more)
    folds = make_folds(3, X, LABELS, len(X), LABELS, 0)
    for k in range(0, len(found.candidates), 5):
        candidate = found.candidates[k]
        for number, fold in enumerate(folds):
            weights = None
            if "bootstrap" in more:
                weights = bootstrap_counts(candidate["seed"], len(fold.train))
            alone = fitted(candidate, fold.train, LABELS, epochs=3, sample_weight=weights)
            same = [
                outcome
                for part, outcome in trained
                if np.array_equal(part.test.data.X, X[fold.test])
                and outcome.member.parameters.tobytes() == alone.parameters.tobytes()
            ]
            assert same
            judged = alone.evaluate(X[fold.test], LABELS[fold.test])
            assert found.fold_scores[k, number] == judged.score
            assert judged.loss in [each.loss for each in same]


def test_networks_of_one_shape_on_the_same_rows_are_one_part(monkeypatch):
    sizes = []

    def count(part):
        sizes.append(len(part.members))
        return parts_of.train_part(part)

    monkeypatch.setattr(progress_of, "train_part", count)
    fastmlp.search(X, LABELS, GRID, cv=3, epochs=1, refit=False, **CLASSES)
    # Three folds, two shapes, with a penalty and without.
    assert sorted(sizes) == [4] * 6 + [8] * 6


def test_the_best_candidate_is_trained_on_all_rows():
    found = fastmlp.search(X, Y, {"seed": [0, 1, 2]}, cv=2, epochs=4, optimizer=Adam(0.01))
    best = found.candidates[found.best_index]
    assert found.best_candidate == {"seed": best["seed"]}
    assert found.best_score == found.columns["score"].max()
    alone = fitted(best, np.arange(len(X)), Y, epochs=4, optimizer=Adam(0.01))
    assert found.best_model.parameters.tobytes() == alone.parameters.tobytes()
    assert found.best_model.predict(X).tobytes() == alone.predict(X).tobytes()


def test_halving_trains_the_best_on_as_if_nothing_had_stopped_them():
    more = {**CLASSES, "cv": 3, "refit": False}
    halved = fastmlp.search(X, LABELS, GRID, epochs=9, halving=3, **more)
    whole = fastmlp.search(X, LABELS, GRID, epochs=9, **more)
    epochs = halved.columns["epochs"]
    assert sorted(epochs.tolist()) == [1] * 16 + [3] * 5 + [9] * 3
    last = epochs == 9
    assert halved.fold_scores[last].tobytes() == whole.fold_scores[last].tobytes()
    assert (
        halved.columns["train_loss"][last].tobytes() == whole.columns["train_loss"][last].tobytes()
    )
    # Whoever is trained longer comes first.
    assert set(halved.columns["rank"][last]) == {1, 2, 3}
    first = fastmlp.search(X, LABELS, GRID, epochs=1, **more)
    order = np.argsort(first.columns["rank"])
    assert set(np.flatnonzero(epochs > 1)) == set(order[:8])


def test_stages_of_a_halving():
    assert rungs(27, 48, 3) == [(48, 1), (16, 3), (6, 9), (2, 27)]
    assert rungs(10, 1, 3) == [(1, 10)]
    assert rungs(1, 100, 2) == [(100, 1)]
    assert rungs(10, 100, None) == [(100, 10)]
    for epochs, count, factor in [(7, 50, 1.2), (100, 3, 1.3), (64, 64, 2)]:
        found = rungs(epochs, count, factor)
        assert found[0][0] == count or len(found) > 1
        assert found[-1][1] == epochs
        assert all(a[0] >= b[0] and a[1] < b[1] for a, b in zip(found, found[1:], strict=False))


def test_a_candidate_that_diverges_fails_alone():
    grid = {"learning_rate": [1e-2, 1e30, 2e-2]}
    found = fastmlp.search(X, Y, grid, cv=3, epochs=3, optimizer="sgd")
    assert np.isnan(found.fold_scores[1]).all()
    assert found.columns["rank"][1] == 3
    alone = fastmlp.search(X, Y, {"learning_rate": [2e-2]}, cv=3, epochs=3, optimizer="sgd")
    assert found.fold_scores[2].tobytes() == alone.fold_scores[0].tobytes()
    with pytest.raises(NonFiniteTrainingError, match="in every candidate"):
        fastmlp.search(X, Y, {"learning_rate": [1e30]}, cv=3, epochs=3, optimizer="sgd")


def test_a_failed_candidate_is_not_trained_on():
    grid = {"learning_rate": [1e-2, 1e30, 1e29, 1e28]}
    found = fastmlp.search(X, Y, grid, cv=2, epochs=4, halving=2, optimizer="sgd")
    assert found.best_index == 0
    assert found.columns["epochs"].tolist() == [4, 1, 1, 1]


@pytest.mark.parametrize("metric", ["loss", "r2", "rmse"])
def test_the_best_is_best_by_the_metric(metric):
    grid = {"learning_rate": [1e-4, 1e-2, 1e-1]}
    found = fastmlp.search(X, Y, grid, cv=2, epochs=5, metric=metric, refit=False)
    scores = found.columns["score"]
    wanted = scores.argmax() if metric == "r2" else scores.argmin()
    assert (found.metric, found.best_index) == (metric, wanted)


def test_a_function_judges_too():
    def worst(y, prediction):
        return np.abs(y - prediction).max()

    with pytest.raises(DomainError, match="higher_is_better: got None"):
        fastmlp.search(X, Y, {"seed": [0, 1]}, epochs=1, metric=worst)
    found = fastmlp.search(X, Y, {"seed": [0, 1]}, epochs=1, metric=worst, higher_is_better=False)
    assert found.best_index == found.columns["score"].argmin()
    assert found.metric == "worst"


def test_equal_scores_leave_the_order_of_the_grid():
    found = fastmlp.search(X, Y, {"seed": [5, 5, 5]}, cv=2, epochs=1)
    assert found.columns["rank"].tolist() == [1, 2, 3]


def test_a_validation_set_and_weights_of_rows():
    weights = RNG.random(len(X))
    rest = X[:20], Y[:20], weights[:20]
    found = fastmlp.search(
        X, Y, {"seed": [0, 4]}, validation_data=rest, epochs=2, sample_weight=weights
    )
    assert found.fold_scores.shape == (2, 1)
    model = MLP([5, 64, 2], seed=4)
    model.fit(X, Y, epochs=2, sample_weight=weights)
    assert model.evaluate(*rest[:2], sample_weight=rest[2]).score == found.fold_scores[1, 0]


def test_rows_of_a_fold_have_their_weights():
    weights = RNG.random(len(X))
    test = np.arange(0, 71, 3)
    train = np.setdiff1d(np.arange(71), test)
    rest = {"epochs": 2, "sample_weight": weights, "metric": "loss"}
    found = fastmlp.search(X, Y, {"seed": [0]}, cv=[(train, test)], **rest)
    alone = MLP([5, 64, 2])
    alone.fit(X[train], Y[train], epochs=2, sample_weight=weights[train])
    judged = alone.evaluate(X[test], Y[test], sample_weight=weights[test])
    assert judged.loss == found.fold_scores[0, 0]


def test_folds_spread_the_classes_and_cover_the_rows():
    folds = make_folds(4, X, LABELS, len(X), LABELS, 1)
    assert np.sort(np.concatenate([fold.test for fold in folds])).tolist() == [*range(len(X))]
    for fold in folds:
        assert not np.intersect1d(*fold).size
        counts = np.bincount(LABELS[fold.test], minlength=3)
        assert (abs(counts - np.bincount(LABELS) / 4) < 1).all()
    other = make_folds(4, X, LABELS, len(X), LABELS, 2)
    assert any(a.test.tobytes() != b.test.tobytes() for a, b in zip(folds, other, strict=True))


def test_folds_of_a_splitter_are_its_own():
    sklearn = pytest.importorskip("sklearn.model_selection")
    splitter = sklearn.StratifiedKFold(3, shuffle=True, random_state=0)
    pairs = [*splitter.split(X, LABELS)]
    for cv in (splitter, pairs, iter(pairs)):
        found = fastmlp.search(X, LABELS, {"seed": [1]}, cv=cv, epochs=1, refit=False, **CLASSES)
        train, test = pairs[2]
        alone = MLP([5, 64, 3], loss="softmax_cross_entropy", seed=1)
        alone.fit(X[train], LABELS[train], epochs=1, optimizer="adam")
        assert alone.evaluate(X[test], LABELS[test]).score == found.fold_scores[0, 2]


def test_a_class_that_a_fold_lacks_is_a_class_still():
    y = np.sort(LABELS)
    thirds = np.array_split(np.arange(len(X)), 3)
    folds = [(np.setdiff1d(np.arange(len(X)), test), test) for test in thirds]
    found = fastmlp.search(X, y, {"seed": [0, 1]}, cv=folds, epochs=1, **CLASSES)
    assert np.isfinite(found.fold_scores).all()
    assert found.best_model.sizes[-1] == 3


def test_several_grids_and_what_they_leave_out():
    found = fastmlp.search(
        X, Y, [{"seed": [0, 1]}, {"optimizer": ["adam", Adam(0.1)]}], cv=2, epochs=1, refit=False
    )
    assert found.columns["seed"] == [0, 1, 0, 0]
    assert found.columns["optimizer"] == [None, None, "adam", Adam(0.1)]


def test_schedules_and_clipping_and_layer_rates():
    schedule = schedules.CosineDecay(0.1, 30)
    grid = {
        "optimizer": [Adam(schedule), Adam(0.01, clip_norm=0.1), Adam(0.01, layer_rates=(1, 0))],
        "hidden_sizes": [6],
    }
    found = fastmlp.search(X, Y, grid, cv=2, epochs=3, metric="loss", refit=False)
    folds = make_folds(2, X, Y, len(X), None, 0)
    for k, optimizer in enumerate(grid["optimizer"]):
        alone = fitted(found.candidates[k], folds[1].train, Y, epochs=3, optimizer=optimizer)
        assert alone.evaluate(X[folds[1].test], Y[folds[1].test]).loss == found.fold_scores[k, 1]


def test_results_as_a_frame_and_for_notebooks():
    pandas = pytest.importorskip("pandas")
    found = fastmlp.search(X, LABELS, GRID, cv=3, epochs=1, **CLASSES)
    frame = found.to_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert len(frame) == 24
    assert frame.sort_values("rank").index[0] == found.best_index
    assert frame["score of fold 2"].tolist() == found.fold_scores[:, 2].tolist()
    assert found._repr_html_().count("<tr>") == 11
    assert "24 candidates, 3 folds" in repr(found)


# Executors.


def search_with(executor, **more):
    """Return what a search finds that an executor computes."""
    given = {**CLASSES, "cv": 3, "epochs": 4, "halving": 2, **more}
    return fastmlp.search(X, LABELS, GRID, executor=executor, **given)


@pytest.fixture(scope="module")
def expected():
    """Return what a search finds without an executor."""
    return numbers_of(search_with(None))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_no_bit(threads, expected):
    assert numbers_of(search_with(None, threads=threads)) == expected
    with ThreadPoolExecutor(threads) as pool:
        assert numbers_of(search_with(pool, threads=threads)) == expected


class Losing:
    """An executor that computes some parts, and loses the others as one that breaks does."""

    def __init__(self, kept):
        self.kept, self.lost = kept, 0

    def submit(self, function, *given):
        if self.lost > self.kept:
            raise BrokenProcessPool("a worker has died")
        future = Future()
        if self.lost % 2:
            future.set_exception(BrokenProcessPool("a worker has died"))
        else:
            future.set_result(function(*given))
        self.lost += 1
        return future


@pytest.mark.parametrize("kept", [0, 3, 1000])
def test_parts_that_are_lost_are_computed_here(kept, expected, caplog):
    caplog.set_level("WARNING", "fastmlp")
    losing = Losing(kept)
    assert numbers_of(search_with(losing)) == expected
    assert losing.lost > 0
    assert "is computed here" in caplog.text


def test_an_executor_that_is_shut_down_is_refused():
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    with pytest.raises(DomainError, match="executor: got one that takes no work"):
        search_with(pool)
    with pytest.raises(DTypeError, match="executor: got 3, wanted a concurrent"):
        search_with(3)


def test_an_error_of_the_work_itself_is_raised():
    def broken(y, prediction):
        raise ZeroDivisionError("mine")

    with ThreadPoolExecutor(1) as pool, pytest.raises(ZeroDivisionError, match="mine"):
        search_with(pool, metric=broken, higher_is_better=True)


class Remembering(ThreadPoolExecutor):
    """An executor that remembers what it was given."""

    def submit(self, *given):
        self.futures = [*vars(self).get("futures", []), super().submit(*given)]
        return self.futures[-1]


def test_ctrl_c_ends_a_search_and_leaves_nothing_waiting(interrupts_heard):
    started = time.monotonic()
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        fastmlp.search(X, LABELS, GRID, cv=3, epochs=10**6, **CLASSES)
    with Remembering(1) as pool:
        timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            search_with(pool, epochs=1500, halving=None, refit=False)
    assert any(each.cancelled() for each in pool.futures)
    assert time.monotonic() - started < 20


# What is refused, before anything is trained.

REFUSED = {
    "no grid": ((X, Y, 3), {}, DTypeError, "grid: got 3, wanted a dict"),
    "a text": ((X, Y, "seed"), {}, DTypeError, "grid: got 'seed'"),
    "no candidates": ((X, Y, []), {}, DomainError, "grid: got no candidates"),
    "no values": ((X, Y, {"l2": []}), {}, DomainError, r"grid\['l2'\]: got no values"),
    "misspelt": ((X, Y, {"l_2": [1]}), {}, UnknownKeywordError, "did you mean l2="),
    "misspelt beside": ((X, Y, {}), {"hiden_sizes": 3}, UnknownKeywordError, "hidden_sizes"),
    "twice": ((X, Y, {"l2": [1]}), {"l2": 1}, DomainError, "l2: got it in grid and beside it"),
    "a list of lists": ((X, Y, [[1]]), {}, DTypeError, r"grid: got \[1\]"),
    "below 0": ((X, Y, {"l2": [-1.0]}), {}, DomainError, "l2: got -1.0"),
    "huge": ((X, Y, {"batch_size": [2**70]}), {}, DomainError, "batch_size: got"),
    "a huge seed": ((X, Y, {"seed": [2**70]}), {}, DomainError, "seed: got"),
    "no units": ((X, Y, {"hidden_sizes": [0]}), {}, DomainError, "hidden_sizes: got 0"),
    "NaN": ((np.where(X > 2, np.nan, X), Y, {}), {}, DomainError, "X: got"),
    "one row of X": ((X[0], Y, {}), {}, ShapeError, "X: got shape"),
    "rows": ((X, Y[:9], {}), {}, ShapeError, "y: got"),
    "one fold": ((X, Y, {}), {"cv": 1}, DomainError, "cv: got 1"),
    "many folds": ((X, Y, {}), {"cv": 72}, DomainError, "cv: got 72"),
    "no folds": ((X, Y, {}), {"cv": []}, DomainError, "cv: got no folds"),
    "rows beyond": ((X, Y, {}), {"cv": [([0], [71])]}, DomainError, r"cv\[0\] test: got rows"),
    "empty fold": ((X, Y, {}), {"cv": [([], [1])]}, ShapeError, r"cv\[0\] train"),
    "ragged folds": ((X, Y, {}), {"cv": [([[1], [2, 3]], [2])]}, ShapeError, r"cv\[0\] train"),
    "shuffle": ((X, Y, {"shuffle": ["no"]}), {}, DTypeError, "shuffle: got 'no', wanted True"),
    "refit": ((X, Y, {}), {"refit": "no"}, DTypeError, "refit: got 'no', wanted True"),
    "a text as folds": ((X, Y, {}), {"cv": "five"}, DTypeError, "cv: got 'five'"),
    "both": ((X, Y, {}), {"cv": 2, "validation_data": (X, Y)}, DomainError, "beside validation"),
    "two sets": ((X, Y, {}), {"validation_data": {"a": (X, Y)}}, DomainError, "got the sets a"),
    "a metric": ((X, Y, {}), {"metric": "acuracy"}, ValueError, "metric"),
    "direction": (
        (X, Y, {}),
        {"metric": "r2", "higher_is_better": False},
        DomainError,
        "higher_is_better: got False",
    ),
    "a list of metrics": ((X, Y, {}), {"metric": ["r2"]}, DTypeError, "metric: got"),
    "one row": ((X[:1], Y[:1], {}), {}, ShapeError, "X: got 1 row"),
    "no seed": ((X, Y, {}), {"fold_seed": -1}, DomainError, "fold_seed: got -1"),
    "seed of a text": ((X, Y, {}), {"fold_seed": "a"}, DTypeError, "fold_seed: got 'a'"),
    "a class": ((X, Y, {}), {"executor": ThreadPoolExecutor}, DTypeError, "executor: got <class"),
    "halving": ((X, Y, {}), {"halving": 1}, DomainError, "halving: got 1"),
    "epochs": ((X, Y, {}), {"epochs": 0}, DomainError, "epochs: got 0"),
    "plateau": (
        (X, Y, {"learning_rate": [ReduceOnPlateau(0.1)]}),
        {},
        DomainError,
        "got a ReduceOnPlateau",
    ),
    "two kinds of metrics": (
        (X, LABELS, {"loss": ["softmax_cross_entropy", "half_squared_error"]}),
        {"outputs": None},
        DomainError,
        "metric: got none with losses",
    ),
    "zeros": ((X, Y, {}), {"sample_weight": np.zeros(71)}, DomainError, "sample_weight"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_suit_is_refused(case, monkeypatch):
    given, more, error, message = REFUSED[case]
    monkeypatch.setattr(progress_of, "train_part", None)
    with pytest.raises(error, match=message):
        fastmlp.search(*given, **more)


def test_chunks_are_refused():
    with pytest.raises(DTypeError, match="X: got Chunks"):
        fastmlp.search(fastmlp.Chunks([(X, Y)]), None, {})


def test_seeds_of_ones_own_are_kept_by_members():
    """An ensemble's seeds follow one another; a part's are its own."""
    ensemble = Ensemble([5, 4, 2], members=3, seed=5)
    assert [ensemble._state.seed_of(k) for k in range(3)] == [5, 6, 7]
    assert ensemble[2].seed == 7
