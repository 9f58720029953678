"""Records of named words, all int64, that Python fills and compiled code reads."""

import numpy as np


def table(*names: str) -> np.dtype:
    """Return the dtype of a record of words."""
    return np.dtype([(name, np.int64) for name in names], align=True)
