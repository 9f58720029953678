"""The plugin for pytest: cases of `numba.cuda` run, and what is found fails them."""

import re
import subprocess

import pytest

from tests import ROOT

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")

pytestmark = [pytest.mark.cuda_compile, pytest.mark.slow]

CASES = """
import numpy as np
from numba import cuda, float32


@cuda.jit
def exchange(x, out, barriers):
    shared = cuda.shared.array(64, float32)
    t = cuda.threadIdx.x
    shared[t] = x[t]
    if barriers > 0:
        cuda.syncthreads()
    out[t] = shared[63 - t]


def exchanged(x, barriers):
    held, out = cuda.to_device(x), cuda.device_array(64, np.float32)
    exchange[1, 64](held, out, barriers)
    return out.copy_to_host()


X = np.arange(64, dtype=np.float32)


def test_right():
    assert (exchanged(X, 1) == X[::-1]).all()


def test_without_a_barrier():
    exchanged(X, 0)


def test_of_what_nobody_has_written():
    exchanged(cuda.device_array(64, np.float32), 1)


def test_beyond_an_array():
    exchanged(X[:63], 1)


def test_an_array_of_the_host_is_copied_there_and_back():
    out = np.zeros(64, np.float32)
    exchange[1, 64](X, out, 1)
    assert (out == X[::-1]).all()


def test_a_graph_replays_what_was_captured():
    from fastmlp_kernels.cuda.layered import graphs
    from fastmlp_kernels.cuda.layered.launching import Launches, Tiles

    recorder, reason = graphs.recorder()
    assert reason == ""
    launches, held = Launches(Tiles()), cuda.to_device(X)
    out = cuda.to_device(np.zeros(64, np.float32))
    graph = recorder.record(launches, lambda: launches.grid(exchange, 1, 64, held, out, 1))
    assert not out.copy_to_host().any()
    graph.launch(launches.stream)
    assert (out.copy_to_host() == X[::-1]).all()


def test_shared_memory_is_granted_when_it_is_asked_for():
    from numba import int64, types

    from fastmlp_kernels.cuda.on_chip.shared_memory import allow

    @cuda.jit
    def last(out, place):
        shared = cuda.shared.array(0, float32)
        shared[place] = 3
        out[0] = shared[place]

    out, count = cuda.to_device(np.zeros(1, np.float32)), 200 * 1024
    try:
        last[1, 1, 0, count](out, count // 4 - 1)
    except RuntimeError as error:
        assert "CUDA_ERROR_INVALID_VALUE" in str(error)
    else:
        raise AssertionError("granted unasked")
    allow(last, (types.Array(types.float32, 1, "C"), int64), count)
    last[1, 1, 0, count](out, count // 4 - 1)
    assert out.copy_to_host() == 3
"""
FAULTS = {
    "test_without_a_barrier": "race within a block: shared memory is written, then read",
    "test_of_what_nobody_has_written": "global memory is read that nobody has written",
    "test_beyond_an_array": "global memory is accessed out of bounds of an array",
}


@pytest.mark.parametrize("options", [[], ["--warp-seed=3", "--poison=number"], ["--traffic"]])
def test_cases_with_planted_faults(tmp_path, child_python, child_environment, options):
    file = tmp_path / "planted_cases.py"
    file.write_text(CASES)
    command = [child_python, "-m", "pytest", str(file), "-q", "-rfE", "--rootdir", str(ROOT)]
    command += ["-p", "tests.gpu.emulator.plugin", *options]
    environment = {**child_environment, "NUMBA_ENABLE_CUDASIM": "0"}
    run = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False
    )
    report = run.stdout + run.stderr
    faulty = set(re.findall(r"^(?:FAILED|ERROR) .*::(\w+)", run.stdout, re.MULTILINE))
    assert faulty == set(FAULTS), report
    for message in FAULTS.values():
        assert message in run.stdout, report
    counted = re.search(r"^exchange: shared wavefronts: \d+$", run.stdout, re.MULTILINE)
    assert bool(counted) == ("--traffic" in options), report
