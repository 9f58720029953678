"""Schedules of the learning rate, the two forms of momentum and of Adam's epsilon."""

import pickle

import numpy as np
import pytest

from fastmlp import MLP, SGD, Adam, schedules
from fastmlp.errors import DomainError, DTypeError, ShapeError
from fastmlp.schedules import (
    CosineDecay,
    ExponentialDecay,
    InverseScaling,
    LinearDecay,
    LinearWarmup,
    OneCycle,
    PiecewiseConstant,
    StepDecay,
)

RNG = np.random.default_rng(2)
X = RNG.normal(size=(30, 3))
Y = np.sin(X[:, :2])

ALL = [
    ExponentialDecay(0.1, 0.9, 3),
    InverseScaling(0.1, 0.7),
    CosineDecay(0.1, 8, 0.01),
    LinearWarmup(4, CosineDecay(0.1, 8)),
    LinearDecay(0.1, 8, 0.02),
    OneCycle(0.1, 13, 0.3, 20, 50),
    StepDecay(0.1, 0.5, 2),
    PiecewiseConstant([1, 2, 5, 9, 12], [0.3, 0.2, 0.4, 0.1, 0.05, 0.01]),
]

FORMULAS = {
    ExponentialDecay: lambda step: 0.1 * 0.9 ** (step / 3),
    InverseScaling: lambda step: 0.1 / (step + 1) ** 0.7,
    LinearDecay: lambda step: 0.1 - 0.08 * min(step, 8) / 8,
    LinearWarmup: lambda step: 0.1 * (step + 1) / 4 if step < 4 else rate_of_cosine(step - 4, 0.0),
    CosineDecay: lambda step: rate_of_cosine(step, 0.01),
    OneCycle: lambda step: (
        0.005 + 0.095 * (1 - np.cos(np.pi * step / 2.9)) / 2
        if step < 2.9
        else 0.0001 + 0.0999 * (1 + np.cos(np.pi * (min(step, 12) - 2.9) / 9.1)) / 2
    ),
    StepDecay: lambda step: 0.1 / 2 ** (step // 2),
    PiecewiseConstant: lambda step: [0.3, 0.2, 0.4, 0.1, 0.05, 0.01][
        sum(step >= each for each in (1, 2, 5, 9, 12))
    ],
}


def rate_of(schedule, step):
    """Return the rate by the formula, in plain Python."""
    return FORMULAS[type(schedule)](step)


def rate_of_cosine(step, final):
    return final + (0.1 - final) * (1 + np.cos(np.pi * min(step, 8) / 8)) / 2


@pytest.mark.parametrize("schedule", ALL, ids=lambda each: type(each).__name__)
def test_schedules_by_their_formulas(schedule):
    steps = np.arange(15)
    expected = [rate_of(schedule, int(step)) for step in steps]
    np.testing.assert_allclose(schedule(steps), expected, rtol=1e-14, atol=1e-17)
    np.testing.assert_allclose([float(schedule(int(k))) for k in steps], expected, atol=1e-17)
    assert len({round(each, 9) for each in expected}) > 5


def test_every_schedule_is_tested():
    shipped = {value for value in vars(schedules).values() if isinstance(value, type)}
    named = {each for each in shipped if issubclass(each, schedules.Schedule)}
    assert {type(each) for each in ALL} == named - {schedules.Schedule}


def theirs(torch, name, initial, steps, **settings):
    """Return the rates that a scheduler of PyTorch gives."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=initial)
    scheduler = getattr(torch.optim.lr_scheduler, name)(optimizer, **settings)
    rates = []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("schedule", "name", "settings"),
    [
        (StepDecay(0.2, 0.1, 3), "StepLR", {"step_size": 3, "gamma": 0.1}),
        (
            LinearDecay(0.2, 7, 0.05),
            "LinearLR",
            {"start_factor": 1.0, "end_factor": 0.25, "total_iters": 7},
        ),
        (
            PiecewiseConstant([2, 6], [0.2, 0.1, 0.05]),
            "MultiStepLR",
            {"milestones": [2, 6], "gamma": 0.5},
        ),
        (
            OneCycle(0.2, 20),
            "OneCycleLR",
            {"max_lr": 0.2, "total_steps": 20, "cycle_momentum": False},
        ),
        (
            OneCycle(0.2, 4, 0.0),
            "OneCycleLR",
            {"max_lr": 0.2, "total_steps": 4, "cycle_momentum": False, "pct_start": 0.0},
        ),
        (
            OneCycle(0.2, 21, 0.45, 10, 100),
            "OneCycleLR",
            {
                **{"max_lr": 0.2, "total_steps": 21, "cycle_momentum": False},
                **{"pct_start": 0.45, "div_factor": 10, "final_div_factor": 100},
            },
        ),
    ],
)
def test_schedules_are_those_of_pytorch(schedule, name, settings):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    count = settings.get("total_steps", 13)
    expected = theirs(torch, name, 0.2, count, **settings)
    np.testing.assert_allclose(schedule(np.arange(count)), expected, rtol=1e-12)


def test_a_schedule_survives_a_pickle_and_is_compared_by_its_numbers():
    for schedule in ALL:
        again = pickle.loads(pickle.dumps(schedule))
        assert again == schedule and hash(again) == hash(schedule)
        assert repr(again) == repr(schedule) and "0x" not in repr(schedule)


def test_one_cycle_that_rises_for_one_step_begins_at_its_maximum():
    """PyTorch divides by zero there."""
    assert float(OneCycle(0.1, 10, warmup=0.1)(0)) == 0.1


@pytest.mark.parametrize(
    ("make", "error", "part"),
    [
        (lambda: PiecewiseConstant([3, 3], [1, 2, 3]), DomainError, "boundaries: got .*above"),
        (lambda: PiecewiseConstant([3], [1]), ShapeError, "rates: got 1 with 1 boundaries"),
        (lambda: PiecewiseConstant(3, [1, 2]), DTypeError, "boundaries: got 3, wanted a list"),
        (lambda: PiecewiseConstant([3], [1, -2]), DomainError, r"rates\[1\]: got -2"),
        (lambda: OneCycle(0.1, 10, warmup=1.0), DomainError, "warmup: got 1.0"),
        (lambda: OneCycle(0.1, 10, final_divisor=0), DomainError, "final_divisor: got 0"),
        (lambda: StepDecay(0.1, 0.5, 0), DomainError, "every: got 0"),
        (lambda: LinearDecay(0.1, 0), DomainError, "steps: got 0"),
    ],
)
def test_numbers_that_make_no_schedule_are_refused(make, error, part):
    with pytest.raises(error, match=part):
        make()


@pytest.mark.parametrize("schedule", [*ALL, lambda step: 0.1 / (1 + step)])
@pytest.mark.parametrize("kind", [SGD, Adam])
def test_a_scheduled_fit_is_steps_with_the_rates_of_the_schedule(kind, schedule):
    fitted = MLP([3, 5, 2], "tanh", dtype="float64")
    by_hand = MLP([3, 5, 2], "tanh", dtype="float64")
    history = fitted.fit(X, Y, epochs=2, batch_size=7, shuffle=False, optimizer=kind(schedule))
    for step in range(10):
        start = step % 5 * 7
        rate = float(schedule(step))
        by_hand.step(X[start : start + 7], Y[start : start + 7], kind(rate))
    np.testing.assert_allclose(fitted.parameters, by_hand.parameters, rtol=1e-13)
    assert history.learning_rate == pytest.approx([float(schedule(4)), float(schedule(9))])


def test_a_step_counts_on_where_the_fit_stopped():
    schedule = ExponentialDecay(0.1, 0.5)
    model = MLP([3, 2], "tanh", dtype="float64")
    model.fit(X, Y, epochs=1, batch_size=10, optimizer=SGD(schedule))
    before, (_, gradients) = model.parameters.copy(), model.value_and_grad(X, Y)
    model.step(X, Y, SGD(schedule))
    np.testing.assert_allclose(before - model.parameters, 0.1 / 8 * gradients.flat, rtol=1e-9)


@pytest.mark.parametrize("bad", [lambda step: -1.0, lambda step: float("nan") if step > 2 else 0.1])
def test_a_bad_rate_of_a_schedule_names_its_step(bad):
    model = MLP([3, 2], "tanh")
    before = model.parameters.copy()
    with pytest.raises(DomainError, match=r"learning_rate: got .* from the schedule at step [03]"):
        model.fit(X, Y, batch_size=5, optimizer=SGD(bad))
    assert np.array_equal(before, model.parameters)


def gradient_at(parameters):
    model = MLP([3, 2], ["identity"], dtype="float64")
    model.parameters = parameters
    return model.value_and_grad(X, Y)[1].flat.copy()


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_velocity_that_holds_the_rate(nesterov):
    """Keras's and scikit-learn's form by hand, and PyTorch's until the rate changes."""
    rates = [0.1, 0.1, 0.02, 0.05]
    model, torch_like = (MLP([3, 2], ["identity"], dtype="float64") for _ in range(2))
    p, v = model.parameters.copy(), 0.0
    for count, rate in enumerate(rates, start=1):
        g = gradient_at(p)
        v = 0.9 * v - rate * g
        p = p + (0.9 * v - rate * g if nesterov else v)
        optimizer = {"momentum": 0.9, "nesterov": nesterov}
        model.step(X, Y, SGD(rate, rate_in_velocity=True, **optimizer))
        torch_like.step(X, Y, SGD(rate, **optimizer))
        np.testing.assert_allclose(model.parameters, p, rtol=1e-12)
        same = np.allclose(model.parameters, torch_like.parameters, rtol=1e-12)
        assert same == (count <= 2)


def test_epsilon_hat_is_beside_the_raw_root():
    epsilon = 1e-3
    model, torch_like = (MLP([3, 2], ["identity"], dtype="float64") for _ in range(2))
    p, m, v = model.parameters.copy(), 0.0, 0.0
    for t in range(1, 4):
        g = gradient_at(p)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        rate = 0.01 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        p = p - rate * m / (np.sqrt(v) + epsilon)
        model.step(X, Y, Adam(0.01, epsilon=epsilon, epsilon_hat=True))
        torch_like.step(X, Y, Adam(0.01, epsilon=epsilon))
        np.testing.assert_allclose(model.parameters, p, rtol=1e-12)
    assert not np.allclose(model.parameters, torch_like.parameters, rtol=1e-6)
