"""The machine's own peak: fused multiply-adds on registers, and nothing else.

This is the bound of every kernel, measured in the same turns as the kernels. LLVM makes a loop of
independent accumulators from the intrinsic, in the widest vectors of this processor. Each thread
runs the loop on a processor of its own, without the interpreter's lock.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.baselines import Baseline
from benchmarks.cases import Case, Data, Weights
from benchmarks.validation import Disagreement

UNROLLED = 4
"""Multiply-adds of each accumulator between two jumps."""

MOST_ROUNDS = 2**22
"""Each round adds 1 to every accumulator: float32 counts exactly to four times this."""

FLOPS = 1.6e9
"""Operations of a run on one thread, about: 15 ms at 110 GFLOP/s, long beside starting threads."""


@dataclass(frozen=True)
class Vectors:
    """The widest vectors of a processor: bytes of a register, registers, whether it has FMA."""

    width: int
    registers: int
    fused: bool

    @property
    def accumulators(self) -> int:
        """As many chains as fit beside the two operands: latency is hidden from 8 to 16 on."""
        return 24 if self.registers >= 32 else 12


def host_vectors() -> Vectors:
    """Return those of this processor."""
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    if features.get("avx512f"):
        return Vectors(64, 32, True)
    if features.get("avx"):
        return Vectors(32, 16, bool(features.get("fma")))
    arm = llvm.get_process_triple().startswith(("aarch64", "arm64"))
    return Vectors(16, 32 if arm else 16, arm)


def loop_of_multiply_adds(vectors: Vectors, dtype: str) -> Any:
    """Return a module with ``run(data, trips, factor, addend)``.

    Every accumulator is read from `data`, becomes ``accumulator * factor + addend`` once a round,
    `UNROLLED` rounds a trip, and is written back. Factor, addend and starts are arguments, so that
    nothing can be computed ahead of the call.
    """
    from llvmlite import ir

    scalar = ir.FloatType() if dtype == "float32" else ir.DoubleType()
    lanes = vectors.width // np.dtype(dtype).itemsize
    vector, count = ir.VectorType(scalar, lanes), ir.IntType(64)
    module = ir.Module("peak")
    signature = ir.FunctionType(ir.VoidType(), [vector.as_pointer(), count, scalar, scalar])
    function = ir.Function(module, signature, "run")
    data, trips, *operands = function.args
    name = f"llvm.fma.v{lanes}f{8 * np.dtype(dtype).itemsize}"
    fma = ir.Function(module, ir.FunctionType(vector, [vector] * 3), name)

    entry, loop, done = (function.append_basic_block(word) for word in ("entry", "loop", "done"))
    builder = ir.IRBuilder(entry)
    factor, addend = (_broadcast(builder, operand, vector) for operand in operands)
    places = [
        builder.gep(data, [ir.Constant(count, index)]) for index in range(vectors.accumulators)
    ]
    starts = [builder.load(place, align=8) for place in places]
    builder.branch(loop)

    builder.position_at_end(loop)
    trip = builder.phi(count)
    trip.add_incoming(ir.Constant(count, 0), entry)
    chains = [builder.phi(vector) for _ in places]
    values: list[Any] = list(chains)
    for _ in range(UNROLLED):
        if vectors.fused:
            values = [builder.call(fma, [value, factor, addend]) for value in values]
        else:
            values = [builder.fadd(builder.fmul(value, factor), addend) for value in values]
    for chain, start, value in zip(chains, starts, values, strict=True):
        chain.add_incoming(start, entry)
        chain.add_incoming(value, loop)
    following = builder.add(trip, ir.Constant(count, 1))
    trip.add_incoming(following, loop)
    builder.cbranch(builder.icmp_unsigned("<", following, trips), loop, done)

    builder.position_at_end(done)
    for place, value in zip(places, values, strict=True):
        builder.store(value, place, align=8)
    builder.ret_void()
    return module


def _broadcast(builder: Any, value: Any, vector: Any) -> Any:
    from llvmlite import ir

    undefined = ir.Constant(vector, ir.Undefined)
    one = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    every_first = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), None)
    return builder.shuffle_vector(one, undefined, every_first)


class Compiled:
    """The loop for this processor, as a function that ctypes calls without the lock."""

    def __init__(self, dtype: str) -> None:
        import llvmlite.binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        self.vectors = host_vectors()
        target = llvm.Target.from_default_triple().create_target_machine(
            cpu=llvm.get_host_cpu_name(),
            features=llvm.get_host_cpu_features().flatten(),
            opt=3,
        )
        module = llvm.parse_assembly(str(loop_of_multiply_adds(self.vectors, dtype)))
        module.verify()
        self.assembly = target.emit_assembly(module)
        self.engine = llvm.create_mcjit_compiler(module, target)
        self.engine.finalize_object()
        number = ctypes.c_float if dtype == "float32" else ctypes.c_double
        prototype = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, number, number)
        self.run = prototype(self.engine.get_function_address("run"))


class Peak(Baseline):
    """The loop on as many threads as the entry says."""

    module = "llvmlite"
    packages = ("llvmlite",)
    role = "peak"
    devices = ("cpu",)
    suites = ("training", "variants")

    def load(self) -> None:
        """Import LLVM."""
        import llvmlite.binding  # noqa: F401

    def prepare(self, case: Case, data: Data, weights: list[Weights]) -> Callable[[], None]:
        """Compile the loop, and give each thread its processor and its accumulators."""
        compiled, threads = Compiled(case.dtype), self.entry.threads
        lanes = compiled.vectors.width // np.dtype(case.dtype).itemsize
        numbers = compiled.vectors.accumulators * lanes
        rounds = min(MOST_ROUNDS, int(FLOPS / (2 * numbers)))
        self.trips = rounds // UNROLLED
        self.operations = 2.0 * self.trips * UNROLLED * numbers * threads
        # Different starts: of two equal chains LLVM would keep one.
        self.starts = np.arange(numbers, dtype=case.dtype)
        self.accumulators = [self.starts.copy() for _ in range(threads)]
        self.compiled = compiled
        pool = ThreadPoolExecutor(threads, initializer=take_a_processor, initargs=(processors(),))

        def count(accumulators: np.ndarray) -> None:
            accumulators[:] = self.starts
            compiled.run(accumulators.ctypes.data, self.trips, 1.0, 1.0)

        def epoch() -> None:
            for _ in pool.map(count, self.accumulators):
                pass

        return epoch

    def work(self, case: Case) -> tuple[float, int]:
        """Return the operations of a run, which is one unit."""
        return self.operations, 1

    def check(self, case: Case, expected: np.ndarray) -> float:
        """Refuse a loop that has left out a multiply-add: each adds 1, exactly."""
        wanted = self.starts + self.trips * UNROLLED
        for accumulators in self.accumulators:
            if not np.array_equal(accumulators, wanted):
                found = np.unique(accumulators - self.starts)[:3].tolist()
                raise Disagreement(
                    f"multiply-adds of an accumulator: got {found}, wanted {self.trips * UNROLLED}"
                )
        return 0.0


def processors() -> list[int]:
    """Return the processors of this process, for its threads to take; none where it cannot pin."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def take_a_processor(free: list[int]) -> None:
    """Hold the calling thread to one: two on the same would show half the peak."""
    if free:
        os.sched_setaffinity(0, [free.pop()])
