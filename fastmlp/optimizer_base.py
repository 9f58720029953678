"""What all optimizers have in common: numbers that are checked, rates, limits, rates by layer."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastmlp.arguments import check_switch, check_within, is_sequence
from fastmlp.errors import DomainError, DTypeError, ShapeError
from fastmlp.schedules import check_schedule, rates_of
from fastmlp_kernels.algebra import OPTIMIZERS, hyper_table
from fastmlp_kernels.algebra.optimizers import CLIPPINGS, RANGES
from fastmlp_kernels.algebra.tables import NON_NEGATIVE

_SWITCHES = ("nesterov", "rate_in_velocity", "epsilon_hat")
# None stands for no limit, and for one rate.
_LIMITS, _LAYER_RATES = ("clip_norm", "clip_value"), "layer_rates"


class Update(NamedTuple):
    """What kernels have to know of an optimizer before they are given its numbers.

    Attributes
    ----------
    rule : str
        Row of the table of optimizers.
    clipping : str
        One of ``CLIPPINGS``.
    layer_rates : bool
        Whether each layer has numbers of its own.
    """

    rule: str = "sgd"
    clipping: str = "none"
    layer_rates: bool = False


@dataclass(frozen=True)
class Optimizer:
    """What the optimizers have in common: numbers that are checked when they are set.

    Parameters
    ----------
    clip_norm : float, optional
        The largest norm that a gradient may have, of all parameters together: a longer one is
        multiplied by ``clip_norm / (norm + 1e-6)``, as `torch.nn.utils.clip_grad_norm_` does.
        Neither `l2` nor `weight_decay` is part of it. In float32 the sum of squares must be finite:
        a norm above 1.8e19 is refused as infinite numbers are.
    clip_value : float, optional
        The largest magnitude of an element of a gradient, before the norm is taken.
    layer_rates : sequence of float, optional
        What the learning rate is multiplied by, for each layer from the input on. A layer of rate 0
        is frozen: its parameters stay. Its gradient still counts in the norm.

    Raises
    ------
    DomainError, DTypeError
        If a number of an optimizer is outside its range, or none.

    Examples
    --------
    >>> tuning = Adam(1e-3, clip_norm=0.5, layer_rates=[0, 1])  # the first layer is frozen
    >>> loss = model.step(X, y, tuning)
    """

    clip_norm: float | None = field(default=None, kw_only=True)
    clip_value: float | None = field(default=None, kw_only=True)
    layer_rates: Sequence[float] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for each in fields(self):
            name, value = each.name, getattr(self, each.name)
            if name in _SWITCHES:
                object.__setattr__(self, name, check_switch(value, name))
            elif name == _LAYER_RATES:
                object.__setattr__(self, name, _check_layer_rates(value))
            elif name == "learning_rate" and callable(value):
                check_schedule(value, name)
            elif not (name in _LIMITS and value is None):
                # A float, so that NumPy scalars and integers leave no trace in the settings.
                object.__setattr__(self, name, _check_number(name, value))

    @property
    def rule(self) -> str:
        """The name of its row in the table of optimizers."""
        return type(self).__name__.lower()

    def __repr__(self) -> str:
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        common = {name: given.pop(name) for name in (*_LIMITS, _LAYER_RATES)}
        given |= {name: value for name, value in common.items() if value is not None}
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in given.items())})"

    @cached_property
    def update(self) -> Update:
        """What kernels have to know of it: see `Update`."""
        limits = ("norm", self.clip_norm), ("value", self.clip_value)
        clipping = next((name for name, limit in limits if limit is not None), "none")
        return Update(self.rule, clipping, self.layer_rates is not None)

    @property
    def settings(self) -> dict[str, Any]:
        """The numbers of its rule by name."""
        common = {*_LIMITS, _LAYER_RATES}
        return {
            each.name: getattr(self, each.name) for each in fields(self) if each.name not in common
        }

    def rates(self, first: int, count: int) -> float | NDArray[np.float64]:
        """Return the learning rate of `count` steps, the first numbered `first` (from 0).

        Raises
        ------
        DomainError, DTypeError, ShapeError
            If a schedule gives anything but one finite number of at least 0 a step.
        """
        rate = self.settings["learning_rate"]
        if not callable(rate):
            return float(rate)
        rates = rates_of(rate, np.arange(first, first + count), "learning_rate")
        bad = ~(np.isfinite(rates) & (rates >= 0))
        if bad.any():
            at = int(np.argmax(bad))
            raise DomainError(
                f"learning_rate: got {rates[at]} from the schedule at step {first + at}, wanted a "
                "finite number >= 0"
            )
        return rates

    def hyper(
        self,
        first: int,
        count: int,
        dtype: DTypeLike,
        penalty: Any = 0.0,
        layers: int | None = None,
    ) -> NDArray[Any]:
        """Return the table of hyper-parameters that kernels take; see `algebra.hyper_table`.

        With `layers`, each layer's are side by side.
        """
        rates = self.rates(first - 1, count)
        limits = {name: getattr(self, name) for name in _LIMITS}

        # A string, as the others of functions are: this one would be looked up in each fit.
        def table(factor: float) -> "NDArray[Any]":
            settings = {**self.settings, **limits, "learning_rate": factor * rates}
            if factor == 0 and self.rule.endswith("velocity"):
                # A velocity that sums steps would go on without a rate.
                settings["momentum"] = 0.0
            return hyper_table(OPTIMIZERS[self.rule], settings, first, count, dtype, penalty)

        if layers is None:
            return table(1.0)
        return np.hstack([table(each) for each in self.layer_rates or [1.0] * layers])

    def for_layers(self, layers: int) -> "Optimizer":
        """Return the optimizer itself, if its `layer_rates` are as many."""
        if self.layer_rates is not None and len(self.layer_rates) != layers:
            raise ShapeError(
                f"layer_rates: got {len(self.layer_rates)}, wanted {layers}, one for each layer of "
                "weights"
            )
        return self


def _check_number(name: str, value: object) -> float:
    rate = " or a schedule, a callable step -> rate" if name == "learning_rate" else ""
    return check_within(value, name, RANGES.get(name, NON_NEGATIVE), rate)


def _check_layer_rates(given: Any) -> tuple[float, ...] | None:
    if given is None:
        return None
    wanted = "wanted a sequence of numbers, one for each layer of weights: (0, 0.1, 1)"
    if not is_sequence(given):
        raise DTypeError(f"layer_rates: got {given!r}, {wanted}")
    return tuple(_check_number(f"layer_rates[{k}]", each) for k, each in enumerate(given))


def joint_update(optimizers: Sequence[Optimizer]) -> Update:
    """Return what kernels have to know of optimizers of one rule, one for each network."""
    updates = {each.update for each in optimizers}
    clipping = max((each.clipping for each in updates), key=CLIPPINGS.index)
    return Update(optimizers[0].rule, clipping, any(each.layer_rates for each in updates))
