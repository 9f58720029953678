"""What a provider is: fastmlp and its peers, each at its best settings, behind one interface.

Nothing is imported before `load`: providers run in processes of their own (see `workers`), on the
CPU with as many processors as each is given threads. All of them train on the same contiguous rows
in the same order; float32 means float32, without TF32. fastmlp is handed the rows' order and
gathers each mini-batch, as it does when it shuffles; its peers get slices, which cost them nothing.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.cases import Case, Data, Weights
from benchmarks.validation import validate


class Missing(Exception):
    """A provider cannot run here, or not this case; the message says why."""


@dataclass(frozen=True)
class Entry:
    """One way to run a case: a provider with its settings; `chosen` if users get just that.

    With several `jobs`, a search's processes, the threads are those of each.
    """

    provider: str
    device: str = "cpu"
    threads: int = 1
    kernel: str = ""
    chosen: bool = True
    jobs: int = 1

    @property
    def processors(self) -> int:
        """How many processors it may use."""
        return self.threads * self.jobs

    @property
    def label(self) -> str:
        """A name for test ids and messages."""
        name = f"{self.provider}.{self.kernel or self.device}"
        jobs = f"x{self.jobs}" if self.jobs > 1 else ""
        return f"{name}-{self.threads}{jobs}".replace(" ", "_")


class Baseline:
    """A provider: prepare it on a case, then call what `prepare` returned once an epoch.

    Attributes
    ----------
    module : str
        What `load` imports.
    packages : tuple of str
        Distributions whose versions go on record, that of the provider first.
    role : {"ours", "peer", "also", "peak"}
        "also" is shown in the report, and compared with nothing; "peak" is the machine's bound.
    devices : tuple of str
        Where it can run.
    suites : tuple of str
        Where it is measured.
    family : str
        On a GPU, whose process it shares: a library's start and a context take seconds.
    """

    module = ""
    packages: tuple[str, ...] = ()
    role = "peer"
    devices: tuple[str, ...] = ("cpu", "cuda")
    suites: tuple[str, ...] = ("training", "prediction", "overhead")
    family = ""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry

    def available(self) -> str | None:
        """Return why it cannot run here, or None."""
        if importlib.util.find_spec(self.module.partition(".")[0]) is None:
            return f"{self.packages[0]} is not installed"
        self.load()
        return self.device_missing() if self.entry.device == "cuda" else None

    def load(self) -> None:
        """Import the library."""
        raise NotImplementedError

    def load_what_follows(self) -> None:
        """Import what the library itself imports only once it computes."""

    def device_missing(self) -> str | None:
        """Return why the GPU cannot be used, or None."""
        return "it has no CUDA support"

    def prepare(self, case: Case, data: Data, weights: list[Weights]) -> Callable[[], None]:
        """Bring data and weights where they are used; return what runs one epoch to its end."""
        raise NotImplementedError

    def parameters(self) -> np.ndarray:
        """Return float64[members, P], as `validation.flatten` orders them."""
        raise NotImplementedError

    def work(self, case: Case) -> tuple[float, int]:
        """Return the operations of a unit of work, and the units of what `prepare` returned."""
        return case.flops_per_step, case.steps

    def check(self, case: Case, expected: Any) -> float:
        """Return the error after the first epoch; raise `Disagreement` if it is too large."""
        return validate(case, expected, self.parameters())

    def end(self) -> None:
        """End what it has started besides its process."""

    def notes(self) -> dict[str, Any]:
        """Return what else goes on record about a validated case."""
        return {}

    def predict(self, rows: np.ndarray) -> Any:
        """Return the network's output for float32[rows, in] as an array on the host."""
        raise NotImplementedError
