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
# Passes over a layer's activations beside its products: written by one, read and written by the
# kernel after it, in either direction.
PASSES = 6


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


def layered_launches(problem: Problem, library: bool = False) -> int:
    """Return the kernels that an epoch of `cuda.layered` launches, or replays.

    `library` says whether cuBLASLt computes the products.
    """
    layers = len(problem.sizes) - 1
    # Gather, loss, the check, the update, and what it needs of the gradient's norm; backward-data
    # for all layers but the first.
    around, backward = 4 + (problem.clipping == "norm"), layers - 1
    # A layer's outputs, and the derivatives by them.
    around += 2 * sum(share > 0 for share in problem.dropout)
    if library:
        # A layer's product, bias and activation; slope and sums, weight gradient.
        return problem.batches * (around + 4 * layers + backward)
    # The tiles fuse all but the slope of the last layer into their products.
    last = problem.training_activations[-1] != "identity"
    return problem.batches * (around + 2 * layers + backward + last)


def _product_seconds(shape: tuple[int, int, int], rate: float, machine: Machine) -> float:
    """Return the seconds of a product of (rows, terms, columns)."""
    rows, terms, columns = shape
    tiles = -(-rows // TILE[0]) * -(-columns // TILE[1])
    # Only long sums are split.
    tiles *= max(1, min(SPLITS, terms // 512))
    busy = min(1.0, tiles / machine.gpu_processors)
    return 2.0 * rows * terms * columns / (rate * busy)


def layered_seconds(problem: Problem, machine: Machine) -> float:
    """Return the predicted seconds of an epoch of `cuda.layered`, copies included."""
    rate, item, rows = product_rate(problem, machine), item_bytes(problem), problem.batch_size
    batch = layered_launches(problem, True) / problem.batches * machine.gpu_node_seconds
    for index, layer in enumerate(parameter_layout(problem.sizes)):
        forward = (rows, layer.fan_in, layer.fan_out)
        gradient = (layer.fan_in, rows, layer.fan_out)
        backward = (rows, layer.fan_out, layer.fan_in)
        for shape in (forward, gradient, backward)[: 3 if index else 2]:
            batch += _product_seconds(shape, rate, machine)
    units = sum(problem.sizes)
    moved = PASSES * rows * units + problem.parameter_count * (5 + 2 * problem.slots)
    batch += item * moved / machine.gpu_bytes
    # A graph's launch by the host, which works ahead of the GPU.
    batch = max(batch, machine.gpu_launch_seconds)
    return problem.batches * batch + copy_seconds(problem, machine)
