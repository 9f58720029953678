"""The study that shows why ReLU: it runs, and its own checks can fail."""

import dataclasses

import numpy as np
import pytest

from benchmarks import vanishing_gradient
from fastmlp import ACTIVATIONS


def test_the_sigmoids_gradient_vanishes_with_depth_and_relus_does_not():
    shares = {}
    for activation in ("sigmoid", "relu"):
        norms = vanishing_gradient.gradient_norms(activation, depth=8, seeds=2)
        shares[activation] = norms[0] / norms[-1]
    assert shares["sigmoid"] < 1e-3 < 1e-1 < shares["relu"]


def test_every_activation_is_timed_in_both_directions():
    times = vanishing_gradient.activation_times(rounds=2)
    assert {(row["activation"], row["direction"]) for row in times} == {
        (name, direction) for name in ACTIVATIONS.names for direction in ("forward", "backward")
    }
    assert all(0 < row["p25"] <= row["median"] <= row["p75"] for row in times)


@pytest.mark.parametrize("what", ["value", "slope"])
def test_a_wrong_loop_is_seen_before_it_is_timed(what):
    row = ACTIVATIONS["silu"]
    other = dataclasses.replace(row, **{what: getattr(ACTIVATIONS["softplus"], what)})
    Z = np.random.default_rng(0).standard_normal((1000, 1)).astype(np.float32)
    A, dA = Z.copy(), np.ones_like(Z)
    vanishing_gradient.loops("silu")[0](*vanishing_gradient.over(Z, A))
    vanishing_gradient.check_loops(row, Z, A, dA)
    with pytest.raises(AssertionError, match=f"silu: {what}"):
        vanishing_gradient.check_loops(other, Z, A, dA)
