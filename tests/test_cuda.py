"""Run the CUDA cases: in Numba's simulator everywhere, and on the GPU where there is one."""

import re
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CASES = sorted(path.name for path in HERE.glob("cuda_*_cases.py"))
# Far fewer would mean that something was not collected.
FEWEST_CASES = 150


def run_cases(python, environment):
    """Run the cases in a process of their own; fail unless all of them ran and passed."""
    command = [
        python,
        "-m",
        "pytest",
        *(str(HERE / name) for name in CASES),
        "-q",
        "--tb=short",
        "-x",
    ]
    finished = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=HERE.parent, check=False
    )
    report = finished.stdout[-8000:] + finished.stderr[-2000:]
    assert finished.returncode == 0, report
    summary = re.search(r"^(\d+) passed in ", finished.stdout, re.MULTILINE)
    assert summary, f"something was skipped, or nothing ran:\n{report}"
    assert int(summary[1]) >= FEWEST_CASES, report


def test_the_cases_in_the_simulator(child_python, child_environment):
    run_cases(child_python, {**child_environment, "NUMBA_ENABLE_CUDASIM": "1"})


@pytest.mark.gpu
def test_the_cases_on_the_gpu(child_python, child_environment):
    from numba import cuda

    if not cuda.is_available():
        pytest.skip("there is no NVIDIA GPU here, or no driver")
    run_cases(child_python, {**child_environment, "NUMBA_ENABLE_CUDASIM": "0"})
