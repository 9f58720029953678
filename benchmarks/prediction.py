"""Predictions: how many rows of which networks, what must come out, and who predicts only.

A unit of work is a call with all of the rows, which lie in a NumPy array, as do the outputs.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.baselines import Baseline
from benchmarks.cases import Case, Data, Weights, find
from benchmarks.ours import FastmlpFit
from benchmarks.validation import Disagreement

NETWORKS = ("16-64-1", "784-128-10", "256-512-512-16")
ROWS = (1, 32, 1000, 50_000)
FEW_ROWS, GOAL_OF_FEW, GOAL_OF_MANY = 1000, 2.0, 1.2
TOLERANCE = 1e-4
"""Largest error of an output, relative to the largest output: float32 rounds a thousandth of it."""


@dataclass(frozen=True)
class Prediction(Case):
    """A network and a number of rows, which is its `batch`."""

    @property
    def title(self) -> str:
        """The network and the rows."""
        return f"{self.name}, {self.batch:,} row{'s' if self.batch > 1 else ''}"

    @property
    def flops_per_step(self) -> float:
        """Floating-point operations of the forward products."""
        return 2.0 * self.batch * sum(a * b for a, b in pairwise(self.sizes))


def predictions(names: list[str]) -> list[Prediction]:
    """Return the predictions of those networks among `names` that have any."""
    found = []
    for name in NETWORKS:
        for rows in ROWS if name in names else ():
            goal = GOAL_OF_FEW if rows <= FEW_ROWS else GOAL_OF_MANY
            of = find(name)
            found.append(Prediction(name, of.sizes, rows, 1, of.reason, goal, devices=("cpu",)))
    return found


def expected_outputs(case: Prediction) -> np.ndarray:
    """Return what every provider must predict, in float64."""
    A = case.data().X.astype(np.float64)
    *hidden, last = case.initial_weights()[0]
    for W, b in hidden:
        A = np.maximum(A @ W + b, 0)
    W, b = last
    return A @ W + b


def check_outputs(got: Any, expected: np.ndarray) -> float:
    """Return the error of predictions; raise `Disagreement` if it is too large."""
    found = np.asarray(got, dtype=np.float64).reshape(expected.shape)
    error = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not error <= TOLERANCE:
        raise Disagreement(f"outputs: got an error of {error:.2g}, wanted at most {TOLERANCE:g}")
    return error


def nothing() -> None:
    """Do nothing, once an epoch."""


class FastmlpPredict(FastmlpFit):
    """fastmlp as its users call it: ``model.predict(X)`` with all its checks."""

    role = "ours"
    suites = ("prediction",)
    devices = ("cpu",)

    def prepare(self, case: Case, data: Data, weights: list[Weights]) -> Callable[[], None]:
        """Make the model."""
        self.make_model(case, weights)
        return nothing

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Call the model."""
        return self.model.predict(rows)


class NumPy(Baseline):
    """NumPy: a product, a sum and a maximum a layer, in place."""

    module = "numpy"
    packages = ("numpy",)
    devices = ("cpu",)
    suites = ("prediction",)

    def load(self) -> None:
        """Give its BLAS its threads."""
        from threadpoolctl import threadpool_limits

        self.limits = threadpool_limits(self.entry.threads)

    def prepare(self, case: Case, data: Data, weights: list[Weights]) -> Callable[[], None]:
        """Keep the weights."""
        *self.hidden, self.last = weights[0]
        return nothing

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Compute layer after layer."""
        for W, b in self.hidden:
            rows = rows @ W
            rows += b
            np.maximum(rows, 0, out=rows)
        W, b = self.last
        outputs = rows @ W
        outputs += b
        return outputs


class OnnxRuntime(Baseline):
    """onnxruntime on a file of fastmlp's, optimised as far as it can."""

    module = "onnxruntime"
    packages = ("onnxruntime", "onnx")
    devices = ("cpu",)
    suites = ("prediction",)

    def available(self) -> str | None:
        """Return why no file can be written or read, or None."""
        missing = importlib.util.find_spec("onnx") is None
        return "onnx is not installed" if missing else super().available()

    def load(self) -> None:
        """Import it."""
        import onnxruntime

        self.onnxruntime = onnxruntime

    def prepare(self, case: Case, data: Data, weights: list[Weights]) -> Callable[[], None]:
        """Write the network to a file, and read it."""
        from fastmlp import MLP

        model = MLP(list(case.sizes), case.activation, dtype=case.dtype)
        model.weights = [W for W, _ in weights[0]]
        model.biases = [b for _, b in weights[0]]
        options = self.onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.entry.threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = self.onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            model.to_onnx(path)
            self.session = self.onnxruntime.InferenceSession(
                path.read_bytes(), options, providers=["CPUExecutionProvider"]
            )
        return nothing

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Run the session."""
        return self.session.run(None, {"X": rows})[0]
