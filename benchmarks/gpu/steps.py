"""The guarded sequence: each step in a process of its own, with a budget, and what it leaves.

A step is a module with ``run(context)``. What it finds goes to a file after each result, so a step
that is cut off, or that dies with the CUDA context, has lost only what it was about to measure; the
steps after it begin with a fresh process.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastmlp.atomic_writing import write_atomically

ROOT = Path(__file__).resolve().parent.parent.parent
TRIES_FOR_CUDA = ("/usr/local/cuda", "/opt/cuda")
GRACE = 5.0
"""Seconds between asking a step to end and ending it."""
RESERVE = 3.0
"""Seconds of a step's budget that it leaves for ending: it plans to be done before."""


class Skipped(Exception):
    """A step, or a part of it, cannot run here; the message says why."""


@dataclass(frozen=True)
class Step:
    """A step of the sequence.

    Parameters
    ----------
    name : str
        Also of its module in this package.
    title : str
        What it is in the report.
    seconds : float
        Its budget; what earlier steps did not use is added.
    quick_seconds : float
        The same of a quick run; 0 where that leaves it out.
    needs_gpu : bool
        Whether it is skipped on a machine without a GPU.
    module : str
        Its module, if that is not in this package.
    """

    name: str
    title: str
    seconds: float
    quick_seconds: float = 0.0
    needs_gpu: bool = True
    module: str = ""

    @property
    def imported(self) -> str:
        """The module with ``run(context)``."""
        return self.module or f"benchmarks.gpu.{self.name}"


# What matters most comes first: whether instructions do what the kernels are built on, whether the
# kernels are right, and how they compare. The last one always has its share.
STEPS = (
    Step("versions", "Versions and limits", 40, 25, needs_gpu=False),
    Step("instructions", "Instructions against NumPy", 30, 20),
    Step("device_cases", "CUDA tests on the GPU", 110, 65),
    Step("comparison", "Comparison with PyTorch and JAX", 150, 50),
    Step("ceilings", "Measured ceilings", 45),
    Step("crossover", "CPU beside GPU", 45),
    Step("sanitizer", "CUDA tests under compute-sanitizer", 30),
    Step("report", "Tables and plot", 15, 10, needs_gpu=False),
)
# Of a GPU that is rented for 15 minutes in all.
LIMIT, QUICK_LIMIT = 470.0, 175.0


def names(quick: bool = False) -> list[str]:
    """Return the names of all steps, or of those of a quick run, in their order."""
    return [step.name for step in STEPS if step.quick_seconds or not quick]


@dataclass
class Context:
    """What a step is given.

    Attributes
    ----------
    options : dict
        ``quick``, ``device`` ("cuda"; tests run parts on the CPU), ``out``, ``cases``,
        ``precisions``.
    found : dict
        What the steps before have found, by name.
    deadline : float
        ``time.monotonic()`` at which this process is ended.
    file : Path or None
        Where results go.
    """

    options: dict[str, Any]
    found: dict[str, Any]
    deadline: float
    file: Path | None = None

    def __post_init__(self) -> None:
        self.results: dict[str, Any] = {}
        self.failures: list[str] = []

    @property
    def quick(self) -> bool:
        """Whether only to show that everything works."""
        return bool(self.options.get("quick"))

    @property
    def device(self) -> str:
        """Where to compute."""
        return self.options.get("device", "cuda")

    def left(self) -> float:
        """Return the seconds until this step should be done."""
        return self.deadline - RESERVE - time.monotonic()

    def result_of(self, step: str) -> dict[str, Any]:
        """Return what an earlier step has found."""
        return self.found.get(step, {}).get("results", {})

    def keep(self, name: str, value: Any) -> None:
        """Note a result, on the disk at once."""
        self.results[name] = value
        self.save("unfinished")

    def fail(self, what: str) -> None:
        """Note that something was wrong, and go on."""
        self.failures.append(what)
        self.save("unfinished")
        print(f"  FAILED {what}", flush=True)

    def attempt(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Keep what a function returns; its exception is noted, and the step goes on."""
        if self.left() <= 0:
            self.keep(name, {"skipped": "the step's time was up"})
            return None
        try:
            value = function(*arguments)
        except Skipped as reason:
            value = {"skipped": str(reason)}
        except Exception as error:
            self.fail(f"{name}: {describe(error)}")
            value = {"failed": describe(error)}
        self.keep(name, value)
        print(f"  {name}: {short(value)}", flush=True)
        return value

    def save(self, status: str, reason: str = "") -> None:
        """Replace the file whole."""
        if self.file is None:
            return
        content = {
            "status": status,
            "reason": reason,
            "failures": self.failures,
            "results": self.results,
        }
        write_json(self.file, content)


def describe(error: BaseException) -> str:
    """Return an exception in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]


def short(value: Any) -> str:
    """Return a result as one line for the screen."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = ", ".join(f"{k} {short(v)}" for k, v in value.items()) if isinstance(value, dict) else ""
    return (text or str(value))[:300]


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that whoever ends this process leaves the old file or the new one."""
    write_atomically(path, (json.dumps(content, indent=1, default=float) + "\n").encode())


def environment() -> dict[str, str]:
    """Return the environment of the steps: the checkout's packages, and where CUDA is.

    libNVVM must not be newer than the driver that takes its PTX, so it comes from the machine's own
    CUDA folder where no wheel brings one.
    """
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    found.setdefault("PYTHONUNBUFFERED", "1")
    if "CUDA_HOME" not in found and "CUDA_PATH" not in found:
        folder = cuda_folder()
        if folder is not None:
            found["CUDA_HOME"] = str(folder)
    return found


def cuda_folder() -> Path | None:
    """Return the folder of a CUDA toolkit: beside nvcc, or at a usual place."""
    compiler = shutil.which("nvcc")
    beside = [Path(compiler).resolve().parent.parent] if compiler else []
    numbered = sorted(Path("/usr/local").glob("cuda-*"), reverse=True)
    for folder in (*beside, *map(Path, TRIES_FOR_CUDA), *numbered):
        if (folder / "nvvm").is_dir():
            return folder
    return None


def run_step(step: Step, options: dict[str, Any], record: Path, seconds: float) -> dict[str, Any]:
    """Run a step in a process of its own; return its entry of the record.

    Its status is "done", "skipped", "failed" or "cut off".
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "step.json"
        command = [sys.executable, "-m", "benchmarks.gpu.step_process"]
        command += [step.imported, str(int(step.needs_gpu)), json.dumps(options)]
        command += [str(record), str(file), str(seconds)]
        # A session of its own: whatever it has started can be ended with it.
        process = subprocess.Popen(command, cwd=ROOT, env=environment(), start_new_session=True)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end(process)
        entry = read(file) or {"results": {}, "failures": [], "reason": "", "status": "unfinished"}
    entry["seconds"] = round(time.monotonic() - started, 1)
    if code is None:
        entry |= {"status": "cut off", "reason": f"its {seconds:.0f} seconds were up"}
    elif entry["status"] == "unfinished":
        entry |= {"status": "failed", "reason": f"its process ended with exit code {code}"}
    return entry


def end(process: subprocess.Popen[bytes]) -> None:
    """End a step's process and everything in its session, the children of a dead one too."""
    if not hasattr(os, "killpg"):
        process.kill()
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)


def read(path: Path) -> dict[str, Any] | None:
    """Return a file's JSON, or None where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def sequence(
    wanted: Sequence[Step],
    options: dict[str, Any],
    record: dict[str, Any],
    path: Path,
    limit: float,
) -> None:
    """Run the steps; the record is on the disk after each."""
    deadline = time.monotonic() + limit
    waiting = list(wanted)
    quick = bool(options.get("quick"))

    def budget(some: Sequence[Step]) -> float:
        return sum((quick and step.quick_seconds) or step.seconds for step in some)

    scale = min(1.0, limit / budget(wanted))
    while waiting:
        step = waiting.pop(0)
        # What is left beside the budgets of those that follow: an early end leaves them its time.
        budgets = budget(waiting)
        seconds = deadline - time.monotonic() - budgets * scale
        print(f"\n{step.title}: at most {max(seconds, 0):.0f} s", flush=True)
        if seconds < 1:
            entry: dict[str, Any] = {
                "status": "cut off",
                "reason": "no time was left",
                "seconds": 0,
            }
        else:
            entry = run_step(step, options, path, seconds)
        record["steps"][step.name] = entry
        write_json(path, record)
        reason = f": {entry['reason']}" if entry.get("reason") else ""
        print(f"{step.title}: {entry['status']}{reason} ({entry['seconds']} s)", flush=True)


def missing_gpu() -> str | None:
    """Return why no GPU can be used, or None."""
    from fastmlp.device.machine import detect

    return detect().cuda_missing
