"""An epoch with another optimizer, activation or dtype, beside the plain one; fastmlp alone."""

import pytest

from benchmarks.workers import CLOCK


@pytest.mark.benchmark(timer=CLOCK.now)
def test_variant(measurement, epochs):
    epochs(f"variants: {measurement.kind}")
