"""Runs the PTX of CUDA kernels in NumPy, without a GPU, and watches what they do.

- `reading`: PTX as instructions, in basic blocks
- `translation`, `arithmetic_instructions`, `memory_instructions`: a basic block as a Python
  function of arrays, an element for each thread
- `integers`, `floats`, `tensor_cores`: arithmetic that NumPy lacks
- `device`, `global_memory`, `findings`: memory, launches, and what was found
- `blocks`, `memory`, `ordering`, `traffic`: the blocks that run side by side: their registers,
  their accesses, who may not touch what at the same time, how many transfers it takes
- `scheduling`: which threads go on, and who waits for whom
- `arrays`, `driver`, `library`, `plugin`: `numba.cuda` and cuBLASLt on such a device, for pytest

It raises `Fault` where a GPU would stop: at an access out of bounds or misaligned, at an
instruction of a whole warp that not all of its lanes reach. It notes in `findings` what a GPU would
pass over: races, memory that is read before anybody has written it, barriers that not all threads
of a block reach, lanes of a warp that reach an instruction of all at different times.

It does not model time, caches, or memory that is weaker than the order of a program, except that a
block sees another block's writes only behind a fence and an atomic. What lanes of a warp exchange
behind `bar.warp.sync` counts as a race. Tensor cores multiply exactly, sum in float64 and round
once. `ex2.approx`, `lg2.approx` and `rcp.approx` are rounded correctly.
"""
