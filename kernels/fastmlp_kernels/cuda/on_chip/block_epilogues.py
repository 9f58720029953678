"""What becomes of the elements of a layer's products: activations, slopes, sums of gradients.

There, `words` is a tuple of a layer's fields, in registers: a record is memory, which the compiler
would read again after each element's store.
"""

from typing import Any, NamedTuple

from fastmlp_kernels.algebra import ACTIVATIONS
from fastmlp_kernels.compile import cuda_part, cuda_switch
from fastmlp_kernels.cuda.on_chip import dropout
from fastmlp_kernels.cuda.on_chip.block_linear import SecondPass
from fastmlp_kernels.cuda.on_chip.products import Epilogues


class Rows(NamedTuple):
    """What a network uses of the algebra: rows, activations in the order of their codes; dropout.

    `drops` says whether any layer has dropout.
    """

    activations: tuple[str, ...]
    rule: str
    drops: bool = False


class Activated(NamedTuple):
    """Fields of a layer that the forward pass reads for each element."""

    activation: int
    out: int
    out_stride: int
    kept: int
    kept_stride: int
    keeps_input: int
    dropout: Any


class Sloped(NamedTuple):
    """Fields of a layer that the backward pass reads for each element."""

    activation: int
    kept: int
    kept_stride: int
    keeps_input: int
    dZ: int
    dZ_stride: int
    dropout: Any


def at_once(
    rows: Rows, accumulate: bool, to_operand: Any, to_number: Any, mixed: bool
) -> Epilogues:
    """Return epilogues that do all that there is to do."""
    return Epilogues(
        _forward(rows, to_operand, mixed),
        _backward(rows, to_operand, to_number, mixed),
        _gradient(accumulate),
    )


def in_passes(rows: Rows, accumulate: bool, exact: Any) -> tuple[Epilogues, SecondPass]:
    """Return epilogues for operands that are numbers, and what they leave to a second pass."""
    used = [ACTIVATIONS[name] for name in rows.activations]
    short = all(row.short for row in used) and not rows.drops
    # Slopes that read the activation are as short for every row of the table.
    short_slopes = all(row.short or row.keeps == "output" for row in used) and not rows.drops
    forward, backward, gradient = at_once(rows, accumulate, exact, exact, False)
    activate = multiply = None
    if not short:
        forward, activate = _two_passes_forward(rows)
    if not short_slopes:
        backward, multiply = _two_passes_backward(rows)
    return Epilogues(forward, backward, gradient), SecondPass(activate, multiply)


def values(rows: Rows) -> Any:
    """Return the activations as one function, by their code here."""
    return cuda_switch([ACTIVATIONS[name].value for name in rows.activations])


def slopes(rows: Rows) -> Any:
    """Return the slopes of the activations likewise."""
    return cuda_switch([ACTIVATIONS[name].slope for name in rows.activations])


def _forward(rows: Rows, to_operand: Any, mixed: bool) -> Any:
    value, drops, leave_out = values(rows), rows.drops, dropout.build(rows.drops).leave_out

    @cuda_part
    def forward(operands, numbers, words, last, i, j, z):
        """Write what dropout leaves of f(z), and what the slope will read; the last as numbers."""
        if words.keeps_input != 0:
            numbers[words.kept + i * words.kept_stride + j] = z
        a = value(words.activation, z)
        if drops:
            if words.keeps_input == 0 and last == 0:
                operands[words.kept + i * words.kept_stride + j] = to_operand(a)
            a = leave_out(words.dropout, i, j, a)
        if mixed and last == 0:
            operands[words.out + i * words.out_stride + j] = to_operand(a)
        else:
            numbers[words.out + i * words.out_stride + j] = a

    return forward


def _backward(rows: Rows, to_operand: Any, to_number: Any, mixed: bool) -> Any:
    slope, leave_out = slopes(rows), dropout.build(rows.drops).leave_out

    @cuda_part
    def backward(operands, numbers, words, layer, i, j, da):
        """Write ``dZ = dA f'(Z)``, of what dropout leaves of dA."""
        if mixed and words.keeps_input == 0:
            x = to_number(operands[words.kept + i * words.kept_stride + j])
        else:
            x = numbers[words.kept + i * words.kept_stride + j]
        # Each slope reads the one that its row keeps.
        dz = leave_out(words.dropout, i, j, da) * slope(words.activation, x, x)
        operands[words.dZ + i * words.dZ_stride + j] = to_operand(dz)

    return backward


def _gradient(accumulate: bool) -> Any:
    @cuda_part
    def gradient(gradient, place, value):
        if accumulate:
            gradient[place] += value
        else:
            gradient[place] = value

    return gradient


def _two_passes_forward(rows: Rows) -> tuple[Any, Any]:
    value, drops, leave_out = values(rows), rows.drops, dropout.build(rows.drops).leave_out

    @cuda_part
    def store(operands, numbers, words, layer, i, j, z):
        """Write z to where the slope will read it, or f(z)."""
        numbers[words.kept + i * words.kept_stride + j] = z

    @cuda_part
    def activate(operands, numbers, words, layer, i, j):
        """Write what dropout leaves of f(z), and f(z) where the slope will read it."""
        z = numbers[words.kept + i * words.kept_stride + j]
        a = value(words.activation, z)
        if drops and words.keeps_input == 0:
            numbers[words.kept + i * words.kept_stride + j] = a
        numbers[words.out + i * words.out_stride + j] = leave_out(words.dropout, i, j, a)

    return store, activate


def _two_passes_backward(rows: Rows) -> tuple[Any, Any]:
    slope, leave_out = slopes(rows), dropout.build(rows.drops).leave_out

    @cuda_part
    def store(operands, numbers, words, layer, i, j, da):
        """Write dA to the place of dZ."""
        operands[words.dZ + i * words.dZ_stride + j] = da

    @cuda_part
    def multiply(operands, numbers, words, layer, i, j):
        """Multiply what dropout leaves of it by the slope."""
        x = numbers[words.kept + i * words.kept_stride + j]
        place = words.dZ + i * words.dZ_stride + j
        da = leave_out(words.dropout, i, j, operands[place])
        operands[place] = da * slope(words.activation, x, x)

    return store, multiply
