"""Compile `cuda.resident` for real, without a GPU: types, code generation and machine code."""

import functools
import re
from types import SimpleNamespace

import pytest

pytest.importorskip(
    "numba_cuda", reason="numba-cuda is not installed: pip install --group cuda-compile"
)

from numba import cuda
from numba.cuda import dispatcher

from fastmlp_kernels.algebra import ACTIVATIONS
from fastmlp_kernels.compile import simulated
from fastmlp_kernels.cuda.on_chip.chain import Rows
from fastmlp_kernels.cuda.on_chip.placement import TENSOR_FORMS, float_form
from fastmlp_kernels.cuda.on_chip.shared_memory import allow
from fastmlp_kernels.cuda.resident import kernel as resident
from fastmlp_kernels.cuda.resident.cost import THREADS
from tests.gpu.test_kernel_compile import disassembler, double_precision, machine_code

pytestmark = [
    pytest.mark.cuda_compile,
    pytest.mark.skipif(simulated(), reason="the simulator compiles nothing"),
]

LABELS, FUSED = "softmax_cross_entropy/labels", "binary_cross_entropy/sigmoid"
EVERY = tuple(row.name for row in ACTIVATIONS)
# By form and rows of a tile: activations, loss rule, optimizer, whether gradients are added up,
# whether the state lies in shared memory. Rules in a second pass and without one, and the longest
# code that there can be in both dtypes.
CHOICES = {
    ("float32", 2): (("relu", "identity"), LABELS, "sgd", False, True),
    ("float32", 4): (EVERY, LABELS, "adam", True, True),
    ("float32", 8): (("tanh", "relu", "identity"), FUSED, "momentum", True, False),
    ("float64", 4): (EVERY, "huber", "adamw", False, True),
    ("bfloat16", 32): (EVERY, LABELS, "adam", False, True),
    ("tf32", 32): (("tanh", "identity"), LABELS, "sgd", True, False),
    ("float32 dropout", 8): (("relu", "tanh", "gelu", "identity"), LABELS, "adam", True, True),
    ("float64 dropout", 4): (EVERY, "huber", "adamw", False, True),
    ("bfloat16 dropout", 32): (EVERY, LABELS, "adam", False, True),
    ("tf32 dropout", 32): (("tanh", "gelu", "identity"), LABELS, "sgd", True, False),
}
# All of them on Hopper, those without tensor cores on Turing, one of each on Ampere and Blackwell.
CASES = [(*key, (9, 0)) for key in CHOICES]
CASES += [(*key, (7, 5)) for key in CHOICES if key[0].split()[0] not in TENSOR_FORMS]
CASES += [("float32", 8, (8, 0)), ("float32", 8, (10, 0)), ("tf32", 32, (8, 0))]
CASES += [("bfloat16", 32, (10, 0))]
# Those of a choice one after the other: most of the work is the same for every GPU.
CASES.sort(key=lambda case: list(CHOICES).index(case[:2]))
# Each form, each capability, and the longest code of each: a quarter of the time of all.
SAMPLE = {
    ("float32", 2, (9, 0)),
    ("float32", 8, (10, 0)),
    ("tf32", 32, (8, 0)),
    ("float64 dropout", 4, (7, 5)),
    ("bfloat16 dropout", 32, (9, 0)),
}
# A multiprocessor has 65536, so that a block of 256 threads may have 256 of each; two blocks, which
# shared memory seldom has room for, 128. Dropout takes some more.
MOST_REGISTERS, MOST_WITH_DROPOUT = 208, 232


def choice_of(name, tile_rows):
    activations, rule, *others = CHOICES[name, tile_rows]
    precision, drops = name.split()[0], name.endswith("dropout")
    form = TENSOR_FORMS.get(precision) or float_form(precision, tile_rows)
    return resident.Choice(form, THREADS, Rows(activations, rule, drops), *others)


def compiled_kernels():
    """Yield (name, Python function, signature, threads, dynamic shared bytes) of each kernel."""
    for key in CHOICES:
        choice = choice_of(*key)
        name = f"resident {key[0]}, {key[1]} rows"
        kernel = resident.build(choice).py_func
        yield name, kernel, resident.signature(choice.form), THREADS, 64 * 1024


@pytest.fixture
def compiled(monkeypatch):
    """Return a function that compiles a case to PTX."""

    def ptx(name, tile_rows, capability):
        # Device functions ask the current device, not the caller, for a capability.
        device = SimpleNamespace(compute_capability=capability)
        monkeypatch.setattr(dispatcher, "get_current_device", lambda: device)
        return _ptx(name, tile_rows, capability)

    return ptx


@functools.cache
def _ptx(name, tile_rows, capability):
    choice = choice_of(name, tile_rows)
    kernel = resident.build(choice).py_func
    text, _ = cuda.compile_ptx(kernel, resident.signature(choice.form), cc=capability)
    return text


def registers(code):
    """Return how many registers a disassembly uses."""
    return max(int(number) for number in re.findall(r"\bR(\d+)\b", code)) + 1


def sampled_cases():
    """Return all cases; most are for an exhaustive run."""
    marks = {True: [], False: [pytest.mark.exhaustive]}
    return [pytest.param(case, id=str(case), marks=marks[case in SAMPLE]) for case in CASES]


@pytest.mark.parametrize("case", sampled_cases())
def test_resident_compiles_without_spills(compiled, case, tmp_path):
    name, tile_rows, capability = case
    ptx = compiled(*case)
    major, minor = capability
    assert re.search(rf"^\.target sm_{major}{minor}\b", ptx, re.MULTILINE)
    # Everything is one function: a part that was called would take its arrays through memory.
    assert ptx.count(".visible .entry") == 1 and ".func" not in ptx
    assert (double_precision(ptx) == []) == (not name.startswith("float64"))
    assert "__local_depot" not in ptx and "ld.local" not in ptx and "st.local" not in ptx
    # Memory that begins at a multiple of 16 bytes, as its loads do.
    assert re.search(r"\.extern \.shared \.align 16 ", ptx)
    pytest.importorskip("cuda.bindings.nvjitlink", reason="nvJitLink is not installed")
    if disassembler() is None:
        pytest.skip("nvdisasm is not installed: pip install --group cuda-compile")
    code = machine_code(ptx, capability, tmp_path)
    assert "EXIT" in code and not re.search(r"\b(LDL|STL)\b", code)
    assert registers(code) <= (MOST_WITH_DROPOUT if "dropout" in name else MOST_REGISTERS)
    if name.split()[0] in TENSOR_FORMS:
        assert "HMMA" in code
        return
    # Of 4 terms at a time: each row of both operands in one load, in each of the products.
    wide = len(re.findall(r"\bLDS(?:\.U)?\.128\b", code))
    rows = min(tile_rows, 4)
    loads = 2 * (tile_rows + 4) + (2 * rows if rows == 4 else rows)
    assert wide >= loads * (2 if name.startswith("float64") else 1), wide


@pytest.mark.parametrize("shared_bytes", [48 * 1024, 48 * 1024 + 16])
def test_shared_memory_beyond_the_usual_is_asked_for(monkeypatch, shared_bytes):
    """Of the function behind the kernel, once it is compiled; a refusal is an error."""
    driver = pytest.importorskip("cuda.bindings.driver")
    success, refused = driver.CUresult.CUDA_SUCCESS, driver.CUresult.CUDA_ERROR_INVALID_VALUE
    asked, answers = [], [success]

    def set_attribute(function, attribute, value):
        asked.append((function, attribute.name, value))
        return (answers[-1],)

    monkeypatch.setattr(driver, "cuKernelGetFunction", lambda kernel: (success, "function"))
    monkeypatch.setattr(driver, "cuFuncSetAttribute", set_attribute)
    function = SimpleNamespace(handle=driver.CUkernel(0))
    compiled = SimpleNamespace(library=SimpleNamespace(get_cufunc=lambda: function))
    kernel = SimpleNamespace(compile=lambda signature: asked.append(signature) or compiled)
    allow(kernel, "types", shared_bytes)
    name = "CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES"
    beyond = shared_bytes > 48 * 1024
    assert asked == ["types", *([("function", name, shared_bytes)] if beyond else [])]
    answers.append(refused)
    if beyond:
        with pytest.raises(RuntimeError, match=f"{shared_bytes} bytes a block: got CUDA_ERROR_INV"):
            allow(kernel, "types", shared_bytes)
