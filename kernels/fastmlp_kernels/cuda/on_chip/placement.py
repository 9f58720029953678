"""Where a network lies in the shared memory of a block, as records of `tables`.

Plain arithmetic, without Numba: `supports` asks it, and the kernels read its table. A tile of rows
goes through all layers there, so for each layer it holds the weights, the activation, the
pre-activation where it is kept, the whole activation where dropout leaves less than the slope
reads, and beside them two matrices in turn for the derivatives by the pre-activations.
"""

import bisect
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fastmlp_kernels.algebra import ACTIVATIONS
from fastmlp_kernels.algebra.dropout import keep_thresholds
from fastmlp_kernels.cuda.on_chip import tables
from fastmlp_kernels.problem import LayerLayout, Problem, parameter_layout

# Every region begins at a multiple of it, for loads of 16 bytes and for ldmatrix.
ALIGNMENT = 16
# State moves out of shared memory only for tiles of fewer rows than these.
FEW_ROWS = 32
# Weights that an update takes together, where it can.
VECTOR = 4


class Form(NamedTuple):
    """What a placement depends on of the block products: see `products.BlockProducts`."""

    name: str
    operand: str
    number: str
    pad: int
    skew: int
    row_pad: int

    @property
    def mixed(self) -> bool:
        """Whether operands and numbers are of different kinds."""
        return self.name != "float"


def float_form(dtype: str, tile_rows: int = 4, tile_columns: int = 4) -> Form:
    """Return the form of `block_linear` for its register tiles."""
    pad = max(4, tile_rows, tile_columns)
    return Form("float", dtype, dtype, pad, ALIGNMENT // np.dtype(dtype).itemsize, tile_rows)


# The forms of `tensor_linear`, by precision.
TENSOR_FORMS = {
    "bfloat16": Form("bfloat16", "uint16", "float32", 32, 8, 32),
    "tf32": Form("tf32", "float32", "float32", 32, 4, 32),
}


def padded(width: int, multiple: int) -> int:
    """Return the smallest multiple that is not below `width`."""
    return -(-width // multiple) * multiple


def row_stride(width: int, form: Form) -> int:
    """Return the elements from a row of operands to the next.

    An odd multiple of the skew, which is 16 bytes: the 128 bytes of the banks are 8 of those, so
    8 neighbouring rows begin in 8 different ones.
    """
    columns = padded(width, form.pad)
    return columns + (form.skew if columns // form.skew % 2 == 0 else 0)


class Region(NamedTuple):
    """Bytes of shared memory that have one use."""

    name: str
    start: int
    size: int


class _Memory:
    """Regions one after the other."""

    def __init__(self) -> None:
        self.regions: list[Region] = []
        self.end = 0

    def take(self, name: str, count: int, dtype: str) -> int:
        """Return the offset, in elements, of room for so many."""
        item = np.dtype(dtype).itemsize
        region = Region(name, self.end, padded(count * item, ALIGNMENT))
        self.regions.append(region)
        self.end += region.size
        return region.start // item


@dataclass(frozen=True)
class Placement:
    """A network's place in shared memory, for tiles of so many rows.

    Parameters
    ----------
    form : Form
    rows : int
        Of a tile: a multiple of ``form.row_pad``.
    gradient_shared, state_shared : bool
        Whether the gradient and the optimizer's state lie in shared memory, or in global.
    regions : tuple of Region
    tile, layers : mapping, tuple of mapping
        The fields of `TILE`, and those of `LAYER` for each layer, by their names.
    """

    form: Form
    rows: int
    gradient_shared: bool
    state_shared: bool
    regions: tuple[Region, ...]
    tile: Mapping[str, int]
    layers: tuple[Mapping[str, int], ...]

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block."""
        return self.regions[-1].start + self.regions[-1].size

    def table(self, problem: Problem) -> np.ndarray:
        """Return the table, as an array of int64, for epochs of a problem."""
        epoch = {"batch_size": problem.batch_size, "rows": problem.rows}
        return tables.whole(self.tile, epoch, self.layers)


def activations_in_use(problem: Problem) -> tuple[str, ...]:
    """Return the activations of a training step, each once: its place here is its code."""
    return tuple(dict.fromkeys(problem.training_activations))


class _Rows(NamedTuple):
    """What a tile needs: offsets and strides by layer, of rows."""

    inputs: list[tuple[int, int]]
    kept: list[tuple[int, int]]
    deltas: list[tuple[int, int]]
    loss_gradient: tuple[int, int]


def _place_rows(problem: Problem, form: Form, rows: int, memory: _Memory) -> _Rows:
    """Return where a tile's matrices lie; the last of the inputs are the outputs, as numbers."""
    last = len(problem.sizes) - 2
    inputs, kept, deltas = [], [], []
    for index, width in enumerate(problem.sizes):
        output = index == last + 1
        # A thread a row reads the outputs: an odd stride puts 32 rows into 32 banks.
        stride = width | 1 if output else row_stride(width, form)
        dtype = form.number if output else form.operand
        inputs.append((memory.take(f"activation {index}", rows * stride, dtype), stride))
    turns = [0, 0]
    for index, width in enumerate(problem.sizes[1:]):
        turn = (last - index) % 2
        turns[turn] = max(turns[turn], rows * row_stride(width, form))
    buffers = [memory.take(f"dZ {k}", size, form.operand) for k, size in enumerate(turns)]
    drops = [threshold > 0 for threshold in keep_thresholds(problem.dropout, last + 1)]
    for index, width in enumerate(problem.sizes[1:]):
        stride = row_stride(width, form)
        kept.append(inputs[index + 1])
        if problem.keeps_input[index]:
            kept[index] = memory.take(f"Z {index}", rows * stride, form.number), stride
        elif drops[index] and not ACTIVATIONS[problem.training_activations[index]].sign_only:
            kept[index] = memory.take(f"whole A {index}", rows * stride, form.operand), stride
        deltas.append((buffers[(last - index) % 2], stride))
    gradient = deltas[last]
    if form.mixed:
        stride = problem.sizes[-1] | 1
        gradient = memory.take("loss gradient", rows * stride, form.number), stride
    return _Rows(inputs, kept, deltas, gradient)


def _walk(layer: LayerLayout, threads: int, state_shared: bool) -> dict[str, int]:
    """Return how a thread walks over the weights of a layer."""
    # Vectors that a network's state in global memory begins with may lie anywhere.
    aligned = layer.fan_out % VECTOR == layer.weight.start % VECTOR == 0
    together = VECTOR if aligned and state_shared else 1
    across = layer.fan_out // together
    return {
        "together": together,
        "across": across,
        "down": threads // across,
        "along": threads % across * together,
    }


def _layer(
    problem: Problem, form: Form, index: int, layer: LayerLayout, memory: _Memory
) -> dict[str, int]:
    """Return the fields of a layer that neither rows nor threads have a part in."""
    fan_in, fan_out = layer.fan_in, layer.fan_out
    stride = row_stride(fan_out, form)
    codes = activations_in_use(problem)
    return {
        "fan_in": fan_in,
        "fan_out": fan_out,
        "weights": fan_in * fan_out,
        "W": memory.take(f"W {index}", padded(fan_in, form.pad) * stride, form.operand),
        "W_stride": stride,
        # Padded, as products may read on; what they make of it is not used.
        "b": memory.take(f"b {index}", padded(fan_out, form.pad), form.number),
        "keeps_input": int(problem.keeps_input[index]),
        "keep_threshold": keep_thresholds(problem.dropout, len(problem.activations))[index],
        "start": layer.weight.start,
        "activation": codes.index(problem.training_activations[index]),
    }


def _placement(
    problem: Problem, form: Form, threads: int, shared: Sequence[bool], rows: int
) -> Placement:
    """Return the placement for tiles of so many rows."""
    memory = _Memory()
    count, columns = problem.parameter_count, problem.target_columns
    gradient_shared, state_shared, master = shared
    layers = tuple(
        _layer(problem, form, index, layer, memory) | _walk(layer, threads, state_shared)
        for index, layer in enumerate(parameter_layout(problem.sizes))
    )
    places = _place_rows(problem, form, rows, memory)
    for index, layer in enumerate(layers):
        layer["A"], layer["A_stride"] = places.inputs[index]
        layer["out"], layer["out_stride"] = places.inputs[index + 1]
        layer["kept"], layer["kept_stride"] = places.kept[index]
        layer["dZ"], layer["dZ_stride"] = places.deltas[index]
    slots = [count if state_shared and k < problem.slots else 0 for k in range(2)]

    def numbers(name: str, size: int) -> int:
        return memory.take(name, size, form.number)

    tile = {
        "layers": len(layers),
        "parameters": count,
        "rows": rows,
        "inputs": problem.sizes[0],
        "X": places.inputs[0][0],
        "X_stride": places.inputs[0][1],
        "target_columns": columns,
        "targets": numbers("targets", rows * (columns | 1)),
        "target_stride": columns | 1,
        "outputs": problem.sizes[-1],
        "logits": places.inputs[-1][0],
        "logit_stride": places.inputs[-1][1],
        "loss_gradient": places.loss_gradient[0],
        "loss_gradient_stride": places.loss_gradient[1],
        "row_losses": numbers("row losses", rows),
        "partial": numbers("partial sums", threads),
        # Those of this step, and of the next one.
        "hyper": numbers("hyper", 2 * problem.hyper_columns),
        "gradient": numbers("gradient", count if gradient_shared else 0),
        "first": numbers("first", slots[0]),
        "second": numbers("second", slots[1]),
        "master": numbers("master", count if form.mixed and master else 0),
    }
    tile["numbers_used"] = memory.end // np.dtype(form.number).itemsize
    return Placement(form, rows, *shared[:2], tuple(memory.regions), tile, layers)


def _largest(
    problem: Problem, form: Form, threads: int, capacity: int, shared: Sequence[bool]
) -> Placement | None:
    """Return the placement of most rows that fits; of as many tiles, the one of fewest rows."""
    step = form.row_pad
    build = functools.partial(_placement, problem, form, threads, shared)
    sizes = range(step, padded(problem.batch_size, step) + 1, step)
    fitting = bisect.bisect_right(sizes, capacity, key=lambda rows: build(rows).shared_bytes)
    if fitting == 0:
        return None
    tiles = -(-problem.batch_size // sizes[fitting - 1])
    return build(padded(-(-problem.batch_size // tiles), step))


@functools.lru_cache(maxsize=256)
def place(
    problem: Problem,
    form: Form,
    threads: int,
    capacity: int,
    gradient_shared: bool = True,
    state_shared: bool | None = None,
    master: bool = True,
) -> Placement | str:
    """Return where the network lies in shared memory, or why it does not fit.

    Parameters
    ----------
    problem : Problem
    form : Form
    threads : int
        Of a block.
    capacity : int
        Bytes of shared memory that a block may have.
    gradient_shared : bool
        Whether the gradient is to lie there too.
    state_shared : bool, optional
        Whether the optimizer's state is; by default where that leaves room for `FEW_ROWS`.
    master : bool
        Whether parameters lie there as numbers too where operands are others, for an update there.

    Returns
    -------
    Placement or str
        As many rows a tile as fit, and not more than the batch has; of the sizes that take as many
        tiles for a batch, the smallest, so that the last tile is not nearly empty.
    """
    wanted = min(FEW_ROWS, problem.batch_size)
    for shared in (True, False) if state_shared is None else (state_shared,):
        found = _largest(problem, form, threads, capacity, (gradient_shared, shared, master))
        if found and (found.rows >= wanted or not shared or state_shared):
            return found
    least = (gradient_shared, bool(state_shared), master)
    smallest = _placement(problem, form, threads, least, form.row_pad)
    needed = -(-smallest.shared_bytes // 1024)
    return f"needs {needed} KB of shared memory a block, the GPU has {capacity // 1024} KB"
