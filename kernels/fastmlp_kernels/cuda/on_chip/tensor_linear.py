"""The three products of a layer on tensor cores, over operands in shared memory.

A warp computes tiles of the result (`tensor_tiles`), 32 columns wide and 32 rows high, or 16 where
there are fewer tiles than warps; tile number k is warp ``k % warps``'s. No product waits for
another warp.
"""

import functools
from typing import Any

import numpy as np
from numba import cuda, types

from fastmlp_kernels.algebra.constants import ZERO
from fastmlp_kernels.compile import cuda_part
from fastmlp_kernels.cuda.instructions import fragments
from fastmlp_kernels.cuda.instructions.fragments import FRAGMENT_ROWS, LANES, TILE
from fastmlp_kernels.cuda.instructions.index32 import index32
from fastmlp_kernels.cuda.on_chip.products import BlockProducts, Epilogues
from fastmlp_kernels.cuda.on_chip.tensor_tiles import (
    FORMS,
    ROW_SUMS,
    Form,
    hand_out,
    left_across,
    left_along,
    multiply_tile,
    right_across,
    right_along,
    tile_places,
)


def _form(precision: str) -> Form:
    if precision not in FORMS:
        raise ValueError(f"precision: got {precision!r}, wanted one of {sorted(FORMS)}")
    return FORMS[precision]


def conversions(precision: str) -> tuple[Any, Any]:
    """Return `to_operand` and `to_number` of the products: for epilogues, which come before."""
    form = _form(precision)
    return form.to_operand, form.to_number


@functools.cache
def build(threads: int, precision: str, epilogues: Epilogues) -> BlockProducts:
    """Return the products for blocks of `threads`.

    Parameters
    ----------
    threads : int
        A multiple of 32.
    precision : {"tf32", "bfloat16"}
        Operands are float32 that `to_operand` has rounded, or uint16. Capability 8.0.
    epilogues : Epilogues
    """
    if threads % LANES or threads < LANES:
        raise ValueError(f"threads: got {threads}, wanted a multiple of {LANES}")
    form, warps = _form(precision), threads // LANES
    return BlockProducts(
        forward=_either(_forward, warps, form, epilogues.forward),
        backward=_either(_backward, warps, form, epilogues.backward),
        weight_gradient=_either(_weight_gradient, warps, form, epilogues.gradient),
        to_operand=form.to_operand,
        to_number=form.to_number,
        pad=TILE,
        # 16 bytes: with it rows begin 4 words apart, modulo 32 or times an odd number.
        skew=form.quarter,
        row_pad=TILE,
    )


@cuda_part
def next_tile(unit, place, across):
    """Return row and column of a tile from a row and how far on it is, without a division."""
    while place >= across:
        unit += 1
        place -= across
    return unit, place


def _either(product: Any, warps: int, form: Form, epilogue: Any) -> Any:
    """Return a product that takes low tiles where tall ones would leave warps idle."""
    tall, low = (product(warps, form, epilogue, height) for height in (2, 1))
    over_rows = product is not _weight_gradient
    over_fan_in = product is not _forward

    @cuda_part
    def either(*arguments):
        rows, fan_in, fan_out = arguments[-4], arguments[-3], arguments[-2]
        high = rows if over_rows else fan_in
        wide = fan_in if over_rows and over_fan_in else fan_out
        if (high + TILE - 1) // TILE * ((wide + TILE - 1) // TILE) < warps:
            return low(*arguments)
        return tall(*arguments)

    return either


def _forward(warps: int, form: Form, epilogue: Any, height: int) -> Any:
    multiply = multiply_tile(form, height, left_along(form, height), right_across(form))
    top_of, row_of, column_of = tile_places(height, fragments.in_order, form.columns)
    row_at, element = epilogue
    count, high = ROW_SUMS * height, FRAGMENT_ROWS * height

    @cuda_part
    def one(context, lane, s, value):
        operands, numbers, words, layer, top, left, width = context
        i, j = top + row_of(s, lane), left + column_of(s, lane)
        if j < width:
            row = row_at(operands, numbers, words, layer, i, j)
            element(row, words, layer, i, j, index32(0), value)
        return ZERO

    hand = hand_out(height, one)

    @cuda_part
    def forward_tiles(
        operands, numbers, words, layer, A, A_stride, W, W_stride, b, rows, fan_in, fan_out, t
    ):
        """Hand every element of ``Z = A W + b`` to the epilogue, one tile after another.

        Parameters
        ----------
        operands : operand dtype[:], shared memory
            `A` [rows, fan_in] and `W` [fan_in, fan_out] lie there, padded (see `BlockProducts`).
        numbers : float32[:], shared memory
            ``numbers[b : b + fan_out]`` is read.
        words, layer : of the epilogue
        A, A_stride, W, W_stride, b, rows, fan_in, fan_out : int
            `A`, `W` and the strides are multiples of 16 bytes, `rows` is one of 32.
        t : int
            Number of the thread in the block.

        Notes
        -----
        Cost: ``2 rows fan_in fan_out`` flops, with fan_in rounded up to 16 (tf32: 8) and fan_out
        to 32; a step of a tile of 32 rows is 8 instructions on 16 loads of 128 bytes, one of 16
        rows 4 on 12. Aliasing: what the epilogue writes is neither factor nor `b`. Accuracy:
        products of operands are exact, sums float32, 16 (tf32: 8) terms after another, ascending
        from the bias on; within a step as the machine sums, so the error is at most ``2 (fan_in +
        2) u (|A| |W| + |b|)``. Source: the derivation sheet, ``z = W x + b``.
        """
        sums = cuda.local.array(count, types.float32)
        lane = t % LANES
        across = (fan_out + TILE - 1) // TILE
        units = rows // high
        unit, place = next_tile(index32(0), t // LANES, across)
        while unit < units:
            top, left = top_of(unit), place * TILE
            for s in range(count):
                # Beyond the width any number does, as nothing is made of it.
                sums[s] = numbers[b + min(left + column_of(index32(s), lane), fan_out - 1)]
            multiply(operands, A + top * A_stride, A_stride, W + left, W_stride, fan_in, sums, lane)
            hand((operands, numbers, words, layer, top, left, fan_out), sums, lane)
            unit, place = next_tile(unit, place + warps, across)

    return forward_tiles


def _backward(warps: int, form: Form, epilogue: Any, height: int) -> Any:
    multiply = multiply_tile(form, height, left_along(form, height), right_along(form))
    top_of, row_of, column_of = tile_places(height, fragments.in_order, form.backward_columns)
    row_at, element = epilogue
    count, high = ROW_SUMS * height, FRAGMENT_ROWS * height

    @cuda_part
    def one(context, lane, s, value):
        operands, numbers, words, layer, top, left, width = context
        i, j = top + row_of(s, lane), left + column_of(s, lane)
        if j < width:
            row = row_at(operands, numbers, words, layer, i, j)
            element(row, words, layer, i, j, index32(0), value)
        return ZERO

    hand = hand_out(height, one)

    @cuda_part
    def backward_tiles(
        operands, numbers, words, layer, dZ, dZ_stride, W, W_stride, rows, fan_in, fan_out, t
    ):
        """Hand every element of ``dA = dZ W^T`` to the epilogue, one tile after another.

        Parameters
        ----------
        operands : operand dtype[:], shared memory
            `dZ` [rows, fan_out] and `W` [fan_in, fan_out] lie there, padded.
        numbers, words, layer : of the epilogue
        dZ, dZ_stride, W, W_stride, rows, fan_in, fan_out, t : int
            As in `_forward`.

        Notes
        -----
        Cost and accuracy as in `_forward`, fan_in and fan_out exchanged. Aliasing: what the
        epilogue writes is neither factor. Source: the chain rule, ``dl/da = W dl/dz``.
        """
        sums = cuda.local.array(count, types.float32)
        lane = t % LANES
        across = (fan_in + TILE - 1) // TILE
        units = rows // high
        unit, place = next_tile(index32(0), t // LANES, across)
        while unit < units:
            top, left = top_of(unit), place * TILE
            for s in range(count):
                sums[s] = np.float32(0)
            first, second = dZ + top * dZ_stride, W + left * W_stride
            multiply(operands, first, dZ_stride, second, W_stride, fan_out, sums, lane)
            hand((operands, numbers, words, layer, top, left, fan_in), sums, lane)
            unit, place = next_tile(unit, place + warps, across)

    return backward_tiles


def _weight_gradient(warps: int, form: Form, epilogue: Any, height: int) -> Any:
    multiply = multiply_tile(form, height, left_across(form, height), right_across(form))
    top_of, row_of, column_of = tile_places(height, form.gradient_rows, form.columns)
    count, per_tile = ROW_SUMS * height, 2 // height

    @cuda_part
    def one(context, lane, s, value):
        gradient, start, pitch, top, left, fan_in, fan_out = context
        k, j = top + row_of(s, lane), left + column_of(s, lane)
        if k < fan_in and j < fan_out:
            return ZERO * epilogue(gradient, start + k * pitch + j, value)
        return ZERO

    hand = hand_out(height, one)

    @cuda_part
    def gradient_tiles(
        operands, gradient, start, pitch, A, A_stride, dZ, dZ_stride, rows, fan_in, fan_out, t
    ):
        """Hand every element of ``dW = A^T dZ`` to the epilogue, one tile after another.

        Returns the sum of what the epilogue returns, times 0.

        Parameters
        ----------
        operands : operand dtype[:], shared memory
            `A` [rows, fan_in] and `dZ` [rows, fan_out] lie there, padded.
        gradient : float32[:], shared or global memory
            The epilogue gets places ``start + k * pitch + j``, k < fan_in, j < fan_out.
        start, pitch, A, A_stride, dZ, dZ_stride, rows, fan_in, fan_out, t : int
            As in `_forward`.

        Notes
        -----
        Cost: ``2 rows fan_in fan_out`` flops with both widths rounded up to 32. Aliasing:
        `gradient` overlaps neither factor. Accuracy as in `_forward`, rows ascending. Source: the
        derivation sheet, ``dl/dW = x dl/dz``.
        """
        sums = cuda.local.array(count, types.float32)
        seen = ZERO
        lane = t % LANES
        across = (fan_out + TILE - 1) // TILE
        units = (fan_in + TILE - 1) // TILE * per_tile
        unit, place = next_tile(index32(0), t // LANES, across)
        while unit < units:
            top, left = top_of(unit), place * TILE
            for s in range(count):
                sums[s] = np.float32(0)
            multiply(operands, A + top, A_stride, dZ + left, dZ_stride, rows, sums, lane)
            seen += hand((gradient, start, pitch, top, left, fan_in, fan_out), sums, lane)
            unit, place = next_tile(unit, place + warps, across)
        return seen

    return gradient_tiles
