"""Writing a file atomically: every reader finds the old content or the new one."""

import contextlib
import os
import stat
from os import PathLike
from pathlib import Path

# Bytes of a file's name in that of its draft. Most systems allow 255 in all.
LONGEST_PART = 200


def write_atomically(path: str | PathLike[str], data: bytes) -> None:
    """Write `data` beside the file, bring it to the disk, and move it into place.

    A process that is killed, or a machine that loses power, leaves the old file or the new one. A
    killed process may leave its draft, ``.NAME.….draft``, beside it. Nobody can tell whether the
    writer of a draft still lives, on another machine maybe: whoever knows may delete it.

    Parameters
    ----------
    path : path
        A link is followed. The file's folder must be there.
    data : bytes

    Raises
    ------
    OSError
        If the file cannot be written, for example on a full disk. The old file is then untouched.
        What is no regular file, such as a folder or a device, is refused.

    Notes
    -----
    The order is that of Pillai et al., OSDI 2014: write, fsync, rename, fsync of the folder. After
    an fsync that failed the same file is not tried again, since the system may have dropped its
    pages.
    """
    place = find_place(path)
    draft = draft_of(place)
    # Not mkstemp: a file of its own making would be readable by its owner alone.
    file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        try:
            _keep_mode(place, file)
            _write(file, data)
            os.fsync(file)
        finally:
            os.close(file)
        draft.replace(place)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise
    _sync_folder(place.parent)


def draft_of(place: Path) -> Path:
    """Return a name beside a file that nobody else uses."""
    name = place.name
    while len(os.fsencode(name)) > LONGEST_PART:
        name = name[:-1]
    return place.with_name(f".{name}.{os.urandom(8).hex()}.draft")


def find_place(path: str | PathLike[str]) -> Path:
    """Return the file that a path leads to, by any links; it is there, or can be made.

    Raises
    ------
    OSError
        If something else is there, or there is no folder for it.
    """
    place = Path(os.path.realpath(path))
    try:
        regular = stat.S_ISREG(place.stat().st_mode)
    except FileNotFoundError:
        regular = True
        if not place.parent.is_dir():
            raise FileNotFoundError(
                f"path: got {path}, wanted one in a folder that is there"
            ) from None
    if not regular:
        raise FileExistsError(f"path: got {path}, which is no regular file, wanted a file")
    return place


def _keep_mode(place: Path, file: int) -> None:
    """Give the new file the permissions of the one that it replaces."""
    with contextlib.suppress(OSError):
        os.fchmod(file, place.stat().st_mode & 0o7777)


def _write(file: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]


def _sync_folder(folder: Path) -> None:
    """Bring the new name to the disk, where the system can do that."""
    with contextlib.suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
