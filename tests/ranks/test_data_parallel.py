"""Data-parallel fits: the same bits for any number of ranks, and the numbers of a plain loop."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastmlp
from fastmlp import MLP, Adam, EarlyStopping, schedules
from fastmlp.distributed import DataParallel, rows_of_rank, run_on_threads
from fastmlp.training.sharding import Sharding

RNG = np.random.default_rng(11)
ROWS = 101
X = RNG.normal(size=(ROWS, 5)).astype(np.float32)
Y = np.sin(X[:, :3]) + 0.1 * RNG.normal(size=(ROWS, 3)).astype(np.float32)
LABELS = RNG.integers(0, 3, ROWS)
WEIGHTS = RNG.random(ROWS) + 0.1
HELD = X[:30] + 1, Y[:30]


def fitted(communicator, shards, shared, make, arrays, weights, options):
    """Return a model that one rank has trained."""
    own = slice(None)
    if not shared:
        own = rows_of_rank(len(arrays[0]), communicator.rank, communicator.size)
    model = make()
    model.fit(
        *(each[own] for each in arrays),
        sample_weight=None if weights is None else weights[own],
        communicator=DataParallel(communicator, shards, shared),
        **options,
    )
    return model


def bits(model):
    """Return everything that a fit leaves, as bytes."""
    history, state = model.history, model._state
    columns = [
        np.asarray(each).tobytes()
        for name, each in sorted(history.values.items())
        if name != "seconds"
    ]
    numbers = state.steps, state.epochs, history.best_epoch
    return model.parameters.tobytes(), state.slots.tobytes(), *columns, repr(numbers)


def on_ranks(size, shards, make, arrays, weights=None, shared=True, **options):
    given = shards, shared, make, arrays, weights, options
    return run_on_threads(size, lambda communicator: fitted(communicator, *given))


OPTIMIZERS = st.sampled_from(
    [
        "adam",
        fastmlp.SGD(0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
        fastmlp.AdamW(schedules.CosineDecay(0.02, 20), clip_norm=0.5),
        fastmlp.RMSprop(0.01, clip_value=0.1),
    ]
)


@st.composite
def fits(draw):
    """Draw a small fit: a network, rows that do not divide, and what else changes a number."""
    rows = draw(st.integers(9, ROWS))
    labels = draw(st.booleans())
    options = {
        "epochs": 2,
        "batch_size": draw(st.integers(1, rows)) if rows < 40 else draw(st.integers(12, rows)),
        "optimizer": draw(OPTIMIZERS),
        "l2": draw(st.sampled_from([0.0, 0.1])),
        "shuffle": draw(st.booleans()),
        "validation_data": draw(st.sampled_from([None, HELD])),
    }
    if labels:
        options["validation_data"] = None
    hidden = draw(st.lists(st.integers(1, 20), min_size=0, max_size=2))
    settings_of_model = {
        "seed": draw(st.integers(0, 2**40)),
        "dtype": draw(st.sampled_from(["float32", "float64"])),
        "reduction": draw(st.sampled_from(["mean", "sum", "batch_mean"])),
        "dropout": draw(st.sampled_from([0.0, 0.4])) if hidden else 0.0,
    }
    if settings_of_model["reduction"] == "sum":
        options["optimizer"] = Adam(0.01)
    loss = "softmax_cross_entropy" if labels else "half_squared_error"
    make = lambda: MLP([5, *hidden, 3], "tanh", loss, **settings_of_model)  # noqa: E731
    weights = draw(st.sampled_from([None, WEIGHTS[:rows]]))
    arrays = X[:rows], (LABELS if labels else Y)[:rows]
    return make, arrays, weights, options, draw(st.sampled_from([8, 16]))


@settings(max_examples=25)
@given(fits(), st.booleans())
def test_the_number_of_ranks_changes_no_bit(fit, shared):
    make, arrays, weights, options, shards = fit
    first, *others = (
        bits(model)
        for size, kind in ((1, shared), (2, not shared), (4, shared), (8, not shared))
        for model in on_ranks(size, shards, make, arrays, weights, kind, **options)
    )
    for each in others:
        assert each == first


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["even", "weighted"])
def test_one_shard_gives_the_bits_of_a_plain_fit(dropout, weights):
    options = {"epochs": 3, "batch_size": 30, "optimizer": Adam(0.01), "validation_data": HELD}

    def make():
        return MLP([5, 17, 9, 3], seed=4, dropout=dropout)

    plain = make()
    plain.fit(X, Y, sample_weight=weights, **options)
    (found,) = on_ranks(1, 1, make, (X, Y), weights, **options)
    assert bits(found) == bits(plain)


def test_a_penalty_is_that_of_a_plain_fit():
    def make():
        return MLP([5, 17, 3], seed=4)

    plain, options = make(), {"epochs": 3, "batch_size": 30, "l2": 0.5}
    plain.fit(X, Y, sample_weight=WEIGHTS, **options)
    (found,) = on_ranks(1, 1, make, (X, Y), WEIGHTS, **options)
    assert found.parameters.tobytes() == plain.parameters.tobytes()
    assert plain.history.penalty.all()
    # The squares are summed in another order.
    np.testing.assert_allclose(found.history.penalty, plain.history.penalty, rtol=1e-6)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["even", "weighted"])
def test_a_fit_is_a_loop_of_steps_over_its_batches(weights):
    def make():
        return MLP([5, 17, 3], "tanh", seed=4, dtype="float64", dropout=0.2)

    x, y = X.astype(np.float64), Y.astype(np.float64)
    first, _ = on_ranks(2, 8, make, (x, y), weights, epochs=3, batch_size=30, optimizer="adam")
    model, part = make(), Sharding(ROWS, 30, 8).part(slice(None))
    for epoch in range(3):
        order, losses = part.order(4, epoch, True)[0], []
        for start in range(0, ROWS, 30):
            rows = order[start : start + 30]
            own = None if weights is None else weights[rows]
            losses.append(model.step(x[rows], y[rows], "adam", sample_weight=own))
        # The last digits are those of sums in another order.
        totals = [len(order[start : start + 30]) for start in range(0, ROWS, 30)]
        if weights is not None:
            totals = [weights[order[start : start + 30]].sum() for start in range(0, ROWS, 30)]
        wanted = np.average(losses, weights=totals)
        np.testing.assert_allclose(first.history.loss[epoch], wanted, rtol=1e-12)
    np.testing.assert_allclose(first.parameters, model.parameters, rtol=1e-9, atol=1e-12)


def test_the_reference_kernel_gives_the_same_numbers():
    def make():
        return MLP([5, 4, 3], "tanh", seed=4, dtype="float64", dropout=0.3)

    rest = 2, 4, make, (X[:20].astype(np.float64), Y[:20].astype(np.float64))
    options = {"epochs": 2, "batch_size": 7, "optimizer": Adam(0.01), "l2": 0.1}
    found = on_ranks(*rest, **options)[0]
    oracle = on_ranks(*rest, kernel="reference", **options)[0]
    np.testing.assert_allclose(found.parameters, oracle.parameters, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(found.history.penalty, oracle.history.penalty, rtol=1e-12)


def test_stopping_plateaus_and_the_best_epoch_are_those_of_one_rank():
    options = {
        "epochs": 30,
        "batch_size": 16,
        "optimizer": Adam(fastmlp.ReduceOnPlateau(0.05, patience=1)),
        "validation_data": HELD,
        "early_stopping": EarlyStopping(3, 0.05),
    }
    found = []
    for size in (1, 2, 4):
        found += [
            bits(each) for each in on_ranks(size, 8, lambda: MLP([5, 9, 3]), (X, Y), **options)
        ]
    assert len(set(found)) == 1
    assert 3 < len(np.frombuffer(found[0][2])) < 30


def test_a_second_fit_goes_on_from_the_first():
    def train(communicator):
        model = MLP([5, 9, 3])
        parallel = DataParallel(communicator, shared_rows=True)
        for epochs in (2, 3):
            model.fit(X, Y, epochs=epochs, optimizer="adam", communicator=parallel)
        return bits(model)

    assert len(set(sum((run_on_threads(size, train) for size in (1, 2, 4)), []))) == 1


def test_threads_of_a_rank_change_no_bit():
    def make():
        return MLP([5, 200, 150, 3])

    options = {"epochs": 2, "batch_size": 96, "optimizer": "adam"}
    found = [on_ranks(2, 2, make, (X, Y), threads=count, **options)[0] for count in (1, 3)]
    assert bits(found[0]) == bits(found[1])


def test_rows_of_a_memory_map_and_of_frames(tmp_path):
    pandas = pytest.importorskip("pandas")
    np.save(tmp_path / "X.npy", X)

    def of_map(communicator):
        model = MLP([5, 9, 3])
        parallel = DataParallel(communicator, shared_rows=True)
        rows = np.load(tmp_path / "X.npy", mmap_mode="r")
        model.fit(rows, Y, epochs=2, communicator=parallel)
        return bits(model)

    def of_frames(communicator):
        model = MLP([5, 9, 3])
        own = rows_of_rank(ROWS, communicator.rank, communicator.size)
        frame = pandas.DataFrame(X[own], columns=list("abcde"))
        model.fit(frame, Y[own], epochs=2, communicator=communicator)
        return bits(model)

    assert len(set(run_on_threads(2, of_map) + run_on_threads(4, of_frames))) == 1
