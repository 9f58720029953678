"""
scikit-learn, unmodified
========================

A program that uses scikit-learn's networks runs on fastmlp's kernels without a change of its own.
The losses stay the same, epoch by epoch.
"""

# %%
# ``program`` stands for yours: scaling and a network in a pipeline. It knows nothing of fastmlp.

import warnings

import numpy as np
from matplotlib import pyplot
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split

from fastmlp.sklearn import patch


def program():
    """Train on handwritten digits; return the fitted network and the score of new ones."""
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler

    images, digits = load_digits(return_X_y=True)
    X, X_new, y, y_new = train_test_split(images, digits, random_state=0)
    network = MLPClassifier((64,), max_iter=40, tol=0, random_state=0)
    pipeline = make_pipeline(MinMaxScaler(), network)
    return pipeline.fit(X, y), pipeline.score(X_new, y_new)


# %%
# It runs once as it is, and once within ``patch()``. Whoever cannot edit a program at all runs
# ``python -m fastmlp.accel program.py``. scikit-learn warns that 40 epochs are few, both times.

warnings.simplefilter("ignore", ConvergenceWarning)

plain, plain_score = program()
with patch():
    fast, fast_score = program()

curves = [np.array(each[-1].loss_curve_) for each in (plain, fast)]
print(type(plain[-1]).__module__, plain_score)
print(type(fast[-1]).__module__, fast_score)
print("largest difference of a loss:", abs(curves[0] - curves[1]).max())

# %%
# The two curves cannot be told apart. The right side shows how far they are from each other: a
# rounding or nothing, which is drawn at 1e-17.

figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
left.plot(curves[0], label="scikit-learn", linewidth=4, alpha=0.4)
left.plot(curves[1], "--", color="C1", label="fastmlp.sklearn")
left.set(xlabel="epoch", ylabel="loss", yscale="log")
left.legend()
right.semilogy(abs(curves[1] / curves[0] - 1) + 1e-17, ".")
right.set(xlabel="epoch", ylabel="relative difference", ylim=(1e-18, 1e-9))
pyplot.show()
