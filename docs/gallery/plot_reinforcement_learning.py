"""
Reinforcement learning in one compiled program
==============================================

A pole stands on a cart. A policy pushes the cart to the left or to the right, 50 times a second,
and has to keep the pole up. Here the carts, the policy, the critic and their training by proximal
policy optimisation (PPO) are **one** function that Numba compiles: Python is entered once for the
whole training. `MLP.compiled()` gives such functions the networks.
"""

import math

import numpy as np
from numba import njit, prange

from fastmlp import MLP, Adam
from fastmlp.schedules import LinearDecay

# %%
# The cart
# --------
# The equations of motion are those of Barto, Sutton and Anderson (1983), without friction. The
# constants, the limits and the reward of 1 for each step are those of Gymnasium's CartPole-v1.

GRAVITY, POLE_MASS, TOTAL_MASS, HALF_POLE, FORCE, SECONDS = 9.8, 0.1, 1.1, 0.5, 10.0, 0.02
FARTHEST, STEEPEST, LONGEST = 2.4, math.radians(12), 500


@njit
def push(cart, right):
    """Move a cart by one step of Euler's method; return whether it has left the limits.

    `cart` is float64[4]: place, speed, angle and angular speed. It is changed in place.
    """
    place, speed, angle, spin = cart
    force = FORCE if right else -FORCE
    sine, cosine = math.sin(angle), math.cos(angle)
    pull = (force + POLE_MASS * HALF_POLE * spin * spin * sine) / TOTAL_MASS
    inertia = HALF_POLE * (4 / 3 - POLE_MASS * cosine * cosine / TOTAL_MASS)
    turn = (GRAVITY * sine - cosine * pull) / inertia
    cart[0] = place + SECONDS * speed
    cart[1] = speed + SECONDS * (pull - POLE_MASS * HALF_POLE * turn * cosine / TOTAL_MASS)
    cart[2] = angle + SECONDS * spin
    cart[3] = spin + SECONDS * turn
    return abs(cart[0]) > FARTHEST or abs(cart[2]) > STEEPEST


@njit
def reset(cart):
    """Put a cart near the middle, with its pole nearly upright."""
    for i in range(4):
        cart[i] = np.random.uniform(-0.05, 0.05)


# %%
# The algorithm
# -------------
# Many carts run side by side: they are the rows of a batch. What they did is kept for a while, and
# then learnt from. An episode that ends at the limit of 500 steps is treated like one that failed.

GAMMA, LAMBDA, CLIP = 0.99, 0.95, 0.2


@njit
def roll_out(actor, carts, ages, seen, chosen, chances, ended, returns):
    """Let all carts run for a while with the actor's choices; fill what is kept of that.

    `seen` is float32[steps + 1, carts, 4], and all others are [steps, carts].
    """
    steps, count = chosen.shape
    probabilities = np.empty((count, 2), np.float32)
    seen[0] = carts
    for t in range(steps):
        actor.predict(seen[t], probabilities)
        for k in range(count):
            right = 1 if np.random.random() < probabilities[k, 1] else 0
            chosen[t, k], chances[t, k] = right, probabilities[k, right]
            ages[k] += 1
            ended[t, k] = push(carts[k], right) or ages[k] == LONGEST
            returns[t, k] = ages[k] if ended[t, k] else 0
            if ended[t, k]:
                reset(carts[k])
                ages[k] = 0
        seen[t + 1] = carts


@njit
def estimate_advantages(values, ended, advantages, targets):
    """Fill advantages by generalised estimation, and what the critic is to learn.

    `values` is float32[steps + 1, carts].
    """
    steps, count = ended.shape
    for k in range(count):
        advantage = 0.0
        for t in range(steps - 1, -1, -1):
            goes_on = 0.0 if ended[t, k] else GAMMA
            error = 1.0 + goes_on * values[t + 1, k] - values[t, k]
            advantage = error + goes_on * LAMBDA * advantage
            advantages[t, k] = advantage
            targets[t, k] = advantage + values[t, k]


@njit
def slope_of_policy(logits, chosen, chances, advantages, slope):
    """Fill the derivative of the clipped objective, a loss, by the logits; return the loss."""
    rows, loss = len(logits), 0.0
    mean, spread = advantages.mean(), advantages.std()
    for i in range(rows):
        advantage = (advantages[i] - mean) / (spread + 1e-8)
        right, other = chosen[i], 1 - chosen[i]
        chance = 1 / (1 + math.exp(logits[i, other] - logits[i, right]))
        ratio = chance / chances[i]
        clipped = min(max(ratio, 1 - CLIP), 1 + CLIP)
        loss -= min(ratio * advantage, clipped * advantage) / rows
        free = ratio * advantage <= clipped * advantage
        slope[i, other] = ratio * advantage * (1 - chance) / rows if free else 0.0
        slope[i, right] = -slope[i, other]
    return loss


@njit
def improve_policy(actor, orders, batch, seen, chosen, chances, advantages):
    """Take the actor through all rows, in each of the orders, batch after batch."""
    X, slope = np.empty((batch, 4), np.float32), np.empty((batch, 2), np.float32)
    logits, gradient = np.empty_like(slope), np.empty(actor.parameter_count, np.float32)
    for order in orders:
        for start in range(0, len(order), batch):
            part = order[start : start + batch]
            for i in range(batch):
                X[i] = seen[part[i]]
            actor.forward(X, logits)
            slope_of_policy(logits, chosen[part], chances[part], advantages[part], slope)
            gradient[:] = 0
            actor.backward(slope, gradient)
            actor.apply(gradient)


@njit
def improve_values(critic, orders, batch, seen, targets):
    """Take the critic through all rows likewise; its loss is one that networks have."""
    X = np.empty((batch, 4), np.float32)
    for order in orders:
        for start in range(0, len(order), batch):
            part = order[start : start + batch]
            for i in range(batch):
                X[i] = seen[part[i]]
            critic.step(X, targets[part])


@njit(parallel=True)
def learn(actor, critic, orders, batch, seen, chosen, chances, advantages, targets):
    """Train both networks side by side, each on a thread of its own."""
    for network in prange(2):
        if network == 0:
            improve_policy(actor, orders, batch, seen, chosen, chances, advantages)
        else:
            improve_values(critic, orders, batch, seen, targets)


@njit(nogil=True)
def train(actor, critic, epochs, batch, seed, returns):
    """Train by PPO; write the return of each episode where it ends.

    `returns` is float64[updates, steps, carts]: so many times, so many carts run for so many steps
    and are learnt from.
    """
    np.random.seed(seed)
    updates, steps, count = returns.shape
    carts, ages = np.empty((count, 4)), np.zeros(count, np.int64)
    for k in range(count):
        reset(carts[k])
    rows = steps * count
    orders = np.empty((epochs, rows), np.int64)
    seen = np.empty((steps + 1, count, 4), np.float32)
    values = np.empty((steps + 1, count), np.float32)
    chosen, ended = np.empty((steps, count), np.int64), np.empty((steps, count), np.bool_)
    chances = np.empty((steps, count), np.float32)
    advantages, targets = np.empty_like(chances), np.empty_like(chances)
    for update in range(updates):
        roll_out(actor, carts, ages, seen, chosen, chances, ended, returns[update])
        critic.predict(seen.reshape(-1, 4), values.reshape(-1, 1))
        estimate_advantages(values, ended, advantages, targets)
        for epoch in range(epochs):
            orders[epoch] = np.random.permutation(rows)
        kept = seen.reshape(-1, 4), chosen.reshape(-1), chances.reshape(-1), advantages.reshape(-1)
        learn(actor, critic, orders, batch, *kept, targets.reshape(-1))


# %%
# Five trainings
# --------------
# The handles give the models what they have learnt when the `with` statement ends.

UPDATES, CARTS, STEPS, EPOCHS, BATCH, RATE = 100, 32, 64, 4, 256, 2e-3


def networks(seed):
    """Return an actor and a critic, with PPO's usual first weights."""
    hidden = [2**0.5, 2**0.5]
    start = {"activations": "tanh", "initializer": "orthogonal", "seed": seed}
    actor = MLP([4, 64, 64, 2], loss="softmax_cross_entropy", gain=[*hidden, 0.01], **start)
    return actor, MLP([4, 64, 64, 1], gain=[*hidden, 1.0], **start)


def learn_from_scratch(seed, updates=UPDATES):
    """Train two new networks; return the actor, and the return of each episode at its last step."""
    actor, critic = networks(seed)
    batches = updates * EPOCHS * CARTS * STEPS // BATCH
    adam = Adam(LinearDecay(RATE, batches), epsilon=1e-5, clip_norm=0.5)
    settings = {"optimizer": adam, "batch_size": BATCH, "max_steps": batches}
    returns = np.zeros((updates, STEPS, CARTS))
    with actor.compiled(**settings) as policy, critic.compiled(**settings) as values:
        train(policy, values, EPOCHS, BATCH, seed, returns)
    return actor, returns


def running_mean(returns, episodes=100):
    """Return steps of the environment, and the mean return of the last 100 episodes by then."""
    ends = np.flatnonzero(returns)
    sums = np.cumsum(np.concatenate([[0.0], returns.flat[ends]]))
    return ends[episodes - 1 :] + 1, (sums[episodes:] - sums[:-episodes]) / episodes


if __name__ == "__main__":
    import time

    curves = []
    learn_from_scratch(0, updates=1)  # this compiles
    for seed in range(5):
        start = time.perf_counter()
        returns = learn_from_scratch(seed)[1]
        rate = returns.size / (time.perf_counter() - start)
        steps, means = running_mean(returns)
        curves.append((steps, means))
        reached = steps[means >= 475]
        when = f"475 after {reached[0]:,} steps" if len(reached) else "475 not reached"
        print(f"seed {seed}: {rate:,.0f} steps a second, {when}, {means[-1]:.0f} at the end")

# %%
# A policy that keeps the pole up for 500 steps has the best return there is. The task counts as
# solved when the mean of 100 episodes is 475.

if __name__ == "__main__":
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        print("no figure: matplotlib is not installed")
    else:
        figure, axes = plt.subplots(layout="constrained")
        for seed, (steps, means) in enumerate(curves):
            axes.plot(steps, means, label=f"seed {seed}")
        axes.axhline(475, color="grey", linestyle=":")
        axes.set(xlabel="steps of the environment", ylabel="mean return of 100 episodes")
        axes.legend()
        plt.show()
