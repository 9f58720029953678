"""Estimators in files: what they hold, as JSON and arrays; nothing in a file names code.

Values are kept by their kind. A number, a name, a list of those is itself. Anything else is a
mapping with one key, which says what it is: see `Writer` and `Reader`.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields
from os import PathLike
from typing import Any

import numpy as np
import sklearn
from numpy.typing import NDArray
from sklearn.exceptions import InconsistentVersionWarning
from sklearn.neural_network._stochastic_optimizers import AdamOptimizer, SGDOptimizer
from sklearn.preprocessing import LabelBinarizer

from fastmlp import schedules
from fastmlp.atomic_writing import write_atomically
from fastmlp.errors import DTypeError, FastMLPError, ModelFileError
from fastmlp.files.container import DTYPES, pack
from fastmlp.files.contents import kind_of
from fastmlp.optimizers import Optimizer, by_name
from fastmlp.schedules import Schedule
from fastmlp.sklearn.optimizers import KernelOptimizer, state_names
from fastmlp.version import VERSION

Array = NDArray[Any]

# Objects whose attributes are kept: of scikit-learn, and ours.
OBJECTS = {each.__name__: each for each in (LabelBinarizer, AdamOptimizer, SGDOptimizer)}
OBJECTS["KernelOptimizer"] = KernelOptimizer
# Dtypes that are kept as lists: labels, mostly.
LISTED = "biuU"
# Bytes of an element.
WIDEST = 2**16


def save_estimator(estimator: Any, path: str | PathLike[str]) -> None:
    """Write an estimator to a file: see `Accelerated.save`."""
    kind, writer = kind_of(estimator, "save"), Writer()
    state = {name: writer.keep(each, name) for name, each in estimator.__getstate__().items()}
    versions = {"fastmlp": VERSION, "scikit_learn": sklearn.__version__}
    header = {"kind": kind, **versions, "estimator": state}
    write_atomically(path, pack(header, writer.arrays))


def restore_estimator(
    kind: type, header: Mapping[str, Any], arrays: Mapping[str, Array], name: str
) -> Any:
    """Return the estimator that a file holds; `name` is what messages call the file.

    Raises
    ------
    ModelFileError
        If anything is missing or does not fit the rest.

    Warns
    -----
    InconsistentVersionWarning
        If another version of scikit-learn wrote the state: scikit-learn's own class of warning.
    """
    state = header.get("estimator")
    if not isinstance(state, dict):
        raise ModelFileError(f"{name}: got no estimator, wanted what save has written")
    reader = Reader(arrays, name)
    estimator = kind()
    known = estimator.get_params()
    values = {}
    for key, each in state.items():
        # A method must stay a method.
        if key not in known and (key.startswith("__") or hasattr(kind, key)):
            raise reader.refuse(f"an attribute {key!r}", "those of an estimator")
        values[key] = reader.value(each)
    missing = [key for key in known if key not in values]
    if missing:
        raise reader.refuse(f"no {missing[0]}", "every parameter of the estimator")
    _check_network(values, reader)
    if header.get("scikit_learn") != sklearn.__version__:
        versions = sklearn.__version__, str(header.get("scikit_learn"))
        warnings.warn(
            InconsistentVersionWarning(
                estimator_name=kind.__name__,
                current_sklearn_version=versions[0],
                original_sklearn_version=versions[1],
            ),
            stacklevel=3,
        )
    estimator.__setstate__(values)
    return estimator


class Writer:
    """Makes JSON of values; arrays of numbers are put aside, into `arrays`."""

    def __init__(self) -> None:
        self.arrays: dict[str, Array] = {}
        self._states: dict[int, str] = {}

    def keep(self, value: Any, place: str) -> Any:
        """Return the JSON of a value, which is called `place`."""
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float:
            return value if np.isfinite(value) else {"float": repr(value)}
        if isinstance(value, np.generic):
            return {"scalar": value.dtype.str, "of": self.keep(value.item(), place)}
        if isinstance(value, list):
            return [self.keep(each, f"{place}.{k}") for k, each in enumerate(value)]
        if isinstance(value, tuple):
            return {"tuple": self.keep(list(value), place)}
        if isinstance(value, dict):
            return {"dict": [self.keep(list(pair), place) for pair in value.items()]}
        if isinstance(value, np.ndarray):
            return self._array(np.asarray(value), place)
        if isinstance(value, np.random.RandomState):
            return self._random_state(value, place)
        return self._object(value, place)

    def _array(self, array: Array, place: str) -> Any:
        if array.dtype.name in DTYPES:
            self.arrays[place] = array
            return {"array": place}
        shape = list(array.shape)
        if array.dtype.kind in LISTED:
            return {"list": array.ravel().tolist(), "dtype": array.dtype.str, "shape": shape}
        if array.dtype == object:
            return {"objects": self.keep(array.ravel().tolist(), place), "shape": shape}
        raise self._refuse(array.dtype, place)

    def _random_state(self, value: np.random.RandomState, place: str) -> Any:
        # The same object in two places stays one.
        if id(value) in self._states:
            return {"random_state": self._states[id(value)]}
        self._states[id(value)] = place
        state: Any = value.get_state(legacy=False)
        if state["bit_generator"] != "MT19937":
            raise self._refuse(state["bit_generator"], place)
        self.arrays[f"{place}.key"] = state["state"]["key"].astype(np.int64)
        rest = [state["state"]["pos"], state["has_gauss"], state["gauss"]]
        return {"random_state": place, "rest": self.keep(rest, place)}

    def _object(self, value: Any, place: str) -> Any:
        kind = type(value).__name__
        if OBJECTS.get(kind) is type(value):
            held = vars(value)
        elif isinstance(value, Optimizer) or isinstance(value, Schedule):
            held = {each.name: getattr(value, each.name) for each in fields(value)}  # type: ignore[arg-type]
        else:
            raise self._refuse(value, place)
        return {kind: {key: self.keep(each, f"{place}.{key}") for key, each in held.items()}}

    @staticmethod
    def _refuse(value: Any, place: str) -> DTypeError:
        return DTypeError(
            f"save: got {place}={value!r}, wanted numbers, names and arrays, which a file can "
            f"hold; set {place.split('.')[0]} to None before, or pickle the estimator"
        )


class Reader:
    """Makes values of the JSON that `Writer` has made."""

    def __init__(self, arrays: Mapping[str, Array], name: str) -> None:
        self._arrays, self._name = arrays, name
        self._states: dict[str, np.random.RandomState] = {}
        self._kinds: dict[str, Callable[[Any], Any]] = {
            "float": lambda given: float(self._text(given["float"])),
            "scalar": self._scalar,
            "tuple": lambda given: tuple(self._list(given["tuple"])),
            "dict": lambda given: dict(self._list(given["dict"])),
            "array": lambda given: np.array(self._arrays[self._text(given["array"])]),
            "list": self._listed,
            "objects": self._objects,
            "random_state": self._random_state,
        }

    def refuse(self, what: str, wanted: str) -> ModelFileError:
        """Return the error for something that does not fit."""
        return ModelFileError(f"{self._name}: got {what}, wanted {wanted}")

    def value(self, given: Any) -> Any:
        """Return a value."""
        if isinstance(given, list):
            return [self.value(each) for each in given]
        if not isinstance(given, dict):
            return given
        key = next(iter(given), "")
        try:
            return self._kinds[key](given) if key in self._kinds else self._object(key, given[key])
        except ModelFileError:
            raise
        except (FastMLPError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise self.refuse(f"{key!r} that is damaged ({error})", "what save writes") from None

    @staticmethod
    def _text(given: Any) -> str:
        if not isinstance(given, str):
            raise TypeError(given)
        return given

    def _list(self, given: Any) -> list[Any]:
        if not isinstance(given, list):
            raise TypeError(given)
        return [self.value(each) for each in given]

    def _scalar(self, given: Any) -> Any:
        return self._dtype(given["scalar"]).type(self.value(given["of"]))

    def _dtype(self, given: Any) -> np.dtype[Any]:
        dtype = np.dtype(self._text(given))
        # A text may say of itself that it is gigabytes wide.
        if dtype.kind not in f"f{LISTED}" or dtype.itemsize > WIDEST:
            raise TypeError(given)
        return dtype

    def _listed(self, given: Any) -> Array:
        values = self._list(given["list"])
        return np.array(values, dtype=self._dtype(given["dtype"])).reshape(given["shape"])

    def _objects(self, given: Any) -> Array:
        values = self._list(given["objects"])
        array = np.empty(len(values), dtype=object)
        array[:] = values
        return array.reshape(given["shape"])

    def _random_state(self, given: Any) -> np.random.RandomState:
        place = self._text(given["random_state"])
        if "rest" not in given:
            return self._states[place]
        position, has_gauss, gauss = self._list(given["rest"])
        key = self._arrays[f"{place}.key"].astype(np.uint32)
        made = np.random.RandomState(0)
        made.set_state(("MT19937", key, int(position), int(has_gauss), float(gauss)))
        self._states[place] = made
        return made

    def _object(self, kind: str, given: Any) -> Any:
        if not isinstance(given, dict):
            raise TypeError(given)
        held = {key: self.value(each) for key, each in given.items()}
        settings = {type(each).__name__: type(each) for each in by_name().values()}
        settings |= {k: v for k, v in vars(schedules).items() if _is_schedule(v)}
        if kind in settings:
            return settings[kind](**held)
        if kind not in OBJECTS:
            raise self.refuse(f"an object of {kind!r}", "one that an estimator holds")
        made: Any = object.__new__(OBJECTS[kind])
        if any(key.startswith("__") or hasattr(OBJECTS[kind], key) for key in held):
            raise self.refuse(f"attributes {sorted(held)}", f"those of {kind}")
        vars(made).update(held)
        return made


def _is_schedule(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Schedule) and value is not Schedule


def _check_network(values: Mapping[str, Any], reader: Reader) -> None:
    """Refuse weights that do not follow on each other, and a state of another network."""
    if "coefs_" not in values:
        return
    weights, biases = values["coefs_"], values.get("intercepts_")
    if not (isinstance(weights, list) and isinstance(biases, list) and weights):
        raise reader.refuse("coefs_ and intercepts_", "lists of arrays")
    every = [*weights, *biases]
    width, dtype = values.get("n_features_in_"), getattr(every[0], "dtype", None)
    good = all(isinstance(each, np.ndarray) and each.dtype == dtype for each in every)
    good = good and len(weights) == len(biases) and dtype in (np.float32, np.float64)
    for W, b in zip(weights, biases, strict=False):
        good = good and W.ndim == 2 and W.shape[0] == width and b.shape == W.shape[1:]
        width = W.shape[-1] if good else None
    if not good or width != values.get("n_outputs_"):
        raise reader.refuse("coefs_ of other shapes", "those of a chain of layers")
    optimizer = values.get("_optimizer")
    if isinstance(optimizer, AdamOptimizer | SGDOptimizer):
        for name in state_names(optimizer):
            state = getattr(optimizer, name, None)
            held = state if isinstance(state, list) else ()
            shapes = [getattr(each, "shape", None) for each in held]
            if shapes != [each.shape for each in every]:
                raise reader.refuse(f"_optimizer.{name} of other shapes", "those of the parameters")
