"""The two compilers: the only file that holds jit flags.

Plain functions of the algebra are compiled for the CPU and for CUDA. On the CPU each row of a
table becomes a *leaf*, a small function that kernels call by its address: only the rows that a
network uses are compiled, and the kernels themselves know nothing of rows or dtypes. On CUDA a
*switch* folds a table into one ``select(code, ...)``.
"""

import contextlib
import dis
import functools
import gc
import hashlib
import inspect
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core import event, sigutils
from numba.core import types as numba_types
from numba.core.ccallback import CFunc
from numba.core.compiler import Compiler
from numba.core.compiler_lock import global_compiler_lock
from numba.extending import overload, register_jitable

from fastmlp_kernels.algebra import ACTIVATIONS, OPTIMIZERS, loss_rules
from fastmlp_kernels.algebra.elementary import FORMS, plus
from fastmlp_kernels.announcing import compile_or_load, passes
from fastmlp_kernels.compilers import LeafCompiler, PartCompiler
from fastmlp_kernels.disk_cache import CacheFolder, warn_once
from fastmlp_kernels.fingerprints import UnknownValueError, identity
from fastmlp_kernels.shield import shield
from fastmlp_kernels.stamped_cache import CudaCache, StampedCache

# error_model="numpy": Python's would put a zero check on every division, and no loop with one
# vectorises (sigmoid 8.2 ns an element instead of 0.7, 2-core AMD EPYC, 2026-11-23). "contract"
# allows fused multiply-adds and nothing else: never nnan or ninf, as a NaN must be seen, and no
# reassociation, so that a row's result does not depend on the rows beside it.
CPU_FLAGS: dict[str, Any] = {"error_model": "numpy", "fastmath": {"contract"}, "nogil": True}
PART_FLAGS: dict[str, Any] = {
    **CPU_FLAGS,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}
# A rule that calls two polynomials is past LLVM's inlining threshold, and a call in a loop keeps
# it scalar: softplus in float64 took 16 ns an element instead of 2.2 (same machine and day).
RULE_FLAGS: dict[str, Any] = {**CPU_FLAGS, "forceinline": True}
# For `plus` alone: flags are those of an instruction, so only the additions of a row's own sum may
# be split over lanes, and a loss that is summed beside its slope is vector code (cross-entropy of a
# logit in float32: 25 ns an element without, 1 ns with; same machine and day).
SUM_FLAGS: dict[str, Any] = {**RULE_FLAGS, "fastmath": {"contract", "reassoc"}}
# The default FMA contraction stays on; fastmath would flush and approximate. `cuda.jit(**flags)(f)`
# would drop them (numba-cuda 0.30).
CUDA_FLAGS: dict[str, Any] = {"fastmath": False}
# Without optimization at link time a GPU runs what is assembled from the PTX that the emulated GPU
# runs, and NVVM works once: 5.7 s and not 9.0 of compilers for `cuda.resident`, for 2 % more
# instructions (2-core AMD EPYC, Zen 3, 2026-11-29).
CUDA_KERNEL_FLAGS: dict[str, Any] = {**CUDA_FLAGS, "lto": False}
# What they are called where it is said that they are being compiled, and the compilers' passes.
CPU_KERNELS, CUDA_KERNELS = "kernels", "GPU kernels"
CPU_PASS, CUDA_PASS = "numba:run_pass", "numba-cuda:run_pass"


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
    # Not by the PartCompiler: a rule that is first optimised in a loop has other bits in the loop's
    # vectors than in the numbers that are left over (binary cross-entropy).
    register_jitable(**(SUM_FLAGS if function is plus else RULE_FLAGS))(function)
    for callee in (*_callees(function), *_closed_over(function)):
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


def cpu_function(function: Callable) -> Any:
    """Compile a function over rows of the algebra for Python, uncached."""
    for callee in (*_closed_over(function), *_callees(function)):
        _make_callable(callee)
    return numba.njit(**CPU_FLAGS)(function)


def _closed_over(function: Callable) -> list[types.FunctionType]:
    cells = function.__closure__ or ()
    return [c.cell_contents for c in cells if isinstance(c.cell_contents, types.FunctionType)]


def _text(flags: dict[str, Any]) -> str:
    # The order of a set changes with the hash seed.
    return repr(sorted((n, sorted(v) if isinstance(v, set) else v) for n, v in flags.items()))


@functools.cache
def stamp(target: str = "cpu") -> str:
    """Return a hash of every source that a kernel may call, of the flags and of the tables' rows.

    Numba's own cache looks at the one file that defines a kernel: an edit to the algebra would
    go unseen, and the old result be served.

    Parameters
    ----------
    target : str
        "cpu" or "cuda": an edit of a kernel of one is nothing to those of the other.
    """
    flags = [
        _text(each) for each in (CPU_FLAGS, PART_FLAGS, RULE_FLAGS, SUM_FLAGS, CUDA_KERNEL_FLAGS)
    ]
    digest = hashlib.sha256(repr((numba.__version__, llvmlite.__version__, flags)).encode())
    folder = Path(__file__).parent
    other = folder / ("cuda" if target == "cpu" else "cpu")
    for path in sorted(folder.rglob("*.py")):
        if other not in path.parents:
            digest.update(path.read_bytes())
    for row in (*ACTIVATIONS, *loss_rules(), *OPTIMIZERS):
        digest.update(row.name.encode())
        for value in vars(row).values():
            if isinstance(value, types.FunctionType):
                digest.update(identity(value))
    return digest.hexdigest()


def cache_folder() -> CacheFolder | None:
    """Return the folder of the disk cache, or None where there is none to be had."""
    try:
        return StampedCache(_callees, stamp()).folder
    except RuntimeError as error:
        warn_once("kernels are compiled anew in each process: %s", error)
        return None


def kernel(function: Callable) -> Any:
    """Compile a CPU kernel that Python calls, cached on disk where a cache folder can be had."""
    dispatcher = part(function, **CPU_FLAGS)
    with contextlib.suppress(RuntimeError):
        dispatcher._cache = StampedCache(function, stamp())
    compiling = dispatcher.compile
    dispatcher.compile = lambda signature: _announced(lambda: compiling(signature))
    return dispatcher


def _announced(
    work: Callable[[], Any],
    events: Any = event,
    passing: str = CPU_PASS,
    compiled: str = CPU_KERNELS,
) -> Any:
    """Compile or load code by calling `work`; a compiler's events of one kind are its passes."""

    def heard(begins: Callable[[], None]) -> Any:
        with uncollected(), events.install_listener(passing, passes(events, begins)):
            # What is shown ends with an interrupt, also where the compiler goes on.
            return shield(work)

    return compile_or_load(heard, compiled, how_often())


@functools.cache
def how_often() -> str:
    """Return in words how often a kernel is compiled."""
    if cache_folder() is None:
        return "in each process, as there is no cache folder"
    return "once per installation and version"


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Let the garbage collector rest: the compiler keeps what it makes, and each search is in vain.

    Half a second of a cold start of six (Zen 5, 2026-11-24).
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _word(argument: Any) -> Any:
    if isinstance(argument, numba_types.BaseAnonymousTuple):
        return numba_types.Tuple([_word(each) for each in argument])
    whole = isinstance(argument, numba_types.Integer | numba_types.IntegerLiteral)
    truth = isinstance(argument, numba_types.Boolean | numba_types.BooleanLiteral)
    return numba_types.int64 if whole or truth else argument


def part(function: Callable, **flags: Any) -> Any:
    """Compile a part of CPU kernels: every number that it is given is a word.

    Numba would compile it once more for each constant that a caller passes, also within a tuple,
    and wrap it for Python each time.

    Raises
    ------
    RuntimeError
        If Numba was told to compile nothing.
    """
    if numba.config.DISABLE_JIT:
        raise RuntimeError(
            "NUMBA_DISABLE_JIT: got 1, wanted 0: kernels work on addresses and run compiled alone. "
            "Unset it, or name kernel='reference', which is NumPy"
        )
    if not flags:
        flags = {**PART_FLAGS, "pipeline_class": PartCompiler}
    dispatcher = numba.njit(**flags)(function)
    resolve = dispatcher.get_call_template
    dispatcher.get_call_template = lambda arguments, keywords: resolve(
        tuple(_word(each) for each in arguments), keywords
    )
    return dispatcher


def leaf(
    function: Callable, name: str, signature: Any, compiler: type[Compiler] = LeafCompiler
) -> CFunc:
    """Compile a function for callers that know its address, cached on disk under `name`.

    Parameters
    ----------
    function : callable
        A loop over one row of the algebra; what it closes over is compiled with it.
    name : str
        Unique among leaves.
    signature : numba signature
    compiler : type
        What compiles it.
    """

    def compile_whole() -> CFunc:
        # Another thread may be at the same rows: `_make_callable` is to see each once.
        with global_compiler_lock:
            for callee in _closed_over(function):
                _make_callable(callee)
            kinds = sigutils.normalize_signature(signature)
            compiled = CFunc(function, kinds, {}, RULE_FLAGS, pipeline_class=compiler)
            with contextlib.suppress(RuntimeError):
                compiled._cache = StampedCache(function, stamp(), name)
            compiled.compile()
            return compiled

    return _announced(compile_whole)


def address_of(dispatcher: Any, arguments: tuple) -> int:
    """Return the address of a `kernel` for arguments of some types, as a C function."""
    dispatcher.compile(arguments)
    compiled = dispatcher.overloads[arguments]
    name = compiled.fndesc.llvm_cfunc_wrapper_name
    return compiled.library.get_pointer_to_function(name)


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
def cuda_function(function: types.FunctionType, counted: Any = range) -> Callable:
    """Compile a plain function, and everything that it calls, as CUDA device functions.

    The function is copied with its globals rebound to the compiled twins, since a CUDA kernel
    cannot call a plain function, and a CPU one would bring its own flags along. `counted` takes the
    place of `range`.
    """
    if simulated():
        return function
    from numba import cuda

    if function in FORMS:
        function = FORMS[function][2]
    twins = {callee.__name__: cuda_function(callee, counted) for callee in _callees(function)}
    builtins = CUDA_BUILTINS.keys() & set(function.__code__.co_names)
    twins |= {name: cuda_function(CUDA_BUILTINS[name]) for name in builtins}
    # Under another name: Numba refuses a `range` that is not Python's.
    names = ["counted" if name == "range" else name for name in function.__code__.co_names]
    code = function.__code__.replace(co_names=tuple(names))
    scope = {**function.__globals__, **twins, "counted": counted}
    cells = tuple(
        types.CellType(cuda_function(cell.cell_contents, counted))
        if isinstance(cell.cell_contents, types.FunctionType)
        else cell
        for cell in function.__closure__ or ()
    )
    copy = types.FunctionType(code, scope, function.__name__, None, cells or None)
    return cuda.jit(copy, device=True, **CUDA_FLAGS)


def cuda_switch(functions: Sequence[types.FunctionType]) -> Callable:
    """Return ``select(code, ...)`` as a CUDA device function."""
    select = _switch(functions, [cuda_function(function) for function in functions])
    return select if simulated() else cuda_part(select)


def cuda_part(function: Callable) -> Any:
    """Compile a part of CUDA kernels, which may itself wait for the threads of its block."""
    from numba import cuda

    return cuda.jit(function, device=True, **CUDA_FLAGS)


def cuda_inlined(function: Callable) -> Any:
    """Compile a part of CUDA kernels that is given an array of the thread's own.

    Registers have no address: were the part called, the array would lie in local memory.
    """
    from numba import cuda

    if simulated():
        return cuda.jit(function, device=True, **CUDA_FLAGS)
    return cuda.jit(function, device=True, forceinline=True, **CUDA_FLAGS)


def cuda_kernel(function: Callable) -> Any:
    """Compile a CUDA kernel, to be launched as ``kernel[grid, block](...)``.

    Cached on disk where a cache folder can be had.
    """
    from numba import cuda

    if simulated():
        return cuda.jit(function, **CUDA_FLAGS)
    dispatcher = cuda.jit(function, **CUDA_KERNEL_FLAGS)
    compiling = dispatcher.compile
    # Not at once: the fingerprint is of all that the kernel's globals are by then.
    give_cache = functools.cache(lambda: _give_cache(dispatcher))

    def compile_or_load_here(signature: Any) -> Any:
        from numba.cuda.core import event as events

        give_cache()
        gpu = cuda.gpus[cuda.get_current_device().id]

        def work() -> Any:
            # A thread begins with the first GPU; the shield's takes that of its caller.
            with gpu:
                return compiling(signature)

        return _announced(work, events, CUDA_PASS, CUDA_KERNELS)

    dispatcher.compile = compile_or_load_here
    return dispatcher


def _give_cache(dispatcher: Any) -> None:
    """Have a kernel cached on disk, if it can be."""
    try:
        dispatcher._cache = CudaCache(dispatcher, stamp("cuda"))
    except UnknownValueError as error:
        warn_once("%s is compiled anew in each process: %s", dispatcher.py_func.__name__, error)
    except RuntimeError:
        pass  # There is no folder: `how_often` says so.
