"""Data of every kind that scikit-learn's multilayer perceptrons take, and how close is the same."""

import numpy as np
from sklearn.neural_network import MLPClassifier as PlainClassifier
from sklearn.neural_network import MLPRegressor as PlainRegressor

from fastmlp.sklearn import MLPClassifier, MLPRegressor

# Of the losses, relative: what the estimators promise.
LOSS_TOLERANCE = {"float64": 1e-9, "float32": 1e-4}
# Of parameters and optimizer state: rounding that 50 epochs have amplified, against the largest.
STATE_TOLERANCE = {"float64": 1e-7, "float32": 5e-3}
# Of predictions in float64, whatever the parameters.
PREDICTION_TOLERANCE = 1e-12
# Batches of 32 do not divide it, with and without the rows set aside.
ROWS = 157
INPUTS = 12

PLAIN = {MLPClassifier: PlainClassifier, MLPRegressor: PlainRegressor}
CLASSIFIED = ("binary", "multiclass", "multilabel")
REGRESSED = ("regression", "multioutput", "poisson")


def data(kind, dtype="float64", rows=ROWS, seed=0):
    """Return X and y of a kind of problem, with something to learn in it."""
    generator = np.random.default_rng(seed)
    X = generator.normal(size=(rows, INPUTS))
    Z = np.tanh(X @ generator.normal(size=(INPUTS, 4))) + 0.1 * generator.normal(size=(rows, 4))
    if kind == "binary":
        y = np.where(Z[:, 0] > 0, 7, 2)
    elif kind == "multiclass":
        y = np.argmax(Z, axis=1) * 3 - 1
    elif kind == "multilabel":
        y = (Z > 0.2).astype(int)
    elif kind == "regression":
        y = Z[:, 0] + 0.5 * Z[:, 1] ** 2
    elif kind == "multioutput":
        y = Z[:, :3]
    else:
        y = generator.poisson(np.exp(Z[:, 0])).astype(float)
    y = y.astype(dtype) if kind in REGRESSED else y
    return X.astype(dtype), y


def pair(kind, **settings):
    """Return our estimator for a kind of problem, and scikit-learn's, of the same settings.

    Those that scikit-learn does not have go to ours only.
    """
    ours = MLPClassifier if kind in CLASSIFIED else MLPRegressor
    if kind == "poisson":
        settings = {"loss": "poisson", **settings}
    settings = {"hidden_layer_sizes": (9, 7), "random_state": 3, "batch_size": 32, **settings}
    plain = {name: each for name, each in settings.items() if name not in ours._additions}
    return ours(**settings), PLAIN[ours](**plain)


def close(ours, theirs, tolerance, what):
    """Fail unless two arrays differ by at most a share of the largest element."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype, what
    assert np.isfinite(theirs).all(), f"{what}: nothing to compare with"
    limit = tolerance * max(np.abs(theirs).max(), 1e-3)
    assert np.abs(ours - theirs).max() <= limit, f"{what}: {np.abs(ours - theirs).max()} > {limit}"


def check_same(ours, theirs, dtype):
    """Fail unless two fitted estimators have had the same training and are in the same state."""
    np.testing.assert_allclose(
        np.array(ours.loss_curve_, float),
        np.array(theirs.loss_curve_, float),
        rtol=LOSS_TOLERANCE[dtype],
    )
    for name in ("n_iter_", "t_", "n_layers_", "n_outputs_", "out_activation_"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours._no_improvement_count == theirs._no_improvement_count
    for name in ("loss_", "best_loss_", "best_validation_score_"):
        mine, other = getattr(ours, name), getattr(theirs, name)
        assert (mine is None) == (other is None), name
        if other is not None:
            np.testing.assert_allclose(mine, other, rtol=LOSS_TOLERANCE[dtype])
    if theirs.validation_scores_ is None:
        assert ours.validation_scores_ is None
    else:
        np.testing.assert_allclose(
            ours.validation_scores_, theirs.validation_scores_, rtol=LOSS_TOLERANCE[dtype]
        )
    for name in ("coefs_", "intercepts_"):
        for mine, other in zip(getattr(ours, name), getattr(theirs, name), strict=True):
            close(mine, other, STATE_TOLERANCE[dtype], name)
    check_same_optimizer(ours._optimizer, theirs._optimizer, dtype)
    # As many random numbers have been drawn.
    drawn = [each._random_state.get_state() for each in (ours, theirs)]
    assert np.array_equal(drawn[0][1], drawn[1][1]) and drawn[0][2] == drawn[1][2]


def check_same_optimizer(ours, theirs, dtype):
    """Fail unless two optimizers would go on in the same way."""
    assert type(ours) is type(theirs)
    assert vars(ours).keys() == vars(theirs).keys()
    for name, other in vars(theirs).items():
        mine = getattr(ours, name)
        if isinstance(other, list):
            for one, two in zip(mine, other, strict=True):
                # In float32, scikit-learn's own biases have a state of float64 where rows have
                # weights.
                close(one, np.asarray(two, one.dtype), STATE_TOLERANCE[dtype], name)
        else:
            assert mine == other, name


class RecordingEngine:
    """An engine that computes nothing: what it is asked for is what is tested."""

    made: list = []
    reason = None

    @staticmethod
    def refusal(training):
        return RecordingEngine.reason

    def __init__(self, training):
        self.rows, self.batch_size = len(training.X), training.batch_size
        self.orders, self.finished = [], False
        self.made.append(self)

    def epoch(self, order):
        assert order.dtype == np.int64
        self.orders.append(order.copy())
        return 1.0 / len(self.orders)

    def finish(self):
        self.finished = True
