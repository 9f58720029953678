"""Shared settings: one hypothesis profile, what saves time, and a note on compiling.

Nothing here compiles a kernel: that does the first test that calls it (some seconds on a cold disk
cache, once per machine), and later ones read it from the disk cache.
"""

import compileall
import gc
import os
import signal
import sys

import hypothesis
import pytest

from tests import ROOT

# Set in a process that runs a share of the tests. Its children run benchmarks, and pytest-benchmark
# measures nothing where it is set.
os.environ.pop("PYTEST_XDIST_WORKER", None)

# The same examples on every machine: a failure in CI is a failure on the desk. A compile may
# happen inside any example, so there is no deadline.
hypothesis.settings.register_profile(
    "fastmlp", derandomize=True, deadline=None, max_examples=60, database=None
)
hypothesis.settings.load_profile("fastmlp")

# A test makes many objects that stay, above all where it compiles. To search them all for garbage
# after every 700 took a tenth of the time.
gc.set_threshold(20_000, 20, 20)


def pytest_addoption(parser):
    """Add the option of a run that leaves nothing out."""
    parser.addoption("--exhaustive", action="store_true", help="run the tests marked so too")


def pytest_collection_modifyitems(config, items):
    """Leave out what is marked exhaustive, unless it is asked for."""
    if not config.getoption("exhaustive"):
        left_out = pytest.mark.skip(reason="left out for the time it takes: --exhaustive runs it")
        for item in items:
            if item.get_closest_marker("exhaustive"):
                item.add_marker(left_out)


def pytest_configure(config):
    """Have the bytecode of all modules ready.

    Tests start hundreds of processes, which do not write any, and may all have read the sources
    anew: half of the time that each needs to import the library.
    """
    if not hasattr(config, "workerinput"):
        for folder in ("fastmlp", "kernels", "benchmarks", "tests"):
            compileall.compile_dir(ROOT / folder, quiet=2)


def pytest_collection_finish():
    """Keep what was imported and collected out of later searches for garbage."""
    gc.freeze()


@pytest.fixture
def child_environment():
    """Return an environment in which a child process finds this checkout."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    return {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture
def child_python():
    """Return the interpreter that runs the tests."""
    return sys.executable


@pytest.fixture
def interrupts_heard():
    """Have Ctrl-C interrupt this process and its children, also where the run ignores it.

    A shell starts a background job with SIGINT ignored, Python then installs no handler, and
    children inherit that.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def one_blas_thread():
    """Keep BLAS from waking threads for products of a few rows: with others at work they wait."""
    threadpoolctl = pytest.importorskip("threadpoolctl")
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        yield


@pytest.fixture
def few_rows_too(monkeypatch):
    """Have the kernels predict also the few rows that are left to scikit-learn."""
    from fastmlp.sklearn import prediction

    monkeypatch.setattr(prediction, "FEW_ROWS", 0)
