"""
Data larger than the memory
===========================

Rows that lie in files are read chunk by chunk. A thread reads the next chunk while this one is
trained on, so the memory holds two or three chunks and never all rows.
"""

# %%
# Twelve files stand for a data set that does not fit. Each has a part of the rows, at random: rows
# of different chunks never meet in a mini-batch, so files must not be sorted.

import tempfile
from pathlib import Path

import numpy as np
from matplotlib import pyplot

from fastmlp import MLP, Adam, Chunks

rng = np.random.default_rng(0)
folder = tempfile.TemporaryDirectory()


def rows(count):
    """Return features and targets."""
    X = rng.normal(size=(count, 8)).astype("float32")
    return X, (np.sin(X[:, 0]) + 0.5 * X[:, 1] * X[:, 2]).astype("float32")


pairs = []
for part in range(12):
    X, y = rows(1000)
    paths = [Path(folder.name) / f"{name}{part}.npy" for name in "Xy"]
    np.save(paths[0], X)
    np.save(paths[1], y)
    pairs.append(tuple(paths))

# %%
# ``Chunks`` take the place of X and y. Everything else of ``fit`` is as ever.

chunks = Chunks(pairs)
validation = rows(2000)
model = MLP([8, 64, 64, 1], seed=0)
history = model.fit(chunks, epochs=15, optimizer=Adam(1e-3), validation_data=validation)
print(chunks, history)

# %%
# For comparison, the same rows as arrays. Only the order of the rows differs.

arrays = [np.concatenate([np.load(pair[k]) for pair in pairs]) for k in (0, 1)]
whole = MLP([8, 64, 64, 1], seed=0)
in_memory = whole.fit(*arrays, epochs=15, optimizer=Adam(1e-3), validation_data=validation)

figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
epochs = range(1, 16)
axes.plot(epochs, history.validation_loss, "o-", label="chunks from files")
axes.plot(epochs, in_memory.validation_loss, "s--", label="arrays in the memory")
axes.set(xlabel="epoch", ylabel="validation loss", yscale="log")
axes.legend()
pyplot.show()
folder.cleanup()
