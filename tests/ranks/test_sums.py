"""Sums over ranks: one tree whatever the algorithm, and the same bits on every rank."""

import threading
import time

import numpy as np
import pytest

from fastmlp.distributed import ranks as module
from fastmlp.distributed import run_on_threads, threads
from fastmlp.distributed.ranks import Ranks
from fastmlp.errors import RankFailedError

SIZES = pytest.mark.parametrize("size", [1, 2, 4, 8])


def tree(vectors):
    """Return the sum of neighbours, of neighbouring sums, and so on."""
    if len(vectors) == 1:
        return vectors[0]
    half = len(vectors) // 2
    return tree(vectors[:half]) + tree(vectors[half:])


@SIZES
@pytest.mark.parametrize("halving", [False, True], ids=["whole", "halves"])
@pytest.mark.parametrize("length", [1, 7, 1000])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_sum_is_that_of_the_tree(monkeypatch, size, halving, length, dtype):
    monkeypatch.setattr(module, "HALVING_BYTES", 0 if halving else 2**40)
    generator = np.random.default_rng(size * length)
    # Of very different sizes: another order of the sum has other bits.
    given = (10.0 ** generator.uniform(-4, 4, (size, length))).astype(dtype)

    def add(communicator):
        values = given[communicator.rank].copy()
        Ranks(communicator).sum(values)
        return values.tobytes()

    assert set(run_on_threads(size, add)) == {tree(list(given)).tobytes()}
    if size > 2 and length == 1000:
        assert given.sum(axis=0, dtype=dtype).tobytes() != tree(list(given)).tobytes()


@SIZES
def test_messages_of_any_length_are_gathered(size):
    messages = [bytes([rank]) * (rank * 3 % 5) for rank in range(size)]
    found = run_on_threads(size, lambda each: Ranks(each).gather(messages[each.rank]))
    assert found == [messages] * size


def test_a_rank_that_never_comes_is_given_up(monkeypatch):
    monkeypatch.setattr(threads, "PATIENCE_SECONDS", 0.1)

    def work(communicator):
        if communicator.rank == 0:
            Ranks(communicator).sum(np.zeros(3))

    with pytest.raises(RankFailedError, match="got no message from rank 1"):
        run_on_threads(2, work)


def test_the_error_of_a_rank_is_raised_and_no_thread_is_left():
    before = threading.active_count()

    def work(communicator):
        if communicator.rank == 1:
            raise KeyError("mine")
        raise RankFailedError

    with pytest.raises(KeyError, match="mine"):
        run_on_threads(2, work)
    time.sleep(0.05)
    assert threading.active_count() == before
