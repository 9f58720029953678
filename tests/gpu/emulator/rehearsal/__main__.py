"""Run the GPU command, with its options."""

import os
import sys
from pathlib import Path

EVERYWHERE = Path(__file__).parent / "everywhere"


def environment():
    """Return what gives every Python of this environment an emulated GPU."""
    paths = [str(EVERYWHERE), os.environ.get("PYTHONPATH", "")]
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTEST_ADDOPTS": "-p tests.gpu.emulator.plugin",
        "NUMBA_ENABLE_CUDASIM": "0",
    }


if __name__ == "__main__":
    os.environ.update(environment())
    from benchmarks.gpu.__main__ import main

    sys.exit(main())
