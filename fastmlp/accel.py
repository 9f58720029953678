"""Run a program with scikit-learn's multilayer perceptrons accelerated, without editing it.

``python -m fastmlp.accel script.py arguments...`` and ``python -m fastmlp.accel -m module
arguments...`` do what Python would do without ``fastmlp.accel``. With ``-v`` in front, standard
error says what runs on scikit-learn's own code, and why.
"""

import sys

# `python -m` puts the current folder first on the path. A program that is started from a file does
# not find modules there. So the folder is taken off, or its modules could replace those that are
# imported below. With the flag `safe_path` nothing was put there.
if __name__ == "__main__" and not sys.flags.safe_path:
    del sys.path[0]

import logging
import os
import pkgutil
import runpy
from collections.abc import Sequence
from types import TracebackType

from fastmlp.errors import MissingPackageError

USAGE = "usage: python -m fastmlp.accel [-v] (script.py | -m module) [arguments ...]"
USAGE_STATUS = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; return the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    verbose = bool(words) and words[0] in ("-v", "--verbose")
    words = words[1:] if verbose else words
    if words and words[0] in ("-h", "--help"):
        say(f"{USAGE}\n\n{__doc__}")
        return 0
    by_module = bool(words) and words[0] == "-m"
    words = words[1:] if by_module else words
    if not words or (words[0].startswith("-") and not by_module):
        say(USAGE)
        return USAGE_STATUS
    if not by_module and not os.path.exists(words[0]):
        say(f"fastmlp.accel: can't open {words[0]!r}: no such file")
        return USAGE_STATUS
    try:
        from fastmlp.sklearn import patch
    except MissingPackageError as error:
        say(str(error))
        return 1
    if verbose:
        logger = logging.getLogger("fastmlp")
        logger.addHandler(logging.StreamHandler())
        logger.setLevel(logging.INFO)
    patch()
    return run(words, by_module)


def run(words: list[str], by_module: bool) -> int:
    """Run a script or a module as ``__main__``; ``words[0]`` names it."""
    sys.argv[:] = words
    # What Python itself would put in front: `runpy` does it for a folder or an archive.
    front = os.getcwd() if by_module else os.path.dirname(os.path.realpath(words[0]))
    is_script = by_module or pkgutil.get_importer(words[0]) is None
    if is_script and not sys.flags.safe_path:
        sys.path.insert(0, front)
    try:
        if by_module:
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(words[0], run_name="__main__")
    except Exception as error:
        # A program's traceback begins in the program.
        trace = inside(error.__traceback__)
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        return 1
    return 0


def inside(trace: TracebackType | None) -> TracebackType | None:
    """Return a traceback without the frames that only start the program."""
    own = (__file__, runpy.__file__, "<frozen runpy>")
    first = trace
    while first is not None and first.tb_frame.f_code.co_filename in own:
        first = first.tb_next
    return first or trace


def say(line: str) -> None:
    """Print for the person at the terminal; standard output belongs to the program."""
    print(line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
