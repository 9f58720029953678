"""The ways in and out: `patch`, the runner of unedited programs, and plain estimators."""

import importlib
import pickle
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

import sklearn.neural_network

import fastmlp
from fastmlp import accel
from fastmlp.errors import MissingPackageError
from fastmlp.sklearn import MLPClassifier, MLPRegressor, dispatch, patch, requirement, unpatch
from tests.scikit_learn.cases import (
    CLASSIFIED,
    PLAIN,
    REGRESSED,
    RecordingEngine,
    check_same,
    data,
    pair,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.usefixtures("one_blas_thread"),
]


def names():
    module = sklearn.neural_network
    return module.MLPClassifier, module.MLPRegressor


OURS = (MLPClassifier, MLPRegressor)
THEIRS = tuple(PLAIN[each] for each in OURS)


@pytest.fixture(autouse=True)
def unpatched():
    assert names() == THEIRS
    yield
    unpatch()
    assert names() == THEIRS


def test_patch_and_unpatch_are_idempotent():
    for _ in range(2):
        patch()
        assert names() == OURS
    for _ in range(2):
        unpatch()
        assert names() == THEIRS


def test_patch_is_a_context_manager():
    with patch():
        assert names() == OURS
        # Not the one that patched: it takes nothing back.
        with patch():
            assert names() == OURS
        assert names() == OURS
    assert names() == THEIRS
    with pytest.raises(KeyError), patch():
        raise KeyError
    assert names() == THEIRS


def test_unpatch_leaves_what_others_have_put_there():
    patch()
    sklearn.neural_network.MLPClassifier = int
    unpatch()
    assert names() == (int, THEIRS[1])
    sklearn.neural_network.MLPClassifier = THEIRS[0]


@pytest.mark.parametrize("kind", [*CLASSIFIED, *REGRESSED])
@pytest.mark.parametrize("settings", [{}, {"solver": "sgd"}, {"early_stopping": True}])
def test_to_sklearn_goes_on_as_scikit_learn_would(kind, settings):
    X, y = data(kind)
    ours, theirs = pair(kind, max_iter=4, warm_start=True, threads=1, **settings)
    with patch():
        # scikit-learn's class can be pickled while its public name is another's.
        plain = pickle.loads(pickle.dumps(ours.fit(X, y).to_sklearn()))
    theirs.fit(X, y)
    assert type(plain) is type(theirs) and plain.get_params() == theirs.get_params()
    assert vars(plain).keys() == vars(theirs).keys()
    check_same(plain, theirs, "float64")
    if kind in CLASSIFIED:
        assert np.array_equal(plain.predict(X), ours.predict(X))
    else:
        assert np.allclose(plain.predict(X), ours.predict(X))
    for each in (plain, theirs):
        each.fit(X, y)
    check_same(plain, theirs, "float64")


def test_to_sklearn_copies():
    X, y = data("multiclass")
    ours = MLPClassifier(max_iter=2, random_state=np.random.RandomState(0)).fit(X, y)
    plain = ours.to_sklearn()
    assert not np.shares_memory(plain.coefs_[0], ours.coefs_[0])
    assert not np.shares_memory(plain._optimizer.ms[0], ours._optimizer.ms[0])
    assert plain.random_state is plain._random_state is not ours.random_state
    before = ours.predict_proba(X)
    plain.partial_fit(X, y)
    assert np.array_equal(ours.predict_proba(X), before)


def test_to_sklearn_of_an_unfitted_estimator():
    plain = MLPRegressor(alpha=0.3, device="cpu").to_sklearn()
    assert type(plain) is THEIRS[1] and plain.get_params() == THEIRS[1](alpha=0.3).get_params()


def test_to_sklearn_of_what_scikit_learn_has_under_another_name(monkeypatch):
    monkeypatch.setattr(dispatch, "ENGINES", (RecordingEngine,))
    X, y = data("multiclass")
    for activation in ("sigmoid", ["logistic", "sigmoid"]):
        ours = MLPClassifier((5, 4), activation, max_iter=1, optimizer=fastmlp.AdamW()).fit(X, y)
        plain = ours.to_sklearn()
        assert plain.activation == "logistic" and not hasattr(plain, "_optimizer")
        assert np.allclose(plain.predict_proba(X), ours.predict_proba(X))
        assert np.isfinite(plain.partial_fit(X, y).loss_)
    for activation in ("gelu", ["relu", "tanh"]):
        ours = MLPClassifier((5, 4), activation, max_iter=1).fit(X, y)
        with pytest.raises(ValueError, match="to_sklearn: got activation"):
            ours.to_sklearn()


WITHOUT_FASTMLP = """
import pickle, sys
sys.modules["fastmlp"] = sys.modules["fastmlp_kernels"] = None
with open(sys.argv[1], "rb") as file:
    model, X, expected = pickle.load(file)
assert "sklearn.neural_network._multilayer_perceptron" == type(model).__module__
assert (model.predict(X) == expected).all()
model.partial_fit(X, expected)
print(model.t_)
"""


def test_a_plain_estimator_needs_no_fastmlp(tmp_path, child_environment):
    X, y = data("multiclass")
    ours = MLPClassifier(max_iter=3, random_state=0).fit(X, y)
    path = tmp_path / "plain.pickle"
    path.write_bytes(pickle.dumps((ours.to_sklearn(), X, ours.predict(X))))
    result = run(["-c", WITHOUT_FASTMLP, str(path)], child_environment, tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [str(4 * len(X))]


# Missing or old packages.


def test_scikit_learn_must_be_new_enough(monkeypatch):
    monkeypatch.setattr(sklearn, "__version__", "1.10.dev0")
    assert requirement.require_scikit_learn() == (1, 10)
    monkeypatch.setattr(sklearn, "__version__", "1.6.1")
    message = r"got scikit-learn 1\.6\.1, wanted scikit-learn >= 1\.7: pip install 'fastmlp\[skl"
    with pytest.raises(MissingPackageError, match=message):
        importlib.reload(fastmlp.sklearn)


WITHOUT_SCIKIT_LEARN = """
import sys
sys.modules["sklearn"] = None
import fastmlp
from fastmlp import *
try:
    fastmlp.sklearn
except fastmlp.MissingPackageError as error:
    print(error)
from fastmlp.accel import main
sys.exit(main([sys.argv[0]]))
"""


def run(arguments, environment, folder):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_without_scikit_learn_one_line_says_what_to_install(tmp_path, child_environment):
    script = tmp_path / "script.py"
    script.write_text(WITHOUT_SCIKIT_LEARN)
    result = run([str(script)], child_environment, tmp_path)
    for text in (result.stdout, result.stderr):
        assert "fastmlp.sklearn: got no scikit-learn" in text
        assert "pip install 'fastmlp[sklearn]'" in text and "Traceback" not in text
    assert result.returncode == 1


def test_importing_fastmlp_imports_no_scikit_learn(tmp_path, child_environment):
    code = (
        "import sys, fastmlp, fastmlp.accel; from fastmlp import *; fastmlp.MLP([2, 3, 1]);"
        "print([each for each in ('sklearn', 'scipy', 'joblib') if each in sys.modules])"
    )
    assert run(["-c", code], child_environment, tmp_path).stdout.strip() == "[]"


# Unedited programs.

PROGRAM = """
import sys
import numpy as np
import beside
from sklearn.neural_network import MLPClassifier, MLPRegressor

def main():
    X = np.random.default_rng(0).normal(size=(60, 3))
    model = MLPRegressor(solver="lbfgs", max_iter=2, random_state=0).fit(X, X[:, 0])
    print(MLPClassifier.__module__, sys.argv[1:], __name__, beside.NAME, __file__[-9:])
    if sys.argv[1:] == ["fail"]:
        raise RuntimeError("on purpose")
    sys.exit(int(sys.argv[1]))

if __name__ == "__main__":
    main()
"""


@pytest.fixture
def program(tmp_path):
    folder = tmp_path / "programs"
    folder.mkdir()
    (folder / "script.py").write_text(PROGRAM)
    (folder / "beside.py").write_text("NAME = 'found'\n")
    return folder / "script.py"


def start(program, by_module):
    """Return the words and the folder that start the program as a script or as a module."""
    words = ["-m", "script"] if by_module else ["programs/script.py"]
    return words, program.parent if by_module else program.parent.parent


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("by_module", [False, True])
def test_a_program_runs_unedited(program, child_environment, by_module):
    words, folder = start(program, by_module)
    plain = run([*words, "3"], child_environment, folder)
    result = run(["-m", "fastmlp.accel", *words, "3"], child_environment, folder)
    assert plain.returncode == result.returncode == 3, result.stderr
    module, _, rest = result.stdout.partition(" ")
    assert module == "fastmlp.sklearn.estimators"
    assert rest == plain.stdout.partition(" ")[2] == "['3'] __main__ found script.py\n"
    assert "lbfgs'" not in result.stderr


@pytest.mark.parametrize("by_module", [False, True])
def test_a_program_that_fails_shows_its_own_traceback(program, child_environment, by_module):
    words, folder = start(program, by_module)
    result = run(["-m", "fastmlp.accel", "-v", *words, "fail"], child_environment, folder)
    assert result.returncode == 1
    trace = result.stderr[result.stderr.index("Traceback") :].splitlines()
    assert trace[-1] == "RuntimeError: on purpose"
    assert "script.py" in trace[1] and "runpy" not in result.stderr
    assert "scikit-learn's own code runs: the solver is 'lbfgs'" in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "usage:"),
        (["-m"], "usage:"),
        (["--unknown"], "usage:"),
        (["nowhere.py"], "can't open 'nowhere.py'"),
    ],
)
def test_command_lines_that_are_wrong(capsys, words, message):
    assert accel.main(words) == accel.USAGE_STATUS
    assert message in capsys.readouterr().err


def test_help(capsys):
    assert accel.main(["--help"]) == 0
    assert "script.py" in capsys.readouterr().err
