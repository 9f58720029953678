"""What `cuda.fused` can run, in what tiles, and what an epoch would take: plain arithmetic."""

import dataclasses
from typing import NamedTuple

from fastmlp_kernels.cuda.costs import copy_seconds, item_bytes
from fastmlp_kernels.cuda.on_chip.cost import (
    PHASE_MEETINGS,
    block_rate,
    busy,
    dropout_seconds,
    forms,
)
from fastmlp_kernels.cuda.on_chip.placement import Form, Placement, padded, place
from fastmlp_kernels.problem import Machine, Problem

# Of a block: 8 warps, as in `cuda.resident`.
THREADS = 256
# Rows of a tile: below LEAST a load of the weights is too dear and threads have no part in a
# product; beyond MOST more rows make nothing cheaper. FEW is what a gradient on chip may bring them
# down to.
LEAST_ROWS, FEW_ROWS, MOST_ROWS = 32, 64, 128
# Multiples that rows are of: a warp's tile on tensor cores, the largest of a thread without.
TENSOR_STEP, FLOAT_STEP = 32, 8
# Partial gradients of a batch: as many where it has that many tiles, and up to MOST where each
# still has TILES_A_SLICE, so that writing and reading them stays a small part of the work.
SLICES, MOST_SLICES, TILES_A_SLICE = 128, 256, 4
# Blocks that the registers of a multiprocessor, 65536, have room for: 128 for each of 256 threads.
MOST_BLOCKS = 2
# Shared memory that CUDA takes for itself for each block.
BLOCK_BYTES = 1024
LAUNCHES = 3
# More than any GPU has.
UNLIMITED = 1 << 40


class Plan(NamedTuple):
    """Tiles of a full batch, and the slices that they are shared out to.

    Slice s has the tiles s, s + slices, s + 2 slices, ...; the gradient of each is added up in that
    order, and the slices' in a fixed order, whichever blocks compute them.
    """

    tiles: int
    slices: int

    @property
    def accumulate(self) -> bool:
        """Whether a slice has several tiles, so that gradients are added up."""
        return self.tiles > self.slices


def plan_of(problem: Problem, rows: int) -> Plan:
    """Return the slices of a batch in tiles of so many rows: they depend on no GPU."""
    tiles = -(-problem.batch_size // rows)
    most = max(SLICES, min(MOST_SLICES, tiles // TILES_A_SLICE))
    return Plan(tiles, min(tiles, most))


def wanted_rows(problem: Problem, step: int) -> int:
    """Return the rows of a tile, a multiple of `step`, that leave slices of equally many tiles."""
    tiles_a_slice = -(-problem.batch_size // (SLICES * MOST_ROWS))
    rows = padded(-(-problem.batch_size // (SLICES * tiles_a_slice)), step)
    return max(LEAST_ROWS, rows)


def _candidates(wanted: int) -> list[tuple[int, bool]]:
    """Return rows of a tile, and whether the gradient is on chip, best first."""
    large = [wanted, FEW_ROWS] if wanted > FEW_ROWS else [wanted]
    return [
        *((rows, True) for rows in large),
        *((rows, False) for rows in large),
        *((LEAST_ROWS, shared) for shared in (True, False)),
    ]


def form_of(problem: Problem, machine: Machine) -> Form:
    """Return the form of the products of tiles of a problem's batch."""
    found = forms(problem, machine)
    fitting = (form for form in found if form.mixed or busy(problem, form, problem.batch_size))
    return next(fitting, found[-1])


def placement_of(problem: Problem, machine: Machine) -> Placement | str:
    """Return where a tile lies in a block's shared memory, or why it does not fit.

    The result of an epoch depends on the rows of a tile, and so on the GPU as far as its shared
    memory leaves no room for those that `wanted_rows` asks for.
    """
    needed = UNLIMITED
    step = TENSOR_STEP if form_of(problem, machine).mixed else FLOAT_STEP
    for rows, gradient_shared in _candidates(wanted_rows(problem, step)):
        accumulate = plan_of(problem, rows).accumulate
        if gradient_shared and not accumulate:
            # A slice of one tile: its gradient is written where it belongs.
            continue
        tile = dataclasses.replace(problem, batch_size=min(rows, problem.batch_size))
        form = form_of(tile, machine)
        found = place(tile, form, THREADS, UNLIMITED, gradient_shared, False, master=False)
        if isinstance(found, Placement):
            needed = min(needed, found.shared_bytes)
            if found.shared_bytes <= machine.gpu_shared_bytes:
                return found
    return (
        f"needs {-(-needed // 1024)} KB of shared memory a block for tiles of {LEAST_ROWS} rows, "
        f"the GPU has {machine.gpu_shared_bytes // 1024} KB"
    )


def blocks_of(problem: Problem, machine: Machine, placement: Placement) -> int:
    """Return the blocks of a launch: as many as run side by side, no more than there are slices."""
    each = placement.shared_bytes + BLOCK_BYTES
    side_by_side = (machine.gpu_shared_bytes + BLOCK_BYTES) // each
    blocks = machine.gpu_processors * max(1, min(MOST_BLOCKS, side_by_side))
    return min(blocks, plan_of(problem, placement.rows).slices)


def supports(problem: Problem, machine: Machine) -> str | None:
    """Return why the kernel cannot run the problem, or None."""
    if machine.cuda_missing:
        return machine.cuda_missing
    if problem.members > 1:
        return "it trains one network at a time"
    found = placement_of(problem, machine)
    return found if isinstance(found, str) else None


def batch_seconds(problem: Problem, machine: Machine) -> float:
    """Return the predicted seconds of a mini-batch, its launches included."""
    found = placement_of(problem, machine)
    if isinstance(found, str):
        return float("inf")
    plan = plan_of(problem, found.rows)
    # What the processor with most to do has: the last round of slices may leave others idle.
    turns = -(-plan.slices // machine.gpu_processors) * -(-plan.tiles // plan.slices)
    # Rows of a tile that the batch does not fill are computed all the same.
    flops = problem.flops / (problem.members * problem.rows) * found.rows
    layers = len(problem.sizes) - 1
    # Each layer forward and backward, the loss, the rows before and after.
    phases = 2 * layers + 4
    tile = flops / block_rate(found.form, problem, machine)
    tile += phases * PHASE_MEETINGS * machine.gpu_meeting_seconds
    tile += dropout_seconds(problem, machine, found.rows)
    # Weights once a block; partial gradients written and read; the update's vectors.
    blocks = blocks_of(problem, machine, found)
    numbers = (blocks + 2 * plan.slices + 4 + 2 * problem.slots) * problem.parameter_count
    numbers += problem.batch_size * (problem.sizes[0] + problem.target_columns)
    moved = item_bytes(problem) * numbers / machine.gpu_bytes
    batch = turns * tile + moved
    batch += launches(problem, machine) / problem.batches * machine.gpu_node_seconds
    # A replay by the host, which works ahead of the GPU.
    return max(batch, machine.gpu_launch_seconds)


def launches(problem: Problem, machine: Machine) -> int:
    """Return the kernels that an epoch launches, or replays."""
    return (LAUNCHES + (problem.clipping == "norm")) * problem.batches


def cost(problem: Problem, machine: Machine) -> float:
    """Return the predicted seconds of an epoch, copies included."""
    return problem.batches * batch_seconds(problem, machine) + copy_seconds(problem, machine)
