"""Blocks of Numba's simulator without what takes most of its time.

- The simulator looks at each thread of a block again and again, and what looks takes the
  interpreter from the threads that work. Here a thread that comes to a barrier sleeps, and the last
  one to come wakes the others.
- It puts its own `cuda` in the place of a module's at each call of a device function. Here each
  module has it until the launch is over.
- It reads the whole stack of a thread that asks for shared memory. Here it is the calling line.
"""

import contextlib
import sys
import threading

import numpy as np
from numba import cuda
from numba.cuda.simulator import kernel, kernelapi

from fastmlp_kernels.cuda.instructions import emulation


class Thread(kernel.BlockThread):
    """A CUDA thread that tells its block when it waits and when it has ended."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        # Closed: whoever waits acquires it, and whoever wakes it releases it.
        self.gate = threading.Lock()
        self.gate.acquire()

    def run(self):
        """Run the kernel, and leave the block however that ends."""
        super().run()
        self._manager.leave(self)

    def syncthreads(self):
        """Wait until every thread of the block that still runs is here too."""
        self._manager.meet(self)
        self.gate.acquire()
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
            thread.gate.release()
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
    begin, array = kernelapi.FakeCUDAShared.__init__, kernelapi.FakeCUDAShared.array

    def begin_with_a_lock(self, dynshared_size):
        begin(self, dynshared_size)
        self._allocations = Allocations()

    def array_of_the_line(self, shape, dtype, alignment=None):
        if shape == 0:
            return array(self, shape, dtype, alignment)
        if isinstance(dtype, kernelapi.types.Type):
            dtype = kernelapi.numpy_support.as_dtype(dtype)
        caller, new = sys._getframe(1), np.empty(shape, dtype)
        line = caller.f_code.co_filename, caller.f_lineno
        found = self._allocations.get(line)
        if found is None:
            self._allocations[line] = found = new
        return found

    kernelapi.FakeCUDAShared.__init__ = begin_with_a_lock
    kernelapi.FakeCUDAShared.array = array_of_the_line


class Modules:
    """The modules of the functions that a launch has called, with the simulator's `cuda` in them.

    One launch runs at a time.
    """

    def __init__(self):
        self._lock, self._there, self._simulated = threading.Lock(), {}, None

    @contextlib.contextmanager
    def simulated(self, function, simulated):
        """Put the simulator's `cuda` into the module of a function, until the launch is over."""
        self._simulated = simulated
        try:
            self.enter(function.__globals__)
            yield
        finally:
            for names, module in self._there.values():
                module.update(dict.fromkeys(names, cuda))
            self._there = {}

    def enter(self, module):
        """Put it into one more module, given by its names, unless it is there."""
        if id(module) in self._there:
            return
        with self._lock:
            if id(module) not in self._there:
                names = [name for name, value in module.items() if value is cuda]
                module.update(dict.fromkeys(names, self._simulated))
                self._there[id(module)] = names, module


def put_cuda_into_modules_once():
    """Have a launch do so, and not each call of a device function in it."""
    modules, launch = Modules(), kernel.FakeCUDAKernel.__call__

    def call(self, *arguments):
        if kernel._kernel_context is None:
            return launch(self, *arguments)
        modules.enter(self.fn.__globals__)
        return self.fn(*arguments)

    kernel.swapped_cuda_module = modules.simulated
    kernel.FakeCUDAKernel.__call__ = call


share_between_all_threads()
put_cuda_into_modules_once()
kernel.BlockThread, kernel.BlockManager = Thread, Block
# As long as everywhere: it is short only so that nobody waits for what polls.
emulation.SWITCH_INTERVAL = sys.getswitchinterval()
