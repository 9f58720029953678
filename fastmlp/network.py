"""A network: its chain and parameters, as users see and copy them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastmlp import steps
from fastmlp.arrays import check_seed
from fastmlp.errors import known_keywords, look_up
from fastmlp.frames import Columns
from fastmlp.gradients import Gradients
from fastmlp.history import History
from fastmlp.parameters import (
    ParameterViews,
    aligned_zeros,
    bias_views,
    check_values,
    initialize,
    weight_views,
)
from fastmlp.planning import Programs, Where, asked, check_threads
from fastmlp.problems import make_problem
from fastmlp.training_state import TrainingState
from fastmlp_kernels.algebra import ACTIVATIONS, INITIALIZERS, LOSSES
from fastmlp_kernels.problem import LayerLayout, parameter_layout

Array = NDArray[Any]

# The generators take 64 bits.
LARGEST_SEED = 2**64 - 1


class Network:
    """What an `MLP` is before it computes anything: see there."""

    @known_keywords
    def __init__(
        self,
        sizes: Sequence[int],
        activations: Any = "relu",
        loss: Any = "half_squared_error",
        *,
        seed: int | None = 0,
        dtype: DTypeLike = "float32",
        reduction: str = "mean",
        precision: str = "float32",
        initializer: Any = None,
    ) -> None:
        self.seed = check_seed(seed, "seed", LARGEST_SEED)
        self.template = make_problem(sizes, activations, loss, dtype, reduction, precision)
        self._loss = LOSSES[self.template.loss]
        if initializer is None:
            rows = [ACTIVATIONS[name] for name in self.activations]
            chosen = [INITIALIZERS[row.initializer] for row in rows]
        else:
            chosen = [look_up("initializer", INITIALIZERS, initializer)] * len(self.activations)
        parameters = aligned_zeros((self.template.parameter_count,), self.template.dtype)
        initialize(parameters, self._layout(), chosen, self.seed)
        self._state = TrainingState(parameters, self.seed)
        self._gradient: Array | None = None
        self._where = Where()
        self._columns: Columns | None = None
        self.history: History | None = None
        # Whether the targets of one output were a vector when the model was last trained.
        self._vector = False
        # Most targets of a loss that takes labels are labels.
        self._labels = self._loss.label_rule is not None
        self._forget()

    def _layout(self) -> tuple[LayerLayout, ...]:
        return parameter_layout(self.sizes)

    def _forget(self) -> None:
        self._programs = Programs(self.template)
        self._step: steps.Step | None = None
        self._pass: steps.Pass | None = None
        self._kernel: str | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """Units per layer, inputs first."""
        return self.template.sizes

    @property
    def activations(self) -> tuple[str, ...]:
        """The activation of each layer."""
        return self.template.activations

    @property
    def loss_name(self) -> str:
        """The loss."""
        return self.template.loss

    @property
    def reduction(self) -> str:
        """How the loss of a batch is made of those of its rows."""
        return self.template.reduction

    @property
    def precision(self) -> str:
        """The coarsest rounding that matrix products may use."""
        return self.template.precision

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the parameters."""
        return self._state.parameters.dtype

    @property
    def threads(self) -> int | None:
        """The most threads of a method that is not told otherwise; may be assigned to.

        None, as at first, stands for what the process may use. Work too small to share stays on
        one thread, and results have the same bits on any number.
        """
        return self._where.threads

    @threads.setter
    def threads(self, count: int | None) -> None:
        self._where = Where(threads=check_threads(count))

    def _asked(self, device: str, kernel: str | None, threads: int | None) -> Where:
        if device == "auto" and kernel is None and threads is None:
            return self._where
        return asked(device, kernel, threads, self.threads)

    @property
    def epochs_trained(self) -> int:
        """Finished epochs of all fits."""
        return self._state.epochs

    @property
    def parameters(self) -> Array:
        """All parameters as one flat vector, layer by layer: weights row by row, then biases."""
        return self._state.parameters

    @parameters.setter
    def parameters(self, values: Any) -> None:
        state = self._state
        checked = check_values("parameters", values, state.parameters)
        state.change("parameters", lambda: np.copyto(state.parameters, checked))

    @property
    def weights(self) -> ParameterViews:
        """The weight matrices (inputs, outputs), one per layer: views, which may be assigned to."""
        views = weight_views(self._state.parameters, self._layout())
        return ParameterViews("weights", views, self._state.change)

    @weights.setter
    def weights(self, values: Any) -> None:
        self.weights.assign(values)

    @property
    def biases(self) -> ParameterViews:
        """The bias vectors, one per layer: views, which may be assigned to."""
        views = bias_views(self._state.parameters, self._layout())
        return ParameterViews("biases", views, self._state.change)

    @biases.setter
    def biases(self, values: Any) -> None:
        self.biases.assign(values)

    @property
    def gradients(self) -> Gradients:
        """What `backward` has accumulated since `zero_grad`."""
        if self._gradient is None:
            self._gradient = aligned_zeros(self.parameters.shape, self.dtype)
        return self._gradients_of(self._gradient)

    def _gradients_of(self, flat: Array) -> Gradients:
        weights = ParameterViews("gradients.weights", weight_views(flat, self._layout()))
        biases = ParameterViews("gradients.biases", bias_views(flat, self._layout()))
        return Gradients(flat, weights, biases)

    def __repr__(self) -> str:
        rounded = "" if self.precision == "float32" else f", precision={self.precision!r}"
        return (
            f"MLP({list(self.sizes)}, activations={list(self.activations)}, "
            f"loss={self.loss_name!r}, seed={self.seed}, dtype={self.dtype.name!r}, "
            f"reduction={self.reduction!r}{rounded})"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the programs: workspaces and compiled code, which are made again."""
        left_out = ("_programs", "_step", "_pass", "_kernel", "_loss")
        return {name: value for name, value in vars(self).items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copied or unpickled model."""
        self.__dict__.update(state)
        self._loss = LOSSES[self.template.loss]
        self._forget()
