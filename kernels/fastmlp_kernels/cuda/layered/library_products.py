"""Products by cuBLASLt, and the kernels around them for what the library does not do itself.

A layer is one call a direction where the library offers the epilogue: it adds the bias, applies
ReLU and keeps the signs as a mask; on the way back it applies that mask. Any other activation, and
whatever the library refuses, takes a plain product and a kernel: `bias_and_activation` forward,
`slope_and_sums` or `activation_backward` backward.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import cuda

from fastmlp_kernels.algebra import ACTIVATIONS
from fastmlp_kernels.cuda.layered.activation import IDENTITY
from fastmlp_kernels.cuda.layered.bfloat16 import ALIGNMENT
from fastmlp_kernels.cuda.layered.cublas import PLANS_KEPT, Cublas, CublasError
from fastmlp_kernels.cuda.layered.gradients import Gradients
from fastmlp_kernels.cuda.layered.launching import Kernels, Launches
from fastmlp_kernels.cuda.layered.product import WITH_MASK, Product, alignment, mask_stride
from fastmlp_kernels.cuda.layered.workspace import Layer, address, matrix
from fastmlp_kernels.problem import Problem

RELU = ACTIVATIONS.code("relu")


class _Roundings:
    """The operands of a problem as bfloat16; rows begin at multiples of 16 bytes."""

    def __init__(self, problem: Problem, layers: list[Layer]) -> None:
        batch = problem.batch_size
        strides = [-(-size // ALIGNMENT) * ALIGNMENT for size in problem.sizes]
        # Inputs first, then what each layer but the last hands on.
        self.activations = [
            cuda.device_array((batch, stride), np.uint16) for stride in strides[:-1]
        ]
        self.deltas = [cuda.device_array((batch, stride), np.uint16) for stride in strides[1:]]
        places = np.full(problem.parameter_count, -1, np.int32)
        starts, end = [], 0
        for layer, stride in zip(layers, strides[1:], strict=True):
            rows = np.arange(layer.layout.fan_in)[:, None] * stride
            places[layer.layout.weight] = (end + rows + np.arange(layer.layout.fan_out)).ravel()
            starts.append(end)
            end += layer.layout.fan_in * stride
        self.places = cuda.to_device(places)
        self.flat = cuda.device_array(end, np.uint16)
        self.weights = [
            matrix(self.flat, start, layer.layout.fan_in, stride)
            for layer, start, stride in zip(layers, starts, strides[1:], strict=True)
        ]


class LibraryProducts:
    """Products by cuBLASLt, to the precision that the problem permits.

    Parameters
    ----------
    problem, layers, launches, kernels
    cublas : Cublas
    together : Gradients or None
        What computes all gradients of weights in one launch; None leaves each to the library.

    Notes
    -----
    With `together` launches take the time and not products. Then factors are not rounded to
    bfloat16 where that is permitted, which takes kernels, but to tf32 by the library.

    Masks are noted on the host, as are products that are refused: a step that is recorded or
    replayed makes the same choices, since these depend on shapes and addresses alone.
    """

    name = "cuBLASLt"
    reason = ""

    def __init__(
        self,
        problem: Problem,
        layers: list[Layer],
        launches: Launches,
        kernels: Kernels,
        cublas: Cublas,
        together: Gradients | None = None,
    ) -> None:
        self.layers, self.launches, self.kernels, self.cublas = layers, launches, kernels, cublas
        self.together, self.checks = together, together is not None
        self.compute = problem.precision if problem.dtype == "float32" else problem.dtype
        if together and self.compute == "bfloat16":
            self.compute = "tf32"
        self.rounded = self.compute == "bfloat16"
        self.result = problem.dtype
        self.operands = "bfloat16" if self.rounded else problem.dtype
        self.refused: set[Product] = set()
        self._allocate(problem)

    def _allocate(self, problem: Problem) -> None:
        layers, empty = self.layers, cuda.device_array
        self.nowhere, self.no_bias = empty((0, 0), np.uint16), empty(0, problem.dtype)
        tiles, widest = self.launches.tiles, max(problem.sizes[1:])
        self.partial = empty(tiles.row_blocks(problem.batch_size) * widest, problem.dtype)
        self.arrivals = cuda.to_device(np.zeros(-(-widest // tiles.columns), np.int32))
        self.roundings = _Roundings(problem, layers) if self.rounded else None
        self.rounded_inputs = self.roundings.activations[0] if self.roundings else self.nowhere
        self.rounded_weights = self.roundings.flat if self.roundings else empty(0, np.uint16)
        self.places = self.roundings.places if self.roundings else empty(0, np.int32)
        self.masks = [
            empty((problem.batch_size, mask_stride(layer.layout.fan_out) // 8), np.uint8)
            if layer.activation == RELU and not self.rounded
            else None
            for layer in layers
        ]
        # What has been done so far of each layer: its mask written; its dZ multiplied by the
        # slope; its bias's gradient summed.
        self.masked, self.sloped, self.summed = ([False] * len(layers) for _ in range(3))
        self.workspaces: list[Any] = []

    def ready(self, inputs: Any, slots: Sequence[tuple], rows: int) -> None:
        """Make the plans of a batch of so many rows, and the workspace that they need.

        `slots` are the views of the gradient; parameters are taken to be aligned as it is. Others
        get plans of their own when they come.
        """
        for index, (dW, db) in enumerate(slots):
            below = inputs if index == 0 else self.layers[index - 1].A
            calls = [self._forward_call(index, below, dW, db, rows)]
            self.masked[index] = calls[0][0].epilogue in WITH_MASK
            if self.together is None:
                calls.append(self._weights_call(index, below, rows, dW, db))
            if index > 0 and not self._is_column(index):
                calls.append(self._inputs_call(index, dW, rows, self.layers[index - 1].dZ))
            for product, _ in calls:
                self.cublas.plan(product)
        self._workspace()

    def _is_column(self, index: int) -> bool:
        """Return whether a kernel of ours multiplies a layer's dZ, one column, by its W.

        The library applies no mask to sums of one term.
        """
        return index > 0 and self.layers[index].layout.fan_out == 1 and not self.roundings

    def _workspace(self) -> tuple[int, int]:
        """Return address and bytes of the workspace; grown, and the old one kept for graphs."""
        needed = self.cublas.workspace_bytes
        if needed > (self.workspaces[-1].size if self.workspaces else 0):
            self.workspaces.append(cuda.device_array(needed, np.uint8))
        if not self.workspaces:
            return 0, 0
        return address(self.workspaces[-1]), self.workspaces[-1].size

    def _multiply(self, call: tuple[Product, tuple], accumulate: bool = False) -> None:
        product, (*pointers, vector, mask) = call
        # The plan first: it may need a larger workspace.
        self.cublas.plan(product)
        stream = self.launches.handle()
        workspace = self._workspace()
        self.cublas.multiply(product, tuple(pointers), accumulate, workspace, stream, vector, mask)

    def _call(
        self,
        shape: tuple,
        transposed: tuple,
        arrays: tuple,
        epilogue: str = "none",
        vector: Any = None,
        mask: Any = None,
    ) -> tuple:
        """Return a product and its addresses; without its epilogue where the library refuses it."""
        plain = epilogue == "none"
        pointers = tuple(address(array) for array in arrays)
        vector_at = 0 if plain or vector is None else address(vector)
        mask_at = 0 if plain or mask is None else address(mask)
        product = Product(
            *shape,
            *transposed,
            strides=tuple(array.shape[1] for array in arrays),
            operands=self.operands,
            result=self.result,
            compute=self.compute,
            alignments=tuple(alignment(pointer) for pointer in pointers),
            epilogue=epilogue,
            vector_alignment=alignment(vector_at),
            mask_stride=8 * mask.shape[1] if mask_at else 0,
        )
        if plain or self._offers(product):
            return product, (*pointers, vector_at, mask_at)
        return self._call(shape, transposed, arrays)

    def _offers(self, product: Product) -> bool:
        """Return whether the library has an algorithm for a product with an epilogue."""
        if product in self.refused:
            return False
        try:
            self.cublas.plan(product)
        except CublasError:
            if len(self.refused) >= PLANS_KEPT:
                self.refused.clear()
            self.refused.add(product)
            return False
        return True

    def _forward_call(self, index: int, A: Any, W: Any, b: Any, rows: int) -> tuple:
        layer, layout = self.layers[index], self.layers[index].layout
        if self.roundings:
            A, W = self.roundings.activations[index], self.roundings.weights[index]
        shape, arrays = (rows, layout.fan_out, layout.fan_in), (A, W, layer.Z)
        epilogue = "relu_aux_bias" if self.masks[index] is not None else "none"
        if layer.activation == IDENTITY and self.handed_on(index).size == 0:
            epilogue = "bias"
        return self._call(shape, (False, False), arrays, epilogue, b, self.masks[index])

    def _weights_call(
        self, index: int, A: Any, rows: int, dW: Any, db: Any, plain: bool = False
    ) -> tuple:
        layer, layout, dZ = self.layers[index], self.layers[index].layout, self.layers[index].dZ
        if self.roundings:
            A, dZ = self.roundings.activations[index], self.roundings.deltas[index]
        shape = (layout.fan_in, layer.layout.fan_out, rows)
        epilogue = "none" if plain or self.roundings else "bgrada"
        return self._call(shape, (True, False), (A, dZ, dW), epilogue, db)

    def _inputs_call(self, index: int, W: Any, rows: int, dA: Any) -> tuple:
        layout, dZ = self.layers[index].layout, self.layers[index].dZ
        if self.roundings:
            dZ, W = self.roundings.deltas[index], self.roundings.weights[index]
        shape = (rows, layout.fan_in, layout.fan_out)
        masked = index > 0 and self.masked[index - 1]
        mask, epilogue = (self.masks[index - 1], "drelu") if masked else (None, "none")
        return self._call(shape, (False, True), (dZ, W, dA), epilogue, None, mask)

    def take_weights(self, weights: Sequence[Any]) -> None:
        """Round every W."""
        if self.roundings:
            for W, out in zip(weights, self.roundings.weights, strict=True):
                count = W.shape[0] * W.shape[1]
                self.launches.over(self.kernels.round_rows, count, W, W.shape[0], out)

    def take_inputs(self, X: Any, rows: int) -> None:
        """Round the inputs."""
        if self.roundings:
            count = rows * X.shape[1]
            self.launches.over(self.kernels.round_rows, count, X, rows, self.rounded_inputs)

    def handed_on(self, index: int) -> Any:
        """Return where a layer's output goes as bfloat16, an empty array for nowhere."""
        last = index == len(self.layers) - 1
        return self.nowhere if last or not self.roundings else self.roundings.activations[index + 1]

    def forward(self, index: int, A: Any, W: Any, b: Any, rows: int) -> None:
        """One product, and one kernel where that has not done everything."""
        layer = self.layers[index]
        call = self._forward_call(index, A, W, b, rows)
        epilogue = call[0].epilogue
        self._multiply(call)
        self.masked[index] = epilogue in WITH_MASK
        if epilogue == "none":
            arguments = (layer.Z, b, layer.activation, rows, layer.A, self.handed_on(index))
            count = rows * layer.layout.fan_out
            self.launches.over(self.kernels.bias_and_activation, count, *arguments)

    def enter(self, index: int, rows: int, accumulate: int, db: Any) -> None:
        """One kernel at most: for the slope, for the bias, or to round."""
        layer = self.layers[index]
        slope = layer.activation != IDENTITY and not self.sloped[index]
        self.summed[index] = False
        if self.together is None:
            # Whether "bgrada" adds to what is there, cublasLt.h does not say.
            if slope or self.roundings or accumulate != 0:
                self._sum_columns(index, rows, accumulate, db, slope)
        elif slope:
            arguments = (layer.Z, layer.A, layer.activation, rows, layer.dZ)
            count = rows * layer.layout.fan_out
            self.launches.over(self.kernels.activation_backward, count, *arguments)

    def _sum_columns(self, index: int, rows: int, accumulate: int, db: Any, slope: bool) -> None:
        layer, columns = self.layers[index], self.layers[index].layout.fan_out
        rounded = self.roundings.deltas[index] if self.roundings else self.nowhere
        activation = layer.activation if slope else IDENTITY
        arguments = (layer.Z, layer.A, activation, rows, accumulate, layer.dZ)
        sums = (self.partial, self.arrivals, db, rounded)
        kernel = self.kernels.slope_and_sums
        self.launches.column_sums(kernel, rows, columns, *arguments, *sums)
        self.summed[index] = True

    def inputs(self, index: int, W: Any, rows: int, dA: Any) -> None:
        """One product; `enter` of the layer below applies its slope where that has not."""
        layer = self.layers[index]
        if self._is_column(index):
            below = self.layers[index - 1]
            arguments = (layer.dZ, W, rows, below.activation, below.Z, below.A, dA)
            columns = layer.layout.fan_in
            self.launches.product(self.kernels.linear_backward, rows, columns, *arguments)
            self.sloped[index - 1] = True
            return
        call = self._inputs_call(index, W, rows, dA)
        self._multiply(call)
        if index > 0:
            self.sloped[index - 1] = call[0].epilogue in WITH_MASK

    def gradients(self, X, rows, accumulate, gradient, slots, training, words) -> None:
        """One launch for all layers, or one product for each and a sum of columns if it must be."""
        if self.together is not None:
            self.together.enqueue(X, rows, accumulate, gradient, training, words)
            return
        for index in range(len(self.layers) - 1, -1, -1):
            below = X if index == 0 else self.layers[index - 1]
            A = X if index == 0 else below.dropped if training else below.A
            dW, db = slots[index]
            call = self._weights_call(index, A, rows, dW, db, plain=self.summed[index])
            if not self.summed[index] and call[0].epilogue == "none":
                self._sum_columns(index, rows, accumulate, db, False)
            self._multiply(call, accumulate=accumulate != 0)
