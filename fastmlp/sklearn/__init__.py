"""scikit-learn's multilayer perceptrons on fastmlp's kernels.

`MLPClassifier` and `MLPRegressor` take scikit-learn's parameters and keep its attributes. Import
them from here, or let `patch` put them in the place of scikit-learn's. ``python -m fastmlp.accel
script.py`` runs a program with the patch. Whatever is not accelerated runs on scikit-learn's own
code. The logger "fastmlp" says why, once for each reason.
"""

import importlib
from typing import TYPE_CHECKING, Any

from fastmlp.sklearn.requirement import require_scikit_learn

if TYPE_CHECKING:
    from fastmlp.sklearn.callbacks import EpochEnd as EpochEnd
    from fastmlp.sklearn.ensembles import EnsembleClassifier as EnsembleClassifier
    from fastmlp.sklearn.ensembles import EnsembleRegressor as EnsembleRegressor
    from fastmlp.sklearn.estimators import MLPClassifier as MLPClassifier
    from fastmlp.sklearn.estimators import MLPRegressor as MLPRegressor
    from fastmlp.sklearn.onnx_conversion import register_onnx as register_onnx
    from fastmlp.sklearn.patching import patch as patch
    from fastmlp.sklearn.patching import unpatch as unpatch
    from fastmlp.sklearn.searches import GridSearchCV as GridSearchCV
    from fastmlp.sklearn.searches import HalvingGridSearchCV as HalvingGridSearchCV
    from fastmlp.sklearn.searches import RandomizedSearchCV as RandomizedSearchCV

_MODULE_OF = {
    "MLPClassifier": "estimators",
    "MLPRegressor": "estimators",
    "EnsembleClassifier": "ensembles",
    "EnsembleRegressor": "ensembles",
    "GridSearchCV": "searches",
    "RandomizedSearchCV": "searches",
    "HalvingGridSearchCV": "searches",
    "EpochEnd": "callbacks",
    "register_onnx": "onnx_conversion",
    "patch": "patching",
    "unpatch": "patching",
}

# Names that are not bound until they are used cannot be listed by a literal.
__all__ = list(_MODULE_OF)  # noqa: PLE0605

require_scikit_learn()


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: scikit-learn's networks load slowly."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted({*globals(), *__all__})
