"""A `range` whose next number is one addition, in the place of Numba's.

Numba's counts down the rounds that are left beside the number, and changes either only where one is
left. The compiler for GPUs keeps all of it, in each round. Here the number goes up, also beyond the
end. It is `range` in Numba's simulator.
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from fastmlp_kernels.compile import simulated

LONG = ir.IntType(64)


class CounterType(types.SimpleIteratorType):
    """The type of what gives the numbers."""

    def __init__(self) -> None:
        super().__init__("Counter", types.int64)


class CountedType(types.SimpleIterableType):
    """The type of the numbers from one up to before another."""

    def __init__(self) -> None:
        super().__init__("Counted", CounterType())


COUNTED = CountedType()


def _teach_models() -> None:
    """Teach the compiler how both are held."""
    from numba.cuda.extending import core_models, register_model

    @register_model(CountedType)
    class Counted(core_models.StructModel):
        def __init__(self, manager, kind):
            super().__init__(manager, kind, [("first", types.int64), ("end", types.int64)])

    @register_model(CounterType)
    class Counter(core_models.StructModel):
        def __init__(self, manager, kind):
            members = [("place", types.EphemeralPointer(types.int64)), ("end", types.int64)]
            super().__init__(manager, kind, members)


def _teach_loops() -> None:
    """Teach the compiler how a loop begins and goes on."""
    from numba.cuda.core.imputils import RefType, iternext_impl
    from numba.cuda.extending import lower_builtin

    @lower_builtin("getiter", CountedType)
    def begin(context, builder, signature, arguments):
        counted = cgutils.create_struct_proxy(COUNTED)(context, builder, arguments[0])
        counter = cgutils.create_struct_proxy(signature.return_type)(context, builder)
        counter.place = cgutils.alloca_once_value(builder, counted.first)
        counter.end = counted.end
        return counter._getvalue()

    @lower_builtin("iternext", CounterType)
    @iternext_impl(RefType.UNTRACKED)
    def go_on(context, builder, signature, arguments, result):
        counter = cgutils.create_struct_proxy(signature.args[0])(context, builder, arguments[0])
        number = builder.load(counter.place)
        result.set_valid(builder.icmp_signed("<", number, counter.end))
        result.yield_(number)
        builder.store(builder.add(number, ir.Constant(LONG, 1), flags=["nsw"]), counter.place)


def _making() -> Any:
    """Return `counted`."""
    from numba.cuda.extending import intrinsic

    @intrinsic
    def counted(typing_context, first, end=None):
        """Return the numbers up to before `first`, or those from `first` up to before `end`."""

        def generate(context, builder, signature, arguments):
            made = cgutils.create_struct_proxy(COUNTED)(context, builder)
            made.first, made.end = arguments if end else (ir.Constant(LONG, 0), arguments[0])
            return made._getvalue()

        return COUNTED(types.int64, types.int64 if end else types.none), generate

    return counted


if simulated():
    counted = range
else:
    _teach_models()
    _teach_loops()
    counted = _making()
