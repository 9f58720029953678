"""Blocks of Numba's simulator whose threads wait for each other without polling.

The simulator looks at each thread of a block again and again, and what looks takes the interpreter
from the threads that work: most of a launch's time went there. Here a thread that comes to a
barrier sleeps, and the last one to come wakes the others.
"""

import threading

import numpy as np
from numba.cuda.simulator import kernel, kernelapi


class Thread(kernel.BlockThread):
    """A CUDA thread that tells its block when it waits and when it has ended."""

    def run(self):
        """Run the kernel, and leave the block however that ends."""
        super().run()
        self._manager.leave(self)

    def syncthreads(self):
        """Wait until every thread of the block that still runs is here too."""
        self._manager.meet(self)
        self.syncthreads_event.wait()
        self.syncthreads_event.clear()
        if self.abort:
            raise RuntimeError("another thread of the block has failed")


class Block(kernel.BlockManager):
    """The threads of a block. One that has ended is not waited for at a barrier."""

    def run(self, grid_point, *arguments):
        """Run all threads to their end; raise what the first to fail has raised."""
        self._lock = threading.Lock()
        self._waiting, self._failed, self._barriers = [], None, 0
        places = np.ndindex(*self._block_dim)
        target = lambda: self._f(*arguments)  # noqa: E731
        threads = [Thread(target, self, grid_point, place, self._debug) for place in places]
        self._running = len(threads)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._failed:
            error, traceback = self._failed.exception
            raise error.with_traceback(traceback)

    def meet(self, thread):
        """Count a thread that has come to a barrier."""
        with self._lock:
            self._waiting.append(thread)
            self._go_on()

    def leave(self, thread):
        """Count a thread that has ended; if it has failed, all others end at their next barrier."""
        with self._lock:
            self._running -= 1
            if thread.exception and not self._failed:
                self._failed = thread
            self._go_on()

    def _go_on(self):
        if not self._failed and len(self._waiting) < self._running:
            return
        # First come, first woken, and then the other way round: whoever relies on an order fails.
        self._barriers += 1
        for thread in self._waiting[:: 1 if self._barriers % 2 else -1]:
            thread.abort = self._failed is not None
            thread.syncthreads_event.set()
        self._waiting = []


class Allocations(dict):
    """The shared arrays of a block in the simulator, by the line that asks for them.

    The simulator looks a line up and, where it finds nothing, stores a new array. Between the two
    another thread of the block could do the same, and the two threads would share nothing.
    """

    def __init__(self):
        self._lock = threading.Lock()

    def get(self, line):
        """Return a line's array; where it is None, others wait until it is stored."""
        self._lock.acquire()
        found = super().get(line)
        if found is not None:
            self._lock.release()
        return found

    def __setitem__(self, line, array):
        super().__setitem__(line, array)
        self._lock.release()


def share_between_all_threads():
    """Have all threads of a simulated block share the same arrays, however busy the machine is."""
    begin = kernelapi.FakeCUDAShared.__init__

    def begin_with_a_lock(self, dynshared_size):
        begin(self, dynshared_size)
        self._allocations = Allocations()

    kernelapi.FakeCUDAShared.__init__ = begin_with_a_lock


share_between_all_threads()
kernel.BlockThread, kernel.BlockManager = Thread, Block
