"""KeyboardInterrupt at random moments of an estimator's calls, and a second call after it."""

import subprocess
import sys

import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

SECONDS = 300

# A timer raises in the main thread, between any two lines of Python. Batches are in order, so that
# the parameters after so many steps are known: those of as many calls of `partial_fit`.
PROGRAM = f"""
import faulthandler, signal, sys, time, warnings
faulthandler.dump_traceback_later({SECONDS - 30}, exit=True)
import numpy as np
import fastmlp
from fastmlp.sklearn import MLPClassifier, MLPRegressor, prediction
warnings.simplefilter("ignore")
prediction.FEW_ROWS = 0
tries, threads = map(int, sys.argv[1:])
generator = np.random.default_rng(0)
ROWS, BATCH, EPOCHS = 300, 50, 6
BATCHES = ROWS // BATCH
X = generator.normal(size=(ROWS, 9))
y = np.tanh(X[:, 0] * X[:, 1]) + X[:, 2]

class Interrupted(KeyboardInterrupt):
    pass

# Another thread may be given the signal: then it is heard after the timer was stopped.
armed = []

def ring(number, frame):
    if armed:
        armed.clear()
        raise Interrupted

signal.signal(signal.SIGALRM, ring)

def interrupted(action, seconds):
    # Return whether it got away with an interrupt; one that comes too late is taken here.
    try:
        armed.append(True)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        action()
        armed.clear()
        signal.setitimer(signal.ITIMER_REAL, 0)
        return False
    except Interrupted:
        signal.setitimer(signal.ITIMER_REAL, 0)
        return True

def make(optimizer):
    common = dict(hidden_layer_sizes=(30, 20), shuffle=False, batch_size=BATCH, random_state=0)
    return MLPRegressor(
        **common, tol=0, n_iter_no_change=1000, max_iter=EPOCHS, threads=threads, **optimizer
    )

def state(each):
    optimizer = each._optimizer
    names = [name for name in ("velocities", "ms", "vs") if hasattr(optimizer, name)]
    vectors = [getattr(optimizer, name) for name in names]
    slots = [] if getattr(optimizer, "slots", None) is None else list(optimizer.slots)
    return [*each.coefs_, *each.intercepts_, *sum(vectors, []), *slots]

def steps_of(each):
    optimizer = each._optimizer
    return optimizer.t if hasattr(optimizer, "t") else getattr(optimizer, "steps", None)

def same(one, two):
    return len(one) == len(two) and all(
        np.allclose(a, b, 1e-7, 1e-9) for a, b in zip(one, two)
    )

def trajectory(optimizer, steps):
    each = make(optimizer)
    found = []
    for step in range(steps):
        rows = slice(step % BATCHES * BATCH, (step % BATCHES + 1) * BATCH)
        each.partial_fit(X[rows], y[rows])
        found.append([part.copy() for part in state(each)])
    return found

counts = dict(fit=0, partial_fit=0, predict=0, again=0)
for optimizer in (dict(), dict(solver="sgd"), dict(optimizer=fastmlp.AdamW(1e-3))):
    known = trajectory(optimizer, 2 * EPOCHS * BATCHES)
    started = time.perf_counter()
    plain = make(optimizer).fit(X, y)
    seconds = time.perf_counter() - started
    outputs = plain.predict(X)
    for number in range(tries):
        ours = make(optimizer)
        counts["fit"] += interrupted(lambda: ours.fit(X, y), generator.uniform(0, 1.3 * seconds))
        # Not where scikit-learn's own set-up was interrupted: it has no attributes to go on from.
        ready = hasattr(ours, "loss_curve_") and len(ours.intercepts_) == 3
        if ready and hasattr(ours, "_optimizer"):
            epochs = len(ours.loss_curve_)
            # As scikit-learn writes them, one after the other.
            assert ours.n_iter_ - epochs in (0, 1), (ours.n_iter_, epochs)
            assert ours.t_ in (ours.n_iter_ * ROWS, epochs * ROWS), (ours.t_, ours.n_iter_)
            assert ours.n_iter_ == 0 or epochs == 0 or np.isfinite(ours.loss_)
            taken = steps_of(ours)
            if taken is not None and state(ours)[0].shape == known[0][0].shape:
                assert epochs * BATCHES <= taken <= (epochs + 1) * BATCHES, (taken, epochs)
                assert taken == 0 or same(state(ours), known[taken - 1]), (optimizer, taken)
            elif epochs:
                # Between two batches of some epoch, or at its end.
                first, last = epochs * BATCHES - 1, (epochs + 1) * BATCHES
                assert any(same(state(ours), each) for each in known[first:last]), epochs
        # A second call of each kind.
        if ready and hasattr(ours, "best_validation_score_"):
            counts["partial_fit"] += interrupted(
                lambda: ours.partial_fit(X, y), generator.uniform(0, 0.4 * seconds)
            )
        ours.fit(X, y)
        assert np.array_equal(ours.predict(X), outputs)
        counts["predict"] += interrupted(lambda: ours.predict(X), generator.uniform(0, 4e-4))
        assert np.array_equal(ours.predict(X), outputs)
        counts["again"] += 1
print(counts)
"""


@pytest.mark.any_version
@pytest.mark.parametrize(("threads", "tries"), [(1, 40), (2, 40)])
def test_interrupts_at_random_moments(threads, tries, child_environment):
    result = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", PROGRAM, str(tries), str(threads)],
        env={**child_environment, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    counts = eval(result.stdout)
    assert counts["again"] == 3 * tries
    # The timer has struck inside most calls.
    assert counts["predict"] >= tries and counts["partial_fit"] >= tries // 2
