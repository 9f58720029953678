"""The code of instructions that compute with registers alone."""

from tests.gpu.emulator.floats import TO_INTEGER
from tests.gpu.emulator.reading import elements
from tests.gpu.emulator.registers import BITS, OPERATED, Fault
from tests.gpu.emulator.translation import writes

# Where the addresses of shared memory lie among those of all memory.
SHARED_WINDOW = 0x7E00_0000_0000_0000
DIRECTED = ("rz", "rm", "rp")
COMPARISONS = {
    **{"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="},
    **{"lo": "<", "ls": "<=", "hi": ">", "hs": ">="},
}
CONNECTIVES = {"and": "&", "or": "|", "xor": "^"}
BINARY = {
    **{"sub": "{0} - {1}", "and": "{0} & {1}", "or": "{0} | {1}", "xor": "{0} ^ {1}"},
    # copysign d, a, b: the sign of a, the magnitude of b.
    **{"rem": "integers.remainder({0}, {1})", "copysign": "np.copysign({1}, {0})"},
}
UNARY = {
    **{"neg": "-{0}", "abs": "np.abs({0})", "not": "~{0}", "sqrt": "np.sqrt({0})"},
    **{"rsqrt": "(1 / np.sqrt({0}.astype(F64))).astype({kind})"},
    **{"ex2": "np.exp2({0}.astype(F64)).astype({kind})"},
    **{"lg2": "np.log2({0}.astype(F64)).astype({kind})"},
}

# The short formats that a float is converted to: how the bits are kept, and how they come about.
SHORT = {
    "bf16": ("b16", "floats.to_bfloat16({0})"),
    "bf16x2": (
        "b32",
        "(floats.to_bfloat16({0}).astype(U32) << U32(16)) | floats.to_bfloat16({1})",
    ),
    "tf32": ("b32", "floats.to_tf32({0})"),
}


def kind_of(instruction):
    """Return the last type in an instruction's name."""
    return next(part for part in reversed(instruction.parts) if part in OPERATED)


def operands(translation, instruction, kind):
    """Return expressions of all operands but the result; one of them is an array."""
    given = instruction.operands[1:]
    express = translation.get
    if not any(each.startswith("%") for each in given):
        express = translation.array
    return [express(each, kind) for each in given]


def compute(translation, instruction, form):
    """Write a line for a form of expression."""
    kind = kind_of(instruction)
    given = operands(translation, instruction, kind)
    text = form.format(*given, kind=OPERATED[kind])
    translation.put(instruction.operands[0], kind, text)


@writes(*BINARY, *UNARY)
def plain(translation, instruction):
    op = instruction.parts[0]
    compute(translation, instruction, BINARY.get(op) or UNARY[op])


@writes("add")
def add(translation, instruction):
    modes = [mode for mode in DIRECTED if mode in instruction.parts]
    form = f"floats.add_directed({{0}}, {{1}}, '{modes[0]}')" if modes else "{0} + {1}"
    if modes and kind_of(instruction) != "f32":
        raise Fault(f"the emulator does not know: {instruction.name}")
    compute(translation, instruction, form)


@writes("mul")
def multiply(translation, instruction):
    if "wide" not in instruction.parts:
        high = "hi" in instruction.parts
        compute(
            translation, instruction, "integers.high_product({0}, {1})" if high else "{0} * {1}"
        )
        return
    kind = kind_of(instruction)
    wide = f"{kind[0]}{2 * BITS[kind]}"
    a, b = operands(translation, instruction, kind)
    text = f"{a}.astype({OPERATED[wide]}) * {b}.astype({OPERATED[wide]})"
    translation.put(instruction.operands[0], wide, text)


@writes("mad")
def multiply_add(translation, instruction):
    if "lo" not in instruction.parts:
        raise Fault(f"the emulator does not know: {instruction.name}")
    compute(translation, instruction, "{0} * {1} + {2}")


@writes("fma")
def fused_multiply_add(translation, instruction):
    modes = [mode for mode in DIRECTED if mode in instruction.parts]
    if modes and kind_of(instruction) != "f32":
        raise Fault(f"the emulator does not know: {instruction.name}")
    form = "floats.fused({0}, {1}, {2})"
    if modes:
        form = f"floats.fused_directed({{0}}, {{1}}, {{2}}, '{modes[0]}')"
    compute(translation, instruction, form)


@writes("div")
def divide(translation, instruction):
    whole = kind_of(instruction)[0] != "f"
    compute(translation, instruction, "integers.divide({0}, {1})" if whole else "{0} / {1}")


@writes("rcp")
def reciprocal(translation, instruction):
    short = instruction.parts[-1] == "f64" and "approx" in instruction.parts
    compute(
        translation, instruction, "floats.short_reciprocal({0})" if short else "{kind}(1) / {0}"
    )


@writes("min", "max")
def extreme(translation, instruction):
    op = instruction.parts[0]
    quiet = kind_of(instruction)[0] == "f" and "NaN" not in instruction.parts
    compute(translation, instruction, f"np.{'f' + op if quiet else op + 'imum'}({{0}}, {{1}})")


@writes("shl", "shr")
def shift(translation, instruction):
    kind = kind_of(instruction)
    result, value, count = instruction.operands
    name = "shift_left" if instruction.parts[0] == "shl" else "shift_right"
    value, count = translation.array(value, kind), translation.get(count, "u32")
    translation.put(result, kind, f"integers.{name}({value}, {count}, {BITS[kind]})")


@writes("bfi")
def bit_field_insert(translation, instruction):
    kind = kind_of(instruction)
    result, *given, start, length = instruction.operands
    a, b = (translation.array(each, kind) for each in given)
    text = f"integers.insert_bits({a}, {b}, {int(start)}, {int(length)}, {BITS[kind]})"
    translation.put(result, kind, text)


@writes("selp")
def select(translation, instruction):
    kind = kind_of(instruction)
    result, a, b, flag = instruction.operands
    a, b = translation.get(a, kind), translation.get(b, kind)
    translation.put(result, kind, f"np.where({translation.get(flag, 'pred')}, {a}, {b})")


@writes("setp")
def set_predicate(translation, instruction):
    kind = kind_of(instruction)
    result, a, b, *flag = instruction.operands
    text = comparison(instruction, translation.array(a, kind), translation.get(b, kind), kind)
    connectives = [part for part in instruction.parts[2:] if part in CONNECTIVES]
    if connectives:
        text = f"({text}) {CONNECTIVES[connectives[0]]} {translation.get(flag[0], 'pred')}"
    translation.put(result, "pred", text)


def comparison(instruction, a, b, kind):
    """Return a comparison; with a NaN it is false, and the unordered kinds are true."""
    how = instruction.parts[1]
    if kind[0] != "f":
        return f"{a} {COMPARISONS[how]} {b}"
    unordered = f"(np.isnan({a}) | np.isnan({b}))"
    if how in ("num", "nan"):
        return f"~{unordered}" if how == "num" else unordered
    if how not in COMPARISONS:
        return f"({a} {COMPARISONS[how.removesuffix('u')]} {b}) | {unordered}"
    return f"({a} {COMPARISONS[how]} {b}) & ~{unordered}"


@writes("mov")
def move(translation, instruction):
    kind = kind_of(instruction)
    result, source = instruction.operands
    if result.startswith("{"):
        return split(translation, kind, elements(result), source)
    if not source.startswith("{"):
        return translation.put(result, kind, translation.array(source, kind))
    parts = elements(source)
    bits, whole = BITS[kind] // len(parts), f"U{BITS[kind]}"
    words = [translation.array(each, f"b{bits}") for each in parts]
    terms = [f"({word}.astype({whole}) << {whole}({k * bits}))" for k, word in enumerate(words)]
    return translation.put(result, f"b{BITS[kind]}", " | ".join(terms))


def split(translation, kind, results, source):
    """Write the lines that take a word apart, the low bits first."""
    bits = BITS[kind] // len(results)
    translation.lines.append(f"whole = {translation.array(source, f'b{BITS[kind]}')}")
    for number, each in enumerate(results):
        text = f"(whole >> U{BITS[kind]}({number * bits})).astype(U{bits})"
        translation.put(each, f"b{bits}", text)


@writes("cvt")
def convert(translation, instruction):
    to, source = [part for part in instruction.parts if part in (*SHORT, *OPERATED)]
    if source in SHORT:
        raise Fault(f"the emulator does not know: {instruction.name}")
    if to in SHORT:
        kind, form = SHORT[to]
        given = operands(translation, instruction, "f32")
        return translation.put(instruction.operands[0], kind, form.format(*given))
    value = translation.array(instruction.operands[1], source)
    text = f"{converted(instruction, value, to, source)}.astype({OPERATED[to]})"
    return translation.put(instruction.operands[0], to, text)


def converted(instruction, value, to, source):
    """Return an expression of a value that is still to be stored as another type."""
    modes = [part for part in instruction.parts if part in (*TO_INTEGER, *DIRECTED)]
    if "sat" in instruction.parts:
        if to[0] != "f":
            raise Fault(f"the emulator does not know: {instruction.name}")
        return f"floats.saturated({value})"
    if source[0] != "f" or not modes:
        return value
    if to[0] != "f":
        return f"floats.to_integer({value}, {OPERATED[to]}, '{modes[0]}')"
    if modes[0] in TO_INTEGER:
        return f"np.{TO_INTEGER[modes[0]].__name__}({value})"
    return f"floats.to_float({value}, '{modes[0]}')"


@writes("cvta")
def convert_address(translation, instruction):
    address = translation.array(instruction.operands[1], "u64")
    if "shared" in instruction.parts:
        sign = "-" if "to" in instruction.parts else "+"
        address = f"{address} {sign} U64({SHARED_WINDOW})"
    elif "global" not in instruction.parts:
        raise Fault(f"the emulator does not know: {instruction.name}")
    translation.put(instruction.operands[0], "u64", address)
