"""
An ensemble, and how sure it is
===============================

Networks that begin with different weights agree where there are data, and disagree where there are
none. Their spread is a cheap measure of what the model does not know. An `Ensemble` trains all of
them side by side.
"""

# %%
# Data with a gap in the middle, and with nothing beyond the ends.

import numpy as np
from matplotlib import pyplot

from fastmlp import Adam, Ensemble

rng = np.random.default_rng(0)
x = np.concatenate([rng.uniform(-4, -1, 60), rng.uniform(1.5, 4, 60)])
y = np.sin(x) + 0.1 * rng.normal(size=x.size)

# %%
# Each network also gets weights of the rows of its own: a bootstrap. A row's weight is how often it
# is drawn.

members = 24
draws = rng.multinomial(x.size, np.full(x.size, 1 / x.size), size=members)
ensemble = Ensemble([1, 64, 64, 1], members=members, activations="relu", seed=0)
ensemble.fit(
    x[:, None],
    y,
    epochs=200,
    batch_size=32,
    optimizer=Adam(2e-3),
    sample_weight=draws.astype(float),
)

# %%
# The mean, and two standard deviations of the networks around it. The band is wide in the gap.
# Beyond the ends it widens too, and yet misses the truth: there, all networks go on in a straight
# line. So a spread warns, but it is no guarantee.

grid = np.linspace(-6, 6, 300)[:, None]
mean, spread = ensemble.predict_mean(grid), ensemble.predict_spread(grid)

figure, axes = pyplot.subplots(figsize=(7, 3.8), layout="constrained")
axes.fill_between(grid[:, 0], mean - 2 * spread, mean + 2 * spread, alpha=0.25, label="2 spreads")
axes.plot(grid, ensemble.predict(grid).T, color="C0", linewidth=0.3)
axes.plot(grid, mean, color="C0", label="mean of the networks")
axes.plot(grid, np.sin(grid), "k:", label="truth")
axes.plot(x, y, ".", color="C1", label="data")
axes.set(xlabel="x", ylim=(-3, 3))
axes.legend(loc="upper center", ncols=4, fontsize=8)
pyplot.show()
