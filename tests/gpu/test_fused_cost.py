"""What `cuda.fused` can run, in what tiles and slices, and what it says that it would take."""

import dataclasses

import pytest

from fastmlp_kernels.cuda import KERNELS
from fastmlp_kernels.cuda.fused.cost import (
    LEAST_ROWS,
    MOST_ROWS,
    MOST_SLICES,
    SLICES,
    batch_seconds,
    blocks_of,
    cost,
    placement_of,
    plan_of,
    supports,
    wanted_rows,
)
from fastmlp_kernels.problem import Machine, Problem

KB = 1024
HOPPER = Machine(
    cuda_missing=None,
    gpu_capability=(9, 0),
    gpu_processors=132,
    gpu_shared_bytes=227 * KB,
    gpu_flops=6e13,
    gpu_bytes=3e12,
)
AMPERE = dataclasses.replace(
    HOPPER, gpu_capability=(8, 0), gpu_processors=108, gpu_shared_bytes=163 * KB
)
MIDDLE = Problem(
    (64, 64, 64, 10),
    ("relu", "relu", "identity"),
    "softmax_cross_entropy",
    "adam",
    labels=True,
    batch_size=4096,
    rows=100_000,
)


def sized(batch_size, sizes=MIDDLE.sizes, **changes):
    return dataclasses.replace(MIDDLE, batch_size=batch_size, sizes=sizes, **changes)


def test_the_kernel_is_registered():
    kernel = next(kernel for kernel in KERNELS if kernel.name == "cuda.fused")
    assert (kernel.supports, kernel.cost, kernel.device) == (supports, cost, "cuda")


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("batch_size", [1, 20, 33, 4096, 5000, 9000, 16384, 16385, 100_000])
def test_slices_have_all_tiles_and_none_is_empty(batch_size, precision):
    problem = sized(batch_size, precision=precision)
    found = placement_of(problem, HOPPER)
    plan = plan_of(problem, found.rows)
    assert (plan.tiles - 1) * found.rows < batch_size <= plan.tiles * found.rows
    assert 1 <= plan.slices <= plan.tiles
    assert plan.accumulate == (plan.tiles > plan.slices)
    # On chip where it is added up and there is room for it.
    assert found.gradient_shared == plan.accumulate
    assert not found.state_shared and found.rows % found.form.row_pad == 0
    assert 1 <= blocks_of(problem, HOPPER, found) <= plan.slices
    # No master copy of the parameters.
    names = {region.name: region.size for region in found.regions}
    assert names["master"] == names["first"] == 0 and found.form.mixed == (precision != "float32")


def test_tiles_grow_with_the_batch():
    batches = (1, 4096, 4097, 8192, 16384, 16385, 20_000, 10**6)
    rows = [wanted_rows(sized(batch), 8) for batch in batches]
    assert rows == [32, 32, 40, 64, 128, 72, 80, 128]
    assert [wanted_rows(sized(batch), 32) for batch in batches] == [
        32,
        32,
        64,
        64,
        128,
        96,
        96,
        128,
    ]
    assert min(rows) == LEAST_ROWS and max(rows) == MOST_ROWS
    assert plan_of(sized(8192), 64) == (128, SLICES)
    assert plan_of(sized(20_000), 80) == (250, SLICES)
    # Many tiles: more slices, so that fewer processors wait in the last round.
    assert plan_of(sized(100_000), 128) == (782, 195)
    assert plan_of(sized(10**6), 128) == (7813, MOST_SLICES)


@pytest.mark.parametrize("batch_size", [4096, 16384, 100_000])
def test_tiles_and_slices_are_the_same_on_gpus_with_room_for_them(batch_size):
    problem = sized(batch_size, (32, 48, 32, 10))
    one, other = placement_of(problem, HOPPER), placement_of(problem, AMPERE)
    assert one == other


def test_the_gradient_leaves_the_chip_before_tiles_become_too_small():
    problem = sized(200_000, (128, 128, 128, 10), precision="bfloat16")
    whole = placement_of(problem, dataclasses.replace(HOPPER, gpu_shared_bytes=1 << 30))
    assert whole.rows == MOST_ROWS and whole.gradient_shared
    seen = []
    for capacity in range(whole.shared_bytes, 32 * KB, -1 * KB):
        found = placement_of(problem, dataclasses.replace(HOPPER, gpu_shared_bytes=capacity))
        if isinstance(found, str):
            break
        assert found.shared_bytes <= capacity
        if (found.rows, found.gradient_shared) not in seen:
            seen.append((found.rows, found.gradient_shared))
    assert seen == [(128, True), (64, True), (128, False), (64, False), (32, False)]
    assert found.startswith("needs ") and isinstance(found, str)


def test_what_is_refused_and_why():
    assert supports(MIDDLE, HOPPER) is None
    assert supports(MIDDLE, Machine()) == Machine().cuda_missing
    members = dataclasses.replace(MIDDLE, members=2)
    assert supports(members, HOPPER) == "it trains one network at a time"
    reason = supports(sized(4096, (784, 256, 10), activations=("relu", "identity")), HOPPER)
    needed = int(reason.split()[1])
    wanted = f"needs {needed} KB of shared memory a block for tiles of 32 rows, the GPU has 227 KB"
    assert reason == wanted
    # The weights alone, and more than the GPU has, which would be enough.
    assert needed > 784 * 256 * 4 / KB
    enough = dataclasses.replace(HOPPER, gpu_shared_bytes=needed * KB)
    found = placement_of(sized(4096, (784, 256, 10), activations=("relu", "identity")), enough)
    assert found.shared_bytes <= needed * KB and found.rows == LEAST_ROWS
    assert found.tile["rows"] == LEAST_ROWS


def test_the_cost_counts_tiles_of_the_busiest_processor_launches_and_partial_gradients():
    one_round, two_tiles = batch_seconds(sized(4096), HOPPER), batch_seconds(sized(8192), HOPPER)
    few = dataclasses.replace(HOPPER, gpu_processors=66, gpu_flops=HOPPER.gpu_flops / 2)
    assert one_round < two_tiles and one_round < 0.8 * batch_seconds(sized(4096), few)
    slow = dataclasses.replace(HOPPER, gpu_node_seconds=HOPPER.gpu_node_seconds + 1)
    assert batch_seconds(MIDDLE, slow) == pytest.approx(batch_seconds(MIDDLE, HOPPER) + 3)
    # The host replays a batch in one launch, which may be what takes longest.
    slow = dataclasses.replace(HOPPER, gpu_launch_seconds=1.0)
    assert batch_seconds(MIDDLE, slow) == 1.0
    # 128 partial gradients written and read, weights for 128 blocks, the update's vectors, X and y.
    slow = dataclasses.replace(HOPPER, gpu_bytes=1.0)
    numbers = MIDDLE.parameter_count * (3 * 128 + 4 + 2 * 2) + 4096 * 65
    moved = batch_seconds(MIDDLE, slow) - batch_seconds(MIDDLE, HOPPER)
    assert moved == pytest.approx(4 * numbers, rel=1e-6)
    assert cost(MIDDLE, HOPPER) > MIDDLE.batches * batch_seconds(MIDDLE, HOPPER)
    exact = dataclasses.replace(MIDDLE, dtype="float64")
    assert batch_seconds(exact, HOPPER) > 1.2 * batch_seconds(MIDDLE, HOPPER)
    assert batch_seconds(dataclasses.replace(MIDDLE, precision="bfloat16"), HOPPER) < one_round
    assert batch_seconds(sized(64, (600, 600, 2)), HOPPER) == float("inf")
