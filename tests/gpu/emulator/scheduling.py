"""Which threads of some blocks go on, and who waits for whom.

Threads that stand at the same basic block go together, those of the lowest one first, so that they
meet again behind a branch. With random warps one warp goes at a time, which one is drawn: what runs
between two barriers is then interleaved in other ways.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.gpu.emulator.reading import Instruction
from tests.gpu.emulator.registers import WARP, Fault
from tests.gpu.emulator.translation import Translation


@dataclass
class Waiting:
    """Threads at a barrier: where they go on, and what they have brought to it.

    `brought` is None, or the register of a vote, its kind ("or", "and") and the threads' flags.
    """

    next: int
    threads: np.ndarray
    instruction: Instruction
    brought: Any

    def split(self, which):
        """Return those of the threads that are chosen, and the others."""
        return self._part(which), self._part(~which)

    def _part(self, which):
        brought = self.brought
        if brought is not None:
            brought = (*brought[:2], brought[2][which])
        return Waiting(self.next, self.threads[which], self.instruction, brought)


class Scheduler:
    """Takes blocks from their first instruction to their end.

    Parameters
    ----------
    blocks : Blocks
    memory : Memory
    device : Device
    """

    def __init__(self, blocks, memory, device):
        self.blocks, self.memory, self.device = blocks, memory, device
        self.program = blocks.launch.program
        # By basic block: threads that can go on; lanes that wait for the rest of their warp.
        self.ready, self.held = {0: np.arange(blocks.threads)}, {}
        self.waiting = []
        self.alive = np.full(blocks.count, blocks.per_block)
        self.warp = None

    def run(self):
        while self.ready:
            place, threads = self._next()
            if self.program.blocks[place][0].is_warp_wide:
                threads = self._whole_warps(place, threads)
            if len(threads):
                self._execute(place, threads)
        if self.held:
            first = self.program.blocks[min(self.held)][0]
            self._stuck(first, "not all lanes of a warp reach an instruction of all")
        if self.waiting:
            first = self.waiting[0].instruction
            self._stuck(first, "not all threads of a block reach a barrier")

    def _stuck(self, instruction, what):
        self.blocks.now = instruction
        kernel, where = self.blocks.where()
        raise Fault(f"{what}; {kernel}, {where}")

    def _note(self, instruction, what, detail):
        self.blocks.now = instruction
        self.device.findings.note(what, self.blocks, detail)

    def _next(self):
        """Return a basic block and the threads that execute it next."""
        if not self.device.random_warps:
            place = min(self.ready)
            return place, self.ready.pop(place)
        warp = self.blocks.warp
        here = [at for at, threads in self.ready.items() if (warp[threads] == self.warp).any()]
        if not here:
            every = np.unique(np.concatenate([warp[each] for each in self.ready.values()]))
            self.warp = self.device.random.choice(every)
            return self._next()
        place = min(here)
        threads = self.ready.pop(place)
        mine = warp[threads] == self.warp
        if not mine.all():
            self.ready[place] = threads[~mine]
        return place, threads[mine]

    def _whole_warps(self, place, threads):
        """Return the threads whose warp is complete; hold the others back."""
        if place in self.held:
            threads = np.union1d(threads, self.held.pop(place))
        warp = self.blocks.warp[threads]
        complete = (np.bincount(warp) == WARP)[warp]
        if not complete.all():
            lane = self.blocks.identity[threads[~complete][0]]
            first = self.program.blocks[place][0]
            self._note(
                first, "lanes of a warp are apart at an instruction of all", f"thread {lane}"
            )
            self.held[place] = threads[~complete]
        return threads[complete]

    def _execute(self, place, threads):
        program, block = self.program, self.program.blocks[place]
        whole = len(threads) == self.blocks.threads
        if (place, whole) not in program.functions:
            program.functions[place, whole] = Translation(program, block).function(whole)
        run = program.functions[place, whole]
        jumping, target = run(self.blocks, self.memory, threads, len(threads), block)
        if self.device.measure:
            warps = len(np.unique(self.blocks.warp[threads]))
            self.device.executed[self.blocks.launch.label, program, place] += warps
        if block[-1].is_barrier:
            self.waiting.append(Waiting(place + 1, threads, block[-1], self.blocks.arriving))
            self._release()
            return
        taken, rest = threads, threads[:0]
        if jumping is not None:
            taken, rest = threads[jumping], threads[~jumping]
        self._add(place + 1, rest)
        if target != "exit":
            self._add(place + 1 if target == "next" else target, taken)
        elif len(taken):
            self.alive -= self._by_block(taken)
            self._release()

    def _by_block(self, threads, weights=None):
        return np.bincount(self.blocks.own[threads], weights, minlength=self.blocks.count)

    def _add(self, place, threads):
        if not len(threads):
            return
        held = self.ready.get(place)
        self.ready[place] = threads if held is None else np.union1d(held, threads)

    def _release(self):
        """Let go on the blocks all of whose threads wait, or have ended."""
        if not self.waiting:
            return
        arrived = self._by_block(np.concatenate([each.threads for each in self.waiting]))
        full = (arrived > 0) & (arrived == self.alive)
        if not full.any():
            return
        parts = [each.split(full[self.blocks.own[each.threads]]) for each in self.waiting]
        going = [each for each, _ in parts if len(each.threads)]
        self.waiting = [each for _, each in parts if len(each.threads)]
        self._look_at_ends(full, going)
        places = {each.next for each in going}
        for block in np.flatnonzero(full) if len(places) > 1 else ():
            here = [each for each in going if (self.blocks.own[each.threads] == block).any()]
            if len({each.next for each in here}) > 1:
                number = self.blocks.numbers[block]
                what = "threads of a block meet at different barriers"
                self._note(here[0].instruction, what, f"block {number}")
        for place in sorted(places):
            together = [each for each in going if each.next == place]
            self._vote(together)
            for each in together:
                self._add(place, each.threads)
        if self.memory.ordering:
            self.memory.ordering.meet(full)

    def _look_at_ends(self, full, going):
        """Note threads that have ended, where CUDA wants all of a block at a barrier."""
        short = np.flatnonzero(full & (self.alive < self.blocks.per_block))
        if len(short):
            what = "threads of a block have ended where others meet"
            self._note(going[0].instruction, what, f"block {self.blocks.numbers[short[0]]}")

    def _vote(self, together):
        """Give every thread the result of what its block has brought to a barrier."""
        if together[0].brought is None:
            return
        register, kind, _ = together[0].brought
        every = np.concatenate([each.threads for each in together])
        flags = np.concatenate([each.brought[2] for each in together])
        yes, total = self._by_block(every, flags), self._by_block(every)
        result = yes > 0 if kind == "or" else yes == total
        self.blocks.registers[register][every] = result[self.blocks.own[every]]
