"""Train every program in turns, each in a process of its own: see the package."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import multiprocessing
import os
import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from benchmarks.reinforcement_learning import EPISODES, SOLVED, Settings, steps_until_solved
from benchmarks.reinforcement_learning.oracle import answers, check
from benchmarks.servers import SETTLE, timed
from benchmarks.vanishing_gradient import machine
from benchmarks.workers import untuned

PROGRAMS = {"fastmlp": "ours", "JAX": "jax_program", "PyTorch": "torch_program"}
MODULES = {"fastmlp": "fastmlp", "JAX": "jax", "PyTorch": "torch"}


def serve(connection: Any, name: str, threads: int, settings: Settings) -> None:
    """Check a program and train once, which compiles; then train with each seed that comes."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    module = importlib.import_module(f"benchmarks.reinforcement_learning.{PROGRAMS[name]}")
    start = time.perf_counter()
    program = module.Program(settings, threads)
    error = check(program.answers(), answers(settings))
    program.train(0)
    connection.send((error, time.perf_counter() - start))
    found: dict[int, np.ndarray] = {}
    while (seed := connection.recv()) is not None:
        time.sleep(SETTLE["cpu"])
        seconds = timed(lambda seed: found.update({seed: program.train(seed)}), seed)
        connection.send((seconds, steps_until_solved(found[seed])))


@dataclass
class Competitor:
    """A program with its threads, in a process of its own, and what it has come to."""

    name: str
    threads: int
    settings: Settings
    rates: list[float] = field(default_factory=list)
    solved: dict[int, int | None] = field(default_factory=dict)

    def start(self) -> None:
        """Start the process and wait until it is checked and compiled."""
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        arguments = other, self.name, self.threads, self.settings
        self.process = context.Process(target=serve, args=arguments, daemon=True)
        with untuned():
            self.process.start()
        other.close()
        self.error, self.first = self.connection.recv()

    def train(self, seed: int) -> None:
        """Train with a seed, and keep what it took."""
        self.connection.send(seed)
        seconds, solved = self.connection.recv()
        self.rates.append(self.settings.environment_steps / seconds)
        self.solved[seed] = solved

    def end(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            self.connection.send(None)
        self.process.join()

    @property
    def label(self) -> str:
        """Its name and threads."""
        return f"{self.name}, {self.threads} thread{'s' if self.threads > 1 else ''}"


def prepared(settings: Settings, threads: list[int]) -> list[Competitor]:
    """Return everybody who is installed: checked, and compiled."""
    names = [name for name in PROGRAMS if importlib.util.find_spec(MODULES[name])]
    everyone = [Competitor(name, count, settings) for name in names for count in threads]
    for each in everyone:
        each.start()
        print(f"{each.label}: relative error {each.error:.1e}, {each.first:.0f} s to the first")
    return everyone


def measure(everyone: list[Competitor], seeds: int) -> None:
    """Let everybody train with one seed after another, each turn begun by another one."""
    for seed in range(seeds):
        first = seed % len(everyone)
        for each in [*everyone[first:], *everyone[:first]]:
            each.train(seed)


def table(everyone: list[Competitor]) -> str:
    """Return what everybody has come to."""
    lines = [
        f"| program | steps a second | to fastmlp's best | steps to {SOLVED} | seconds to it |",
        "|---|---|---|---|---|",
    ]
    ours = max(np.median(each.rates) for each in everyone if each.name == "fastmlp")
    for each in everyone:
        low, middle, high = np.percentile(each.rates, [25, 50, 75])
        reached = [steps for steps in each.solved.values() if steps is not None]
        every = f"{np.median(reached):,.0f}" if reached else "-"
        if len(reached) < len(each.solved):
            every += f" ({len(reached)} of {len(each.solved)} seeds)"
        seconds = f"{np.median(reached) / middle:.2f}" if reached else "-"
        lines.append(
            f"| {each.label} | {middle:,.0f} [{low:,.0f}, {high:,.0f}] | {middle / ours:.2f} "
            f"| {every} | {seconds} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Prepare, measure, print; return 1 if a seed was not solved."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--updates", type=int, default=Settings.updates)
    asked = parser.parse_args()
    settings = replace(Settings(), updates=asked.updates)
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    everyone = prepared(settings, asked.threads)
    measure(everyone, asked.seeds)
    print(f"{asked.seeds} seeds, {settings.environment_steps:,} steps each; medians [quartiles];")
    print(f"solved: a mean return of {SOLVED} over {EPISODES} episodes\n")
    print(table(everyone))
    for each in everyone:
        each.end()
    return int(any(steps is None for each in everyone for steps in each.solved.values()))
