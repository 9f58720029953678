"""JAX: environments by `vmap`, and a whole training in one jitted function of nested scans."""

from __future__ import annotations

import functools
import os
from typing import Any, NamedTuple

import numpy as np

from benchmarks.reinforcement_learning import (
    FARTHEST,
    FORCE,
    GRAVITY,
    HALF_POLE,
    LONGEST,
    POLE_MASS,
    SECONDS,
    SPREAD,
    STEEPEST,
    TOTAL_MASS,
    Settings,
)
from benchmarks.reinforcement_learning.oracle import Answers, sample


class Learner(NamedTuple):
    """A network and the state of Adam."""

    layers: Any
    means: Any
    squares: Any
    steps: Any


class Program:
    """The program with some settings; `threads` is 1 or 2."""

    def __init__(self, settings: Settings, threads: int) -> None:
        if threads == 1:
            flags = os.environ.get("XLA_FLAGS", "")
            os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false"
        import jax

        self.jax, self.settings = jax, settings
        self._train = jax.jit(self._training)

    def train(self, seed: int) -> np.ndarray:
        """Train from scratch; return the return of each episode, where it ends."""
        return np.asarray(self._train(self.jax.random.key(seed)))

    def answers(self) -> Answers:
        """Return the losses and gradients of the sample, and its carts after a step."""
        actor, critic, batch, carts = sample(self.settings)
        jax, jnp = self.jax, self.jax.numpy
        columns = jnp.stack(
            [batch.chosen, np.log(batch.chances), batch.advantages, batch.targets], axis=1
        )
        rows = jnp.concatenate([batch.X, columns], axis=1).astype(jnp.float32)
        policy, policy_gradient = jax.jit(jax.value_and_grad(self._policy_loss))(actor, rows)
        value, value_gradient = jax.jit(jax.value_and_grad(self._value_loss))(critic, rows)
        moved, failed = jax.jit(jax.vmap(self._push))(carts.astype(np.float32), batch.chosen == 1)
        flat = (
            np.concatenate([np.ravel(part) for part in jax.tree.leaves(each)])
            for each in (policy_gradient, value_gradient)
        )
        losses = float(policy), float(value)
        return Answers(losses, *flat, np.asarray(moved), np.asarray(failed))

    def _push(self, cart: Any, right: Any) -> tuple[Any, Any]:
        jnp = self.jax.numpy
        place, speed, angle, spin = cart
        force = jnp.where(right, FORCE, -FORCE)
        sine, cosine = jnp.sin(angle), jnp.cos(angle)
        pull = (force + POLE_MASS * HALF_POLE * spin * spin * sine) / TOTAL_MASS
        inertia = HALF_POLE * (4 / 3 - POLE_MASS * cosine * cosine / TOTAL_MASS)
        turn = (GRAVITY * sine - cosine * pull) / inertia
        pull = pull - POLE_MASS * HALF_POLE * turn * cosine / TOTAL_MASS
        moved = cart + SECONDS * jnp.stack([speed, pull, spin, turn])
        return moved, (abs(moved[0]) > FARTHEST) | (abs(moved[2]) > STEEPEST)

    def _outputs(self, layers: Any, X: Any) -> Any:
        *hidden, (W, b) = layers
        for weights, biases in hidden:
            X = self.jax.numpy.tanh(X @ weights + biases)
        return X @ W + b

    def _log_chances(self, layers: Any, X: Any, right: Any) -> Any:
        logits = self._outputs(layers, X)
        # Of two actions: no gather, whose derivative would be a scatter.
        difference = logits[..., 1] - logits[..., 0]
        return self.jax.nn.log_sigmoid(self.jax.numpy.where(right, difference, -difference))

    def _policy_loss(self, layers: Any, rows: Any) -> Any:
        jnp, clip = self.jax.numpy, self.settings.clip
        advantages = rows[:, 6]
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        ratios = jnp.exp(self._log_chances(layers, rows[:, :4], rows[:, 4] == 1) - rows[:, 5])
        clipped = jnp.clip(ratios, 1 - clip, 1 + clip)
        return -jnp.minimum(ratios * advantages, clipped * advantages).mean()

    def _value_loss(self, layers: Any, rows: Any) -> Any:
        errors = self._outputs(layers, rows[:, :4])[:, 0] - rows[:, 7]
        return 0.5 * (errors * errors).mean()

    def _learner(self, key: Any, outputs: int, gain: float) -> Learner:
        jax, jnp = self.jax, self.jax.numpy
        sizes = [4, *self.settings.hidden, outputs]
        gains = [2**0.5] * len(self.settings.hidden) + [gain]
        shapes = zip(jax.random.split(key, len(gains)), gains, sizes, sizes[1:], strict=False)
        layers = [
            (jax.nn.initializers.orthogonal(each)(key, (i, o)), jnp.zeros(o))
            for key, each, i, o in shapes
        ]
        zeros = jax.tree.map(jnp.zeros_like, layers)
        return Learner(layers, zeros, zeros, jnp.int32(0))

    def _updated(self, learner: Learner, loss: Any, rows: Any) -> Learner:
        jax, jnp, s = self.jax, self.jax.numpy, self.settings
        gradient = jax.grad(loss)(learner.layers, rows)
        norm = jnp.sqrt(sum((each * each).sum() for each in jax.tree.leaves(gradient)))
        scale = jnp.minimum(1.0, s.largest_norm / (norm + 1e-6))
        rate = s.rate * (1 - learner.steps / s.batches)
        steps = learner.steps + 1
        first, second = 1 - 0.9**steps, 1 - 0.999**steps

        def mean(m: Any, g: Any) -> Any:
            return 0.9 * m + 0.1 * scale * g

        def square(v: Any, g: Any) -> Any:
            return 0.999 * v + 0.001 * (scale * g) ** 2

        def moved(p: Any, m: Any, v: Any) -> Any:
            return p - rate / first * m / (jnp.sqrt(v / second) + s.epsilon)

        means = jax.tree.map(mean, learner.means, gradient)
        squares = jax.tree.map(square, learner.squares, gradient)
        layers = jax.tree.map(moved, learner.layers, means, squares)
        return Learner(layers, means, squares, steps)

    def _advantages(self, values: Any, ended: Any) -> Any:
        jax, s = self.jax, self.settings
        goes_on = jax.numpy.where(ended, 0.0, s.gamma)

        def earlier(advantage: Any, step: Any) -> tuple[Any, Any]:
            value, next_value, goes_on = step
            error = 1 + goes_on * next_value - value
            advantage = error + goes_on * s.smoothing * advantage
            return advantage, advantage

        rows = values[:-1], values[1:], goes_on
        start = jax.numpy.zeros(s.carts)
        return jax.lax.scan(earlier, start, rows, reverse=True, unroll=8)[1]

    def _roll_out(self, layers: Any, carts: Any, ages: Any, key: Any) -> tuple[Any, Any]:
        jax, jnp, s = self.jax, self.jax.numpy, self.settings
        first, second = jax.random.split(key)
        # All random numbers at once: fewer calls of the generator.
        draws = jax.random.uniform(first, (s.steps, s.carts))
        starts = jax.random.uniform(second, (s.steps, s.carts, 4), minval=-SPREAD, maxval=SPREAD)

        def step(state: Any, given: Any) -> tuple[Any, Any]:
            (carts, ages), (draw, start) = state, given
            logits = self._outputs(layers, carts)
            right = draw < jax.nn.sigmoid(logits[:, 1] - logits[:, 0])
            chances = jax.nn.log_sigmoid(
                jnp.where(right, logits[:, 1] - logits[:, 0], logits[:, 0] - logits[:, 1])
            )
            moved, failed = jax.vmap(self._push)(carts, right)
            ended = failed | (ages + 1 == LONGEST)
            kept = carts, right, chances, ended, jnp.where(ended, ages + 1, 0)
            carts = jnp.where(ended[:, None], start, moved)
            return (carts, jnp.where(ended, 0, ages + 1)), kept

        return jax.lax.scan(step, (carts, ages), (draws, starts))

    def _training(self, key: Any) -> Any:
        jax, jnp, s = self.jax, self.jax.numpy, self.settings
        first, second, third, key = jax.random.split(key, 4)

        def learn(learners: Any, rows: Any) -> tuple[Any, None]:
            actor, critic = learners
            return (
                self._updated(actor, self._policy_loss, rows),
                self._updated(critic, self._value_loss, rows),
            ), None

        def epoch(rows: Any, learners: Any, key: Any) -> tuple[Any, None]:
            # One gather of whole rows: one for each array takes longer.
            shuffled = rows[jax.random.permutation(key, s.rows)]
            return jax.lax.scan(learn, learners, shuffled.reshape(-1, s.batch, 8))[0], None

        def update(state: Any, key: Any) -> tuple[Any, Any]:
            (actor, critic), carts, ages = state
            rolling, shuffling = jax.random.split(key)
            state, kept = self._roll_out(actor.layers, carts, ages, rolling)
            seen, right, chances, ended, returns = kept
            every = jnp.concatenate([seen, state[0][None]]).reshape(-1, 4)
            values = self._outputs(critic.layers, every).reshape(s.steps + 1, s.carts)
            advantages = self._advantages(values, ended)
            columns = right, chances, advantages, advantages + values[:-1]
            rows = jnp.concatenate([seen, jnp.stack(columns, axis=2)], axis=2).reshape(-1, 8)
            keys = jax.random.split(shuffling, s.epochs)
            learners, _ = jax.lax.scan(functools.partial(epoch, rows), (actor, critic), keys)
            return (learners, *state), returns

        learners = self._learner(first, 2, 0.01), self._learner(second, 1, 1.0)
        carts = jax.random.uniform(third, (s.carts, 4), minval=-SPREAD, maxval=SPREAD)
        state = learners, carts, jnp.zeros(s.carts, jnp.int32)
        return jax.lax.scan(update, state, jax.random.split(key, s.updates))[1]
