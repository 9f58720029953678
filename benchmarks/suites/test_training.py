"""An epoch of gradient descent: every provider on every case, validated before it is timed."""

import pytest

from benchmarks.workers import CLOCK


@pytest.mark.benchmark(timer=CLOCK.now)
def test_training(measurement, prepared, turn, rounds):
    worker, about = prepared
    turn(
        "training",
        lambda: CLOCK.advance(worker.ask("epoch")),
        rounds(about["seconds"]),
        per=measurement.case.steps,
        flops=measurement.case.flops_per_step,
        error=about["error"],
        peak_memory_mib=about["peak_memory_mib"],
    )
