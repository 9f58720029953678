"""The optimizers as users write them: frozen settings. Their state lives in the model.

A learning rate is a number, or a schedule: a callable ``step -> rate``, see `fastmlp.schedules`.

The classes below are written out, so that type checkers read their signatures. That of any other
rule is made from its row in the table of optimizers (`OptimizerRule.public`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, make_dataclass
from typing import Any

from fastmlp.errors import DomainError, DTypeError, check_name, known_keywords
from fastmlp.optimizer_base import Optimizer as Optimizer
from fastmlp_kernels.algebra import OPTIMIZERS, OptimizerRule

Rate = float | Callable[[int], float]


@known_keywords
@dataclass(frozen=True, repr=False)
class SGD(Optimizer):
    """Stochastic gradient descent, with momentum and Nesterov's look-ahead if asked.

    Parameters
    ----------
    learning_rate : float or callable
        A number, or a schedule ``step -> rate``.
    momentum : float
        In [0, 1): the share of the velocity that each step keeps.
    nesterov : bool
        Whether the step looks ahead along the velocity.
    weight_decay : float
        Times the parameter is added to its gradient.
    rate_in_velocity : bool
        Whether the velocity sums steps, as in Keras and scikit-learn, instead of gradients, as in
        PyTorch: the same until the learning rate changes.
    clip_norm, clip_value, layer_rates : optional
        See `fastmlp.optimizers.Optimizer`.

    Examples
    --------
    >>> history = model.fit(X, y, epochs=2, optimizer=SGD(0.1, momentum=0.9, nesterov=True))
    """

    learning_rate: Rate = 0.01
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    rate_in_velocity: bool = False

    def __post_init__(self) -> None:
        """Check the numbers, and that Nesterov's look-ahead has a momentum."""
        super().__post_init__()
        if self.nesterov and self.momentum == 0:
            raise DomainError("momentum: got 0.0 with nesterov=True, wanted a number in (0, 1)")

    @property
    def rule(self) -> str:
        """The name of its row in the table of optimizers: it depends on the momentum."""
        if self.rate_in_velocity:
            return "nesterov_velocity" if self.nesterov else "velocity"
        if self.momentum == 0:
            return "sgd"
        return "nesterov" if self.nesterov else "momentum"

    @property
    def settings(self) -> dict[str, Any]:
        """Its numbers by name."""
        return {
            "learning_rate": self.learning_rate,
            "momentum": self.momentum,
            "weight_decay": self.weight_decay,
        }


@known_keywords
@dataclass(frozen=True, repr=False)
class Adam(Optimizer):
    """Adam: steps along a running mean of the gradient, over the root of that of its squares.

    Parameters
    ----------
    learning_rate : float or callable
        A number, or a schedule ``step -> rate``.
    beta1, beta2 : float
        In [0, 1): what the two running means keep.
    epsilon : float
        Above 0: added to the root.
    weight_decay : float
        Times the parameter is added to its gradient.
    epsilon_hat : bool
        Whether the epsilon is added to the root of the raw second moment, as in Keras, scikit-learn
        and the paper's efficient form (arXiv:1412.6980, section 2); by default to that of the
        corrected one, as in PyTorch.
    clip_norm, clip_value, layer_rates : optional
        See `fastmlp.optimizers.Optimizer`.

    Examples
    --------
    >>> from fastmlp.schedules import CosineDecay
    >>> history = model.fit(X, y, epochs=2, optimizer=Adam(CosineDecay(1e-3, steps=14)))
    """

    learning_rate: Rate = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    epsilon_hat: bool = False


@known_keywords
@dataclass(frozen=True, repr=False)
class AdamW(Optimizer):
    """Adam with decoupled weight decay.

    Parameters
    ----------
    learning_rate, beta1, beta2, epsilon, clip_norm, clip_value, layer_rates
        As of `Adam`.
    weight_decay : float
        Times the rate and the parameter is taken from the parameter.

    Examples
    --------
    >>> history = model.fit(X, y, epochs=2, optimizer=AdamW(1e-3, weight_decay=0.05))
    """

    learning_rate: Rate = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.01


@known_keywords
@dataclass(frozen=True, repr=False)
class RMSprop(Optimizer):
    """Gradient descent scaled by a running root mean square of the gradient.

    Parameters
    ----------
    learning_rate, epsilon, weight_decay, clip_norm, clip_value, layer_rates
        As of `Adam`.
    decay : float
        In [0, 1): what the running mean keeps.

    Examples
    --------
    >>> loss = model.step(X, y, RMSprop(1e-3))
    """

    learning_rate: Rate = 1e-2
    decay: float = 0.99
    epsilon: float = 1e-8
    weight_decay: float = 0.0


@known_keywords
@dataclass(frozen=True, repr=False)
class Adagrad(Optimizer):
    """Gradient descent scaled by the root of the sum of all squared gradients.

    Parameters
    ----------
    learning_rate, epsilon, weight_decay, clip_norm, clip_value, layer_rates
        As of `Adam`.

    Examples
    --------
    >>> loss = model.step(X, y, Adagrad(1e-2))
    """

    learning_rate: Rate = 1e-2
    epsilon: float = 1e-10
    weight_decay: float = 0.0


PLAIN = SGD()
# The optimizer of a name is always the same object, as one that a user makes once is.
_BY_NAME: dict[str, Optimizer] = {
    type(each).__name__.lower(): each for each in (PLAIN, Adam(), AdamW(), RMSprop(), Adagrad())
}
_MADE: dict[str, type[Optimizer]] = {}


def _make(row: OptimizerRule) -> type[Optimizer]:
    """Return the class of a row that describes one."""
    public: Any = row.public
    defaults = {**public.defaults, "weight_decay": public.defaults.get("weight_decay", 0.0)}
    decay = "" if row.decoupled else "\n`weight_decay` is added to the gradient."
    types = {"learning_rate": Rate}
    made = make_dataclass(
        public.name,
        [(each, types.get(each, float), default) for each, default in defaults.items()],
        bases=(Optimizer,),
        namespace={
            "__module__": __name__,
            "__doc__": f"{public.summary}\n\nIn step t: ``{row.formula}``.{decay}",
            "rule": row.name,
        },
        frozen=True,
        repr=False,
    )
    return known_keywords(made)


def __getattr__(name: str) -> Any:
    """Return the class that a row of the table of optimizers describes; pickles find it here."""
    for row in OPTIMIZERS:
        if row.public is not None and row.public.name == name:
            return _MADE.get(name) or _MADE.setdefault(name, _make(row))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def by_name() -> Mapping[str, Optimizer]:
    """Return what each name stands for, also those of rows that a user has added."""
    for row in OPTIMIZERS:
        if row.public is not None and row.name not in _BY_NAME:
            _BY_NAME.setdefault(row.name, __getattr__(row.public.name)())
    return _BY_NAME


def check_optimizer(optimizer: object) -> Optimizer:
    """Return `optimizer` if it is one; None stands for plain gradient descent.

    The name of a class or of its row stands for it with its default numbers.
    """
    if optimizer is None:
        return PLAIN
    if isinstance(optimizer, Optimizer):
        return optimizer
    if isinstance(optimizer, str):
        found = _BY_NAME.get(optimizer)
        return found or by_name()[check_name("optimizer", optimizer, by_name())]
    wanted = "wanted an object such as Adam(learning_rate=1e-3)"
    if isinstance(optimizer, type) and issubclass(optimizer, Optimizer):
        name = optimizer.__name__
        raise DTypeError(f"optimizer: got the class {name}, {wanted}; call it: {name}()")
    got = f"{type(optimizer).__module__}.{type(optimizer).__name__}"
    if isinstance(optimizer, int | float):
        got = repr(optimizer)
        hint = f"; a learning rate is given to one: SGD({optimizer!r})"
    elif type(optimizer).__name__ in {type(each).__name__ for each in by_name().values()}:
        hint = "; fastmlp has its own of that name"
    else:
        hint = ""
    raise DTypeError(f"optimizer: got {got}, {wanted}{hint}")
