"""The losses that have numbers of their own, as users write them: frozen settings.

Any other loss is written as its name in the table of losses, and so is one of these with its
default numbers. The names of all of them are those by which models, files and messages know a loss:
``Huber(2.0).name`` is "huber(delta=2.0)", which may be written as well.
"""

from dataclasses import asdict, dataclass
from typing import ClassVar

from fastmlp.arguments import check_within
from fastmlp.errors import (
    DomainError,
    DTypeError,
    check_name,
    known_keywords,
    look_up,
    refuse_keyword,
)
from fastmlp_kernels.algebra import LOSSES, Loss
from fastmlp_kernels.algebra.loss_row import RANGES
from fastmlp_kernels.algebra.tables import REAL, split_numbers

# Kernels hold a number as two of float32, whose sum has 48 bits within these sizes.
SMALLEST, LARGEST = 1e-30, 1e30


@dataclass(frozen=True)
class LossWithNumbers:
    """What these losses have in common: numbers that are checked when they are set."""

    row: ClassVar[str]

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            object.__setattr__(self, name, _check_number(name, value))

    @property
    def name(self) -> str:
        """The name under which the table of losses has it."""
        return str(LOSSES[self.row].named(**asdict(self)))


@known_keywords
@dataclass(frozen=True)
class Huber(LossWithNumbers):
    """Half the squared error up to `delta`, and linear beyond: torch.nn.HuberLoss.

    Parameters
    ----------
    delta : float
        Above 0, in the unit of the targets.

    Raises
    ------
    DomainError, DTypeError
        If a number is outside its range, or none.

    Examples
    --------
    >>> from fastmlp import MLP, Huber
    >>> MLP([4, 16, 1], loss=Huber(delta=2.0)).loss_name
    'huber(delta=2.0)'
    """

    row = "huber"
    delta: float = 1.0


@known_keywords
@dataclass(frozen=True)
class Quantile(LossWithNumbers):
    """The pinball loss: its least mean is at a quantile of the targets, not at their mean.

    Koenker and Bassett, Regression Quantiles, 1978; scikit-learn's mean_pinball_loss.

    Parameters
    ----------
    level : float
        In (0, 1): the share of targets that shall lie below the predictions. At 0.5 the loss is
        half the absolute error.

    Examples
    --------
    >>> from fastmlp import MLP, Quantile
    >>> upper = MLP([4, 16, 1], loss=Quantile(0.9))
    """

    row = "quantile"
    level: float = 0.5


@known_keywords
@dataclass(frozen=True)
class BinaryFocal(LossWithNumbers):
    """The focal loss (arXiv:1708.02002): a cross-entropy that hardly counts what is easy.

    It needs 'sigmoid' at the output, with which it is computed from the logits: as
    torchvision.ops.sigmoid_focal_loss.

    Parameters
    ----------
    gamma : float
        At least 0; 0 leaves the weighted cross-entropy.
    alpha : float
        In (0, 1): the weight of targets of 1, where those of 0 have 1 - alpha.

    Examples
    --------
    >>> from fastmlp import MLP, BinaryFocal
    >>> rare = MLP([4, 16, 1], ["relu", "sigmoid"], BinaryFocal(gamma=2, alpha=0.75))
    """

    row = "binary_focal"
    gamma: float = 2.0
    alpha: float = 0.25


@known_keywords
@dataclass(frozen=True)
class SoftmaxCrossEntropy(LossWithNumbers):
    """The cross-entropy of class probabilities, whose targets may be smoothed.

    As torch.nn.CrossEntropyLoss, for class labels and for probabilities.

    Parameters
    ----------
    label_smoothing : float
        In [0, 1): the share of each target that is spread evenly over all classes.

    Examples
    --------
    >>> from fastmlp import MLP, SoftmaxCrossEntropy
    >>> model = MLP([4, 16, 3], loss=SoftmaxCrossEntropy(label_smoothing=0.1))
    """

    row = "softmax_cross_entropy"
    label_smoothing: float = 0.0


@known_keywords
@dataclass(frozen=True)
class GaussianNLL(LossWithNumbers):
    """The negative log-likelihood of normal distributions, less its constant.

    For k targets the network has 2 k outputs: k means, then the logarithms of k variances
    (arXiv:1703.04977). `predict` returns (rows, 2 k): k means, then k variances. As
    torch.nn.GaussianNLLLoss of the exponentials.

    Parameters
    ----------
    epsilon : float
        Above 0, in the squared unit of the targets: a smaller variance counts as this one.

    Examples
    --------
    >>> from fastmlp import MLP, GaussianNLL
    >>> model = MLP([4, 16, 2], loss=GaussianNLL())
    >>> mean, variance = model.predict([[0.0, 1.0, 2.0, 3.0]]).T
    """

    row = "gaussian_nll"
    epsilon: float = 1e-6


def check_loss(loss: object) -> Loss:
    """Return the row of a loss that is given by its name, as the row itself or as an object.

    Raises
    ------
    DomainError, DTypeError, UnknownKeywordError, UnknownNameError
        If it is none, or its numbers are not what they may be.
    """
    found: Loss
    if isinstance(loss, type) and issubclass(loss, LossWithNumbers):
        name = loss.__name__
        wanted = f"wanted an object such as {loss()!r}; call it: {name}()"
        raise DTypeError(f"loss: got the class {name}, {wanted}")
    if isinstance(loss, LossWithNumbers):
        found = LOSSES[loss.name]
    elif isinstance(loss, str) and "(" in loss:
        found = LOSSES[_read(loss)]
    else:
        found = look_up("loss", LOSSES, loss)
    return found


def _read(text: str) -> str:
    """Return the name of a loss that is written with its numbers."""
    try:
        name, numbers = split_numbers(text)
    except ValueError:
        wanted = "wanted a name with its numbers, such as 'huber(delta=1.0)'"
        raise DomainError(f"loss: got {text!r}, {wanted}") from None
    row = LOSSES[check_name("loss", name, LOSSES.names)]
    for each in numbers:
        if not row.numbers:
            raise DomainError(f"loss: got {text!r}, wanted {row.name!r}, which has no numbers")
        if each not in row.numbers:
            refuse_keyword(row.name, each, row.numbers)
    return str(row.named(**{each: _check_number(each, value) for each, value in numbers.items()}))


def _check_number(name: str, value: object) -> float:
    number = check_within(value, name, RANGES.get(name, REAL))
    if number and not SMALLEST <= abs(number) <= LARGEST:
        wanted = f"one of a size from {SMALLEST:g} to {LARGEST:g}, which float32 holds"
        raise DomainError(f"{name}: got {value!r}, wanted {wanted}")
    return number
