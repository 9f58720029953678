"""Gradients of a network: one flat vector, and views of it by layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Gradients:
    """The derivatives of a loss by the parameters.

    Attributes
    ----------
    flat : ndarray
        All of them, in the order of ``MLP.parameters``.
    weights, biases : sequence of ndarray
        Views of `flat`, one per layer, shaped as the parameters are.
    """

    flat: NDArray[Any]
    weights: Sequence[NDArray[Any]]
    biases: Sequence[NDArray[Any]]
