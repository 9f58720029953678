"""The kernels of `cuda.layered` for one choice of block sizes, and how they are launched."""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from numba import cuda

from fastmlp_kernels.compile import simulated
from fastmlp_kernels.cuda.device.configurations import configured
from fastmlp_kernels.cuda.layered import activation, clipping, linear, loss, update
from fastmlp_kernels.cuda.layered.activation import (
    ROWS_OF_A_LANE,
    activation_backward,
    activation_forward,
    bias_and_activation,
)
from fastmlp_kernels.cuda.layered.bfloat16 import round_rows
from fastmlp_kernels.cuda.layered.dropout import dropout
from fastmlp_kernels.cuda.layered.gather import gather_rows

WARP = 32
# What a thread of `sum_squares` sums at least, where there are so many elements.
ELEMENTS_OF_A_SUM = 4


@dataclass(frozen=True)
class Tiles:
    """Block sizes.

    Parameters
    ----------
    tile : int
        A product's block has ``tile`` by ``tile`` threads.
    threads : int
        Threads of a block in any other kernel.
    registers : int
        A thread of a product computes so many rows by as many columns.
    depth : int
        Terms of a product's sum that are in shared memory at a time.
    columns : int
        Columns that a block of `slope_and_sums` takes.
    """

    tile: int = 16
    threads: int = 256
    registers: int = 4
    depth: int = 16
    columns: int = 32

    @property
    def side(self) -> int:
        """Rows, and columns, of a product's result that a block computes."""
        return self.tile * self.registers

    @property
    def lanes(self) -> int:
        """Threads that share a column in `slope_and_sums`."""
        return max(1, self.threads // self.columns)

    def row_blocks(self, rows: int) -> int:
        """Return the blocks that share the columns of so many rows in `slope_and_sums`."""
        return -(-rows // (self.lanes * ROWS_OF_A_LANE))

    @property
    def row_threads(self) -> int:
        """Threads of a block of a kernel that has one for each row: see `Launches.by_row`."""
        return min(WARP, self.threads)

    def sum_blocks(self, count: int) -> int:
        """Return the blocks that share so many elements in `sum_squares`."""
        # So that the last block has no more sums to add up than threads.
        return min(self.threads, -(-count // (ELEMENTS_OF_A_SUM * self.threads)))


# A block of 256 threads is 256 Python threads there.
SIMULATED_TILES = Tiles(tile=3, threads=5, registers=2, depth=5, columns=2)


def default_tiles() -> Tiles:
    """Return the block sizes for where the kernels run."""
    return SIMULATED_TILES if simulated() else Tiles()


class Kernels(NamedTuple):
    """Every kernel of the program, for one choice of block sizes and a loss."""

    activation_forward: Any
    activation_backward: Any
    bias_and_activation: Any
    slope_and_sums: Any
    linear_forward: Any
    linear_backward: Any
    weight_gradient: Any
    loss_and_gradient: Any
    check_finite: Any
    predict_rows: Any
    update: Any
    update_and_gather: Any
    sum_squares: Any
    clip_by_norm: Any
    dropout: Any
    gather_rows: Any
    round_rows: Any


@functools.cache
def build(
    tiles: Tiles, rule: str = "half_squared_error", link: str = "half_squared_error"
) -> Kernels:
    """Return the kernels for these block sizes; nothing is compiled before a launch.

    `rule` names the rule of a loss, and `link` the loss whose link predictions go through.
    """
    products = linear.build(tiles.tile, tiles.registers, tiles.depth)
    return Kernels(
        activation_forward=activation_forward,
        activation_backward=activation_backward,
        bias_and_activation=bias_and_activation,
        slope_and_sums=activation.build(tiles.columns, tiles.lanes),
        linear_forward=products.linear_forward,
        linear_backward=products.linear_backward,
        weight_gradient=products.weight_gradient,
        loss_and_gradient=loss.of_rule(rule, tiles.row_threads),
        check_finite=loss.check_finite,
        predict_rows=loss.of_link(link),
        update=update.update,
        update_and_gather=update.update_and_gather,
        sum_squares=update.build(tiles.threads),
        clip_by_norm=clipping.build(tiles.threads),
        dropout=dropout,
        gather_rows=gather_rows,
        round_rows=round_rows,
    )


class Launches:
    """Launches of kernels, all on the stream that is current.

    That is the legacy default stream, which waits for every blocking stream and makes each wait
    for it: calls of several programs on the same arrays keep their order without the host's
    waiting. `on` makes another current, for an epoch or for a capture.
    """

    def __init__(self, tiles: Tiles) -> None:
        self.tiles = tiles
        self.stream = cuda.legacy_default_stream()

    @contextlib.contextmanager
    def on(self, stream: Any) -> Iterator[None]:
        """Launch on `stream` meanwhile."""
        before, self.stream = self.stream, stream
        try:
            yield
        finally:
            self.stream = before

    def handle(self) -> int:
        """Return the current stream as a library takes it."""
        return 0 if simulated() else int(self.stream)

    def grid(self, kernel: Any, grid: Any, block: Any, *arguments: Any) -> None:
        """Launch a kernel."""
        configured(kernel, grid, block, self.stream)(*arguments)

    def over(self, kernel: Any, count: int, *arguments: Any) -> None:
        """Launch with a thread for each of `count` elements."""
        threads = self.tiles.threads
        self.grid(kernel, -(-count // threads), threads, *arguments)

    def by_row(self, kernel: Any, rows: int, *arguments: Any) -> None:
        """Launch with a thread for each of `rows` rows, in small blocks.

        A thread goes over a whole row: a batch's rows are spread over many processors.
        """
        threads = self.tiles.row_threads
        self.grid(kernel, -(-rows // threads), threads, *arguments)

    def sum_of(self, kernel: Any, count: int, *arguments: Any) -> None:
        """Launch `sum_squares` or `clip_by_norm` over so many elements."""
        self.grid(kernel, self.tiles.sum_blocks(count), self.tiles.threads, *arguments)

    def block(self, kernel: Any, *arguments: Any) -> None:
        """Launch one block."""
        self.grid(kernel, 1, self.tiles.threads, *arguments)

    def product(self, kernel: Any, rows: int, columns: int, *arguments: Any) -> None:
        """Launch with a block for each tile of a result of rows by columns."""
        side, tile = self.tiles.side, self.tiles.tile
        # Rows along x: the other axes of a grid end at 65535 blocks.
        self.grid(kernel, (-(-rows // side), -(-columns // side)), (tile, tile), *arguments)

    def column_sums(self, kernel: Any, rows: int, columns: int, *arguments: Any) -> None:
        """Launch `slope_and_sums` over rows by columns."""
        tiles = self.tiles
        grid = (tiles.row_blocks(rows), -(-columns // tiles.columns))
        self.grid(kernel, grid, (tiles.columns, tiles.lanes), *arguments)
