"""Pointers to elements of arrays, for loops that walk through shared memory.

An index costs a multiplication and an addition each time. A pointer is moved on by one addition,
and a constant distance from it is a part of the instruction that loads or stores. Arrays are
contiguous, and elements are counted row by row; nobody looks whether one is inside. In Numba's
simulator a pointer is an object that looks.
"""

import operator
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from fastmlp_kernels.compile import simulated
from fastmlp_kernels.cuda.instructions.index32 import INDEX, becomes_index

LONG, SHARED = ir.IntType(64), 3
# What one instruction moves.
MOST_BYTES = 16


class PointerType(types.Type):
    """The type of a pointer to an element of a dtype."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        super().__init__(name=f"Pointer({dtype})")


class StepType(types.Type):
    """The type of a distance between elements, in bytes: see `step_of`."""

    def __init__(self) -> None:
        super().__init__(name="Step")


STEP = StepType()


class SimulatedPointer:
    """A pointer in Numba's simulator: an array and a place in it."""

    def __init__(self, array: Any, place: int) -> None:
        self.array, self.place = array.reshape(array.size), int(place)

    def __add__(self, distance: int) -> "SimulatedPointer":
        return SimulatedPointer(self.array, self.place + distance)

    def _inside(self, distance: int, count: int = 1) -> int:
        place = int(self.place + distance)
        if not 0 <= place <= len(self.array) - count:
            raise IndexError(f"pointer: got element {place} of {len(self.array)}")
        return place

    def __getitem__(self, distance: int) -> Any:
        return self.array[self._inside(distance)]

    def __setitem__(self, distance: int, value: Any) -> None:
        self.array[self._inside(distance)] = value

    def several(self, count: int) -> Any:
        """Return a view of so many elements, the first at a multiple of what one load moves."""
        place = self._inside(0, count)
        together = min(count, MOST_BYTES // self.array.dtype.itemsize)
        if place % together:
            raise ValueError(f"pointer: got element {place}, wanted a multiple of {together}")
        return self.array[place : place + count]


def _step_of(pointer, distance):
    return distance


def _load(pointer, count):
    return tuple(pointer.several(count))


def _store(pointer, values):
    pointer.several(len(values))[:] = values


def _pieces(builder, kind, pointer, count):
    """Return pointers to the vectors of 16 bytes, or less, that so many elements are."""
    item = kind.dtype.bitwidth // 8
    together = min(count, MOST_BYTES // item)
    vector = ir.VectorType(pointer.type.pointee, together).as_pointer()
    places = range(0, count, together)
    moved = [builder.gep(pointer, [ir.Constant(LONG, place)]) for place in places]
    return together, item * together, [builder.bitcast(each, vector) for each in moved]


def _distance_of(kind: Any) -> Any:
    """Return the type of a distance as it is added, or None where it is none."""
    if kind == INDEX:
        return INDEX
    return types.int64 if isinstance(kind, types.Integer | types.IntegerLiteral) else None


def _moved(builder, pointer, distance):
    wide = builder.zext(distance, LONG) if distance.type.width < LONG.width else distance
    return builder.gep(pointer, [wide])


def _teach_pointers() -> None:
    """Teach the compiler how pointers and steps are held."""
    from numba.cuda.extending import core_models, register_model

    @register_model(PointerType)
    class Model(core_models.PrimitiveModel):
        def __init__(self, manager, kind):
            element = manager.lookup(kind.dtype).get_value_type()
            super().__init__(manager, kind, element.as_pointer())

    @register_model(StepType)
    class StepModel(core_models.PrimitiveModel):
        def __init__(self, manager, kind):
            super().__init__(manager, kind, LONG)


def _teach_moving(operation: Any) -> None:
    """Teach the compiler to move a pointer by a distance or a step."""
    from numba.cuda.extending import lower_builtin
    from numba.cuda.typing.templates import AbstractTemplate, infer_global, signature

    @infer_global(operation)
    class Moving(AbstractTemplate):
        def generic(self, arguments, keywords):
            pointer, distance = arguments
            kind = STEP if distance == STEP else _distance_of(distance)
            known = isinstance(pointer, PointerType) and kind
            return signature(pointer, pointer, kind) if known else None

    @lower_builtin(operation, PointerType, types.Any)
    def move(context, builder, signature, arguments):
        return _moved(builder, *arguments)

    @lower_builtin(operation, PointerType, STEP)
    def advance(context, builder, signature, arguments):
        pointer, step = arguments
        at = builder.gep(builder.bitcast(pointer, ir.IntType(8).as_pointer()), [step])
        return builder.bitcast(at, pointer.type)


def _teach_elements() -> None:
    """Teach the compiler what lies at a distance from a pointer."""
    from numba.cuda.extending import lower_builtin
    from numba.cuda.typing.templates import AbstractTemplate, infer_global, signature

    @infer_global(operator.getitem)
    class GetItem(AbstractTemplate):
        def generic(self, arguments, keywords):
            pointer, kind = arguments[0], _distance_of(arguments[1])
            known = isinstance(pointer, PointerType) and kind
            return signature(pointer.dtype, pointer, kind) if known else None

    @lower_builtin(operator.getitem, PointerType, types.Any)
    def get_item(context, builder, signature, arguments):
        return builder.load(_moved(builder, *arguments))

    @infer_global(operator.setitem)
    class SetItem(AbstractTemplate):
        def generic(self, arguments, keywords):
            pointer, kind = arguments[0], _distance_of(arguments[1])
            known = isinstance(pointer, PointerType) and kind
            return signature(types.none, pointer, kind, pointer.dtype) if known else None

    @lower_builtin(operator.setitem, PointerType, types.Any, types.Any)
    def set_item(context, builder, signature, arguments):
        pointer, distance, value = arguments
        builder.store(value, _moved(builder, pointer, distance))
        return context.get_dummy_value()


def _making() -> tuple[Any, Any]:
    """Return `pointer_to` and `step_of`."""
    from numba.cuda.extending import intrinsic

    @intrinsic
    def pointer_to(typing_context, array, place):
        """Return a pointer to the element of a contiguous array at an `Index32`."""
        contiguous = isinstance(array, types.Array) and array.layout == "C"
        if not contiguous or not (place == INDEX or becomes_index(place)):
            return None

        def generate(context, builder, signature, arguments):
            data = context.make_array(signature.args[0])(context, builder, value=arguments[0]).data
            return _moved(builder, data, arguments[1])

        return PointerType(array.dtype)(array, INDEX), generate

    @intrinsic
    def step_of(typing_context, pointer, distance):
        """Return a distance of an `Index32` as what such a pointer is moved by in a loop.

        The compiler sees a number that it knows nothing of. It would compute a stride in bytes
        anew in each round, to save a register.
        """
        if not isinstance(pointer, PointerType) or distance != INDEX:
            return None

        def generate(context, builder, signature, arguments):
            size = ir.Constant(LONG, signature.args[0].dtype.bitwidth // 8)
            count = builder.mul(builder.zext(arguments[1], LONG), size)
            kind = ir.FunctionType(LONG, [LONG])
            return builder.call(ir.InlineAsm(kind, "mov.u64 $0, $1;", "=l,l"), [count])

        return STEP(pointer, INDEX), generate

    @intrinsic
    def moved(typing_context, pointer, step):
        """Return a pointer to shared memory a step on.

        The compiler sees a number that it knows nothing of: of several steps in a row it would
        make products, and compute those anew in each round.
        """
        if not isinstance(pointer, PointerType) or step != STEP:
            return None

        def generate(context, builder, signature, arguments):
            pointer, step = arguments
            shared = ir.PointerType(pointer.type.pointee, SHARED)
            at = builder.ptrtoint(builder.addrspacecast(pointer, shared), LONG)
            kind = ir.FunctionType(LONG, [LONG, LONG])
            code = ir.InlineAsm(kind, "add.u64 $0, $1, $2;", "=l,l,l")
            at = builder.call(code, [at, step], attrs=("nounwind", "readnone"))
            return builder.addrspacecast(builder.inttoptr(at, shared), pointer.type)

        return pointer(pointer, step), generate

    return pointer_to, step_of, moved


def _together() -> tuple[Any, Any]:
    """Return `load` and `store`."""
    from numba.cuda.extending import intrinsic

    @intrinsic
    def load(typing_context, pointer, count):
        """Return a tuple of `count` (a constant: 1, 2 or 4) neighbours from a pointer on.

        They begin at a multiple of their own size, or of 16 bytes. PTX: ld.v4.f32 and the like.
        """
        if not isinstance(count, types.IntegerLiteral):
            return None
        kind = types.UniTuple(pointer.dtype, count.literal_value)

        def generate(context, builder, signature, arguments):
            together, align, pieces = _pieces(builder, signature.args[0], arguments[0], kind.count)
            found = [builder.load(piece, align=align) for piece in pieces]
            lanes = [ir.Constant(ir.IntType(32), k) for k in range(together)]
            values = [builder.extract_element(each, k) for each in found for k in lanes]
            return context.make_tuple(builder, kind, values)

        return kind(pointer, count), generate

    @intrinsic
    def store(typing_context, pointer, values):
        """Write a tuple of neighbours from a pointer on (see `load`). PTX: st.v4.f32."""
        kind = types.UniTuple(pointer.dtype, len(values))

        def generate(context, builder, signature, arguments):
            given = cgutils.unpack_tuple(builder, arguments[1])
            kind, pointer = signature.args[0], arguments[0]
            together, align, pieces = _pieces(builder, kind, pointer, len(given))
            for first, piece in enumerate(pieces):
                vector = ir.Constant(piece.type.pointee, ir.Undefined)
                for k in range(together):
                    lane = ir.Constant(ir.IntType(32), k)
                    vector = builder.insert_element(vector, given[first * together + k], lane)
                builder.store(vector, piece, align=align)

        return types.void(pointer, kind), generate

    return load, store


if simulated():
    pointer_to, step_of, moved = SimulatedPointer, _step_of, operator.add
    load, store = _load, _store
else:
    _teach_pointers()
    _teach_moving(operator.add)
    _teach_moving(operator.iadd)
    _teach_elements()
    pointer_to, step_of, moved = _making()
    load, store = _together()
