"""Networks of one shape side by side on the CPU: threads that take turns at members.

A member's epoch is that of `cpu.fused` on one thread. A thread has the tables and the workspace of
one program, and points them at one member after another: what differs between two members is where
their arrays begin, so that a member costs Python nothing. Members never meet and share nothing that
is written, so the result does not depend on who trains which, or on how many threads there are.
"""

import functools
import time
from dataclasses import replace

import numpy as np

from fastmlp_kernels.compile import kernel, part
from fastmlp_kernels.cpu import best_threads
from fastmlp_kernels.cpu.atomics import atomic_add, atomic_load
from fastmlp_kernels.cpu.fused import run
from fastmlp_kernels.cpu.intrinsics import record_at, set_word, word
from fastmlp_kernels.cpu.program import FusedProgram
from fastmlp_kernels.cpu.tables import (
    BELL,
    CACHE_LINE,
    MASK_BYTES,
    STEP,
    WORD_BYTES,
    address,
    at,
    table,
)
from fastmlp_kernels.cpu.team import (
    CALLER,
    FIRST_NANOSECONDS,
    NEXT_NANOSECONDS,
    Team,
    arrives,
    call_team,
    choose_places,
    has_done,
    is_called,
    settle,
    wait_for_team,
)
from fastmlp_kernels.problem import STOP, Machine, Problem

# What all threads of an epoch share.
SHARED = table(
    "members",  # how many networks there are
    "threads",
    "turns",  # address of the number of turns that have begun
    "bells",  # address of the team's BELLs
    "places",  # address of the team's processors, or 0
    "tables",  # address of the addresses of the threads' tables
    "moves",  # address of MOVEs
)
# A word of a thread's table that moves with the network that it trains.
MOVE = table(
    "word",  # its index
    "start",  # its value for the first network
    "stride",  # bytes from one network's array to the next one's
)
MOVING = (
    at.parameters,
    at.target,
    at.first,
    at.second,
    at.order,
    at.hyper,
    at.losses,
    at.control,
    at.factors,
    at.squares_out,
)
MOVES = len(MOVING)


@part
def _point_at(table, moves, member):
    """Point a thread's table at the arrays of a network."""
    for index in range(MOVES):
        move = record_at(moves, MOVE, index)
        set_word(table, move.word, move.start + member * move.stride)


@part
def _take_turns(shared, thread):
    """Train the next network that nobody has begun, until there is none left.

    Those of one time lie far apart: every batch writes to a network's control words, and three
    networks' words are in one cache line.
    """
    table, members, threads = word(shared.tables, thread), shared.members, shared.threads
    step = record_at(table, STEP, 0)
    apart = (members + threads - 1) // threads
    turn = atomic_add(shared.turns, 1)
    while turn < apart * threads:
        member = turn % threads * apart + turn // threads
        if member < members:
            _point_at(table, shared.moves, member)
            if atomic_load(step.control + STOP * WORD_BYTES) == 0:
                run(table, CALLER)
        turn = atomic_add(shared.turns, 1)


@kernel
def train_in_turns(table, thread):
    """Train all networks for an epoch, as one of the threads.

    Parameters
    ----------
    table : int
        Address of the one SHARED.
    thread : int
        `CALLER`, which returns False and does nothing if another thread is not there; or the number
        of another, which stays for the next epoch, for a while: see `team.Team`.

    Notes
    -----
    Cost: that of `fused.run` on one thread for each network, beside ten words that are set.
    Networks are dealt out one by one, so that a thread whose processor is slower gets fewer.
    Aliasing: no two networks may share anything but X and y. Accuracy and source: `fused.run`.
    """
    shared = record_at(table, SHARED, 0)
    last, bells = shared.threads - 1, shared.bells
    if shared.places:
        settle(shared.places, thread)
    if thread == CALLER:
        if not call_team(bells, last):
            return False
        _take_turns(shared, last)
        wait_for_team(bells, last)
        return True
    loyalty = FIRST_NANOSECONDS
    if arrives(bells, thread):
        while is_called(bells, thread, loyalty, shared.places):
            _take_turns(shared, thread)
            has_done(bells, thread)
            loyalty = NEXT_NANOSECONDS
    return True


@functools.cache
def compile_turns() -> None:
    """Compile what an epoch of several networks runs, or load it: a later shape is not to."""
    shared, words = np.zeros(1, dtype=SHARED), np.zeros(CACHE_LINE, dtype=np.int64)
    shared["threads"] = 1
    shared["turns"] = shared["bells"] = shared["tables"] = address(words)
    train_in_turns(address(shared), CALLER)


class SideBySideProgram(FusedProgram):
    """The `Program` of several networks: `epoch` trains them all.

    It is itself the program of one of the threads; there is one more for each of the others.
    All calls but `prepare` and `epoch` are those of `FusedProgram`, for the arrays of one network.
    """

    def __init__(self, problem: Problem, machine: Machine | None = None) -> None:
        machine = Machine() if machine is None else machine
        alone = replace(machine, cores=1)
        super().__init__(problem, alone)
        # How many networks are trained at a time, each by a thread with a program of its own.
        self.at_once = min(best_threads(problem, machine), problem.members)
        others = [FusedProgram(problem, alone) for _ in range(self.at_once - 1)]
        self._programs = (*others, self)
        self._tables = np.array([each.table for each in self._programs], dtype=np.int64)
        self._moves = np.zeros(MOVES, dtype=MOVE)
        self._moves["word"] = MOVING
        self._turns = self._bytes(CACHE_LINE).view(np.int64)
        self._bells = self._bytes(self.at_once * BELL.itemsize).view(BELL)
        self._masks = self._bytes((self.at_once + 1) * MASK_BYTES).reshape(-1, MASK_BYTES)
        self._shared = np.zeros(1, dtype=SHARED)
        self._shared["members"], self._shared["threads"] = problem.members, self.at_once
        for name, array in (
            ("turns", self._turns),
            ("bells", self._bells),
            ("tables", self._tables),
            ("moves", self._moves),
        ):
            self._shared[name] = address(array)
        self._turn_takers = Team(self._bells)
        compile_turns()

    def prepare(self, parameters, state, X, y, weighted=False, penalized=False):
        """See `Program.prepare`; X is looked at once for all threads."""
        super().prepare(parameters[0], state[0], X, y, weighted, penalized)
        for each in self._programs[:-1]:
            each.take_skips(self.skips)

    def epoch(
        self, parameters, state, X, y, order, hyper, losses, control, factors=None, squares=None
    ):
        """See `Program.epoch`."""
        own = (order, hyper, losses, control, factors, squares)
        counts = {len(each) for each in (parameters, state, *own) if each is not None}
        if counts != {self.problem.members}:
            raise ValueError(f"a kernel was given arrays of {counts} networks, for {self.problem}")
        first = [None if array is None else array[0] for array in own]
        for each in self._programs:
            each.set_epoch(parameters[0], state[0], X, y, *first)
        slots = [state[:, k] if k < self.problem.slots else None for k in range(2)]
        moving = (parameters, parameters, *slots, *own)
        there = [
            (address(each), each.strides[0]) if each is not None else (0, 0) for each in moving
        ]
        self._moves["start"], self._moves["stride"] = zip(*there, strict=True)
        self._turns[0] = 0
        started = time.perf_counter()
        self._turn_takers.run(self._train, self.at_once, self._choose_processors)
        seconds = time.perf_counter() - started
        for each in self._programs:
            each.took(seconds)

    def _train(self, thread: int) -> bool:
        return train_in_turns(address(self._shared), thread)

    def _choose_processors(self) -> None:
        self._shared["places"] = address(self._masks) if choose_places(self._masks) else 0
