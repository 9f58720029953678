"""Models from files, and from PyTorch."""

from os import PathLike, fspath
from typing import Any

from fastmlp.ensemble import Ensemble
from fastmlp.errors import DomainError, ModelFileError
from fastmlp.files.container import read_whole, unpack
from fastmlp.files.contents import restore
from fastmlp.model import MLP
from fastmlp.pytorch import read_module
from fastmlp_kernels.algebra import LOSSES

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
    >>> model.save("model.fastmlp")
    >>> same = load("model.fastmlp")
    >>> same.predict(X).tobytes() == model.predict(X).tobytes()
    True
    """
    name = fspath(path)
    header, arrays = unpack(read_whole(path), name)
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


def from_torch(module: Any, loss: Any = None, **settings: Any) -> MLP:
    """Return a network with copies of a PyTorch module's parameters, which predicts the same.

    Parameters
    ----------
    module : torch.nn.Linear or torch.nn.Sequential
        Of Linear, with biases, and activations that fastmlp has, with their default numbers. A
        Softmax may stand at the end.
    loss : str or row, optional
        To go on with. By default "half_squared_error"; after a Softmax the cross-entropy of it.
    **settings
        Others of `MLP`: seed, reduction, precision.

    Raises
    ------
    DomainError, DTypeError, ShapeError
        If the module has anything else, with what is supported.

    Examples
    --------
    >>> module = model.to_torch()
    >>> from_torch(module).parameters.tobytes() == model.parameters.tobytes()
    True
    """
    layers = read_module(module)
    chosen = loss or ("softmax_cross_entropy" if layers.softmax else "half_squared_error")
    sizes = [layers.weights[0].shape[1], *(each.shape[0] for each in layers.weights)]
    dtype = layers.weights[0].dtype
    model = MLP(sizes, layers.activations, chosen, dtype=dtype, **settings)
    if layers.softmax and LOSSES[model.loss_name].label_rule is None:
        raise DomainError(
            f"loss: got {model.loss_name!r} with a Softmax at the end of the module, wanted "
            "'softmax_cross_entropy', whose predictions have one"
        )
    model.weights = [each.T for each in layers.weights]
    model.biases = layers.biases
    return model
