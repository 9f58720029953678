"""Two commits in turns: ``python3 dev.py bench --compare A B``.

Each commit is checked out into a folder of its own, and measured by processes of its own. The
working tree as it is has the name ".". Before a case is timed, both must have computed what float64
computes. A turn is as many calls as take some hundredths of a second. Both sides have theirs one
right after the other, and take turns in being the first. So a ratio is one of the same minute.

Two processes of the same commit differ too: in where their memory lies, for example. So there are
several pairs of processes, and each has one ratio: the median of its turns. What differs by more
than these ratios differ among themselves is named.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cases import CASES, Case
from benchmarks.comparisons import Spread, spread
from benchmarks.prediction import Prediction, check_outputs, expected_outputs
from benchmarks.tables import show_ratio, show_time, table
from benchmarks.validation import Disagreement, expected_parameters, validate

ROOT = Path(__file__).resolve().parent.parent
WORKING_TREE = "."
NETWORKS = ("2-20-5", "16-64-1", "64-64-10", "64-256-256-8", "784-128-10", "32-64-4")
PROCESSES = 6
"""Pairs of processes, one after another."""
TURNS = 3
"""Turns of each pair."""
TURN_SECONDS = 0.03
LEAST_DIFFERENCE = 0.03
"""What is not told from noise, however equal the ratios are."""


class Failure(Exception):
    """Nothing can be compared; the message says why."""


@dataclass(frozen=True)
class Job:
    """What is timed: a case by `fit`, `step` or `predict`."""

    kind: str
    case: Case

    @property
    def name(self) -> str:
        """Its name in the table."""
        return f"{self.kind} {self.case.title}"

    def write(self, path: Path) -> None:
        """Write what the process needs to know."""
        X, y = self.case.data()
        (layers,) = self.case.initial_weights()
        arrays = {
            f"{name}{k}": part
            for k, pair in enumerate(layers)
            for name, part in zip("Wb", pair, strict=True)
        }
        fields = {name: getattr(self.case, name) for name in ("sizes", "batch", "optimizer")}
        about = json.dumps(fields | {"kind": self.kind})
        np.savez(path, about=np.array(about), X=X, y=y, **arrays)

    def check(self, got: np.ndarray) -> None:
        """Raise `Disagreement` if a process has not computed what float64 computes."""
        if isinstance(self.case, Prediction):
            check_outputs(got, expected_outputs(self.case))
        else:
            validate(self.case, expected_parameters(self.case), got[None].astype(np.float64))


def jobs(names: list[str]) -> list[Job]:
    """Return what is timed of the networks of these names."""
    chosen = [case for case in CASES if case.name in names]
    adam = [replace(case, optimizer="adam") for case in chosen]
    rows = [Prediction(case.name, case.sizes, case.batch, 1, case.reason, 0.0) for case in chosen]
    found = [Job("fit", case) for case in (*chosen, *adam)]
    found += [Job("step", case) for case in chosen]
    return found + [Job("predict", case) for case in rows]


class Process:
    """A process that measures a tree."""

    def __init__(self, name: str, tree: Path, folder: Path, threads: int) -> None:
        self.name = name
        paths = [str(tree), str(tree / "kernels")]
        cache = {"NUMBA_CACHE_DIR": str(ROOT / "build" / "benchmarks" / "cache")}
        # -P: the folder of the script is not searched, so that nothing of this tree is imported.
        command = [sys.executable, "-P", str(ROOT / "benchmarks" / "compare_process.py")]
        self.process = subprocess.Popen(
            [*command, str(folder), str(threads)],
            env={**os.environ, **cache, "PYTHONPATH": os.pathsep.join(paths)},
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, *words: Any) -> str:
        """Send a line, and return the line that answers it."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            print(*words, file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()
        except OSError:
            answer = ""
        if not answer:
            raise Failure(f"{self.name}: its process has ended; its message is above")
        return answer

    def seconds(self, job: int, count: int) -> float:
        """Return the seconds of `count` calls."""
        return float(self.ask("time", job, count))

    def close(self) -> None:
        """End it."""
        self.process.kill()
        # Its pipes are closed, too.
        self.process.communicate()


@dataclass(frozen=True)
class Verdict:
    """What the turns of a job say.

    Attributes
    ----------
    before, after : Spread
        Seconds of a call of the first and of the second side, over all turns.
    ratios : tuple of float
        The second side's time over the first one's, of each pair of processes.
    """

    name: str
    before: Spread
    after: Spread
    ratios: tuple[float, ...]

    @property
    def ratio(self) -> Spread:
        """The median of the ratios, with their quartiles."""
        return spread(self.ratios)

    @property
    def threshold(self) -> float:
        """How far from 1 the median ratio has to be to count.

        The median of n logarithms has a standard error of about 0.93 of the distance of their
        quartiles over the square root of n. Three of them are asked for, and `LEAST_DIFFERENCE`.
        """
        error = 0.93 * np.log(self.ratio.high / self.ratio.low) / np.sqrt(len(self.ratios))
        return max(LEAST_DIFFERENCE, float(np.expm1(3 * error)))

    @property
    def word(self) -> str:
        """Whether it is slower or faster, if every pair of processes says so, or neither."""
        if self.ratio.median > 1 + self.threshold and min(self.ratios) > 1:
            return "slower"
        if self.ratio.median < 1 / (1 + self.threshold) and max(self.ratios) < 1:
            return "faster"
        return "same"


Turns = list[tuple[float, float]]
"""Seconds of a call of both sides, of each turn of a pair of processes."""


def verdict(name: str, pairs: list[Turns]) -> Verdict:
    """Return what the turns of all pairs of processes say."""
    before, after = zip(*(turn for turns in pairs for turn in turns), strict=True)
    ratios = tuple(float(np.median([b / a for a, b in turns])) for turns in pairs)
    return Verdict(name, spread(before), spread(after), ratios)


def git(*words: str) -> str:
    """Return what git answers."""
    answer = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
    if answer.returncode:
        raise Failure(f"git {' '.join(words)}: {answer.stderr.strip()}")
    return answer.stdout.strip()


@contextlib.contextmanager
def checked_out(revision: str, folder: Path) -> Iterator[Path]:
    """Yield the tree of a revision: a folder that is there meanwhile, or the working tree."""
    if revision == WORKING_TREE:
        yield ROOT
        return
    try:
        commit = git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    except Failure:
        raise Failure(
            f"--compare: got {revision!r}, wanted two commits or branches, or {WORKING_TREE!r} for "
            "the working tree"
        ) from None
    git("worktree", "add", "--detach", str(folder), commit)
    try:
        yield folder
    finally:
        git("worktree", "remove", "--force", str(folder))


def measure(
    found: list[Job], sides: list[tuple[str, Path]], folder: Path, threads: int
) -> list[Verdict]:
    """Validate and time every job on both sides; return what became of each."""
    for number, job in enumerate(found):
        job.write(folder / f"{number}.npz")
    pairs: list[list[Turns]] = [[] for _ in found]
    for _ in range(PROCESSES):
        processes: list[Process] = []
        try:
            for name, tree in sides:
                processes.append(Process(name, tree, folder, threads))
            for process in processes:
                ready(process, found, folder)
            for kept, turns in zip(pairs, take_turns(processes, len(found)), strict=True):
                kept.append(turns)
        finally:
            for process in processes:
                process.close()
    return [verdict(job.name, each) for job, each in zip(found, pairs, strict=True)]


def ready(process: Process, found: list[Job], folder: Path) -> None:
    """Have a process prepare every job, and check what it has computed."""
    for number, job in enumerate(found):
        file = process.ask("prepare", number).strip()
        try:
            job.check(np.load(folder / file))
        except Disagreement as error:
            raise Failure(f"{process.name}: {job.name}: {error}") from None


def take_turns(processes: list[Process], count: int) -> list[Turns]:
    """Return the turns of each of so many jobs: turn after turn, and job after job in each."""
    found: list[Turns] = [[] for _ in range(count)]
    calls = []
    for job in range(count):
        once = max(process.seconds(job, 1) for process in processes)
        calls.append(max(1, int(np.ceil(TURN_SECONDS / once))))
    for turn in range(TURNS):
        order = processes if turn % 2 == 0 else processes[::-1]
        for job in range(count):
            took = {each: each.seconds(job, calls[job]) / calls[job] for each in order}
            before, after = (took[each] for each in processes)
            found[job].append((before, after))
    return found


def report(sides: list[str], verdicts: list[Verdict]) -> str:
    """Return the table, and the names of what became slower and faster."""
    rows = [
        [each.name, show_time(each.before), show_time(each.after), show_ratio(each.ratio),
         f"{each.threshold:.0%}", each.word]
        for each in verdicts
    ]  # fmt: skip
    head = ["a call of", *sides, f"{sides[1]} over {sides[0]}", "threshold", "verdict"]
    lines = [table(head, rows), ""]
    for word in ("slower", "faster"):
        names = [f"{v.name} ({v.ratio.median:.2f})" for v in verdicts if v.word == word]
        lines.append(f"{word.capitalize()}: {', '.join(names) or 'nothing'}")
    return "\n".join(lines)


def run(revisions: list[str], names: list[str] | None, threads: int) -> int:
    """Compare two revisions and print what became slower; return 1 if anything did."""
    known = [case.name for case in CASES]
    for name in names or ():
        if name not in known:
            raise Failure(f"--cases: got {name!r}, wanted some of {', '.join(known)}")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sides = []
        for side, revision in zip("ab", revisions, strict=True):
            tree = stack.enter_context(checked_out(revision, folder / side))
            sides.append((revision, tree))
        verdicts = measure(jobs(names or list(NETWORKS)), sides, folder, threads)
    print(report(revisions, verdicts))
    return int(any(each.word == "slower" for each in verdicts))
