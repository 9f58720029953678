"""The loss of a block of rows and its gradient, the link of predictions, and the batch's sum."""

import functools
from collections.abc import Callable

from numba import carray
from numba.core import types

from fastmlp_kernels.algebra import LOSSES, loss_rule
from fastmlp_kernels.compile import leaf
from fastmlp_kernels.cpu.activation import NUMBERS
from fastmlp_kernels.cpu.intrinsics import magnitude, read, write

WORD = types.int64


def losses_per_row(rule: str, outputs: int) -> int:
    """Return how many losses a rule gives for a row: one, or one for each output."""
    return 1 if loss_rule(rule).by_row else outputs


@functools.cache
def loss_and_gradient(rule: str, dtype: str, weighted: bool = False) -> int:
    """Return the address of the leaf that writes losses and their gradient by the outputs.

    Parameters
    ----------
    rule : str
        Its name for ``loss_rule``.
    dtype : str
    weighted : bool
        Whether each row has a factor of its own.

    Notes
    -----
    The leaf is ``(A, y, rows, outputs, target_columns, scale, losses, dA) -> largest magnitude of a
    loss as bits``: row-major predictions (or pre-activations where the rule is a fused one),
    row-major targets, the address of the reduction's factor (or of the rows' factors, each of which
    holds the reduction and the row's weight); the losses (`losses_per_row` of each
    row) and the row-major dA are written. None of the arrays overlap. A label that names no
    class is taken as the nearest one. A loss has the same bits wherever its row stands, so that
    threads may share the rows in any way: code for vectors and code for what is left over must fuse
    the same products (tested). Cost: O(rows outputs), in vectors for a rule of single elements.
    Accuracy: finite for every finite logit. Source: `algebra.losses`.
    """
    row = loss_rule(rule)
    make = _row_loop if row.by_row else _weighted_loop if weighted else _element_loop
    pointer = types.CPointer(NUMBERS[dtype])
    signature = WORD(pointer, pointer, WORD, WORD, WORD, pointer, pointer, pointer)
    kind = "weighted-" if weighted else ""
    name = f"loss_and_gradient-{rule.replace('/', '-')}-{kind}{dtype}"
    return leaf(make(row.rule, weighted), name, signature).address


def _row_loop(rule: Callable, weighted: bool) -> Callable:
    def losses(A, y, rows, outputs, target_columns, scale, row_losses, dA):
        prediction, target = carray(A, (rows, outputs)), carray(y, (rows, target_columns))
        slope = carray(dA, (rows, outputs))
        seen = magnitude(scale[0])
        for i in range(rows):
            factor = scale[i if weighted else 0]
            row_losses[i] = factor * rule(prediction, target, i, slope)
            seen = max(seen, magnitude(row_losses[i]))
            for j in range(outputs):
                slope[i, j] *= factor
        return WORD(seen)

    return losses


def _element_loop(rule: Callable, weighted: bool) -> Callable:
    def losses(A, y, rows, outputs, target_columns, scale, each, dA):
        factor = scale[0]
        seen = magnitude(factor)
        for k in range(rows * outputs):
            loss, slope = rule(read(A, k, 0), read(y, k, 1))
            loss *= factor
            seen = max(seen, magnitude(loss))
            write(each, k, loss, 2)
            write(dA, k, slope * factor, 3)
        return WORD(seen)

    return losses


def _weighted_loop(rule: Callable, weighted: bool) -> Callable:
    def element(A, y, each, dA, k, factor):
        loss, slope = rule(read(A, k, 0), read(y, k, 1))
        loss *= factor
        write(each, k, loss, 2)
        write(dA, k, slope * factor, 3)
        return magnitude(loss)

    def losses(A, y, rows, outputs, target_columns, scale, each, dA):
        seen = magnitude(scale[0])
        if outputs == 1:
            # Rows in the lanes: the other loop would go round once for each.
            for i in range(rows):
                seen = max(seen, element(A, y, each, dA, i, read(scale, i, 4)))
        else:
            for i in range(rows):
                factor = scale[i]
                for j in range(outputs):
                    seen = max(seen, element(A, y, each, dA, i * outputs + j, factor))
        return WORD(seen)

    return losses


@functools.cache
def predict_rows(loss: str, dtype: str) -> int:
    """Return the address of the leaf that applies a loss's link to rows; 0 where it has none.

    Parameters
    ----------
    loss : str
        Row of LOSSES.
    dtype : str

    Notes
    -----
    The leaf is ``(A, rows, outputs)``, in place on row-major rows: softmax for its cross-entropy,
    variances for their logarithms.
    Cost: O(rows outputs). Source: the inverse of the loss's link function.
    """
    link = LOSSES[loss].link
    if link is None:
        return 0

    def predict(A, rows, outputs):
        prediction = carray(A, (rows, outputs))
        for i in range(rows):
            link(prediction, i)
        return 0

    signature = WORD(types.CPointer(NUMBERS[dtype]), WORD, WORD)
    return leaf(predict, f"predict_rows-{loss}-{dtype}", signature).address


@functools.cache
def sum_losses(dtype: str) -> int:
    """Return the address of the leaf that sums the losses of a batch.

    Parameters
    ----------
    dtype : str

    Notes
    -----
    The leaf is ``(losses, count, out) -> magnitude of the sum as bits``. Cost: `count` additions in
    float64, in eight interleaved sums whatever the number of threads, rounded once. Source: the
    mean loss of the derivation sheet.
    """
    number = NUMBERS[dtype]
    pointer = types.CPointer(number)

    def total(losses, count, out):
        s0, s1, s2, s3, s4, s5, s6, s7 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        whole = count - count % 8
        for i in range(0, whole, 8):
            s0 += losses[i]
            s1 += losses[i + 1]
            s2 += losses[i + 2]
            s3 += losses[i + 3]
            s4 += losses[i + 4]
            s5 += losses[i + 5]
            s6 += losses[i + 6]
            s7 += losses[i + 7]
        for i in range(whole, count):
            s0 += losses[i]
        out[0] = number(((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7)))
        return WORD(magnitude(out[0]))

    return leaf(total, f"sum_losses-{dtype}", WORD(pointer, WORD, pointer)).address
