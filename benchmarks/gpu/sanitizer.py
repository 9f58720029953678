"""A few CUDA cases under compute-sanitizer: accesses outside arrays, and races in shared memory."""

from __future__ import annotations

import shutil
import sys
from typing import Any

from benchmarks.gpu.device_cases import case_files, collected, first_of_each, run_pytest
from benchmarks.gpu.steps import Context, Skipped

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
