"""
A surrogate of a physical function, with its gradient
=====================================================

A simulation may take hours. A network that has learnt it answers in microseconds: a *surrogate*.
The network also has a gradient, which an optimisation or a sensitivity analysis needs, and which
the simulation often lacks.
"""

# %%
# The function here is the amplitude of a driven oscillator. It depends on the frequency of the
# drive and on the damping. It is known in closed form, so the surrogate can be checked.

import numpy as np
from matplotlib import pyplot

from fastmlp import MLP, Adam
from fastmlp.schedules import CosineDecay


def amplitude(frequency, damping):
    """Return the logarithm of the amplitude, for a natural frequency of 1."""
    return -0.5 * np.log((1 - frequency**2) ** 2 + (2 * damping * frequency) ** 2)


def slope_by_frequency(frequency, damping):
    """Return its derivative by the frequency."""
    square = (1 - frequency**2) ** 2 + (2 * damping * frequency) ** 2
    return (2 * frequency * (1 - frequency**2) - 4 * damping**2 * frequency) / square


rng = np.random.default_rng(0)
inputs = np.column_stack([rng.uniform(0.2, 2, 4000), rng.uniform(0.1, 0.5, 4000)])
outputs = amplitude(*inputs.T)

# %%
# Inputs are scaled to about 1. A smooth activation makes a smooth gradient. ``float64`` costs
# little for so small a network.

low, high = inputs.min(axis=0), inputs.max(axis=0)


def scaled(values):
    """Return inputs between -1 and 1."""
    return 2 * (values - low) / (high - low) - 1


model = MLP([2, 48, 48, 1], "tanh", dtype="float64", seed=0)
steps = 150 * len(inputs) // 32
optimizer = Adam(CosineDecay(3e-3, steps=steps))
model.fit(scaled(inputs), outputs, epochs=150, batch_size=32, optimizer=optimizer)
print(model.evaluate(scaled(inputs), outputs, metrics="rmse").metrics)

# %%
# The gradient by the inputs: ``forward``, and then ``backward`` of ones. The chain rule adds the
# factor of the scaling.


def gradient(values):
    """Return the derivatives of the surrogate by its inputs, (rows, 2)."""
    model.forward(scaled(values))
    by_scaled = model.backward(np.ones((len(values), 1)))
    return by_scaled * 2 / (high - low)


# %%
# Lines are the truth, and points are the surrogate.

frequency = np.linspace(0.2, 2, 60)
figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for damping, color in zip((0.12, 0.2, 0.4), ("C0", "C1", "C2"), strict=True):
    rows = np.column_stack([frequency, np.full(60, damping)])
    left.plot(frequency, amplitude(frequency, damping), color=color, label=f"damping {damping}")
    left.plot(frequency, model.predict(scaled(rows)), ".", color=color)
    right.plot(frequency, slope_by_frequency(frequency, damping), color=color)
    right.plot(frequency, gradient(rows)[:, 0], ".", color=color)
left.set(xlabel="frequency", ylabel="log amplitude")
right.set(xlabel="frequency", ylabel="its derivative by the frequency")
left.legend()
pyplot.show()
