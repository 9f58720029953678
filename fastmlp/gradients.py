"""Gradients of a network: one flat vector, and views of it by layer."""

from typing import Any

from numpy.typing import NDArray

from fastmlp.state.parameters import ParameterViews, check_values


class Gradients:
    """The derivatives of a loss by the parameters.

    Values may be assigned and changed in place: ``gradients.flat *= 0.5`` halves all of them.

    Attributes
    ----------
    flat : ndarray
        All derivatives, in the order of ``MLP.parameters``.
    weights, biases : sequence of ndarray
        Views of `flat`, one per layer, shaped as the parameters are.
    """

    def __init__(self, flat: NDArray[Any], weights: ParameterViews, biases: ParameterViews) -> None:
        self._flat, self._weights, self._biases = flat, weights, biases

    @property
    def flat(self) -> NDArray[Any]:
        """All derivatives as one vector. An assignment copies into it."""
        return self._flat

    @flat.setter
    def flat(self, values: Any) -> None:
        # ``flat *= k`` has changed the vector already, and assigns it to itself. Values that have
        # become infinite are refused when they are applied.
        if values is not self._flat:
            self._flat[:] = check_values("gradients.flat", values, self._flat)

    @property
    def weights(self) -> ParameterViews:
        """The derivatives by the weights: one view per layer, which may be assigned to."""
        return self._weights

    @weights.setter
    def weights(self, values: Any) -> None:
        self._weights.assign(values)

    @property
    def biases(self) -> ParameterViews:
        """The derivatives by the biases: one view per layer, which may be assigned to."""
        return self._biases

    @biases.setter
    def biases(self, values: Any) -> None:
        self._biases.assign(values)

    def __repr__(self) -> str:
        return f"<Gradients of {self.flat.size:,} parameters in {len(self.weights)} layers>"
