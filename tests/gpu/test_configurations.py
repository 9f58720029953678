"""Launches of few blocks are those of Numba, without its advice to the whole process."""

import threading
import warnings

import pytest

from fastmlp_kernels.compile import simulated
from fastmlp_kernels.cuda.device.configurations import configured

pytestmark = pytest.mark.cuda_compile


@pytest.fixture
def kernel():
    pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
    if simulated():
        pytest.skip("the simulator gives no advice")
    from numba import cuda

    return cuda.jit(lambda array: None)


@pytest.mark.parametrize("grid", [1, 3, 127, 128, 70_000, (5,), (3, 4), (2, 3, 4)])
@pytest.mark.parametrize(("block", "shared"), [(32, 0), ((8, 4), 1000)])
def test_it_is_the_configuration_that_numba_makes(kernel, grid, block, shared):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = vars(kernel.configure(grid, block, 0, shared))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = configured(kernel, grid, block, 0, shared)
    assert configured(kernel, grid, block, 0, shared) is found
    assert vars(found).keys() == wanted.keys()
    for name in wanted.keys() - {"stream"}:
        assert getattr(found, name) == wanted[name], name
    assert int(found.stream.handle) == int(wanted["stream"].handle)
    assert found.pre_launch_callbacks is not wanted["pre_launch_callbacks"]


def test_filters_of_other_threads_stay(kernel):
    """An advice that another thread asks for comes, whatever is launched meanwhile."""
    stopped, before = threading.Event(), list(warnings.filters)

    def launch():
        grid = 0
        while not stopped.is_set():
            grid = grid % 100 + 1
            configured(kernel, grid, 32)

    thread = threading.Thread(target=launch)
    thread.start()
    try:
        for _ in range(2000):
            assert warnings.filters == before
    finally:
        stopped.set()
        thread.join()
