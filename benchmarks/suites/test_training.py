"""An epoch of gradient descent: every provider on every case, validated before it is timed."""

import pytest

from benchmarks.workers import CLOCK


@pytest.mark.benchmark(timer=CLOCK.now)
def test_training(epochs):
    epochs("training")
