"""Everything that needs a GPU, in one guarded command: ``python3 dev.py --here gpu``.

Limits, measured ceilings, instructions against NumPy, all CUDA tests, the comparison with PyTorch
and JAX, CPU beside GPU: see `steps` for the order, and docs/gpu.md for users.
"""
