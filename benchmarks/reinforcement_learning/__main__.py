"""``python -m benchmarks.reinforcement_learning``: see the package."""

import sys

# A new process imports what it is given by its module, but never a `__main__`.
from benchmarks.reinforcement_learning.measuring import main

if __name__ == "__main__":
    sys.exit(main())
