"""Kernels of one warp around each instruction of `fastmlp_kernels.cuda.instructions.intrinsics`.

They pick elements by the plain index functions of `fragments`, which is what is to be shown: that a
lane's registers are the elements that those functions say. Numba is imported at the top: the
simulator finds `cuda` among a kernel's globals alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda, uint16

from fastmlp_kernels.compile import cuda_function, cuda_kernel, cuda_part
from fastmlp_kernels.cuda.instructions import fragments, intrinsics, pointers
from fastmlp_kernels.cuda.instructions.index32 import index32


def multiplying() -> dict[str, Any]:
    """Return a kernel for each product of fragments: D = A B + C, all row-major, flat."""
    return {
        "bfloat16": _multiplying_bfloat16(),
        "tf32": _multiplying_tf32(),
    }


def _multiplying_bfloat16() -> Any:
    left_row, left_pair = map(cuda_function, (fragments.left_row, fragments.left_column_bfloat16))
    right_pair = cuda_function(fragments.right_row_bfloat16)
    right_column = cuda_function(fragments.right_column)
    sum_row, sum_column = map(cuda_function, (fragments.sum_row, fragments.sum_column))
    multiply = intrinsics.mma_bfloat16

    @cuda_part
    def pair(low, high):
        # Numba widens a shifted or combined uint32 to 64 bits; a register has 32.
        return np.uint32(low | (np.uint32(high) << np.uint32(16)))

    @cuda_part
    def left(A, lane, r):
        place = left_row(lane, r) * 16 + left_pair(lane, r)
        return pair(A[place], A[place + 1])

    @cuda_part
    def right(B, lane, r):
        place = right_pair(lane, r) * 8 + right_column(lane, r)
        return pair(B[place], B[place + 8])

    @cuda_part
    def sums(C, lane, r):
        return C[sum_row(lane, r) * 8 + sum_column(lane, r)]

    @cuda_kernel
    def kernel(A, B, C, D):
        t = cuda.threadIdx.x
        a = (left(A, t, 0), left(A, t, 1), left(A, t, 2), left(A, t, 3))
        b = (right(B, t, 0), right(B, t, 1))
        c = (sums(C, t, 0), sums(C, t, 1), sums(C, t, 2), sums(C, t, 3))
        d = multiply(a, b, c)
        for r in range(4):
            D[sum_row(t, r) * 8 + sum_column(t, r)] = d[r]

    return kernel


def _multiplying_tf32() -> Any:
    left_row, left_column = map(cuda_function, (fragments.left_row, fragments.left_column_tf32))
    right_row, right_column = map(cuda_function, (fragments.right_row_tf32, fragments.right_column))
    sum_row, sum_column = map(cuda_function, (fragments.sum_row, fragments.sum_column))
    multiply, load_bits = intrinsics.mma_tf32, intrinsics.load_bits

    @cuda_part
    def left(A, lane, r):
        return load_bits(A, left_row(lane, r) * 8 + left_column(lane, r))

    @cuda_part
    def right(B, lane, r):
        return load_bits(B, right_row(lane, r) * 8 + right_column(lane, r))

    @cuda_part
    def sums(C, lane, r):
        return C[sum_row(lane, r) * 8 + sum_column(lane, r)]

    @cuda_kernel
    def kernel(A, B, C, D):
        t = cuda.threadIdx.x
        a = (left(A, t, 0), left(A, t, 1), left(A, t, 2), left(A, t, 3))
        b = (right(B, t, 0), right(B, t, 1))
        c = (sums(C, t, 0), sums(C, t, 1), sums(C, t, 2), sums(C, t, 3))
        d = multiply(a, b, c)
        for r in range(4):
            D[sum_row(t, r) * 8 + sum_column(t, r)] = d[r]

    return kernel


def moving() -> dict[str, Any]:
    """Return a kernel for each instruction that moves or converts."""
    load, load_transposed = intrinsics.load_matrix_x4, intrinsics.load_matrix_x4_transposed
    copy_async, commit, wait = (
        intrinsics.copy_async_16,
        intrinsics.copy_async_commit,
        intrinsics.copy_async_wait,
    )
    to_bfloat16, from_bfloat16 = intrinsics.to_bfloat16, intrinsics.from_bfloat16
    to_pair, to_tf32 = intrinsics.to_bfloat16_pair, intrinsics.to_tf32
    load_bits = intrinsics.load_bits
    address_down = cuda_function(fragments.address_down)

    @cuda_kernel
    def load_matrix(source, stride, plain, transposed):
        held = cuda.shared.array(16 * 24, uint16)
        t = cuda.threadIdx.x
        for k in range(t, 16 * stride, 32):
            held[k] = source[k]
        cuda.syncthreads()
        place = address_down(t, stride, 8)
        straight, across = load(held, place), load_transposed(held, place)
        for r in range(4):
            plain[4 * t + r] = straight[r]
            transposed[4 * t + r] = across[r]

    @cuda_kernel
    def copy_async_16(source, out):
        held = cuda.shared.array(32 * 8, uint16)
        t = cuda.threadIdx.x
        copy_async(held, 8 * t, source, 8 * t)
        commit()
        wait(0)
        cuda.syncthreads()
        for k in range(8):
            out[8 * t + k] = held[8 * (31 - t) + k]

    @cuda_kernel
    def convert(values, half, single, pairs, rounded, bits):
        t = cuda.threadIdx.x
        for k in range(t, half.size, 32):
            half[k] = to_bfloat16(values[k])
            single[k] = from_bfloat16(half[k])
            pairs[k] = to_pair(values[k], values[half.size - 1 - k])
            rounded[k] = to_tf32(values[k])
            bits[k] = load_bits(values, k)

    @cuda_kernel
    def four(source, out):
        t = index32(cuda.threadIdx.x)
        a, b, c, d = pointers.load(pointers.pointer_to(source, 4 * t), 4)
        pointers.store(pointers.pointer_to(out, 4 * (31 - t)), (d, c, b, a))

    return {
        "load_matrix": load_matrix,
        "copy_async_16": copy_async_16,
        "convert": convert,
        "four": four,
    }


def peak_kernel(name: str) -> Any:
    """Return a kernel of nothing but independent products; its result keeps them alive."""
    multiply = {"tf32": intrinsics.mma_tf32, "bfloat16": intrinsics.mma_bfloat16}[name]

    @cuda_kernel
    def loop(count, out):
        t = np.uint32(cuda.threadIdx.x)
        zero = np.float32(0)
        a, b = (t, t, t, t), (t, t)
        c = d = e = f = (zero, zero, zero, zero)
        g = h = i = j = (zero, zero, zero, zero)
        for _ in range(count):
            c, d, e, f = multiply(a, b, c), multiply(a, b, d), multiply(a, b, e), multiply(a, b, f)
            g, h, i, j = multiply(a, b, g), multiply(a, b, h), multiply(a, b, i), multiply(a, b, j)
        total = c[0] + d[1] + e[2] + f[3] + g[0] + h[1] + i[2] + j[3]
        out[cuda.grid(1)] = total

    return loop
