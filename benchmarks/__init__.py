"""Measurements of fastmlp: the demo, the comparison with its peers, why ReLU.

Run them as modules from the root of the repository, or through ``python3 dev.py``.
"""
