"""The benchmark of searches: everybody searches the same, with the same epochs."""

import warnings

import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from sklearn.datasets import load_iris

from benchmarks import searches


def test_everybody_finds_a_best_candidate_and_ours_find_the_same(monkeypatch):
    grid = {name: values[-2:] for name, values in searches.GRID.items()}
    monkeypatch.setattr(searches, "GRID", grid)
    # Other processes would take seconds to start.
    monkeypatch.setattr(searches.os, "cpu_count", lambda: 1)
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for title, run in searches.grid_searches(*load_iris(return_X_y=True), 32).items():
            score, best = found[title] = run(2)
            assert 0 < score <= 1
            assert all(each in grid[name] for name, each in zip(grid, best, strict=True))
    by_scikit_learn, by_ours = (
        [each for title, each in found.items() if title.startswith(start)]
        for start in ("scikit-learn", "fastmlp.sklearn")
    )
    assert by_scikit_learn == 2 * by_ours
