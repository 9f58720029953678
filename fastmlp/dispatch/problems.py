"""The checked problem that the arguments of a model describe."""

from itertools import pairwise
from numbers import Real
from typing import Any

import numpy as np

from fastmlp.arguments import check_integer, check_within, is_sequence
from fastmlp.device.machine import physical_memory
from fastmlp.errors import DomainError, DTypeError, ShapeError, check_name, look_up
from fastmlp.losses import check_loss
from fastmlp.synonyms import answer, resolve
from fastmlp_kernels.algebra import ACTIVATIONS
from fastmlp_kernels.algebra.tables import Interval
from fastmlp_kernels.problem import DTYPES, PRECISIONS, REDUCTIONS, Problem

# Of dropout: not all may be left out.
SHARES = Interval(0.0, 1.0, True, False)


def make_problem(
    sizes: Any,
    activations: Any,
    loss: Any,
    dtype: Any,
    reduction: Any,
    precision: Any = "float32",
    dropout: Any = (),
) -> Problem:
    """Return the problem that the arguments of a model describe, for one row."""
    units = _check_sizes(sizes)
    rows = _check_activations(activations, len(units) - 1)
    row = check_loss(loss)
    reason = row.refusal(rows[-1])
    if reason is not None:
        got = f"got {rows[-1].name!r} at the output"
        raise DomainError(f"activations: {got}, wanted one for the loss: {reason}")
    if units[-1] % row.outputs_per_target:
        raise ShapeError(
            f"sizes: got {units[-1]} outputs with {row.name}, wanted {row.outputs_per_target} for "
            f"each target: sizes[-1] = {row.outputs_per_target} for one"
        )
    if row.label_rule is not None and units[-1] < 2:
        raise ShapeError(
            f"sizes: got 1 output with {row.name}, wanted one for each of >= 2 classes; two "
            "classes with 1 output need 'sigmoid' there and loss='binary_cross_entropy'"
        )
    computed = _check_dtype(dtype)
    precision = check_name("precision", precision, PRECISIONS)
    if computed == "float64" and precision != "float32":
        raise DTypeError(
            f"precision: got {precision!r} with dtype 'float64', wanted dtype='float32' beside it"
        )
    problem = Problem(
        sizes=units,
        activations=tuple(each.name for each in rows),
        loss=row.name,
        reduction=check_name("reduction", reduction, REDUCTIONS),
        dtype=computed,
        precision=precision,
        dropout=_check_dropout(dropout, len(units) - 2),
        batch_size=1,
        rows=1,
    )
    return check_memory(problem)


def check_memory(problem: Problem) -> Problem:
    """Return the problem, or refuse it if its parameters alone exceed the machine's memory."""
    count = sum((inputs + 1) * outputs for inputs, outputs in pairwise(problem.sizes))
    needed = problem.members * count * np.dtype(problem.dtype).itemsize
    if needed > physical_memory():
        alone = problem.members == 1
        networks = "" if alone else f"{problem.members:,} networks of "
        raise ShapeError(
            f"{'sizes' if alone else 'members'}: got {networks}{count:,} parameters, "
            f"{needed / 1e9:,.0f} GB in {problem.dtype}, wanted what fits in the memory of this "
            "machine"
        )
    return problem


def _check_sizes(sizes: Any) -> tuple[int, ...]:
    wanted = "at least two positive whole numbers, inputs first: [784, 256, 10]"
    try:
        units = list(sizes)
    except TypeError:
        raise DTypeError(f"sizes: got {sizes!r}, wanted {wanted}") from None
    if len(units) < 2:
        raise ShapeError(f"sizes: got {units!r}, wanted {wanted}")
    return tuple(check_integer(each, f"sizes[{i}]", 1) for i, each in enumerate(units))


def _check_activations(activations: Any, layers: int) -> list[Any]:
    if isinstance(activations, str) or hasattr(activations, "name") or callable(activations):
        hidden = look_up("activations", ACTIVATIONS, activations)
        return [hidden] * (layers - 1) + [ACTIVATIONS["identity"]]
    try:
        given = list(activations)
    except TypeError:
        raise DTypeError(
            f"activations: got {activations!r}, wanted a name or one per layer"
        ) from None
    if len(given) != layers:
        hint = ""
        if len(given) == layers - 1:
            named = ", ".join(map(repr, [*given, "identity"]))
            hint = f"; with the output's, such as [{named}]"
        raise ShapeError(
            f"activations: got {len(given)}, wanted {layers}, one per layer of weights{hint}"
        )
    return [look_up(f"activations[{i}]", ACTIVATIONS, each) for i, each in enumerate(given)]


def _check_dropout(dropout: Any, hidden: int) -> tuple[float, ...]:
    """Return the share of each hidden layer; nothing where none is left out."""
    # An array without an axis stands for its number.
    dropout = dropout[()] if isinstance(dropout, np.ndarray) else dropout
    alone = isinstance(dropout, Real)
    if not (alone or is_sequence(dropout)):
        raise DTypeError(
            f"dropout: got {dropout!r}, wanted a number in [0, 1) or one for each hidden layer"
        )
    given = [dropout] if alone else list(dropout)
    if not alone and given and len(given) != hidden:
        raise ShapeError(
            f"dropout: got {len(given)} numbers, wanted {hidden}, one for each hidden layer"
        )
    shares = []
    for index, each in enumerate(given):
        name = "dropout" if alone else f"dropout[{index}]"
        shares.append(check_within(each, name, SHARES))
    if alone and not hidden and any(shares):
        raise DomainError(
            f"dropout: got {shares[0]} with no hidden layer, wanted 0, or one whose outputs are "
            "left out: sizes of at least three numbers"
        )
    shares = shares * hidden if alone else shares
    return tuple(shares) if any(shares) else ()


def _check_dtype(dtype: Any) -> str:
    try:
        name = np.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    # PyTorch's dtypes are written "torch.float32".
    known = None if dtype is None else resolve("dtype", name, DTYPES)
    if known is None:
        hint = answer("dtype", name)
        wanted = " or ".join(map(repr, DTYPES))
        raise DTypeError(f"dtype: got {dtype!r}, wanted {wanted}{f'; {hint}' if hint else ''}")
    return known
