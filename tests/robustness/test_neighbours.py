"""A process leaves processors to others: limits of threads that it is started with hold."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from fastmlp.device.machine import count_cores
import fastmlp
model = fastmlp.MLP((64, 256, 256, 8))
explained = fastmlp.explain(model, batch_size=512, rows=5120)
asked = fastmlp.explain(model, batch_size=512, rows=5120, threads=2)
print(count_cores(), explained.threads, asked.machine.cores)
"""


def _cores(child_environment, **limits):
    environment = {
        name: value for name, value in child_environment.items() if "NUM_THREADS" not in name
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment | limits,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return [int(each) for each in done.stdout.split()]


@pytest.mark.parametrize(
    "limits",
    [{"OMP_NUM_THREADS": "1"}, {"NUMBA_NUM_THREADS": "1"}, {"OMP_NUM_THREADS": "1,4"}],
    ids=["openmp", "numba", "list"],
)
def test_a_limit_holds_for_all_but_who_asks_for_more(child_environment, limits):
    assert _cores(child_environment, **limits) == [1, 1, 2]


@pytest.mark.parametrize("value", ["", "none", "0", "-3", "1000000"])
def test_what_is_no_limit_is_passed_over(child_environment, monkeypatch, value):
    from fastmlp.device.machine import count_cores

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    free = count_cores()
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert count_cores() == free


def test_workers_of_joblib_keep_to_their_share(child_environment):
    pytest.importorskip("joblib")
    program = (
        "import joblib, os\n"
        "from fastmlp.device.machine import count_cores\n"
        "if __name__ == '__main__':\n"
        "    with joblib.parallel_config('loky', n_jobs=2, inner_max_num_threads=1):\n"
        "        print(joblib.Parallel()(joblib.delayed(count_cores)() for _ in range(2)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=child_environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.strip() == "[1, 1]"
