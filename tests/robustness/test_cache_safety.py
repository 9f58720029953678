"""Whole processes on a disk cache that is hostile, damaged, full or written by others meanwhile."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from fastmlp.device import machine_file
from tests import ROOT

# Kernels and leaves that compile in a moment, through the same two doors as all others.
TINY = """
from numba.core import types
from fastmlp_kernels.compile import kernel, leaf

@kernel
def twice(x):
    return 2 * x

@kernel
def thrice(x):
    return 3 * x

def times(factor):
    def multiply(x):
        return factor * x
    return leaf(multiply, f"times{factor}-int64", types.int64(types.int64)).address
"""

WORK = """
import ctypes, json, logging, sys
logging.basicConfig(format="%(levelname)s %(message)s")
from numba.core import event

class Watch(event.Listener):
    compiled = set()
    def on_start(self, what):
        self.compiled.add(what.data["qualname"])
    def on_end(self, what):
        pass

event.register("numba:run_pass", Watch())
import tiny
kind = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)
values = [tiny.twice(7), tiny.thrice(7), kind(tiny.times(5))(7), kind(tiny.times(6))(7)]
print(json.dumps({"values": values, "compiled": sorted(Watch.compiled)}))
"""
RIGHT = [14, 21, 35, 42]
COMPILED = ["thrice", "times.<locals>.multiply", "twice"]


class Place:
    """A folder of modules, a disk cache and the processes that use them."""

    def __init__(self, modules, cache):
        self.cache = cache
        path = os.pathsep.join([str(modules), str(ROOT), str(ROOT / "kernels")])
        self.environment = {**os.environ, "PYTHONPATH": path, "NUMBA_CACHE_DIR": str(cache)}

    def start(self, source=WORK, **variables):
        return subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-c", source],
            env={**self.environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, child):
        """Return what a process printed last and the warnings that it logged."""
        stdout, stderr = child.communicate(timeout=240)
        assert child.returncode == 0, stderr[-3000:]
        warned = [line for line in stderr.splitlines() if line.startswith("WARNING")]
        return json.loads(stdout.splitlines()[-1]), warned

    def run(self, source=WORK, **variables):
        return self.finish(self.start(source, **variables))

    def files(self):
        return sorted(path for path in self.cache.rglob("*") if path.suffix in (".nbc", ".nbi"))


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modules")
    (folder / "tiny.py").write_text(TINY)
    return folder


@pytest.fixture(scope="module")
def first(modules, tmp_path_factory):
    """Return a place with a cache that one process has filled."""
    made = Place(modules, tmp_path_factory.mktemp("first") / "cache")
    assert made.run() == ({"values": RIGHT, "compiled": COMPILED}, [])
    return made


@pytest.fixture
def place(modules, tmp_path):
    return Place(modules, tmp_path / "cache")


@pytest.fixture
def filled(first, place):
    shutil.copytree(first.cache, place.cache)
    return place


def test_a_second_process_loads_everything(filled):
    assert filled.run() == ({"values": RIGHT, "compiled": []}, [])


def test_files_under_each_others_names_are_not_run(filled):
    """Each of them is whole."""
    for suffix in {path.suffix for path in filled.files()}:
        files = [path for path in filled.files() if path.suffix == suffix]
        contents = [path.read_bytes() for path in files]
        for path, content in zip(files, contents[1:] + contents[:1], strict=True):
            path.write_bytes(content)
    found, _ = filled.run()
    assert found == {"values": RIGHT, "compiled": COMPILED}


def test_microkernels_under_anothers_name_are_not_run(place):
    source = """
import ctypes, json, os
import numpy as np
from fastmlp_kernels.cpu import machine_code
from fastmlp_kernels.cpu.simd import instruction_set
target, found = instruction_set(), []
for dtype in ("float32", "float64"):
    code = machine_code.microkernels(target, dtype)
    lanes = target.lanes(dtype)
    X = np.arange(lanes * target.panel(dtype), dtype=dtype).reshape(lanes, -1)
    copy = np.zeros_like(X)
    transpose = ctypes.CFUNCTYPE(*[ctypes.c_int64] * 6)
    transpose(code["transpose"])(X.ctypes.data, copy.ctypes.data, 1, 0, 1)
    found.append(np.array_equal(copy[:, :lanes], X[:, :lanes].T))
print(json.dumps(found))
"""
    assert place.run(source) == ([True, True], [])
    single, double = sorted(place.cache.rglob("*.o"))
    kept = single.read_bytes()
    single.write_bytes(double.read_bytes())
    double.write_bytes(kept)
    assert place.run(source)[0] == [True, True]


def test_a_planted_pickle_is_not_run(place, tmp_path):
    """By somebody who may write to the folder, or to the file, and knows how to seal one."""
    ran = tmp_path / "ran"
    place.run(f"""
import json
from fastmlp_kernels import stamped_cache
class Evil:
    def __reduce__(self):
        return exec, ("open({str(ran)!r}, 'w')",)
stamped_cache.dumps = lambda payload: __import__("pickle").dumps(Evil())
import tiny
print(tiny.twice(7))
""")
    (planted,) = place.files()
    evil = planted.read_bytes()
    planted.parent.chmod(0o777)
    found, warned = place.run()
    assert found["values"] == RIGHT and not ran.exists()
    assert len(warned) == 1 and str(planted.parent) in warned[0] and "Delete it" in warned[0]
    planted.parent.chmod(0o700)
    planted.chmod(0o666)
    found, warned = place.run()
    assert found["values"] == RIGHT and not ran.exists()
    assert len(warned) == 1 and str(planted) in warned[0] and "Delete it" in warned[0]
    # The user's own, it would have run: and is replaced, as what it left is no compiled function.
    planted.write_bytes(evil)
    assert place.run()[0]["values"] == RIGHT and ran.exists()


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="limits the size of files")
def test_a_full_disk_is_one_warning(place):
    limited = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))\n{WORK}"
    found, warned = place.run(limited)
    assert found["values"] == RIGHT
    assert len(warned) == 1 and "could not be kept" in warned[0] and str(place.cache) in warned[0]
    found, warned = place.run()
    assert found["values"] == RIGHT and not warned


def test_a_folder_that_vanishes_meanwhile(place):
    vanishes = WORK.replace(
        "import tiny\n", "import tiny, os, shutil\nshutil.rmtree(os.environ['NUMBA_CACHE_DIR'])\n"
    )
    found, warned = place.run(vanishes)
    assert found["values"] == RIGHT and not warned


def test_damaged_files_are_compiled_anew_with_one_warning(filled):
    files = filled.files()
    assert len(files) >= 4
    for k, path in enumerate(files):
        content = path.read_bytes()
        middle = len(content) // 2
        if k % 4 == 0:
            path.write_bytes(b"")
        elif k % 4 == 1:
            path.write_bytes(content[:middle])
        else:
            path.write_bytes(
                content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
            )
    found, warned = filled.run()
    assert found == {"values": RIGHT, "compiled": COMPILED} and len(warned) == 1
    assert filled.run() == ({"values": RIGHT, "compiled": []}, [])


def test_folders_in_the_place_of_files_are_compiled_anew(filled):
    for path in filled.files():
        path.unlink()
        path.mkdir()
    found, warned = filled.run()
    assert found["values"] == RIGHT and len(warned) == 1 and "cannot be read" in warned[0]


def test_a_whole_file_that_cannot_be_used_is_compiled_anew(filled):
    source = """
from fastmlp_kernels import stamped_cache
stamped_cache.dumps = lambda payload: b"not a pickle"
stamped_cache.CacheFolder.read = lambda *arguments: None
import tiny
print(tiny.twice(7))
"""
    filled.run(source)
    found, warned = filled.run()
    assert found["values"] == RIGHT and found["compiled"] == ["twice"]
    assert len(warned) == 1 and "cannot be used" in warned[0]


def test_two_processes_that_compile_at_once(place):
    children = [place.start() for _ in range(2)]
    for child in children:
        found, warned = place.finish(child)
        assert found["values"] == RIGHT and not warned
    assert place.run() == ({"values": RIGHT, "compiled": []}, [])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [11, pytest.param(12, marks=pytest.mark.exhaustive)])
def test_processes_that_are_killed_leave_a_cache_that_works(place, seed):
    moments = random.Random(seed)
    started = time.monotonic()
    place.run()
    seconds = time.monotonic() - started
    for _ in range(8):
        for path in place.files():
            if moments.random() < 0.5:
                path.unlink()
        child = place.start()
        time.sleep(moments.uniform(0.3, 1.1) * seconds)
        child.kill()
        # What an earlier one has left is met by this one, and mended: the last run sees it no more.
        assert "WARNING" not in child.communicate()[1]
    found, warned = place.run()
    assert found["values"] == RIGHT and not warned
    assert place.run() == ({"values": RIGHT, "compiled": []}, [])


def test_other_settings_have_files_of_their_own(filled):
    """A run without optimisation is not to slow down all later ones, nor to change their bits."""
    kept = {path: path.read_bytes() for path in filled.files()}
    found, warned = filled.run(NUMBA_OPT="0")
    assert found == {"values": RIGHT, "compiled": COMPILED} and not warned
    assert all(path.read_bytes() == content for path, content in kept.items())
    for variables in ({}, {"NUMBA_OPT": "0"}):
        assert filled.run(**variables) == ({"values": RIGHT, "compiled": []}, [])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OPT", 1),
        ("LOOP_VECTORIZE", 0),
        ("SLP_VECTORIZE", 1),
        ("BOUNDSCHECK", 1),
        ("ENABLE_AVX", 0),
        ("DISABLE_INTEL_SVML", 1),
        ("DEBUGINFO_DEFAULT", 1),
        ("CPU_NAME", "generic"),
        ("CPU_FEATURES", ""),
        ("LLVM_REFPRUNE_PASS", 0),
        ("DEBUG_NRT", 1),
        ("A_SETTING_OF_A_LATER_RELEASE", 1),
    ],
)
def test_each_setting_that_may_change_code_is_in_the_key(monkeypatch, name, value):
    import numba

    from fastmlp_kernels.stamped_cache import settings

    before = settings()
    monkeypatch.setattr(numba.config, name, value, raising=False)
    assert settings() != before


@pytest.mark.parametrize("name", ["CACHE_DIR", "NUMBA_NUM_THREADS", "DUMP_LLVM", "CUDA_DRIVER"])
def test_a_setting_that_changes_no_code_is_not_in_the_key(monkeypatch, name):
    import numba

    from fastmlp_kernels.stamped_cache import settings

    before = settings()
    monkeypatch.setattr(numba.config, name, "another")
    assert settings() == before


def test_the_flags_are_in_the_stamp(monkeypatch):
    from fastmlp_kernels import compile as compiler

    before = compiler.stamp.__wrapped__()
    for flags in (compiler.CPU_FLAGS, compiler.PART_FLAGS, compiler.RULE_FLAGS, compiler.SUM_FLAGS):
        monkeypatch.setitem(flags, "fastmath", {"contract", "nnan"})
        after = compiler.stamp.__wrapped__()
        assert after != before
        before = after


FIT = """
import fastmlp, json, numpy as np
X, y, small = np.ones((4, 2)), np.ones((4, 1)), dict(epochs=1, batch_size=4)
model = fastmlp.MLP([2, 3, 1])
try:
    model.fit(X, y, **small)
except RuntimeError as error:
    said = str(error)
model.fit(X, y, kernel="reference", **small)
print(json.dumps(said))
"""


def test_numba_told_to_compile_nothing_is_one_clear_error(place):
    said, _ = place.run(FIT, NUMBA_DISABLE_JIT="1")
    assert "NUMBA_DISABLE_JIT: got 1, wanted 0" in said and "kernel='reference'" in said


@pytest.mark.parametrize(
    "content",
    ["[" * 100_000, "{}", "[1]", "null", '{"stamp": {}, "constants": {"cpu_flops": 1%s}}'],
)
def test_a_file_of_constants_that_cannot_be_understood(tmp_path, monkeypatch, caplog, content):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(machine_file, "configuration_file", lambda: tmp_path / "machine.json")
    (tmp_path / "machine.json").write_text(content.replace("%s", "0" * 400))
    machine_file._stored.cache_clear()
    try:
        assert machine_file.stored_constants() == {}
    finally:
        machine_file._stored.cache_clear()
    assert len(caplog.records) == 1 and "damaged" in caplog.text


SHOWS = """
import json, sys
import scipy
print(json.dumps([scipy.__name__, sys.path[0], sys.argv]))
"""


@pytest.mark.parametrize("options", [[], ["-P"]])
@pytest.mark.parametrize("kind", ["script", "folder"])
def test_accel_finds_modules_where_python_finds_them(tmp_path, child_environment, options, kind):
    """Beside the script and not in the current folder, also while it loads what it needs itself."""
    scripts, here = tmp_path / "scripts", tmp_path / "here"
    scripts.mkdir()
    here.mkdir()
    script = scripts / ("script.py" if kind == "script" else "__main__.py")
    script.write_text(SHOWS)
    for name in ("scipy", "sklearn", "threadpoolctl", "joblib", "runpy_", "pkgutil", "numba"):
        (here / f"{name}.py").write_text("raise SystemExit('planted')")
    words = [str(script if kind == "script" else scripts), "a"]

    def run(*arguments):
        command = [sys.executable, *options, *arguments, *words]
        done = subprocess.run(
            command, cwd=here, env=child_environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return json.loads(done.stdout)

    assert run("-m", "fastmlp.accel") == run()


# Work that goes on when a handler raises, and whether the call is left before that work ends: no
# time says so on a machine that is busy.
HANDLER = """
import importlib, json, random, signal
from fastmlp_kernels import shield as module
from fastmlp_kernels.shield import shield
moments = random.Random(SEED)
at_work, counts = [], {"interrupted": 0, "at_work": 0, "left": 0}

def interrupt(number, frame):
    at_work[:] = module._at_work.values()
    raise KeyboardInterrupt

def count():
    counts["interrupted"] += 1
    counts["at_work"] += len(at_work) > 0
    counts["left"] += any(lock.locked() for lock in at_work)

signal.signal(signal.SIGALRM, interrupt)
"""


def left_at_once(found):
    """Return whether interrupts of shielded work have left its caller before the work's end."""
    return found["interrupted"] >= found["at_work"] > 0 and 2 * found["left"] > found["at_work"]


# Interrupted at whatever moment: the import of Numba, of kernels, their compilation.
INTERRUPTED = f"""{HANDLER}
import ctypes

def fit():
    tiny = shield(lambda: importlib.import_module("tiny"))
    values = [tiny.twice(7), tiny.thrice(7)]
    kind = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)
    return values + [kind(tiny.times(5))(7), kind(tiny.times(6))(7)]

values = None
while values is None and counts["interrupted"] < 30:
    try:
        # The first one comes early: later the call may be over.
        longest = LONGEST if counts["interrupted"] else 0.02
        signal.setitimer(signal.ITIMER_REAL, moments.uniform(0.001, longest))
        values = fit()
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        count()
# Another thread may have been given the last signal: it would be heard only now.
signal.signal(signal.SIGALRM, signal.SIG_IGN)
values = fit()
print(json.dumps(dict(counts, values=values)))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="interrupts by a timer")
@pytest.mark.parametrize(
    "seed", [*range(3), *(pytest.param(k, marks=pytest.mark.exhaustive) for k in range(3, 6))]
)
def test_an_interrupt_of_a_cold_first_call_tears_nothing(place, seed):
    longest = (0.05, 0.4, 1.0)[seed % 3]
    source = INTERRUPTED.replace("SEED", str(seed)).replace("LONGEST", str(longest))
    found, _ = place.run(source)
    assert found["values"] == RIGHT
    assert left_at_once(found), found


COLD_PROGRAM = f"""{HANDLER.replace("SEED", "1")}
import numpy
from fastmlp_kernels.problem import Problem
from tests.samples import sample

def fit():
    program_module = shield(lambda: importlib.import_module("fastmlp_kernels.cpu.program"))
    problem = Problem((3, 4, 2), ("relu", "identity"), "half_squared_error", batch_size=4, rows=8)
    data = sample(problem)
    program_module.FusedProgram(problem).epoch(*data.arguments())
    return data.losses.tolist()

losses = None
while losses is None and counts["interrupted"] < 50:
    try:
        signal.setitimer(signal.ITIMER_REAL, moments.uniform(0.001, 0.6))
        losses = fit()
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        count()
signal.signal(signal.SIGALRM, signal.SIG_IGN)
print(json.dumps(dict(counts, equal=fit() == fit())))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="interrupts by a timer")
def test_interrupts_of_a_cold_first_epoch_tear_nothing(place):
    found, _ = place.run(COLD_PROGRAM)
    assert found["equal"] and found["interrupted"] >= 5
    assert left_at_once(found), found
