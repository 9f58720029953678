"""What a batch of `cuda.resident` takes on the emulated GPU."""

import subprocess

import pytest

from tests import ROOT

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")

pytestmark = [pytest.mark.cuda_compile, pytest.mark.slow]

# Warp instructions, 2 % above what NVVM 13.5 makes of the kernels. With places of 64 bits they took
# 21,470, 74,964 and 53,210.
MOST = {"16-64-1 float32": 11_100, "64-64-10 float32": 40_000, "64-64-10 bfloat16": 22_500}


def test_a_batch_takes_no_more_instructions(child_python, child_environment):
    environment = {**child_environment, "NUMBA_ENABLE_CUDASIM": "0"}
    command = [child_python, "-W", "ignore", "-m", "tests.gpu.emulator.counts"]
    answer = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    found = dict(line.rsplit(": ", 1) for line in answer.stdout.splitlines())
    assert found.keys() == MOST.keys()
    too_many = {name: found[name] for name, most in MOST.items() if int(found[name]) > most}
    assert not too_many, f"got {too_many}, wanted at most {MOST}"
