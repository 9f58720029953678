"""Learning rates that fall on a plateau of the loss, in fits and in fits that are resumed."""

import numpy as np
import pytest

import fastmlp
from fastmlp import MLP, SGD, Adam, Checkpoint, EarlyStopping, Ensemble, ReduceOnPlateau
from fastmlp.errors import CallOrderError, DomainError, DTypeError, ModelFileError
from fastmlp.plateau import Plateau
from fastmlp.schedules import CosineDecay, LinearWarmup

RNG = np.random.default_rng(6)
X = RNG.normal(size=(64, 4))
Y = np.sin(X[:, :1]) + 0.3 * RNG.normal(size=(64, 1))
HELD = X[:20] + 1, np.sin(X[:20, :1])
RULE = ReduceOnPlateau(0.05, factor=0.5, patience=1, tolerance=0.05, cooldown=1, minimum=0.01)


def fresh(members=None):
    if members is None:
        return MLP([4, 6, 1], "tanh", dtype="float64")
    return Ensemble([4, 6, 1], members, "tanh", dtype="float64")


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize(("patience", "cooldown"), [(1, 0), (3, 0), (2, 4)])
def test_the_decisions_are_those_of_pytorch(patience, cooldown, relative):
    """Its patience is one less; no two losses here are nearer than the tolerance."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    losses = np.round(np.exp(-np.arange(200) / 60) * RNG.uniform(0.7, 1.3, 200), 2)
    losses[[30, 31, 90]] = np.inf, np.nan, np.nan
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    mode = "rel" if relative else "abs"
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, "min", 0.5, patience - 1, 1e-3, mode, cooldown, min_lr=0.002, eps=0.0
    )
    rule = ReduceOnPlateau(0.1, 0.5, patience, 1e-3, cooldown, 0.002, relative=relative)
    ours, rates, falls = Plateau(rule, {"loss": False, "validation_loss": False}), [], []
    for epoch, loss in enumerate(losses.tolist(), start=1):
        theirs.step(loss)
        before = ours.falls
        assert ours.observe(epoch, loss) == (ours.falls > before)
        rates.append((rule.after(ours.falls), optimizer.param_groups[0]["lr"]))
        falls.append(ours.falls)
    np.testing.assert_allclose(*np.transpose(rates), rtol=1e-12)
    assert falls[-1] >= 5 and min(rates)[0] == 0.002


def by_hand(rule, watched):
    """Return the rates of epochs whose watched losses are given, and of the one after them."""
    rates, best, waited, cooling, rate = [rule.initial], np.inf, 0, 0, rule.initial
    for value in watched:
        waited = 0 if value < best - rule.tolerance * (best if best < np.inf else 0) else waited + 1
        best = min(best, value)
        if cooling:
            cooling, waited = cooling - 1, 0
        elif waited >= rule.patience:
            rate, waited, cooling = max(rate * rule.factor, rule.minimum), 0, rule.cooldown
        rates.append(rate)
    return rates


@pytest.mark.parametrize("more", [{"validation_data": HELD}, {"l2": 0.3}, {}])
def test_a_fit_is_one_of_epochs_whose_rates_are_chosen_by_hand(more):
    whole, alone = fresh(), fresh()
    history = whole.fit(X, Y, epochs=14, batch_size=16, optimizer=SGD(RULE, momentum=0.5), **more)
    watched = history.loss + history.penalty if "l2" in more else history.loss
    watched = history.validation_loss if "validation_data" in more else watched
    rates = by_hand(RULE, watched.tolist())
    assert history.learning_rate.tolist() == rates[:-1]
    assert len(set(rates)) >= 3
    for rate in rates[:-1]:
        alone.fit(X, Y, epochs=1, batch_size=16, optimizer=SGD(rate, momentum=0.5), **more)
    assert alone.parameters.tobytes() == whole.parameters.tobytes()


def test_the_rates_of_a_schedule_fall_too():
    schedule = CosineDecay(0.05, 100)
    rule = ReduceOnPlateau(schedule, 0.5, patience=1, tolerance=0.2, minimum=0.03)
    history = fresh().fit(X, Y, epochs=6, batch_size=16, optimizer=Adam(rule))
    steps = 4 * np.arange(6) + 3
    of_schedule = schedule(steps)
    scales = history.learning_rate / of_schedule
    assert scales[0] == 1 and scales[-1] < 1
    # Halved, or at the minimum; never above the schedule.
    halved = np.maximum(0.5 * of_schedule, 0.03)
    least = np.minimum(of_schedule, np.maximum(0.25 * of_schedule, 0.03))
    allowed = np.stack([of_schedule, halved, least])
    assert np.isclose(allowed, history.learning_rate, rtol=1e-12).any(axis=0).all()


def test_each_network_of_an_ensemble_has_its_own_rate():
    members = 4
    rules = [SGD(RULE), SGD(RULE), SGD(0.03), SGD(ReduceOnPlateau(0.2, 0.3, 2))]
    rest = {"epochs": 12, "batch_size": 16, "validation_data": HELD}
    stopping = EarlyStopping(4, 0.02)
    ensemble = fresh(members)
    history = ensemble.fit(X, Y, optimizer=rules, early_stopping=stopping, **rest)
    columns = set()
    for member in range(members):
        alone = MLP([4, 6, 1], "tanh", dtype="float64", seed=member)
        alone.fit(X, Y, optimizer=rules[member], early_stopping=stopping, **rest)
        assert ensemble.parameters[member].tobytes() == alone.parameters.tobytes()
        rates = history.member(member).learning_rate
        assert rates.tolist() == alone.history.learning_rate.tolist()
        columns.add(rates.tobytes())
    assert len(columns) == members


@pytest.mark.parametrize("members", [None, 3])
def test_a_resumed_fit_goes_on_with_the_rates_that_it_had(members, tmp_path):
    optimizer = Adam(RULE) if members is None else [Adam(RULE), Adam(0.05), Adam(RULE)]
    rest = {"batch_size": 16, "optimizer": optimizer, "validation_data": HELD}
    whole = fresh(members)
    whole.fit(X, Y, epochs=8, **rest)
    assert len(np.unique(whole.history.learning_rate)) >= 3
    for epochs in range(1, 8):
        saving = Checkpoint(tmp_path / f"fit {epochs}")
        fresh(members).fit(X, Y, epochs=epochs, callbacks=saving, **rest)
        again = fresh(members)
        again.fit(X, Y, epochs=8, callbacks=saving, resume=True, **rest)
        assert again.parameters.tobytes() == whole.parameters.tobytes()
        rates = (each.history.learning_rate.tobytes() for each in (again, whole))
        assert next(rates) == next(rates)
    other = {**rest, "optimizer": Adam(ReduceOnPlateau(0.05))}
    with pytest.raises(ModelFileError, match="optimizer="):
        fresh(members).fit(X, Y, epochs=8, resume=saving.path, **other)


def test_the_next_fit_begins_with_the_first_rate():
    model, optimizer = fresh(), SGD(ReduceOnPlateau(0.05, patience=1, tolerance=0.9))
    assert model.fit(X, Y, epochs=3, optimizer=optimizer).learning_rate[-1] < 0.05
    assert model.fit(X, Y, epochs=1, optimizer=optimizer).learning_rate[0] == 0.05


@pytest.mark.parametrize(
    ("call", "error", "part"),
    [
        (lambda: ReduceOnPlateau("fast"), DTypeError, "initial: got 'fast'"),
        (lambda: ReduceOnPlateau(0.1, factor=1.0), DomainError, "factor: got 1.0, wanted a"),
        (lambda: ReduceOnPlateau(0.1, patience=0), DomainError, "patience: got 0"),
        (lambda: ReduceOnPlateau(0.1, tolerance=-1), DomainError, "tolerance: got -1"),
        (lambda: ReduceOnPlateau(0.1, cooldown=1.5), DTypeError, "cooldown: got 1.5"),
        (lambda: ReduceOnPlateau(0.1, minimum=-1.0), DomainError, "minimum: got -1.0"),
        (lambda: fresh().step(X, Y, SGD(RULE)), CallOrderError, "wanted it in the fit"),
        (
            lambda: fresh().fit(X, Y, optimizer=SGD(ReduceOnPlateau(1.0, monitor="val_loss"))),
            DomainError,
            "monitor: got 'validation_loss' without validation_data",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(call, error, part):
    with pytest.raises(error, match=part):
        call()


def test_an_estimator_refuses_it_before_it_trains():
    sklearn = pytest.importorskip("fastmlp.sklearn", reason="scikit-learn is not installed")
    with pytest.raises(fastmlp.FastMLPError, match="learning_rate: got ReduceOnPlateau"):
        sklearn.MLPRegressor(optimizer=Adam(RULE)).fit(X, Y[:, 0])


def test_rates_of_a_schedule_below_the_minimum_are_not_raised():
    rising = ReduceOnPlateau(LinearWarmup(4, 0.1), 0.5, minimum=0.04).after(1)
    np.testing.assert_allclose(rising(np.arange(6)), [0.025, 0.04, 0.04, 0.05, 0.05, 0.05])


@pytest.mark.parametrize(("relative", "falls"), [(True, 1), (False, 0)])
def test_a_tolerance_is_a_share_or_an_amount(relative, falls):
    rule = ReduceOnPlateau(0.1, patience=1, tolerance=0.05, relative=relative)
    plateau = Plateau(rule, {"loss": False})
    for epoch, loss in enumerate([10.0, 9.8], start=1):
        plateau.observe(epoch, loss)
    assert plateau.falls == falls


@pytest.mark.parametrize("initial", [1e-3, CosineDecay(1e-3, 10**6)])
def test_a_rate_that_has_fallen_for_long_stays_above_zero(initial):
    optimizer = Adam(ReduceOnPlateau(initial, 1e-9, patience=1))
    history = MLP([3, 4, 1]).fit(
        np.zeros((8, 3)), np.zeros(8), epochs=60, optimizer=optimizer, progress=False
    )
    rates = history.learning_rate
    assert len(rates) == 60 and np.all(np.diff(rates) <= 0)
    assert rates[-1] == rates[-2] == np.finfo(float).tiny


def test_what_no_rate_can_fall_to_or_from_is_refused():
    with pytest.raises(DomainError, match=r"^minimum: got 1.0, wanted at most initial=0.001"):
        ReduceOnPlateau(1e-3, minimum=1.0)
    with pytest.raises(DTypeError, match=r"^initial: got a ReduceOnPlateau, wanted a number"):
        ReduceOnPlateau(ReduceOnPlateau(1e-3))
    with pytest.raises(DomainError, match=r"^initial: got 0, wanted a finite number > 0"):
        ReduceOnPlateau(0)
    assert ReduceOnPlateau(1e-3, minimum=1e-3).after(5) == 1e-3
