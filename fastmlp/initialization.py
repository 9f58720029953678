"""New networks: the problem that arguments describe, and the first parameters."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from numpy.typing import DTypeLike

from fastmlp.arguments import check_seed
from fastmlp.dispatch.problems import check_memory, make_problem
from fastmlp.errors import look_up
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
    if initializer is None:
        rows = [ACTIVATIONS[name] for name in template.activations]
        chosen = [INITIALIZERS[row.initializer] for row in rows]
    else:
        chosen = [look_up("initializer", INITIALIZERS, initializer)] * len(template.activations)
    # As programs take them: those of one network have no axis of networks.
    networks = (count,) if count > 1 else ()
    size, layout = template.parameter_count, parameter_layout(template.sizes)
    parameters = aligned_zeros((*networks, size), template.dtype)
    for member, own in enumerate(parameters.reshape(count, size)):
        initialize(own, layout, chosen, first + member)
    return Contents(template, members, TrainingState(parameters, first))
