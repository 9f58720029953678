"""Whole fits beside scikit-learn's, validated before they are timed, and what they predict.

The predictions are those of the estimators that validation has fitted.
"""

import pytest

from benchmarks.workers import CLOCK

CALLS = {1: 200, 1000: 20}
"""Calls of one timing, which then takes tens of milliseconds."""


@pytest.mark.benchmark(timer=CLOCK.now)
def test_fit(epochs):
    epochs("whole fits")


@pytest.fixture
def predictions(measurement, ask, turn):
    """What times predictions of so many rows."""

    def take(rows):
        if measurement.case.search:
            pytest.skip("it is the best network that would predict, as any other does")
        if measurement.case.rows < rows:
            pytest.skip("it has fewer rows")
        turn(
            f"predict, {rows:,} {'row' if rows == 1 else 'rows'}",
            lambda: ask("predict", CALLS[rows], rows),
            3,
            goal=0.0,
        )

    return take


@pytest.mark.benchmark(timer=CLOCK.now)
def test_predict_one_row(predictions):
    predictions(1)


@pytest.mark.benchmark(timer=CLOCK.now)
def test_predict_rows(predictions):
    predictions(1000)
