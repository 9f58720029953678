"""What the driver is asked for when steps are recorded: a stand-in for it, and no GPU."""

import functools
import gc
import weakref
from types import SimpleNamespace

import pytest

from fastmlp_kernels.cuda.layered import graphs
from fastmlp_kernels.cuda.layered.graphs import GraphError, Recorder, Steps


class Driver:
    """The functions of cuda.bindings.driver that are used; each returns a status and a result."""

    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=SimpleNamespace(value=1))
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_RELAXED="relaxed")
    RESULTS = {"cuStreamCreate": 40, "cuStreamEndCapture": "graph", "cuGraphInstantiate": "ready"}

    def __init__(self, failing=None):
        self.calls, self.failing = [], failing

    def __getattr__(self, name):
        def call(*arguments):
            self.calls.append((name, *arguments))
            if name == self.failing:
                return (900, None) if name in self.RESULTS else (900,)
            return (0, self.RESULTS[name]) if name in self.RESULTS else (0,)

        return call


@pytest.fixture
def launches(monkeypatch):
    """Launches that only remember the stream that is current."""
    external = SimpleNamespace(external_stream=lambda handle: f"stream {handle}")
    monkeypatch.setattr(graphs, "cuda", external)
    from fastmlp_kernels.cuda.layered.launching import Launches

    held = Launches.__new__(Launches)
    held.stream = 7
    return held


def test_a_recording_is_captured_instantiated_and_launched(launches):
    driver, seen = Driver(), []
    recorder = Recorder(driver)
    graph = recorder.record(launches, lambda: seen.append(launches.stream))
    assert seen == ["stream 40"] and launches.stream == 7
    graph.launch(7)
    del graph, recorder
    gc.collect()
    assert driver.calls == [
        ("cuStreamCreate", 1),
        ("cuStreamBeginCapture", 40, "relaxed"),
        ("cuStreamEndCapture", 40),
        ("cuGraphInstantiate", "graph", 0),
        ("cuGraphDestroy", "graph"),
        ("cuGraphLaunch", "ready", 7),
        ("cuGraphExecDestroy", "ready"),
        ("cuStreamDestroy", 40),
    ]


def test_a_recording_that_fails_is_ended(launches):
    driver = Driver()
    recorder = Recorder(driver)

    def enqueue():
        raise ValueError("no kernel")

    with pytest.raises(ValueError, match="no kernel"):
        recorder.record(launches, enqueue)
    assert driver.calls[-2:] == [("cuStreamEndCapture", 40), ("cuGraphDestroy", "graph")]
    assert launches.stream == 7


@pytest.mark.parametrize("name", ["cuStreamBeginCapture", "cuStreamEndCapture"])
def test_a_status_is_checked(launches, name):
    recorder = Recorder(Driver(failing=name))
    with pytest.raises(GraphError, match=f"{name}: got 900, wanted CUDA_SUCCESS"):
        recorder.record(launches, lambda: None)


def test_steps_are_launched_then_recorded_then_replayed(launches):
    driver, run = Driver(), []
    steps = Steps(launches, Recorder(driver))
    assert steps.reason == ""
    for key in ("a", "a", "a", "b", "a"):
        steps.run(("kind",), (key,), functools.partial(run.append, key))
    # The first plainly, each key once into a recording; the rest are replays.
    assert run == ["a", "a", "b"]
    assert [name for name, *_ in driver.calls].count("cuGraphLaunch") == 4


def test_only_the_latest_recordings_are_kept(launches):
    driver = Driver()
    steps = Steps(launches, Recorder(driver))
    for key in range(graphs.KEPT + 3):
        steps.run(("kind",), (key,), lambda: None)
    assert len(steps.graphs) == graphs.KEPT
    gc.collect()
    assert [name for name, *_ in driver.calls].count("cuGraphExecDestroy") == 2


def test_a_graph_keeps_none_of_the_arrays(launches):
    """Else the data of a fit would stay on the GPU until the program goes."""

    class Array:
        pass

    X, steps = Array(), Steps(launches, Recorder(Driver()))
    for _ in range(3):
        steps.run(("kind",), ("where X lies",), functools.partial(id, X))
    gone = weakref.ref(X)
    del X
    gc.collect()
    assert len(steps.graphs) == 1 and gone() is None


def test_steps_without_graphs(launches):
    run = []
    steps = Steps(launches, False)
    for _ in range(3):
        steps.run((), (), lambda: run.append(1))
    assert len(run) == 3 and steps.reason == "CUDA graphs are not wanted"
