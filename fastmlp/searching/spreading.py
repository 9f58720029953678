"""Work that is spread over an executor; what a lost worker leaves undone is done here."""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future
from typing import Any, TypeVar

from fastmlp.errors import DomainError, DTypeError

logger = logging.getLogger("fastmlp")

Work = TypeVar("Work")
Found = TypeVar("Found")


def check_executor(executor: Any) -> None:
    """Refuse what has no method ``submit``."""
    usable = callable(getattr(executor, "submit", None)) and not isinstance(executor, type)
    if executor is None or usable:
        return
    raise DTypeError(
        f"executor: got {executor!r}, wanted a concurrent.futures.Executor, such as "
        "ProcessPoolExecutor()"
    )


def spread(
    function: Callable[[Work], Found], work: Sequence[Work], executor: Executor | None
) -> list[Found]:
    """Return ``[function(each) for each in work]``, computed by the executor if there is one.

    A part that an executor does not bring back, as its worker has died or cannot compute it, is
    computed here. `function` is a pure one, so that its result is the same.
    """
    if executor is None:
        return [function(each) for each in work]
    futures: list[Future[Found] | None] = []
    found: list[Found] = []
    try:
        futures.extend(_submit(executor, function, each) for each in work)
        for each, future in zip(work, futures, strict=True):
            found.append(_result(function, each, future))
    except BaseException:
        # As after Ctrl-C: nobody waits for the others any more.
        for future in futures:
            if future is not None:
                future.cancel()
        raise
    return found


def _submit(
    executor: Executor, function: Callable[[Work], Found], work: Work
) -> Future[Found] | None:
    try:
        return executor.submit(function, work)
    except BrokenExecutor:
        # It has lost a worker, and takes no work any more.
        return None
    except RuntimeError as error:
        raise DomainError(
            f"executor: got one that takes no work ({error}), wanted one that is not shut down"
        ) from error


def _result(function: Callable[[Work], Found], work: Work, future: Future[Found] | None) -> Found:
    reason = "it is broken"
    if future is not None:
        try:
            return future.result()
        except Exception as error:  # noqa: BLE001
            # Whatever it is: if the work itself is at fault, its own error comes now.
            reason = f"{type(error).__name__}: {error}".rstrip(": ")
    logger.warning("executor: a part did not come back (%s), and is computed here", reason)
    return function(work)
