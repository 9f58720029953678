"""The offline table of resources: what it reads from the assembler, and that it is current."""

import importlib.metadata
import re
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip(
    "numba_cuda", reason="numba-cuda is not installed: pip install --group cuda-compile"
)

from numba import cuda, types

from benchmarks import cuda_compilation, cuda_resources
from benchmarks.cuda_compilation import (
    CAPABILITIES,
    LIMITS,
    Resources,
    assemble,
    blocks_at_a_time,
    compile_ptx,
    double_precision,
    instruction_counts,
    listing,
    local_memory,
    occupancy,
    resources,
)
from benchmarks.cuda_kernels import GROUPS, compiled_kernels, missing
from fastmlp_kernels.compile import simulated

pytestmark = [
    pytest.mark.cuda_compile,
    pytest.mark.skipif(simulated(), reason="the simulator compiles nothing"),
]
HOPPER = (9, 0)
# A column of the table each.
COLUMNS = ("kernel", "variant", "capability", "threads", "registers", "local", "shared")


def assembled(function, signature, capability=HOPPER):
    reason = cuda_compilation.assembler_missing()
    if reason is not None:
        pytest.skip(reason)
    return assemble(compile_ptx(function, signature, capability), capability)


VECTOR = types.Array(types.float32, 1, "C")


def indexed_by_data(x, k, out):
    """Keep an array in local memory: its index is known at run time alone."""
    held = cuda.local.array(64, np.float32)
    for i in range(x.size):
        held[i % 64] = x[i]
    out[0] = held[k]


def shared_sum(x, out):
    """Take 4 KiB of shared memory and a barrier."""
    held = cuda.shared.array(1024, np.float32)
    t = cuda.threadIdx.x
    held[t] = x[t]
    cuda.syncthreads()
    out[t] = held[1023 - t] * x[t] + x[t]


@pytest.mark.parametrize("capability", CAPABILITIES, ids=str)
def test_an_array_in_local_memory_is_seen(capability):
    """What the tests of all kernels look for can be found."""
    signature = (VECTOR, types.int64, VECTOR)
    found = resources(assembled(indexed_by_data, signature, capability).log)
    assert found.local_bytes >= 256
    assert local_memory(compile_ptx(indexed_by_data, signature, capability))


@pytest.mark.parametrize("capability", CAPABILITIES, ids=str)
def test_shared_memory_is_that_of_the_kernel_alone(capability):
    found = resources(assembled(shared_sum, (VECTOR, VECTOR), capability).log)
    assert found.shared_bytes == 4096
    assert found.local_bytes == 0
    assert 0 < found.registers < 64


def test_instructions_are_counted():
    if cuda_compilation.disassembler_missing():
        pytest.skip(cuda_compilation.disassembler_missing())
    counts = instruction_counts(listing(assembled(shared_sum, (VECTOR, VECTOR)).cubin))
    assert counts["BAR"] == 1 and counts["FFMA"] == 1
    assert counts["LDS"] == 1 and counts["STS"] == 1
    assert "LDL" not in counts and counts["EXIT"] >= 1


def test_counting_reads_predicates_and_no_modifiers():
    code = """
        /*0010*/                   FFMA R1, R2, R3, R4 ;
        /*0020*/              @!P0 FFMA.FTZ R1, R2, R3, R4 ;
        /*0030*/              @P1  LDS.128 R4, [R8] ;
        /*0040*/               @UP0 HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
.L_x_1:
        //  FFMA in a comment
    """
    assert instruction_counts(code) == {"FFMA": 2, "LDS": 1, "HMMA": 1}


def test_an_unreadable_log_is_an_error():
    with pytest.raises(ValueError, match="the assembler's log: got 'nothing'"):
        resources("nothing")


def test_float64_is_seen():
    def double(x, out):
        out[0] = x[0] * 1.1

    def single(x, out):
        out[0] = x[0] + x[1]

    assert double_precision(compile_ptx(double, (VECTOR, VECTOR), HOPPER))
    assert not double_precision(compile_ptx(single, (VECTOR, VECTOR), HOPPER))


def test_compiling_leaves_the_current_device_as_it_was():
    from numba.cuda import dispatcher

    before = dispatcher.get_current_device
    with pytest.raises(ZeroDivisionError), cuda_compilation.compiling_for(HOPPER):
        assert dispatcher.get_current_device().compute_capability == HOPPER
        raise ZeroDivisionError
    assert dispatcher.get_current_device is before


@pytest.mark.parametrize(
    ("capability", "registers", "threads", "shared", "blocks"),
    [
        # By hand, from the table of compute capabilities.
        (HOPPER, 32, 256, 0, 8),  # 2048 threads
        (HOPPER, 33, 256, 0, 6),  # 40 registers: 51 warps
        (HOPPER, 33, 96, 0, 16),  # 48 warps in whole quarters of a multiprocessor
        (HOPPER, 128, 256, 0, 2),
        (HOPPER, 255, 256, 0, 1),
        (HOPPER, 255, 512, 0, 0),  # 8 warps at a time, of 16
        (HOPPER, 32, 256, 227 * 1024, 1),
        (HOPPER, 32, 256, 227 * 1024 + 1, 0),
        (HOPPER, 32, 256, 113 * 1024, 2),  # 114 KiB with the system's, of 228
        (HOPPER, 32, 256, 113 * 1024 + 1, 1),
        (HOPPER, 16, 32, 0, 32),  # blocks
        ((7, 5), 32, 256, 0, 4),  # 1024 threads
        ((7, 5), 32, 32, 0, 16),
        ((7, 5), 32, 256, 32 * 1024, 2),
        ((8, 0), 32, 256, 81 * 1024, 2),
        ((8, 0), 32, 256, 82 * 1024, 1),
    ],
)
def test_blocks_at_a_time(capability, registers, threads, shared, blocks):
    assert blocks_at_a_time(capability, registers, threads, shared) == blocks
    part = blocks * threads / LIMITS[capability].threads
    assert occupancy(capability, registers, threads, shared) == pytest.approx(part)


def table_rows(text):
    """Return the rows of the committed table, by kernel, variant and capability."""
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    rows = [dict(zip(COLUMNS, row, strict=False)) for row in cells]
    return {(row["kernel"], row["variant"], row["capability"]): row for row in rows}


def committed():
    return cuda_resources.TARGET.read_text(encoding="utf-8")


def kernels():
    return list(compiled_kernels())


def test_every_group_of_kernels_is_listed():
    from fastmlp_kernels.cuda import KERNELS

    there = {kernel.name for kernel in KERNELS}
    assert there <= set(GROUPS), "a kernel of the registry has no line in the table of resources"
    assert not there & set(missing())
    assert kernels()
    assert len({kernel.title for kernel in kernels()}) == len(kernels())


def test_the_committed_table_has_every_kernel_and_no_other():
    wanted = {
        (kernel.name, kernel.variant, f"{major}.{minor}")
        for kernel in kernels()
        for major, minor in CAPABILITIES
        if (major, minor) >= kernel.capability
    }
    assert set(table_rows(committed())) == wanted


def test_the_committed_table_has_no_local_memory():
    assert {row["local"] for row in table_rows(committed()).values()} == {"0"}


# Of the other variants nobody edits one without these; all of them take a minute.
SINGLE = [name for name, *others in table_rows(committed()) if others == ["float32", "9.0"]]


@pytest.mark.parametrize("name", SINGLE)
def test_the_committed_table_is_of_these_kernels(name):
    """Registers are the compiler's affair: only the version that made the table must agree."""
    stated = re.search(r"^Compilers: (.*)$", committed(), re.MULTILINE)[1]
    if stated != cuda_resources.compilers():
        pytest.skip(f"the table was made by {stated}; here is {cuda_resources.compilers()}")
    row = table_rows(committed())[name, "float32", "9.0"]
    (kernel,) = (each for each in kernels() if each.title == f"{name} float32")
    found = resources(assembled(kernel.function, kernel.signature).log)
    assert row["registers"] == str(found.registers)
    assert row["shared"] == str(found.shared_bytes + kernel.dynamic_shared_bytes)
    assert row["threads"] == str(kernel.threads)


def test_a_group_that_cannot_be_imported_is_a_line(monkeypatch):
    def absent():
        raise ImportError("no such module")
        yield

    monkeypatch.setitem(GROUPS, "cuda.absent", absent)
    assert missing()["cuda.absent"] == "no such module"
    assert kernels()
    row = cuda_resources.Row(kernels()[0], HOPPER, Resources(40, 0, 0, 0), {"FFMA": 3})
    page = cuda_resources.markdown([row])
    assert "- cuda.absent was left out: no such module" in page
    (only,) = table_rows(page).values()
    assert only["registers"] == "40" and only["local"] == "0"
    assert "| 75% |" in page


def test_versions_that_are_not_installed_are_named(monkeypatch):
    def version(name):
        if name == "nvidia-nvvm":
            raise importlib.metadata.PackageNotFoundError
        return "1.0"

    monkeypatch.setattr(
        cuda_resources,
        "importlib",
        SimpleNamespace(
            metadata=SimpleNamespace(
                version=version, PackageNotFoundError=importlib.metadata.PackageNotFoundError
            )
        ),
    )
    assert "nvidia-nvvm of the CUDA folder" in cuda_resources.compilers()
