"""PTX as numba-cuda emits it, read as instructions in basic blocks."""

import linecache
import re
from dataclasses import dataclass
from pathlib import Path

from tests.gpu.emulator.registers import Fault

TOKEN = re.compile(
    r"""\s*(?:
        (?P<opens>\{(?![^;{}]*,))
      | (?P<closes>\})
      | (?P<label>\$?[\w$]+):(?!:)
      | (?P<place>\.loc\s+\d+\s+\d+\s+\d+[^\n]*)
      | (?P<statement>(?:[^;{}]|\{[^{}]*\})+);
    )""",
    re.VERBOSE | re.DOTALL,
)
SHARED = re.compile(
    r"^\s*(?P<linkage>(?:\.\w+\s+)*?)\.shared\s+\.align\s+(?P<align>\d+)"
    r"\s+\.b8\s+(?P<name>\w+)\[(?P<size>\d*)\];",
    re.MULTILINE,
)
ENTRY = re.compile(
    r"\.entry\s+(?P<name>\w+)\s*\((?P<parameters>.*?)\)\s*(?:\.\w+[^\{]*?)?\{", re.DOTALL
)
PARAMETER = re.compile(r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+(\w+)")
OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*")
UNSIGNED = {"u32": "b32", "s32": "b32", "u64": "b64", "s64": "b64", "u16": "b16", "s16": "b16"}
ENDS_A_BLOCK = ("bra", "ret", "exit", "bar.", "barrier.")
TOUCHES_MEMORY = ("ld", "st", "atom", "red.", "cp.async")
WARP_WIDE = ("mma.sync", "ldmatrix", "shfl", "vote", "redux", "match")


@dataclass(slots=True)
class Instruction:
    """An instruction, with its guard (a predicate, and whether it is negated) and its line.

    `source` is the file's number and the line that the compiler states for it.
    """

    guard: tuple[str, bool] | None
    name: str
    operands: list[str]
    line: int
    source: tuple[int, int]

    @property
    def parts(self):
        return self.name.split(".")

    @property
    def is_warp_wide(self):
        """Whether all lanes of a warp execute it together."""
        return self.name.startswith(WARP_WIDE)

    @property
    def is_barrier(self):
        """Whether all threads of a block wait for each other at it."""
        return self.name.startswith(("bar.", "barrier.")) and "warp" not in self.parts


def elements(operand):
    """Return the registers of an operand in braces, or the operand alone."""
    if operand.startswith("{"):
        return [each.strip() for each in operand[1:-1].split(",")]
    return [operand]


class Program:
    """The entry of a PTX module.

    Attributes
    ----------
    parameters : dict
        The PTX types of its parameters, by name, in order.
    registers : dict
        The PTX types of its registers.
    symbols : dict
        Where each shared array begins; None for the dynamic one, which begins behind the others.
    blocks : list of list of Instruction
    targets : dict
        The numbers of the blocks that labels stand before.
    smallest : int
        Bytes of the smallest elements that it reads from memory or writes there: 2 to 8.
    functions : dict
        The translation of each block, by its number and whether it is that for all threads.
    """

    def __init__(self, ptx):
        text = re.sub(r"//[^\n]*", "", ptx)
        text = re.sub(
            r"/\*.*?\*/", lambda found: "\n" * found[0].count("\n"), text, flags=re.DOTALL
        )
        self.symbols, self.static_shared = _shared_arrays(text)
        entry = ENTRY.search(text)
        if entry is None:
            raise Fault("this PTX has no .entry")
        self.name = entry["name"]
        self.parameters = {name: kind for kind, name in PARAMETER.findall(entry["parameters"])}
        files = re.findall(r"\.file\s+(\d+)\s+\"([^\"]*)\"", text)
        self.files = {int(number): Path(name) for number, name in files}
        body = _Body(text, entry.end())
        self.registers = body.registers
        starts = _starts(body)
        ends = [*starts[1:], len(body.instructions)]
        self.blocks = [body.instructions[a:b] for a, b in zip(starts, ends, strict=True)]
        numbers = {start: number for number, start in enumerate(starts)}
        self.targets = {label: numbers.get(place) for label, place in body.labels.items()}
        self.smallest = _smallest(body.instructions)
        self.functions = {}

    def where(self, instruction):
        """Return the line of the kernel's source where it is known, and that of the PTX."""
        file, line = instruction.source
        here = f"line {instruction.line} of the PTX, {instruction.name}"
        return f"{self.files[file].name}:{line} ({here})" if file in self.files else here

    def source(self, instruction):
        """Return the source of the line that an instruction belongs to, where it is known."""
        file, line = instruction.source
        return linecache.getline(str(self.files[file]), line) if file in self.files else ""


def _shared_arrays(text):
    """Return where each shared array begins, and the bytes of those of a known size."""
    symbols, end = {}, 0
    for found in SHARED.finditer(text):
        if "extern" in found["linkage"] or not found["size"]:
            symbols[found["name"]] = None
            continue
        align = int(found["align"])
        symbols[found["name"]] = -(-end // align) * align
        end = symbols[found["name"]] + int(found["size"])
    return symbols, end


def _smallest(instructions):
    """Return the bytes of the smallest elements that instructions touch in memory, 2 at least."""
    touching = [each.name for each in instructions if each.name.startswith(TOUCHES_MEMORY)]
    bits = [int(found) for name in touching for found in re.findall(r"\.[bsuf](\d+)\b", name)]
    if any(name.startswith("cp.async") for name in touching):
        bits.append(32)
    return min(8, max(2, min(bits, default=64) // 8))


def _starts(body):
    """Return where blocks begin: at labels, behind jumps and barriers, at what is warp-wide."""
    starts = {0, *body.labels.values()}
    for place, each in enumerate(body.instructions):
        if each.name.startswith(ENDS_A_BLOCK):
            starts.add(place + 1)
        if each.is_warp_wide:
            starts.add(place)
    return sorted(start for start in starts if start < len(body.instructions))


class _Body:
    """The statements of an entry; registers of inner scopes get names of their own."""

    def __init__(self, text, start):
        self.registers, self.instructions, self.labels = {}, [], {}
        self.scopes, self.count = [{}], 0
        self.line, self.source = text[:start].count("\n") + 1, (0, 0)
        while self.scopes:
            found = TOKEN.match(text, start)
            if found is None:
                raise Fault(f"this is no PTX: {text[start : start + 80]!r}")
            self._take(found)
            self.line += found[0].count("\n")
            start = found.end()

    def _take(self, found):
        if found["opens"]:
            self.scopes.append({})
            self.count += 1
        elif found["closes"]:
            self.scopes.pop()
        elif found["label"]:
            self.labels[found["label"]] = len(self.instructions)
        elif found["place"]:
            _, file, line, *_ = found["place"].split()
            self.source = int(file), int(line)
        else:
            statement = found["statement"].strip()
            if statement.startswith(".reg"):
                self._declare(statement)
            elif not statement.startswith("."):
                self._instruction(statement)
            elif statement.startswith((".local", ".shared")):
                raise Fault(f"the emulator does not know: {statement}")

    def _declare(self, statement):
        kind, names = re.match(r"\.reg\s+\.(\w+)\s+(.*)", statement, re.DOTALL).groups()
        kind = UNSIGNED.get(kind, kind)
        for each in names.split(","):
            many = re.fullmatch(r"([%\w$]+)<(\d+)>", each.strip())
            if many:
                made = [f"{many[1]}{number}" for number in range(int(many[2]))]
            else:
                inner = len(self.scopes) > 1
                made = [f"{each.strip()}_scope{self.count}" if inner else each.strip()]
                self.scopes[-1][each.strip()] = made[0]
            self.registers.update(dict.fromkeys(made, kind))

    def _instruction(self, statement):
        guard = None
        found = re.match(r"@(!?)([%\w]+)\s+(.*)", statement, re.DOTALL)
        if found:
            guard, statement = (self._renamed(found[2]), found[1] == "!"), found[3]
        name, *rest = statement.split(None, 1)
        operands = [self._renamed(each.strip()) for each in OPERAND.findall("".join(rest))]
        self.instructions.append(Instruction(guard, name, operands, self.line, self.source))

    def _renamed(self, operand):
        for scope in reversed(self.scopes[1:]):
            for old, new in scope.items():
                operand = re.sub(re.escape(old) + r"(?!\w)", new, operand)
        return operand
