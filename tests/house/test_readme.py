"""Every Python snippet of a page, in order, in a fresh interpreter, as a reader pastes them."""

import re
import subprocess
import sys

import pytest

from tests import ROOT

# What a newcomer reads in two minutes.
LONGEST_README = 120
WITHOUT_CODE = {"installing.md", "command.md"}


def run_snippets(page, count, tmp_path):
    """Run the snippets of a page, so many of them at least; return what they printed."""
    return run(python_of(ROOT / page, count), tmp_path)


def python_of(path, count):
    """Return the snippets of a page as one program; there are so many of them at least."""
    text = path.read_text(encoding="utf-8")
    snippets = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(snippets) >= count, path
    return "\n".join(snippets)


def run(source, tmp_path):
    environment_path = f"{ROOT}:{ROOT / 'kernels'}"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", source],
        cwd=tmp_path,
        env={"PYTHONPATH": environment_path, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= LONGEST_README


def test_the_readme_runs_as_pasted(tmp_path):
    pytest.importorskip("fastmlp.sklearn", reason="scikit-learn is not installed")
    printed = run_snippets("README.md", 2, tmp_path).stdout
    assert "MLPClassifier(random_state=0)" in printed


@pytest.mark.parametrize(
    ("page", "count"),
    [("docs/index.md", 1), ("docs/derivation.md", 10), ("docs/inside.md", 1), ("docs/faq.md", 2)],
)
def test_a_page_runs_as_pasted(page, count, tmp_path):
    run_snippets(page, count, tmp_path)


def test_getting_started_runs_as_pasted(tmp_path):
    for package in ("safetensors", "matplotlib"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    printed = run_snippets("docs/start.md", 6, tmp_path).stdout
    # The same bits from the file, and every row served.
    assert "True\n" in printed and printed.endswith("(1000,)\n")


def test_the_guide_runs_as_pasted(tmp_path):
    """Each page with names of its own, and all of them in one process: it starts once."""
    pages = sorted((ROOT / "docs" / "guide").glob("*.md"))
    assert len(pages) >= 10
    sources = {path.name: python_of(path, 1) for path in pages if path.name not in WITHOUT_CODE}
    lines = [
        f"exec(compile({source!r}, {name!r}, 'exec'), {{}})" for name, source in sources.items()
    ]
    printed = run("\n".join(lines), tmp_path).stdout
    # The two deliberate mistakes say what was wrong with what.
    assert "binary_cross_entropy is defined for predictions in [0, 1]" in printed
    assert re.search(r"X: got .*5.*wanted .*8", printed)
    assert "cpu.fused" in printed


@pytest.mark.parametrize(
    ("heading", "package"), [("To PyTorch and back", "torch"), ("To ONNX", "onnxruntime")]
)
def test_the_example_of_another_library_runs(heading, package, tmp_path):
    """It is marked as `py`, since the guide must run without that library."""
    pytest.importorskip(package, reason=f"{package} is not installed")
    text = (ROOT / "docs/guide/saving.md").read_text(encoding="utf-8")
    section = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    (snippet,) = re.findall(r"^```py\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    assert run(snippet, tmp_path).stdout == "True\n"


def test_the_example_of_optuna_runs_and_prunes(tmp_path):
    pytest.importorskip("optuna", reason="Optuna is not installed")
    text = (ROOT / "docs/guide/ensembles.md").read_text(encoding="utf-8")
    section = text.split("## Searching with Optuna")[1].split("\n## ")[0]
    (snippet,) = re.findall(r"^```py\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    first = re.search(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)[1]
    states = "print([trial.state.name for trial in study.trials])"
    # Its own warnings are not ours to repair.
    quiet = "import warnings; warnings.simplefilter('default')"
    printed = run("\n".join([quiet, first, snippet, states]), tmp_path).stdout
    assert "'PRUNED'" in printed and printed.count("'COMPLETE'") >= 2


def test_the_guide_to_scikit_learn_runs_as_pasted(tmp_path):
    pytest.importorskip("fastmlp.sklearn", reason="scikit-learn is not installed")
    result = run_snippets("docs/scikit-learn.md", 5, tmp_path)
    # What falls back says so; what was patched is fastmlp's; what left is scikit-learn's.
    assert "scikit-learn's own code runs: the solver is 'lbfgs'" in result.stderr
    assert "fastmlp.sklearn.estimators" in result.stdout
    assert "sklearn.neural_network._multilayer_perceptron" in result.stdout
