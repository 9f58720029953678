"""The peers, each at its best settings, behind the interface that fastmlp is measured by too.

Nothing is imported before `load`: each provider runs in a process of its own (see `workers`), with
as many processors as it is given threads. All of them train on the same contiguous float32 rows in
the same order; float32 means float32, without TF32. fastmlp is handed the rows' order and gathers
each mini-batch, as it does when it shuffles; its peers get slices, which cost them nothing.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.cases import LEARNING_RATE, Case, Data, Weights
from benchmarks.validation import flatten, validate


@dataclass(frozen=True)
class Entry:
    """One way to run a case: a provider with its settings; `chosen` if users get just that.

    With several `jobs`, a search's processes, the threads are those of each.
    """

    provider: str
    device: str = "cpu"
    threads: int = 1
    kernel: str = ""
    chosen: bool = True
    jobs: int = 1

    @property
    def processors(self) -> int:
        """How many processors it may use."""
        return self.threads * self.jobs

    @property
    def label(self) -> str:
        """A name for test ids and messages."""
        name = f"{self.provider}.{self.kernel or self.device}"
        jobs = f"x{self.jobs}" if self.jobs > 1 else ""
        return f"{name}-{self.threads}{jobs}".replace(" ", "_")


class Baseline:
    """A provider: prepare it on a case, then call what `prepare` returned once an epoch.

    Attributes
    ----------
    module : str
        What `load` imports.
    packages : tuple of str
        Distributions whose versions go on record, that of the provider first.
    role : {"ours", "peer", "also", "peak"}
        "also" is shown in the report, and compared with nothing; "peak" is the machine's bound.
    devices : tuple of str
        Where it can run.
    suites : tuple of str
        Where it is measured.
    """

    module = ""
    packages: tuple[str, ...] = ()
    role = "peer"
    devices: tuple[str, ...] = ("cpu", "cuda")
    suites: tuple[str, ...] = ("training", "prediction", "overhead")

    def __init__(self, entry: Entry) -> None:
        self.entry = entry

    def available(self) -> str | None:
        """Return why it cannot run here, or None."""
        if importlib.util.find_spec(self.module.partition(".")[0]) is None:
            return f"{self.packages[0]} is not installed"
        self.load()
        return self.device_missing() if self.entry.device == "cuda" else None

    def load(self) -> None:
        """Import the library."""
        raise NotImplementedError

    def load_what_follows(self) -> None:
        """Import what the library itself imports only once it computes."""

    def device_missing(self) -> str | None:
        """Return why the GPU cannot be used, or None."""
        return "it has no CUDA support"

    def prepare(self, case: Case, data: Data, weights: Weights) -> Callable[[], None]:
        """Bring data and weights where they are used; return what runs one epoch to its end."""
        raise NotImplementedError

    def parameters(self) -> np.ndarray:
        """Return the parameters as `validation.flatten` orders them."""
        raise NotImplementedError

    def work(self, case: Case) -> tuple[float, int]:
        """Return the operations of a unit of work, and the units of what `prepare` returned."""
        return case.flops_per_step, case.steps

    def check(self, weights: Weights, expected: np.ndarray) -> float:
        """Return the error after the first epoch; raise `Disagreement` if it is too large."""
        return validate(weights, expected, self.parameters())

    def end(self) -> None:
        """End what it has started besides its process."""

    def notes(self) -> dict[str, Any]:
        """Return what else goes on record about a validated case."""
        return {}

    def predict(self, rows: np.ndarray) -> Any:
        """Return the network's output for float32[rows, in] as an array on the host."""
        raise NotImplementedError


class Torch(Baseline):
    """PyTorch eager: a Sequential, the mini-batches split beforehand, SGD with foreach."""

    module = "torch"
    packages = ("torch",)

    def load(self) -> None:
        """Import PyTorch and give it its threads."""
        import torch

        torch.set_num_threads(self.entry.threads)
        torch.set_float32_matmul_precision("highest")
        self.torch = torch

    def device_missing(self) -> str | None:
        """Ask PyTorch."""
        return None if self.torch.cuda.is_available() else "torch.cuda.is_available() is False"

    def prepare(self, case: Case, data: Data, weights: Weights) -> Callable[[], None]:
        """Build the network on the device."""
        torch, device = self.torch, self.entry.device
        layers: list[Any] = []
        for W, _ in weights:
            layers += [torch.nn.Linear(*W.shape), torch.nn.ReLU()]
        self.network = torch.nn.Sequential(*layers[:-1]).to(device)
        self.load_weights(weights)
        # Half the rate on the squared error is half the squared error at the full rate, with one
        # multiplication fewer in each direction.
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), lr=LEARNING_RATE / 2, foreach=True
        )
        batches = zip(
            torch.from_numpy(data.X).to(device).split(case.batch),
            torch.from_numpy(data.y).to(device).split(case.batch),
            strict=True,
        )
        self.batches = list(batches)
        return self.epoch

    def load_weights(self, weights: Weights) -> None:
        """Copy the weights into the network; PyTorch keeps them transposed."""
        linear = [layer for layer in self.network if hasattr(layer, "weight")]
        with self.torch.no_grad():
            for layer, (W, b) in zip(linear, weights, strict=True):
                layer.weight.copy_(self.torch.from_numpy(W.T))
                layer.bias.copy_(self.torch.from_numpy(b))

    def train(self) -> None:
        """Take every step of an epoch."""
        network, optimizer = self.network, self.optimizer
        loss = self.torch.nn.functional.mse_loss
        for X, y in self.batches:
            optimizer.zero_grad(set_to_none=True)
            loss(network(X), y).backward()
            optimizer.step()

    def epoch(self) -> None:
        """Train and wait for the device."""
        self.train()
        if self.entry.device == "cuda":
            self.torch.cuda.synchronize()

    def parameters(self) -> np.ndarray:
        """Transpose the weights back."""
        pairs = [
            (layer.weight.detach().cpu().numpy().T, layer.bias.detach().cpu().numpy())
            for layer in self.network
            if hasattr(layer, "weight")
        ]
        return flatten(pairs)

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Run the network without gradients."""
        with self.torch.inference_mode():
            return self.network(self.torch.from_numpy(rows).to(self.entry.device)).cpu().numpy()


class TorchCompiled(Torch):
    """PyTorch with a step compiled whole: gradients by `torch.func.grad`, the update in the graph.

    On a 2-core AVX-512 machine with PyTorch 2.13 this took 0.3 to 1.0 of the time of a compiled
    forward and backward pass with an SGD of its own, on five networks from 16-64-1 to
    784-2048-2048-10; ``max-autotune`` was no faster. Weights lie as `torch.nn.Linear` keeps them.
    """

    def available(self) -> str | None:
        """Return why nothing can be compiled here, or None."""
        return super().available() or compiler_missing(self.entry.device)

    def load(self) -> None:
        """Import PyTorch; it shall compile in this process and start no others."""
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
        super().load()

    def load_what_follows(self) -> None:
        """Import the compiler."""
        import torch._inductor.compile_fx  # noqa: F401

    def prepare(self, case: Case, data: Data, weights: Weights) -> Callable[[], None]:
        """Define the step; the first call compiles it."""
        super().prepare(case, data, weights)
        torch = self.torch
        self.layers = [part.detach() for part in self.network.parameters()]
        rate = LEARNING_RATE / 2

        def loss(layers: Any, X: Any, y: Any) -> Any:
            pairs = list(zip(layers[::2], layers[1::2], strict=True))
            for W, b in pairs[:-1]:
                X = torch.relu(torch.addmm(b, X, W.T))
            W, b = pairs[-1]
            return ((torch.addmm(b, X, W.T) - y) ** 2).mean()

        def step(layers: Any, X: Any, y: Any) -> None:
            for part, slope in zip(layers, torch.func.grad(loss)(layers, X, y), strict=True):
                part.sub_(slope, alpha=rate)

        self.step = torch.compile(step, fullgraph=True, dynamic=False)
        self.forward = torch.compile(self.network, fullgraph=True, dynamic=False)
        return self.epoch

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Call the compiled forward pass; the first call compiles it."""
        with self.torch.inference_mode():
            return self.forward(self.torch.from_numpy(rows).to(self.entry.device)).cpu().numpy()

    def train(self) -> None:
        """Take every step of an epoch."""
        step, layers = self.step, self.layers
        with self.torch.no_grad():
            for X, y in self.batches:
                step(layers, X, y)


def compiler_missing(device: str) -> str | None:
    """Return what `torch.compile` has to compile with and does not find, or None."""
    if device == "cuda":
        here = importlib.util.find_spec("triton") is not None
        return None if here else "torch.compile needs triton for a GPU, and it is not installed"
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "cl"]
    if not any(map(shutil.which, names)):
        return f"torch.compile needs a C++ compiler, and found no {' or '.join(names)}"
    return None


class TorchGraph(Torch):
    """PyTorch with an epoch captured as one CUDA graph: no launch cost is left on the host."""

    suites = ("training", "overhead")
    devices = ("cuda",)

    def prepare(self, case: Case, data: Data, weights: Weights) -> Callable[[], None]:
        """Warm up on a side stream, as PyTorch asks for, capture, and start from the weights."""
        super().prepare(case, data, weights)
        cuda = self.torch.cuda
        side = cuda.Stream()
        side.wait_stream(cuda.current_stream())
        with cuda.stream(side):
            for _ in range(3):
                self.train()
        cuda.current_stream().wait_stream(side)
        graph = cuda.CUDAGraph()
        with cuda.graph(graph):
            self.train()
        self.load_weights(weights)

        def epoch() -> None:
            graph.replay()
            cuda.synchronize()

        return epoch


class Jax(Baseline):
    """JAX: one compiled call an epoch, a scan over the mini-batches, its weights donated."""

    module = "jax"
    packages = ("jax", "jaxlib")

    def load(self) -> None:
        """Import JAX; it takes as many threads as the process has processors."""
        # JAX would otherwise take most of the GPU's memory from the other providers.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        os.environ.setdefault("JAX_PLATFORMS", "cpu" if self.entry.device == "cpu" else "cuda")
        import jax

        jax.config.update("jax_default_matmul_precision", "highest")
        self.jax = jax

    def device_missing(self) -> str | None:
        """Ask JAX."""
        try:
            self.jax.devices("cuda")
        except (RuntimeError, AssertionError):
            # Without its CUDA plugin JAX trips over an assertion of its own.
            return "jax.devices('cuda') finds none"
        return None

    def prepare(self, case: Case, data: Data, weights: Weights) -> Callable[[], None]:
        """Define the epoch; the first call compiles it."""
        jax = self.jax

        def forward(layers: Any, X: Any) -> Any:
            for W, b in layers[:-1]:
                X = jax.nn.relu(X @ W + b)
            W, b = layers[-1]
            return X @ W + b

        def loss(layers: Any, X: Any, y: Any) -> Any:
            return 0.5 * ((forward(layers, X) - y) ** 2).mean()

        def step(layers: Any, batch: Any) -> Any:
            gradient = jax.grad(loss)(layers, *batch)
            new = jax.tree.map(lambda w, g: w - LEARNING_RATE * g, layers, gradient)
            return new, None

        def epoch(layers: Any, batches: Any) -> Any:
            return jax.lax.scan(step, layers, batches)[0]

        compiled = jax.jit(epoch, donate_argnums=0)
        self.forward = jax.jit(forward)
        shapes = [(case.steps, case.batch, columns.shape[1]) for columns in data]
        batches = [jax.device_put(a.reshape(s)) for a, s in zip(data, shapes, strict=True)]
        # A copy: on the CPU device_put may share the caller's memory, which donating would reuse.
        self.layers = [(jax.numpy.array(W), jax.numpy.array(b)) for W, b in weights]

        def run() -> None:
            self.layers = jax.block_until_ready(compiled(self.layers, tuple(batches)))

        return run

    def parameters(self) -> np.ndarray:
        """Bring the weights to the host."""
        return flatten([(np.asarray(W), np.asarray(b)) for W, b in self.layers])

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Call the compiled forward pass."""
        return np.asarray(self.forward(self.layers, rows))
