"""The products on tensor cores, and the instructions under them, against float64.

Not collected by itself: see `test_case_files`. In the simulator the warp's instructions are
emulated.
"""

import numpy as np
import pytest
from numba import cuda, types
from numba.core.errors import TypingError

from fastmlp_kernels.compile import cuda_kernel, simulated
from fastmlp_kernels.cuda.instructions import emulation, fragments, intrinsics
from fastmlp_kernels.cuda.instructions.index32 import index32, wide
from fastmlp_kernels.cuda.instructions.pointers import load, pointer_to, store
from fastmlp_kernels.cuda.on_chip.offsets import SHARED_ALIGNMENT
from fastmlp_kernels.cuda.on_chip.products import Epilogue, Epilogues
from fastmlp_kernels.cuda.on_chip.tensor_linear import build, conversions
from fastmlp_kernels.records import table
from tests.gpu.device import MARKS, generator, launch, normal
from tests.gpu.tensor_kernels import PRECISIONS, kernel, products
from tests.tolerances import Bounded, Precision, compare

pytestmark = MARKS

ROUND = {"bfloat16": emulation.bfloat16_bits, "tf32": emulation.tf32_values}
VALUES = {"bfloat16": emulation.bfloat16_values, "tf32": np.asarray}
SINGLE = Precision("float32")
# Words of NaN around everything in shared memory: a multiple of 16 bytes.
GUARD = 8
# Rows, fan_in, fan_out, threads: one tile; several and a part of one, fewer warps than tiles and
# more (low tiles); widths that fill no instruction.
SHAPES = [(32, 32, 32, 32), (64, 40, 33, 32), (32, 7, 50, 128), (64, 39, 10, 96)]


class Image:
    """Shared memory as one array of float32, NaN wherever nothing is put."""

    def __init__(self, precision):
        self.precision = precision
        self.words = np.full(GUARD, np.nan, np.float32)

    def put(self, words):
        place = len(self.words)
        fill = np.full(-words.size % 4 + GUARD, np.nan, np.float32)
        self.words = np.concatenate([self.words, words.ravel(), fill])
        return place

    def operand(self, matrix):
        """Put a rounded matrix with zeros in its padding; return its offset and stride."""
        made = products(32, self.precision)
        rows, columns = (-(-n // made.pad) * made.pad for n in matrix.shape)
        bits = np.full((rows, columns + made.skew), ROUND[self.precision](np.float32(np.nan)))
        bits[:, :columns] = 0
        bits[: matrix.shape[0], : matrix.shape[1]] = matrix
        place = self.put(bits.view(np.float32))
        return place * 4 // bits.itemsize, columns + made.skew


def factors(precision, *shapes):
    """Return matrices as operands, and their exact values."""
    rounded = [ROUND[precision](normal(shape, np.float32, k)) for k, shape in enumerate(shapes)]
    return rounded, [Bounded.exact(VALUES[precision](each)) for each in rounded]


def run(name, precision, threads, image, result, pitch, words):
    """Launch, and return the new image; the words around the result must not have changed."""
    before = image.words.copy()
    words = np.array([result, pitch, 1, *words], np.int64)
    held, told = cuda.to_device(image.words), cuda.to_device(words)
    kernel(name, threads, precision)[1, threads, 0, before.nbytes](held, told)
    after = held.copy_to_host()
    outside = np.ones(len(before), bool)
    outside[result : result + image.rows * pitch] = False
    assert np.array_equal(after[outside].view(np.uint32), before[outside].view(np.uint32))
    return after[result : result + image.rows * pitch].reshape(image.rows, pitch)


def checked(image, name, precision, shape, oracle, words, start=np.nan):
    """Run a product whose result has a spare column, and compare it."""
    threads = shape[3]
    image.rows, columns = oracle.value.shape
    spare = np.full((image.rows, columns + 1), start, np.float32)
    spare[:, columns] = np.nan
    result = image.put(spare)
    found = run(name, precision, threads, image, result, columns + 1, words)
    assert np.isnan(found[:, columns]).all(), "wrote beyond the width"
    compare(found[:, :columns], oracle, name)
    return found[:, :columns]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_forward(precision, shape):
    rows, fan_in, fan_out, _ = shape
    (A, W), exact = factors(precision, (rows, fan_in), (fan_in, fan_out))
    b = normal((fan_out,), np.float32, 5)
    image = Image(precision)
    words = [*image.operand(A), *image.operand(W), image.put(b), rows, fan_in, fan_out]
    oracle = SINGLE.product(*exact)
    more = SINGLE.gamma(fan_in + 2) * np.abs(b)
    oracle = Bounded(oracle.value + b, oracle.error + more)
    checked(image, "forward", precision, shape, oracle, words)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_backward(precision, shape):
    rows, fan_in, fan_out, _ = shape
    (dZ, W), (exact_dZ, exact_W) = factors(precision, (rows, fan_out), (fan_in, fan_out))
    image = Image(precision)
    words = [*image.operand(dZ), *image.operand(W), rows, fan_in, fan_out]
    oracle = SINGLE.product(exact_dZ, exact_W.T)
    checked(image, "backward", precision, shape, oracle, words)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_weight_gradient(precision, shape):
    rows, fan_in, fan_out, _ = shape
    (A, dZ), (exact_A, exact_dZ) = factors(precision, (rows, fan_in), (rows, fan_out))
    image = Image(precision)
    words = [*image.operand(A), *image.operand(dZ), rows, fan_in, fan_out]
    # Added to what is there.
    oracle = SINGLE.product(exact_A.T, exact_dZ)
    oracle = Bounded(oracle.value + 2, oracle.error + 2 * SINGLE.unit * (np.abs(oracle.value) + 2))
    checked(image, "weight_gradient", precision, shape, oracle, words, start=2)


def near_ties(dropped):
    """Return float32 numbers of all kinds, at and beside ties of their dropped bits; one is NaN."""
    highs = generator(dropped).integers(0, 2**32 >> dropped, 40).astype(np.uint32)
    last = np.array([0, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0xFFC00001], np.uint32) >> dropped
    highs = np.concatenate([highs, last])
    half = 1 << dropped - 1
    tails = np.array([0, 1, half - 1, half, half + 1, 2 * half - 1], np.uint32)
    return ((highs << dropped)[:, None] + tails).ravel().view(np.float32)


def convert(function, values, dtype):
    """Return what a kernel makes of each value."""

    @cuda_kernel
    def conversion(x, out):
        k = cuda.grid(1)
        if k < out.shape[0]:
            out[k] = function(x[k])

    out = np.zeros(len(values), dtype)
    launch(conversion, -(-len(values) // 64), 64, values, out)
    return out


def same(found, wanted):
    """Return whether two arrays of numbers are the same bits, where not both are NaN."""
    both = np.isnan(found) & np.isnan(wanted)
    return ((found.view(np.uint32) == wanted.view(np.uint32)) | both).all()


def test_conversion_to_bfloat16_and_back():
    x = near_ties(16)
    to_operand, to_number = conversions("bfloat16")
    found = convert(to_number, convert(to_operand, x, np.uint16), np.float32)
    assert same(found, emulation.bfloat16_values(emulation.bfloat16_bits(x)))
    bits = np.arange(0, 1 << 16, 97 if simulated() else 1).astype(np.uint16)
    assert same(convert(to_number, bits, np.float32), emulation.bfloat16_values(bits))


def test_conversion_to_tf32():
    x = near_ties(13)
    to_operand, to_number = conversions("tf32")
    rounded = convert(to_operand, x, np.float32)
    assert same(rounded, emulation.tf32_values(x))
    assert same(convert(to_number, rounded, np.float32), rounded)


def test_a_pair_of_bfloat16_has_its_first_in_the_low_half():
    @cuda_kernel
    def pair(x, out):
        k = cuda.grid(1)
        if k < out.shape[0]:
            out[k] = intrinsics.to_bfloat16_pair(x[2 * k], x[2 * k + 1])

    x = normal((12,), np.float32)
    out = np.zeros(6, np.uint32)
    launch(pair, 1, 32, x, out)
    assert np.array_equal(out.view(np.uint16), emulation.bfloat16_bits(x))


def test_loads_and_stores_of_four():
    @cuda_kernel
    def move(x, out, bits):
        shared = cuda.shared.array(0, types.float32, SHARED_ALIGNMENT)
        t = index32(cuda.threadIdx.x)
        a, b, c, d = load(pointer_to(x, 4 * t), 4)
        store(pointer_to(shared, 4 * (31 - t)), (d, c, b, a))
        cuda.syncthreads()
        store(pointer_to(out, 4 * t), load(pointer_to(shared, 4 * t), 4))
        bits[t] = intrinsics.load_bits(shared, 4 * t + 1)

    x = normal((128,), np.float32)
    held = [cuda.to_device(each) for each in (x, np.zeros_like(x), np.zeros(32, np.uint32))]
    move[1, 32, 0, 512](*held)
    assert np.array_equal(held[1].copy_to_host(), x[::-1])
    assert np.array_equal(held[2].copy_to_host(), x[::-1].copy().view(np.uint32)[1::4])


FIELDS, FOUR_FIELDS = table("first", "second", "third"), table(*"first second third fourth".split())


def test_a_record_is_read_by_name_where_it_is():
    @cuda_kernel
    def read(words, place, out):
        record = intrinsics.record_at(words, FIELDS, place, False)
        out[0], out[1] = record.third, record.first
        words[place + 1] = 7
        out[2] = record.second
        narrow = intrinsics.record_at(words, FOUR_FIELDS, index32(place), True)
        out[3] = wide(narrow.second + narrow.fourth)

    words, out = cuda.to_device(np.arange(9, 21)), cuda.to_device(np.zeros(4, np.int64))
    read[1, 1](words, 4, out)
    assert out.copy_to_host().tolist() == [15, 13, 7, 23]


def test_numbers_of_32_bits():
    @cuda_kernel
    def compute(out, numbers):
        a, b = index32(out[0]), index32(out[1])
        numbers[a] = numbers[b] + 1
        c = 2 * a + 7 * b - 3
        out[0], out[1], out[2] = wide(c), wide(c // b), wide(c % b)
        out[3], out[4] = wide(min(a, b)), wide(max(a, 5))
        out[5], out[6], out[7] = wide(c & 6), wide(c >> 2), wide(a << 3)
        out[8] = (a < b) + 2 * (a <= b) + 4 * (a > b) + 8 * (a >= b) + 16 * (a == b)
        out[9] = 3 - a > 5 - b
        a += b
        b -= 1
        b *= 4
        out[10], out[11] = wide(a), wide(b)

    out = cuda.to_device(np.array([3, 4] + [0] * 10))
    numbers = cuda.to_device(np.arange(5, dtype=np.float64))
    compute[1, 1](out, numbers)
    assert numbers.copy_to_host().tolist() == [0, 1, 2, 5, 4]
    assert out.copy_to_host().tolist() == [31, 7, 3, 3, 5, 6, 7, 24, 3, 0, 7, 12]


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint16"])
def test_pointers(dtype):
    kind = getattr(types, dtype)

    @cuda_kernel
    def move(x, out):
        shared = cuda.shared.array(0, kind, SHARED_ALIGNMENT)
        for k in range(16):
            shared[k] = x[k]
        pointer = pointer_to(shared, index32(2))
        pointer += 2
        pointer[index32(1)] = pointer[3]
        pointer = pointer + index32(4)
        pointer[0] = x[0]
        for k in range(16):
            out[k] = shared[k]

    x = np.arange(1, 17).astype(dtype)
    held = [cuda.to_device(each) for each in (x, np.zeros_like(x))]
    move[1, 1, 0, 16 * x.itemsize](*held)
    wanted = x.copy()
    wanted[5], wanted[8] = x[7], x[0]
    assert held[1].copy_to_host().tolist() == wanted.tolist()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_neighbours_are_loaded_and_stored(dtype, count):
    @cuda_kernel
    def move(x, out):
        t = index32(cuda.threadIdx.x)
        store(pointer_to(out, count * (7 - t)), load(pointer_to(x, count * t), count))

    x = normal((8 * count,), dtype)
    held = [cuda.to_device(each) for each in (x, np.zeros_like(x))]
    move[1, 8](*held)
    wanted = x.reshape(8, count)[::-1].ravel()
    assert held[1].copy_to_host().tolist() == wanted.tolist()


if not simulated():

    def test_a_place_in_global_memory_is_never_cut_short():
        """Beside an int64 a number of 32 bits is an error of types."""

        @cuda_kernel
        def add(out):
            out[index32(out[0]) + out[1]] = 1

        with pytest.raises(TypingError, match=r"add\(Index32, int64\)"):
            add[1, 1](cuda.to_device(np.zeros(2, np.int64)))


@cuda_kernel
def copy_two_groups(x, out, early):
    shared = cuda.shared.array(0, types.float32)
    t = cuda.threadIdx.x
    for k in range(8):
        shared[8 * t + k] = -1
    intrinsics.copy_async_16(shared, 8 * t, x, 8 * t)
    intrinsics.copy_async_commit()
    intrinsics.copy_async_16(shared, 8 * t + 4, x, 8 * t + 4)
    intrinsics.copy_async_commit()
    intrinsics.copy_async_wait(1)
    early[t] = shared[8 * t + 4]
    out[8 * t] = shared[8 * t]
    intrinsics.copy_async_wait(0)
    for k in range(1, 8):
        out[8 * t + k] = shared[8 * t + k]


def test_asynchronous_copies_arrive_when_they_are_waited_for():
    x = normal((256,), np.float32)
    held = [cuda.to_device(each) for each in (x, np.zeros_like(x), np.zeros(32, np.float32))]
    copy_two_groups[1, 32, 0, 1024](*held)
    assert np.array_equal(held[1].copy_to_host(), x)
    if simulated():
        # A reader that does not wait gets what was there before; a GPU promises nothing.
        assert (held[2].copy_to_host() == -1).all()


@cuda_kernel
def transposed_eights(image, out):
    shared = cuda.shared.array(0, types.float32)
    t = cuda.threadIdx.x
    for k in range(4):
        shared[4 * t + k] = image[4 * t + k]
    cuda.syncthreads()
    plain = intrinsics.load_matrix_x4(shared, 4 * t)
    turned = intrinsics.load_matrix_x4_transposed(shared, 4 * t)
    for q in range(4):
        out[4 * t + q] = plain[q]
        out[128 + 4 * t + q] = turned[q]


def test_matrix_loads():
    halves = np.arange(256, dtype=np.uint16)
    held = [cuda.to_device(each) for each in (halves.view(np.float32), np.zeros(256, np.uint32))]
    transposed_eights[1, 32, 0, 512](*held)
    found = held[1].copy_to_host().view(np.uint16).reshape(2, 32, 4, 2)
    matrices = halves.reshape(4, 8, 8)
    for lane in range(32):
        row, column = fragments.matrix_row(lane), fragments.matrix_column(lane)
        assert np.array_equal(found[0, lane], matrices[:, row, column : column + 2])
        assert np.array_equal(found[1, lane], matrices[:, column : column + 2, row])


def test_blocks_of_part_warps_and_unknown_precisions_are_refused():
    nothing = Epilogue(None, None)
    epilogues = Epilogues(nothing, nothing, None)
    with pytest.raises(ValueError, match="threads: got 48, wanted a multiple of 32"):
        build(48, "tf32", epilogues)
    with pytest.raises(ValueError, match="precision: got 'float16', wanted one of"):
        build(32, "float16", epilogues)


if simulated():
    # What the emulation sees and a GPU would not.

    @cuda_kernel
    def load_by(shared_words, lanes, place):
        shared = cuda.shared.array(0, types.float32)
        if cuda.threadIdx.x < lanes:
            intrinsics.load_matrix_x4(shared, place)

    @cuda_kernel
    def load_or_other(turned):
        shared = cuda.shared.array(0, types.float32)
        if cuda.threadIdx.x < turned:
            intrinsics.load_matrix_x4_transposed(shared, 0)
        else:
            intrinsics.load_matrix_x4(shared, 0)

    def test_a_lane_that_stays_away_is_an_error(monkeypatch):
        monkeypatch.setattr(emulation, "PATIENCE", 0.3)
        with pytest.raises(RuntimeError, match="load_matrix_x4: got 31 lanes of a warp, wanted 32"):
            load_by[1, 32, 0, 512](0, 31, 0)

    @cuda_kernel
    def load_twice(lanes):
        shared = cuda.shared.array(0, types.float32)
        intrinsics.load_matrix_x4(shared, 0)
        if cuda.threadIdx.x < lanes:
            intrinsics.load_matrix_x4(shared, 0)

    def test_a_lane_that_has_ended_is_seen_at_once():
        with pytest.raises(RuntimeError, match="load_matrix_x4: lane 31 ended: it returned"):
            load_twice[1, 32, 0, 512](31)

    def test_lanes_in_two_instructions_are_an_error():
        with pytest.raises(RuntimeError, match="got lanes in .*, wanted all in one"):
            load_or_other[1, 32, 0, 512](7)

    @pytest.mark.parametrize("place", [2, -4, 128])
    def test_a_matrix_row_out_of_place_is_an_error(place):
        with pytest.raises(ValueError, match="wanted 4 elements inside, aligned"):
            load_by[1, 32, 0, 512](0, 32, place)

    def test_part_of_a_warp_is_an_error():
        with pytest.raises(ValueError, match="wanted whole warps"):
            load_by[1, 40, 0, 512](0, 40, 0)
