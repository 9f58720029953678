"""Instruction sets, and an emitter of vector code for them.

What Numba cannot say (a register tile of fixed size) is written as LLVM instructions through
llvmlite. An `Emitter` holds the module under construction and knows lanes, panels and loops.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir

WORD = ir.IntType(64)
POINTER = ir.PointerType()
VECTORS_PER_PANEL = 2


@dataclass(frozen=True)
class InstructionSet:
    """A family of processors that share a vector width and a number of registers.

    Parameters
    ----------
    name : str
    architectures : tuple of str
        First parts of LLVM's target triples; empty for any.
    cpu : str
        LLVM's name of the least processor that has it; "" for the architecture's baseline.
    triple : str
        A target to compile for where the host is of another architecture.
    needs : tuple of str
        LLVM's names of the features that a host must have.
    bits : int
        Width of a vector.
    row_tiles : tuple of int
        Rows of the forward and backward-data tiles, the largest first and 1 last. Two vectors
        wide, the largest leaves registers for the operands: nothing is spilled (tested).
    feature_tile : int
        Rows of a weight-gradient tile that is a panel wide: a divisor of the panel's width in
        either dtype.
    depth_block : int
        k of a block of a product, a multiple of the panel's width in either dtype. With AVX2 a
        block of weights that stays in the first cache is best: 784-2048-2048-10 is 1.1 times as
        fast with 256 as with 2048, others are equal (Zen 3, 32 KB and 512 KB of cache a core,
        2026-11-30). With AVX-512 a result that is written once saves more: the same network takes
        130 ms a step with 2048 and 143 with 512 and fewer rows (Zen 5, 48 KB and 1 MB, 2026-11-24).
    masks : bool
        Whether one instruction loads a part of a vector. Without, LLVM makes a branch of each lane:
        good enough at the end of a row that is copied, not inside a product.
    mask_registers : bool
        Whether masks are registers of their own, and storing a part is as fast as storing all.
    """

    name: str
    architectures: tuple[str, ...]
    cpu: str
    triple: str
    needs: tuple[str, ...]
    bits: int
    row_tiles: tuple[int, ...]
    feature_tile: int
    depth_block: int = 256
    masks: bool = False
    mask_registers: bool = False

    def lanes(self, dtype: str) -> int:
        """Return the elements of a vector."""
        return self.bits // (8 * np.dtype(dtype).itemsize)

    def panel(self, dtype: str) -> int:
        """Return the columns of a panel: two vectors."""
        return VECTORS_PER_PANEL * self.lanes(dtype)

    def narrow_feature_tile(self, dtype: str) -> int:
        """Return the rows of a weight-gradient tile that is one vector wide.

        With twice the rows it has as many accumulators as a wide one: they hide the latency of a
        multiply-add, and a unit takes half as many calls.
        """
        return min(2 * self.feature_tile, self.panel(dtype))


X86 = ("x86_64", "amd64")
INSTRUCTION_SETS = (
    # 28 accumulators, two right vectors and one broadcast of 32 registers; the left operand can
    # also be broadcast by the multiply-add itself.
    InstructionSet(
        "avx512",
        X86,
        "x86-64-v4",
        "x86_64-unknown-linux-gnu",
        ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd", "fma"),
        512,
        (14, 8, 4, 2, 1),
        8,
        depth_block=2048,
        masks=True,
        mask_registers=True,
    ),
    InstructionSet(
        "avx2",
        X86,
        "x86-64-v3",
        "x86_64-unknown-linux-gnu",
        ("avx2", "fma", "bmi2"),
        256,
        (6, 4, 2, 1),
        4,
        masks=True,
    ),
    InstructionSet(
        "neon",
        ("aarch64", "arm64"),
        "",
        "aarch64-unknown-linux-gnu",
        ("neon",),
        128,
        (6, 4, 2, 1),
        4,
    ),
    # Any other: vectors of 128 bits, which LLVM splits where there are none, and a product that
    # is rounded before it is added where there is no fused multiply-add.
    InstructionSet("portable", (), "", "", (), 128, (4, 2, 1), 4),
)


@functools.cache
def host_instruction_sets() -> tuple[InstructionSet, ...]:
    """Return those that this machine can run, the best first."""
    features = llvm.get_host_cpu_features()
    architecture = llvm.get_default_triple().partition("-")[0]
    return tuple(
        each
        for each in INSTRUCTION_SETS
        if (not each.architectures or architecture in each.architectures)
        and all(features.get(name, False) for name in each.needs)
    )


def instruction_set(name: str = "") -> InstructionSet:
    """Return the named instruction set, or the best that this machine can run."""
    if not name:
        return host_instruction_sets()[0]
    return next(each for each in INSTRUCTION_SETS if each.name == name)


class Emitter:
    """A module under construction: scalar type, vector type, memory access and loops.

    Variables are stack slots that a pass turns into registers, which spares the bookkeeping of
    phi nodes.
    """

    def __init__(self, target: InstructionSet, dtype: str) -> None:
        self.target, self.dtype = target, dtype
        self.item = np.dtype(dtype).itemsize
        self.lanes, self.panel = target.lanes(dtype), target.panel(dtype)
        self.scalar = ir.FloatType() if dtype == "float32" else ir.DoubleType()
        self.vector = ir.VectorType(self.scalar, self.lanes)
        self.bits = ir.VectorType(ir.IntType(8 * self.item), self.lanes)
        self.module = ir.Module(f"{target.name}_{dtype}")
        self.names: list[str] = []
        self.builder = ir.IRBuilder()

    def begin(self, name: str, count: int) -> tuple:
        """Start a function of `count` words that returns a word; return its arguments."""
        function = ir.Function(self.module, ir.FunctionType(WORD, [WORD] * count), name)
        function.attributes.add("nounwind")
        # Without these, LLVM prefers vectors of 256 bits on processors that also have 512.
        # set.add, as llvmlite's own method knows only attributes without a value.
        for attribute in ("prefer-vector-width", "min-legal-vector-width"):
            set.add(function.attributes, f'"{attribute}"="{self.target.bits}"')
        self.names.append(name)
        self.entry = function.append_basic_block("entry")
        self.builder = ir.IRBuilder(self.entry)
        return function.args

    def end(self, result: ir.Value | None = None) -> None:
        """Return `result`, or 0."""
        self.builder.ret(self.word(0) if result is None else result)

    def word(self, value: int) -> ir.Constant:
        """Return an int64 constant."""
        return ir.Constant(WORD, value)

    def address(self, base: ir.Value, elements: ir.Value | int) -> ir.Value:
        """Return ``base + elements * itemsize`` as a word."""
        offset = elements * self.item if isinstance(elements, int) else None
        if offset is None:
            return self.builder.add(base, self.builder.mul(elements, self.word(self.item)))
        return self.builder.add(base, self.word(offset)) if offset else base

    def _pointer(self, base: ir.Value, elements: int) -> ir.Value:
        # A constant offset becomes a part of the instruction that accesses memory.
        pointer = self.builder.inttoptr(base, POINTER)
        offset = [self.word(elements * self.item)]
        return self.builder.gep(pointer, offset, source_etype=ir.IntType(8))

    def load(self, base: ir.Value, elements: int = 0, kind: ir.Type | None = None) -> ir.Value:
        """Return the vector (or another kind) at an address; only its elements are aligned."""
        pointer = self._pointer(base, elements)
        return self.builder.load(pointer, typ=kind or self.vector, align=self.item)

    def store(self, value: ir.Value, base: ir.Value, elements: int = 0) -> None:
        """Write a value to an address."""
        self.builder.store(value, self._pointer(base, elements), align=self.item)

    def constant(self, value: float) -> ir.Constant:
        """Return a vector of copies of a constant."""
        return ir.Constant(self.vector, [value] * self.lanes)

    def largest(self, vector: ir.Value) -> ir.Value:
        """Return the largest element of a vector of unsigned integers as a word."""
        element = ir.IntType(8 * self.item)
        name = f"llvm.vector.reduce.umax.v{self.lanes}i{8 * self.item}"
        kind = ir.FunctionType(element, [self.bits])
        function = self.module.globals.get(name) or ir.Function(self.module, kind, name)
        result = self.builder.call(function, [vector])
        return self.builder.zext(result, WORD) if self.item == 4 else result

    def broadcast(self, base: ir.Value, elements: int) -> ir.Value:
        """Return a vector of copies of one element."""
        one = self.load(base, elements, self.scalar)
        index = ir.Constant(ir.IntType(32), 0)
        first = self.builder.insert_element(ir.Constant(self.vector, ir.Undefined), one, index)
        everywhere = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(first, first, everywhere)

    def multiply_add(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """Return ``a * b + c``, rounded once where the processor can."""
        name = "llvm.fmuladd" if self.target.name == "portable" else "llvm.fma"
        suffix = "f32" if self.item == 4 else "f64"
        kind = ir.FunctionType(self.vector, [self.vector] * 3)
        full = f"{name}.v{self.lanes}{suffix}"
        function = self.module.globals.get(full) or ir.Function(self.module, kind, full)
        return self.builder.call(function, [a, b, c])

    def mask(self, count: ir.Value) -> ir.Value:
        """Return a vector that is true in the first `count` lanes."""
        # Numbers as wide as the elements: where a mask is a vector, it is made by one comparison.
        numbers = ir.Constant(self.bits, list(range(self.lanes)))
        first = ir.Constant(ir.IntType(32), 0)
        count = self.builder.trunc(count, self.bits.element) if self.item == 4 else count
        one = self.builder.insert_element(ir.Constant(self.bits, ir.Undefined), count, first)
        everywhere = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return self.builder.icmp_signed(
            "<", numbers, self.builder.shuffle_vector(one, one, everywhere)
        )

    def _masked(self, name: str, result: ir.Type, parameters: list[ir.Type]) -> ir.Function:
        suffix = "f32" if self.item == 4 else "f64"
        full = f"llvm.masked.{name}.v{self.lanes}{suffix}.p0"
        known = self.module.globals.get(full)
        return known or ir.Function(self.module, ir.FunctionType(result, parameters), full)

    def load_masked(self, base: ir.Value, elements: int, mask: ir.Value) -> ir.Value:
        """Return a vector, zero where the mask is false: nothing is read there."""
        alignment = ir.Constant(ir.IntType(32), self.item)
        zero = ir.Constant(self.vector, [0.0] * self.lanes)
        kinds = [POINTER, alignment.type, mask.type, self.vector]
        function = self._masked("load", self.vector, kinds)
        return self.builder.call(function, [self._pointer(base, elements), alignment, mask, zero])

    def store_first(self, value: ir.Value, base: ir.Value, elements: int, count: ir.Value) -> None:
        """Write the first `count` elements of a vector, 1 to all of them.

        Where masks are registers of their own, by one instruction. Where they are vectors, that
        instruction takes 12 to 19 cycles (AMD Zen to Zen 3): halves, quarters and so on are faster.
        """
        if self.target.mask_registers:
            alignment, mask = ir.Constant(ir.IntType(32), self.item), self.mask(count)
            kinds = [self.vector, POINTER, alignment.type, mask.type]
            function = self._masked("store", ir.VoidType(), kinds)
            self.builder.call(function, [value, self._pointer(base, elements), alignment, mask])
            return
        place, size = self.variable(self.address(base, elements)), self.lanes
        index = ir.IntType(32)
        while size:
            taken = self.builder.icmp_signed(
                "!=", self.builder.and_(count, self.word(size)), self.word(0)
            )
            low, high = value, value
            if size < self.lanes:
                order = ir.VectorType(index, size)
                low, high = (
                    self.builder.shuffle_vector(value, value, ir.Constant(order, list(lanes)))
                    for lanes in (range(size), range(size, 2 * size))
                )
            with self.builder.if_then(taken):
                self.store(low, self.get(place))
                self.advance(place, size)
            value = self.builder.select(taken, high, low)
            size //= 2

    def element(self, vector: ir.Value, lane: int) -> ir.Value:
        """Return one element of a vector."""
        return self.builder.extract_element(vector, ir.Constant(ir.IntType(32), lane))

    def variable(self, value: ir.Value) -> ir.Value:
        """Return a slot that holds `value`."""
        with self.builder.goto_block(self.entry):
            slot = self.builder.alloca(value.type)
        self.builder.store(value, slot)
        return slot

    def get(self, slot: ir.Value, kind: ir.Type = WORD) -> ir.Value:
        """Return what a slot holds."""
        return self.builder.load(slot, typ=kind)

    def put(self, slot: ir.Value, value: ir.Value) -> None:
        """Change what a slot holds."""
        self.builder.store(value, slot)

    def advance(self, slot: ir.Value, elements: ir.Value | int) -> None:
        """Move the address in a slot."""
        self.put(slot, self.address(self.get(slot), elements))

    @contextmanager
    def repeat(self, count: ir.Value) -> Iterator[None]:
        """Run the body `count` times, none if it is 0; `count` is a word."""
        body = self.builder.append_basic_block("body")
        after = self.builder.append_basic_block("after")
        left = self.variable(count)
        some = self.builder.icmp_signed(">", count, self.word(0))
        self.builder.cbranch(some, body, after)
        self.builder.position_at_end(body)
        yield
        rest = self.builder.sub(self.get(left), self.word(1))
        self.put(left, rest)
        more = self.builder.icmp_signed(">", rest, self.word(0))
        self.builder.cbranch(more, body, after)
        self.builder.position_at_end(after)

    def larger(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """Return the larger of two words."""
        return self.builder.select(self.builder.icmp_signed(">", a, b), a, b)

    def smaller(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """Return the smaller of two words."""
        return self.builder.select(self.builder.icmp_signed("<", a, b), a, b)
