"""
Classes, and probabilities that can be believed
===============================================

A classifier gives a probability of each class. It is *calibrated* if, of all the rows that get 70%,
seven in ten are of that class. A network that has trained too long is too sure of itself. Label
smoothing helps a little, and early stopping a lot.
"""

# %%
# Two classes that overlap, so that nobody can be sure everywhere.

import numpy as np
from matplotlib import pyplot
from sklearn.calibration import calibration_curve

from fastmlp import MLP, Adam, EarlyStopping, SoftmaxCrossEntropy

rng = np.random.default_rng(1)


def sample(rows):
    """Return features, and labels whose odds depend on two of them."""
    X = rng.normal(size=(rows, 10)).astype("float32")
    odds = 2 * X[:, 0] * X[:, 1] + X[:, 2]
    return X, (rng.random(rows) < 1 / (1 + np.exp(-odds))).astype("int64")


X, labels = sample(800)
X_new, labels_new = sample(20_000)

# %%
# Three classifiers, of one shape. The first trains for many epochs. The second spreads a tenth of
# each target over both classes. The third stops when the loss of held-out rows rises.

shape, adam = [10, 128, 128, 2], Adam(1e-3)
long = MLP(shape, loss="softmax_cross_entropy", seed=0)
long.fit(X, labels, epochs=60, optimizer=adam)

smooth = MLP(shape, loss=SoftmaxCrossEntropy(label_smoothing=0.1), seed=0)
smooth.fit(X, labels, epochs=60, optimizer=adam)

stopped = MLP(shape, loss="softmax_cross_entropy", seed=0)
stopped.fit(
    X,
    labels,
    epochs=60,
    optimizer=adam,
    validation_split=0.2,
    early_stopping=EarlyStopping(patience=5),
)

# %%
# The figure compares what was promised with what happened, on rows that are new to all three. A
# calibrated classifier lies on the diagonal. The one that has trained for long promises 90% and
# keeps 65%. ``log_loss`` measures the same in one number: lower is better.

networks = {"60 epochs": long, "label smoothing": smooth, "early stopping": stopped}
figure, axes = pyplot.subplots(figsize=(5.5, 4.5), layout="constrained")
for (name, model), marker in zip(networks.items(), "osD", strict=True):
    probability = model.predict(X_new)[:, 1]
    happened, promised = calibration_curve(labels_new, probability, n_bins=10)
    found = model.evaluate(X_new, labels_new, metrics="log_loss").metrics
    label = f"{name}: accuracy {found['accuracy']:.3f}, log loss {found['log_loss']:.2f}"
    axes.plot(promised, happened, marker + "-", label=label)
axes.plot([0, 1], [0, 1], color="black", linewidth=1)
axes.set(xlabel="probability that was promised", ylabel="share that was so")
axes.legend(fontsize=8)
pyplot.show()
