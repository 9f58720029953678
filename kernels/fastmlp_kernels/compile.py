"""The two compilers: the only file that holds jit flags.

Plain functions of the algebra are compiled for the CPU (`cpu_switch`, `kernel`) and for CUDA
(`cuda_switch`, `cuda_kernel`). A *switch* folds a table of functions into one
``select(code, ...)``: kernels take codes, so that one compiled kernel serves every activation,
loss and optimizer, and no closure over a compiled function keeps it out of the disk cache.
"""

import dis
import functools
import hashlib
import inspect
import logging
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numba
from numba.core import types as numba_types
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.extending import overload, register_jitable

from fastmlp_kernels.algebra import ACTIVATIONS, OPTIMIZERS, loss_rules
from fastmlp_kernels.algebra.elementary import FORMS, plus

logger = logging.getLogger("fastmlp")

# error_model="numpy": Python's would put a zero check on every division, and no loop with one
# vectorises (sigmoid 8.2 ns an element instead of 0.7, 2-core AMD EPYC, 2026-11-23). "contract"
# allows fused multiply-adds and nothing else: never nnan or ninf, as a NaN must be seen, and no
# reassociation, so that a row's result does not depend on the rows beside it.
CPU_FLAGS: dict[str, Any] = {"error_model": "numpy", "fastmath": {"contract"}, "nogil": True}
# A rule that calls two polynomials is past LLVM's inlining threshold, and a call in a loop keeps
# it scalar: softplus in float64 took 16 ns an element instead of 2.2 (same machine and day).
RULE_FLAGS: dict[str, Any] = {**CPU_FLAGS, "forceinline": True}
# For dot products along a row, which vectorise only when their sum may be split over lanes.
REDUCTION_FLAGS: dict[str, Any] = {**CPU_FLAGS, "fastmath": {"contract", "reassoc"}}
# For `plus` alone: flags are those of an instruction, so only the additions of a row's own sum may
# be split over lanes, and a loss that is summed beside its slope is vector code (cross-entropy of a
# logit in float32: 25 ns an element without, 1 ns with; same machine and day).
SUM_FLAGS: dict[str, Any] = {**REDUCTION_FLAGS, "forceinline": True}
# The default FMA contraction stays on; fastmath would flush and approximate.
CUDA_FLAGS: dict[str, Any] = {"fastmath": False}


def _callees(function: types.FunctionType) -> list[types.FunctionType]:
    """Return the plain functions that `function` reaches through its globals."""
    # Not co_names: it holds attributes too, and math.erf is not the algebra's erf.
    loads = (i.argval for i in dis.get_instructions(function) if i.opname == "LOAD_GLOBAL")
    found = (function.__globals__.get(name) for name in dict.fromkeys(loads))
    return [callee for callee in found if isinstance(callee, types.FunctionType)]


@functools.cache
def _make_callable(function: types.FunctionType) -> None:
    """Let CPU kernels call a plain function, and everything that it calls."""
    if function in FORMS:
        single, double, _ = FORMS[function]
        for form in (single, double):
            for callee in _callees(form):
                _make_callable(callee)

        def choose(z: Any) -> Callable:
            return double if z == numba_types.float64 else single

        overload(function, jit_options=RULE_FLAGS, strict=False)(choose)
        return
    register_jitable(**(SUM_FLAGS if function is plus else RULE_FLAGS))(function)
    for callee in _callees(function):
        _make_callable(callee)


def _select_source(parameters: Sequence[str], count: int) -> str:
    arguments = ", ".join(parameters)
    lines = [f"def select(code, {arguments}):"]
    lines += [f"    if code == {k}:\n        return f{k}({arguments})" for k in range(count - 1)]
    return "\n".join([*lines, f"    return f{count - 1}({arguments})"])


def _switch(functions: Sequence[Callable], compiled: Sequence[Callable]) -> Callable:
    parameters = list(inspect.signature(functions[0]).parameters)
    namespace: dict[str, Any] = {f"f{k}": function for k, function in enumerate(compiled)}
    exec(_select_source(parameters, len(functions)), namespace)
    return namespace["select"]


def cpu_function(function: Callable) -> Callable:
    """Compile a function that kernels call; it is inlined there and not cached by itself."""
    for callee in (*_closed_over(function), *_callees(function)):
        _make_callable(callee)
    return numba.njit(**CPU_FLAGS)(function)


def _closed_over(function: Callable) -> list[types.FunctionType]:
    cells = function.__closure__ or ()
    return [c.cell_contents for c in cells if isinstance(c.cell_contents, types.FunctionType)]


def cpu_switch(functions: Sequence[Callable]) -> Callable:
    """Return ``select(code, ...)``, compiled for the CPU, over functions of one signature."""
    return numba.njit(**CPU_FLAGS)(_switch(functions, [cpu_function(f) for f in functions]))


@functools.cache
def stamp() -> str:
    """Return a hash of every source that a kernel may call, and of the rows of the tables.

    Numba's own cache looks at the one file that defines a kernel: an edit to the algebra would
    go unseen, and the old result be served.
    """
    digest = hashlib.sha256(numba.__version__.encode())
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    for row in (*ACTIVATIONS, *loss_rules(), *OPTIMIZERS):
        digest.update(row.name.encode())
        for value in vars(row).values():
            if isinstance(value, types.FunctionType):
                numbers = [x for x in value.__code__.co_consts if isinstance(x, int | float | str)]
                digest.update(value.__code__.co_code + repr(numbers).encode())
    return digest.hexdigest()


class StampedCache(FunctionCache):
    """Numba's disk cache, valid for as long as `stamp` is the same.

    It stands where Numba puts it: beside the source, else in the user's own cache folder. Cache
    files are pickles, so never in a folder that others can write to.
    """

    def __init__(self, function: Callable) -> None:
        super().__init__(function)
        self._cache_file = IndexDataCacheFile(
            cache_path=self._cache_path,
            filename_base=self._impl.filename_base,
            source_stamp=stamp(),
        )


def kernel(function: Callable | None = None, *, flags: dict[str, Any] = CPU_FLAGS) -> Any:
    """Compile a CPU kernel, cached on disk; where no cache folder can be had, uncached."""
    if function is None:
        return functools.partial(kernel, flags=flags)
    dispatcher = numba.njit(**flags)(function)
    try:
        dispatcher._cache = StampedCache(function)
    except RuntimeError as error:
        logger.warning("kernels are compiled anew in each process: %s", error)
    return dispatcher


def simulated() -> bool:
    """Return whether CUDA kernels run in Numba's simulator (NUMBA_ENABLE_CUDASIM=1)."""
    return bool(numba.config.ENABLE_CUDASIM)


def _larger(a, b):
    return b if b > a else a


def _smaller(a, b):
    return b if b < a else a


# On CUDA, Numba's max and min are fmax and fmin, which drop a NaN: a hard sigmoid would hide it.
# These keep Python's order, as the CPU does: ``max(nan, 0)`` is a NaN.
CUDA_BUILTINS = {"max": _larger, "min": _smaller}


@functools.cache
def cuda_function(function: types.FunctionType) -> Callable:
    """Compile a plain function, and everything that it calls, as CUDA device functions.

    The function is copied with its globals rebound to the compiled twins, since a CUDA kernel
    cannot call a plain function, and a CPU one would bring its own flags along.
    """
    if simulated():
        return function
    from numba import cuda

    if function in FORMS:
        function = FORMS[function][2]
    twins = {callee.__name__: cuda_function(callee) for callee in _callees(function)}
    builtins = CUDA_BUILTINS.keys() & set(function.__code__.co_names)
    twins |= {name: cuda_function(CUDA_BUILTINS[name]) for name in builtins}
    cells = tuple(
        types.CellType(cuda_function(cell.cell_contents))
        if isinstance(cell.cell_contents, types.FunctionType)
        else cell
        for cell in function.__closure__ or ()
    )
    copy = types.FunctionType(
        function.__code__, {**function.__globals__, **twins}, function.__name__, None, cells or None
    )
    return cuda.jit(device=True, **CUDA_FLAGS)(copy)


def cuda_switch(functions: Sequence[types.FunctionType]) -> Callable:
    """Return ``select(code, ...)`` as a CUDA device function."""
    select = _switch(functions, [cuda_function(function) for function in functions])
    if simulated():
        return select
    from numba import cuda

    return cuda.jit(device=True, **CUDA_FLAGS)(select)


def cuda_kernel(function: Callable) -> Any:
    """Compile a CUDA kernel, to be launched as ``kernel[grid, block](...)``."""
    from numba import cuda

    return cuda.jit(**CUDA_FLAGS)(function)
