"""One estimator used from several threads, and after a fork.

scikit-learn's own estimators bear it: predictions are right, and fits race without harm to the
process. Every test of a race runs in a process of its own, which is killed if it hangs.
"""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from fastmlp.sklearn import MLPClassifier, MLPRegressor, prediction
from fastmlp.sklearn.prediction import Spares
from tests.scikit_learn.cases import data

pytestmark = [
    pytest.mark.any_version,
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.usefixtures("one_blas_thread", "few_rows_too"),
]

THREADS = 8
SECONDS = 180


def run(program, environment):
    """Run a program that must end by itself, and end well."""
    command = [sys.executable, "-X", "faulthandler", "-W", "ignore", "-c", program]
    environment = {**environment, "OPENBLAS_NUM_THREADS": "1"}
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=SECONDS
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


HEAD = f"""
import faulthandler, os, signal, threading
faulthandler.dump_traceback_later({SECONDS - 20}, exit=True)
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from fastmlp.sklearn import MLPClassifier, MLPRegressor, prediction
prediction.FEW_ROWS = 0
generator = np.random.default_rng(0)
X = generator.normal(size=(900, 12))
labels, y = (X[:, 0] > 0) * 1 + (X[:, 1] > 0), X[:, 0] * X[:, 1]
"""

PREDICTING = f"""
{HEAD}
classifier = MLPClassifier((40, 30), max_iter=2, random_state=0).fit(X, labels)
regressor = MLPRegressor(hidden_layer_sizes=(30,), max_iter=2, random_state=0).fit(X, y)
calls = [
    (each, name, slice(start, start + rows))
    for each, names in ((classifier, ("predict", "predict_proba")), (regressor, ("predict",)))
    for name in names
    for rows in (1, 7, 130, 500)
    for start in range(0, 300, 50)
]
scores = [(classifier, labels), (regressor, y)]

def ask(index):
    each, name, rows = calls[index % len(calls)]
    return getattr(each, name)(X[rows])

expected = [ask(index).copy() for index in range(len(calls))]
right = [each.score(X, wanted) for each, wanted in scores]

def check(index):
    if index % 10 == 0:
        each, wanted = scores[index // 10 % 2]
        return each.score(X, wanted) == right[index // 10 % 2]
    return np.array_equal(ask(index), expected[index % len(calls)])

with ThreadPoolExecutor({THREADS}) as pool:
    found = list(pool.map(check, range(3000)))
print(found.count(False), "of", len(found))
"""


def test_predictions_from_8_threads_have_the_bits_of_one(child_environment):
    assert run(PREDICTING, child_environment).strip() == "0 of 3000"


def test_predictions_run_side_by_side(monkeypatch):
    """All of them are in compiled code at once: each waits there for the others."""
    X, y = data("multiclass")
    ours = MLPClassifier(max_iter=1).fit(X, y)
    expected = ours.predict_proba(X)
    meeting = threading.Barrier(THREADS)
    original = prediction.inference.predict

    def together(*given):
        meeting.wait(timeout=30)
        return original(*given)

    monkeypatch.setattr(prediction.inference, "predict", together)
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda _: ours.predict_proba(X), range(THREADS)))
    assert all(np.array_equal(each, expected) for each in found)


def test_one_thread_makes_one_copy_and_a_failed_call_gives_none_back(monkeypatch):
    X, y = data("regression")
    ours = MLPRegressor(max_iter=1).fit(X, y)
    expected = ours.predict(X)
    kept = ours._network.predicting._kept
    (first,) = kept
    ours.predict(X)
    assert kept == [first]

    def interrupted(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(prediction.inference, "predict", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ours.predict(X)
    assert kept == []
    assert np.array_equal(ours.predict(X), expected) and kept != [first]
    # Another network's is of no use.
    ours.set_params(hidden_layer_sizes=(5,)).fit(X, y).predict(X)
    assert len(kept) == 1


def test_programs_to_train_are_kept_after_a_clean_end_only():
    X, y = data("regression")
    ours = MLPRegressor(max_iter=1).fit(X, y)
    kept = ours._network.training._kept
    (first,) = kept
    assert ours.fit(X, y).partial_fit(X, y)._network.training._kept == [first]
    with pytest.raises(KeyError):
        ours.set_params(callbacks=[{}.__getitem__]).fit(X, y)
    assert kept == []


def test_spares():
    spares, made = Spares(), iter(range(100))
    assert [spares.take("a", made.__next__) for _ in range(3)] == [0, 1, 2]
    for key, value in (("a", 0), ("b", 1), ("a", 2)):
        spares.give(key, value)
    assert spares.take("a", made.__next__) == 2
    # The one for something else is dropped on the way.
    assert spares.take("a", made.__next__) == 0 and spares.take("b", made.__next__) == 3
    for value in range(50):
        spares.give("a", value)
    assert len(spares._kept) == prediction.SPARES_KEPT


TRAINING = f"""
{HEAD}
from collections import Counter

def attempt(action):
    # A race may end in an error: in scikit-learn's own estimators it does as well.
    try:
        action()
    except (ValueError, IndexError, AttributeError, TypeError) as error:
        return type(error).__name__
    except RuntimeError as error:
        # Its label binarizer looks through attributes that another fit is setting.
        if "dictionary changed size" not in str(error):
            raise
        return type(error).__name__
    return "fine"

for make, target in ((MLPClassifier, labels), (MLPRegressor, y)):
    for settings in ({{}}, {{"solver": "sgd"}}):
        # Large enough for a team of threads, which must not be two calls' at once.
        settings = {{"hidden_layer_sizes": (120, 80), "max_iter": 3, "random_state": 0, **settings}}
        ours = make(**settings).fit(X, target)

        def partial(index):
            # Of the same rows mostly: a program is made for a number of rows.
            rows = slice(0, 900 - index % 2)
            return attempt(lambda: ours.partial_fit(X[rows], target[rows]))

        with ThreadPoolExecutor({THREADS}) as pool:
            print(Counter(pool.map(partial, range(100))))
        assert ours.predict(X).shape == (900,)

        def mixed(index):
            rows = slice(0, 900 - index % 3)
            if index % 4 == 0:
                return attempt(lambda: ours.fit(X[rows], target[rows]))
            if index % 4 == 1:
                sizes = (120, 80) if index % 8 == 1 else (7,)
                return attempt(lambda: ours.set_params(hidden_layer_sizes=sizes))
            if index % 4 == 2:
                return attempt(lambda: ours.predict(X[rows]))
            return attempt(lambda: ours.partial_fit(X[rows], target[rows]))

        with ThreadPoolExecutor({THREADS}) as pool:
            print(Counter(pool.map(mixed, range(120))))
        ours.fit(X, target)
        again = make(**{{**ours.get_params()}}).fit(X, target)
        assert np.array_equal(ours.predict(X), again.predict(X))
"""


def test_fits_from_8_threads_neither_hang_nor_crash(child_environment):
    printed = run(TRAINING, child_environment).splitlines()
    assert len(printed) == 8
    # Those that only go on with one network meet no error at all.
    assert printed[0::2] == ["Counter({'fine': 100})"] * 4


FORKING = f"""
{HEAD}
ours = MLPClassifier((40, 30), max_iter=2, random_state=0).fit(X, labels)
expected = ours.predict_proba(X)
stop = threading.Event()

def busy():
    while not stop.is_set():
        ours.predict_proba(X)

threads = [threading.Thread(target=busy) for _ in range(3)]
for each in threads:
    each.start()
for _ in range(20):
    child = os.fork()
    if child == 0:
        # Not faulthandler's timer: its thread has not been forked, and it would wait for it.
        signal.alarm(60)
        right = all(np.array_equal(ours.predict_proba(X), expected) for _ in range(3))
        os._exit(0 if right else 3)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
for each in threads:
    each.join()
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_child_that_is_forked_while_threads_predict(child_environment):
    assert run(FORKING, child_environment).strip() == "done"
