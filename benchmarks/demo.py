"""Train the derivation sheet's networks on real data and print what came of it.

Run by ``python3 dev.py demo``. Four networks: the sheet's regression on the prices of diamonds, its
two classifications and a softmax network on handwritten digits. Beside each stands scikit-learn
with the nearest settings it has. Two scores are promised; the demo fails when one is missed.

The rates are what one run gave, with whatever else the machine was doing: `benchmarks.run` is
where speeds are measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import fastmlp
from fastmlp import MLP, Adam, datasets

SEED = 0
HELD_OUT_DIAMONDS = 0.2
HELD_OUT_DIGITS = 1000
CLASSES = 10
DEFAULT_FIGURE = Path(__file__).resolve().parent.parent / "build" / "demo_learning_curves.png"


@dataclass(frozen=True)
class Data:
    """A dataset split into what is trained on and what is held out."""

    X: np.ndarray
    y: np.ndarray
    X_held_out: np.ndarray
    y_held_out: np.ndarray

    def one_hot(self) -> Data:
        """Return the same split with one target column for each class."""
        rows = np.eye(CLASSES, dtype=np.float32)
        return Data(self.X, rows[self.y], self.X_held_out, rows[self.y_held_out])


@dataclass(frozen=True)
class Case:
    """A network to train, the data, the score that is promised and scikit-learn's nearest twin."""

    name: str
    chain: str
    data: Data
    sizes: tuple[int, ...]
    activations: tuple[str, ...]
    loss: str
    epochs: int
    metric: str
    peer: str
    peer_settings: dict
    learning_rate: float = 1e-3
    batch_size: int = 128
    promise: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What a trained network gave; scikit-learn has no kernel, device or history."""

    rows_per_second: float
    train_loss: float
    score: float
    kernel: str = ""
    device: str = ""
    history: object = None


def diamonds() -> Data:
    """Split and standardise the diamonds; the target is the logarithm of the price.

    Prices spread over a factor of sixty, and an error of ten per cent matters alike for a cheap
    and a dear stone: the logarithm makes it one size of error.
    """
    dataset = datasets.load("diamonds")
    order = np.random.default_rng(SEED).permutation(len(dataset.y))
    held_out, train = np.split(order, [round(HELD_OUT_DIAMONDS * len(order))])
    X, y = dataset.X, np.log(dataset.y)[:, None]
    # Only the training rows may say what the mean is: the held-out ones are not known yet.
    X = (X - X[train].mean(axis=0)) / X[train].std(axis=0)
    y = (y - y[train].mean()) / y[train].std()
    return Data(X[train], y[train], X[held_out], y[held_out])


def digits() -> Data:
    """Shuffle the digits and hold out as many of each class."""
    dataset = datasets.load("mnist_5k")
    generator = np.random.default_rng(SEED)
    each = HELD_OUT_DIGITS // CLASSES
    classes = [
        generator.permutation(np.flatnonzero(dataset.y == label)) for label in range(CLASSES)
    ]
    held_out = generator.permutation(np.concatenate([rows[:each] for rows in classes]))
    train = generator.permutation(np.concatenate([rows[each:] for rows in classes]))
    return Data(dataset.X[train], dataset.y[train], dataset.X[held_out], dataset.y[held_out])


def cases() -> list[Case]:
    """Return the sheet's three systems and a softmax network."""
    numbers, images = diamonds(), digits()
    return [
        Case(
            "diamonds: regression",
            "linear, ReLU, linear, identity; half squared error",
            numbers,
            (26, 64, 1),
            ("relu", "identity"),
            "half_squared_error",
            epochs=20,
            metric="r2",
            peer="MLPRegressor",
            peer_settings={"activation": "relu"},
            promise=0.95,
        ),
        Case(
            "digits: classification (a)",
            "linear, sigmoid, linear, sigmoid; half squared error",
            images.one_hot(),
            (784, 64, CLASSES),
            ("sigmoid", "sigmoid"),
            "half_squared_error",
            epochs=40,
            metric="accuracy",
            peer="MLPRegressor",  # identity at the output: scikit-learn has no squared error
            peer_settings={"activation": "logistic"},  # after a sigmoid
            learning_rate=3e-3,
        ),
        Case(
            "digits: classification (b)",
            "linear, sigmoid, linear, sigmoid; binary cross-entropy",
            images.one_hot(),
            (784, 64, CLASSES),
            ("sigmoid", "sigmoid"),
            "binary_cross_entropy",
            epochs=40,
            metric="accuracy",
            peer="MLPClassifier",  # one-hot targets give it sigmoids and this loss
            peer_settings={"activation": "logistic"},
            learning_rate=3e-3,
        ),
        Case(
            "digits: softmax",
            "linear, ReLU, linear; softmax cross-entropy",
            images,
            (784, 256, CLASSES),
            ("relu", "identity"),
            "softmax_cross_entropy",
            epochs=20,
            metric="accuracy",
            peer="MLPClassifier",
            peer_settings={"activation": "relu"},
            promise=0.93,
        ),
    ]


def held_out_score(case: Case, predict: Callable[[np.ndarray], np.ndarray]) -> float:
    """Score predictions on the held-out rows; the same few lines for fastmlp and its peer."""
    prediction = np.asarray(predict(case.data.X_held_out), dtype=np.float64)
    target = case.data.y_held_out
    if case.metric == "r2":
        residual = ((prediction.reshape(target.shape) - target) ** 2).sum()
        return float(1 - residual / ((target - target.mean()) ** 2).sum())
    labels = target.argmax(axis=1) if target.ndim == 2 else target
    return float((prediction.argmax(axis=1) == labels).mean())


def build(case: Case) -> MLP:
    """Return the untrained network of a case."""
    return MLP(list(case.sizes), activations=list(case.activations), loss=case.loss, seed=SEED)


def train(case: Case, device: str) -> Outcome:
    """Train a case with fastmlp."""
    data, model = case.data, build(case)
    history = model.fit(
        data.X,
        data.y,
        epochs=case.epochs,
        batch_size=case.batch_size,
        optimizer=Adam(case.learning_rate),
        validation_data=(data.X_held_out, data.y_held_out),
        device=device,
    )
    return Outcome(
        # The median, as the first epoch of a new machine waits for the compiler.
        rows_per_second=len(data.X) / float(np.median(history.seconds)),
        train_loss=float(history.loss[-1]),
        score=held_out_score(case, model.predict),
        kernel=history.kernel,
        device=history.device,
        history=history,
    )


def train_peer(case: Case) -> Outcome:
    """Train scikit-learn's nearest network: Adam, the same sizes, rates, batches and epochs."""
    from sklearn import neural_network
    from sklearn.exceptions import ConvergenceWarning

    data = case.data
    peer = getattr(neural_network, case.peer)(
        hidden_layer_sizes=case.sizes[1:-1],
        solver="adam",
        alpha=0.0,
        batch_size=case.batch_size,
        learning_rate_init=case.learning_rate,
        max_iter=case.epochs,
        n_iter_no_change=case.epochs,
        random_state=SEED,
        **case.peer_settings,
    )
    target = data.y.ravel() if data.y.shape[1:] == (1,) else data.y
    start = time.perf_counter()
    with warnings.catch_warnings():
        # It warns that it has not converged whenever it runs the epochs it was asked for.
        warnings.simplefilter("ignore", ConvergenceWarning)
        peer.fit(data.X, target)
    seconds = time.perf_counter() - start
    predict = peer.predict if case.peer == "MLPRegressor" else peer.predict_proba
    return Outcome(len(data.X) * case.epochs / seconds, peer.loss_, held_out_score(case, predict))


def table(rows: list[list[str]]) -> str:
    """Align rows under the first one: words to the left, the rest to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    words = {0, 1, 2, 3}  # network, trained by, kernel, device
    lines = [
        "  ".join(
            cell.ljust(width) if column in words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * (sum(widths) + 2 * (len(widths) - 1)))
    return "\n".join(lines)


def report(case: Case, by: str, outcome: Outcome) -> list[str]:
    """Return one line of the table."""
    percent = case.metric == "accuracy"
    score = f"{outcome.score:.1%}" if percent else f"R2 {outcome.score:.4f}"
    promise = ""
    if by == "fastmlp" and case.promise is not None:
        wanted = f"{case.promise:.0%}" if percent else f"{case.promise:.2f}"
        promise = f"{wanted} {'met' if outcome.score >= case.promise else 'MISSED'}"
    name = case.name if by == "fastmlp" else ""
    rate = f"{outcome.rows_per_second:,.0f}"
    loss = f"{outcome.train_loss:.4f}"
    return [name, by, outcome.kernel, outcome.device, rate, loss, score, promise]


def draw(results: list[tuple[Case, Outcome]], path: Path) -> str:
    """Draw the learning curves to a file; return a line that says what became of it."""
    if importlib.util.find_spec("matplotlib") is None:
        return "No learning curves: matplotlib is not installed (pip install matplotlib)."
    import matplotlib

    matplotlib.use("Agg")  # no window: a demo also runs where there is no screen
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(10, 7), layout="constrained")
    for axis, (case, outcome) in zip(axes.flat, results, strict=True):
        epochs = np.arange(1, case.epochs + 1)
        axis.plot(epochs, outcome.history.loss, label="training")
        axis.plot(epochs, outcome.history.validation_loss, label="held out")
        axis.set(title=case.name, xlabel="epoch", ylabel=case.loss.replace("_", " "), yscale="log")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return f"Learning curves: {path}"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.demo", description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--output", type=Path, default=DEFAULT_FIGURE, help="figure to write")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; return 1 if a promised score was missed."""
    options = parse(arguments)
    # A first compilation takes seconds: fastmlp says so on its logger, and here it is heard.
    logging.basicConfig(format="%(name)s: %(message)s")
    logging.getLogger("fastmlp").setLevel(logging.INFO)

    try:
        todo = cases()
    except datasets.MissingDatasetError as error:
        print(error, file=sys.stderr)
        return 2
    has_peer = importlib.util.find_spec("sklearn") is not None
    lines = [
        "network|by|kernel|device|rows/s|training loss|held-out score|promised".split("|"),
    ]
    results = []
    for case in todo:
        print(f"{case.name}: {case.chain}; {len(case.data.X):,} rows, {case.epochs} epochs")
        outcome = train(case, options.device)
        results.append((case, outcome))
        lines.append(report(case, "fastmlp", outcome))
        if has_peer:
            lines.append(report(case, case.peer, train_peer(case)))

    last = results[-1][0]
    print(f"\nHow the kernel of {last.name!r} was chosen:")
    print(
        fastmlp.explain(
            build(last),
            batch_size=last.batch_size,
            rows=len(last.data.X),
            optimizer=Adam(last.learning_rate),
            device=options.device,
        )
    )
    print(f"\n{table(lines)}\n")
    print(
        "Diamonds: features standardised, the target is log(price), R2 is of log(price). Losses "
        "are as each\nlibrary defines them. MLPRegressor and MLPClassifier are scikit-learn's, "
        "with the nearest settings\nthey have: where the sheet puts a sigmoid before the squared "
        "error, MLPRegressor has the identity.\nrows/s: fastmlp's median epoch and scikit-learn's "
        "whole fit, once each, whatever else the\nmachine was doing: an impression. "
        "`python3 dev.py bench` measures."
    )
    if not has_peer:
        print("scikit-learn is not installed, so there is no line to compare with.")
    print(draw(results, options.output))
    missed = [case.name for case, out in results if case.promise and out.score < case.promise]
    if missed:
        print(f"A promised score was missed: {', '.join(missed)}.", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
