"""Kernels of one product on tensor cores each, for the simulator, the compiler and a GPU."""

import functools

from numba import cuda, types

from fastmlp_kernels.algebra import ACTIVATIONS
from fastmlp_kernels.compile import cuda_kernel, cuda_part, cuda_switch
from fastmlp_kernels.cuda.on_chip import tensor_linear
from fastmlp_kernels.cuda.on_chip.products import Epilogues

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


def layer_epilogues(precision, activations):
    """Return epilogues as long as those of a network: a choice of rules, conversions, branches."""
    to_operand, to_number = tensor_linear.conversions(precision)
    value = cuda_switch([ACTIVATIONS[name].value for name in activations])
    slope = cuda_switch([ACTIVATIONS[name].slope for name in activations])

    @cuda_part
    def forward(operands, numbers, words, last, i, j, z):
        activation, out, out_stride, kept, kept_stride = words
        numbers[kept + i * kept_stride + j] = z
        a = value(activation, z)
        if last == 0:
            operands[out + i * out_stride + j] = to_operand(a)
        else:
            numbers[out + i * out_stride + j] = a

    @cuda_part
    def backward(operands, numbers, words, last, i, j, da):
        activation, out, out_stride, kept, kept_stride = words
        if last == 0:
            x = to_number(operands[kept + i * kept_stride + j])
        else:
            x = numbers[kept + i * kept_stride + j]
        operands[out + i * out_stride + j] = to_operand(da * slope(activation, x, x))

    return Epilogues(forward, backward, add)


def layer_kernel(precision, threads, activations):
    """Return a kernel with all products of a layer, for the compiler alone."""
    made = tensor_linear.build(threads, precision, layer_epilogues(precision, activations))
    forward, backward, weight_gradient = made.forward, made.backward, made.weight_gradient
    operand = OPERANDS[precision]

    @cuda_kernel
    def layers(gradient, words):
        operands = cuda.shared.array(0, operand)
        numbers = cuda.shared.array(0, types.float32)
        t = cuda.threadIdx.x
        A, A_stride, W, W_stride, b = words[0], words[1], words[2], words[3], words[4]
        rows, fan_in, fan_out = words[5], words[6], words[7]
        told = (words[8], words[9], words[10], words[11], words[12])
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
                0,
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
