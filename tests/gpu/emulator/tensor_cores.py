"""Products of fragments, as PTX's tables of `mma.m16n8k16` and `mma.m16n8k8` place elements."""

import numpy as np

from tests.gpu.emulator.floats import from_bfloat16
from tests.gpu.emulator.registers import F32, F64, LANE, U16, U32, WARP, Fault

# PTX names them so: groups of four lanes, and a lane's place in its group.
GROUP, PLACE = LANE >> 2, LANE & 3
SUM_ROWS = (GROUP, GROUP, GROUP + 8, GROUP + 8)
SUM_COLUMNS = (2 * PLACE, 2 * PLACE + 1, 2 * PLACE, 2 * PLACE + 1)


def multiply_accumulate(name, a, b, c):
    """Return the four registers of A B + C; a, b and c are lists of registers of whole warps."""
    warps = len(a[0]) // WARP
    a, b, c = [[each.reshape(warps, WARP) for each in registers] for registers in (a, b, c)]
    total = np.zeros((warps, 16, 8), F64)
    for rows, columns, each in zip(SUM_ROWS, SUM_COLUMNS, c, strict=True):
        total[:, rows, columns] = each
    if ".m16n8k16." in name and name.endswith("f32.bf16.bf16.f32"):
        left, right = _bfloat16_factors(a, b)
    elif ".m16n8k8." in name and name.endswith("f32.tf32.tf32.f32"):
        left, right = _tf32_factors(a, b)
    else:
        raise Fault(f"the emulator does not know: {name}")
    total = (left @ right + total).astype(F32)
    pairs = zip(SUM_ROWS, SUM_COLUMNS, strict=True)
    return [np.ascontiguousarray(total[:, rows, columns]).reshape(-1) for rows, columns in pairs]


def _bfloat16_factors(a, b):
    left, right = np.zeros((len(a[0]), 16, 16), F64), np.zeros((len(a[0]), 16, 8), F64)
    for number, words in enumerate(a):
        row, column = GROUP + 8 * (number % 2), 2 * PLACE + 8 * (number // 2)
        left[:, row, column], left[:, row, column + 1] = _halves(words)
    for number, words in enumerate(b):
        row = 2 * PLACE + 8 * number
        right[:, row, GROUP], right[:, row + 1, GROUP] = _halves(words)
    return left, right


def _tf32_factors(a, b):
    left, right = np.zeros((len(a[0]), 16, 8), F64), np.zeros((len(a[0]), 8, 8), F64)
    for number, words in enumerate(a):
        left[:, GROUP + 8 * (number % 2), PLACE + 4 * (number // 2)] = _cut_to_tf32(words)
    for number, words in enumerate(b):
        right[:, PLACE + 4 * number, GROUP] = _cut_to_tf32(words)
    return left, right


def _halves(words):
    """Return the numbers in the lower and in the upper halves of words."""
    return from_bfloat16((words & U32(0xFFFF)).astype(U16)), from_bfloat16(words >> U32(16))


def _cut_to_tf32(words):
    return (words & U32(0xFFFFE000)).view(F32)


def matrix_fragments(rows, transposed):
    """Return the four registers of `ldmatrix` from four matrices of 8 by 8 halves of each warp."""
    fragments = []
    for number in range(4):
        matrices = rows[:, number]
        if transposed:
            matrices = matrices.transpose(0, 2, 1)
        low, high = matrices[:, GROUP, 2 * PLACE], matrices[:, GROUP, 2 * PLACE + 1]
        fragments.append((low.astype(U32) | (high.astype(U32) << U32(16))).reshape(-1))
    return fragments
