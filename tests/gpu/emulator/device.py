"""A device that runs PTX: memory, launches, counts and findings."""

import collections

import numpy as np

# The instructions register themselves when they are imported.
from tests.gpu.emulator import arithmetic_instructions, memory_instructions  # noqa: F401
from tests.gpu.emulator.blocks import Blocks, Launch
from tests.gpu.emulator.findings import Clock, Findings
from tests.gpu.emulator.global_memory import GlobalMemory
from tests.gpu.emulator.memory import Memory
from tests.gpu.emulator.ordering import Touches
from tests.gpu.emulator.reading import Program
from tests.gpu.emulator.registers import Fault
from tests.gpu.emulator.scheduling import Scheduler

# Limits of sm_90.
MOST_THREADS, MOST_LAYERS = 1024, 64
MOST_SHARED_BYTES = 227 * 1024
MOST_BLOCKS = (2**31 - 1, 2**16 - 1, 2**16 - 1)
# Words that unwritten memory may hold: NaN as any float, and 12345 as a float32, which a rule takes
# for a number of its own.
POISONS = {"nan": 0xFFFFFFFF, "number": 0x4640E400}


class Device:
    """An emulated GPU.

    Parameters
    ----------
    size : int
        Bytes of global memory.
    watch : bool
        Look for races and for reads of what nobody has written.
    measure : bool
        Count sectors and wavefronts.
    random_warps : bool
        Run one warp at a time, in a random order.
    together : int
        Threads of a grid that run side by side, in whole blocks.
    poison : int
        The word that unwritten memory holds.

    Attributes
    ----------
    counts : dict of Counter
        Transfers, by kernel.
    """

    def __init__(
        self,
        size=1 << 27,
        watch=True,
        measure=False,
        random_warps=False,
        together=2048,
        seed=0,
        poison=POISONS["nan"],
    ):
        self.memory = GlobalMemory(size, poison)
        self.watch, self.measure = watch, measure
        self.random_warps, self.together = random_warps, together
        self.random = np.random.default_rng(seed)
        self.findings, self.clock = Findings(), Clock()
        self.touches = Touches(size) if watch else None
        self.counts = collections.defaultdict(collections.Counter)
        self.executed = collections.Counter()
        self._programs = {}

    def launch(self, ptx, grid, block, arguments, dynamic_bytes=0, label=None):
        """Run a grid. `arguments` are numbers, one for each parameter of the entry."""
        if ptx not in self._programs:
            self._programs[ptx] = Program(ptx)
        program = self._programs[ptx]
        grid, block = ((*shape, 1, 1)[:3] for shape in (grid, block))
        refuse(program, grid, block, dynamic_bytes)
        label, start = label or program.name, self.clock.tick()
        launch = Launch(program, grid, block, arguments, dynamic_bytes, label, start)
        numbers = np.arange(int(np.prod(grid)))
        if self.random_warps:
            self.random.shuffle(numbers)
        step = max(1, self.together // launch.threads_per_block)
        with np.errstate(all="ignore"):
            for first in range(0, len(numbers), step):
                blocks = Blocks(launch, np.sort(numbers[first : first + step]))
                Scheduler(blocks, Memory(blocks, self), self).run()

    def shuffled(self, count):
        """Return so many numbers in the order in which threads of one instruction act."""
        return self.random.permutation(count) if self.random_warps else range(count)

    def opcodes(self):
        """Return how many times warps have executed each kind of instruction."""
        total = collections.Counter()
        for (_, program, place), times in self.executed.items():
            for each in program.blocks[place]:
                total[each.name] += times
        return total


def refuse(program, grid, block, dynamic_bytes):
    """Raise what the driver says of a launch that no device can run."""
    threads = int(np.prod(block))
    wrong = not 0 < threads <= MOST_THREADS or block[2] > MOST_LAYERS
    wrong |= any(not 0 < g <= most for g, most in zip(grid, MOST_BLOCKS, strict=True))
    wrong |= program.static_shared + dynamic_bytes > MOST_SHARED_BYTES
    if wrong:
        raise Fault(
            f"[CUDA_ERROR_INVALID_VALUE] a grid of {grid} blocks of {block} threads with "
            f"{program.static_shared} and {dynamic_bytes} bytes of shared memory"
        )
