"""What a GPU can be expected to do by what its driver says of it, until it is measured."""

# Multiply-adds a clock of one multiprocessor, dense: float32 without tensor cores, tf32 and
# bfloat16 with them. Sources: CUDA C++ Programming Guide, "Arithmetic Instructions" (float32), and
# the white papers of the architectures (GA100, GA102, AD102, GH100, GB200).
MULTIPLY_ADDS = {
    (7, 0): (64, 64, 64),
    (7, 5): (64, 64, 64),
    (8, 0): (64, 512, 1024),
    (8, 6): (128, 128, 256),
    (8, 9): (128, 256, 512),
    (9, 0): (128, 1024, 2048),
    (10, 0): (128, 2048, 4096),
    (12, 0): (128, 256, 512),
}
# Shares of those that large products and copies reach: on an H100, 51.5 of 66.9 Tflop/s in float32
# (gpu-fryer, issue 4), 798 of 989 in bfloat16 and 3.0 of 3.35 TB/s (published measurements).
PRODUCT_SHARE, COPY_SHARE = 0.75, 0.85


def expected_rates(
    capability: tuple[int, int],
    processors: int,
    clock: float,
    memory_clock: float,
    bus_bits: int,
) -> dict[str, float]:
    """Return fields of `Machine`: operations a second by precision, and bytes a second.

    Parameters
    ----------
    capability : tuple of int
    processors : int
        Multiprocessors.
    clock, memory_clock : float
        In Hz; 0 where the driver does not say.
    bus_bits : int
        Width of the memory's bus.
    """
    # An architecture that is not known is taken for the newest one before it.
    known = max((each for each in MULTIPLY_ADDS if each <= capability), default=(7, 0))
    names = ("gpu_flops", "gpu_tf32_flops", "gpu_bfloat16_flops")
    found = {
        name: 2.0 * count * processors * clock * PRODUCT_SHARE
        for name, count in zip(names, MULTIPLY_ADDS[known], strict=True)
    }
    # Two transfers a clock.
    found["gpu_bytes"] = 2.0 * memory_clock * bus_bits / 8 * COPY_SHARE
    return {name: rate for name, rate in found.items() if rate > 0}
