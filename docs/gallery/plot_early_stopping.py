"""
A table, a regression, and when to stop
=======================================

A network fits a table of numbers. A part of the rows is held out. The fit ends when the loss of
those rows has not improved for some epochs, and the model keeps the weights of its best epoch.
"""

# %%
# The data are the classical ones of diabetes: 442 patients, ten measurements each, and how far the
# disease has gone a year later. So few rows are soon learnt by heart.

import numpy as np
from matplotlib import pyplot
from sklearn.datasets import load_diabetes

from fastmlp import MLP, Adam, EarlyStopping

X, y = load_diabetes(return_X_y=True)
X = (X / X.std(axis=0)).astype("float32")
scale = y.std()
y = ((y - y.mean()) / scale).astype("float32")

order = np.random.default_rng(0).permutation(len(X))
train, test = order[:342], order[342:]

# %%
# ``validation_split=0.25`` holds out a quarter of the training rows. ``patience=60`` waits for 60
# epochs without an improvement.

model = MLP([10, 64, 64, 1], "silu", seed=0)
history = model.fit(
    X[train],
    y[train],
    epochs=400,
    batch_size=32,
    optimizer=Adam(3e-4),
    validation_split=0.25,
    early_stopping=EarlyStopping(patience=60),
)
print(history)
print("best epoch:", history.best_epoch)

# %%
# The figure shows why one stops. The training loss goes on falling, and that of the held-out rows
# rises.

figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
left.plot(history.loss, label="training")
left.plot(history.validation_loss, label="held out")
left.axvline(history.best_epoch - 1, color="black", linestyle=":", label="best epoch")
left.set(xlabel="epoch", ylabel="loss")
left.legend()

predicted = model.predict(X[test])
right.plot(scale * y[test], scale * predicted, "o", alpha=0.6)
limits = [scale * y[test].min(), scale * y[test].max()]
right.plot(limits, limits, color="black", linewidth=1)
right.set(xlabel="progression (less its mean)", ylabel="predicted")
right.set_title(f"new patients: R2 {model.evaluate(X[test], y[test]).score:.2f}")
pyplot.show()
