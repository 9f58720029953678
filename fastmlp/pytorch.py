"""Networks to PyTorch and from there: its modules for our activations, its names for weights.

PyTorch is imported only to make a module. One that is given is read by its attributes.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmlp.errors import DomainError, DTypeError, MissingPackageError, ShapeError

Array = NDArray[Any]

# The class in torch.nn of each activation, and its arguments where they are not the defaults.
MODULES: dict[str, tuple[str, dict[str, Any]]] = {
    "identity": ("Identity", {}),
    "relu": ("ReLU", {}),
    "leaky_relu": ("LeakyReLU", {"negative_slope": 0.01}),
    "elu": ("ELU", {"alpha": 1.0}),
    "selu": ("SELU", {}),
    "sigmoid": ("Sigmoid", {}),
    "tanh": ("Tanh", {}),
    "softplus": ("Softplus", {"beta": 1.0}),
    "silu": ("SiLU", {}),
    "gelu": ("GELU", {"approximate": "none"}),
    "gelu_tanh": ("GELU", {"approximate": "tanh"}),
    "hard_sigmoid": ("Hardsigmoid", {}),
    "hard_swish": ("Hardswish", {}),
}
# PyTorch's Softplus gives z itself from 20 on, an error of 2e-9. Up to 80, exp is finite.
SETTINGS_WHEN_MADE: dict[str, dict[str, Any]] = {"softplus": {"threshold": 80.0}}


class Layers(NamedTuple):
    """A chain of layers: weights (outputs, inputs) and biases as PyTorch has them.

    Attributes
    ----------
    weights, biases : list of ndarray
    activations : list of str
        Of each layer.
    softmax : bool
        Whether a softmax follows the last layer.
    """

    weights: list[Array]
    biases: list[Array]
    activations: list[str]
    softmax: bool


def state_names(layers: int) -> list[tuple[str, str]]:
    """Return the names of each layer's weight and bias in a Sequential with its activations."""
    return [(f"{2 * layer}.weight", f"{2 * layer}.bias") for layer in range(layers)]


def make_module(
    weights: Sequence[Array], biases: Sequence[Array], activations: Sequence[str]
) -> Any:
    """Return a torch.nn.Sequential of copies of the weights (inputs, outputs) and biases.

    Raises
    ------
    DomainError
        If PyTorch has no module of an activation.
    MissingPackageError
        If PyTorch is not installed.
    """
    unknown = [each for each in activations if each not in MODULES]
    if unknown:
        raise DomainError(
            f"to_torch: got activation {unknown[0]!r}, wanted one that torch.nn has: "
            f"{', '.join(MODULES)}"
        )
    try:
        import torch
    except ImportError:
        raise MissingPackageError(
            "to_torch: got no PyTorch, wanted it installed: pip install torch"
        ) from None
    modules: list[Any] = []
    for W, b, activation in zip(weights, biases, activations, strict=True):
        # Not drawn: PyTorch's own random numbers stay where they are.
        linear = torch.nn.utils.skip_init(
            torch.nn.Linear, *W.shape, dtype=getattr(torch, W.dtype.name)
        )
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(W.T.copy()))
            linear.bias.copy_(torch.from_numpy(b.copy()))
        name, settings = MODULES[activation]
        settings = {**settings, **SETTINGS_WHEN_MADE.get(activation, {})}
        modules += [linear, getattr(torch.nn, name)(**settings)]
    if activations[-1] == "identity":
        modules.pop()
    return torch.nn.Sequential(*modules)


def read_module(module: Any) -> Layers:
    """Return the layers of a Linear, or of a Sequential of Linear and activations, nested or not.

    Raises
    ------
    DomainError, DTypeError, ShapeError
        If anything else is in it, with what is supported.
    """
    found, softmax, linear = Layers([], [], [], False), False, False
    for name, each in _flat(module, ""):
        kind = type(each).__name__
        if softmax:
            raise DomainError(f"module: got {kind} after a Softmax, wanted that at the end")
        if kind == "Linear":
            _add_linear(found, each, name)
        elif not linear and kind != "Identity":
            raise DomainError(f"module: got {kind} at {name!r}, wanted a Linear before it")
        elif kind == "Softmax":
            softmax = True
        elif linear:
            found.activations[-1] = _activation_of(each, name)
        linear = kind == "Linear" or (linear and kind == "Identity")
    if not found.weights:
        raise DomainError("module: got no Linear, wanted a Sequential of Linear and activations")
    return found._replace(softmax=softmax)


def _flat(module: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the modules of nested Sequentials, by name."""
    if type(module).__name__ != "Sequential":
        yield name, module
        return
    for key, each in module.named_children():
        yield from _flat(each, f"{name}.{key}" if name else key)


def _add_linear(layers: Layers, module: Any, name: str) -> None:
    if module.bias is None:
        raise DomainError(f"module: got a Linear without bias at {name!r}, wanted bias=True")
    arrays = [each.detach().cpu().numpy() for each in (module.weight, module.bias)]
    if arrays[0].dtype not in (np.float32, np.float64):
        raise DTypeError(f"module: got {arrays[0].dtype} at {name!r}, wanted float32 or float64")
    if layers.weights and layers.weights[-1].shape[0] != arrays[0].shape[1]:
        raise ShapeError(
            f"module: got a Linear of {arrays[0].shape[1]} inputs at {name!r} after one of "
            f"{layers.weights[-1].shape[0]} outputs, wanted as many"
        )
    layers.weights.append(arrays[0])
    layers.biases.append(arrays[1])
    layers.activations.append("identity")


def _activation_of(module: Any, name: str) -> str:
    kind = type(module).__name__
    for activation, (known, settings) in MODULES.items():
        if known == kind and all(getattr(module, key) == own for key, own in settings.items()):
            return activation
    names = ", ".join(dict.fromkeys(each for each, _ in MODULES.values()))
    raise DomainError(
        f"module: got {module} at {name!r}, wanted one of {names} with the defaults of torch.nn; "
        "for dropout, norms, convolutions and residuals stay with PyTorch"
    )


def check_state(state: Any, shapes: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[Any]:
    """Return (weight, bias) of each layer out of a mapping by PyTorch's names.

    Raises
    ------
    DTypeError, ShapeError
        If a name is missing or unknown, or an array has another shape.
    """
    if not isinstance(state, Mapping):
        raise DTypeError(f"state: got {type(state).__name__}, wanted a mapping of names to arrays")
    pairs = state_names(len(shapes))
    wanted = [name for pair in pairs for name in pair]
    if set(state) != set(wanted):
        odd = sorted(set(state) ^ set(wanted))
        raise ShapeError(f"state: got other names ({', '.join(map(str, odd))}), wanted {wanted}")
    found = []
    for names, sizes in zip(pairs, shapes, strict=True):
        arrays = []
        for name, size in zip(names, sizes, strict=True):
            given = state[name]
            array = np.asarray(given.detach().cpu() if hasattr(given, "detach") else given)
            if array.shape != size:
                raise ShapeError(f"state[{name!r}]: got shape {array.shape}, wanted {size}")
            arrays.append(array)
        found.append(tuple(arrays))
    return found
