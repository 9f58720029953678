"""An epoch of Adam on rows in a random order: every provider gathers its mini-batches itself."""

import pytest

from benchmarks.workers import CLOCK


@pytest.mark.benchmark(timer=CLOCK.now)
def test_shuffled(epochs):
    epochs("shuffled")
