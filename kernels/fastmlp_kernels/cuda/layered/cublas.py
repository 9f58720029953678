"""cuBLASLt through ctypes: the few functions of it that matrix products take.

The library is looked for where it usually is (`candidates`); nothing of it is a dependency. Names
and values are those of cublasLt.h, cublas_api.h and library_types.h. `product` says how a product
of ours is one of the library's.
"""

import ctypes
import os
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fastmlp_kernels.cuda.layered.product import EPILOGUES, WITH_MASK, WITH_VECTOR, Product

# cudaDataType_t.
REAL_TYPES = {"float32": 0, "float64": 1, "bfloat16": 14}
# cublasComputeType_t: CUBLAS_COMPUTE_32F, 32F_FAST_TF32 and 64F. The first rounds nothing to less
# than float32; of bfloat16 factors it sums the products in float32.
COMPUTE_TYPES = {"float32": 68, "tf32": 77, "bfloat16": 68, "float64": 70}
# cublasOperation_t.
AS_IT_IS, TRANSPOSED = 0, 1
# cublasLtMatmulDescAttributes_t.
DESCRIPTION_TRANSA, DESCRIPTION_TRANSB = 3, 4
DESCRIPTION_EPILOGUE, DESCRIPTION_BIAS_POINTER = 7, 8
DESCRIPTION_MASK_POINTER, DESCRIPTION_MASK_STRIDE = 11, 12
# cublasLtMatmulPreferenceAttributes_t; the alignments are those of A, B, C and D.
PREFERENCE_WORKSPACE = 1
PREFERENCE_ALIGNMENTS = (5, 6, 7, 8)
STATUSES = {
    1: "NOT_INITIALIZED",
    3: "ALLOC_FAILED",
    7: "INVALID_VALUE",
    8: "ARCH_MISMATCH",
    11: "MAPPING_ERROR",
    13: "EXECUTION_FAILED",
    14: "INTERNAL_ERROR",
    15: "NOT_SUPPORTED",
    16: "LICENSE_ERROR",
}
# What NVIDIA's documentation recommends for Hopper; an algorithm takes what it needs of it.
WORKSPACE_BYTES = 32 << 20
# A mask that the program has allocated itself begins at a multiple of so many bytes.
MASK_ALIGNMENT = 256
# Plans that are kept: each number of rows to predict has some of its own.
PLANS_KEPT = 256

_pointer, _size, _int = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int


class Heuristic(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t: an algorithm, and the workspace that it needs."""

    _fields_ = (
        ("algorithm", ctypes.c_uint64 * 8),
        ("workspace_bytes", _size),
        ("state", _int),
        ("waves", ctypes.c_float),
        ("reserved", _int * 4),
    )


FUNCTIONS: dict[str, tuple] = {
    "cublasLtCreate": (_pointer,),
    "cublasLtDestroy": (_pointer,),
    "cublasLtMatmulDescCreate": (_pointer, _int, _int),
    "cublasLtMatmulDescSetAttribute": (_pointer, _int, _pointer, _size),
    "cublasLtMatmulDescDestroy": (_pointer,),
    "cublasLtMatrixLayoutCreate": (
        _pointer,
        _int,
        ctypes.c_uint64,
        ctypes.c_uint64,
        ctypes.c_int64,
    ),
    "cublasLtMatrixLayoutDestroy": (_pointer,),
    "cublasLtMatmulPreferenceCreate": (_pointer,),
    "cublasLtMatmulPreferenceSetAttribute": (_pointer, _int, _pointer, _size),
    "cublasLtMatmulPreferenceDestroy": (_pointer,),
    "cublasLtMatmulAlgoGetHeuristic": (*[_pointer] * 7, _int, _pointer, _pointer),
    # handle, description, alpha, A, its layout, B, its, beta, C, its, D, its, algorithm,
    # workspace, its bytes, stream.
    "cublasLtMatmul": (*[_pointer] * 14, _size, _pointer),
}


class CublasError(RuntimeError):
    """A call of cuBLASLt that failed, or no cuBLASLt."""


def candidates() -> Iterator[str]:
    """Yield the paths and names under which the library may be, the likeliest first.

    One that the process has loaded comes first (`load` takes a bare name that is loaded already),
    then the CUDA wheels, PyTorch's own, the CUDA folder, and the loader's path.
    """
    windows = sys.platform == "win32"
    names = [f"cublasLt64_{n}.dll" if windows else f"libcublasLt.so.{n}" for n in (13, 12)]
    folders = []
    for entry in filter(None, sys.path):
        package = Path(entry)
        folders += sorted(package.glob("nvidia/*/bin*" if windows else "nvidia/*/lib"))
        folders += [package / "torch" / "lib"]
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(variable):
            root = Path(os.environ[variable])
            folders += [root / "lib64", root / "lib", root / "bin", root / "bin" / "x64"]
    yield from (name for name in names if _loaded(name))
    for name in names:
        yield from (str(folder / name) for folder in folders if (folder / name).is_file())
    yield from names


def _loaded(name: str) -> bool:
    """Return whether the process has loaded a library of that name; nothing is loaded."""
    if not hasattr(os, "RTLD_NOLOAD"):
        return False
    try:
        ctypes.CDLL(name, mode=os.RTLD_NOLOAD)
    except OSError:
        return False
    return True


def bind(library: Any) -> Any:
    """Declare the arguments of the functions; return the library."""
    for name, arguments in FUNCTIONS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, _int
    return library


def connect(paths: Iterator[str] | None = None, load: Callable = ctypes.CDLL) -> "Cublas":
    """Return cuBLASLt from the first path that loads and works; `CublasError` says why none did."""
    failures: list[str] = []
    for path in candidates() if paths is None else paths:
        try:
            return Cublas(bind(load(path)))
        except (OSError, AttributeError, CublasError) as error:
            failures.append(f"{path}: {error}")
    wanted = "libcublasLt of CUDA 12 or 13, as nvidia-cublas or PyTorch bring it"
    tried = "; ".join(failures) or "nothing of that name"
    raise CublasError(f"cuBLASLt: got {tried}, wanted {wanted}")


# What was created, each with the name of the function that destroys it.
Made = list[tuple[str, Any]]


class Plan(NamedTuple):
    """What a call of cublasLtMatmul takes beside its pointers, and what is to be destroyed."""

    made: Made
    description: Any
    first: Any
    second: Any
    result: Any
    heuristic: Heuristic
    one: Any
    zero: Any


class Cublas:
    """A handle of cuBLASLt, and the plans made with it; they go when this object does.

    Parameters
    ----------
    library : object
        With the functions of `FUNCTIONS`: the library itself, or what stands in for it.
    """

    def __init__(self, library: Any) -> None:
        self.library = library
        self.plans: dict[Product, Plan] = {}
        own: Made = []
        self.handle = self._create(own, "cublasLtCreate", "cublasLtDestroy")
        # At the interpreter's end the driver may be gone before.
        weakref.finalize(self, _close, library, own, self.plans).atexit = False

    @property
    def workspace_bytes(self) -> int:
        """Bytes that the plans made so far need, at most `WORKSPACE_BYTES`."""
        needs = [plan.heuristic.workspace_bytes for plan in self.plans.values()]
        return max(needs, default=0)

    def _call(self, name: str, *arguments: Any) -> None:
        check(getattr(self.library, name)(*arguments), name)

    def _create(self, made: Made, create: str, destroy: str, *arguments: Any) -> Any:
        handle = ctypes.c_void_p()
        self._call(create, ctypes.byref(handle), *arguments)
        made.append((destroy, handle))
        return handle

    def _set(self, name: str, target: Any, attribute: int, value: Any) -> None:
        self._call(name, target, attribute, ctypes.byref(value), ctypes.sizeof(value))

    def _layout(self, made: Made, kind: str, rows: int, columns: int, stride: int) -> Any:
        """Describe a row-major matrix of rows by columns, which is a transposed one there."""
        create, destroy = "cublasLtMatrixLayoutCreate", "cublasLtMatrixLayoutDestroy"
        return self._create(made, create, destroy, REAL_TYPES[kind], columns, rows, stride)

    def plan(self, product: Product) -> Plan:
        """Return the plan of a product; the one that was asked for longest ago may go for it."""
        plan = self.plans.pop(product, None)
        if plan is None:
            made: Made = []
            try:
                plan = self._plan(product, made)
            except CublasError:
                _destroy(self.library, made)
                raise
            while len(self.plans) >= PLANS_KEPT:
                _destroy(self.library, self.plans.pop(next(iter(self.plans))).made)
        self.plans[product] = plan
        return plan

    def _plan(self, product: Product, made: Made) -> Plan:
        p = product
        scale = "float64" if p.result == "float64" else "float32"
        description = self._create(
            made,
            "cublasLtMatmulDescCreate",
            "cublasLtMatmulDescDestroy",
            COMPUTE_TYPES[p.compute],
            REAL_TYPES[scale],
        )
        name = "cublasLtMatmulDescSetAttribute"
        settings = (
            (DESCRIPTION_TRANSA, TRANSPOSED if p.right_transposed else AS_IT_IS),
            (DESCRIPTION_TRANSB, TRANSPOSED if p.left_transposed else AS_IT_IS),
            (DESCRIPTION_EPILOGUE, EPILOGUES[p.epilogue]),
        )
        for attribute, value in settings:
            self._set(name, description, attribute, ctypes.c_int32(value))
        if p.epilogue in WITH_MASK:
            stride = ctypes.c_int64(p.mask_stride)
            self._set(name, description, DESCRIPTION_MASK_STRIDE, stride)
        # The heuristic reads from these how the arrays are aligned, and nothing else.
        self._point_at(description, p, p.vector_alignment, MASK_ALIGNMENT)
        lying = [(p.rows, p.terms), (p.terms, p.columns)]
        for factor, transposed in enumerate((p.left_transposed, p.right_transposed)):
            lying[factor] = lying[factor][::-1] if transposed else lying[factor]
        second = self._layout(made, p.operands, *lying[0], p.strides[0])
        first = self._layout(made, p.operands, *lying[1], p.strides[1])
        result = self._layout(made, p.result, p.rows, p.columns, p.strides[2])
        real = ctypes.c_double if scale == "float64" else ctypes.c_float
        heuristic = self._heuristic(product, description, first, second, result)
        return Plan(made, description, first, second, result, heuristic, real(1), real(0))

    def _point_at(self, description: Any, product: Product, vector: int, mask: int) -> None:
        """Set the addresses of what the epilogue reads or writes."""
        name = "cublasLtMatmulDescSetAttribute"
        for wanted, attribute, address in (
            (WITH_VECTOR, DESCRIPTION_BIAS_POINTER, vector),
            (WITH_MASK, DESCRIPTION_MASK_POINTER, mask),
        ):
            if product.epilogue in wanted:
                self._set(name, description, attribute, ctypes.c_void_p(address))

    def _heuristic(self, product: Product, description, first, second, result) -> Heuristic:
        preference = ctypes.c_void_p()
        self._call("cublasLtMatmulPreferenceCreate", ctypes.byref(preference))
        try:
            name = "cublasLtMatmulPreferenceSetAttribute"
            limit = ctypes.c_uint64(WORKSPACE_BYTES)
            self._set(name, preference, PREFERENCE_WORKSPACE, limit)
            left, right, out = product.alignments
            aligned = zip(PREFERENCE_ALIGNMENTS, (right, left, out, out), strict=True)
            for attribute, alignment in aligned:
                self._set(name, preference, attribute, ctypes.c_uint32(alignment))
            heuristic, found = Heuristic(), ctypes.c_int(0)
            self._call(
                "cublasLtMatmulAlgoGetHeuristic",
                self.handle,
                description,
                first,
                second,
                result,
                result,
                preference,
                1,
                ctypes.byref(heuristic),
                ctypes.byref(found),
            )
        finally:
            self._call("cublasLtMatmulPreferenceDestroy", preference)
        if found.value == 0:
            raise CublasError(f"cuBLASLt: got no algorithm, wanted one for {product}")
        check(heuristic.state, "cublasLtMatmulAlgoGetHeuristic")
        return heuristic

    def multiply(
        self, product: Product, pointers: tuple, accumulate, workspace, stream, vector=0, mask=0
    ) -> None:
        """Enqueue a product on a stream.

        Parameters
        ----------
        product : Product
        pointers : tuple of int
            Addresses of left, right and result.
        accumulate : bool
            Add to the result in place of overwriting it.
        workspace : tuple of int
            Address and bytes; no other stream may use it meanwhile.
        stream : int
        vector, mask : int
            Addresses of what the epilogue reads or writes.
        """
        plan = self.plan(product)
        left, right, result = pointers
        self._point_at(plan.description, product, vector, mask)
        self._call(
            "cublasLtMatmul",
            self.handle,
            plan.description,
            ctypes.byref(plan.one),
            right,
            plan.first,
            left,
            plan.second,
            ctypes.byref(plan.one if accumulate else plan.zero),
            result,
            plan.result,
            result,
            plan.result,
            ctypes.byref(plan.heuristic, Heuristic.algorithm.offset),
            *workspace,
            stream,
        )


def check(status: int, name: str) -> None:
    """Raise `CublasError` unless a call returned CUBLAS_STATUS_SUCCESS."""
    if status != 0:
        named = STATUSES.get(status, "of an unknown number")
        raise CublasError(f"{name}: got status {status} ({named}), wanted 0")


def _destroy(library: Any, made: Made) -> None:
    """Destroy what was created, the latest first."""
    while made:
        name, handle = made.pop()
        getattr(library, name)(handle)


def _close(library: Any, own: Made, plans: dict[Product, Plan]) -> None:
    """Destroy every plan, and the handle after them."""
    for plan in plans.values():
        _destroy(library, plan.made)
    _destroy(library, own)
