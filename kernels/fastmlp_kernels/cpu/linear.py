"""The three products of a linear layer. One thread, plain loops that LLVM vectorises."""

from fastmlp_kernels.compile import REDUCTION_FLAGS, kernel
from fastmlp_kernels.cpu.activation import activation_forward


@kernel
def _add_rows(coefficients, matrix, count, out):
    """Add ``sum_k coefficients[k] * matrix[k]`` to the vector `out`, k ascending.

    Four rows a pass: `out` is then loaded and stored once per four multiply-adds. LLVM vectorises
    only behind a limited number of run-time overlap checks (eight by default), one a row here.
    """
    k = 0
    while k + 4 <= count:
        c0, c1, c2, c3 = (
            coefficients[k],
            coefficients[k + 1],
            coefficients[k + 2],
            coefficients[k + 3],
        )
        for j in range(out.size):
            total = out[j]
            total += c0 * matrix[k, j]
            total += c1 * matrix[k + 1, j]
            total += c2 * matrix[k + 2, j]
            total += c3 * matrix[k + 3, j]
            out[j] = total
        k += 4
    while k < count:
        c0 = coefficients[k]
        for j in range(out.size):
            out[j] += c0 * matrix[k, j]
        k += 1


@kernel
def linear_forward(A, W, b, activation, rows, Z, out):
    """Compute ``Z = A W + b`` and ``out = f(Z)``.

    Parameters
    ----------
    A : dtype[batch, fan_in], C-contiguous, read
    W : dtype[fan_in, fan_out], C-contiguous, read
    b : dtype[fan_out], read
    activation : int
        Code of the row of ACTIVATIONS.
    rows : int
        Rows used, from the first; the others of `Z` and `out` are left alone.
    Z, out : dtype[batch, fan_out], C-contiguous, written
        The same array exactly when the activation keeps its output.

    Notes
    -----
    Cost: ``2 rows fan_in fan_out`` flops. Aliasing: A and W overlap neither output.
    Accuracy: each element is one chain of fused multiply-adds, k ascending, whatever `rows` is:
    a row's result does not depend on the rows beside it; error at most
    ``(fan_in + 1) u (|A| |W| + |b|)``. Source: the derivation sheet, ``z = W x + b``.
    """
    for i in range(rows):
        row = Z[i]
        row[:] = b
        _add_rows(A[i], W, W.shape[0], row)
    activation_forward(Z, activation, rows, out)


@kernel(flags=REDUCTION_FLAGS)
def linear_backward(dZ, W, rows, dA):
    """Compute ``dA = dZ W^T``.

    Parameters
    ----------
    dZ : dtype[batch, fan_out], C-contiguous, read
    W : dtype[fan_in, fan_out], C-contiguous, read
    rows : int
        Rows used, from the first.
    dA : dtype[batch, fan_in], C-contiguous, written
        Overlaps neither input.

    Notes
    -----
    Cost: ``2 rows fan_in fan_out`` flops. Accuracy: error at most
    ``fan_out u |dZ| |W|^T``, the sums split over vector lanes. Source: the chain rule,
    ``dl/da = W dl/dz``.
    """
    fan_in, fan_out = W.shape
    zero = dZ.dtype.type(0)
    for i in range(rows):
        k = 0
        while k + 4 <= fan_in:
            s0, s1, s2, s3 = zero, zero, zero, zero
            for j in range(fan_out):
                d = dZ[i, j]
                s0 += d * W[k, j]
                s1 += d * W[k + 1, j]
                s2 += d * W[k + 2, j]
                s3 += d * W[k + 3, j]
            dA[i, k], dA[i, k + 1], dA[i, k + 2], dA[i, k + 3] = s0, s1, s2, s3
            k += 4
        while k < fan_in:
            s0 = zero
            for j in range(fan_out):
                s0 += dZ[i, j] * W[k, j]
            dA[i, k] = s0
            k += 1


@kernel
def weight_gradient(A, dZ, rows, accumulate, dW, db):
    """Compute ``dW = A^T dZ`` and ``db = sum of the rows of dZ``, or add them.

    Parameters
    ----------
    A : dtype[batch, fan_in], C-contiguous, read
    dZ : dtype[batch, fan_out], C-contiguous, read
    rows : int
        Rows used, from the first.
    accumulate : int
        1 adds to `dW` and `db`, 0 overwrites them.
    dW : dtype[fan_in, fan_out], C-contiguous; db : dtype[fan_out]
        Written; overlap neither input.

    Notes
    -----
    Cost: ``2 rows fan_in fan_out`` flops. Accuracy: one chain of fused multiply-adds an element,
    rows ascending; error at most ``rows u |A|^T |dZ|``. Source: the derivation sheet,
    ``dl/dW = x dl/dz``.
    """
    if accumulate == 0:
        dW[:] = dW.dtype.type(0)
        db[:] = db.dtype.type(0)
    for k in range(dW.shape[0]):
        _add_rows(A[:, k], dZ, rows, dW[k])
    for i in range(rows):
        for j in range(db.size):
            db[j] += dZ[i, j]
