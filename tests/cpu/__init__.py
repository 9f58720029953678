"""The CPU's kernels, their teams of threads, and the compiler with its caches."""
