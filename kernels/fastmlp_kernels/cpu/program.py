"""The `Program` of `cpu.fused`: its workspace, its tables, and the calls into compiled code."""

from typing import NamedTuple

import numpy as np

from fastmlp_kernels.algebra import ACTIVATIONS
from fastmlp_kernels.cpu import best_threads, tables
from fastmlp_kernels.cpu.activation import activation_backward, activation_forward
from fastmlp_kernels.cpu.fused import run
from fastmlp_kernels.cpu.loss import (
    loss_and_gradient,
    losses_per_row,
    predict_rows,
    sum_losses,
)
from fastmlp_kernels.cpu.machine_code import microkernels
from fastmlp_kernels.cpu.microkernels import gradient_name, product_name
from fastmlp_kernels.cpu.simd import InstructionSet, instruction_set
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
from fastmlp_kernels.cpu.team import MEETING_BYTES, run_together
from fastmlp_kernels.cpu.update import call_update, update, write_gradient
from fastmlp_kernels.problem import CONTROL_WORDS, STOP, Machine, Problem, parameter_layout

# Bytes of activations and weights that a block of rows or of k may have in the second cache.
ROW_BLOCK_TILES = 8
DEPTH_BLOCK = 512
SUM_BLOCK = 256
# Rows up to which a forward pass reads the weights where they are.
DIRECT_ROWS = 4
ALIGNMENT = 64


class Workspace(NamedTuple):
    """Every array that a step writes, beside parameters, state, losses and copies of weights."""

    inputs: np.ndarray
    targets: np.ndarray
    row_losses: np.ndarray
    stored: np.ndarray
    deltas: np.ndarray
    input_delta: np.ndarray
    predictions: np.ndarray
    slopes: np.ndarray
    upstream: np.ndarray
    scratch: np.ndarray


class Copies(NamedTuple):
    """The parameters in panels. What lies beyond the last row or column is zero, and stays so."""

    weights: np.ndarray
    transposed: np.ndarray
    biases: np.ndarray


def _padded(count: int, panel: int) -> int:
    return -(-count // panel) * panel


def row_capacity(batch_size: int, target: InstructionSet) -> int:
    """Return the rows that a panel has room for.

    Panels of a power of two of rows would lie on top of each other in the sets of the caches. A
    remainder of the tallest tile modulo 32 rows makes those of one tile follow each other.
    """
    tallest = target.row_tiles[0]
    return tallest + -(-max(0, batch_size - tallest) // 32) * 32


class FusedProgram:
    """A problem's tables and arrays; one call runs any of the stages of `cpu.fused`."""

    def __init__(self, problem: Problem, machine: Machine | None = None) -> None:
        machine = Machine() if machine is None else machine
        self.problem = problem
        self.dtype = np.dtype(problem.dtype)
        self.target = instruction_set(machine.instruction_set)
        self.threads = best_threads(problem, machine)
        self.panel = self.target.panel(problem.dtype)
        self.capacity = row_capacity(problem.batch_size, self.target)
        self.words = np.zeros(tables.WORDS, dtype=np.int64)
        self.chain = np.zeros((len(problem.sizes) - 1, tables.CHAIN_COLUMNS), dtype=np.int64)
        self.workspace = self._workspace()
        self.copies = self._copies()
        self.constants = {
            "identity": np.arange(max(problem.batch_size, *problem.sizes), dtype=np.int64),
            "zeros": self._zeros(self.panel),
            "scales": self._zeros(2),
            "meeting": self._bytes(MEETING_BYTES),
        }
        self.control = np.zeros(CONTROL_WORDS, dtype=np.int64)
        self.one_loss = self._zeros(1)
        self._bound: dict[int, np.ndarray] = {}
        self._fill_words()
        self._fill_functions()
        self.connect()

    def _bytes(self, count: int) -> np.ndarray:
        buffer = np.zeros(count + ALIGNMENT, dtype=np.uint8)
        start = -address(buffer) % ALIGNMENT
        return buffer[start : start + count]

    def _zeros(self, *shape: int) -> np.ndarray:
        count = int(np.prod(shape))
        return self._bytes(count * self.dtype.itemsize).view(self.dtype).reshape(shape)

    def _panels(self, units: int) -> int:
        """Return the elements that a matrix of activations takes."""
        return _padded(units, self.panel) * self.capacity

    def _workspace(self) -> Workspace:
        problem, batch = self.problem, self.problem.batch_size
        kept = zip(problem.sizes[1:], problem.keeps_input, strict=True)
        return Workspace(
            inputs=self._zeros(self._panels(problem.sizes[0])),
            targets=self._zeros(batch, problem.target_columns),
            row_losses=self._zeros(batch * losses_per_row(problem.rule, problem.sizes[-1])),
            stored=self._zeros(sum(self._panels(units) * (1 + both) for units, both in kept)),
            deltas=self._zeros(sum(self._panels(units) for units in problem.sizes[1:])),
            input_delta=self._zeros(self._panels(problem.sizes[0])),
            predictions=self._zeros(batch, problem.sizes[-1]),
            slopes=self._zeros(batch, problem.sizes[-1]),
            upstream=self._zeros(batch, problem.sizes[-1]),
            scratch=self._zeros(self.threads, self.panel, self.panel),
        )

    def _copies(self) -> Copies:
        panel = self.panel
        layers = parameter_layout(self.problem.sizes)
        count = sum(_padded(e.fan_in, panel) * _padded(e.fan_out, panel) for e in layers)
        return Copies(
            weights=self._zeros(count),
            transposed=self._zeros(count),
            biases=self._zeros(sum(_padded(each.fan_out, panel) for each in layers)),
        )

    def _fill_words(self) -> None:
        words, problem, target = self.words, self.problem, self.target
        tallest = target.row_tiles[0]
        units = sum(
            -(-each.fan_in // self.panel) * -(-each.fan_out // self.panel)
            for each in parameter_layout(problem.sizes)
        )
        sizes = {
            tables.MEMBERS: 1,
            tables.PACKED: 1,
            tables.LAYERS: len(self.chain),
            tables.ITEM: self.dtype.itemsize,
            tables.PANEL: self.panel,
            tables.LANES: target.lanes(problem.dtype),
            tables.FEATURE_TILE: target.feature_tile,
            tables.PANEL_STRIDE: self.capacity * self.panel,
            tables.ROW_BLOCK: ROW_BLOCK_TILES * tallest,
            tables.DEPTH_BLOCK: DEPTH_BLOCK,
            tables.SUM_BLOCK: SUM_BLOCK,
            # All exponent bits set: infinity, and beyond it every NaN.
            tables.LARGEST: int(np.array(np.inf, self.dtype).view(f"i{self.dtype.itemsize}")),
            tables.INPUT_COLUMNS: problem.sizes[0],
            tables.TARGET_COLUMNS: problem.target_columns,
            tables.OUTPUT_COLUMNS: problem.sizes[-1],
            tables.LOSSES_PER_ROW: losses_per_row(problem.rule, problem.sizes[-1]),
            tables.UNIT_COST: units,
            tables.SCRATCH_STRIDE: self.panel * self.panel * self.dtype.itemsize,
        }
        for word, value in sizes.items():
            words[word] = value

    def _fill_functions(self) -> None:
        words, problem, dtype = self.words, self.problem, self.problem.dtype
        code = microkernels(self.target, dtype)
        self.tiles = np.array(
            [
                (rows, code[product_name(rows, 1)], code[product_name(rows, 2)])
                for rows in self.target.row_tiles
            ],
            dtype=np.int64,
        )
        words[tables.COPY_ROWS] = code["copy_rows"]
        words[tables.TRANSPOSE] = code["transpose"]
        words[tables.COLUMN_SUM] = code["column_sum"]
        words[tables.DOT_ROWS] = code["dot_rows"]
        words[tables.DIRECT] = code["direct"]
        words[tables.GRADIENT_SINGLE] = code[gradient_name(1, 2)]
        words[tables.GRADIENT_NARROW] = code[gradient_name(self.target.feature_tile, 1)]
        words[tables.GRADIENT_WIDE] = code[gradient_name(self.target.feature_tile, 2)]
        words[tables.CHECK] = activation_forward("identity", dtype)
        words[tables.LOSS_RULE] = loss_and_gradient(problem.rule, dtype)
        words[tables.SUM_LOSSES] = sum_losses(dtype)
        output = ACTIVATIONS[problem.activations[-1]]
        words[tables.KEEPS_OUTPUT] = output.keeps == "output"
        for row, name in zip(self.chain, problem.training_activations, strict=True):
            row[tables.VALUE] = activation_forward(name, dtype)
            row[tables.SLOPE] = activation_backward(name, dtype)

    def connect(self) -> None:
        """Write the addresses of the program's own arrays into its tables."""
        words = self.words
        for word, array in (
            (tables.INPUTS, self.workspace.inputs),
            (tables.TARGETS, self.workspace.targets),
            (tables.ROW_LOSSES, self.workspace.row_losses),
            (tables.INPUT_DELTA, self.workspace.input_delta),
            (tables.PREDICTIONS, self.workspace.predictions),
            (tables.SLOPES, self.workspace.slopes),
            (tables.SCRATCH, self.workspace.scratch),
            (tables.IDENTITY, self.constants["identity"]),
            (tables.ZEROS, self.constants["zeros"]),
            (tables.SCALES, self.constants["scales"]),
            (tables.MEETING, self.constants["meeting"]),
            (tables.CHAIN, self.chain),
            (tables.TILES, self.tiles),
        ):
            words[word] = address(array)
        self._connect_chain()
        self.table = address(words)

    def _connect_chain(self) -> None:
        item, panel = self.dtype.itemsize, self.panel
        below = address(self.workspace.inputs)
        stored, delta = address(self.workspace.stored), address(self.workspace.deltas)
        weights, transposed, bias = (address(each) for each in self.copies)
        layers = zip(
            self.chain,
            parameter_layout(self.problem.sizes),
            self.problem.keeps_input,
            strict=True,
        )
        for row, layer, keeps_input in layers:
            size = self._panels(layer.fan_out) * item
            Z = stored
            A = stored + size if keeps_input else stored
            rows, columns = _padded(layer.fan_in, panel), _padded(layer.fan_out, panel)
            row[: tables.VALUE] = (
                layer.fan_in,
                layer.fan_out,
                layer.weight.start,
                layer.bias.start,
                weights,
                rows * panel,
                transposed,
                columns * panel,
                bias,
                below,
                Z,
                A,
                Z if keeps_input else A,
                delta,
            )
            below, stored, delta = A, A + size, delta + size
            weights, transposed = (
                weights + rows * columns * item,
                transposed + rows * columns * item,
            )
            bias += columns * item

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
