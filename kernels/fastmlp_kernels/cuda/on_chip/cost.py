"""What a tile of rows in shared memory costs, in which form its products are computed."""

from dataclasses import replace

from fastmlp_kernels.cuda.costs import product_rate
from fastmlp_kernels.cuda.on_chip.placement import TENSOR_FORMS, Form, float_form
from fastmlp_kernels.cuda.on_chip.products import TENSOR_CAPABILITY
from fastmlp_kernels.problem import Machine, Problem, parameter_layout

# Of a block: 8 warps, two for each scheduler of a multiprocessor, with 255 registers to spare.
THREADS = 256
# Of a thread's tile: a load of 16 bytes.
TILE_COLUMNS = 4
# Share of a multiprocessor's arithmetic that products of one block reach. Estimates: none was
# measured. In PTX 128 of 159 instructions of the float form's loop are multiply-adds, and
# small layers leave threads without a tile.
FLOAT_EFFICIENCY = 0.35
TENSOR_EFFICIENCY = 0.15
# What the work between two barriers takes at least, in barriers: each waits for shared memory some
# ten times in a row, of which two warps a scheduler hide little. An estimate too.
PHASE_MEETINGS = 20
# Of an output that dropout is asked about, forward and backward. Each time it takes some 35
# instructions (sm_90), most on integers. A multiprocessor issues half as many of those as
# multiply-adds, so that one takes as long as four flops.
DROPOUT_FLOPS = 2 * 35 * 4


def forms(problem: Problem, machine: Machine) -> list[Form]:
    """Return the forms of products that a problem may be computed in, the best first.

    Of the float form the more rows a thread's tile has, the less is read for a multiply-add: a
    round of its loop has 256 of 299 instructions in tiles of 8 rows, 128 of 159 in tiles of 4, and
    64 of 89 in tiles of 2 (PTX, forward).
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


def block_rate(form: Form, problem: Problem, machine: Machine) -> float:
    """Return the floating-point operations a second of one block."""
    share = TENSOR_EFFICIENCY if form.mixed else FLOAT_EFFICIENCY
    # Where tensor cores are allowed and not there, products are float32's.
    kind = problem if form.mixed else replace(problem, precision="float32")
    return product_rate(kind, machine) * share / machine.gpu_processors


def dropout_seconds(problem: Problem, machine: Machine, rows: int) -> float:
    """Return what dropout takes a block that computes so many rows."""
    pairs = zip(problem.sizes[1:], problem.dropout, strict=False)
    units = sum(width for width, share in pairs if share > 0)
    share = FLOAT_EFFICIENCY / machine.gpu_processors
    return rows * units * DROPOUT_FLOPS / (machine.gpu_flops * share)
