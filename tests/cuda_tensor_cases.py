"""The products on tensor cores, and the instructions under them, against float64.

Not collected by itself: see `test_cuda`. In the simulator the warp's instructions are emulated.
"""

import numpy as np
import pytest
from numba import cuda

from fastmlp_kernels.cuda import emulation
from tests.cuda_device import MARKS, normal
from tests.cuda_tensor_kernels import PRECISIONS, kernel, products
from tests.tolerances import Bounded, Precision, compare

pytestmark = MARKS

ROUND = {"bfloat16": emulation.bfloat16_bits, "tf32": emulation.tf32_values}
VALUES = {"bfloat16": emulation.bfloat16_values, "tf32": np.asarray}
SINGLE = Precision("float32")
# Words of NaN around everything in shared memory: a multiple of 16 bytes.
GUARD = 8
# Rows, fan_in, fan_out, threads: one tile; several and a part of one, fewer warps than tiles and
# more (low tiles); widths that fill no instruction.
SHAPES = [(32, 32, 32, 32), (64, 40, 33, 32), (32, 7, 50, 128), (64, 72, 10, 96)]


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
