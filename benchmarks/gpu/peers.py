"""PyTorch and JAX on a GPU, each at its best settings and at the precision of the case.

float32 is without TF32; "tf32" allows it in products. In "bfloat16" parameters, gradients and the
update are float32 as ours are, and the products' operands are cast: PyTorch by autocast, JAX by the
same casts written out, both with activations in bfloat16.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.baselines import compiler_missing
from benchmarks.cases import LEARNING_RATE, Data, Weights
from benchmarks.gpu.cases import GpuCase
from benchmarks.gpu.provider import Provider
from benchmarks.gpu.steps import Skipped
from benchmarks.validation import flatten

WARM_STEPS = 3


def stacked(weights: list[Weights]) -> list[np.ndarray]:
    """Return W float32[members, in, out] and b float32[members, 1, out] of each layer in turn."""
    parts = []
    for layer in range(len(weights[0])):
        parts.append(np.stack([each[layer][0] for each in weights]))
        parts.append(np.stack([each[layer][1] for each in weights])[:, None, :])
    return parts


def layout(weights: list[Weights]) -> list[np.ndarray]:
    """Return W and b of each layer in turn: a member's own, or those of all members stacked."""
    parts = stacked(weights)
    if len(weights) > 1:
        return parts
    return [np.ascontiguousarray(p[0] if k % 2 == 0 else p[0, 0]) for k, p in enumerate(parts)]


def flattened(parts: list[np.ndarray], members: int) -> np.ndarray:
    """Return float64[members, P] of parameters in that layout."""
    if members == 1:
        return flatten(list(zip(parts[::2], parts[1::2], strict=True)))[None]
    pairs = list(zip(parts[::2], parts[1::2], strict=True))
    return np.stack([flatten([(W[k], b[k, 0]) for W, b in pairs]) for k in range(members)])


class Torch(Provider):
    """PyTorch eager: `addmm` a layer (`baddbmm` for members), the fused optimizer."""

    name = "PyTorch eager"

    def prepare(self, case: GpuCase, data: Data, weights: list[Weights]) -> Callable[[], None]:
        """Put parameters and mini-batches on the device."""
        self.torch = torch = load_torch(self.device)
        self.case = case
        torch.backends.cuda.matmul.allow_tf32 = case.precision == "tf32"
        self.initial = [torch.from_numpy(part).to(self.device) for part in layout(weights)]
        self.layers = [part.clone().requires_grad_() for part in self.initial]
        # Half the squared error at the full rate is the squared error at half of it. The mean goes
        # over members too, whose gradients it divides.
        rate = LEARNING_RATE / 2 * case.members
        self.optimizer = torch.optim.SGD(self.layers, lr=rate, fused=True)
        self.rate = rate
        X, y = (torch.from_numpy(array).to(self.device) for array in data)
        self.batches = list(zip(X.split(case.batch), y.split(case.batch), strict=True))
        return self.make_epoch()

    def rounding(self) -> Any:
        """Return the context in which products are rounded as the case says."""
        if self.case.precision != "bfloat16":
            return contextlib.nullcontext()
        return self.torch.autocast(self.device, dtype=self.torch.bfloat16)

    def loss(self, layers: Any, X: Any, y: Any) -> Any:
        """Return the mean squared error of a mini-batch."""
        torch = self.torch
        with self.rounding():
            several = layers[0].dim() == 3
            A = X.expand(layers[0].shape[0], *X.shape) if several else X
            product = torch.baddbmm if several else torch.addmm
            for k in range(0, len(layers), 2):
                A = product(layers[k + 1], A, layers[k])
                if k + 2 < len(layers):
                    A = torch.relu(A)
        return torch.nn.functional.mse_loss(A.float(), y.expand(A.shape))

    def train(self, batches: Any) -> None:
        """Take a step for each mini-batch."""
        for X, y in batches:
            self.optimizer.zero_grad(set_to_none=True)
            self.loss(self.layers, X, y).backward()
            self.optimizer.step()

    def wait(self) -> None:
        """Wait for the device."""
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def restore(self) -> None:
        """Go back to the initial parameters, in place: graphs hold the addresses."""
        with self.torch.no_grad():
            for part, initial in zip(self.layers, self.initial, strict=True):
                part.copy_(initial)

    def make_epoch(self) -> Callable[[], None]:
        """Return an epoch: every step, and a wait at its end."""

        def epoch() -> None:
            self.train(self.batches)
            self.wait()

        return epoch

    def captured(self) -> Callable[[], None]:
        """Return an epoch whose steps, updates and all, are one replayed CUDA graph."""
        cuda = self.torch.cuda
        if self.device != "cuda":
            raise Skipped(f"CUDA graphs do not run on {self.device!r}")
        side = cuda.Stream()
        side.wait_stream(cuda.current_stream())
        with cuda.stream(side):
            self.train(self.batches[:WARM_STEPS])
        cuda.current_stream().wait_stream(side)
        self.optimizer.zero_grad(set_to_none=True)
        graph = cuda.CUDAGraph()
        with cuda.graph(graph):
            self.train(self.batches)
        self.restore()
        cuda.synchronize()

        def epoch() -> None:
            graph.replay()
            cuda.synchronize()

        return epoch

    def parameters(self) -> np.ndarray:
        """Bring the parameters to the host."""
        parts = [part.detach().cpu().numpy() for part in self.layers]
        return flattened(parts, self.case.members)


class TorchGraph(Torch):
    """PyTorch with an epoch captured as one CUDA graph: no launch cost is left on the host."""

    name = "PyTorch graph"

    def make_epoch(self) -> Callable[[], None]:
        """Capture."""
        return self.captured()


class TorchCompiled(Torch):
    """A step compiled whole, gradients and update in the graph, and an epoch of them captured.

    Compiled by `torch.func.grad` as on the CPU; capturing by hand leaves it no launch cost, which
    ``reduce-overhead`` would not, since the step changes its own inputs. On a CPU, not captured.
    """

    name = "PyTorch compile"
    mode = "default"

    def make_epoch(self) -> Callable[[], None]:
        """Define the step; its first call compiles it."""
        reason = compiler_missing(self.device)
        if reason is not None:
            raise Skipped(reason)
        torch, rate, loss = self.torch, self.rate, self.loss
        self.layers = [part.detach() for part in self.layers]

        def step(layers: Any, X: Any, y: Any) -> None:
            for part, slope in zip(layers, torch.func.grad(loss)(layers, X, y), strict=True):
                part.sub_(slope, alpha=rate)

        self.step = torch.compile(step, fullgraph=True, dynamic=False, mode=self.mode)
        return self.captured() if self.device == "cuda" else super().make_epoch()

    def train(self, batches: Any) -> None:
        """Take a step for each mini-batch."""
        with self.torch.no_grad():
            for X, y in batches:
                self.step(self.layers, X, y)


class TorchMaxAutotune(TorchCompiled):
    """The same, with the products tuned by trial; takes up to a minute a case to compile."""

    name = "PyTorch max-autotune"
    mode = "max-autotune-no-cudagraphs"


class TorchReduceOverhead(Torch):
    """The loss compiled with the graphs of ``reduce-overhead``, the fused optimizer beside it."""

    name = "PyTorch reduce-overhead"

    def make_epoch(self) -> Callable[[], None]:
        """Compile the loss; the first steps capture it, and are undone."""
        reason = compiler_missing(self.device)
        if reason is not None:
            raise Skipped(reason)
        for part in self.layers:
            # Or their graphs would begin with a copy of every parameter.
            self.torch._dynamo.mark_static_address(part)
        self.compiled = self.torch.compile(
            self.loss, fullgraph=True, dynamic=False, mode="reduce-overhead"
        )
        self.train(self.batches[:WARM_STEPS])
        self.restore()
        return super().make_epoch()

    def train(self, batches: Any) -> None:
        """Take a step for each mini-batch."""
        for X, y in batches:
            self.optimizer.zero_grad(set_to_none=True)
            self.torch.compiler.cudagraph_mark_step_begin()
            self.compiled(self.layers, X, y).backward()
            self.optimizer.step()


class Jax(Provider):
    """JAX: one compiled call an epoch, a scan over the mini-batches, members by vmap."""

    name = "JAX"

    def prepare(self, case: GpuCase, data: Data, weights: list[Weights]) -> Callable[[], None]:
        """Define the epoch; the first call compiles it."""
        self.jax = jax = load_jax(self.device)
        kind = jax.numpy.bfloat16 if case.precision == "bfloat16" else jax.numpy.float32

        def loss(layers: Any, X: Any, y: Any) -> Any:
            A = X.astype(kind)
            for k in range(0, len(layers), 2):
                A = A @ layers[k].astype(kind) + layers[k + 1].astype(kind)
                A = jax.nn.relu(A) if k + 2 < len(layers) else A
            return 0.5 * ((A.astype(jax.numpy.float32) - y) ** 2).mean()

        gradients = jax.grad(loss)
        if case.members > 1:
            gradients = jax.vmap(gradients, in_axes=(0, None, None))

        def step(layers: Any, batch: Any) -> Any:
            gradient = gradients(layers, *batch)
            return jax.tree.map(lambda w, g: w - LEARNING_RATE * g, layers, gradient), None

        def epoch(layers: Any, batches: Any) -> Any:
            return jax.lax.scan(step, layers, batches)[0]

        compiled = jax.jit(epoch, donate_argnums=0)
        shapes = [(case.steps, case.batch, columns.shape[1]) for columns in data]
        batches = tuple(jax.device_put(a.reshape(s)) for a, s in zip(data, shapes, strict=True))
        # A copy: on the CPU device_put may share the caller's memory, which donating would reuse.
        self.layers, self.members = (
            [jax.numpy.array(part) for part in layout(weights)],
            case.members,
        )
        rounding = {"tf32": "tensorfloat32", "float32": "highest", "bfloat16": "default"}
        precision = rounding[case.precision]

        def run() -> None:
            with jax.default_matmul_precision(precision):
                self.layers = jax.block_until_ready(compiled(self.layers, batches))

        return run

    def parameters(self) -> np.ndarray:
        """Bring the parameters to the host."""
        return flattened([np.asarray(part) for part in self.layers], self.members)


def load_torch(device: str) -> Any:
    """Return PyTorch, or say why it cannot run on the device."""
    if importlib.util.find_spec("torch") is None:
        raise Skipped("PyTorch is not installed")
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise Skipped("PyTorch sees no GPU")
    return torch


def load_jax(device: str) -> Any:
    """Return JAX, or say why it cannot run on the device."""
    if importlib.util.find_spec("jax") is None:
        raise Skipped("JAX is not installed")
    # JAX would otherwise take most of the GPU's memory from the other processes.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("JAX_PLATFORMS", device)
    import jax

    try:
        jax.devices(device)
    except (RuntimeError, AssertionError) as error:
        # Without its CUDA plugin JAX trips over an assertion of its own.
        raise Skipped(f"jax.devices({device!r}) finds none") from error
    return jax
