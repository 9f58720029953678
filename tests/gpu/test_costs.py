"""Which kernel a GPU would be given, and why: by the constants of a made-up H100."""

import dataclasses
import math
import re

import pytest

import fastmlp
from fastmlp import MLP, Ensemble
from fastmlp.dispatch.explanation import Explanation, readable_bytes
from fastmlp.dispatch.planning import plan
from fastmlp_kernels.cuda import KERNELS, LAUNCHES, costs, launches
from fastmlp_kernels.cuda.device.rates import expected_rates
from fastmlp_kernels.problem import PRECISIONS, Machine, Problem
from tests import ROOT

H100 = Machine(
    cores=16,
    cuda_missing=None,
    gpu="NVIDIA H100",
    gpu_capability=(9, 0),
    gpu_processors=132,
    gpu_shared_bytes=232448,
)


def problem(*sizes, batch, rows=None, **others):
    hidden = ("relu",) * (len(sizes) - 2)
    return Problem(
        sizes,
        (*hidden, "identity"),
        "half_squared_error",
        batch_size=batch,
        rows=rows or 100 * batch,
        **others,
    )


def test_a_small_network_stays_on_the_processor_and_a_wide_one_does_not():
    small = plan(problem(16, 64, 1, batch=32), machine=H100)
    assert small.kernel.device == "cpu"
    assert {name for name, _ in small.rejected} >= {kernel.name for kernel in KERNELS}
    wide = plan(problem(1024, 1024, 1024, 1024, batch=8192, rows=65536), machine=H100)
    assert wide.kernel.name == "cuda.layered"
    text = str(Explanation(small, H100))
    for kernel in KERNELS:
        line = next(line for line in text.splitlines() if line.startswith(kernel.name))
        assert "x slower" in line, line


def test_many_networks_side_by_side_are_a_block_each():
    many = problem(64, 64, 64, 1, batch=256, members=132)
    assert plan(many, device="cuda", machine=H100).kernel.name == "cuda.resident"
    # As many again wait for the first.
    twice = dataclasses.replace(many, members=264)
    resident = next(kernel for kernel in KERNELS if kernel.name == "cuda.resident")
    once, again = resident.cost(many, H100), resident.cost(twice, H100)
    assert 1.5 < again / once < 2.5


def test_every_kernel_takes_dropout():
    dropped = problem(64, 64, 64, 8, batch=256, dropout=(0.25, 0.5))
    assert [kernel.supports(dropped, H100) for kernel in KERNELS] == [None] * len(KERNELS)
    large = problem(64, 128, 128, 8, batch=8192)
    large = dataclasses.replace(large, activations=("tanh", "relu", "identity"))
    kernels = {kernel.name: kernel for kernel in KERNELS}
    needed = [
        kernels["cuda.fused"].supports(each, dataclasses.replace(H100, gpu_shared_bytes=1024))
        for each in (large, dataclasses.replace(large, dropout=(0.25, 0.5)))
    ]
    # The whole activation of a tile of 32 rows; of ReLU's the sign is enough.
    more = int(needed[1].split()[1]) - int(needed[0].split()[1])
    assert more in (math.floor(32 * 132 * 4 / 1024), math.ceil(32 * 132 * 4 / 1024))


def test_what_is_too_large_for_a_block_is_refused_with_numbers():
    large = plan(problem(1024, 1024, 8, batch=64), device="cuda", machine=H100)
    reason = dict(large.rejected)["cuda.resident"]
    assert "KB of shared memory" in reason and "227 KB" in reason, reason


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_each_cost_grows_with_each_kind_of_work(kernel):
    base = problem(64, 64, 64, 8, batch=256)
    seconds = kernel.cost(base, H100)
    assert 0 < seconds < math.inf
    more = [
        dataclasses.replace(base, rows=2 * base.rows),
        dataclasses.replace(base, sizes=(64, 64, 64, 64, 8), activations=("relu",) * 4),
        dataclasses.replace(base, batch_size=128),
        dataclasses.replace(base, optimizer="adam"),
        dataclasses.replace(base, dropout=(0.5, 0.0)),
    ]
    for each in more:
        assert kernel.cost(each, H100) > seconds, each
    slower = ("gpu_launch_seconds", "gpu_copy_seconds")
    for name in slower:
        machine = dataclasses.replace(H100, **{name: 1.0})
        assert kernel.cost(base, machine) > 10 * seconds, name
    narrow = dataclasses.replace(H100, gpu_copy_bytes=H100.gpu_copy_bytes / 1e6)
    assert kernel.cost(base, narrow) > 10 * seconds


def test_a_coarser_rounding_is_never_dearer():
    wide = problem(1024, 1024, 1024, batch=8192)
    seconds = [
        costs.layered_seconds(dataclasses.replace(wide, precision=name), H100)
        for name in PRECISIONS
    ]
    assert seconds == sorted(seconds, reverse=True) and len(set(seconds)) == len(PRECISIONS)
    double = dataclasses.replace(wide, dtype="float64")
    assert costs.layered_seconds(double, H100) > 1.5 * seconds[0]


def test_every_kernel_counts_its_launches():
    assert LAUNCHES.keys() == {kernel.name for kernel in KERNELS}
    base = problem(16, 64, 1, batch=32)
    counts = {kernel.name: launches(kernel.name, base, H100) for kernel in KERNELS}
    assert counts["cuda.resident"] == 1
    assert counts["cuda.layered"] == costs.layered_launches(base, H100, library=True)


# Of the columns of docs/gpu.md's table: widths, rows, and precisions.
COLUMNS = [
    (256, 256, PRECISIONS),
    (2048, 4096, ("float32", "tf32")),
    (2048, 4096, ("bfloat16",)),
]


def test_the_page_has_the_launches_of_a_step():
    text = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", text, re.MULTILINE)
    assert [int(row[0]) for row in rows] == [2, 3, 4]
    for row in rows:
        layers, before, *shown = map(int, row)
        # Five a layer and three: a product and its kernel; a slope, two products; and around them.
        assert before == 5 * layers + 3 and 2 * shown[0] <= before
        for (width, batch, precisions), wanted in zip(COLUMNS, shown, strict=True):
            for precision in precisions:
                sizes = (width,) * layers
                chain = problem(*sizes, 8, batch=batch, rows=2 * batch, precision=precision)
                one = dataclasses.replace(chain, rows=batch)
                counts = [costs.layered_launches(each, H100, library=True) for each in (one, chain)]
                assert counts[1] - counts[0] == wanted, (layers, width, precision)


def test_gradients_are_computed_together_where_launches_take_the_time():
    narrow = problem(64, 256, 256, 8, batch=256)
    wide = problem(784, 2048, 2048, 10, batch=1024)
    assert costs.gradients_together(narrow, H100) and not costs.gradients_together(wide, H100)
    # A node that costs nothing saves nothing, and one that costs all decides.
    free, dear = (dataclasses.replace(H100, gpu_node_seconds=each) for each in (0.0, 1.0))
    assert not costs.gradients_together(wide, free) and costs.gradients_together(wide, dear)


def test_copies_are_explained():
    model = MLP([1024, 1024, 1024], seed=0)
    chosen = plan(
        dataclasses.replace(model.template, batch_size=4096, rows=65536, optimizer="adam"),
        device="cuda",
        machine=H100,
    )
    text = str(Explanation(chosen, H100))
    found = costs.copies(chosen.problem)
    # X, y, parameters and Adam's two vectors; these three come back.
    data, network = 65536 * 2048 * 4, chosen.problem.parameter_count * 4
    assert found.fit == 6 and found.fit_bytes == data + 2 * 3 * network
    assert f"a fit makes 6 copies to the GPU and back ({readable_bytes(found.fit_bytes)}" in text
    assert "optimizer state" in text and "launches" in text
    assert [readable_bytes(n) for n in (12, 3e3, 2.5e6, 1e9)] == [
        "12 bytes",
        "3 KB",
        "2.5 MB",
        "1 GB",
    ]


def test_rates_by_what_a_driver_says():
    found = expected_rates((9, 0), 132, 1.83e9, 2.62e9, 5120)
    # An H100's own figures are 66.9 and 989 Tflop/s, and 3.35 TB/s.
    assert 4e13 < found["gpu_flops"] < 6.69e13
    assert 6e14 < found["gpu_bfloat16_flops"] < 9.89e14
    assert 2.5e12 < found["gpu_bytes"] < 3.35e12
    # What is newer than the table, and what the driver does not say.
    assert expected_rates((9, 9), 132, 1.83e9, 2.62e9, 5120) == found
    assert set(expected_rates((9, 0), 132, 0.0, 0.0, 0)) == set()


def test_an_ensemble_explains_itself():
    text = str(fastmlp.explain(Ensemble([16, 64, 1], members=5), batch_size=32, rows=320))
    assert "5 networks side by side" in text
