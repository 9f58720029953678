"""Collecting the rows of a shuffled mini-batch."""

from numba import cuda

from fastmlp_kernels.compile import cuda_kernel
from fastmlp_kernels.cuda.layered.bfloat16 import bfloat16_bits

# Words of the counter of batches. The kernels of a step read the first; the update alone reads the
# second, so that it can move the first on while other threads of it are still at work.
BATCH, UPDATED = 0, 1
COUNTER_WORDS = 2


@cuda_kernel
def gather_rows(X, y, order, counter, batch_size, rows, inputs, targets, rounded):
    """Copy the rows of `X` and `y` that the batch's places in `order` name.

    Parameters
    ----------
    X : dtype[n, fan_in], C-contiguous, read
    y : dtype[n, columns], C-contiguous, read
    order : int64[m], read
        Indices into X and y, checked before.
    counter : int64[2], read and written
        The batch's number is ``counter[BATCH]``; ``counter[UPDATED]`` becomes it.
    batch_size, rows : int
        Rows of a full batch, and of this one: place 0 of it is ``batch * batch_size``.
    inputs : dtype[batch, fan_in], C-contiguous, written
        Left alone where there is `rounded`.
    targets : dtype[batch, columns], C-contiguous, written
    rounded : uint16[batch, stride] or uint16[0, 0]
        Where it has elements, the inputs go there as bfloat16; columns beyond fan_in are left.

    Notes
    -----
    Launch: a thread an element of the rows used, of both, neighbours in a row reading neighbours.
    Cost: one read and one write of ``rows * (fan_in + columns)`` elements; exact but for the
    rounding. Aliasing: none. Source: the mini-batch of stochastic gradient descent.
    """
    index = cuda.grid(1)
    fan_in, columns = inputs.shape[1], targets.shape[1]
    batch = counter[BATCH]
    if index == 0:
        counter[UPDATED] = batch
    width = fan_in + columns
    if index < rows * width:
        i = index // width
        j = index - i * width
        row = order[batch * batch_size + i]
        if j >= fan_in:
            targets[i, j - fan_in] = y[row, j - fan_in]
        elif rounded.size > 0:
            rounded[i, j] = bfloat16_bits(X[row, j])
        else:
            inputs[i, j] = X[row, j]
