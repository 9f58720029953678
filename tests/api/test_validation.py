"""Validation of a fit: sets with names, weights, a part that is held out, and what is watched."""

import json
from dataclasses import replace

import numpy as np
import pytest

from fastmlp import (
    MLP,
    SGD,
    Adam,
    Checkpoint,
    Chunks,
    DomainError,
    DTypeError,
    EarlyStopping,
    Ensemble,
    ModelFileError,
    ReduceOnPlateau,
    ShapeError,
    UnknownNameError,
    load,
)
from fastmlp.data import validation
from fastmlp.files.container import pack, unpack
from fastmlp.files.contents import Contents, describe, restore

RNG = np.random.default_rng(11)
X = RNG.normal(size=(61, 4)).astype(np.float32)
Y = np.sin(X[:, 0]) + 0.1 * RNG.normal(size=61).astype(np.float32)
HELD = X[:20] + 0.5, Y[:20]
WEIGHTS = RNG.uniform(0, 3, 61)
SETS = {"near": (X[20:], Y[20:]), "far": (2 * X[:9], Y[:9], WEIGHTS[:9])}


def fresh(members=None, **more):
    if members is not None:
        return Ensemble([4, 6, 1], members, "tanh", **more)
    return MLP([4, 6, 1], "tanh", **more)


def biggest(y, prediction, sample_weight=None):
    return np.abs(y - prediction).max()


def parts(seed=0, share=0.2):
    """Return the rows that are trained on, and those that are held out."""
    order = np.random.default_rng((seed, validation.HELD_OUT)).permutation(61)
    count = int(np.ceil(share * 61))
    return np.sort(order[count:]), np.sort(order[:count])


@pytest.mark.parametrize("members", [None, 3])
def test_a_part_that_is_held_out_is_that_of_the_seed(members):
    train, held = parts(5)
    asked = {"epochs": 3, "batch_size": 7, "metrics": "mae"}
    split, given = fresh(members, seed=5), fresh(members, seed=5)
    history = split.fit(X, Y, validation_split=0.2, sample_weight=WEIGHTS, **asked)
    other = given.fit(
        X[train],
        Y[train],
        validation_data=(X[held], Y[held], WEIGHTS[held]),
        sample_weight=WEIGHTS[train],
        **asked,
    )
    assert len(held) == 13
    assert split.parameters.tobytes() == given.parameters.tobytes()
    assert {n: v.tobytes() for n, v in history.values.items() if n != "seconds"} == {
        n: v.tobytes() for n, v in other.values.items() if n != "seconds"
    }
    assert history.rows == len(train)


def test_every_fit_of_a_model_holds_out_the_same_rows():
    """Otherwise the second one is validated on what the first was trained on."""
    model = fresh(seed=5)
    model.fit(X, Y, epochs=2, validation_split=0.2)
    second = model.fit(X, Y, epochs=1, validation_split=0.2)
    _, held = parts(5)
    assert second.validation_loss[-1] == model.evaluate(X[held], Y[held]).loss


def test_weights_of_classes_are_those_of_the_rows_that_are_left():
    labels = (np.arange(61) % 3 == 0).astype(int)
    train, held = parts(0, 0.5)
    rest = {"epochs": 2, "class_weight": "balanced"}
    one, other = (MLP([4, 5, 2], loss="softmax_cross_entropy") for _ in range(2))
    one.fit(X, labels, validation_split=0.5, **rest)
    other.fit(X[train], labels[train], **rest)
    assert one.parameters.tobytes() == other.parameters.tobytes()
    assert one.history.validation_loss[-1] == one.evaluate(X[held], labels[held]).loss


@pytest.mark.parametrize("members", [None, 3])
def test_sets_have_names_and_each_has_every_metric(members):
    model = fresh(members)
    history = model.fit(X, Y, epochs=2, validation_data=SETS, metrics=["rmse", biggest])
    names = [f"{a}_{b}" for a in SETS for b in ("loss", "r2", "rmse", "biggest")]
    assert list(history.values) == ["loss", "seconds", "learning_rate", "penalty", *names]
    for name, (inputs, y, *weights) in SETS.items():
        last = model.evaluate(
            inputs, y, metrics=["rmse", biggest], sample_weight=weights[0] if weights else None
        )
        for metric, expected in {"loss": last.loss, **last.metrics}.items():
            column = history.values[f"{name}_{metric}"]
            assert column.shape == history.loss.shape
            np.testing.assert_array_equal(column[-1], expected)
    # Those without a name are the first set's.
    assert history.validation == "near"
    np.testing.assert_array_equal(history.validation_loss, history.values["near_loss"])
    np.testing.assert_array_equal(history.validation_score, history.values["near_r2"])
    assert "near loss" in history.line() and "far biggest" in history.line()


def test_a_set_called_validation_comes_first():
    history = fresh().fit(X, Y, epochs=1, validation_data={**SETS, "validation": HELD})
    np.testing.assert_array_equal(history.validation_loss, history.values["validation_loss"])
    assert history.validation == "validation" and len(history.values) == 4 + 6


def test_a_pair_is_the_set_called_validation():
    one, other = fresh(), fresh()
    first = one.fit(X, Y, epochs=2, validation_data=HELD).values
    second = other.fit(X, Y, epochs=2, validation_data={"validation": HELD}).values
    assert first.keys() == second.keys()
    assert first["validation_r2"].tobytes() == second["validation_r2"].tobytes()


def test_members_may_have_weights_of_their_own_in_validation():
    ensemble, weights = fresh(3), RNG.uniform(0, 1, (3, 20))
    history = ensemble.fit(X, Y, epochs=1, validation_data=(*HELD, weights), metrics="mae")
    for member, model in enumerate(ensemble):
        alone = model.evaluate(*HELD, metrics="mae", sample_weight=weights[member])
        assert history.validation_loss[-1, member] == alone.loss
        assert history.values["validation_mae"][-1, member] == alone.metrics["mae"]


def stopped(monitor, **more):
    """Return the epochs and the best one of a fit that stops by the second worse value."""
    model = fresh(seed=2)
    rule = EarlyStopping(2, 0.0, monitor, **more)
    rest = {"epochs": 60, "batch_size": 8, "optimizer": Adam(0.1), "validation_data": SETS}
    history = model.fit(X, Y, early_stopping=rule, metrics=["rmse", biggest], **rest)
    return model, history


@pytest.mark.parametrize(
    ("monitor", "sign", "more"),
    [
        ("far_rmse", 1, {}),
        ("far_r2", -1, {}),
        ("near_rmse", 1, {}),
        ("near_biggest", 1, {"higher_is_better": False}),
        ("near_biggest", -1, {"higher_is_better": True}),
        ("validation_score", -1, {}),
        (None, 1, {}),
    ],
)
def test_early_stopping_watches_any_metric_of_any_set(monitor, sign, more):
    model, history = stopped(monitor, **more)
    names = {None: "near_loss", "validation_score": "near_r2"}
    values = sign * history.values[names.get(monitor, monitor)]
    best = int(np.argmin(values))
    assert history.best_epoch == best + 1 and len(history) == best + 3 < 60
    restored = model.evaluate(*SETS["near"], metrics=[biggest])
    assert restored.loss == history.values["near_loss"][best]


def test_each_network_stops_by_its_own_metric_as_it_does_alone():
    rule = EarlyStopping(2, 0.0, "far_rmse")
    rest = {"epochs": 40, "batch_size": 8, "optimizer": Adam(0.1), "early_stopping": rule}
    asked = {"validation_data": SETS, "metrics": ["rmse"], **rest}
    ensemble = fresh(3, seed=4)
    ensemble.fit(X, Y, **asked)
    lengths = set()
    for member, own in enumerate(ensemble):
        alone = fresh(seed=4 + member)
        history = alone.fit(X, Y, **asked)
        assert own.parameters.tobytes() == alone.parameters.tobytes()
        assert own.history.best_epoch == history.best_epoch
        found, expected = own.history.values["far_rmse"], history.values["far_rmse"]
        np.testing.assert_array_equal(found, expected)
        lengths.add(len(history))
    assert len(lengths) > 1 and max(lengths) < 40


@pytest.mark.parametrize(("monitor", "higher"), [("far_rmse", None), ("far_biggest", False)])
def test_a_plateau_is_one_of_any_metric(monitor, higher):
    rule = ReduceOnPlateau(0.1, 0.5, patience=2, tolerance=0.0, monitor=monitor)
    rule = replace(rule, higher_is_better=higher)
    asked = {"validation_data": SETS, "metrics": ["rmse", biggest], "optimizer": SGD(rule)}
    history = fresh().fit(X, Y, epochs=30, batch_size=8, **asked)
    values, rates = history.values[monitor], [0.1]
    best, waited = np.inf, 0
    for value in values[:-1]:
        waited = 0 if value < best else waited + 1
        best = min(best, value)
        rates.append(rates[-1] / 2 if waited == 2 else rates[-1])
        waited %= 2
    assert history.learning_rate.tolist() == pytest.approx(rates) and rates[-1] < 0.1


REFUSED = [
    ({"validation_split": 20}, DomainError, "validation_split: got 20, wanted a number in (0, 1)"),
    (
        {"X": Chunks([(X, Y)]), "y": None, "validation_split": 0.2},
        DomainError,
        "validation_split: got 0.2 with Chunks, wanted validation_data=",
    ),
    ({"validation_split": 0.0}, DomainError, "validation_split: got 0.0"),
    ({"validation_split": "a"}, DTypeError, "validation_split: got 'a'"),
    ({"validation_split": 0.999}, ShapeError, "0.999 of 61 rows, wanted some left to train on"),
    (
        {"validation_split": 0.2, "validation_data": HELD},
        DomainError,
        "validation_split: got 0.2 beside validation_data, wanted one of the two",
    ),
    (
        {"validation_split": 0.1, "sample_weight": (np.arange(61) == parts()[0][0]) * 1.0},
        DomainError,
        "sample_weight of validation_split: got only zeros",
    ),
    ({"validation_data": (*HELD, -WEIGHTS[:20])}, DomainError, "validation weights: got -"),
    ({"validation_data": (*HELD, WEIGHTS)}, ShapeError, "validation weights: got shape (61,)"),
    ({"validation_data": {}}, ShapeError, "validation_data: got a dict of no sets"),
    ({"validation_data": {3: HELD}}, DTypeError, "a set called 3, wanted a name as text"),
    ({"validation_data": {"far": HELD[0]}}, DTypeError, "got ndarray, wanted a pair (X, y), or"),
    ({"validation_data": (*HELD, 1, 2)}, DTypeError, "got tuple of 4, wanted a pair"),
    ({"validation_data": {"far": (X[:, :3], Y)}}, ShapeError, "far X: got shape (61, 3)"),
    ({"metrics": "rmse"}, DomainError, "metrics: got 'rmse' without validation data"),
    (
        {"early_stopping": EarlyStopping(monitor="far_rmse"), "validation_data": SETS},
        UnknownNameError,
        "monitor: got 'far_rmse', wanted one of loss, near_loss, near_r2, far_loss, far_r2,",
    ),
    (
        {"early_stopping": EarlyStopping(monitor="validation_rmse")},
        DomainError,
        "monitor: got 'validation_rmse' without validation_data",
    ),
    (
        {
            "early_stopping": EarlyStopping(monitor="near_biggest"),
            "validation_data": SETS,
            "metrics": biggest,
        },
        DomainError,
        "monitor: got 'near_biggest', a metric of your own, wanted higher_is_better=True or Fa",
    ),
    (
        {
            "early_stopping": EarlyStopping(monitor="near_r2", higher_is_better=False),
            "validation_data": SETS,
        },
        DomainError,
        "higher_is_better: got False with monitor='near_r2', wanted True",
    ),
]


@pytest.mark.parametrize(("asked", "error", "part"), REFUSED)
def test_bad_arguments_are_refused_before_anything_changes(asked, error, part):
    model = fresh()
    before = model.parameters.tobytes()
    with pytest.raises(error) as caught:
        model.fit(**{"X": X, "y": Y, "epochs": 1, **asked})
    assert part in str(caught.value)
    assert model.parameters.tobytes() == before and model.history is None


def rate(y, prediction):
    return 0.0


def b_loss(y, prediction):
    return 0.0


@pytest.mark.parametrize(
    ("sets", "metric", "name"),
    [
        ({"learning": HELD}, rate, "learning_rate"),
        ({"a": HELD, "a_b": HELD}, b_loss, "a_b_loss"),
    ],
)
def test_a_name_stands_for_one_thing(sets, metric, name):
    with pytest.raises(DomainError, match=f"names of which '{name}' stands for one thing"):
        fresh().fit(X, Y, validation_data=sets, metrics=metric)


def test_settings_of_early_stopping_on_a_metric():
    with pytest.raises(DTypeError, match="higher_is_better: got 1, wanted True"):
        EarlyStopping(monitor="a_b", higher_is_better=1)
    history = fresh().fit(X, Y, epochs=1, metrics=[])
    assert len(history.values) == 4


def test_names_of_keras_are_understood():
    rule = EarlyStopping(1, 1e9, "val_rmse", relative=False)
    history = fresh().fit(X, Y, epochs=9, validation_data=HELD, metrics="rmse", early_stopping=rule)
    assert len(history) == 2


@pytest.mark.parametrize("members", [None, 2])
def test_a_history_of_sets_is_saved_and_a_fit_of_them_resumed(members, tmp_path):
    asked = {"validation_data": SETS, "metrics": ["mae", biggest], "batch_size": 16}
    rule = EarlyStopping(3, monitor="far_mae")
    whole, first, again = fresh(members), fresh(members), fresh(members)
    whole.fit(X, Y, epochs=5, early_stopping=rule, **asked)
    path = tmp_path / "fit"
    rest = {**asked, "early_stopping": rule, "callbacks": Checkpoint(path), "resume": True}
    first.fit(X, Y, epochs=2, **rest)
    again.fit(X, Y, epochs=5, **rest)
    loaded = load(path).history
    assert loaded.validation == "near"
    for name, column in whole.history.values.items():
        if name != "seconds":
            assert column.tobytes() == again.history.values[name].tobytes(), name
        assert again.history.values[name].tobytes() == loaded.values[name].tobytes(), name
    assert loaded.line() == again.history.line()


@pytest.mark.parametrize(
    "change",
    [
        {"metrics": ["mae"]},
        {"validation_data": {**SETS, "far": (*SETS["far"][:2], WEIGHTS[1:10])}},
        {"validation_data": {"near": SETS["near"], "other": SETS["far"]}},
    ],
    ids=["metrics", "weights", "names"],
)
def test_a_fit_with_other_metrics_or_sets_is_not_resumed(change, tmp_path):
    asked = {"validation_data": SETS, "callbacks": Checkpoint(tmp_path / "fit"), "resume": True}
    fresh().fit(X, Y, epochs=1, **asked)
    with pytest.raises(ValueError, match="resume: got .*metrics=|other validation_data"):
        fresh().fit(X, Y, epochs=2, **{**asked, **change})


def test_a_checkpoint_from_before_there_were_metrics_is_resumed(tmp_path):
    path = tmp_path / "fit"
    asked = {"validation_data": HELD, "callbacks": Checkpoint(path), "resume": True}
    whole, first, again = fresh(), fresh(), fresh()
    whole.fit(X, Y, epochs=3, validation_data=HELD)
    first.fit(X, Y, epochs=2, **asked)
    header, arrays = unpack(path.read_bytes(), "fit")
    del header["fit"]["metrics"]
    del header["history"]["validation"], header["history"]["validated"]
    arrays["history.validation_score"] = arrays.pop("history.validation_r2")
    path.write_bytes(pack(header, arrays))
    again.fit(X, Y, epochs=3, **asked)
    assert again.parameters.tobytes() == whole.parameters.tobytes()
    assert again.history.validation_score.tobytes() == whole.history.validation_score.tobytes()


@pytest.mark.parametrize("change", [3, "x", {}, [3], [["near"]], [["near", 3]], [["near", "b"]]])
def test_a_file_with_other_sets_than_columns_is_refused(change):
    model = fresh()
    model.fit(X, Y, epochs=2, validation_data=SETS)
    header, arrays = describe(Contents(model.template, None, model._state, model.history))
    header = json.loads(json.dumps(header))
    assert restore(header, arrays, "whole").history.values.keys() == model.history.values.keys()
    header["history"]["validated"] = change
    with pytest.raises(ModelFileError, match="damaged: history: got "):
        restore(header, arrays, "damaged")


def test_files_from_before_there_were_sets_are_read():
    model = fresh()
    model.fit(X, Y, epochs=2, validation_data=HELD)
    contents = Contents(model.template, None, model._state, model.history)
    header, arrays = describe(contents)
    header = json.loads(json.dumps(header))
    assert "history.validation_r2" in arrays
    # What they held.
    del header["history"]["validation"], header["history"]["validated"]
    arrays["history.validation_score"] = arrays.pop("history.validation_r2")
    found = restore(header, arrays, "old").history
    for name, column in model.history.values.items():
        assert found.values[name].tobytes() == column.tobytes()
    assert found.validation_score.tobytes() == model.history.validation_score.tobytes()
