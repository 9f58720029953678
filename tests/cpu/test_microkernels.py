"""Every function of the microkernels, called at its address, exactly; and no spilled register."""

import ctypes
import itertools
import re

import numpy as np
import pytest

from fastmlp_kernels.cpu import machine_code
from fastmlp_kernels.cpu.activation import activation_backward, activation_forward
from fastmlp_kernels.cpu.direct_tiles import direct_name
from fastmlp_kernels.cpu.finishing_tiles import BACKWARD, FINISHES, FORWARD, finishing_name
from fastmlp_kernels.cpu.listed_tiles import (
    emit_listed_product,
    listed_gradient_name,
    listed_product_name,
)
from fastmlp_kernels.cpu.microkernels import (
    emit_product,
    gradient_name,
    product_name,
)
from fastmlp_kernels.cpu.row_tiles import PANELS_OF_A_ROW, ROW_PRODUCT, finishing_row_name
from fastmlp_kernels.cpu.simd import INSTRUCTION_SETS, Emitter, instruction_set
from fastmlp_kernels.problem import DTYPES
from tests.machines import HOST

# Either side of the unroll by four, and of every panel's width.
DEPTHS = (*range(1, 10), 15, 16, 17, 31, 32, 33, 64, 65, 100)
# Numbers that no result can be: what is not written keeps them.
CANARY = -12345.0
MARGIN = 96


class Code:
    """The functions of an instruction set and dtype, on arrays that are aligned to elements only.

    Parameters
    ----------
    name, dtype : str
    """

    def __init__(self, name: str, dtype: str) -> None:
        self.target, self.dtype = instruction_set(name), np.dtype(dtype)
        self.lanes, self.panel = self.target.lanes(dtype), self.target.panel(dtype)
        self.addresses = machine_code.microkernels(self.target, dtype)
        self.called = set()
        self.random = np.random.default_rng(self.panel)

    def call(self, name, *arguments, tiles=1):
        words = [
            each.ctypes.data if isinstance(each, np.ndarray) else int(each) for each in arguments
        ]
        self.called.add(name)
        # What only those that end with an activation read.
        words += [0] if name.startswith("product_") else []
        words += [tiles] if re.fullmatch(r"(product|gradient|forward|backward)_.*x\d", name) else []
        kind = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * len(words))
        return kind(self.addresses[name])(*words)

    def filled(self, shape, value):
        """Return an array one element off any alignment, and the memory around it."""
        count = int(np.prod(shape))
        memory = np.full(count + 2 * MARGIN + 1, value, self.dtype)
        return memory[MARGIN + 1 : MARGIN + 1 + count].reshape(shape), memory

    def integers(self, *shape):
        """Return small integers, of which every sum here is exact."""
        return self.random.integers(-4, 5, shape).astype(self.dtype)

    def panels(self, matrix, rows=None):
        """Return a matrix in panels, NaN in what no function may read."""
        height, width = matrix.shape
        count = -(-width // self.panel)
        panels, _ = self.filled((count, rows or height, self.panel), np.nan)
        for j in range(count):
            columns = matrix[:, j * self.panel : (j + 1) * self.panel]
            panels[j, :height, : columns.shape[1]] = columns
        return panels


@pytest.fixture(params=itertools.product(HOST, DTYPES), ids="-".join)
def code(request):
    return Code(*request.param)


def untouched(memory, out):
    """Return whether everything around an array is still the canary."""
    start = (out.ctypes.data - memory.ctypes.data) // memory.itemsize
    around = np.concatenate([memory[:start], memory[start + out.size :]])
    return around.size == 2 * MARGIN + 1 and np.all(around == CANARY)


INITIAL = ["one row", "own rows", "in place"]


def initial_rows(code, kind, rows, columns, out):
    """Return the array of initial values, the stride between its rows, and their values."""
    if kind == "in place":
        out[:, :columns] = code.integers(rows, columns)
        return out, code.panel, out[:, :columns].copy()
    if kind == "one row":
        values = code.integers(columns)
        return code.panels(values[None]), 0, np.broadcast_to(values, (rows, columns))
    values = code.integers(rows, columns)
    wide, _ = code.filled((rows, code.panel + 3), np.nan)
    wide[:, :columns] = values
    return wide, code.panel + 3, values


def tiles(code):
    return list(itertools.product(code.target.row_tiles, (1, 2)))


def in_a_call(code, rows):
    """Return the tiles of so many rows in a call: the tallest ones follow each other."""
    return 3 if rows == code.target.row_tiles[0] else 1


def largest(code, values):
    return np.abs(values).view(f"i{code.dtype.itemsize}").max()


@pytest.mark.parametrize("kind", INITIAL)
def test_products_are_exact(code, kind):
    for (height, vectors), depth in itertools.product(tiles(code), DEPTHS):
        count, columns = in_a_call(code, height), vectors * code.lanes
        rows = height * count
        A, B = code.integers(rows, depth), code.integers(depth, columns)
        # Room for more rows: the stride between panels is not the tile's height.
        left, right = code.panels(A, rows + 5), code.panels(B)
        out, memory = code.filled((rows, code.panel), CANARY)
        initial, stride, values = initial_rows(code, kind, rows, columns, out)
        name = product_name(height, vectors)
        operands = left, (rows + 5) * code.panel, right, depth, initial, stride, out
        seen = code.call(name, *operands, tiles=count)
        assert np.array_equal(out[:, :columns], A @ B + values), (name, depth)
        assert seen == largest(code, out), (name, depth)
        # What a narrow tile leaves of a panel is zero: activations work on whole panels.
        assert not out[:, columns:].any(), (name, depth)
        assert untouched(memory, out), (name, depth)


def test_only_the_tallest_tiles_are_ever_several():
    """Others have no loop: what a taller one leaves has to be less than two of them."""
    for target in INSTRUCTION_SETS:
        for taller, lower in itertools.pairwise(target.row_tiles):
            assert taller <= 2 * lower, target.name
        assert target.row_tiles[-1] == 1, target.name


def finished(code, activation, direction, product, kept, columns):
    """Return what an activation's leaf makes of a product that lies in a panel."""
    leaf = {FORWARD: activation_forward, BACKWARD: activation_backward}[direction]
    out = product.copy()
    pointer = ctypes.c_void_p
    function = ctypes.CFUNCTYPE(ctypes.c_int64, pointer, pointer, ctypes.c_int64)
    first = out if direction == FORWARD else kept
    address = leaf(activation, code.dtype.name)
    function(address)(first.ctypes.data, out.ctypes.data, out.size)
    out[:, columns:] = 0
    return out


@pytest.mark.parametrize("special", [0.0, -1e30, np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
@pytest.mark.parametrize("activation", FINISHES)
def test_finishing_products_have_the_bits_of_product_and_leaf(code, activation, direction, special):
    for (height, vectors), depth in itertools.product(tiles(code), (1, 4, 17)):
        count, columns = in_a_call(code, height), vectors * code.lanes
        rows = height * count
        A, B = code.integers(rows, depth), code.integers(depth, columns)
        left, right = code.panels(A, rows + 5), code.panels(B)
        start = code.panels(code.integers(rows, columns))
        start[0, rows - 1, columns - 1] = special
        kept, _ = code.filled((rows, code.panel), CANARY)
        kept[:, :columns] = code.integers(rows, columns)
        arguments = (left, (rows + 5) * code.panel, right, depth, start, code.panel)
        product, _ = code.filled((rows, code.panel), CANARY)
        code.call(product_name(height, vectors), *arguments, product, tiles=count)
        expected = finished(code, activation, direction, product, kept, columns)
        out, memory = code.filled((rows, code.panel), CANARY)
        name = finishing_name(direction, activation, height, vectors)
        seen = code.call(name, *arguments, out, kept, tiles=count)
        assert out.tobytes() == expected.tobytes(), name
        assert seen == largest(code, product if direction == FORWARD else expected), name
        assert untouched(memory, out), name


@pytest.mark.parametrize("kind", INITIAL)
def test_weight_gradients_are_exact(code, kind):
    target = code.target
    sizes = [(target.narrow_feature_tile(code.dtype.name), 1), (target.feature_tile, 2), (1, 2)]
    for (height, vectors), rows in itertools.product(sizes, DEPTHS):
        count, columns = max(1, code.panel // height - 1), vectors * code.lanes
        features = height * count
        A, B = code.integers(rows, features), code.integers(rows, columns)
        left, right = code.panels(A), code.panels(B)
        out, memory = code.filled((features, code.panel), CANARY)
        initial, stride, values = initial_rows(code, kind, features, columns, out)
        name = gradient_name(height, vectors)
        code.call(name, left, right, rows, initial, stride, out, tiles=count)
        assert np.array_equal(out[:, :columns], A.T @ B + values), (name, rows)
        assert np.all(out[:, columns:] == CANARY), (name, rows)
        assert untouched(memory, out), (name, rows)


def test_features_in_the_middle_of_a_panel(code):
    """A panel holds several tiles of features: the left operand starts at any of them."""
    features, rows = code.target.feature_tile, 13
    assert code.panel % features == 0
    A, B = code.integers(rows, code.panel), code.integers(rows, code.panel)
    left, right, expected = code.panels(A), code.panels(B), A.T @ B
    zeros = np.zeros(code.panel, code.dtype)
    for m in range(0, code.panel, features):
        out, memory = code.filled((features, code.panel), CANARY)
        start = left.ctypes.data + m * code.dtype.itemsize
        code.call(gradient_name(features, 2), start, right, rows, zeros, 0, out)
        assert np.array_equal(out, expected[m : m + features])
        assert untouched(memory, out)


def test_every_tile_gives_the_same_bits(code):
    """Each element is one chain of operations, k ascending, whatever the tile that computes it."""
    depth, tallest = 65, code.target.row_tiles[0]
    A = code.random.normal(0, 1, (tallest, depth)).astype(code.dtype)
    B = code.random.normal(0, 1, (depth, code.panel)).astype(code.dtype)
    left, right = code.panels(A), code.panels(B)
    stride, zeros = tallest * code.panel, np.zeros(code.panel, code.dtype)
    whole = np.empty((tallest, code.panel), code.dtype)
    code.call(product_name(tallest, 2), left, stride, right, depth, zeros, 0, whole)
    np.testing.assert_allclose(whole, A.astype(np.float64) @ B, rtol=1e-3, atol=1e-4)
    for rows, vectors in tiles(code):
        out = np.empty((rows, code.panel), code.dtype)
        code.call(product_name(rows, vectors), left, stride, right, depth, zeros, 0, out)
        columns = vectors * code.lanes
        assert out[:, :columns].tobytes() == whole[:rows, :columns].tobytes(), (rows, vectors)
    # The sum over rows of a weight gradient, in either width.
    both = []
    least = code.target.feature_tile
    for features, vectors in (code.target.narrow_feature_tile(code.dtype.name), 1), (least, 2):
        out = np.empty((features, code.panel), code.dtype)
        tile = right[0, :, : code.panel]
        code.call(gradient_name(features, vectors), tile, right, depth, zeros, 0, out)
        both.append(out[:least, : code.lanes].tobytes())
    assert both[0] == both[1]


def test_products_are_rounded_once(code):
    """A fused multiply-add keeps what a product rounded for itself would lose."""
    small = np.finfo(code.dtype).eps
    for rows, vectors in tiles(code):
        columns = vectors * code.lanes
        left = code.panels(np.full((rows, 1), 1 + small, code.dtype))
        right = code.panels(np.full((1, columns), 1 - small, code.dtype))
        minus_one = code.panels(np.full((1, columns), -1, code.dtype))
        out = np.empty((rows, code.panel), code.dtype)
        arguments = (left, rows * code.panel, right, 1, minus_one, 0, out)
        code.call(product_name(rows, vectors), *arguments)
        fused = out[:, :columns] == -(small * small)
        # Without such an instruction, every product is rounded: to 1.
        assert fused.all() or code.target.name == "portable" and not out[:, :columns].any()


def test_a_single_output_is_exact(code):
    """Lanes are inputs: what pads the weights is zero, and what pads the activations is finite."""
    for depth, rows in itertools.product(DEPTHS, (1, 3, 4, 5, 9)):
        A, w, bias = code.integers(rows, depth), code.integers(depth), code.integers(1)
        left = code.panels(A, rows + 5)
        panels = len(left)
        left[np.isnan(left)] = 3
        right = np.zeros((panels, 2, code.panel), code.dtype)
        right[:, 0] = np.pad(w, (0, panels * code.panel - depth)).reshape(panels, -1)
        out, memory = code.filled((rows, code.panel), CANARY)
        strides = (rows + 5) * code.panel, 2 * code.panel
        operands = left, strides[0], right, strides[1], panels, rows, bias, out
        seen = code.call("dot_rows", *operands)
        assert np.array_equal(out[:, 0], A @ w + bias[0]), (depth, rows)
        assert not out[:, 1:].any() and untouched(memory, out), (depth, rows)
        assert seen == largest(code, out), (depth, rows)


def test_direct_products_have_the_bits_of_packed_ones(code):
    if not code.target.masks:
        pytest.skip("only where a part of a vector can be loaded")
    widths = 1, 2, code.lanes, code.lanes + 1, code.panel, code.panel + 1, 3 * code.panel
    for depth, columns in itertools.product(DEPTHS, widths):
        A = code.random.normal(0, 1, (1, depth)).astype(code.dtype)
        B = code.random.normal(0, 1, (depth, columns)).astype(code.dtype)
        bias = code.random.normal(0, 1, (1, columns)).astype(code.dtype)
        left, right, initial = code.panels(A), code.panels(B), code.panels(bias)
        right[np.isnan(right)] = 0
        initial[np.isnan(initial)] = 0
        packed = np.empty((len(right), code.panel), code.dtype)
        for j, (panel, start) in enumerate(zip(right, initial, strict=True)):
            arguments = (left, code.panel, panel, depth, start, 0, packed[j])
            code.call(product_name(1, 2), *arguments)
        # What follows the weights is not read.
        followed, _ = code.filled((depth, columns), np.nan)
        followed[...] = B
        out, memory = code.filled((len(right), 2, code.panel), CANARY)
        arguments = (followed, columns, depth, initial, out, 2 * code.panel)
        code.call("direct_row", left, code.panel, *arguments)
        assert out[:, 0].tobytes() == packed.tobytes(), (depth, columns)
        assert np.all(out[:, 1] == CANARY) and untouched(memory, out), (depth, columns)


@pytest.mark.parametrize("side", ["one row", "all rows"])
def test_direct_tiles_have_the_bits_of_packed_ones(code, side):
    heights = [1] if side == "one row" else code.target.row_tiles
    for rows, depth in itertools.product(heights, DEPTHS):
        A = code.random.normal(0, 1, (rows, depth)).astype(code.dtype)
        bias = code.random.normal(0, 1, (1, code.panel)).astype(code.dtype)
        # Nothing beside a panel's columns is read.
        B, _ = code.filled((depth, code.panel + 3), np.nan)
        B[:, : code.panel] = code.random.normal(0, 1, (depth, code.panel))
        left, right = code.panels(A), code.panels(B[:, : code.panel])
        packed = np.empty((rows, code.panel), code.dtype)
        operands = left, rows * code.panel
        code.call(product_name(rows, 2), *operands, right, depth, bias, 0, packed)
        out, memory = code.filled((rows, code.panel), CANARY)
        code.call(direct_name(rows), *operands, B, code.panel + 3, depth, bias, out)
        assert out.tobytes() == packed.tobytes(), (rows, depth)
        assert untouched(memory, out), (rows, depth)


def test_sums_of_columns_are_exact(code):
    for rows in DEPTHS:
        A = code.integers(rows, code.panel)
        out, memory = code.filled((code.panel,), CANARY)
        code.call("column_sum", code.panels(A), rows, out)
        assert np.array_equal(out, A.sum(axis=0))
        assert untouched(memory, out)


def test_transposes_are_exact(code):
    lanes, panel = code.lanes, code.panel
    for r, c in itertools.product((0, lanes), repeat=2):
        A = np.arange(lanes * lanes, dtype=code.dtype).reshape(lanes, lanes)
        source, _ = code.filled((panel, panel), np.nan)
        source[r : r + lanes, c : c + lanes] = A
        out, memory = code.filled((panel, panel), CANARY)
        item = code.dtype.itemsize
        offsets = (r * panel + c) * item, (c * panel + r) * item
        code.call(
            "transpose", source.ctypes.data + offsets[0], out.ctypes.data + offsets[1], 1, 0, 1
        )
        assert np.array_equal(out[c : c + lanes, r : r + lanes], A.T)
        out[c : c + lanes, r : r + lanes] = CANARY
        assert np.all(out == CANARY) and untouched(memory, out)


@pytest.mark.parametrize("blocks", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("across", [1, 2])
def test_a_panel_is_transposed_into_panels(code, blocks, across):
    lanes, panel = code.lanes, code.panel
    rows, columns = blocks * lanes, across * lanes
    A = code.integers(rows, panel)
    source, _ = code.filled((rows, panel), np.nan)
    source[...] = A
    panels, stride = -(-rows // panel), (panel + 1) * panel
    out, memory = code.filled((panels, panel + 1, panel), CANARY)
    code.call("transpose", source.ctypes.data, out.ctypes.data, blocks, stride, across)
    for row in range(rows):
        i, place = divmod(row, panel)
        assert np.array_equal(out[i, :columns, place], A[row, :columns])
        out[i, :columns, place] = CANARY
    assert np.all(out == CANARY) and untouched(memory, out)


def copied(code, columns, padded, special=None):
    """Copy rows 2 to 5 of an order into panels; return the expected, the copy and its memory."""
    panel, count = code.panel, -(-columns // code.panel)
    A = code.integers(7, columns)
    order = np.array([6, 0, 3, 3, 5, 1], np.int64)
    if special is not None:
        A[3, columns // 2] = special
        A[[0, 6]] = np.nan  # rows that are not copied
    source, _ = code.filled((7, columns), np.nan)
    source[...] = A
    out, memory = code.filled((count, 6, panel), CANARY)
    into = (out, panel, 6 * panel, padded)
    seen = code.call("copy_rows", source, order, 2, 5, columns, columns, panel, *into)
    expected = np.full_like(out, CANARY)
    if padded:
        expected[-1, 2:5] = 0
    for j in range(count):
        part = A[order[2:5], j * panel : (j + 1) * panel]
        expected[j, 2:5, : part.shape[1]] = part
    return A[order[2:5]], expected, out, memory, seen


@pytest.mark.parametrize("padded", [0, 1])
def test_rows_are_copied_into_panels(code, padded):
    for columns in DEPTHS:
        _, expected, out, memory, _ = copied(code, columns, padded)
        assert np.array_equal(out, expected), columns
        assert untouched(memory, out), columns


def test_rows_are_copied_out_of_panels(code):
    order = np.arange(6, dtype=np.int64)
    for columns in DEPTHS:
        A = code.integers(6, columns)
        panels = code.panels(A)
        out, memory = code.filled((6, columns), CANARY)
        stride = 6 * code.panel
        into = (out, columns, code.panel, 0)
        code.call("copy_rows", panels, order, 1, 5, columns, code.panel, stride, *into)
        assert np.array_equal(out[1:5], A[1:5]), columns
        assert np.all(out[[0, 5]] == CANARY) and untouched(memory, out), columns


@pytest.mark.parametrize("padded", [0, 1])
def test_rows_of_no_columns_write_nothing(code, padded):
    source, order = code.integers(6, 4), np.arange(6, dtype=np.int64)
    out, memory = code.filled((6, code.panel), CANARY)
    for out_row in 0, code.panel:
        into = out, out_row, code.panel, padded
        assert code.call("copy_rows", source, order, 0, 6, 0, 4, code.panel, *into) == 0
        assert np.all(memory == CANARY)


@pytest.mark.parametrize("special", [None, -1e30, np.inf, -np.inf, np.nan])
def test_copies_report_the_largest_magnitude(code, special):
    for columns in DEPTHS:
        rows, _, _, _, seen = copied(code, columns, 1, special)
        kind = f"i{code.dtype.itemsize}"
        assert seen == np.abs(rows).view(kind).max(), columns
        largest = np.array(np.inf, code.dtype).view(kind)
        assert (seen >= largest) == (special is not None and not np.isfinite(special))


# Words and halves that no list can hold.
LIST_CANARY = 0x7BADBADBADBADBAD
PATTERNS = ("random", "nothing", "everything", "rows", "columns", "last")


def with_zeros(code, pattern, rows, columns):
    """Return small integers with zeros of either sign in a pattern."""
    A = code.integers(rows, columns)
    A[A == 0] = 1
    if pattern == "random":
        A[code.random.random(A.shape) < 0.8] = 0
    elif pattern == "nothing":
        A[:] = 0
    elif pattern == "rows":
        A[code.random.random(rows) < 0.5] = 0
    elif pattern == "columns":
        A[:, code.random.random(columns) < 0.5] = 0
    elif pattern == "last":
        A[:-1], A[:, :-1] = 0, 0
    A[(A == 0) & (code.random.random(A.shape) < 0.5)] = -0.0
    return A


def zero_padded(code, A, rows=None):
    """Return panels as a gather leaves them: zeros beyond the last column, NaN below the rows."""
    panels = code.panels(A, rows)
    panels[-1, : len(A), (A.shape[1] - 1) % code.panel + 1 :] = 0
    return panels


def list_memory(capacity):
    """Return room for a list of words, and the memory around it."""
    memory = np.full(capacity + 1 + 2 * MARGIN, LIST_CANARY, np.int64)
    return memory[MARGIN : MARGIN + 1 + capacity], memory


def listed_columns(code, left, height, rows):
    """List the columns of the first rows of panels; return the entries and a check of the rest."""
    panels = len(left)
    out, memory = list_memory(panels * code.panel)
    arguments = (left, height * code.panel, panels, rows, out)
    count = code.call("list_columns", *arguments)
    assert count == out[0] and np.all(memory[:MARGIN] == LIST_CANARY)
    assert np.all(memory[-MARGIN:] == LIST_CANARY)
    return out[1 : 1 + count]


def listed_rows(code, panel, rows):
    """List the rows of each tile of features of a panel; return the entries of each."""
    tiles, words = code.panel // code.target.feature_tile, 1 + (rows + 1) // 2
    out, memory = list_memory(tiles * words - 1)
    code.call("list_rows", panel, rows, out, 8 * words)
    assert np.all(memory[:MARGIN] == LIST_CANARY) and np.all(memory[-MARGIN:] == LIST_CANARY)
    lists = out.reshape(tiles, words)
    return [each[1:].view(np.uint32)[: each[0]] for each in lists]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_lists_of_columns_are_those_with_a_nonzero(code, pattern):
    for rows, depth in itertools.product(code.target.row_tiles, DEPTHS):
        A = with_zeros(code, pattern, rows, depth)
        height = rows + 5
        found = listed_columns(code, zero_padded(code, A, height), height, rows)
        k = np.flatnonzero((A != 0).any(axis=0))
        left = k // code.panel * height * code.panel + k % code.panel
        assert np.array_equal(found & 0xFFFFFFFF, left), (rows, depth)
        assert np.array_equal(found >> 32, k * code.panel), (rows, depth)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_lists_of_rows_are_those_with_a_nonzero(code, pattern):
    features = code.target.feature_tile
    for rows, columns in itertools.product(DEPTHS, (1, code.panel - 1, code.panel)):
        A = with_zeros(code, pattern, rows, columns)
        lists = listed_rows(code, zero_padded(code, A), rows)
        for m, found in enumerate(lists):
            tile = A[:, m * features : (m + 1) * features]
            expected = np.flatnonzero((tile != 0).any(axis=1)) * code.panel
            assert np.array_equal(found, expected), (rows, columns, m)


def test_only_zeros_are_left_out(code):
    """Either zero is one; the smallest number, an infinity and a NaN are not."""
    tiny = np.finfo(code.dtype).smallest_subnormal
    values = [0.0, -0.0, tiny, -tiny, np.inf, -np.inf, np.nan, 1.0]
    for k, lane in itertools.product(range(len(values)), (0, code.lanes, code.panel - 1)):
        A = np.zeros((1, code.panel), code.dtype)
        A[0, lane] = values[k]
        counts = [len(each) for each in listed_rows(code, code.panels(A), 1)]
        found = listed_columns(code, code.panels(A), 1, 1)
        assert sum(counts) == len(found) == (k > 1), values[k]
        assert k < 2 or counts[lane // code.target.feature_tile] == 1


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("kind", INITIAL)
def test_listed_products_are_exact(code, kind, pattern):
    """What is left out is not even read: the weights are NaN there."""
    for (rows, vectors), depth in itertools.product(tiles(code), DEPTHS):
        columns = vectors * code.lanes
        A, B = with_zeros(code, pattern, rows, depth), code.integers(depth, columns)
        left, right = zero_padded(code, A, rows + 5), code.panels(B)
        right[0, ~(A != 0).any(axis=0)] = np.nan
        entries = listed_columns(code, left, rows + 5, rows)
        out, memory = code.filled((rows, code.panel), CANARY)
        initial, stride, values = initial_rows(code, kind, rows, columns, out)
        name = listed_product_name(rows, vectors)
        code.call(name, left, right, entries, len(entries), initial, stride, out)
        assert np.array_equal(out[:, :columns], A @ B + values), (name, depth)
        assert not out[:, columns:].any() and untouched(memory, out), (name, depth)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("kind", INITIAL)
def test_listed_weight_gradients_are_exact(code, kind, pattern):
    features, item = code.target.feature_tile, code.dtype.itemsize
    for vectors, rows in itertools.product((1, 2), DEPTHS):
        columns = vectors * code.lanes
        A, B = with_zeros(code, pattern, rows, code.panel), code.integers(rows, columns)
        left = code.panels(A)
        for m, entries in enumerate(listed_rows(code, left, rows)):
            right, tile = code.panels(B), A[:, m * features : (m + 1) * features]
            right[0, ~(tile != 0).any(axis=1)] = np.nan
            out, memory = code.filled((features, code.panel), CANARY)
            initial, stride, values = initial_rows(code, kind, features, columns, out)
            start, name = left.ctypes.data + m * features * item, listed_gradient_name(vectors)
            code.call(name, start, right, entries, len(entries), initial, stride, out)
            assert np.array_equal(out[:, :columns], tile.T @ B + values), (name, rows)
            assert np.all(out[:, columns:] == CANARY) and untouched(memory, out), (name, rows)


def test_listed_tiles_have_the_bits_of_dense_ones(code):
    depth, item = 100, code.dtype.itemsize
    zeros = np.zeros(code.panel, code.dtype)
    B = code.panels(code.random.normal(0, 1, (depth, code.panel)).astype(code.dtype))
    for rows, vectors in tiles(code):
        A = code.random.normal(0, 1, (rows, depth)) * (code.random.random((rows, depth)) < 0.2)
        left = zero_padded(code, A.astype(code.dtype))
        dense, listed = np.empty((2, rows, code.panel), code.dtype)
        stride = rows * code.panel
        code.call(product_name(rows, vectors), left, stride, B, depth, zeros, 0, dense)
        entries = listed_columns(code, left, rows, rows)
        assert len(entries) < depth
        name = listed_product_name(rows, vectors)
        code.call(name, left, B, entries, len(entries), zeros, 0, listed)
        assert dense.tobytes() == listed.tobytes() and dense.any(), (rows, vectors)
    features, A = code.target.feature_tile, code.random.normal(0, 1, (depth, code.panel))
    left = code.panels((A * (code.random.random(A.shape) < 0.1)).astype(code.dtype))
    for m, entries in enumerate(listed_rows(code, left, depth)):
        assert len(entries) < depth
        first = m * features
        for vectors, height in (1, code.target.narrow_feature_tile(code.dtype.name)), (2, features):
            begin, listed = first // height * height, np.zeros((features, code.panel), code.dtype)
            dense = np.zeros((height, code.panel), code.dtype)
            start = left.ctypes.data + begin * item
            code.call(gradient_name(height, vectors), start, B, depth, zeros, 0, dense)
            name, start = listed_gradient_name(vectors), left.ctypes.data + first * item
            code.call(name, start, B, entries, len(entries), zeros, 0, listed)
            own = dense[first - begin :][:features]
            assert own.tobytes() == listed.tobytes() and own.any(), (m, vectors)


def test_a_listed_product_has_one_zero(code):
    """The sign of a zero would tell which rows shared a tile: how many threads there were."""
    for rows, vectors in tiles(code):
        columns = vectors * code.lanes
        left, right = (
            np.zeros((1, rows, code.panel), code.dtype),
            code.panels(code.integers(9, columns)),
        )
        out = np.full((rows, code.panel), CANARY, code.dtype)
        bias = np.full(code.panel, -0.0, code.dtype)
        code.call(listed_product_name(rows, vectors), left, right, left, 0, bias, 0, out)
        assert not out.any() and not np.signbit(out).any(), (rows, vectors)


@pytest.mark.parametrize("initial", ["one row", "own rows", "in place"])
def test_a_row_of_panels_has_the_bits_of_each_panel(code, initial):
    panel, panels = code.panel, PANELS_OF_A_ROW
    ways = [(ROW_PRODUCT, product_name(1, 2))]
    ways += [
        (finishing_row_name(direction, activation), finishing_name(direction, activation, 1, 2))
        for activation, direction in itertools.product(FINISHES, (FORWARD, BACKWARD))
    ]
    for (name, alone), depth in itertools.product(ways, DEPTHS):
        left = code.panels(code.random.standard_normal((1, depth)).astype(code.dtype), 3)
        weights, _ = code.filled((panels, depth + 2, panel), np.nan)
        weights[:, :depth] = code.random.standard_normal((panels, depth, panel))
        start, _ = code.filled((panels, panel), 0)
        start[...] = code.random.standard_normal((panels, panel))
        kept, _ = code.filled((panels, 3, panel), np.nan)
        kept[:, 0] = code.random.standard_normal((panels, panel))
        out, memory = code.filled((panels, 3, panel), CANARY)
        begins, stride = (out, 3 * panel) if initial == "in place" else (start, panel)
        if initial == "in place":
            out[:, 0] = start
        if initial == "one row":
            start[1:], stride = start[0], 0
        expected, most = np.empty((panels, panel), code.dtype), 0
        for j in range(panels):
            operands = (left, 3 * panel, weights[j], depth, start[j], 0, expected[j])
            # The product's own call adds what it does not read.
            found = code.call(alone, *operands, *([kept[j]] if "product" not in alone else []))
            most = max(most, found)
        operands = (left, 3 * panel, weights, (depth + 2) * panel, depth, begins, stride)
        more = [kept] if name != ROW_PRODUCT else []
        assert code.call(name, *operands, out, 3 * panel, *more) == most
        assert out[:, 0].tobytes() == expected.tobytes(), (name, depth)
        out[:, 0] = CANARY
        assert np.all(out == CANARY) and untouched(memory, out)


def test_no_function_is_left_out(code):
    test_a_row_of_panels_has_the_bits_of_each_panel(code, "one row")
    for test in (
        test_sums_of_columns_are_exact,
        test_transposes_are_exact,
        test_rows_are_copied_out_of_panels,
        test_a_single_output_is_exact,
        *([test_direct_products_have_the_bits_of_packed_ones] if code.target.masks else []),
    ):
        test(code)
    for side in ("one row", "all rows"):
        test_direct_tiles_have_the_bits_of_packed_ones(code, side)
    test_products_are_exact(code, "one row")
    test_weight_gradients_are_exact(code, "one row")
    test_listed_products_are_exact(code, "one row", "random")
    test_listed_weight_gradients_are_exact(code, "one row", "random")
    for activation, direction in itertools.product(FINISHES, (FORWARD, BACKWARD)):
        test_finishing_products_have_the_bits_of_product_and_leaf(code, activation, direction, 0.0)
    assert code.called == set(code.addresses) and len(code.called) >= 11
    assert all(code.addresses.values())


# A vector register that is written to the stack: a frame pointer is never made, so a spill is
# relative to the stack pointer. AArch64 also saves d8 to d15, which belong to the caller.
STACK_STORES = {
    "x86_64": re.compile(r"^\s*v?mov\w+\s+%[xyz]mm\d+, [^,\n]*\(%rsp[,)]", re.MULTILINE),
    "aarch64": re.compile(r"^\s*st\w+\s+q\d+[^\n]*\[sp", re.MULTILINE),
}
STACK_LOADS = {
    "x86_64": re.compile(r"^[^\n]*\(%rsp[,)][^\n]*%[xyz]mm\d+", re.MULTILINE),
    "aarch64": re.compile(r"^\s*ld\w+\s+q\d+[^\n]*\[sp", re.MULTILINE),
}


def innermost_loops(body):
    """Return the parts of a function that end with a jump to their own label."""
    parts = re.split(r"^(\.?LBB\w+):", body, flags=re.MULTILINE)
    blocks = zip(parts[1::2], parts[2::2], strict=True)
    return "".join(code for label, code in blocks if re.search(rf"\s{re.escape(label)}\b", code))


def spills(text, names, architecture, where=str):
    """Return how often each function moves vector registers to the stack and back."""
    parts = re.split(r"^_?(\w+):", text, flags=re.MULTILINE)
    bodies = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert set(names) <= set(bodies)
    found = {}
    for name in names:
        count = sum(
            len(pattern[architecture].findall(where(bodies[name])))
            for pattern in (STACK_STORES, STACK_LOADS)
        )
        if count:
            found[name] = count
    return found


def architecture_of(target):
    return machine_code.target_machine(target).triple.partition("-")[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("target", INSTRUCTION_SETS, ids=lambda target: target.name)
def test_no_register_is_spilled(target, dtype):
    """Compiled for its target, whether or not this machine could run it.

    From one of the tallest tiles to the next, the largest magnitude waits on the stack, and
    constants. Nothing does in a loop over k.
    """
    architecture = architecture_of(target)
    if architecture not in STACK_STORES:
        pytest.skip(f"how {architecture} writes to its stack is not known here")
    _, names = machine_code.optimized_module(target, dtype)
    text = machine_code.assembly(target, dtype)
    assert re.search(r"%[xyz]mm\d" if architecture == "x86_64" else r"\bv\d+\.", text)
    assert spills(text, names, architecture, innermost_loops) == {}
    tallest = re.compile(rf"(product|forward|backward)_.*{target.row_tiles[0]}x2")
    for name, count in spills(text, names, architecture).items():
        assert tallest.fullmatch(name) and count <= 8, (name, count)


@pytest.mark.parametrize("emit", [emit_product, emit_listed_product])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "target", [each for each in INSTRUCTION_SETS if each.triple], ids=lambda target: target.name
)
def test_a_tile_that_is_too_tall_is_seen_to_spill(monkeypatch, target, dtype, emit):
    """The search above finds what it searches."""
    rows = 20
    name = {emit_product: product_name, emit_listed_product: listed_product_name}[emit](rows, 2)

    def too_tall(target, dtype):
        emitter = Emitter(target, dtype)
        emit(emitter, rows, 2)
        return emitter

    monkeypatch.setattr(machine_code, "emit_all", too_tall)
    text = machine_code.assembly(target, dtype)
    for where in (str, innermost_loops):
        assert spills(text, [name], architecture_of(target), where)[name] > 10
