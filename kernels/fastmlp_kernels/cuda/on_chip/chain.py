"""A tile of rows through all layers, without leaving the shared memory of its block.

Forward, loss and backward as device functions that every thread of a block calls. They read the
table of `tables`, so that a new shape compiles nothing; the rows of the algebra that a network
uses, the form of its products and the block's size are what a chain is built for.

A matrix that one part writes and another reads is separated by a barrier, and by no more: the parts
themselves say which. None of them waits at its beginning or at its end.
"""

import functools
from typing import Any, NamedTuple

from numba import cuda

from fastmlp_kernels.algebra import loss_rule
from fastmlp_kernels.compile import cuda_function, cuda_part
from fastmlp_kernels.cuda.instructions.counting import counted
from fastmlp_kernels.cuda.instructions.index32 import index32, wide
from fastmlp_kernels.cuda.instructions.pointers import pointer_to
from fastmlp_kernels.cuda.instructions.row_views import row_view
from fastmlp_kernels.cuda.on_chip import block_copies, block_epilogues, block_linear, dropout
from fastmlp_kernels.cuda.on_chip.block_epilogues import Activated, Rows, Sloped, slopes
from fastmlp_kernels.cuda.on_chip.offsets import layer_of, tile_of
from fastmlp_kernels.cuda.on_chip.placement import Form, activations_in_use
from fastmlp_kernels.cuda.on_chip.products import BlockProducts
from fastmlp_kernels.problem import Problem

# Of a sum over rows: loads that are under way together.
ROWS_AT_A_TIME = 8


def loss_thread(threads: int) -> int:
    """Return the thread that adds up losses: of a warp that has no column of a narrow layer."""
    return threads // 2


class Chain(NamedTuple):
    """The parts of a training step on a tile of rows, as device functions, and its products.

    `words` is the table, `t` the thread's number, `rows` the tile's, a multiple of
    ``products.row_pad``, of which the first `count` are the batch's; `dropping` is the tile's
    `dropout.TileDropout`.
    """

    load: Any
    gather: Any
    forward: Any
    loss: Any
    add_losses: Any
    backward: Any
    products: BlockProducts


def rows_in_use(problem: Problem) -> Rows:
    """Return what training on a problem uses of the algebra."""
    hidden = len(dict.fromkeys(problem.training_activations[:-1]))
    return Rows(activations_in_use(problem), problem.rule, any(problem.dropout), hidden)


@functools.cache
def build(form: Form, threads: int, rows: Rows, accumulate: bool, tile_columns: int = 4) -> Chain:
    """Return the chain.

    Parameters
    ----------
    form : Form
        Of the products; `float` in tiles of ``form.row_pad`` by `tile_columns`.
    threads : int
        Of a block.
    rows : Rows
    accumulate : bool
        Whether `backward` adds to the gradient, or overwrites it.
    tile_columns : int
    """
    products = _products(form, threads, rows, accumulate, tile_columns)
    return Chain(
        load=block_copies.load(threads, products.to_operand, form.mixed),
        gather=block_copies.gather(threads, products.to_operand),
        forward=_forward(products, rows),
        loss=_loss(threads, products, rows),
        add_losses=_add_losses(threads, min(products.row_pad, ROWS_AT_A_TIME)),
        backward=_backward(threads, products, rows, accumulate),
        products=products,
    )


def _products(
    form: Form, threads: int, rows: Rows, accumulate: bool, tile_columns: int
) -> BlockProducts:
    if not form.mixed:
        exact = block_linear.exact
        epilogues, second_pass = block_epilogues.in_passes(rows, accumulate, exact)
        tile = (form.row_pad, tile_columns)
        return block_linear.build(threads, form.number, epilogues, *tile, second_pass)
    # Tensor cores need instructions that the module of the others does without.
    from fastmlp_kernels.cuda.on_chip import tensor_linear

    conversions = tensor_linear.conversions(form.name)
    epilogues = block_epilogues.at_once(rows, accumulate, *conversions, True)
    return tensor_linear.build(threads, form.name, epilogues)


def _forward(products: BlockProducts, rows_in_use: Rows) -> Any:
    product, layer_dropout = products.forward, dropout.build(rows_in_use.drops).of_layer

    @cuda_part
    def forward(operands, numbers, words, dropping, rows, t):
        """Run every layer on the tile: afterwards the last one's activation is in `numbers`.

        Parameters
        ----------
        operands, numbers : dtype[:], shared memory, read and written
        words : int64[:]
        dropping : TileDropout
        rows, t : int

        Notes
        -----
        Waits after each layer. Cost: ``2 rows P`` flops. Source: `reference`.
        """
        layers = tile_of(words).layers
        index = index32(0)
        while index < layers:
            layer = layer_of(words, index)
            # In registers: each element's epilogue reads them.
            after = Activated(
                layer.activation,
                layer.out,
                layer.out_stride,
                layer.kept,
                layer.kept_stride,
                layer.keeps_input,
                layer_dropout(words, dropping, index),
            )
            last = 1 if index == layers - 1 else 0
            product(
                *(operands, numbers, after, last),
                *(layer.A, layer.A_stride, layer.W, layer.W_stride, layer.b),
                *(rows, layer.fan_in, layer.fan_out, t),
            )
            # Between a layer's activations and the next layer, or the loss, which reads rows of it.
            cuda.syncthreads()
            index += 1

    return forward


def _loss(threads: int, products: BlockProducts, rows_in_use: Rows) -> Any:
    rule = cuda_function(loss_rule(rows_in_use.rule).row, counted)
    slope = slopes(rows_in_use)
    to_operand = products.to_operand

    @cuda_part
    def loss(operands, numbers, words, factors, first, step, count, rows, t):
        """Write each row's loss, and ``dZ`` of the last layer.

        Parameters
        ----------
        operands, numbers : dtype[:], shared memory, read and written
        words : int64[:]
        factors : dtype[:], read
            Global memory: ``factors[first + step * i]`` is that of row i, for loss and derivative.
        first, step, count, rows, t : int
            `step` is 1 where every row has a factor of its own, 0 where all share one.

        Notes
        -----
        A thread a row; waits for none. dZ of rows beyond `count` is 0, so that they add nothing to
        any gradient. Cost: O(rows outputs). Source: `algebra.losses`.
        """
        tile = tile_of(words)
        layer = layer_of(words, tile.layers - 1)
        outputs, columns, activation = tile.outputs, tile.target_columns, layer.activation
        i = t
        while i < rows:
            delta = row_view(operands, layer.dZ + i * layer.dZ_stride, outputs)
            if i < count:
                kept = row_view(numbers, layer.kept + i * layer.kept_stride, outputs)
                # Rules read matrices: here, matrices of one row.
                prediction = row_view(numbers, tile.logits + i * tile.logit_stride, outputs)
                target = row_view(numbers, tile.targets + i * tile.target_stride, columns)
                place = tile.loss_gradient + i * tile.loss_gradient_stride
                derivative = row_view(numbers, place, outputs)
                factor = factors[first + step * wide(i)]
                value = rule(prediction, target, 0, derivative)
                numbers[tile.row_losses + i] = factor * value
                for j in counted(wide(outputs)):
                    x = kept[0, j]
                    delta[0, j] = to_operand(factor * derivative[0, j] * slope(activation, x, x))
            else:
                numbers[tile.row_losses + i] = numbers.dtype.type(0)
                for j in counted(wide(outputs)):
                    delta[0, j] = to_operand(numbers.dtype.type(0))
            i += threads

    return loss


def _column_sum(step: int, to_number: Any) -> Any:
    """Return the sum of a column; so many rows at a time, as one waits long for each alone."""

    @cuda_part
    def column_sum(values, start, stride, rows, total):
        """Return `total` and ``values[start + i * stride]`` for i below `rows`, ascending."""
        place, i = pointer_to(values, start), index32(0)
        while i < rows:
            for _ in range(step):
                total += to_number(place[0])
                place += stride
            i += step
        return total

    return column_sum


def _add_losses(threads: int, step: int) -> Any:
    column_sum = _column_sum(step, block_linear.exact)
    mine = loss_thread(threads)

    @cuda_part
    def add_losses(numbers, words, rows, total, t):
        """Return `total` and the losses of the tile's rows in `loss_thread`; `total` elsewhere.

        Parameters
        ----------
        numbers : dtype[:], shared memory, read
        words : int64[:]
        rows : int
        total : dtype
            Of the tiles before.
        t : int

        Notes
        -----
        One chain of additions, rows ascending: the same for every size of tile and block, error at
        most ``rows u`` of the sum of magnitudes. A tree would wait ``log2 rows`` times for the
        whole block; this waits for nobody, beside the backward pass of the others.
        """
        if t == mine:
            total = column_sum(numbers, tile_of(words).row_losses, index32(1), rows, total)
        return total

    return add_losses


def _backward(threads: int, products: BlockProducts, rows_in_use: Rows, accumulate: bool) -> Any:
    product, weight_gradient = products.backward, products.weight_gradient
    bias_gradient = _bias_gradient(threads, products, accumulate)
    layer_dropout = dropout.build(rows_in_use.drops).of_layer

    @cuda_part
    def backward(operands, numbers, words, dropping, gradient, base, rows, t):
        """Add the tile's gradient by every parameter to `gradient`, or overwrite it.

        Returns 0 where all that the thread wrote there is finite, else NaN.

        Parameters
        ----------
        operands, numbers : dtype[:], shared memory, read and written
        words : int64[:]
        dropping : TileDropout
        gradient : dtype[:], shared or global memory
            Parameter p's is ``gradient[base + p]``.
        base, rows, t : int

        Notes
        -----
        Waits between layers. The gradient of an element is always the same thread's. Cost:
        ``4 rows P`` flops, less those of the first layer's inputs. Source: `reference`.
        """
        last = tile_of(words).layers - 1
        above, seen = index32(0), gradient.dtype.type(0)
        while above <= last:
            index = last - above
            if above > 0:
                # Between the last round, which wrote this layer's dZ and read the other buffer, and
                # this one, which reads the one and writes the other.
                cuda.syncthreads()
            layer = layer_of(words, index)
            dZ, dZ_stride = layer.dZ, layer.dZ_stride
            fan_in, fan_out = layer.fan_in, layer.fan_out
            start = base + layer.start
            seen += weight_gradient(
                *(operands, gradient, start, fan_out),
                *(layer.A, layer.A_stride, dZ, dZ_stride, rows, fan_in, fan_out, t),
            )
            seen += bias_gradient(
                operands, gradient, start + layer.weights, dZ, dZ_stride, rows, fan_out, t
            )
            if index > 0:
                below = layer_of(words, index - 1)
                after = Sloped(
                    below.activation,
                    below.kept,
                    below.kept_stride,
                    below.keeps_input,
                    below.dZ,
                    below.dZ_stride,
                    layer_dropout(words, dropping, index - 1),
                )
                product(
                    *(operands, numbers, after, index - 1),
                    *(dZ, dZ_stride, layer.W, layer.W_stride, rows, fan_in, fan_out, t),
                )
            above += 1
        return seen

    return backward


def _bias_gradient(threads: int, products: BlockProducts, accumulate: bool) -> Any:
    column_sum = _column_sum(min(products.row_pad, ROWS_AT_A_TIME), products.to_number)
    last = threads - 1

    @cuda_part
    def bias_gradient(operands, gradient, start, dZ, dZ_stride, rows, fan_out, t):
        """Sum the columns of dZ, a thread a column, rows ascending; return 0 times the sums."""
        seen = zero = gradient.dtype.type(0)
        # From the last thread on: the first ones have more tiles of the products.
        j = last - t
        while j < fan_out:
            total = column_sum(operands, dZ + j, dZ_stride, rows, zero)
            if accumulate:
                total += gradient[start + j]
            gradient[start + j] = total
            seen += zero * total
            j += threads
        return seen

    return bias_gradient
