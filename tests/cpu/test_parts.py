"""Parts of kernels: what is compiled of them, and that a kernel works that calls them twice."""

import numba
from numba.core.codegen import JITCodeLibrary

from fastmlp_kernels.compile import part
from fastmlp_kernels.part_compiler import PartLibrary


@part
def doubled(x):
    return x + x


@part
def by_one_way(x):
    return doubled(x) + 1


@part
def by_another_way(x):
    return doubled(x) * doubled(x + 2)


def test_only_what_calls_parts_is_optimised(monkeypatch):
    optimised = []

    def spy(library):
        optimised.append(library)
        return optimise(library)

    optimise = JITCodeLibrary._optimize_final_module
    monkeypatch.setattr(JITCodeLibrary, "_optimize_final_module", spy)

    # One part is reached in two ways: it is linked once.
    @numba.njit
    def both(x):
        return by_one_way(x) + by_another_way(x)

    assert both(5) == 11 + 10 * 14
    # Numba compiles its own runtime once in a process.
    names = [library.name.rpartition(".")[2] for library in optimised if library.name != "nrt"]
    assert names == ["both"]
    libraries = [each.library for each in doubled.overloads.values()]
    assert len(libraries) == 1 and isinstance(libraries[0], PartLibrary)
