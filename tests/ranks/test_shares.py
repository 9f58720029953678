"""How rows are shared: parts of parts, and batches of the sizes that any fit has."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmlp.distributed import rows_of_rank
from fastmlp.distributed.shares import shares
from fastmlp.errors import DomainError, DTypeError
from fastmlp.training.sharding import Sharding

POWERS = st.integers(0, 5).map(lambda k: 1 << k)
ROWS = st.integers(1, 300)


def halved(rows, parts):
    """Return what repeated halving gives, written as it is said."""
    if parts == 1:
        return [rows]
    return halved(rows // 2, parts // 2) + halved(rows - rows // 2, parts // 2)


@given(st.integers(0, 2**40), POWERS)
def test_shares_are_those_of_halving(rows, parts):
    assert shares(rows, parts).tolist() == halved(rows, parts)


@given(st.integers(0, 10**6), POWERS, POWERS)
def test_the_parts_of_a_rank_are_those_of_its_own_rows(rows, ranks, shards):
    finer = [shares(each, shards).tolist() for each in shares(rows, ranks).tolist()]
    assert sum(finer, []) == shares(rows, ranks * shards).tolist()


@given(st.integers(32, 1000), POWERS)
def test_the_rows_of_ranks_are_all_rows_once(rows, size):
    own = [np.arange(rows)[rows_of_rank(rows, rank, size)] for rank in range(size)]
    np.testing.assert_array_equal(np.concatenate(own), np.arange(rows))


@given(ROWS, st.integers(1, 80), POWERS)
def test_batches_have_the_sizes_of_any_fit(rows, batch_size, shards):
    batch_size = min(rows, batch_size)
    sharding = Sharding(rows, batch_size, shards)
    wanted = [min(batch_size, rows - first) for first in range(0, rows, batch_size)]
    assert sharding.counts.sum(axis=1).tolist() == wanted
    assert (sharding.counts >= 0).all()
    assert sharding.counts.max() == sharding.most <= -(-batch_size // shards)


@given(ROWS, st.integers(1, 80), POWERS, POWERS, st.integers(0, 3))
def test_the_parts_of_ranks_are_the_parts_of_one(rows, batch_size, shards, ranks, epoch):
    ranks = min(ranks, shards, 1 << (rows.bit_length() - 1))
    sharding = Sharding(rows, min(rows, batch_size), shards)
    whole = sharding.part(slice(None))
    order = whole.order(7, epoch, True)[0]
    assert sorted(order) == list(range(rows))
    share = shards // ranks
    for rank in range(ranks):
        own = sharding.part(slice(share * rank, share * (rank + 1)))
        first = rows_of_rank(rows, rank, ranks).start
        mine = np.isin(whole.shard_of, own.numbers)
        np.testing.assert_array_equal(own.order(7, epoch, True)[0] + first, order[mine])


def test_with_one_shard_the_order_is_that_of_any_fit():
    from fastmlp.data.shuffling import Orders

    part = Sharding(101, 16, 1).part(slice(None))
    orders = Orders([5], [0], 101, 3, shuffle=True, threads=1)
    for epoch in range(3):
        np.testing.assert_array_equal(part.order(5, epoch, True), orders.next())


def test_each_shard_and_epoch_has_an_order_of_its_own():
    part = Sharding(400, 400, 4).part(slice(None))
    orders = [
        order - order.min() for k in (0, 1) for order in part.order(5, k, True).reshape(4, -1)
    ]
    assert len({order.tobytes() for order in orders}) == 8


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((10, 0, 3), DomainError),
        ((10, 2, 2), DomainError),
        ((10, 0.0, 2), DTypeError),
        ((3, 0, 4), DomainError),
    ],
    ids=["no power of two", "no such rank", "no whole number", "fewer rows than ranks"],
)
def test_ranks_that_are_none_are_refused(arguments, error):
    with pytest.raises(error, match="got"):
        rows_of_rank(*arguments)
