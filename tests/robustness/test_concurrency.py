"""One model, many callers at once: threads, callbacks, signal handlers, asyncio.

Whatever a read returns has the bits that a fresh model gives to one caller alone. Training calls on
one model exclude each other: the model ends as if they had come one after another.
"""

import asyncio
import contextlib
import copy
import itertools
import pickle
import random
import signal
import sys
import threading
import time

import numpy as np
import pytest

import fastmlp
from tests.robustness.attacks import (
    Tally,
    assert_withstood,
    begin,
    bits,
    in_teams,
    run_attack,
    seams_open,
    together,
    tries,
)

THREADS = 8
ROWS = 97
EQUAL = (ROWS,) * THREADS
# One row, and several sizes that share a program: those up to the same power of two.
VARYING = (1, 40, 57, 64, 70, 81, 90, ROWS)
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="timers and signals of POSIX")


def data(kind, seed=0, rows=ROWS):
    """Return X and y of a task, contiguous and of the model's dtype."""
    generator = np.random.default_rng(seed)
    X = generator.normal(size=(rows, 12)).astype(np.float32)
    labels = generator.integers(0, 5, rows)
    if kind in ("classifier", "regressor"):
        return X, labels if kind == "classifier" else X[:, :3].astype(np.float64)
    if kind == "regression":
        return X.astype(np.float64), generator.normal(size=(rows, 3))
    return X, labels.astype(np.float32)


def fresh(kind):
    """Return the model of a task: the same one, with the same bits, every time."""
    if kind == "labels":
        return fastmlp.MLP([12, 32, 16, 5], "relu", "softmax_cross_entropy", seed=3)
    if kind == "regression":
        return fastmlp.MLP([12, 24, 3], "tanh", seed=3, dtype="float64")
    if kind == "ensemble":
        return fastmlp.Ensemble([12, 16, 5], 3, "relu", "softmax_cross_entropy", seed=3)
    from fastmlp.sklearn import MLPClassifier, MLPRegressor

    made = MLPClassifier if kind == "classifier" else MLPRegressor
    model = made(
        hidden_layer_sizes=(16,),
        random_state=0,
        max_iter=3,
        batch_size=32,
        tol=0.0,
        n_iter_no_change=99,
    )
    X, y = data(kind)
    return fitted_quietly(model, X, y)


def fitted_quietly(model, X, y, method="fit", **arguments):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(model, method)(X, y, **arguments)


def gradient_bits(model, X, y):
    loss, gradients = model.value_and_grad(X, y)
    return bits(loss, gradients.flat)


def copied_bits(copied, X):
    return bits(copied.predict(X), copied.parameters)


# Every call that reads, by kind of model: each returns bits.
OF_ALL = {
    "predict": lambda model, X, y: bits(model.predict(X)),
    "evaluate": lambda model, X, y: bits(*model.evaluate(X, y)[:2]),
    "parameters": lambda model, X, y: bits(model.parameters),
    "pickle": lambda model, X, y: copied_bits(pickle.loads(pickle.dumps(model)), X),
    "deepcopy": lambda model, X, y: copied_bits(copy.deepcopy(model), X),
    "facts": lambda model, X, y: repr((model, model.epochs_trained, model.history)).encode(),
}
OF_NETWORKS = OF_ALL | {
    "value_and_grad": gradient_bits,
    "weights": lambda model, X, y: bits(*model.weights, *model.biases),
}
OF_ENSEMBLES = OF_ALL | {
    "predict_mean": lambda model, X, y: bits(model.predict_mean(X)),
    "predict_spread": lambda model, X, y: bits(model.predict_spread(X)),
    "member": lambda model, X, y: copied_bits(model[len(X) % 3], X),
    "members": lambda model, X, y: bits(*(each.parameters for each in model)),
}
OF_ESTIMATORS = {
    "predict": lambda model, X, y: bits(model.predict(X)),
    "score": lambda model, X, y: bits(model.score(X, y)),
    "pickle": lambda model, X, y: bits(pickle.loads(pickle.dumps(model)).predict(X)),
    "deepcopy": lambda model, X, y: bits(copy.deepcopy(model).predict(X)),
    "weights": lambda model, X, y: bits(*model.coefs_, *model.intercepts_),
}
OF_CLASSIFIERS = OF_ESTIMATORS | {
    "predict_proba": lambda model, X, y: bits(model.predict_proba(X)),
    "predict_log_proba": lambda model, X, y: bits(model.predict_log_proba(X)),
}
READS = {
    "labels": OF_NETWORKS,
    "regression": OF_NETWORKS,
    "ensemble": OF_ENSEMBLES,
    "classifier": OF_CLASSIFIERS,
    "regressor": OF_ESTIMATORS,
}
NETWORKS = ("labels", "regression")


def few_rows_too(kind):
    if kind in ("classifier", "regressor"):
        from fastmlp.sklearn import prediction

        prediction.FEW_ROWS = 0


def at_once(works, seams):
    if seams:
        with seams_open():
            together(works)
    else:
        together(works)


def attack_by_reading(kind, rows, seams, teams, calls):
    """Call every reading method of one model in 8 threads: each alone, then all of them mixed."""
    if teams:
        in_teams(teams)
    few_rows_too(kind)
    X, y = data(kind)
    alone, tally = fresh(kind), Tally()
    expected = {
        (name, count): read(alone, X[:count], y[:count])
        for (name, read), count in itertools.product(READS[kind].items(), sorted(set(rows)))
    }
    model = fresh(kind)

    def reading(names, seed):
        def work():
            chance = random.Random(seed)
            for _ in range(calls):
                name, count = chance.choice(names), chance.choice(rows)
                found = READS[kind][name](model, X[:count], y[:count])
                tally.check(name, found == expected[name, count])

        return work

    for names in [*([name] for name in READS[kind]), list(READS[kind])]:
        begin(", ".join(names))
        at_once([reading(names, seed) for seed in range(THREADS)], seams)
    return tally


@pytest.mark.parametrize("rows", [EQUAL, VARYING], ids=["equal rows", "varying rows"])
@pytest.mark.parametrize("kind", READS)
def test_reads_of_one_model_in_eight_threads(kind, rows):
    assert_withstood(run_attack(attack_by_reading, kind, rows, False, 0, tries(12)))


@pytest.mark.parametrize("kind", ["labels", "ensemble", "classifier"])
def test_reads_of_one_model_with_sleeps_in_the_seams(kind):
    assert_withstood(run_attack(attack_by_reading, kind, VARYING, True, 0, tries(8)))


@pytest.mark.parametrize("kind", ["labels", "ensemble"])
def test_reads_of_one_model_by_teams(kind):
    assert_withstood(run_attack(attack_by_reading, kind, VARYING, False, 2, tries(8)))


def attack_with_parts_of_steps(calls):
    """Call forward, compute_loss and backward of one model in 8 threads.

    The parts of a step belong together, and a model has one of them at a time: another thread may
    come in between. What is asked is that nothing crashes, that a refusal is a clear error, and
    that a model which one thread has for itself afterwards gives the right bits.
    """
    X, y = data("labels")
    alone, model, tally = fresh("labels"), fresh("labels"), Tally()

    def parts(used, count):
        used.zero_grad()
        outputs = used.forward(X[:count])
        loss = used.compute_loss(y[:count])
        inputs = used.backward()
        return bits(outputs, loss, inputs, used.gradients.flat)

    def work(count):
        for _ in range(calls):
            try:
                parts(model, count)
                tally.note("together")
            except fastmlp.FastMLPError:
                tally.note("refused")

    for count in range(3):
        begin(f"round {count}")
        together([lambda rows=rows: work(rows) for rows in (EQUAL if count == 0 else VARYING)])
        for rows in VARYING:
            tally.check("afterwards", parts(model, rows) == parts(alone, rows))
        tally.check("parameters", bits(model.parameters) == bits(alone.parameters))
    return tally


def test_parts_of_steps_in_eight_threads():
    assert_withstood(run_attack(attack_with_parts_of_steps, tries(60)))


def patiently(call):
    """Call until the model is not busy."""
    while True:
        try:
            return call()
        except fastmlp.BusyError:
            time.sleep(1e-4)


def attack_by_training(kind, seams, teams, rounds, calls):
    """Train one model in 8 threads by calls that are all the same step, in whatever order.

    A step, a fit of one batch in the rows' own order and an application of the same gradient differ
    in nothing but the way in, so any serial order of them ends in the same bits.
    """
    if teams:
        in_teams(teams)
    X, y = data(kind)
    rule = fastmlp.Adam(1e-3)
    tally = Tally()

    def step(model):
        model.step(X, y, rule)
        return 1

    def fit(model):
        model.fit(X, y, epochs=2, batch_size=ROWS, shuffle=False, optimizer=rule)
        return 2

    mixes = {"step": (step,), "fit": (fit,), "step and fit": (step, fit)}
    for number in range(rounds):
        for name, ways in mixes.items():
            begin(f"{name}, round {number}")
            model, alone, counts = fresh(kind), fresh(kind), []

            def work(seed, model=model, ways=ways, counts=counts):
                chance = random.Random(seed)
                for _ in range(calls):
                    way = chance.choice(ways)
                    counts.append(patiently(lambda way=way: way(model)))

            at_once([lambda seed=seed: work(seed) for seed in range(THREADS)], seams)
            total = sum(counts)
            for _ in range(total):
                alone.step(X, y, rule)
            tally.check(f"{name}: steps", model._state.steps == total)
            same = bits(model.parameters) == bits(alone.parameters)
            tally.check(f"{name}: parameters", same)
    return tally


@pytest.mark.parametrize("kind", NETWORKS)
def test_training_calls_of_one_model_in_eight_threads(kind):
    assert_withstood(run_attack(attack_by_training, kind, False, 0, tries(3), 20))


def test_training_calls_of_one_model_with_sleeps_in_the_seams():
    assert_withstood(run_attack(attack_by_training, "labels", True, 0, tries(2), 6))


def test_training_calls_of_one_model_by_teams():
    assert_withstood(run_attack(attack_by_training, "labels", False, 2, tries(2), 10))


def attack_by_applying(rounds, calls):
    """Apply the same gradient in 8 threads."""
    X, y = data("labels")
    rule, tally = fastmlp.Adam(1e-3), Tally()
    for number in range(rounds):
        begin(f"round {number}")
        model, alone = fresh("labels"), fresh("labels")
        for each in (model, alone):
            each.forward(X)
            each.compute_loss(y)
            each.backward()
        together(
            [
                lambda model=model: [patiently(lambda: model.apply(rule)) for _ in range(calls)]
                for _ in range(THREADS)
            ]
        )
        for _ in range(THREADS * calls):
            alone.apply(rule)
        tally.check("steps", model._state.steps == THREADS * calls)
        tally.check("parameters", bits(model.parameters) == bits(alone.parameters))
    return tally


def test_applications_of_one_gradient_in_eight_threads():
    assert_withstood(run_attack(attack_by_applying, tries(10), 25))


def training_of(model, kind, which):
    """Fit a model in one of two ways that differ in everything."""
    X, y = data(kind, seed=which, rows=(60, ROWS)[which])
    settings = {"epochs": (3, 5)[which], "batch_size": (16, 25)[which]}
    return model.fit(X, y, optimizer=fastmlp.Adam((1e-3, 1e-2)[which]), **settings)


def trained_bits(model, kind):
    if kind == "ensemble":
        return bits(model.parameters, model.epochs_trained)
    return bits(model.parameters, model.epochs_trained, model._state.steps)


def attack_with_two_fits(kind, seams, rounds):
    """Fit one model in two threads: the end is that of a serial order of those that were done."""
    tally, ends = Tally(), {}
    for order in [(), (0,), (1,), (0, 1), (1, 0)]:
        model = fresh(kind)
        for which in order:
            training_of(model, kind, which)
        ends[trained_bits(model, kind)] = sorted(order)
    assert len(ends) == 5
    for number in range(rounds):
        begin(f"round {number}")
        model, done = fresh(kind), []

        def work(which, model=model, done=done):
            try:
                training_of(model, kind, which)
                done.append(which)
            except fastmlp.BusyError:
                tally.note("refused")

        at_once([lambda: work(0), lambda: work(1)], seams)
        right = ends.get(trained_bits(model, kind)) == sorted(done)
        tally.check("two fits", right, f"no serial order of {done} ends so")
        training_of(model, kind, 0)
    return tally


@pytest.mark.parametrize("kind", [*NETWORKS, "ensemble"])
def test_two_fits_of_one_model_at_once(kind):
    assert_withstood(run_attack(attack_with_two_fits, kind, False, tries(25)))


@pytest.mark.parametrize("kind", ["labels", "ensemble"])
def test_two_fits_of_one_model_with_sleeps_in_the_seams(kind):
    assert_withstood(run_attack(attack_with_two_fits, kind, True, tries(5)))


def attack_estimators_by_partial_fits(kind, rounds):
    """Fit and partial_fit one estimator in 4 threads.

    scikit-learn's own estimators promise no order of such calls, and neither do these. They do not
    crash or hang, and whoever has the estimator alone afterwards gets the right bits.
    """
    X, y = data(kind)
    tally, expected = Tally(), fresh(kind)
    predicted = bits(expected.predict(X))
    for number in range(rounds):
        begin(f"round {number}")
        model = fresh(kind)

        def work(seed, model=model):
            chance = random.Random(seed)
            for _ in range(5):
                method = chance.choice(["fit", "partial_fit", "partial_fit", "predict"])
                try:
                    if method == "predict":
                        model.predict(X)
                    else:
                        fitted_quietly(model, X, y, method)
                    tally.note(method)
                except Exception as refusal:
                    # Mostly of scikit-learn's code, which looks at lists that another thread fills.
                    tally.note(type(refusal).__name__)

        together([lambda seed=seed: work(seed) for seed in range(4)])
        fitted_quietly(model, X, y)
        tally.check("afterwards", bits(model.predict(X)) == predicted)
    return tally


@pytest.mark.parametrize("kind", ["classifier", "regressor"])
def test_fits_of_one_estimator_in_several_threads(kind):
    assert_withstood(run_attack(attack_estimators_by_partial_fits, kind, tries(8)))


def boundaries(kind, epochs, optimizer, **settings):
    """Return what a model gives before a fit and after each of its epochs, by number of epochs."""
    X, y = data(kind)
    model, found = fresh(kind), []
    for epoch in range(epochs + 1):
        if epoch:
            model.fit(X, y, epochs=1, optimizer=optimizer, **settings)
        found.append((bits(model.predict(X)), bits(*model.evaluate(X, y)[:2])))
    return found


class Readers:
    """Threads that read a model while another one fits it, and know what they may see."""

    def __init__(self, kind, known, tally):
        self.X, self.y = data(kind)
        self.model, self.tally, self.ended = fresh(kind), tally, threading.Event()
        self.predictions = {found[0]: epoch for epoch, found in enumerate(known)}
        self.evaluations = {found[1] for found in known}

    def predict(self):
        found = bits(self.model.predict(self.X))
        self.tally.check("predict", found in self.predictions)

    def evaluate(self):
        found = bits(*self.model.evaluate(self.X, self.y)[:2])
        self.tally.check("evaluate", found in self.evaluations)

    def _check_copy(self, copied):
        epoch = self.predictions.get(bits(copied.predict(self.X)))
        self.tally.check("copy: parameters", epoch is not None)
        # And it knows how far it is.
        right = np.all(np.asarray(copied.epochs_trained) == epoch)
        self.tally.check("copy: epochs", right, f"{copied.epochs_trained}, not {epoch}")

    def pickle(self):
        self._check_copy(pickle.loads(pickle.dumps(self.model)))

    def copy(self):
        self._check_copy(copy.deepcopy(self.model))

    def facts(self):
        len(self.model.history or ())
        repr(self.model)
        self.model.parameters.copy()
        _ = self.model.epochs_trained
        self.tally.good("facts")

    def until_the_end(self, read):
        """Return a work that reads until the fit has ended, and once more."""

        def work():
            last = False
            while not last:
                last = self.ended.is_set()
                try:
                    read()
                except fastmlp.BusyError:
                    self.tally.note("refused")
                    time.sleep(1e-4)

        return work


def attack_by_reading_during_a_fit(kind, epochs):
    """Read a model while another thread fits it: what is read is that of some finished epoch."""
    rule, settings, tally = fastmlp.Adam(1e-2), {"batch_size": 8}, Tally()
    known = boundaries(kind, epochs, rule, **settings)
    readers = Readers(kind, known, tally)

    def fit():
        try:
            readers.model.fit(readers.X, readers.y, epochs=epochs, optimizer=rule, **settings)
        finally:
            readers.ended.set()

    reads = [readers.predict] * 2 + [readers.evaluate] * 2
    reads += [readers.facts, readers.pickle, readers.copy]
    begin("reads beside a fit")
    together([fit, *map(readers.until_the_end, reads)])
    tally.check("the fit", bits(readers.model.predict(readers.X)) == known[-1][0])
    return tally


@pytest.mark.parametrize("kind", [*NETWORKS, "ensemble"])
def test_reads_while_a_fit_runs(kind):
    assert_withstood(run_attack(attack_by_reading_during_a_fit, kind, tries(80)))


# What would train or change a model, from inside its own fit.
CHANGES = {
    "step": lambda model, X, y: model.step(X, y),
    "step, another optimizer": lambda model, X, y: model.step(X, y, fastmlp.RMSprop(1e-3)),
    "fit": lambda model, X, y: model.fit(X, y, epochs=1),
    "fit, another optimizer": lambda model, X, y: model.fit(
        X, y, epochs=1, optimizer=fastmlp.SGD(1e-3, momentum=0.9)
    ),
    "apply": lambda model, X, y: model.apply(),
    "apply, another optimizer": lambda model, X, y: model.apply(fastmlp.SGD(0.1, momentum=0.9)),
    "parameters": lambda model, X, y: setattr(model, "parameters", model.parameters * 2),
    "weights": lambda model, X, y: setattr(model, "weights", [w * 2 for w in model.weights]),
    "biases": lambda model, X, y: setattr(model, "biases", [b + 1 for b in model.biases]),
    "one weight": lambda model, X, y: model.weights.__setitem__(0, model.weights[0] * 2),
    "one bias": lambda model, X, y: model.biases.__setitem__(0, model.biases[0] + 1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_training_from_a_callback_is_refused_and_the_fit_goes_on(change):
    X, y = data("labels")
    model, alone = fresh("labels"), fresh("labels")
    for each in (model, alone):
        # There is a gradient to apply.
        each.forward(X)
        each.compute_loss(y)
        each.backward()
    refused = []

    def callback(event):
        with pytest.raises(fastmlp.BusyError) as caught:
            CHANGES[change](event.model, X, y)
        refused.append(str(caught.value))

    settings = {"epochs": 3, "batch_size": 16, "optimizer": fastmlp.Adam(1e-3)}
    model.fit(X, y, callbacks=callback, **settings)
    alone.fit(X, y, **settings)
    assert len(refused) == 3 and len(model.history) == 3
    assert trained_bits(model, "labels") == trained_bits(alone, "labels")
    for each in (model, alone):
        each.fit(X, y, **settings)
    assert trained_bits(model, "labels") == trained_bits(alone, "labels")


@pytest.mark.parametrize("kind", NETWORKS)
def test_reading_from_a_callback_gives_the_epochs_bits(kind):
    rule, settings = fastmlp.Adam(1e-3), {"batch_size": 16}
    known = boundaries(kind, 4, rule, **settings)
    X, y = data(kind)
    model, seen = fresh(kind), []

    def callback(event):
        here = event.model
        seen.append((bits(here.predict(X)), bits(*here.evaluate(X, y)[:2])))
        here.value_and_grad(X, y)
        here.predict(X[:3])
        copied = copy.deepcopy(here)
        assert bits(copied.predict(X)) == seen[-1][0]
        assert copied.epochs_trained == here.epochs_trained == event.epoch

    model.fit(X, y, epochs=4, optimizer=rule, callbacks=callback, **settings)
    assert seen == known[1:]


def test_a_callback_may_use_another_model():
    X, y = data("labels")
    model, other, alone = fresh("labels"), fresh("labels"), fresh("labels")
    model.fit(X, y, epochs=3, callbacks=lambda event: other.fit(X, y, epochs=1) and None)
    alone.fit(X, y, epochs=3)
    assert trained_bits(model, "labels") == trained_bits(alone, "labels")
    assert trained_bits(other, "labels") == trained_bits(alone, "labels")


def test_a_model_is_free_again_after_every_way_that_a_fit_may_end():
    X, y = data("labels")
    model = fresh("labels")
    start = model.parameters.copy()

    class OfTheUser(BaseException):
        pass

    def failing(event):
        raise OfTheUser

    for _ in range(3):
        with pytest.raises(OfTheUser):
            model.fit(X, y, epochs=2, callbacks=failing)
        model.step(X, y)
        with pytest.raises(fastmlp.NonFiniteTrainingError):
            model.fit(X, y, epochs=50, optimizer=fastmlp.SGD(1e30))
        model.parameters = start
        model.fit(X, y, epochs=2, callbacks=lambda event: True)
        model.step(X, y)


def signal_cases():
    X, y = data("labels")
    rule = fastmlp.Adam(1e-3)
    once = {"epochs": 1, "batch_size": ROWS, "shuffle": False, "optimizer": rule}
    return {
        "predict": lambda model: bits(model.predict(X)),
        "evaluate": lambda model: bits(*model.evaluate(X, y)[:2]),
        "step": lambda model: [bits(model.step(X, y, rule))] and None,
        "fit": lambda model: bits(len(model.fit(X, y, **once))) and None,
    }


class Handler:
    """A signal handler that calls a model, though never in the midst of itself."""

    def __init__(self, outer, inner, expected, tally):
        self.outer, self.inner, self.expected, self.tally = outer, inner, expected, tally
        self.model, self._inside = fresh("labels"), False
        self._call = signal_cases()[inner]

    def __call__(self, number, frame):
        if self._inside:
            return
        self._inside = True
        try:
            found = self._call(self.model)
            if found is None:
                self.tally.note(f"{self.inner} inside {self.outer}")
            else:
                self.tally.check(f"{self.inner} inside", found in self.expected[self.inner])
        except fastmlp.BusyError:
            self.tally.note(f"{self.inner} refused inside {self.outer}")
        finally:
            self._inside = False


@contextlib.contextmanager
def heard_again_and_again(handler):
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 3e-4, 3e-4)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def attack_from_signal_handlers(teams, seconds):
    """Call a model in a handler of a timer, in the midst of another call of the same model."""
    if teams:
        in_teams(teams)
    tally, calls = Tally(), signal_cases()
    # Every training call is the same step: a read is right if it is that of a number of them.
    alone, expected = fresh("labels"), {"predict": {}, "evaluate": {}}
    longest = 3000
    for count in range(longest):
        for name, known in expected.items():
            known[calls[name](alone)] = count
        calls["step"](alone)
    for outer, inner in itertools.product(calls, calls):
        begin(f"{inner} in the midst of {outer}")
        handler = Handler(outer, inner, expected, tally)
        until = time.monotonic() + seconds
        with heard_again_and_again(handler):
            while time.monotonic() < until:
                if handler.model._state.steps > longest - 100:
                    handler.model = fresh("labels")
                found = calls[outer](handler.model)
                if found is not None:
                    tally.check(f"{outer} outside", found in expected[outer])
        model = handler.model
        steps, reached = model._state.steps, expected["predict"].get(calls["predict"](model))
        tally.check("afterwards", reached == steps, f"{steps} steps, parameters of {reached}")
    return tally


@POSIX
@pytest.mark.parametrize("teams", [0, 2], ids=["alone", "teams"])
def test_calls_from_signal_handlers_in_the_midst_of_others(teams):
    assert_withstood(run_attack(attack_from_signal_handlers, teams, 0.2 * tries(1)))


def attack_by_asyncio(calls):
    """Predict and train with one model in threads of asyncio."""
    X, y = data("labels")
    alone, model, tally = fresh("labels"), fresh("labels"), Tally()
    expected = {count: bits(alone.predict(X[:count])) for count in VARYING}

    async def main():
        counts = list(itertools.islice(itertools.cycle(VARYING), calls))
        found = await asyncio.gather(
            *(asyncio.to_thread(model.predict, X[:count]) for count in counts)
        )
        for count, outputs in zip(counts, found, strict=True):
            tally.check("predict", bits(outputs) == expected[count])
        await asyncio.gather(
            *(asyncio.to_thread(patiently, lambda: model.step(X, y)) for _ in range(calls))
        )

    asyncio.run(main())
    for _ in range(calls):
        alone.step(X, y)
    tally.check("step", trained_bits(model, "labels") == trained_bits(alone, "labels"))
    return tally


def test_one_model_in_threads_of_asyncio():
    assert_withstood(run_attack(attack_by_asyncio, tries(1000)))


def attack_by_assigning(calls):
    """Assign all parameters in some threads while others read: a read sees one or the other."""
    X, y = data("labels")
    model, tally = fresh("labels"), Tally()
    values = [model.parameters.copy(), model.parameters * 0.5]
    expected = set()
    for each in values:
        model.parameters = each
        expected.add(bits(model.predict(X)))
    assert len(expected) == 2

    def assign():
        for count in range(calls):
            value = values[count % 2]
            patiently(lambda value=value: setattr(model, "parameters", value))

    def read():
        for _ in range(calls):
            tally.check("predict", bits(model.predict(X)) in expected)

    begin("assignments beside reads")
    together([assign, assign, *([read] * 6)])
    tally.check("afterwards", bits(model.predict(X)) in expected)
    return tally


def test_assignments_beside_reads():
    assert_withstood(run_attack(attack_by_assigning, tries(200)))


def test_the_refusal_is_an_error_of_the_library():
    assert issubclass(fastmlp.BusyError, fastmlp.FastMLPError)
    assert issubclass(fastmlp.BusyError, RuntimeError)
