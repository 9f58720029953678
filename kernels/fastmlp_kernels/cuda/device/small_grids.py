"""Launches of few blocks, without Numba's advice."""

import contextlib
import warnings
from collections.abc import Iterator

from numba.core.errors import NumbaPerformanceWarning


@contextlib.contextmanager
def small_grids_allowed() -> Iterator[None]:
    """Silence Numba's advice on grids that do not fill the GPU: small networks have them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Grid size", NumbaPerformanceWarning)
        yield
