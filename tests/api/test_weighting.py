"""Weights of rows and classes, and the L2 penalty of the weights."""

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from fastmlp import MLP, SGD, Adam
from fastmlp.data.weighting import class_weights, row_factors
from fastmlp.errors import DomainError, DTypeError, ShapeError
from fastmlp_kernels.problem import REDUCTIONS, Problem

RNG = np.random.default_rng(7)
ROWS = 23
X = RNG.normal(size=(ROWS, 4))
TARGETS = RNG.normal(size=(ROWS, 3))
LABELS = RNG.integers(0, 3, ROWS)
COUNTS = RNG.integers(0, 4, ROWS)
KINDS = {
    "elements": ("half_squared_error", "identity", TARGETS),
    "one output": ("huber", "identity", TARGETS[:, :1]),
    "labels": ("softmax_cross_entropy", "identity", LABELS),
    "one-hot": ("softmax_cross_entropy", "identity", np.eye(3)[LABELS]),
    "binary": ("binary_cross_entropy", "sigmoid", np.eye(3)[LABELS]),
}


def model_of(kind, reduction="mean", **more):
    loss, output, y = KINDS[kind]
    outputs = 1 if kind == "one output" else 3
    sizes = [4, 6, outputs]
    model = MLP(sizes, ["tanh", output], loss, dtype="float64", reduction=reduction, **more)
    return model, y


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_of_n_is_the_row_n_times(kind, reduction):
    model, y = model_of(kind, reduction)
    repeated = np.repeat(np.arange(ROWS), COUNTS)
    loss, gradients = model.value_and_grad(X, y, sample_weight=COUNTS)
    expected, wanted = model.value_and_grad(X[repeated], y[repeated])
    assert loss == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(gradients.flat, wanted.flat, rtol=1e-10, atol=1e-14)
    plain, _ = model.value_and_grad(X, y)
    assert abs(plain - loss) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_of_a_weighted_step_have_the_bits_of_the_whole(kind):
    whole, y = model_of(kind, seed=3)
    parts, _ = model_of(kind, seed=3)
    weights = RNG.uniform(0, 2, ROWS)
    loss = whole.step(X, y, Adam(0.01), sample_weight=weights)
    parts.forward(X)
    assert parts.compute_loss(y, sample_weight=weights) == loss
    parts.backward()
    parts.apply(Adam(0.01))
    assert parts.parameters.tobytes() == whole.parameters.tobytes()
    fitted, _ = model_of(kind, seed=3)
    fitted.fit(
        X, y, epochs=1, batch_size=ROWS, shuffle=False, optimizer=Adam(0.01), sample_weight=weights
    )
    assert fitted.parameters.tobytes() == whole.parameters.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_of_mini_batches_weighs_each_by_its_own_rows(kind):
    """Against steps one by one, and the loss of the epoch as the weighted mean of all rows."""
    weights = RNG.uniform(0.1, 2, ROWS)
    fitted, y = model_of(kind)
    by_hand, _ = model_of(kind)
    history = fitted.fit(
        X, y, epochs=1, batch_size=5, shuffle=False, optimizer=SGD(0.1), sample_weight=weights
    )
    losses, totals = [], []
    for start in range(0, ROWS, 5):
        rows = slice(start, start + 5)
        losses.append(by_hand.step(X[rows], y[rows], SGD(0.1), sample_weight=weights[rows]))
        totals.append(weights[rows].sum())
    assert fitted.parameters.tobytes() == by_hand.parameters.tobytes()
    assert history.loss[0] == pytest.approx(np.average(losses, weights=totals), rel=1e-12)


def test_rows_of_weight_zero_are_as_if_they_were_not_there():
    model, y = model_of("labels")
    other, _ = model_of("labels")
    weights = (np.arange(ROWS) % 3 > 0).astype(float)
    kept = weights > 0
    model.step(X, y, SGD(0.5), sample_weight=weights)
    other.step(X[kept], y[kept], SGD(0.5))
    np.testing.assert_allclose(model.parameters, other.parameters, rtol=1e-12)


def test_a_batch_without_any_weight_changes_nothing():
    model, y = model_of("elements")
    before = model.parameters.copy()
    weights = np.r_[np.zeros(5), np.ones(ROWS - 5)]
    assert model.step(X[:5], y[:5], SGD(0.5), sample_weight=weights[:5]) == 0
    assert np.array_equal(model.parameters, before)
    history = model.fit(X, y, epochs=2, batch_size=5, shuffle=False, sample_weight=weights)
    assert np.isfinite(history.loss).all()


def test_class_weights_multiply_those_of_the_rows():
    given = {0: 0.5, 1: 1.0, 2: 3.0}
    by_class, y = model_of("labels")
    by_row, _ = model_of("labels")
    weights = RNG.uniform(0.5, 1, ROWS)
    product = weights * np.array([0.5, 1.0, 3.0])[y]
    arguments = {"epochs": 3, "batch_size": 7}
    by_class.fit(X, y, class_weight=given, sample_weight=weights, **arguments)
    by_row.fit(X, y, sample_weight=product, **arguments)
    assert by_class.parameters.tobytes() == by_row.parameters.tobytes()


def test_balanced_class_weights_are_scikit_learns():
    model, y = model_of("labels")
    data, _ = model._admit(X, y, model._where)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=y)[y]
    np.testing.assert_allclose(class_weights("balanced", data), expected, rtol=1e-14)
    # A class that is not there takes no part.
    few = model._admit(X[:4], np.array([0, 2, 2, 2]), model._where)[0]
    np.testing.assert_allclose(class_weights("balanced", few), [2, 2 / 3, 2 / 3, 2 / 3])


def test_class_weights_of_one_column_of_zeros_and_ones():
    model = MLP([4, 1], ["sigmoid"], "binary_cross_entropy")
    data = model._admit(X, LABELS > 0, model._where)[0]
    weights = class_weights("balanced", data)
    assert weights[LABELS > 0].sum() == pytest.approx(weights[LABELS == 0].sum())


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_factors_of_a_mean_sum_to_one_in_each_batch(reduction):
    problem = Problem((4, 3), ("identity",), "huber", reduction=reduction, dtype="float64")
    weights = np.array([1.0, 2, 3, 0, 4, 0, 0])
    starts = np.array([0, 3, 5])
    factors, of_batch = row_factors(problem, weights, starts)
    outputs = 3 if reduction == "mean" else 1
    if reduction == "sum":
        np.testing.assert_array_equal(factors, weights)
        np.testing.assert_array_equal(of_batch, [1, 1, 1])
    else:
        sums = outputs * np.add.reduceat(factors, starts)
        np.testing.assert_allclose(sums, [1, 1, 0], rtol=1e-15)
        np.testing.assert_array_equal(of_batch, [1 / 6, 1 / 4, 0])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_an_l2_penalty_by_hand(reduction, weighted):
    """Its gradient l2 W over the batch's weights, none for the biases, and its value apart."""
    l2, rate = 0.7, 0.1
    model, y = model_of("elements", reduction)
    model.biases[0][...] = 1.0
    weights = RNG.uniform(0.5, 2, ROWS) if weighted else None
    _, gradients = model.value_and_grad(X, y, sample_weight=weights)
    total = 1.0 if reduction == "sum" else ROWS if weights is None else weights.sum()
    expected = model.parameters - rate * gradients.flat
    for layer in model._layout():
        expected[layer.weight] -= rate * l2 / total * model.parameters[layer.weight]
    squares = sum((W**2).sum() for W in model.weights)
    arguments = {"epochs": 1, "batch_size": ROWS, "shuffle": False, "sample_weight": weights}
    history = model.fit(X, y, optimizer=SGD(rate), l2=l2, **arguments)
    np.testing.assert_allclose(model.parameters, expected, rtol=1e-12)
    assert history.penalty[0] == pytest.approx(l2 / 2 * squares / total, rel=1e-12)
    unpenalized, _ = model_of("elements", reduction)
    unpenalized.biases[0][...] = 1.0
    apart = unpenalized.fit(X, y, optimizer=SGD(rate), **arguments)
    assert apart.loss[0] == history.loss[0] and apart.penalty[0] == 0


@pytest.mark.parametrize("optimizer", [SGD(0.01), Adam(0.01)], ids=["sgd", "adam"])
def test_a_penalty_counts_every_weight_of_every_batch_once(optimizer):
    """Across panels and with one output: the sum of squares before each step."""
    y = TARGETS[:, :1]
    model = MLP([4, 70, 37, 1], "tanh", dtype="float64")
    by_hand = MLP([4, 70, 37, 1], "tanh", dtype="float64")
    model.fit(X, y, epochs=1, batch_size=6, shuffle=False, optimizer=optimizer, l2=1e-12)
    values = []
    for start in range(0, ROWS, 6):
        values.append(sum((W**2).sum() for W in by_hand.weights) / len(X[start : start + 6]))
        by_hand.step(X[start : start + 6], y[start : start + 6], optimizer)
    sizes = [6, 6, 6, 5]
    penalty = model.history.penalty[0] / (0.5e-12)
    assert penalty == pytest.approx(np.average(values, weights=sizes), rel=1e-9)


BAD_WEIGHTS = [
    ({"sample_weight": np.ones(3)}, ShapeError, r"sample_weight: got shape \(3,\)"),
    ({"sample_weight": -np.ones(ROWS)}, DomainError, "sample_weight: got -1.0"),
    ({"sample_weight": np.full(ROWS, np.nan)}, DomainError, "sample_weight: got nan"),
    ({"sample_weight": np.zeros(ROWS)}, DomainError, "sample_weight: got only zeros"),
    ({"sample_weight": ["a"] * ROWS}, DTypeError, "sample_weight: got"),
    ({"class_weight": "even"}, DomainError, "class_weight: got 'even'"),
    ({"class_weight": 3}, DTypeError, "class_weight: got int"),
    ({"class_weight": {7: 1.0}}, DomainError, "class_weight: got a weight of class 7"),
    (
        {"sample_weight": np.full(ROWS, 1e308)},
        DomainError,
        "sample_weight: got weights that sum to",
    ),
    ({"sample_weight": np.full(ROWS, 1e38)}, DomainError, "wanted a sum of at most 3.4e"),
    (
        {"class_weight": {0: 1e30, 1: 1.0, 2: 1.0}, "sample_weight": np.full(ROWS, 1e30)},
        DomainError,
        "class_weight: got weights that sum to",
    ),
    ({"class_weight": {0: 1.0, 2: 1.0}}, DomainError, "class_weight: got no weight of class 1"),
    ({"class_weight": {0: 1.0, 1: -2.0}}, DomainError, r"class_weight\[1\]: got -2.0"),
    ({"class_weight": {0: 1.0, 1: "2"}}, DTypeError, r"class_weight\[1\]: got '2'"),
    ({"class_weight": {"a": 1.0}}, DomainError, "class_weight: got a weight of class 'a'"),
    ({"class_weight": {1.5: 1.0}}, DomainError, "class_weight: got a weight of class 1.5"),
    ({"l2": -1}, DomainError, "l2: got -1"),
    ({"l2": "much"}, DTypeError, "l2: got 'much'"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_WEIGHTS)
def test_bad_weights_are_refused_before_anything_changes(arguments, error, message):
    model, y = model_of("labels")
    before = model.parameters.copy()
    with pytest.raises(error, match=message):
        model.fit(X, y, batch_size=5, **arguments)
    assert np.array_equal(model.parameters, before) and model.history is None


@pytest.mark.parametrize("value", [1e308, 1e38])
def test_weights_whose_sum_overflows_are_refused_everywhere(value):
    """They made NaN of the history, and trained nothing, without a word."""
    model, y = model_of("labels")
    weights = np.full(ROWS, value)
    for call in (model.step, model.value_and_grad):
        with pytest.raises(DomainError, match="sample_weight: got weights that sum to"):
            call(X, y, sample_weight=weights)
    model.forward(X)
    with pytest.raises(DomainError, match="sample_weight: got weights that sum to"):
        model.compute_loss(y, sample_weight=weights)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("value", [5e-324, 1e-310, 1e-300, 1e36])
def test_weights_of_any_size_leave_finite_numbers(value, reduction):
    model, y = model_of("labels", reduction)
    weights = np.r_[np.full(5, value), np.ones(ROWS - 5)]
    history = model.fit(
        X, y, epochs=1, batch_size=5, shuffle=False, sample_weight=weights, optimizer=SGD(1e-40)
    )
    assert np.isfinite(history.loss).all() and np.isfinite(model.parameters).all()


def test_class_weight_needs_classes():
    model, y = model_of("elements")
    with pytest.raises(DomainError, match="class_weight: got targets of shape"):
        model.fit(X, y, batch_size=5, class_weight="balanced")
