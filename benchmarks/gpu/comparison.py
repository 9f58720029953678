"""The comparison with PyTorch and JAX: the suite `training` on the GPU, as far as time goes.

A row is a case at a precision with some families of providers. Rows come in order of interest, as
time may end before they do: ``--steps comparison report --precisions tf32`` goes on with others.
Every row is a session of pytest in this process, so the processes of the families last.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from benchmarks import record
from benchmarks.cases import GPU_CASES, QUICK_GPU_CASES, Case
from benchmarks.comparisons import comparisons
from benchmarks.gpu.steps import Context
from benchmarks.providers import BASELINES
from benchmarks.run import suite_arguments
from benchmarks.tables import show_time
from benchmarks.workers import end_shared

GROUPS = {
    "": ("fastmlp", "PyTorch", "JAX"),
    ", compiled": ("fastmlp", "PyTorch compile"),
    ", tuned": ("fastmlp", "PyTorch max-autotune"),
}
"""Families that take turns: whoever compiles for long must not hold up the others."""
ORDER = (
    ("float32", ""),
    ("bfloat16", ""),
    ("float32", ", compiled"),
    ("bfloat16", ", compiled"),
    ("tf32", ""),
    ("tf32", ", compiled"),
    ("float32", ", tuned"),
    ("bfloat16", ", tuned"),
    ("tf32", ", tuned"),
)
PASSES, QUICK_PASSES, QUICK_STEPS = 5, 2, 3
PATIENCE = 45.0
"""Seconds that anybody may take to prepare a case: kernels are compiled in them. A quarter of what
is left, where that is more."""
LEAST_SECONDS = 8.0
"""What has to be left for a row to be begun."""
TURNS = 1000
"""What the turns of a group are apart from those of another: they are not the same turns."""


@dataclass(frozen=True)
class Row:
    """A case, and who is measured in the same turns."""

    case: Case
    group: str

    @property
    def name(self) -> str:
        """Its name in messages."""
        return f"{self.case.title}, {self.case.batch}{self.group}"


def choose(names: list[str] | None, quick: bool) -> list[Case]:
    """Return the cases that a run measures; a quick one takes a few, and short epochs."""
    wanted = names or (QUICK_GPU_CASES if quick else [case.name for case in GPU_CASES])
    chosen = [case for case in GPU_CASES if case.name in wanted]
    return [case.with_steps(min(case.steps, QUICK_STEPS)) if quick else case for case in chosen]


def rows(cases: list[Case], precisions: list[str], quick: bool) -> list[Row]:
    """Return the rows in their order; a quick run has those without a compiler."""
    return [
        Row(replace(case, precision=precision), group)
        for precision, group in ORDER
        if precision in precisions and not (quick and group)
        for case in cases
    ]


def run(context: Context) -> None:
    """Measure row after row for as long as there is time."""
    cases = choose(context.options.get("cases"), context.quick)
    waiting = rows(cases, context.options.get("precisions") or ["float32"], context.quick)
    document = None
    try:
        while waiting and context.left() > LEAST_SECONDS:
            row = waiting.pop(0)
            measured = measure(row, context)
            if measured is not None:
                document = record.grown(document, measured)
                context.results |= document
                context.save("unfinished")
    finally:
        end_shared()
    if waiting:
        context.keep("unfinished", [row.name for row in waiting])
        print(f"  no time was left for {len(waiting)} rows", flush=True)


def measure(row: Row, context: Context) -> dict[str, Any] | None:
    """Return the record of a row, if anything was measured; what is wrong of ours fails."""
    device = context.device
    names = [
        name
        for name, provider in BASELINES.items()
        if provider.family in GROUPS[row.group] and "training" in provider.suites
    ]
    told = {
        "cases": row.case.name,
        "precisions": row.case.precision,
        "providers": ",".join(names),
        "devices": device,
        "threads": "1",
        "passes": str(QUICK_PASSES if context.quick else PASSES),
        "turn-seconds": "0",
        "steps": str(QUICK_STEPS if context.quick else 0),
        "patience": str(min(max(PATIENCE, context.left() / 4), context.left())),
    }
    output = io.StringIO()
    with TemporaryDirectory() as folder:
        file = Path(folder) / "row.json"
        with contextlib.redirect_stdout(output):
            pytest.main(suite_arguments("training", told, file))
        measured = record.load(file)
    if measured is None:
        context.fail(f"{row.name}: nothing was measured: {output.getvalue()[-1000:]}")
        return None
    for each in measured["benchmarks"]:
        each["params"] = None
        each["extra_info"]["turn"] += TURNS * list(GROUPS).index(row.group)
    print(f"  {row.name}: {line(measured)}", flush=True)
    complain(context, row, measured["refusals"])
    return measured


def line(measured: dict[str, Any]) -> str:
    """Return a row in a line for the screen: the time of a step of each provider."""
    (item,) = comparisons(measured)
    ours = item.best("ours")
    return "; ".join(
        f"{setting.name}{'*' if setting is ours else ''} {show_time(setting.seconds)}"
        for setting in item.providers()
    )


def complain(context: Context, row: Row, refusals: list[dict[str, str]]) -> None:
    """Note where fastmlp failed or was wrong: a peer that fails is shown, and fails nothing."""
    for refusal in refusals:
        said = f"{row.name}: {refusal['provider']}: {refusal['reason']}"
        if refusal["kind"] != "missing" and refusal["provider"].startswith("fastmlp"):
            context.fail(said)
        else:
            print(f"  {said}", flush=True)
