"""Who touched a cell of memory last, and whether someone else may touch it now.

Time is a count of accesses and barriers. Two threads of a block are ordered by a barrier between
them. Threads of two blocks are ordered by a launch between them, or in the way of CUDA's memory
model: one fences what it wrote, its block adds to a word by an atomic, and the other block reads
that word by an atomic later.
"""

import numpy as np

from tests.gpu.emulator.global_memory import WRITTEN

# Bytes of a cell: the smallest elements that kernels touch in memory that others touch, too.
CELL = 2
# In the place of a reader: threads of several blocks. Several of one block are a number below it.
SEVERAL_BLOCKS = -1


class Touches:
    """For each cell who wrote it last, the thread's number and 1, and when; and who read it."""

    def __init__(self, size):
        # Zeros, because pages of those cost nothing until they are touched.
        cells = -(-size // CELL)
        self.writer, self.written, self.reader, self.read = np.zeros((4, cells), np.int64)


class Ordering:
    """What orders the threads of some blocks, and the search for accesses without any order.

    Parameters
    ----------
    blocks : Blocks
    findings : Findings
    clock : Clock
    """

    def __init__(self, blocks, findings, clock):
        self.blocks, self.findings, self.clock = blocks, findings, clock
        self.launch = blocks.launch
        # When each block met last, and when each thread fenced last, and had met before that.
        self.met = np.full(blocks.count, clock.now, np.int64)
        self.fenced = np.zeros(blocks.threads, np.int64)
        self.met_before_the_fence = np.zeros(blocks.threads, np.int64)

    def meet(self, which):
        """Note that the threads of some blocks have waited for each other."""
        self.met[which] = self.clock.tick()

    def fence(self, threads):
        self.fenced[threads] = self.clock.tick()
        self.met_before_the_fence[threads] = self.met[self.blocks.own[threads]]

    def atomic(self, thread, address):
        """Note that a thread adds to a word: it sees what was released there, and releases."""
        launch, blocks = self.launch, self.blocks
        block = blocks.numbers[blocks.own[thread]]
        released = launch.released.setdefault(address, np.zeros(launch.threads, np.int64))
        acquired = launch.acquired.setdefault(block, np.zeros(launch.threads, np.int64))
        np.maximum(acquired, released, out=acquired)
        own = blocks.own[thread]
        mine = slice(own * blocks.per_block, (own + 1) * blocks.per_block)
        # What others fenced before the block met, and what they wrote before it met and I fenced.
        fenced = self.fenced[mine]
        covered = np.where(fenced < self.met[own], fenced, 0)
        covered = np.maximum(covered, self.met_before_the_fence[thread])
        covered[blocks.thread[thread]] = self.fenced[thread]
        here = slice(block * blocks.per_block, (block + 1) * blocks.per_block)
        np.maximum(released, acquired, out=released)
        released[here] = np.maximum(released[here], covered)

    # Searches. Arrays of threads are columns, those of cells are rows by threads.

    def look_at_a_read(self, space, touches, state, place, size, threads):
        cells = cells_of(place, size)
        unwritten = (state[cells * CELL] != WRITTEN).any(axis=1)
        if unwritten.any():
            thread = self.blocks.identity[threads[unwritten][0]]
            self._note(f"{space} memory is read that nobody has written", f"thread {thread}")
        me = self.blocks.identity[threads][:, None] + 1
        writer = touches.writer[cells]
        racing = self._unordered(writer, touches.written[cells], me, threads)
        self._note_race(space, "is written, then read", racing, writer, me)
        self._note_readers(touches, cells, me, threads)

    def _note_readers(self, touches, cells, me, threads):
        """Keep who read cells: a thread, or several since their block met or the launch began."""
        block = self._block_of(me)
        before, when = touches.reader[cells], touches.read[cells]
        here = (before != SEVERAL_BLOCKS) & (self._block_of(before) == block)
        since = np.where(here, self.met[self.blocks.own[threads]][:, None], self.launch.start)
        others = (before != 0) & (before != me) & (when > since)
        several = np.where(here, SEVERAL_BLOCKS - 1 - block, SEVERAL_BLOCKS)
        readers = np.where(others, several, me)
        touches.reader[cells], touches.read[cells] = readers, self.clock.tick()
        # Of several threads in one instruction the last has left its number.
        last = touches.reader[cells]
        here = (last != SEVERAL_BLOCKS) & (self._block_of(last) == block)
        differs = last != readers
        touches.reader[cells[differs & here]] = np.broadcast_to(
            SEVERAL_BLOCKS - 1 - block, last.shape
        )[differs & here]
        touches.reader[cells[differs & ~here]] = SEVERAL_BLOCKS

    def _block_of(self, who):
        """Return the block of a thread, or of several of one block."""
        return np.where(who > 0, (who - 1) // self.blocks.per_block, SEVERAL_BLOCKS - 1 - who)

    def look_at_a_write(self, space, touches, place, size, threads):
        """Look at a write that is about to happen."""
        cells = cells_of(place, size)
        me = self.blocks.identity[threads][:, None] + 1
        for what, who, when in (
            ("is written twice", touches.writer[cells], touches.written[cells]),
            ("is read, then written", touches.reader[cells], touches.read[cells]),
        ):
            racing = self._unordered(who, when, me, threads)
            self._note_race(space, what, racing, who, me)
        touches.writer[cells] = me
        touches.written[cells] = self.clock.tick()
        last = touches.writer[cells]
        self._note_race(space, "is written twice in one instruction", last != me, last, me)

    def _unordered(self, who, when, me, threads):
        """Return which touches of others are not ordered before those of these threads."""
        blocks, launch = self.blocks, self.launch
        own = blocks.own[threads]
        other = (who != 0) & (who != me) & (when > launch.start)
        if not other.any():
            return other
        same_block = (who != SEVERAL_BLOCKS) & (self._block_of(who) == self._block_of(me))
        unordered = other & same_block & (when > self.met[own][:, None])
        elsewhere = other & ~same_block
        unordered |= elsewhere
        for number in np.unique(own[elsewhere.any(axis=1)]):
            seen = launch.acquired.get(blocks.numbers[number])
            if seen is not None:
                mine = elsewhere & (own == number)[:, None]
                # Of several it is not known which: the latest that is seen of anyone counts.
                until = np.where(who[mine] > 0, seen[np.maximum(who[mine], 1) - 1], seen.max())
                unordered[mine] = when[mine] > until
        return unordered

    def _note_race(self, space, what, racing, who, me):
        if not racing.any():
            return
        row, column = np.argwhere(racing)[0]
        other, mine = who[row, column], me[row, 0] - 1
        near = other != SEVERAL_BLOCKS and self._block_of(other) == mine // self.blocks.per_block
        where = "within a block" if near else "between blocks"
        threads = f"threads {other - 1 if other > 0 else 'several'} and {mine}"
        self._note(f"race {where}: {space} memory {what}", threads)

    def _note(self, what, detail):
        self.findings.note(what, self.blocks, detail)


def cells_of(place, size):
    """Return the cells of so many bytes at some places, a row each."""
    return place[:, None] // CELL + np.arange(max(1, size // CELL))
