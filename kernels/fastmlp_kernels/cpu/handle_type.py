"""Handles in Numba: the type of a handle in a user's compiled functions.

A handle is an address to compiled code. The type depends on the dtype alone, so a function of a
user's is compiled once for networks of all shapes. It holds the checks of arrays and no more of
this package: all else is called by address. The stamp of all sources is part of the type. So a
function that Numba has cached for the handles of another version is not found for those of this.

The methods are in `handle_methods`.
"""

import functools

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import NativeValue, intrinsic, models, register_model, unbox

from fastmlp_kernels.compile import stamp
from fastmlp_kernels.cpu.activation import NUMBERS
from fastmlp_kernels.cpu.intrinsics import WORD


class HandleType(types.Type):
    """The type of a handle of a network of some dtype."""

    def __init__(self, number: types.Float, version: str) -> None:
        self.number = number
        super().__init__(name=f"fastmlp.compiled({number}, {version})")


@functools.cache
def handle_type(dtype: str) -> HandleType:
    """Return the type of handles of networks of a dtype."""
    return HandleType(NUMBERS[dtype], stamp()[:16])


@register_model(HandleType)
class HandleModel(models.PrimitiveModel):
    """A handle is a word: the address of its record."""

    def __init__(self, manager, kind):
        super().__init__(manager, kind, WORD)


@unbox(HandleType)
def unbox_handle(kind, value, c):
    """Take the address out of a `handle.Handle`."""
    place = c.pyapi.object_getattr_string(value, "_place")
    address = c.pyapi.long_as_longlong(place)
    c.pyapi.decref(place)
    return NativeValue(address, is_error=cgutils.is_not_null(c.builder, c.pyapi.err_occurred()))


@intrinsic
def handle_address(typing_context, net):
    """Return the address of a handle's record."""
    return types.int64(net), lambda context, builder, signature, values: values[0]


@intrinsic
def data_address(typing_context, array):
    """Return the address of an array's first element."""

    def generate(context, builder, signature, values):
        held = context.make_array(array)(context, builder, values[0])
        return builder.ptrtoint(held.data, WORD)

    return types.int64(array), generate


@intrinsic
def numbers(typing_context, net, address):
    """Return a pointer to numbers of the network's dtype."""

    def generate(context, builder, signature, values):
        kind = context.get_value_type(types.CPointer(net.number))
        return builder.inttoptr(values[1], kind)

    return types.CPointer(net.number)(net, types.int64), generate


@intrinsic
def singles(typing_context, address):
    """Return a pointer to numbers in float32."""

    def generate(context, builder, signature, values):
        return builder.inttoptr(values[0], ir.FloatType().as_pointer())

    return types.CPointer(types.float32)(types.int64), generate


@intrinsic
def doubles(typing_context, address):
    """Return a pointer to numbers in float64."""

    def generate(context, builder, signature, values):
        return builder.inttoptr(values[0], ir.DoubleType().as_pointer())

    return types.CPointer(types.float64)(types.int64), generate
