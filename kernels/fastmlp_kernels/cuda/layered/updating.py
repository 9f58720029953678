"""The launches that end a step: the squares of the weights, the gradient's norm, the update."""

from typing import Any

import numpy as np
from numba import cuda

from fastmlp_kernels.algebra import OPTIMIZERS
from fastmlp_kernels.cuda.layered import workspace
from fastmlp_kernels.cuda.layered.launching import Kernels, Launches
from fastmlp_kernels.problem import Problem


class Updating:
    """What the update of a problem reads beside the step's own arrays, and its launches.

    Attributes
    ----------
    biases : uint8[P], on the device
        1 where the parameter is a bias.
    """

    def __init__(self, problem: Problem, launches: Launches, kernels: Kernels) -> None:
        self.problem, self.launches, self.kernels = problem, launches, kernels
        self.optimizer = OPTIMIZERS.code(problem.optimizer)
        dtype, blocks = np.dtype(problem.dtype), launches.tiles.sum_blocks(problem.parameter_count)
        self.sums = cuda.device_array(blocks, dtype)
        self.arrivals = cuda.to_device(np.zeros(1, np.int32))
        self.scale = cuda.to_device(np.ones(int(problem.clipping != "none"), dtype))
        self.layers = cuda.to_device(workspace.layer_numbers(problem))
        self.biases = cuda.to_device(workspace.bias_mask(problem))

    def enqueue_squares(self, parameters: Any, squares: Any, counter: Any) -> None:
        """Enqueue the sum of the squares of all weights."""
        arguments = (parameters, self.biases, squares, counter, self.sums, self.arrivals)
        count = self.problem.parameter_count
        self.launches.sum_of(self.kernels.sum_squares, count, *arguments)

    def enqueue(
        self,
        parameters: Any,
        gradient: Any,
        slots: Any,
        hyper: Any,
        words: Any,
        status: Any,
        rounded: Any,
        rows: tuple = (),
    ) -> None:
        """Enqueue the update, and what comes before it where norms are clipped.

        `words` are the counter and the status that the update reads; a norm that is not finite is
        noted in `status`. `rounded` is where weights go as bfloat16: their places, and the array.
        `rows` are the last arguments of `update_and_gather`, where the next batch's rows are to be
        collected.
        """
        kernels, count = self.kernels, self.problem.parameter_count
        if self.problem.clipping == "norm":
            arguments = (gradient, hyper, words[0], status, self.scale, self.sums, self.arrivals)
            self.launches.sum_of(kernels.clip_by_norm, count, *arguments)
        vectors = (parameters, gradient, *slots, self.biases, self.layers)
        arguments = (self.optimizer, hyper, self.scale, *words, *rounded, *rows)
        elements = self.problem.batch_size * (self.problem.sizes[0] + self.problem.target_columns)
        kernel = kernels.update_and_gather if rows else kernels.update
        count += elements if rows else 0
        self.launches.over(kernel, count, *vectors, *arguments)
