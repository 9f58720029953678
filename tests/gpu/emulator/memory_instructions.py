"""The code of instructions that reach memory, other threads or tensor cores."""

import re

from tests.gpu.emulator.arithmetic_instructions import kind_of
from tests.gpu.emulator.reading import elements
from tests.gpu.emulator.registers import OPERATED, Fault
from tests.gpu.emulator.translation import writes

SPACES = ("shared", "global", "local")


def space_of(instruction):
    space = next((each for each in SPACES if each in instruction.parts), "generic")
    if space == "local":
        raise Fault("the emulator does not know local memory")
    return space


def guard_of(translation):
    return "None" if translation.guard is None else "guard"


@writes("ld", "ldu")
def load(translation, instruction):
    kind = kind_of(instruction)
    target, source = instruction.operands
    if "param" in instruction.parts:
        name = re.sub(r"\s", "", source[1:-1])
        text = f"blocks.parameter({name!r}, {OPERATED[kind]}, count)"
        translation.put(target, kind, text)
        return
    targets, address = elements(target), translation.address(source)
    translation.lines.append(
        f"fetched = memory.load({space_of(instruction)!r}, {address}, {OPERATED[kind]}, "
        f"{len(targets)}, threads, {guard_of(translation)})"
    )
    for number, each in enumerate(targets):
        translation.put(each, kind, f"fetched[{number}]")


@writes("st")
def store(translation, instruction):
    kind = kind_of(instruction)
    target, source = instruction.operands
    values = ", ".join(translation.array(each, kind) for each in elements(source))
    translation.lines.append(
        f"memory.store({space_of(instruction)!r}, {translation.address(target)}, [{values}], "
        f"threads, {guard_of(translation)})"
    )


@writes("atom")
def atomic(translation, instruction):
    kind = kind_of(instruction)
    if "add" not in instruction.parts or kind[0] == "f":
        raise Fault(f"the emulator does not know: {instruction.name}")
    target, source, value = instruction.operands
    translation.put(
        target,
        kind,
        f"memory.atomic_add({space_of(instruction)!r}, {translation.address(source)}, "
        f"{translation.array(value, kind)}, threads, {guard_of(translation)})",
    )


@writes("membar", "fence")
def fence(translation, instruction):
    translation.lines.append("memory.fence(threads)")


@writes("bar", "barrier")
def barrier(translation, instruction):
    """Say what the threads bring to the barrier; the scheduler has them wait at it."""
    how = instruction.parts[1]
    if how == "warp":
        return
    if translation.guard is not None or how not in ("sync", "red"):
        raise Fault(f"the emulator does not know: {instruction.name} with a guard, or of this kind")
    if how == "sync":
        translation.lines.append("blocks.arriving = None")
        return
    result, *_, flag = instruction.operands
    if kind_of(instruction) != "pred":
        raise Fault(f"the emulator does not know: {instruction.name}")
    brought = f"({result!r}, {instruction.parts[2]!r}, {translation.get(flag, 'pred')})"
    translation.lines.append(f"blocks.arriving = {brought}")


@writes("ldmatrix")
def load_matrix(translation, instruction):
    targets, source = elements(instruction.operands[0]), instruction.operands[1]
    if "x4" not in instruction.parts or len(targets) != 4:
        raise Fault(f"the emulator does not know: {instruction.name}")
    transposed = "trans" in instruction.parts
    translation.lines.append(
        f"fetched = memory.load_matrices({translation.address(source)}, {transposed}, threads)"
    )
    for number, each in enumerate(targets):
        translation.put(each, "b32", f"fetched[{number}]")


@writes("mma")
def multiply_accumulate(translation, instruction):
    result, *factors, total = [elements(each) for each in instruction.operands]
    a, b = ([translation.array(each, "b32") for each in factor] for factor in factors)
    c = [translation.array(each, "f32") for each in total]
    given = ", ".join(f"[{', '.join(each)}]" for each in (a, b, c))
    translation.lines.append(
        f"fetched = tensor_cores.multiply_accumulate({instruction.name!r}, {given})"
    )
    for number, each in enumerate(result):
        translation.put(each, "f32", f"fetched[{number}]")


@writes("cp")
def copy_asynchronously(translation, instruction):
    name, given = instruction.name, instruction.operands
    if name.startswith("cp.async.commit_group"):
        translation.lines.append("memory.commit_copies(threads)")
    elif name.startswith("cp.async.wait_group"):
        translation.lines.append(f"memory.wait_for_copies(threads, {int(given[0])})")
    elif name.startswith("cp.async.wait_all"):
        translation.lines.append("memory.wait_for_copies(threads, None)")
    elif name.startswith(("cp.async.cg.shared.global", "cp.async.ca.shared.global")):
        target, source = (translation.address(each) for each in given[:2])
        translation.lines.append(f"memory.copy({target}, {source}, {int(given[2])}, threads)")
    else:
        raise Fault(f"the emulator does not know: {name}")
