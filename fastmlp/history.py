"""What a fit did, epoch by epoch."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmlp.errors import MissingPackageError, check_name
from fastmlp.summary import html_table

Numbers = NDArray[np.float64]


# The numbers of every epoch.
NUMBERS = ("loss", "seconds", "learning_rate", "penalty")
# Epochs that a notebook shows of a history.
SHOWN_EPOCHS = 10


class EpochRecord(NamedTuple):
    """An epoch: each number is a float, or of several networks an array with one for each.

    `validation` has what was found of each set: by the names of the set and of the metric. It is
    None without validation data, and after an interrupt that came before it.
    """

    loss: Any
    seconds: float
    penalty: Any
    learning_rate: Any
    validation: Mapping[tuple[str, str], Any] | None = None


class History:
    """The record of a fit. It holds the finished epochs, also of a fit that was interrupted.

    Attributes
    ----------
    kernel, device : str
        What ran it.
    metric : str
        What `validation_score` is.
    rows : int
        Rows of an epoch.
    members : int or None
        Networks of an ensemble, or None: then a column has no axis of them.
    validation : str
        The set of which `validation_loss` and `validation_score` are: the first of several.
    best_epoch : int, ndarray or None
        The epoch, from 1, that early stopping found best, of each network of an ensemble; None in a
        fit without it.
    straight_epochs : int
        How many epochs ran in code of their own, which a long fit of a small network gets (see
        "Which kernel, and why" in the guide). It changes no bit, and is not saved.

    Notes
    -----
    Columns are (epochs,), or of an ensemble (epochs, members) with NaN for a network that had
    stopped. All are equally long, or empty. An epoch that an interrupt left without its validation
    has NaN there.

    Examples
    --------
    >>> history = model.fit(X, y, epochs=5, validation_split=0.2, metrics="mae")
    >>> history.values["validation_mae"].shape
    (5,)
    >>> history.to_csv("fit.csv")
    """

    def __init__(
        self,
        kernel: str,
        device: str,
        metric: str,
        rows: int,
        members: int | None = None,
        validation: str = "validation",
    ) -> None:
        self.kernel = kernel
        self.device = device
        self.metric = metric
        self.rows = rows
        self.members = members
        self.validation = validation
        self.best_epoch: Any = None
        self.straight_epochs = 0
        # Each is added or replaced by one operation: an interrupt leaves all columns equally long.
        self._epochs: list[EpochRecord] = []

    def record(
        self, loss: Any, seconds: float, penalty: Any = 0.0, learning_rate: Any = np.nan
    ) -> None:
        """Add an epoch: of an ensemble one number a network, and the seconds of all together."""
        self._epochs.append(EpochRecord(loss, seconds, penalty, learning_rate))

    def record_validation(self, found: Mapping[tuple[str, str], Any]) -> None:
        """Add the validation of the last epoch: by set and metric, the loss among them."""
        self._epochs[-1] = self._epochs[-1]._replace(validation=found)

    def append(self, earlier: "History") -> None:
        """Add the epochs of another history: this one goes on from there."""
        self._epochs.extend(earlier._epochs)

    def last(self) -> dict[str, Any]:
        """Return what is known of the last epoch, by name; `values` has the columns alone."""
        record = self._epochs[-1]
        found = record.validation or {}
        values = {name: getattr(record, name) for name in NUMBERS}
        values |= {"_".join(key): each for key, each in found.items()}
        return {
            "epoch": len(self),
            "values": values,
            **values,
            "validation_loss": found.get((self.validation, "loss")),
            "validation_score": found.get((self.validation, self.metric)),
        }

    def __len__(self) -> int:
        """Return the number of finished epochs."""
        return len(self._epochs)

    def __bool__(self) -> bool:
        """Return True: a history without epochs is still a history."""
        return True

    def _validated(self) -> list[tuple[str, str]]:
        """Return the sets and metrics that any epoch has."""
        kinds = (record.validation for record in self._epochs if record.validation is not None)
        return list(dict.fromkeys(key for found in kinds for key in found))

    def _numbers(self, name: str) -> Numbers:
        shape = () if self.members is None or name == "seconds" else (self.members,)
        numbers = np.array([getattr(each, name) for each in self._epochs], dtype=np.float64)
        return numbers.reshape(len(self), *shape)

    def _found(self, key: tuple[str, str]) -> Numbers:
        """Return a column of the validation; nothing if no epoch has it."""
        shape = () if self.members is None else (self.members,)
        missing = np.full(shape, np.nan)
        rows = [(record.validation or {}).get(key) for record in self._epochs]
        if all(row is None for row in rows):
            rows = []
        filled = [missing if row is None else row for row in rows]
        return np.array(filled, dtype=np.float64).reshape(len(rows), *shape)

    @property
    def values(self) -> dict[str, Numbers]:
        """All columns by name: "loss", "learning_rate", "validation_loss", "validation_r2", ...

        Those of a validation set begin with its name, and the metric follows.
        """
        found = {"_".join(key): self._found(key) for key in self._validated()}
        return {**{name: self._numbers(name) for name in NUMBERS}, **found}

    @property
    def loss(self) -> Numbers:
        """Loss of each epoch: of its mini-batches while they were trained on."""
        return self._numbers("loss")

    @property
    def penalty(self) -> Numbers:
        """The L2 penalty of each epoch, which is not part of `loss`; zeros without one."""
        return self._numbers("penalty")

    @property
    def learning_rate(self) -> Numbers:
        """Learning rate of the last step of each epoch."""
        return self._numbers("learning_rate")

    @property
    def validation_loss(self) -> Numbers:
        """Loss on the validation data after each epoch; empty without validation data."""
        return self._found((self.validation, "loss"))

    @property
    def validation_score(self) -> Numbers:
        """Score on the validation data after each epoch; empty without validation data."""
        return self._found((self.validation, self.metric))

    @property
    def seconds(self) -> Numbers:
        """Seconds of training of each epoch, (epochs,), without the validation."""
        return self._numbers("seconds")

    @property
    def rows_per_second(self) -> float:
        """Rows trained on a second, over all epochs and networks."""
        total = sum(record.seconds for record in self._epochs)
        trained = np.count_nonzero(~np.isnan(self.loss))
        return self.rows * trained / total if total > 0 else 0.0

    def member(self, index: int) -> "History":
        """Return the record of one network of an ensemble; its seconds are its share of all."""
        history = History(
            self.kernel, self.device, self.metric, self.rows, validation=self.validation
        )
        for record in self._epochs:
            if np.isnan(record.loss[index]):
                break
            history._epochs.append(_of_member(record, index))
        if self.best_epoch is not None:
            history.best_epoch = int(self.best_epoch[index])
        return history

    def phrases(self, epoch: int = -1, digits: int = 6) -> list[str]:
        """Return what is known of one epoch in words, the loss first.

        Of an ensemble the mean over the networks, and the range.
        """
        if not self._epochs:
            return ["no epochs"]
        record = self._epochs[epoch]
        said = [f"loss {_said(record.loss, f'.{digits}g')}"]
        for (name, metric), value in (record.validation or {}).items():
            form = ".4f" if metric == self.metric else f".{digits}g"
            said.append(f"{name} {metric} {_said(value, form)}")
        return said

    def line(self, epoch: int = -1) -> str:
        """Return one epoch in words."""
        return ", ".join(self.phrases(epoch))

    def _titles(self) -> list[str]:
        """Return the columns of tables: those of `values`, the penalty only if there is one."""
        penalty = ["penalty"] if np.nansum(self.penalty) else []
        return [*NUMBERS[:3], *penalty, *("_".join(key) for key in self._validated())]

    def _lines(
        self, titles: Sequence[str], first: int = 0
    ) -> Iterator[tuple[tuple[int, ...], Any]]:
        """Yield each epoch from one on, its number and its values by title; None where one lacks.

        Of an ensemble each epoch and network; one that had stopped has no line.
        """
        for epoch, record in enumerate(self._epochs[first:], start=first + 1):
            alone: list[tuple[tuple[int, ...], EpochRecord]] = [((epoch,), record)]
            if self.members is not None:
                trained = np.flatnonzero(~np.isnan(record.loss)).tolist()
                alone = [((epoch, each), _of_member(record, each)) for each in trained]
            for place, own in alone:
                found = {"_".join(key): each for key, each in (own.validation or {}).items()}
                found |= {name: getattr(own, name) for name in NUMBERS}
                yield place, [found.get(title) for title in titles]

    @property
    def _places(self) -> list[str]:
        return ["epoch"] if self.members is None else ["epoch", "member"]

    def to_csv(self, path: str | PathLike[str]) -> None:
        """Write one line an epoch to a CSV file; of an ensemble one an epoch and network."""
        titles = self._titles()
        with Path(path).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*self._places, *titles])
            writer.writerows([*place, *numbers] for place, numbers in self._lines(titles))

    def to_frame(self) -> Any:
        """Return a pandas.DataFrame of the columns, by epoch; of an ensemble by epoch and member.

        Raises
        ------
        MissingPackageError
            If pandas is not installed.

        Examples
        --------
        >>> history = model.fit(X, y, epochs=5, validation_split=0.2)
        >>> best = history.to_frame()[["loss", "validation_loss"]].min()
        """
        try:
            import pandas
        except ImportError:
            raise MissingPackageError(
                "to_frame: got no pandas, wanted it installed: pip install fastmlp[pandas]"
            ) from None
        titles = self._titles()
        lines = list(self._lines(titles))
        places = np.array([place for place, _ in lines], dtype=np.int64)
        columns = [*places.reshape(len(lines), len(self._places)).T]
        index = pandas.Index(columns[0], name="epoch")
        if self.members is not None:
            index = pandas.MultiIndex.from_arrays(columns, names=self._places)
        numbers = [values for _, values in lines]
        return pandas.DataFrame(numbers, index=index, columns=titles, dtype=np.float64)

    def plot(
        self,
        path: str | PathLike[str] | None = None,
        *,
        metric: str = "loss",
        log: bool | None = None,
    ) -> Any:
        """Plot the loss by epoch; of an ensemble, a line for each network.

        What early stopping found best is marked.

        Parameters
        ----------
        path : path, optional
            Where the picture is saved too; its ending says the format.
        metric : str
            The loss, or a metric of the validation data.
        log : bool, optional
            Whether the scale is logarithmic; by default where the numbers are above 0 and differ by
            more than a factor of 100.

        Returns
        -------
        matplotlib.figure.Figure
            A notebook shows it where it is the value of a cell.

        Raises
        ------
        MissingPackageError
            If matplotlib is not installed.

        Examples
        --------
        >>> figure = model.fit(X, y, epochs=5).plot("loss.png")
        """
        known = dict.fromkeys(("loss", *(key[1] for key in self._validated())))
        name = check_name("metric", metric, known)
        try:
            from fastmlp.figures import curves
        except ImportError:
            raise MissingPackageError(
                "plot: got no matplotlib, wanted it installed: pip install fastmlp[plot]"
            ) from None
        drawn = {"training": self.loss} if name == "loss" and len(self) else {}
        of_sets = [key for key in self._validated() if key[1] == name]
        drawn |= {key[0]: self._found(key) for key in of_sets}
        figure = curves(drawn, name, self.best_epoch, log)
        if path is not None:
            figure.savefig(path)
        return figure

    def __repr__(self) -> str:
        networks = "" if self.members is None else f" of {self.members} networks"
        head = f"History of {len(self)} epochs{networks} on {self.kernel}"
        if not len(self):
            return f"<{head}>"
        return f"<{head}: {self.line()}, {self.rows_per_second:,.0f} rows/s>"

    def _repr_html_(self) -> str:
        """Return a table of the last epochs and of the best one, for notebooks."""
        best = {self.best_epoch} if isinstance(self.best_epoch, int) and self.best_epoch else set()
        keys, rows = self._validated(), []
        for epoch in sorted({*range(len(self), 0, -1)[:SHOWN_EPOCHS], *best}):
            record = self._epochs[epoch - 1]
            found = record.validation or {}
            numbers = [record.loss, record.learning_rate, *(found.get(key) for key in keys)]
            cells = ["" if each is None else _said(each, ".5g") for each in numbers]
            mark = f"{epoch} (best)" if epoch in best else str(epoch)
            rows.append([mark, *cells])
        titles = ["epoch", "loss", "learning_rate", *("_".join(key) for key in keys)]
        return f"<p>{escape(repr(self))}</p>{html_table(titles, rows)}"


def _of_member(record: EpochRecord, index: int) -> EpochRecord:
    """Return the record of one network; its seconds are its share of those of all."""
    loss, penalty, rate = (
        float(each[index]) for each in (record.loss, record.penalty, record.learning_rate)
    )
    seconds = record.seconds / int(np.count_nonzero(~np.isnan(record.loss)))
    found = record.validation
    if found is not None:
        found = {key: float(each[index]) for key, each in found.items()}
    return EpochRecord(loss, seconds, penalty, rate, found)


def _said(values: Any, form: str) -> str:
    """Return a number in words; of several their mean and range, of those that there are."""
    if np.ndim(values) == 0:
        return format(float(values), form)
    there = values[~np.isnan(values)]
    numbers = there.mean(), there.min(), there.max()
    mean, least, most = (format(float(each), form) for each in numbers)
    return f"{mean} ({least} to {most})"
