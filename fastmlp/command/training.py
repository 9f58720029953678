"""The command ``fastmlp train``: rows and settings from files, and the model to one."""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from fastmlp.callbacks import Checkpoint
from fastmlp.command.settings import Settings, read_settings
from fastmlp.command.tables import Columns, Rows, Table, read_rows
from fastmlp.distributed import rows_of_rank
from fastmlp.errors import DomainError, MissingPackageError
from fastmlp.history import History
from fastmlp.loggers import CSVLogger
from fastmlp.losses import check_loss
from fastmlp.model import MLP
from fastmlp.training.agreement import agreed

T = TypeVar("T")


def train(path: str, mpi: bool = False, progress: bool | None = None) -> tuple[MLP, History]:
    """Train as a file of settings says, and write the model; return it with its history.

    Parameters
    ----------
    path : str
        The file of settings.
    mpi : bool
        Whether all ranks of MPI train together, each on its part of the rows.
    progress : bool, optional
        As of `MLP.fit`.
    """
    world = _world() if mpi else None

    def on_all(work: Callable[[], T]) -> T:
        return work() if world is None else agreed(world, work)

    run = on_all(lambda: Run(path, world))
    history = on_all(lambda: run.fit(progress))
    on_all(run.finish)
    return run.model, history


class Run:
    """A training from files. Making it reads and checks them.

    Parameters
    ----------
    path : str
        The file of settings.
    world
        The communicator of all ranks, or None.
    """

    def __init__(self, path: str, world: Any) -> None:
        self._settings = settings = read_settings(path)
        self._world, self._first = world, world is None or world.rank == 0
        self._rows = rows = read_rows(settings.train, settings.columns, settings.delimiter)
        self._own = slice(None)
        self._given: dict[str, Any] = dict(settings.fit)
        if world is not None:
            self._own = rows_of_rank(len(rows.y), world.rank, world.size)
            self._given["communicator"] = world
        if settings.validation is not None:
            rest = Columns(settings.columns.target, _names(rows), settings.columns.weight)
            rest = rest if settings.columns != Columns() else Columns()
            held = read_rows(settings.validation, rest, settings.delimiter)
            self._given["validation_data"] = _scaled(held, settings, rows)
        self.model = MLP(_sizes(rows, settings), **settings.model)

    def fit(self, progress: bool | None) -> History:
        """Train on the rows, or on this rank's part of them."""
        settings, given = self._settings, dict(self._given)
        callbacks: list[Any] = []
        if settings.history is not None and self._first:
            callbacks.append(CSVLogger(settings.history))
        if settings.checkpoint:
            callbacks.append(Checkpoint(**settings.checkpoint))
            given["resume"] = True
        X, y, *weights = (each[self._own] for each in _scaled(self._rows, settings, self._rows))
        return self.model.fit(
            X,
            y,
            sample_weight=weights[0] if weights else None,
            optimizer=settings.optimizer,
            early_stopping=settings.early_stopping,
            callbacks=callbacks,
            progress=progress,
            **given,
        )

    def finish(self) -> None:
        """Have the model take features as they are in the file, and write it."""
        if self._settings.scale:
            take_raw_features(self.model, *_scale(self._rows))
        if self._first:
            self.model.save(self._settings.output)


def is_first(mpi: bool) -> bool:
    """Return whether this process writes files and says what came of it."""
    return not mpi or bool(_world().rank == 0)


def _world() -> Any:
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise MissingPackageError(
            f"--mpi needs mpi4py, which cannot be imported ({error}): pip install fastmlp[mpi]"
        ) from None
    return MPI.COMM_WORLD


def _names(rows: Rows) -> tuple[str, ...]:
    return rows.X.columns if isinstance(rows.X, Table) else ()


def _sizes(rows: Rows, settings: Settings) -> list[Any]:
    """Return the units of all layers: inputs and outputs are those that the rows need."""
    shape = np.shape(np.asarray(rows.X))
    if len(shape) != 2:
        raise DomainError(f"{settings.train}: got X of shape {shape}, wanted (rows, features)")
    return [shape[1], *settings.hidden, _outputs(rows.y, settings.model.get("loss"))]


def _outputs(y: Any, loss: Any) -> int:
    """Return how many outputs the targets need: one a class where they are labels."""
    row = check_loss("half_squared_error" if loss is None else loss)
    if row.label_rule is not None and y.ndim == 1:
        # Two at least: whoever has one class alone hears of it from the loss.
        return max(2, int(np.max(y)) + 1) if np.isfinite(y).all() else 2
    return (1 if y.ndim == 1 else y.shape[1]) * row.outputs_per_target


def _scale(rows: Rows) -> tuple[Any, Any]:
    """Return the mean and the standard deviation of each feature; 1 where that is 0."""
    X = np.asarray(rows.X, dtype=np.float64)
    spread = X.std(axis=0)
    return X.mean(axis=0), np.where(spread > 0, spread, 1.0)


def _scaled(rows: Rows, settings: Settings, of: Rows) -> tuple[Any, ...]:
    """Return X and y, and weights if there are any, scaled by the rows that are trained on."""
    X: Any = rows.X
    if settings.scale:
        center, spread = _scale(of)
        values = (np.asarray(X, dtype=np.float64) - center) / spread
        X = Table(X.columns, values) if isinstance(X, Table) else values
    return (X, rows.y) if rows.sample_weight is None else (X, rows.y, rows.sample_weight)


def take_raw_features(model: MLP, center: Any, spread: Any) -> None:
    """Have a model that was trained on scaled features take them as they are.

    (x - c) / s times W, and b, is x times W / s, and b - (c / s) W.
    """
    # Copies: the views would change below.
    W = np.array(model.weights[0], dtype=np.float64)
    b = np.array(model.biases[0], dtype=np.float64)
    model.weights[0] = W / spread[:, None]
    model.biases[0] = b - (center / spread) @ W
