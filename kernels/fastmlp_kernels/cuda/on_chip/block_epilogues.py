"""What becomes of the elements of a layer's products: activations, slopes, sums of gradients.

There, `words` is a tuple of a layer's fields, in registers: a record is memory, which the compiler
would read again after each element's store.
"""

from typing import Any, NamedTuple

from fastmlp_kernels.algebra import ACTIVATIONS
from fastmlp_kernels.compile import cuda_part, cuda_switch
from fastmlp_kernels.cuda.instructions.pointers import pointer_to
from fastmlp_kernels.cuda.on_chip import dropout
from fastmlp_kernels.cuda.on_chip.block_linear import SecondPass
from fastmlp_kernels.cuda.on_chip.products import Epilogue, Epilogues


class Rows(NamedTuple):
    """What a network uses of the algebra: rows, activations in the order of their codes; dropout.

    `drops` says whether any layer has dropout. The first `hidden` activations are those of hidden
    layers; 0 stands for all.
    """

    activations: tuple[str, ...]
    rule: str
    drops: bool = False
    hidden: int = 0


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


def hidden_rows(rows: Rows) -> Rows:
    """Return what the hidden layers use: no product computes the derivative by the outputs."""
    return rows._replace(activations=rows.activations[: rows.hidden or None])


def slopes(rows: Rows) -> Any:
    """Return the slopes of the activations likewise."""
    return cuda_switch([ACTIVATIONS[name].slope for name in rows.activations])


def _keeps_input(rows: Rows) -> Any:
    """Return whether a layer's slope reads Z, as the table says it or as all rows in use do."""
    kept = {ACTIVATIONS[name].keeps == "input" for name in rows.activations}
    known, answer = len(kept) == 1, True in kept

    @cuda_part
    def keeps_input(words):
        return answer if known else words.keeps_input != 0

    return keeps_input


def _forward(rows: Rows, to_operand: Any, mixed: bool) -> Epilogue:
    value, drops, leave_out = values(rows), rows.drops, dropout.build(rows.drops).leave_out
    keeps_input = _keeps_input(rows)

    @cuda_part
    def row(operands, numbers, words, last, i, j):
        kept, out = words.kept + i * words.kept_stride + j, words.out + i * words.out_stride + j
        return (
            *(pointer_to(operands, kept), pointer_to(numbers, kept)),
            *(pointer_to(operands, out), pointer_to(numbers, out)),
        )

    @cuda_part
    def forward(row, words, last, i, j, distance, z):
        """Write what dropout leaves of f(z), and what the slope will read; the last as numbers."""
        kept_operand, kept_number, out_operand, out_number = row
        if keeps_input(words):
            kept_number[distance] = z
        a = value(words.activation, z)
        if drops:
            if not keeps_input(words) and last == 0:
                kept_operand[distance] = to_operand(a)
            a = leave_out(words.dropout, i, j, a)
        if mixed and last == 0:
            out_operand[distance] = to_operand(a)
        else:
            out_number[distance] = a

    return Epilogue(row, forward)


def _backward(rows: Rows, to_operand: Any, to_number: Any, mixed: bool) -> Epilogue:
    below = hidden_rows(rows)
    slope, leave_out = slopes(below), dropout.build(rows.drops).leave_out
    keeps_input = _keeps_input(below)

    @cuda_part
    def row(operands, numbers, words, layer, i, j):
        kept, dZ = words.kept + i * words.kept_stride + j, words.dZ + i * words.dZ_stride + j
        return pointer_to(operands, kept), pointer_to(numbers, kept), pointer_to(operands, dZ)

    @cuda_part
    def backward(row, words, layer, i, j, distance, da):
        """Write ``dZ = dA f'(Z)``, of what dropout leaves of dA."""
        kept_operand, kept_number, dZ = row
        if mixed and not keeps_input(words):
            x = to_number(kept_operand[distance])
        else:
            x = kept_number[distance]
        # Each slope reads the one that its row keeps.
        dz = leave_out(words.dropout, i, j, da) * slope(words.activation, x, x)
        dZ[distance] = to_operand(dz)

    return Epilogue(row, backward)


def _gradient(accumulate: bool) -> Any:
    @cuda_part
    def gradient(gradient, place, value):
        if accumulate:
            value += gradient[place]
        gradient[place] = value
        return value

    return gradient


def _two_passes_forward(rows: Rows) -> tuple[Epilogue, Epilogue]:
    value, drops, leave_out = values(rows), rows.drops, dropout.build(rows.drops).leave_out

    @cuda_part
    def row(operands, numbers, words, last, i, j):
        kept, out = words.kept + i * words.kept_stride + j, words.out + i * words.out_stride + j
        return pointer_to(numbers, kept), pointer_to(numbers, out)

    @cuda_part
    def store(row, words, layer, i, j, distance, z):
        """Write z to where the slope will read it, or f(z)."""
        row[0][distance] = z

    @cuda_part
    def activate(row, words, layer, i, j, distance, _):
        """Write what dropout leaves of f(z), and f(z) where the slope will read it."""
        kept, out = row
        a = value(words.activation, kept[distance])
        if drops and words.keeps_input == 0:
            kept[distance] = a
        out[distance] = leave_out(words.dropout, i, j, a)

    return Epilogue(row, store), Epilogue(row, activate)


def _two_passes_backward(rows: Rows) -> tuple[Epilogue, Epilogue]:
    slope, leave_out = slopes(hidden_rows(rows)), dropout.build(rows.drops).leave_out

    @cuda_part
    def row(operands, numbers, words, layer, i, j):
        kept, dZ = words.kept + i * words.kept_stride + j, words.dZ + i * words.dZ_stride + j
        return pointer_to(numbers, kept), pointer_to(operands, dZ)

    @cuda_part
    def store(row, words, layer, i, j, distance, da):
        """Write dA to the place of dZ."""
        row[1][distance] = da

    @cuda_part
    def multiply(row, words, layer, i, j, distance, _):
        """Multiply what dropout leaves of it by the slope."""
        kept, dZ = row
        x = kept[distance]
        da = leave_out(words.dropout, i, j, dZ[distance])
        dZ[distance] = da * slope(words.activation, x, x)

    return Epilogue(row, store), Epilogue(row, multiply)
