"""A search as one call."""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np

from fastmlp.arguments import check_integer, check_switch, check_within
from fastmlp.dispatch.planning import asked
from fastmlp.errors import DomainError, NonFiniteTrainingError
from fastmlp.metrics import Metric
from fastmlp.model import MLP
from fastmlp.searching.candidates import OF_FIT, Trial, list_candidates, make_trials
from fastmlp.searching.progress import Progress
from fastmlp.searching.result import SearchResult
from fastmlp.searching.rows import SearchedRows
from fastmlp.searching.spreading import check_executor
from fastmlp_kernels.algebra.tables import Interval

# Of halving. Below, a search would stop after nearly every epoch.
FACTORS = Interval(1.2, math.inf, True, False)


def search(
    X: Any,
    y: Any,
    grid: Any,
    *,
    cv: Any = None,
    validation_data: Any = None,
    metric: Any = None,
    higher_is_better: bool | None = None,
    epochs: int = 10,
    halving: float | None = None,
    sample_weight: Any = None,
    bootstrap: bool = False,
    fold_seed: int = 0,
    refit: bool = True,
    executor: Executor | None = None,
    device: str = "auto",
    kernel: str | None = None,
    threads: int | None = None,
    **fixed: Any,
) -> SearchResult:
    """Train every candidate of a grid on every fold, and the best one on all rows.

    Candidates of one shape are trained side by side. On a CPU each has the bits of `MLP.fit` on the
    rows of the fold, whatever else is searched and whoever computes it.

    Parameters
    ----------
    X, y : array-like
        As in `MLP.fit`, but for `Chunks`.
    grid : dict of str to list, or several of them
        Every combination of the values is a candidate. The names are the keywords of `MLP`, with
        `hidden_sizes` in the place of `sizes`; `optimizer`, `batch_size`, `l2`, `shuffle` and
        `class_weight` of `MLP.fit`; and `learning_rate`, of the optimizer.
    cv : int, splitter or pairs, optional
        How many folds, by default 5, dealt out by `fold_seed`, each class evenly; an object with
        scikit-learn's ``split(X, y)``; or pairs (train, test) of numbers of rows.
    validation_data : (X, y) or (X, y, weights), optional
        What to judge by in the place of folds: candidates are then trained on all rows.
    metric : str or callable, optional; higher_is_better : bool, optional
        "loss", or a metric of `MLP.evaluate`; by default what suits the loss. Of a function, which
        numbers are the better ones.
    epochs : int; halving : float, optional
        With 27 epochs and a halving of 3, the best third goes on after 1, after 3 and after 9.
    sample_weight : array-like (rows,), optional
        As in `MLP.fit`; it also weighs the rows that are judged by.
    bootstrap : bool; refit : bool
        Whether to train on rows drawn with replacement by the candidate's seed, as weights; and
        whether to train the best candidate on all rows, each of them once.
    executor : concurrent.futures.Executor, optional
        Who computes: threads, processes, other machines. What it loses is computed here.
    device, kernel : str, optional; threads : int, optional
        As in `MLP.fit`, of each part; with an executor, one thread by default.
    **fixed
        What all candidates share, by the names of a grid.

    Returns
    -------
    SearchResult

    Raises
    ------
    DomainError, DTypeError, ShapeError, UnknownKeywordError, UnknownNameError
        If an argument does not suit, before anything is trained.

    Examples
    --------
    >>> grid = {"learning_rate": [1e-3, 1e-2], "hidden_sizes": [(8,), (16, 16)]}
    >>> found = fastmlp.search(X, y, grid, cv=3, epochs=5, optimizer="adam")
    >>> len(found.candidates), found.fold_scores.shape
    (4, (4, 3))
    """
    return _search(X, y, grid, locals())


def _search(X: Any, y: Any, grid: Any, given: Mapping[str, Any]) -> SearchResult:
    """Search, once all arguments have been checked, which are `given` by name."""
    executor, metric, weight = (given[name] for name in ("executor", "metric", "sample_weight"))
    check_executor(executor)
    place = given["device"], given["kernel"], given["threads"]
    where = asked(*place, None)
    if executor is not None and where.threads is None:
        where = where._replace(threads=1)
    refit = check_switch(given["refit"], "refit")
    candidates = list_candidates(grid, given["fixed"])
    rows = SearchedRows(X, y, weight, given["validation_data"], given["bootstrap"], metric, where)
    trials = make_trials(candidates, given["fixed"], rows.inputs, y)
    rows.divide(trials, given["cv"], check_integer(given["fold_seed"], "fold_seed", 0))
    higher = _direction(metric, given["higher_is_better"], rows.metrics)
    epochs = check_integer(given["epochs"], "epochs", 1)
    progress = Progress(trials, rows)
    for count, until in rungs(epochs, len(trials), given["halving"]):
        progress.train(progress.best(count, higher), until, executor)
    ranks = progress.rank(higher)
    best = int(np.argmin(ranks))
    if np.isnan(progress.scores[best]).any():
        raise NonFiniteTrainingError(
            "search: got a loss, gradient, parameter or score that is not finite in every "
            "candidate, wanted finite numbers; try smaller learning rates, inputs and targets of "
            "the order of 1, and a metric that gives a number for these rows"
        )
    model = None
    if refit:
        model = _refit(trials[best], X, y, epochs, weight, place)
    name = "loss" if rows.metrics[0] is None else rows.metrics[0].name
    values = [each.values for each in trials]
    own = dict.fromkeys(each for one in candidates for each in one)
    columns = {each: [one[each] for one in values] for each in own} | progress.columns(ranks)
    return SearchResult(columns, progress.scores, name, values, best, model)


def rungs(epochs: int, candidates: int, halving: float | None) -> list[tuple[int, int]]:
    """Return how many candidates are trained, and to which epoch: one pair after another."""
    if halving is None:
        return [(candidates, epochs)]
    factor = check_within(halving, "halving", FACTORS)
    steps = 0
    while candidates / factor ** (steps + 1) >= 1 and epochs / factor ** (steps + 1) >= 1:
        steps += 1
    found = [
        (math.ceil(candidates / factor**k), round(epochs / factor ** (steps - k)))
        for k in range(steps + 1)
    ]
    # A factor near 1 gives equal ones.
    return [
        each for k, each in enumerate(found) if k + 1 == len(found) or each[1] < found[k + 1][1]
    ]


def _direction(metric: Any, given: bool | None, judges: Sequence[Metric | None]) -> bool:
    """Return whether higher scores are better."""
    names = {each.name if each else "loss" for each in judges}
    if len(names) > 1:
        raise DomainError(
            f"metric: got none with losses that are judged by {' and '.join(sorted(names))}, "
            "wanted one for all candidates"
        )
    known = judges[0].higher_is_better if judges[0] else False
    if known is None and given is None:
        raise DomainError(
            f"higher_is_better: got None with metric={metric!r}, wanted True or False: nobody "
            "knows which numbers of a function are the better ones"
        )
    if known is not None and given not in (None, known):
        raise DomainError(f"higher_is_better: got {given!r} with metric={metric!r}, wanted {known}")
    return bool(given if known is None else known)


def _refit(
    trial: Trial,
    X: Any,
    y: Any,
    epochs: int,
    sample_weight: Any,
    where: tuple[str, str | None, int | None],
) -> MLP:
    """Return the network of a candidate, trained on all rows."""
    values, template = trial.values, trial.template
    shape = template.sizes, values["activations"], values["loss"]
    names = ("seed", "dtype", "reduction", "precision", "initializer", "gain", "dropout")
    model = MLP(*shape, **{name: values[name] for name in names})
    rest: dict[str, Any] = {name: values[name] for name in OF_FIT}
    rest |= zip(("device", "kernel", "threads"), where, strict=True)
    rest |= {"optimizer": trial.optimizer, "sample_weight": sample_weight}
    model.fit(X, y, epochs=epochs, progress=False, **rest)
    return model
