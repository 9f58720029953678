"""Collecting the rows of a shuffled mini-batch."""

from numba import cuda

from fastmlp_kernels.compile import cuda_kernel


@cuda_kernel
def gather_rows(X, order, start, rows, out):
    """Copy ``X[order[start + i]]`` to ``out[i]`` for i below `rows`.

    Parameters
    ----------
    X : dtype[n, columns], C-contiguous, read
    order : int64[m], read
        Indices into X, checked before.
    start, rows : int
    out : dtype[batch, columns], C-contiguous, written
        Distinct from X.

    Notes
    -----
    Launch: a thread an element of the rows used, neighbours in a row reading neighbours.
    Cost: one read and one write of ``rows * columns`` elements; exact. Source: the mini-batch of
    stochastic gradient descent.
    """
    index = cuda.grid(1)
    columns = out.shape[1]
    if index < rows * columns:
        i = index // columns
        j = index - i * columns
        out[i, j] = X[order[start + i], j]
