"""Small things that stop a newcomer for a minute each: accepted, or refused in plain words."""

import json
import logging

import numpy as np
import pytest

from fastmlp import MLP, SGD, Adam, DomainError, DTypeError, Ensemble, ShapeError
from fastmlp.schedules import CosineDecay, ExponentialDecay, InverseScaling, LinearWarmup, Schedule

RNG = np.random.default_rng(9)
X = RNG.normal(size=(12, 4))
Y = np.sin(X[:, 0])
LABELS = np.arange(12) % 3


def test_no_seed_draws_one_that_can_be_used_again():
    first, second = MLP([4, 3, 1], seed=None), MLP([4, 3, 1], seed=None)
    assert first.seed != second.seed and f"seed={first.seed}" in repr(first)
    assert json.loads(json.dumps(float(first.seed))) == first.seed
    again = MLP([4, 3, 1], seed=first.seed)
    for model in (first, again):
        model.fit(X, Y, batch_size=5, epochs=2)
    assert first.parameters.tobytes() == again.parameters.tobytes()
    several = Ensemble([4, 3, 1], 3, seed=None)
    alone = MLP([4, 3, 1], seed=several.seed + 2)
    assert np.array_equal(several[2].parameters, alone.parameters)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_rows_give_no_predictions(dtype):
    model = MLP([4, 3, 2], dtype=dtype)
    for empty in (X[:0], np.zeros((0, 4), dtype="int8"), X.astype("float32")[:0]):
        assert model.predict(empty).shape == (0, 2) and model.predict(empty).dtype == dtype
    assert Ensemble([4, 3, 2], 5).predict(X[:0]).shape == (5, 0, 2)
    assert Ensemble([4, 3, 2], 5).predict_mean(X[:0]).shape == (0, 2)
    with pytest.raises(ShapeError, match=r"X: got shape \(0, 3\), wanted \(rows, 4\)"):
        model.predict(np.zeros((0, 3)))
    for call in (model.forward, lambda x: model.evaluate(x, Y[:0]), lambda x: model.fit(x, Y[:0])):
        with pytest.raises(ShapeError, match="X: got no data"):
            call(X[:0])


def test_truth_values_are_labels():
    given, numbers = (MLP([4, 2], loss="softmax_cross_entropy") for _ in range(2))
    given.fit(X, Y > 0, batch_size=5)
    numbers.fit(X, (Y > 0).astype(int), batch_size=5)
    assert given.parameters.tobytes() == numbers.parameters.tobytes()
    assert given.evaluate(X, Y > 0) == numbers.evaluate(X, (Y > 0).astype(int))


def test_gradients_are_changed_in_place():
    model = MLP([4, 3, 1], dtype="float64")
    _, gradients = model.value_and_grad(X, Y)
    before, flat = gradients.flat.copy(), gradients.flat
    gradients.flat *= 0.5
    assert gradients.flat is flat and np.array_equal(flat, 0.5 * before)
    gradients.flat = before
    assert gradients.flat is flat and np.array_equal(flat, before)
    gradients.weights[0] += 1.0
    gradients.biases = [np.ones(3), np.ones(1)]
    assert np.array_equal(flat[:12], before[:12] + 1.0) and flat[-1] == 1.0
    gradients.weights = [np.zeros((4, 3)), np.zeros((3, 1))]
    assert not flat[:12].any()
    with pytest.raises(ShapeError, match="gradients.flat: got shape"):
        gradients.flat = before[:-1]
    assert "19 parameters in 2 layers" in repr(gradients)


def test_clipped_gradients_are_applied():
    """As a loop of one's own clips them: through the property of the model."""
    model = MLP([4, 3, 1], dtype="float64")
    before = model.parameters.copy()
    model.forward(X)
    model.compute_loss(Y)
    model.backward()
    expected = model.gradients.flat.copy()
    model.gradients.flat *= 0.25
    model.apply(SGD(1.0))
    np.testing.assert_allclose(model.parameters, before - 0.25 * expected, rtol=1e-12)


def test_a_slice_of_the_layers_is_assigned():
    model = MLP([4, 3, 2, 1])
    kept = model.weights[1].copy()
    model.weights[::2] = [np.full((4, 3), 2.0), np.full((2, 1), 3.0)]
    assert (model.weights[0] == 2).all() and (model.weights[2] == 3).all()
    assert np.array_equal(model.weights[1], kept)
    model.biases[:] = [np.ones(3), np.ones(2), np.ones(1)]
    assert all((each == 1).all() for each in model.biases)
    before = model.parameters.copy()
    with pytest.raises(ShapeError, match="weights: got 1 arrays, wanted 2"):
        model.weights[:2] = [np.zeros((4, 3))]
    with pytest.raises(ShapeError, match=r"weights\[1\]: got shape \(9,\), wanted \(3, 2\)"):
        model.weights[:2] = [np.zeros((4, 3)), np.zeros(9)]
    with pytest.raises(DTypeError, match="weights: got float, wanted 3 arrays"):
        model.weights = 0.0
    assert np.array_equal(model.parameters, before)


def test_an_accuracy_needs_classes():
    model = MLP([4, 3, 1])
    with pytest.raises(DomainError, match="metric: got 'accuracy' with half_squared_error and tar"):
        model.evaluate(X, Y, "accuracy")
    with pytest.raises(DomainError, match="wanted 'r2', or targets that are 0 or 1"):
        Ensemble([4, 3, 1], 2).evaluate(X, LABELS.astype(float), "accuracy")
    # Sigmoids under a squared error classify, also several outputs at once.
    sigmoids = MLP([4, 3, 1], ["sigmoid", "sigmoid"])
    assert 0 <= sigmoids.evaluate(X, (Y > 0).astype(float), "accuracy").score <= 1
    several = MLP([4, 3], ["sigmoid"])
    assert 0 <= several.evaluate(X, np.eye(3)[LABELS], "acc").score <= 1
    assert model.evaluate(X, Y).metric == "r2"


@pytest.mark.parametrize("of", [MLP, Ensemble])
def test_an_optimizer_that_starts_afresh_is_warned_of(of, caplog):
    model = of([4, 3, 1])
    with caplog.at_level(logging.WARNING, "fastmlp"):
        model.fit(X, Y, batch_size=5, optimizer=Adam(0.01))
        model.fit(X, Y, batch_size=5, optimizer=Adam(0.02))
        assert not caplog.records
        model.fit(X, Y, batch_size=5, optimizer=SGD(0.01, momentum=0.9))
    (record,) = caplog.records
    assert record.message.startswith("optimizer: momentum takes over from adam with a fresh state")


def test_numbers_of_schedules_are_checked_when_they_are_made():
    bad = [
        (lambda: ExponentialDecay(-1.0, 0.5), "initial: got -1.0"),
        (lambda: ExponentialDecay(0.1, 0), "decay: got 0, wanted a finite number > 0"),
        (lambda: ExponentialDecay(0.1, 0.5, every=0), "every: got 0"),
        (lambda: InverseScaling(0.1, float("nan")), "power: got nan"),
        (lambda: InverseScaling("0.1"), "initial: got '0.1'"),
        (lambda: CosineDecay(1e-3, steps=0), "steps: got 0"),
        (lambda: CosineDecay(1e-3, 10, final=-1e-3), "final: got -0.001"),
        (lambda: LinearWarmup(0, 1e-3), "steps: got 0"),
        (lambda: LinearWarmup(10, -1e-3), "then: got -0.001"),
        (lambda: LinearWarmup(10, "cosine"), "then: got 'cosine'"),
    ]
    for make, message in bad:
        with pytest.raises((DomainError, DTypeError)) as caught:
            make()
        assert str(caught.value).startswith(message)


def test_a_warm_up_ends_at_a_number_or_at_any_callable():
    steps = np.arange(6)
    expected = [0.05, 0.1, 0.15, 0.2, 0.2, 0.2]
    np.testing.assert_allclose(LinearWarmup(4, 0.2)(steps), expected)
    np.testing.assert_allclose(LinearWarmup(4, lambda step: 0.2)(steps), expected)
    assert float(LinearWarmup(4, 0.2)(1)) == pytest.approx(0.1)
    falling = LinearWarmup(2, lambda step: 0.2 / (1 + step))
    np.testing.assert_allclose(falling(steps[:4]), [0.1, 0.2, 0.2, 0.1])


class Scalar(Schedule):
    def __call__(self, step):
        return 0.1


class Longer(Schedule):
    def __call__(self, step):
        return np.full(np.size(step) + 1, 0.1)


BAD_SCHEDULES = {
    "nothing": (lambda step: None, DTypeError, "got None from the schedule at step 0"),
    "text": (lambda step: "fast", DTypeError, "got 'fast' from the schedule at step 0"),
    "several": (lambda step: [0.1, 0.2], ShapeError, r"got shape \(2,\) from the schedule at step"),
    "one for all": (Scalar(), ShapeError, r"got shape \(\) from the schedule at an array of steps"),
    "one too many": (
        Longer(),
        ShapeError,
        r"got shape \(\d+,\) .* wanted \(\d+,\), one rate a step",
    ),
}


@pytest.mark.parametrize("case", BAD_SCHEDULES)
def test_a_schedule_that_gives_no_rates_is_refused(case):
    schedule, error, message = BAD_SCHEDULES[case]
    model = MLP([4, 3, 1])
    before = model.parameters.copy()
    for call in (
        lambda: model.step(X, Y, SGD(schedule)),
        lambda: model.fit(X, Y, batch_size=4, optimizer=SGD(schedule)),
    ):
        with pytest.raises(error, match=f"learning_rate: {message}"):
            call()
    assert np.array_equal(model.parameters, before)


def test_an_error_in_a_schedule_comes_through_with_its_step():
    def broken(step):
        return {0: 0.1, 1: 0.1}[step]

    with pytest.raises(KeyError) as caught:
        MLP([4, 3, 1]).fit(X, Y, batch_size=4, optimizer=SGD(broken))
    assert caught.value.__notes__ == ["learning_rate: the schedule raised this at step 2"]
