"""All CUDA cases of the tests on the GPU: a pytest process a file, several at a time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.gpu.steps import ROOT, Context

AT_A_TIME = 4
TAIL = 3000


def case_files() -> list[Path]:
    """Return the files that hold CUDA cases."""
    return sorted((ROOT / "tests").glob("cuda_*_cases.py"))


def run(context: Context) -> None:
    """Run every file; one that fails or is cut off leaves the others theirs."""
    files = case_files()
    with ThreadPoolExecutor(AT_A_TIME) as several:
        # Compiling is most of it, which the host does.
        waiting = {file: several.submit(run_file, file, context) for file in files}
        for file, answer in waiting.items():
            found = answer.result()
            context.keep(file.stem, found)
            print(f"  {file.stem}: {found['summary']}", flush=True)
            if not found["passed"]:
                context.fail(f"{file.stem}: {found['summary']}")


def run_file(file: Path, context: Context) -> dict[str, Any]:
    """Run the cases of a file; return pytest's summary and the end of its output."""
    chosen = first_of_each(collected(file)) if context.quick else [str(file)]
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-rfE", *chosen]
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
    """Return what pytest's last lines say; only passed tests and no others are a pass."""
    # compute-sanitizer writes below it, and what a test prints may look like it.
    lines = [line for line in text.splitlines() if re.search(r"\d+ \w+.* in [\d.]+s", line)]
    counts = re.findall(r"(\d+) (passed|failed|errors?|skipped|deselected)", "".join(lines[-1:]))
    said = ", ".join(f"{number} {kind}" for number, kind in counts)
    if code is None:
        return {"passed": False, "summary": "cut off", "output": text[-TAIL:]}
    found = {kind for _, kind in counts}
    passed = code == 0 and "passed" in found and "skipped" not in found
    return {
        "passed": passed,
        "summary": said or f"nothing ran (exit code {code})",
        "output": "" if passed else text[-TAIL:],
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
