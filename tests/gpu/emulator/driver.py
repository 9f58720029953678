"""The driver of an emulated device: `numba.cuda` and the calls of `cuda.bindings.driver`.

Kernels are compiled to PTX as for a GPU. Everything is done when it is enqueued, except on a stream
that is being captured.
"""

import contextlib
import itertools
import re
import time
from types import SimpleNamespace

import numba
import numpy as np
from cuda import bindings
from cuda.bindings import driver as real
from numba import cuda
from numba.cuda import codegen, dispatcher
from numba.cuda.cudadrv import devices

from tests.gpu.emulator.arrays import DeviceArray
from tests.gpu.emulator.device import MOST_SHARED_BYTES, MOST_THREADS
from tests.gpu.emulator.registers import WARP, Fault

CAPABILITY = (9, 0)
PROCESSORS = 132
LEGACY_STREAM = 1
# What a launch may have of dynamic shared memory, where no more was asked for.
UNASKED_BYTES = 48 * 1024


class Stream:
    """A stream, of which only its number matters."""

    def __init__(self, number):
        self.number = number

    def __int__(self):
        return self.number

    def __bool__(self):
        return True

    def synchronize(self):
        """Return at once: what was enqueued is done."""

    @contextlib.contextmanager
    def auto_synchronize(self):
        yield self


class EmulatedDriver:
    """The calls of the driver that the kernels make; its enumerations are those of the real one."""

    def __init__(self, device, real):
        self.device, self.real = device, real
        self.capturing, self.granted = {}, {}
        self._numbers = itertools.count(100)

    def __getattr__(self, name):
        if name.startswith("cu"):
            raise AttributeError(f"the emulated driver has no {name}")
        return getattr(self.real, name)

    def enqueue(self, stream, action):
        """Do something, or record it, where the stream is being captured."""
        recorded = self.capturing.get(int(stream))
        if recorded is None:
            action()
        else:
            recorded.append(action)

    def cuStreamCreate(self, flags):
        return 0, next(self._numbers)

    def cuStreamDestroy(self, stream):
        return (0,)

    def cuStreamBeginCapture(self, stream, mode):
        self.capturing[int(stream)] = []
        return (0,)

    def cuStreamEndCapture(self, stream):
        return 0, self.capturing.pop(int(stream))

    def cuGraphInstantiate(self, graph, flags):
        return 0, list(graph)

    def cuGraphDestroy(self, graph):
        graph.clear()
        return (0,)

    def cuGraphLaunch(self, executable, stream):
        for action in executable:
            self.enqueue(stream, action)
        return (0,)

    def cuGraphExecDestroy(self, executable):
        return (0,)

    def cuFuncSetAttribute(self, function, attribute, value):
        wanted = self.real.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        right = attribute == wanted and value <= MOST_SHARED_BYTES
        if right:
            self.granted[function] = value
        results = self.real.CUresult
        return (results.CUDA_SUCCESS if right else results.CUDA_ERROR_INVALID_VALUE,)

    def cuPointerGetAttribute(self, attribute, address):
        inside = 0 <= address - self.device.memory.base < len(self.device.memory.bytes)
        results = self.real.CUresult
        return (results.CUDA_SUCCESS if inside else results.CUDA_ERROR_INVALID_VALUE), 0


class Event:
    """A mark in a stream: everything before it is done when it is recorded."""

    def record(self, stream=0):
        self.seconds = time.perf_counter()

    def synchronize(self):
        """Return at once."""


class Module:
    """A module of machine code that is loaded: its functions are found by the kernel's name."""

    initialized = True

    def get_function(self, name):
        return SimpleNamespace(name=name, handle=(name, id(self)), module=self)


def compiled(kernel, signature, lines):
    """Return a kernel for a signature, compiled or loaded by Numba; with its lines if it can be."""
    if lines and signature not in kernel.overloads and "lineinfo" not in kernel.targetoptions:
        kernel.targetoptions["lineinfo"] = True
        try:
            found = kernel.compile(signature)
            if lost_labels(kernel.inspect_asm(signature)):
                raise Fault("NVVM has lost labels")
            return found
        except Exception:  # noqa: BLE001 (NVVM refuses the lines of a few kernels)
            kernel.targetoptions["lineinfo"] = False
            kernel.overloads.pop(signature, None)
    return kernel.compile(signature)


def lost_labels(ptx):
    """Return labels that PTX jumps to and does not have: with lines, NVVM 13 leaves some out."""
    wanted = set(re.findall(r"\bbra(?:\.uni)?\s+([$\w]+)", ptx))
    return wanted - set(re.findall(r"^([$\w]+):", ptx, re.MULTILINE))


class Configured:
    """A kernel with its grid, block, stream and bytes of shared memory."""

    def __init__(self, device, kernel, grid, block, stream=0, dynamic_bytes=0):
        self.device, self.kernel = device, kernel
        self.griddim, self.block = ((*np.atleast_1d(shape).tolist(),) for shape in (grid, block))
        self.stream, self.dynamic_bytes = stream, dynamic_bytes

    def __call__(self, *arguments):
        self.device.driver.enqueue(self.stream, lambda: self._launch(arguments))

    def _launch(self, arguments):
        given = [self._placed(each) for each in arguments]
        signature = tuple(
            each.numba_type if isinstance(each, DeviceArray) else numba.typeof(each)
            for each in given
        )
        library = compiled(self.kernel, signature, self.device.lines).library
        granted = self.device.driver.granted.get(library.get_cufunc().handle, UNASKED_BYTES)
        if self.dynamic_bytes > granted:
            raise Fault(
                f"[CUDA_ERROR_INVALID_VALUE] {self.dynamic_bytes} bytes of shared memory, "
                f"{granted} were asked for"
            )
        ptx, flat = library.get_asm_str(), []
        for each in given:
            flat += each.arguments() if isinstance(each, DeviceArray) else [each]
        name = self.kernel.py_func.__name__
        self.device.launch(ptx, self.griddim, self.block, flat, self.dynamic_bytes, name)
        for before, after in zip(arguments, given, strict=True):
            if isinstance(before, np.ndarray):
                after.copy_to_host(before)

    def _placed(self, argument):
        """Return an argument as the device has it: an array of the host is copied there."""
        if isinstance(argument, np.ndarray):
            return to_device(self.device, argument)
        if not isinstance(argument, DeviceArray) and hasattr(argument, "__cuda_array_interface__"):
            return as_cuda_array(self.device, argument)
        return argument


def to_device(device, array):
    if isinstance(array, DeviceArray):
        return array
    array = np.asarray(array)
    if not array.flags.f_contiguous:
        array = np.ascontiguousarray(array)
    # One of Fortran's order keeps it.
    held = DeviceArray(device, array.shape, array.dtype, array.strides if array.size else None)
    if array.size:
        held.copy_to_device(array)
    return held


def as_cuda_array(device, value):
    """Return an array of another library without a copy."""
    seen = value.__cuda_array_interface__
    place, strides = seen["data"][0], seen["strides"]
    return DeviceArray(device, seen["shape"], seen["typestr"], strides, place, value)


def context(device):
    """Return the context that numba shows."""

    def free_and_total():
        return device.memory.left, len(device.memory.bytes)

    return SimpleNamespace(
        device=facts(),
        get_memory_info=free_and_total,
        synchronize=lambda: None,
        create_module_image=lambda *image: Module(),
    )


def facts():
    """Return what numba says of the device."""
    return SimpleNamespace(
        id=0,
        name=b"emulated",
        compute_capability=CAPABILITY,
        MULTIPROCESSOR_COUNT=PROCESSORS,
        MAX_SHARED_MEMORY_PER_BLOCK_OPTIN=MOST_SHARED_BYTES,
        MAX_THREADS_PER_BLOCK=MOST_THREADS,
        WARP_SIZE=WARP,
    )


class OnlyGpu:
    """The list of GPUs: each is a context in which a thread works on it."""

    def __getitem__(self, number):
        return contextlib.nullcontext()

    def __len__(self):
        return 1


def install(device, assembled=False):
    """Have `numba.cuda` in this process work on an emulated device.

    Kernels are compiled by Numba, with the lines of their source, to the PTX that runs. If
    `assembled`, they are compiled as for a GPU: to machine code, and without lines.
    """
    device.driver, device.lines = EmulatedDriver(device, real), not assembled
    bindings.driver = device.driver
    numbers = itertools.count(2)
    devices.get_context = lambda number=None: context(device)
    dispatcher.get_current_device = facts
    dispatcher.CUDADispatcher.configure = lambda kernel, *how: Configured(device, kernel, *how)
    if not assembled:
        codegen.CUDACodeLibrary.get_cubin = lambda library, cc=None: None
    cuda.to_device = lambda array, stream=0, copy=True, to=None: to_device(device, array)
    cuda.as_cuda_array = lambda value, sync=True: as_cuda_array(device, value)
    cuda.device_array = lambda shape, dtype=float: DeviceArray(device, shape, dtype)
    cuda.pinned_array = lambda shape, dtype=float: np.empty(shape, dtype)
    cuda.stream = lambda: Stream(next(numbers))
    cuda.external_stream = Stream
    cuda.event = lambda timing=True: Event()
    cuda.event_elapsed_time = lambda first, last: (last.seconds - first.seconds) * 1e3
    legacy = Stream(LEGACY_STREAM)
    cuda.legacy_default_stream = cuda.default_stream = lambda: legacy
    cuda.synchronize = lambda: None
    cuda.current_context = lambda: context(device)
    cuda.get_current_device = facts
    cuda.gpus = OnlyGpu()
    cuda.is_available = lambda: True
    cuda.emulated_device = device
