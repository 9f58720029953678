"""Where a network lies in shared memory: plain arithmetic, so no compiler and no simulator."""

import dataclasses
import math
import subprocess

import numpy as np
import pytest

from fastmlp_kernels.cuda import KERNELS
from fastmlp_kernels.cuda.on_chip.placement import (
    ALIGNMENT,
    FEW_ROWS,
    TENSOR_FORMS,
    Placement,
    activations_in_use,
    float_form,
    padded,
    place,
    row_stride,
)
from fastmlp_kernels.cuda.on_chip.tables import EPOCH, LAYER, TILE, whole
from fastmlp_kernels.cuda.resident import cost as resident_cost
from fastmlp_kernels.problem import Machine, Problem, parameter_layout
from tests.samples import DROPPED, DROPPED_AND_CLIPPED

KB = 1024
FORMS = [float_form("float32"), float_form("float64"), *TENSOR_FORMS.values()]
PROBLEMS = [
    Problem((64, 64, 64, 1), ("tanh", "gelu", "identity"), "squared_error", "adam", batch_size=256),
    Problem((5, 9, 3), ("silu", "identity"), "softmax_cross_entropy", "sgd", labels=True),
    Problem((7, 2), ("softplus",), "poisson", "momentum", batch_size=5),
    Problem((3, 40, 33, 2), ("gelu", "exp", "gelu"), "squared_error", "adam", batch_size=50),
    dataclasses.replace(DROPPED, batch_size=50),
    dataclasses.replace(DROPPED_AND_CLIPPED, clipping="none", layer_rates=False, batch_size=50),
]


@pytest.fixture(params=FORMS, ids=lambda form: f"{form.name} {form.number}")
def form(request):
    return request.param


@pytest.fixture(params=PROBLEMS, ids=lambda problem: str(problem.sizes))
def problem(request):
    return request.param


def test_no_numba_is_imported(child_python, child_environment):
    imported = "fastmlp_kernels.cuda.on_chip.placement"
    code = f"import sys; import {imported}; assert 'numba' not in sys.modules"
    subprocess.run([child_python, "-c", code], env=child_environment, check=True)


def test_regions_are_apart_aligned_and_within_the_total(problem, form):
    found = place(problem, form, 256, 200 * KB)
    end = 0
    for region in found.regions:
        assert region.start == end and region.start % ALIGNMENT == 0 and region.size >= 0
        end += region.size
    assert found.shared_bytes == end <= 200 * KB
    names = [region.name for region in found.regions]
    assert len(set(names)) == len(names)
    item = np.dtype(form.number).itemsize
    assert found.tile["numbers_used"] * item == end


def spans(problem, form, found):
    """Return (first byte, byte after the last) of everything that the table points at."""
    operand, number = np.dtype(form.operand).itemsize, np.dtype(form.number).itemsize
    rows, tile, result = found.rows, found.tile, {}

    def matrix(name, offset, count, stride, width, item):
        result[name] = (offset * item, (offset + (count - 1) * stride + width) * item)

    columns, count = problem.target_columns, problem.parameter_count
    matrix("targets", tile["targets"], rows, tile["target_stride"], columns, number)
    matrix("X", tile["X"], rows, tile["X_stride"], padded(problem.sizes[0], form.pad), operand)
    sizes = {"row_losses": rows, "partial": 256, "hyper": 20, "gradient": count}
    sizes |= {"first": count} if found.state_shared and problem.slots > 0 else {}
    sizes |= {"second": count} if found.state_shared and problem.slots > 1 else {}
    sizes |= {"master": count} if form.mixed else {}
    for name, size in sizes.items():
        matrix(name, tile[name], 1, 0, size, number)
    last = len(problem.sizes) - 2
    for index, width in enumerate(problem.sizes[1:]):
        layer, wide = found.layers[index], padded(width, form.pad)
        below = padded(problem.sizes[index], form.pad)
        matrix(f"W {index}", layer["W"], below, layer["W_stride"], wide, operand)
        matrix(f"b {index}", layer["b"], 1, 0, wide, number)
        out = (number, width) if index == last else (operand, wide)
        matrix(f"out {index}", layer["out"], rows, layer["out_stride"], out[1], out[0])
        if problem.keeps_input[index]:
            matrix(f"Z {index}", layer["kept"], rows, layer["kept_stride"], width, number)
        elif layer["keep_threshold"] and problem.activations[index] == "tanh":
            matrix(f"A {index}", layer["kept"], rows, layer["kept_stride"], width, operand)
        else:
            assert layer["kept"] == layer["out"]
            assert layer["kept_stride"] == layer["out_stride"]
        matrix(f"dZ {index}", layer["dZ"], rows, layer["dZ_stride"], wide, operand)
    return result


def test_what_is_used_at_one_time_does_not_overlap(problem, form):
    found = place(problem, form, 256, 200 * KB)
    placed = spans(problem, form, found)
    assert len(placed) >= 10
    for name, (start, end) in placed.items():
        assert start % ALIGNMENT == 0 and 0 <= start < end <= found.shared_bytes, name
        for other, (other_start, other_end) in placed.items():
            if other == name or (end <= other_start or other_end <= start):
                continue
            # In turns: never two neighbours.
            assert {str(each).split()[0] for each in (name, other)} == {"dZ"}, (name, other)
            layers = [int(str(each).split()[1]) for each in (name, other)]
            assert abs(layers[0] - layers[1]) > 1, (name, other)


def record(words, dtype):
    """Return a record of words by name."""
    return {name: int(words.view(dtype)[0][name]) for name in dtype.names}


def test_the_table_is_a_tile_an_epoch_and_the_layers(problem, form):
    found = place(problem, form, 256, 200 * KB)
    other = dataclasses.replace(problem, rows=7 * problem.rows, batch_size=3 * problem.batch_size)
    words, ends = found.table(other), np.cumsum([len(TILE.names), len(EPOCH.names)])
    tile, epoch, layers = np.split(words, ends)
    assert words.dtype == np.int64 and record(tile, TILE) == found.tile
    # A program's own, where its tiles were placed for less than its batches.
    assert record(epoch, EPOCH) == {"batch_size": other.batch_size, "rows": other.rows}
    layers = np.split(layers, len(problem.sizes) - 1)
    assert [record(layer, LAYER) for layer in layers] == list(found.layers)


def test_a_table_with_a_field_too_few_or_too_many_is_refused(problem, form):
    found = place(problem, form, 256, 200 * KB)
    epoch = {"batch_size": 1, "rows": 1}
    few = {name: number for name, number in found.tile.items() if name != "hyper"}
    for tile, layer in ((few, found.layers[0]), (found.tile, {**found.layers[0], "hyper": 0})):
        with pytest.raises(ValueError, match="fields: got .*hyper|wanted .*hyper"):
            whole(tile, epoch, [layer])


def test_the_fields_of_layers(problem, form):
    found = place(problem, form, 256, 200 * KB)
    used = activations_in_use(problem)
    assert len(set(used)) == len(used) <= len(problem.activations)
    for index, layout in enumerate(parameter_layout(problem.sizes)):
        layer = found.layers[index]
        assert (layer["fan_in"], layer["fan_out"]) == (layout.fan_in, layout.fan_out)
        assert layer["start"] == layout.weight.start
        assert used[layer["activation"]] == problem.training_activations[index]
        assert layer["together"] * layer["across"] == layout.fan_out
        assert layer["down"] * layout.fan_out + layer["along"] == 256 * layer["together"]
        assert layer["along"] < layout.fan_out
        if index > 0:
            before = found.layers[index - 1]
            assert (layer["A"], layer["A_stride"]) == (before["out"], before["out_stride"])
    assert found.layers[0]["A"] == found.tile["X"]


def test_dropout_takes_a_matrix_where_a_slope_reads_the_whole_activation(form):
    """Beside z there is none, nor without dropout; of the sign, what is kept says enough."""
    chain = ("gelu", "tanh", "relu", "identity")
    plain = Problem((3, 40, 40, 40, 2), chain, "squared_error", batch_size=50)

    def found(*dropout):
        return place(dataclasses.replace(plain, dropout=dropout), form, 256, 400 * KB)

    without, other, both = found(), found(0.25, 0.0, 0.25), found(0.25, 0.5, 0.25)
    assert other.regions == without.regions
    names = {region.name for region in both.regions} - {region.name for region in without.regions}
    assert names == {"whole A 1"}
    size = both.rows * row_stride(40, form) * np.dtype(form.operand).itemsize
    assert both.shared_bytes - without.shared_bytes == size
    thresholds = [[layer["keep_threshold"] for layer in each.layers] for each in (without, both)]
    assert thresholds == [[0, 0, 0, 0], [3 * 2**30, 2**31, 3 * 2**30, 0]]


def test_neighbouring_rows_of_operands_begin_in_different_banks(form):
    item = np.dtype(form.operand).itemsize
    for width in range(1, 140):
        stride = row_stride(width, form)
        assert stride >= padded(width, form.pad) and stride * item % 16 == 0
        begins = {(row * stride * item) % 128 for row in range(8)}
        assert len(begins) == 8, width


def test_as_many_rows_as_fit_in_tiles_of_like_size(form):
    problem = dataclasses.replace(PROBLEMS[0], batch_size=1000, rows=1000)
    seen = set()
    for capacity in (100 * KB, 150 * KB, 227 * KB, 1000 * KB):
        found = place(problem, form, 256, capacity, state_shared=False)
        if isinstance(found, str):
            continue
        assert found.rows % form.row_pad == 0 and found.shared_bytes <= capacity
        tiles = -(-1000 // found.rows)
        # One tile fewer would need more rows than fit.
        if tiles > 1:
            more = dataclasses.replace(
                problem, batch_size=padded(-(-1000 // (tiles - 1)), form.row_pad)
            )
            assert place(more, form, 256, capacity, state_shared=False).rows < more.batch_size
        assert found.rows - form.row_pad < -(-1000 // tiles)
        seen.add(found.rows)
    assert len(seen) > 1


def test_state_leaves_shared_memory_when_rows_need_the_room(form):
    problem = dataclasses.replace(PROBLEMS[0], batch_size=FEW_ROWS)
    assert place(problem, form, 256, 400 * KB).state_shared
    enough = place(problem, form, 256, 400 * KB, state_shared=False)
    assert enough.rows == FEW_ROWS
    tight = place(problem, form, 256, enough.shared_bytes)
    assert not tight.state_shared and tight.rows == FEW_ROWS
    # A third of a tile is no reason to fetch what fits.
    less = dataclasses.replace(problem, batch_size=8)
    assert place(less, form, 256, 400 * KB).state_shared


def test_what_does_not_fit_says_by_how_much():
    problem = Problem((256, 256, 256), ("tanh", "identity"), "squared_error")
    reason = place(problem, float_form("float32"), 256, 227 * KB)
    assert isinstance(reason, str)
    needed = int(reason.split()[1])
    assert reason == f"needs {needed} KB of shared memory a block, the GPU has 227 KB"
    # Weights twice, as the gradient lies there too.
    assert 4 * 2 * 2 * 256 * 256 / KB < needed < 1100
    assert isinstance(place(problem, float_form("float32"), 256, needed * KB), Placement)
    assert isinstance(place(problem, float_form("float32"), 256, (needed - 1) * KB), str)


GPU = Machine(
    cuda_missing=None, gpu_capability=(9, 0), gpu_processors=132, gpu_shared_bytes=227 * KB
)


def test_support_and_its_reasons():
    small, large = PROBLEMS[0], Problem((784, 256, 10), ("relu", "identity"), "squared_error")
    assert resident_cost.supports(small, GPU) is None
    assert resident_cost.supports(small, Machine(cuda_missing="no driver")) == "no driver"
    reason = resident_cost.supports(large, GPU)
    assert reason.startswith("needs ") and reason.endswith("the GPU has 227 KB")
    assert resident_cost.cost(large, GPU) == float("inf")
    names = [kernel.name for kernel in KERNELS]
    kernel = KERNELS[names.index("cuda.resident")]
    assert kernel.device == "cuda" and kernel.supports(small, GPU) is None


def form_of(problem, machine=GPU):
    return resident_cost.placement_of(problem, machine).form


def test_the_form_follows_precision_and_capability():
    problem = PROBLEMS[0]
    for precision, form in TENSOR_FORMS.items():
        rounded = dataclasses.replace(problem, precision=precision)
        assert form_of(rounded) == form
        older = dataclasses.replace(GPU, gpu_capability=(7, 5))
        assert form_of(rounded, older).name == "float"
        double = dataclasses.replace(rounded, dtype="float64")
        assert form_of(double).number == "float64"


def test_a_thread_has_as_large_a_tile_as_leaves_none_idle():
    problem = Problem((8, 64, 1), ("tanh", "identity"), "squared_error")
    for batch, rows in ((16, 2), (48, 2), (64, 4), (128, 8), (300, 8)):
        assert form_of(dataclasses.replace(problem, batch_size=batch)).row_pad == rows
    # Wider operands, or float32 where those of tensor cores have no room beside the weights.
    deep = Problem((64,) * 5 + (16,), ("gelu",) * 4 + ("identity",), "squared_error", "adam")
    deep = dataclasses.replace(deep, batch_size=256, precision="bfloat16")
    assert form_of(deep) == float_form("float32", 2)


def test_members_cost_nothing_until_the_multiprocessors_are_taken():
    def seconds(members, **changes):
        problem = dataclasses.replace(PROBLEMS[0], rows=4096, members=members, **changes)
        # Copies apart, which every network has of its own.
        return resident_cost.cost(problem, dataclasses.replace(GPU, gpu_copy_bytes=math.inf))

    assert 0 < seconds(1) == seconds(132) < seconds(133)
    assert seconds(1, batch_size=32) > seconds(1, batch_size=256)
    assert seconds(1, dtype="float64") > seconds(1) > seconds(1, precision="bfloat16")
