"""The loss of a batch and its gradient, one row at a time, and the sum over the batch."""

import math

import numpy as np

from fastmlp_kernels.algebra import LOSSES, loss_rules
from fastmlp_kernels.compile import cpu_switch, kernel
from fastmlp_kernels.problem import STATUS


def _no_link(prediction, i):
    pass


_row_rule = cpu_switch([rule.row for rule in loss_rules()])
_link = cpu_switch([loss.link or _no_link for loss in LOSSES])


@kernel
def loss_and_gradient(A, y, rule, rows, scale, row_losses, dA):
    """Write the scaled loss of each row and its gradient by the outputs.

    Parameters
    ----------
    A : dtype[batch, outputs], C-contiguous, read
        Predictions, or pre-activations where the rule is a fused one.
    y : dtype[batch, outputs] or dtype[batch, 1], C-contiguous, read
        Targets, or class indices; checked before: a label out of range would write astray.
    rule : int
        Position of the rule in ``loss_rules()``.
    rows : int
        Rows used, from the first.
    scale : dtype
        Factor of loss and gradient: the reduction.
    row_losses : dtype[batch], written
    dA : dtype[batch, outputs], C-contiguous, written
        May be `A`.

    Notes
    -----
    Cost: O(rows outputs). Accuracy: finite for every finite logit. Source: `algebra.losses`; the
    gradient may be written over the logits, as in Liger-Kernel.
    """
    for i in range(rows):
        row_losses[i] = scale * _row_rule(rule, A, y, i, dA)
        for j in range(dA.shape[1]):
            dA[i, j] *= scale


@kernel
def sum_losses(row_losses, rows, losses, batch, status):
    """Write the sum of `row_losses` to ``losses[batch]``; note a loss that is not finite.

    Parameters
    ----------
    row_losses : dtype[batch_size], read
    rows, batch : int
        Rows used, and the batch's number.
    losses : dtype[batches], written
    status : int64[3], read and written
        ``status[STATUS]`` becomes batch + 1 at the first sum that is not finite.

    Notes
    -----
    Cost: `rows` additions in float64, ascending, rounded once. Source: the mean loss of the sheet.
    """
    total = 0.0
    for i in range(rows):
        total += row_losses[i]
    losses[batch] = total
    if not math.isfinite(losses[batch]) and status[STATUS] == 0:
        status[STATUS] = batch + 1


@kernel
def check_finite(gradient, batch, status):
    """Set ``status[STATUS]`` to batch + 1 when an element of `gradient` is not finite.

    Parameters
    ----------
    gradient : dtype[P], read
    batch : int
    status : int64[3], read and written

    Notes
    -----
    Cost: P multiply-adds. Source: 0 * x is 0 exactly for every finite x, and NaN otherwise, so that
    four running sums of it see every element without a branch.
    """
    zero = gradient.dtype.type(0)
    s0, s1, s2, s3 = zero, zero, zero, zero
    whole = gradient.size - gradient.size % 4
    for i in range(0, whole, 4):
        s0 += zero * gradient[i]
        s1 += zero * gradient[i + 1]
        s2 += zero * gradient[i + 2]
        s3 += zero * gradient[i + 3]
    for i in range(whole, gradient.size):
        s0 += zero * gradient[i]
    if np.isnan((s0 + s1) + (s2 + s3)) and status[STATUS] == 0:
        status[STATUS] = batch + 1


@kernel
def predict_rows(A, loss, rows):
    """Apply the loss's link to each row in place: softmax for its cross-entropy, else nothing.

    Parameters
    ----------
    A : dtype[batch, outputs], C-contiguous, read and written
    loss, rows : int
        Position of the loss in LOSSES, and the rows used, from the first.

    Notes
    -----
    Cost: O(rows outputs). Source: the inverse of the loss's link function.
    """
    for i in range(rows):
        _link(loss, A, i)
