"""How far the candidates of a search are, and what they have reached."""

from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.searching.candidates import Trial
from fastmlp.searching.parts import Member, Outcome, Part, train_part
from fastmlp.searching.result import rank
from fastmlp.searching.rows import SearchedRows
from fastmlp.searching.spreading import spread

Numbers = NDArray[np.float64]

# The most memory of parameters and state that are trained together, and the most networks of a
# part that an executor is given: so many parts that every worker has several.
MOST_BYTES, MOST_SPREAD = 2**28, 8
# Copies of the parameters that a training takes, with the optimizer's state.
COPIES = 8


class Progress:
    """The networks of a search: one for each candidate and fold.

    Attributes
    ----------
    scores : ndarray
        float64[candidates, folds]; NaN where a network has failed, or none was trained.
    """

    def __init__(self, trials: Sequence[Trial], rows: SearchedRows) -> None:
        self._trials, self._rows = trials, rows
        shape = len(trials), len(rows.folds)
        self.scores, self._losses, self._train_losses = (np.full(shape, np.nan) for _ in range(3))
        self._seconds = np.zeros(len(trials))
        self._epochs = np.zeros(len(trials), dtype=np.int64)
        self._members = {
            (k, fold): Member(
                each.seed, each.optimizer, each.l2, rows.weights(each, fold), each.parameters
            )
            for k, each in enumerate(trials)
            for fold in rows
        }

    def rank(self, higher: bool) -> NDArray[np.int64]:
        """Return int64[candidates]: 1 for the best."""
        return rank(self.scores.mean(axis=1), self._epochs, higher)

    def best(self, count: int, higher: bool) -> list[int]:
        """Return so many candidates that may be trained on, the best ones."""
        if not self._epochs.any():
            return [*range(len(self._trials))]
        failed = np.isnan(self.scores.mean(axis=1))
        order = np.argsort(self.rank(higher)).tolist()
        return sorted(each for each in order[:count] if not failed[each])

    def train(self, chosen: Sequence[int], until: int, executor: Executor | None) -> None:
        """Train these candidates until they have so many epochs."""
        parts = [
            (places, self._part(places, until))
            for places in self._groups(chosen, spreads=executor is not None)
        ]
        found = spread(train_part, [part for _, part in parts], executor)
        for (places, _), (seconds, outcomes) in zip(parts, found, strict=True):
            for place, outcome in zip(places, outcomes, strict=True):
                self._record(place, outcome, seconds / len(places))
        self._epochs[list(chosen)] = until

    def _record(self, place: tuple[int, int], outcome: Outcome, seconds: float) -> None:
        self._members[place] = outcome.member
        self.scores[place], self._losses[place] = outcome.score, outcome.loss
        self._train_losses[place] = outcome.train_loss
        self._seconds[place[0]] += seconds

    def _groups(self, chosen: Sequence[int], spreads: bool) -> list[list[tuple[int, int]]]:
        """Return networks that are trained side by side: those of one shape on the same rows."""
        groups: dict[Any, list[tuple[int, int]]] = {}
        for fold in self._rows:
            for k in chosen:
                key = fold, *self._key(k, fold)
                groups.setdefault(key, []).append((k, fold))
        parts = []
        for group in groups.values():
            parameters = self._trials[group[0][0]].parameters
            most = max(1, MOST_BYTES // (COPIES * parameters.nbytes))
            most = min(most, MOST_SPREAD) if spreads else most
            parts += [group[start : start + most] for start in range(0, len(group), most)]
        return parts

    def _key(self, k: int, fold: int) -> tuple[Any, ...]:
        """Return what networks have in common that one program trains."""
        trial, weights = self._trials[k], self._members[k, fold].weights
        size, shuffle = self._rows.batch_size(trial, fold), bool(trial.values["shuffle"])
        return trial.template, trial.optimizer.update, size, shuffle, trial.l2 > 0, weights is None

    def _part(self, places: list[tuple[int, int]], until: int) -> Part:
        (k, fold), rows = places[0], self._rows
        template = self._trials[k].template
        members = tuple(self._members[place] for place in places)
        _, _, size, shuffle, _, _ = self._key(k, fold)
        return Part(
            template,
            members,
            rows.train(template, fold),
            rows.test(template, fold),
            size,
            until - members[0].epochs,
            shuffle,
            rows.metric,
            rows.where,
        )

    def columns(self, ranks: NDArray[np.int64]) -> dict[str, Any]:
        """Return what the candidates have reached, by name."""
        return {
            "rank": ranks,
            "score": self.scores.mean(axis=1),
            "spread": self.scores.std(axis=1),
            "loss": self._losses.mean(axis=1),
            "train_loss": self._train_losses.mean(axis=1),
            "epochs": self._epochs,
            "seconds": self._seconds,
        }
