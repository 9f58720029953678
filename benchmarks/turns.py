"""The order in which everything is measured.

pytest-benchmark runs one test to its end before the next, which would measure one provider in the
machine's good minute and another in its bad one. So every test is one provider on one case in one
*pass*, and the tests are ordered case by case, pass by pass, each pass beginning with another
provider: a round-robin, in which the report compares the providers within a pass. Variants of a
case are in the same round-robin as the case.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.baselines import Entry
from benchmarks.cases import Case, Variants
from benchmarks.providers import BASELINES, chosen_alone, entries
from benchmarks.whole_fits import WholeFit


@dataclass(frozen=True)
class Settings:
    """What the command line asks for."""

    cases: list[Case] | list[WholeFit]
    devices: list[str]
    threads: list[int]
    providers: list[str]
    passes: int
    seconds: float

    def entries(self, case: Case | WholeFit, suite: str) -> list[Entry]:
        """Return what is tried on a case in a suite."""
        names = [name for name in self.providers if suite in BASELINES[name].suites]
        return entries(case, self.devices, self.threads, names)


Competitor = tuple[Case | WholeFit, Entry]


@dataclass(frozen=True)
class Measurement:
    """One provider on one case in one pass.

    Attributes
    ----------
    everyone : tuple of Competitor
        The whole round-robin.
    kind : str
        Of a variant and of the plain case beside it, what differs.
    against : Case or None
        Of a variant, the plain case.
    goal : float
        What the report holds the result against; 0 if there is nothing.
    """

    case: Case | WholeFit
    entry: Entry
    number: int
    everyone: tuple[Competitor, ...]
    goal: float = 0.0
    kind: str = ""
    against: Case | None = None

    @property
    def label(self) -> str:
        """The test's id."""
        return f"{self.case.title}/{self.entry.label}/{self.number}".replace(" ", "_")


def round_robin(everyone: Sequence[Competitor], passes: int) -> list[tuple[Competitor, int]]:
    """Return every pass with everyone in it, each beginning with another one."""
    found = []
    for number in range(passes):
        # Whoever follows a large working set finds the caches cold: not always the same one.
        first = number % max(1, len(everyone))
        turn = [*everyone[first:], *everyone[:first]]
        found += [(competitor, number) for competitor in turn]
    return found


def in_turns(settings: Settings, suite: str = "training") -> list[Measurement]:
    """Return the round-robin of each case: for each pass every provider."""
    found = []
    for case in settings.cases:
        everyone = tuple((case, entry) for entry in settings.entries(case, suite))
        goal = case.target if suite in ("training", "prediction", "fits") else 0.0
        found += [
            Measurement(*competitor, number, everyone, goal)
            for competitor, number in round_robin(everyone, case.passes(settings.passes))
        ]
    return found


def variants_in_turns(settings: Settings, rows: list[Variants]) -> list[Measurement]:
    """Return the round-robin of each row: the plain case and its variants."""
    found = []
    for row in rows:
        everyone = tuple(
            (case, entry)
            for case in row.cases
            for entry in chosen_alone(settings.entries(case, "variants"))
        )
        for (case, entry), number in round_robin(everyone, row.plain.passes(settings.passes)):
            plain = case == row.plain
            against, goal = (None, 0.0) if plain else (row.plain, row.goal)
            found.append(Measurement(case, entry, number, everyone, goal, row.kind, against))
    return found
