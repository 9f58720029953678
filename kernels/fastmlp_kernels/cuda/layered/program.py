"""`cuda.layered`: layer after layer over the whole mini-batch.

The host enqueues a whole epoch without waiting for a batch, each full one as the replay of a CUDA
graph where that can be had: losses and status stay on the device until the epoch's end, and a batch
that is not finite disarms the updates behind it there.
"""

import functools
from typing import Any

import numpy as np
from numba import cuda

from fastmlp_kernels.algebra import ACTIVATIONS
from fastmlp_kernels.contract import check_data, check_epoch, check_shape
from fastmlp_kernels.cuda.costs import gradients_together
from fastmlp_kernels.cuda.device.memory import DeviceMemory
from fastmlp_kernels.cuda.layered import matrix_products, workspace
from fastmlp_kernels.cuda.layered.chain import Chain
from fastmlp_kernels.cuda.layered.gather import COUNTER_WORDS
from fastmlp_kernels.cuda.layered.graphs import Steps
from fastmlp_kernels.cuda.layered.launching import (
    Launches,
    Tiles,
    build,
    default_tiles,
)
from fastmlp_kernels.cuda.layered.updating import Updating
from fastmlp_kernels.cuda.layered.workspace import ParameterViews, address
from fastmlp_kernels.problem import (
    BATCHES,
    CONTROL_WORDS,
    STATUS,
    STOP,
    Machine,
    Problem,
)


class LayeredProgram:
    """The `Program` of `cuda.layered`: its workspace on the device, and the launches.

    Epochs run on a stream of the program's own, and end with a wait for it. Single calls run on
    the legacy default stream (see `Launches`).

    Parameters
    ----------
    problem : Problem
    tiles : Tiles, optional
        Block sizes.
    library : object, optional
        What to use as cuBLASLt; None looks for it, except in the simulator; False forbids it.
    recorder : object, optional
        What records CUDA graphs; None takes the driver's, except in the simulator; False forbids
        them.
    machine : Machine, optional
        Its rates decide what computes the gradients of weights: see `costs.gradients_together`.
    """

    def __init__(
        self,
        problem: Problem,
        tiles: Tiles | None = None,
        library: Any = None,
        recorder: Any = None,
        machine: Machine | None = None,
    ) -> None:
        self.problem = problem
        self.tiles = tiles or default_tiles()
        self.kernels = build(self.tiles, problem.rule, problem.loss)
        self.launches, self.stream = Launches(self.tiles), cuda.stream()
        self.memory, self.straight = DeviceMemory(self.stream), False
        self.steps = Steps(self.launches, recorder)
        self.dtype, self.views = np.dtype(problem.dtype), ParameterViews(problem)
        blocks = -(-problem.batch_size // self.tiles.row_threads)
        self.workspace = workspace.allocate(problem, blocks)
        self.layers = workspace.layers_of(problem, self.workspace)
        self.products = matrix_products.choose(
            problem,
            self.layers,
            self.launches,
            self.kernels,
            library,
            self.workspace,
            self.views.of(self.workspace.gradient),
            gradients_together(problem, machine or Machine()),
        )
        self.output = ACTIVATIONS.code(problem.activations[-1])
        self.identity = ACTIVATIONS.code("identity")
        self.order = cuda.device_array(problem.rows, np.int64)
        self.hyper = self.empty(problem.batches, problem.hyper_columns)
        self.losses, self.squares = (self.empty(problem.batches) for _ in range(2))
        self.updating = Updating(problem, self.launches, self.kernels)
        scales = [1 / (1 - share) for share in problem.dropout]
        self.keep_scales = cuda.to_device(np.array(scales, self.dtype))
        self.scales: dict[int, Any] = {}
        self.epoch_factors: Any = None
        self.status = cuda.to_device(np.zeros(CONTROL_WORDS, np.int64))
        self.start = np.zeros(COUNTER_WORDS, np.int64)
        self.counter = cuda.to_device(self.start)
        self.loss_arrivals = cuda.to_device(np.zeros(1, np.int32))
        # These stay as they are: single steps have no earlier batch that could have failed, and no
        # other place among the factors.
        self.finite = cuda.to_device(np.zeros(CONTROL_WORDS, np.int64))
        self.first_batch = cuda.to_device(self.start)
        # A single update moves the first word of its own on, and reads the second, which stays.
        self.single_step = cuda.to_device(self.start)
        self.one_loss, self.no_state = self.empty(1), self.empty(0)
        self.chain = Chain(
            problem,
            self.layers,
            self.launches,
            self.kernels,
            self.products,
            self.views,
            (self.hyper, self.counter, self.keep_scales),
            {True: (self.counter, self.status), False: (self.first_batch, self.status)},
        )
        self.rows = 0
        self.inputs = self.workspace.inputs

    def empty(self, *shape: int) -> Any:
        """Return a new device array of the problem's dtype."""
        return cuda.device_array(shape, self.dtype)

    def factors_of(self, rows: int, given: np.ndarray | None) -> Any:
        """Return the factors of the rows, or the reduction's for a batch of so many, on the GPU."""
        if given is not None:
            return self.to_device(given)
        if rows not in self.scales:
            self.scales[rows] = cuda.to_device(np.array([self.problem.scale(rows)], self.dtype))
        return self.scales[rows]

    def _state(self, state: Any) -> tuple[Any, Any]:
        slots = self.problem.slots
        return (
            state[0] if slots > 0 else self.no_state,
            state[1] if slots > 1 else self.no_state,
        )

    def _over(self, kernel: Any, count: int, *arguments: Any) -> None:
        self.launches.over(kernel, count, *arguments)

    def _copy_rows(self, source: Any, rows: int, out: Any) -> None:
        count = rows * out.shape[1]
        self._over(self.kernels.activation_forward, count, source, self.identity, rows, out)

    def to_device(self, array: np.ndarray) -> Any:
        """Return the array on the GPU; one that is there already is not copied."""
        return self.memory.to_device(array)

    def to_host(self, array: Any, out: np.ndarray) -> None:
        """Copy a device array, once all that was enqueued before is done."""
        self.memory.to_host(array, out)

    def _gathered(self, X: Any, y: Any) -> tuple:
        """Return the arguments by which kernels collect the rows of a batch."""
        work = self.workspace
        rounded = self.products.rounded_inputs
        return X, y, self.order, self.problem.batch_size, work.inputs, work.targets, rounded

    def _gather_first(self, X: Any, y: Any) -> None:
        """Enqueue what an epoch begins with: each batch collects the rows of the next one."""
        X, y, order, *others = self._gathered(X, y)
        elements = self.problem.batch_size * (self.problem.sizes[0] + self.problem.target_columns)
        self._over(self.kernels.gather_rows, elements, X, y, order, self.counter, *others)

    def _judge(self, A, y, rows: int, factors, counter, size: int, dA, losses) -> None:
        """Enqueue the loss of a batch, and its gradient."""
        sums = (self.workspace.loss_sums, self.loss_arrivals)
        arguments = (A, y, rows, factors, counter, size, dA, *sums, losses, self.status)
        self.launches.by_row(self.kernels.loss_and_gradient, rows, *arguments)

    def _batch(self, parameters, slots, X, y, rows: int, factors, penalized) -> None:
        """Enqueue everything that one mini-batch of an epoch takes: that of the counter."""
        work, gradient, size = self.workspace, self.workspace.gradient, self.problem.batch_size
        A = self.chain.forward(parameters, work.inputs, rows, True)
        own = self.factors_of(rows, None) if factors is None else factors
        last = self.layers[-1].dZ
        self._judge(A, work.targets, rows, own, self.counter, size, last, self.losses)
        self.chain.backward(parameters, work.inputs, rows, 0, gradient, None, True)
        if not self.products.checks:
            arguments = (gradient, self.counter, self.status)
            self._over(self.kernels.check_finite, self.problem.parameter_count, *arguments)
        if penalized:
            self.updating.enqueue_squares(parameters, self.squares, self.counter)
        rounded = (self.products.places, self.products.rounded_weights)
        words = (self.counter, self.status)
        vectors = (parameters, gradient, slots, self.hyper)
        self.updating.enqueue(*vectors, words, self.status, rounded, self._gathered(X, y))

    def _full_batch(self, batch, parameters, slots, X, y, factors, penalized):
        """Return a full batch as `Steps` takes it: kind, key, and what enqueues it."""
        held = [array for array in (parameters, *slots, X, y, factors) if array is not None]
        # Once an epoch: asking an array for its address costs as much as a replay.
        key = tuple((address(array), *array.shape) for array in held if array.size > 0)
        kind = (penalized, factors is None)
        size = self.problem.batch_size
        enqueue = functools.partial(batch, parameters, slots, X, y, size, factors, penalized)
        return kind, key, enqueue

    def prepare(self, parameters, state, X, y, weighted=False, penalized=False):
        """See `Program.prepare`."""
        arguments = (parameters, state, X, y, weighted, penalized)
        self.prepare_batches(self._batch, *arguments, self._gather_first)

    def prepare_batches(self, batch, parameters, state, X, y, weighted, penalized, begin=None):
        """Prepare an epoch of `epoch_of`.

        A step is run on a row of the program's own, a zero, since X and y may hold nothing yet.
        It is disarmed, as after one that was not finite.
        """
        no_factors = np.zeros(self.problem.rows, self.dtype) if weighted else None
        with self.launches.on(self.stream):
            self._begin(np.zeros(self.problem.rows, np.int64), status=1)
            self.hyper.copy_to_device(np.zeros(self.hyper.shape, self.dtype), stream=self.stream)
            self.products.take_weights([W for W, _ in self.views.of(parameters)])
            vectors, factors = (parameters, self._state(state)), self._epoch_factors(no_factors)
            kind, key, enqueue = self._full_batch(batch, *vectors, X, y, factors, penalized)
            columns = self.problem.sizes[0], self.problem.target_columns
            row = [cuda.to_device(np.zeros((1, count), self.dtype)) for count in columns]
            size = self.problem.batch_size
            if begin is not None:
                begin(*row)
            rehearse = functools.partial(batch, *vectors, *row, size, factors, penalized)
            self.steps.prepare(kind, key, rehearse, enqueue)
        self.stream.synchronize()

    def _begin(self, order: np.ndarray, status: int = 0) -> None:
        control = np.zeros(CONTROL_WORDS, np.int64)
        control[STATUS] = status
        self.order.copy_to_device(order, stream=self.stream)
        self.status.copy_to_device(control, stream=self.stream)
        self.counter.copy_to_device(self.start, stream=self.stream)

    def _epoch_factors(self, factors: np.ndarray | None) -> Any:
        """Return the program's own copy of an epoch's factors, at one address for all epochs."""
        if factors is None:
            return None
        if self.epoch_factors is None:
            self.epoch_factors = self.empty(self.problem.rows)
        self.epoch_factors.copy_to_device(factors, stream=self.stream)
        return self.epoch_factors

    def epoch(
        self, parameters, state, X, y, order, hyper, losses, control, factors=None, squares=None
    ):
        """See `Program.epoch`."""
        arrays = (parameters, state, X, y, order, hyper, losses, control, factors, squares)
        self.epoch_of(self._batch, *arrays, self._gather_first)

    def epoch_of(
        self,
        batch,
        parameters,
        state,
        X,
        y,
        order,
        hyper,
        losses,
        control,
        factors,
        squares,
        begin=None,
    ):
        """Run an epoch of batches that `batch` enqueues, as `Program.epoch` says.

        ``batch(parameters, slots, X, y, rows, factors, penalized)`` enqueues everything that the
        counter's batch takes, and ``begin(X, y)`` what comes before the first one.
        ``control[BATCHES]`` is written at the end alone.

        The GPU may be hundreds of launches behind the host: a stop takes effect after the batches
        that are enqueued by then.
        """
        arrays = (parameters, state, X, y, order, hyper, losses, control, factors, squares)
        check_epoch(self.problem, *arrays)
        size, total, enqueued = self.problem.batch_size, self.problem.rows, 0
        penalized = squares is not None
        with self.launches.on(self.stream):
            self._begin(order)
            self.hyper.copy_to_device(hyper, stream=self.stream)
            on_device = self._epoch_factors(factors)
            self.products.take_weights([W for W, _ in self.views.of(parameters)])
            if begin is not None:
                begin(X, y)
            arguments = (parameters, self._state(state), X, y)
            step = self._full_batch(batch, *arguments, on_device, penalized)
            full_batch = functools.partial(self.steps.run, *step)
            while enqueued < losses.size and control[STOP] == 0:
                rows = min(size, total - enqueued * size)
                if rows == size:
                    full_batch()
                else:
                    batch(*arguments, rows, on_device, penalized)
                enqueued += 1
        status = self.status.copy_to_host(stream=self.stream)
        values = self.losses.copy_to_host(stream=self.stream)
        sums = self.squares.copy_to_host(stream=self.stream) if penalized else None
        # The one wait of the epoch.
        self.stream.synchronize()
        losses[:enqueued] = values[:enqueued]
        if penalized:
            squares[:enqueued] = sums[:enqueued]
        failed = int(status[STATUS])
        control[BATCHES] = failed - 1 if failed else enqueued
        control[STATUS] = failed

    def forward(self, parameters, X, out):
        """See `Program.forward`."""
        self.rows, self.inputs = len(X), X
        code = self.output if self.problem.fused_output else self.identity
        self.chain.take(parameters, X, self.rows)
        A = self.chain.forward(parameters, X, self.rows)
        arguments = (A, code, self.rows, out)
        count = self.rows * self.problem.sizes[-1]
        self._over(self.kernels.activation_forward, count, *arguments)

    def loss(self, y, factors=None):
        """See `Program.loss`."""
        # Of no use here, but a loss that is not finite is noted in it.
        self.status.copy_to_device(np.zeros(CONTROL_WORDS, np.int64))
        own, A = self.factors_of(self.rows, factors), self.layers[-1].A
        dA = self.workspace.loss_gradient
        self._judge(A, y, self.rows, own, self.first_batch, 0, dA, self.one_loss)
        return float(self.one_loss.copy_to_host()[0])

    def backward(self, parameters, upstream, gradient, input_gradient):
        """See `Program.backward`."""
        rows, last, kernels = self.rows, self.layers[-1], self.kernels
        # The weights, and the inputs, of before: a rounded copy may have changed since.
        self.chain.take(parameters, self.inputs, rows)
        if upstream is None:
            self._copy_rows(self.workspace.loss_gradient, rows, last.dZ)
        else:
            self._copy_rows(upstream, rows, last.dZ)
            if self.problem.fused_output:
                count, A = rows * self.problem.sizes[-1], self.workspace.outputs
                arguments = (last.Z, self.output, rows, A)
                self._over(kernels.activation_forward, count, *arguments)
                arguments = (last.Z, A, self.output, rows, last.dZ)
                self._over(kernels.activation_backward, count, *arguments)
        wanted = input_gradient if input_gradient.shape[0] > 0 else None
        self.chain.backward(parameters, self.inputs, rows, 1, gradient, wanted)

    def value_and_gradient(
        self, parameters, X, y, gradient, factors=None, dropout=None, unchanged=False
    ):
        """See `Program.value_and_gradient`."""
        if dropout is not None:
            raise ValueError(
                f"a kernel was given dropout, wanted none on a GPU, for {self.problem}"
            )
        check_data(self.problem, X, y)
        check_shape("the gradient", gradient, (self.problem.parameter_count,), self.problem)
        self.rows, self.inputs = len(X), X
        self.chain.take(parameters, X, self.rows)
        self.chain.forward(parameters, X, self.rows)
        value = self.loss(y, factors)
        self._copy_rows(self.workspace.loss_gradient, self.rows, self.layers[-1].dZ)
        self.chain.backward(parameters, X, self.rows, 0, gradient, None)
        return value

    def update(self, parameters, gradient, state, hyper):
        """See `Program.update`."""
        rounded = (self.products.places, self.products.rounded_weights)
        words, slots = (self.single_step, self.finite), self._state(state)
        vectors = (parameters, gradient, slots, self.to_device(hyper))
        self.updating.enqueue(*vectors, words, self.status, rounded)

    def predict(self, parameters, X, out, link, share=1, unchanged=False):
        """See `Program.predict`."""
        batch = self.problem.batch_size
        for start in range(0, len(X), batch):
            part = out[start : start + batch]
            self.forward(parameters, X[start : start + batch], part)
            if link:
                self.launches.by_row(self.kernels.predict_rows, len(part), part, len(part))
        return True
