"""What a network is, or several of one shape: its description, its parameters and its file."""

from dataclasses import replace
from html import escape
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fastmlp.dispatch.planning import Programs, Where, check_threads
from fastmlp.files.contents import Contents
from fastmlp.saving import Savable
from fastmlp.state.parameters import ParameterViews, bias_views, check_values, weight_views
from fastmlp.summary import Summary
from fastmlp_kernels.algebra import LOSSES
from fastmlp_kernels.problem import LayerLayout, parameter_layout

Array = NDArray[Any]


class Described(Savable):
    """A network, or several of one shape, without what they do: see `Network`."""

    # Workspaces and compiled code, which are made again.
    _not_saved: tuple[str, ...] = ("_programs", "_alone", "_loss")

    def _begin(self, contents: Contents) -> None:
        """Become the network that is described."""
        self.template, self._members = contents.template, contents.members
        self._state, self.seed = contents.state, contents.state.seed
        self._where = Where()
        self._columns = contents.columns
        self.history = contents.history
        # Whether the targets of one output were a vector when the model was last trained.
        self._vector = contents.vector
        self._forget()

    @classmethod
    def _from(cls, contents: Contents) -> Self:
        model = cls.__new__(cls)
        model._begin(contents)
        return model

    def _contents(self) -> Contents:
        parts = self.template, self._members, self._state, self.history
        return Contents(*parts, self._columns, self._vector)

    def _layout(self) -> tuple[LayerLayout, ...]:
        return parameter_layout(self.sizes)

    def _forget(self) -> None:
        self._loss = LOSSES[self.template.loss]
        # Of all networks, and of one: predictions and evaluations go through networks in turn.
        self._programs = self._alone = Programs(self.template)
        if self.template.members > 1:
            self._alone = Programs(replace(self.template, members=1))

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
    def dropout(self) -> tuple[float, ...]:
        """The share of each hidden layer's outputs that training leaves out; empty without any."""
        return self.template.dropout

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

    @property
    def epochs_trained(self) -> Any:
        """Finished epochs of all fits; of an ensemble, of each network."""
        epochs = self._state.epochs
        return epochs if self._members is None else np.array(epochs, ndmin=1)

    @property
    def parameters(self) -> Array:
        """All parameters as one flat vector, layer by layer: weights row by row, then biases.

        Of an ensemble (members, parameters of a network).
        """
        held = self._state.parameters
        return held if self._members is None else held.reshape(self._members, -1)

    @parameters.setter
    def parameters(self, values: Any) -> None:
        held = self.parameters
        checked = check_values("parameters", values, held)
        self._state.change("parameters", lambda: np.copyto(held, checked))

    @property
    def weights(self) -> ParameterViews:
        """The weight matrices (inputs, outputs), one per layer: views, which may be assigned to.

        Of an ensemble (members, inputs, outputs).
        """
        views = weight_views(self.parameters, self._layout())
        return ParameterViews("weights", views, self._state.change)

    @weights.setter
    def weights(self, values: Any) -> None:
        self.weights.assign(values)

    @property
    def biases(self) -> ParameterViews:
        """The bias vectors, one per layer: views, which may be assigned to.

        Of an ensemble (members, outputs).
        """
        views = bias_views(self.parameters, self._layout())
        return ParameterViews("biases", views, self._state.change)

    @biases.setter
    def biases(self, values: Any) -> None:
        self.biases.assign(values)

    def summary(self) -> Summary:
        """Return a table of the layers: their shapes, activations and parameters."""
        return Summary(self.template)

    def __repr__(self) -> str:
        members = "" if self._members is None else f"members={self._members}, "
        left_out = f", dropout={list(self.dropout)}" if self.dropout else ""
        rounded = "" if self.precision == "float32" else f", precision={self.precision!r}"
        return (
            f"{type(self).__name__}({list(self.sizes)}, {members}"
            f"activations={list(self.activations)}, loss={self.loss_name!r}, seed={self.seed}, "
            f"dtype={self.dtype.name!r}, reduction={self.reduction!r}{rounded}{left_out})"
        )

    def _repr_html_(self) -> str:
        return f"<p>{escape(repr(self))}</p>{self.summary()._repr_html_()}"

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the programs: workspaces and compiled code, which are made again."""
        return {name: each for name, each in vars(self).items() if name not in self._not_saved}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copied or unpickled model."""
        self.__dict__.update(state)
        self._forget()
