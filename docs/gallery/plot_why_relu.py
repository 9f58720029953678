"""
Why ReLU
========

The slope of a sigmoid is at most 1/4. Each layer multiplies the gradient by the slope of its
activation on the way back. So in a deep network of sigmoids, hardly any of it reaches the first
layer. ReLU's slope is 0 or 1, and the gradient arrives.
"""

# %%
# Twelve hidden layers of 32 units. Each activation brings first weights that suit it.
# ``value_and_grad`` returns the gradient of every layer.

import numpy as np
from matplotlib import pyplot

from fastmlp import MLP, Adam

rng = np.random.default_rng(0)
X = rng.normal(size=(1000, 8)).astype("float32")
y = np.sin(2 * X[:, 0]) * X[:, 1]

sizes = [8] + 12 * [32] + [1]
norms, losses = {}, {}
for activation in ("sigmoid", "tanh", "relu"):
    model = MLP(sizes, activation, seed=0)
    _, gradients = model.value_and_grad(X, y)
    norms[activation] = [np.linalg.norm(each) for each in gradients.weights]
    losses[activation] = model.fit(X, y, epochs=40, optimizer=Adam(1e-3)).loss
    ratio = norms[activation][0] / norms[activation][-1]
    print(f"{activation}: first layer over last {ratio:.1e}")

# %%
# On the left is the norm of the gradient of each layer, before any training. On the right is what
# follows from it: the network of sigmoids learns next to nothing.

figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for activation, marker in zip(norms, "osD", strict=True):
    left.semilogy(range(1, len(sizes)), norms[activation], marker + "-", label=activation)
    right.plot(losses[activation], label=activation)
left.set(xlabel="layer", ylabel="norm of the gradient")
right.set(xlabel="epoch", ylabel="loss")
left.legend()
right.legend()
pyplot.show()
