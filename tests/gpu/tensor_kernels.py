"""Kernels of one product on tensor cores each, for the simulator, the compiler and a GPU."""

import functools

from numba import cuda, types

from fastmlp_kernels.algebra import ACTIVATIONS
from fastmlp_kernels.compile import cuda_kernel, cuda_part, cuda_switch
from fastmlp_kernels.cuda.instructions.index32 import index32, wide
from fastmlp_kernels.cuda.instructions.pointers import pointer_to
from fastmlp_kernels.cuda.on_chip import tensor_linear
from fastmlp_kernels.cuda.on_chip.products import Epilogue, Epilogues

PRECISIONS = ("bfloat16", "tf32")
NAMES = ("forward", "backward", "weight_gradient")
OPERANDS = {"bfloat16": types.uint16, "tf32": types.float32}
# What the words of a kernel say: where the result begins and how long its rows are, `layer`, then
# the arguments of the product from the offset of its first factor on.
RESULT, PITCH, LAYER = 0, 1, 2


@cuda_part
def word(words, k):
    return index32(words[k])


@cuda_part
def row(operands, numbers, words, layer, i, j):
    return pointer_to(numbers, words[RESULT] + i * words[PITCH] + j)


@cuda_part
def keep(row, words, layer, i, j, distance, value):
    row[distance] = value


KEEP = Epilogue(row, keep)


@cuda_part
def add(gradient, place, value):
    gradient[place] += value
    return gradient[place]


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
    return tensor_linear.build(threads, precision, Epilogues(KEEP, KEEP, add))


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
        t = index32(cuda.threadIdx.x)
        load(image, numbers, wide(t), threads)
        told = (word(words, RESULT), word(words, PITCH))
        layer = words[LAYER]
        A, A_stride, W, W_stride = word(words, 3), word(words, 4), word(words, 5), word(words, 6)
        b, rows, fan_in, fan_out = word(words, 7), word(words, 8), word(words, 9), word(words, 10)
        product(
            operands, numbers, told, layer, A, A_stride, W, W_stride, b, rows, fan_in, fan_out, t
        )
        save(image, numbers, wide(t), threads)

    return forward


def _backward(product, threads, operand):
    @cuda_kernel
    def backward(image, words):
        operands = cuda.shared.array(0, operand)
        numbers = cuda.shared.array(0, types.float32)
        t = index32(cuda.threadIdx.x)
        load(image, numbers, wide(t), threads)
        told = (word(words, RESULT), word(words, PITCH))
        layer = words[LAYER]
        dZ, dZ_stride, W, W_stride = word(words, 3), word(words, 4), word(words, 5), word(words, 6)
        rows, fan_in, fan_out = word(words, 7), word(words, 8), word(words, 9)
        product(
            operands, numbers, told, layer, dZ, dZ_stride, W, W_stride, rows, fan_in, fan_out, t
        )
        save(image, numbers, wide(t), threads)

    return backward


def _weight_gradient(product, threads, operand):
    @cuda_kernel
    def weight_gradient(image, words):
        operands = cuda.shared.array(0, operand)
        numbers = cuda.shared.array(0, types.float32)
        t = index32(cuda.threadIdx.x)
        load(image, numbers, wide(t), threads)
        start, pitch = word(words, RESULT), word(words, PITCH)
        A, A_stride = word(words, 3), word(words, 4)
        dZ, dZ_stride, rows, fan_in, fan_out = (
            word(words, 5),
            word(words, 6),
            word(words, 7),
            word(words, 8),
            word(words, 9),
        )
        product(
            operands, numbers, start, pitch, A, A_stride, dZ, dZ_stride, rows, fan_in, fan_out, t
        )
        save(image, numbers, wide(t), threads)

    return weight_gradient


def layer_epilogues(precision, activations):
    """Return epilogues as long as those of a network: a choice of rules, conversions, branches."""
    to_operand, to_number = tensor_linear.conversions(precision)
    value = cuda_switch([ACTIVATIONS[name].value for name in activations])
    slope = cuda_switch([ACTIVATIONS[name].slope for name in activations])

    @cuda_part
    def row(operands, numbers, words, last, i, j):
        _, out, out_stride, kept, kept_stride = words
        kept += i * kept_stride + j
        out += i * out_stride + j
        return (
            *(pointer_to(operands, kept), pointer_to(numbers, kept)),
            *(pointer_to(operands, out), pointer_to(numbers, out)),
        )

    @cuda_part
    def forward(row, words, last, i, j, distance, z):
        _, kept_number, out_operand, out_number = row
        kept_number[distance] = z
        a = value(words[0], z)
        if last == 0:
            out_operand[distance] = to_operand(a)
        else:
            out_number[distance] = a

    @cuda_part
    def backward(row, words, last, i, j, distance, da):
        kept_operand, kept_number, out_operand, _ = row
        x = to_number(kept_operand[distance]) if last == 0 else kept_number[distance]
        out_operand[distance] = to_operand(da * slope(words[0], x, x))

    return Epilogues(Epilogue(row, forward), Epilogue(row, backward), add)


def layer_kernel(precision, threads, activations):
    """Return a kernel with all products of a layer, for the compiler alone."""
    made = tensor_linear.build(threads, precision, layer_epilogues(precision, activations))
    forward, backward, weight_gradient = made.forward, made.backward, made.weight_gradient
    operand = OPERANDS[precision]

    @cuda_kernel
    def layers(gradient, words):
        operands = cuda.shared.array(0, operand)
        numbers = cuda.shared.array(0, types.float32)
        t = index32(cuda.threadIdx.x)
        A, A_stride, W = word(words, 0), word(words, 1), word(words, 2)
        W_stride, b = word(words, 3), word(words, 4)
        rows, fan_in, fan_out = word(words, 5), word(words, 6), word(words, 7)
        told = (
            *(word(words, 8), word(words, 9), word(words, 10)),
            *(word(words, 11), word(words, 12)),
        )
        for last in range(words[13]):
            forward(
                operands,
                numbers,
                told,
                last,
                A,
                A_stride,
                W,
                W_stride,
                b,
                rows,
                fan_in,
                fan_out,
                t,
            )
            cuda.syncthreads()
            weight_gradient(
                operands,
                gradient,
                index32(0),
                fan_out,
                A,
                A_stride,
                W,
                W_stride,
                rows,
                fan_in,
                fan_out,
                t,
            )
            backward(
                operands,
                numbers,
                told,
                last,
                A,
                A_stride,
                W,
                W_stride,
                rows,
                fan_in,
                fan_out,
                t,
            )
            cuda.syncthreads()

    return layers
