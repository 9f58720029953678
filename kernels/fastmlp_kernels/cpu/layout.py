"""The memory of a problem: arrays in panels, and the tables that say where they are."""

from functools import partial
from itertools import pairwise

import numpy as np

from fastmlp_kernels.algebra import ACTIVATIONS, HYPER_WIDTH
from fastmlp_kernels.algebra.dropout import threshold_of
from fastmlp_kernels.algebra.optimizers import CLIPPINGS
from fastmlp_kernels.cpu.activation import activation_backward, activation_forward
from fastmlp_kernels.cpu.clipping import clip, clip_by_norm
from fastmlp_kernels.cpu.direct_tiles import direct_name
from fastmlp_kernels.cpu.dropout import dropout
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
from fastmlp_kernels.cpu.row_tiles import ROW_PRODUCT, finishing_row_name
from fastmlp_kernels.cpu.simd import InstructionSet
from fastmlp_kernels.cpu.tables import (
    BELL,
    LAYER,
    MASK_BYTES,
    MEETING,
    STEP,
    TILE,
    WORD_BYTES,
    address,
    finishing_tile,
)
from fastmlp_kernels.cpu.workspace import Copies, Workspace, most_tiles, padded, row_capacity
from fastmlp_kernels.problem import Problem, parameter_layout

# Rows (in tallest tiles) of a block of a product, and rows of one of a weight gradient; `simd` has
# the k of a block. 784-2048-2048-10 at batch 1024 takes 130 ms a step with 13 tiles and 128 with
# 19. Summed rows from 128 to 512 are within 1 % of each other (Zen 5, 2026-11-24).
ROW_BLOCK_TILES = 13
SUM_BLOCK = 256
WEIGHT_BLOCK_DEPTH = 512
# Panels a thread above which shares that differ by one panel are even enough.
UNEVEN_SHARES = 4
ALIGNMENT = 64


class Layout:
    """Allocates everything that a problem needs, once, and fills the tables of `cpu.tables`.

    Parameters
    ----------
    problem : Problem
    target : InstructionSet
    threads : int
        The most threads of a team.
    """

    memory = None

    def __init__(self, problem: Problem, target: InstructionSet, threads: int) -> None:
        self.problem, self.target, self.threads = problem, target, threads
        self.dtype = np.dtype(problem.dtype)
        self.panel = self.target.panel(problem.dtype)
        self.columns = self._shares_columns()
        self.capacity = row_capacity(problem.batch_size, self.target)
        self.step = np.zeros(1, dtype=STEP)
        self.chain = np.zeros(len(problem.sizes) - 1, dtype=LAYER)
        self.workspace = self._workspace()
        self.copies = self._copies()
        self.constants = {
            "identity": np.arange(max(problem.batch_size, *problem.sizes), dtype=np.int64),
            "zeros": self._zeros(self.panel),
            "scales": self._zeros(2),
            "unused": np.zeros(1, dtype=np.float64),
            "one": np.ones(1, dtype=self.dtype),
            "keep_scales": np.array([1 / (1 - rate) for rate in problem.dropout], dtype=self.dtype),
            "meeting": self._bytes(MEETING.itemsize).view(MEETING),
            "bells": self._bytes(self.threads * BELL.itemsize).view(BELL),
            "places": self._bytes((self.threads + 1) * MASK_BYTES).reshape(-1, MASK_BYTES),
        }
        self._fill_sizes()
        self._fill_functions()
        self._fill_chain()
        self.connect()

    @property
    def straight(self) -> bool:
        """Whether whole batches of the last epoch went in a straight line."""
        return bool(self.step["rows_code"][0])

    def to_device(self, array: np.ndarray) -> np.ndarray:
        """Return the array itself."""
        return array

    def to_host(self, array: np.ndarray, out: np.ndarray) -> None:
        """Copy, unless it is the same array."""
        if array is not out:
            out[...] = array

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
            rows = padded(layer.fan_in, tile)
            vectors = padded(layer.fan_out, lanes) // lanes
            single = -(-layer.fan_in // self.panel)
            costs.append(single if layer.fan_out == 1 else rows * vectors)
        return costs

    @property
    def units(self) -> int:
        """The number of units of weights."""
        return sum(self._units())

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
        return padded(units, self.panel) * self.capacity

    def _tile_elements(self) -> int:
        """Return the elements of a tile of a gradient: a unit's weights, and a row of biases."""
        return self.panel * (self.panel + 1)

    def _weight_block_depth(self) -> int:
        """Return the rows of a block of weights that a thread copies for a product."""
        return min(WEIGHT_BLOCK_DEPTH, padded(max(self.problem.sizes[:-1]), self.panel))

    def _list_bytes(self) -> tuple[int, int, int, int]:
        """Return the bytes of a list and of all of a thread's: those of k, and those of rows."""
        problem = self.problem
        one = HEADER_BYTES + padded(problem.sizes[0], self.panel) * COLUMN_ENTRY_BYTES
        # Pages of lists that no epoch writes take no memory. Where one thread is chosen to do it
        # all, it writes on into what would be the others'.
        share = problem.batch_size if self.columns else -(-problem.batch_size // self.threads)
        # In whole words, as the next one begins with a word.
        rows = HEADER_BYTES + padded(problem.batch_size * ROW_ENTRY_BYTES, HEADER_BYTES)
        tiles = self.panel // self.target.feature_tile
        return one, most_tiles(share, self.target) * one, rows, tiles * rows + HEADER_BYTES

    def _workspace(self) -> Workspace:
        problem, batch = self.problem, self.problem.batch_size
        kept = zip(problem.sizes[1:], problem.keeps_input, strict=True)
        rates = zip(problem.sizes[1:-1], problem.dropout, strict=False)
        dropped = [self._panels(units) for units, rate in rates if rate > 0]
        clipped = self.units if problem.clipping == "norm" else 0
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
            scratch=self._zeros(self.threads, self._tile_elements()),
            unit_squares=np.zeros(self.units, dtype=np.float64),
            dropped=self._zeros(sum(dropped)),
            gradients=self._zeros(clipped, self._tile_elements()),
            gradient_squares=np.zeros(2 * self.units, dtype=np.float64),
            column_lists=self._bytes(self.threads * self._list_bytes()[1]).view(self.dtype),
            row_lists=self._bytes(self.threads * self._list_bytes()[3]).view(self.dtype),
            weight_blocks=self._zeros(self.threads, self._weight_block_depth(), self.panel),
        )

    def _copies(self) -> Copies:
        panel = self.panel
        layers = parameter_layout(self.problem.sizes)
        count = sum(padded(e.fan_in, panel) * padded(e.fan_out, panel) for e in layers)
        return Copies(
            weights=self._zeros(count),
            transposed=self._zeros(count),
            biases=self._zeros(sum(padded(each.fan_out, panel) for each in layers)),
        )

    def _fill_sizes(self) -> None:
        problem, target = self.problem, self.target
        column_list, column_lists, row_list, row_lists = self._list_bytes()
        sizes = {
            "layers": len(self.chain),
            "item": self.dtype.itemsize,
            "panel": self.panel,
            "lanes": target.lanes(problem.dtype),
            "feature_tile": target.feature_tile,
            "narrow_feature_tile": target.narrow_feature_tile(problem.dtype),
            "capacity": self.capacity,
            "row_block": ROW_BLOCK_TILES * target.row_tiles[0],
            "depth_block": target.depth_block,
            "sum_block": SUM_BLOCK,
            # All exponent bits set: infinity, and beyond it every NaN.
            "largest": int(np.array(np.inf, self.dtype).view(f"i{self.dtype.itemsize}")),
            "batch_size": problem.batch_size,
            "input_columns": problem.sizes[0],
            "target_columns": problem.target_columns,
            "output_columns": problem.sizes[-1],
            "losses_per_row": losses_per_row(problem.rule, problem.sizes[-1]),
            "units": self.units,
            "keeps_output": ACTIVATIONS[problem.activations[-1]].keeps == "output",
            "inputs_stride": self._panels(problem.sizes[0]) * self.dtype.itemsize,
            "scratch_stride": self._tile_elements() * self.dtype.itemsize,
            "hyper_stride": problem.hyper_columns * self.dtype.itemsize,
            "layer_hyper_stride": problem.layer_rates * HYPER_WIDTH * self.dtype.itemsize,
            "clipping": CLIPPINGS.index(problem.clipping),
            "column_lists_stride": column_lists,
            "column_list_bytes": column_list,
            "row_lists_stride": row_lists,
            "row_list_bytes": row_list,
            "weight_block_stride": self._weight_block_depth() * self.panel * self.dtype.itemsize,
            "weight_block_depth": self._weight_block_depth(),
        }
        self._fill(sizes)

    def _fill(self, values: dict[str, int]) -> None:
        for name, value in values.items():
            self.step[name] = value

    def _fill_functions(self) -> None:
        problem, dtype, tile = self.problem, self.problem.dtype, self.target.feature_tile
        code = microkernels(self.target, dtype)
        functions = {
            "copy_rows": code["copy_rows"],
            "transpose": code["transpose"],
            "dot_rows": code["dot_rows"],
            "direct_row": code.get("direct_row", 0),
            "gradient_single": code[gradient_name(1, 2)],
            "gradient_narrow": code[gradient_name(self.target.narrow_feature_tile(dtype), 1)],
            "gradient_wide": code[gradient_name(tile, 2)],
            "column_sum": code["column_sum"],
            "list_columns": code["list_columns"],
            "list_rows": code["list_rows"],
            "listed_gradient_narrow": code[listed_gradient_name(1)],
            "listed_gradient_wide": code[listed_gradient_name(2)],
            "sum_losses": sum_losses(dtype),
            "sum_squares": sum_losses("float64"),
            "check": activation_forward("identity", dtype),
            "unit_slope": activation_backward("identity", dtype),
            "loss_rule": loss_and_gradient(problem.rule, dtype),
        }
        # A leaf takes a second to compile, or a part of one. Few problems call these.
        if problem.clipping != "none":
            functions |= {"clip": clip(dtype), "clip_scale": clip_by_norm(dtype)}
        if any(problem.dropout):
            copy, in_place = dropout(dtype, False), dropout(dtype, True)
            functions |= {"dropout_copy": copy, "dropout_in_place": in_place}
        self._fill(functions)
        finishing = [(way, activation) for activation in FINISHES for way in (FORWARD, BACKWARD)]
        names = [(product_name, ROW_PRODUCT)]
        names += [(partial(finishing_name, *way), finishing_row_name(*way)) for way in finishing]

        def widths(height: int) -> list[int]:
            found = []
            for name, row_name in names:
                found += [code[name(height, v)] for v in (1, 2)]
                found.append(code[row_name] if height == 1 else 0)
            return found

        rows = [
            (
                height,
                *widths(height),
                code[direct_name(height)],
                *(code[listed_product_name(height, v)] for v in (1, 2)),
            )
            for height in self.target.row_tiles
        ]
        self.tiles = np.array(rows, dtype=TILE)

    def _fill_chain(self) -> None:
        problem, panel = self.problem, self.panel
        layers = parameter_layout(problem.sizes)
        for row, layer, name in zip(self.chain, layers, problem.training_activations, strict=True):
            row["fan_in"], row["fan_out"] = layer.fan_in, layer.fan_out
            row["weight"], row["bias"] = layer.weight.start, layer.bias.start
            row["W_stride"] = padded(layer.fan_in, panel) * panel
            row["transposed_stride"] = padded(layer.fan_out, panel) * panel
            row["value"] = activation_forward(name, problem.dtype)
            row["slope"] = activation_backward(name, problem.dtype)
            if name in FINISHES:
                row["value_tile"] = finishing_tile(name, FORWARD)
                row["slope_tile"] = finishing_tile(name, BACKWARD)

    def connect(self) -> None:
        """Write the addresses of the program's own arrays into its tables."""
        arrays = {
            "chain": self.chain,
            "tiles": self.tiles,
            "meeting": self.constants["meeting"],
            "bells": self.constants["bells"],
            "identity": self.constants["identity"],
            "inputs": self.workspace.inputs,
            "own_targets": self.workspace.targets,
            "row_losses": self.workspace.row_losses,
            "predictions": self.workspace.predictions,
            "slopes": self.workspace.slopes,
            "input_delta": self.workspace.input_delta,
            "scratch": self.workspace.scratch,
            "column_lists": self.workspace.column_lists,
            "row_lists": self.workspace.row_lists,
            "weight_blocks": self.workspace.weight_blocks,
            "zeros": self.constants["zeros"],
            "scales": self.constants["scales"],
            "unit_squares": self.workspace.unit_squares,
            "gradient_squares": self.workspace.gradient_squares,
            "one": self.constants["one"],
            "unused": self.constants["unused"],
        }
        self._fill({name: address(array) for name, array in arrays.items()})
        self._connect_chain()
        self.table, self.words = address(self.step), self.step.view(np.int64)

    def _connect_chain(self) -> None:
        item, panel = self.dtype.itemsize, self.panel
        below = address(self.workspace.inputs)
        stored, delta = address(self.workspace.stored), address(self.workspace.deltas)
        weights, transposed, bias = (address(each) for each in self.copies)
        squares = address(self.workspace.unit_squares)
        gradient = address(self.workspace.gradients)
        gradient_squares = address(self.workspace.gradient_squares)
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
            rows, columns = padded(layer.fan_in, panel), padded(layer.fan_out, panel)
            row["W"], row["transposed"], row["B"] = weights, transposed, bias
            row["input"], row["Z"], row["A"] = below, Z, A
            row["kept"], row["delta"] = Z if keeps_input else A, delta
            row["squares"] = squares
            row["gradient"], row["gradient_squares"] = gradient, gradient_squares
            squares += units * WORD_BYTES
            gradient_squares += 2 * units * WORD_BYTES
            if self.problem.clipping == "norm":
                gradient += units * self._tile_elements() * item
            below, stored, delta = A, A + size, delta + size
            weights, transposed = (
                weights + rows * columns * item,
                transposed + rows * columns * item,
            )
            bias += columns * item
            row["training_input"] = row["input"]
            row["keep_scale"] = address(self.constants["one"])
        self._connect_dropout()

    def _connect_dropout(self) -> None:
        """Write where what dropout leaves of a layer's activation is, and how it is done."""
        start, scales = address(self.workspace.dropped), address(self.constants["keep_scales"])
        units = self.problem.sizes[1:-1]
        for index, rate in enumerate(self.problem.dropout):
            if rate > 0:
                row = self.chain[index]
                row["keep_threshold"] = threshold_of(rate)
                row["keep_scale"] = scales + index * self.dtype.itemsize
                self.chain[index + 1]["training_input"] = start
                start += self._panels(units[index]) * self.dtype.itemsize
