"""Products of fragments, laid out as `fragments` of the kernels says: they give A B + C.

A register in the place of another gives something else, so a kernel that mixes them up is seen.
"""

import numpy as np
import pytest

from fastmlp_kernels.cuda.instructions import fragments
from tests.gpu.emulator.assembly import kernel, run

LANES = range(fragments.LANES)
INSTRUCTIONS = {
    "bfloat16": "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
    "tf32": "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
}
DEPTH = {"bfloat16": 16, "tf32": 8}


def matrices(precision, seed=0):
    """Return A, B and C of small integers, which every format holds exactly."""
    generator = np.random.default_rng(seed)
    shapes = [(16, DEPTH[precision]), (DEPTH[precision], 8), (16, 8)]
    return [generator.integers(-8, 9, shape).astype(np.float32) for shape in shapes]


def word(precision, values):
    """Return the register of a pair of bfloat16, or of one tf32."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    if precision == "tf32":
        return bits[0]
    return (bits[0] >> np.uint32(16)) | (bits[1] & np.uint32(0xFFFF0000))


def registers(precision, A, B, C):
    """Return the registers of all lanes: four of A, two of B, four of C, a row a lane."""
    pair = 2 if precision == "bfloat16" else 1
    column = getattr(fragments, f"left_column_{precision}")
    row = getattr(fragments, f"right_row_{precision}")
    held = np.zeros((fragments.LANES, 10), np.uint32)
    for lane in LANES:
        for k in range(4):
            left, start = fragments.left_row(lane, k), column(lane, k)
            held[lane, k] = word(precision, A[left, start : start + pair])
            value = C[fragments.sum_row(lane, k), fragments.sum_column(lane, k)]
            held[lane, 6 + k] = value.view(np.uint32)
        for k in range(2):
            start, right = row(lane, k), fragments.right_column(lane, k)
            held[lane, 4 + k] = word(precision, B[start : start + pair, right])
    return held


def multiplied(precision, held):
    """Return the result of an instruction as a matrix."""
    loads = "".join(f"ld.global.u32 %r{10 + k}, [%rd2 + {4 * k}];" for k in range(6))
    loads += "".join(f"ld.global.f32 %f{k}, [%rd2 + {24 + 4 * k}];" for k in range(4))
    stores = "".join(f"st.global.f32 [%rd4 + {4 * k}], %f{4 + k};" for k in range(4))
    body = f"""
        mul.wide.u32 %rd1, %r0, 40; add.s64 %rd2, %rd10, %rd1;
        mul.wide.u32 %rd3, %r0, 16; add.s64 %rd4, %rd11, %rd3;
        {loads}
        {INSTRUCTIONS[precision]} {{%f4, %f5, %f6, %f7}}, {{%r10, %r11, %r12, %r13}},
            {{%r14, %r15}}, {{%f0, %f1, %f2, %f3}};
        {stores}
    """
    out = np.zeros((fragments.LANES, 4), np.float32)
    _, (_, out) = run(kernel(body, ["held", "out"]), held, out)
    D = np.full((16, 8), np.nan, np.float32)
    for lane in LANES:
        for k in range(4):
            D[fragments.sum_row(lane, k), fragments.sum_column(lane, k)] = out[lane, k]
    return D


@pytest.mark.parametrize("precision", INSTRUCTIONS)
def test_a_product_of_fragments(precision):
    A, B, C = matrices(precision)
    assert (multiplied(precision, registers(precision, A, B, C)) == A @ B + C).all()


@pytest.mark.parametrize("precision", INSTRUCTIONS)
@pytest.mark.parametrize("pair", [(0, 1), (0, 2), (1, 2), (2, 3), (4, 5), (6, 8), (7, 9), (6, 7)])
def test_exchanged_registers_give_something_else(precision, pair):
    A, B, C = matrices(precision)
    held = registers(precision, A, B, C)
    held[:, list(pair)] = held[:, list(reversed(pair))]
    assert (multiplied(precision, held) != A @ B + C).any()


def test_exchanged_halves_of_a_pair_give_something_else():
    A, B, C = matrices("bfloat16")
    held = registers("bfloat16", A, B, C)
    held[:, :4] = (held[:, :4] << np.uint32(16)) | (held[:, :4] >> np.uint32(16))
    assert (multiplied("bfloat16", held) != A @ B + C).any()


def test_tf32_drops_the_low_bits_of_its_factors():
    A, B, C = matrices("tf32")
    held = registers("tf32", A, B, C)
    held[:, :6] |= np.uint32(0x1FFF)
    assert (multiplied("tf32", held) == A @ B + C).all()
    held[:, :6] |= np.uint32(0x3FFF)
    assert (multiplied("tf32", held) != A @ B + C).any()


@pytest.mark.parametrize("transposed", [False, True])
def test_matrix_loads(transposed):
    """Each lane states where a row of 16 bytes lies: here rows in the reverse order."""
    halves = np.arange(256, dtype=np.uint16)
    body = f"""
        mov.u32 %r1, words; shl.b32 %r2, %r0, 4; add.s32 %r1, %r1, %r2;
        mul.wide.u32 %rd1, %r0, 16; add.s64 %rd2, %rd10, %rd1;
        ld.global.v4.u32 {{%r3, %r4, %r5, %r6}}, [%rd2];
        st.shared.v4.u32 [%r1], {{%r3, %r4, %r5, %r6}};
        bar.sync 0;
        mov.u32 %r7, words; sub.s32 %r8, 31, %r0; shl.b32 %r8, %r8, 4; add.s32 %r7, %r7, %r8;
        ldmatrix.sync.aligned.m8n8.x4{".trans" if transposed else ""}.shared.b16
            {{%r3, %r4, %r5, %r6}}, [%r7];
        add.s64 %rd3, %rd11, %rd1;
        st.global.v4.u32 [%rd3], {{%r3, %r4, %r5, %r6}};
    """
    ptx = kernel(body, ["halves", "out"], ".shared .align 16 .b8 words[512];")
    _, (_, out) = run(ptx, halves, np.zeros((32, 8), np.uint16))
    held = halves.reshape(32, 8)[::-1].reshape(4, 8, 8)
    found = out.reshape(32, 4, 2)
    for lane in LANES:
        row, column = fragments.matrix_row(lane), fragments.matrix_column(lane)
        wanted = held[:, row, column : column + 2]
        if transposed:
            wanted = held[:, column : column + 2, row]
        assert (found[lane] == wanted).all()
