"""A part of a search: networks of one shape on the same rows, trained side by side.

A part is a value, and training it is a function without side effects. So it may be computed
anywhere, and again.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmlp.data.admission import Data
from fastmlp.data.batches import combine_losses
from fastmlp.data.shuffling import Orders
from fastmlp.data.validation import Validation
from fastmlp.data.weighting import Weights
from fastmlp.dispatch.planning import Programs, Where
from fastmlp.errors import DTypeError
from fastmlp.metrics import Metric, check_metrics
from fastmlp.optimizer_base import Optimizer, joint_update
from fastmlp.state.parameters import aligned_zeros
from fastmlp.state.training_state import TrainingState
from fastmlp.training.inference import evaluate
from fastmlp.training.trainer import Trainer
from fastmlp_kernels.problem import Problem

Array = NDArray[Any]


class Member(NamedTuple):
    """A network, and how far its training is: the arguments of `TrainingState`, and its own."""

    seed: int
    optimizer: Optimizer
    l2: float
    weights: Weights | None
    parameters: Array
    slots: Array | None = None
    steps: int = 0
    epochs: int = 0


class Part(NamedTuple):
    """What somebody who trains some networks has to know.

    Attributes
    ----------
    template : Problem
        Of one network.
    members : tuple of Member
    train : Data
    test : Validation
    batch_size, epochs : int
    shuffle : bool
    metric : str, callable or None
        As `check_metric` takes it.
    where : Where
    """

    template: Problem
    members: tuple[Member, ...]
    train: Data
    test: Validation
    batch_size: int
    epochs: int
    shuffle: bool
    metric: Any
    where: Where


class Outcome(NamedTuple):
    """What became of a network.

    Attributes
    ----------
    member : Member
    score, loss, train_loss : float
        Of the rows to judge by, their loss, and that of the last epoch. NaN if it has failed.
    failed : bool
        Whether it met a number that is not finite.
    """

    member: Member
    score: float
    loss: float
    train_loss: float
    failed: bool


def check_metric(metric: Any, problem: Problem, test: Validation) -> Metric | None:
    """Return what judges networks; None stands for their loss."""
    if metric == "loss":
        return None
    if not (metric is None or isinstance(metric, str) or callable(metric)):
        raise DTypeError(f"metric: got {metric!r}, wanted a name or a function f(y, prediction)")
    sets = {"": test}
    if metric is None or isinstance(metric, str):
        return check_metrics(None, problem, sets, metric)[0]
    return check_metrics([metric], problem, sets)[-1]


def train_part(part: Part) -> tuple[float, list[Outcome]]:
    """Train the networks of a part; return the seconds that took, and what became of them.

    Each is what `MLP.fit` alone would make of it, bit for bit.
    """
    started = time.perf_counter()
    outcomes = _train(part)
    return time.perf_counter() - started, outcomes


def _train(part: Part) -> list[Outcome]:
    state, members = _state_of(part.members), part.members
    problem = replace(part.template, members=len(members))
    optimizers = tuple(each.optimizer for each in members)
    weights = None
    if members[0].weights is not None:
        weights = np.stack([each.weights for each in members if each.weights is not None])
    trainer = Trainer(
        state,
        Programs(problem),
        part.train,
        part.batch_size,
        joint_update(optimizers),
        part.where,
        weights=weights,
        l2=[each.l2 for each in members],
        lazy=True,
        epochs=part.epochs,
    )
    trainer.prepare()
    failed, losses = np.zeros(len(members), dtype=np.bool_), np.full(len(members), np.nan)
    for order in _orders(part):
        epoch = trainer.run(order, optimizers)
        losses = combine_losses(epoch.losses, epoch.weights, problem.reduction)
        if epoch.failed:
            bad = np.flatnonzero(~failed & ((epoch.bad_batches > 0) | ~epoch.finite))
            failed[bad] = True
            if failed.all():
                break
            trainer.leave_out(bad.tolist())
    trainer.fetch()
    return _judge(part, state, np.where(failed, np.nan, losses), failed)


def _state_of(members: tuple[Member, ...]) -> TrainingState:
    """Return the state of several networks, which have taken as many epochs."""
    first = members[0]
    seeds = [each.seed for each in members]
    if len(members) == 1:
        parameters = aligned_zeros(first.parameters.shape, first.parameters.dtype)
        parameters[...] = first.parameters
        rest = first.epochs, first.steps
        slots = None if first.slots is None else first.slots.copy()
        return TrainingState(parameters, first.seed, *rest, _rule(first), slots)
    shape = len(members), len(first.parameters)
    parameters = aligned_zeros(shape, first.parameters.dtype)
    parameters[...] = [each.parameters for each in members]
    slots = None
    if first.slots is not None:
        slots = aligned_zeros((len(members), *first.slots.shape), first.slots.dtype)
        slots[...] = [each.slots for each in members]
    epochs = np.array([each.epochs for each in members])
    steps = np.array([each.steps for each in members])
    return TrainingState(parameters, seeds, epochs, steps, _rule(first), slots)


def _rule(member: Member) -> str | None:
    return None if member.slots is None else member.optimizer.rule


def _orders(part: Part) -> Iterator[NDArray[np.int64]]:
    """Yield int64[members, rows] for each epoch; one order is drawn for each seed."""
    begun = [(each.seed, each.epochs) for each in part.members]
    different = list(dict.fromkeys(begun))
    places = [different.index(each) for each in begun]
    seeds, first = zip(*different, strict=True)
    threads = part.where.threads or 1
    orders = Orders(
        seeds, first, part.train.rows, part.epochs, shuffle=part.shuffle, threads=threads
    )
    try:
        for _ in range(part.epochs):
            order = orders.next()
            yield order if len(different) == len(begun) else order[places]
    finally:
        orders.close()


def _judge(
    part: Part, state: TrainingState, losses: Array, failed: NDArray[np.bool_]
) -> list[Outcome]:
    metric = check_metric(part.metric, part.template, part.test)
    metrics = check_metrics(None, part.template, {}) if metric is None else (metric,)
    programs = Programs(part.template)
    rest = programs, part.test, part.template, metrics, part.where
    found = evaluate(state.parameters, *rest)
    scores = np.atleast_1d(found.loss if metric is None else found.score)
    judged = zip(scores, np.atleast_1d(found.loss), losses, failed, strict=True)
    steps, epochs = np.atleast_1d(state.steps), np.atleast_1d(state.epochs)
    parameters = state.parameters.reshape(len(steps), -1)
    slots = state.slots.reshape(len(steps), state.slots.shape[-2], parameters.shape[1])
    outcomes = []
    for number, (score, loss, train_loss, bad) in enumerate(judged):
        member = part.members[number]._replace(
            parameters=parameters[number],
            slots=slots[number],
            steps=int(steps[number]),
            epochs=int(epochs[number]),
        )
        numbers = (
            (np.nan, np.nan, np.nan) if bad else (float(score), float(loss), float(train_loss))
        )
        outcomes.append(Outcome(member, *numbers, bool(bad)))
    return outcomes
