"""Dispatch as a value: which kernel runs a problem, and why none of the others."""

import logging
import os
import sys
from collections import OrderedDict
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from fastmlp.arrays import check_integer
from fastmlp.errors import DeviceError, DomainError, DTypeError, ShapeError, check_name, look_up
from fastmlp.machine import detect
from fastmlp.residency import guarded
from fastmlp.synonyms import answer, resolve
from fastmlp_kernels.algebra import ACTIVATIONS, LOSSES
from fastmlp_kernels.problem import (
    DTYPES,
    PRECISIONS,
    REDUCTIONS,
    Kernel,
    Machine,
    Problem,
    Program,
)
from fastmlp_kernels.registry import KERNELS

logger = logging.getLogger("fastmlp")

DEVICES = ("auto", "cpu", "cuda")
# The oracle is slow by design, whatever a roofline says of a network of three parameters.
ONLY_BY_NAME = "reference"
# Programs that a model keeps: a fit, its validation, a prediction and single steps fit in.
PROGRAMS_KEPT = 8

_announced: set[str] = set()


def make_problem(
    sizes: Any, activations: Any, loss: Any, dtype: Any, reduction: Any, precision: Any = "float32"
) -> Problem:
    """Return the problem that the arguments of a model describe, for one row."""
    units = _check_sizes(sizes)
    rows = _check_activations(activations, len(units) - 1)
    row = look_up("loss", LOSSES, loss)
    reason = row.refusal(rows[-1])
    if reason is not None:
        got = f"got {rows[-1].name!r} at the output"
        raise DomainError(f"activations: {got}, wanted one for the loss: {reason}")
    if row.link is not None and units[-1] < 2:
        raise ShapeError(
            f"sizes: got 1 output with {row.name}, wanted one for each of >= 2 classes; two "
            "classes with 1 output need 'sigmoid' there and loss='binary_cross_entropy'"
        )
    computed = _check_dtype(dtype)
    precision = check_name("precision", precision, PRECISIONS)
    if computed == "float64" and precision != "float32":
        raise DTypeError(
            f"precision: got {precision!r} with dtype 'float64', wanted dtype='float32' beside it"
        )
    problem = Problem(
        sizes=units,
        activations=tuple(each.name for each in rows),
        loss=row.name,
        reduction=check_name("reduction", reduction, REDUCTIONS),
        dtype=computed,
        precision=precision,
        batch_size=1,
        rows=1,
    )
    return check_memory(problem)


def check_memory(problem: Problem) -> Problem:
    """Return the problem, unless its parameters alone are more than the machine's memory."""
    count = sum((inputs + 1) * outputs for inputs, outputs in pairwise(problem.sizes))
    needed = problem.members * count * np.dtype(problem.dtype).itemsize
    if needed > physical_memory():
        alone = problem.members == 1
        networks = "" if alone else f"{problem.members:,} networks of "
        raise ShapeError(
            f"{'sizes' if alone else 'members'}: got {networks}{count:,} parameters, "
            f"{needed / 1e9:,.0f} GB in {problem.dtype}, wanted what fits in the memory of this "
            "machine"
        )
    return problem


def physical_memory() -> int:
    """Return the bytes of memory of this machine, or what an address can reach where unknown."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return sys.maxsize


def _check_sizes(sizes: Any) -> tuple[int, ...]:
    wanted = "at least two positive whole numbers, inputs first: [784, 256, 10]"
    try:
        units = list(sizes)
    except TypeError:
        raise DTypeError(f"sizes: got {sizes!r}, wanted {wanted}") from None
    if len(units) < 2:
        raise ShapeError(f"sizes: got {units!r}, wanted {wanted}")
    return tuple(check_integer(each, f"sizes[{i}]", 1) for i, each in enumerate(units))


def _check_activations(activations: Any, layers: int) -> list[Any]:
    if isinstance(activations, str) or hasattr(activations, "name") or callable(activations):
        hidden = look_up("activations", ACTIVATIONS, activations)
        return [hidden] * (layers - 1) + [ACTIVATIONS["identity"]]
    try:
        given = list(activations)
    except TypeError:
        raise DTypeError(
            f"activations: got {activations!r}, wanted a name or one per layer"
        ) from None
    if len(given) != layers:
        hint = ""
        if len(given) == layers - 1:
            named = ", ".join(map(repr, [*given, "identity"]))
            hint = f"; with the output's, such as [{named}]"
        raise ShapeError(
            f"activations: got {len(given)}, wanted {layers}, one per layer of weights{hint}"
        )
    return [look_up(f"activations[{i}]", ACTIVATIONS, each) for i, each in enumerate(given)]


def _check_dtype(dtype: Any) -> str:
    try:
        name = np.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    # PyTorch's dtypes are written "torch.float32".
    known = None if dtype is None else resolve("dtype", name, DTYPES)
    if known is None:
        hint = answer("dtype", name)
        wanted = " or ".join(map(repr, DTYPES))
        raise DTypeError(f"dtype: got {dtype!r}, wanted {wanted}{f'; {hint}' if hint else ''}")
    return known


@dataclass(frozen=True)
class Plan:
    """A kernel chosen for a problem.

    Attributes
    ----------
    seconds : float
        Predicted for one epoch.
    rejected : tuple of (str, str)
        The other kernels, each with the reason.
    """

    problem: Problem
    kernel: Kernel
    seconds: float
    rejected: tuple[tuple[str, str], ...]


def check_place(device: Any, kernel: Any) -> tuple[str, str | None]:
    """Return a known device, and a known kernel or None for the fastest."""
    if device != "auto":
        device = check_name("device", device, DEVICES)
    if kernel is not None:
        kernel = check_name("kernel", kernel, [each.name for each in KERNELS])
    return device, kernel


def plan(
    problem: Problem,
    device: str = "auto",
    kernel: str | None = None,
    machine: Machine | None = None,
) -> Plan:
    """Choose the kernel with the lowest predicted time, or the one that is named.

    Raises
    ------
    UnknownNameError
        If there is no such device or kernel.
    DeviceError
        If the device is missing, or the kernel cannot run the problem.
    """
    device, kernel = check_place(device, kernel)
    names = [each.name for each in KERNELS]
    machine = detect() if machine is None else machine
    if device == "cuda" and machine.cuda_missing is not None:
        raise DeviceError(f"device: got 'cuda', wanted one that is here: {machine.cuda_missing}")

    refused: dict[str, str] = {}
    seconds: dict[str, float] = {}
    for each in KERNELS:
        reason = each.supports(problem, machine)
        if reason is None and device not in ("auto", each.device):
            reason = f"not on the device that was asked for, {device!r}"
        if reason is None:
            seconds[each.name] = each.cost(problem, machine)
        else:
            refused[each.name] = reason

    chosen = _choose(problem, kernel, refused, seconds)
    for name, predicted in seconds.items():
        if name == chosen:
            continue
        if kernel is not None:
            refused[name] = f"another kernel was asked for; predicted {readable_time(predicted)}"
        elif name == ONLY_BY_NAME:
            refused[name] = "the oracle of the tests: chosen only by name"
        else:
            refused[name] = (
                f"{predicted / seconds[chosen]:.1f} x slower: {readable_time(predicted)}"
            )
    rejected = tuple((name, refused[name]) for name in names if name != chosen)
    return Plan(problem, KERNELS[names.index(chosen)], seconds[chosen], rejected)


def _choose(
    problem: Problem, kernel: str | None, refused: dict[str, str], seconds: dict[str, float]
) -> str:
    if kernel is not None:
        if kernel in refused:
            raise DeviceError(
                f"kernel: got {kernel!r}, wanted one that can run this: {refused[kernel]}"
            )
        return kernel
    candidates = [name for name in seconds if name != ONLY_BY_NAME]
    if not candidates:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise DeviceError(f"device: got no kernel for {problem}, wanted one ({reasons})")
    return min(candidates, key=seconds.__getitem__)


class Where(NamedTuple):
    """What a call asks of the place that it runs in: the arguments that users give."""

    device: str = "auto"
    kernel: str | None = None
    threads: int | None = None


ANYWHERE = Where()


def asked(device: Any, kernel: Any, threads: Any, otherwise: int | None) -> Where:
    """Return what a call asks of its place, checked; `otherwise` stands for no word on threads."""
    threads = otherwise if threads is None else check_threads(threads)
    return Where(*check_place(device, kernel), threads)


class Programs:
    """The programs of a model, built when they are first needed; the least used are dropped."""

    def __init__(self, template: Problem) -> None:
        self._template = template
        self._kept: OrderedDict[tuple[Any, ...], tuple[Plan, Program]] = OrderedDict()

    def get(
        self,
        rows: int,
        batch_size: int,
        where: Where = ANYWHERE,
        *,
        labels: bool = False,
        rule: str = "sgd",
        purpose: str = "",
    ) -> tuple[Plan, Program]:
        """Return the plan and the program for an epoch of `rows` rows.

        Programs of different `purpose` are never the same: what the backward pass needs must
        outlive a prediction made in between.
        """
        # The request is the key, and not the problem that it makes: planning and hashing a
        # problem cost more than a step of a small network.
        key = (rows, batch_size, where, labels, rule, purpose)
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
            return found
        problem = replace(
            self._template, rows=rows, batch_size=batch_size, labels=labels, optimizer=rule
        )
        machine = machine_with(where.threads)
        chosen = plan(problem, where.device, where.kernel, machine)
        announce_compilation(chosen)
        with guarded(chosen.kernel.device, "device"):
            program = chosen.kernel.build(problem, machine)
        found = self._kept[key] = chosen, program
        if len(self._kept) > PROGRAMS_KEPT:
            self._kept.popitem(last=False)
        return found


def check_threads(threads: object) -> int | None:
    """Return a number of threads; None stands for as many as the process may use."""
    return None if threads is None else check_integer(threads, "threads", 1)


def machine_with(threads: int | None) -> Machine:
    """Return this machine, of which a kernel may keep so many processors busy; None for all."""
    return detect() if threads is None else replace(detect(), cores=threads)


def announce_compilation(chosen: Plan) -> None:
    """Say once a process that the CPU kernels may have to be compiled."""
    dtype = chosen.problem.dtype
    if chosen.kernel.name.startswith("cpu.") and dtype not in _announced:
        _announced.add(dtype)
        logger.info(
            "loading the CPU kernels for %s; the first time on a machine they are compiled, "
            "which takes some seconds ('python -m fastmlp warmup' does it ahead)",
            dtype,
        )


def readable_time(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"
