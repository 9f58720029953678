"""`dev.py gpu`: the guarded sequence, and every part of it that runs without a GPU."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.comparisons import comparisons
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import device_cases, report, sanitizer, steps
from benchmarks.gpu.steps import Context, Skipped, Step
from fastmlp.device.machine import detect
from tests import ROOT
from tests.benchmarking.records import benchmark

MODULES = {
    "step_that_is_done": """
def run(context):
    context.attempt("a", lambda: 1.5)
    context.keep("before", sorted(context.found))
""",
    "step_that_skips": """
from benchmarks.gpu.steps import Skipped
def run(context):
    context.keep("a", 1)
    raise Skipped("it has no GPU")
""",
    "step_that_raises": """
def run(context):
    context.keep("a", 1)
    raise ValueError("of no use")
""",
    "step_that_finds_something": """
def bad():
    raise ValueError("17 is wrong")
def run(context):
    context.attempt("bad", bad)
    context.attempt("good", lambda: 2)
""",
    "step_that_dies": """
import os
def run(context):
    context.keep("a", 1)
    os._exit(7)
""",
    "step_that_hangs": """
import subprocess, sys, time
def run(context):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    context.keep("child", child.pid)
    time.sleep(60)
""",
}


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Return a function that makes a step of one of the modules above."""
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def step(name, seconds=20.0, needs_gpu=False):
        return Step(name, name, seconds, 0, needs_gpu, f"step_that_{name}")

    return step


def run(step, tmp_path, seconds=20.0):
    return steps.run_step(step, {"quick": True}, tmp_path / "record.json", seconds)


def test_a_step_that_is_done(made, tmp_path):
    entry = run(made("is_done"), tmp_path)
    assert entry["status"] == "done" and entry["failures"] == []
    assert entry["results"] == {"a": 1.5, "before": []}


def test_a_step_that_skips_keeps_what_it_had(made, tmp_path):
    entry = run(made("skips"), tmp_path)
    assert (entry["status"], entry["reason"]) == ("skipped", "it has no GPU")
    assert entry["results"] == {"a": 1}


def test_a_step_that_raises_keeps_what_it_had(made, tmp_path):
    entry = run(made("raises"), tmp_path)
    assert (entry["status"], entry["reason"]) == ("failed", "ValueError: of no use")
    assert entry["results"] == {"a": 1}


def test_what_fails_in_a_step_does_not_hide_what_follows(made, tmp_path):
    entry = run(made("finds_something"), tmp_path)
    assert entry["status"] == "failed"
    assert entry["failures"] == ["bad: ValueError: 17 is wrong"]
    assert entry["results"]["good"] == 2


def test_a_process_that_dies_is_a_failure(made, tmp_path):
    entry = run(made("dies"), tmp_path)
    assert entry["status"] == "failed" and "exit code 7" in entry["reason"]
    assert entry["results"] == {"a": 1}


def test_a_step_that_hangs_is_cut_off_with_its_children(made, tmp_path):
    started = time.monotonic()
    entry = run(made("hangs"), tmp_path, seconds=2.0)
    assert time.monotonic() - started < 15
    assert (entry["status"], entry["reason"]) == ("cut off", "its 2 seconds were up")
    child = entry["results"]["child"]
    for _ in range(50):
        if not running(child):
            break
        time.sleep(0.1)
    assert not running(child)


def running(number):
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    # Nobody has waited for it yet, but it runs no more.
    return state != "Z"


def test_the_sequence_goes_on_and_its_record_is_on_the_disk(made, tmp_path, capsys):
    path = tmp_path / "record.json"
    record = {"steps": {}}
    wanted = [made("dies"), made("skips"), made("is_done")]
    steps.sequence(wanted, {}, record, path, 60.0)
    found = {name: entry["status"] for name, entry in record["steps"].items()}
    assert found == {"dies": "failed", "skips": "skipped", "is_done": "done"}
    # The third step was given what the first two had found, from the disk.
    assert record["steps"]["is_done"]["results"]["before"] == ["dies", "skips"]
    assert json.loads(path.read_text()) == json.loads(json.dumps(record))
    assert "skips: skipped: it has no GPU" in capsys.readouterr().out


def test_time_that_is_left_goes_to_the_steps_that_follow(monkeypatch, tmp_path):
    given = []

    def run_step(step, options, record, seconds):
        given.append(seconds)
        return {"status": "done", "seconds": 0, "results": {}}

    monkeypatch.setattr(steps, "run_step", run_step)
    wanted = [Step("a", "a", 10), Step("b", "b", 20), Step("c", "c", 30)]
    steps.sequence(wanted, {}, {"steps": {}}, tmp_path / "r.json", 60.0)
    # None took any time: the budgets of those before are added.
    assert given == pytest.approx([10, 30, 60], abs=1)
    given.clear()
    steps.sequence(wanted, {}, {"steps": {}}, tmp_path / "r.json", 30.0)
    assert given == pytest.approx([5, 15, 30], abs=1)
    given.clear()
    quick = [Step("a", "a", 100, 5), Step("b", "b", 200, 15), Step("c", "c", 30)]
    steps.sequence(quick, {"quick": True}, {"steps": {}}, tmp_path / "r.json", 50.0)
    assert given == pytest.approx([5, 20, 50], abs=1)


def test_a_step_without_time_is_not_begun(monkeypatch, tmp_path):
    monkeypatch.setattr(steps, "run_step", None)
    record = {"steps": {}}
    steps.sequence([Step("a", "a", 10)], {}, record, tmp_path / "r.json", 0.5)
    assert record["steps"]["a"]["status"] == "cut off"


def test_the_whole_takes_eight_minutes_at_most_and_a_quick_run_three():
    assert sum(step.seconds for step in steps.STEPS) <= steps.LIMIT < 480
    assert sum(step.quick_seconds for step in steps.STEPS) <= steps.QUICK_LIMIT < 180
    quick = ["versions", "instructions", "device_cases", "comparison"]
    assert steps.names(quick=True) == [*quick, "report"] and steps.names()[:4] == quick
    assert command.parse([]).minutes == steps.LIMIT / 60
    assert command.parse(["--quick"]).steps == steps.names(quick=True)
    assert command.parse(["--quick", "--steps", "ceilings"]).steps == ["ceilings"]
    for step in steps.STEPS:
        assert (ROOT / "benchmarks" / "gpu" / f"{step.name}.py").exists()


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        (["done", "skipped"], 0),
        (["done", "failed", "cut off"], 1),
        (["skipped", "cut off"], 3),
    ],
)
def test_exit_codes(statuses, code):
    record = {"steps": {str(k): {"status": each} for k, each in enumerate(statuses)}}
    assert command.outcome(record) == code


def test_a_wrong_argument_has_exit_code_two(capsys):
    for arguments in (["--minutes", "0"], ["--steps", "nothing"], ["--cases", "1-2"]):
        with pytest.raises(SystemExit) as ended:
            command.parse(arguments)
        assert ended.value.code == 2
    assert "--minutes: got 0, wanted more than 0" in capsys.readouterr().err


def test_a_cuda_folder_is_found_and_one_that_is_named_is_kept(monkeypatch, tmp_path):
    (tmp_path / "toolkit" / "nvvm").mkdir(parents=True)
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(steps, "TRIES_FOR_CUDA", (str(tmp_path / "toolkit"),))
    monkeypatch.setattr(steps.shutil, "which", lambda name: None)
    assert steps.environment()["CUDA_HOME"] == str(tmp_path / "toolkit")
    assert str(ROOT / "kernels") in steps.environment()["PYTHONPATH"]
    monkeypatch.setenv("CUDA_PATH", "/elsewhere")
    assert "CUDA_HOME" not in steps.environment()
    monkeypatch.setenv("CUDA_HOME", "/mine")
    assert steps.environment()["CUDA_HOME"] == "/mine"


@pytest.mark.skipif(detect().cuda_missing is None, reason="there is a GPU here")
def test_without_a_gpu_each_step_says_so_in_a_line(tmp_path):
    arguments = ["--here", "gpu", "--quick", "--out", str(tmp_path)]
    answer = subprocess.run(
        [sys.executable, str(ROOT / "dev.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    reason = detect().cuda_missing
    for step in steps.STEPS:
        if not step.quick_seconds:
            assert step.title not in answer.stdout
            continue
        (last,) = [
            line
            for line in answer.stdout.splitlines()
            if line.startswith(f"{step.title}: ") and "at most" not in line
        ]
        assert f"skipped: {reason}" in last if step.needs_gpu else "done" in last, last
    (path,) = tmp_path.glob("gpu-*.json")
    record = json.loads(path.read_text())
    assert record["steps"]["versions"]["results"]["packages"]["numpy"] != "none"
    page = path.with_suffix(".md").read_text()
    # Seconds, on a machine that others use too.
    assert re.search(
        rf"\| Instructions against NumPy \| skipped \| \d+ s \| {re.escape(reason)} \|", page
    )


@pytest.mark.exhaustive
@pytest.mark.cuda_compile
def test_every_step_runs_on_the_emulated_gpu(tmp_path):
    pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
    command = [sys.executable, "-m", "tests.gpu.emulator.rehearsal", "--quick", "--minutes", "45"]
    command += ["--cases", "2-20-5", "--precisions", "float32", "--out", str(tmp_path)]
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    answer = subprocess.run(
        [*command, "--steps", *steps.names()],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout[-5000:] + answer.stderr[-2000:]
    (path,) = tmp_path.glob("gpu-*.json")
    found = {name: step["status"] for name, step in json.loads(path.read_text())["steps"].items()}
    # What it needs is a program of NVIDIA's and a real GPU.
    assert found.pop("sanitizer") in ("skipped", "done")
    assert found.keys() | {"sanitizer"} == set(steps.names()) and set(found.values()) == {"done"}


def context(seconds=60.0, **options):
    return Context({"quick": True, "device": "cpu", **options}, {}, time.monotonic() + seconds)


def test_an_attempt_without_time_is_not_made():
    late = context(seconds=steps.RESERVE)
    late.attempt("a", lambda: 1)
    assert late.results == {"a": {"skipped": "the step's time was up"}}


def test_an_attempt_that_skips_fails_nothing():
    def skip():
        raise Skipped("not here")

    here = context()
    here.attempt("a", skip)
    assert here.results == {"a": {"skipped": "not here"}} and here.failures == []


@pytest.mark.parametrize(
    ("text", "code", "passed", "said"),
    [
        ("....\n4 passed in 1.2s\n", 0, True, "4 passed"),
        ("4 passed, 2 deselected in 1.2s\n", 0, True, "4 passed, 2 deselected"),
        ("3 passed, 1 skipped in 1.2s\n", 0, True, "3 passed, 1 skipped"),
        ("2 skipped in 1.2s\n", 0, False, "2 skipped"),
        ("E  9 failed\n1 failed, 3 passed in 1.2s\n", 1, False, "1 failed, 3 passed"),
        ("Segmentation fault", -11, False, "nothing ran (exit code -11)"),
        ("....", None, False, "cut off"),
        ("a.py::x[1] PASSED [ 5%]\na.py::x[2] PASSED\nTo", None, False, "cut off after 2 passed"),
    ],
)
def test_what_pytest_says(text, code, passed, said):
    found = device_cases.summary(text, code)
    assert (found["passed"], found["summary"]) == (passed, said)
    # Why something was skipped is kept, too.
    assert found["output"] == ("" if passed and "skipped" not in said else text)


def test_pytest_runs_without_the_simulator_and_is_cut_off(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "1")
    file = tmp_path / "test_it.py"
    file.write_text(
        "import os, time\n"
        "def test_a(): assert os.environ['NUMBA_ENABLE_CUDASIM'] == '0'\n"
        "def test_b(): time.sleep(float(os.environ['NAP']))\n"
    )
    ask = [sys.executable, "-m", "pytest", "-q", str(file), "--rootdir", str(tmp_path), "-c"]
    ask.append(os.devnull)
    monkeypatch.setenv("NAP", "0")
    assert device_cases.run_pytest(ask, 30.0)["summary"] == "2 passed"
    monkeypatch.setenv("NAP", "60")
    found = device_cases.run_pytest(ask, 2.0)
    assert found["summary"] == "cut off" and found["code"] is None


def test_the_sanitizer_takes_a_case_of_each_test():
    ids = ["a.py::test_x[1]", "a.py::test_x[2]", "a.py::test_y", "b.py::test_x[1]"]
    chosen = ["a.py::test_x[1]", "a.py::test_y", "b.py::test_x[1]"]
    assert device_cases.first_of_each(ids) == chosen


def test_cases_are_shared_out_to_processes_the_first_of_each_test_first():
    ids = [f"a.py::test_x[{k}]" for k in range(9)] + ["a.py::test_y", "b.py::test_z[0]"]
    found = device_cases.portions(ids, quick=False)
    assert sorted(each for _, cases in found for each in cases) == sorted(ids)
    assert [cases for _, cases in found[:2]] == [
        ["a.py::test_x[0]", "a.py::test_y"],
        ["b.py::test_z[0]"],
    ]
    assert [len(cases) for _, cases in found[2:]] == [6, 2]
    assert len({name for name, _ in found}) == len(found)
    every, first = device_cases.EVERY_TEST_OF[0], ["a.py::test_x[0]"]
    quick = device_cases.portions([*ids, f"{every}::test_a", f"{every}::test_b"], quick=True)
    assert [cases for _, cases in quick] == [
        first,
        ["b.py::test_z[0]"],
        [f"{every}::test_a", f"{every}::test_b"],
    ]


def test_every_file_of_cuda_cases_is_run():
    names = {file.name for file in device_cases.case_files()}
    assert {"kernel_cases.py", "program_cases.py"} <= names
    assert all((ROOT / "tests" / "gpu" / name).exists() for name in names)


def timing(provider, role, turn, seconds, **more):
    about = {"case": "64x4", "batch": 1000, "device": "cuda", "per": 2, "flops": 3e9}
    return benchmark(provider, role, turn, [seconds], **(about | more))


def made_up_record():
    """Return a record as a run would leave it; its figures are made up for this test."""
    timings = [
        timing("fastmlp", "ours", turn, seconds, kernel=kernel, chosen=kernel == "cuda.a", **more)
        for kernel, scale, more in (
            ("cuda.a", 1, {"notes": {"products": "tiles", "graphs": ""}}),
            ("cuda.b", 0.5, {}),
        )
        for turn, seconds in ((0, 2e-3 * scale), (1, 4e-3 * scale), (1000, 3e-3 * scale))
    ]
    timings += [timing("PyTorch", "peer", turn, 9e-3) for turn in (0, 1)]
    timings += [timing("PyTorch graph", "peer", turn, 8e-3) for turn in (0, 1)]
    timings += [timing("PyTorch compile", "peer", 1000, 4.5e-3)]
    wrong = {"kind": "disagreement", "provider": "JAX", "device": "cuda", "reason": "another"}
    compared = {
        "benchmarks": timings,
        "refusals": [wrong],
        "machine_info": {"processors": 2, "gpu": "GPU of a test"},
        "commit_info": {"id": "abc"},
        "datetime": "2026-01-02T03:04:05",
        "unfinished": ["64x4 tf32, 1000"],
    }
    beside = {
        "seconds": {"cpu.fused": 4e-3, "cuda.a": 1e-3, "cuda.b": 2e-3},
        "auto": "cuda.b",
        "auto_measured": "cuda.a",
        "regret_auto": 2.0,
        "regret_auto_measured": 1.0,
    }

    def step(results, status="done"):
        return {"status": status, "seconds": 1.0, "reason": "", "results": results}

    return {
        "quick": False,
        "system": "a system",
        "fastmlp": "0",
        "commit": "abc",
        "datetime": "2026",
        "steps": {
            "versions": step({"device": {"name": "GPU of a test"}}),
            "ceilings": step({"products": {"float32": 1e13}}),
            "device_cases": step({"x": {"passed": False, "output": "E  boom"}}, "failed"),
            "comparison": step(compared),
            "crossover": step({"64, 1000": beside}),
        },
    }


def test_the_best_peer_counts_in_the_turns_that_it_had():
    (item,) = comparisons(report.compared(made_up_record()))
    # 4.5 ms over 3 ms: the compiled one's only turn.
    assert item.best("peer").provider == "PyTorch compile"
    assert item.ratio.median == pytest.approx(1.5)


def test_the_tables_say_what_the_record_says():
    page = report.markdown(made_up_record())
    assert "GPU of a test" in page
    # A median of 1.5 ms a step is 2 TFLOP/s, of 10 measured; the other kernel takes half of it.
    line = next(row for row in page.splitlines() if row.startswith("| 64x4, 1000 |"))
    assert "cuda.a: 1.5 (1.25–1.75) ms" in line
    assert "PyTorch compile (1 thread): 2.25" in line and "**1.50** (1.50–1.50)" in line
    assert "| 2e+03 | 20.0% |" in line
    assert "worst regret is 2.00, of 64x4 on cuda" in page
    assert "- JAX on cuda: refused: another" in page
    assert "not in all of their turns: 64x4 tf32, 1000" in page
    assert (
        "| cpu.fused: 4000 µs | cuda.a: 1000 µs | **4.00** | cuda.b: 2.00 | cuda.a: 1.00 |" in page
    )
    assert "- fastmlp (cuda.a, 1 thread): products: tiles" in page and "graphs: \n" not in page
    assert "E  boom" in page


def test_the_report_as_a_command_and_its_plot(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    file = tmp_path / "gpu.json"
    file.write_text(json.dumps(made_up_record()))
    assert report.main([str(file), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "gpu.png").stat().st_size > 5000
    assert (tmp_path / "out" / "gpu.md").read_text() in capsys.readouterr().out
    assert report.main([str(tmp_path / "none.json")]) == 2


def test_the_step_leaves_tables_and_rows(tmp_path):
    file = tmp_path / "gpu-1.json"
    file.write_text(json.dumps(made_up_record()))
    here = context(record=str(file))
    report.run(here)
    assert here.failures == [] and file.with_suffix(".md").exists()
    rows = (tmp_path / "results.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 6 and all("GPU of a test" in row for row in rows[1:])


def test_a_record_of_nothing_has_a_report():
    bare = made_up_record() | {"steps": {}}
    assert "GPU: none" in report.markdown(bare)
    assert report.compared(bare) is None


def test_the_sanitizer_is_found_in_the_toolkits_folder(tmp_path):
    program = tmp_path / "toolkit" / "bin" / "compute-sanitizer"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    toolkit = str(tmp_path / "toolkit")
    for name in ("CUDA_HOME", "CUDA_PATH"):
        assert sanitizer.find_program({"PATH": "/nowhere", name: toolkit}) == str(program)
    assert sanitizer.find_program({"PATH": str(program.parent)}) == str(program)
