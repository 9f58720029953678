"""Measure one commit of fastmlp: what `benchmarks.compare` starts.

It uses fastmlp's public names alone, and nothing of `benchmarks`, since another commit may have
another harness. Each line that it reads is ``prepare JOB`` or ``time JOB COUNT``.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

RATES = {"sgd": 0.1, "adam": 1e-3}


def prepared(path: Path, threads: int) -> tuple[Callable[[], Any], Callable[[], np.ndarray]]:
    """Return what is to be timed, and what returns what one call of it has computed."""
    from fastmlp import MLP, SGD, Adam

    with np.load(path) as file:
        job = dict(file)
    about, X, y = json.loads(str(job["about"])), job["X"], job["y"]
    model = MLP(about["sizes"], "relu", "half_squared_error", seed=0, reduction="mean")
    layers = range(len(about["sizes"]) - 1)
    model.weights = [job[f"W{k}"] for k in layers]
    model.biases = [job[f"b{k}"] for k in layers]
    model.threads = threads or None
    kind = {"sgd": SGD, "adam": Adam}[about["optimizer"]]
    optimizer, batch = kind(RATES[about["optimizer"]]), about["batch"]
    if about["kind"] == "predict":
        return lambda: model.predict(X), lambda: model.predict(X)
    if about["kind"] == "step":
        starts = range(0, len(X), batch)
        batches = [(X[k : k + batch], y[k : k + batch]) for k in starts]

        def steps() -> None:
            for rows, wanted in batches:
                model.step(rows, wanted, optimizer)

        return steps, lambda: model.parameters
    settings = {"epochs": 1, "batch_size": batch, "shuffle": False, "progress": False}
    return lambda: model.fit(X, y, optimizer=optimizer, **settings), lambda: model.parameters


def timed(call: Callable[[], Any], count: int) -> float:
    """Return the seconds of `count` calls, with the garbage collector out of the way."""
    gc.collect()
    gc.disable()
    started = time.perf_counter()
    for _ in range(count):
        call()
    seconds = time.perf_counter() - started
    gc.enable()
    return seconds


def main(folder: Path, threads: int) -> None:
    """Answer until no more is asked."""
    calls: dict[str, Callable[[], Any]] = {}
    for line in sys.stdin:
        name, number, *rest = line.split()
        if name == "prepare":
            calls[number], found = prepared(folder / f"{number}.npz", threads)
            calls[number]()
            np.save(folder / "found.npy", found())
            print("found.npy", flush=True)
        else:
            print(timed(calls[number], int(rest[0])), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
