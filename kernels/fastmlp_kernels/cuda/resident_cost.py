"""What `cuda.resident` can run, in what form, and what an epoch would take: plain arithmetic."""

from fastmlp_kernels.cuda.placement import TENSOR_FORMS, Form, Placement, float_form, place
from fastmlp_kernels.cuda.products import TENSOR_CAPABILITY
from fastmlp_kernels.problem import Machine, Problem, parameter_layout

# Of a block: 8 warps, two for each scheduler of a multiprocessor, with 255 registers to spare.
THREADS = 256
# Of a thread's tile: a load of 16 bytes.
TILE_COLUMNS = 4
# Share of a multiprocessor's arithmetic that products of one block reach. Estimates: none was
# measured. In machine code 64 of 101 instructions of the float form's loop are multiply-adds, and
# small layers leave threads without a tile.
FLOAT_EFFICIENCY = 0.35
TENSOR_EFFICIENCY = 0.15
# Float64 arithmetic by that of float32.
FLOAT64_SHARE = 0.1


def _tile_rows(problem: Problem) -> int:
    """Return the rows of a thread's tile: the more, the less it reads for a multiply-add.

    But only as many as leave each thread a tile of the largest layer: a step of the float form's
    loop has 128 multiply-adds of 180 instructions in tiles of 8 rows, 64 of 101 in tiles of 4, and
    32 of 62 in tiles of 2 (sm_90).
    """
    largest = max(parameter_layout(problem.sizes), key=lambda layer: layer.fan_in * layer.fan_out)
    for rows in (8, 4) if problem.dtype == "float32" else (4,):
        if problem.batch_size * largest.fan_out >= THREADS * rows * TILE_COLUMNS:
            return rows
    return 2


def form_of(problem: Problem, machine: Machine) -> Form:
    """Return the form of the products that a problem is computed in."""
    tensor = machine.gpu_capability >= TENSOR_CAPABILITY and problem.dtype == "float32"
    if tensor and problem.precision in TENSOR_FORMS:
        return TENSOR_FORMS[problem.precision]
    return float_form(problem.dtype, _tile_rows(problem), TILE_COLUMNS)


def placement_of(problem: Problem, machine: Machine) -> Placement | str:
    """Return where the network lies in a block's shared memory, or why it does not fit."""
    return place(problem, form_of(problem, machine), THREADS, machine.gpu_shared_bytes)


def supports(problem: Problem, machine: Machine) -> str | None:
    """Return why the kernel cannot run the problem, or None."""
    if machine.cuda_missing:
        return machine.cuda_missing
    found = placement_of(problem, machine)
    return found if isinstance(found, str) else None


def _rate(form: Form, problem: Problem, machine: Machine) -> float:
    """Return the floating-point operations a second of one block."""
    if form.mixed:
        whole = machine.gpu_tf32_flops if form.name == "tf32" else machine.gpu_bfloat16_flops
        return whole * TENSOR_EFFICIENCY / machine.gpu_processors
    share = FLOAT64_SHARE if problem.dtype == "float64" else 1.0
    return machine.gpu_flops * share * FLOAT_EFFICIENCY / machine.gpu_processors


def batch_seconds(problem: Problem, machine: Machine) -> float:
    """Return the predicted seconds of a mini-batch of one network."""
    found = placement_of(problem, machine)
    if isinstance(found, str):
        return float("inf")
    tiles = -(-problem.batch_size // found.rows)
    layers = len(problem.sizes) - 1
    # Each layer forward and backward, the loss and the rows for each tile; check and update.
    barriers = tiles * (2 * layers + 3) + 3
    # Columns of a product's tile that a narrow layer does not fill are computed all the same.
    flops = problem.flops / (problem.members * problem.rows) * problem.batch_size
    rate = _rate(found.form, problem, machine)
    return flops / rate + barriers * 20 * machine.gpu_meeting_seconds


def cost(problem: Problem, machine: Machine) -> float:
    """Return the predicted seconds of an epoch."""
    item = 8 if problem.dtype == "float64" else 4
    copied = item * problem.rows * (problem.sizes[0] + problem.target_columns)
    waves = -(-problem.members // machine.gpu_processors)
    return (
        problem.batches * batch_seconds(problem, machine) * waves
        + machine.gpu_launch_seconds
        + copied / machine.gpu_copy_bytes
    )
