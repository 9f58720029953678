"""What a handle and its model give each other: parameters, the optimizer's state, steps."""

import itertools
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from fastmlp.dispatch.planning import machine_with
from fastmlp.errors import BusyError, CallOrderError, DomainError, NonFiniteTrainingError
from fastmlp.optimizers import Optimizer
from fastmlp.state.finite import all_finite
from fastmlp.state.parameters import aligned, aligned_zeros
from fastmlp.state.training_state import Origin, TrainingState, at_once
from fastmlp.training.hyper_parameters import numbers_by_rate, numbers_of_steps
from fastmlp_kernels.cpu.handle import Handle
from fastmlp_kernels.cpu.handle_numbers import StepNumbers
from fastmlp_kernels.cpu.handle_record import BUSY, NO_FORWARD, NO_NUMBERS
from fastmlp_kernels.problem import Problem

Array = NDArray[Any]


class Exchanging(Handle):
    """A handle that has a model: see `CompiledMLP`."""

    def __init__(
        self, state: TrainingState, problem: Problem, optimizer: Optimizer, steps: int | None
    ) -> None:
        self._model, self._optimizer, self._ahead = state, optimizer, steps
        self.inputs, self.outputs = problem.sizes[0], problem.sizes[-1]
        self.parameter_count = problem.parameter_count
        shapes: Any = ((self.parameter_count,), (problem.slots, self.parameter_count))
        held = [aligned_zeros(shape, problem.dtype) for shape in shapes]
        super().__init__(problem, machine_with(1), *held)
        # By the number of a `pull`, which the handle's memory holds beside what it brought: an
        # interrupt of Python leaves both the old ones or both the new ones.
        self._origins: dict[int, Origin] = {}
        self._pulls = itertools.count(1)
        self.pull()

    @property
    def steps(self) -> int:
        """Steps taken with the optimizer's state, those of the model before included."""
        with self._writing:
            _, _, taken, _, origin = self._checked(self._read())
            return self._origins[origin].steps + taken

    def pull(self) -> None:
        """Take the model's parameters, optimizer state and count of steps, as they are now.

        Raises
        ------
        BusyError
            If another thread uses the handle.
        """
        lock = self._model.lock
        parameters, slots, steps, now = lock.copied("pull", self._copy_of_model)
        rest = self._optimizer, self.problem, steps + 1, self._ahead, self._model.seed
        hyper, lasting = numbers_of_steps(*rest)
        numbers = StepNumbers(hyper, lasting, *numbers_by_rate(*rest[:3], len(hyper)))
        with self._writing:
            number = next(self._pulls)
            self._origins[number] = Origin(steps, now, 0)
            if self._write(parameters, slots, numbers, number) == BUSY:
                del self._origins[number]
                self._refuse("pull", BUSY)
            self._origins = {number: self._origins[number]}

    def _copy_of_model(self) -> tuple[Array, Array, int, Any]:
        state, rule = self._model, self._optimizer.rule
        steps, _, present, slots, _, _ = state.settled()
        if rule != present:
            steps, slots = 0, state.fresh_slots(self.problem.slots)
        return state.parameters.copy(), slots.copy(), int(steps), state.now

    def push(self, *, overwrite: bool = False) -> None:
        """Give the model the handle's parameters, optimizer state and count of steps, all at once.

        A handle that has changed nothing since `pull` leaves the model as it is.

        Parameters
        ----------
        overwrite : bool
            Whether changes that the model has had since `pull` are given up.

        Raises
        ------
        CallOrderError
            If the model has changed since `pull`, by a fit or another handle.
        NonFiniteTrainingError
            If a parameter is infinite or NaN; the model stays as it is.
        BusyError
            If a fit is training the model, or another thread uses the handle.
        """
        with self._writing:
            self._push(overwrite)

    def _push(self, overwrite: bool) -> None:
        parameters, slots, taken, changes, number = self._checked(self._read())
        origin = self._origins[number]
        if changes == origin.changes:
            return
        if not (all_finite(parameters) and all_finite(slots)):
            raise NonFiniteTrainingError(
                "push: got parameters that are not finite, wanted finite numbers. The model is as "
                "it was; pull() takes its parameters"
            )
        updated = aligned(parameters), aligned(slots)
        counts = number, taken, changes
        self._model.lock.change("push", self._give, *updated, counts, overwrite)

    def _give(
        self, parameters: Array, slots: Array, counts: tuple[int, int, int], overwrite: bool
    ) -> None:
        state, rule, (number, taken, changes) = self._model, self._optimizer.rule, counts
        origin, settle = self._origins[number], self._origins.__setitem__
        if state.now is not origin.now and not overwrite:
            raise CallOrderError(
                "push: got a model that has changed since pull, wanted the model as it was then; "
                "push(overwrite=True) gives up its changes, and pull() those of the handle"
            )
        if state.rule != rule:
            state.tell_of_change(rule)
        # Before the change too, for a reader that has begun.
        touched = (*state.settled(),)
        at_once((setattr, state, "now", touched), (settle, number, origin._replace(now=touched)))
        now = (origin.steps + taken, state.epochs, rule, slots, None, 0)
        at_once(
            (np.copyto, state.parameters, parameters),
            (setattr, state, "now", now),
            (settle, number, Origin(origin.steps, now, changes)),
        )

    def _checked(self, read: tuple[Any, ...]) -> tuple[Any, ...]:
        answer, *rest = read
        if answer == BUSY:
            self._refuse("handle", BUSY)
        return tuple(rest)

    def _refuse(self, method: str, answer: int) -> NoReturn:
        """Raise what an entry's answer means."""
        if answer == BUSY:
            raise BusyError(
                f"{method}: got a call while another thread uses the handle, wanted a handle of "
                "its own for each thread: model.compiled()"
            )
        if answer == NO_NUMBERS:
            raise DomainError(
                f"{method}: got more steps than compiled(max_steps={self._ahead}) has rates for, "
                "wanted a handle for more of them"
            )
        if answer == NO_FORWARD:
            raise CallOrderError(
                "backward: got no forward pass of as many rows, wanted forward(X, out) right before"
            )
        raise NonFiniteTrainingError(
            f"{method}: got a loss or a gradient that is not finite, wanted finite numbers. "
            "Nothing was changed; try a smaller learning rate"
        )
