"""Forward and backward through all layers, by the products that were chosen for them."""

from typing import Any

import numpy as np
from numba import cuda

from fastmlp_kernels.algebra.dropout import threshold_of
from fastmlp_kernels.cuda.layered.launching import Kernels, Launches
from fastmlp_kernels.cuda.layered.matrix_products import LayerProducts
from fastmlp_kernels.cuda.layered.workspace import Layer, ParameterViews
from fastmlp_kernels.problem import Problem


class Chain:
    """What a step launches between the gathering of its rows and the loss, and after that.

    Parameters
    ----------
    problem, layers, launches, kernels, products, views
    dropout : tuple
        Hyper-parameters, counter and scales, as the kernel `dropout` reads them.
    words : dict
        Counter and status of a training step (True) and of a single call (False).
    """

    def __init__(
        self,
        problem: Problem,
        layers: list[Layer],
        launches: Launches,
        kernels: Kernels,
        products: LayerProducts,
        views: ParameterViews,
        dropout: tuple,
        words: dict[bool, tuple],
    ) -> None:
        self.problem, self.layers, self.launches, self.kernels = problem, layers, launches, kernels
        self.products, self.views, self.words = products, views, words
        self.hyper, self.counter, self.scales = dropout
        self.nowhere = cuda.device_array((0, 0), np.uint16)

    def _drop(self, index: int, source: Any, out: Any, rows: int, rounded: Any) -> None:
        """Enqueue the dropout of a layer, of its outputs or of the derivatives by them."""
        threshold = threshold_of(self.problem.dropout[index])
        arguments = (source, out, rows, self.hyper, self.counter, index, threshold)
        count = rows * source.shape[1]
        self.launches.over(self.kernels.dropout, count, *arguments, self.scales, rounded)

    def forward(self, parameters: Any, X: Any, rows: int, training: bool = False) -> Any:
        """Run every layer on `rows` rows of `X`, keeping what `backward` needs.

        Where they are `training`, layers read what dropout leaves.
        """
        A = X
        for index, (layer, (W, b)) in enumerate(
            zip(self.layers, self.views.of(parameters), strict=True)
        ):
            self.products.forward(index, A, W, b, rows)
            A = layer.A
            if training and layer.dropped is not A:
                A = layer.dropped
                self._drop(index, layer.A, A, rows, self.products.handed_on(index))
        return A

    def backward(
        self, parameters, X, rows, accumulate, gradient, input_gradient, training=False
    ) -> None:
        """Turn the last layer's dZ, which holds dA, into the gradient of every parameter."""
        weights, slots = self.views.of(parameters), self.views.of(gradient)
        for index in range(len(self.layers) - 1, -1, -1):
            lower = self.layers[index - 1] if index else None
            self.products.enter(index, rows, accumulate, slots[index][1])
            dA = input_gradient if lower is None else lower.dZ
            if dA is not None:
                self.products.inputs(index, weights[index][0], rows, dA)
            if training and lower is not None and lower.dropped is not lower.A:
                self._drop(index - 1, dA, dA, rows, self.nowhere)
        words = self.words[training]
        self.products.gradients(X, rows, accumulate, gradient, slots, training, words)

    def take(self, parameters: Any, X: Any, rows: int) -> None:
        """Tell the products of weights and inputs that no step of an epoch has written."""
        self.products.take_weights([W for W, _ in self.views.of(parameters)])
        self.products.take_inputs(X, rows)
