"""The GPU command on the emulated GPU: ``python -m tests.gpu.emulator.rehearsal --quick``.

Every process of the command has the emulated GPU (`everywhere/sitecustomize.py`), and its pytest
has the plugin. So every step runs, as it would on a machine with a GPU and without a library for
it. Figures mean nothing, and all of it is slow: give it ``--minutes``.
"""
