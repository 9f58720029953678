"""The loss of a block of rows and its gradient, the link of predictions, and the batch's sum."""

import functools

from numba import carray
from numba.core import types

from fastmlp_kernels.algebra import LOSSES, loss_rules
from fastmlp_kernels.compile import leaf
from fastmlp_kernels.cpu.activation import NUMBERS
from fastmlp_kernels.cpu.intrinsics import magnitude

WORD = types.int64


@functools.cache
def loss_and_gradient(rule: str, dtype: str) -> int:
    """Return the address of the leaf that writes each row's loss and its gradient.

    Parameters
    ----------
    rule : str
        Name of a rule of ``loss_rules()``.
    dtype : str

    Notes
    -----
    The leaf is ``(A, y, rows, outputs, target_columns, scale, row_losses, dA) -> largest magnitude
    of a row's loss as bits``: row-major predictions (or pre-activations where the rule is a fused
    one), row-major targets, the address of the reduction's factor; row_losses and the row-major
    dA are written, and dA may be A. Labels are checked before: one out of range would write
    astray. Cost: O(rows outputs). Accuracy: finite for every finite logit. Source:
    `algebra.losses`.
    """
    row = next(each.row for each in loss_rules() if each.name == rule)
    pointer = types.CPointer(NUMBERS[dtype])

    def losses(A, y, rows, outputs, target_columns, scale, row_losses, dA):
        prediction, target = carray(A, (rows, outputs)), carray(y, (rows, target_columns))
        slope = carray(dA, (rows, outputs))
        factor = scale[0]
        seen = magnitude(factor)
        for i in range(rows):
            row_losses[i] = factor * row(prediction, target, i, slope)
            seen = max(seen, magnitude(row_losses[i]))
            for j in range(outputs):
                slope[i, j] *= factor
        return WORD(seen)

    signature = WORD(pointer, pointer, WORD, WORD, WORD, pointer, pointer, pointer)
    return leaf(losses, f"loss_and_gradient-{rule.replace('/', '-')}-{dtype}", signature).address


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
    The leaf is ``(A, rows, outputs)``, in place on row-major rows: softmax for its cross-entropy.
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
    """Return the address of the leaf that sums the losses of a batch's rows.

    Parameters
    ----------
    dtype : str

    Notes
    -----
    The leaf is ``(row_losses, rows, out) -> magnitude of the sum as bits``. Cost: `rows` additions
    in float64, in four interleaved sums whatever the number of threads, rounded once. Source: the
    mean loss of the derivation sheet.
    """
    number = NUMBERS[dtype]
    pointer = types.CPointer(number)

    def total(row_losses, rows, out):
        s0, s1, s2, s3 = 0.0, 0.0, 0.0, 0.0
        whole = rows - rows % 4
        for i in range(0, whole, 4):
            s0 += row_losses[i]
            s1 += row_losses[i + 1]
            s2 += row_losses[i + 2]
            s3 += row_losses[i + 3]
        for i in range(whole, rows):
            s0 += row_losses[i]
        out[0] = number((s0 + s1) + (s2 + s3))
        return WORD(magnitude(out[0]))

    return leaf(total, f"sum_losses-{dtype}", WORD(pointer, WORD, pointer)).address
