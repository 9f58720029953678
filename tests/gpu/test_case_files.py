"""Run the CUDA cases: in Numba's simulator, on an emulated GPU, and on a GPU where there is one.

The emulated GPU runs the PTX that a GPU would be given. Every run of the tests takes the files of
`EMULATED`, with NaN or a plausible number in memory that nobody has written. With `--exhaustive` it
takes all files, with both.
"""

import ast
import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

from tests import ROOT

CASES = sorted(Path(__file__).parent.glob("*_cases.py"))
# Each poison in one of the two large files: a run of either takes a minute.
EMULATED = {
    ("kernel_cases", "nan"),
    ("program_cases", "number"),
    ("tensor_cases", "nan"),
}
# The simulator has no case of these beside those of the emulated GPU.
EMULATED_ALONE = {"kernel_cases", "program_cases"}
# PyTorch's own arrays are on a real GPU.
ON_A_GPU_ALONE = {
    "tests/gpu/memory_cases.py::test_arrays_of_pytorch_are_used_without_a_copy",
}


def run_cases(file, python, environment, *options):
    """Run a file's cases in a process of their own; fail unless some passed and none failed."""
    command = [python, "-m", "pytest", str(file), "-q", "--tb=short", "-x", "-rs", *options]
    finished = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False
    )
    report = finished.stdout[-8000:] + finished.stderr[-2000:]
    assert finished.returncode == 0, report
    # What is skipped wants a package that is not installed.
    summary = re.search(r"^(\d+) passed(?:, (\d+) skipped)? in ", finished.stdout, re.MULTILINE)
    assert summary, f"nothing ran, or not all of it:\n{report}"
    assert int(summary[1]) + int(summary[2] or 0) >= functions_of(file), report


def functions_of(file):
    """Return how many tests a file defines; each is at least one case."""
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    return sum(isinstance(node, ast.FunctionDef) and node.name.startswith("test") for node in nodes)


def test_there_are_cases():
    assert len(CASES) >= 10 and all(functions_of(file) for file in CASES)


def emulated_gpu_missing():
    """Return whether no PTX can be made here."""
    return importlib.util.find_spec("numba_cuda") is None


@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_the_cases_in_the_simulator(file, child_python, child_environment):
    if file.stem in EMULATED_ALONE and not emulated_gpu_missing():
        pytest.skip("the emulated GPU runs them: the same cases, as PTX")
    run_cases(file, child_python, {**child_environment, "NUMBA_ENABLE_CUDASIM": "1"})


def emulated_runs():
    """Return each file with each poison; most are for an exhaustive run."""
    runs = []
    for file in CASES:
        for poison in ("nan", "number"):
            marks = [] if (file.stem, poison) in EMULATED else [pytest.mark.exhaustive]
            runs.append(pytest.param(file, poison, id=f"{file.stem}-{poison}", marks=marks))
    return runs


@pytest.mark.slow
@pytest.mark.cuda_compile
@pytest.mark.parametrize(("file", "poison"), emulated_runs())
def test_the_cases_on_an_emulated_gpu(file, poison, child_python, child_environment):
    pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
    environment = {**child_environment, "NUMBA_ENABLE_CUDASIM": "0", "OMP_NUM_THREADS": "1"}
    options = ["-p", "tests.gpu.emulator.plugin", f"--poison={poison}"]
    run_cases(file, child_python, environment, *options)


def cases_there(folder, python, environment, *options):
    """Return the ids of the cases that would be run somewhere, of files that ask where they are."""
    files = [file for file in CASES if "emulated_device" in file.read_text(encoding="utf-8")]
    command = [python, "-m", "pytest", *map(str, files), "--collect-only", "-q", *options]
    answer = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=folder, check=True
    )
    return {line for line in answer.stdout.splitlines() if "::" in line}


@pytest.mark.slow
@pytest.mark.cuda_compile
def test_the_emulated_gpu_has_the_cases_of_a_gpu(child_python, child_environment):
    pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
    environment = {**child_environment, "NUMBA_ENABLE_CUDASIM": "0"}
    there = cases_there(ROOT, child_python, environment)
    emulated = cases_there(ROOT, child_python, environment, "-p", "tests.gpu.emulator.plugin")
    assert emulated < there and len(emulated) > 100
    assert {each.partition("[")[0] for each in there - emulated} == ON_A_GPU_ALONE


@pytest.mark.gpu
@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_the_cases_on_the_gpu(file, child_python, child_environment):
    from numba import cuda

    if not cuda.is_available():
        pytest.skip("there is no NVIDIA GPU here, or no driver")
    run_cases(file, child_python, {**child_environment, "NUMBA_ENABLE_CUDASIM": "0"})
