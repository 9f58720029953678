"""How the report writes times, ratios, goals and tables."""

from __future__ import annotations

from benchmarks.comparisons import Spread

NONE = "–"


def unit_of(seconds: float) -> tuple[str, float]:
    """Return the unit that suits a time, and how many of it are a second."""
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return unit, factor
    return "µs", 1e6


def show_time(time: Spread) -> str:
    """Return a time with its quartiles, in the unit that suits it."""
    unit, factor = unit_of(time.median)
    return f"{digits(time, factor)} {unit}"


def show_ratio(value: Spread | None) -> str:
    """Return a ratio with its quartiles, or a dash."""
    return NONE if value is None else f"**{value.median:.2f}** ({value.low:.2f}–{value.high:.2f})"


def show_share(value: Spread | None) -> str:
    """Return a part of the peak with its quartiles, or a dash."""
    if value is None:
        return NONE
    return f"{value.median:.0%} ({value.low:.0%}–{value.high:.0%})"


def at_least(goal: float, got: float | None) -> str:
    """Return a goal and whether it is met, or a dash where there is no goal."""
    verdict = "not measured" if got is None else "met" if got >= goal else "missed"
    return f"at least {goal:g}: {verdict}" if goal else NONE


def at_most(goal: float, got: float | None, unit: str = "", factor: float = 1.0) -> str:
    """Return a goal and whether it is met, or a dash where there is no goal."""
    verdict = "not measured" if got is None else "met" if got <= goal else "missed"
    return f"at most {goal * factor:g}{unit}: {verdict}" if goal else NONE


def digits(value: Spread, factor: float) -> str:
    """Return a value with its quartiles, in three digits."""
    low, median, high = (f"{part * factor:.3g}" for part in (value.low, value.median, value.high))
    return f"{median} ({low}–{high})"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
