"""What an epoch of a fit gave."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


class Epoch(NamedTuple):
    """What an epoch gave.

    Attributes
    ----------
    losses, penalties : ndarray
        float64[members, batches]: the reduced loss of each mini-batch, and its L2 penalty. The
        numbers of a network that is left out mean nothing.
    weights : ndarray
        float64[members or 1, batches]: what a mean over mini-batches weighs them by.
    seconds : float
    bad_batches : ndarray
        int64[members]: 0, or the number (from 1) of the mini-batch in which something was not
        finite. Parameters and state are then those after the mini-batch before it.
    finite : ndarray
        bool[members]: whether the parameters and the optimizer's state were finite. If not, they
        are again those from before the epoch.
    failed : bool
        Whether something was not finite, in any network.
    straight : bool
        Whether its whole batches went in a straight line: see `Program`.
    """

    losses: Numbers
    penalties: Numbers
    weights: Numbers
    seconds: float
    bad_batches: NDArray[np.int64]
    finite: NDArray[np.bool_]
    failed: bool
    straight: bool = False


def joined(parts: Sequence[Epoch]) -> Epoch:
    """Return the results of these parts as those of one epoch."""
    last = parts[-1]
    if len(parts) == 1:
        return last
    whole: dict[str, Any] = {
        name: np.concatenate(
            [np.broadcast_to(getattr(each, name), each.losses.shape) for each in parts], axis=1
        )
        for name in ("losses", "penalties", "weights")
    }
    return last._replace(seconds=sum(each.seconds for each in parts), **whole)
