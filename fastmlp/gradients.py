"""Gradients of a network: one flat vector, and views of it by layer."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.arguments import check_number
from fastmlp.errors import DTypeError, known_keywords
from fastmlp.state.parameters import ParameterViews, check_values
from fastmlp_kernels.algebra.optimizers import clip_scale


class Gradients:
    """The derivatives of a loss by the parameters.

    Values may be assigned and changed in place: ``gradients.flat *= 0.5`` halves all of them.

    Attributes
    ----------
    flat : ndarray
        All derivatives, in the order of ``MLP.parameters``.
    weights, biases : sequence of ndarray
        Views of `flat`, one per layer, shaped as the parameters are.

    Examples
    --------
    >>> loss, gradients = model.value_and_grad(X, y)
    >>> gradients.weights[0].shape, gradients.biases[0].shape, gradients.flat.shape
    ((4, 16), (16,), (97,))
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


@known_keywords
def clip_gradients(
    gradients: Iterable[Gradients] | Gradients,
    *,
    norm: float | None = None,
    value: float | None = None,
) -> float:
    """Limit gradients in place, those of several models by one norm; return the norm before.

    Each element is limited first, then all are multiplied by ``norm / (their norm + 1e-6)`` if that
    is less than 1, as `torch.nn.utils.clip_grad_norm_` does. The `clip_norm` of an optimizer does
    the same for one model, in compiled code.

    Parameters
    ----------
    gradients : Gradients, or several
        ``model.gradients``, or of `MLP.value_and_grad`. One that is given twice counts once.
    norm, value : float, optional
        The largest norm of all elements together, and the largest magnitude of each.

    Returns
    -------
    float
        The norm once elements are limited; infinite or NaN where an element is, and then nothing
        is multiplied.

    Raises
    ------
    DTypeError, DomainError
        If an argument is something else.

    Examples
    --------
    >>> from fastmlp import MLP, clip_gradients
    >>> actor, critic = MLP([4, 8, 2]), MLP([4, 8, 1])
    >>> actor.gradients.flat[:] = 3.0
    >>> critic.gradients.flat[:] = 4.0
    >>> before = clip_gradients([actor.gradients, critic.gradients], norm=0.5)
    """
    wanted = "wanted Gradients, such as model.gradients"
    if isinstance(gradients, Gradients):
        gradients = [gradients]
    elif not isinstance(gradients, Iterable):
        raise DTypeError(f"gradients: got {type(gradients).__name__}, {wanted}, or several")
    several = list(gradients)
    for index, each in enumerate(several):
        if not isinstance(each, Gradients):
            raise DTypeError(f"gradients[{index}]: got {type(each).__name__}, {wanted}")
    # ``model.gradients`` is a new object each time, of the same numbers.
    several = list({each.flat.ctypes.data: each for each in several}.values())
    limits = {"norm": norm, "value": value}
    checked = {
        name: None if limit is None else check_number(limit, name) for name, limit in limits.items()
    }
    if checked["value"] is not None:
        for each in several:
            np.clip(each.flat, -checked["value"], checked["value"], out=each.flat)
    flats = [np.asarray(each.flat, dtype=np.float64) for each in several]
    squares = np.float64(sum(flat @ flat for flat in flats))
    before = math.sqrt(squares)
    if checked["norm"] is not None and math.isfinite(before):
        scale = float(clip_scale(squares, checked["norm"]))
        for each in several:
            each.flat *= scale
    return before
