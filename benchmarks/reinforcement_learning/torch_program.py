"""PyTorch: the environment and the actor's choices in NumPy, and the update compiled."""

from __future__ import annotations

from typing import Any

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

Array = np.ndarray


def push(carts: Array, right: Array) -> tuple[Array, Array]:
    """Return carts, float32[4, carts], one step later, and which have left the limits."""
    place, speed, angle, spin = carts
    force = np.where(right, np.float32(FORCE), np.float32(-FORCE))
    sine, cosine = np.sin(angle), np.cos(angle)
    pull = (force + POLE_MASS * HALF_POLE * spin * spin * sine) / TOTAL_MASS
    inertia = HALF_POLE * (4 / 3 - POLE_MASS / TOTAL_MASS * cosine * cosine)
    turn = (GRAVITY * sine - cosine * pull) / inertia
    pull -= POLE_MASS * HALF_POLE / TOTAL_MASS * turn * cosine
    moved = carts + SECONDS * np.stack([speed, pull, spin, turn])
    return moved, (abs(moved[0]) > FARTHEST) | (abs(moved[2]) > STEEPEST)


class Networks:
    """Both networks in one flat tensor: one norm, and one step of Adam, are a call each."""

    def __init__(self, torch: Any, settings: Settings) -> None:
        self.torch, self.sizes = torch, [4, *settings.hidden]
        self.clip = settings.clip
        shapes = [[*zip(self.sizes, [*self.sizes[1:], outputs], strict=True)] for outputs in (2, 1)]
        self.shapes = shapes
        self.counts = [sum(i * o + o for i, o in each) for each in shapes]
        self.flat = torch.zeros(sum(self.counts), requires_grad=True)

    def start(self) -> None:
        """Draw PPO's usual first weights."""
        torch = self.torch
        self.flat.data.zero_()
        for layers, gain in zip(self.layers(self.flat.data), (0.01, 1.0), strict=True):
            for index, (W, _) in enumerate(layers):
                last = index == len(layers) - 1
                torch.nn.init.orthogonal_(W, gain if last else 2**0.5)

    def layers(self, flat: Any) -> list[list[tuple[Any, Any]]]:
        """Return views of the weights and biases of the actor and of the critic."""
        sizes = [size for shapes in self.shapes for i, o in shapes for size in (i * o, o)]
        parts = iter(flat.split(sizes))
        return [[(next(parts).view(i, o), next(parts)) for i, o in each] for each in self.shapes]

    def outputs(self, layers: list[tuple[Any, Any]], X: Any) -> Any:
        """Return a network's outputs."""
        *hidden, (W, b) = layers
        for weights, biases in hidden:
            X = self.torch.tanh(self.torch.addmm(biases, X, weights))
        return self.torch.addmm(b, X, W)

    def losses(self, flat: Any, X: Any, columns: Any) -> tuple[Any, Any]:
        """Return the clipped loss of the policy and the squared loss of the values.

        `columns` are whether right was chosen, the logarithm of its chance, advantages, targets.
        """
        torch, (actor, critic) = self.torch, self.layers(flat)
        right, chances, advantages, targets = columns.unbind(1)
        advantages = (advantages - advantages.mean()) / (advantages.std(correction=0) + 1e-8)
        logits = self.outputs(actor, X)
        difference = (logits[:, 1] - logits[:, 0]) * (2 * right - 1)
        ratios = torch.exp(torch.nn.functional.logsigmoid(difference) - chances)
        clipped = ratios.clamp(1 - self.clip, 1 + self.clip)
        policy = -torch.minimum(ratios * advantages, clipped * advantages).mean()
        errors = self.outputs(critic, X)[:, 0] - targets
        return policy, 0.5 * (errors * errors).mean()


class Program:
    """The program with some settings; `threads` is 1 or 2."""

    def __init__(self, settings: Settings, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.torch, self.settings = torch, settings
        self.networks = Networks(torch, settings)
        self.losses = torch.compile(self.networks.losses)

    def answers(self) -> Answers:
        """Return the losses and gradients of the sample, and its carts after a step."""
        actor, critic, batch, carts = sample(self.settings)
        parts = [part.ravel() for layers in (actor, critic) for pair in layers for part in pair]
        torch, flat = self.torch, self.networks.flat
        flat.data = torch.from_numpy(np.concatenate(parts))
        chosen = batch.chosen, np.log(batch.chances), batch.advantages, batch.targets
        columns = np.stack(chosen, axis=1).astype(np.float32)
        losses = self.losses(flat, torch.from_numpy(batch.X), torch.from_numpy(columns))
        flat.grad = None
        sum(losses).backward()
        gradients = (each.numpy() for each in flat.grad.split(self.networks.counts))
        moved, failed = push(carts.T.astype(np.float32), batch.chosen == 1)
        first, second = (each.item() for each in losses)
        return Answers((first, second), *gradients, moved.T, failed)

    def train(self, seed: int) -> np.ndarray:
        """Train from scratch; return the return of each episode, where it ends."""
        s, torch, networks = self.settings, self.torch, self.networks
        torch.manual_seed(seed)
        self.generator = np.random.default_rng(seed)
        networks.start()
        adam = torch.optim.Adam([networks.flat], lr=s.rate, eps=s.epsilon, fused=True)
        self.carts = self.generator.uniform(-SPREAD, SPREAD, (4, s.carts)).astype(np.float32)
        self.ages = np.zeros(s.carts, np.int64)
        returns = np.zeros((s.updates, s.steps, s.carts))
        done = 0
        for each in returns:
            X, columns = self._rows(*self._roll_out(each))
            for _ in range(s.epochs):
                for part in torch.randperm(s.rows).split(s.batch):
                    adam.param_groups[0]["lr"] = s.rate * (1 - done / s.batches)
                    self._learn(adam, X[part], columns[part])
                    done += 1
        return returns

    def _learn(self, adam: Any, X: Any, columns: Any) -> None:
        flat = self.networks.flat
        flat.grad = None
        policy, value = self.losses(flat, X, columns)
        (policy + value).backward()
        for gradient in flat.grad.split(self.networks.counts):
            norm = self.torch.linalg.vector_norm(gradient)
            gradient.mul_((self.settings.largest_norm / (norm + 1e-6)).clamp(max=1.0))
        adam.step()

    def _roll_out(self, returns: Array) -> tuple[Array, Array, Array, Array]:
        s, carts, ages = self.settings, self.carts, self.ages
        # Arrays of NumPy in the same memory: products of so few rows take half the time there.
        parts = self.networks.layers(self.networks.flat.detach())[0]
        (W1, b1), (W2, b2), (W3, b3) = [(W.numpy(), b.numpy()) for W, b in parts]
        seen = np.empty((s.steps + 1, s.carts, 4), np.float32)
        right, ended = np.empty((2, s.steps, s.carts), bool)
        chances = np.empty((s.steps, s.carts), np.float32)
        draws = self.generator.random((s.steps, s.carts), dtype=np.float32)
        for t in range(s.steps):
            seen[t] = carts.T
            logits = np.tanh(np.tanh(seen[t] @ W1 + b1) @ W2 + b2) @ W3 + b3
            chance = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
            right[t] = draws[t] < chance
            chances[t] = np.where(right[t], chance, 1 - chance)
            carts, failed = push(carts, right[t])
            ages += 1
            ended[t] = failed | (ages == LONGEST)
            if ended[t].any():
                new = ended[t]
                returns[t][new] = ages[new]
                carts[:, new] = self.generator.uniform(-SPREAD, SPREAD, (4, new.sum()))
                ages[new] = 0
        seen[s.steps] = carts.T
        self.carts = carts
        return seen, right, chances, ended

    def _rows(self, seen: Array, right: Array, chances: Array, ended: Array) -> tuple[Any, Any]:
        s, torch = self.settings, self.torch
        with torch.inference_mode():
            critic = self.networks.layers(self.networks.flat)[1]
            found = self.networks.outputs(critic, torch.from_numpy(seen.reshape(-1, 4)))
        values = found.numpy().reshape(s.steps + 1, s.carts)
        goes_on = np.where(ended, np.float32(0), np.float32(s.gamma))
        errors = 1 + goes_on * values[1:] - values[:-1]
        advantages, advantage = np.empty_like(errors), np.zeros(s.carts, np.float32)
        for t in range(s.steps - 1, -1, -1):
            advantage = errors[t] + s.smoothing * goes_on[t] * advantage
            advantages[t] = advantage
        kept = right, np.log(chances), advantages, advantages + values[:-1]
        columns = np.stack(kept, axis=2).astype(np.float32).reshape(-1, 4)
        return torch.from_numpy(seen[:-1].reshape(-1, 4)), torch.from_numpy(columns)
