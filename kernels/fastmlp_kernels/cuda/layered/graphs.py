"""A step as a CUDA graph: what one batch launches, recorded once and replayed for every batch.

A replay costs the host one call and the GPU a node for each kernel, in place of a launch each. The
arguments are those of the recording: what changes from batch to batch, its number, is a counter on
the device (`gather.gather_rows`, `update.update`).
"""

import contextlib
import weakref
from collections.abc import Callable
from typing import Any

from numba import cuda

from fastmlp_kernels.compile import simulated
from fastmlp_kernels.cuda.layered.launching import Launches

# Recordings that are kept: training with and without a penalty, and another set of data.
KEPT = 4


class GraphError(RuntimeError):
    """A call of the driver that failed, or no graphs."""


class Recorder:
    """Records launches on a stream of its own by CUDA's stream capture.

    The stream is a non-blocking one, so that a use of the legacy default stream in another thread
    does not break a recording; any call is allowed meanwhile ("relaxed"), as Numba may load a
    kernel. What numba-cuda 0.30 does with a cuda.core GraphBuilder as the stream is the same: it
    launches on the builder's stream, which is being captured.

    Parameters
    ----------
    driver : module
        ``cuda.bindings.driver``, or what stands in for it.
    """

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        flags = driver.CUstream_flags.CU_STREAM_NON_BLOCKING.value
        self.handle = self._call("cuStreamCreate", flags)
        self.stream = cuda.external_stream(int(self.handle))
        weakref.finalize(self, driver.cuStreamDestroy, self.handle).atexit = False

    def _call(self, name: str, *arguments: Any) -> Any:
        status, *results = getattr(self.driver, name)(*arguments)
        if int(status) != 0:
            raise GraphError(f"{name}: got {status!r}, wanted CUDA_SUCCESS")
        return results[0] if results else None

    def record(self, launches: Launches, enqueue: Callable[[], None]) -> "Graph":
        """Return what `enqueue` launches, as a graph; nothing of it runs."""
        mode = self.driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        self._call("cuStreamBeginCapture", self.handle, mode)
        try:
            with launches.on(self.stream):
                enqueue()
        except BaseException:
            # Ends the recording, which is of no use any more.
            with contextlib.suppress(GraphError):
                self._call("cuGraphDestroy", self._call("cuStreamEndCapture", self.handle))
            raise
        graph = self._call("cuStreamEndCapture", self.handle)
        try:
            return Graph(self, self._call("cuGraphInstantiate", graph, 0))
        finally:
            self._call("cuGraphDestroy", graph)


class Graph:
    """A recording that can be launched."""

    def __init__(self, recorder: Recorder, executable: Any) -> None:
        self.recorder, self.executable = recorder, executable
        weakref.finalize(self, recorder.driver.cuGraphExecDestroy, executable).atexit = False

    def launch(self, stream: Any) -> None:
        """Enqueue everything that was recorded on `stream`."""
        self.recorder._call("cuGraphLaunch", self.executable, int(stream))


def recorder() -> tuple[Recorder | None, str]:
    """Return a recorder, or None and why there is none."""
    if simulated():
        return None, "the simulator has no CUDA graphs"
    try:
        from cuda.bindings import driver

        return Recorder(driver), ""
    except (ImportError, AttributeError, GraphError) as error:
        return None, f"CUDA graphs: got {error}, wanted cuda.bindings of CUDA 12 or 13"


class Steps:
    """The steps of a program: plain launches at first, then a graph's replays where that works.

    Parameters
    ----------
    launches : Launches
    recording : object, None or False
        What records graphs; None makes one where there is one, False forbids it.
    """

    def __init__(self, launches: Launches, recording: Any = None) -> None:
        self.launches = launches
        self.reason = "CUDA graphs are not wanted"
        self.recorder: Any = recording or None
        if recording is None:
            self.recorder, self.reason = recorder()
        elif recording:
            self.reason = ""
        self.graphs: dict[tuple, Graph] = {}
        self.compiled: set[tuple] = set()

    def prepare(self, kind: tuple, key: tuple, rehearse: Callable, enqueue: Callable) -> None:
        """Run `rehearse`, which launches the step's kernels, and record `enqueue`; see `run`."""
        if kind not in self.compiled:
            rehearse()
            self.compiled.add(kind)
        if self.recorder is not None:
            self._graph(kind, key, enqueue)

    def run(self, kind: tuple, key: tuple, enqueue: Callable[[], None]) -> None:
        """Enqueue a full batch on the current stream.

        Parameters
        ----------
        kind : tuple
            What decides which kernels are launched. The first step of each kind is launched
            plainly, so that no recording has to compile or load one.
        key : tuple
            What decides the arguments: addresses and shapes of the caller's arrays. The arrays are
            not kept: a graph is launched only while others of these shapes lie there, and what it
            does with those is right.
        enqueue : callable
            Launches the step.
        """
        if self.recorder is None or kind not in self.compiled:
            enqueue()
            self.compiled.add(kind)
            return
        graph = self._graph(kind, key, enqueue)
        if graph is None:
            enqueue()
        else:
            graph.launch(self.launches.stream)

    def _graph(self, kind: tuple, key: tuple, enqueue: Callable[[], None]) -> Graph | None:
        """Return the step's graph, recorded if there is none yet; None if that cannot be done."""
        if (kind, key) not in self.graphs:
            try:
                graph = self.recorder.record(self.launches, enqueue)
            except Exception as error:  # noqa: BLE001 (of any driver or library: plain launches work)
                self.recorder, self.reason = None, f"CUDA graphs: {error}"
                self.graphs.clear()
                return None
            while len(self.graphs) >= KEPT:
                self.graphs.pop(next(iter(self.graphs)))
            self.graphs[kind, key] = graph
        return self.graphs[kind, key]
