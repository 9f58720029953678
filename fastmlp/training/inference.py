"""What a network says of rows, and how well: predictions and evaluations.

Parameters are dtype[P] of one network, or dtype[members, P] of several: results then have one more
axis, the first. The programs are those of a single network.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.data.arrays import host_copy
from fastmlp.data.batches import batch_rows, combine_losses
from fastmlp.data.inputs import Inputs, straight
from fastmlp.data.validation import Validation
from fastmlp.data.weighting import row_factors
from fastmlp.device.mirrors import blank, guarded, resident
from fastmlp.dispatch.planning import CHUNK_ROWS, Programs, Where
from fastmlp.metrics import Evaluation, Metric, Predicted
from fastmlp.state.training_state import TrainingState
from fastmlp_kernels.algebra import LOSSES
from fastmlp_kernels.device_memory import DeviceMemory
from fastmlp_kernels.problem import Problem, Program

Array = NDArray[Any]

# Where the batches of a call of one batch begin.
FIRST = np.zeros(1, dtype=np.int64)
# Rows up to which nobody asks who else predicts.
ALONE_ROWS = 8


def predict(
    parameters: Array,
    programs: Programs,
    X: Any,
    outputs: int,
    where: Where,
    out: Array | None = None,
) -> Array | None:
    """Return the outputs of rows, through the link of the loss; None if X is not finite.

    `X` is an array that kernels read as it is, or `Inputs`. The outputs are written to `out` if
    there is one, to a part of them too where X is not finite.
    """
    rows = len(X)
    shelf = programs.predicting(rows, where)
    if not shelf.on_host and isinstance(X, Inputs):
        X = X.checked()
    if out is None:
        out = np.empty((*parameters.shape[:-1], rows, outputs), dtype=parameters.dtype)
    plan, program = pair = shelf.take()
    if shelf.on_host:
        found = _predict_here(parameters, program, X, out, shelf.busy())
    else:
        with guarded(plan.kernel.device, "predict"):
            found = _predict_in_pieces(parameters, program, X, out)
    shelf.put_back(pair)
    return found


def predict_array(
    state: TrainingState, programs: Programs, X: Array, sizes: tuple[int, ...], where: Where
) -> Array | None:
    """Return what `predict` does of an array that the host's kernels read as it is.

    None says that `predict` has to look at it, or at who changes the parameters. Short, as it is
    seen in the time of one row.
    """
    before, parameters = state.now, state.parameters
    if state.lock.active or not straight(X, sizes[0], parameters.dtype):
        return None
    rows = len(X)
    shelf = programs.predicting(rows, where)
    if not shelf.on_host:
        return None
    out = np.empty((rows, sizes[-1]), parameters.dtype)
    pair = shelf.take()
    program = pair[1]
    share = shelf.busy() if rows > ALONE_ROWS else 1
    finite = program.predict(resident(program, parameters), X, out, True, share)
    shelf.put_back(pair)
    return out if finite and state.now is before else None


def _predict_here(
    parameters: Array, program: Program, X: Any, result: Array, share: int
) -> Array | None:
    """Predict on the host, a block of rows at a time where they have to be converted."""
    held = resident(program, parameters)
    if held.ndim == 1 and type(X) is np.ndarray:
        return result if program.predict(held, X, result, True, share) else None
    several = list(_networks(held, result))
    blocks = X.blocks() if isinstance(X, Inputs) else [(slice(0, len(X)), X)]
    unchanged = False
    for part, rows in blocks:
        for own, into in several:
            if not program.predict(own, rows, into[part], True, share, unchanged):
                return None
        unchanged = len(several) == 1
    return result


def _predict_in_pieces(parameters: Array, program: Program, X: Any, result: Array) -> Array:
    """Predict as many rows at once as fit where the program computes."""
    rows = len(X)
    piece = rows if program.memory is None else rows_that_fit(program.memory, X, result)
    held = resident(program, parameters)
    for start in range(0, rows, piece):
        part = slice(start, min(start + piece, rows))
        given = program.to_device(X[part])
        for own, into in _networks(held, result):
            out = blank(program, into[part])
            program.predict(own, given, out, True)
            program.to_host(out, into[part])
    return result


def _networks(held: Any, results: Array) -> Iterator[tuple[Any, Array]]:
    """Yield the parameters of each network, and its part of the results."""
    if held.ndim == 1:
        yield held, results
        return
    for member, own in enumerate(results):
        yield held[member], own


def rows_that_fit(memory: DeviceMemory, X: Any, outputs: Array) -> int:
    """Return how many rows of inputs and outputs fit in a device's memory: all of them, mostly."""
    rows = outputs.shape[-2]
    # Inputs that are there already take no more. Outputs are those of one network after another.
    count = rows * outputs.shape[-1] * outputs.itemsize
    count += X.nbytes if type(X) is np.ndarray else 0
    available = memory.available()
    return rows if count <= available else max(1, int(available // (count / rows)))


def evaluate(
    parameters: Array,
    programs: Programs,
    rows: Validation,
    problem: Problem,
    metrics: Sequence[Metric],
    where: Where,
) -> Evaluation:
    """Return loss and metrics of all rows, in chunks that need little memory.

    Means are weighted where the rows have weights. The first metric is the score.
    """
    (data, weights), networks = rows, parameters.shape[:-1]
    count = len(data.X)
    sizes = batch_rows(count, min(count, CHUNK_ROWS))
    # Predictions are other numbers than outputs where the loss has a link, and seldom needed.
    linked = LOSSES[problem.loss].link is not None and any(each.of_link for each in metrics)
    outputs = np.empty((*networks, count, problem.sizes[-1]), dtype=problem.dtype)
    predictions = np.empty_like(outputs) if linked else outputs
    losses = np.empty((*networks, len(sizes)))
    totals: Array = sizes
    if weights is not None:
        # An ensemble of one network has an axis that its parameters do not have.
        weights = weights if networks else weights.reshape(count)
        starts = np.cumsum(sizes) - sizes
        totals = np.add.reduceat(weights, starts, axis=-1)
        # A network after another, each with its own rows of weights or with those of all.
        weights = np.broadcast_to(weights, (*networks, count)).reshape(-1, count)
    start = 0
    for chunk, size in enumerate(map(int, sizes)):
        part = slice(start, start + size)
        start += size
        with (
            programs.taken(size, size, where, labels=data.labels) as (plan, program),
            guarded(plan.kernel.device, "evaluate"),
        ):
            held = resident(program, parameters)
            X, y = program.to_device(data.X[part]), program.to_device(data.y[part])
            for number, (own, into) in enumerate(_networks(held, outputs)):
                out = blank(program, into[part])
                program.forward(own, X, out)
                factors = None
                if weights is not None:
                    factors = row_factors(plan.problem, weights[number, part], FIRST)[0]
                losses.reshape(-1, len(sizes))[number, chunk] = program.loss(y, factors)
                program.to_host(out, into[part])
            for own, into in _networks(held, predictions) if linked else ():
                out = blank(program, into[part])
                program.predict(own, X, out, True)
                program.to_host(out, into[part])
    found = combine_losses(losses, totals, problem.reduction)
    shape = -1, count, problem.sizes[-1]
    pairs = zip(outputs.reshape(shape), predictions.reshape(shape), strict=True)
    kind = linked, data.labels, data.vector
    targets = host_copy(data.y)
    predicted = [
        Predicted(*pair, targets, *kind, None if weights is None else weights[number])
        for number, pair in enumerate(pairs)
    ]
    scores = {each.name: np.array([each.compute(own) for own in predicted]) for each in metrics}
    name = metrics[0].name
    if networks:
        return Evaluation(found, scores[name], name, scores)
    alone = {each: float(numbers[0]) for each, numbers in scores.items()}
    return Evaluation(float(found), alone[name], name, alone)
