"""Dispatch as a value: which kernel runs a problem, and why none of the others."""

import contextlib
import os
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from fastmlp.arguments import check_integer
from fastmlp.device.machine import detect
from fastmlp.device.mirrors import guarded
from fastmlp.errors import DeviceError, check_name
from fastmlp.optimizer_base import Update
from fastmlp.progress import show_compilation
from fastmlp_kernels.announcing import announce_to
from fastmlp_kernels.problem import (
    Kernel,
    Machine,
    Problem,
    Program,
)
from fastmlp_kernels.registry import KERNELS

DEVICES = ("auto", "cpu", "cuda")
# More threads than processors gain nothing. Tests of equal bits use them, up to this number.
MOST_THREADS = 64
# The oracle is slow by design, whatever a roofline says of a network of three parameters.
ONLY_BY_NAME = "reference"
# Kinds of programs that a model keeps: a fit, its validation, a prediction and single steps fit in.
PROGRAMS_KEPT = 8
# Programs of a kind that there may be on a machine of few processors.
FEWEST_PROGRAMS = 4
# Rows of a chunk where no gradient is wanted. They fill any kernel and take little memory.
CHUNK_ROWS = 1024
# How long a thread waits for another's program before it has one of its own made.
WAIT_SECONDS = 0.2

announce_to(show_compilation)


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


def updated_by(problem: Problem, update: Update) -> Problem:
    """Return a problem whose parameters are updated in this way."""
    rule, clipping, layer_rates = update
    return replace(problem, optimizer=rule, clipping=clipping, layer_rates=layer_rates)


class Where(NamedTuple):
    """What a call asks of the place that it runs in: the arguments that users give."""

    device: str = "auto"
    kernel: str | None = None
    threads: int | None = None


ANYWHERE = Where()
PLAIN_UPDATE = Update()


def asked(device: Any, kernel: Any, threads: Any, otherwise: int | None) -> Where:
    """Return what a call asks of its place, checked; `otherwise` stands for no word on threads."""
    threads = otherwise if threads is None else check_threads(threads)
    return Where(*check_place(device, kernel), threads)


class Shelf:
    """The programs of one kind of call: whoever computes takes one, alone, and puts it back.

    A program holds a workspace and tables that describe one call, so it is used by one thread at a
    time. It is put back only after a call that ended well: one that an exception has left halfway
    is dropped, and never believed again.

    Attributes
    ----------
    plan : Plan
        Of all its programs.
    on_host : bool
        Whether they compute in the host's memory.
    """

    def __init__(self, chosen: Plan, build: Callable[[], Program]) -> None:
        self.plan, self._build = chosen, build
        self.on_host = chosen.kernel.device == "cpu"
        # Both ends of a list are moved by one instruction: threads need no lock here.
        self._idle: list[tuple[Plan, Program]] = []
        self._made: weakref.WeakSet[Program] = weakref.WeakSet()
        self._process, self._most = os.getpid(), most_programs()

    def take(self) -> tuple[Plan, Program]:
        """Return a plan and its program, for this thread alone."""
        try:
            return self._idle.pop()
        except IndexError:
            return self._wait_or_build()

    def put_back(self, pair: tuple[Plan, Program]) -> None:
        """Let others have a program; its call has ended well."""
        if len(self._idle) < self._most:
            self._idle.append(pair)

    def busy(self) -> int:
        """Return how many programs are in use, at least one."""
        return max(1, len(self._made) - len(self._idle))

    def _wait_or_build(self) -> tuple[Plan, Program]:
        if self._process != os.getpid():
            # Those that the parent's other threads have taken never come back to a forked child.
            self._made, self._process = weakref.WeakSet(), os.getpid()
        deadline = time.monotonic() + WAIT_SECONDS
        while len(self._made) >= self._most and time.monotonic() < deadline:
            time.sleep(WAIT_SECONDS / 1000)
            with contextlib.suppress(IndexError):
                return self._idle.pop()
        program = self._build()
        self._made.add(program)
        return self.plan, program


def most_programs() -> int:
    """Return the most programs of a kind. A caller that has waited long gets one more.

    More threads than processors gain nothing, and each program takes memory.
    """
    return max(FEWEST_PROGRAMS, 2 * detect().cores)


class Programs:
    """The programs of a model, built when they are first needed; the least used are dropped.

    Any number of threads may ask it.
    """

    def __init__(self, template: Problem) -> None:
        self._template = template
        self._kept: OrderedDict[tuple[Any, ...], Shelf] = OrderedDict()
        # Of those, what predicts: to make a key takes a part of the time of a row.
        self._predicting: dict[int, tuple[Where, Shelf]] = {}

    def shelf(
        self,
        rows: int,
        batch_size: int,
        where: Where = ANYWHERE,
        *,
        labels: bool = False,
        update: Update = PLAIN_UPDATE,
    ) -> Shelf:
        """Return the programs for epochs of `rows` rows."""
        # The request is the key, and not the problem that it makes: planning and hashing a
        # problem cost more than a step of a small network.
        key = (rows, batch_size, where, labels, update)
        try:
            found = self._kept[key]
            self._kept.move_to_end(key)
        except KeyError:
            # Unknown, or dropped by another thread between the two.
            return self._add(key, rows, batch_size, where, labels, update)
        return found

    def predicting(self, rows: int, where: Where) -> Shelf:
        """Return the programs for predictions of about so many rows."""
        # Up to the next power of two: predictions of every length then share a few programs.
        bits = (rows - 1).bit_length()
        found = self._predicting.get(bits)
        if found is not None and (found[0] is where or found[0] == where):
            return found[1]
        shelf = self.shelf(1 << bits, min(1 << bits, CHUNK_ROWS), where)
        self._predicting[bits] = where, shelf
        return shelf

    def _add(
        self,
        key: tuple[Any, ...],
        rows: int,
        batch_size: int,
        where: Where,
        labels: bool,
        update: Update,
    ) -> Shelf:
        shape = replace(self._template, rows=rows, batch_size=batch_size, labels=labels)
        problem = updated_by(shape, update)
        machine = machine_with(where.threads)
        chosen = plan(problem, where.device, where.kernel, machine)

        def build() -> Program:
            with guarded(chosen.kernel.device, "device"):
                return chosen.kernel.build(problem, machine)

        found = self._kept.setdefault(key, Shelf(chosen, build))
        while len(self._kept) > PROGRAMS_KEPT:
            with contextlib.suppress(KeyError):
                self._kept.popitem(last=False)
                self._predicting = {}
        return found

    def taken(self, rows: int, batch_size: int, *where: Any, **kind: Any) -> "Taken":
        """Return a context that takes a program off its shelf: see `shelf`."""
        return Taken(self.shelf(rows, batch_size, *where, **kind))


class Taken:
    """A context: a plan and its program, put back if all goes well."""

    __slots__ = ("_pair", "_shelf")

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    def __enter__(self) -> tuple[Plan, Program]:
        """Take a program."""
        self._pair = self._shelf.take()
        return self._pair

    def __exit__(self, kind: Any, *details: Any) -> None:
        """Put it back, or drop it."""
        if kind is None:
            self._shelf.put_back(self._pair)


def check_threads(threads: object) -> int | None:
    """Return a number of threads; None stands for as many as the process may use."""
    return None if threads is None else check_integer(threads, "threads", 1)


def machine_with(threads: int | None) -> Machine:
    """Return this machine, of which a kernel may use so many threads; None means all cores."""
    machine = detect()
    if threads is None:
        return machine
    # Every number up to this one is looked at.
    return replace(machine, cores=min(threads, max(machine.cores, MOST_THREADS)))


def readable_time(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"
