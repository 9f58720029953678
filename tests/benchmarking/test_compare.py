"""Two commits are compared by what they do: the slower one is named, the wrong one is refused."""

import subprocess
import sys

import numpy as np
import pytest

from benchmarks import compare
from benchmarks.cases import find
from benchmarks.compare import Failure, Job, verdict
from tests import ROOT

# A network of one layer by the public names that are used, with a rest before each call.
PACKAGE = """
import time
import numpy as np

class SGD:
    def __init__(self, rate):
        self.rate = rate

class Adam(SGD):
    pass

class MLP:
    def __init__(self, sizes, *arguments, **settings):
        pass

    def predict(self, X):
        time.sleep(REST)
        for W, b in list(zip(self.weights, self.biases))[:-1]:
            X = np.maximum(X @ W + b, 0)
        return FACTOR * (X @ self.weights[-1] + self.biases[-1])
"""


def commit(folder, rest, factor):
    text = PACKAGE.replace("REST", str(rest)).replace("FACTOR", str(factor))
    (folder / "fastmlp").mkdir(exist_ok=True)
    (folder / "fastmlp" / "__init__.py").write_text(text)
    name = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    for words in (["add", "."], [*name, "commit", "-q", "-m", "a commit"]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    return subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=folder, text=True).strip()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository of its own, in which only predictions are timed."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    script = tmp_path / "benchmarks" / "compare_process.py"
    script.parent.mkdir()
    script.write_text((ROOT / "benchmarks" / "compare_process.py").read_text(encoding="utf-8"))
    monkeypatch.setattr(compare, "ROOT", tmp_path)
    monkeypatch.setattr(compare, "PROCESSES", 2)
    every = compare.jobs
    monkeypatch.setattr(
        compare, "jobs", lambda names: [job for job in every(names) if job.kind == "predict"]
    )
    return tmp_path


def test_the_slower_commit_is_named_and_nothing_is_left(repository, capsys):
    quick, slow = commit(repository, 0.001, 1), commit(repository, 0.02, 1)
    assert compare.run([quick, slow], ["2-20-5"], 0) == 1
    printed = capsys.readouterr().out
    assert "Slower: predict 2-20-5, 10 rows (" in printed and "Faster: nothing" in printed
    assert compare.run([slow, quick], ["2-20-5"], 0) == 0
    assert "Faster: predict 2-20-5, 10 rows (0." in capsys.readouterr().out
    trees = subprocess.check_output(["git", "worktree", "list"], cwd=repository, text=True)
    assert len(trees.splitlines()) == 1


def test_a_wrong_commit_is_refused_before_it_is_timed(repository, monkeypatch):
    right, _ = commit(repository, 0, 1), commit(repository, 0, 1.01)
    monkeypatch.setattr(compare, "take_turns", lambda *_: pytest.fail("it was timed"))
    with pytest.raises(Failure, match=r"\.: predict 2-20-5, 10 rows: outputs: got an error"):
        compare.run([right, "."], ["2-20-5"], 0)


def test_a_process_that_dies_says_so(repository):
    right = commit(repository, 0, 1)
    (repository / "fastmlp" / "__init__.py").write_text("raise SystemExit(3)")
    with pytest.raises(Failure, match=r"^\.: its process has ended"):
        compare.run([right, "."], ["2-20-5"], 0)


def test_unknown_names_are_named(repository, monkeypatch):
    commit(repository, 0, 1)
    with pytest.raises(Failure, match="--compare: got 'no-such', wanted two commits"):
        compare.run(["no-such", "."], ["2-20-5"], 0)
    with pytest.raises(Failure, match="--cases: got '1-2', wanted some of 2-20-5"):
        compare.run([".", "."], ["1-2"], 0)


def test_what_this_tree_computes_is_accepted(tmp_path):
    """The process beside the oracle: each way of calling, with the names that fastmlp has today."""
    from benchmarks.compare_process import prepared

    (case,) = [find("2-20-5").with_steps(3)]
    for number, job in enumerate(compare.jobs(["2-20-5"])):
        small = Job(job.kind, job.case.with_steps(min(job.case.steps, case.steps)))
        small.write(tmp_path / f"{number}.npz")
        call, found = prepared(tmp_path / f"{number}.npz", 1)
        call()
        small.check(found())
        if job.kind != "predict":
            call()
            with pytest.raises(compare.Disagreement):
                small.check(found())


@pytest.mark.parametrize(
    ("ratios", "word"),
    [
        ([1.05] * 6, "slower"),
        ([1.02] * 6, "same"),
        ([0.9] * 6, "faster"),
        # One pair of processes disagrees, or all of them do.
        ([1.1, 1.1, 1.1, 1.1, 1.1, 0.99], "same"),
        ([1.01, 1.05, 1.1, 1.15, 1.2, 1.25], "same"),
        ([1.09, 1.10, 1.11, 1.12, 1.13, 1.14], "slower"),
    ],
    ids=str,
)
def test_what_is_slower_is_more_than_processes_differ(ratios, word):
    found = verdict("a job", [[(1e-3, each * 1e-3)] * 3 for each in ratios])
    assert found.word == word
    assert found.ratio.median == pytest.approx(np.median(ratios))
    page = compare.report(["a", "b"], [found])
    assert ("a job (" in page) == (word != "same")


def test_the_process_imports_nothing_of_this_tree():
    code = "import sys; sys.path = [p for p in sys.path if p]; import compare_process; "
    code += "print([n for n in sys.modules if n.startswith(('benchmarks', 'fastmlp', 'numba'))])"
    answer = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT / "benchmarks",
        env={"PYTHONPATH": str(ROOT / "benchmarks")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.strip() == "[]"
