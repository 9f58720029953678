"""The comparison: rows of a case at a precision, its providers in interleaved turns.

Everybody's parameters after one epoch are held against float64 before a time is taken. A turn is a
whole number of epochs by the host's clock, from and to an idle device; each pass over the providers
begins with another one, and ratios are taken within a pass. The rows come in order of interest, as
time may end before they do: ``--steps comparison report --precisions tf32`` goes on with others.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.cases import Data
from benchmarks.gpu.cases import GpuCase, choose, expected, validate
from benchmarks.gpu.processes import Failed, Process
from benchmarks.gpu.providers import FAMILIES
from benchmarks.gpu.steps import Context, Skipped, describe
from benchmarks.validation import Disagreement

AT_ONCE = ("fastmlp", "PyTorch", "JAX")
COMPILED = ("fastmlp", "PyTorch compile")
TUNED = ("fastmlp", "PyTorch max-autotune")
ORDER = (
    ("float32", AT_ONCE),
    ("bfloat16", AT_ONCE),
    ("float32", COMPILED),
    ("bfloat16", COMPILED),
    ("tf32", AT_ONCE),
    ("tf32", COMPILED),
    ("float32", TUNED),
    ("bfloat16", TUNED),
    ("tf32", TUNED),
)
PASSES = 5
TURN_SECONDS = 0.03
MOST_EPOCHS = 200
PATIENCE = 45.0
"""Seconds that a family may take to prepare one way of a case: kernels are compiled in them."""
LONG_SECONDS, FAR_BEHIND = 0.2, 8.0
"""An epoch that takes longer, and so many times as long as the fastest, is timed once."""
LEAST_SECONDS = 8.0
"""What has to be left for a row to be begun."""


@dataclass(frozen=True)
class Row:
    """A case, and the families that are measured in the same turns."""

    case: GpuCase
    families: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its name in the record."""
        beside = {COMPILED: ", compiled", TUNED: ", tuned"}
        return f"{self.case.title}{beside.get(self.families, '')}"


def rows(cases: list[GpuCase], precisions: list[str], quick: bool) -> list[Row]:
    """Return the rows in their order."""
    found = [
        Row(replace(case, precision=name), families)
        for name, families in ORDER
        if name in precisions
        for case in cases
    ]
    return [row for row in found if row.families == AT_ONCE] if quick else found


def run(context: Context) -> None:
    """Measure row after row for as long as there is time."""
    cases = choose(context.options.get("cases"), context.quick)
    waiting = rows(cases, context.options.get("precisions") or ["float32"], context.quick)
    passes = 2 if context.quick else PASSES
    oracles = Oracles()
    processes = {family: Process(family, context.device) for family in FAMILIES}
    try:
        while waiting and context.left() > LEAST_SECONDS:
            row = waiting.pop(0)
            entry = measure(row, processes, oracles, passes, context)
            context.keep(row.name, entry)
            print(f"  {row.name}: {line(entry)}", flush=True)
            complain(context, row, entry)
    finally:
        for process in processes.values():
            process.close()
    if waiting:
        context.keep("unfinished", [row.name for row in waiting])
        print(f"  no time was left for {len(waiting)} rows", flush=True)


class Oracles:
    """What everybody must come to, computed once a case whatever its precision."""

    def __init__(self) -> None:
        self.known: dict[GpuCase, np.ndarray] = {}

    def of(self, case: GpuCase) -> np.ndarray:
        """Return the parameters after an epoch."""
        key = replace(case, precision="float32")
        if key not in self.known:
            data: Data = case.data()
            self.known[key] = expected(case, data, case.member_weights())
        return self.known[key]


def measure(
    row: Row, processes: dict[str, Process], oracles: Oracles, passes: int, context: Context
) -> dict[str, Any]:
    """Prepare, validate and time a row; return its entry of the record."""
    case = row.case
    with ThreadPoolExecutor(1 + len(row.families)) as several:
        wanted = several.submit(oracles.of, case)
        answers = [
            several.submit(prepare, processes[family], family, case, context)
            for family in row.families
        ]
        entries = [entry for answer in answers for entry in answer.result()]
    weights = case.member_weights()
    for entry in entries:
        got = entry.pop("parameters", None)
        if got is not None:
            try:
                entry["error"] = validate(case, weights, wanted.result(), got)
            except Disagreement as error:
                entry["refused"] = str(error)
    take_turns([entry for entry in entries if "error" in entry], processes, passes, context)
    for family in row.families:
        release(processes[family])
    return {
        "case": case.name,
        "sizes": list(case.sizes),
        "batch": case.batch,
        "steps": case.steps,
        "members": case.members,
        "precision": case.precision,
        "flops_per_step": case.flops_per_step,
        "reason": case.reason,
        "entries": entries,
    }


def prepare(process: Process, family: str, case: GpuCase, context: Context) -> list[dict[str, Any]]:
    """Return an entry for each way of a family: its parameters, or why there are none."""
    try:
        ways = process.ask(PATIENCE, "ways", case)
    except (Failed, Skipped) as error:
        return [{"label": family, "family": family, **_kind(error)}]
    if not ways:
        reason = "no kernel of the device can run it"
        return [{"label": family, "family": family, "skipped": reason}]
    # After a death the process begins anew without those that were ready: they are prepared again.
    entries: list[dict[str, Any]] = []
    for way in ways:
        entry: dict[str, Any] = {**way, "family": family}
        try:
            entry |= process.ask(min(PATIENCE, context.left()), "prepare", case, way)
        except (Failed, Skipped) as error:
            entry |= _kind(error)
            if process.process is None:
                again(process, case, entries)
        entries.append(entry)
    return entries


def again(process: Process, case: GpuCase, entries: list[dict[str, Any]]) -> None:
    """Prepare anew what a process held that was lost."""
    for entry in entries:
        if "parameters" in entry:
            try:
                process.ask(PATIENCE, "prepare", case, entry)
            except (Failed, Skipped) as error:
                entry.pop("parameters")
                entry |= _kind(error)


def _kind(error: Exception) -> dict[str, str]:
    return {"skipped" if isinstance(error, Skipped) else "failed": str(error)}


def take_turns(
    entries: list[dict[str, Any]], processes: dict[str, Process], passes: int, context: Context
) -> None:
    """Add the seconds of an epoch, a turn each pass, to every entry."""
    running = first_epochs(entries, processes, context)
    for number in range(passes):
        if context.left() < 0:
            break
        # Whoever follows a large working set finds the caches cold: not always the same one.
        first = number % max(1, len(running))
        for entry in [*running[first:], *running[:first]]:
            seconds = epochs(entry, entry["epochs"], processes, context)
            if seconds is not None:
                entry["turns"][number] = seconds


def first_epochs(
    entries: list[dict[str, Any]], processes: dict[str, Process], context: Context
) -> list[dict[str, Any]]:
    """Choose how many epochs a turn has; return who takes turns.

    What is far behind is told from one epoch: its turns would be most of a row's time.
    """
    found = {}
    for entry in entries:
        seconds = epochs(entry, 1, processes, context)
        entry["epochs"] = count_of(seconds) if seconds else 1
        entry["turns"] = {}
        if seconds is not None:
            found[entry["label"]] = seconds
    limit = max(LONG_SECONDS, FAR_BEHIND * min(found.values(), default=0.0))
    for entry in entries:
        if found.get(entry["label"], 0.0) > limit:
            entry["turns"][0] = found[entry["label"]]
    return [entry for entry in entries if not entry["turns"]]


def epochs(
    entry: dict[str, Any], count: int, processes: dict[str, Process], context: Context
) -> float | None:
    """Return the seconds of an epoch of an entry, or None from its first failure on."""
    if "failed" in entry:
        return None
    patience = min(PATIENCE, context.left())
    try:
        return processes[entry["family"]].ask(patience, "epochs", entry["label"], count)
    except (Failed, Skipped) as error:
        entry["failed"] = describe(error)
        return None


def count_of(seconds: float) -> int:
    """Return how many epochs make a turn, when one takes so many seconds."""
    return int(min(MOST_EPOCHS, max(1, np.ceil(TURN_SECONDS / seconds))))


def release(process: Process) -> None:
    """Free what a process holds, if it is still there."""
    if process.process is None:
        return
    try:
        process.ask(20.0, "release")
    except (Failed, Skipped):
        process.close()


def line(entry: dict[str, Any]) -> str:
    """Return a row in a line for the screen: the time of a step of each provider."""
    parts = []
    for each in entry["entries"]:
        if each.get("turns"):
            micros = np.median(list(each["turns"].values())) / entry["steps"] * 1e6
            mark = "*" if each["role"] == "ours" and each["chosen"] else ""
            parts.append(f"{each['label']}{mark} {micros:.4g} us")
        else:
            kinds = [name for name in ("skipped", "refused", "failed") if name in each]
            parts.append(f"{each['label']} {kinds[0] if kinds else 'not timed'}")
    return "; ".join(parts)


def complain(context: Context, row: Row, entry: dict[str, Any]) -> None:
    """Note where fastmlp failed or was wrong: a peer that fails is shown, and fails nothing."""
    for each in entry["entries"]:
        wrong = each.get("failed") or each.get("refused")
        if wrong and each["family"] == "fastmlp":
            context.fail(f"{row.name}: {each['label']}: {wrong}")
        elif wrong:
            print(f"  {row.name}: {each['label']}: {wrong}", flush=True)
