"""The sections about whole fits beside scikit-learn's."""

from __future__ import annotations

import math

from benchmarks.comparisons import Comparison, Setting, Spread, ratio
from benchmarks.tables import NONE, at_least, show_ratio, show_time, table

FIT = "whole fits"
PREDICT = "predict,"
FIRST = "first fit"


def belongs(item: Comparison) -> bool:
    """Return whether a comparison is shown here."""
    return item.suite == FIT or item.suite.startswith((PREDICT, FIRST))


def step_of(setting: Setting | None) -> str:
    """Return the time of one of a fit's steps, its share of everything that a fit does."""
    steps = setting.notes.get("steps") if setting else None
    if not steps:
        return NONE
    seconds = setting.seconds
    return show_time(Spread(seconds.low / steps, seconds.median / steps, seconds.high / steps))


def _ways(setting: Setting) -> str:
    jobs = f"{setting.jobs} jobs, " if setting.jobs > 1 else ""
    return f"{jobs}{setting.threads} thread{'s' if setting.threads > 1 else ''}"


def fits_table(found: list[Comparison]) -> str:
    """Return each fit with both sides' best setting, their ratio and its target."""
    rows = []
    for item in found:
        ours, peer, got = item.best("ours"), item.best("peer"), item.ratio
        rows.append(
            [
                item.case + (" (own)" if item.group == "own" else ""),
                *(f"{side.notes['epochs']:,}" if side else NONE for side in (ours or peer,)),
                show_time(ours.seconds) if ours else NONE,
                step_of(ours),
                f"{show_time(peer.seconds)}, {_ways(peer)}" if peer else NONE,
                step_of(peer),
                show_ratio(got),
                at_least(item.goal, got.median if got else None),
            ]
        )
    head = ["fit", "epochs", "fastmlp.sklearn", "a step", "scikit-learn", "a step"]
    return table([*head, "ratio", "target"], rows)


def agreement_table(found: list[Comparison]) -> str:
    """Return how far the losses were apart, and the scores, which are equal or were refused."""
    rows = []
    for item in found:
        ours, peer = item.best("ours"), item.best("peer")
        if ours and peer:
            scores = [f"{side.notes['score']:.4f}" for side in (ours, peer)]
            # scikit-learn on another number of threads than its oracle had: its own rounding.
            errors = [_error(item, role) for role in ("ours", "peer")]
            rows.append([item.case, *scores, *errors])
    head = ["fit", "score: fastmlp.sklearn", "score: scikit-learn"]
    head += ["loss_curve_: fastmlp.sklearn", "loss_curve_: scikit-learn"]
    return table(head, rows) if rows else ""


def _error(item: Comparison, role: str) -> str:
    errors = [side.notes["error"] for side in item.settings if side.role == role]
    known = [error for error in errors if not math.isnan(error)]
    return f"{max(known):.1e}" if known else NONE


def settings_table(found: list[Comparison]) -> str:
    """Return every setting that was tried, over the best of fastmlp's."""
    rows = []
    for item in found:
        ours = item.best("ours")
        for side in sorted(item.settings, key=lambda side: side.seconds.median):
            compared = ours is not None and side.turns.keys() & ours.turns.keys()
            times = show_ratio(ratio(side, ours)) if ours and compared else NONE
            name = item.case if item.suite == FIT else f"{item.suite}: {item.case}"
            rows.append([name, side.name, show_time(side.seconds), times])
    return table(["fit", "by", "time of one", "over fastmlp"], rows)


def blas_lines(found: list[Comparison]) -> str:
    """Return which kernels of which BLAS scikit-learn's products ran on."""
    kinds = [
        side.notes["blas"]
        for item in found
        for side in item.settings
        if side.role == "peer" and "blas" in side.notes
    ]
    return "\n".join(f"- scikit-learn's BLAS: {kind}" for kind in dict.fromkeys(kinds))


def sections(found: list[Comparison]) -> list[str]:
    """Return the tables of whatever was measured, with their headings."""
    fits = [item for item in found if item.suite == FIT]
    calls = [item for item in found if item.suite.startswith(PREDICT)]
    first = [item for item in found if item.suite.startswith(FIRST)]
    parts = []
    if fits:
        reasons = "\n".join(f"- {item.case}: {item.reason}" for item in fits)
        parts += [
            "## Whole fits, beside scikit-learn",
            "`MLPClassifier` and `MLPRegressor` with their defaults and a seed, in float64; what "
            "is timed is `fit`, from the arrays to the fitted estimator. Before that, epochs, "
            "losses, score and outputs of held-out rows were compared with scikit-learn's. Both "
            "sides may use the same processors; of each its best setting counts.",
            fits_table(fits),
            f"{blas_lines(fits)}\n{reasons}",
            "### How equal they are",
            "The score of held-out rows, and the largest relative difference of an epoch's loss "
            "from a fit by scikit-learn in another process: its own is the rounding of its BLAS.",
            agreement_table(fits),
            "### Every setting",
            settings_table(fits),
        ]
    if calls:
        parts += ["## Predictions of fitted estimators", settings_table(calls)]
    if first:
        parts += [
            "## The first fit of a process",
            "From before the import to the end of the fit, in a process that has imported NumPy.",
            settings_table(first),
        ]
    return parts
