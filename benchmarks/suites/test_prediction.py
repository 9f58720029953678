"""Predictions of some rows at once: every provider, validated before it is timed."""

import pytest

from benchmarks.workers import CLOCK


@pytest.mark.benchmark(timer=CLOCK.now)
def test_prediction(epochs):
    epochs("prediction")
