"""What CUDA has and Numba has no name for: tensor cores, matrix loads, asynchronous copies, bits.

The one module with inline assembly and LLVM instructions for CUDA: a port to another compiler
rewrites it and nothing else. Each function here is called in device code; in Numba's simulator the
name is that of `emulation` instead, so that kernels run unchanged.

Arrays are one-dimensional and contiguous, places count their elements. "All lanes" means that the
32 threads of a warp must come to the instruction together. Fragments (`fragments`) are tuples of
32-bit registers. Source: PTX ISA 9.0, the section named after the instruction.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.cuda.extending import intrinsic

from fastmlp_kernels.compile import simulated
from fastmlp_kernels.cuda.instructions import emulation
from fastmlp_kernels.cuda.instructions.index32 import INDEX

SHARED, GLOBAL = 3, 1
WORD, HALF, SINGLE = ir.IntType(32), ir.IntType(16), ir.FloatType()
LONG = ir.IntType(64)


def _device(function: Callable) -> Any:
    return getattr(emulation, function.__name__) if simulated() else intrinsic(function)


def _assembly(builder, text, constraints, result, arguments):
    # Side effects, and convergent: never moved into a branch that not all lanes take.
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    code = ir.InlineAsm(kind, text, constraints, side_effect=True)
    return builder.call(code, arguments, attrs=("convergent", "nounwind"))


def _tuple(context, builder, kind, structure):
    values = [builder.extract_value(structure, k) for k in range(kind.count)]
    return context.make_tuple(builder, kind, values)


def _pointer(context, builder, array_type, array, place_type, place):
    data = context.make_array(array_type)(context, builder, value=array).data
    if place_type == INDEX:
        place, place_type = builder.zext(place, LONG), types.intp
    return builder.gep(data, [context.cast(builder, place, place_type, types.intp)])


def _address(builder, pointer, space):
    """Return a generic pointer as a number in the address space `space`."""
    narrow = builder.addrspacecast(pointer, ir.PointerType(pointer.type.pointee, space))
    return builder.ptrtoint(narrow, WORD if space == SHARED else LONG)


def _multiply(a, b, c, instruction):
    signature = types.UniTuple(types.float32, 4)(a, b, c)
    text = f"{instruction} {{$0,$1,$2,$3}}, {{$4,$5,$6,$7}}, {{$8,$9}}, {{$10,$11,$12,$13}};"
    constraints = ",".join(["=f"] * 4 + ["r"] * 6 + ["f"] * 4)

    def generate(context, builder, signature, arguments):
        registers = [r for each in arguments for r in cgutils.unpack_tuple(builder, each)]
        sums = ir.LiteralStructType([SINGLE] * 4)
        found = _assembly(builder, text, constraints, sums, registers)
        return _tuple(context, builder, signature.return_type, found)

    return signature, generate


@_device
def mma_bfloat16(typing_context, a, b, c):
    """Return ``A B + C`` of fragments: A 16 x 16, B 16 x 8, C 16 x 8.

    ``mma_bfloat16(a, b, c)``: `a` 4 and `b` 2 uint32 of bfloat16 pairs, `c` and the result 4
    float32. All lanes. Capability 8.0. Products are exact, sums float32 in an order that the
    machine does not tell, with truncation. PTX: mma.sync.aligned.m16n8k16.row.col, .bf16.
    """
    return _multiply(a, b, c, "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32")


@_device
def mma_tf32(typing_context, a, b, c):
    """Return ``A B + C`` of fragments: A 16 x 8, B 8 x 8, C 16 x 8.

    ``mma_tf32(a, b, c)``: `a` 4 and `b` 2 uint32, the bits of float32 numbers from `to_tf32` (the
    machine cuts off what others have more), `c` and the result 4 float32. All lanes. Capability
    8.0. Sums as in `mma_bfloat16`. PTX: mma.sync.aligned.m16n8k8.row.col, .tf32.
    """
    return _multiply(a, b, c, "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32")


def _load_matrix(array, place, transposed):
    signature = types.UniTuple(types.uint32, 4)(array, place)
    instruction = f"ldmatrix.sync.aligned.m8n8.x4{transposed}.shared.b16"

    def generate(context, builder, signature, arguments):
        pointer = _pointer(
            context, builder, signature.args[0], arguments[0], signature.args[1], arguments[1]
        )
        found = _assembly(
            builder,
            f"{instruction} {{$0,$1,$2,$3}}, [$4];",
            "=r,=r,=r,=r,r,~{memory}",
            ir.LiteralStructType([WORD] * 4),
            [_address(builder, pointer, SHARED)],
        )
        return _tuple(context, builder, signature.return_type, found)

    return signature, generate


@_device
def load_matrix_x4(typing_context, array, place):
    """Return 4 uint32: a register of each of four matrices of 8 x 8 half-words.

    ``load_matrix_x4(array, place)``: `array` in shared memory, of any dtype; `place`, where the 16
    bytes of row ``lane % 8`` of matrix ``lane / 8`` begin, a multiple of 16 bytes. All lanes.
    Capability 7.5. PTX: ldmatrix.sync.aligned.m8n8.x4.shared.b16.
    """
    return _load_matrix(array, place, "")


@_device
def load_matrix_x4_transposed(typing_context, array, place):
    """Return what `load_matrix_x4` does, of the transposed matrices. PTX: ldmatrix with .trans."""
    return _load_matrix(array, place, ".trans")


@_device
def copy_async_16(typing_context, destination, destination_place, source, source_place):
    """Begin to copy 16 bytes from global to shared memory past the registers.

    ``copy_async_16(destination, destination_place, source, source_place)``: places are multiples
    of 16 bytes. Each lane for itself. Capability 8.0. PTX: cp.async.cg.shared.global.
    """
    signature = types.void(destination, destination_place, source, source_place)

    def generate(context, builder, signature, arguments):
        kinds = signature.args
        target = _pointer(context, builder, kinds[0], arguments[0], kinds[1], arguments[1])
        origin = _pointer(context, builder, kinds[2], arguments[2], kinds[3], arguments[3])
        addresses = [_address(builder, target, SHARED), _address(builder, origin, GLOBAL)]
        text = "cp.async.cg.shared.global [$0], [$1], 16;"
        _assembly(builder, text, "r,l,~{memory}", ir.VoidType(), addresses)

    return signature, generate


@_device
def copy_async_commit(typing_context):
    """Close a group of the lane's copies. Capability 8.0. PTX: cp.async.commit_group."""

    def generate(context, builder, signature, arguments):
        _assembly(builder, "cp.async.commit_group;", "~{memory}", ir.VoidType(), [])

    return types.void(), generate


@_device
def copy_async_wait(typing_context, pending):
    """Wait until at most `pending` (a constant) of the lane's groups are under way.

    Other threads see the copies after the next ``cuda.syncthreads()``. Capability 8.0. PTX:
    cp.async.wait_group.
    """
    if not isinstance(pending, types.IntegerLiteral):
        return None
    text = f"cp.async.wait_group {pending.literal_value};"

    def generate(context, builder, signature, arguments):
        _assembly(builder, text, "~{memory}", ir.VoidType(), [])

    return types.void(pending), generate


@_device
def to_bfloat16(typing_context, value):
    """Return a float32 rounded to bfloat16, ties to even, as uint16.

    Capability 8.0. PTX: cvt.rn.bf16.f32.
    """

    def generate(context, builder, signature, arguments):
        return _assembly(builder, "cvt.rn.bf16.f32 $0, $1;", "=h,f", HALF, arguments)

    return types.uint16(types.float32), generate


@_device
def to_bfloat16_pair(typing_context, low, high):
    """Return two float32 rounded as by `to_bfloat16`, as the halves of a uint32.

    Capability 8.0. PTX: cvt.rn.bf16x2.f32, whose first operand becomes the high half.
    """

    def generate(context, builder, signature, arguments):
        return _assembly(builder, "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f", WORD, arguments)

    return types.uint32(types.float32, types.float32), generate


@_device
def from_bfloat16(typing_context, bits):
    """Return the float32 whose high half is the uint16 `bits`, exactly. A shift: any capability."""

    def generate(context, builder, signature, arguments):
        wide = builder.shl(builder.zext(arguments[0], WORD), ir.Constant(WORD, 16))
        return builder.bitcast(wide, SINGLE)

    return types.float32(types.uint16), generate


@_device
def to_tf32(typing_context, value):
    """Return a float32 rounded to ten bits of fraction, ties away from zero.

    Capability 8.0. PTX: cvt.rna.tf32.f32.
    """

    def generate(context, builder, signature, arguments):
        bits = _assembly(builder, "cvt.rna.tf32.f32 $0, $1;", "=r,f", WORD, arguments)
        return builder.bitcast(bits, SINGLE)

    return types.float32(types.float32), generate


@_device
def load_bits(typing_context, array, place):
    """Return the bits of the float32 at `place` as uint32.

    ``load_bits(array, place)``. PTX: ld.b32; any capability.
    """

    def generate(context, builder, signature, arguments):
        kinds = signature.args
        pointer = _pointer(context, builder, kinds[0], arguments[0], kinds[1], arguments[1])
        return builder.bitcast(builder.load(pointer), WORD)

    return types.uint32(array, place), generate


class Record(types.Type):
    """The type of a record of int64 in memory: ``record.name`` is a field.

    Parameters
    ----------
    fields : numba.types.Record
    narrow : bool
        Whether fields are `Index32`, and were read together; else each is read where it is.
    """

    def __init__(self, fields: Any, narrow: bool) -> None:
        self.fields, self.narrow = fields, narrow
        super().__init__(name=f"Record({fields}, {narrow})")

    def place(self, name: str) -> int:
        """Return how many words a field is from the first."""
        return self.fields.offset(name) // (LONG.width // 8)


@_device
def record_at(typing_context, words, dtype, place, narrow):
    """Return the record of a structured dtype that begins at a place of an array of int64.

    ``record_at(words, dtype, place, narrow)``: `narrow` is a constant (see `Record`). A narrow
    record has an even number of fields; it begins at a multiple of 16 bytes, and its fields are
    read by two. PTX: ld.v4.b32 or ld.b64; any capability.
    """
    if not isinstance(narrow, types.BooleanLiteral):
        return None
    record = Record(dtype.dtype, narrow.literal_value)

    def generate(context, builder, signature, arguments):
        kinds = signature.args
        pointer = _pointer(context, builder, kinds[0], arguments[0], kinds[2], arguments[2])
        return _read_by_two(builder, record, pointer) if record.narrow else pointer

    return record(words, dtype, place, narrow), generate


def _read_by_two(builder, record, pointer):
    """Return the fields as a structure of 32 bits each; what nobody uses is not read."""
    count = len(record.fields.fields)
    if count % 2:
        raise ValueError(f"a narrow record: got {count} fields, wanted an even number")
    # The low half of a word is its first.
    pairs = builder.bitcast(pointer, ir.VectorType(WORD, 4).as_pointer())
    fields = ir.Constant(ir.LiteralStructType([WORD] * count), ir.Undefined)
    for first in range(0, count, 2):
        pair = builder.load(builder.gep(pairs, [ir.Constant(LONG, first // 2)]), align=16)
        for k in range(2):
            word = builder.extract_element(pair, ir.Constant(WORD, 2 * k))
            fields = builder.insert_value(fields, word, first + k)
    return fields


def _read_fields() -> None:
    """Teach the compiler the attributes of a `Record`."""
    from numba.cuda.extending import (
        core_models,
        infer_getattr,
        lower_getattr_generic,
        register_model,
    )
    from numba.cuda.typing.templates import AttributeTemplate

    @register_model(Record)
    class Model(core_models.PrimitiveModel):
        def __init__(self, manager, record):
            fields = ir.LiteralStructType([WORD] * len(record.fields.fields))
            super().__init__(manager, record, fields if record.narrow else LONG.as_pointer())

    @infer_getattr
    class Fields(AttributeTemplate):
        key = Record

        def generic_resolve(self, record, name):
            if name not in record.fields.fields:
                return None
            return INDEX if record.narrow else types.int64

    @lower_getattr_generic(Record)
    def read(context, builder, record, value, name):
        place = record.place(name)
        if record.narrow:
            return builder.extract_value(value, place)
        return builder.load(builder.gep(value, [ir.Constant(LONG, place)]))


if not simulated():
    _read_fields()
