"""What a function computes, as a hash: its code, the values that it holds, and all that it calls.

A rule that a user adds, and a CUDA kernel that a factory makes for one choice, are told apart by
nothing else: their names and their files are the same.
"""

import dataclasses
import dis
import functools
import hashlib
import inspect
import sys
import types
from collections.abc import Mapping
from numbers import Number, Real
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types as numba_types

# The sources of these are in a stamp already, and those of the others are libraries.
FOLDER = Path(__file__).parent
LIBRARIES = frozenset(
    {*sys.stdlib_module_names, "numba", "numba_cuda", "numpy", "cuda", "llvmlite"}
)
# Their `repr` says it all.
PLAIN = (Number, str, bytes, type(None), type(...), numba_types.Type, np.dtype, ir.Type)


class UnknownValueError(TypeError):
    """A function holds something that has no fingerprint."""


def fingerprint(function: Any, with_code: bool = True) -> str:
    """Return a hash of a function, the same in every process.

    Parameters
    ----------
    function : callable
        Plain, or compiled by Numba for either target.
    with_code : bool
        Otherwise only of the names and the values that are held, closed over or global: it is the
        same before and after most edits.

    Raises
    ------
    UnknownValueError
        If it holds an object whose state cannot be read off.

    Notes
    -----
    Of a module or a class that is used, the name counts, and its file where that is neither in this
    package nor a library's.

    Examples
    --------
    >>> def times(factor):
    ...     return lambda x: factor * x
    >>> fingerprint(times(2)) == fingerprint(times(2))
    True
    >>> fingerprint(times(2)) == fingerprint(times(3))
    False
    """
    return _Walk(with_code).of(function).hex()


def identity(function: types.FunctionType) -> bytes:
    """Return what a rule of the tables is: its code, and the numbers in it or closed over.

    A part of its `fingerprint`, in a fortieth of the time: each process needs that of all rules.
    """
    held = [cell.cell_contents for cell in function.__closure__ or ()]
    numbers = [x for x in (*function.__code__.co_consts, *held) if isinstance(x, Real | str)]
    inner = b"".join(identity(each) for each in held if isinstance(each, types.FunctionType))
    return function.__code__.co_code + repr(numbers).encode() + inner


class _Walk:
    """A walk over a function and what it reaches, each object once."""

    def __init__(self, with_code: bool) -> None:
        self._with_code = with_code
        # The objects beside their hashes: a number is an object's only while that lives.
        self._seen: dict[int, tuple[Any, bytes]] = {}

    def of(self, value: Any) -> bytes:
        """Return the hash of an object; within itself it is a mere mark."""
        if id(value) not in self._seen:
            self._seen[id(value)] = value, b"itself"
            parts = self._parts(value)
            digest = hashlib.sha256()
            for part in parts:
                # Texts as they are, everything else by its own hash: both of a known length.
                content = part.encode() if isinstance(part, str) else self.of(part[0])
                digest.update(b"%d:" % len(content) + content)
            self._seen[id(value)] = value, digest.digest()
        return self._seen[id(value)][1]

    def _parts(self, value: Any) -> list[Any]:
        """Return an object as texts, and as other objects, each in a tuple of its own."""
        kind = type(value).__name__
        # Compiled functions and intrinsics: what was written, and how it is compiled.
        inner = getattr(value, "py_func", getattr(value, "_defn", None))
        if isinstance(inner, types.FunctionType):
            return [kind, (inner,), (getattr(value, "targetoptions", None),)]
        if isinstance(value, types.FunctionType):
            return self._parts_of_function(value)
        if isinstance(value, types.CodeType):
            return self._parts_of_code(value)
        if isinstance(value, types.ModuleType | type):
            return [kind, *_source_of(value)]
        if isinstance(value, PLAIN):
            return [kind, repr(value)]
        return self._parts_of_container(value)

    def _parts_of_function(self, function: types.FunctionType) -> list[Any]:
        cells = [(cell.cell_contents,) for cell in function.__closure__ or ()]
        names = _global_names(function.__code__)
        found = [n for n in names if n in function.__globals__]
        held = [part for n in found for part in (n, (function.__globals__[n],))]
        code = [(function.__code__,)] if self._with_code else []
        return ["function", function.__qualname__, *code, *cells, *held, (function.__defaults__,)]

    def _parts_of_code(self, code: types.CodeType) -> list[Any]:
        names = repr((code.co_names, code.co_varnames, code.co_freevars))
        return ["code", code.co_code.hex(), names, *((each,) for each in code.co_consts)]

    def _parts_of_container(self, value: Any) -> list[Any]:
        kind = type(value).__name__
        if isinstance(value, tuple | list):
            return [kind, *((each,) for each in value)]
        if isinstance(value, set | frozenset):
            return [kind, *sorted(self.of(each).hex() for each in value)]
        if isinstance(value, Mapping):
            return [kind, *((each,) for pair in sorted(value.items()) for each in pair)]
        if isinstance(value, np.ndarray):
            return [kind, str(value.dtype), repr(value.shape), value.tobytes().hex()]
        if dataclasses.is_dataclass(value):
            fields = dataclasses.fields(value)
            return [kind, *((getattr(value, field.name),) for field in fields)]
        name, module = getattr(value, "__qualname__", None), getattr(value, "__module__", None)
        if isinstance(name or getattr(value, "__name__", None), str) and _is_of_a_library(module):
            return [kind, str(module), str(name or value.__name__)]
        if isinstance(value, np.ufunc):
            return [kind, value.__name__]
        raise UnknownValueError(f"{value!r} has no fingerprint")


@functools.cache
def _global_names(code: types.CodeType) -> tuple[str, ...]:
    """Return the names of globals that code loads, also in the functions within it."""
    # Not co_names: it holds attributes too, and math.erf is not the algebra's erf.
    found = [i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"]
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            found += _global_names(each)
    return tuple(sorted(set(found)))


def _is_of_a_library(module: str | None) -> bool:
    return module is None or module.partition(".")[0] in LIBRARIES


def _source_of(value: types.ModuleType | type) -> list[str]:
    """Return what stands for a module or a class: its name, and perhaps a hash of its file."""
    name = value.__name__ if isinstance(value, types.ModuleType) else value.__module__
    whole = name if isinstance(value, types.ModuleType) else f"{name}.{value.__qualname__}"
    if _is_of_a_library(name):
        return [whole]
    try:
        path = Path(inspect.getfile(value))
        if FOLDER in path.parents:
            return [whole]
        return [whole, hashlib.sha256(path.read_bytes()).hexdigest()]
    except (OSError, TypeError) as error:
        raise UnknownValueError(f"{value!r} has no file: {error}") from error
