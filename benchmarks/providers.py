"""The table of providers, and every way in which each of them is tried on a case."""

from __future__ import annotations

from benchmarks.baselines import Baseline, Entry
from benchmarks.cases import Case
from benchmarks.estimators import (
    AcceleratedEstimator,
    Estimator,
    ScikitLearn,
    settings_of_estimators,
)
from benchmarks.ours import Fastmlp, FastmlpFit, FastmlpStep, choices
from benchmarks.peak import Peak
from benchmarks.peers import (
    Torch,
    TorchCompiled,
    TorchGraph,
    TorchMaxAutotune,
    TorchReduceOverhead,
)
from benchmarks.peers_jax import Jax, JaxMap, JaxUnroll
from benchmarks.peers_mlpfile import Mlpfile
from benchmarks.prediction import FastmlpPredict, NumPy, OnnxRuntime
from benchmarks.whole_fits import WholeFit

BASELINES: dict[str, type[Baseline]] = {
    "fastmlp": Fastmlp,
    "fastmlp.fit": FastmlpFit,
    "fastmlp.step": FastmlpStep,
    "fastmlp.predict": FastmlpPredict,
    "PyTorch": Torch,
    "PyTorch compile": TorchCompiled,
    "PyTorch graph": TorchGraph,
    "PyTorch max-autotune": TorchMaxAutotune,
    "PyTorch reduce-overhead": TorchReduceOverhead,
    "JAX": Jax,
    "JAX unroll": JaxUnroll,
    "JAX map": JaxMap,
    "scikit-learn": ScikitLearn,
    "NumPy": NumPy,
    "onnxruntime": OnnxRuntime,
    "mlpfile": Mlpfile,
    "FMA peak": Peak,
    "fastmlp.sklearn": AcceleratedEstimator,
    "sklearn.neural_network": Estimator,
}


def named(words: list[str]) -> list[str]:
    """Return the providers that words name: "fastmlp" stands for all of its own.

    Raises
    ------
    ValueError
        If a word names none. The message has the known names.
    """
    found = {
        word: [name for name in BASELINES if name == word or name.startswith(f"{word}.")]
        for word in words
    }
    for word, names in found.items():
        if not names:
            raise ValueError(f"providers: got {word!r}, wanted some of {', '.join(BASELINES)}")
    return [name for name in BASELINES if any(name in names for names in found.values())]


def entries(
    case: Case | WholeFit, devices: list[str], threads: list[int], providers: list[str]
) -> list[Entry]:
    """Return every provider with every setting that is to be tried on a case."""
    found = []
    for name in providers:
        for device in BASELINES[name].devices:
            if device in devices and device in case.devices:
                found += settings_of(name, case, device, threads)
    return found


def settings_of(name: str, case: Case | WholeFit, device: str, threads: list[int]) -> list[Entry]:
    """Return the settings in which a provider is tried on a case and a device."""
    if name == "fastmlp":
        ways = choices(case, device, threads)
        return [Entry(name, device, way.threads, way.kernel, way.chosen) for way in ways]
    if isinstance(case, Case) and name == "mlpfile":
        # One row at a time, on one thread.
        return [Entry(name, device)] if case.batch == 1 else []
    if issubclass(BASELINES[name], Estimator):
        return settings_of_estimators(name, case, device, threads, name == "fastmlp.sklearn")
    # On a GPU one host thread submits the work.
    counts = threads if device == "cpu" else [1]
    if name == "fastmlp.predict":
        return [Entry(name, device, max(counts))]
    if name in ("fastmlp.fit", "fastmlp.step"):
        # As many as it likes of those that it may use: it decides itself.
        (way,) = [way for way in choices(case, device, threads) if way.chosen]
        return [Entry(name, device, max(counts), way.kernel)]
    adam = isinstance(case, Case) and case.optimizer == "adam"
    ways = ("fused", "foreach") if name == "PyTorch" and adam else ("",)
    return [Entry(name, device, count, way) for count in counts for way in ways]


def chosen_alone(found: list[Entry]) -> list[Entry]:
    """Return fastmlp as its users get it, and the bound: what variants are compared by."""
    return [entry for entry in found if entry.chosen]
