"""What is compiled of parts of kernels, that a kernel may call them twice, and what is a vector."""

import re

import numba
import pytest
from numba.core.codegen import JITCodeLibrary

from fastmlp_kernels import compile as compiling
from fastmlp_kernels.algebra import OPTIMIZERS
from fastmlp_kernels.compile import part
from fastmlp_kernels.compilers import PartLibrary
from fastmlp_kernels.cpu import activation, loss
from fastmlp_kernels.cpu import update as updates
from fastmlp_kernels.cpu.simd import instruction_set


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


@pytest.fixture
def made(monkeypatch):
    """Leaves that are compiled anew, in the order in which they are asked for."""
    found = []

    def uncached(*arguments, **options):
        found.append(compiling.leaf(*arguments, **options))
        return found[-1]

    monkeypatch.setattr(compiling.StampedCache, "load_overload", lambda *_: None)
    for module in (updates, activation, loss):
        monkeypatch.setattr(module, "leaf", uncached)
    return found


def test_a_leaf_is_the_c_function_itself(made):
    """A function within it would get all arguments by way of the stack, a second time."""
    updates.update.__wrapped__("adam", "float32", 16)
    activation.activation_forward.__wrapped__("tanh", "float32")
    loss.loss_and_gradient.__wrapped__("softmax_cross_entropy", "float32")
    assert len(made) == 3
    for each in made:
        assert not re.search(r"call .*@_ZN", each.inspect_llvm())


@pytest.mark.parametrize("rule", ["relu", "leaky_relu", "elu", "tanh", "exp", "softmax"])
def test_what_is_computed_in_place_is_stored_whole(rule, made):
    """Also where a number may stay as it is: see `intrinsics.anew`."""
    if rule == "softmax":
        loss.loss_and_gradient.__wrapped__("softmax_cross_entropy", "float32")
    else:
        activation.activation_forward.__wrapped__(rule, "float32")
    assert "maskmov" not in made[0]._library.get_asm_str()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_updates_are_vectors(name, dtype, made):
    """A row of a panel has a short known length: a loop of such a length is easily unrolled."""
    updates.update.__wrapped__(name, dtype, instruction_set().panel(dtype))
    code = made[0]._library.get_llvm_str()
    kind = "float" if dtype == "float32" else "double"
    # What is left are ends of rows that fill no panel, and short rows that are brought together.
    alone = len(re.findall(rf"store {kind} ", code))
    vectors = len(re.findall(rf"store <\d+ x {kind}> ", code))
    assert alone <= 2 * (2 + OPTIMIZERS[name].slots) + 2, (alone, vectors)
    assert vectors >= 2 * (2 + OPTIMIZERS[name].slots), (alone, vectors)
