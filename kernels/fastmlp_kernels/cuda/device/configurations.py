"""What launches a kernel: its grid and blocks, without Numba's advice on small grids."""

import functools
from typing import Any

# Numba warns of fewer blocks than 128 when a configuration is made. Small networks have small
# grids, and to silence warnings meanwhile would silence those of other threads.
UNADVISED = 2**16


def configured(kernel: Any, grid: Any, block: Any, stream: Any = 0, shared_bytes: int = 0) -> Any:
    """Return what launches a kernel when it is called with the arguments.

    Parameters
    ----------
    kernel : CUDA kernel
    grid, block : int or tuple of int
        Blocks of the grid, and threads of a block.
    stream : stream
    shared_bytes : int
        Dynamic shared memory of a block.
    """
    if hasattr(kernel, "configure"):
        return _configured(kernel, grid, block, stream, shared_bytes)
    # The simulator's, and one that is given its shared memory already.
    return kernel[(grid, block, stream, shared_bytes) if shared_bytes else (grid, block, stream)]


@functools.lru_cache(maxsize=512)
def _configured(kernel: Any, grid: Any, block: Any, stream: Any, shared_bytes: int) -> Any:
    """Return a copy of a wide configuration, made narrow."""
    wide = kernel.configure(UNADVISED, block, stream, shared_bytes)
    narrow = object.__new__(type(wide))
    vars(narrow).update(vars(wide))
    blocks = grid if isinstance(grid, tuple) else (grid,)
    narrow.griddim = (*blocks, 1, 1)[:3]
    narrow.pre_launch_callbacks = []
    return narrow
