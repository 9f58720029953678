"""Run the CUDA cases: in Numba's simulator everywhere, and on the GPU where there is one."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

from tests import ROOT

CASES = sorted(Path(__file__).parent.glob("*_cases.py"))


def run_cases(file, python, environment):
    """Run a file's cases in a process of their own; fail unless all of them ran and passed."""
    command = [python, "-m", "pytest", str(file), "-q", "--tb=short", "-x"]
    finished = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False
    )
    report = finished.stdout[-8000:] + finished.stderr[-2000:]
    assert finished.returncode == 0, report
    summary = re.search(r"^(\d+) passed in ", finished.stdout, re.MULTILINE)
    assert summary, f"something was skipped, or nothing ran:\n{report}"
    assert int(summary[1]) >= functions_of(file), report


def functions_of(file):
    """Return how many tests a file defines; each is at least one case."""
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    return sum(isinstance(node, ast.FunctionDef) and node.name.startswith("test") for node in nodes)


def test_there_are_cases():
    assert len(CASES) >= 10 and all(functions_of(file) for file in CASES)


@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_the_cases_in_the_simulator(file, child_python, child_environment):
    run_cases(file, child_python, {**child_environment, "NUMBA_ENABLE_CUDASIM": "1"})


@pytest.mark.gpu
@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_the_cases_on_the_gpu(file, child_python, child_environment):
    from numba import cuda

    if not cuda.is_available():
        pytest.skip("there is no NVIDIA GPU here, or no driver")
    run_cases(file, child_python, {**child_environment, "NUMBA_ENABLE_CUDASIM": "0"})
