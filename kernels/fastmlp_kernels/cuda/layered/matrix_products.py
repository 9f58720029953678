"""What computes the matrix products of `cuda.layered`: its own tiles, or cuBLASLt.

Both write the same arrays of the workspace by the same calls: `forward` of a layer; from the last
layer down `enter` (dA becomes dZ) and `inputs`; then `gradients` of all layers. The tiles fuse a
layer's bias, activation and slope into its products. So does the library where it offers that
(`library_products`).
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numba import cuda

from fastmlp_kernels.compile import simulated
from fastmlp_kernels.cuda.layered.activation import IDENTITY
from fastmlp_kernels.cuda.layered.cublas import Cublas, CublasError, connect
from fastmlp_kernels.cuda.layered.gradients import Gradients
from fastmlp_kernels.cuda.layered.launching import Kernels, Launches
from fastmlp_kernels.cuda.layered.library_products import LibraryProducts
from fastmlp_kernels.cuda.layered.workspace import Layer, Workspace
from fastmlp_kernels.problem import Problem


class LayerProducts(Protocol):
    """The products of every layer.

    Attributes
    ----------
    name, reason : str
        What computes them, and why not the library.
    checks : bool
        Whether `gradients` notes an element that is not finite.
    rounded_inputs, rounded_weights, places : device arrays
        Where the inputs of a batch and the weights go as bfloat16, if they have elements: see
        `gather.gather_rows` and `update.update`.
    """

    name: str
    reason: str
    checks: bool
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

    def inputs(self, index: int, W: Any, rows: int, dA: Any) -> None:
        """Write the derivative by a layer's inputs to `dA`: for the layer below, its dZ."""

    def gradients(
        self,
        X: Any,
        rows: int,
        accumulate: int,
        gradient: Any,
        slots: Sequence[tuple],
        training: bool,
        words: tuple,
    ) -> None:
        """Write, or add, the gradient of every layer's parameters, once each dZ is there.

        Parameters
        ----------
        X, rows
            The inputs of the first layer, and the rows used.
        accumulate : int
            1 adds to the gradient, 0 overwrites it.
        gradient, slots
            The flat vector, and the views (dW, db) of each layer.
        training : bool
            Whether layers have read what dropout leaves.
        words : tuple
            Counter and status, for what is not finite.
        """


class TileProducts:
    """Products by the kernels of `linear`, exact in the problem's dtype."""

    name = "own tiles"
    checks = True

    def __init__(
        self,
        layers: list[Layer],
        launches: Launches,
        kernels: Kernels,
        together: Gradients,
        reason: str,
    ) -> None:
        self.layers, self.launches, self.kernels, self.reason = layers, launches, kernels, reason
        self.together = together
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

    def gradients(self, X, rows, accumulate, gradient, slots, training, words) -> None:
        """One launch."""
        self.together.enqueue(X, rows, accumulate, gradient, training, words)


def choose(
    problem: Problem,
    layers: list[Layer],
    launches: Launches,
    kernels: Kernels,
    library: Any,
    workspace: Workspace,
    slots: Sequence[tuple],
    together: bool,
) -> LayerProducts:
    """Return cuBLASLt's products where it can be had, else those of our own tiles.

    Parameters
    ----------
    problem, layers, launches, kernels, workspace
    library : object, None or False
        What to use as cuBLASLt; None looks for it, except in the simulator; False forbids it.
    slots
        Where the gradient of each layer lies.
    together : bool
        Whether one launch of ours computes all gradients of weights beside the library.
    """
    reason = "cuBLASLt is not wanted"
    if library is not False:
        try:
            if library is None and simulated():
                raise CublasError("the simulator has no cuBLASLt")
            cublas = connect() if library is None else Cublas(library)
            own = Gradients(problem, layers, workspace, launches, kernels) if together else None
            products = LibraryProducts(problem, layers, launches, kernels, cublas, own)
            for rows in {problem.batch_size, problem.rows % problem.batch_size} - {0}:
                products.ready(workspace.inputs, slots, rows)
            return products
        except CublasError as error:
            reason = str(error)
    own = Gradients(problem, layers, workspace, launches, kernels)
    return TileProducts(layers, launches, kernels, own, reason)
