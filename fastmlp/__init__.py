"""Multilayer perceptrons at the speed of the hardware.

``import fastmlp`` loads nothing heavy. Each name below is imported when it is first used. NumPy is
loaded with the first model, and Numba with the first kernel.
"""

import importlib
import logging
from typing import TYPE_CHECKING, Any

from fastmlp.version import VERSION

if TYPE_CHECKING:
    from fastmlp import datasets as datasets
    from fastmlp import distributed as distributed
    from fastmlp import errors as errors
    from fastmlp import schedules as schedules
    from fastmlp import sklearn as sklearn
    from fastmlp.averaging import WeightAverage as WeightAverage
    from fastmlp.callbacks import Checkpoint as Checkpoint
    from fastmlp.callbacks import EarlyStopping as EarlyStopping
    from fastmlp.callbacks import EpochEnd as EpochEnd
    from fastmlp.data.chunks import Chunks as Chunks
    from fastmlp.dispatch.explanation import explain as explain
    from fastmlp.dispatch.warming import warmup as warmup
    from fastmlp.ensemble import Ensemble as Ensemble
    from fastmlp.errors import BusyError as BusyError
    from fastmlp.errors import CallOrderError as CallOrderError
    from fastmlp.errors import DeviceError as DeviceError
    from fastmlp.errors import DeviceLostError as DeviceLostError
    from fastmlp.errors import DeviceMemoryError as DeviceMemoryError
    from fastmlp.errors import DomainError as DomainError
    from fastmlp.errors import DTypeError as DTypeError
    from fastmlp.errors import FastMLPError as FastMLPError
    from fastmlp.errors import MissingPackageError as MissingPackageError
    from fastmlp.errors import ModelFileError as ModelFileError
    from fastmlp.errors import NonFiniteTrainingError as NonFiniteTrainingError
    from fastmlp.errors import RankFailedError as RankFailedError
    from fastmlp.errors import ShapeError as ShapeError
    from fastmlp.errors import UnknownKeywordError as UnknownKeywordError
    from fastmlp.errors import UnknownNameError as UnknownNameError
    from fastmlp.gradients import Gradients as Gradients
    from fastmlp.history import History as History
    from fastmlp.loading import from_torch as from_torch
    from fastmlp.loading import load as load
    from fastmlp.loggers import CSVLogger as CSVLogger
    from fastmlp.loggers import TensorBoard as TensorBoard
    from fastmlp.losses import BinaryFocal as BinaryFocal
    from fastmlp.losses import GaussianNLL as GaussianNLL
    from fastmlp.losses import Huber as Huber
    from fastmlp.losses import Quantile as Quantile
    from fastmlp.losses import SoftmaxCrossEntropy as SoftmaxCrossEntropy
    from fastmlp.metrics import Evaluation as Evaluation
    from fastmlp.model import MLP as MLP
    from fastmlp.optimizers import SGD as SGD
    from fastmlp.optimizers import Adagrad as Adagrad
    from fastmlp.optimizers import Adam as Adam
    from fastmlp.optimizers import AdamW as AdamW
    from fastmlp.optimizers import RMSprop as RMSprop
    from fastmlp.plateau import ReduceOnPlateau as ReduceOnPlateau
    from fastmlp.searching.result import SearchResult as SearchResult
    from fastmlp.searching.search import search as search
    from fastmlp_kernels.algebra import ACTIVATIONS as ACTIVATIONS
    from fastmlp_kernels.algebra import INITIALIZERS as INITIALIZERS
    from fastmlp_kernels.algebra import LOSSES as LOSSES
    from fastmlp_kernels.algebra import OPTIMIZERS as OPTIMIZERS

__version__ = VERSION

_NAMES_OF = {
    "fastmlp.model": ("MLP",),
    "fastmlp.ensemble": ("Ensemble",),
    "fastmlp.optimizers": ("SGD", "Adam", "AdamW", "RMSprop", "Adagrad"),
    "fastmlp.losses": (
        "BinaryFocal",
        "GaussianNLL",
        "Huber",
        "Quantile",
        "SoftmaxCrossEntropy",
    ),
    "fastmlp.callbacks": ("Checkpoint", "EarlyStopping", "EpochEnd"),
    "fastmlp.plateau": ("ReduceOnPlateau",),
    "fastmlp.averaging": ("WeightAverage",),
    "fastmlp.data.chunks": ("Chunks",),
    "fastmlp.dispatch.explanation": ("explain",),
    "fastmlp.dispatch.warming": ("warmup",),
    "fastmlp.history": ("History",),
    "fastmlp.gradients": ("Gradients", "clip_gradients"),
    "fastmlp.loading": ("load", "from_torch"),
    "fastmlp.loggers": ("CSVLogger", "TensorBoard"),
    "fastmlp.metrics": ("Evaluation",),
    "fastmlp.searching.result": ("SearchResult",),
    "fastmlp.searching.search": ("search",),
    "fastmlp.errors": (
        "FastMLPError",
        "ShapeError",
        "DTypeError",
        "DomainError",
        "DeviceError",
        "DeviceLostError",
        "DeviceMemoryError",
        "UnknownKeywordError",
        "UnknownNameError",
        "BusyError",
        "CallOrderError",
        "MissingPackageError",
        "ModelFileError",
        "NonFiniteTrainingError",
        "RankFailedError",
    ),
    "fastmlp_kernels.algebra": ("ACTIVATIONS", "LOSSES", "OPTIMIZERS", "INITIALIZERS"),
}
_MODULE_OF = {name: module for module, names in _NAMES_OF.items() for name in names}
_SUBMODULES = ("datasets", "distributed", "errors", "schedules")
# Not in `__all__`: it needs scikit-learn, which a star import must not need.
_OPTIONAL_SUBMODULES = ("sklearn",)

# Names that are not bound until they are used cannot be listed by a literal.
__all__ = ["__version__", *_MODULE_OF, *_SUBMODULES]  # noqa: PLE0604

# A library stays silent unless its user configures logging.
logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name in _MODULE_OF:
        value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    elif name in _SUBMODULES or name in _OPTIONAL_SUBMODULES:
        value = importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, imported or not, and nothing else."""
    return sorted({*__all__, *_OPTIONAL_SUBMODULES})
