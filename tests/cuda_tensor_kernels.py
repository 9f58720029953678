"""Kernels of one product on tensor cores each, for the simulator, the compiler and a GPU."""

import functools

from numba import cuda, types

from fastmlp_kernels.compile import cuda_kernel, cuda_part
from fastmlp_kernels.cuda import tensor_linear
from fastmlp_kernels.cuda.products import Epilogues

PRECISIONS = ("bfloat16", "tf32")
NAMES = ("forward", "backward", "weight_gradient")
OPERANDS = {"bfloat16": types.uint16, "tf32": types.float32}
# What the words of a kernel say: where the result begins and how long its rows are, `layer`, then
# the arguments of the product from the offset of its first factor on.
RESULT, PITCH, LAYER = 0, 1, 2


@cuda_part
def keep(operands, numbers, words, layer, i, j, value):
    numbers[words[RESULT] + i * words[PITCH] + j] = value


@cuda_part
def add(gradient, place, value):
    gradient[place] += value


@cuda_part
def load(image, numbers, t, threads):
    for k in range(t, image.shape[0], threads):
        numbers[k] = image[k]
    cuda.syncthreads()


@cuda_part
def save(image, numbers, t, threads):
    cuda.syncthreads()
    for k in range(t, image.shape[0], threads):
        image[k] = numbers[k]


@functools.cache
def products(threads, precision):
    return tensor_linear.build(threads, precision, Epilogues(keep, keep, add))


@functools.cache
def kernel(name, threads, precision):
    """Return ``kernel(image, words)``: `image` is copied to shared memory and back."""
    return {"forward": _forward, "backward": _backward, "weight_gradient": _weight_gradient}[name](
        getattr(products(threads, precision), name), threads, OPERANDS[precision]
    )


def _forward(product, threads, operand):
    @cuda_kernel
    def forward(image, words):
        operands = cuda.shared.array(0, operand)
        numbers = cuda.shared.array(0, types.float32)
        t = cuda.threadIdx.x
        load(image, numbers, t, threads)
        told = (words[RESULT], words[PITCH])
        layer, A, A_stride, W, W_stride = words[LAYER], words[3], words[4], words[5], words[6]
        b, rows, fan_in, fan_out = words[7], words[8], words[9], words[10]
        product(
            operands, numbers, told, layer, A, A_stride, W, W_stride, b, rows, fan_in, fan_out, t
        )
        save(image, numbers, t, threads)

    return forward


def _backward(product, threads, operand):
    @cuda_kernel
    def backward(image, words):
        operands = cuda.shared.array(0, operand)
        numbers = cuda.shared.array(0, types.float32)
        t = cuda.threadIdx.x
        load(image, numbers, t, threads)
        told = (words[RESULT], words[PITCH])
        layer, dZ, dZ_stride, W, W_stride = words[LAYER], words[3], words[4], words[5], words[6]
        rows, fan_in, fan_out = words[7], words[8], words[9]
        product(
            operands, numbers, told, layer, dZ, dZ_stride, W, W_stride, rows, fan_in, fan_out, t
        )
        save(image, numbers, t, threads)

    return backward


def _weight_gradient(product, threads, operand):
    @cuda_kernel
    def weight_gradient(image, words):
        operands = cuda.shared.array(0, operand)
        numbers = cuda.shared.array(0, types.float32)
        t = cuda.threadIdx.x
        load(image, numbers, t, threads)
        start, pitch, A, A_stride = words[RESULT], words[PITCH], words[3], words[4]
        dZ, dZ_stride, rows, fan_in, fan_out = words[5], words[6], words[7], words[8], words[9]
        product(
            operands, numbers, start, pitch, A, A_stride, dZ, dZ_stride, rows, fan_in, fan_out, t
        )
        save(image, numbers, t, threads)

    return weight_gradient
