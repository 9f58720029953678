"""The networks of the comparison on a GPU: the seven named ones, and what GPUs are bought for.

As in `benchmarks.cases`, every case is trained on half the squared error, averaged over all
elements, by plain gradient descent, with ReLU in the hidden layers and the identity at the output.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from benchmarks.cases import CASES as NAMED
from benchmarks.cases import LEARNING_RATE, Case, Data, Weights
from benchmarks.validation import Disagreement, flatten

# Of how far the epoch moved a layer's parameters. float32 is as on the CPU. With products in
# bfloat16 PyTorch and JAX have lost 0.007 to 0.08 on these networks (on a CPU, the large ones with
# batches of 1,024; 2026-11-24), and tf32 has three bits more. A wrong factor, rate or bias is off
# by half or more.
TOLERANCES = {"float32": 1e-2, "tf32": 2.5e-2, "bfloat16": 2e-1}


@dataclass(frozen=True)
class GpuCase(Case):
    """A case, what its products may round their factors to, and how many networks are trained.

    Parameters
    ----------
    precision : str
        One of `fastmlp_kernels.problem.PRECISIONS`.
    members : int
        Networks that are trained side by side on the same rows in the same order, each from
        initial weights of its own.
    """

    precision: str = "float32"
    members: int = 1

    @property
    def title(self) -> str:
        """The name, the batch size and the precision."""
        return f"{self.name}, {self.batch}, {self.precision}"

    @property
    def flops_per_step(self) -> float:
        """Floating-point operations of a step's matrix products, of all members."""
        products = [fan_in * fan_out for fan_in, fan_out in pairwise(self.sizes)]
        return 2.0 * self.members * self.batch * (2 * sum(products) + sum(products[1:]))

    def member_weights(self) -> list[Weights]:
        """Return the initial weights of each member; the first has those of the plain case."""
        scales = np.linspace(1.0, 0.5, self.members)
        weights = self.initial_weights()
        return [
            [((W * scale).astype(W.dtype), (b * scale).astype(b.dtype)) for W, b in weights]
            for scale in scales
        ]


def _named(case: Case) -> GpuCase:
    return GpuCase(case.name, case.sizes, case.batch, case.steps, case.reason, 1.0)


def _case(name: str, sizes: tuple[int, ...], batch: int, steps: int, reason: str) -> GpuCase:
    return GpuCase(name, sizes, batch, steps, reason, 1.0)


def _ensemble(sizes: tuple[int, ...], batch: int, steps: int, members: int) -> GpuCase:
    name = f"{members} x {'-'.join(map(str, sizes))}"
    reason = "an ensemble: a network for each multiprocessor of an H100"
    return GpuCase(name, sizes, batch, steps, reason, 1.0, members=members)


CASES = (
    *(_named(case) for case in NAMED[:7]),
    _case("64x4", (64, *[64] * 4, 16), 16384, 16, "a field or a surrogate: narrow, a large batch"),
    _case("64x4-large", (64, *[64] * 4, 16), 262144, 2, "the same, and a batch that fills any GPU"),
    _case("128x4", (128, *[128] * 4, 16), 65536, 4, "twice as wide"),
    _case("1024x3", (1024, *[1024] * 3, 10), 8192, 4, "wide: a matter of matrix products"),
    _ensemble((16, 64, 1), 32, 100, 132),
    _ensemble((64, 64, 10), 64, 50, 132),
)
QUICK = ("2-20-5", "64x4")


def choose(names: list[str] | None, quick: bool) -> list[GpuCase]:
    """Return the cases that a run measures; a quick one takes a few, and short epochs."""
    wanted = names or (QUICK if quick else [case.name for case in CASES])
    chosen = [case for case in CASES if case.name in wanted]
    return [replace(case, steps=min(case.steps, 3)) for case in chosen] if quick else chosen


def expected(case: GpuCase, data: Data, weights: list[Weights]) -> np.ndarray:
    """Return float64[members, P]: the parameters after one epoch; shares no code with providers."""
    layers = [
        (np.stack([each[k][0] for each in weights]), np.stack([each[k][1] for each in weights]))
        for k in range(len(weights[0]))
    ]
    layers = [(W.astype(np.float64), b.astype(np.float64)[:, None, :]) for W, b in layers]
    for start in range(0, len(data.X), case.batch):
        inputs = [data.X[None, start : start + case.batch].astype(np.float64)]
        sums = []
        for W, b in layers:
            sums.append(inputs[-1] @ W + b)
            inputs.append(np.maximum(sums[-1], 0))
        delta = sums[-1] - data.y[start : start + case.batch]
        delta /= delta[0].size
        for index in reversed(range(len(layers))):
            W, b = layers[index]
            slope = np.swapaxes(inputs[index], 1, 2) @ delta
            below = (delta @ np.swapaxes(W, 1, 2)) * (sums[index - 1] > 0) if index else delta
            bias = b - LEARNING_RATE * delta.sum(axis=1, keepdims=True)
            layers[index] = (W - LEARNING_RATE * slope, bias)
            delta = below
    rows = [[(W[k], b[k, 0]) for W, b in layers] for k in range(case.members)]
    return np.stack([flatten(row) for row in rows])


def validate(case: GpuCase, weights: list[Weights], wanted: np.ndarray, got: np.ndarray) -> float:
    """Return the largest relative error of a member's layers; refuse a provider that is wrong."""
    if got.shape != wanted.shape:
        raise Disagreement(f"parameters: got shape {got.shape}, wanted {wanted.shape}")
    worst, start = 0.0, 0
    initial = np.stack([flatten(each) for each in weights])
    for layer, parts in enumerate(weights[0]):
        for name, part in zip(("weights", "biases"), parts, strict=True):
            here = slice(start, start + part.size)
            start = here.stop
            moved = np.linalg.norm(wanted[:, here] - initial[:, here], axis=1)
            # Of many members one may have come back to where a single bias began.
            moved = np.maximum(moved, moved.mean() / 2)
            errors = np.linalg.norm(got[:, here] - wanted[:, here], axis=1) / moved
            # Written so that NaN is refused too.
            if not (errors <= TOLERANCES[case.precision]).all():
                raise Disagreement(
                    f"{name} of layer {layer + 1} of member {int(np.argmax(errors))} after one "
                    f"epoch: their error is {errors.max():.2g} of how far they should have moved; "
                    f"at most {TOLERANCES[case.precision]:g} is accepted in {case.precision}"
                )
            worst = max(worst, float(errors.max()))
    return worst
