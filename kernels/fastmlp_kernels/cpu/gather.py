"""Collecting the rows of a shuffled mini-batch."""

from fastmlp_kernels.compile import kernel


@kernel
def gather_rows(X, order, start, rows, out):
    """Copy ``X[order[start + i]]`` to ``out[i]`` for i below `rows`.

    Parameters
    ----------
    X : dtype[n, columns], C-contiguous, read
    order : int64[m], read
        Indices into X, checked before.
    start, rows : int
    out : dtype[batch, columns], C-contiguous, written

    Notes
    -----
    Cost: one read and one write of ``rows * columns`` elements. Source: the mini-batch of
    stochastic gradient descent.
    """
    for i in range(rows):
        source = order[start + i]
        for j in range(out.shape[1]):
            out[i, j] = X[source, j]
