"""Why ReLU: gradient norm per layer by depth, and the time of every activation.

The derivation sheet says two things of the sigmoid: its gradient vanishes with depth, and it costs
more to compute than ReLU. Here both are measured::

    python -m benchmarks.vanishing_gradient           # for the record: on a quiet machine
    python -m benchmarks.vanishing_gradient --quick   # does it work? writes to build/

*Gradient norms* are Frobenius norms of each layer's weight gradient: their medians over seeds. The
networks have 64 units a layer, float64, fastmlp's first weights (sigmoid: Glorot, ReLU: He) and
standard-normal data. All layers have one shape, so their norms can be compared.

*Times* are those of the CPU kernels that training uses, in float32 on one thread. Their arrays stay
in the second-level cache. The activations take turns, in a new order each round. The tables show
medians and quartiles. The identity's line is the cost of the loop and its memory traffic.

Both are checked before they count: the gradients against back-propagation in NumPy, the kernels
against the algebra's plain functions in float64.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import importlib.util
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numba
import numpy as np

from fastmlp import ACTIVATIONS, MLP
from fastmlp_kernels.cpu.activation import activation_backward, activation_forward
from fastmlp_kernels.cpu.tables import address

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 64
BATCH = 256
# Three float32 arrays of 65,536 elements: 768 KiB, within the second-level cache of a server core.
TIMED_SHAPE = (1024, 64)
CHECKED_ELEMENTS = 1000
QUARTILES = (25, 50, 75)


@dataclass(frozen=True)
class Effort:
    """How much to measure."""

    depths: tuple[int, ...]
    seeds: int
    rounds: int


FULL = Effort(depths=(2, 4, 8, 16, 32), seeds=21, rounds=501)
QUICK = Effort(depths=(2, 8), seeds=3, rounds=5)


def sigmoid_value_and_slope(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sigmoid and its derivative, from NumPy alone."""
    value = 1 / (1 + np.exp(-z))
    return value, value * (1 - value)


def relu_value_and_slope(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ReLU and its derivative, from NumPy alone."""
    return np.maximum(z, 0), (z > 0).astype(z.dtype)


HIDDEN = {"sigmoid": sigmoid_value_and_slope, "relu": relu_value_and_slope}


def backpropagate(
    model: MLP, X: np.ndarray, y: np.ndarray, hidden: Callable[[np.ndarray], tuple]
) -> list[np.ndarray]:
    """Return the gradients of the weights by the textbook, to check the model's."""
    layers = len(model.weights)
    inputs, slopes = [X], []
    for layer in range(layers):
        z = inputs[-1] @ model.weights[layer] + model.biases[layer]
        value, slope = hidden(z) if layer < layers - 1 else (z, np.ones_like(z))
        inputs.append(value)
        slopes.append(slope)
    dZ = (inputs[-1] - y) / y.size
    gradients = []
    for layer in reversed(range(layers)):
        gradients.append(inputs[layer].T @ dZ)
        if layer:
            dZ = (dZ @ model.weights[layer].T) * slopes[layer - 1]
    return gradients[::-1]


def gradient_norms(activation: str, depth: int, seeds: int) -> list[float]:
    """Return the median norm of each layer's weight gradient at initialisation, first layer first.

    `depth` counts linear layers; all but the last are followed by the activation.
    """
    norms = np.empty((seeds, depth))
    for seed in range(seeds):
        generator = np.random.default_rng(seed)
        X = generator.standard_normal((BATCH, WIDTH))
        y = generator.standard_normal((BATCH, WIDTH))
        model = MLP([WIDTH] * (depth + 1), activations=activation, seed=seed, dtype="float64")
        _, gradients = model.value_and_grad(X, y)
        expected = backpropagate(model, X, y, HIDDEN[activation])
        for layer, (got, wanted) in enumerate(zip(gradients.weights, expected, strict=True)):
            norms[seed, layer] = np.linalg.norm(got)
            # Relative to the layer's own norm: an absolute tolerance would pass a vanished one.
            error = np.linalg.norm(got - wanted) / np.linalg.norm(wanted)
            if not error < 1e-9:
                raise AssertionError(
                    f"{activation}, depth {depth}, layer {layer + 1}: relative error {error:.1e}"
                )
    return [float(norm) for norm in np.median(norms, axis=0)]


@dataclass(frozen=True)
class Timed:
    """One activation in one direction: what to put back before a call, and the call."""

    name: str
    direction: str
    prepare: Callable[[], None]
    call: Callable[[], None]


def timed_calls() -> list[Timed]:
    """Check the loops of every activation, which compiles them too, and return their calls."""
    generator = np.random.default_rng(0)
    Z = (2 * generator.standard_normal(TIMED_SHAPE)).astype(np.float32)
    dA = generator.standard_normal(TIMED_SHAPE).astype(np.float32)
    out, dZ = np.empty_like(Z), np.empty_like(dA)
    calls = []
    for row in ACTIVATIONS:
        forward, backward = loops(row.name)
        # A row that keeps its output works in place: it is given a fresh copy of Z, and so is the
        # backward loop of dA. Without, the numbers would overflow or sink into subnormal ones
        # after some rounds, and those are slow on many machines.
        A = Z.copy()
        forward(*over(Z, A))
        check_loops(row, Z, A, dA)
        kept = Z if row.keeps == "input" else A
        calls.append(
            Timed(
                row.name,
                "forward",
                functools.partial(np.copyto, out, Z),
                functools.partial(forward, *over(Z, out)),
            )
        )
        calls.append(
            Timed(
                row.name,
                "backward",
                functools.partial(np.copyto, dZ, dA),
                functools.partial(backward, *over(kept, dZ)),
            )
        )
    return calls


def loops(name: str) -> tuple[Callable, Callable]:
    """Return an activation's two compiled loops, forward and backward, which take `over`."""
    kind = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 3)
    return kind(activation_forward(name, "float32")), kind(activation_backward(name, "float32"))


def over(first: np.ndarray, second: np.ndarray) -> tuple[int, int, int]:
    """Return two arrays as a loop takes them; they must outlive the call."""
    return address(first), address(second), second.size


def check_loops(row: object, Z: np.ndarray, A: np.ndarray, dA: np.ndarray) -> None:
    """Compare the compiled loops with the algebra's functions, uncompiled and in float64."""
    dZ = dA.copy()
    loops(row.name)[1](*over(Z if row.keeps == "input" else A, dZ))
    for index in range(CHECKED_ELEMENTS):
        z = np.float64(Z.flat[index])
        value = row.value(z)
        checks = (
            ("value", A.flat[index], value),
            ("slope", dZ.flat[index], np.float64(dA.flat[index]) * row.slope(z, value)),
        )
        for what, got, wanted in checks:
            # Slopes such as (1 - a) a cancel: their error is relative to 1, not to the slope.
            if not np.isclose(got, wanted, rtol=2e-6, atol=2e-6):
                raise AssertionError(f"{row.name}: {what} at {z:g} is {got:g}, wanted {wanted:g}")


def activation_times(rounds: int) -> list[dict]:
    """Return nanoseconds an element of every activation, both directions, as quartiles."""
    calls = timed_calls()
    samples = np.empty((len(calls), rounds))
    generator = np.random.default_rng(0)
    for turn in range(rounds):
        for index in generator.permutation(len(calls)):
            timed = calls[index]
            timed.prepare()
            start = time.perf_counter_ns()
            timed.call()
            samples[index, turn] = time.perf_counter_ns() - start
    per_element = samples / np.prod(TIMED_SHAPE)
    quartiles = np.percentile(per_element, QUARTILES, axis=1).T
    return [
        {"activation": timed.name, "direction": timed.direction, "p25": low, "median": middle,
         "p75": high}
        for timed, (low, middle, high) in zip(calls, quartiles.tolist(), strict=True)
    ]  # fmt: skip


def machine() -> dict[str, str]:
    """Say where and with what the measurement was made."""
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = information.read_text(encoding="utf-8").splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        model = names[0] if names else model
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": model,
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "numba": numba.__version__,
    }


def measure(effort: Effort) -> dict:
    """Measure both and return what goes into the JSON."""
    norms = [
        {
            "activation": activation,
            "depth": depth,
            "norms": gradient_norms(activation, depth, effort.seeds),
        }
        for depth in effort.depths
        for activation in HIDDEN
    ]
    return {
        "machine": machine(),
        "width": WIDTH,
        "batch": BATCH,
        "seeds": effort.seeds,
        "rounds": effort.rounds,
        "elements": int(np.prod(TIMED_SHAPE)),
        "gradient_norms": norms,
        "activation_times": activation_times(effort.rounds),
    }


def markdown(results: dict) -> str:
    """Return the results as two tables."""
    facts = ", ".join(f"{name} {value}" for name, value in results["machine"].items())
    lines = [
        "# Why ReLU",
        "",
        f"Measured by `python -m benchmarks.vanishing_gradient`: {facts}.",
        "",
        f"## Gradient norm per layer ({results['width']} units, batch {results['batch']}, float64, "
        f"median of {results['seeds']} seeds)",
        "",
        "| depth | activation | first layer | last layer | first / last |",
        "| ---: | --- | ---: | ---: | ---: |",
    ]
    for entry in results["gradient_norms"]:
        first, last = entry["norms"][0], entry["norms"][-1]
        lines.append(
            f"| {entry['depth']} | {entry['activation']} | {first:.2e} | {last:.2e} "
            f"| {first / last:.1e} |"
        )
    lines += [
        "",
        f"## Time of an activation (ns an element; {results['elements']:,} elements, float32, one "
        f"thread, median of {results['rounds']} rounds, quartiles in brackets)",
        "",
        "| activation | value map (forward) | slope map (backward) | both, against ReLU |",
        "| --- | ---: | ---: | ---: |",
    ]
    times = {
        (entry["activation"], entry["direction"]): entry for entry in results["activation_times"]
    }

    def both(name: str) -> float:
        return times[name, "forward"]["median"] + times[name, "backward"]["median"]

    for name in dict.fromkeys(name for name, _ in times):
        cells = [
            f"{entry['median']:.3f} [{entry['p25']:.3f}, {entry['p75']:.3f}]"
            for entry in (times[name, "forward"], times[name, "backward"])
        ]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} | {both(name) / both('relu'):.2f} |")
    return "\n".join([*lines, ""])


def draw(results: dict, path: Path) -> str:
    """Draw both measurements; return a line that says what became of it."""
    if importlib.util.find_spec("matplotlib") is None:
        return "No figure: matplotlib is not installed (pip install matplotlib)."
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = {"sigmoid": "tab:red", "relu": "tab:blue"}
    for entry in results["gradient_norms"]:
        layers = np.arange(1, entry["depth"] + 1)
        colour = colours[entry["activation"]]
        # Every depth has its own line; only the deepest is named, as they lie on one another.
        deepest = entry["depth"] == results["gradient_norms"][-1]["depth"]
        label = entry["activation"] if deepest else None
        left.plot(layers, entry["norms"], "o-", markersize=3, color=colour, label=label, alpha=0.8)
    left.set(
        xlabel="layer, from the input (one line for each depth)",
        ylabel="norm of its weight gradient",
        yscale="log",
        title="Gradient norm per layer",
    )
    left.grid(alpha=0.3)
    left.legend(frameon=False)

    for offset, direction in ((-0.2, "forward"), (0.2, "backward")):
        entries = [each for each in results["activation_times"] if each["direction"] == direction]
        places = np.arange(len(entries)) + offset
        right.barh(places, [each["median"] for each in entries], height=0.4, label=direction)
    right.set_yticks(range(len(entries)), [each["activation"] for each in entries])
    right.invert_yaxis()
    right.set(
        xlabel="ns an element, one thread, float32", xscale="log", title="Time of an activation"
    )
    right.grid(alpha=0.3, axis="x")
    right.legend(frameon=False)

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return f"Wrote {path}"


def main(arguments: list[str] | None = None) -> int:
    """Measure, and write the tables and the figure."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.vanishing_gradient", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--quick", action="store_true", help="a small run that writes to build/: no record"
    )
    quick = parser.parse_args(arguments).quick
    results = measure(QUICK if quick else FULL)
    folder = ROOT / "build" if quick else ROOT / "benchmarks" / "results"
    images = folder if quick else ROOT / "docs" / "images"

    folder.mkdir(parents=True, exist_ok=True)
    text = markdown(results)
    path = folder / "vanishing_gradient.md"
    path.write_text(text, encoding="utf-8")
    print(text)
    print(f"Wrote {path}")
    print(draw(results, images / "vanishing_gradient.png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
