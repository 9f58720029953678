"""A few CUDA cases under compute-sanitizer: accesses outside arrays, and races in shared memory."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from typing import Any

from benchmarks.gpu.cases_on_gpu import case_files, run_pytest
from benchmarks.gpu.steps import ROOT, Context, Skipped

TOOLS = ("memcheck", "racecheck")
FOUND = 9
"""The exit code by which compute-sanitizer says that it found something."""


def run(context: Context) -> None:
    """Run the first case of each test under each tool."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        raise Skipped("compute-sanitizer is not on the path")
    for file in case_files():
        for tool in TOOLS:
            found = context.attempt(f"{file.stem} {tool}", under, program, tool, file, context)
            if found and found.get("code") == FOUND:
                context.fail(f"{file.stem} {tool}: {found['summary']}")


def under(program: str, tool: str, file: Any, context: Context) -> dict[str, Any]:
    """Run a file's selection under a tool."""
    selection = first_of_each(collected(file))
    if not selection:
        raise Skipped("nothing was collected")
    command = [program, "--tool", tool, "--error-exitcode", str(FOUND), "--print-limit", "5"]
    pytest = [sys.executable, "-m", "pytest", "-q", "--tb=line", "-x", *selection]
    # Half of what is left: the next tool or file shall have its turn.
    answer = run_pytest([*command, *pytest], context.left() / 2)
    if answer["summary"] == "cut off":
        raise Skipped(f"cut off; {len(selection)} cases were chosen")
    return answer


def collected(file: Any) -> list[str]:
    """Return the ids of the cases of a file."""
    command = [sys.executable, "-m", "pytest", str(file), "--collect-only", "-q"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    return [line for line in answer.stdout.splitlines() if "::" in line]


def first_of_each(ids: list[str]) -> list[str]:
    """Return the first case of each test function: every kernel once, in little time."""
    found: dict[str, str] = {}
    for each in ids:
        found.setdefault(re.sub(r"\[.*", "", each), each)
    return list(found.values())
