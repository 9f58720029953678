"""Faults planted in small kernels: the emulator reports each, and nothing where there is none."""

import numpy as np
import pytest

from tests.gpu.emulator.assembly import found, kernel, run
from tests.gpu.emulator.registers import Fault

EXCHANGED = ".shared .align 16 .b8 words[256];"
NUMBERS = np.arange(64, dtype=np.uint32)
# Each thread writes a word of shared memory and reads its neighbour's.
EXCHANGE = """
    mov.u32 %r1, words;
    shl.b32 %r2, %r0, 2;
    add.s32 %r3, %r1, %r2;
    st.shared.u32 [%r3], %r0;
    {barrier}
    xor.b32 %r4, %r2, 4;
    add.s32 %r5, %r1, %r4;
    ld.shared.u32 %r6, [%r5];
    add.s64 %rd1, %rd10, %rd0;
    st.global.u32 [%rd1], %r6;
"""
BARRIER = "bar.sync 0;"


def exchange(barrier, **options):
    ptx = kernel(EXCHANGE.format(barrier=barrier), ["out"], EXCHANGED)
    return run(ptx, 256, block=64, **options)


@pytest.mark.parametrize("random_warps", [False, True])
def test_a_barrier_orders_what_threads_exchange(random_warps):
    device, (out,) = exchange(BARRIER, random_warps=random_warps)
    assert out.tolist() == (NUMBERS ^ 1).tolist()
    assert found(device) == []


@pytest.mark.parametrize("random_warps", [False, True])
def test_a_missing_barrier_is_a_race(random_warps):
    device, _ = exchange("", random_warps=random_warps)
    assert found(device) == ["race within a block: shared memory is written, then read"]


def test_memory_read_before_it_is_overwritten_is_a_race():
    again = EXCHANGE.format(barrier=BARRIER) + "st.shared.u32 [%r3], %r6;"
    device, _ = run(kernel(again, ["out"], EXCHANGED), 256, block=64)
    assert found(device) == ["race within a block: shared memory is read, then written"]


def test_two_threads_that_write_a_word_race():
    body = "shr.u32 %r1, %r0, 1; shl.b32 %r2, %r1, 2; mov.u32 %r3, words; add.s32 %r3, %r3, %r2;"
    device, _ = run(kernel(body + "st.shared.u32 [%r3], %r0;", [], EXCHANGED), block=64)
    assert found(device) == [
        "race within a block: shared memory is written twice in one instruction"
    ]


def test_halves_of_a_word_are_apart():
    body = "shl.b32 %r2, %r0, 1; mov.u32 %r3, words; add.s32 %r3, %r3, %r2; cvt.u16.u32 %h1, %r0;"
    device, _ = run(kernel(body + "st.shared.u16 [%r3], %h1;", [], EXCHANGED), block=64)
    assert found(device) == []


@pytest.mark.parametrize(("space", "load"), [("shared", "[%r1]"), ("global", "[%rd10]")])
def test_a_read_of_what_nobody_has_written_is_found(space, load):
    body = f"mov.u32 %r1, words; ld.{space}.u32 %r2, {load};"
    device, _ = run(kernel(body, ["array"], EXCHANGED), 256)
    assert found(device) == [f"{space} memory is read that nobody has written"]


@pytest.mark.parametrize("poison", [0xFFFFFFFF, 0x4640E400])
def test_unwritten_memory_holds_poison(poison):
    body = """
        mov.u32 %r1, words; ld.shared.u32 %r2, [%r1]; ld.global.u32 %r3, [%rd10];
        st.global.u32 [%rd11], %r2; st.global.u32 [%rd11 + 4], %r3;
    """
    ptx = kernel(body, ["array", "out"], EXCHANGED)
    _, (_, out) = run(ptx, 4, 8, block=1, poison=poison)
    assert out.tolist() == [poison, poison]


def test_threads_of_a_block_that_meet_at_different_barriers_are_found():
    body = """
        setp.ge.u32 %p1, %r0, 32;
        @%p1 bra $other;
        bar.sync 0;
        bra $end;
    $other:
        bar.sync 0;
    $end:
    """
    device, _ = run(kernel(body), block=64)
    assert found(device) == ["threads of a block meet at different barriers"]


def test_threads_that_have_ended_before_a_barrier_are_found():
    body = """
        setp.ge.u32 %p1, %r0, 33;
        @%p1 bra $end;
        bar.sync 0;
    $end:
    """
    device, _ = run(kernel(body), block=64)
    assert found(device) == ["threads of a block have ended where others meet"]


def test_a_warp_wide_instruction_that_a_lane_never_reaches_is_a_fault():
    body = """
        setp.eq.u32 %p1, %r0, 7;
        @%p1 bra $end;
        mov.u32 %r1, words; shl.b32 %r2, %r0, 4; and.b32 %r2, %r2, 127; add.s32 %r1, %r1, %r2;
        ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r2, %r3, %r4, %r5}, [%r1];
    $end:
    """
    with pytest.raises(Fault, match="not all lanes of a warp reach .*ldmatrix"):
        run(kernel(body, [], EXCHANGED))


def test_lanes_that_come_to_a_warp_wide_instruction_apart_are_found():
    body = """
        mov.u32 %r1, words; st.shared.u32 [%r1], %r0;
        setp.eq.u32 %p1, %r0, 7;
        @%p1 bra $late;
    $again:
        ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r2, %r3, %r4, %r5}, [%r1];
        bra $end;
    $late:
        mov.u32 %r6, 1;
        bra $again;
    $end:
    """
    device, _ = run(kernel(body, [], EXCHANGED))
    assert "lanes of a warp are apart at an instruction of all" in found(device)


BEYOND = {
    "shared, below": ("sub.s32 %r1, %r1, 4; st.shared.u32 [%r1], %r0;", "shared memory of 256"),
    "shared, beyond": ("st.shared.u32 [%r1 + 256], %r0;", "shared memory of 256"),
    "shared, half of it": ("st.shared.v2.u32 [%r1 + 252], {%r0, %r0};", "not aligned to 8"),
    "global, below": ("st.global.u32 [%rd10 + -4], %r0;", "out of bounds of an array"),
    "global, beyond": ("ld.global.u32 %r2, [%rd10 + 256];", "out of bounds of an array"),
    "global, nobody's": ("st.global.u32 [%rd0], %r0;", "global memory is left"),
    "global, aligned": ("ld.global.u32 %r2, [%rd10 + 2];", "not aligned to 4"),
    "generic": (
        "cvta.shared.u64 %rd2, %rd1; st.u32 [%rd2 + 256], %r0;",
        "shared memory of 256",
    ),
}


@pytest.mark.parametrize("kind", BEYOND)
def test_an_access_out_of_bounds_is_a_fault(kind):
    access, message = BEYOND[kind]
    beginning = "mov.u32 %r1, words; cvt.u64.u32 %rd1, %r1;"
    with pytest.raises(Fault, match=message):
        run(kernel(beginning + access, ["array"], EXCHANGED), NUMBERS, block=1)


def test_a_freed_array_is_out_of_bounds():
    ptx = kernel("st.global.u32 [%rd10], %r0;", ["array"])
    device, _ = run(ptx, NUMBERS, block=1)
    place = device.memory.allocate(64)
    device.launch(ptx, (1,), (1,), [place])
    device.memory.free(place, 64)
    with pytest.raises(Fault, match="out of bounds of an array"):
        device.launch(ptx, (1,), (1,), [place])


# Of each block the first thread writes a word; the block that comes last to a counter sums them.
LAST_BLOCK = """
    mov.u32 %r1, %ctaid.x;
    mul.wide.u32 %rd1, %r1, 4;
    add.s64 %rd2, %rd10, %rd1;
    setp.ne.u32 %p1, %r0, 0;
    @!%p1 st.global.u32 [%rd2], %r1;
    {fence}
    bar.sync 0;
    @%p1 bra $wait;
    {arrive}
    st.shared.u32 [words], %r3;
$wait:
    bar.sync 0;
    ld.shared.u32 %r4, [words];
    setp.ne.u32 %p2, %r4, 3;
    @%p2 bra $end;
    shl.b32 %r5, %r0, 2;
    cvt.u64.u32 %rd3, %r5;
    add.s64 %rd4, %rd10, %rd3;
    ld.global.u32 %r6, [%rd4];
    add.s64 %rd5, %rd12, %rd3;
    st.global.u32 [%rd5], %r6;
$end:
"""
ARRIVE = "atom.global.add.u32 %r3, [%rd11], 1;"
BETWEEN = "race between blocks: global memory is written, then read"


def last_block(fence, arrive, **options):
    ptx = kernel(
        LAST_BLOCK.format(fence=fence, arrive=arrive), ["words_of", "counter", "out"], EXCHANGED
    )
    counter = np.zeros(1, np.uint32)
    return run(ptx, 16, counter, 16, grid=4, block=4, **options)


@pytest.mark.parametrize("options", [{}, {"random_warps": True}, {"together": 4}])
def test_a_fence_and_an_atomic_order_blocks(options):
    device, (_, counter, out) = last_block("membar.gl;", ARRIVE, **options)
    assert out.tolist() == [0, 1, 2, 3] and counter == 4
    assert found(device) == []


@pytest.mark.parametrize(
    ("fence", "arrive"),
    [
        pytest.param("", ARRIVE, id="no fence"),
        pytest.param("membar.gl;", "mov.u32 %r3, %r1;", id="no atomic"),
    ],
)
@pytest.mark.parametrize("together", [4, 2048])
def test_without_a_fence_or_an_atomic_blocks_race(fence, arrive, together):
    device, _ = last_block(fence, arrive, together=together)
    assert found(device) == [BETWEEN]


def test_a_fence_before_the_write_orders_nothing():
    body = LAST_BLOCK.replace("    @!%p1 st", "    membar.gl;\n    @!%p1 st")
    ptx = kernel(body.format(fence="", arrive=ARRIVE), ["a", "counter", "out"], EXCHANGED)
    device, _ = run(ptx, 16, np.zeros(1, np.uint32), 16, grid=4, block=4)
    assert found(device) == [BETWEEN]


@pytest.mark.parametrize(("together", "when"), [(32, ""), (64, " in one instruction")])
def test_blocks_that_write_the_same_word_race(together, when):
    ptx = kernel("add.s64 %rd1, %rd10, %rd0; st.global.u32 [%rd1], %r0;", ["array"])
    device, _ = run(ptx, 128, grid=2, together=together)
    assert found(device) == ["race between blocks: global memory is written twice" + when]
    # Two launches are ordered.
    device, _ = run(ptx, 128, grid=1)
    place = device.memory.put(NUMBERS)
    for _ in range(2):
        device.launch(ptx, (1,), (32,), [place])
    assert found(device) == []


@pytest.mark.parametrize("together", [32, 128])
@pytest.mark.parametrize("readers", ["every block", "another block"])
def test_a_word_that_other_blocks_have_read_is_not_to_be_written(together, readers):
    body = """
        mov.u32 %r1, %ctaid.x;
        setp.ne.u32 %p1, %r1, 3;
        SKIP
        ld.global.u32 %r2, [%rd10];
    $late:
        @%p1 bra $end;
        bar.sync 0;
        setp.ne.u32 %p2, %r0, 0;
        @!%p2 st.global.u32 [%rd10], %r0;
    $end:
    """.replace("SKIP", "" if readers == "every block" else "@!%p1 bra $late;")
    device, _ = run(kernel(body, ["word"]), NUMBERS[:1], grid=4, together=together)
    assert found(device) == ["race between blocks: global memory is read, then written"]


@pytest.mark.parametrize(("waits", "what"), [("cp.async.wait_all;", []), ("", None)])
def test_a_copy_that_nobody_waits_for_has_not_happened(waits, what):
    body = f"""
        mov.u32 %r1, words; shl.b32 %r2, %r0, 4; add.s32 %r3, %r1, %r2;
        mul.wide.u32 %rd1, %r0, 16; add.s64 %rd2, %rd10, %rd1;
        cp.async.cg.shared.global [%r3], [%rd2], 16;
        cp.async.commit_group;
        {waits}
        ld.shared.u32 %r4, [%r3 + 4];
        add.s64 %rd3, %rd11, %rd0;
        st.global.u32 [%rd3], %r4;
    """
    _, (_, out) = run(kernel(body, ["array", "out"], EXCHANGED), NUMBERS, 64, block=16)
    assert (out.tolist() == NUMBERS[1::4].tolist()) == (what == [])
    assert what == [] or (out == 0xFFFFFFFF).all()


@pytest.mark.parametrize("block", [0, 1025])
def test_a_block_of_too_many_or_no_threads_is_refused(block):
    with pytest.raises(Fault, match="CUDA_ERROR_INVALID_VALUE"):
        run(kernel(""), block=block)


def test_more_shared_memory_than_there_is_is_refused():
    with pytest.raises(Fault, match="CUDA_ERROR_INVALID_VALUE"):
        run(kernel(""), dynamic_bytes=227 * 1024 + 1)


def test_what_is_not_known_is_a_fault():
    with pytest.raises(Fault, match="does not know: sin.approx.f32"):
        run(kernel("sin.approx.f32 %f1, %f2;"))
