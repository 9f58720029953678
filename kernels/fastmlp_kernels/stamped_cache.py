"""Compiled code on disk: one file for each function and signature, of the CPU's and of CUDA's."""

import functools
import hashlib
import inspect
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core.caching import FunctionCache
from numba.core.serialize import dumps

from fastmlp_kernels.disk_cache import CacheFolder, warn_once
from fastmlp_kernels.fingerprints import fingerprint

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


# Those of GPUs may change the code of CUDA kernels.
OTHER_CUDA_SETTINGS = tuple(x for x in OTHER_SETTINGS if x not in ("CUDA_", "FORCE_CUDA"))
# The libraries that make machine code for a GPU, as `cuda.pathfinder` names them.
CUDA_COMPILERS = ("nvvm", "nvJitLink")


def settings(others: tuple[str, ...] = OTHER_SETTINGS) -> str:
    """Return Numba's settings (NUMBA_OPT and its kin) that may change what is compiled."""
    found = vars(numba.config).items()
    return repr(sorted((n, repr(v)) for n, v in found if n.isupper() and not n.startswith(others)))


@functools.cache
def cuda_toolchain() -> str:
    """Return what says which programs make machine code of CUDA kernels: versions, and files."""
    import numba_cuda
    from cuda import bindings, core, pathfinder
    from numba.cuda.cudadrv import driver, libs

    found = [each.__version__ for each in (numba, numba_cuda, llvmlite, bindings, core)]
    files = [Path(libs.get_libdevice())]
    for library in CUDA_COMPILERS:
        try:
            files.append(Path(pathfinder.load_nvidia_dynamic_lib(library).abs_path or library))
        except Exception:
            # Without it the driver is the assembler.
            found.append(f"{library}: driver {driver.driver.get_version()}")
    for path in files:
        about = path.stat()
        found.append(f"{path} {about.st_size} {about.st_mtime_ns}")
    return repr(found)


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

    def _file(self, key: Any) -> tuple[str, str]:
        """Return the name of the file for a key, and what the file holds for.

        An edited source writes over the files of the old one. Other settings and other processors,
        which may share a folder, have files of their own.
        """
        short = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
        name = f"{self.base}-{sys.implementation.cache_tag}-{short}.nbc"
        return name, f"{self._stamp} {key!r}"

    def _key(self, sig: Any, codegen: Any) -> Any:
        # Numba's key holds the closure, and a compiled function in it hashes anew in each process.
        return sig, codegen.magic_tuple(), settings()

    def _load(self, key: Any, rebuild: Callable[[Any], Any]) -> Any:
        name, identity = self._file(key)
        content = self.folder.read(name, identity)
        if content is None:
            return None
        try:
            return rebuild(pickle.loads(content))
        except Exception as error:
            warn_once("%s cannot be used (%r): compiling anew", self.folder.path / name, error)
            return None

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return what was compiled for a signature, or None."""
        target_context.refresh()
        key = self._key(sig, target_context.codegen())
        return self._load(key, lambda held: self._impl.rebuild(target_context, held))

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep what was compiled for a signature."""
        if self._impl.check_cachable(data):
            name, identity = self._file(self._key(sig, data.codegen))
            self.folder.write(name, identity, dumps(self._impl.reduce(data)))


class CudaCache(StampedCache):
    """The disk cache of a CUDA kernel: its machine code, for one GPU's capability.

    A factory makes many kernels of one function. What its closure holds tells them apart: the
    choice, in the file's name, and the code of all parts, in what the file holds for.

    Parameters
    ----------
    dispatcher : CUDADispatcher
    stamp : str
        As of `StampedCache`.

    Raises
    ------
    RuntimeError
        If there is no folder to be had.
    fingerprints.UnknownValueError
        If the kernel cannot be told from another one.
    """

    def __init__(self, dispatcher: Any, stamp: str) -> None:
        function = dispatcher.py_func
        place = f"{Path(inspect.getfile(function)).stem}.{function.__name__}"
        super().__init__(function, f"{stamp} {fingerprint(function)}", place)
        self._dispatcher = dispatcher
        self._choice = fingerprint(function, with_code=False)

    def _key(self, sig: Any, codegen: Any) -> Any:
        from numba import cuda

        # Asked anew: they are changed before a kernel is compiled for another purpose.
        options = sorted((name, repr(v)) for name, v in self._dispatcher.targetoptions.items())
        capability = tuple(cuda.get_current_device().compute_capability)
        about = capability, cuda_toolchain(), settings(OTHER_CUDA_SETTINGS)
        return self._choice, tuple(sig), options, about

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the kernel that was compiled for a signature, or None."""
        from numba.cuda.dispatcher import _Kernel

        return self._load(self._key(sig, None), lambda held: _Kernel._rebuild(**held))

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep the kernel that was compiled for a signature."""
        from numba.cuda.serialize import dumps

        if data.launch_config_sensitive:
            return
        held, library = data._reduce_states(), data.library
        # Not its LLVM code, which is four fifths of it: nobody compiles it once more.
        parts = {**library._reduce_states(), "llvm_strs": []}
        held["codelibrary"] = library._rebuild(**parts)
        name, identity = self._file(self._key(sig, None))
        self.folder.write(name, identity, dumps(held))
