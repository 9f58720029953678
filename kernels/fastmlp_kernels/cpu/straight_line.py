"""A step without its loops: the calls of leaves that a whole batch makes, as machine code.

Where layers are small, much of a step's time goes into finding out, again and again, which leaf is
to be called on what. For one program and a whole batch the answer is always the same. So the calls
are recorded once and compiled: a row of calls, with their arguments as constants. A step of
32-64-4 at batch 1 takes 0.65 of the time then, one of 64-64-10 at batch 64 takes 0.95.

The leaves are the same, in the same order, with the same arguments: no bit changes.
"""

import weakref
from collections.abc import Hashable, Sequence
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from numba.core.compiler_lock import global_compiler_lock

from fastmlp_kernels.background import later
from fastmlp_kernels.cpu import fused
from fastmlp_kernels.cpu.machine_code import target_machine
from fastmlp_kernels.cpu.recording import Call, Recording, Sum, symbol
from fastmlp_kernels.cpu.simd import InstructionSet
from fastmlp_kernels.cpu.tables import GRADIENT, OUTPUT, UPDATE, WORD_BYTES, at
from fastmlp_kernels.problem import Problem

# Seconds of epochs of a kind after which its straight line is written: that takes 30 us a call, on
# a thread of its own, for 100 to 5,000 calls.
PATIENCE = 1.0
# The units of weights of the largest network that gets a straight line: it has 5,000 calls, which
# take 0.15 s, and gains 2 % (64-256-256-8 at batch 64). Handles get those of all kinds of calls, as
# nobody knows which will be made, so theirs are of smaller networks.
MOST_UNITS, MOST_UNITS_OF_HANDLES = 400, 150
# What a phase is given: the batch's first place in the order, the addresses of its scale and of its
# hyper-parameters, and that of the table.
PARAMETERS = ("start", "scale", "hyper", "table")
# Words of a table that hold a straight line's phases: addresses, or 0 where there is none.
WORDS = {"rows": at.rows_code, "units": at.units_code, "finishing": at.finishing_code}


# The calls of a phase, and the places of those whose largest result it returns.
Phase = tuple[list[Call], frozenset[int]]


class StraightLine:
    """The machine code of whole batches: a function for each phase of a step.

    Parameters
    ----------
    phases : mapping
        By name, the calls of a phase and the places of those whose largest result it returns.
    target : InstructionSet

    Attributes
    ----------
    addresses : dict of str to int
        Of the phases, each a function of the PARAMETERS.
    """

    def __init__(self, phases: dict[str, Phase], target: InstructionSet) -> None:
        text = "\n".join(_function(name, *phase) for name, phase in phases.items())
        with global_compiler_lock:
            # A row of calls has nothing that could be optimised: 5 ms for 100 calls, not 22.
            machine = target_machine(target, optimization=0)
            module = llvm.parse_assembly(text)
            module.triple, module.data_layout = machine.triple, str(machine.target_data)
            # It owns the code.
            self._engine = llvm.create_mcjit_compiler(module, machine, use_lmm=True)
            self._engine.finalize_object()
            find = self._engine.get_function_address
            self.addresses = {name: find(name) for name in phases}


def _function(name: str, calls: Sequence[Call], counted: frozenset[int]) -> str:
    """Return LLVM's text of a phase."""
    given = ", ".join(f"i64 %{each}" for each in PARAMETERS)
    lines = [f"define i64 @{name}({given}) {{"]
    known: dict[Any, str] = {}
    largest = "0"
    for place, (leaf, arguments) in enumerate(calls):
        words = ", ".join(f"i64 {_value(each, lines, known)}" for each in arguments)
        lines.append(f"  %r{place} = call i64 inttoptr (i64 {leaf} to ptr)({words})")
        if place in counted:
            lines.append(f"  %m{place} = call i64 @llvm.smax.i64(i64 {largest}, i64 %r{place})")
            largest = f"%m{place}"
    return "\n".join([*lines, f"  ret i64 {largest}", "}"])


def _value(number: Any, lines: list[str], known: dict[Any, str]) -> str:
    """Return a number as an operand, after the lines that compute it."""
    if not isinstance(number, Sum):
        return str(int(number))
    total = "0"
    for length in range(1, len(number.terms) + 1):
        terms = number.terms[:length]
        if terms not in known:
            known[terms] = _sum(total, *terms[-1], lines)
        total = known[terms]
    if not number.constant:
        return total
    lines.append(f"  %a{len(lines)} = add i64 {total}, {number.constant}")
    return f"%a{len(lines) - 1}"


def _sum(total: str, name: str, factor: int, lines: list[str]) -> str:
    """Write lines that add a symbol, so many times, to a total; return where the sum is."""
    word, place = f"%{name}", len(lines)
    if name not in PARAMETERS:
        offset = getattr(at, name) * WORD_BYTES
        word = f"%w{place}"
        lines.append(f"  %p{place} = add i64 %table, {offset}")
        lines.append(f"  %q{place} = inttoptr i64 %p{place} to ptr")
        lines.append(f"  {word} = load i64, ptr %q{place}")
    lines.append(f"  %f{place} = mul i64 {word}, {factor}")
    lines.append(f"  %s{place} = add i64 {total}, %f{place}")
    return f"%s{place}"


def suits(problem: Problem, step: Any) -> bool:
    """Return whether whole batches of a kind of call can be recorded.

    They can where one thread takes all rows at once, and no products skip what is zero.
    """
    one_block = problem.batch_size <= step["row_block"]
    predicts = step["stages"] & OUTPUT and step["claims"]
    return bool(step["threads"] == 1 and one_block and not step["skips"] and not predicts)


def phases_of(problem: Problem, tables: Sequence[Any], kind: str = "") -> dict[str, Phase]:
    """Record a whole batch.

    Parameters
    ----------
    problem : Problem
    tables : (ndarray, ndarray, ndarray)
        The step (of the kind of call), the chain and the tiles of a program. The code is that of
        this program's arrays, and may be given any table that leads to the same ones.
    kind : str
        Added to the names of the phases.
    """
    recording, stages = Recording(*tables), tables[0]["stages"][0]
    start, scale, hyper = (symbol(name) for name in PARAMETERS[:3])
    rows = problem.batch_size
    phases = {f"rows{kind}": recording.run(fused._rows, 0, start, scale, 0, rows, hyper)}
    passes = {}
    if stages & GRADIENT:
        passes = {"units": fused.COMPUTING | fused.FINISHING}
    if problem.clipping == "norm" and stages & UPDATE:
        passes = {"units": fused.COMPUTING, "finishing": fused.FINISHING}
    for name, work in passes.items():
        phases[f"{name}{kind}"] = recording.run(fused._units, 0, work, rows, hyper)
    return phases


def connect(words: np.ndarray, line: StraightLine | None, kind: str = "") -> None:
    """Write a straight line into a table, or that there is none."""
    for name, word in WORDS.items():
        words[word] = line.addresses.get(f"{name}{kind}", 0) if line else 0


def write_in_background(program: Any, steps: np.ndarray) -> list[StraightLine]:
    """Write the straight line of each kind of call into its table, some time later.

    Calls may go on meanwhile. Who makes them keeps the list that this returns.
    """
    lines: list[StraightLine] = []
    kinds = {str(k): step for k, step in enumerate(steps) if suits(program.problem, step)}
    if not kinds or program.units > MOST_UNITS_OF_HANDLES:
        return lines
    # Many handles may be made, and dropped at once.
    kept = weakref.ref(program)

    def write() -> None:
        program = kept()
        if program is None:
            return
        phases = {}
        for kind, step in kinds.items():
            tables = step.reshape(1), program.chain, program.tiles
            phases |= phases_of(program.problem, tables, kind)
        lines.append(StraightLine(phases, program.target))
        for kind, step in kinds.items():
            connect(step.reshape(1).view(np.int64), lines[0], kind)

    later(write)
    return lines


class StraightLines:
    """The straight lines of a program's kinds of epochs, each written once it has been waited for.

    Attributes
    ----------
    count : int
        How many there are.
    """

    def __init__(self) -> None:
        self._seconds: dict[Hashable, float] = {}
        self._lines: dict[Hashable, StraightLine] = {}
        self.count = 0

    def of(self, kind: Hashable) -> StraightLine | None:
        """Return the straight line of a kind of epochs, if there is one by now."""
        return self._lines.get(kind)

    def took(self, kind: Hashable, seconds: float, program: Any) -> None:
        """Take note of an epoch; begin to write its straight line if that is due."""
        before = self._seconds.get(kind, 0.0)
        self._seconds[kind] = before + seconds
        due = before <= PATIENCE < before + seconds and program.units <= MOST_UNITS
        if due and suits(program.problem, program.step[0]):
            # The table is another kind's by the time that the thread reads it.
            tables = program.step.copy(), program.chain, program.tiles

            def write() -> None:
                phases = phases_of(program.problem, tables)
                self._lines[kind] = StraightLine(phases, program.target)
                self.count += 1

            later(write)
