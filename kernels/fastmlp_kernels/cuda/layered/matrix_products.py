"""What computes the matrix products of `cuda.layered`: its own tiles, or cuBLASLt.

Both write the same arrays of the workspace by the same calls: `forward` of a layer, then from the
last layer down `enter` (dA becomes dZ), `weights` and `inputs`. The tiles fuse a layer's bias,
activation and slope into its products; beside the library's products one kernel a direction does
all that.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numba import cuda

from fastmlp_kernels.algebra import ACTIVATIONS
from fastmlp_kernels.compile import simulated
from fastmlp_kernels.cuda.layered.bfloat16 import ALIGNMENT
from fastmlp_kernels.cuda.layered.cublas import Cublas, CublasError, Product, alignment, connect
from fastmlp_kernels.cuda.layered.launching import Kernels, Launches
from fastmlp_kernels.cuda.layered.workspace import Layer, address, matrix
from fastmlp_kernels.problem import Problem

IDENTITY = ACTIVATIONS.code("identity")


class LayerProducts(Protocol):
    """The products of every layer.

    Attributes
    ----------
    name, reason : str
        What computes them, and why not the library.
    rounded_inputs, rounded_weights, places : device arrays
        Where the inputs of a batch and the weights go as bfloat16, if they have elements: see
        `gather.gather_rows` and `update.update`.
    """

    name: str
    reason: str
    rounded_inputs: Any
    rounded_weights: Any
    places: Any

    def handed_on(self, index: int) -> Any:
        """Return where a layer's output goes as bfloat16, an empty array for nowhere."""

    def take_weights(self, weights: Sequence[Any]) -> None:
        """Note each layer's W: they have changed by other means than the update."""

    def take_inputs(self, X: Any, rows: int) -> None:
        """Note a batch's inputs, which no `gather_rows` has collected."""

    def forward(self, index: int, A: Any, W: Any, b: Any, rows: int) -> None:
        """Compute a layer's Z and A."""

    def enter(self, index: int, rows: int, accumulate: int, db: Any) -> None:
        """Turn a layer's dZ, which holds dA unless a product has done this, into dZ."""

    def weights(self, index: int, A: Any, rows: int, accumulate: int, dW: Any, db: Any) -> None:
        """Write, or add, the gradient of a layer's parameters."""

    def inputs(self, index: int, W: Any, rows: int, dA: Any) -> None:
        """Write the derivative by a layer's inputs to `dA`: for the layer below, its dZ."""


class TileProducts:
    """Products by the kernels of `linear`, exact in the problem's dtype."""

    name = "own tiles"

    def __init__(self, layers: list[Layer], launches: Launches, kernels: Kernels, reason: str):
        self.layers, self.launches, self.kernels, self.reason = layers, launches, kernels, reason
        self.rounded_inputs = cuda.device_array((0, 0), np.uint16)
        self.rounded_weights = cuda.device_array(0, np.uint16)
        self.places = cuda.device_array(0, np.int32)

    def handed_on(self, index: int) -> Any:
        """Nowhere: outputs are read where they are."""
        return self.rounded_inputs

    def take_weights(self, weights: Sequence[Any]) -> None:
        """Nothing to do: the weights are read where they are."""

    def take_inputs(self, X: Any, rows: int) -> None:
        """Nothing to do: the inputs are read where they are."""

    def forward(self, index: int, A: Any, W: Any, b: Any, rows: int) -> None:
        """One launch."""
        layer = self.layers[index]
        arguments = (A, W, b, layer.activation, rows, layer.Z, layer.A)
        columns = layer.layout.fan_out
        self.launches.product(self.kernels.linear_forward, rows, columns, *arguments)

    def enter(self, index: int, rows: int, accumulate: int, db: Any) -> None:
        """One launch where the last layer has an activation; below, `inputs` has done it."""
        layer = self.layers[index]
        if index == len(self.layers) - 1 and layer.activation != IDENTITY:
            arguments = (layer.Z, layer.A, layer.activation, rows, layer.dZ)
            count = rows * layer.layout.fan_out
            self.launches.over(self.kernels.activation_backward, count, *arguments)

    def weights(self, index: int, A: Any, rows: int, accumulate: int, dW: Any, db: Any) -> None:
        """One launch."""
        layer = self.layers[index]
        arguments = (A, layer.dZ, rows, accumulate, dW, db)
        fan_in, fan_out = layer.layout.fan_in, layer.layout.fan_out
        self.launches.product(self.kernels.weight_gradient, fan_in, fan_out, *arguments)

    def inputs(self, index: int, W: Any, rows: int, dA: Any) -> None:
        """One launch, the slope of the layer below in it."""
        layer = self.layers[index]
        chain: tuple[Any, ...] = (IDENTITY, dA, dA)
        if index > 0:
            below = self.layers[index - 1]
            chain = (below.activation, below.Z, below.A)
        arguments = (layer.dZ, W, rows, *chain, dA)
        columns = layer.layout.fan_in
        self.launches.product(self.kernels.linear_backward, rows, columns, *arguments)


class _Roundings:
    """The operands of a problem as bfloat16; rows begin at multiples of 16 bytes."""

    def __init__(self, problem: Problem, layers: list[Layer]) -> None:
        batch = problem.batch_size
        strides = [-(-size // ALIGNMENT) * ALIGNMENT for size in problem.sizes]
        # Inputs first, then what each layer but the last hands on.
        self.activations = [
            cuda.device_array((batch, stride), np.uint16) for stride in strides[:-1]
        ]
        # One for all layers: each is done with before the next one down writes it.
        self.delta = cuda.device_array(batch * max(strides[1:]), np.uint16)
        self.deltas = [matrix(self.delta, 0, batch, stride) for stride in strides[1:]]
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
    epilogues : tuple of str, optional
        For each layer "none", or "bias" where the library adds it; default "none" for all.

    Notes
    -----
    What is to be measured on a GPU, by shape and dtype, before `epilogues` says otherwise: "bias"
    saves a launch where the activation is the identity and one read elsewhere, and is known to be
    slower than a kernel of its own on some chips. Not offered yet: RELU_AUX_BIAS with DRELU_BGRAD,
    and the GELU pair, which would save `bias_and_activation` and `slope_and_sums` of those rows.
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
        epilogues: tuple[str, ...] | None = None,
    ) -> None:
        self.layers, self.launches, self.kernels, self.cublas = layers, launches, kernels, cublas
        self.epilogues = epilogues or ("none",) * len(layers)
        single = problem.dtype == "float32"
        self.compute = problem.precision if single else problem.dtype
        self.rounded = self.compute == "bfloat16"
        self.result = problem.dtype
        self.operands = "bfloat16" if self.rounded else problem.dtype
        self.nowhere = cuda.device_array((0, 0), np.uint16)
        self.no_bias = cuda.device_array(0, problem.dtype)
        tiles, widest = launches.tiles, max(problem.sizes[1:])
        blocks = tiles.row_blocks(problem.batch_size)
        self.partial = cuda.device_array(blocks * widest, problem.dtype)
        self.arrivals = cuda.to_device(np.zeros(-(-widest // tiles.columns), np.int32))
        self.roundings = _Roundings(problem, layers) if self.rounded else None
        self.rounded_inputs = self.roundings.activations[0] if self.roundings else self.nowhere
        empty = cuda.device_array(0, np.uint16)
        self.rounded_weights = self.roundings.flat if self.roundings else empty
        self.places = self.roundings.places if self.roundings else cuda.device_array(0, np.int32)
        self.workspaces: list[Any] = []

    def ready(self, inputs: Any, slots: Sequence[tuple], rows: int) -> None:
        """Make the plans of a batch of so many rows, and the workspace that they need.

        `slots` are the views of the gradient; parameters are taken to be aligned as it is. Others
        get plans of their own when they come.
        """
        for index, (dW, db) in enumerate(slots):
            below = inputs if index == 0 else self.layers[index - 1].A
            calls = [
                self._forward_call(index, below, dW, db, rows),
                self._weights_call(index, below, rows, dW),
            ]
            if index > 0:
                calls.append(self._inputs_call(index, dW, rows, self.layers[index - 1].dZ))
            for product, _ in calls:
                self.cublas.plan(product)
        self._workspace()

    def _workspace(self) -> tuple[int, int]:
        """Return address and bytes of the workspace; grown, and the old one kept for graphs."""
        needed = self.cublas.workspace_bytes
        if needed > (self.workspaces[-1].size if self.workspaces else 0):
            self.workspaces.append(cuda.device_array(needed, np.uint8))
        if not self.workspaces:
            return 0, 0
        return address(self.workspaces[-1]), self.workspaces[-1].size

    def _multiply(self, call: tuple[Product, tuple], accumulate: bool = False, bias: int = 0):
        product, pointers = call
        # The plan first: it may need a larger workspace.
        self.cublas.plan(product)
        stream = self.launches.handle()
        self.cublas.multiply(product, pointers, accumulate, self._workspace(), stream, bias)

    def _call(self, shape: tuple, transposed: tuple, arrays: tuple, bias: Any = None) -> tuple:
        pointers = tuple(address(array) for array in arrays)
        product = Product(
            *shape,
            *transposed,
            strides=tuple(array.shape[1] for array in arrays),
            operands=self.operands,
            result=self.result,
            compute=self.compute,
            alignments=tuple(alignment(pointer) for pointer in pointers),
            epilogue="none" if bias is None else "bias",
            bias_alignment=alignment(0 if bias is None else address(bias)),
        )
        return product, pointers

    def _forward_call(self, index: int, A: Any, W: Any, b: Any, rows: int) -> tuple:
        layer, layout = self.layers[index], self.layers[index].layout
        if self.roundings:
            A, W = self.roundings.activations[index], self.roundings.weights[index]
        shape = (rows, layout.fan_out, layout.fan_in)
        bias = b if self.epilogues[index] == "bias" else None
        return self._call(shape, (False, False), (A, W, layer.Z), bias)

    def _weights_call(self, index: int, A: Any, rows: int, dW: Any) -> tuple:
        layer, layout, dZ = self.layers[index], self.layers[index].layout, self.layers[index].dZ
        if self.roundings:
            A, dZ = self.roundings.activations[index], self.roundings.deltas[index]
        shape = (layout.fan_in, layer.layout.fan_out, rows)
        return self._call(shape, (True, False), (A, dZ, dW))

    def _inputs_call(self, index: int, W: Any, rows: int, dA: Any) -> tuple:
        layout, dZ = self.layers[index].layout, self.layers[index].dZ
        if self.roundings:
            dZ, W = self.roundings.deltas[index], self.roundings.weights[index]
        shape = (rows, layout.fan_in, layout.fan_out)
        return self._call(shape, (False, True), (dZ, W, dA))

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
        """One product and one kernel; the product alone where that has done everything."""
        layer, added = self.layers[index], self.epilogues[index] == "bias"
        call = self._forward_call(index, A, W, b, rows)
        self._multiply(call, bias=address(b) if added else 0)
        rounded = self.handed_on(index)
        if added and layer.activation == IDENTITY and rounded.size == 0:
            return
        bias = self.no_bias if added else b
        arguments = (layer.Z, bias, layer.activation, rows, layer.A, rounded)
        count = rows * layer.layout.fan_out
        self.launches.over(self.kernels.bias_and_activation, count, *arguments)

    def enter(self, index: int, rows: int, accumulate: int, db: Any) -> None:
        """One kernel, which also sums the gradient of the biases."""
        layer, columns = self.layers[index], self.layers[index].layout.fan_out
        rounded = self.roundings.deltas[index] if self.roundings else self.nowhere
        arguments = (layer.Z, layer.A, layer.activation, rows, accumulate, layer.dZ)
        sums = (self.partial, self.arrivals, db, rounded)
        kernel = self.kernels.slope_and_sums
        self.launches.column_sums(kernel, rows, columns, *arguments, *sums)

    def weights(self, index: int, A: Any, rows: int, accumulate: int, dW: Any, db: Any) -> None:
        """One product."""
        self._multiply(self._weights_call(index, A, rows, dW), accumulate=accumulate != 0)

    def inputs(self, index: int, W: Any, rows: int, dA: Any) -> None:
        """One product; `enter` of the layer below applies its slope."""
        self._multiply(self._inputs_call(index, W, rows, dA))


def choose(
    problem: Problem,
    layers: list[Layer],
    launches: Launches,
    kernels: Kernels,
    library: Any,
    inputs: Any,
    slots: Sequence[tuple],
) -> LayerProducts:
    """Return cuBLASLt's products where it can be had, else those of our own tiles.

    Parameters
    ----------
    problem, layers, launches, kernels
    library : object, None or False
        What to use as cuBLASLt; None looks for it, except in the simulator; False forbids it.
    inputs, slots
        Where a batch's inputs and the gradient of each layer lie.
    """
    reason = "cuBLASLt is not wanted"
    if library is not False:
        try:
            if library is None and simulated():
                raise CublasError("the simulator has no cuBLASLt")
            cublas = connect() if library is None else Cublas(library)
            products = LibraryProducts(problem, layers, launches, kernels, cublas)
            for rows in {problem.batch_size, problem.rows % problem.batch_size} - {0}:
                products.ready(inputs, slots, rows)
            return products
        except CublasError as error:
            reason = str(error)
    return TileProducts(layers, launches, kernels, reason)
