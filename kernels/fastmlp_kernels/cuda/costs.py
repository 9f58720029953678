"""What an epoch on a GPU would take, by rooflines; and what it copies and launches.

Plain arithmetic on the constants of `Machine`, without Numba. Nothing here was measured: shares of
peaks are estimates until a run on a GPU replaces them.
"""

from dataclasses import dataclass

from fastmlp_kernels.problem import Machine, Problem, parameter_layout

# Capabilities whose float64 arithmetic runs at half the rate of float32; elsewhere it is a 32nd.
FAST_FLOAT64 = {(7, 0), (8, 0), (9, 0), (10, 0)}
# Rows and columns of a tile of a product, of which a multiprocessor works on one: a result of few
# tiles leaves the others idle, unless its sum is split among them.
TILE = 128, 64
SPLITS = 8
# Passes over a layer's activations: a product writes them in either direction. A kernel after it,
# where the library has no epilogue in its place, reads and writes them.
PASSES, PASSES_OF_A_KERNEL = 2, 2
# The kernel that computes all gradients of weights in one launch: sides of its tiles, rows of a
# slice at least, blocks that it should have, and the part of `gpu_flops` that it may reach.
SIDE, SLICE_ROWS, BLOCKS, OWN_SHARE = 64, 64, 128, 0.5


def item_bytes(problem: Problem) -> int:
    """Return the bytes of a number."""
    return 8 if problem.dtype == "float64" else 4


def product_rate(problem: Problem, machine: Machine) -> float:
    """Return the floating-point operations a second of large products of the problem's kind."""
    if problem.dtype == "float64":
        half = machine.gpu_capability in FAST_FLOAT64
        return machine.gpu_flops * (1 / 2 if half else 1 / 32)
    return {
        "float32": machine.gpu_flops,
        "tf32": machine.gpu_tf32_flops,
        "bfloat16": machine.gpu_bfloat16_flops,
    }[problem.precision]


@dataclass(frozen=True)
class Copies:
    """Copies between the host and the GPU: how many, and their bytes."""

    fit: int
    fit_bytes: int
    epoch: int
    epoch_bytes: int


def copies(problem: Problem) -> Copies:
    """Return what a fit copies once, there and back, and what each of its epochs does."""
    item, members, state = item_bytes(problem), problem.members, int(problem.slots > 0)
    network = item * members * problem.parameter_count * (1 + problem.slots)
    data = item * problem.rows * (problem.sizes[0] + problem.target_columns)
    # There: X, y, parameters, state; back: parameters, state.
    fit, fit_bytes = 4 + 2 * state, data + 2 * network
    # There: the order, the hyper-parameters, the words of control; back: losses and words.
    order = 8 * problem.rows + item * problem.batches * (problem.hyper_columns + 1)
    return Copies(fit, fit_bytes, 5, members * order)


def copy_seconds(problem: Problem, machine: Machine) -> float:
    """Return the seconds of all copies of a fit of one epoch."""
    found = copies(problem)
    count, moved = found.fit + found.epoch, found.fit_bytes + found.epoch_bytes
    return count * machine.gpu_copy_seconds + moved / machine.gpu_copy_bytes


def _product_seconds(shape: tuple[int, int, int], rate: float, machine: Machine) -> float:
    """Return the seconds of a product of (rows, terms, columns)."""
    rows, terms, columns = shape
    tiles = -(-rows // TILE[0]) * -(-columns // TILE[1])
    # Only long sums are split.
    tiles *= max(1, min(SPLITS, terms // 512))
    busy = min(1.0, tiles / machine.gpu_processors)
    return 2.0 * rows * terms * columns / (rate * busy)


def _gradient_seconds(problem: Problem, machine: Machine) -> tuple[float, float]:
    """Return the seconds of all gradients of weights: by our kernel, and by the library."""
    rows, node = problem.batch_size, machine.gpu_node_seconds
    shapes = [(layer.fan_in, rows, layer.fan_out) for layer in parameter_layout(problem.sizes)]
    rate = product_rate(problem, machine)
    library = sum(_product_seconds(shape, rate, machine) + node for shape in shapes)
    tiles = sum(-(-fan_in // SIDE) * -(-fan_out // SIDE) for fan_in, _, fan_out in shapes)
    slice_rows = max(SLICE_ROWS, -(-rows // max(1, BLOCKS // tiles)))
    waves = -(-tiles * -(-rows // slice_rows) // machine.gpu_processors)
    plain = rate if problem.dtype == "float64" else machine.gpu_flops
    block = 2.0 * SIDE * SIDE * min(rows, slice_rows) / (OWN_SHARE * plain / machine.gpu_processors)
    # The library leaves the check to a launch of its own.
    return waves * block + node, library + node


def gradients_together(problem: Problem, machine: Machine) -> bool:
    """Return whether `cuda.layered` computes all gradients of weights in one launch of its own.

    It does where launches take the time. The products of wide layers are the library's, which is
    faster at them.
    """
    own, library = _gradient_seconds(problem, machine)
    return own <= library


def _rounds(problem: Problem, machine: Machine) -> bool:
    """Return whether kernels round the factors of the library's products to bfloat16."""
    wanted = problem.dtype == "float32" and problem.precision == "bfloat16"
    return wanted and not gradients_together(problem, machine)


def _kernels_of_layers(problem: Problem, machine: Machine) -> list[int]:
    """Return how many kernels a step takes for what the library leaves undone of each layer."""
    counts, last, rounds = [], len(problem.sizes) - 2, _rounds(problem, machine)
    for index, name in enumerate(problem.training_activations):
        fused = ("identity",) if rounds else ("identity", "relu")
        forward = name not in fused or (rounds and index < last)
        # A slope of the last layer has no product to be fused with. The product of a column by a
        # row is a kernel, which applies any slope.
        column = index < last and problem.sizes[index + 2] == 1
        sloped = name == "identity" or (index < last and (name == "relu" or column))
        counts.append(int(forward) + int(rounds or not sloped))
    return counts


def layered_launches(problem: Problem, machine: Machine, library: bool = False) -> int:
    """Return the kernels that an epoch of `cuda.layered` launches, or replays.

    `library` says whether cuBLASLt computes the products, with all epilogues that are asked of it.
    """
    layers = len(problem.sizes) - 1
    # Each layer's product, and backward but for the first; the loss, the update, and what that
    # needs of the gradient's norm; a layer's outputs left out, and the derivatives by them.
    step = 2 * layers - 1 + 2 + (problem.clipping == "norm")
    step += 2 * sum(share > 0 for share in problem.dropout)
    if library:
        step += sum(_kernels_of_layers(problem, machine))
    else:
        # The tiles fuse all but the slope of the last layer into their products.
        step += problem.training_activations[-1] != "identity"
    # The gradients of weights, checked; or each of its own and the check.
    step += 1 if gradients_together(problem, machine) or not library else layers + 1
    # The rows of the first batch, which no update collects; and weights that are rounded.
    return problem.batches * step + 1 + layers * (library and _rounds(problem, machine))


def layered_seconds(problem: Problem, machine: Machine) -> float:
    """Return the predicted seconds of an epoch of `cuda.layered`, copies included."""
    rate, item, rows = product_rate(problem, machine), item_bytes(problem), problem.batch_size
    batch = layered_launches(problem, machine, True) / problem.batches * machine.gpu_node_seconds
    gradients = _gradient_seconds(problem, machine)
    # Their launches are counted above.
    nodes = 1 if gradients_together(problem, machine) else len(problem.sizes)
    batch += min(gradients) - nodes * machine.gpu_node_seconds
    for index, layer in enumerate(parameter_layout(problem.sizes)):
        forward = (rows, layer.fan_in, layer.fan_out)
        backward = (rows, layer.fan_out, layer.fan_in)
        for shape in (forward, backward)[: 2 if index else 1]:
            batch += _product_seconds(shape, rate, machine)
    counts = _kernels_of_layers(problem, machine)
    apart = sum(count * units for count, units in zip(counts, problem.sizes[1:], strict=True))
    moved = rows * (PASSES * sum(problem.sizes) + PASSES_OF_A_KERNEL * apart)
    moved += problem.parameter_count * (5 + 2 * problem.slots)
    batch += item * moved / machine.gpu_bytes
    # A graph's launch by the host, which works ahead of the GPU.
    batch = max(batch, machine.gpu_launch_seconds)
    return problem.batches * batch + copy_seconds(problem, machine)
