"""Collecting the rows of a shuffled mini-batch."""

from numba import cuda

from fastmlp_kernels.compile import cuda_kernel, cuda_part
from fastmlp_kernels.cuda.layered.bfloat16 import bfloat16_bits

# Words of the counter of batches. The kernels of a step read the first. The loss sets the second to
# it, and the update alone reads that, so that it can move the first on while other threads of it
# are still at work.
BATCH, UPDATED = 0, 1
COUNTER_WORDS = 2


@cuda_part
def gather_element(index, X, y, order, batch, batch_size, inputs, targets, rounded):
    """Copy element `index` of the rows of a batch, or nothing if it has fewer; see `gather_rows`.

    Beyond the last batch there are no rows.
    """
    fan_in, columns = inputs.shape[1], targets.shape[1]
    width = fan_in + columns
    i = index // width
    j = index - i * width
    place = batch * batch_size + i
    if i < batch_size and place < order.size:
        row = order[place]
        if j >= fan_in:
            targets[i, j - fan_in] = y[row, j - fan_in]
        elif rounded.size > 0:
            rounded[i, j] = bfloat16_bits(X[row, j])
        else:
            inputs[i, j] = X[row, j]


@cuda_kernel
def gather_rows(X, y, order, counter, batch_size, inputs, targets, rounded):
    """Copy the rows of `X` and `y` that the batch's places in `order` name.

    Parameters
    ----------
    X : dtype[n, fan_in], C-contiguous, read
    y : dtype[n, columns], C-contiguous, read
    order : int64[m], read
        Indices into X and y, checked before.
    counter : int64[2], read
        The batch's number is ``counter[BATCH]``.
    batch_size : int
        Rows of a full batch: place 0 of this one is ``batch * batch_size``. The last one may have
        fewer.
    inputs : dtype[batch, fan_in], C-contiguous, written
        Left alone where there is `rounded`.
    targets : dtype[batch, columns], C-contiguous, written
    rounded : uint16[batch, stride] or uint16[0, 0]
        Where it has elements, the inputs go there as bfloat16; columns beyond fan_in are left.

    Notes
    -----
    Launch: a thread an element of a full batch, of both, neighbours in a row reading neighbours.
    Cost: one read and one write of each element. Accuracy: exact, or that of `bfloat16_bits`.
    Aliasing: none. Source: the mini-batch of stochastic gradient descent.
    """
    index = cuda.grid(1)
    gather_element(index, X, y, order, counter[BATCH], batch_size, inputs, targets, rounded)
