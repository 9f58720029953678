"""Files in which later processes find what the compiler made.

Whatever is read here is run. So the files lie in a folder that nobody else can write to, and each
is bound to its name, to the sources and settings that it came from and to its processor.
"""

import contextlib
import hashlib
import logging
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

logger = logging.getLogger("fastmlp")

DIGEST_BYTES = hashlib.sha256().digest_size
DRAFT = ".draft"
# What a killed process left is swept away when nobody can be writing it any more.
DRAFT_SECONDS = 3600.0

# On Windows a folder has no descriptor, and the folders of a user's profile are that user's alone.
POSIX = os.name == "posix"
ROOT = 0
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
# Without following links, and without waiting where a pipe stands in a file's place.
READ = os.O_RDONLY | sum(getattr(os, f"O_{name}", 0) for name in ("NOFOLLOW", "NONBLOCK", "BINARY"))
WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
OWN_FOLDER, OWN_FILE = 0o700, 0o600

# Numba's files are many, and what is wrong with one is mostly wrong with all.
_said: set[str] = set()


class NotOursError(OSError):
    """Somebody else could have written what stands here."""


def warn_once(message: str, *arguments: object) -> None:
    """Log a warning, the first time in a process."""
    if message not in _said:
        _said.add(message)
        logger.warning(message, *arguments)


class CacheFolder:
    """A folder of this user's own, inside one that others perhaps write to.

    Reading and writing never raise: without a cache there is only more to compile.

    Parameters
    ----------
    parent : Path
        Need not exist. Others may replace in it whatever they can, but not by a folder or a file of
        this user, and none of another one (but root) is believed.
    """

    def __init__(self, parent: Path) -> None:
        self.path = parent / (f"fastmlp-{os.geteuid()}" if POSIX else "fastmlp")

    def read(self, name: str, identity: str) -> bytes | None:
        """Return what `write` was given, or None if it is not there or may not be believed.

        Parameters
        ----------
        name : str
            Of the file.
        identity : str
            What the content holds for. Written for another one, it is not there.
        """
        path = self.path / name
        try:
            with self._opened() as folder:
                content = _read(path, folder)
        except FileNotFoundError:
            return None
        except NotOursError as error:
            warn_once(_REFUSED, error)
            return None
        except OSError as error:
            warn_once("%s cannot be read (%s): compiling anew", path, error)
            return None
        digest, content = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
        if hashlib.sha256(content).digest() != digest:
            warn_once("%s is damaged: compiling anew", path)
            return None
        if content[:DIGEST_BYTES] != _bond(name, identity):
            return None
        return content[DIGEST_BYTES:]

    def write(self, name: str, identity: str, content: bytes) -> None:
        """Keep some bytes, whole or not at all, whoever reads or writes at the same time."""
        content = _bond(name, identity) + content
        draft = self.path / f"{name}.{secrets.token_hex(8)}{DRAFT}"
        try:
            self._make()
            with self._opened() as folder:
                try:
                    _write(draft, folder, hashlib.sha256(content).digest() + content)
                    _move(draft, self.path / name, folder)
                except BaseException:
                    with contextlib.suppress(OSError):
                        os.unlink(_place(draft, folder), dir_fd=folder)
                    raise
                self._sweep(folder)
        except NotOursError as error:
            warn_once(_REFUSED, error)
        except OSError as error:
            warn_once(
                "compiled kernels could not be kept in %s (%s): they are compiled anew in each "
                "process",
                self.path,
                error,
            )

    def _make(self) -> None:
        missing = [each for each in (self.path, *self.path.parents) if not each.exists()]
        for each in reversed(missing):
            with contextlib.suppress(FileExistsError):
                each.mkdir(OWN_FOLDER)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int | None]:
        """Open the folder, and check what was opened: its path may be another's in a moment."""
        if not POSIX:
            yield None
            return
        folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            _check(folder, self.path, stat.S_ISDIR)
            yield folder
        finally:
            os.close(folder)

    def _sweep(self, folder: int | None) -> None:
        for name in os.listdir(self.path if folder is None else folder):
            if name.endswith(DRAFT):
                place = _place(self.path / name, folder)
                with contextlib.suppress(OSError):
                    if os.stat(place, dir_fd=folder).st_mtime < time.time() - DRAFT_SECONDS:
                        os.unlink(place, dir_fd=folder)


_REFUSED = (
    "%s, wanted one that you alone can write to, since what is read there is run. Kernels are "
    "compiled anew in each process. Delete it, or set NUMBA_CACHE_DIR to a folder of your own"
)


def _place(path: Path, folder: int | None) -> str:
    return str(path) if folder is None else path.name


def _read(path: Path, folder: int | None) -> bytes:
    descriptor = os.open(_place(path, folder), READ, dir_fd=folder)
    try:
        _check(descriptor, path, stat.S_ISREG)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def _write(path: Path, folder: int | None, content: bytes) -> None:
    with os.fdopen(os.open(_place(path, folder), WRITE, OWN_FILE, dir_fd=folder), "wb") as file:
        file.write(content)


def _move(source: Path, target: Path, folder: int | None) -> None:
    # No file replaces a folder.
    with contextlib.suppress(OSError):
        os.rmdir(_place(target, folder), dir_fd=folder)
    places = _place(source, folder), _place(target, folder)
    os.replace(*places, src_dir_fd=folder, dst_dir_fd=folder)


def _bond(name: str, identity: str) -> bytes:
    return hashlib.sha256(f"{name}\0{identity}".encode()).digest()


def _check(descriptor: int, path: Path, is_kind: Callable[[int], bool]) -> None:
    """Raise if what is open is of another kind, or may be written by anybody else but root."""
    found = os.fstat(descriptor)
    if not is_kind(found.st_mode):
        raise OSError("not a file")
    if not POSIX:
        return
    if found.st_uid not in (os.geteuid(), ROOT):
        raise NotOursError(f"{path}: got one of another user (number {found.st_uid})")
    if found.st_mode & OTHERS_WRITE:
        mode = stat.filemode(found.st_mode)
        raise NotOursError(f"{path}: got one that others can write to ({mode})")
