"""Every error that fastmlp raises on purpose.

Each message reads "argument: got ..., wanted ...". Each class is also the built-in error that code
without knowledge of fastmlp would catch.
"""

import difflib
from collections.abc import Iterable
from typing import Any, NoReturn


class FastMLPError(Exception):
    """What all errors of fastmlp have in common."""


class ShapeError(FastMLPError, ValueError):
    """An array or a size does not fit."""


class DTypeError(FastMLPError, TypeError):
    """A value is of the wrong kind."""


class DomainError(FastMLPError, ValueError):
    """A value is of the right kind and outside what is allowed."""


class UnknownNameError(FastMLPError, ValueError):
    """A name that is in no table."""


class DeviceError(FastMLPError, RuntimeError):
    """A device or kernel cannot run the problem."""


class DeviceMemoryError(DeviceError, MemoryError):
    """Something does not fit in the memory of a GPU; the model is as it was."""


class DeviceLostError(DeviceError):
    """The process cannot use its GPU any more; the model holds its last good parameters.

    They are those of an epoch, and at most a second or two of training, before: see
    `fastmlp.residency`. The process's other work, also on the CPU, is not disturbed.
    """


class BusyError(FastMLPError, RuntimeError):
    """A model is being trained and cannot be changed meanwhile; nothing has been changed."""


class CallOrderError(FastMLPError, RuntimeError):
    """A method needs another one to be called first."""


class MissingPackageError(FastMLPError, ImportError):
    """An optional package is needed and not installed."""


class NonFiniteTrainingError(FastMLPError, RuntimeError):
    """A loss, gradient or parameter became infinite or NaN; the model holds the last good ones.

    Attributes
    ----------
    epoch, batch : int or None
        Where it happened, counted from 1; None outside `fit`.
    last_loss : float or None
        The last finite loss of a batch, where there was one.
    members : tuple of int
        Of an ensemble: the networks that failed; the other attributes are those of the first.
    """

    epoch: int | None = None
    batch: int | None = None
    last_loss: float | None = None
    members: tuple[int, ...] = ()

    @classmethod
    def at(
        cls, message: str, epoch: int | None, batch: int | None, last_loss: float | None
    ) -> "NonFiniteTrainingError":
        """Return the error with its attributes set (a plain constructor keeps it picklable)."""
        error = cls(message)
        error.epoch, error.batch, error.last_loss = epoch, batch, last_loss
        return error


def refuse_name(argument: str, got: object, known: Iterable[str]) -> NoReturn:
    """Raise the error for a name that is not among `known`, with the nearest one."""
    names = list(known)
    near = difflib.get_close_matches(str(got), names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UnknownNameError(f"{argument}: got {got!r}, wanted one of {', '.join(names)}{hint}")


def check_name(argument: str, got: object, known: Iterable[str]) -> str:
    """Return `got` if it is one of the known names."""
    names = tuple(known)
    if not isinstance(got, str) or got not in names:
        refuse_name(argument, got, names)
    return got


def look_up(argument: str, table: Any, name: object) -> Any:
    """Return the row of an algebra table, given by its name or as the row itself."""
    if isinstance(name, str) and name in table.names:
        return table[name]
    if any(row is name for row in table):
        return name
    refuse_name(argument, getattr(name, "name", name), table.names)
