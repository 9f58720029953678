"""The kernels of fastmlp: one algebra, compiled for the CPU and for NVIDIA GPUs."""
