"""Every error that fastmlp raises on purpose.

Each message reads "argument: got ..., wanted ...". Each class also inherits from the built-in error
that fits, so code that does not know fastmlp can catch it.
"""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, TypeVar, cast

from fastmlp.synonyms import answer, keyword_hint, resolve

Called = TypeVar("Called", bound=Callable[..., Any])


class FastMLPError(Exception):
    """The base class of all errors of fastmlp.

    Examples
    --------
    >>> try:
    ...     model.fit(X[:, :3], y)
    ... except FastMLPError as error:
    ...     print(type(error).__name__, isinstance(error, ValueError))
    ShapeError True
    """


class ShapeError(FastMLPError, ValueError):
    """An array or a size does not fit."""


class DTypeError(FastMLPError, TypeError):
    """A value is of the wrong kind."""


class DomainError(FastMLPError, ValueError):
    """A value is of the right kind and outside what is allowed."""


class UnknownNameError(FastMLPError, ValueError):
    """A name that is in no table."""


class UnknownKeywordError(FastMLPError, TypeError):
    """A keyword that a call does not have."""


class DeviceError(FastMLPError, RuntimeError):
    """A device or kernel cannot run the problem."""


class DeviceMemoryError(DeviceError, MemoryError):
    """Something does not fit in the memory of a GPU; the model is as it was."""


class DeviceLostError(DeviceError):
    """The process cannot use its GPU any more; the model holds its last good parameters.

    Those parameters may be an epoch old, and a second or two of training: see
    `fastmlp.device.mirrors`. Other work of the process goes on, on the CPU for example.
    """


class BusyError(FastMLPError, RuntimeError):
    """A model is being trained, so the call has changed nothing."""


class RankFailedError(FastMLPError, RuntimeError):
    """Another rank of a data-parallel fit has failed; the model holds the last good parameters."""


class CallOrderError(FastMLPError, RuntimeError):
    """A method needs another one to be called first."""


class MissingPackageError(FastMLPError, ImportError):
    """An optional package is needed and not installed."""


class ModelFileError(FastMLPError, ValueError):
    """A file that holds no model, or none that this version can read."""


class NonFiniteTrainingError(FastMLPError, RuntimeError):
    """A loss, gradient or parameter became infinite or NaN; the model holds the last good ones.

    Attributes
    ----------
    epoch, batch : int or None
        Where it happened, counted from 1; None outside `fit`.
    last_loss : float or None
        The last finite loss of a batch, where there was one.
    members : tuple of int
        The networks of an ensemble that failed. The other attributes are then those of the first.
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


def refuse_name(argument: str, got: object, known: Iterable[str], kind: str = "") -> NoReturn:
    """Raise the error for a name that is not among `known`, with an answer or the nearest name."""
    names = list(known)
    # A function or a class of another library stands for its name.
    name = str(getattr(got, "__name__", got))
    hint = answer(kind or argument, name)
    if hint is None:
        meant = resolve(kind or argument, name, names)
        near = [meant] if meant else difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else ""
    ending = f"; {hint}" if hint else ""
    raise UnknownNameError(f"{argument}: got {got!r}, wanted one of {', '.join(names)}{ending}")


def check_name(argument: str, got: object, known: Iterable[str], kind: str = "") -> str:
    """Return the known name that `got` is, or that it means in another library (see `synonyms`).

    `kind` is the kind of name, where it is not the name of the argument.
    """
    names = tuple(known)
    if isinstance(got, str):
        if got in names:
            return got
        found = resolve(kind or argument, got, names)
        if found is not None:
            return found
    refuse_name(argument, got, names, kind)


def look_up(argument: str, table: Any, name: object) -> Any:
    """Return the row of an algebra table, given by its name, a synonym or as the row itself."""
    if isinstance(name, str):
        return table[check_name(argument, name, table.names, table.kind)]
    if name in table:
        return name
    refuse_name(argument, getattr(name, "name", name), table.names, table.kind)


def known_keywords(called: Called) -> Called:
    """Make an unknown keyword an error that says what was called and names the nearest keyword.

    Python's own error would name an inherited method, such as ``Network.__init__``. Single steps
    and predictions are not wrapped, since a wrapper would show in their time. Python's own error
    names the right method there.
    """
    if isinstance(called, type):
        made: Any = called
        made.__init__ = known_keywords(made.__init__)
        return made
    function: Any = called
    code = inspect.unwrap(function).__code__
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    known = frozenset(names) - {"self"}

    @functools.wraps(function)
    def checked(*given: Any, **keywords: Any) -> Any:
        if not known.issuperset(keywords):
            makes = function.__name__ == "__init__"
            where = type(given[0]).__name__ if makes else function.__name__
            refuse_keyword(where, next(each for each in keywords if each not in known), names)
        return function(*given, **keywords)

    return cast(Called, checked)


def refuse_keyword(where: str, got: str, names: Iterable[str]) -> NoReturn:
    """Raise the error for a keyword that a call does not have, with the nearest one."""
    known = [each for each in names if each != "self"]
    hint = keyword_hint(got, known)
    if hint is None:
        near = difflib.get_close_matches(got, known, n=1)
        hint = f"did you mean {near[0]}=?" if near else ""
    ending = f"; {hint}" if hint else ""
    raise UnknownKeywordError(
        f"{where}: got an unknown keyword {got!r}, wanted {', '.join(known)}{ending}"
    )
