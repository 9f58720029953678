"""The `Program` of `cpu.fused`: the calls of the contract, each one run of some of its stages."""

import numpy as np

from fastmlp_kernels.cpu import best_threads, tables
from fastmlp_kernels.cpu.activation import activation_backward, activation_forward
from fastmlp_kernels.cpu.fused import run
from fastmlp_kernels.cpu.layout import Layout
from fastmlp_kernels.cpu.loss import predict_rows
from fastmlp_kernels.cpu.simd import instruction_set
from fastmlp_kernels.cpu.tables import (
    BACKWARD,
    FORWARD,
    GATHER,
    GRADIENT,
    INPUT_GRADIENT,
    LOSS,
    OUTPUT,
    PACK,
    UPDATE,
    UPSTREAM,
    address,
)
from fastmlp_kernels.cpu.team import run_together
from fastmlp_kernels.cpu.update import call_update, update, write_gradient
from fastmlp_kernels.problem import CONTROL_WORDS, STOP, Machine, Problem

# Rows up to which a forward pass reads the weights where they are.
DIRECT_ROWS = 4


class FusedProgram(Layout):
    """A problem's memory and the calls into compiled code; see `problem.Program`."""

    def __init__(self, problem: Problem, machine: Machine | None = None) -> None:
        machine = Machine() if machine is None else machine
        target = instruction_set(machine.instruction_set)
        super().__init__(problem, target, best_threads(problem, machine))
        self.control = np.zeros(CONTROL_WORDS, dtype=np.int64)
        self.one_loss = self._zeros(1)
        self._costs = self.unit_costs()
        self._bound: dict[int, np.ndarray] = {}

    def _bind(self, word: int, array: np.ndarray) -> None:
        # Asking NumPy for an address costs as much as a step of a tiny network: once an array.
        if self._bound.get(word) is not array:
            self._bound[word] = array
            self.words[word] = address(array)

    def _bind_state(self, state: np.ndarray) -> None:
        if self._bound.get(tables.FIRST) is not state:
            self._bound[tables.FIRST] = state
            for word, slot in zip((tables.FIRST, tables.SECOND), state, strict=False):
                self.words[word] = address(slot)

    def _rows(self, rows: int, batch_size: int, batches: int) -> None:
        self.words[tables.BATCH_SIZE : tables.BATCHES + 1] = batch_size, rows, batches

    def _scale(self, rows: int, last: int) -> None:
        scales = self.constants["scales"]
        scales[0], scales[1] = self.problem.scale(rows), self.problem.scale(last)

    def _run(self, stages: int, threads: int = 1) -> None:
        words = self.words
        words[: tables.MEETING] = stages, threads
        words[tables.HALT] = 0
        columns = self.columns and threads > 1 and stages & UPDATE != 0
        words[tables.COLUMNS] = columns
        words[tables.UNIT_COST] = max(1, sum(self._costs[columns:]))
        if threads == 1:
            run(self.table, 0)
            return
        run_together(lambda member: run(self.table, member), threads)

    def to_device(self, array: np.ndarray) -> np.ndarray:
        """Return the array itself."""
        return array

    def to_host(self, array: np.ndarray, out: np.ndarray) -> None:
        """Copy, unless it is the same array."""
        if array is not out:
            out[...] = array

    def prepare(self, parameters, state, X, y):
        """See `Program.prepare`: compile the update, and run nothing."""
        update(self.problem.optimizer, self.problem.dtype, self.panel)
        self._rows(0, 1, 0)
        self._run(0)

    def epoch(self, parameters, state, X, y, order, hyper, losses, control):
        """See `Program.epoch`."""
        if control[STOP]:
            return
        problem, words = self.problem, self.words
        for word, array in (
            (tables.PARAMETERS, parameters),
            (tables.TARGET, parameters),
            (tables.X, X),
            (tables.Y, y),
            (tables.ORDER, order),
            (tables.HYPER, hyper),
            (tables.LOSSES, losses),
            (tables.CONTROL, control),
        ):
            self._bind(word, array)
        self._bind_state(state)
        batch = problem.batch_size
        self._rows(len(order), batch, len(losses))
        self._scale(batch, problem.rows - (problem.batches - 1) * batch)
        words[tables.SEQUENTIAL] = 0
        words[tables.FINISH] = update(problem.optimizer, problem.dtype, self.panel)
        words[tables.OUTPUT_GRADIENT] = words[tables.SLOPES]
        self._run(PACK | GATHER | FORWARD | LOSS | BACKWARD | GRADIENT | UPDATE, self.threads)

    def _once(self, parameters: np.ndarray, rows: int) -> None:
        """Set up a call on one batch of the caller's rows, in their own order."""
        self._bind(tables.PARAMETERS, parameters)
        self._bind(tables.CONTROL, self.control)
        self._bind(tables.LOSSES, self.one_loss)
        self.control[:] = 0
        self._rows(rows, self.problem.batch_size, 1)
        self.words[tables.SEQUENTIAL] = 1

    def _predict(self, X: np.ndarray, out: np.ndarray, link: bool) -> None:
        """Run the forward pass, and write outputs."""
        problem, words = self.problem, self.words
        self._bind(tables.X, X)
        self._bind(tables.OUT, out)
        words[tables.LINK] = predict_rows(problem.loss, problem.dtype) if link else 0
        fused = problem.fused_output
        output = problem.activations[-1]
        words[tables.OUTPUT_VALUE] = activation_forward(output, problem.dtype) if fused else 0
        direct = len(X) <= DIRECT_ROWS
        words[tables.PACKED] = not direct
        self._run(PACK | GATHER | FORWARD | OUTPUT, 1 if direct else self.threads)
        words[tables.PACKED] = 1

    def forward(self, parameters, X, out):
        """See `Program.forward`."""
        self.rows = len(X)
        self._once(parameters, self.rows)
        self._predict(X, out, False)

    def loss(self, y):
        """See `Program.loss`."""
        words, control = self.words, self.control
        self._bind(tables.CONTROL, control)
        self._bind(tables.LOSSES, self.one_loss)
        control[:] = 0
        self._rows(self.rows, self.problem.batch_size, 1)
        self._scale(self.rows, self.rows)
        words[tables.TARGETS] = address(y)
        self._run(LOSS)
        words[tables.TARGETS] = address(self.workspace.targets)
        return float(self.one_loss[0])

    def backward(self, parameters, upstream, gradient, input_gradient):
        """See `Program.backward`."""
        problem, words = self.problem, self.words
        self._once(parameters, self.rows)
        self._bind(tables.TARGET, gradient)
        stages = PACK | BACKWARD | GRADIENT
        words[tables.FINISH] = write_gradient(problem.dtype, True)
        words[tables.OUTPUT_GRADIENT] = words[tables.SLOPES]
        if len(input_gradient):
            stages |= INPUT_GRADIENT
            self._bind(tables.INPUT_GRADIENT_ROWS, input_gradient)
        if upstream is not None:
            stages |= UPSTREAM
            self._bind(tables.UPSTREAM_ROWS, upstream)
            words[tables.OUTPUT_GRADIENT] = address(self.workspace.upstream)
            if problem.fused_output:
                name = problem.activations[-1]
                words[tables.OUTPUT_VALUE] = activation_forward(name, problem.dtype)
                words[tables.OUTPUT_SLOPE] = activation_backward(name, problem.dtype)
        self._run(stages, self.threads)

    def value_and_gradient(self, parameters, X, y, gradient):
        """See `Program.value_and_gradient`."""
        self.rows = len(X)
        self._once(parameters, self.rows)
        self._scale(self.rows, self.rows)
        for word, array in ((tables.X, X), (tables.Y, y), (tables.TARGET, gradient)):
            self._bind(word, array)
        words = self.words
        words[tables.FINISH] = write_gradient(self.problem.dtype, False)
        words[tables.OUTPUT_GRADIENT] = words[tables.SLOPES]
        self._run(PACK | GATHER | FORWARD | LOSS | BACKWARD | GRADIENT, self.threads)
        return float(self.one_loss[0])

    def update(self, parameters, gradient, state, hyper):
        """See `Program.update`."""
        problem = self.problem
        first, second = (address(state[k]) if k < len(state) else 0 for k in range(2))
        step = update(problem.optimizer, problem.dtype, 0)
        arrays = (address(parameters), first, second, address(gradient), 0)
        count = parameters.size
        call_update(step, (*arrays, 1, count, count, count, address(hyper)))

    def predict(self, parameters, X, out, link):
        """See `Program.predict`."""
        rows, batch = len(X), self.problem.batch_size
        self._once(parameters, rows)
        self.words[tables.BATCHES] = -(-rows // batch)
        self._predict(X, out, link)
