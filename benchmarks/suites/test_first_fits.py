"""The first fit of a process: from before the import to its end.

It counts in whoever pays a compiler, and on both sides the import of scikit-learn.
"""

import tempfile

import pytest

from benchmarks.workers import CLOCK, caches, fresh


@pytest.fixture
def first_fit(measurement, prepared, turn):
    """What times it under a name, in a process that has imported nothing of either before."""

    def take(name, environment):
        request = (measurement.entry, environment, "first_call", measurement.case)
        turn(name, lambda: CLOCK.advance(fresh(*request)), 1)

    return take


@pytest.mark.benchmark(timer=CLOCK.now)
def test_first_fit(first_fit, cache_folder):
    """Without a cache, each process has a folder of its own."""
    first_fit("first fit, cold", caches(tempfile.mkdtemp(dir=cache_folder)))


@pytest.mark.benchmark(timer=CLOCK.now)
def test_first_fit_cached(measurement, first_fit, cache_folder):
    """In a second process, which finds what the first has compiled."""
    environment = caches(f"{cache_folder}/warm")
    if measurement.number == 0:
        fresh(measurement.entry, environment, "first_call", measurement.case)
    first_fit("first fit, from the disk cache", environment)
