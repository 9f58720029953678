"""Ranks that are processes, of MPI and of PyTorch; one of them is killed or interrupted."""

import functools
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastmlp import load
from fastmlp.distributed import run_on_threads
from tests.house.test_architecture import imported, sources
from tests.ranks import child

MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}")
HAS_MPI = MPIEXEC is not None and importlib.util.find_spec("mpi4py") is not None
with_mpi = pytest.mark.skipif(not HAS_MPI, reason="mpi4py and mpiexec are not installed")
# No rank waits longer for one that has been killed.
PATIENCE_SECONDS = 30.0
# 20 were run by hand; each takes some seconds.
KILLS = int(os.environ.get("FASTMLP_KILLS", "2"))


@functools.cache
def wanted(epochs=child.EPOCHS):
    """Return what a rank that is alone leaves."""
    return run_on_threads(1, lambda each: child.train(each, True, epochs))[0]


def command(ranks, *arguments):
    assert MPIEXEC is not None
    return [MPIEXEC, "-n", str(ranks), sys.executable, "-m", "tests.ranks.child", *arguments]


def begin(line, environment):
    rest = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(line, env=environment, **rest)


def found(output):
    """Return what each rank has said, in their order. Lines of two ranks may run together."""
    decoder, text, said = json.JSONDecoder(), output.strip(), []
    while text:
        value, end = decoder.raw_decode(text)
        said.append(value)
        text = text[end:].lstrip()
    return [numbers for _, numbers in sorted(said)]


@with_mpi
@pytest.mark.parametrize(("ranks", "shared"), [(2, False), (4, True)], ids=["2", "4"])
def test_ranks_of_mpi_give_the_bits_of_one(child_environment, ranks, shared):
    line = command(ranks, "mpi", *(["--shared"] if shared else []))
    ran = subprocess.run(line, env=child_environment, capture_output=True, text=True, timeout=200)
    assert ran.returncode == 0, ran.stderr
    assert found(ran.stdout) == [wanted()] * ranks


def pid_of(folder, rank, process):
    """Return the process of a rank, once it has begun."""
    path = folder / f"{rank}.pid"
    while not (path.is_file() and path.read_text()):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    return int(path.read_text())


@with_mpi
@pytest.mark.parametrize("number", range(KILLS))
def test_a_rank_that_is_killed_leaves_a_checkpoint_to_go_on_from(
    tmp_path, child_environment, number
):
    epochs, generator = 2000, random.Random(number)
    arguments = ["mpi", "--folder", str(tmp_path), "--checkpoint", "--epochs", str(epochs)]
    process = begin(command(2, *arguments), child_environment)
    victim = pid_of(tmp_path, generator.randrange(2), process)
    pid_of(tmp_path, 0, process)
    time.sleep(generator.uniform(0.0, 3.0))
    os.kill(victim, signal.SIGKILL)
    killed = time.monotonic()
    process.communicate(timeout=PATIENCE_SECONDS)
    assert time.monotonic() - killed < PATIENCE_SECONDS
    assert process.returncode != 0
    path, done = tmp_path / "fit.fastmlp", 0
    if path.exists():
        done = load(path).epochs_trained
    size, target = generator.choice([1, 2, 4]), done + 3

    def go_on(communicator):
        return child.train(communicator, True, target, path)

    # The settings of a checkpoint do not include the number of epochs.
    assert run_on_threads(size, go_on) == [wanted_until(target)] * size


@functools.cache
def wanted_until(epochs):
    return run_on_threads(1, lambda each: child.train(each, False, epochs))[0]


@with_mpi
def test_ctrl_c_on_one_rank_stops_all(tmp_path, child_environment, interrupts_heard):
    arguments = ["mpi", "--folder", str(tmp_path), "--checkpoint", "--epochs", "100000"]
    process = begin(command(2, *arguments), child_environment)
    victim = pid_of(tmp_path, 1, process)
    while not (tmp_path / "fit.fastmlp").exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(victim, signal.SIGINT)
    process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode != 0
    failed = (tmp_path / "failed").read_text()
    assert failed.startswith(
        "0: RankFailedError: communicator: got a failure (rank 1: KeyboardInterrupt"
    )


@with_mpi
@pytest.mark.parametrize("rows", [None, 1], ids=["no file", "one row"])
def test_files_that_are_wrong_on_one_rank_or_all_end_all_with_one_line(
    rows, tmp_path, child_environment
):
    """Both ranks run the command, and the file of the second one has other names."""
    pytest.importorskip("safetensors")
    form = '[data]\ntrain = "{}"\ntarget = "y"\n[model]\nhidden = [4]\n[output]\nmodel = "{}"\n'
    table, model = tmp_path / "rows.csv", tmp_path / "model.fastmlp"
    table.write_text("x,y\n" + "1,2\n" * (rows or 20))
    line = [MPIEXEC]
    for rank, name in enumerate(("rows.csv", "none.csv" if rows is None else "rows.csv")):
        settings = tmp_path / f"{rank}.toml"
        settings.write_text(form.format((tmp_path / name).as_posix(), model.as_posix()))
        command = [sys.executable, "-m", "fastmlp", "train", str(settings), "--mpi"]
        line += [":"] * rank + ["-n", "1", *command]
    process = begin(line, child_environment)
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 2
    said = [each for each in errors.splitlines() if each.startswith("fastmlp: ")]
    wanted = "none.csv' (on rank 1)" if rows is None else "got 1 for 2 ranks, wanted one for each"
    assert len(said) == 1 and wanted in said[0]
    assert not model.exists()


def test_the_command_alone_imports_mpi4py():
    """Its import starts MPI, which ends a process that no `mpiexec` knows of on some clusters."""
    found = [path.name for path in sources("fastmlp", "kernels") if "mpi4py" in imported(path)]
    assert found == ["training.py"]


@pytest.mark.peer
def test_a_process_group_of_pytorch_is_a_communicator(tmp_path, child_environment):
    pytest.importorskip("torch")
    line = [sys.executable, "-m", "tests.ranks.child", "torch", "--folder", str(tmp_path)]
    ranks = [
        begin(line, {**child_environment, "RANK": str(rank), "WORLD_SIZE": "2"})
        for rank in range(2)
    ]
    outputs = [each.communicate(timeout=200) for each in ranks]
    assert [each.returncode for each in ranks] == [0, 0], outputs
    assert [found(output)[0] for output, _ in outputs] == [wanted()] * 2
