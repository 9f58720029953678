"""All CUDA cases of the tests on the GPU, in several pytest processes at a time.

Compiling is most of it, which the host does: one case of each test comes first, and then all others
for as long as there is time. Processes find on the disk what others have compiled.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from benchmarks.gpu.steps import ROOT, Context

# Processes at a time: each compiles on one core, and the GPU holds a context for each.
MOST_AT_A_TIME = 12
# Cases of a process: starting one takes some seconds.
CASES_A_PROCESS = 6
# A quick run takes a case of each file, and of these one of each test: one of each kernel.
EVERY_TEST_OF = ("kernel_cases.py",)
TAIL = 3000


def case_files() -> list[Path]:
    """Return the files that hold CUDA cases."""
    return sorted((ROOT / "tests" / "gpu").glob("*_cases.py"))


def run(context: Context) -> None:
    """Run every case; what fails or is cut off leaves the others theirs."""
    workers = max(2, min(MOST_AT_A_TIME, (os.cpu_count() or 2) - 2))
    with ThreadPoolExecutor(workers) as several:
        ids = [each for found in several.map(collected, case_files()) for each in found]
        waiting = {
            several.submit(run_cases, cases, context): name
            for name, cases in portions(ids, context.quick)
        }
        for answer in as_completed(waiting):
            name, found = waiting[answer], answer.result()
            context.keep(name, found)
            if found["code"] is None:
                print(f"  {name}: {found['summary']}", flush=True)
            elif not found["passed"]:
                context.fail(f"{name}: {found['summary']}")
    done = sum(found["done"] for found in context.results.values())
    print(f"  {done} of {len(ids)} cases passed", flush=True)


def portions(ids: list[str], quick: bool) -> list[tuple[str, list[str]]]:
    """Return the cases of each process, by name: those that come first of each test, then others.

    With `quick`, one of each kernel alone.
    """
    first = first_of_each(ids)
    if quick:
        files = [each.partition("::")[0] for each in first]
        chosen = [f not in files[:k] or f.endswith(EVERY_TEST_OF) for k, f in enumerate(files)]
        first = list(itertools.compress(first, chosen))
    rest = [] if quick else sorted(set(ids) - set(first), key=ids.index)
    found = []
    for kind, chosen in (("one of each test", first), ("others", rest)):
        for file, cases in itertools.groupby(chosen, key=lambda each: each.partition("::")[0]):
            held = list(cases)
            for start in range(0, len(held), CASES_A_PROCESS):
                name = f"{Path(file).stem}, {kind}, from {start + 1}"
                found.append((name, held[start : start + CASES_A_PROCESS]))
    return found


def run_cases(cases: list[str], context: Context) -> dict[str, Any]:
    """Run some cases; return pytest's summary, the end of its output, and how many passed.

    Of a process that is cut off, those count that had passed by then.
    """
    if context.left() <= 0:
        return {"code": None, "passed": False, "summary": "cut off", "output": "", "done": 0}
    command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-rfEs", *cases]
    return run_pytest(command, context.left())


def run_pytest(command: list[str], seconds: float) -> dict[str, Any]:
    """Run pytest without the simulator, for so many seconds at most."""
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    # To a file: of a process that is killed, whatever was in the pipe would be lost.
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        try:
            code: int | None = subprocess.run(
                command,
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=max(1.0, seconds),
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            code = None
        output.seek(0)
        text = output.read()
    return {"code": code, **summary(text, code)}


def summary(text: str, code: int | None) -> dict[str, Any]:
    """Return what pytest's last lines say: a pass if some tests passed and none failed.

    What is skipped wants a package that is not installed, and pytest's output says which.
    """
    # compute-sanitizer writes below it, and what a test prints may look like it.
    lines = [line for line in text.splitlines() if re.search(r"\d+ \w+.* in [\d.]+s", line)]
    counts = re.findall(r"(\d+) (passed|failed|errors?|skipped|deselected)", "".join(lines[-1:]))
    said = ", ".join(f"{number} {kind}" for number, kind in counts)
    if code is None:
        # Of a file's cases, each has a line when it has run.
        done = len(re.findall(r"^\S+::.* PASSED", text, re.MULTILINE))
        said = f"cut off after {done} passed" if done else "cut off"
        return {"passed": False, "summary": said, "output": text[-TAIL:], "done": done}
    done = sum(int(number) for number, kind in counts if kind == "passed")
    passed = code == 0 and "passed" in {kind for _, kind in counts}
    return {
        "passed": passed,
        "summary": said or f"nothing ran (exit code {code})",
        "output": "" if passed and "skipped" not in said else text[-TAIL:],
        "done": done,
    }


def collected(file: Path) -> list[str]:
    """Return the ids of the cases of a file."""
    command = [sys.executable, "-m", "pytest", str(file), "--collect-only", "-q"]
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "0"}
    answer = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    return [line for line in answer.stdout.splitlines() if "::" in line]


def first_of_each(ids: list[str]) -> list[str]:
    """Return the first case of each test function: every kernel once, in little time."""
    found: dict[str, str] = {}
    for each in ids:
        found.setdefault(re.sub(r"\[.*", "", each), each)
    return list(found.values())
