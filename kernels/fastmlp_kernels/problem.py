"""What is to be computed, by what, and on what: plain values with no behaviour of their own.

A `Problem` says what to train; a `Kernel` says how, for which problems and at what cost; a
`Machine` holds the constants that costs depend on; a `Program` is a kernel built for a problem.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fastmlp_kernels.algebra import ACTIVATIONS, LOSSES, OPTIMIZERS, rule_name
from fastmlp_kernels.algebra.optimizers import HYPER_WIDTH
from fastmlp_kernels.device_memory import DeviceMemory

REDUCTIONS = ("mean", "sum", "batch_mean")
DTYPES = ("float32", "float64")
# What products of float32 matrices may round their factors to; sums are float32 in all three.
PRECISIONS = ("float32", "tf32", "bfloat16")

# The host's int64 words that a running epoch shares with its caller.
STOP, BATCHES, STATUS = 0, 1, 2
CONTROL_WORDS = 3


@dataclass(frozen=True)
class LayerLayout:
    """Where a layer's parameters lie in the flat vector: W (in, out) row-major, then b."""

    fan_in: int
    fan_out: int
    weight: slice
    bias: slice


@functools.cache
def parameter_layout(sizes: tuple[int, ...]) -> tuple[LayerLayout, ...]:
    """Return the layout of each layer of a network with `sizes` units from input to output."""
    layers = []
    start = 0
    for fan_in, fan_out in zip(sizes[:-1], sizes[1:], strict=True):
        weight = slice(start, start + fan_in * fan_out)
        bias = slice(weight.stop, weight.stop + fan_out)
        layers.append(LayerLayout(fan_in, fan_out, weight, bias))
        start = bias.stop
    return tuple(layers)


@dataclass(frozen=True)
class Problem:
    """A training problem: everything that a kernel may depend on, and nothing else. Hashable.

    Parameters
    ----------
    sizes : tuple of int
        Units per layer, input first.
    activations : tuple of str
        One per layer of weights.
    loss, optimizer, reduction, dtype : str
        Names: rows of the algebra's tables, of `REDUCTIONS` and of `DTYPES`. A loss with numbers of
        its own has them in its name, as "huber(delta=2.0)".
    labels : bool
        Whether the targets are one class index a row, as dtype[rows, 1].
    batch_size : int
        Rows of a full mini-batch; no larger than `rows`.
    rows : int
        Rows of an epoch.
    precision : str
        One of `PRECISIONS`: the coarsest rounding that a kernel may use in products of float32
        matrices. A permission: a kernel may be more exact, and float64 is never rounded.
    dropout : tuple of float
        The share of each hidden layer's outputs that a training step leaves out; none where empty.
        `hyper` has the key of each step.
    clipping : str
        One of `CLIPPINGS`: whether the gradient's elements are limited, or its norm too; by how
        much, `hyper` says.
    layer_rates : bool
        Whether each layer has hyper-parameters of its own, side by side in a row of `hyper`.
    members : int
        Networks of this shape that are trained side by side on the same rows, each in an order of
        its own.
    """

    sizes: tuple[int, ...]
    activations: tuple[str, ...]
    loss: str
    optimizer: str = "sgd"
    reduction: str = "mean"
    dtype: str = "float32"
    labels: bool = False
    batch_size: int = 32
    rows: int = 32
    precision: str = "float32"
    dropout: tuple[float, ...] = ()
    clipping: str = "none"
    layer_rates: bool = False
    members: int = 1

    @property
    def batches(self) -> int:
        """Mini-batches an epoch; the last one may be smaller."""
        return -(-self.rows // self.batch_size)

    @property
    def parameter_count(self) -> int:
        """Length of the flat parameter vector of one network."""
        return parameter_layout(self.sizes)[-1].bias.stop

    @property
    def slots(self) -> int:
        """Rows of the optimizer's state, each as long as the parameters."""
        return OPTIMIZERS[self.optimizer].slots

    @property
    def hyper_columns(self) -> int:
        """Columns of a table of hyper-parameters."""
        return HYPER_WIDTH * (len(self.activations) if self.layer_rates else 1)

    @property
    def target_columns(self) -> int:
        """Columns of the targets."""
        return 1 if self.labels else int(LOSSES[self.loss].target_columns(self.sizes[-1]))

    @property
    def rule(self) -> str:
        """Name of the loss rule: fused with the output activation where a fused one exists."""
        return rule_name(LOSSES[self.loss], self.activations[-1], self.labels)

    @property
    def fused_output(self) -> bool:
        """Whether the loss rule reads the last pre-activation instead of the activation."""
        return self.activations[-1] in LOSSES[self.loss].fused

    @property
    def training_activations(self) -> tuple[str, ...]:
        """The chain as training sees it: a fused output activation belongs to the loss rule."""
        if self.fused_output:
            return (*self.activations[:-1], "identity")
        return self.activations

    @property
    def keeps_input(self) -> tuple[bool, ...]:
        """Which layers must keep the pre-activation apart from the activation (see `forward`)."""
        kept = [ACTIVATIONS[name].keeps == "input" for name in self.training_activations]
        return tuple(kept)

    @property
    def flops(self) -> float:
        """Floating-point operations of an epoch's matrix products (a multiply-add is two)."""
        layers = parameter_layout(self.sizes)
        products = sum(layer.fan_in * layer.fan_out for layer in layers)
        # Forward and weight gradient for every layer, backward-data for all but the first.
        backward = products - layers[0].fan_in * layers[0].fan_out
        return 2.0 * self.members * self.rows * (2 * products + backward)

    def scale(self, rows: int) -> float:
        """Return the factor of the loss and its gradient on a batch of `rows` rows."""
        if self.reduction == "sum":
            return 1.0
        by_element = self.reduction == "mean" and not LOSSES[self.loss].averages_rows
        return 1.0 / (rows * (self.target_columns if by_element else 1))


@dataclass(frozen=True)
class Machine:
    """The constants that costs depend on.

    Parameters
    ----------
    cores : int
        Processors that this process may use: the most threads of a CPU kernel.
    cpu_flops : float
        Floating-point operations a second of one core in the CPU kernels, float32.
    cpu_bytes : float
        Bytes a second that one core moves in the passes over activations and parameters.
    cpu_step_seconds, cpu_barrier_seconds, cpu_thread_seconds : float
        What a mini-batch costs beside its arithmetic, a meeting of the team, and having a thread
        that stays for the next epoch take part in it.
    cuda_missing : str or None
        Why no GPU can be used; None when one can.
    gpu : str
        The GPU's name, or "".
    gpu_capability : tuple of int
        Its compute capability, as (9, 0).
    gpu_processors, gpu_shared_bytes : int
        Its multiprocessors, and the shared memory that a block of threads may have.
    gpu_flops, gpu_tf32_flops, gpu_bfloat16_flops : float
        Floating-point operations a second in large products, by precision; float32 without tensor
        cores.
    gpu_bytes : float
        Bytes a second to and from its memory.
    gpu_launch_seconds, gpu_node_seconds : float
        A launch by the host, and one of a captured graph.
    gpu_meeting_seconds : float
        What all threads of a block wait for one another.
    gpu_copy_bytes, gpu_copy_seconds : float
        Bytes a second from and to the host, and what a copy of nothing takes.
    instruction_set : str
        Name of the vector instructions that CPU kernels use; "" for the best that are here.

    Notes
    -----
    The defaults fit the times of the benchmark's cases on a 2-core AMD EPYC (2026-11-23);
    ``python -m fastmlp calibrate`` measures those of any other machine. A meeting itself takes
    0.1 to 0.4 us there: the rest of its cost is what the caches of two cores then exchange. The
    GPU's are estimates: none was measured.
    """

    cores: int = 1
    cpu_flops: float = 1e11
    cpu_bytes: float = 4e10
    cpu_step_seconds: float = 4e-7
    cpu_barrier_seconds: float = 3e-6
    cpu_thread_seconds: float = 1e-5
    cuda_missing: str | None = "no GPU was looked for"
    gpu: str = ""
    gpu_capability: tuple[int, int] = (7, 5)
    gpu_processors: int = 40
    gpu_shared_bytes: int = 65536
    gpu_flops: float = 4e13
    gpu_tf32_flops: float = 3e14
    gpu_bfloat16_flops: float = 6e14
    gpu_bytes: float = 2e12
    gpu_launch_seconds: float = 6e-6
    gpu_node_seconds: float = 2e-6
    gpu_meeting_seconds: float = 5e-8
    gpu_copy_bytes: float = 1e10
    gpu_copy_seconds: float = 1e-5
    instruction_set: str = ""


class Program(Protocol):
    """A kernel built for a problem, with its workspace: what `Kernel.build` returns.

    Arrays are C-contiguous, of the problem's dtype, and made by `to_device` (which is the identity
    on the CPU). Values are not checked here: `fastmlp.data` has done it. A program is used by one
    thread at a time.

    Attributes
    ----------
    problem : Problem
    memory : DeviceMemory or None
        Where the program computes, if that is not the host's memory. Parameters and state then
        stay there from one epoch to the next, and it is the caller who brings them to the host.
    straight : bool
        Whether the last epoch's whole batches went in a straight line: see `cpu.straight_line`.
    control : ndarray
        On the host: the control words of all calls but `epoch`. Another thread may set
        ``control[STOP]`` of one that takes long; what it returns is then not to be used.
    """

    problem: Problem
    memory: DeviceMemory | None
    straight: bool
    control: np.ndarray

    def to_device(self, array: np.ndarray) -> Any:
        """Return the array where the program computes; no copy on the CPU."""

    def to_host(self, array: Any, out: np.ndarray) -> None:
        """Copy a device array into `out`; nothing to do when they are the same array."""

    def prepare(
        self,
        parameters: Any,
        state: Any,
        X: Any,
        y: Any,
        weighted: bool = False,
        penalized: bool = False,
    ) -> None:
        """Compile what `epoch` runs, or load it, so that no epoch's time includes that.

        `weighted` and `penalized` say whether epochs will be given `factors` and `squares`.
        """

    def epoch(
        self,
        parameters: Any,
        state: Any,
        X: Any,
        y: Any,
        order: np.ndarray,
        hyper: np.ndarray,
        losses: np.ndarray,
        control: np.ndarray,
        factors: np.ndarray | None = None,
        squares: np.ndarray | None = None,
    ) -> None:
        """Train on every mini-batch once: gather, forward, loss, backward, update.

        `parameters` dtype[P] and `state` dtype[slots, P] are updated in place. `X` is
        dtype[n, in], `y` dtype[n, target_columns], `order` int64[rows] (indices into X),
        `hyper` dtype[batches, hyper_columns] (host); the loss of batch k goes to ``losses[k]``
        (host, dtype). `control` (host, int64[3]): the epoch ends before the next batch once
        ``control[STOP]`` is not 0; ``control[BATCHES]`` counts the finished ones; when a loss, or
        an activation or gradient of a row, is not finite, ``control[STATUS]`` is that batch + 1,
        and it and all later batches change nothing.

        `factors` (host, dtype[rows]) multiply the losses of the rows, in the order of the epoch,
        in place of the reduction's own factor. The sum of the squares of all weights, no biases, as
        they were before batch k, goes to ``squares[k]`` (host, float64[batches]).

        What was enqueued on a device has ended when this returns: `X` and `y` may then be
        overwritten. Parameters and state stay there.

        With more than one member every array but `X` and `y` has one more axis, the first:
        parameters dtype[members, P], state dtype[members, slots, P], order int64[members, rows],
        hyper dtype[members, batches, hyper_columns], losses dtype[members, batches], control
        int64[members, 3], and so on. Members stop and fail each for themselves.
        """

    def forward(self, parameters: Any, X: Any, out: Any) -> None:
        """Write the outputs of at most `batch_size` rows to `out`; keep what `backward` needs."""

    def loss(self, y: Any, factors: np.ndarray | None = None) -> float:
        """Return the loss of the last `forward`; keep its gradient for `backward`.

        `factors` (host, dtype[rows]): see `epoch`.
        """

    def backward(self, parameters: Any, upstream: Any, gradient: Any, input_gradient: Any) -> None:
        """Add the parameters' gradient to `gradient`, write the inputs' to `input_gradient`.

        `upstream` is the derivative by the outputs of the last `forward`, or None for that of the
        last `loss`.
        """

    def value_and_gradient(
        self,
        parameters: Any,
        X: Any,
        y: Any,
        gradient: Any,
        factors: np.ndarray | None = None,
        dropout: tuple[np.ndarray, int] | None = None,
        unchanged: bool = False,
    ) -> float:
        """Return the loss of at most `batch_size` rows and overwrite `gradient`.

        `dropout`, which only programs of the host take, makes it that of a training step: the
        step's `hyper` dtype[1, hyper_columns], and the place of the first row in its whole batch.
        `unchanged` says that the last calls were this one or `update`, with the same parameters.
        """

    def update(self, parameters: Any, gradient: Any, state: Any, hyper: Any) -> None:
        """Apply one step with `hyper` dtype[1, problem.hyper_columns]."""

    def predict(
        self, parameters: Any, X: Any, out: Any, link: bool, share: int = 1, unchanged: bool = False
    ) -> bool:
        """Write the outputs of any number of rows to `out`, through the loss's link if asked.

        Return whether all of X is finite: a host's program looks, others say True. `share` calls
        predict now. `unchanged` says that parameters are those of the last call.
        """


@dataclass(frozen=True)
class Kernel:
    """A way to run a problem, as the registry lists it.

    Parameters
    ----------
    name : str
        ``device.strategy``.
    device : {"cpu", "cuda"}
    supports : callable
        ``supports(problem, machine)`` returns why it cannot run the problem, or None.
    cost : callable
        ``cost(problem, machine)`` returns predicted seconds of an epoch.
    build : callable
        ``build(problem, machine)`` returns a `Program`.
    """

    name: str
    device: str
    supports: Callable[[Problem, Machine], str | None]
    cost: Callable[[Problem, Machine], float]
    build: Callable[[Problem, Machine], Program]
