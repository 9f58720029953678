"""The order in which everything is measured.

pytest-benchmark runs one test to its end before the next, which would measure one provider in the
machine's good minute and another in its bad one. So every test is one provider on one case in one
*pass*, and the tests are ordered case by case, pass by pass, each pass beginning with another
provider: a round-robin, in which the report compares the providers within a pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.baselines import Entry
from benchmarks.cases import Case
from benchmarks.providers import entries


@dataclass(frozen=True)
class Settings:
    """What the command line asks for."""

    cases: list[Case]
    devices: list[str]
    threads: list[int]
    providers: list[str]
    passes: int
    seconds: float


@dataclass(frozen=True)
class Measurement:
    """One provider on one case in one pass."""

    case: Case
    entry: Entry
    number: int

    @property
    def label(self) -> str:
        """The test's id."""
        return f"{self.case.name}/{self.entry.label}/{self.number}"


def in_turns(settings: Settings) -> list[Measurement]:
    """Return the round-robin: for each case every pass, for each pass every provider."""
    found = []
    for case in settings.cases:
        everyone = entries(case, settings.devices, settings.threads, settings.providers)
        for number in range(settings.passes):
            # Whoever follows a large working set finds the caches cold: not always the same one.
            first = number % max(1, len(everyone))
            turn = [*everyone[first:], *everyone[:first]]
            found += [Measurement(case, entry, number) for entry in turn]
    return found
