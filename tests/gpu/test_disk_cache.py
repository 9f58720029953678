"""CUDA kernels on disk: a later process loads them, and never another kernel's or an older one's.

Whole processes on the emulated GPU: they compile as for a GPU, to machine code.
"""

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest

from fastmlp_kernels import compile as compiler
from fastmlp_kernels import stamped_cache
from fastmlp_kernels.fingerprints import UnknownValueError, fingerprint
from tests import ROOT

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")

pytestmark = [
    pytest.mark.cuda_compile,
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("NUMBA_ENABLE_CUDASIM", "0") != "0", reason="simulated"),
]

# What every process begins with: the emulated GPU, and counts of what the compilers are asked for.
WATCH = """
import hashlib, json, logging, sys
logging.basicConfig(format="%(levelname)s %(message)s")
import numpy as np
from numba import cuda
from numba.cuda.cudadrv import driver as numba_driver, nvvm
from tests.gpu.emulator import driver
from tests.gpu.emulator.device import Device

driver.CAPABILITY = tuple(json.loads(sys.argv[1]))
driver.install(Device(), assembled=True)
counts = {"NVVM": 0, "nvJitLink": 0}

def counted(holder, name, what):
    plain = getattr(holder, name)
    def call(*arguments, **named):
        counts[what] += 1
        return plain(*arguments, **named)
    setattr(holder, name, call)

counted(nvvm, "compile_ir", "NVVM")
counted(numba_driver._Linker, "complete", "nvJitLink")

def code(kernel):
    # Hashes of the PTX and of the machine code of what was compiled or loaded.
    libraries = [each.library for each in kernel.overloads.values()]
    texts = [each.get_asm_str().encode() for each in libraries]
    return [hashlib.sha256(each).hexdigest() for each in (*texts, *(
        library.get_cubin().code for library in libraries))]
"""

PARTS = """
from numba import float32
from fastmlp_kernels.compile import cuda_part

@cuda_part
def half(x):
    return x * float32(0.5)

@cuda_part
def square(x):
    return x * x
"""
TINY = """
from enum import Enum
import numpy as np
import parts
from fastmlp_kernels.compile import cuda_kernel

class Kind(Enum):
    FIRST = 1
    SECOND = 2

def build(factor, part, kind=1):
    factor = np.float32(factor)

    @cuda_kernel
    def scale(x):
        if kind == kind:
            x[0] = part(x[0]) * factor

    return scale
"""
WORK = (
    WATCH
    + """
import parts, tiny
kernels = [tiny.build(2, parts.half), tiny.build(3, parts.half), tiny.build(2, parts.square)]
values = []
for kernel in kernels:
    x = cuda.to_device(np.full(1, 8, np.float32))
    kernel[1, 1](x)
    values += x.copy_to_host().tolist()
print(json.dumps({"values": values, "code": [code(each) for each in kernels], **counts}))
"""
)
RIGHT = [8.0, 12.0, 128.0]
COMPILED, LOADED = (3, 3), (0, 0)


class Place:
    """A folder of modules, a disk cache, and the processes that use them."""

    def __init__(self, modules, cache):
        self.modules, self.cache, self.before = modules, cache, ""

    def run(self, source=WORK, capability=(9, 0)):
        """Return what a process printed last, and its warnings."""
        path = os.pathsep.join([str(self.modules), str(ROOT), str(ROOT / "kernels")])
        environment = {**os.environ, "PYTHONPATH": path, "NUMBA_CACHE_DIR": str(self.cache)}
        child = subprocess.run(
            [sys.executable, "-c", self.before + source, json.dumps(capability)],
            env={**environment, "NUMBA_ENABLE_CUDASIM": "0", "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert child.returncode == 0, child.stderr[-3000:]
        warned = [line for line in child.stderr.splitlines() if line.startswith("WARNING")]
        return json.loads(child.stdout.splitlines()[-1]), warned

    def files(self):
        return sorted(path for path in self.cache.rglob("*.nbc") if path.name.startswith("tiny."))


def asked(found):
    """Return how often NVVM and nvJitLink were asked."""
    return found["NVVM"], found["nvJitLink"]


@pytest.fixture(scope="module")
def first_process(tmp_path_factory):
    """Return a cache that a process has filled, and what that process said."""
    folder = tmp_path_factory.mktemp("cuda")
    (folder / "parts.py").write_text(PARTS)
    (folder / "tiny.py").write_text(TINY)
    place = Place(folder, folder / "cache")
    found, warned = place.run()
    assert found["values"] == RIGHT and asked(found) == COMPILED and not warned
    return place, found


@pytest.fixture
def filled(first_process, tmp_path):
    """Return a copy of that cache, beside its modules, and what the process said."""
    place, found = first_process
    shutil.copytree(place.cache, tmp_path / "cache")
    return Place(place.modules, tmp_path / "cache"), found


RESIDENT = (
    WATCH
    + """
from fastmlp_kernels.cuda.resident import kernel as resident
from fastmlp_kernels.cuda.resident.program import ResidentProgram
from fastmlp_kernels.problem import Problem
from tests.samples import sample
problem = Problem((3, 4, 2), ("relu", "identity"), "half_squared_error", batch_size=4, rows=8)
data, program = sample(problem), ResidentProgram(problem)
device = [program.to_device(a) for a in (data.parameters, data.state, data.X, data.y)]
program.epoch(*device, data.order, data.hyper, data.losses, data.control)
program.to_host(device[0], data.parameters)
print(json.dumps({"losses": data.losses.tolist(), "parameters": data.parameters.tolist(),
                  "code": code(program.resident), **counts}))
"""
)


def test_a_second_process_trains_without_compiling(tmp_path):
    place = Place(tmp_path, tmp_path / "cache")
    first, _ = place.run(RESIDENT)
    assert min(asked(first)) >= 1 and len(first["code"]) == 2
    second, warned = place.run(RESIDENT)
    assert second == {**first, "NVVM": 0, "nvJitLink": 0} and not warned


def test_what_is_edited_is_compiled_anew_over_the_old_file(filled):
    """The edit is in another file than the kernel's, and in one of its two parts."""
    place, first = filled
    before = place.files()
    (place.modules / "parts.py").write_text(PARTS.replace("return x * x", "return x + x"))
    try:
        found, _ = place.run()
    finally:
        (place.modules / "parts.py").write_text(PARTS)
    assert found["values"] == [8.0, 12.0, 32.0] and asked(found) == (1, 1)
    assert found["code"][:2] == first["code"][:2] and place.files() == before


def test_choices_of_one_name_and_capabilities_have_files_of_their_own(filled):
    place, first = filled
    assert len(place.files()) == 3 and len({tuple(each) for each in first["code"]}) == 3
    other, _ = place.run(capability=(8, 0))
    assert other["values"] == RIGHT and asked(other) == COMPILED and len(place.files()) == 6
    assert not {*sum(other["code"], [])} & {*sum(first["code"], [])}
    found, _ = place.run()
    assert found == {**first, "NVVM": 0, "nvJitLink": 0}


def test_every_circumstance_has_a_file_of_its_own(monkeypatch):
    from numba import config, cuda, float32

    device = SimpleNamespace(compute_capability=(9, 0))
    monkeypatch.setattr(cuda, "get_current_device", lambda: device)
    kernel = cuda.jit(limited)
    cache = stamped_cache.CudaCache(kernel, "stamp")
    names = set()

    def note(signature=(float32,)):
        names.add(cache._file(cache._key(signature, None))[0])

    note()
    note()
    assert len(names) == 1
    note((float32, float32))
    device.compute_capability = (10, 0)
    note()
    kernel.targetoptions["lineinfo"] = True
    note()
    monkeypatch.setattr(config, "CUDA_A_SETTING_OF_A_LATER_RELEASE", 1, raising=False)
    note()
    monkeypatch.setattr(stamped_cache, "cuda_toolchain", lambda: "of tomorrow")
    note()
    assert len(names) == 6
    # Of other sources: the same file, which holds for something else.
    key = cache._key((float32,), None)
    (name, held), (later, other) = (
        each._file(key) for each in (cache, stamped_cache.CudaCache(kernel, "edited"))
    )
    assert name == later and held != other


def test_the_toolchain_is_versions_and_files():
    said = stamped_cache.cuda_toolchain()
    for part in ("libdevice", "libnvvm", "libnvJitLink", metadata.version("numba-cuda")):
        assert part in said


def test_damaged_and_foreign_files_are_compiled_anew(filled):
    place, first = filled
    whole = [path.read_bytes() for path in place.files()]
    half, moved, open_to_all = place.files()
    half.write_bytes(whole[0][: len(whole[0]) // 2])
    # Whole, and of another choice.
    moved.write_bytes(whole[0])
    open_to_all.chmod(0o666)
    found, warned = place.run()
    assert found == {**first, "NVVM": 3, "nvJitLink": 3}
    assert len(warned) == 2
    assert any("is damaged" in each for each in warned)
    assert any("others can write to" in each for each in warned)


def test_without_a_folder_a_kernel_is_compiled_all_the_same(monkeypatch):
    from numba import cuda

    def nowhere(*arguments):
        raise RuntimeError("no locator available")

    kernel = cuda.jit(limited)
    before = kernel._cache
    monkeypatch.setattr(compiler, "CudaCache", nowhere)
    compiler._give_cache(kernel)
    assert kernel._cache is before


UNKNOWN = (
    WATCH
    + """
import parts, tiny
kernel = tiny.build(2, parts.half, kind=tiny.Kind.SECOND)
x = cuda.to_device(np.full(1, 8, np.float32))
kernel[1, 1](x)
print(json.dumps({"values": x.copy_to_host().tolist(), **counts}))
"""
)


def test_a_kernel_that_cannot_be_told_from_others_is_not_kept(filled):
    place, _ = filled
    found, warned = place.run(UNKNOWN)
    assert found == {"values": [8.0], "NVVM": 1, "nvJitLink": 1}
    assert len(warned) == 1 and "scale is compiled anew in each process" in warned[0]
    assert len(place.files()) == 3


# --- fingerprints ---------------------------------------------------------------------------------


def times(factor):
    return lambda x: factor * x


def calling(function):
    return lambda x: function(x) + 1


LIMIT = 3


def limited(x):
    return min(x, LIMIT)


def test_a_fingerprint_is_of_what_a_function_holds():
    assert fingerprint(times(2)) == fingerprint(times(2))
    distinct = [
        times(2),
        times(3),
        times(2.0),
        times("2"),
        times((2,)),
        times([2]),
        times({"2": 2}),
    ]
    distinct += [calling(times(2)), calling(times(3)), calling(calling(times(2))), limited]
    for with_code in (True, False):
        assert len({fingerprint(each, with_code) for each in distinct}) == len(distinct)


def test_a_fingerprint_is_of_what_a_function_calls(monkeypatch):
    before = fingerprint(calling(limited))
    monkeypatch.setitem(limited.__globals__, "LIMIT", 4)
    assert fingerprint(calling(limited)) != before


def test_an_edit_changes_the_fingerprint_and_not_the_choice():
    found = []
    for line in ("return factor * x", "return factor + x"):
        names = {}
        exec(f"def build(factor):\n    def scale(x):\n        {line}\n    return scale", names)
        found.append(names["build"](2))
    assert fingerprint(found[0]) != fingerprint(found[1])
    assert fingerprint(found[0], False) == fingerprint(found[1], False)


def test_what_has_no_fingerprint_is_refused():
    with pytest.raises(UnknownValueError, match="object at .* has no fingerprint"):
        fingerprint(times(object()))


def test_every_kernel_has_a_fingerprint_of_its_own():
    from benchmarks.cuda_kernels import compiled_kernels

    seen = {}
    for each in compiled_kernels():
        seen.setdefault(fingerprint(each.function, with_code=False), set()).add(each.function)
        fingerprint(each.function)
    assert len(seen) >= 25 and all(len(functions) == 1 for functions in seen.values())
