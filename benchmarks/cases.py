"""The networks that are measured, their data and their initial weights: the same for everybody.

Every case is trained on half the squared error, averaged over all elements, with the identity at
the output. A case that is no variant has plain gradient descent, hidden ReLUs and float32. Some are
for a GPU alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

LEARNING_RATE = 0.1
ADAM = {
    "learning_rate": 1e-3,
    "beta1": 0.9,
    "beta2": 0.999,
    "epsilon": 1e-8,
    "weight_decay": 0.0,
}
SEED = 20

LARGE = 2e10
"""Operations of an epoch from which a case has half as many passes: each of them takes long."""


class Data(NamedTuple):
    """The rows that there are; `Case.order` says which of them an epoch takes, and when."""

    X: np.ndarray
    y: np.ndarray


Weights = list[tuple[np.ndarray, np.ndarray]]
"""W (in, out) and b (out,) of each layer, of the case's dtype."""


@dataclass(frozen=True)
class Case:
    """A network and a batch size.

    Parameters
    ----------
    name : str
        The sizes, joined: what ``--cases`` takes.
    sizes : tuple of int
        Units per layer, input first.
    batch : int
        Rows of a mini-batch.
    steps : int
        Mini-batches of an epoch. A timing covers as many epochs as take tens of milliseconds.
    reason : str
        Why it is measured.
    target : float
        How many times as long as fastmlp the best peer should take on the CPU, at least.
    group : {"named", "own"}
        "named" are the shapes that fastmlp is tuned on, "own" those that it is not.
    activation, optimizer, dtype, precision : str
        Of a variant, what is not ReLU, plain gradient descent or float32. The precision is what
        products may round their factors to, one of `fastmlp_kernels.problem.PRECISIONS`.
    members : int
        Networks that are trained side by side on the same rows in the same order, each from
        initial weights of its own.
    devices : tuple of str
        Where it is measured.
    shuffled : int
        Rows that there are, of which an epoch takes `rows` in a random order, the same for all
        providers. 0: the rows of an epoch are all, one after another.
    """

    name: str
    sizes: tuple[int, ...]
    batch: int
    steps: int
    reason: str
    target: float
    group: str = "named"
    activation: str = "relu"
    optimizer: str = "sgd"
    dtype: str = "float32"
    precision: str = "float32"
    members: int = 1
    devices: tuple[str, ...] = ("cpu", "cuda")
    shuffled: int = 0

    @property
    def title(self) -> str:
        """The name, and what makes it a variant."""
        ways = (self.activation, self.optimizer, self.dtype, self.precision)
        plain = ("relu", "sgd", "float32", "float32")
        others = [way for way, usual in zip(ways, plain, strict=True) if way != usual]
        others += [f"of {self.shuffled:,} rows"] if self.shuffled else []
        return " ".join([self.name, *others])

    @property
    def rows(self) -> int:
        """Rows of an epoch."""
        return self.batch * self.steps

    @property
    def flops_per_step(self) -> float:
        """Operations of a step's matrix products, of all members (a multiply-add is two)."""
        products = [fan_in * fan_out for fan_in, fan_out in pairwise(self.sizes)]
        # Forward and weight gradient of every layer, backward-data of all but the first.
        return 2.0 * self.members * self.batch * (2 * sum(products) + sum(products[1:]))

    def passes(self, passes: int) -> int:
        """Return how often each provider has its turn when ordinary cases have `passes`."""
        large = self.flops_per_step * self.steps > LARGE
        return -(-passes // 2) if large else passes

    def with_steps(self, steps: int) -> Case:
        """Return the same case with another length of an epoch."""
        return replace(self, steps=steps)

    def data(self) -> Data:
        """Return all rows: noise, since what is learnt does not change the work."""
        return rows_of(self.sizes, self.shuffled or self.rows, self.dtype)

    def order(self) -> np.ndarray:
        """Return int64[rows], the rows of an epoch in the order in which they are trained on."""
        if not self.shuffled:
            return np.arange(self.rows)
        return np.random.default_rng(SEED + 2).permutation(self.shuffled)[: self.rows]

    def initial_weights(self) -> list[Weights]:
        """Return each member's: He's initial weights, and biases that matter, as they are not zero.

        The first member's do not depend on their number.
        """
        weights = first_weights(self.sizes)
        scales = np.linspace(1.0, 0.5, self.members)
        return [
            [((W * scale).astype(self.dtype), (b * scale).astype(self.dtype)) for W, b in weights]
            for scale in scales.astype(np.float32)
        ]


# Precisions of a case follow one another, and share their rows.
@lru_cache(maxsize=1)
def rows_of(sizes: tuple[int, ...], rows: int, dtype: str) -> Data:
    """Return rows of noise, which nobody writes to."""
    generator = np.random.default_rng(SEED)
    X = generator.standard_normal((rows, sizes[0]), dtype=np.float32)
    y = generator.standard_normal((rows, sizes[-1]), dtype=np.float32)
    return Data(X.astype(dtype, copy=False), y.astype(dtype, copy=False))


def first_weights(sizes: tuple[int, ...]) -> Weights:
    """Return the initial weights of the first member."""
    generator = np.random.default_rng(SEED + 1)
    weights = []
    for fan_in, fan_out in pairwise(sizes):
        W = generator.standard_normal((fan_in, fan_out), dtype=np.float32)
        b = generator.standard_normal(fan_out, dtype=np.float32)
        weights.append((W * np.float32(np.sqrt(2 / fan_in)), b * np.float32(0.1)))
    return weights


def own(sizes: tuple[int, ...], batch: int, steps: int, reason: str, target: float = 2.0) -> Case:
    """Return a case of a shape that nothing is tuned for."""
    return Case("-".join(map(str, sizes)), sizes, batch, steps, reason, target, "own")


CASES = (
    Case("2-20-5", (2, 20, 5), 10, 500, "a toy: nothing but overhead, under a vector's width", 10),
    Case("16-64-1", (16, 64, 1), 32, 400, "a tabular model or a critic: one output", 2.5),
    Case("64-64-10", (64, 64, 10), 64, 200, "a small classifier: all of it in the first cache", 2),
    Case("64-256-256-8", (64, 256, 256, 8), 256, 40, "a policy: two equal hidden layers", 2),
    Case("784-128-10", (784, 128, 10), 128, 80, "digits: the first layer has most of the work", 2),
    Case("256-512-512-16", (256, 512, 512, 16), 512, 12, "a surrogate: beyond a cache", 1.3),
    Case("784-2048-2048-10", (784, 2048, 2048, 10), 1024, 3, "large: matrix products only", 1.1),
    own((37, 101, 53, 7), 61, 100, "odd widths and an odd batch: a border in every tile"),
    own((48, *[96] * 7, 12), 128, 40, "eight layers deep"),
    own((48, *[48] * 7, 12), 96, 60, "eight layers deep, and narrow"),
    own((32, 64, 4), 1, 1000, "batch 1: online learning", 4),
    own((24, 32, 32, 4), 1, 1000, "batch 1, two hidden layers", 4),
    own((3000, 64, 1), 200, 16, "a wide input and one output"),
    own((6000, 64, 10), 64, 16, "a very wide input"),
    own((24, 128, 128, 1), 64, 200, "one output behind two hidden layers"),
)
QUICK_CASES = tuple(case.name for case in CASES[:3])


def _on_gpu(name: str, sizes: tuple[int, ...], batch: int, steps: int, reason: str) -> Case:
    return Case(name, sizes, batch, steps, reason, 1.0, devices=("cuda",))


def _ensemble(
    sizes: tuple[int, ...], batch: int, steps: int, members: int, device: str = "cuda"
) -> Case:
    reason = "an ensemble: a network for each multiprocessor of an H100"
    reason = reason if device == "cuda" else "an ensemble: many small networks on the same rows"
    name = f"{members} x {'-'.join(map(str, sizes))}"
    return Case(name, sizes, batch, steps, reason, 1.0, members=members, devices=(device,))


GPU_CASES = (
    *CASES[:7],
    _on_gpu("64x4", (64, *[64] * 4, 16), 16384, 16, "a surrogate: narrow, a large batch"),
    _on_gpu("64x4-large", (64, *[64] * 4, 16), 262144, 2, "the same, a batch that fills any GPU"),
    _on_gpu("128x4", (128, *[128] * 4, 16), 65536, 4, "twice as wide"),
    _on_gpu("1024x3", (1024, *[1024] * 3, 10), 8192, 4, "wide: a matter of matrix products"),
    _ensemble((16, 64, 1), 32, 100, 132),
    _ensemble((64, 64, 10), 64, 50, 132),
)
QUICK_GPU_CASES = ("2-20-5", "64x4")
EVERY_CASE = (*CASES, *GPU_CASES[7:])
ENSEMBLES = (
    _ensemble((16, 64, 1), 32, 100, 132, "cpu"),
    _ensemble((8, 32, 1), 32, 50, 1000, "cpu"),
)
NAMES = tuple(dict.fromkeys(case.name for case in (*EVERY_CASE, *ENSEMBLES)))
"""What may be named: a suite measures those of them that it has."""


def find(name: str) -> Case:
    """Return the case of that name."""
    for case in (*EVERY_CASE, *ENSEMBLES):
        if case.name == name:
            return case
    known = ", ".join(NAMES)
    raise ValueError(f"case: got {name!r}, wanted one of {known}")


def _shuffled(name: str, rows: int) -> Case:
    plain = find(name)
    # An incomplete last mini-batch is left out: a compiled step has one shape.
    found = replace(plain, steps=rows // plain.batch, shuffled=rows, optimizer="adam")
    return replace(found, reason=f"{plain.reason}; rows in a random order", devices=("cpu",))


SHUFFLED = (
    _shuffled("784-128-10", 60_000),
    _shuffled("64-256-256-8", 60_000),
    _shuffled("256-512-512-16", 200_000),
)
APART = {"shuffled": SHUFFLED, "ensembles": ENSEMBLES}
"""Cases that have a suite of their own."""


@dataclass(frozen=True)
class Variants:
    """A case, and what is measured beside it in the same turns.

    Parameters
    ----------
    kind : str
        What differs: a field of `Case`.
    plain : Case
    others : tuple of Case
    goal : float
        How many times as long as `plain` each of them may take; 0 if nothing was promised.
    """

    kind: str
    plain: Case
    others: tuple[Case, ...]
    goal: float = 0.0

    @property
    def cases(self) -> tuple[Case, ...]:
        """All of them, the plain one first."""
        return (self.plain, *self.others)


def _variants(kind: str, name: str, values: tuple[str, ...], goal: float = 0.0) -> Variants:
    plain = find(name)
    return Variants(kind, plain, tuple(replace(plain, **{kind: v}) for v in values), goal)


VARIANTS = (
    *(
        _variants("optimizer", name, ("adam",), 1.15)
        for name in ("64-256-256-8", "256-512-512-16", "784-2048-2048-10")
    ),
    *(
        _variants("activation", name, ("sigmoid", "tanh", "gelu"))
        for name in ("64-64-10", "64-256-256-8")
    ),
    *(_variants("dtype", name, ("float64",)) for name in ("64-256-256-8", "784-128-10")),
)
KINDS = tuple(dict.fromkeys(row.kind for row in VARIANTS))
