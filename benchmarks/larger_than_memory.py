"""The memory that a fit takes whose data lie in a file of several GB.

``python -m benchmarks.larger_than_memory`` writes a file of 4 GB to the folder of temporary files,
trains on it in a process of its own, prints that process's largest resident memory, and deletes the
file. It fails where that memory is above the limit.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from fastmlp import MLP, Adam, Chunks

COLUMNS = 64
CHUNK_ROWS = 2**18
MIB = 2**20


def write(folder: Path, size: int) -> None:
    """Write X.npy of about so many bytes and y.npy, piece by piece."""
    rows, generator = size // (4 * COLUMNS), np.random.default_rng(0)
    X, y = (
        np.lib.format.open_memmap(folder / name, "w+", np.float32, shape)
        for name, shape in (("X.npy", (rows, COLUMNS)), ("y.npy", (rows,)))
    )
    for start in range(0, rows, CHUNK_ROWS):
        part = slice(start, min(start + CHUNK_ROWS, rows))
        X[part] = generator.standard_normal(X[part].shape, dtype=np.float32)
        y[part] = np.sin(X[part, 0])


def fit(folder: Path) -> None:
    """Train for an epoch; print the rows a second and the largest resident memory, in MiB."""
    chunks = Chunks.from_arrays(folder / "X.npy", folder / "y.npy", CHUNK_ROWS)
    model, started = MLP([COLUMNS, 32, 1]), time.perf_counter()
    history = model.fit(chunks, epochs=1, batch_size=1024, optimizer=Adam(1e-3), progress=False)
    seconds = time.perf_counter() - started
    # Not getrusage, whose peak may be that of the process that started this one.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    print(history.rows / seconds, int(peak.split()[1]) / 1024, history.loss[-1])


def main() -> int:
    """Write, train, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=4096, help="of the file")
    parser.add_argument("--limit", type=int, default=1024, help="of the memory, in MiB")
    parser.add_argument("--folder", help="where the file is written")
    parser.add_argument("--fit", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.fit is not None:
        fit(asked.fit)
        return 0
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        write(Path(folder), asked.mib * MIB)
        command = [sys.executable, "-m", "benchmarks.larger_than_memory", "--fit", folder]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    rate, peak, loss = map(float, done.stdout.split())
    print(f"a file of {asked.mib:,} MiB in chunks of {4 * COLUMNS * CHUNK_ROWS // MIB} MiB:")
    print(f"{peak:,.0f} MiB at most, {rate:,.0f} rows/s with reading, loss {loss:.4g}")
    return int(peak > asked.limit)


if __name__ == "__main__":
    sys.exit(main())
