"""The table of providers, and every way in which each of them is tried on a case."""

from __future__ import annotations

from benchmarks.baselines import Baseline, Entry, Jax, ScikitLearn, Torch, TorchGraph
from benchmarks.cases import Case
from benchmarks.ours import Fastmlp, FastmlpFit, kernels

BASELINES: dict[str, type[Baseline]] = {
    "fastmlp": Fastmlp,
    "fastmlp.fit": FastmlpFit,
    "PyTorch": Torch,
    "PyTorch graph": TorchGraph,
    "JAX": Jax,
    "scikit-learn": ScikitLearn,
}


def entries(
    case: Case, devices: list[str], threads: list[int], providers: list[str]
) -> list[Entry]:
    """Return every provider with every setting that is to be tried on a case."""
    found = []
    for name in providers:
        for device in BASELINES[name].devices:
            if device not in devices:
                continue
            # On a GPU one host thread submits the work.
            counts = threads if device == "cpu" else [1]
            names = [""]
            if name == "fastmlp":
                names = [kernel for kernel, _ in kernels(case, device)]
            elif name == "fastmlp.fit":
                names = [kernel for kernel, chosen in kernels(case, device) if chosen]
            found += [Entry(name, device, count, kernel) for kernel in names for count in counts]
    return found
