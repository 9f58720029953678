"""What a provider is: a way to train a case, which can be validated and then timed.

Ratios are taken over fastmlp's own choice. Everybody is handed the same rows in the same order, on
the device beforehand; fastmlp gathers each mini-batch by an order, as it does when it shuffles, its
peers get slices, which cost them nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.cases import Data, Weights
from benchmarks.gpu.cases import GpuCase


class Provider:
    """A way to train: prepare it on a case, then call what `prepare` returned once an epoch.

    Attributes
    ----------
    name : str
    role : {"ours", "peer", "also"}
        "also" is shown, and compared with nothing.
    """

    name = ""
    role = "peer"

    def __init__(self, device: str, kernel: str = "") -> None:
        self.device, self.kernel = device, kernel

    @classmethod
    def ways(cls, case: GpuCase, device: str) -> list[dict[str, Any]]:
        """Return how it is tried on a case: one way, unless it has kernels."""
        return [way(cls)]

    def prepare(self, case: GpuCase, data: Data, weights: list[Weights]) -> Callable[[], None]:
        """Bring data and weights to the device; return what runs one epoch to its end."""
        raise NotImplementedError

    def parameters(self) -> np.ndarray:
        """Return float64[members, P], a member's as `benchmarks.validation.flatten` orders them."""
        raise NotImplementedError

    def notes(self) -> dict[str, str]:
        """Return what else goes on record: how it came to run as it did."""
        return {}


def way(provider: type[Provider], kernel: str = "", chosen: bool = True) -> dict[str, Any]:
    """Return a provider with its setting; `chosen` if users get just that."""
    return {
        "provider": provider.name,
        "role": provider.role,
        "kernel": kernel,
        "chosen": chosen,
        "label": f"{provider.name} ({kernel})" if kernel else provider.name,
    }
