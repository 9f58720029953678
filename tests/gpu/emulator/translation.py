"""A basic block as a Python function of arrays, with an element for each of its threads.

The generated function is called with the blocks that run, their memory, the positions of its
threads among them, how many those are, and the instructions. It returns which of the threads jump
(None: all) and where: a block's number, "next" or "exit".
"""

import re

import numpy as np

from tests.gpu.emulator import floats, integers, tensor_cores
from tests.gpu.emulator.registers import (
    BITS,
    F32,
    F64,
    KEPT,
    KEPT_BITS,
    NUMPY_TYPES,
    OPERATED,
    U32,
    U64,
    Fault,
)

SPECIAL = {
    **{"%tid": "thread", "%ntid": "block_shape", "%ctaid": "block", "%nctaid": "grid_shape"},
    **{"%laneid": "lane", "%warpid": "warp"},
    **{"%dynamic_smem_size": "dynamic_bytes", "%total_smem_size": "shared_bytes"},
}
MODULES = {"np": np, "floats": floats, "integers": integers, "tensor_cores": tensor_cores}
# An expression that may be an array which a register holds, or is a part of one.
SHARES_AN_ARRAY = re.compile(
    r"(np\.asarray\()?v\w+(\.view\([\w.]+\))*\)?(\.view\([\w.]+\))*|fetched\[\d+\]"
)
# Writes one instruction of a kind, by the first part of its name.
WRITERS = {}


def writes(*kinds):
    """Register what writes the code of instructions whose names begin so."""

    def register(function):
        WRITERS.update(dict.fromkeys(kinds, function))
        return function

    return register


class Translation:
    """The lines of a block's function, while they are written.

    Attributes
    ----------
    guard : tuple or None
        That of the instruction at hand; the generated code calls it ``guard``.
    """

    def __init__(self, program, block):
        self.program, self.block = program, block
        self.lines, self.constants, self.read, self.written = [], {}, {}, {}
        self.guard = None
        end = None
        for number, each in enumerate(block):
            self.guard = None
            self.lines.append(f"blocks.now = instructions[{number}]")
            if each.parts[0] in ("bra", "ret", "exit"):
                end = each
                continue
            if each.guard is not None:
                self.lines.append(f"guard = {self.condition(each)}")
                self.guard = each.guard
            if each.parts[0] not in WRITERS:
                raise Fault(f"the emulator does not know: {each.name}")
            WRITERS[each.parts[0]](self, each)
        self.guard = None
        self.ending = self._ending(end)

    def condition(self, instruction):
        name, negated = instruction.guard
        return f"{'~' if negated else ''}{self.get(name, 'pred')}"

    def _ending(self, end):
        if end is None:
            return "return None, 'next'"
        place = "'exit'" if end.parts[0] != "bra" else self.program.targets[end.operands[0]]
        return f"return {'None' if end.guard is None else self.condition(end)}, {place}"

    def function(self, whole):
        """Return the function for some threads, or the one for all, which slices nothing."""
        part = "" if whole else "[threads]"
        names = {name: f"registers[{register!r}]" for register, name in self.read.items()}
        head = [f"{name} = {held}{part}" for name, held in names.items()]
        tail = [
            f"registers[{register!r}]{part} = {name}" for register, name in self.written.items()
        ]
        lines = ["registers = blocks.registers", *head, *self.lines, *tail, self.ending]
        text = "def run(blocks, memory, threads, count, instructions):\n    " + "\n    ".join(lines)
        names = {**MODULES, **NUMPY_TYPES, **self.constants}
        exec(compile(text, f"<block of {self.program.name[:40]}>", "exec"), names)
        return names["run"]

    # Operands

    def variable(self, register):
        """Return the name of a register's array, and the type of the array."""
        if register not in self.program.registers:
            raise Fault(f"no such register: {register}")
        return "v" + re.sub(r"\W", "_", register), KEPT[self.program.registers[register]]

    def get(self, operand, kind):
        """Return an expression of an operand: an array, or a NumPy scalar of a constant."""
        if operand.partition(".")[0] in SPECIAL:
            return self._special(operand, kind)
        if operand.startswith("%"):
            return self._register(operand, kind)
        if operand in self.program.symbols:
            return f"{OPERATED[kind]}(memory.symbols[{operand!r}])"
        name = f"constant{len(self.constants)}"
        self.constants[name] = constant(operand, kind)
        return name

    def _special(self, operand, kind):
        name, _, axis = operand.partition(".")
        axis = "xyz".index(axis) if axis else 0
        return f"blocks.special({SPECIAL[name]!r}, {axis})[threads].astype({OPERATED[kind]})"

    def _register(self, operand, kind):
        name, kept = self.variable(operand)
        wanted = OPERATED[kind]
        self.reads(operand)
        if kept == wanted:
            return name
        if "bool" in (kept, wanted) or BITS[kind] > KEPT_BITS[kept]:
            raise Fault(f"{operand} is read as {kind}")
        if BITS[kind] < KEPT_BITS[kept]:
            return f"{name}.astype(U{BITS[kind]}).view({wanted})"
        return f"{name}.view({wanted})"

    def reads(self, register):
        """Note that a register's value of before is needed; return its name."""
        name, _ = self.variable(register)
        if register not in self.written:
            self.read[register] = name
        return name

    def array(self, operand, kind):
        """Return an expression of an operand that is an array."""
        expression = self.get(operand, kind)
        if operand.startswith("%"):
            return expression
        return f"np.full(count, {expression}, {OPERATED[kind]})"

    def put(self, operand, kind, expression):
        """Write a line that gives a register a value, in the threads that the guard lets pass."""
        if operand == "_":
            self.lines.append(expression)
            return
        name, kept = self.variable(operand)
        if kept != OPERATED[kind]:
            if kind != "pred" and BITS[kind] == KEPT_BITS[kept]:
                expression = f"np.asarray({expression}).view({kept})"
            elif kind[0] == "s":
                # The sign is extended.
                expression = f"({expression}).astype(S{KEPT_BITS[kept]}).view({kept})"
            else:
                expression = f"({expression}).astype({kept})"
        if SHARES_AN_ARRAY.fullmatch(expression):
            # Arrays of registers are written in place later.
            expression = f"({expression}).copy()"
        if self.guard is not None:
            expression = f"np.where(guard, {expression}, {self.reads(operand)})"
        self.lines.append(f"{name} = {expression}")
        self.written[operand] = name

    def address(self, operand):
        """Return an expression of an operand in brackets, as an array of addresses."""
        base, offset = re.fullmatch(
            r"([%\w$]+)\s*(?:\+\s*(-?\d+))?", operand[1:-1].strip()
        ).groups()
        if not base.startswith("%"):
            text = f"np.full(count, {self.get(base, 'u64')})"
        elif self.program.registers[base] == "b64":
            text = self.get(base, "u64")
        else:
            text = f"{self.get(base, 'u32')}.astype(U64)"
        return f"({text} + U64({int(offset) & (2**64 - 1)}))" if offset else text


def constant(operand, kind):
    """Return a constant of PTX as a NumPy scalar."""
    if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", operand):
        return np.array([int(operand[2:], 16)], U32).view(F32)[0]
    if re.fullmatch(r"0[dD][0-9a-fA-F]{16}", operand):
        return np.array([int(operand[2:], 16)], U64).view(F64)[0]
    if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)U?", operand) is None:
        raise Fault(f"the emulator does not know the operand {operand}")
    number, bits = int(operand.rstrip("U"), 0), BITS.get(kind, 64)
    word = np.array([number & ((1 << bits) - 1)], f"u{bits // 8}")
    return word.view(NUMPY_TYPES.get(OPERATED[kind], U64))[0] if kind != "pred" else bool(number)
