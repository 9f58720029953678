"""The binding of cuBLASLt: what it passes, where it looks, what it says. No GPU and no Numba."""

import ctypes
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest

from fastmlp_kernels.cuda.layered import cublas
from fastmlp_kernels.cuda.layered.cublas import Cublas, CublasError, connect
from fastmlp_kernels.cuda.layered.product import EPILOGUES, Product, alignment, mask_stride
from tests.gpu.recording_cublas import RecordingCublasLt, from_bfloat16, to_tf32

FLAGS = (False, True)


def matrix(shape, stride, dtype, seed):
    """Return a row-major matrix inside wider rows, and NaN beside it."""
    rows, columns = shape
    held = np.full((rows, stride), np.nan if dtype != np.uint16 else 0x7FC0, dtype)
    values = np.random.default_rng(seed).normal(size=(rows, columns))
    if dtype == np.uint16:
        values = values.astype(np.float32).view(np.uint32) >> 16
    held[:, :columns] = values
    return held


def product_of(arrays, rows, columns, terms, left_transposed, right_transposed, **more):
    left, right, result = arrays
    kinds = {"float32": "float32", "float64": "float64", "uint16": "bfloat16"}
    return Product(
        rows,
        columns,
        terms,
        left_transposed,
        right_transposed,
        tuple(array.shape[1] for array in arrays),
        kinds[str(left.dtype)],
        str(result.dtype),
        more.pop("compute", str(result.dtype)),
        tuple(alignment(array.ctypes.data) for array in arrays),
        **more,
    )


@pytest.mark.parametrize("right_transposed", FLAGS)
@pytest.mark.parametrize("left_transposed", FLAGS)
@pytest.mark.parametrize("compute", ["float32", "float64", "tf32", "bfloat16"])
@pytest.mark.parametrize("accumulate", FLAGS)
def test_a_row_major_product(left_transposed, right_transposed, compute, accumulate):
    rows, columns, terms = 3, 5, 4
    dtype = np.float64 if compute == "float64" else np.float32
    operands = np.uint16 if compute == "bfloat16" else dtype
    left = matrix((terms, rows) if left_transposed else (rows, terms), 7, operands, 0)
    right = matrix((columns, terms) if right_transposed else (terms, columns), 6, operands, 1)
    result = matrix((rows, columns), 8, dtype, 2)
    before = result.copy()
    arrays, library = (left, right, result), RecordingCublasLt()
    work = np.zeros(library.workspace, np.uint8)
    product = product_of(
        arrays, rows, columns, terms, left_transposed, right_transposed, compute=compute
    )
    pointers = tuple(array.ctypes.data for array in arrays)
    Cublas(library).multiply(product, pointers, accumulate, (work.ctypes.data, work.size), 77)
    read = {"bfloat16": from_bfloat16, "tf32": to_tf32}.get(compute, np.asarray)
    A, B = (read(array).astype(np.float64) for array in (left, right))
    A = A[:, :rows].T if left_transposed else A[:, :terms]
    B = B[:, :terms].T if right_transposed else B[:, :columns]
    expected = A @ B + (before[:, :columns] if accumulate else 0)
    np.testing.assert_allclose(result[:, :columns], expected, rtol=1e-6, atol=1e-6)
    assert np.isnan(result[:, columns:]).all()
    # The library's m, n and k: the result is a transposed one there.
    assert library.products[0][:3] == (columns, rows, terms)
    assert library.products[0][4:] == (77, 1.0, 1.0 if accumulate else 0.0)


def test_the_library_adds_a_bias_to_each_column():
    left, right = matrix((3, 4), 4, np.float32, 0), matrix((4, 5), 5, np.float32, 1)
    result, bias = np.full((3, 5), np.nan, np.float32), np.arange(5, dtype=np.float32)
    arrays, library = (left, right, result), RecordingCublasLt(workspace=0)
    product = product_of(arrays, 3, 5, 4, False, False, epilogue="bias", vector_alignment=4)
    pointers = tuple(array.ctypes.data for array in arrays)
    held = Cublas(library)
    held.multiply(product, pointers, False, (0, 0), 0, bias.ctypes.data)
    np.testing.assert_allclose(result, left @ right + bias, rtol=1e-6)
    described = [each for each in library.alive.values() if each.kind == "MatmulDesc"]
    assert described[0].attributes[8] == bias.ctypes.data


WORK = np.zeros(64, np.uint8)


def finished(library, arrays, sizes, transposed=FLAGS[:1] * 2, mask=None, vector=None, **more):
    """Multiply with an epilogue."""
    if mask is not None:
        more["mask_stride"] = more.get("mask_stride", 8 * mask.shape[1])
    product = product_of(arrays, *sizes, *transposed, **more)
    pointers = tuple(array.ctypes.data for array in arrays)
    at = [0 if each is None else each.ctypes.data for each in (vector, mask)]
    work = (WORK.ctypes.data, WORK.size)
    Cublas(library).multiply(product, pointers, False, work, 0, *at)


def aligned_mask(rows, columns):
    """Return a mask that begins at a multiple of 256 bytes."""
    stride = mask_stride(columns) // 8
    memory = np.zeros(rows * stride + 256, np.uint8)
    start = -memory.ctypes.data % 256
    return memory[start : start + rows * stride].reshape(rows, stride)


@pytest.mark.parametrize("columns", [5, 128, 130])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_mask_of_the_signs_is_applied_on_the_way_back(dtype, columns):
    left, right = matrix((3, 4), 4, dtype, 0), matrix((4, columns), columns, dtype, 1)
    bias, mask = matrix((1, columns), columns, dtype, 2)[0], aligned_mask(3, columns)
    result, library = np.full((3, columns), np.nan, dtype), RecordingCublasLt()
    forward = {"epilogue": "relu_aux_bias", "vector_alignment": 4}
    finished(library, (left, right, result), (3, columns, 4), mask=mask, vector=bias, **forward)
    z = left.astype(np.float64) @ right + bias
    np.testing.assert_allclose(result, np.maximum(z, 0), rtol=1e-5, atol=1e-6)
    delta, W = matrix((3, 2), 2, dtype, 3), matrix((columns, 2), 2, dtype, 4)
    back = np.full((3, columns), np.nan, dtype)
    arrays, turned = (delta, W, back), (False, True)
    finished(library, arrays, (3, columns, 2), turned, mask=mask, epilogue="drelu")
    expected = (delta.astype(np.float64) @ W.T) * (z > 0)
    np.testing.assert_allclose(back, expected, rtol=1e-5, atol=1e-6)
    assert 0 < (z > 0).sum() < z.size


@pytest.mark.parametrize("operands", [np.float32, np.uint16])
def test_the_rows_of_the_right_factor_are_summed(operands):
    """The gradient of a bias, beside that of the weights: float32, as the result is."""
    A, dZ = matrix((6, 3), 3, operands, 0), matrix((6, 5), 8, operands, 1)
    dW, db = np.full((3, 5), np.nan, np.float32), np.full(5, np.nan, np.float32)
    arrays, more = (A, dZ, dW), {"compute": "bfloat16" if operands == np.uint16 else "float32"}
    more["vector_alignment"] = 4
    more["epilogue"] = "bgrada"
    finished(RecordingCublasLt(), arrays, (3, 5, 6), (True, False), vector=db, **more)
    left, right = (from_bfloat16(each) if operands == np.uint16 else each for each in (A, dZ))
    np.testing.assert_allclose(dW, left.T @ right[:, :5], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(db, right[:, :5].sum(axis=0), rtol=1e-5, atol=1e-6)


def test_what_an_epilogue_lacks_is_refused():
    """As the library does: INVALID_VALUE, or no algorithm."""
    dtype = np.float32
    left, right = matrix((3, 4), 4, dtype, 0), matrix((4, 5), 5, dtype, 1)
    arrays, sizes = (left, right, np.zeros((3, 5), dtype)), (3, 5, 4)
    bias, mask = np.zeros(5, dtype), aligned_mask(3, 5)
    relu = {"epilogue": "relu_aux_bias", "vector_alignment": 4}
    with pytest.raises(CublasError, match="INVALID_VALUE"):
        finished(RecordingCublasLt(), arrays, sizes, mask=None, vector=bias, **relu)
    with pytest.raises(CublasError, match="INVALID_VALUE"):
        finished(RecordingCublasLt(), arrays, sizes, mask=mask, vector=None, **relu)
    for stride in (0, 8, 64, 129):
        with pytest.raises(CublasError, match="INVALID_VALUE"):
            more = {**relu, "mask_stride": stride}
            finished(RecordingCublasLt(), arrays, sizes, mask=mask, vector=bias, **more)
    with pytest.raises(AssertionError, match="bias"):
        more = {**relu, "vector_alignment": 256}
        held = np.zeros(128, dtype)
        odd = held[-held.ctypes.data % 256 // 4 + 1 :][:5]
        finished(RecordingCublasLt(), arrays, sizes, mask=mask, vector=odd, **more)
    column = (matrix((3, 1), 1, dtype, 0), matrix((5, 1), 1, dtype, 1), arrays[2])
    with pytest.raises(CublasError, match="no algorithm"):
        finished(RecordingCublasLt(), column, (3, 5, 1), (False, True), mask=mask, epilogue="drelu")
    with pytest.raises(CublasError, match="no algorithm"):
        refusing = RecordingCublasLt(refusing={134})
        finished(refusing, arrays, sizes, mask=mask, vector=bias, **relu)


@pytest.mark.parametrize(("columns", "stride"), [(1, 128), (128, 128), (129, 256)])
def test_mask_stride(columns, stride):
    assert mask_stride(columns) == stride


def test_a_plan_is_made_once_for_a_product_and_everything_is_destroyed_in_order():
    library = RecordingCublasLt()
    held = Cublas(library)
    assert held.workspace_bytes == 0
    arrays = [matrix((4, 4), 4, np.float32, seed) for seed in range(3)]
    product = product_of(arrays, 4, 4, 4, False, False)
    assert held.plan(product) is held.plan(product)
    assert library.calls.count("cublasLtMatmulAlgoGetHeuristic") == 1
    assert held.workspace_bytes == library.workspace
    assert library.calls.count("cublasLtMatmulPreferenceDestroy") == 1
    created = [name for name in library.calls if name.endswith("Create")]
    assert created[0] == "cublasLtCreate" and len(created) == 6
    del held
    assert library.alive == {} and library.calls[-1] == "cublasLtDestroy"


def test_a_plan_that_fails_leaves_nothing_and_old_ones_make_room(monkeypatch):
    monkeypatch.setattr(cublas, "PLANS_KEPT", 2)
    library = RecordingCublasLt()
    held = Cublas(library)
    arrays = [matrix((4, 4), 4, np.float32, seed) for seed in range(3)]
    first, second, third = (product_of(arrays, n, 4, 4, False, False) for n in (4, 3, 2))
    plan = held.plan(first)
    held.plan(second)
    assert held.plan(first) is plan
    held.plan(third)
    assert set(held.plans) == {first, third} and held.plan(first) is plan
    assert len(library.alive) == 1 + 2 * 4
    library.algorithms = 0
    with pytest.raises(CublasError, match="no algorithm"):
        held.plan(second)
    assert len(library.alive) == 1 + 2 * 4
    del held
    assert library.alive == {}


@pytest.mark.parametrize("name", sorted(cublas.FUNCTIONS))
def test_every_status_is_checked_and_named(name):
    if name.endswith("Destroy") and "Preference" not in name:
        return
    library = RecordingCublasLt(failing={name: 14})
    arrays = [matrix((4, 4), 4, np.float32, seed) for seed in range(3)]
    product = product_of(arrays, 4, 4, 4, False, False)
    pointers = tuple(array.ctypes.data for array in arrays)
    work = np.zeros(library.workspace, np.uint8)
    with pytest.raises(CublasError, match=rf"{name}: got status 14 \(INTERNAL_ERROR\), wanted 0"):
        Cublas(library).multiply(product, pointers, False, (work.ctypes.data, work.size), 0)


class Foreign:
    """The functions as C functions, so that arguments go through ctypes and arrive as words."""

    def __init__(self):
        self.received = []
        for name, arguments in cublas.FUNCTIONS.items():
            setattr(self, name, self.function(name, arguments))

    def function(self, name, arguments):
        def call(*words):
            self.received.append((name, words))
            if name.endswith("Create"):
                ctypes.c_void_p.from_address(words[0]).value = 0xABC0 + len(self.received)
            if name.endswith("Heuristic"):
                result = cublas.Heuristic.from_address(words[8])
                result.algorithm[0], result.workspace_bytes = 123, 0
                ctypes.c_int.from_address(words[9]).value = 1
            if name == "cublasLtMatmul":
                scales = [ctypes.c_float.from_address(words[place]).value for place in (2, 7)]
                first = ctypes.c_uint64.from_address(words[12]).value
                self.matmul = (words, scales, first)
            return 0

        return ctypes.CFUNCTYPE(ctypes.c_int, *arguments)(call)


def test_the_arguments_arrive_as_c_words():
    library = Foreign()
    held = connect(iter(["here"]), lambda path: library)
    arrays = [matrix((4, 4), 4, np.float32, seed) for seed in range(3)]
    product = product_of(arrays, 4, 4, 4, False, True)
    high = (1 << 63) + (1 << 40)
    held.multiply(product, (high + 1, high + 2, high + 3), True, (high + 4, 5 << 32), high + 6)
    words, scales, algorithm = library.matmul
    assert (words[3], words[5], words[8], words[10]) == (high + 2, high + 1, high + 3, high + 3)
    assert words[13:] == (high + 4, 5 << 32, high + 6)
    assert scales == [1, 1] and algorithm == 123
    # As cublasLt.h says: the result's layout is both that of C and that of D.
    assert words[9] == words[11]
    layouts = [words for name, words in library.received if name == "cublasLtMatrixLayoutCreate"]
    assert [words[1:] for words in layouts] == [(0, 4, 4, 4)] * 3
    settings = [words[1] for name, words in library.received if "DescSetAttribute" in name]
    assert settings == [3, 4, 7]


def test_the_structure_has_the_size_of_the_header():
    """64 bytes of algorithm, a size_t, an enum, a float and four ints."""
    assert ctypes.sizeof(cublas.Heuristic) == 96
    assert cublas.Heuristic.algorithm.offset == 0
    assert cublas.Heuristic.workspace_bytes.offset == 64
    assert cublas.Heuristic.state.offset == 72


def test_the_values_are_those_of_the_headers():
    """cudaDataType_t, cublasComputeType_t and the attributes of cublasLt.h, CUDA 12 and 13."""
    assert cublas.REAL_TYPES == {"float32": 0, "float64": 1, "bfloat16": 14}
    assert cublas.COMPUTE_TYPES == {"float32": 68, "tf32": 77, "bfloat16": 68, "float64": 70}
    assert (cublas.DESCRIPTION_TRANSA, cublas.DESCRIPTION_TRANSB) == (3, 4)
    assert (cublas.DESCRIPTION_EPILOGUE, cublas.DESCRIPTION_BIAS_POINTER) == (7, 8)
    assert (cublas.DESCRIPTION_MASK_POINTER, cublas.DESCRIPTION_MASK_STRIDE) == (11, 12)
    # CUBLASLT_EPILOGUE_RELU is 2, and its mask 128; of DRELU the mask and 8.
    assert EPILOGUES == {
        "none": 1,
        "bias": 4,
        "relu_aux_bias": 2 | 128 | 4,
        "drelu": 8 | 128,
        "bgrada": 256,
    }
    assert (cublas.PREFERENCE_WORKSPACE, cublas.PREFERENCE_ALIGNMENTS) == (1, (5, 6, 7, 8))


@pytest.mark.parametrize(("address", "expected"), [(4, 4), (48, 16), (512, 256), (0, 256), (7, 1)])
def test_alignment(address, expected):
    assert alignment(address) == expected


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Only these folders are looked into."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site-packages")])
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(cublas, "_loaded", lambda name: False)

    def make(name):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return str(path)

    return make


def test_where_the_library_is_looked_for(folders, tmp_path, monkeypatch):
    wheel12 = folders("site-packages/nvidia/cublas/lib/libcublasLt.so.12")
    wheel13 = folders("site-packages/nvidia/cu13/lib/libcublasLt.so.13")
    torch = folders("site-packages/torch/lib/libcublasLt.so.12")
    toolkit = folders("cuda/lib64/libcublasLt.so.13")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    names = ["libcublasLt.so.13", "libcublasLt.so.12"]
    assert list(cublas.candidates()) == [wheel13, toolkit, wheel12, torch, *names]
    monkeypatch.setattr(cublas, "_loaded", lambda name: name.endswith("12"))
    # PyTorch's, say, which the process has loaded, before any other.
    assert next(cublas.candidates()) == "libcublasLt.so.12"


def test_where_the_library_is_looked_for_on_windows(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    wheel = folders("site-packages/nvidia/cublas/bin/cublasLt64_12.dll")
    toolkit = folders("cuda/bin/cublasLt64_13.dll")
    monkeypatch.setenv("CUDA_PATH", str(tmp_path / "cuda"))
    names = ["cublasLt64_13.dll", "cublasLt64_12.dll"]
    assert list(cublas.candidates()) == [toolkit, wheel, *names]


def test_the_first_library_that_works_is_taken():
    made = {
        "broken": RecordingCublasLt(failing={"cublasLtCreate": 8}),
        "whole": RecordingCublasLt(),
    }

    def load(path):
        if path not in made:
            raise OSError(f"{path}: cannot open shared object file")
        return made[path]

    held = connect(iter(["absent", "broken", "whole"]), load)
    assert held.library is made["whole"]
    with pytest.raises(CublasError) as caught:
        connect(iter(["absent", "broken"]), load)
    message = str(caught.value)
    for part in ("cannot open shared object", "got status 8 (ARCH_MISMATCH)", "wanted libcublasLt"):
        assert part in message


def test_a_library_without_a_function_is_refused():
    with pytest.raises(CublasError, match="cublasLtCreate"):
        connect(iter(["old"]), lambda path: object())
    with pytest.raises(CublasError, match="nothing of that name"):
        connect(iter([]))


def test_the_binding_imports_no_numba():
    script = "import sys, fastmlp_kernels.cuda.layered.cublas; assert 'numba' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)


@pytest.mark.gpu
def test_the_library_itself_multiplies():
    """On a GPU with cuBLASLt: every transposition, against NumPy."""
    from numba import cuda

    if not cuda.is_available():
        pytest.skip("there is no NVIDIA GPU here, or no driver")
    try:
        held = connect()
    except CublasError as error:
        pytest.skip(str(error))
    for left_transposed, right_transposed in itertools.product(FLAGS, FLAGS):
        left = matrix((40, 30) if left_transposed else (30, 40), 48, np.float32, 0)
        right = matrix((20, 40) if right_transposed else (40, 20), 48, np.float32, 1)
        arrays = [cuda.to_device(a) for a in (left, right, np.zeros((30, 20), np.float32))]
        pointers = tuple(array.device_ctypes_pointer.value for array in arrays)
        strides, aligned = (48, 48, 20), tuple(map(alignment, pointers))
        product = Product(
            *(30, 20, 40, left_transposed, right_transposed, strides),
            *("float32", "float32", "float32", aligned),
        )
        held.plan(product)
        work = cuda.device_array(max(held.workspace_bytes, 1), np.uint8)
        held.multiply(
            product, pointers, False, (work.device_ctypes_pointer.value, held.workspace_bytes), 0
        )
        A = left[:, :30].T if left_transposed else left[:, :40]
        B = right[:, :40].T if right_transposed else right[:, :20]
        np.testing.assert_allclose(arrays[2].copy_to_host(), A @ B, rtol=1e-4, atol=1e-4)
