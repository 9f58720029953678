"""PyTorch at its best settings and at the precision of the case.

float32 is without TF32; "tf32" allows it in products. In "bfloat16" parameters, gradients and the
update are float32 as ours are, and the products' operands are cast: PyTorch by autocast, JAX by the
same casts written out, both with activations in bfloat16. Rows in a random order are gathered a
mini-batch at a time: PyTorch by `index_select`, JAX by indexing inside its scan.
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
from benchmarks.cases import ADAM, LEARNING_RATE, Case, Data, Weights
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

    Adam is tried in both ways, which are the kernels of its entries, and the faster one counts.
    Weights lie as `torch.nn.Linear` keeps them, transposed.
    """

    module = "torch"
    packages = ("torch",)
    suites = (*Baseline.suites, "shuffled", "ensembles")
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
        # So much larger are the gradients, and Adam's update is then the same.
        self.epsilon = ADAM["epsilon"] * 2 / case.members
        self.optimizer = self.make_optimizer()
        X, y = (torch.from_numpy(array).to(device) for array in data)
        if case.shuffled:
            order = torch.from_numpy(case.order()).to(device)
            self.batches = [(X, y, rows) for rows in order.split(case.batch)]
        else:
            self.batches = list(zip(X.split(case.batch), y.split(case.batch), strict=True))
        return self.make_epoch()

    def make_optimizer(self) -> Any:
        """Return PyTorch's own optimizer."""
        device = self.entry.device
        if self.case.optimizer == "sgd":
            ways = {"fused": device == "cuda", "foreach": device == "cpu"}
            return self.torch.optim.SGD(self.layers, lr=self.rate, **ways)
        return self.torch.optim.Adam(
            self.layers,
            lr=ADAM["learning_rate"],
            betas=(ADAM["beta1"], ADAM["beta2"]),
            eps=self.epsilon,
            **{self.entry.kernel or "fused": True},
        )

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

    def loss(self, layers: Any, X: Any, y: Any, rows: Any = None) -> Any:
        """Return the mean squared error of a mini-batch, or of those rows."""
        if rows is not None:
            X, y = X.index_select(0, rows), y.index_select(0, rows)
        with self.rounding():
            A = self.forward(layers, X)
        return self.torch.nn.functional.mse_loss(A.float(), y.expand(A.shape))

    def train(self, batches: Any) -> None:
        """Take a step for each mini-batch."""
        for batch in batches:
            self.optimizer.zero_grad(set_to_none=True)
            self.loss(self.layers, *batch).backward()
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
        torch, loss, update = self.torch, self.loss, self.update
        self.layers = [part.detach() for part in self.layers]
        self.count, self.state = 0, ()
        if self.case.optimizer == "adam":
            moments = [[torch.zeros_like(part) for part in self.layers] for _ in range(2)]
            # The two factors of a step: computed in the graph, its loops would repeat the powers.
            self.state = (*torch.zeros(2), *moments)

        def step(layers: Any, state: Any, *batch: Any) -> None:
            update(layers, torch.func.grad(loss)(layers, *batch), *state)

        self.step = torch.compile(step, fullgraph=True, dynamic=False, mode=self.mode)
        # For predictions: `forward` of the class is traced.
        self.compiled = torch.compile(self.forward, fullgraph=True, dynamic=False)
        return self.captured() if self.entry.device == "cuda" else super().make_epoch()

    def update(self, layers: Any, slopes: Any, *state: Any) -> None:
        """Change the parameters, and what Adam keeps: two moments of each of them."""
        if not state:
            for part, slope in zip(layers, slopes, strict=True):
                part.sub_(slope, alpha=self.rate)
            return
        beta1, beta2 = ADAM["beta1"], ADAM["beta2"]
        rate, scale, means, squares = state
        for part, slope, mean, square in zip(layers, slopes, means, squares, strict=True):
            mean.lerp_(slope, 1 - beta1)
            square.mul_(beta2).addcmul_(slope, slope, value=1 - beta2)
            part.sub_(rate * mean / (square.sqrt() * scale + self.epsilon))

    def train(self, batches: Any) -> None:
        """Take a step for each mini-batch."""
        with self.torch.no_grad():
            for batch in batches:
                if self.state:
                    self.count += 1
                    rate, scale, *_ = self.state
                    rate.fill_(ADAM["learning_rate"] / (1 - ADAM["beta1"] ** self.count))
                    scale.fill_((1 - ADAM["beta2"] ** self.count) ** -0.5)
                self.step(self.layers, self.state, *batch)

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
        for batch in batches:
            self.optimizer.zero_grad(set_to_none=True)
            self.torch.compiler.cudagraph_mark_step_begin()
            self.compiled(self.layers, *batch).backward()
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
