"""The benchmarks and their reports, `dev.py gpu` included."""
