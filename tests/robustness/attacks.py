"""What the tests that attack the library share: how often they try, and children that may crash.

An attack is a function of a test module. It runs in a child process, so that a segmentation fault
or a hang fails one test and not the run, and returns what it found: how often it tried, and what
was wrong. ``FASTMLP_ATTACKS=5`` tries everything five times as often.
"""

import contextlib
import ctypes
import faulthandler
import functools
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests import ROOT

FACTOR = float(os.environ.get("FASTMLP_ATTACKS", "1"))
PROLOGUE = "import sys; from tests.robustness.attacks import child; child(*sys.argv[1:])"
# What a child prints before its result: whatever else it prints is shown if it fails.
RESULT = "attack result: "
# PR_SET_PDEATHSIG of Linux's prctl.
DIE_WITH_PARENT = 1

linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="memory is looked up in Linux's /proc"
)


def tries(count):
    """Return how often to try what is tried `count` times by default."""
    return max(1, round(count * FACTOR))


class Tally:
    """How often an attack was tried, and what went wrong, by kind."""

    def __init__(self):
        # Handlers of signals count too, in the midst of another count.
        self._lock = threading.RLock()
        self.tried, self.wrong, self.first, self.other = Counter(), Counter(), {}, Counter()

    def good(self, kind, count=1):
        with self._lock:
            self.tried[kind] += count

    def bad(self, kind, what):
        with self._lock:
            self.tried[kind] += 1
            self.wrong[kind] += 1
            self.first.setdefault(kind, str(what)[:300])

    def check(self, kind, right, what="other bits"):
        if right:
            self.good(kind)
        else:
            self.bad(kind, what() if callable(what) else what)

    def note(self, kind):
        """Count something that is neither right nor wrong."""
        with self._lock:
            self.other[kind] += 1

    def result(self):
        wrong = {
            kind: f"{count} of {self.tried[kind]}, first: {self.first[kind]}"
            for kind, count in self.wrong.items()
        }
        return {"tried": dict(self.tried), "wrong": wrong, "noted": dict(self.other)}


def begin(kind):
    """Say which attack begins, so that a crash can be told from the others'."""
    print("attack:", kind, flush=True)


def child(module, function, arguments, seconds):
    """Run an attack in this process, and print its result."""
    if sys.platform.startswith("linux"):
        # Nobody is left behind by a run that is killed.
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    faulthandler.enable()
    faulthandler.dump_traceback_later(float(seconds), exit=True)
    found = getattr(importlib.import_module(module), function)(*json.loads(arguments))
    faulthandler.cancel_dump_traceback_later()
    if isinstance(found, Tally):
        found = found.result()
    print("\n" + RESULT + json.dumps(found), flush=True)


def run_attack(attack, *arguments, seconds=120.0, environment=None):
    """Run an attack in a child process; return its result, or fail with what the child said."""
    seconds *= max(1.0, FACTOR)
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    command = [sys.executable, "-c", PROLOGUE, attack.__module__, attack.__name__]
    with subprocess.Popen(
        [*command, json.dumps(arguments), str(seconds)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": path,
            "PYTHONDONTWRITEBYTECODE": "1",
            **(environment or {}),
        },
        start_new_session=True,
    ) as process:
        try:
            # The child ends itself, with its stacks. This is for one that cannot even do that.
            printed, errors = process.communicate(timeout=seconds + 30)
        except subprocess.TimeoutExpired:
            printed, errors = "", "it did not end, and printed no stacks"
        finally:
            # Also what the child has started, whether it ended well or not.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
    found = [line for line in printed.splitlines() if line.startswith(RESULT)]
    if process.returncode != 0 or not found:
        code = process.returncode
        how = signal.Signals(-code).name if code is not None and code < 0 else f"exit status {code}"
        begun = [line for line in printed.splitlines() if line.startswith("attack:")][-1:]
        raise AssertionError(
            f"{attack.__name__}{arguments}: the child ended by {how} in {begun}\n"
            f"{printed[-1000:]}\n{errors[-6000:]}"
        )
    return json.loads(found[-1][len(RESULT) :])


def assert_withstood(found, at_least=1):
    """Assert that attacks were tried and that nothing went wrong."""
    print(json.dumps(found))
    assert found["wrong"] == {}
    assert found["tried"] and min(found["tried"].values()) >= at_least


def bits(*values):
    """Return the bits of arrays and numbers."""
    return b"|".join(np.ascontiguousarray(value).tobytes() for value in values)


def in_teams(threads):
    """Have every call use so many threads, also the small ones that are left to one."""
    from fastmlp.device import machine
    from fastmlp.dispatch import planning  # noqa: F401  it has a name for `detect`

    detect = machine.detect
    shared = functools.cache(lambda: machine.sharing(detect(), threads))
    for module in [each for name, each in sys.modules.items() if name.startswith("fastmlp.")]:
        if getattr(module, "detect", None) is detect:
            module.detect = shared


def together(works, seconds=60.0):
    """Call each work in a thread of its own, all at once; raise the first failure."""
    failures = []
    start = threading.Barrier(len(works))

    def target(work):
        start.wait()
        try:
            work()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=target, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + seconds * max(1.0, FACTOR)
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    if any(thread.is_alive() for thread in threads):
        faulthandler.dump_traceback(all_threads=True)
        os._exit(3)
    if failures:
        raise failures[0]


@contextlib.contextmanager
def seams_open(seed=0, often=0.02, longest=2e-4):
    """Have every thread started here sleep at random where functions of the library begin and end.

    Threads also take turns after every few operations. What two threads can only do wrong in a
    moment that is rarely hit is then hit.
    """
    local = threading.local()

    def sleep_at_times(frame, event, argument):
        if "fastmlp" not in frame.f_code.co_filename:
            return
        chance = getattr(local, "chance", None)
        if chance is None:
            chance = local.chance = random.Random(seed + threading.get_ident())
        if chance.random() < often:
            time.sleep(chance.random() * longest)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threading.setprofile(sleep_at_times)
    sys.setprofile(sleep_at_times)
    try:
        yield
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
        sys.setswitchinterval(interval)


def own_threads(begun=True):
    """Return the threads of the library that are alive, or those that never begin.

    An exception inside of `Thread.start` may leave CPython 3.11 with a thread that is in its lists
    for ever and runs nothing of anybody's: it has not begun.
    """
    named = [each for each in threading.enumerate() if each.name.startswith("fastmlp-")]
    return [each for each in named if each._started.is_set() == begun]


def nobody_stays(seconds=30.0):
    """Return whether all threads of the library leave by themselves."""
    deadline = time.monotonic() + seconds
    while own_threads():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


def resident_megabytes():
    """Return the memory of this process that is in use."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
