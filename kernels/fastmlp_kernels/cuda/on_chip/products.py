"""What one block of threads can do with a layer whose operands lie in its shared memory.

The chain of layers is written once over these names; `cuda.block_linear` (registers and fused
multiply-adds) and `cuda.tensor_linear` (tensor cores) each build them.
"""

from typing import Any, NamedTuple

# Of the GPU, for the instructions of `cuda.tensor_linear`: Ampere and after.
TENSOR_CAPABILITY = (8, 0)


def tensor_missing(capability: tuple[int, int]) -> str | None:
    """Return why a GPU of this compute capability has no tensor products, or None."""
    if tuple(capability) >= TENSOR_CAPABILITY:
        return None
    got, wanted = (".".join(map(str, each)) for each in (capability, TENSOR_CAPABILITY))
    return f"capability: got {got}, wanted {wanted} or above for tf32 and bfloat16"


class Epilogue(NamedTuple):
    """What becomes of each element of a product: two device functions.

    Attributes
    ----------
    row : callable
        ``row(operands, numbers, words, layer, i, j)``: pointers to what belongs to an element.
    element : callable
        ``element(row, words, layer, i, j, distance, value)``: takes the element of column j, which
        is `distance` columns on from where `row` points.
    """

    row: Any
    element: Any


class Epilogues(NamedTuple):
    """What becomes of the elements of each product; the chain gives it.

    Attributes
    ----------
    forward, backward : Epilogue
        Of ``A W + b``, and of ``dZ W^T``.
    gradient : callable
        ``gradient(gradient, place, value)``: adds one element of ``A^T dZ`` at ``place``; returns
        what is there then.
    """

    forward: Epilogue
    backward: Epilogue
    gradient: Any


class BlockProducts(NamedTuple):
    """The products of a layer over operands in shared memory, as CUDA device functions.

    Every thread of the block calls them with the same arguments but `t`, its number. They wait for
    no other thread, at the start, inside or at the end: what they read must be there, and what an
    epilogue writes may not be what another thread still reads.

    Attributes
    ----------
    forward : callable
        ``forward(operands, numbers, words, layer, A, A_stride, W, W_stride, b, rows, fan_in,
        fan_out, t)``: ``A W + b``, an element ``i < rows, j < fan_out`` at a time, to
        ``epilogues.forward``.
    backward : callable
        ``backward(operands, numbers, words, layer, dZ, dZ_stride, W, W_stride, rows, fan_in,
        fan_out, t)``: ``dZ W^T``, an element ``i < rows, j < fan_in`` at a time, to
        ``epilogues.backward``.
    weight_gradient : callable
        ``weight_gradient(operands, gradient, start, gradient_stride, A, A_stride, dZ, dZ_stride,
        rows, fan_in, fan_out, t)``: ``A^T dZ``, an element ``k < fan_in, j < fan_out`` at a time,
        to ``epilogues.gradient`` at ``start + k * gradient_stride + j``. Returns the sum of what
        that returns, times 0: it is 0 where all of it is finite, else NaN.
    to_operand, to_number : callable
        A number as an operand, rounded as the products take it, and back. Everything that lies in
        `operands` goes through `to_operand`.
    pad : int
        Widths in shared memory are multiples of it; rows and columns of an operand between a width
        and its multiple hold zeros.
    skew : int
        Elements to add to a padded width for the stride of a row, so that the banks are shared out.
    row_pad : int
        `rows` is a multiple of it; so are the rows of `W`, which are `pad`-padded too.

    Notes
    -----
    `A`, `W`, `dZ` are offsets of row-major matrices in `operands`, `b` is one in `numbers`, both in
    elements of their own array. `fan_in` and `fan_out` are the widths that epilogues are called for
    (the true ones leave the padding alone); sums run on over the padding, which adds zeros. Sums
    over the reduction axis run in ascending order.
    """

    forward: Any
    backward: Any
    weight_gradient: Any
    to_operand: Any
    to_number: Any
    pad: int
    skew: int
    row_pad: int
