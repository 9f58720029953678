"""The types of PTX as NumPy types, and the error of everything that cannot run."""

import numpy as np

U8, U16, U32, U64 = np.uint8, np.uint16, np.uint32, np.uint64
S8, S16, S32, S64 = np.int8, np.int16, np.int32, np.int64
F32, F64 = np.float32, np.float64
WARP = 32
LANE = np.arange(WARP)

# What generated code calls the types.
NUMPY_TYPES = {
    **{"U8": U8, "U16": U16, "U32": U32, "U64": U64},
    **{"S8": S8, "S16": S16, "S32": S32, "S64": S64},
    **{"F32": F32, "F64": F64, "bool": bool},
}
# The type as which an instruction of a PTX type reads and writes.
OPERATED = {
    **{"u8": "U8", "s8": "S8", "b8": "U8", "u16": "U16", "s16": "S16", "b16": "U16"},
    **{"u32": "U32", "s32": "S32", "b32": "U32", "u64": "U64", "s64": "S64", "b64": "U64"},
    **{"f32": "F32", "f64": "F64", "pred": "bool"},
}
# The type as which a register is kept: one of integers has no sign, and 16 bits at least.
KEPT = {
    **{"pred": "bool", "b8": "U16", "b16": "U16", "b32": "U32", "b64": "U64"},
    **{"f32": "F32", "f64": "F64"},
}
BITS = {kind: int(kind[1:]) for kind in OPERATED if kind != "pred"}
KEPT_BITS = {"bool": 1, "U16": 16, "U32": 32, "F32": 32, "U64": 64, "F64": 64}


class Fault(RuntimeError):
    """What a GPU would stop at, or what the emulator does not know."""
