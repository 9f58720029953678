"""Single calls of compiled code: a step, whole and in its parts, a prediction, a gradient.

A step of a small network takes a few microseconds, so whatever can be made before it is made once.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.arrays import Data
from fastmlp.batches import CHUNK_ROWS
from fastmlp.errors import DeviceLostError, NonFiniteTrainingError
from fastmlp.optimizers import Optimizer
from fastmlp.parameters import TrainingState
from fastmlp.planning import Programs, Where
from fastmlp.residency import blank, guarded, resident, written
from fastmlp.weighting import Weights, row_factors
from fastmlp_kernels.algebra import HYPER_WIDTH
from fastmlp_kernels.problem import BATCHES, CONTROL_WORDS, STATUS, DeviceMemory, Problem

Array = NDArray[Any]

# Steps whose numbers are computed together: a table costs as much as a step, whatever its length.
STEPS_AHEAD = 256


class StepNumbers:
    """The hyper-parameters of single steps: those of an epoch's table, computed ahead.

    The bits are those of a `fit` by construction. An optimizer that is new in every step (a
    schedule of one's own) is not charged for steps that it will never take: the number computed
    ahead starts at one, and doubles while the optimizer stays.
    """

    def __init__(self, dtype: np.dtype[Any]) -> None:
        # One array for all steps: a program need not look again where it lies.
        self._row = np.empty((1, HYPER_WIDTH), dtype=dtype)
        self._optimizer: Optimizer | None = None
        self._first = 0
        self._ahead = np.empty((0, HYPER_WIDTH), dtype=dtype)

    def of(self, optimizer: Optimizer, step: int) -> Array:
        """Return dtype[1, HYPER_WIDTH] for a step counted from 1; the next call overwrites it."""
        same = optimizer is self._optimizer or optimizer == self._optimizer
        index = step - self._first
        if not same or not 0 <= index < len(self._ahead):
            follows = same and index == len(self._ahead)
            count = min(2 * len(self._ahead), STEPS_AHEAD) if follows else 1
            self._ahead = optimizer.hyper(step, count, self._row.dtype)
            self._optimizer, self._first, index = optimizer, step, 0
        self._row[0] = self._ahead[index]
        return self._row


class Step:
    """A fused training step for batches of one size: an epoch of one batch in its own order."""

    def __init__(
        self, programs: Programs, rows: int, labels: bool, rule: str, where: Where
    ) -> None:
        self._serves = (rows, labels, rule, where)
        # Planned as the separate parts are, so that both run the same kernel and give the same
        # bits.
        parts, _ = programs.get(rows, rows, where, labels=labels)
        where = where._replace(kernel=parts.kernel.name)
        plan, self._program = programs.get(rows, rows, where, labels=labels, rule=rule)
        self._rule, self._slots, self._problem = rule, plan.problem.slots, plan.problem
        # On the host its methods return what they are given, at half a microsecond a step.
        self._device = plan.kernel.device
        self._copies = self._device != "cpu"
        dtype = np.dtype(plan.problem.dtype)
        self._numbers = StepNumbers(dtype)
        self._order = np.arange(rows, dtype=np.int64)
        self._losses = np.zeros(1, dtype=dtype)
        self._control = np.zeros(CONTROL_WORDS, dtype=np.int64)

    def serves(self, rows: int, labels: bool, rule: str, where: Where) -> bool:
        """Return whether this is the step that these arguments would make."""
        return (rows, labels, rule, where) == self._serves

    def take(
        self,
        state: TrainingState,
        data: Data,
        optimizer: Optimizer,
        weights: Weights | None = None,
    ) -> float:
        """Train on a batch of the size that this was made for; return the loss before."""
        program, control = self._program, self._control
        state.prepare(self._rule, self._slots)
        hyper = self._numbers.of(optimizer, state.steps + 1)
        control.fill(0)
        factors = None if weights is None else batch_factors(self._problem, weights)
        call = (self._order, hyper, self._losses, control, factors)
        if self._copies:
            self._take_there(state, data, call)
        else:
            try:
                program.epoch(state.parameters, state.slots, data.X, data.y, *call)
            finally:
                state.steps += applied_batches(control)
        loss = self._losses.item()
        if control.item(STATUS):
            raise NonFiniteTrainingError.at(
                f"step: got a loss of {loss} or a gradient that is not finite, wanted finite "
                "numbers. Nothing was changed; try a smaller learning rate",
                None,
                None,
                None,
            )
        return loss

    def _take_there(self, state: TrainingState, data: Data, call: Any) -> None:
        """Take the step on a device, where parameters and state have stayed since the last one.

        They are copied to the host after every step: users hold views of the parameters, which no
        method could bring up to date when they are read.
        """
        program, steps = self._program, state.steps
        try:
            with guarded(self._device, "step"):
                parameters = resident(program, state.parameters)
                slots = resident(program, state.slots)
                X, y = program.to_device(data.X), program.to_device(data.y)
                try:
                    program.epoch(parameters, slots, X, y, *call)
                finally:
                    state.steps += applied_batches(self._control)
                    written(program, state.parameters)
                    written(program, state.slots)
        except DeviceLostError:
            state.steps = steps
            raise


def batch_factors(problem: Problem, weights: Weights | None) -> Array | None:
    """Return what multiplies the loss of each row of a single batch; None without weights."""
    if weights is None:
        return None
    return row_factors(problem, weights, np.zeros(1, dtype=np.int64))[0]


def applied_batches(control: NDArray[np.int64]) -> int:
    """Return how many batches of an epoch have changed the parameters."""
    status = control.item(STATUS)
    return status - 1 if status else control.item(BATCHES)


class Pass:
    """A forward pass, and what the loss and the backward pass need of it."""

    def __init__(self, programs: Programs, X: Array, labels: bool, where: Where) -> None:
        rows = len(X)
        # A purpose of its own: no other call may overwrite what is kept for `backward`.
        plan, self._program = programs.get(rows, rows, where, labels=labels, purpose="parts")
        self._problem, self._device = plan.problem, plan.kernel.device
        self.kernel = plan.kernel.name
        self.X, self.labels, self.has_loss = X, labels, False

    def forward(self, parameters: Array) -> Array:
        """Return the outputs."""
        program = self._program
        outputs = np.empty((len(self.X), self._problem.sizes[-1]), dtype=parameters.dtype)
        if program.memory is None:
            program.forward(parameters, self.X, outputs)
            return outputs
        with guarded(self._device, "forward"):
            out = blank(program, outputs)
            program.forward(resident(program, parameters), program.to_device(self.X), out)
            program.to_host(out, outputs)
        return outputs

    def loss(self, y: Array, weights: Weights | None = None) -> float:
        """Return the loss; its gradient is then what `backward` starts from."""
        factors = batch_factors(self._problem, weights)
        program = self._program
        if program.memory is None:
            loss = program.loss(y, factors)
        else:
            with guarded(self._device, "compute_loss"):
                loss = program.loss(program.to_device(y), factors)
        self.has_loss = True
        return loss

    def backward(self, parameters: Array, upstream: Array | None, flat: Array) -> Array:
        """Add the parameters' gradient to `flat`; return that of the inputs."""
        program = self._program
        result = np.empty_like(self.X)
        if program.memory is None:
            program.backward(parameters, upstream, flat, result)
            return result
        with guarded(self._device, "backward"):
            gradient, dX = program.to_device(flat), blank(program, result)
            by_outputs = None if upstream is None else program.to_device(upstream)
            program.backward(resident(program, parameters), by_outputs, gradient, dX)
            program.to_host(gradient, flat)
            program.to_host(dX, result)
        return result


def predict(parameters: Array, programs: Programs, X: Array, outputs: int, where: Where) -> Array:
    """Return the outputs of any number of rows, through the link of the loss."""
    # The next power of two: predictions of every length then share a few programs.
    rows = len(X)
    capacity = 1 << (rows - 1).bit_length()
    plan, program = programs.get(capacity, min(capacity, CHUNK_ROWS), where)
    result = np.empty((rows, outputs), dtype=X.dtype)
    if program.memory is None:
        program.predict(resident(program, parameters), X, result, True)
        return result
    with guarded(plan.kernel.device, "predict"):
        held = resident(program, parameters)
        pieces = rows_that_fit(program.memory, X, result)
        for start in range(0, rows, pieces):
            part = slice(start, start + pieces)
            out = blank(program, result[part])
            program.predict(held, program.to_device(X[part]), out, True)
            program.to_host(out, result[part])
    return result


def rows_that_fit(memory: DeviceMemory, X: Any, outputs: Array) -> int:
    """Return how many rows of inputs and outputs fit in a device's memory: all of them, mostly."""
    rows = len(outputs)
    # Inputs that are there already take no more.
    count = outputs.nbytes + (X.nbytes if type(X) is np.ndarray else 0)
    available = memory.available()
    return rows if count <= available else max(1, int(available // (count / rows)))


def value_and_gradient(
    parameters: Array,
    programs: Programs,
    data: Data,
    flat: Array,
    where: Where,
    weights: Weights | None = None,
) -> float:
    """Return the loss of a batch and write its gradient to `flat`."""
    rows = len(data.X)
    plan, program = programs.get(rows, rows, where, labels=data.labels)
    factors = batch_factors(plan.problem, weights)
    if program.memory is None:
        return program.value_and_gradient(parameters, data.X, data.y, flat, factors)
    with guarded(plan.kernel.device, "value_and_grad"):
        gradient = blank(program, flat)
        X, y = program.to_device(data.X), program.to_device(data.y)
        loss = program.value_and_gradient(resident(program, parameters), X, y, gradient, factors)
        program.to_host(gradient, flat)
    return loss


def apply(
    state: TrainingState, programs: Programs, gradient: Array, optimizer: Optimizer, where: Where
) -> None:
    """Take one step along a gradient, on the kernel that made it.

    Another kernel may round its update differently, and the parts of a step would no longer give
    the bits of the whole.
    """
    plan, program = programs.get(1, 1, where, rule=optimizer.rule)
    state.prepare(optimizer.rule, plan.problem.slots)
    hyper = optimizer.hyper(state.steps + 1, 1, gradient.dtype)
    if program.memory is None:
        program.update(state.parameters, gradient, state.slots, hyper)
        state.steps += 1
        return
    with guarded(plan.kernel.device, "apply"):
        parameters, slots = resident(program, state.parameters), resident(program, state.slots)
        program.update(parameters, program.to_device(gradient), slots, program.to_device(hyper))
        written(program, state.parameters)
        written(program, state.slots)
    state.steps += 1
