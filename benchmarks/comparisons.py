"""What a run's JSON says: settings with their times, the best of them, ratios of the same turn."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# These decide themselves how many of the threads they use.
DECIDE_THEMSELVES = ("fastmlp.fit", "fastmlp.step", "fastmlp.predict", "fastmlp.sklearn")


@dataclass(frozen=True)
class Spread:
    """A median between its quartiles."""

    low: float
    median: float
    high: float


def spread(values: Iterable[float]) -> Spread:
    """Return the median and the quartiles, interpolated linearly."""
    return Spread(*(float(value) for value in np.percentile(list(values), (25, 50, 75))))


@dataclass(frozen=True)
class Setting:
    """What was measured under one setting of a provider: seconds of a unit of work, by turn.

    Attributes
    ----------
    flops : float
        Operations of a unit.
    memory : float
        MiB that building and a first epoch added at most; NaN where that is not known.
    jobs : int
        Processes, each with as many threads.
    notes : dict
        What else is on record, and the error that validation found.
    version : str
        Of the provider's library.
    """

    provider: str
    role: str
    threads: int
    kernel: str
    chosen: bool
    flops: float
    memory: float
    turns: dict[int, list[float]]
    jobs: int = 1
    notes: dict[str, Any] = field(default_factory=dict)
    version: str = ""

    @property
    def seconds(self) -> Spread:
        """Seconds of a unit over all rounds of all turns."""
        return spread(second for rounds in self.turns.values() for second in rounds)

    @property
    def name(self) -> str:
        """The provider with its setting, for a table's cell."""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        decides = self.provider in DECIDE_THEMSELVES or (self.role == "ours" and self.chosen)
        if decides and self.threads > 1:
            threads = f"at most {threads}"
        jobs = f"{self.jobs} jobs" if self.jobs > 1 else ""
        return f"{self.provider} ({', '.join(filter(None, (self.kernel, jobs, threads)))})"


def ratio(slower: Setting, faster: Setting) -> Spread:
    """Return how many times as long `slower` takes, compared turn by turn."""
    common = sorted(slower.turns.keys() & faster.turns.keys())
    if not common:
        raise ValueError(f"{slower.name} and {faster.name} have no turn in common")
    return spread(np.median(slower.turns[k]) / np.median(faster.turns[k]) for k in common)


@dataclass(frozen=True)
class Comparison:
    """The settings of one case on one device.

    Attributes
    ----------
    group : str
        "named" or "own", see `cases.Case`.
    goal : float
        What the result is held against; 0 if there is nothing.
    against : str
        Of a variant, the plain case.
    precision : str
        What products may round their factors to.
    """

    suite: str
    case: str
    device: str
    batch: int
    reason: str
    group: str
    goal: float
    against: str
    precision: str
    settings: tuple[Setting, ...]

    def best(self, role: str) -> Setting | None:
        """Return the fastest setting of a role; of fastmlp's, what dispatch chooses."""
        able = [item for item in self.settings if item.role == role and item.chosen]
        return min(able, key=lambda item: item.seconds.median, default=None)

    @property
    def ratio(self) -> Spread | None:
        """The best peer's time over fastmlp's; None without both, in a common turn."""
        ours, peer = self.best("ours"), self.best("peer")
        return ratio(peer, ours) if ours and peer and ours.turns.keys() & peer.turns else None

    @property
    def regret(self) -> float | None:
        """The time of what is chosen over the best one's; None if there is one only."""
        every = [item for item in self.settings if item.role == "ours"]
        ours = self.best("ours")
        if ours is None or len(every) < 2:
            return None
        best = min(every, key=lambda item: item.seconds.median)
        return ratio(ours, best).median

    def on_threads(self, threads: int) -> Setting | None:
        """Return the chosen kernel of fastmlp on a number of threads."""
        ours = self.best("ours")
        same = [
            item
            for item in self.settings
            if ours and item.role == "ours" and item.kernel == ours.kernel
        ]
        return next((item for item in same if item.threads == threads), None)

    def peak(self, threads: int) -> Setting | None:
        """Return the machine's bound on a number of threads."""
        every = [item for item in self.settings if item.role == "peak"]
        return next((item for item in every if item.threads == threads), None)

    def share(self, setting: Setting) -> Spread | None:
        """Return the part of the bound that a setting reaches on as many threads, or None."""
        peak = self.peak(setting.threads)
        if peak is None or not setting.flops or not setting.turns.keys() & peak.turns.keys():
            return None
        most = peak.flops / setting.flops
        found = ratio(peak, setting)
        return Spread(found.low / most, found.median / most, found.high / most)

    def providers(self) -> list[Setting]:
        """Return the best setting of each provider and kernel, the fastest first.

        fastmlp's chosen kernel has its chosen number of threads here, even if another number was
        faster.
        """
        found: dict[tuple[str, str], Setting] = {}
        chosen = {(item.provider, item.kernel) for item in self.settings if item.chosen}
        for item in sorted(self.settings, key=lambda item: item.seconds.median):
            which = item.provider, item.kernel
            if item.role != "peak" and (item.chosen or which not in chosen):
                found.setdefault(which, item)
        return list(found.values())


def comparisons(document: dict[str, Any]) -> list[Comparison]:
    """Group a run's benchmarks by suite, case and device, in the order of the file."""
    groups: dict[tuple[str, str, str], dict[tuple, Setting]] = {}
    facts = {}
    for benchmark in document["benchmarks"]:
        about, data = benchmark["extra_info"], benchmark["stats"]["data"]
        key = (about["suite"], about["case"], about["device"])
        # In the small calls only fastmlp's own line has a goal.
        goal = max(about["goal"], facts[key][3] if key in facts else 0.0)
        precision = about.get("precision", "float32")
        facts[key] = (
            about["batch"],
            about["reason"],
            about["cases"],
            goal,
            about["against"],
            precision,
        )
        # Older records have neither jobs nor notes nor versions nor precisions.
        jobs = about.get("jobs", 1)
        which = (about["provider"], about["threads"], about["kernel"], jobs)
        setting = groups.setdefault(key, {}).setdefault(
            which,
            Setting(
                about["provider"],
                about["role"],
                about["threads"],
                about["kernel"],
                about["chosen"],
                about["flops"],
                about.get("added_memory_mib", float("nan")),
                {},
                jobs,
                about.get("notes", {}) | {"error": about.get("error", float("nan"))},
                about.get("version", ""),
            ),
        )
        seconds = [value / about["per"] for value in data]
        setting.turns.setdefault(about["turn"], []).extend(seconds)
    return [
        Comparison(*key, *facts[key], tuple(settings.values())) for key, settings in groups.items()
    ]
