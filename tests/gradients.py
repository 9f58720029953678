"""Derivatives by finite differences, of fourth order, in float64, away from kinks."""

from collections.abc import Callable, Iterable

import numpy as np

STEP = 1e-3
# Truncation is about h^4 / 30 times the fifth derivative, rounding about eps / h.
RELATIVE_ERROR = 1e-9


def central_difference(function: Callable, x, step: float = STEP):
    """Return the derivative of `function` at `x`, element by element if it takes arrays."""
    near = function(x + step) - function(x - step)
    far = function(x + 2 * step) - function(x - 2 * step)
    return (8 * near - far) / (12 * step)


def gradient(function: Callable[[np.ndarray], float], point: np.ndarray, step: float = STEP):
    """Return the gradient of a scalar function of an array."""
    point = np.asarray(point, dtype=np.float64)
    result = np.empty_like(point)
    for index in np.ndindex(point.shape):

        def along(value, index=index):
            moved = point.copy()
            moved[index] = value
            return function(moved)

        result[index] = central_difference(along, point[index], step)
    return result


def away_from(points: np.ndarray, kinks: Iterable[float], distance: float = 10 * STEP):
    """Return the points no nearer than `distance` to any kink."""
    points = np.asarray(points, dtype=np.float64)
    keep = np.ones(points.shape, dtype=bool)
    for kink in kinks:
        keep &= np.abs(points - kink) >= distance
    return points[keep]


def assert_derivative(claimed, measured, scale: float | None = None) -> None:
    """Fail unless two derivatives agree to what fourth-order differences can resolve."""
    claimed, measured = np.asarray(claimed, np.float64), np.asarray(measured, np.float64)
    assert claimed.size > 0 and np.isfinite(measured).all()
    assert np.any(claimed != 0), "a derivative that is zero everywhere proves nothing"
    size = max(1.0, float(np.abs(measured).max())) if scale is None else scale
    error = float(np.abs(claimed - measured).max())
    assert error <= 100 * RELATIVE_ERROR * size, f"derivative off by {error:.3g} (size {size:.3g})"
