"""Training and evaluation on checked data: epochs, interrupts, progress, non-finite values."""

import importlib.util
import logging
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.arrays import Data
from fastmlp.batches import CHUNK_ROWS, batch_rows, combine_losses, epoch_order
from fastmlp.errors import NonFiniteTrainingError
from fastmlp.history import History
from fastmlp.metrics import Evaluation, score
from fastmlp.optimizers import Optimizer
from fastmlp.parameters import TrainingState
from fastmlp.planning import Programs
from fastmlp_kernels.algebra import OPTIMIZERS, hyper_table
from fastmlp_kernels.problem import BATCHES, CONTROL_WORDS, STATUS, STOP, Problem

logger = logging.getLogger("fastmlp")

Array = NDArray[Any]

# An epoch longer than this runs in a thread of its own, so that Ctrl-C is heard at once.
THREAD_SECONDS = 0.05
WAIT_SECONDS = 0.1
PROGRESS_DELAY_SECONDS = 2.0
LINE_SECONDS = 1.0


@dataclass(frozen=True)
class Options:
    """The checked arguments of a fit."""

    epochs: int
    batch_size: int
    optimizer: Optimizer
    metric: str
    shuffle: bool = True
    device: str = "auto"
    kernel: str | None = None
    progress: bool | None = None
    verbose: int = 0


class Fit:
    """One call of `fit`. Building it plans and allocates; `run` changes the state."""

    def __init__(
        self,
        state: TrainingState,
        programs: Programs,
        data: Data,
        validation: Data | None,
        options: Options,
    ) -> None:
        self.state, self.programs, self.options = state, programs, options
        self.data, self.validation = data, validation
        self.plan, self.program = programs.get(
            len(data.X),
            options.batch_size,
            labels=data.labels,
            rule=options.optimizer.rule,
            device=options.device,
            kernel=options.kernel,
        )
        chosen = self.plan.kernel
        self.history = History(chosen.name, chosen.device, options.metric, len(data.X))

    def run(self) -> None:
        """Train; the history grows with every finished epoch."""
        state, program = self.state, self.program
        state.prepare(self.options.optimizer.rule, self.plan.problem.slots)
        X, y = program.to_device(self.data.X), program.to_device(self.data.y)
        parameters = program.to_device(state.parameters)
        slots = program.to_device(state.slots)
        program.prepare(parameters, slots, X, y)
        report = Report(self.options, self.plan.problem.batches, self.history)
        try:
            for _ in range(self.options.epochs):
                self._epoch(parameters, slots, X, y, report)
        finally:
            report.close()

    def _epoch(self, parameters: Any, slots: Any, X: Any, y: Any, report: "Report") -> None:
        state, problem, optimizer = self.state, self.plan.problem, self.options.optimizer
        before = state.snapshot()
        order = epoch_order(state.seed, state.epochs, problem.rows, self.options.shuffle)
        rule = OPTIMIZERS[optimizer.rule]
        hyper = hyper_table(
            rule, optimizer.settings, state.steps + 1, problem.batches, problem.dtype
        )
        losses = np.zeros(problem.batches, dtype=problem.dtype)
        control = np.zeros(CONTROL_WORDS, dtype=np.int64)

        def work() -> None:
            self.program.epoch(parameters, slots, X, y, order, hyper, losses, control)

        started = time.perf_counter()
        try:
            run_interruptibly(work, control, self.plan.seconds, report.batch)
        finally:
            # Also after an interrupt: the state is then that of the last finished batch.
            self.program.to_host(parameters, state.parameters)
            self.program.to_host(slots, state.slots)
            state.steps += applied_batches(control)
        seconds = time.perf_counter() - started

        self._check_finite(before, losses, control)
        state.epochs += 1
        sizes = batch_rows(problem.rows, problem.batch_size)
        self.history.record(combine_losses(losses, sizes, problem.reduction), seconds)
        if self.validation is not None:
            result = evaluate(
                self.state.parameters,
                self.programs,
                self.validation,
                problem,
                self.options.metric,
                self.options.device,
                self.options.kernel,
            )
            self.history.record_validation(result.loss, result.score)
        report.epoch()

    def _check_finite(
        self, before: tuple[Array, Array, int], losses: Array, control: NDArray[np.int64]
    ) -> None:
        """Raise if the epoch met a number that is not finite, and leave good parameters."""
        state = self.state
        bad = int(control[STATUS])
        if bad == 0 and state.finite:
            return
        if state.finite:
            kept = "those after the last good batch"
        else:
            # An overflow of the parameters shows one batch later, too late to name a good one.
            state.restore(before)
            kept = "those from before this epoch"
        good = losses[: bad - 1] if bad else losses
        finite = good[np.isfinite(good)]
        last = float(finite[-1]) if finite.size else None
        if last is None and len(self.history):
            last = float(self.history.loss[-1])
        epoch, batch = len(self.history) + 1, bad or len(losses)
        largest = float(np.abs(self.data.X).max())
        raise NonFiniteTrainingError.at(
            f"fit: got a loss, gradient or parameter that is not finite in epoch {epoch}, batch "
            f"{batch} of {len(losses)}, wanted finite numbers (last finite loss: {last}). "
            f"The model's parameters are {kept}. Try a smaller learning rate than "
            f"{self.options.optimizer.settings['learning_rate']:g}, and inputs and targets of "
            f"the order of 1: the largest |X| is {largest:.3g}",
            epoch,
            batch,
            last,
        )


def applied_batches(control: NDArray[np.int64]) -> int:
    """Return how many batches of an epoch have changed the parameters."""
    return int(control[STATUS]) - 1 if control[STATUS] else int(control[BATCHES])


def run_interruptibly(
    work: Callable[[], None],
    control: NDArray[np.int64],
    seconds: float,
    waiting: Callable[[int], None],
) -> None:
    """Run an epoch so that an interrupt stops it after its present batch.

    Compiled code does not look at signals. A short epoch is simply waited for; a long one runs in
    a thread, while this one sleeps, reports how far it is and passes an interrupt on.
    """
    if seconds <= THREAD_SECONDS or threading.current_thread() is not threading.main_thread():
        work()
        return
    failures: list[BaseException] = []
    # Not Thread.is_alive: an interrupted join makes it say False of a thread that runs (CPython
    # 3.11, Thread._wait_for_tstate_lock).
    done = threading.Event()

    def target() -> None:
        try:
            work()
        except BaseException as failure:
            failures.append(failure)
        finally:
            done.set()

    thread = threading.Thread(target=target, name="fastmlp-epoch", daemon=True)
    try:
        try:
            thread.start()
        except RuntimeError:
            done.set()
            raise
        while not done.wait(WAIT_SECONDS):
            waiting(int(control[BATCHES]))
    except BaseException:
        control[STOP] = 1
        _wait(done)
        raise
    if failures:
        raise failures[0]


def _wait(done: threading.Event) -> None:
    # Parameters must not be touched any more when this returns, however often Ctrl-C is pressed.
    while not done.is_set():
        try:
            done.wait(WAIT_SECONDS)
        except KeyboardInterrupt:
            continue


class Report:
    """Progress bar and lines of a fit."""

    def __init__(self, options: Options, batches: int, history: History) -> None:
        self._options, self._batches, self._history = options, batches, history
        self._next_line = time.monotonic() + LINE_SECONDS
        self._bar = self._open_bar()

    def _open_bar(self) -> Any:
        progress = self._options.progress
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
            total=self._options.epochs * self._batches,
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
        done, epochs = len(self._history), self._options.epochs
        if self._bar is not None:
            self._bar.set_postfix_str(self._history.line(), refresh=False)
            self._bar.update(done * self._batches - self._bar.n)
        now = time.monotonic()
        if self._options.verbose and (now >= self._next_line or done == epochs):
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


def evaluate(
    parameters: Array,
    programs: Programs,
    data: Data,
    problem: Problem,
    metric: str,
    device: str,
    kernel: str | None,
) -> Evaluation:
    """Return loss and score of all rows, in chunks that need little memory."""
    rows = len(data.X)
    sizes = batch_rows(rows, min(rows, CHUNK_ROWS))
    outputs = np.empty((rows, problem.sizes[-1]), dtype=problem.dtype)
    losses = []
    start = 0
    for size in map(int, sizes):
        part = slice(start, start + size)
        start += size
        _, program = programs.get(size, size, labels=data.labels, device=device, kernel=kernel)
        out = program.to_device(outputs[part])
        program.forward(program.to_device(parameters), program.to_device(data.X[part]), out)
        losses.append(program.loss(program.to_device(data.y[part])))
        program.to_host(out, outputs[part])
    loss = combine_losses(losses, sizes, problem.reduction)
    return Evaluation(loss, score(metric, outputs, data.y, data.labels), metric)


def predict(
    parameters: Array,
    programs: Programs,
    X: Array,
    outputs: int,
    device: str,
    kernel: str | None,
) -> Array:
    """Return the outputs of any number of rows, through the link of the loss."""
    # The next power of two: predictions of every length then share a few programs.
    capacity = 1 << (len(X) - 1).bit_length()
    _, program = programs.get(capacity, min(capacity, CHUNK_ROWS), device=device, kernel=kernel)
    result = np.empty((len(X), outputs), dtype=X.dtype)
    out = program.to_device(result)
    program.predict(program.to_device(parameters), program.to_device(X), out, True)
    program.to_host(out, result)
    return result


def step(state: TrainingState, programs: Programs, data: Data, optimizer: Optimizer) -> float:
    """Train on one batch: an epoch of one batch, its rows in their own order."""
    rows = len(data.X)
    # Planned as the separate parts are, so that both run the same kernel and give the same bits.
    chosen, _ = programs.get(rows, rows, labels=data.labels)
    plan, program = programs.get(
        rows, rows, labels=data.labels, rule=optimizer.rule, kernel=chosen.kernel.name
    )
    state.prepare(optimizer.rule, plan.problem.slots)
    dtype = state.parameters.dtype
    hyper = hyper_table(OPTIMIZERS[optimizer.rule], optimizer.settings, state.steps + 1, 1, dtype)
    losses = np.zeros(1, dtype=dtype)
    control = np.zeros(CONTROL_WORDS, dtype=np.int64)
    parameters, slots = program.to_device(state.parameters), program.to_device(state.slots)
    X, y = program.to_device(data.X), program.to_device(data.y)
    order = np.arange(rows, dtype=np.int64)
    try:
        program.epoch(parameters, slots, X, y, order, hyper, losses, control)
    finally:
        program.to_host(parameters, state.parameters)
        program.to_host(slots, state.slots)
        state.steps += applied_batches(control)
    if control[STATUS]:
        raise NonFiniteTrainingError.at(
            f"step: got a loss of {losses[0]} or a gradient that is not finite, wanted finite "
            "numbers. Nothing was changed; try a smaller learning rate",
            None,
            None,
            None,
        )
    return float(losses[0])


def value_and_gradient(parameters: Array, programs: Programs, data: Data, flat: Array) -> float:
    """Return the loss of a batch and write its gradient to `flat`."""
    rows = len(data.X)
    _, program = programs.get(rows, rows, labels=data.labels)
    gradient = program.to_device(flat)
    X, y = program.to_device(data.X), program.to_device(data.y)
    loss = program.value_and_gradient(program.to_device(parameters), X, y, gradient)
    program.to_host(gradient, flat)
    return loss


def apply(
    state: TrainingState,
    programs: Programs,
    gradient: Array,
    optimizer: Optimizer,
    kernel: str | None,
) -> None:
    """Take one step along a gradient, on the kernel that made it.

    Another kernel may round its update differently, and the parts of a step would no longer give
    the bits of the whole.
    """
    plan, program = programs.get(1, 1, rule=optimizer.rule, kernel=kernel)
    state.prepare(optimizer.rule, plan.problem.slots)
    rule = OPTIMIZERS[optimizer.rule]
    hyper = hyper_table(rule, optimizer.settings, state.steps + 1, 1, gradient.dtype)
    parameters, slots = program.to_device(state.parameters), program.to_device(state.slots)
    program.update(parameters, program.to_device(gradient), slots, program.to_device(hyper))
    program.to_host(parameters, state.parameters)
    program.to_host(slots, state.slots)
    state.steps += 1
