"""Data in chunks, each loaded when its turn comes: more of it than the memory holds."""

import mmap
from collections.abc import Callable, Iterator, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fastmlp.arguments import check_integer
from fastmlp.errors import DomainError, DTypeError, MissingPackageError, ShapeError

Array = NDArray[Any]
File = str | PathLike[str]

PARQUET, ARROW = (".parquet", ".pq"), (".arrow", ".feather", ".ipc")


class Chunks:
    """Rows in chunks, which `fit` takes in the place of X and y and loads one after another.

    Parameters
    ----------
    chunks : sequence or callable
        A sequence of pairs (X, y), or a function of a chunk's number, from 0, that returns such a
        pair. X and y are what `fit` takes, or the path of a .npy file of it. Chunks need not be
        equally long.
    count : int, optional
        How many chunks a function has.

    Attributes
    ----------
    count : int
    columns : tuple of str or None
        The names of the columns of X, of chunks of tables.
    lasting : bool
        Whether the arrays of a chunk stay as they are when the next one is loaded. May be set.

    Notes
    -----
    While a chunk is trained on, a thread loads the next one: a function is called in that thread,
    and the memory holds two chunks. The first chunk is loaded before the fit too, for the checks.
    A memory map is opened anew for each turn and then closed, so that the pages that were read do
    not pile up.

    A function may fill the same arrays each time: `fit` copies them before the next call, unless
    they are `lasting`. The memory holds three chunks meanwhile. The same goes for any sequence but
    a list or a tuple. Arrays in those, and of `from_arrays`, are not copied: nobody may write to
    them during the fit.

    Ctrl-C ends the fit at once, but nothing can end a load that has begun. It goes on beside, and
    a process that ends waits for it. No other fit may use the same function before.

    A mini-batch holds rows of one chunk, so the last one of each chunk may be smaller, and a
    chunk of fewer rows than ``batch_size`` is one mini-batch. With
    ``shuffle`` each epoch takes the chunks in an order of its own, and the rows of each chunk too.
    Both are functions of the model's seed and of the epoch's number. If rows lie in the file by
    class or by date, shuffle them once before: rows of different chunks never meet in a batch.

    Examples
    --------
    >>> chunks = Chunks.from_arrays(X, y, rows=80)
    >>> chunks
    <Chunks: 3>
    >>> history = model.fit(chunks, epochs=2)
    >>> Chunks(lambda number: (X + number, y), count=5)
    <Chunks: 5>
    """

    def __init__(
        self, chunks: Sequence[Any] | Callable[[int], Any], *, count: int | None = None
    ) -> None:
        self.columns: tuple[str, ...] | None = None
        # Any other sequence may make its items when they are asked for.
        self.lasting = type(chunks) in (list, tuple)
        if callable(chunks):
            if count is None:
                raise DomainError("count: got None with a function, wanted the number of chunks")
            self._pair, self.count = chunks, check_integer(count, "count", 1)
            return
        if not hasattr(chunks, "__getitem__") or not hasattr(chunks, "__len__"):
            raise DTypeError(
                f"chunks: got {type(chunks).__name__}, wanted a sequence of pairs (X, y), or a "
                "function of a chunk's number and count="
            )
        if len(chunks) == 0 or count not in (None, len(chunks)):
            raise ShapeError(
                f"chunks: got {len(chunks)} of them and count={count}, wanted at least one, and "
                "count= only with a function"
            )
        self._pair, self.count = chunks.__getitem__, len(chunks)

    @classmethod
    def from_arrays(cls, X: Any, y: Any, rows: int) -> Self:
        """Return chunks of so many rows one after another; the last one may be smaller.

        X and y are arrays, such as memory maps, or paths of .npy files.
        """
        step, found = check_integer(rows, "rows", 1), [len(_opened(each)) for each in (X, y)]
        if found[0] != found[1] or not found[0]:
            raise ShapeError(
                f"y: got {found[1]} rows, wanted {found[0]}, as many as X has, and one"
            )

        def load(number: int) -> tuple[Any, Any]:
            part = slice(number * step, (number + 1) * step)
            return _opened(X)[part], _opened(y)[part]

        chunks = cls(load, count=-(-found[0] // step))
        chunks.lasting = True
        return chunks

    @classmethod
    def from_tables(
        cls,
        files: File | Sequence[File],
        target: str | Sequence[str],
        inputs: Sequence[str] | None = None,
    ) -> Self:
        """Return chunks of Parquet or Arrow files: a chunk is a row group, or a record batch.

        Parameters
        ----------
        files : path or sequence of paths
            ``.parquet`` and ``.pq``, or ``.arrow``, ``.feather`` and ``.ipc``.
        target : str or sequence of str
            The column of y, or its columns.
        inputs : sequence of str, optional
            The columns of X; by default all others.

        Raises
        ------
        MissingPackageError
            If pyarrow is not installed: ``pip install fastmlp[parquet]``.
        ShapeError
            If the first file lacks a column.

        Examples
        --------
        >>> frame = pandas.DataFrame(X, columns=list("abcd")).assign(price=y)
        >>> frame.to_parquet("prices.parquet", row_group_size=50)
        >>> Chunks.from_tables("prices.parquet", target="price")
        <Chunks: 4>
        """
        paths = [files] if isinstance(files, str | PathLike) else list(files)
        targets = [target] if isinstance(target, str) else list(target)
        if not paths:
            raise ShapeError("files: got none, wanted at least one")
        names = _names(paths[0])
        wanted = [each for each in names if each not in targets] if inputs is None else [*inputs]
        missing = [each for each in (*wanted, *targets) if each not in names]
        if missing or not wanted:
            got = f"no column {missing[0]!r}" if missing else "no column but the target's"
            raise ShapeError(f"{fspath(paths[0])}: got {got} among {names}, wanted it")
        pieces = [(path, index) for path in paths for index in range(_count(path))]

        def load(number: int) -> tuple[Any, Any]:
            path, index = pieces[number]
            table = _read(path, index, [*wanted, *targets])
            X, y = (_matrix(table, each, path) for each in (wanted, targets))
            return X, y[:, 0] if isinstance(target, str) else y

        chunks = cls(load, count=len(pieces))
        chunks.columns, chunks.lasting = tuple(wanted), True
        return chunks

    def load(self, number: int) -> tuple[Any, Any]:
        """Return X and y of a chunk; those of files are opened, and read when they are used."""
        pair = self._pair(number)
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise DTypeError(f"chunk {number}: got {type(pair).__name__}, wanted a pair (X, y)")
        return _opened(pair[0]), _opened(pair[1])

    def __repr__(self) -> str:
        return f"<Chunks: {self.count}>"


def _opened(value: Any) -> Any:
    """Return the array of a .npy file, or a memory map anew; anything else as it is.

    Pages that were read through a map count as this process's memory until it is closed.
    """
    if isinstance(value, str | PathLike):
        return np.load(value, mmap_mode="r", allow_pickle=False)
    if type(value) is not np.memmap or not isinstance(value.base, mmap.mmap):
        return value
    begin = np.frombuffer(value.base, np.uint8).ctypes.data
    direct = value.ctypes.data == begin + value.offset % mmap.ALLOCATIONGRANULARITY
    # What is written to a map of mode "c" is in no file.
    if not direct or not value.flags.c_contiguous or value.mode == "c" or value.filename is None:
        return value
    return np.memmap(value.filename, value.dtype, "r", value.offset, value.shape)


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise MissingPackageError(
            "Chunks.from_tables: got no pyarrow, wanted it installed: pip install fastmlp[parquet]"
        ) from None
    return pyarrow


def _table_file(path: File) -> Any:
    """Return an open file of tables: of Parquet, or of Arrow."""
    pyarrow, ending = _pyarrow(), Path(path).suffix.lower()
    if ending in PARQUET:
        return pyarrow.parquet.ParquetFile(path)
    if ending in ARROW:
        return pyarrow.ipc.open_file(pyarrow.memory_map(fspath(path)))
    wanted = ", ".join((*PARQUET, *ARROW))
    raise DomainError(f"files: got {fspath(path)}, wanted names that end in one of {wanted}")


def _names(path: File) -> list[str]:
    file = _table_file(path)
    return list((file.schema_arrow if hasattr(file, "schema_arrow") else file.schema).names)


def _count(path: File) -> int:
    file = _table_file(path)
    of_parquet = hasattr(file, "num_row_groups")
    return int(file.num_row_groups if of_parquet else file.num_record_batches)


def _read(path: File, index: int, columns: list[str]) -> Any:
    file = _table_file(path)
    if hasattr(file, "num_row_groups"):
        with file:
            return file.read_row_group(index, columns=columns)
    return file.get_batch(index)


def _matrix(table: Any, names: list[str], path: File) -> Array:
    return np.column_stack(list(_columns(table, names, path)))


def _columns(table: Any, names: list[str], path: File) -> Iterator[Array]:
    types = _pyarrow().types
    for name in names:
        if name not in table.schema.names:
            raise ShapeError(f"{fspath(path)}: got no column {name!r}, wanted those of the first")
        column = table.column(name)
        numbers = types.is_floating, types.is_integer, types.is_boolean
        if not any(is_one(column.type) for is_one in numbers):
            raise DTypeError(
                f"{fspath(path)}: got column {name!r} of {column.type}, wanted numbers or truth "
                "values; choose columns by inputs="
            )
        # Where there is no value, NaN, which `fit` refuses.
        yield column.to_numpy(zero_copy_only=False)
