"""A rank that is a process: trains on its rows, and says what came out, in one line of JSON."""

import argparse
import json
import os
import sys
import time
import zlib
from pathlib import Path

import numpy as np

from fastmlp import MLP, Adam, Checkpoint, schedules
from fastmlp.distributed import DataParallel, rows_of_rank
from fastmlp.distributed.communicators import as_communicator
from fastmlp.errors import RankFailedError

ROWS, EPOCHS = 1003, 30
# How long a rank that is interrupted waits for the other to say that it has stopped.
WAIT_SECONDS = 30
RNG = np.random.default_rng(5)
X = RNG.normal(size=(ROWS, 6)).astype(np.float32)
Y = np.sin(X[:, :2]) + 0.1 * RNG.normal(size=(ROWS, 2)).astype(np.float32)
WEIGHTS = RNG.random(ROWS)


def train(communicator, shared, epochs=EPOCHS, path=None, **more):
    """Return digests of what a fit leaves on this rank."""
    own = rows_of_rank(ROWS, communicator.rank, communicator.size)
    rows = slice(None) if shared else own
    model = MLP([6, 40, 30, 2], "tanh", seed=3, dropout=0.1)
    if path is not None:
        more.update(callbacks=Checkpoint(path), resume=True)
    history = model.fit(
        *(X[rows], Y[rows]),
        sample_weight=WEIGHTS[rows],
        epochs=epochs,
        batch_size=100,
        optimizer=Adam(schedules.CosineDecay(0.01, 400), clip_norm=0.3),
        validation_data=(X[:50], Y[:50]),
        communicator=DataParallel(communicator, shared_rows=shared),
        threads=1,
        **more,
    )
    arrays = model.parameters, model._state.slots, history.loss, history.validation_loss
    return [zlib.crc32(each.tobytes()) for each in arrays]


def communicator_of(kind, folder):
    if kind == "mpi":
        from mpi4py import MPI

        return MPI.COMM_WORLD
    import torch.distributed

    rank, size = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
    rest = {"rank": rank, "world_size": size}
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", **rest)
    return torch.distributed.group.WORLD


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["mpi", "torch"])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--shared", action="store_true")
    parser.add_argument("--checkpoint", action="store_true")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    asked = parser.parse_args()
    given = communicator_of(asked.kind, asked.folder)
    rank = as_communicator(given).rank
    if asked.folder is not None:
        (asked.folder / f"{rank}.pid").write_text(str(os.getpid()))

    path = asked.folder / "fit.fastmlp" if asked.checkpoint else None
    try:
        found = train(as_communicator(given), asked.shared, asked.epochs, path)
    except RankFailedError as error:
        (asked.folder / "failed").write_text(f"{rank}: {type(error).__name__}: {error}")
        raise
    except KeyboardInterrupt:
        # The launcher ends all as soon as one has ended, in the middle of what it writes.
        deadline = time.monotonic() + WAIT_SECONDS
        while not (asked.folder / "failed").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        raise
    sys.stdout.write(json.dumps([rank, found]) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
