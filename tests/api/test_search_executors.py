"""Searches on executors of other processes: spawned ones, loky's, Dask's and MPI's."""

import logging
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from tests.api.test_search import numbers_of, search_with

# With eight networks of a part at most, each executor is given 12 parts, and then 6 and 6.
SCRIPT = """
import pickle, sys
from mpi4py.futures import MPIPoolExecutor
from tests.api.test_search import numbers_of, search_with
if __name__ == "__main__":
    with MPIPoolExecutor() as executor:
        found = numbers_of(search_with(executor))
    with open(sys.argv[1], "wb") as file:
        pickle.dump(found, file)
"""


@pytest.fixture(scope="module")
def expected():
    """Return what a search finds without an executor."""
    return numbers_of(search_with(None))


def spawned(**more):
    """Return an executor of two new processes."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(2, mp_context=context, **more)


def test_spawned_processes_change_no_bit(expected, caplog):
    caplog.set_level(logging.WARNING, "fastmlp")
    with spawned() as executor:
        assert numbers_of(search_with(executor)) == expected
    assert not caplog.records


def _die():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_a_killed_worker_changes_no_bit(expected, caplog):
    caplog.set_level(logging.WARNING, "fastmlp")
    with spawned() as executor:
        # It dies while the parts wait for it, and the executor breaks.
        executor.submit(_die)
        assert numbers_of(search_with(executor)) == expected
    assert "is computed here" in caplog.text


def test_loky_changes_no_bit(expected, caplog):
    loky = pytest.importorskip("loky")
    caplog.set_level(logging.WARNING, "fastmlp")
    executor = loky.get_reusable_executor(max_workers=2)
    try:
        assert numbers_of(search_with(executor)) == expected
    finally:
        executor.shutdown(kill_workers=True)
    assert not caplog.records


class RayExecutor:
    """That of the guide."""

    def submit(self, function, *given):
        ray = pytest.importorskip("ray")
        return ray.remote(function).remote(*given).future()


def test_ray_changes_no_bit(expected, caplog, monkeypatch):
    ray = pytest.importorskip("ray")
    caplog.set_level(logging.WARNING, "fastmlp")
    # Nobody is told of this run, and nobody else may join it.
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        assert numbers_of(search_with(RayExecutor())) == expected
    finally:
        ray.shutdown()
    assert not caplog.records


def test_dask_changes_no_bit(expected, caplog):
    distributed = pytest.importorskip("distributed")
    caplog.set_level(logging.WARNING, "fastmlp")
    given = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**given) as cluster, distributed.Client(cluster) as client:
        found = numbers_of(search_with(client.get_executor()))
    assert found == expected
    assert not [each for each in caplog.records if each.name == "fastmlp"]


def test_mpi_changes_no_bit(expected, tmp_path, child_environment):
    pytest.importorskip("mpi4py")
    beside = Path(sys.executable).parent
    mpiexec = shutil.which("mpiexec", path=os.pathsep.join([str(beside), os.environ["PATH"]]))
    if mpiexec is None:
        pytest.skip("no mpiexec")
    script, result = tmp_path / "searching.py", tmp_path / "found"
    script.write_text(SCRIPT)
    command = [mpiexec, "-n", "2", sys.executable, "-m", "mpi4py.futures", str(script), str(result)]
    done = subprocess.run(
        command, env=child_environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert pickle.loads(result.read_bytes()) == expected
    assert "is computed here" not in done.stderr
