"""What a small call costs: the import, the first call, one batch and one row.

For fastmlp the calls are those of its users, so its bare kernels have no line here.
"""

import shutil
import tempfile

import pytest

from benchmarks.workers import CLOCK, Worker

ROWS = 100


@pytest.fixture(autouse=True)
def users_call(measurement):
    if measurement.entry.provider == "fastmlp":
        pytest.skip("fastmlp.fit is what users call")


@pytest.fixture(scope="session")
def cache_folder():
    """A folder for Numba's disk cache that nobody has written to."""
    folder = tempfile.mkdtemp()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def fresh(entry, environment, *request):
    """Return a worker's seconds; its process has imported none of the libraries before."""
    worker = Worker(entry, environment)
    try:
        return worker.ask(*request)
    finally:
        worker.close()


@pytest.mark.benchmark(timer=CLOCK.now)
def test_one_batch(prepared, turn, rounds):
    worker, about = prepared

    def calls():
        CLOCK.advance(sum(worker.ask("epoch") for _ in range(5)))

    turn("one batch", calls, rounds(5 * about["seconds"]), per=5)


@pytest.mark.benchmark(timer=CLOCK.now)
def test_one_row(prepared, turn):
    worker, _ = prepared
    turn("one row", lambda: CLOCK.advance(worker.ask("predict_row", ROWS)), 3)


@pytest.mark.benchmark(timer=CLOCK.now)
def test_import(measurement, prepared, turn):
    turn("import", lambda: CLOCK.advance(fresh(measurement.entry, {}, "import_time")), 1)


@pytest.mark.benchmark(timer=CLOCK.now)
def test_first_call(measurement, prepared, turn, cache_folder):
    """Without a cache. Only the first process of a run is that cold, so each has its own."""
    folder = tempfile.mkdtemp(dir=cache_folder)
    request = ("first_call", measurement.case)

    def call():
        CLOCK.advance(fresh(measurement.entry, {"NUMBA_CACHE_DIR": folder}, *request))

    turn("first call, cold", call, 1)


@pytest.mark.benchmark(timer=CLOCK.now)
def test_first_call_cached(measurement, prepared, turn, cache_folder):
    """The same in a second process, which finds what the first has compiled."""
    request = ("first_call", measurement.case)
    environment = {"NUMBA_CACHE_DIR": f"{cache_folder}/warm"}
    if measurement.number == 0:
        fresh(measurement.entry, environment, *request)
    turn(
        "first call, from the disk cache",
        lambda: CLOCK.advance(fresh(measurement.entry, environment, *request)),
        1,
    )
