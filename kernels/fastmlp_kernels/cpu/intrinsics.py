"""What kernels need beyond Python: calls by address, records, memory without aliasing."""

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

WORD = ir.IntType(64)


@intrinsic
def call(typing_context, address, arguments):
    """Call the function at `address` with a tuple of words; return its word.

    A leaf's pointers are words to its caller: both go in the same registers.
    """

    def generate(context, builder, signature, values):
        words = cgutils.unpack_tuple(builder, values[1])
        kind = ir.FunctionType(WORD, [WORD] * len(words))
        return builder.call(builder.inttoptr(values[0], kind.as_pointer()), words)

    return types.int64(types.int64, types.UniTuple(types.int64, len(arguments))), generate


@intrinsic
def record_at(typing_context, address, dtype, index):
    """Return a record of the array of a structured dtype at an address.

    It is a pointer: ``record.name`` reads the field where it is, ``record.name = value`` sets it.
    """
    record = dtype.dtype

    def generate(context, builder, signature, values):
        pointer = builder.inttoptr(values[0], context.get_value_type(record))
        return builder.gep(pointer, [values[2]])

    return record(types.int64, dtype, types.int64), generate


@intrinsic
def next_record(typing_context, record):
    """Return the record that follows another in an array."""

    def generate(context, builder, signature, values):
        return builder.gep(values[0], [ir.Constant(WORD, 1)])

    return record(record), generate


@intrinsic(prefer_literal=True)
def field_address(typing_context, record, name):
    """Return the address of the field of a record that has a (constant) name."""
    offset = record.offset(name.literal_value)

    def generate(context, builder, signature, values):
        return builder.add(builder.ptrtoint(values[0], WORD), ir.Constant(WORD, offset))

    return types.int64(record, name), generate


@intrinsic
def field_word(typing_context, record, index):
    """Return a word of a record of words, by its index."""

    def generate(context, builder, signature, values):
        pointer = builder.bitcast(values[0], WORD.as_pointer())
        return builder.load(builder.gep(pointer, [values[1]]))

    return types.int64(record, types.int64), generate


@intrinsic
def word(typing_context, words, index):
    """Return a word of the array of int64 at an address."""

    def generate(context, builder, signature, values):
        pointer = builder.inttoptr(values[0], WORD.as_pointer())
        return builder.load(builder.gep(pointer, [values[1]]))

    return types.int64(types.int64, types.int64), generate


@intrinsic
def set_word(typing_context, words, index, value):
    """Set a word of the array of int64 at an address."""

    def generate(context, builder, signature, values):
        pointer = builder.inttoptr(values[0], WORD.as_pointer())
        builder.store(values[2], builder.gep(pointer, [values[1]]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@intrinsic
def copy_bytes(typing_context, out, source, count):
    """Copy bytes from one address to another; they do not overlap."""

    def generate(context, builder, signature, values):
        places = [builder.inttoptr(each, cgutils.voidptr_t) for each in values[:2]]
        cgutils.raw_memcpy(builder, *places, values[2], ir.Constant(WORD, 1))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


def _scopes(builder, stream):
    """Return LLVM's alias scopes: this stream, and all the others of a leaf."""
    module = builder.module
    domain = module.add_metadata([ir.MetaDataString(module, "fastmlp streams")])
    scopes = [
        module.add_metadata([ir.MetaDataString(module, f"fastmlp stream {k}"), domain])
        for k in range(STREAMS)
    ]
    others = [scope for k, scope in enumerate(scopes) if k != stream]
    return module.add_metadata([scopes[stream]]), module.add_metadata(others)


# The most arrays of one leaf.
STREAMS = 6


def _mark(builder, instruction, stream):
    own, others = _scopes(builder, stream)
    instruction.set_metadata("alias.scope", own)
    instruction.set_metadata("noalias", others)


@intrinsic(prefer_literal=True)
def read(typing_context, pointer, index, stream):
    """Return ``pointer[index]``; arrays of different `stream` (a constant) never overlap.

    Without that promise LLVM checks every pair of arrays before a loop, and gives up on
    vectorising one with too many pairs.
    """
    number = stream.literal_value

    def generate(context, builder, signature, values):
        address = builder.gep(values[0], [values[1]])
        value = builder.load(address)
        _mark(builder, value, number)
        return value

    return pointer.dtype(pointer, types.int64, stream), generate


@intrinsic(prefer_literal=True)
def write(typing_context, pointer, index, value, stream):
    """Set ``pointer[index]``; see `read`."""
    number = stream.literal_value

    def generate(context, builder, signature, values):
        address = builder.gep(values[0], [values[1]])
        _mark(builder, builder.store(values[2], address), number)
        return context.get_dummy_value()

    return types.void(pointer, types.int64, pointer.dtype, stream), generate


@intrinsic
def anew(typing_context, value):
    """Return a number as one that LLVM takes for another.

    On x86 it stores nothing where it sees that a number is there already. In a loop over vectors
    that is a store under a mask, which takes 12 to 19 cycles on AMD processors before Zen 4.
    """

    def generate(context, builder, signature, values):
        # llvmlite has no method for this instruction of LLVM.
        frozen = ir.instructions.Instruction(builder.block, values[0].type, "freeze", values)
        builder._insert(frozen)
        return frozen

    return value(value), generate


@intrinsic
def magnitude(typing_context, value):
    """Return the bits of |value| as an integer: larger for larger magnitudes, NaN the largest.

    An integer maximum of these finds an infinity or a NaN anywhere in an array, and vectorises
    where a floating-point sum may not be reordered.
    """
    size = value.bitwidth

    def generate(context, builder, signature, values):
        integer = ir.IntType(size)
        bits = builder.bitcast(values[0], integer)
        return builder.and_(bits, ir.Constant(integer, 2 ** (size - 1) - 1))

    return (types.int32 if size == 32 else types.int64)(value), generate


# No trap, rounding to nearest, subnormal numbers as they are.
STANDARD_ARITHMETIC = 0x1F80
CONTROL = ir.IntType(32)
# The word's bits but for the six that only tell what has happened.
SETTINGS = 0xFFC0


def _is_x86(builder):
    return builder.module.triple.partition("-")[0] in ("x86_64", "amd64")


def _control_word(builder, name, pointer):
    """Call an instruction that stores or loads the control word of this thread's arithmetic."""
    kind = ir.FunctionType(ir.VoidType(), [pointer.type])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [pointer])


@intrinsic
def standard_arithmetic(typing_context):
    """Compute as IEEE 754 has it from here on; return what `former_arithmetic` goes back to.

    Some libraries have a thread flush subnormal numbers to zero and do not take it back: the same
    fit would then end in other bits. Only on x86: elsewhere the word stays as it is. So it does,
    and 0 is returned, where it is the standard one: to set it takes as long as a tiny layer.
    """

    def generate(context, builder, signature, values):
        if not _is_x86(builder):
            return ir.Constant(WORD, 0)
        word = cgutils.alloca_once(builder, CONTROL)
        result = cgutils.alloca_once_value(builder, ir.Constant(WORD, 0))
        place = builder.bitcast(word, ir.IntType(8).as_pointer())
        _control_word(builder, "llvm.x86.sse.stmxcsr", place)
        former, standard = builder.load(word), ir.Constant(CONTROL, STANDARD_ARITHMETIC)
        settings = builder.and_(former, ir.Constant(CONTROL, SETTINGS))
        with builder.if_then(builder.icmp_unsigned("!=", settings, standard), likely=False):
            builder.store(standard, word)
            _control_word(builder, "llvm.x86.sse.ldmxcsr", place)
            builder.store(builder.zext(former, WORD), result)
        return builder.load(result)

    return types.int64(), generate


@intrinsic
def former_arithmetic(typing_context, former):
    """Compute from here on as this thread did before `standard_arithmetic`."""

    def generate(context, builder, signature, values):
        if _is_x86(builder):
            changed = builder.icmp_unsigned("!=", values[0], ir.Constant(WORD, 0))
            with builder.if_then(changed, likely=False):
                word = cgutils.alloca_once(builder, CONTROL)
                builder.store(builder.trunc(values[0], CONTROL), word)
                place = builder.bitcast(word, ir.IntType(8).as_pointer())
                _control_word(builder, "llvm.x86.sse.ldmxcsr", place)
        return context.get_dummy_value()

    return types.void(types.int64), generate
