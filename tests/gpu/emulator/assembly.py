"""Small kernels as PTX, for tests of the emulator."""

import numpy as np

from tests.gpu.emulator.device import Device

REGISTERS = """
    .reg .pred %p<8>; .reg .b16 %h<16>; .reg .b32 %r<32>; .reg .b64 %rd<32>;
    .reg .f32 %f<32>; .reg .f64 %fd<16>;
"""
# Of a thread: its number in %r0, its place in an array of 4-byte elements in %rd0.
BEGINNING = """
    mov.u32 %r0, %tid.x;
    mul.wide.u32 %rd0, %r0, 4;
"""


def kernel(body, parameters=(), shared=""):
    """Return PTX of an entry with addresses as parameters, which registers %rd10 and on hold."""
    declared = ", ".join(f".param .u64 {name}" for name in parameters)
    loads = "".join(f"ld.param.u64 %rd{10 + k}, [{name}];\n" for k, name in enumerate(parameters))
    return (
        f".version 8.0\n.target sm_90\n.address_size 64\n{shared}\n"
        f".visible .entry planted({declared})\n{{\n{REGISTERS}{loads}{BEGINNING}{body}\nret;\n}}\n"
    )


def run(ptx, *arrays, grid=1, block=32, dynamic_bytes=0, **options):
    """Launch on a device of its own; return the device and the arrays afterwards.

    An array of the host is copied; a number is so many bytes that nobody has written.
    """
    device = Device(size=1 << 20, **options)
    held = [
        device.memory.allocate(each) if isinstance(each, int) else device.memory.put(each)
        for each in arrays
    ]
    device.launch(ptx, (grid,), (block,), held, dynamic_bytes)
    forms = [
        (each // 4, np.uint32) if isinstance(each, int) else (each.shape, each.dtype)
        for each in arrays
    ]
    places = zip(held, forms, strict=True)
    after = [device.memory.read(place, *form) for place, form in places]
    return device, after


def found(device):
    """Return what was found, without the lines."""
    return sorted({each.what for each in device.findings.take()})
