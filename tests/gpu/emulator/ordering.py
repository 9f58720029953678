"""Who touched a cell of memory last, and whether someone else may touch it now.

Time is a count of accesses and barriers. Two threads of a block are ordered by a barrier between
them. Threads of two blocks are ordered by a launch between them, or in the way of CUDA's memory
model: one fences what it wrote, its block adds to a word by an atomic, and the other block reads
that word by an atomic later.
"""

import numpy as np

from tests.gpu.emulator.global_memory import WRITTEN

# Bytes of a cell of global memory: the smallest elements that kernels touch in memory that others
# touch, too. Shared memory is a single program's, which may have larger ones.
CELL = 2
# In the place of a reader: threads of several blocks. Several of one block are a number below it.
SEVERAL_BLOCKS = -1
# Of threads and of times: whoever looks for races does little but compare them.
NUMBER = np.int32


class Touches:
    """For each cell who wrote it last, the thread's number and 1, and when; and who read it."""

    def __init__(self, size, cell=CELL):
        self.cell = cell
        # Zeros, because pages of those cost nothing until they are touched.
        cells = -(-size // cell)
        self.writer, self.written, self.reader, self.read = np.zeros((4, cells), NUMBER)

    def cells_of(self, place, size):
        """Return the cells of so many bytes at some places, a row each."""
        return place[:, None] // self.cell + np.arange(max(1, size // self.cell))


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
        # Of each thread: its number and 1, its block, and what stands for several of that block.
        self.me = (blocks.identity + 1).astype(NUMBER)[:, None]
        self.block = blocks.numbers[blocks.own].astype(NUMBER)[:, None]
        self.several = SEVERAL_BLOCKS - 1 - self.block
        # When each block met last, and when each thread fenced last, and had met before that.
        self.met = np.full(blocks.count, clock.now, NUMBER)
        self.fenced = np.zeros(blocks.threads, NUMBER)
        self.met_before_the_fence = np.zeros(blocks.threads, NUMBER)

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
        cells = touches.cells_of(place, size)
        unwritten = state[:: touches.cell][cells] != WRITTEN
        if unwritten.any():
            thread = self.blocks.identity[threads[unwritten.any(axis=1)][0]]
            self._note(f"{space} memory is read that nobody has written", f"thread {thread}")
        who, when = touches.writer[cells], touches.written[cells]
        self._note_race(space, "is written, then read", who, when, threads)
        self._note_readers(space, touches, cells, threads)

    def _note_readers(self, space, touches, cells, threads):
        """Keep who read cells: a thread, or several since their block met or the launch began."""
        me, several = self.me[threads], self.several[threads]
        before, when = touches.reader[cells], touches.read[cells]
        since, here = self.met[self.blocks.own[threads]][:, None], None
        if space == "global":
            here = (before != SEVERAL_BLOCKS) & (self._block_of(before) == self.block[threads])
            since = np.where(here, since, self.launch.start)
        # Of nobody the time is 0.
        others = (before != me) & (when > since)
        readers = me
        if others.any():
            several_blocks = several if here is None else np.where(here, several, SEVERAL_BLOCKS)
            readers = np.where(others, several_blocks, me)
        touches.reader[cells], touches.read[cells] = readers, self.clock.tick()
        # Of several threads in one instruction the last has left its number.
        last = touches.reader[cells]
        differs = last != readers
        if not differs.any():
            return
        if space == "global":
            here = (last != SEVERAL_BLOCKS) & (self._block_of(last) == self.block[threads])
            several = np.where(here, several, SEVERAL_BLOCKS)
            touches.reader[cells[differs & here]] = several[differs & here]
            touches.reader[cells[differs & ~here]] = SEVERAL_BLOCKS
        else:
            touches.reader[cells[differs]] = np.broadcast_to(several, cells.shape)[differs]

    def _block_of(self, who):
        """Return the block of a thread, or of several of one block."""
        return np.where(who > 0, (who - 1) // self.blocks.per_block, SEVERAL_BLOCKS - 1 - who)

    def look_at_a_write(self, space, touches, place, size, threads):
        """Look at a write that is about to happen."""
        cells, me = touches.cells_of(place, size), self.me[threads]
        for what, who, when in (
            ("is written twice", touches.writer[cells], touches.written[cells]),
            ("is read, then written", touches.reader[cells], touches.read[cells]),
        ):
            self._note_race(space, what, who, when, threads)
        touches.writer[cells] = me
        touches.written[cells] = self.clock.tick()
        last = touches.writer[cells]
        if (last != me).any():
            self._note_first(space, "is written twice in one instruction", last != me, last, me)

    def _note_race(self, space, what, who, when, threads):
        """Note if a touch of another thread is not ordered before those of these threads."""
        # Of a cell that nobody has touched the time is 0.
        other = when > self.launch.start
        if not other.any():
            return
        me = self.me[threads]
        other &= who != me
        if not other.any():
            return
        racing = self._unordered(space, other, who, when, threads)
        if racing.any():
            self._note_first(space, what, racing, who, me)

    def _unordered(self, space, other, who, when, threads):
        """Return which touches of others in this launch are not ordered before these threads'."""
        blocks, launch = self.blocks, self.launch
        own = blocks.own[threads]
        since_they_met = other & (when > self.met[own][:, None])
        if space == "shared":
            return since_they_met
        here = (who != SEVERAL_BLOCKS) & (self._block_of(who) == self.block[threads])
        elsewhere = other & ~here
        unordered = (since_they_met & here) | elsewhere
        if not elsewhere.any():
            return unordered
        for number in np.unique(own[elsewhere.any(axis=1)]):
            seen = launch.acquired.get(blocks.numbers[number])
            if seen is not None:
                mine = elsewhere & (own == number)[:, None]
                # Of several it is not known which: the latest that is seen of anyone counts.
                until = np.where(who[mine] > 0, seen[np.maximum(who[mine], 1) - 1], seen.max())
                unordered[mine] = when[mine] > until
        return unordered

    def _note_first(self, space, what, racing, who, me):
        row, column = np.argwhere(racing)[0]
        other, mine = who[row, column], me[row, 0] - 1
        near = other != SEVERAL_BLOCKS and self._block_of(other) == mine // self.blocks.per_block
        where = "within a block" if near else "between blocks"
        threads = f"threads {other - 1 if other > 0 else 'several'} and {mine}"
        self._note(f"race {where}: {space} memory {what}", threads)

    def _note(self, what, detail):
        self.findings.note(what, self.blocks, detail)
