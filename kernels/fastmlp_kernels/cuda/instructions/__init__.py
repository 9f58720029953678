"""Every GPU instruction beyond those of Numba, and what the simulator does in its place."""
