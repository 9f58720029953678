"""The table of kernels, reference first: a later row only ever makes some problems faster."""

from fastmlp_kernels import cpu, cuda, reference
from fastmlp_kernels.problem import Kernel

KERNELS: tuple[Kernel, ...] = (reference.KERNEL, *cpu.KERNELS, *cuda.KERNELS)
