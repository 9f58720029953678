"""
A search, and what it depends on
================================

`search` trains every candidate of a grid on every fold. Candidates of one shape are trained side by
side, and each has the bits that `fit` alone gives, so the search of a second seed costs little and
shows how much of a difference is chance.
"""

# %%
# Two moons with noise, as the two columns of X and a label.

import numpy as np
from matplotlib import pyplot

from fastmlp import search

rng = np.random.default_rng(0)
labels = rng.integers(0, 2, 400)
angle = rng.uniform(0, np.pi, 400)
moons = np.stack([np.cos(angle), np.sin(angle)], axis=1)
moons[labels == 1] = [1.0, 0.4] - moons[labels == 1]
X = (moons + 0.25 * rng.normal(size=moons.shape)).astype("float32")

# %%
# Seven learning rates, three widths and four seeds on five folds are 420 fits.

rates, widths, seeds = 10.0 ** np.arange(-4, -0.5, 0.5), [(2,), (8,), (32,)], [0, 1, 2, 3]
grid = {"hidden_sizes": widths, "learning_rate": rates, "seed": seeds}
found = search(
    X, labels, grid, cv=5, epochs=30, loss="softmax_cross_entropy", optimizer="adam", metric="loss"
)
print(found)

# %%
# The loss of the rows held out, by the learning rate. A line is the mean over seeds and folds. A
# band reaches from the best seed to the worst. Where bands overlap, a better score may be chance.

losses = found.columns["score"].reshape(len(widths), len(rates), len(seeds))
figure, axes = pyplot.subplots(figsize=(7, 3.8), layout="constrained")
for number, width in enumerate(widths):
    own, color = losses[number], f"C{number}"
    axes.plot(rates, own.mean(axis=1), "o-", color=color, label=f"{width[0]} hidden units")
    axes.fill_between(rates, own.min(axis=1), own.max(axis=1), color=color, alpha=0.2)
axes.set(xscale="log", xlabel="learning rate", ylabel="loss of the rows held out")
axes.legend()
pyplot.show()
