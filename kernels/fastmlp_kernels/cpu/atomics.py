"""How threads of compiled code meet: words that they share, waiting, and where they run."""

import sys

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fastmlp_kernels.cpu.intrinsics import WORD


@intrinsic
def atomic_add(typing_context, address, value):
    """Add to the word at `address`; return what it held before."""

    def generate(context, builder, signature, values):
        pointer = builder.inttoptr(values[0], WORD.as_pointer())
        return builder.atomic_rmw("add", pointer, values[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def atomic_load(typing_context, address):
    """Return the word at `address`; what was written before it was stored is visible."""

    def generate(context, builder, signature, values):
        pointer = builder.inttoptr(values[0], WORD.as_pointer())
        return builder.load_atomic(pointer, "seq_cst", 8)

    return types.int64(types.int64), generate


@intrinsic
def atomic_store(typing_context, address, value):
    """Write the word at `address`; what was written before is visible to who reads it."""

    def generate(context, builder, signature, values):
        pointer = builder.inttoptr(values[0], WORD.as_pointer())
        builder.store_atomic(values[1], pointer, "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def publish(typing_context, address, value):
    """Write the word at `address`: who reads it with `atomic_load` sees what was written before.

    Nobody waits until all of that has reached the cache, as after `atomic_store`.
    """

    def generate(context, builder, signature, values):
        pointer = builder.inttoptr(values[0], WORD.as_pointer())
        builder.store_atomic(values[1], pointer, "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def compare_and_swap(typing_context, address, expected, value):
    """Write the word at `address` if it holds what is expected; return whether it did."""

    def generate(context, builder, signature, values):
        pointer = builder.inttoptr(values[0], WORD.as_pointer())
        result = builder.cmpxchg(pointer, values[1], values[2], "seq_cst", "seq_cst")
        return builder.extract_value(result, 1)

    return types.boolean(types.int64, types.int64, types.int64), generate


# What clock_gettime calls the clock that nobody sets.
MONOTONIC = 6 if sys.platform == "darwin" else 1
NANOSECONDS = 1_000_000_000


@intrinsic
def nanoseconds(typing_context):
    """Return the time on a clock that only goes forward (in steps of 16 ms on Windows)."""

    def generate(context, builder, signature, values):
        if sys.platform == "win32":
            kind = ir.FunctionType(WORD, [])
            function = cgutils.get_or_insert_function(builder.module, kind, "GetTickCount64")
            milliseconds = builder.call(function, [])
            return builder.mul(milliseconds, ir.Constant(WORD, NANOSECONDS // 1000))
        kind = ir.FunctionType(ir.IntType(32), [ir.IntType(32), WORD.as_pointer()])
        function = cgutils.get_or_insert_function(builder.module, kind, "clock_gettime")
        # Seconds, and nanoseconds of the present one.
        time = cgutils.alloca_once(builder, WORD, size=2)
        builder.call(function, [ir.Constant(ir.IntType(32), MONOTONIC), time])
        parts = [builder.load(builder.gep(time, [ir.Constant(WORD, k)])) for k in range(2)]
        whole = builder.mul(parts[0], ir.Constant(WORD, NANOSECONDS))
        return builder.add(whole, parts[1])

    return types.int64(), generate


@intrinsic
def pause(typing_context):
    """Tell the processor that this is a loop that waits."""

    def generate(context, builder, signature, values):
        architecture = builder.module.triple.partition("-")[0]
        if architecture in ("x86_64", "amd64"):
            kind = ir.FunctionType(ir.VoidType(), [])
            name, arguments = "llvm.x86.sse2.pause", []
        elif architecture in ("aarch64", "arm64"):
            kind = ir.FunctionType(ir.VoidType(), [ir.IntType(32)])
            name, arguments = "llvm.aarch64.hint", [ir.Constant(ir.IntType(32), 1)]
        else:
            return context.get_dummy_value()
        builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def give_way(typing_context):
    """Let another thread have the processor."""
    name = "SwitchToThread" if sys.platform == "win32" else "sched_yield"

    def generate(context, builder, signature, values):
        kind = ir.FunctionType(ir.IntType(32), [])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [])
        return context.get_dummy_value()

    return types.void(), generate


# The system call by which threads sleep and are woken, on Linux, by the processor's name in LLVM.
FUTEX = {"x86_64": 202, "aarch64": 98}
# Among the threads of one process.
SLEEP, WAKE = 128, 129


def _futex(builder, operation, address, value, timeout):
    """Call the system; return False where it has no such call."""
    number = FUTEX.get(builder.module.triple.partition("-")[0])
    if number is None or not sys.platform.startswith("linux"):
        return False
    kind = ir.FunctionType(WORD, [WORD], var_arg=True)
    function = cgutils.get_or_insert_function(builder.module, kind, "syscall")
    numbers = [ir.Constant(WORD, each) for each in (number, operation)]
    builder.call(function, [numbers[0], address, numbers[1], value, timeout])
    return True


@intrinsic
def sleep_on(typing_context, address, value, nanoseconds):
    """Sleep until the word at `address` is woken, so long at most, if it holds `value` (32 bits).

    Where the system has no such call it returns at once, as it may do anywhere.
    """

    def generate(context, builder, signature, values):
        time = cgutils.alloca_once(builder, WORD, size=2)
        second = ir.Constant(WORD, NANOSECONDS)
        parts = builder.udiv(values[2], second), builder.urem(values[2], second)
        for k, part in enumerate(parts):
            builder.store(part, builder.gep(time, [ir.Constant(WORD, k)]))
        _futex(builder, SLEEP, values[0], values[1], builder.ptrtoint(time, WORD))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@intrinsic
def wake(typing_context, address):
    """Wake the thread that sleeps on the word at `address`."""

    def generate(context, builder, signature, values):
        _futex(builder, WAKE, values[0], ir.Constant(WORD, 1), ir.Constant(WORD, 0))
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def processor(typing_context):
    """Return the number of this thread's processor, or -1 where the system does not say."""

    def generate(context, builder, signature, values):
        if not sys.platform.startswith("linux"):
            return ir.Constant(WORD, -1)
        kind = ir.FunctionType(ir.IntType(32), [])
        function = cgutils.get_or_insert_function(builder.module, kind, "sched_getcpu")
        return builder.sext(builder.call(function, []), WORD)

    return types.int64(), generate


@intrinsic
def set_processors(typing_context, mask, size):
    """Restrict this thread to a set of processors; nothing where the system cannot (not Linux)."""

    def generate(context, builder, signature, values):
        if sys.platform.startswith("linux"):
            kind = ir.FunctionType(ir.IntType(32), [ir.IntType(32), WORD, WORD])
            function = cgutils.get_or_insert_function(builder.module, kind, "sched_setaffinity")
            builder.call(function, [ir.Constant(ir.IntType(32), 0), values[1], values[0]])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate
