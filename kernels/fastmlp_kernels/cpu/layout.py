"""The memory of a problem: arrays in panels, and the tables that say where they are."""

from functools import partial
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np

from fastmlp_kernels.algebra import ACTIVATIONS
from fastmlp_kernels.cpu import tables
from fastmlp_kernels.cpu.activation import activation_backward, activation_forward
from fastmlp_kernels.cpu.finishing_tiles import BACKWARD, FINISHES, FORWARD, finishing_name
from fastmlp_kernels.cpu.listed_tiles import (
    COLUMN_ENTRY_BYTES,
    HEADER_BYTES,
    ROW_ENTRY_BYTES,
    listed_gradient_name,
    listed_product_name,
)
from fastmlp_kernels.cpu.loss import loss_and_gradient, losses_per_row, sum_losses
from fastmlp_kernels.cpu.machine_code import microkernels
from fastmlp_kernels.cpu.microkernels import gradient_name, product_name
from fastmlp_kernels.cpu.simd import InstructionSet
from fastmlp_kernels.cpu.tables import address
from fastmlp_kernels.cpu.team import BELL_BYTES, MASK_BYTES, MEETING_BYTES
from fastmlp_kernels.problem import Problem, parameter_layout

# Rows (in tallest tiles) and k of a block of a product, and rows of one of a weight gradient.
# 784-2048-2048-10 at batch 1024, on one thread and on two: 143 and 79 ms a step with 8 tiles and
# 512 k, 130 and 72 with 13 and 2048, 128 and 70 with 19 and 2048: a result that is written once
# saves more than a right operand that fits the first cache. 6000-64-10 loses 10 % of its forward
# product with all of k in a block. No difference on 256-512-512-16 and 64-256-256-8 (Zen 5, 48 KB
# and 1 MB of cache a core, 2026-11-24); summed rows from 128 to 512 are within 1 % of each other.
ROW_BLOCK_TILES = 13
DEPTH_BLOCK = 2048
SUM_BLOCK = 256
# Panels a thread above which shares that differ by one panel are even enough.
UNEVEN_SHARES = 4
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
    unit_squares: np.ndarray
    column_lists: np.ndarray
    row_lists: np.ndarray


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


def most_tiles(rows: int, target: InstructionSet) -> int:
    """Return the most tiles that any block of up to some rows takes."""

    def tiles(count: int) -> int:
        found = 0
        for height in target.row_tiles:
            found, count = found + count // height, count % height
        return found

    # One tallest tile less, and the most that the rest can take.
    tallest = target.row_tiles[0]
    return max(tiles(count) for count in range(max(0, rows - tallest), rows + 1))


class Layout:
    """Allocates everything that a problem needs, once, and fills the tables of `cpu.tables`.

    Parameters
    ----------
    problem : Problem
    target : InstructionSet
    threads : int
        The most members of a team.
    """

    def __init__(self, problem: Problem, target: InstructionSet, threads: int) -> None:
        self.problem, self.target, self.threads = problem, target, threads
        self.dtype = np.dtype(problem.dtype)
        self.panel = self.target.panel(problem.dtype)
        self.columns = self._shares_columns()
        self.capacity = row_capacity(problem.batch_size, self.target)
        self.words = np.zeros(tables.WORDS, dtype=np.int64)
        self.chain = np.zeros((len(problem.sizes) - 1, tables.CHAIN_COLUMNS), dtype=np.int64)
        self.workspace = self._workspace()
        self.copies = self._copies()
        self.constants = {
            "identity": np.arange(max(problem.batch_size, *problem.sizes), dtype=np.int64),
            "zeros": self._zeros(self.panel),
            "scales": self._zeros(2),
            "unused": np.zeros(1, dtype=np.float64),
            "meeting": self._bytes(MEETING_BYTES),
            "bells": self._bytes(self.threads * BELL_BYTES).reshape(-1, BELL_BYTES),
            "places": self._bytes((self.threads + 1) * MASK_BYTES).reshape(-1, MASK_BYTES),
        }
        self._fill_words()
        self._fill_functions()
        self.connect()

    def _shares_columns(self) -> bool:
        """Return whether a team shares the columns of the first layer, and not its rows.

        What crosses between the caches of two cores is then the layer's activations, there and
        back, and not half of its weights; and each thread gathers all of X. Epochs of 784-n-10 in
        float32, by columns and by rows: 660 and 724 us a step for n = 512 at batch 128, 248 and 232
        for 128 at 128, 214 and 194 for 100 at 200 (two threads, 2-core AMD EPYC, 2026-11-24).
        """
        inputs, outputs = self.problem.sizes[:2]
        batch = self.problem.batch_size
        panels = -(-outputs // self.panel)
        even = panels % self.threads == 0 or panels >= UNEVEN_SHARES * self.threads
        smaller = inputs > 2 * batch and outputs > batch
        return self.threads > 1 and outputs > 1 and even and smaller

    def unit_costs(self) -> list[int]:
        """Return the cost of all units of each layer, as `fused.unit_cost` counts it."""
        tile, lanes = self.target.feature_tile, self.target.lanes(self.problem.dtype)
        costs = []
        for layer in parameter_layout(self.problem.sizes):
            rows = _padded(layer.fan_in, tile)
            vectors = _padded(layer.fan_out, lanes) // lanes
            single = -(-layer.fan_in // self.panel)
            costs.append(single if layer.fan_out == 1 else rows * vectors)
        return costs

    def _units(self) -> list[int]:
        """Return the number of units of each layer."""
        panels = [-(-units // self.panel) for units in self.problem.sizes]
        return [inputs * outputs for inputs, outputs in pairwise(panels)]

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

    def _list_bytes(self) -> tuple[int, int, int, int]:
        """Return the bytes of a list and of all of a thread's: those of k, and those of rows."""
        problem = self.problem
        one = HEADER_BYTES + _padded(problem.sizes[0], self.panel) * COLUMN_ENTRY_BYTES
        # Pages of lists that no epoch writes take no memory. Where `pace` has one thread do it all,
        # it writes on into what would be the others'.
        share = problem.batch_size if self.columns else -(-problem.batch_size // self.threads)
        # In whole words, as the next one begins with a word.
        rows = HEADER_BYTES + _padded(problem.batch_size * ROW_ENTRY_BYTES, HEADER_BYTES)
        tiles = self.panel // self.target.feature_tile
        return one, most_tiles(share, self.target) * one, rows, tiles * rows + HEADER_BYTES

    def _workspace(self) -> Workspace:
        problem, batch = self.problem, self.problem.batch_size
        kept = zip(problem.sizes[1:], problem.keeps_input, strict=True)
        return Workspace(
            inputs=self._zeros(
                self._panels(problem.sizes[0]) * (self.threads if self.columns else 1)
            ),
            targets=self._zeros(batch, problem.target_columns),
            row_losses=self._zeros(batch * losses_per_row(problem.rule, problem.sizes[-1])),
            stored=self._zeros(sum(self._panels(units) * (1 + both) for units, both in kept)),
            deltas=self._zeros(sum(self._panels(units) for units in problem.sizes[1:])),
            input_delta=self._zeros(self._panels(problem.sizes[0])),
            predictions=self._zeros(batch, problem.sizes[-1]),
            slopes=self._zeros(batch, problem.sizes[-1]),
            upstream=self._zeros(batch, problem.sizes[-1]),
            scratch=self._zeros(self.threads, self.panel, self.panel),
            unit_squares=np.zeros(sum(self._units()), dtype=np.float64),
            column_lists=self._bytes(self.threads * self._list_bytes()[1]).view(self.dtype),
            row_lists=self._bytes(self.threads * self._list_bytes()[3]).view(self.dtype),
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
        column_list, column_lists, row_list, row_lists = self._list_bytes()
        sizes = {
            tables.COLUMN_LIST_BYTES: column_list,
            tables.COLUMN_LISTS_STRIDE: column_lists,
            tables.ROW_LIST_BYTES: row_list,
            tables.ROW_LISTS_STRIDE: row_lists,
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
            tables.INPUTS_STRIDE: self._panels(problem.sizes[0]) * self.dtype.itemsize,
            tables.UNITS: sum(self._units()),
            tables.SCRATCH_STRIDE: self.panel * self.panel * self.dtype.itemsize,
        }
        for word, value in sizes.items():
            words[word] = value

    def _fill_functions(self) -> None:
        words, problem, dtype = self.words, self.problem, self.problem.dtype
        code = microkernels(self.target, dtype)
        finishing = list(product(FINISHES, (FORWARD, BACKWARD)))
        names = [partial(finishing_name, way, activation) for activation, way in finishing]
        names = [product_name, *names, listed_product_name]
        self.tiles = np.array(
            [
                (rows, *(code[name(rows, v)] for name in names for v in (1, 2)))
                for rows in self.target.row_tiles
            ],
            dtype=np.int64,
        )
        columns = {key: tables.TILE_FINISHING + 2 * k for k, key in enumerate(finishing)}
        words[tables.COPY_ROWS] = code["copy_rows"]
        words[tables.TRANSPOSE] = code["transpose"]
        words[tables.COLUMN_SUM] = code["column_sum"]
        words[tables.DOT_ROWS] = code["dot_rows"]
        words[tables.DIRECT] = code.get("direct", 0)
        words[tables.GRADIENT_SINGLE] = code[gradient_name(1, 2)]
        words[tables.GRADIENT_NARROW] = code[gradient_name(self.target.feature_tile, 1)]
        words[tables.GRADIENT_WIDE] = code[gradient_name(self.target.feature_tile, 2)]
        words[tables.LIST_COLUMNS] = code["list_columns"]
        words[tables.LIST_ROWS] = code["list_rows"]
        words[tables.LISTED_GRADIENT_NARROW] = code[listed_gradient_name(1)]
        words[tables.LISTED_GRADIENT_WIDE] = code[listed_gradient_name(2)]
        words[tables.CHECK] = activation_forward("identity", dtype)
        words[tables.LOSS_RULE] = loss_and_gradient(problem.rule, dtype)
        words[tables.SUM_LOSSES] = sum_losses(dtype)
        words[tables.SUM_SQUARES] = sum_losses("float64")
        output = ACTIVATIONS[problem.activations[-1]]
        words[tables.KEEPS_OUTPUT] = output.keeps == "output"
        for row, name in zip(self.chain, problem.training_activations, strict=True):
            row[tables.VALUE] = activation_forward(name, dtype)
            row[tables.SLOPE] = activation_backward(name, dtype)
            row[tables.VALUE_TILE] = columns.get((name, FORWARD), 0)
            row[tables.SLOPE_TILE] = columns.get((name, BACKWARD), 0)

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
            (tables.COLUMN_LISTS, self.workspace.column_lists),
            (tables.ROW_LISTS, self.workspace.row_lists),
            (tables.IDENTITY, self.constants["identity"]),
            (tables.ZEROS, self.constants["zeros"]),
            (tables.SCALES, self.constants["scales"]),
            (tables.UNUSED, self.constants["unused"]),
            (tables.UNIT_SQUARES, self.workspace.unit_squares),
            (tables.MEETING, self.constants["meeting"]),
            (tables.BELLS, self.constants["bells"]),
            (tables.CHAIN, self.chain),
            (tables.TILES, self.tiles),
        ):
            words[word] = address(array)
        self._connect_chain()
        self.own_targets = int(words[tables.TARGETS])
        self.table = address(words)

    def _connect_chain(self) -> None:
        item, panel = self.dtype.itemsize, self.panel
        below = address(self.workspace.inputs)
        stored, delta = address(self.workspace.stored), address(self.workspace.deltas)
        weights, transposed, bias = (address(each) for each in self.copies)
        squares = address(self.workspace.unit_squares)
        layers = zip(
            self.chain,
            parameter_layout(self.problem.sizes),
            self.problem.keeps_input,
            self._units(),
            strict=True,
        )
        for row, layer, keeps_input, units in layers:
            size = self._panels(layer.fan_out) * item
            Z = stored
            A = stored + size if keeps_input else stored
            rows, columns = _padded(layer.fan_in, panel), _padded(layer.fan_out, panel)
            row[: tables.VALUE_TILE] = (
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
                squares,
            )
            squares += units * tables.WORD_BYTES
            below, stored, delta = A, A + size, delta + size
            weights, transposed = (
                weights + rows * columns * item,
                transposed + rows * columns * item,
            )
            bias += columns * item
