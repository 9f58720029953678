"""What the table of losses holds of a loss: its row, also with other numbers than the table's."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fastmlp_kernels.algebra.activations import Activation
from fastmlp_kernels.algebra.tables import (
    NON_NEGATIVE,
    POSITIVE,
    REAL,
    Interval,
    with_numbers,
)

OPEN_UNIT = Interval(0.0, 1.0, False, False)
# What the numbers of losses may be, by their names; one that is not here may be any.
RANGES: Mapping[str, Interval] = {
    **dict.fromkeys(("delta", "epsilon"), POSITIVE),
    **dict.fromkeys(("level", "alpha"), OPEN_UNIT),
    "gamma": NON_NEGATIVE,
    "label_smoothing": Interval(0.0, 1.0, True, False),
}


@dataclass(frozen=True)
class Loss:
    """One row of the table of losses.

    Parameters
    ----------
    name : str
        What users write.
    rule : callable
        The element or row rule, on predictions (after the output activation).
    formula : str
        The loss of one output as a Python expression in the prediction p, the target y and the
        loss's own numbers, with the functions of `math`, and ``inside(p)`` for p kept in
        [eps, 1 - eps]; for a row rule, words. The pages show it, and the tests compare an element
        rule with it.
    prediction_domain : Interval
        The predictions for which the rule is defined.
    target_domain : Interval
        The targets for which the loss is defined; anything else is refused before a fit.
    fused : mapping of str to callable
        Output activation to the rule on its pre-activation.
    by_row : bool
        Whether the rules are row rules; see `averages_rows`.
    label_rule : callable, optional
        The row rule for targets given as one class index a row.
    link : callable, optional
        ``link(prediction, i)`` turns row `i` of the outputs into what `predict` returns, in place.
    metric : {"r2", "accuracy"}
        The score that `evaluate` gives beside the loss.
    kinks : tuple of float
        Values of prediction - target at which the slope jumps.
    outputs_per_target : int
        Outputs that describe one target. More than one need a row rule.
    numbers : mapping of str to float
        The loss's own numbers.
    make : callable, optional
        ``make(**numbers)`` returns the fields that depend on them.
    """

    name: str
    rule: Callable
    formula: str
    prediction_domain: Interval = REAL
    target_domain: Interval = REAL
    fused: Mapping[str, Callable] = field(default_factory=dict)
    by_row: bool = False
    label_rule: Callable | None = None
    link: Callable | None = None
    metric: str = "r2"
    kinks: tuple[float, ...] = ()
    outputs_per_target: int = 1
    numbers: Mapping[str, float] = field(default_factory=dict)
    make: Callable[..., dict[str, Any]] | None = None

    @property
    def averages_rows(self) -> bool:
        """Whether "mean" averages over rows, not over elements, which are then the targets."""
        return self.by_row and self.outputs_per_target == 1

    def target_columns(self, outputs: int) -> int:
        """Return the columns of the targets of a network with so many outputs."""
        return outputs // self.outputs_per_target

    def named(self, **numbers: float) -> str:
        """Return the name under which the table has this loss with such numbers."""
        # A negative zero would be another name for the same loss.
        given = {each: float(numbers.get(each, own)) + 0.0 for each, own in self.numbers.items()}
        return self.name if given == self.numbers else with_numbers(self.name, given)

    def with_numbers(self, **numbers: float) -> "Loss":
        """Return the row of other numbers, of which those that are not given stay."""
        unknown = [each for each in numbers if each not in self.numbers]
        if self.make is None or unknown:
            raise KeyError(f"{self.name} has no number {', '.join(unknown)}")
        given = {**self.numbers, **numbers}
        return replace(self, name=self.named(**given), numbers=given, **self.make(**given))

    def refusal(self, activation: Activation) -> str | None:
        """Return why `activation` cannot be the output activation under this loss, or None."""
        if activation.name in self.fused:
            return None
        if self.by_row and not activation.range.contains(self.prediction_domain):
            return (
                f"{self.name} needs outputs that can take any value in {self.prediction_domain}, "
                f"but {activation.name} gives only {activation.range}: use 'identity'"
            )
        if not self.prediction_domain.contains(activation.range):
            better = " or ".join(repr(name) for name in self.fused)
            return (
                f"{self.name} is defined for predictions in {self.prediction_domain}, but "
                f"{activation.name} gives {activation.range}"
                + (f": use {better}" if better else "")
            )
        return None
