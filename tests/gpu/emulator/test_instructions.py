"""The arithmetic of each family of instructions, against NumPy and exact fractions."""

from fractions import Fraction

import numpy as np
import pytest

from tests.gpu.emulator.assembly import kernel, run
from tests.gpu.emulator.registers import Fault

THREADS = 64
# A register and an address of each type: %x holds an operand, %y the next.
REGISTERS = {2: "h", 4: "r", 8: "rd"}
EDGES = {
    "f": [0.0, -0.0, 1.0, -1.0, 0.5, 1.5, 2.5, -2.5, np.inf, -np.inf, np.nan, 3e9, -3e9, 1e-40],
    "u": [0, 1, 2, 31, 32, 33, 63, 64, 2**16 - 1],
    "s": [0, 1, -1, 2, -2, 31, 32, 2**15 - 1, -(2**15)],
}


def numbers(kind, seed):
    """Return operands of a PTX type: those at the edges in some order, and others."""
    generator = np.random.default_rng(seed)
    dtype = np.dtype({"f": "f", "u": "u", "s": "i", "b": "u"}[kind[0]] + str(int(kind[1:]) // 8))
    edges = generator.permutation(np.array(EDGES["u" if kind[0] == "b" else kind[0]], dtype))
    count = THREADS - len(edges)
    if dtype.kind == "f":
        others = generator.normal(scale=10.0, size=count).astype(dtype)
    else:
        ends = np.iinfo(dtype)
        others = generator.integers(ends.min, ends.max, count, dtype, endpoint=True)
    return generator.permutation(np.concatenate([edges, others]))


def execute(name, result, *operands, kinds=None, form="{name} {result}, {operands};"):
    """Return what an instruction gives for arrays of operands, one for each thread."""
    kinds = kinds or [each.dtype for each in operands]
    lines, registers = [], []
    for number, (array, kind) in enumerate(zip(operands, kinds, strict=True)):
        file, size = register_file(kind), array.dtype.itemsize
        register = f"%{file}{number + 5}"
        lines.append(f"mul.wide.u32 %rd1, %r0, {size}; add.s64 %rd1, %rd{11 + number}, %rd1;")
        lines.append(f"ld.global.{moved(kind)} {register}, [%rd1];")
        registers.append(register)
    target = f"%{register_file(result)}4"
    lines.append(form.format(name=name, result=target, operands=", ".join(registers)))
    size = np.dtype(result).itemsize
    lines.append(f"mul.wide.u32 %rd1, %r0, {size}; add.s64 %rd1, %rd10, %rd1;")
    lines.append(f"st.global.{moved(result)} [%rd1], {target};")
    names = ["out", *(f"operand{k}" for k in range(len(operands)))]
    ptx = kernel("\n".join(lines), names)
    out = np.zeros(len(operands[0]), result)
    return run(ptx, out, *operands, block=len(out))[1][0]


def register_file(kind):
    dtype = np.dtype(kind)
    return {4: "f", 8: "fd"}[dtype.itemsize] if dtype.kind == "f" else REGISTERS[dtype.itemsize]


def moved(kind):
    dtype = np.dtype(kind)
    return f"{'f' if dtype.kind == 'f' else 'b'}{dtype.itemsize * 8}"


def same(found, wanted):
    """See that two arrays hold the same bits, except for which NaN."""
    found, wanted = np.asarray(found), np.asarray(wanted)
    assert found.dtype == wanted.dtype
    if found.dtype.kind == "f":
        nan = np.isnan(wanted)
        assert (np.isnan(found) == nan).all()
        found, wanted = found[~nan], wanted[~nan]
    assert found.tobytes() == wanted.tobytes(), np.stack([found, wanted])[:, found != wanted]


BINARY = {
    "add.{t}": (np.add, ["s32", "s64", "u32", "f32", "f64"]),
    "sub.{t}": (np.subtract, ["s32", "s64", "f32", "f64"]),
    "mul.lo.{t}": (np.multiply, ["s32", "s64", "u32"]),
    "mul.{t}": (np.multiply, ["f32", "f64"]),
    "div.rn.{t}": (np.divide, ["f32", "f64"]),
    "min.{t}": (np.fmin, ["f32", "f64", "s32", "u64"]),
    "max.{t}": (np.fmax, ["f32", "f64", "s64", "u32"]),
    "min.NaN.{t}": (np.minimum, ["f32"]),
    "and.{t}": (np.bitwise_and, ["b32", "b64"]),
    "or.{t}": (np.bitwise_or, ["b32", "b64"]),
    "xor.{t}": (np.bitwise_xor, ["b16", "b32"]),
    "copysign.{t}": (lambda a, b: np.copysign(b, a), ["f32", "f64"]),
}
UNARY = {
    "neg.{t}": (np.negative, ["s32", "f32", "f64"]),
    "abs.{t}": (np.abs, ["f32", "f64"]),
    "not.{t}": (np.invert, ["b32", "b64"]),
    "sqrt.rn.{t}": (np.sqrt, ["f32", "f64"]),
    "rcp.rn.{t}": (lambda a: a.dtype.type(1) / a, ["f32", "f64"]),
    "ex2.approx.{t}": (lambda a: np.exp2(a.astype("f8")).astype("f4"), ["f32"]),
    "lg2.approx.{t}": (lambda a: np.log2(a.astype("f8")).astype("f4"), ["f32"]),
}


def spread(table):
    return [(name.format(t=t), rule, t) for name, (rule, kinds) in table.items() for t in kinds]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(("name", "rule", "kind"), spread(BINARY))
def test_of_two_operands(name, rule, kind):
    a, b = numbers(kind, 1), numbers(kind, 2)
    same(execute(name, a.dtype, a, b), rule(a, b))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(("name", "rule", "kind"), spread(UNARY))
def test_of_one_operand(name, rule, kind):
    a = numbers(kind, 3)
    same(execute(name, a.dtype, a), rule(a))


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_whole_products_and_quotients(kind):
    a, b = numbers(kind, 4), numbers(kind, 5)
    b[b == 0] = 3
    bits, dtype = int(kind[1:]), a.dtype
    pairs = [(int(x), int(y)) for x, y in zip(a, b, strict=True)]
    high = np.array([(x * y >> bits) for x, y in pairs], dtype)
    same(execute(f"mul.hi.{kind}", dtype, a, b), high)
    quotients = [abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1) for x, y in pairs]
    fits = [q <= np.iinfo(dtype).max for q in quotients]
    same(execute(f"div.{kind}", dtype, a, b)[fits], np.array(quotients, object)[fits].astype(dtype))
    rest = [x - y * q for (x, y), q in zip(pairs, quotients, strict=True)]
    same(execute(f"rem.{kind}", dtype, a, b), np.array(rest, dtype))
    if bits == 32:
        wide = np.array([x * y for x, y in pairs], dtype.kind + "8")
        same(execute(f"mul.wide.{kind}", wide.dtype, a, b), wide)
    total = np.array([(x * y + x) % 2**bits for x, y in pairs], f"u{bits // 8}").view(dtype)
    same(execute(f"mad.lo.{kind}", dtype, a, b, a), total)


def test_a_division_by_zero_is_a_fault():
    with pytest.raises(Fault, match="divided by zero"):
        execute("div.s32", np.int32, np.ones(2, np.int32), np.zeros(2, np.int32))


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_shifts(kind):
    a, bits = numbers(kind, 6), int(kind[1:])
    counts = np.arange(THREADS, dtype=np.uint32) * 2
    words = [(int(x), int(count)) for x, count in zip(a, counts, strict=True)]
    left = [(x << count) % 2**bits for x, count in words]
    found = execute(f"shl.b{bits}", a.dtype, a, counts)
    same(found, np.array(left, f"u{bits // 8}").view(a.dtype))
    right = np.array([x >> count for x, count in words], a.dtype)
    same(execute(f"shr.{kind}", a.dtype, a, counts), right)


def nearest(exact, dtype):
    """Return the float nearest to a fraction, ties to even."""
    near = np.array(float(exact), dtype)
    around = [np.nextafter(near, dtype(-np.inf)), near, np.nextafter(near, dtype(np.inf))]
    distance = [abs(Fraction(float(each)) - exact) for each in around]
    closest = [each for each, d in zip(around, distance, strict=True) if d == min(distance)]
    even = [each for each in closest if each.view(f"u{each.dtype.itemsize}") % 2 == 0]
    return (even or closest)[0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_fused_multiply_add_is_rounded_once(dtype):
    generator = np.random.default_rng(7)
    a, b = generator.normal(size=(2, THREADS)).astype(dtype)
    # Most of the product is cancelled: what its own rounding would lose is what is left.
    c = -(a * b) * dtype(1) + generator.normal(size=THREADS).astype(dtype) * dtype(1e-9)
    c[::2] = -(a * b)[::2]
    exact = [
        Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        for x, y, z in zip(a, b, c, strict=True)
    ]
    wanted = np.array([nearest(each, dtype) for each in exact])
    assert (wanted != a * b + c).any()
    same(execute(f"fma.rn.f{dtype().itemsize * 8}", dtype, a, b, c), wanted)


@pytest.mark.parametrize("mode", ["rm", "rp", "rz"])
def test_directed_rounding(mode):
    generator = np.random.default_rng(8)
    a, b = generator.normal(size=(2, THREADS)).astype(np.float32)
    exact = [Fraction(float(x)) + Fraction(float(y)) for x, y in zip(a, b, strict=True)]
    found = execute(f"add.{mode}.f32", np.float32, a, b)
    wide = execute(f"cvt.{mode}.f32.f64", np.float32, a.astype("f8") + b.astype("f8"))
    for result in (found, wide):
        for each, wanted in zip(result, exact, strict=True):
            below = mode == "rm" or (mode == "rz" and wanted > 0)
            ends = [Fraction(float(np.nextafter(each, np.float32(-s)))) for s in (np.inf, -np.inf)]
            here = Fraction(float(each))
            assert here <= wanted < ends[1] if below else ends[0] < wanted <= here


COMPARED = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less,
    "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip
SELECT = "{name} %p1, {operands}; selp.b32 {result}, 1, 0, %p1;"


@pytest.mark.parametrize("how", COMPARED)
@pytest.mark.parametrize("kind", ["s32", "u64", "f32", "f64"])
def test_comparisons(how, kind):
    a, b = numbers(kind, 9), numbers(kind, 10)
    b[::3] = a[::3]
    wanted, names = COMPARED[how](a, b), {how: False}
    unordered = np.isnan(a) | np.isnan(b) if kind[0] == "f" else np.zeros(THREADS, bool)
    if kind[0] == "f":
        names[how + "u"] = True
    for name, of_nan in names.items():
        found = execute(f"setp.{name}.{kind}", np.uint32, a, b, form=SELECT)
        same(found.astype(bool), np.where(unordered, of_nan, wanted))


@pytest.mark.parametrize("name", ["num", "nan"])
def test_whether_a_number_is_one(name):
    a, b = numbers("f32", 11), numbers("f32", 12)
    found = execute(f"setp.{name}.f32", np.uint32, a, b, form=SELECT)
    nan = np.isnan(a) | np.isnan(b)
    same(found.astype(bool), nan if name == "nan" else ~nan)


def test_a_predicate_joins_a_comparison():
    a, b = numbers("s32", 13), numbers("s32", 14)
    form = (
        "setp.gt.s32 %p2, %r5, 0; setp.lt.{how}.s32 %p1, {operands}, %p2; "
        "selp.b32 {result}, 1, 0, %p1;"
    )
    joined = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}
    for how, rule in joined.items():
        found = execute("", np.uint32, a, b, form=form.replace("{how}", how))
        same(found.astype(bool), rule(a < b, a > 0))


@pytest.mark.parametrize("mode", ["rzi", "rni", "rmi", "rpi"])
@pytest.mark.parametrize("to", ["s32", "u32", "s64"])
def test_floats_become_the_nearest_integer_that_there_is(mode, to):
    rule = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}[mode]
    a, dtype = numbers("f64", 15), np.dtype({"s": "i", "u": "u"}[to[0]] + str(int(to[1:]) // 8))
    a[np.isnan(a)] = 1e30
    ends = np.iinfo(dtype)
    infinite = {np.inf: ends.max, -np.inf: ends.min}
    wanted = [
        infinite[x] if x in infinite else min(max(int(rule(x)), ends.min), ends.max) for x in a
    ]
    same(execute(f"cvt.{mode}.{to}.f64", dtype, a), np.array(wanted, dtype))


def test_conversions_between_widths():
    a = numbers("s32", 16)
    same(execute("cvt.s64.s32", np.int64, a), a.astype(np.int64))
    same(execute("cvt.u64.u32", np.uint64, a.view(np.uint32)), a.view(np.uint32).astype(np.uint64))
    same(execute("cvt.u16.u32", np.uint16, a.view(np.uint32)), a.astype(np.uint16))
    same(execute("cvt.rn.f32.s32", np.float32, a), a.astype(np.float32))
    same(execute("cvt.rn.f64.u32", np.float64, a.view(np.uint32)), a.view("u4").astype("f8"))
    x = numbers("f64", 17)
    with np.errstate(over="ignore"):
        same(execute("cvt.rn.f32.f64", np.float32, x), x.astype(np.float32))
    # The sign of a short number fills the register that it is kept in.
    form = "cvt.s16.s8 %h1, %h5; cvt.s32.s16 {result}, %h1;"
    small = np.arange(THREADS, dtype=np.uint16) * 5
    same(execute("", np.int32, small, form=form), small.astype(np.int8).astype(np.int32))


def test_saturated_numbers_lie_between_0_and_1():
    a = numbers("f32", 18)
    wanted = np.where(np.isnan(a), np.float32(0), np.clip(a, np.float32(0), np.float32(1)))
    same(execute("cvt.sat.f32.f32", np.float32, a), wanted)


def nearest_short(x, kept, ties_to_even):
    """Return the bits of the nearest float32 with so few bits, by a search over the two around."""
    step, bits = 2 ** (32 - kept), int(np.float32(x).view(np.uint32))
    low, rest = bits - bits % step, bits % step
    up = rest > step // 2 or (rest == step // 2 and (not ties_to_even or low // step % 2 == 1))
    return low + step * up


@pytest.mark.parametrize(("kept", "even"), [(16, True), (19, False)])
def test_short_formats(kept, even):
    a = np.random.default_rng(19).normal(size=THREADS).astype(np.float32)
    # Ties, of odd and of even numbers.
    half = np.uint32(1 << (31 - kept))
    a[:32] = ((a[:32].view(np.uint32) & ~(2 * half - np.uint32(1))) | half).view(np.float32)
    wanted = np.array([nearest_short(x, kept, even) for x in a], np.uint32)
    if kept == 19:
        same(execute("cvt.rna.tf32.f32", np.uint32, a), wanted)
        return
    short = (wanted >> 16).astype(np.uint16)
    same(execute("cvt.rn.bf16.f32", np.uint16, a), short)
    pair = execute("cvt.rn.bf16x2.f32", np.uint32, a, a[::-1].copy())
    same(pair, (short.astype(np.uint32) << 16) | short[::-1])


def test_words_are_taken_apart_and_put_together():
    a = numbers("b64", 20)
    form = "mov.b64 {{%r1, %r2}}, {operands}; mov.b64 {result}, {{%r2, %r1}};"
    swapped = a.view(np.uint32).reshape(-1, 2)[:, ::-1].copy().view(np.uint64)[:, 0]
    same(execute("", np.uint64, a, form=form), swapped)
    b = numbers("b32", 21)
    inserted = execute(
        "bfi.b32", np.uint32, b, b[::-1].copy(), form="bfi.b32 {result}, {operands}, 8, 4;"
    )
    same(inserted, (b[::-1] & ~np.uint32(0xF00)) | ((b & np.uint32(0xF)) << np.uint32(8)))


def test_a_guard_lets_some_threads_pass():
    a = numbers("s32", 22)
    form = "mov.b32 {result}, 7; setp.gt.s32 %p1, {operands}, 0; @%p1 mov.b32 {result}, {operands};"
    same(execute("", np.int32, a, form=form), np.where(a > 0, a, np.int32(7)))
    form = form.replace("@%p1", "@!%p1")
    same(execute("", np.int32, a, form=form), np.where(a > 0, np.int32(7), a))


def test_a_loop_ends_for_each_thread_at_its_time():
    counts = np.arange(THREADS, dtype=np.uint32) % 13
    form = """
        mov.u32 {result}, 0; mov.u32 %r1, 0;
    $next:
        setp.ge.u32 %p1, %r1, {operands};
        @%p1 bra $done;
        add.u32 %r1, %r1, 1; add.u32 {result}, {result}, %r1;
        bra $next;
    $done:
    """
    same(execute("", np.uint32, counts, form=form), counts * (counts + 1) // 2)


@pytest.mark.parametrize("how", ["or", "and"])
def test_a_barrier_votes(how):
    a = np.zeros(THREADS, np.uint32)
    body = """
        setp.ne.u32 %p1, {operands}, 0;
        barrier.red.HOW.pred %p2, 0, %p1;
        selp.b32 {result}, 1, 0, %p2;
    """.replace("HOW", how)
    for marked, yes in ((0, False), (1, how == "or"), (THREADS, True)):
        a[:marked] = 1
        assert (execute("", np.uint32, a, form=body) == yes).all()


def test_atomics_give_each_thread_what_it_found():
    counter, out = np.array([5], np.uint32), np.zeros(THREADS, np.uint32)
    body = """
        atom.global.add.u32 %r1, [%rd10], 2;
        add.s64 %rd1, %rd11, %rd0;
        st.global.u32 [%rd1], %r1;
    """
    for random_warps in (False, True):
        ptx = kernel(body, ["counter", "out"])
        _, (total, found) = run(ptx, counter, out, block=THREADS, random_warps=random_warps)
        assert total.tolist() == [5 + 2 * THREADS]
        assert sorted(found) == list(range(5, 5 + 2 * THREADS, 2))
