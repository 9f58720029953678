"""A stand-in for cuBLASLt: it records every call, checks what the library demands, and multiplies.

It takes the arguments that the library would get through ctypes, column-major as they are, and
works on host memory, which is where the simulator's arrays lie. `Recorder` stands in for CUDA's
stream capture in the same way.
"""

import contextlib
import ctypes
from types import SimpleNamespace

import numpy as np

from fastmlp_kernels.cuda.layered import cublas

# By their names in the headers, as the code under test has them under names of its own.
CUDA_R_32F, CUDA_R_64F, CUDA_R_16BF = 0, 1, 14
CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_64F, CUBLAS_COMPUTE_32F_FAST_TF32 = 68, 70, 77
CUBLASLT_MATMUL_DESC_TRANSA, CUBLASLT_MATMUL_DESC_TRANSB = 3, 4
CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_MATMUL_DESC_BIAS_POINTER = 7, 8
CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD = 11, 12
CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES = 1
CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT = {"A": 5, "B": 6, "C": 7, "D": 8}
CUBLASLT_EPILOGUE_DEFAULT, CUBLASLT_EPILOGUE_RELU, CUBLASLT_EPILOGUE_BIAS = 1, 2, 4
CUBLASLT_EPILOGUE_RELU_AUX_BIAS = CUBLASLT_EPILOGUE_RELU | 128 | CUBLASLT_EPILOGUE_BIAS
CUBLASLT_EPILOGUE_DRELU, CUBLASLT_EPILOGUE_BGRADA = 8 | 128, 256
KNOWN = {
    CUBLASLT_EPILOGUE_DEFAULT,
    CUBLASLT_EPILOGUE_BIAS,
    CUBLASLT_EPILOGUE_RELU_AUX_BIAS,
    CUBLASLT_EPILOGUE_DRELU,
    CUBLASLT_EPILOGUE_BGRADA,
}
WITH_BIAS_POINTER = {
    CUBLASLT_EPILOGUE_BIAS,
    CUBLASLT_EPILOGUE_RELU_AUX_BIAS,
    CUBLASLT_EPILOGUE_BGRADA,
}
WITH_AUX_POINTER = {CUBLASLT_EPILOGUE_RELU_AUX_BIAS, CUBLASLT_EPILOGUE_DRELU}
# The rows of a mask begin at multiples of so many bits, and a mask at one of so many bytes.
AUX_BITS, AUX_BYTES = 128, 16
INVALID_VALUE, NOT_SUPPORTED = 7, 15

STORED = {CUDA_R_32F: np.float32, CUDA_R_64F: np.float64, CUDA_R_16BF: np.uint16}
# compute type: (scale type, types of A and B, types of D)
PERMITTED = {
    CUBLAS_COMPUTE_32F: (CUDA_R_32F, {CUDA_R_32F, CUDA_R_16BF}, {CUDA_R_32F}),
    CUBLAS_COMPUTE_32F_FAST_TF32: (CUDA_R_32F, {CUDA_R_32F}, {CUDA_R_32F}),
    CUBLAS_COMPUTE_64F: (CUDA_R_64F, {CUDA_R_64F}, {CUDA_R_64F}),
}
WORKSPACE = 48


def from_bfloat16(words):
    """Return uint16 words as the float32 numbers that they are the upper halves of."""
    return (words.astype(np.uint32) << 16).view(np.float32)


def to_tf32(numbers):
    """Return float32 numbers cut to the 11 bits of a tf32's significand."""
    words = np.ascontiguousarray(numbers).view(np.uint32)
    return (words & np.uint32(0xFFFFE000)).view(np.float32)


def read(pointer):
    """Return what a ctypes reference, or an instance, holds."""
    return getattr(pointer, "_obj", pointer)


class RecordingCublasLt:
    """The functions of `cublas.FUNCTIONS`, on host memory.

    Parameters
    ----------
    algorithms : int
        How many the heuristic finds: 0 or 1.
    failing : dict
        Status codes that functions return, by name.
    workspace : int
        Bytes that every algorithm needs.
    refusing : set of int
        Epilogues that the heuristic finds nothing for.
    keeps_nan : bool
        Whether its ReLU of a NaN is a NaN, or zero; the documentation does not say.
    """

    def __init__(
        self, algorithms=1, failing=None, workspace=WORKSPACE, refusing=(), keeps_nan=False
    ):
        self.algorithms, self.failing, self.workspace = algorithms, failing or {}, workspace
        self.refusing, self.keeps_nan = refusing, keeps_nan
        self.calls, self.alive, self.chosen = [], {}, {}
        self.products, self.epilogues, self.recording = [], [], None
        self.next = 1000

    def __getattr__(self, name):
        if name not in cublas.FUNCTIONS:
            raise AttributeError(name)

        def call(*arguments):
            assert len(arguments) == len(cublas.FUNCTIONS[name]), name
            self.calls.append(name)
            if name in self.failing and not name.endswith("Destroy"):
                return self.failing[name]
            kind = name.removeprefix("cublasLt")
            for verb in ("Create", "Destroy", "SetAttribute"):
                if kind.endswith(verb):
                    status = getattr(self, verb.lower())(kind.removesuffix(verb), *arguments)
                    return self.failing.get(name, status)
            return {"MatmulAlgoGetHeuristic": self.heuristic, "Matmul": self.matmul}[kind](
                *arguments
            )

        return call

    def create(self, kind, handle, *facts):
        self.next += 1
        assert kind == "" or "" in [held.kind for held in self.alive.values()], "no handle yet"
        self.alive[self.next] = SimpleNamespace(kind=kind, facts=facts, attributes={})
        read(handle).value = self.next
        return 0

    def destroy(self, kind, handle):
        assert self.get(handle, kind)
        del self.alive[handle.value]
        assert kind or not self.alive, "the handle goes last"
        return 0

    def setattribute(self, kind, handle, attribute, value, size):
        held, value = self.get(handle, kind), read(value)
        assert size == ctypes.sizeof(value)
        wide = (
            CUBLASLT_MATMUL_DESC_BIAS_POINTER,
            CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER,
            CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD,
        )
        expected = 8 if attribute in wide else 4
        if kind == "MatmulPreference":
            expected = 8 if attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES else 4
        assert size == expected, (kind, attribute)
        held.attributes[attribute] = value.value
        return 0

    def get(self, handle, kind):
        held = self.alive[handle.value]
        assert held.kind == kind, (held.kind, kind)
        return held

    def heuristic(self, lt, description, A, B, C, D, preference, wanted, result, found):
        self.get(lt, "")
        settings = self.get(preference, "MatmulPreference").attributes
        assert wanted == 1 and set(settings) == {1, 5, 6, 7, 8}
        assert settings[CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES] >= self.workspace
        m, _, k = self.shape(description, A, B, C, D)
        attributes = self.get(description, "MatmulDesc").attributes
        status = self.misfit(attributes, m)
        if status:
            return status
        refused = attributes[CUBLASLT_MATMUL_DESC_EPILOGUE] in self.refusing
        # As nvmath-python's `DReluAuxHandler` says of cuBLASLt.
        refused |= attributes[CUBLASLT_MATMUL_DESC_EPILOGUE] == CUBLASLT_EPILOGUE_DRELU and k == 1
        settings = {**settings, "bias": attributes.get(CUBLASLT_MATMUL_DESC_BIAS_POINTER, 0)}
        key = tuple(each.value for each in (description, A, B, C, D))
        self.chosen[self.next] = (key, settings)
        read(result).algorithm[0] = self.next
        read(result).workspace_bytes = self.workspace
        read(found).value = 0 if refused else self.algorithms
        self.next += 1
        return 0

    @staticmethod
    def misfit(attributes, m):
        """Return a status for an epilogue without what it reads and writes, as the library does."""
        epilogue = attributes[CUBLASLT_MATMUL_DESC_EPILOGUE]
        assert epilogue in KNOWN, epilogue
        if epilogue in WITH_BIAS_POINTER and not attributes.get(CUBLASLT_MATMUL_DESC_BIAS_POINTER):
            return INVALID_VALUE
        if epilogue in WITH_AUX_POINTER:
            address = attributes.get(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER)
            stride = attributes.get(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, 0)
            if not address or address % AUX_BYTES or stride < m or stride % AUX_BITS:
                return INVALID_VALUE
        return 0

    def shape(self, description, A, B, C, D):
        """Return (m, n, k) of a product that fits together."""
        held = self.get(description, "MatmulDesc")
        compute, scale = held.facts
        scales, operands, results = PERMITTED[compute]
        a, b, c, d = (self.get(each, "MatrixLayout").facts for each in (A, B, C, D))
        assert scale == scales and a[0] == b[0] and a[0] in operands
        assert c == d and d[0] in results
        for _, rows, columns, stride in (a, b, c, d):
            assert stride >= rows > 0 and columns > 0, "leading dimension"
        transposed = [held.attributes[n] for n in (3, 4)]
        m, k = a[1:3][::-1] if transposed[0] else a[1:3]
        k_again, n = b[1:3][::-1] if transposed[1] else b[1:3]
        assert k == k_again and d[1:3] == (m, n), (a, b, d, transposed)
        return m, n, k

    def matrix(self, layout, address):
        """Return a column-major matrix as a view of the memory at an address."""
        kind, rows, columns, stride = self.get(layout, "MatrixLayout").facts
        dtype = np.dtype(STORED[kind])
        count = (columns - 1) * stride + rows
        memory = (ctypes.c_char * (count * dtype.itemsize)).from_address(address)
        flat = np.frombuffer(memory, dtype)
        strides = (dtype.itemsize, stride * dtype.itemsize)
        return np.lib.stride_tricks.as_strided(flat, (rows, columns), strides), kind

    def matmul(self, lt, description, alpha, a, A, b, B, beta, c, C, d, D, algorithm, *rest):
        workspace, size, stream = rest
        self.get(lt, "")
        held = self.get(description, "MatmulDesc")
        m, n, k = self.shape(description, A, B, C, D)
        # The reference points into a `Heuristic`, at its beginning.
        number = read(algorithm).algorithm[0]
        key, settings = self.chosen[number]
        assert key == tuple(each.value for each in (description, A, B, C, D)), "another's algorithm"
        assert size >= self.workspace and (workspace != 0 or self.workspace == 0)
        for name, pointer in (("A", a), ("B", b), ("C", c), ("D", d)):
            assert pointer % settings[CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT[name]] == 0, name
        attributes = dict(held.attributes)
        status = self.misfit(attributes, m)
        if status:
            return status
        epilogue = attributes[CUBLASLT_MATMUL_DESC_EPILOGUE]
        if epilogue in WITH_BIAS_POINTER:
            # The heuristic was told how the vector is aligned.
            told = settings["bias"] & -settings["bias"]
            assert attributes[CUBLASLT_MATMUL_DESC_BIAS_POINTER] % min(told, 256) == 0, "bias"
        if epilogue == CUBLASLT_EPILOGUE_BGRADA:
            assert read(beta).value == 0, "nobody says what it does to a gradient that is there"
        facts = (m, n, k, held.facts[0], stream, read(alpha).value, read(beta).value)
        self.products.append(facts)
        self.epilogues.append(epilogue)
        scales = read(alpha).value, read(beta).value
        # A float's bytes are read by the scale type: of a double they would be another number.
        real = ctypes.c_double if held.facts[1] == CUDA_R_64F else ctypes.c_float
        assert isinstance(read(alpha), real) and isinstance(read(beta), real)

        extra = epilogue, attributes
        self.enqueue(stream, lambda: self.multiply(held, scales, extra, (A, a), (B, b), (D, d)))
        return 0

    def enqueue(self, stream, multiply):
        """Multiply, or record it."""
        if self.recording is None:
            multiply()
        else:
            self.recording.append(multiply)

    def multiply(self, held, scales, extra, *operands):
        left, right, (result, kind) = [self.matrix(*each) for each in operands]
        factors = []
        for (values, type_), attribute in ((left, 3), (right, 4)):
            values = from_bfloat16(values) if type_ == CUDA_R_16BF else values
            plain = values.astype(np.float64)
            if held.facts[0] == CUBLAS_COMPUTE_32F_FAST_TF32:
                values = to_tf32(values)
            values = values.astype(np.float64)
            turned = held.attributes[attribute]
            factors.append([each.T if turned else each for each in (values, plain)])
        value = scales[0] * (factors[0][0] @ factors[1][0])
        if scales[1] != 0:
            value += scales[1] * result
        result[:] = self.finished(value, factors[0][1], STORED[kind], *extra)

    def finished(self, value, first, dtype, epilogue, attributes):
        """Return a product after its epilogue; `first` is the first matrix, not rounded."""
        rows, columns = value.shape
        if epilogue in WITH_BIAS_POINTER:
            address = attributes[CUBLASLT_MATMUL_DESC_BIAS_POINTER]
            memory = (ctypes.c_char * (rows * np.dtype(dtype).itemsize)).from_address(address)
            vector = np.frombuffer(memory, dtype)
        if epilogue in WITH_AUX_POINTER:
            bits = self.bits(attributes, columns)
        if epilogue == CUBLASLT_EPILOGUE_BGRADA:
            vector[:] = first.sum(axis=1)
        elif epilogue in WITH_BIAS_POINTER:
            value = value + vector[:, None]
        if epilogue == CUBLASLT_EPILOGUE_RELU_AUX_BIAS:
            positive = value > 0
            # Bits beyond the rows are nobody's, and are spoilt here.
            padded = np.ones((8 * bits.shape[1], columns), bool)
            padded[:rows] = positive
            bits[:] = np.packbits(padded.T, axis=1, bitorder="little")
            kept = positive | np.isnan(value) if self.keeps_nan else positive
            value = np.where(kept, value, 0)
        if epilogue == CUBLASLT_EPILOGUE_DRELU:
            positive = np.unpackbits(bits, axis=1, bitorder="little")[:, :rows].T == 1
            value = np.where(positive, value, 0)
        return value

    @staticmethod
    def bits(attributes, columns):
        """Return a mask as bytes, a row for each column of the result."""
        stride = attributes[CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD] // 8
        address = attributes[CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER]
        memory = (ctypes.c_char * (stride * columns)).from_address(address)
        return np.frombuffer(memory, np.uint8).reshape(columns, stride)


class Recorder:
    """Stands in for `graphs.Recorder`: keeps launches in a list, with the arguments of then."""

    def __init__(self, program_library=None):
        self.library = program_library
        self.recorded, self.launched = 0, 0
        self.stream = "recording"

    def record(self, launches, enqueue):
        calls = []
        plain = launches.grid

        def grid(kernel, grid, block, *arguments):
            assert launches.stream is self.stream
            calls.append(lambda: plain_launch(kernel, grid, block, arguments))

        def plain_launch(kernel, grid, block, arguments):
            plain(kernel, grid, block, *arguments)

        launches.grid = grid
        if self.library:
            self.library.recording = calls
        with launches.on(self.stream), contextlib.ExitStack() as stack:
            stack.callback(lambda: vars(launches).pop("grid"))
            if self.library:
                stack.callback(lambda: setattr(self.library, "recording", None))
            enqueue()
        self.recorded += 1
        return SimpleNamespace(launch=lambda stream: self.replay(calls))

    def replay(self, calls):
        self.launched += 1
        for call in calls:
            call()
