"""scikit-learn's own tests of its multilayer perceptrons, run on fastmlp's estimators.

All of them: none pokes at a private that fastmlp replaces. (`test_gradient` calls
`_loss_grad_lbfgs`, which is inherited, and `test_fit` sets the parameters of an estimator that was
never fitted by hand, which `_forward_pass_fast` has to bear.)
"""

import importlib.util

import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from fastmlp.sklearn import MLPClassifier, MLPRegressor, patch

MODULE = "sklearn.neural_network.tests.test_mlp"
FEWEST_TESTS = 40

pytestmark = [
    pytest.mark.filterwarnings("default", "ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.usefixtures("one_blas_thread"),
]


def load():
    """Return a fresh copy of scikit-learn's test module that has imported our estimators."""
    spec = importlib.util.find_spec(MODULE)
    if spec is None:
        pytest.skip("this scikit-learn was installed without its tests", allow_module_level=True)
    module = importlib.util.module_from_spec(spec)
    with patch():
        spec.loader.exec_module(module)
    return module


THEIRS = load()
TESTS = {name: test for name, test in vars(THEIRS).items() if name.startswith("test_")}
globals().update(TESTS)


@pytest.fixture
def global_random_seed():
    """Return scikit-learn's default of the fixture of this name."""
    return 42


def test_they_test_our_classes():
    assert THEIRS.MLPClassifier is MLPClassifier
    assert THEIRS.MLPRegressor is MLPRegressor
    assert len(TESTS) >= FEWEST_TESTS
