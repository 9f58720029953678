"""JAX at its best settings and at the precision of the case: see `peers`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.baselines import Baseline
from benchmarks.cases import ADAM, LEARNING_RATE, Case, Data, Weights
from benchmarks.peers import flattened, layout


class Jax(Baseline):
    """JAX: one compiled call an epoch, a scan over the mini-batches, its weights donated.

    Members are trained by vmap.

    Attributes
    ----------
    unroll : int
        Steps of the scan that are one of the compiled loop.
    one_by_one : bool
        Whether members are trained one after another, each the whole epoch.
    """

    module = "jax"
    packages = ("jax", "jaxlib")
    suites = (*Baseline.suites, "shuffled", "ensembles")
    family = "JAX"
    unroll = 1
    one_by_one = False

    def load(self) -> None:
        """Import JAX; it takes as many threads as the process has processors."""
        # JAX would otherwise take most of the GPU's memory from the other providers.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        os.environ.setdefault("JAX_PLATFORMS", self.entry.device)
        import jax

        self.jax = jax

    def device_missing(self) -> str | None:
        """Ask JAX."""
        try:
            self.jax.devices("cuda")
        except (RuntimeError, AssertionError):
            # Without its CUDA plugin JAX trips over an assertion of its own.
            return "jax.devices('cuda') finds none"
        return None

    def prepare(self, case: Case, data: Data, weights: list[Weights]) -> Callable[[], None]:
        """Define the epoch; the first call compiles it."""
        jax = self.jax
        kind = "bfloat16" if case.precision == "bfloat16" else case.dtype

        def forward(layers: Any, X: Any) -> Any:
            A = X.astype(kind)
            for k in range(0, len(layers), 2):
                A = A @ layers[k].astype(kind) + layers[k + 1].astype(kind)
                A = jax.nn.relu(A) if k + 2 < len(layers) else A
            return A.astype(case.dtype)

        def loss(layers: Any, X: Any, y: Any) -> Any:
            return 0.5 * ((forward(layers, X) - y) ** 2).mean()

        compiled = jax.jit(self.epoch_of(case, jax.grad(loss)), donate_argnums=0)
        self.forward = jax.jit(forward)
        arrays = jax.device_put(self.arrays(case, data))
        # A copy: on the CPU device_put may share the caller's memory, which donating would reuse.
        self.layers = [jax.numpy.array(part) for part in layout(weights)]
        self.state = self.first_state(case)
        rounding = {"tf32": "tensorfloat32", "float32": "highest", "bfloat16": "default"}
        self.precision = rounding[case.precision]

        def run() -> None:
            with jax.default_matmul_precision(self.precision):
                carry = compiled((self.layers, self.state), *arrays)
                self.layers, self.state = jax.block_until_ready(carry)

        return run

    def arrays(self, case: Case, data: Data) -> tuple[Any, Any]:
        """Return what every step may index, and what the scan takes a part of for each step."""
        if case.shuffled:
            return tuple(data), case.order().reshape(case.steps, case.batch)
        shapes = [(case.steps, case.batch, columns.shape[1]) for columns in data]
        return (), tuple(a.reshape(shape) for a, shape in zip(data, shapes, strict=True))

    def epoch_of(self, case: Case, gradients: Any) -> Callable[..., Any]:
        """Return an epoch, not yet compiled, of the parameters and what the optimizer keeps."""
        jax, several = self.jax, case.members > 1
        if several and not self.one_by_one:
            gradients = jax.vmap(gradients, in_axes=(0, None, None))

        def epoch(carry: Any, whole: Any, batches: Any) -> Any:
            def step(carry: Any, batch: Any) -> Any:
                layers, state = carry
                X, y = (columns[batch] for columns in whole) if whole else batch
                return self.update(layers, state, gradients(layers, X, y)), None

            return jax.lax.scan(step, carry, batches, unroll=self.unroll)[0]

        def each_epoch(carry: Any, whole: Any, batches: Any) -> Any:
            return jax.lax.map(lambda member: epoch(member, whole, batches), carry)

        return each_epoch if several and self.one_by_one else epoch

    def first_state(self, case: Case) -> tuple[Any, ...]:
        """Return what Adam keeps, the number of steps and two moments of each parameter."""
        if case.optimizer == "sgd":
            return ()
        zeros = self.jax.numpy.zeros
        moments = [[zeros(part.shape, part.dtype) for part in self.layers] for _ in range(2)]
        return (zeros((), "int32"), *moments)

    def update(self, layers: Any, state: Any, gradient: Any) -> tuple[Any, Any]:
        """Return the parameters and the state after a step; Adam's as optax writes it."""
        jax = self.jax
        if not state:
            return jax.tree.map(lambda w, g: w - LEARNING_RATE * g, layers, gradient), state
        beta1, beta2 = ADAM["beta1"], ADAM["beta2"]
        count, means, squares = state
        count = count + 1
        means = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, means, gradient)
        squares = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, squares, gradient)
        first, second = 1 - beta1**count, 1 - beta2**count

        def changed(w: Any, m: Any, v: Any) -> Any:
            size = jax.numpy.sqrt(v / second) + ADAM["epsilon"]
            return w - ADAM["learning_rate"] * (m / first) / size

        return jax.tree.map(changed, layers, means, squares), (count, means, squares)

    def parameters(self) -> np.ndarray:
        """Bring the parameters to the host."""
        return flattened([np.asarray(part) for part in self.layers])

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Call the compiled forward pass."""
        with self.jax.default_matmul_precision(self.precision):
            return np.asarray(self.forward(self.layers, rows))


class JaxUnroll(Jax):
    """The same with eight steps of the scan in one of its loop."""

    suites = ("training",)
    devices = ("cpu",)
    unroll = 8


class JaxMap(Jax):
    """Members one after another by `lax.map`, each the whole epoch: they may fit into a cache."""

    suites = ("ensembles",)
    devices = ("cpu",)
    one_by_one = True
