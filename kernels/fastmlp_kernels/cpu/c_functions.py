"""Plain functions in C that predict with one handle, whose address is written in their code."""

import ctypes
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

from fastmlp_kernels.cpu.machine_code import target_machine
from fastmlp_kernels.cpu.simd import InstructionSet
from fastmlp_kernels.problem import Problem
from fastmlp_kernels.shield import shield

WORD, INT, BYTES = ir.IntType(64), ir.IntType(32), ir.IntType(8).as_pointer()
NUMBERS = {"float32": ctypes.c_float, "float64": ctypes.c_double}


def _emit_call(builder: ir.IRBuilder, entry: int, handle: int, x: Any, out: Any) -> ir.Value:
    """Emit a call of `handle_calls._predict_alone` for one row; return its answer."""
    kind = ir.FunctionType(WORD, [WORD] * 6).as_pointer()
    function = builder.inttoptr(ir.Constant(WORD, entry), kind)
    places = [builder.ptrtoint(each, WORD) for each in (x, out)]
    numbers = [ir.Constant(WORD, number) for number in (1, 0, 0)]
    return builder.call(function, [ir.Constant(WORD, handle), *places, *numbers])


def _emit_map(module: ir.Module, entry: int, handle: int) -> None:
    """Emit ``int map(const T *x, T *out)``."""
    function = ir.Function(module, ir.FunctionType(INT, [BYTES, BYTES]), "map")
    builder = ir.IRBuilder(function.append_basic_block())
    answer = _emit_call(builder, entry, handle, *function.args)
    builder.ret(builder.trunc(answer, INT))


def _emit_integrand(module: ir.Module, entry: int, handle: int, inputs: int) -> None:
    """Emit ``double integrand(int n, double *x)``: NaN for another n than there are inputs."""
    double = ir.DoubleType()
    kind = ir.FunctionType(double, [INT, double.as_pointer()])
    function = ir.Function(module, kind, "integrand")
    builder = ir.IRBuilder(function.append_basic_block())
    count, x = function.args
    out = builder.alloca(double)
    builder.store(ir.Constant(double, float("nan")), out)
    with builder.if_then(builder.icmp_signed("==", count, ir.Constant(INT, inputs))):
        # One that is busy leaves the NaN.
        _emit_call(builder, entry, handle, x, out)
    builder.ret(builder.load(out))


class CFunctions:
    """The compiled functions, for as long as this object lives.

    Parameters
    ----------
    target : InstructionSet
    problem : Problem
    entry, handle : int
        Addresses of `handle_calls._predict_alone` and of the HANDLE.

    Attributes
    ----------
    map : ctypes function
        ``int map(const T *x, T *out)`` writes the outputs of one row. It returns 0, or 1 if another
        thread is using the handle; nothing is written then.
    integrand : ctypes function or None
        ``double integrand(int n, double *x)``, of a network in float64 with one output.
    """

    def __init__(self, target: InstructionSet, problem: Problem, entry: int, handle: int) -> None:
        module = ir.Module()
        _emit_map(module, entry, handle)
        scalar = problem.dtype == "float64" and problem.sizes[-1] == 1
        if scalar:
            _emit_integrand(module, entry, handle, problem.sizes[0])
        self._engine = shield(lambda: self._compile(str(module), target))
        pointer = ctypes.POINTER(NUMBERS[problem.dtype])
        self.map = self._function("map", ctypes.c_int, pointer, pointer)
        self.integrand = None
        if scalar:
            self.integrand = self._function("integrand", ctypes.c_double, ctypes.c_int, pointer)

    def _compile(self, code: str, target: InstructionSet) -> llvm.ExecutionEngine:
        machine = target_machine(target)
        module = llvm.parse_assembly(code)
        module.verify()
        engine = llvm.create_mcjit_compiler(module, machine, use_lmm=True)
        engine.finalize_object()
        return engine

    def _function(self, name: str, result: Any, *arguments: Any) -> Any:
        return ctypes.CFUNCTYPE(result, *arguments)(self._engine.get_function_address(name))
