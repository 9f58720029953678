"""What a person sees while a fit runs: one line that is rewritten, or lines of a log.

A person looks at a terminal or at a notebook. If standard error leads elsewhere, a program reads
it. Nothing is written there then, unless ``progress=True`` asks for lines.
"""

import contextlib
import functools
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar

from fastmlp.history import History

logger = logging.getLogger("fastmlp")

# A shorter fit shows nothing.
FIT_SECONDS = 2.0
# A fit that will last at least `CERTAIN_SECONDS`, by its epochs so far, is shown sooner.
SOON_SECONDS, CERTAIN_SECONDS = 0.7, 4.0
REDRAW_SECONDS = 0.1
# A notebook may keep everything that is written, so less is.
NOTEBOOK_REDRAW_SECONDS = 0.5
# Between two lines of `verbose`, and of `progress=True` where no line can be rewritten.
LINE_SECONDS = 1.0
PLAIN_SECONDS = 5.0
# Compiling the few lines of a new activation takes less, and is not shown.
COMPILATION_SECONDS = 0.3
# Compilations with shorter pauses count as one. The kernels of a first fit are compiled in turn.
PAUSE_SECONDS = 3.0
# Jupyter does not say how wide its pages are.
NOTEBOOK_COLUMNS = 79

# The `progress` of the fit that is running in this context.
_asked: ContextVar[bool | None] = ContextVar("fastmlp_progress", default=None)

Fit = TypeVar("Fit", bound=Callable[..., Any])


def shows_progress(fit: Fit) -> Fit:
    """Wrap a method `fit`, so that what happens inside is shown as its `progress` asks."""

    @functools.wraps(fit)
    def shown(*given: Any, **named: Any) -> Any:
        token = _asked.set(named.get("progress"))
        try:
            return fit(*given, **named)
        finally:
            _asked.reset(token)

    return shown  # type: ignore[return-value]


class Line:
    """A line of a terminal or a notebook that is rewritten.

    Elsewhere it is a new line each time, `PLAIN_SECONDS` apart, without control characters.

    Parameters
    ----------
    stream : text stream
    kind : {"terminal", "notebook", "plain"}
    """

    def __init__(self, stream: Any, kind: str) -> None:
        self._stream, self._terminal = stream, kind == "terminal"
        self.rewrites = kind != "plain"
        self.redraw_seconds = NOTEBOOK_REDRAW_SECONDS if kind == "notebook" else REDRAW_SECONDS
        # Whether a text is shown now.
        self.shown = False
        self._next = 0.0

    @property
    def columns(self) -> int:
        """The most characters of a text. One in a terminal's last column might end the line."""
        if not self._terminal:
            return NOTEBOOK_COLUMNS
        try:
            # Not `shutil`, which asks standard output: that may lead elsewhere.
            columns = os.get_terminal_size(self._stream.fileno()).columns
        except (AttributeError, OSError, ValueError):
            columns = 0
        return max(1, (columns or shutil.get_terminal_size().columns) - 1)

    def show(self, text: str) -> None:
        """Write a text in the place of the last one."""
        if self.rewrites:
            self._write(f"\r{self._padded(text)}")
            self.shown = True
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + PLAIN_SECONDS
            self._write(f"{text}\n")

    def clear(self) -> None:
        """Remove the text."""
        if self.shown:
            self._write(f"\r{self._padded('')}\r")
            self.shown = False

    def leave(self, text: str) -> None:
        """Write a text that stays."""
        self._write(f"\r{self._padded(text)}\n" if self.rewrites else f"{text}\n")
        self.shown = False

    def _padded(self, text: str) -> str:
        # Over all columns, since another line may have written there. Notebooks do not know a
        # terminal's code for that.
        columns = self.columns
        return text[:columns].ljust(columns)

    def _write(self, text: str) -> None:
        # The terminal is gone, so nobody looks. That is no reason to end a fit.
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
            self._stream.flush()


def open_line(progress: bool | None) -> Line | None:
    """Return a line on standard error, or None if nothing shall be shown.

    Parameters
    ----------
    progress : bool or None
        True shows it always, False never, None where a person looks.
    """
    stream = sys.stderr
    if stream is None or not (progress is None or progress):
        return None
    if _is_terminal(stream):
        return Line(stream, "terminal")
    # Only a program that has loaded it runs in a notebook.
    jupyter = sys.modules.get("ipykernel.iostream")
    if isinstance(stream, getattr(jupyter, "OutStream", ())):
        return Line(stream, "notebook")
    return Line(stream, "plain") if progress else None


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):
        # Standard error may be replaced by a program's own object, or closed.
        return False


class _Compilations:
    """When the first of several compilations in turn began, and when the last of them ended."""

    began = ended = -PAUSE_SECONDS


def show_compilation(
    running: threading.Lock, compiled: str, how_often: str
) -> Callable[[], None] | None:
    """Show that kernels are being compiled, after `COMPILATION_SECONDS`.

    `running` is held while the compilation lasts: see `fastmlp_kernels.announcing`.
    """
    line = open_line(_asked.get())
    if line is None:
        return None
    now = time.monotonic()
    if now - _Compilations.ended > PAUSE_SECONDS:
        _Compilations.began = now
    texts = (f"fastmlp: compiling {compiled} ({how_often})", f"compiling {compiled}", "compiling")
    arguments = (line, running, texts, _Compilations.began)
    thread = threading.Thread(target=_follow, args=arguments, name="fastmlp-progress", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        # The system has no more threads. Kernels matter more than a word about them.
        return None
    # Normally as long as writing a line takes. But Ctrl-S may have stopped the terminal.
    return lambda: thread.join(PAUSE_SECONDS)


def _follow(line: Line, running: threading.Lock, texts: tuple[str, ...], began: float) -> None:
    """Show how long a compilation has taken until it ends."""
    wait = max(0.0, began + COMPILATION_SECONDS - time.monotonic())
    while not running.acquire(timeout=wait):
        seconds = time.monotonic() - began
        line.show(_longest([f"{text}: {seconds:.0f} s" for text in texts], line.columns))
        wait = 1.0 - seconds % 1.0
    line.clear()
    _Compilations.ended = time.monotonic()


def _longest(texts: list[str], columns: int) -> str:
    """Return the first text that fits. Longer texts come first."""
    return next((text for text in texts if len(text) <= columns), texts[-1])


# What is shown of a fit, from the most to the least: the width of the bar, the number of phrases of
# the history, and whether the batch and the time so far are shown. The first that fits is taken.
LAYOUTS = (
    (40, 3, True, True),
    (20, 3, True, True),
    (10, 3, True, True),
    (10, 2, True, True),
    (10, 2, True, False),
    (10, 1, True, True),
    (10, 1, True, False),
    (0, 1, True, False),
    (0, 1, False, False),
    (0, 0, False, False),
)


class Report:
    """What is shown of a fit.

    Parameters
    ----------
    epochs, batches : int
        Epochs of the fit, and batches of each epoch.
    history : History
        The fit's history. Its last epoch is shown.
    progress : bool or None
        True shows it always, False never, None where a person looks and the fit is not short.
    verbose : int
        With 1, a line is logged about every `LINE_SECONDS`.
    """

    def __init__(
        self,
        epochs: int,
        batches: int,
        history: History,
        progress: bool | None,
        verbose: int,
    ) -> None:
        self._epochs, self._batches, self._history = epochs, batches, history
        self._verbose, self._asked_for = verbose, bool(progress)
        self._line = open_line(progress)
        # Finished batches of the epoch that is running; None between two epochs.
        self._batch: int | None = None
        self._started = now = time.monotonic()
        self._next_line = now + LINE_SECONDS
        self._next_drawing = now if progress else now + SOON_SECONDS

    def batch(self, done: int) -> None:
        """Show that `done` batches of the present epoch are finished."""
        self._batch = min(done, self._batches)
        self._draw(time.monotonic())

    def epoch(self) -> None:
        """Show a finished epoch."""
        self._batch = None
        now, done = time.monotonic(), len(self._history)
        if self._verbose and (now >= self._next_line or done == self._epochs):
            self._next_line = now + LINE_SECONDS
            self._say(f"epoch {done}/{self._epochs}: {self._history.line()}")
        self._draw(now)

    def _say(self, line: str) -> None:
        """Log a line that was asked for. Print it where logging is not set up."""
        if self._line is not None and self._line.shown:
            self._line.clear()
            self._next_drawing = 0.0
        if logger.isEnabledFor(logging.INFO) and _has_listener():
            logger.info("%s", line)
        else:
            print(line, file=sys.stderr)

    def _draw(self, now: float) -> None:
        line = self._line
        if line is None or now < self._next_drawing:
            return
        elapsed = now - self._started
        if self._asked_for or elapsed >= FIT_SECONDS or self._is_long(elapsed):
            line.show(self._text(line, elapsed))
        self._next_drawing = now + line.redraw_seconds

    def _is_long(self, elapsed: float) -> bool:
        """Return whether the whole fit will be long, judged by the part that is done."""
        return 0.0 < CERTAIN_SECONDS * self._fraction() <= elapsed

    def _fraction(self) -> float:
        """Return how much of the fit is done."""
        return (len(self._history) + (self._batch or 0) / self._batches) / self._epochs

    def _text(self, line: Line, elapsed: float, ended: bool = False) -> str:
        """Return as much of the state of the fit as the line can hold."""
        done, fraction = len(self._history), self._fraction()
        phrases = self._history.phrases(digits=4) if done else []
        running = self._batch is not None
        head = f"epoch {done + running}/{self._epochs}"
        place = f"{head}, batch {self._batch}/{self._batches}" if running else head
        known = fraction > 0 and not ended
        left = [f"{_clock(elapsed / fraction - elapsed)} left"] if known else []
        texts = []
        for size, count, with_place, with_time in LAYOUTS:
            after = [_clock(elapsed) if left else f"after {_clock(elapsed)}"] if with_time else []
            rest = ", ".join([*phrases[:count], *after, *left])
            bar = f" [{'#' * int(size * fraction):.<{size}}] " if size and line.rewrites else ": "
            texts.append(((place if with_place else head) + bar + rest).removesuffix(": "))
        return _longest([*texts, head], line.columns)

    def close(self) -> None:
        """Leave the terminal in order: only of a long fit the last state stays.

        Also called in the middle of an epoch, after an interrupt.
        """
        line, elapsed = self._line, time.monotonic() - self._started
        if line is None:
            return
        if self._asked_for or (line.shown and elapsed >= FIT_SECONDS):
            line.leave(self._text(line, elapsed, ended=True))
        else:
            line.clear()


def _clock(seconds: float) -> str:
    """Return a time as minutes and seconds, with hours if there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _has_listener() -> bool:
    current: logging.Logger | None = logger
    while current is not None:
        if any(not isinstance(each, logging.NullHandler) for each in current.handlers):
            return True
        current = current.parent if current.propagate else None
    return False
