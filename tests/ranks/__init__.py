"""Fits on several ranks: threads that play them, and processes that MPI or PyTorch connects."""
