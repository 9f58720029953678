"""
Saved, loaded, and served from threads
======================================

A model is trained once and saved to a file. A server loads it, and its threads share it. They get
the bits that one thread alone would get.
"""

# %%
# Train and save. The file holds numbers and names, and no code.

import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from matplotlib import pyplot

from fastmlp import MLP, Adam, load

rng = np.random.default_rng(0)
X = rng.normal(size=(4000, 16)).astype("float32")
y = np.sin(X[:, 0]) + X[:, 1] * X[:, 2]

folder = tempfile.TemporaryDirectory()
path = Path(folder.name) / "model.fastmlp"

model = MLP([16, 64, 64, 1], "silu", seed=0)
model.fit(X, y, epochs=20, optimizer=Adam(1e-3))
model.save(path)

# %%
# The server. Each request is one row. The first call prepares what later calls use, so a server
# makes one before it takes requests.

served = load(path)
served.predict(X[:1])
answers, times = np.empty(len(X), "float32"), np.empty(len(X))


def answer(request):
    """Answer one request, and note how long it took."""
    begun = time.perf_counter()
    answers[request] = served.predict(X[request : request + 1])[0]
    times[request] = time.perf_counter() - begun


# %%
# Four threads answer all requests. Meanwhile nobody is blocked: reads of a model take no lock.

with ThreadPoolExecutor(4) as pool:
    list(pool.map(answer, range(len(X))))

alone = np.array([model.predict(X[k : k + 1])[0] for k in range(len(X))])
print("threads now:", threading.active_count(), " same bits:", (answers == alone).all())

# %%
# The times of the requests, in microseconds. They are those of Python's threads on the machine that
# has built this page.

microseconds = 1e6 * times
figure, axes = pyplot.subplots(figsize=(6.5, 3.4), layout="constrained")
most = 20 * np.median(microseconds)  # Few take longer, when another thread had the interpreter.
axes.hist(microseconds, bins=np.geomspace(microseconds.min(), most, 60))
for share in (50, 99):
    at = np.percentile(microseconds, share)
    axes.axvline(
        at, color="black", linestyle=":" if share == 99 else "-", label=f"{share}%: {at:.0f}"
    )
axes.set(xscale="log", xlabel="microseconds a request", ylabel="requests")
axes.legend()
pyplot.show()
folder.cleanup()
