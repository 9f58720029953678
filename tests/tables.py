"""A table with named columns that is read as pandas's are, where pandas is not installed."""

from types import SimpleNamespace

import numpy as np

# What the kinds of pandas's own dtypes are.
KINDS = {"category": "O", "str": "O", "Int64": "i", "boolean": "b"}


class Column:
    """A column: its values, and the name of its dtype where it is not NumPy's."""

    def __init__(self, values, dtype=None):
        self.values = np.asarray(values)
        self.dtype = self.values.dtype if dtype is None else _dtype(dtype)

    def isna(self):
        """Return where a value is missing: None or NaN."""
        return [each is None or each != each for each in self.values.tolist()]

    def __iter__(self):
        return iter(self.values.tolist())

    def __array__(self, dtype=None, copy=None):
        return self.values.astype(dtype or self.values.dtype)


def _dtype(name):
    class Named(SimpleNamespace):
        def __str__(self):
            return self.name

    return Named(name=name, kind=KINDS[name])


class Table:
    """A table: columns by name, and what NumPy makes of all of them together."""

    def __init__(self, **columns):
        self._columns = {
            name: each if isinstance(each, Column) else Column(each)
            for name, each in columns.items()
        }

    @property
    def columns(self):
        """Return the names."""
        return list(self._columns)

    @property
    def dtypes(self):
        """Return the dtypes."""
        return [each.dtype for each in self._columns.values()]

    def __getitem__(self, names):
        if isinstance(names, list):
            return Table(**{name: self._columns[name] for name in names})
        return self._columns[names]

    def __len__(self):
        return len(next(iter(self._columns.values())).values)

    def __array__(self, dtype=None, copy=None):
        arrays = [each.values for each in self._columns.values()]
        plain = {str(each.dtype) for each in arrays} == {"float64"}
        stacked = np.stack([each.astype("float64" if plain else object) for each in arrays], axis=1)
        return stacked.astype(dtype or stacked.dtype)
