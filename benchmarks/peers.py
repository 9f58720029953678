"""PyTorch and JAX, each at its best settings and at the precision of the case.

float32 is without TF32; "tf32" allows it in products. In "bfloat16" parameters, gradients and the
update are float32 as ours are, and the products' operands are cast: PyTorch by autocast, JAX by the
same casts written out, both with activations in bfloat16.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.baselines import Baseline
from benchmarks.cases import LEARNING_RATE, Case, Data, Weights
from benchmarks.validation import flatten

WARM_STEPS = 3


def layout(members: list[Weights]) -> list[np.ndarray]:
    """Return W and b of each layer in turn: a member's own, or those of all members stacked.

    Stacked, W is (members, in, out) and b is (members, 1, out).
    """
    if len(members) == 1:
        return [part for layer in members[0] for part in layer]
    pairs = [[*zip(*layer, strict=True)] for layer in zip(*members, strict=True)]
    return [part for Ws, bs in pairs for part in (np.stack(Ws), np.stack(bs)[:, None])]


def flattened(parts: list[np.ndarray]) -> np.ndarray:
    """Return float64[members, P] of parameters in that layout."""
    several = [part if parts[0].ndim == 3 else part[None] for part in parts]
    pairs = list(zip(several[::2], several[1::2], strict=True))
    return flatten([[(W[k], b[k]) for W, b in pairs] for k in range(len(several[0]))])


class Torch(Baseline):
    """PyTorch eager: `addmm` a layer (`baddbmm` for members), its fused or its foreach optimizer.

    Weights lie as `torch.nn.Linear` keeps them, transposed.
    """

    module = "torch"
    packages = ("torch",)
    family = "PyTorch"

    def load(self) -> None:
        """Import PyTorch and give it its threads."""
        import torch

        torch.set_num_threads(self.entry.threads)
        self.torch = torch

    def device_missing(self) -> str | None:
        """Ask PyTorch."""
        return None if self.torch.cuda.is_available() else "torch.cuda.is_available() is False"

    def prepare(self, case: Case, data: Data, weights: list[Weights]) -> Callable[[], None]:
        """Put parameters and mini-batches on the device."""
        torch, device, self.case = self.torch, self.entry.device, case
        torch.set_float32_matmul_precision("high" if case.precision == "tf32" else "highest")
        parts = [torch.from_numpy(part).to(device) for part in layout(weights)]
        self.initial = [
            part.mT.contiguous() if k % 2 == 0 else part for k, part in enumerate(parts)
        ]
        self.layers = [part.clone().requires_grad_() for part in self.initial]
        # Half the squared error at the full rate is the squared error at half of it, with one
        # multiplication fewer in each direction. The mean goes over members too, whose gradients
        # it divides.
        self.rate = LEARNING_RATE / 2 * case.members
        self.optimizer = torch.optim.SGD(
            self.layers, lr=self.rate, fused=device == "cuda", foreach=device == "cpu"
        )
        X, y = (torch.from_numpy(array).to(device) for array in data)
        self.batches = list(zip(X.split(case.batch), y.split(case.batch), strict=True))
        return self.make_epoch()

    def make_epoch(self) -> Callable[[], None]:
        """Return an epoch: every step, and a wait at its end."""

        def epoch() -> None:
            self.train(self.batches)
            if self.entry.device == "cuda":
                self.torch.cuda.synchronize()

        return epoch

    def rounding(self) -> Any:
        """Return the context in which products are rounded as the case says."""
        if self.case.precision != "bfloat16":
            return contextlib.nullcontext()
        return self.torch.autocast(self.entry.device, dtype=self.torch.bfloat16)

    def forward(self, layers: Any, X: Any) -> Any:
        """Return the outputs of a mini-batch."""
        torch = self.torch
        several = layers[0].dim() == 3
        A = X.expand(layers[0].shape[0], *X.shape) if several else X
        product = torch.baddbmm if several else torch.addmm
        for k in range(0, len(layers), 2):
            A = product(layers[k + 1], A, layers[k].mT)
            if k + 2 < len(layers):
                A = torch.relu(A)
        return A

    def loss(self, layers: Any, X: Any, y: Any) -> Any:
        """Return the mean squared error of a mini-batch."""
        with self.rounding():
            A = self.forward(layers, X)
        return self.torch.nn.functional.mse_loss(A.float(), y.expand(A.shape))

    def train(self, batches: Any) -> None:
        """Take a step for each mini-batch."""
        for X, y in batches:
            self.optimizer.zero_grad(set_to_none=True)
            self.loss(self.layers, X, y).backward()
            self.optimizer.step()

    def restore(self) -> None:
        """Go back to the initial parameters, in place: graphs hold the addresses."""
        with self.torch.no_grad():
            for part, initial in zip(self.layers, self.initial, strict=True):
                part.copy_(initial)

    def captured(self) -> Callable[[], None]:
        """Return an epoch whose steps, updates and all, are one replayed CUDA graph."""
        cuda = self.torch.cuda
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
        parts = [part.detach().cpu() for part in self.layers]
        return flattened([(p.mT if k % 2 == 0 else p).numpy() for k, p in enumerate(parts)])

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Run the network without gradients."""
        with self.torch.inference_mode():
            X = self.torch.from_numpy(rows).to(self.entry.device)
            return self.forward(self.layers, X).cpu().numpy()


class TorchGraph(Torch):
    """PyTorch with an epoch captured as one CUDA graph: no launch cost is left on the host."""

    suites = ("training", "overhead")
    devices = ("cuda",)

    def make_epoch(self) -> Callable[[], None]:
        """Capture."""
        return self.captured()


class TorchCompiled(Torch):
    """A step compiled whole, gradients and update in the graph; on a GPU an epoch is captured.

    Gradients come from `torch.func.grad`. On a 2-core AVX-512 machine with PyTorch 2.13 this took
    0.3 to 1.0 of the time of a compiled forward and backward pass with an SGD of its own, on five
    networks from 16-64-1 to 784-2048-2048-10; ``max-autotune`` was no faster. On a GPU, capturing
    by hand leaves no launch cost, which ``reduce-overhead`` would not, since the step changes its
    own inputs.
    """

    family = "PyTorch compile"
    mode = "default"

    def available(self) -> str | None:
        """Return why nothing can be compiled here, or None."""
        return super().available() or compiler_missing(self.entry.device)

    def load(self) -> None:
        """Import PyTorch; on the CPU it shall compile in this process and start no others."""
        if self.entry.device == "cpu":
            os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
        super().load()

    def load_what_follows(self) -> None:
        """Import the compiler."""
        import torch._inductor.compile_fx  # noqa: F401

    def make_epoch(self) -> Callable[[], None]:
        """Define the step; its first call compiles it."""
        torch, rate, loss = self.torch, self.rate, self.loss
        self.layers = [part.detach() for part in self.layers]

        def step(layers: Any, X: Any, y: Any) -> None:
            for part, slope in zip(layers, torch.func.grad(loss)(layers, X, y), strict=True):
                part.sub_(slope, alpha=rate)

        self.step = torch.compile(step, fullgraph=True, dynamic=False, mode=self.mode)
        # For predictions: `forward` of the class is traced.
        self.compiled = torch.compile(self.forward, fullgraph=True, dynamic=False)
        return self.captured() if self.entry.device == "cuda" else super().make_epoch()

    def train(self, batches: Any) -> None:
        """Take a step for each mini-batch."""
        with self.torch.no_grad():
            for X, y in batches:
                self.step(self.layers, X, y)

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Call the compiled forward pass; the first call compiles it."""
        with self.torch.inference_mode():
            X = self.torch.from_numpy(rows).to(self.entry.device)
            return self.compiled(self.layers, X).cpu().numpy()


class TorchMaxAutotune(TorchCompiled):
    """The same, with the products tuned by trial; takes up to a minute a case to compile."""

    suites = ("training",)
    devices = ("cuda",)
    # Its compiler may take longer than there is time: it must not take the others along.
    family = "PyTorch max-autotune"
    mode = "max-autotune-no-cudagraphs"


class TorchReduceOverhead(Torch):
    """The loss compiled with the graphs of ``reduce-overhead``, the fused optimizer beside it."""

    suites = ("training",)
    devices = ("cuda",)
    family = "PyTorch compile"

    def available(self) -> str | None:
        """Return why nothing can be compiled here, or None."""
        return super().available() or compiler_missing(self.entry.device)

    def make_epoch(self) -> Callable[[], None]:
        """Compile the loss; the first steps capture it, and are undone."""
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


def compiler_missing(device: str) -> str | None:
    """Return what `torch.compile` has to compile with and does not find, or None."""
    if device == "cuda":
        here = importlib.util.find_spec("triton") is not None
        return None if here else "torch.compile needs triton for a GPU, and it is not installed"
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "cl"]
    if not any(map(shutil.which, names)):
        return f"torch.compile needs a C++ compiler, and found no {' or '.join(names)}"
    return None


class Jax(Baseline):
    """JAX: one compiled call an epoch, a scan over the mini-batches, its weights donated.

    Members are trained by vmap.
    """

    module = "jax"
    packages = ("jax", "jaxlib")
    family = "JAX"

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

        gradients = jax.grad(loss)
        if case.members > 1:
            gradients = jax.vmap(gradients, in_axes=(0, None, None))

        def step(layers: Any, batch: Any) -> Any:
            gradient = gradients(layers, *batch)
            return jax.tree.map(lambda w, g: w - LEARNING_RATE * g, layers, gradient), None

        def epoch(layers: Any, batches: Any) -> Any:
            return jax.lax.scan(step, layers, batches)[0]

        compiled = jax.jit(epoch, donate_argnums=0)
        self.forward = jax.jit(forward)
        shapes = [(case.steps, case.batch, columns.shape[1]) for columns in data]
        batches = tuple(jax.device_put(a.reshape(s)) for a, s in zip(data, shapes, strict=True))
        # A copy: on the CPU device_put may share the caller's memory, which donating would reuse.
        self.layers = [jax.numpy.array(part) for part in layout(weights)]
        rounding = {"tf32": "tensorfloat32", "float32": "highest", "bfloat16": "default"}
        self.precision = rounding[case.precision]

        def run() -> None:
            with jax.default_matmul_precision(self.precision):
                self.layers = jax.block_until_ready(compiled(self.layers, batches))

        return run

    def parameters(self) -> np.ndarray:
        """Bring the parameters to the host."""
        return flattened([np.asarray(part) for part in self.layers])

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Call the compiled forward pass."""
        with self.jax.default_matmul_precision(self.precision):
            return np.asarray(self.forward(self.layers, rows))
