"""Averages of weights: by the epoch and by the step, applied and taken back, and resumed."""

import copy
import pickle

import numpy as np
import pytest

from fastmlp import MLP, SGD, Adam, Checkpoint, EarlyStopping, Ensemble, WeightAverage
from fastmlp.errors import (
    BusyError,
    CallOrderError,
    DomainError,
    DTypeError,
    ModelFileError,
    ShapeError,
)

RNG = np.random.default_rng(8)
X = RNG.normal(size=(48, 4))
Y = np.sin(X[:, :1]) + 0.3 * RNG.normal(size=(48, 1))
REST = {"batch_size": 16, "optimizer": Adam(0.05)}


def fresh(members=None, **more):
    shape = ([4, 5, 1],) if members is None else ([4, 5, 1], members)
    return (MLP if members is None else Ensemble)(*shape, "tanh", **{"dtype": "float64", **more})


def closed_form(seen, decay):
    """Return the average of parameters that were seen one after another, with weights given out."""
    if decay is None:
        return np.mean(seen, axis=0, dtype=np.float64)
    ages = np.arange(len(seen))[::-1]
    weights = (1 - decay) * decay**ages
    weights[0] = decay ** (len(seen) - 1)
    return np.tensordot(weights, np.array(seen, dtype=np.float64), axes=1)


@pytest.mark.parametrize("decay", [None, 0.7])
def test_after_each_step_the_average_is_that_of_pytorch(decay):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from torch.optim import swa_utils

    model, average = fresh(), WeightAverage(decay)
    module = torch.nn.ParameterList([torch.tensor(model.parameters)])
    rule = {} if decay is None else {"multi_avg_fn": swa_utils.get_ema_multi_avg_fn(decay)}
    theirs = swa_utils.AveragedModel(module, **rule)
    for step in range(1, 8):
        model.step(X[:16], Y[:16], SGD(0.3))
        with torch.no_grad():
            module[0].copy_(torch.tensor(model.parameters))
        average.update(model)
        theirs.update_parameters(module)
        assert average.count == step
        expected = next(theirs.module.parameters()).detach().numpy()
        np.testing.assert_allclose(average.parameters, expected, rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("decay", "start"), [(None, 1), (None, 4), (0.9, 1), (0.0, 3)])
def test_in_a_fit_the_epochs_from_the_start_on_are_averaged(decay, start, dtype):
    seen, average, model = [], WeightAverage(decay, start), fresh(dtype=dtype)
    watch = [average, lambda event: seen.append(event.model.parameters.copy())]
    model.fit(X, Y, epochs=9, callbacks=watch, **REST)
    expected = closed_form(seen[start - 1 :], decay)
    # Of float32 too: an average that was kept in float32 would be off by 1e-8.
    np.testing.assert_allclose(average.parameters, expected, rtol=1e-13, atol=1e-15)
    assert average.count == 10 - start and average.parameters.dtype == np.float64
    if decay != 0:
        assert not np.allclose(expected, seen[-1], rtol=1e-3)


def test_a_second_fit_goes_on_with_the_average():
    once, twice = WeightAverage(0.8), WeightAverage(0.8)
    fresh().fit(X, Y, epochs=5, callbacks=once, **REST)
    model = fresh()
    for epochs in (2, 3):
        model.fit(X, Y, epochs=epochs, callbacks=twice, **REST)
    assert twice.parameters.tobytes() == once.parameters.tobytes() and twice.count == 5


def test_each_network_is_averaged_as_it_would_be_alone():
    """One that stops early is averaged no further; one that stops before the start, not at all."""
    stopping, members = EarlyStopping(1, 0.05), 5
    rest = {**REST, "epochs": 9, "early_stopping": stopping}
    average, ensemble = WeightAverage(start=3), fresh(members)
    ensemble.fit(X, Y, callbacks=average, **rest)
    counts = []
    for member in range(members):
        own, alone = WeightAverage(start=3), fresh(seed=member)
        alone.fit(X, Y, callbacks=own, **rest)
        counts.append(own.count)
        expected = own.parameters if own.count else np.full(alone.parameters.shape, np.nan)
        assert average.parameters[member].tobytes() == expected.tobytes()
    assert average.count.tolist() == counts and len(set(counts)) > 1
    before = ensemble.parameters.copy()
    average.apply_to(ensemble)
    kept = average.count == 0
    np.testing.assert_array_equal(ensemble.parameters[kept], before[kept])
    np.testing.assert_array_equal(ensemble.parameters[~kept], average.parameters[~kept])


def test_a_network_that_stops_before_the_start_keeps_its_parameters():
    ensemble, average = fresh(2), WeightAverage(start=2)
    stop_first = [average, lambda event: np.array([True, False])]
    ensemble.fit(X, Y, epochs=3, callbacks=stop_first, **REST)
    assert average.count.tolist() == [0, 2]
    before = ensemble.parameters.copy()
    assert np.isnan(average.parameters[0]).all()
    average.apply_to(ensemble)
    assert ensemble.parameters[0].tobytes() == before[0].tobytes()
    assert ensemble.parameters[1].tobytes() == average.parameters[1].tobytes()


@pytest.mark.parametrize("members", [None, 3])
def test_an_average_is_applied_and_taken_back(members):
    model, average = fresh(members, dtype="float32"), WeightAverage()
    model.fit(X, Y, epochs=3, callbacks=average, **REST)
    before, steps = model.parameters.copy(), model._state.steps + 0
    averaged = average.parameters.astype("float32")
    with average.apply_to(model) as inside:
        assert inside is model and model.parameters.tobytes() == averaged.tobytes()
    assert model.parameters.tobytes() == before.tobytes()
    with pytest.raises(KeyError), average.apply_to(model):
        raise KeyError
    assert model.parameters.tobytes() == before.tobytes()
    average.apply_to(model)
    assert model.parameters.tobytes() == averaged.tobytes()
    np.testing.assert_array_equal(model._state.steps, steps)


def test_during_a_fit_a_copy_is_evaluated():
    average, found = WeightAverage(), []

    def evaluate(event):
        with pytest.raises(BusyError):
            average.apply_to(event.model)
        model = copy.deepcopy(event.model)
        average.apply_to(model)
        found.append(model.evaluate(X, Y).loss)

    plain, watched = fresh(), fresh()
    plain.fit(X, Y, epochs=3, **REST)
    watched.fit(X, Y, epochs=3, callbacks=[average, evaluate], **REST)
    assert watched.parameters.tobytes() == plain.parameters.tobytes()
    with average.apply_to(watched):
        assert watched.evaluate(X, Y).loss == found[-1]


class Counter:
    """A callback of somebody's own, that keeps something."""

    def __init__(self):
        self.losses = []

    def __call__(self, event):
        self.losses.append(event.loss)

    def state_dict(self):
        return {"losses": self.losses, "epochs": len(self.losses)}

    def load_state_dict(self, state):
        assert int(state["epochs"]) == len(state["losses"])
        self.losses = state["losses"].tolist()


@pytest.mark.parametrize("members", [None, 3])
def test_a_resumed_fit_goes_on_with_its_averages(members, tmp_path):
    def callbacks():
        return [WeightAverage(0.6, 2), Counter(), WeightAverage()]

    whole = callbacks()
    fresh(members, dtype="float32").fit(X, Y, epochs=5, callbacks=whole, **REST)
    for epochs in range(1, 5):
        saving = Checkpoint(tmp_path / f"fit {epochs}")
        first = fresh(members, dtype="float32")
        first.fit(X, Y, epochs=epochs, callbacks=[saving, *callbacks()], **REST)
        again, model = callbacks(), fresh(members, dtype="float32")
        model.fit(X, Y, epochs=5, callbacks=[*again, saving], resume=True, **REST)
        for one, other in ((whole[0], again[0]), (whole[2], again[2])):
            assert one.parameters.tobytes() == other.parameters.tobytes()
            np.testing.assert_array_equal(one.count, other.count)
        np.testing.assert_array_equal(whole[1].losses, again[1].losses)
    for others in ([WeightAverage(0.5, 2), Counter(), WeightAverage()], whole[:1]):
        model = fresh(members, dtype="float32")
        before = model.parameters.copy()
        with pytest.raises(ModelFileError, match="of a fit with callbacks=.*wanted callbacks="):
            model.fit(X, Y, epochs=5, callbacks=others, resume=saving.path, **REST)
        assert (model.parameters == before).all()
    # Whoever does without them gets the same model.
    fresh(members, dtype="float32").fit(X, Y, epochs=5, resume=saving.path, **REST)


def test_what_no_checkpoint_can_hold_is_refused_before_the_first_epoch(tmp_path):
    counter, model = Counter(), fresh()
    counter.losses = ["none"]
    with pytest.raises(DTypeError, match="callbacks: got .* as 'losses' in the state_dict of"):
        model.fit(X, Y, callbacks=[counter, Checkpoint(tmp_path / "fit")], **REST)
    assert model.epochs_trained == 0


def test_an_average_survives_a_pickle():
    average = WeightAverage(0.9)
    fresh().fit(X, Y, epochs=2, callbacks=average, **REST)
    again, fed = pickle.loads(pickle.dumps(average)), WeightAverage(0.9)
    fed.load_state_dict(average.state_dict())
    for each in (again, fed):
        assert each.parameters.tobytes() == average.parameters.tobytes() and each.count == 2
    fed.load_state_dict(WeightAverage().state_dict())
    assert fed.count == 0
    assert repr(average) == "WeightAverage(decay=0.9, start=1)"


def averaged():
    average = WeightAverage()
    average.update(fresh())
    return average


@pytest.mark.parametrize(
    ("call", "error", "part"),
    [
        (lambda: WeightAverage(1.0), DomainError, "decay: got 1.0, wanted a number from 0"),
        (lambda: WeightAverage(start=0), DomainError, "start: got 0"),
        (lambda: WeightAverage().parameters, CallOrderError, "got no parameters yet"),
        (lambda: WeightAverage().apply_to(fresh()), CallOrderError, "got no parameters yet"),
        (lambda: WeightAverage().update(X), DTypeError, "model: got ndarray, wanted an MLP"),
        (
            lambda: averaged().update(MLP([4, 1])),
            ShapeError,
            r"model: got .*\(5,\), wanted \(31,\)",
        ),
        (lambda: averaged().apply_to(fresh(2)), ShapeError, r"model: got .*\(2, 31\)"),
    ],
)
def test_what_makes_no_sense_is_refused(call, error, part):
    with pytest.raises(error, match=part):
        call()
