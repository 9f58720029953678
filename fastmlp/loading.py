"""Models from files."""

from os import PathLike, fspath
from pathlib import Path
from typing import Any

from fastmlp.ensemble import Ensemble
from fastmlp.errors import ModelFileError
from fastmlp.files.container import unpack
from fastmlp.files.contents import restore
from fastmlp.model import MLP

KINDS: dict[str, Any] = {"MLP": MLP, "Ensemble": Ensemble}
ESTIMATORS = ("MLPClassifier", "MLPRegressor")


def load(path: str | PathLike[str]) -> Any:
    """Return the model that ``model.save(path)`` wrote: it predicts the same bits, and goes on.

    Nothing in the file is executed, so that a file from anywhere may be loaded.

    Parameters
    ----------
    path : path

    Returns
    -------
    MLP, Ensemble, MLPClassifier or MLPRegressor
        With its optimizer's state and its history.

    Raises
    ------
    ModelFileError
        If the file is not one that `save` has made, or was changed or cut off since, or needs a
        newer fastmlp, or an activation, loss or optimizer that is in no table.
    OSError
        If it cannot be read.
    MissingPackageError
        If safetensors is not installed: ``pip install fastmlp[save]``.

    Examples
    --------
    >>> model = load("model.fastmlp")  # doctest: +SKIP
    """
    name = fspath(path)
    header, arrays = unpack(Path(path).read_bytes(), name)
    kind = header.get("kind")
    if kind in ESTIMATORS:
        # Only a file of an estimator needs scikit-learn.
        from fastmlp import sklearn
        from fastmlp.sklearn.saving import restore_estimator

        return restore_estimator(getattr(sklearn, kind), header, arrays, name)
    if kind not in (*KINDS,):
        wanted = ", ".join((*KINDS, *ESTIMATORS))
        raise ModelFileError(f"{name}: got a file of {kind!r}, wanted one of {wanted}")
    contents = restore(header, arrays, name)
    if (contents.members is None) != (kind == "MLP"):
        raise ModelFileError(f"{name}: got {kind} with members={contents.members}")
    return KINDS[kind]._from(contents)
