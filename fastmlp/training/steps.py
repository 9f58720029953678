"""Single calls of compiled code that train: a step, whole and in its parts, and a gradient.

A step of a small network takes a few microseconds, so whatever can be made before it is made once.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.data.admission import Data
from fastmlp.data.weighting import BatchWeights, batch_factors
from fastmlp.device.mirrors import blank, guarded, resident, written
from fastmlp.dispatch.planning import Programs, Where
from fastmlp.errors import DeviceLostError, NonFiniteTrainingError
from fastmlp.optimizer_base import Optimizer, Update
from fastmlp.state.finite import all_finite, largest_magnitude
from fastmlp.state.parameters import aligned
from fastmlp.state.training_state import TrainingState, applied_batches, at_once
from fastmlp.training.hyper_parameters import layers_of, set_dropout_keys
from fastmlp.training.interrupts import run_interruptibly
from fastmlp_kernels.problem import CONTROL_WORDS, STATUS, Problem

Array = NDArray[Any]

# Steps whose numbers are computed together: a table costs as much as a step, whatever its length.
STEPS_AHEAD = 256
# Below CALM_LOSS no step of a calm learning rate overflows, in either dtype. CALM_STEPS steps go
# unchecked: parameters of CALM_PARAMETERS that double in each of them are still finite.
CALM_LOSS, CALM_STEPS, CALM_PARAMETERS = 1e8, 64, 1e15


class StepNumbers:
    """The hyper-parameters of single steps: those of an epoch's table, computed ahead.

    The bits are those of a `fit` by construction. An optimizer that is new in every step (a
    schedule of one's own) is not charged for steps that it will never take: the number computed
    ahead starts at one, and doubles while the optimizer stays.
    """

    def __init__(self, problem: Problem) -> None:
        columns, dtype = problem.hyper_columns, problem.dtype
        self._problem, self._layers = problem, layers_of(problem)
        # One array for all steps: a program need not look again where it lies.
        self._row = np.empty((1, columns), dtype=dtype)
        self._ahead = np.empty((0, columns), dtype=dtype)
        self._optimizer: Optimizer | None = None
        self._first = self._count = 0
        # Whether the steps of the table are small, and how many may be taken without a look at the
        # parameters: see `Step.take`.
        self._calm, self.unseen = False, 0

    def of(self, optimizer: Optimizer, step: int, seed: int = 0) -> Array:
        """Return dtype[1, hyper_columns] for a step counted from 1; the next call overwrites it."""
        index = step - self._first
        if optimizer is not self._optimizer or not 0 <= index < self._count:
            index = self._compute(optimizer, step, seed)
        self._row[0] = self._ahead[index]
        return self._row

    def _compute(self, optimizer: Optimizer, step: int, seed: int) -> int:
        """Compute the numbers of some steps; return where those of the given one are."""
        same = optimizer == self._optimizer
        index = step - self._first
        if not same or not 0 <= index < self._count:
            follows = same and index == self._count
            count = min(2 * self._count, STEPS_AHEAD) if follows else 1
            self._ahead = optimizer.hyper(step, count, self._row.dtype, 0.0, self._layers)
            set_dropout_keys(self._problem, self._ahead, seed, step)
            self._first, self._count, index = step, count, 0
            self._calm = self._are_calm(optimizer, step, count)
        if not (same and self._calm):
            self.unseen = 0
        self._optimizer = optimizer
        return index

    def seen(self) -> None:
        """Let some steps go without a look, as one was just taken and showed calm parameters."""
        self.unseen = CALM_STEPS if self._calm else 0

    def _are_calm(self, optimizer: Optimizer, step: int, count: int) -> bool:
        """Return whether no step of these can more than double a parameter, beside its gradient."""
        decay = float(optimizer.settings.get("weight_decay", 0.0))
        return float(np.max(optimizer.rates(step - 1, count))) * max(1.0, decay) <= 1.0


class Step:
    """A fused training step for batches of one size: an epoch of one batch in its own order.

    It is used by one thread at a time, and after an exception no more.
    """

    def __init__(
        self, programs: Programs, rows: int, labels: bool, update: Update, where: Where
    ) -> None:
        # Rows, labels, update and where: what this was made for.
        self.serves = (rows, labels, update, where)
        # Planned as the separate parts are, so that both run the same kernel and give the same
        # bits.
        with programs.taken(rows, rows, where, labels=labels) as (parts, _):
            where = where._replace(kernel=parts.kernel.name)
        self._shelf = programs.shelf(rows, rows, where, labels=labels, update=update)
        plan, self._program = self._pair = self._shelf.take()
        self._rule, self._slots, self._problem = update.rule, plan.problem.slots, plan.problem
        # On the CPU the copying methods return their argument, at half a microsecond a step.
        self._device = plan.kernel.device
        self._copies = self._device != "cpu"
        dtype = np.dtype(plan.problem.dtype)
        self._numbers = StepNumbers(plan.problem)
        self._order = np.arange(rows, dtype=np.int64)
        self._losses = np.zeros(1, dtype=dtype)
        self.refused = ""
        self._control = np.zeros(CONTROL_WORDS, dtype=np.int64)

    def take(
        self,
        state: TrainingState,
        data: Data,
        optimizer: Optimizer,
        weights: BatchWeights | None = None,
    ) -> float:
        """Train on a batch of the size that this was made for; return the loss before.

        If a number is infinite or NaN, `refused` says so, and `refusal` is the error to raise.
        """
        control, rule, numbers = self._control, self._rule, self._numbers
        before = state.settled()
        steps, epochs, present, slots, _, _ = before
        if rule != present:
            steps, slots = 0, state.fresh_slots(self._slots)
        hyper = numbers.of(optimizer, steps + 1, state.seed)
        factors = None if weights is None else batch_factors(self._problem, weights)
        # A finite gradient may still bring parameters to infinity. Checking all of them takes as
        # long as a step of a small network. So they are checked where the loss or the rate is not
        # calm, and otherwise before they can grow from `CALM_PARAMETERS` to infinity. Losses of
        # either sign may cancel each other. A loss near zero then proves nothing.
        careful = not numbers.unseen or (weights is not None and weights.of_losses)
        snapshot = state.snapshot() if careful else None
        if rule != present:
            state.tell_of_change(rule)
        control.fill(0)
        state.now = (steps, epochs, rule, slots, control, 0)
        try:
            if self._copies:
                self._take_there(state, data, (self._order, hyper, self._losses, control, factors))
            else:
                self._program.epoch(
                    state.parameters,
                    slots,
                    data.X,
                    data.y,
                    self._order,
                    hyper,
                    self._losses,
                    control,
                    factors,
                )
        except BaseException as error:
            if isinstance(error, DeviceLostError) or not applied_batches(control):
                state.now = before
            raise
        loss = self._losses.item()
        if control.item(STATUS):
            state.now = before
            self.refused = f"a loss of {loss} or a gradient that is not finite"
            return loss
        if careful or not abs(loss) < CALM_LOSS:
            if not self._leaves_finite(state, slots, loss):
                self.refused = "a step to parameters that are not finite"
                if snapshot is not None:
                    at_once(
                        (np.copyto, state.parameters, snapshot.parameters),
                        (np.copyto, before[3], snapshot.slots),
                        (setattr, state, "now", before),
                    )
                return loss
        else:
            numbers.unseen -= 1
        state.now = (steps + 1, epochs, rule, slots, None, 0)
        return loss

    def _leaves_finite(self, state: TrainingState, slots: Array, loss: float) -> bool:
        """Return whether a step led to finite numbers; if they are calm, some go without a look."""
        self._numbers.unseen = 0
        good = all_finite(state.parameters) and all_finite(slots)
        if good and abs(loss) < CALM_LOSS:
            if largest_magnitude(state.parameters) <= CALM_PARAMETERS:
                self._numbers.seen()
        return good

    def end(self) -> None:
        """Let others have the program."""
        self._shelf.put_back(self._pair)

    def refusal(self, state: TrainingState) -> NonFiniteTrainingError:
        """Return the error of the last step, which was refused."""
        refused, self.refused = self.refused, ""
        kept = "Nothing was changed"
        if not all_finite(state.parameters):
            kept = "The parameters are not finite any more: assign good ones"
        return NonFiniteTrainingError.at(
            f"step: got {refused}, wanted finite numbers. {kept}; try a smaller learning rate",
            None,
            None,
            None,
        )

    def _take_there(self, state: TrainingState, data: Data, rest: Any) -> None:
        """Take the step on a device, where parameters and state have stayed since the last one.

        They are copied to the host after every step: users hold views of the parameters, which no
        method could bring up to date when they are read.
        """
        program = self._program
        with guarded(self._device, "step"):
            parameters = resident(program, state.parameters)
            slots = resident(program, state.slots)
            X, y = program.to_device(data.X), program.to_device(data.y)
            try:
                program.epoch(parameters, slots, X, y, *rest)
            finally:
                written(program, state.parameters)
                written(program, state.slots)


class Pass:
    """A forward pass, and what the loss and the backward pass need of it.

    Its program is its own until `end`: what the backward pass needs must outlive a prediction made
    in between.
    """

    def __init__(self, programs: Programs, X: Array, labels: bool, where: Where) -> None:
        rows = len(X)
        self._shelf = programs.shelf(rows, rows, where, labels=labels)
        plan, self._program = self._pair = self._shelf.take()
        self._problem, self._device = plan.problem, plan.kernel.device
        self.kernel = plan.kernel.name
        self.X, self.labels, self.has_loss = X, labels, False
        # Of the parameters that the pass was computed with.
        self.version: Any = None

    def end(self) -> None:
        """Give the program back; nothing of this pass is needed any more."""
        self._shelf.put_back(self._pair)

    def forward(self, state: TrainingState) -> Array:
        """Return the outputs."""
        program, parameters, self.version = self._program, state.parameters, state.now
        outputs = np.empty((len(self.X), self._problem.sizes[-1]), dtype=parameters.dtype)
        if program.memory is None:
            program.forward(parameters, self.X, outputs)
            return outputs
        with guarded(self._device, "forward"):
            out = blank(program, outputs)
            program.forward(resident(program, parameters), program.to_device(self.X), out)
            program.to_host(out, outputs)
        return outputs

    def loss(self, y: Array, weights: BatchWeights | None = None) -> float:
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


def value_and_gradient(
    parameters: Array,
    programs: Programs,
    data: Data,
    flat: Array,
    where: Where,
    weights: BatchWeights | None = None,
) -> float:
    """Return the loss of a batch and write its gradient to `flat`."""
    rows = len(data.X)
    with programs.taken(rows, rows, where, labels=data.labels) as (plan, program):
        factors = batch_factors(plan.problem, weights)
        if program.memory is None:
            arguments = (parameters, data.X, data.y, flat, factors)
            return run_interruptibly(
                lambda: program.value_and_gradient(*arguments), program.control, plan.seconds
            )
        with guarded(plan.kernel.device, "value_and_grad"):
            gradient = blank(program, flat)
            X, y = program.to_device(data.X), program.to_device(data.y)
            held = resident(program, parameters)
            loss = program.value_and_gradient(held, X, y, gradient, factors)
            program.to_host(gradient, flat)
    return loss


def apply(
    state: TrainingState, programs: Programs, gradient: Array, optimizer: Optimizer, where: Where
) -> None:
    """Take one step along a gradient, on the kernel that made it.

    Another kernel may round its update differently, and the parts of a step would no longer give
    the bits of the whole.
    """
    rule = optimizer.rule
    with programs.taken(1, 1, where, update=optimizer.update) as (plan, program):
        steps, epochs, present, slots, _, _ = state.settled()
        if rule != present:
            steps, slots = 0, state.fresh_slots(plan.problem.slots)
        hyper = optimizer.hyper(steps + 1, 1, gradient.dtype, 0.0, layers_of(plan.problem))
        # On copies: an update may overflow, and an interrupt may fall between two layers.
        updated = aligned(state.parameters), aligned(slots)
        if program.memory is None:
            program.update(updated[0], gradient, updated[1], hyper)
        else:
            with guarded(plan.kernel.device, "apply"):
                held = [program.to_device(each) for each in updated]
                given = program.to_device(gradient), held[1], program.to_device(hyper)
                program.update(held[0], *given)
                for there, here in zip(held, updated, strict=True):
                    program.to_host(there, here)
    if not (all_finite(updated[0]) and all_finite(updated[1])):
        raise NonFiniteTrainingError(
            "apply: got a step to parameters that are not finite, wanted finite numbers. "
            "Nothing was changed; try a smaller learning rate"
        )
    if rule != present:
        state.tell_of_change(rule)
    new = (steps + 1, epochs, rule, updated[1], None, 0)
    at_once((np.copyto, state.parameters, updated[0]), (setattr, state, "now", new))
