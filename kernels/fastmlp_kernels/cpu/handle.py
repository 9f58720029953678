"""Handles: a network of its own, with all that calls from compiled code need, made once."""

from dataclasses import replace
from threading import RLock

import numpy as np

# The methods of handles in compiled code are there once they have been imported.
from fastmlp_kernels.cpu import handle_methods as handle_methods
from fastmlp_kernels.cpu.c_functions import CFunctions
from fastmlp_kernels.cpu.handle_calls import enter, entries
from fastmlp_kernels.cpu.handle_numbers import StepNumbers
from fastmlp_kernels.cpu.handle_record import CALLS, HANDLE
from fastmlp_kernels.cpu.handle_type import handle_type
from fastmlp_kernels.cpu.program import FusedProgram
from fastmlp_kernels.cpu.straight_line import write_in_background
from fastmlp_kernels.cpu.tables import PACK, PACKED, address
from fastmlp_kernels.problem import Machine, Problem


class SettledProgram(FusedProgram):
    """A program that describes each call in its table, and runs nothing."""

    def _run(self) -> None:
        pass

    def took(self, seconds: float) -> None:
        """Take no note of it: nothing has run."""

    def _predict_in_batches(self, parameters: np.ndarray, X: np.ndarray, out: np.ndarray) -> None:
        """Describe predictions of one batch after another: a handle has no team to share them."""
        self.forward(parameters, X, out)
        self._set_outputs(True)

    def settled(self, parameters: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Return a table of each kind of call, of STEP, in the order of `CALLS`."""
        problem, found = self.problem, []
        rows, (inputs, *_, outputs) = problem.batch_size, problem.sizes
        X, out = np.zeros((rows, inputs), self.dtype), np.zeros((rows, outputs), self.dtype)
        y = np.zeros((rows, problem.target_columns), self.dtype)
        gradient, factors = np.zeros_like(parameters), np.zeros(rows, self.dtype)
        hyper = np.zeros((1, problem.hyper_columns), self.dtype)
        order = self.constants["identity"][:rows]
        batch = parameters, X, y, gradient
        step = parameters, state, X, y, order, hyper, self.one_loss, self.control
        for method, *arguments in (
            (self._predict_in_batches, parameters, X, out),
            (self.forward, parameters, X, out),
            (self.backward, parameters, out, gradient, X[:0]),
            (self.backward, parameters, out, gradient, X),
            (self.value_and_gradient, *batch),
            (self.value_and_gradient, *batch, factors),
            (self.epoch, *step),
            (self.epoch, *step, factors),
            (self.update, parameters, gradient, state, hyper),
        ):
            method(*arguments)
            found.append(self.step.copy())
        tables = np.concatenate(found)
        # Rows are taken in their own order, and weights from the panels. A call brings those up to
        # date where that is needed.
        tables["sequential"], tables["packed"] = 1, PACKED
        tables["stages"] &= ~PACK
        return tables


class Handle:
    """A network that compiled code calls: see `handle_calls`. One thread at a time may call it.

    It owns its parameters and the state of its optimizer. Numba takes it as an argument of compiled
    functions: see `handle_type`.

    Parameters
    ----------
    problem : Problem
        `batch_size` is the most rows of any call but a prediction.
    machine : Machine
    parameters, state : ndarray
        dtype[P] and dtype[slots, P], changed in place.
    """

    def __init__(
        self, problem: Problem, machine: Machine, parameters: np.ndarray, state: np.ndarray
    ) -> None:
        self.problem, self._parameters, self._slots = problem, parameters, state
        program = self._program = SettledProgram(problem, replace(machine, cores=1))
        rows, dtype = problem.batch_size, program.dtype
        tables = program.settled(parameters, state)
        factor = np.array([0.0, *(problem.scale(count + 1) for count in range(rows))])
        # What the addresses lead to.
        self._kept = {
            "loss": program.one_loss,
            "control": program.control,
            "targets": np.zeros((rows, problem.target_columns), dtype),
            "factors": np.zeros(rows, dtype),
            "factor": factor,
            "scales": factor.astype(dtype),
            "parameters": parameters,
            "state": state,
            "rate": np.array([np.nan]),
            "row": np.zeros(problem.hyper_columns, dtype),
        }
        # Of the optimizer: what the record points to, whatever was interrupted.
        self._numbers: list[StepNumbers] = []
        self._writing = RLock()
        self._tables, self._entries = tables, entries()
        self._lines = write_in_background(program, tables)
        self._record = np.zeros(1, dtype=HANDLE)
        numbers = {
            "run": self._entries.run,
            "inputs": problem.sizes[0],
            "outputs": problem.sizes[-1],
            "target_columns": problem.target_columns,
            "parameter_count": problem.parameter_count,
            "labels": problem.labels,
            "batch_size": rows,
            "item": dtype.itemsize,
            "slots": problem.slots,
            "row_tile": address(program.tiles[-1:]),
            "largest": tables["largest"][0],
            **{name: address(array) for name, array in self._kept.items()},
            **{f"{name}_table": address(tables[k:]) for k, name in enumerate(CALLS)},
        }
        for name in ("predict", "forward", "backward", "gradient", "step", "apply"):
            numbers[f"enter_{name}"] = getattr(self._entries, name)
        for name, number in numbers.items():
            self._record[name] = number
        self._place = address(self._record)
        self._numba_type_ = handle_type(problem.dtype)
        self._c_functions: CFunctions | None = None

    def _enter(self, name: str, *words: int, loss: int = 0) -> int:
        """Claim the handle and call one of `handle_calls.Entries`; return what it answers.

        `loss` is an address that the loss is copied to, or 0.
        """
        given = (*words, *[0] * (5 - len(words)))
        return int(enter(getattr(self._entries, name), self._place, *given, loss))

    def _read(self) -> tuple[int, np.ndarray, np.ndarray, int, int, int]:
        """Return an answer, copies of parameters and state, and the counts of `handle_calls`."""
        parameters, state = self._parameters.copy(), self._slots.copy()
        counts = np.zeros(3, dtype=np.int64)
        answer = self._enter("read", address(parameters), address(state), address(counts))
        return answer, parameters, state, *counts.tolist()

    def _write(
        self,
        parameters: np.ndarray,
        state: np.ndarray,
        numbers: StepNumbers,
        origin: int,
    ) -> int:
        """Take parameters, a state and the numbers of steps from now on; return the answer.

        `origin` is what `_read` gives from then on.
        """
        arrays = address(parameters), address(state), numbers.place
        with self._writing:
            self._numbers.append(numbers)
            answer = self._enter("write", *arrays, origin)
            # A handle that was busy goes on with the old ones.
            known = {each.place: each for each in (*self._numbers, numbers)}
            self._numbers = [known[self._record["numbers"].item()]]
        return answer

    @property
    def functions(self) -> CFunctions:
        """Functions in C that predict, compiled when they are first asked for."""
        if self._c_functions is None:
            self._c_functions = CFunctions(
                self._program.target, self.problem, self._entries.predict_alone, self._place
            )
        return self._c_functions
