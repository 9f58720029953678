"""A process for each family of providers: a crash or a hang of one leaves the others their GPU.

Only one of them computes at a time while times are taken. It reads the clock itself: what crosses
the pipe is seconds.
"""

from __future__ import annotations

import gc
import multiprocessing
import signal
import time
import traceback
from typing import Any

from benchmarks.gpu.cases import GpuCase
from benchmarks.gpu.steps import Skipped, describe

SETTLE = 0.005
"""Seconds before a timing in which whoever was measured before comes to rest."""


class Failed(Exception):
    """A provider raised, did not answer, or took its process along."""


class Server:
    """What runs inside a process: one method a request."""

    def __init__(self, family: str, device: str) -> None:
        from benchmarks.gpu.providers import FAMILIES

        self.providers, self.device = FAMILIES[family], device
        self.runs: dict[str, Any] = {}

    def ways(self, case: GpuCase) -> list[dict[str, Any]]:
        """Return every way in which the family runs a case."""
        return [way for each in self.providers for way in each.ways(case, self.device)]

    def prepare(self, case: GpuCase, way: dict[str, Any]) -> dict[str, Any]:
        """Run the first epoch; return the parameters after it, float64[members, P], and notes."""
        (provider,) = [each for each in self.providers if each.name == way["provider"]]
        made = provider(self.device, way.get("kernel", ""))
        if not hasattr(self, "data") or self.data_of != case.name:
            self.data, self.data_of = case.data(), case.name
        run = made.prepare(case, self.data, case.member_weights())
        run()
        self.runs[way["label"]] = run
        return {"parameters": made.parameters(), "notes": made.notes()}

    def epochs(self, label: str, count: int) -> float:
        """Return the seconds of an epoch, `count` of which are timed together."""
        run = self.runs[label]
        time.sleep(SETTLE)
        gc.collect()
        gc.disable()
        try:
            started = time.perf_counter()
            for _ in range(count):
                run()
            return (time.perf_counter() - started) / count
        finally:
            gc.enable()

    def release(self) -> None:
        """Let go of all that is prepared."""
        self.runs.clear()
        gc.collect()


def serve(connection: Any, family: str, device: str) -> None:
    """Answer requests until the pipe closes."""
    # Ctrl-C is the parent's.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    server = None
    while True:
        try:
            name, arguments = connection.recv()
        except EOFError:
            return
        try:
            server = server or Server(family, device)
            answer = ("done", getattr(server, name)(*arguments))
        except Skipped as reason:
            answer = ("skipped", str(reason))
        except Exception as error:
            # Whatever a library raises is a line in the report, not the end of the run.
            traceback.print_exc()
            answer = ("failed", describe(error))
        connection.send(answer)


class Process:
    """The parent's end; a process that was lost is started anew by the next request."""

    def __init__(self, family: str, device: str) -> None:
        self.family, self.device = family, device
        self.process: Any = None

    def start(self) -> None:
        """Start it: spawned, as a CUDA context does not survive a fork."""
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        arguments = (other, self.family, self.device)
        # No daemon: that one could not start the processes in which PyTorch compiles.
        self.process = context.Process(target=serve, args=arguments)
        self.process.start()
        other.close()

    def ask(self, patience: float, name: str, *arguments: Any) -> Any:
        """Call a method of the `Server`; give up, and end the process, after `patience` seconds."""
        if self.process is None:
            self.start()
        try:
            self.connection.send((name, arguments))
            if not self.connection.poll(max(patience, 0.0)):
                self.close()
                raise Failed(f"{name}: no answer in {patience:.0f} seconds")
            kind, answer = self.connection.recv()
        except (EOFError, OSError) as error:
            self.process.join(5)
            code = self.process.exitcode
            self.close()
            raise Failed(f"{name}: the process died with exit code {code}") from error
        if kind == "done":
            return answer
        raise (Skipped if kind == "skipped" else Failed)(answer)

    def close(self) -> None:
        """End it at once: it has nothing to save."""
        if self.process is not None:
            self.process.kill()
            self.process.join(10)
            self.connection.close()
            self.process = None
