"""Everything of the GPU: cases for the simulator or a GPU, kernels compiled without one."""
