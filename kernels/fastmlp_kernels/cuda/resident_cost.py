"""What `cuda.resident` can run, in what form, and what an epoch would take: plain arithmetic."""

from dataclasses import replace

from fastmlp_kernels.cuda.costs import copy_seconds, product_rate
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
# Predicted time of a launch: the host sees a request to stop between two, and what it does there
# takes some tens of microseconds.
LAUNCH_SECONDS = 0.05
# What the work between two barriers takes at least, in barriers: each waits for shared memory some
# ten times in a row, of which two warps a scheduler hide little. An estimate too.
PHASE_MEETINGS = 20


def forms(problem: Problem, machine: Machine) -> list[Form]:
    """Return the forms of products that a problem may be computed in, the best first.

    Of the float form the more rows a thread's tile has, the less is read for a multiply-add: a step
    of its loop has 128 of 180 instructions in tiles of 8 rows, 64 of 101 in tiles of 4, and 32 of
    62 in tiles of 2 (sm_90).
    """
    rows = (8, 4, 2) if problem.dtype == "float32" else (4, 2)
    found = [float_form(problem.dtype, each, TILE_COLUMNS) for each in rows]
    tensor = machine.gpu_capability >= TENSOR_CAPABILITY and problem.dtype == "float32"
    if tensor and problem.precision in TENSOR_FORMS:
        return [TENSOR_FORMS[problem.precision], *found]
    return found


def busy(problem: Problem, form: Form, rows: int) -> bool:
    """Return whether the largest layer has a tile for each thread in a product of so many rows."""
    largest = max(parameter_layout(problem.sizes), key=lambda layer: layer.fan_in * layer.fan_out)
    return rows * largest.fan_out >= THREADS * form.row_pad * TILE_COLUMNS


def placement_of(problem: Problem, machine: Machine) -> Placement | str:
    """Return where the network lies in a block's shared memory, or why it does not fit.

    The form is that of the placement: the first of those that fit which keeps all threads busy,
    else the one of the smallest tiles, which also needs least memory.
    """
    found: Placement | str = ""
    for form in forms(problem, machine):
        found = place(problem, form, THREADS, machine.gpu_shared_bytes)
        if isinstance(found, Placement) and (form.mixed or busy(problem, form, found.rows)):
            return found
    return found


def supports(problem: Problem, machine: Machine) -> str | None:
    """Return why the kernel cannot run the problem, or None."""
    if machine.cuda_missing:
        return machine.cuda_missing
    found = placement_of(problem, machine)
    return found if isinstance(found, str) else None


def block_rate(form: Form, problem: Problem, machine: Machine) -> float:
    """Return the floating-point operations a second of one block."""
    share = TENSOR_EFFICIENCY if form.mixed else FLOAT_EFFICIENCY
    # Where tensor cores are allowed and not there, products are float32's.
    kind = problem if form.mixed else replace(problem, precision="float32")
    return product_rate(kind, machine) * share / machine.gpu_processors


def batch_seconds(problem: Problem, machine: Machine) -> float:
    """Return the predicted seconds of a mini-batch of one network."""
    found = placement_of(problem, machine)
    if isinstance(found, str):
        return float("inf")
    tiles = -(-problem.batch_size // found.rows)
    layers = len(problem.sizes) - 1
    # Of each tile the rows, each layer forward and backward, the loss; the check, the update.
    phases = tiles * (2 * layers + 2) + 1
    flops = problem.flops / (problem.members * problem.rows) * problem.batch_size
    rate = block_rate(found.form, problem, machine)
    return flops / rate + phases * PHASE_MEETINGS * machine.gpu_meeting_seconds


def batches_a_launch(problem: Problem, machine: Machine) -> int:
    """Return how many batches a launch takes on."""
    return max(1, int(LAUNCH_SECONDS / batch_seconds(problem, machine)))


def launches(problem: Problem, machine: Machine) -> int:
    """Return the launches of an epoch."""
    return -(-problem.batches // batches_a_launch(problem, machine))


def cost(problem: Problem, machine: Machine) -> float:
    """Return the predicted seconds of an epoch, copies included."""
    waves = -(-problem.members // machine.gpu_processors)
    return (
        problem.batches * batch_seconds(problem, machine) * waves
        + launches(problem, machine) * machine.gpu_launch_seconds
        + copy_seconds(problem, machine)
    )
