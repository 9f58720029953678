"""The container: named arrays and a header, as safetensors with a digest of every byte.

Nothing in a file is executed, and nothing in it names a function or a class: a header holds
numbers and names, which are looked up in tables.
"""

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.errors import MissingPackageError, ModelFileError

Array = NDArray[Any]
Header = dict[str, Any]

# The newest format that this version reads, and the one that it writes.
FORMAT = 1
DTYPES = ("float32", "float64", "int64")
# Bytes of a header; safetensors itself allows a hundred million.
LARGEST_HEADER = 2**24
# The safetensors format: so many bytes say how long the header is.
LENGTH_BYTES = 8
NO_DIGEST = "0" * 64


def pack(header: Mapping[str, Any], arrays: Mapping[str, Array]) -> bytes:
    """Return the bytes of a file.

    Parameters
    ----------
    header : mapping
        What JSON can hold; no NaN and no infinity.
    arrays : mapping
        Of float32, float64 or int64.

    Raises
    ------
    MissingPackageError
        If safetensors is not installed.

    Examples
    --------
    >>> header, arrays = unpack(pack({"seed": 3}, {"a": np.zeros(2)}), "a file")
    >>> header["seed"], arrays["a"].tolist()
    (3, [0.0, 0.0])
    """
    text = json.dumps({"format": FORMAT, **header}, allow_nan=False)
    metadata = {"fastmlp": text, "sha256": NO_DIGEST}
    whole = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    data: bytes = _safetensors("save").save(whole, metadata)
    # The digest is of the file as it is with zeros in the digest's place.
    digest = hashlib.sha256(data).hexdigest()
    return data.replace(_entry(NO_DIGEST), _entry(digest), 1)


def unpack(data: bytes, name: str) -> tuple[Header, dict[str, Array]]:
    """Return the header and the arrays of a file's bytes.

    Parameters
    ----------
    data : bytes
    name : str
        What messages call the file.

    Raises
    ------
    ModelFileError
        If the bytes are no file of fastmlp, were changed or cut off, or are of a newer format.
    MissingPackageError
        If safetensors is not installed.
    """
    numpy_side = _safetensors("load")
    metadata = _metadata(data, name)
    digest = metadata["sha256"]
    if len(digest) != len(NO_DIGEST):
        raise _damaged(name)
    blank = data.replace(_entry(digest), _entry(NO_DIGEST), 1)
    if hashlib.sha256(blank).hexdigest() != digest:
        raise _damaged(name)
    header = _strict_json(metadata["fastmlp"], name)
    written = header.get("format")
    if type(written) is not int or written < 1:
        raise ModelFileError(f"{name}: got format {written!r}, wanted a number from 1")
    if written > FORMAT:
        raise ModelFileError(
            f"{name}: got format {written}, wanted at most {FORMAT}, which this version reads; "
            "install a newer fastmlp"
        )
    try:
        arrays = numpy_side.load(data)
    except Exception as error:
        raise ModelFileError(f"{name}: got arrays that cannot be read ({error})") from None
    for key, array in arrays.items():
        if array.dtype.name not in DTYPES:
            wanted = ", ".join(DTYPES)
            raise ModelFileError(f"{name}: got {key} of {array.dtype}, wanted one of {wanted}")
    return header, arrays


def read_whole(path: str | PathLike[str]) -> bytes:
    """Return the bytes of a file; what is no regular file may have no end, and is refused."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ModelFileError(f"{fspath(path)}: got something that is no regular file, wanted one")
    return Path(path).read_bytes()


def _safetensors(method: str) -> Any:
    try:
        import safetensors.numpy
    except ImportError:
        raise MissingPackageError(
            f"{method}: got no safetensors, wanted it installed: pip install fastmlp[save]"
        ) from None
    return safetensors.numpy


def _entry(digest: str) -> bytes:
    return f'"sha256":"{digest}"'.encode()


def _metadata(data: bytes, name: str) -> dict[str, str]:
    """Return the two texts that the header of a file of fastmlp has."""
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    start = data[LENGTH_BYTES : LENGTH_BYTES + 1]
    if len(data) < LENGTH_BYTES or start != b"{":
        raise ModelFileError(f"{name}: got a file of another kind, wanted one made by save")
    if length > min(LARGEST_HEADER, len(data) - LENGTH_BYTES):
        raise _damaged(name)
    # As text by latin-1: any byte is a character, and a changed one is found by the digest.
    content = _strict_json(data[LENGTH_BYTES : LENGTH_BYTES + length].decode("latin-1"), name)
    metadata = content.get("__metadata__")
    if not isinstance(metadata, dict) or "fastmlp" not in metadata:
        raise ModelFileError(f"{name}: got a file of another program, wanted one made by save")
    texts = {key: metadata.get(key) for key in ("fastmlp", "sha256")}
    if not all(isinstance(each, str) for each in texts.values()):
        raise _damaged(name)
    return texts  # type: ignore[return-value]


def _strict_json(text: str, name: str) -> Header:
    try:
        found = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        if not isinstance(found, dict):
            raise TypeError
    except (ValueError, TypeError, RecursionError):
        raise _damaged(name) from None
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name that is there twice")
    return found


def _no_constant(constant: str) -> Any:
    raise ValueError(constant)


def _damaged(name: str) -> ModelFileError:
    return ModelFileError(
        f"{name}: got a file that was changed or cut off after it was written, wanted it whole; "
        "take another copy of it"
    )
