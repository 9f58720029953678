"""What a fit shows while it runs: a bar in a terminal, and lines where they are asked for."""

import importlib.util
import logging
import sys
import time
from typing import Any

from fastmlp.ensemble_history import EnsembleHistory
from fastmlp.history import History

logger = logging.getLogger("fastmlp")

PROGRESS_DELAY_SECONDS = 2.0
LINE_SECONDS = 1.0


class Report:
    """Progress bar and lines of a fit.

    Parameters
    ----------
    epochs, batches : int
        Of the fit, and of each epoch.
    history : History or EnsembleHistory
        What `epoch` says of the last epoch.
    progress : bool or None
        A bar always or never; None for one in a terminal, after a while.
    verbose : int
        With 1, a line about every `LINE_SECONDS`.
    """

    def __init__(
        self,
        epochs: int,
        batches: int,
        history: History | EnsembleHistory,
        progress: bool | None,
        verbose: int,
    ) -> None:
        self._epochs, self._batches, self._history = epochs, batches, history
        self._verbose = verbose
        self._next_line = time.monotonic() + LINE_SECONDS
        self._bar = self._open_bar(progress)

    def _open_bar(self, progress: bool | None) -> Any:
        # tqdm costs more to import than a small fit takes: only where somebody can see it.
        terminal = sys.stderr is not None and sys.stderr.isatty()
        if progress is False or (progress is None and not terminal):
            return None
        if importlib.util.find_spec("tqdm") is None:
            if progress:
                logger.warning("no progress bar: pip install fastmlp[progress]")
            return None
        from tqdm import tqdm

        return tqdm(
            total=self._epochs * self._batches,
            unit="batch",
            desc="fit",
            delay=0.0 if progress else PROGRESS_DELAY_SECONDS,
        )

    def batch(self, done: int) -> None:
        """Show that `done` batches of the present epoch are finished."""
        if self._bar is not None:
            self._bar.update(len(self._history) * self._batches + done - self._bar.n)

    def epoch(self) -> None:
        """Show a finished epoch."""
        done, epochs = len(self._history), self._epochs
        if self._bar is not None:
            self._bar.set_postfix_str(self._history.line(), refresh=False)
            self._bar.update(done * self._batches - self._bar.n)
        now = time.monotonic()
        if self._verbose and (now >= self._next_line or done == epochs):
            self._next_line = now + LINE_SECONDS
            self._say(f"epoch {done}/{epochs}: {self._history.line()}")

    def _say(self, line: str) -> None:
        """Log a line; print it where nobody has set up logging, for it was asked for."""
        if logger.isEnabledFor(logging.INFO) and _has_listener():
            logger.info("%s", line)
        elif self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr)

    def close(self) -> None:
        """Leave the terminal in order."""
        if self._bar is not None:
            self._bar.close()


def _has_listener() -> bool:
    current: logging.Logger | None = logger
    while current is not None:
        if any(not isinstance(each, logging.NullHandler) for each in current.handlers):
            return True
        current = current.parent if current.propagate else None
    return False
