"""What ranks cost: `explain(ranks=)`, and the benchmark's simulation."""

import numpy as np
import pytest

import fastmlp
from benchmarks import data_parallel
from benchmarks.data_parallel import (
    Network,
    least_computing,
    overlapped_seconds,
    report,
    step_seconds,
)
from fastmlp import MLP
from fastmlp.distributed import DataParallel, run_on_threads
from fastmlp.distributed.costs import sum_seconds
from fastmlp.errors import DomainError, DTypeError

SMALL, LARGE = MLP([8, 16, 1]), MLP([784, 2048, 2048, 10])


def test_explain_advises_against_ranks_that_do_not_pay():
    small = fastmlp.explain(SMALL, 64, threads=1, ranks=4)
    large = fastmlp.explain(LARGE, 1024, threads=1, ranks=4)
    assert not small.parallel.pays and large.parallel.pays
    assert "It does not pay: use one process" in str(small)
    assert f"That is {large.parallel.gain:.1f} x as fast" in str(large)
    assert fastmlp.explain(SMALL).parallel is None
    assert "ranks" not in str(fastmlp.explain(SMALL))


def test_more_ranks_compute_less_and_sum_longer():
    costs = [fastmlp.explain(LARGE, 1024, threads=1, ranks=1 << k).parallel for k in range(8)]
    sums = [each.sum_seconds for each in costs]
    assert sums == sorted(sums) and sums[0] == 0
    computing = [each.seconds - each.sum_seconds for each in costs]
    assert computing[:4] == sorted(computing[:4], reverse=True)
    assert [each.shards for each in costs[2:6]] == [8, 8, 16, 32]


def test_a_sum_is_measured_with_a_communicator():
    def look(communicator):
        return fastmlp.explain(SMALL, 64, ranks=DataParallel(communicator, 16)).parallel

    first, second = run_on_threads(2, look)
    assert first == second
    assert first.measured and first.shards == 16 and 0 < first.sum_seconds < 1
    assert "measured" in str(fastmlp.dispatch.parallel.about_ranks(first))


@pytest.mark.parametrize(
    ("ranks", "error"),
    [(3, DomainError), (0, DomainError), (2**70, DomainError), ("two", DTypeError)],
    ids=["3", "0", "2**70", "text"],
)
def test_ranks_that_are_none_are_refused(ranks, error):
    with pytest.raises(error, match="got"):
        fastmlp.explain(SMALL, ranks=ranks)


@pytest.mark.parametrize("size", [1000, 10**6], ids=["short", "long"])
@pytest.mark.parametrize("ranks", [2, 16, 256])
def test_the_simulation_agrees_with_the_formula(monkeypatch, size, ranks):
    monkeypatch.setattr(data_parallel, "SPREAD", 0.0)
    network = Network(1e-5, 1e9)
    found = step_seconds(0.001, size, ranks, network) - 0.001
    assert found == pytest.approx(sum_seconds(size, ranks, 1e-5, 1e9), rel=1e-4)


def test_half_of_the_time_is_computing_where_it_is_said_to_pay():
    network = Network(1e-5, 1e10)
    least = least_computing(10**6, 64, network)
    assert least / step_seconds(least, 10**6, 64, network) == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("latency", [0.0, 1e-4], ids=["no latency", "latency"])
def test_sums_beside_the_computing_hide_what_fits_there(monkeypatch, latency):
    monkeypatch.setattr(data_parallel, "SPREAD", 0.0)
    sizes, network = (100, 200, 300, 10), Network(latency, 1e9)
    first, rest = 4 * 101 * 200, 4 * (201 * 300 + 301 * 10)
    # Of 3 * 83,000 - 20,000 products 80,000 are left when the second layer's gradient is there.
    left, alone = 80 / 229, sum_seconds(rest, 16, latency, 1e9)
    for computing in (0.1 * alone, 100 * alone):
        waiting = max(0.0, alone - left * computing)
        expected = computing + waiting + sum_seconds(first, 16, latency, 1e9)
        found = overlapped_seconds(computing, sizes, 16, network)
        assert found == pytest.approx(expected, rel=1e-4)


def test_the_report_has_a_row_for_each_network():
    measured = [{"alone": 1e-3, "together": 5e-4, "sum": 1e-4}] * len(data_parallel.CASES)
    text = report(measured, Network(1e-5, 1e10))
    assert text.count("| 2.00 |") == len(data_parallel.CASES)
    assert "4,096 ranks" in text and "A message takes 10 us and 10 GB a second" in text


def test_a_sum_that_is_measured_leaves_the_model_alone():
    model = MLP([8, 16, 1])
    before = model.parameters.copy()
    run_on_threads(2, lambda each: fastmlp.explain(model, ranks=each))
    np.testing.assert_array_equal(model.parameters, before)
