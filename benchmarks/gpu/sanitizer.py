"""A few CUDA cases under compute-sanitizer: accesses outside arrays, and races in shared memory."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.device_cases import case_files, collected, first_of_each, run_pytest
from benchmarks.gpu.steps import Context, Skipped

TOOLS = ("memcheck", "racecheck")
FOUND = 9
"""The exit code by which compute-sanitizer says that it found something."""


def run(context: Context) -> None:
    """Run the first case of each test under each tool."""
    program = find_program(os.environ)
    if program is None:
        raise Skipped("compute-sanitizer is neither on the path nor in the toolkit's folder")
    for file in case_files():
        for tool in TOOLS:
            found = context.attempt(f"{file.stem} {tool}", under, program, tool, file, context)
            if found and found.get("code") == FOUND:
                context.fail(f"{file.stem} {tool}: {found['summary']}")


def find_program(environment: Mapping[str, str]) -> str | None:
    """Return where compute-sanitizer is: on the path, or in the toolkit that `steps` has found."""
    named = [environment[name] for name in ("CUDA_HOME", "CUDA_PATH") if environment.get(name)]
    inside = [str(Path(each) / part) for each in named for part in ("bin", "compute-sanitizer")]
    path = os.pathsep.join([environment.get("PATH", ""), *inside])
    return shutil.which("compute-sanitizer", path=path)


def under(program: str, tool: str, file: Any, context: Context) -> dict[str, Any]:
    """Run a file's selection under a tool."""
    selection = first_of_each(collected(file))
    if not selection:
        raise Skipped("nothing was collected")
    command = [program, "--tool", tool, "--error-exitcode", str(FOUND), "--print-limit", "5"]
    pytest = [sys.executable, "-m", "pytest", "-q", "--tb=line", "-x", *selection]
    # Half of what is left: the next tool or file shall have its turn.
    answer = run_pytest([*command, *pytest], context.left() / 2)
    if answer["code"] is None:
        raise Skipped(f"cut off; {len(selection)} cases were chosen")
    return answer
