"""CPU beside GPU: where the GPU begins to win, and what `auto` would have chosen.

Every kernel of fastmlp on a ladder of widths and batch sizes, an epoch each with its data in place.
Regret is the time of the kernel that dispatch chooses over that of the fastest: once with the
constants that dispatch has, once with those that `ceilings` has just measured.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.baselines import Entry
from benchmarks.cases import Case, Data
from benchmarks.gpu.comparison import choose
from benchmarks.gpu.steps import Context, describe
from benchmarks.ours import Fastmlp, choices, problem
from fastmlp.device.machine import count_cores
from fastmlp.device.machine_file import GPU_CONSTANTS

WIDTHS = (16, 64, 256, 1024)
BATCHES = (32, 512, 8192)
LONGEST = 4e11
"""Operations of an epoch on the CPU that are not waited for."""
EPOCH_FLOPS = 4e9
REPEATS = 3


def ladder(quick: bool) -> list[Case]:
    """Return networks of two equal hidden layers, from narrow to wide and from few rows to many."""
    found = []
    for width in WIDTHS[:1] if quick else WIDTHS:
        for batch in BATCHES[:1] if quick else BATCHES:
            sizes = (width, width, width, 8)
            case = Case("-".join(map(str, sizes)), sizes, batch, 1, "a ladder", 1.0)
            steps = int(np.clip(EPOCH_FLOPS / case.flops_per_step, 1, 4 if quick else 100))
            found.append(replace(case, steps=steps))
    return found


def run(context: Context) -> None:
    """Time every kernel of both devices on each rung, then on the named cases."""
    measured = context.result_of("ceilings").get("constants") or {}
    # What could not be measured is left to the shipped constants.
    constants = {name: measured[name] for name in GPU_CONSTANTS if name in measured}
    named = choose(context.options.get("cases"), context.quick)
    for case in (*ladder(context.quick), *named):
        name = f"{case.title}, {case.batch}"
        if context.left() <= 1:
            context.keep("unfinished", f"no time was left from {name} on")
            return
        context.attempt(name, beside, case, constants, context.device)


def beside(case: Case, constants: dict[str, float], device: str = "cuda") -> dict[str, Any]:
    """Return the seconds of a step by each kernel, and what dispatch makes of it."""
    found: dict[str, Any] = {
        "sizes": list(case.sizes),
        "batch": case.batch,
        "members": case.members,
        "seconds": {},
        "failed": {},
    }
    flops, data = case.flops_per_step * case.steps, case.data()
    for place in dict.fromkeys(("cpu", device)):
        for way in choices(case, place, [count_cores()]):
            if place == "cpu" and not way.chosen:
                continue
            if place == "cpu" and flops > LONGEST:
                found["failed"][way.kernel] = "too long for a CPU"
                continue
            entry = Entry("fastmlp", place, way.threads, way.kernel)
            try:
                found["seconds"][way.kernel] = step_seconds(case, data, entry)
            except Exception as error:
                found["failed"][way.kernel] = describe(error)
    found["auto"] = chosen(case, {})
    found["auto_measured"] = chosen(case, constants)
    best = min(found["seconds"].values(), default=None)
    for key in ("auto", "auto_measured"):
        took = found["seconds"].get(found[key])
        found[f"regret_{key}"] = took / best if took and best else None
    return found


def step_seconds(case: Case, data: Data, entry: Entry) -> float:
    """Return the median seconds of a step of a kernel, after an epoch that warms up."""
    epoch = Fastmlp(entry).prepare(case, data, case.initial_weights())
    epoch()
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        epoch()
        times.append(time.perf_counter() - started)
    return float(np.median(times)) / case.steps


def chosen(case: Case, constants: dict[str, float]) -> str:
    """Return the kernel that dispatch chooses with these constants of the GPU."""
    from fastmlp.device.machine import detect
    from fastmlp.dispatch.planning import plan

    return plan(problem(case), "auto", machine=replace(detect(), **constants)).kernel.name
