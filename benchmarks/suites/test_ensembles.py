"""An epoch of many networks side by side on the same rows."""

import pytest

from benchmarks.workers import CLOCK


@pytest.mark.benchmark(timer=CLOCK.now)
def test_ensembles(epochs):
    epochs("ensembles")
