"""A row in shared memory as a matrix of one row, which the rules of losses read and write.

Numba asks each index of an array whether it counts from the end. A row view asks nothing, and looks
at no index of a row. In Numba's simulator it is a view of the array.
"""

import operator
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from fastmlp_kernels.compile import simulated
from fastmlp_kernels.cuda.instructions.index32 import INDEX

LONG = ir.IntType(64)


class RowViewType(types.Type):
    """The type of a row view of some dtype."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        super().__init__(name=f"RowView({dtype})")


def _view(array, place, columns):
    return array[place : place + columns][None, :]


def _of_column(kind: Any) -> Any:
    """Return the type of what stands for the column in an index: the second, or the only one."""
    return kind[1] if isinstance(kind, types.BaseTuple) and len(kind) == 2 else kind


def _column(builder, kind, value):
    """Return the number of a column, or a slice."""
    return builder.extract_value(value, 1) if isinstance(kind, types.BaseTuple) else value


def _held(context, builder, kind, view=None):
    return cgutils.create_struct_proxy(kind)(context, builder, view)


def _teach_attributes() -> None:
    """Teach the compiler how a row view is held, its shape and its dtype."""
    from numba.cuda.extending import core_models, infer_getattr, lower_getattr, register_model
    from numba.cuda.typing.templates import AttributeTemplate

    shape = types.UniTuple(types.int64, 2)

    @register_model(RowViewType)
    class Model(core_models.StructModel):
        def __init__(self, manager, kind):
            members = [("first", types.CPointer(kind.dtype)), ("columns", types.int64)]
            super().__init__(manager, kind, members)

    @infer_getattr
    class Attributes(AttributeTemplate):
        key = RowViewType

        def generic_resolve(self, view, name):
            return {"shape": shape, "dtype": types.DType(view.dtype)}.get(name)

    @lower_getattr(RowViewType, "shape")
    def shape_of(context, builder, kind, value):
        columns = _held(context, builder, kind, value).columns
        return context.make_tuple(builder, shape, [ir.Constant(LONG, 1), columns])

    @lower_getattr(RowViewType, "dtype")
    def dtype_of(context, builder, kind, value):
        return context.get_dummy_value()


def _teach_elements() -> None:
    """Teach the compiler the elements of a row view, and the view of some of its columns."""
    from numba.cuda.extending import lower_builtin
    from numba.cuda.typing.templates import AbstractTemplate, infer_global, signature

    def pointer(context, builder, kinds, view, index):
        column = _column(builder, kinds[1], index)
        column = context.cast(builder, column, _of_column(kinds[1]), types.int64)
        return builder.gep(_held(context, builder, kinds[0], view).first, [column])

    def part(context, builder, kinds, view, index):
        whole, some = _held(context, builder, kinds[0], view), _held(context, builder, kinds[0])
        kind = _of_column(kinds[1])
        bounds = context.make_helper(builder, kind, _column(builder, kinds[1], index))
        some.first = builder.gep(whole.first, [bounds.start])
        some.columns = builder.sub(whole.columns, bounds.start)
        return some._getvalue()

    @infer_global(operator.getitem)
    class GetItem(AbstractTemplate):
        def generic(self, arguments, keywords):
            view, index = arguments
            if not isinstance(view, RowViewType):
                return None
            sliced = isinstance(_of_column(index), types.SliceType)
            return signature(view if sliced else view.dtype, view, index)

    @lower_builtin(operator.getitem, RowViewType, types.Any)
    def get_item(context, builder, signature, arguments):
        if isinstance(signature.return_type, RowViewType):
            return part(context, builder, signature.args, *arguments)
        return builder.load(pointer(context, builder, signature.args, *arguments))

    @infer_global(operator.setitem)
    class SetItem(AbstractTemplate):
        def generic(self, arguments, keywords):
            view, index, _ = arguments
            known = isinstance(view, RowViewType)
            return signature(types.none, view, index, view.dtype) if known else None

    @lower_builtin(operator.setitem, RowViewType, types.Any, types.Any)
    def set_item(context, builder, signature, arguments):
        view, index, value = arguments
        builder.store(value, pointer(context, builder, signature.args[:2], view, index))
        return context.get_dummy_value()


def _making() -> Any:
    """Return `row_view`."""
    from numba.cuda.extending import intrinsic

    @intrinsic
    def row_view(typing_context, array, place, columns):
        """Return a view of so many elements of a contiguous array from an `Index32` on."""
        known = isinstance(array, types.Array) and array.layout == "C"
        if not known or place != INDEX or columns != INDEX:
            return None
        view = RowViewType(array.dtype)

        def generate(context, builder, signature, arguments):
            array, place, columns = arguments
            data = context.make_array(signature.args[0])(context, builder, value=array).data
            made = _held(context, builder, view)
            made.first = builder.gep(data, [builder.zext(place, LONG)])
            made.columns = builder.zext(columns, LONG)
            return made._getvalue()

        return view(array, place, columns), generate

    return row_view


if simulated():
    row_view = _view
else:
    _teach_attributes()
    _teach_elements()
    row_view = _making()
