"""The checked arguments of a fit, and what of them decides its result."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastmlp.callbacks import Callback, Checkpoint, EarlyStopping, Patience
from fastmlp.data.admission import ChunkedData, Data
from fastmlp.data.validation import Validation
from fastmlp.data.weighting import Weights
from fastmlp.dispatch.planning import Where
from fastmlp.metrics import Metric, columns
from fastmlp.optimizer_base import Optimizer
from fastmlp.training.checkpoints import digest, keepers


@dataclass(frozen=True)
class Options:
    """The checked arguments of a fit.

    Of `optimizers` there is one for each network. The first of `metrics` is the score.
    """

    epochs: int
    batch_size: int
    optimizers: tuple[Optimizer, ...]
    metrics: tuple[Metric, ...]
    shuffle: bool = True
    weights: Weights | Callable[[Data], Weights] | None = None
    l2: float = 0.0
    early_stopping: EarlyStopping | None = None
    callbacks: tuple[Callback, ...] = ()
    checkpoints: tuple[Checkpoint, ...] = ()
    resume: str | None = None
    where: Where = Where()
    progress: bool | None = None
    verbose: int = 0


def settings_of(
    model: Any,
    data: Any,
    validation: Mapping[str, Validation],
    options: Options,
    patience: Sequence[Patience],
    shards: int = 1,
    data_digest: str | None = None,
) -> dict[str, str]:
    """Return what decides the result of a fit, as texts by name.

    `data_digest` stands for the digest of rows and weights, of which other ranks have a part.
    """
    if data_digest is None:
        arrays: Any = data
        weights: Any = options.weights
        if isinstance(data, ChunkedData):
            # The first chunk stands for all of them.
            arrays, weights = data.first, weights and weights(data.first)
        data_digest = digest(arrays.X, arrays.y, weights)
    rule = options.early_stopping
    # Equal ones are written once, whatever their number.
    alike = all(each == options.optimizers[0] for each in options.optimizers)
    optimizers = repr([*options.optimizers[: 1 if alike else None]])
    kept = keepers(options.callbacks)
    more = {"callbacks": _without_addresses(repr(kept))} if kept else {}
    return {
        **more,
        "model": repr(model),
        "shards": str(shards),
        "rows": data.extent,
        "X, y or weights": data_digest,
        "batch_size": str(options.batch_size),
        "optimizer": _without_addresses(optimizers),
        "shuffle": str(options.shuffle),
        "l2": str(options.l2),
        "early_stopping": str(rule),
        "higher_is_better": str(rule and patience[0].higher_is_better),
        "validation_rows": str(sum(len(data.X) for data, _ in validation.values())),
        "validation_data": digest(
            *(each for data, weights in validation.values() for each in (*data[:2], weights))
        ),
        "metrics": ", ".join(columns(validation, options.metrics)),
    }


def _without_addresses(text: str) -> str:
    """Return a text without the addresses of functions, which differ between processes."""
    return re.sub(r" at 0x[0-9a-f]+", "", text)
