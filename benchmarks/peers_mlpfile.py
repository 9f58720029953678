"""mlpfile, which is made for one row at a time: a prediction, and a step at batch size 1."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.baselines import Baseline
from benchmarks.cases import LEARNING_RATE, Case, Data, Weights
from benchmarks.validation import flatten


class Mlpfile(Baseline):
    """mlpfile as pip builds it: `forward`, and `grad_update` with its own squared error."""

    module = "mlpfile"
    packages = ("mlpfile",)
    devices = ("cpu",)
    suites = ("training", "prediction")

    def load(self) -> None:
        """Import it."""
        import mlpfile

        self.mlpfile = mlpfile

    def prepare(self, case: Case, data: Data, weights: list[Weights]) -> Callable[[], None]:
        """Make the model, and take the rows apart."""
        mlpfile, parts = self.mlpfile, []
        for W, b in weights[0]:
            linear, relu = mlpfile.Layer(), mlpfile.Layer()
            linear.type, linear.W, linear.b = mlpfile.LayerType.Linear, W.T, b
            relu.type = mlpfile.LayerType.ReLU
            parts += [linear, relu]
        self.model = mlpfile.Model()
        self.model.layers = parts[:-1]
        update, loss = self.model.grad_update, mlpfile.squared_error
        # It adds over outputs.
        rate, rows = LEARNING_RATE / case.sizes[-1], list(zip(*data, strict=True))

        def epoch() -> None:
            for x, y in rows:
                update(x, y, loss, rate)

        return epoch

    def parameters(self) -> np.ndarray:
        """Return its weights, which it keeps transposed."""
        return flatten([[(layer.W.T, layer.b) for layer in self.model.layers[::2]]])

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Predict the one row."""
        return self.model.forward(rows[0])[None]
