"""The table of providers, by family: a family shares a process, a library's start and a context."""

from __future__ import annotations

from benchmarks.gpu.ours import Fastmlp, FastmlpFit
from benchmarks.gpu.peers import (
    Jax,
    Torch,
    TorchCompiled,
    TorchGraph,
    TorchMaxAutotune,
    TorchReduceOverhead,
)
from benchmarks.gpu.provider import Provider

FAMILIES: dict[str, tuple[type[Provider], ...]] = {
    "fastmlp": (Fastmlp, FastmlpFit),
    "PyTorch": (Torch, TorchGraph),
    "PyTorch compile": (TorchCompiled, TorchReduceOverhead),
    # Its compiler may take longer than a row has: it must not take the others along.
    "PyTorch max-autotune": (TorchMaxAutotune,),
    "JAX": (Jax,),
}
