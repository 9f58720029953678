"""The sum over a block of threads, in one order."""

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
