"""New networks: the problem that arguments describe, and the first parameters."""

from collections.abc import Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from fastmlp.arguments import TEXTS, check_number, check_seed
from fastmlp.dispatch.problems import check_memory, make_problem
from fastmlp.errors import DTypeError, ShapeError, look_up
from fastmlp.files.contents import Contents
from fastmlp.state.parameters import aligned_zeros, initialize
from fastmlp.state.training_state import TrainingState
from fastmlp_kernels.algebra import ACTIVATIONS, INITIALIZERS
from fastmlp_kernels.problem import parameter_layout

# The generators take 64 bits.
LARGEST_SEED = 2**64 - 1


def new_network(
    sizes: Sequence[int],
    activations: Any,
    loss: Any,
    seed: int | None,
    dtype: DTypeLike,
    reduction: str,
    precision: str,
    initializer: Any,
    gain: Any,
    dropout: Any,
    members: int | None = None,
) -> Contents:
    """Return a network as its arguments describe it, or `members` of them; see `MLP`."""
    count = 1 if members is None else members
    why = "" if members is None else ", as each network has the next"
    first = check_seed(seed, "seed", LARGEST_SEED - count + 1, why)
    template = make_problem(sizes, activations, loss, dtype, reduction, precision, dropout)
    if members is not None:
        template = check_memory(replace(template, members=members))
    chosen = _check_initializers(initializer, template.activations)
    gains = _check_gains(gain, len(chosen))
    # As programs take them: those of one network have no axis of networks.
    networks = (count,) if count > 1 else ()
    size, layout = template.parameter_count, parameter_layout(template.sizes)
    parameters = aligned_zeros((*networks, size), template.dtype)
    for member, own in enumerate(parameters.reshape(count, size)):
        initialize(own, layout, chosen, first + member, gains)
    return Contents(template, members, TrainingState(parameters, first))


def _check_initializers(given: Any, activations: Sequence[str]) -> list[Any]:
    """Return one row for each layer; None stands for the one that suits the activation."""
    layers = len(activations)
    each, place = [given] * layers, "initializer"
    if isinstance(given, list | tuple):
        each, place = _one_per_layer("initializer", given, layers), "initializer[{}]"
    suited = [INITIALIZERS[ACTIVATIONS[name].initializer] for name in activations]
    return [
        suited[i] if one is None else look_up(place.format(i), INITIALIZERS, one)
        for i, one in enumerate(each)
    ]


def _check_gains(given: Any, layers: int) -> list[float]:
    if isinstance(given, Real):
        return [check_number(given, "gain")] * layers
    if isinstance(given, TEXTS) or not np.iterable(given):
        raise DTypeError(f"gain: got {given!r}, wanted a number or one per layer")
    each = _one_per_layer("gain", list(given), layers)
    return [check_number(one, f"gain[{i}]") for i, one in enumerate(each)]


def _one_per_layer(argument: str, given: Sequence[Any], layers: int) -> list[Any]:
    if len(given) != layers:
        raise ShapeError(
            f"{argument}: got {len(given)}, wanted {layers}, one per layer of weights, the "
            "output's last"
        )
    return list(given)
