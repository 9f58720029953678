"""Checkpoints of a fit: a model's file that also says how far the fit is."""

import hashlib
import itertools
import logging
import os
from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmlp.atomic_writing import draft_of, find_place
from fastmlp.callbacks import Checkpoint, Patience
from fastmlp.errors import DTypeError, ModelFileError
from fastmlp.files.container import read_whole, unpack
from fastmlp.files.contents import Contents, restore, write

logger = logging.getLogger("fastmlp")

Array = NDArray[Any]

# Settings that are digests, which say nothing to a reader.
DIGESTS = ("X, y or weights", "validation_data")
# What files of older versions do not say.
ADDED = ("metrics", "higher_is_better", "shards")
PROGRESS = ("best", "waited", "best_epoch", "trained")
CALLBACKS = "callbacks."


class Progress(NamedTuple):
    """How far a fit is, beside the model's own state; each array has one number a network.

    Attributes
    ----------
    best, waited, best_epoch : ndarray
        float64, int64 and int64: what early stopping has seen.
    trained : ndarray
        int64: 1 for a network that is still trained.
    best_parameters : ndarray or None
        dtype[members, P], of networks whose `best_epoch` is not 0.
    plateau_best, plateau_counts : ndarray or None
        float64[members] and int64[members, 3]: see `Plateaus.progress`.
    callbacks : mapping of str to ndarray
        What callbacks keep: see `states_of`.
    """

    best: Array
    waited: Array
    best_epoch: Array
    trained: Array
    best_parameters: Array | None = None
    plateau_best: Array | None = None
    plateau_counts: Array | None = None
    callbacks: Mapping[str, Array] = MappingProxyType({})


def progress_of(patience: Sequence[Patience], training: Sequence[int], like: Array) -> Progress:
    """Return how far a fit is; `like` are the parameters, [members, P]."""
    members = len(like)
    trained = np.zeros(members, dtype=np.int64)
    trained[list(training)] = 1
    if not patience:
        nothing = np.zeros(members, dtype=np.int64)
        return Progress(nothing.astype(np.float64), nothing, nothing, trained)
    best = np.array([each.best for each in patience], dtype=np.float64)
    counts = [[each.waited, each.best_epoch] for each in patience]
    waited, best_epoch = np.array(counts, dtype=np.int64).T
    kept = np.zeros_like(like)
    for own, each in zip(kept, patience, strict=True):
        if each.best_parameters is not None:
            own[...] = each.best_parameters
    return Progress(best, waited, best_epoch, trained, kept)


def take_up(progress: Progress, patience: Sequence[Patience]) -> list[int]:
    """Have early stopping go on where it was; return the networks that are still trained."""
    for member, each in enumerate(patience):
        each.best, each.waited = float(progress.best[member]), int(progress.waited[member])
        each.best_epoch = int(progress.best_epoch[member])
        if progress.best_parameters is not None and each.best_epoch and each.keeps:
            each.best_parameters = progress.best_parameters[member].copy()
    return np.flatnonzero(progress.trained).tolist()


def keepers(callbacks: Sequence[Any]) -> list[Any]:
    """Return the callbacks that keep something, and say what by PyTorch's two methods."""
    methods = "state_dict", "load_state_dict"
    return [each for each in callbacks if all(hasattr(each, name) for name in methods)]


def states_of(callbacks: Sequence[Any]) -> dict[str, Array]:
    """Return what callbacks keep: "0.count" is what the first of the `keepers` calls "count".

    Raises
    ------
    DTypeError
        If it is no array of numbers.
    """
    found = {}
    for index, each in enumerate(keepers(callbacks)):
        for name, value in each.state_dict().items():
            array = np.asarray(value)
            if array.dtype.kind not in "fiub":
                raise DTypeError(
                    f"callbacks: got {value!r} as {name!r} in the state_dict of {each!r}, wanted "
                    "numbers and arrays of numbers, which a Checkpoint can hold"
                )
            kept = array.dtype if array.dtype == np.float32 else np.float64
            found[f"{index}.{name}"] = array.astype(kept if array.dtype.kind == "f" else np.int64)
    return found


def restore_states(callbacks: Sequence[Any], states: Mapping[str, Array]) -> None:
    """Have callbacks go on where they were."""
    for index, each in enumerate(keepers(callbacks)):
        start = f"{index}."
        own = {key[len(start) :]: one for key, one in states.items() if key.startswith(start)}
        each.load_state_dict(own)


def digest(*arrays: Any) -> str:
    """Return a hash that tells data apart; arrays on a GPU do not enter it."""
    found = hashlib.sha256()
    for array in arrays:
        if isinstance(array, np.ndarray):
            found.update(repr((array.shape, array.dtype.str)).encode())
            found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


class CheckpointWriter:
    """Writes the checkpoints of a fit; a disk that is full does not end the fit.

    Parameters
    ----------
    rule : Checkpoint
    kind : str
        The class of the model.
    settings : dict
        What else decides the result of the fit, as texts: see `read_checkpoint`.
    """

    def __init__(self, rule: Checkpoint, kind: str, settings: dict[str, str]) -> None:
        self._rule, self._kind, self._settings = rule, kind, settings
        # Now, since a callback may go to another folder, and a fit is long.
        self._path = find_place(rule.path)
        if not os.access(self._path.parent, os.W_OK):
            raise PermissionError(f"path: got {rule.path}, wanted one in a folder to write in")
        # The longest name of all.
        find_place(_older(self._path, rule.keep - 1))
        self._failed: OSError | None = None

    def due(self, epoch: int) -> bool:
        """Whether a checkpoint is written after this epoch."""
        return epoch % self._rule.every == 0 or self._failed is not None

    def write(self, contents: Contents, progress: Progress) -> None:
        """Write a checkpoint, or note that it could not be written."""
        arrays = progress._asdict()
        arrays |= {CALLBACKS + name: each for name, each in arrays.pop("callbacks").items()}
        kept = {f"fit.{name}": each for name, each in arrays.items() if each is not None}
        path = self._path
        try:
            _turn(path, self._rule.keep)
            write(path, self._kind, contents, {"fit": self._settings}, kept)
            _drop(path, self._rule.keep)
            self._failed = None
        except OSError as error:
            self._failed = error
            logger.warning(
                "checkpoint: got %s, wanted a file at %s; the fit goes on, and tries again after "
                "the next epoch",
                error,
                path,
            )

    def end(self) -> None:
        """Raise the error of the last checkpoint, if that could not be written."""
        if self._failed is not None:
            self._failed.add_note("checkpoint: the fit has ended well, and the model is trained")
            raise self._failed


def _older(path: Path, age: int) -> Path:
    """Return where the checkpoint is that was written so many before the last one."""
    return path.with_name(f"{path.name}.{age}") if age else path


def _turn(path: Path, keep: int) -> None:
    """Move older checkpoints on; the oldest is written over."""
    for age in reversed(range(1, keep - 1)):
        if _older(path, age).is_file():
            _older(path, age).replace(_older(path, age + 1))
    if keep > 1 and path.is_file():
        _keep_both(path, _older(path, 1))


def _drop(path: Path, keep: int) -> None:
    """Delete the checkpoints that an earlier fit kept beyond this number."""
    for age in itertools.count(keep):
        if not _older(path, age).is_file():
            return
        _older(path, age).unlink()


def _keep_both(path: Path, older: Path) -> None:
    """Give a file a second name, so that it is never without the first one."""
    draft = draft_of(path)
    try:
        os.link(path, draft)
        draft.replace(older)
    except OSError:
        # A file system without such links: for a moment there is the older one alone.
        path.replace(older)


def read_checkpoint(
    path: str | PathLike[str], kind: str, settings: dict[str, str]
) -> tuple[Contents, Progress] | None:
    """Return the newest checkpoint that is whole, or None if there is none at all.

    Parameters
    ----------
    path : path
        That of the newest one. Older ones have the same name and a number.
    kind : str
        The class of the model.
    settings : dict
        What decides the result of the fit, as texts, by name. A checkpoint with other settings is
        refused: a fit that went on from it would give neither fit's result.

    Raises
    ------
    ModelFileError
        If files are there and none is whole, or they are of another fit.
    """
    place, failure = Path(fspath(path)), None
    ages = [age for age in range(100) if _older(place, age).exists()]
    for age in ages:
        name = fspath(_older(place, age))
        try:
            header, arrays = unpack(read_whole(name), name)
        except ModelFileError as error:
            failure = failure or error
            logger.warning("resume: %s; one from before it is tried, if there is any", error)
            continue
        _check_fit(header, kind, settings, name)
        contents = restore(header, arrays, name)
        return contents, _progress(contents, arrays, name)
    if failure is not None:
        raise failure
    logger.info("resume: found no checkpoint at %s; the fit begins", path)
    return None


def _check_fit(header: dict[str, Any], kind: str, settings: dict[str, str], name: str) -> None:
    found = header.get("fit")
    if header.get("kind") != kind or not isinstance(found, dict):
        raise ModelFileError(
            f"resume: got {name}, a file of {header.get('kind')!r}, wanted a checkpoint of a fit "
            f"of {kind}; to train a saved model, load it and call fit"
        )
    for key, wanted in settings.items():
        if found.get(key, wanted if key in ADDED else None) != wanted:
            alike = f"{key}={found.get(key)}, wanted {key}={wanted}"
            raise ModelFileError(
                f"resume: got {name}, of a fit with "
                f"{f'other {key}, wanted the same' if key in DIGESTS else alike}; "
                "to go on with others, load the file and call fit without resume"
            )


def _progress(contents: Contents, arrays: dict[str, Array], name: str) -> Progress:
    template = contents.template
    shape = (template.members,)
    wanted: dict[str, tuple[tuple[int, ...], Any]] = dict.fromkeys(PROGRESS, (shape, np.int64))
    wanted["best"] = shape, np.float64
    found: dict[str, Array] = {}
    if "fit.best_parameters" in arrays:
        whole = template.members, template.parameter_count
        wanted["best_parameters"] = whole, np.dtype(template.dtype)
    if "fit.plateau_best" in arrays:
        wanted["plateau_best"] = shape, np.float64
        wanted["plateau_counts"] = (*shape, 3), np.int64
    for key, (size, dtype) in wanted.items():
        array = arrays.get(f"fit.{key}")
        if array is None or array.shape != size or array.dtype != dtype:
            raise ModelFileError(f"{name}: got no fit.{key}, wanted one of {size} and {dtype}")
        found[key] = array
    start = f"fit.{CALLBACKS}"
    kept = {key[len(start) :]: each for key, each in arrays.items() if key.startswith(start)}
    return Progress(**found, callbacks=kept)
