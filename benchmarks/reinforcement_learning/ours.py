"""fastmlp: the program of the gallery, as it stands there."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numba
import numpy as np

from benchmarks.reinforcement_learning import Settings
from benchmarks.reinforcement_learning.oracle import Answers, sample
from fastmlp import Adam
from fastmlp.schedules import LinearDecay

PROGRAM = Path(__file__).resolve().parents[2] / "docs/gallery/plot_reinforcement_learning.py"


def gallery() -> ModuleType:
    """Return the module of the program; what it runs as a script does not run."""
    spec = importlib.util.spec_from_file_location("plot_reinforcement_learning", PROGRAM)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Program:
    """The program with some settings; `threads` is 1 or 2."""

    def __init__(self, settings: Settings, threads: int) -> None:
        self.settings, self.module = settings, gallery()
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))

    def answers(self) -> Answers:
        """Return the losses and gradients of the sample, and its carts after a step."""
        actor_weights, critic_weights, batch, carts = sample(self.settings)
        actor, critic = self.module.networks(0)
        handles = []
        for model, weights in ((actor, actor_weights), (critic, critic_weights)):
            model.parameters[:] = np.concatenate(
                [part.ravel() for pair in weights for part in pair]
            )
            handles.append(model.compiled(batch_size=len(batch.X)))
        policy, values = handles
        logits = np.empty((len(batch.X), 2), np.float32)
        slope = np.empty_like(logits)
        gradients = [np.zeros(net.parameter_count, np.float32) for net in handles]
        policy.forward(batch.X, logits)
        kept = batch.chosen, batch.chances, batch.advantages
        loss = self.module.slope_of_policy(logits, *kept, slope)
        policy.backward(slope, gradients[0])
        value_loss = values.value_and_grad(batch.X, batch.targets, gradients[1])
        moved = carts.copy()
        pairs = zip(moved, batch.chosen, strict=True)
        failed = np.array([self.module.push(cart, right) for cart, right in pairs])
        return Answers((loss, value_loss), *gradients, moved, failed)

    def train(self, seed: int) -> np.ndarray:
        """Train from scratch; return the return of each episode, where it ends."""
        s = self.settings
        actor, critic = self.module.networks(seed)
        rate = LinearDecay(s.rate, s.batches)
        adam = Adam(rate, epsilon=s.epsilon, clip_norm=s.largest_norm)
        handle = {"optimizer": adam, "batch_size": s.batch, "max_steps": s.batches}
        policy, values = (each.compiled(**handle) for each in (actor, critic))
        returns = np.zeros((s.updates, s.steps, s.carts))
        self.module.train(policy, values, s.epochs, s.batch, seed, returns)
        return returns
