"""Networks of one shape side by side on the CPU: worker threads that take turns at members.

A member's epoch is that of `cpu.fused` on one thread. A worker has the tables and the workspace of
one program, and points them at one member after another: what differs between two members is where
their arrays begin, so that a member costs Python nothing. Members never meet and share nothing that
is written, so the result does not depend on who trains which, or on how many workers there are.
"""

import functools
from dataclasses import replace

import numpy as np

from fastmlp_kernels.compile import kernel, part
from fastmlp_kernels.cpu import best_threads, tables
from fastmlp_kernels.cpu.fused import run
from fastmlp_kernels.cpu.intrinsics import atomic_add, atomic_load, set_word, word
from fastmlp_kernels.cpu.program import FusedProgram
from fastmlp_kernels.cpu.tables import CONTROL, WORD_BYTES, address
from fastmlp_kernels.cpu.team import (
    BELL_BYTES,
    CALLER,
    FIRST_NANOSECONDS,
    MASK_BYTES,
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

# Words that all workers share: how many networks there are, workers, the address of the number of
# turns that have begun, of the bells, of the workers' processors (or 0), of the workers'
# tables, and of the words that move.
COUNT, WORKERS, NEXT, BELLS, PLACES, TABLES, MOVES, SHARED_WORDS = range(8)
# A word that moves: its place in a worker's table, its value for the first network, and the bytes
# from one network's array to the next one's.
INDEX, START, STRIDE, MOVE_WORDS = range(4)
MOVING = (
    tables.PARAMETERS,
    tables.TARGET,
    tables.FIRST,
    tables.SECOND,
    tables.ORDER,
    tables.HYPER,
    tables.LOSSES,
    tables.CONTROL,
    tables.FACTORS,
    tables.SQUARES_OUT,
)
MOVING_WORDS = len(MOVING)
CACHE_LINE = 64


@part
def _point_at(words, moves, network):
    """Point a worker's tables at a network's arrays."""
    for row in range(MOVING_WORDS):
        move = moves + row * MOVE_WORDS * WORD_BYTES
        set_word(words, word(move, INDEX), word(move, START) + network * word(move, STRIDE))


@part
def _take_turns(shared, worker):
    """Train the next network that nobody has begun, until there is none left.

    Those of one time lie far apart: every batch writes to a network's control words, and three
    networks' words are in one cache line.
    """
    words = word(word(shared, TABLES), worker)
    count, workers = word(shared, COUNT), word(shared, WORKERS)
    apart = (count + workers - 1) // workers
    turn = atomic_add(word(shared, NEXT), 1)
    while turn < apart * workers:
        network = turn % workers * apart + turn // workers
        if network < count:
            _point_at(words, word(shared, MOVES), network)
            if atomic_load(word(words, CONTROL) + STOP * WORD_BYTES) == 0:
                run(words, CALLER)
        turn = atomic_add(word(shared, NEXT), 1)


@kernel
def train_in_turns(shared, worker):
    """Train all networks for an epoch, as one of the workers.

    Parameters
    ----------
    shared : int
        Address of int64[SHARED_WORDS], the same for all workers.
    worker : int
        `CALLER`, which returns False and does nothing if another worker is not there; or the number
        of another, which stays for the next epoch, for a while: see `team.Team`.

    Notes
    -----
    Cost: that of `fused.run` on one thread for each network, beside ten words that are set.
    Networks are dealt out one by one, so that a worker whose processor is slower gets fewer.
    Aliasing: no two networks may share anything but X and y. Accuracy and source: `fused.run`.
    """
    last, bells = word(shared, WORKERS) - 1, word(shared, BELLS)
    if word(shared, PLACES):
        settle(word(shared, PLACES), worker)
    if worker == CALLER:
        if not call_team(bells, last):
            return False
        _take_turns(shared, last)
        wait_for_team(bells, last)
        return True
    loyalty = FIRST_NANOSECONDS
    if arrives(bells, worker):
        while is_called(bells, worker, loyalty):
            _take_turns(shared, worker)
            has_done(bells, worker)
            loyalty = NEXT_NANOSECONDS
    return True


@functools.cache
def compile_workers() -> None:
    """Compile what an epoch of several networks runs, or load it: a later shape is not to."""
    zeros = np.zeros(SHARED_WORDS + BELL_BYTES, dtype=np.int64)
    zeros[WORKERS] = 1
    zeros[NEXT] = zeros[BELLS] = zeros[TABLES] = address(zeros[SHARED_WORDS:])
    train_in_turns(address(zeros), CALLER)


class SideBySideProgram(FusedProgram):
    """The `Program` of several networks: `epoch` trains them all.

    It is itself the program of one worker, on one thread; there is one more for each other worker.
    All calls but `prepare` and `epoch` are those of `FusedProgram`, for the arrays of one network.
    """

    def __init__(self, problem: Problem, machine: Machine | None = None) -> None:
        machine = Machine() if machine is None else machine
        alone = replace(machine, cores=1)
        super().__init__(problem, alone)
        self.workers = min(best_threads(problem, machine), problem.members)
        others = [FusedProgram(problem, alone) for _ in range(self.workers - 1)]
        self._programs = (*others, self)
        self._tables = np.array([each.table for each in self._programs], dtype=np.int64)
        self._moves = np.zeros((MOVING_WORDS, MOVE_WORDS), dtype=np.int64)
        self._moves[:, INDEX] = MOVING
        self._next = self._bytes(CACHE_LINE).view(np.int64)
        self._bells = self._bytes(self.workers * BELL_BYTES).reshape(-1, BELL_BYTES)
        self._masks = self._bytes((self.workers + 1) * MASK_BYTES).reshape(-1, MASK_BYTES)
        self._shared = np.zeros(SHARED_WORDS, dtype=np.int64)
        self._shared[COUNT], self._shared[WORKERS] = problem.members, self.workers
        for index, array in (
            (NEXT, self._next),
            (BELLS, self._bells),
            (TABLES, self._tables),
            (MOVES, self._moves),
        ):
            self._shared[index] = address(array)
        self._workers_team = Team(self._bells)
        compile_workers()

    def prepare(self, parameters, state, X, y, weighted=False, penalized=False):
        """See `Program.prepare`; X is looked at once for all workers."""
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
        for move, array in zip(self._moves, moving, strict=True):
            none = array is None
            move[START:] = (0, 0) if none else (address(array), array.strides[0])
        self._next[0] = 0
        self._workers_team.run(self._train, self.workers, self._choose_processors)

    def _train(self, worker: int) -> bool:
        return train_in_turns(address(self._shared), worker)

    def _choose_processors(self) -> None:
        self._shared[PLACES] = address(self._masks) if choose_places(self._masks) else 0
