"""Everything of the GPU: cases that run in three places, and tests that need none of them.

The files `*_cases.py` are run by `test_case_files`, each in a process of its own:

- in Numba's simulator: kernels as Python, a Python thread for each of theirs;
- on the emulated GPU of `emulator`: the PTX that a GPU is given;
- on a GPU, where there is one.

What differs between them:

- Sizes. A block of the simulator has a few threads (`TILES`, `SIZES`, `small_blocks`); elsewhere
  those of a GPU are taken as well.
- Graphs. The simulator has none: a stand-in replays launches, and its counts are compared. The
  emulated driver captures, as the real one does.
- cuBLASLt. In the simulator and on the emulated GPU a stand-in checks and computes each call.
- In the simulator alone: what its emulation of tensor cores refuses, and which block writes what.
  On the emulated GPU the second would be a race, and the first is tested beside the emulator.
- On a GPU alone: arrays of PyTorch.
- The simulator passes over races, and over memory that nobody has written. The emulated GPU reports
  both. Neither knows ptxas, clocks, or streams that run side by side.
"""
