"""Compiled CPU code on disk: one file for each function and signature."""

import hashlib
import inspect
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import FunctionCache
from numba.core.serialize import dumps

from fastmlp_kernels.disk_cache import CacheFolder, warn_once

# Numba's settings of folders, output, threads and GPUs: any other may change code.
OTHER_SETTINGS = (
    "CACHE_",
    "COLOR_",
    "CUDA_",
    "DISABLE_CUDA",
    "DUMP_",
    "ENABLE_CUDASIM",
    "FORCE_CUDA",
    "FULL_TRACEBACKS",
    "NUMBA_",
    "SHOW_HELP",
    "THREADING_",
)


def settings() -> str:
    """Return Numba's settings (NUMBA_OPT and its kin) that may change what is compiled."""
    found = vars(numba.config).items()
    return repr(
        sorted((n, repr(v)) for n, v in found if n.isupper() and not n.startswith(OTHER_SETTINGS))
    )


class StampedCache(FunctionCache):
    """Numba's disk cache, valid for as long as its stamp is the same.

    It stands where Numba puts it: beside the source, else in the user's own cache folder. Each
    compiled function is one file. Numba's own index of several is not used: two processes that
    write it at a time may give one number to two functions.

    Parameters
    ----------
    function : callable
    stamp : str
        What stands for the sources and flags that compiled code depends on.
    name : str, optional
        Of a leaf: one function of the source makes many of them, told apart by this name alone.

    Raises
    ------
    RuntimeError
        If there is no folder to be had.
    """

    def __init__(self, function: Callable, stamp: str, name: str = "") -> None:
        super().__init__(function)
        self._stamp = stamp
        self.folder = CacheFolder(Path(self._cache_path))
        self.base = name or f"{Path(inspect.getfile(function)).stem}.{function.__qualname__}"

    def _file(self, signature: Any, codegen: Any) -> tuple[str, str]:
        """Return the name of the file and what it holds for.

        An edited source writes over the files of the old one. Other settings and other processors,
        which may share a folder, have files of their own.
        """
        # Numba's key holds the closure, and a compiled function in it hashes anew in each process.
        key = repr((signature, codegen.magic_tuple(), settings()))
        short = hashlib.sha256(key.encode()).hexdigest()[:16]
        return f"{self.base}-{sys.implementation.cache_tag}-{short}.nbc", f"{self._stamp} {key}"

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return what was compiled for a signature, or None."""
        target_context.refresh()
        name, identity = self._file(sig, target_context.codegen())
        content = self.folder.read(name, identity)
        if content is None:
            return None
        try:
            return self._impl.rebuild(target_context, pickle.loads(content))
        except Exception as error:
            warn_once("%s cannot be used (%r): compiling anew", self.folder.path / name, error)
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep what was compiled for a signature."""
        if self._impl.check_cachable(data):
            name, identity = self._file(sig, data.codegen)
            self.folder.write(name, identity, dumps(self._impl.reduce(data)))
