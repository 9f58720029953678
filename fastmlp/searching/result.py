"""What a search found: columns of numbers by candidate, and the best model."""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.errors import MissingPackageError
from fastmlp.summary import html_table

if TYPE_CHECKING:
    from fastmlp.model import MLP

# Candidates that a notebook shows.
SHOWN = 10
NUMBERS = ("rank", "score", "spread", "loss", "train_loss", "epochs", "seconds")


@dataclass(frozen=True)
class SearchResult:
    """The candidates of a search, what they have reached, and the best of them.

    Attributes
    ----------
    columns : dict of str to list or ndarray
        One value a candidate, in the order of the grid: first what the grid gave it, by name, and
        then:

        - `rank`: 1 is the best. Candidates that were trained longer come before others, and those
          that failed come last.
        - `score`, `spread`: mean and standard deviation over the folds of `metric`.
        - `loss`, `train_loss`: means over the folds of the loss of the rows that were judged by,
          and of the last epoch.
        - `epochs`: how long each was trained.
        - `seconds`: its share of the time of computing.
    fold_scores : ndarray
        float64[candidates, folds]; NaN where a fit met a number that is not finite.
    metric : str
    candidates : list of dict
        Everything that a candidate is: also what it shares with all others.
    best_index : int
    best_model : MLP or None
        The best candidate, trained on all rows; None with ``refit=False``.

    Examples
    --------
    >>> found = fastmlp.search(X, y, {"l2": [0.0, 1e-3]}, cv=3, epochs=5, optimizer="adam")
    >>> found.columns["rank"].tolist() in ([1, 2], [2, 1])
    True
    >>> found.best_model.predict(X).shape
    (200,)
    """

    columns: Mapping[str, Any]
    fold_scores: NDArray[np.float64]
    metric: str
    candidates: list[dict[str, Any]]
    best_index: int
    best_model: "MLP | None"

    @property
    def best_score(self) -> float:
        """The score of the best candidate: the mean over its folds."""
        return float(self.columns["score"][self.best_index])

    @property
    def best_candidate(self) -> dict[str, Any]:
        """What the grid gave to the best candidate."""
        own = [name for name in self.columns if name not in NUMBERS]
        return {name: self.candidates[self.best_index][name] for name in own}

    def to_frame(self) -> Any:
        """Return a pandas.DataFrame of the columns and of the score of each fold, by candidate.

        Raises
        ------
        MissingPackageError
            If pandas is not installed.

        Examples
        --------
        >>> found = fastmlp.search(X, y, {"seed": [0, 1]}, cv=2, epochs=2)
        >>> best = found.to_frame().sort_values("rank").iloc[0]
        """
        try:
            import pandas
        except ImportError:
            raise MissingPackageError(
                "to_frame: got no pandas, wanted it installed: pip install fastmlp[pandas]"
            ) from None
        folds = {f"score of fold {k}": own for k, own in enumerate(self.fold_scores.T)}
        return pandas.DataFrame({**self.columns, **folds}).rename_axis("candidate")

    def _texts(self) -> list[list[str]]:
        """Return the best candidates as text."""
        order = np.argsort(self.columns["rank"], kind="stable")[:SHOWN]
        return [[_shown(values[k]) for values in self.columns.values()] for k in order]

    def __repr__(self) -> str:
        count, folds = self.fold_scores.shape
        several = f"{folds} folds" if folds > 1 else "1 set of rows to judge by"
        return (
            f"SearchResult({count} candidates, {several}; best {self.metric} "
            f"{self.best_score:.6g}: {self.best_candidate})"
        )

    def _repr_html_(self) -> str:
        return f"<p>{escape(repr(self))}</p>{html_table([*self.columns], self._texts())}"


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def rank(scores: NDArray[np.float64], epochs: NDArray[np.int64], higher: bool) -> Any:
    """Return int64[candidates]: 1 for the best; equal ones in their order, and NaN at the end."""
    worth = np.where(np.isnan(scores), -np.inf, scores if higher else -scores)
    # The last key counts first.
    order = np.lexsort((np.arange(len(scores)), -worth, -epochs, np.isnan(scores)))
    ranks = np.empty(len(scores), dtype=np.int64)
    ranks[order] = np.arange(1, len(scores) + 1)
    return ranks
