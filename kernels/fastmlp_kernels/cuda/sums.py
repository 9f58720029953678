"""Sums over the threads of a block, and over blocks, in one order."""

from numba import cuda

from fastmlp_kernels.compile import cuda_part


@cuda_part
def block_sum(partial, t, threads):
    """Sum ``partial[:threads]`` in shared memory, by a tree; thread 0 may then read ``partial[0]``.

    Every thread `t` of the block calls it. The order depends on `threads` alone: the same at every
    run, error at most ``log2 threads`` roundings of the sum of magnitudes.
    """
    cuda.syncthreads()
    width = threads
    while width > 1:
        # Rounded up, so that any number of threads has a tree.
        half = (width + 1) // 2
        if t + half < width:
            partial[t] += partial[t + half]
        cuda.syncthreads()
        width = half


@cuda_part
def grid_sum(partial, sums, arrivals, flag, total, t, threads):
    """Sum what each thread of a grid brings; return whether this block has it in ``partial[0]``.

    A tree sums those of a block, and the last block to arrive those of all blocks. Which block that
    is changes no bit: error at most ``2 log2 threads + blocks / threads`` roundings of the sum of
    magnitudes. `partial` and `flag` are in shared memory; see `is_last` for `arrivals`.
    """
    partial[t] = total
    block_sum(partial, t, threads)
    if t == 0:
        sums[cuda.blockIdx.x] = partial[0]
    if not is_last(arrivals, 0, cuda.gridDim.x, flag, t):
        return False
    rest = sums.dtype.type(0)
    for block in range(t, cuda.gridDim.x, threads):
        rest += sums[block]
    partial[t] = rest
    block_sum(partial, t, threads)
    return True


@cuda_part
def is_last(arrivals, place, blocks, flag, t):
    """Return to every thread of a block whether it is the last of so many to come here.

    What each block wrote before is then seen by the last one: it is fenced before the arrival is
    counted, and again before anything is read.
    """
    cuda.threadfence()
    cuda.syncthreads()
    if t == 0:
        flag[0] = cuda.atomic.add(arrivals, place, 1)
    cuda.syncthreads()
    last = flag[0] == blocks - 1
    if last:
        cuda.threadfence()
        if t == 0:
            arrivals[place] = 0
    return last
