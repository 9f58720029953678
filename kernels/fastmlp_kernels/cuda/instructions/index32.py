"""Whole numbers of 32 bits: places and counts in shared memory.

A GPU computes in 32 bits, and takes two to four instructions for each of 64. Numba makes 64 bits of
whatever two integers add up to. An `Index32` stays one, also beside a constant. Beside an int64 it
is an error of types, so that no place in global memory is ever cut short. Loops over it are
``while``: Numba's `range` counts its rounds beforehand.

It is not negative and stays below 2^31, and nobody looks: an array is not asked whether a place
counts from its end, and the compiler may take sums for ones that do not wrap. Shared memory is less
than 2^18 bytes. In Numba's simulator these are Python's integers.
"""

import operator
from typing import Any

from llvmlite import ir
from numba.core import types

from fastmlp_kernels.compile import simulated

WORD, LONG = ir.IntType(32), ir.IntType(64)


class Index32Type(types.Type):
    """The type of an `Index32`."""

    def __init__(self) -> None:
        super().__init__(name="Index32")

    def can_convert_from(self, typing_context: Any, other: Any) -> Any:
        """Only constants and numbers of 32 bits become one by themselves."""
        return Conversion.promote if becomes_index(other) else None

    def unify(self, typing_context: Any, other: Any) -> Any:
        """Return the type of a variable that is a constant at first, and an `Index32` later."""
        return self if becomes_index(other) else None


def becomes_index(kind: Any) -> bool:
    """Return whether a number of this type becomes an `Index32` beside one."""
    return isinstance(kind, types.IntegerLiteral) or kind in (types.int32, types.uint32)


INDEX = Index32Type()
# Sums and products do not wrap, so that an offset may be moved out of an address.
SMALL = ("nuw", "nsw")
ARITHMETIC: dict[Any, Any] = {
    operator.add: lambda builder, a, b: builder.add(a, b, flags=SMALL),
    operator.sub: lambda builder, a, b: builder.sub(a, b, flags=("nsw",)),
    operator.mul: lambda builder, a, b: builder.mul(a, b, flags=SMALL),
    operator.floordiv: lambda builder, a, b: builder.udiv(a, b),
    operator.mod: lambda builder, a, b: builder.urem(a, b),
    operator.and_: lambda builder, a, b: builder.and_(a, b),
    operator.lshift: lambda builder, a, b: builder.shl(a, b, flags=SMALL),
    operator.rshift: lambda builder, a, b: builder.lshr(a, b),
    min: lambda builder, a, b: builder.select(builder.icmp_signed("<", a, b), a, b),
    max: lambda builder, a, b: builder.select(builder.icmp_signed(">", a, b), a, b),
}
IN_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
}
COMPARISONS = {
    operator.lt: "<",
    operator.le: "<=",
    operator.gt: ">",
    operator.ge: ">=",
    operator.eq: "==",
    operator.ne: "!=",
}


def _same(value):
    return value


def _narrowed(builder, value):
    """Return an integer of any width as one of 32 bits."""
    width = value.type.width
    if width == WORD.width:
        return value
    return builder.trunc(value, WORD) if width > WORD.width else builder.zext(value, WORD)


def _teach_numbers() -> None:
    """Teach the compiler how such a number is held, and what becomes one."""
    from numba.cuda.extending import core_models, lower_cast, register_model

    @register_model(Index32Type)
    class Model(core_models.PrimitiveModel):
        def __init__(self, manager, kind):
            super().__init__(manager, kind, WORD)

    @lower_cast(types.Integer, Index32Type)
    @lower_cast(types.IntegerLiteral, Index32Type)
    def cast_to(context, builder, kind, wanted, value):
        if isinstance(kind, types.IntegerLiteral):
            return ir.Constant(WORD, kind.literal_value)
        return _narrowed(builder, value)


def _teach_binary(operation: Any, result: Any, generate: Any) -> None:
    from numba.cuda.extending import lower_builtin
    from numba.cuda.typing.templates import AbstractTemplate, infer_global, signature

    @infer_global(operation)
    class Binary(AbstractTemplate):
        def generic(self, arguments, keywords):
            right = all(each == INDEX or becomes_index(each) for each in arguments)
            return signature(result, INDEX, INDEX) if right and INDEX in arguments else None

    @lower_builtin(operation, INDEX, INDEX)
    def lowered(context, builder, signature, arguments):
        return generate(builder, *arguments)


def _teach_arithmetic() -> None:
    """Teach the compiler sums, products, remainders, bits and comparisons."""

    def comparing(symbol):
        return lambda builder, a, b: builder.icmp_signed(symbol, a, b)

    for operation, generate in ARITHMETIC.items():
        _teach_binary(operation, INDEX, generate)
    for operation, plain in IN_PLACE.items():
        _teach_binary(operation, INDEX, ARITHMETIC[plain])
    for operation, symbol in COMPARISONS.items():
        _teach_binary(operation, types.boolean, comparing(symbol))


def _is_vector(kind: Any) -> bool:
    return isinstance(kind, types.Array) and kind.ndim == 1 and kind.layout == "C"


def _teach_elements() -> None:
    """Teach the compiler the elements of contiguous arrays of one dimension."""
    from numba.cuda.extending import lower_builtin
    from numba.cuda.typing.templates import AbstractTemplate, infer_global, signature

    def place_of(context, builder, kind, array, place):
        data = context.make_array(kind)(context, builder, value=array).data
        return builder.gep(data, [builder.zext(place, LONG)])

    @infer_global(operator.getitem)
    class GetItem(AbstractTemplate):
        def generic(self, arguments, keywords):
            array, place = arguments
            known = place == INDEX and _is_vector(array)
            return signature(array.dtype, array, INDEX) if known else None

    @lower_builtin(operator.getitem, types.Array, INDEX)
    def get_item(context, builder, signature, arguments):
        pointer = place_of(context, builder, signature.args[0], *arguments)
        return context.unpack_value(builder, signature.return_type, pointer)

    @infer_global(operator.setitem)
    class SetItem(AbstractTemplate):
        def generic(self, arguments, keywords):
            array, place, _ = arguments
            known = place == INDEX and _is_vector(array)
            return signature(types.none, array, INDEX, array.dtype) if known else None

    @lower_builtin(operator.setitem, types.Array, INDEX, types.Any)
    def set_item(context, builder, signature, arguments):
        array, place, value = arguments
        pointer = place_of(context, builder, signature.args[0], array, place)
        context.pack_value(builder, signature.args[0].dtype, value, pointer)
        return context.get_dummy_value()


def _conversions() -> tuple[Any, Any, Any]:
    """Return `index32`, `wide` and `held`."""
    from numba.cuda.extending import intrinsic

    @intrinsic
    def index32(typing_context, value):
        """Return an integer as an `Index32`: it must be one."""
        if not isinstance(value, types.Integer | types.IntegerLiteral | Index32Type):
            return None

        def generate(context, builder, signature, arguments):
            return _narrowed(builder, arguments[0])

        kind = INDEX if value == INDEX else types.unliteral(value)
        return INDEX(kind), generate

    @intrinsic
    def wide(typing_context, value):
        """Return an `Index32` as an int64: for places in global memory, and for slices."""
        if value != INDEX:
            return None

        def generate(context, builder, signature, arguments):
            return builder.zext(arguments[0], LONG)

        return types.int64(INDEX), generate

    @intrinsic
    def held(typing_context, value):
        """Return an `Index32` as a number that the compiler knows nothing of.

        It would compute it anew wherever it is used, to save a register.
        """
        if value != INDEX:
            return None

        def generate(context, builder, signature, arguments):
            kind = ir.FunctionType(WORD, [WORD])
            return builder.call(ir.InlineAsm(kind, "mov.u32 $0, $1;", "=r,r"), arguments)

        return INDEX(INDEX), generate

    return index32, wide, held


if simulated():
    index32 = wide = held = _same
else:
    from numba.core.typeconv import Conversion

    _teach_numbers()
    _teach_arithmetic()
    _teach_elements()
    index32, wide, held = _conversions()
