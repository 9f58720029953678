"""Compile ahead every kernel that a fit, a step or a prediction may need, on tiny problems."""

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import cycle, islice
from typing import Any

import numpy as np

from fastmlp.device.machine import detect, sharing
from fastmlp.dispatch.planning import ONLY_BY_NAME
from fastmlp.errors import DTypeError, check_name
from fastmlp_kernels.algebra import ACTIVATIONS, HYPER_WIDTH, LOSSES, OPTIMIZERS, rule_name
from fastmlp_kernels.problem import (
    CONTROL_WORDS,
    DTYPES,
    REDUCTIONS,
    Kernel,
    Machine,
    Problem,
    Program,
)
from fastmlp_kernels.registry import KERNELS

logger = logging.getLogger("fastmlp")

# One network narrower than a vector, and one wider than a tile. They may run different code.
NARROW, WIDE = 3, 80
ROWS, BATCH_SIZE = 5, 2


def warmup(dtypes: str | Iterable[str] = DTYPES) -> float:
    """Compile all kernels, or load them from the disk cache; return the seconds it took.

    A first fit then compiles nothing, in this process or in a later one.

    Parameters
    ----------
    dtypes : str or iterable of str
        "float32", "float64" or both.

    Returns
    -------
    float

    Raises
    ------
    DTypeError, UnknownNameError
        If a dtype is another one.

    Examples
    --------
    >>> seconds = fastmlp.warmup("float32")
    """
    try:
        given = [dtypes] if isinstance(dtypes, str) else list(dtypes)
    except TypeError:
        raise DTypeError(
            f"dtypes: got {dtypes!r}, wanted 'float32', 'float64' or a list of them"
        ) from None
    names = [check_name("dtypes", each, DTYPES, "dtype") for each in given]
    started = time.perf_counter()
    machine = detect()
    for kernel in KERNELS:
        if kernel.name != ONLY_BY_NAME:
            for dtype in names:
                _warm(kernel, dtype, machine)
    return time.perf_counter() - started


def _warm(kernel: Kernel, dtype: str, machine: Machine) -> None:
    started = time.perf_counter()
    for problem in lengths_of_epochs(problems(dtype)):
        if kernel.supports(problem, machine) is not None:
            continue
        # Alone and in a team, because the second thread may run code that the first does not.
        for threads in range(1, min(machine.cores, 2) + 1):
            alike = sharing(machine, threads)
            exercise(kernel.build(problem, alike), problem)
    # Networks side by side have code of their own around the same functions.
    several = replace(next(problems(dtype)), members=2)
    if kernel.supports(several, machine) is None:
        kernel.build(several, machine)
    seconds = time.perf_counter() - started
    logger.info("%s is ready for %s after %.1f s", kernel.name, dtype, seconds)


def problems(dtype: str) -> Iterator[Problem]:
    """Yield problems that together hold each activation, loss rule, optimizer and reduction."""
    outputs = _outputs_by_rule()
    count = max(len(outputs), len(ACTIVATIONS), len(OPTIMIZERS))
    rows = zip(
        cycle(ACTIVATIONS.names),
        cycle(outputs),
        cycle(OPTIMIZERS.names),
        cycle(REDUCTIONS),
        strict=False,
    )
    for hidden, (loss, output, labels), optimizer, reduction in islice(rows, count):
        for width in (NARROW, WIDE):
            yield Problem(
                sizes=(width, width, 2),
                activations=(hidden, output),
                loss=loss,
                optimizer=optimizer,
                reduction=reduction,
                dtype=dtype,
                labels=labels,
                batch_size=BATCH_SIZE,
                rows=ROWS,
            )


def lengths_of_epochs(found: Iterator[Problem]) -> Iterator[Problem]:
    """Yield each problem and, of the narrow ones, epochs of one batch and of single rows."""
    for problem in found:
        yield problem
        if problem.sizes[0] == NARROW:
            yield replace(problem, rows=BATCH_SIZE)
            yield replace(problem, batch_size=1, rows=2)


def _outputs_by_rule() -> list[tuple[str, str, bool]]:
    """Return a loss, an output activation and a kind of target for each loss rule."""
    found: dict[str, tuple[str, str, bool]] = {}
    for loss in LOSSES:
        for activation in ACTIVATIONS:
            if loss.refusal(activation) is None:
                for labels in {False, loss.label_rule is not None}:
                    name = rule_name(loss, activation.name, labels)
                    found.setdefault(name, (loss.name, activation.name, labels))
    return list(found.values())


def exercise(program: Program, problem: Problem) -> None:
    """Call every method of a program once."""
    dtype, columns = np.dtype(problem.dtype), problem.target_columns

    def array(*shape: int, value: float = 0.0) -> Any:
        return program.to_device(np.full(shape, value, dtype=dtype))

    parameters = array(problem.parameter_count, value=0.1)
    gradient, state = array(problem.parameter_count), array(problem.slots, problem.parameter_count)
    X = array(problem.rows, problem.sizes[0], value=0.5)
    # In the domain of every loss: class 0, or two equally likely classes.
    y = array(problem.rows, columns, value=0.0 if problem.labels else 1 / columns)
    order = np.arange(problem.rows, dtype=np.int64)
    hyper = np.full((problem.batches, HYPER_WIDTH), 1e-3, dtype=dtype)
    losses = np.zeros(problem.batches, dtype=dtype)
    # First without weights and penalty, then with both.
    factors, squares = np.full(problem.rows, 1e-3, dtype=dtype), np.zeros(problem.batches)
    for given in ((None, None), (factors, squares)):
        program.prepare(parameters, state, X, y, *(each is not None for each in given))
        control = np.zeros(CONTROL_WORDS, dtype=np.int64)
        program.epoch(parameters, state, X, y, order, hyper, losses, control, *given)
    rows = problem.batch_size
    batch, targets = X[:rows], y[:rows]
    outputs = array(rows, problem.sizes[-1])
    program.forward(parameters, batch, outputs)
    program.loss(targets)
    program.backward(parameters, None, gradient, array(rows, problem.sizes[0]))
    program.backward(parameters, outputs, gradient, array(rows, problem.sizes[0]))
    program.value_and_gradient(parameters, batch, targets, gradient)
    one_step = program.to_device(np.full((1, HYPER_WIDTH), 1e-3, dtype=dtype))
    program.update(parameters, gradient, state, one_step)
    program.predict(parameters, X, array(problem.rows, problem.sizes[-1]), True)
