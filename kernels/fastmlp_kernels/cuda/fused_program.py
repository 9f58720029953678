"""The `Program` of `cuda.fused`: its arrays on the device, and the launches of an epoch."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda

from fastmlp_kernels.cuda import fused, fused_step, shared_memory
from fastmlp_kernels.cuda import placement as at
from fastmlp_kernels.cuda.chain import rows_in_use
from fastmlp_kernels.cuda.fused_cost import THREADS, Plan, blocks_of, placement_of, plan_of
from fastmlp_kernels.cuda.fused_step import COUNTER_WORDS, Sums
from fastmlp_kernels.cuda.layered import LayeredProgram, Tiles, _small_grids_allowed
from fastmlp_kernels.cuda.placement import Placement
from fastmlp_kernels.problem import (
    BATCHES,
    CONTROL_WORDS,
    STATUS,
    STOP,
    Machine,
    Problem,
)

# Of a block of `update`.
UPDATE_THREADS = 128


class FusedProgram(LayeredProgram):
    """Epochs by the kernels of `fused` and `fused_step`; single calls as `LayeredProgram`'s.

    Parameters
    ----------
    problem : Problem
        Of one member.
    machine : Machine, optional
        Its shared memory a block, its processors and its capability.
    tiles : Tiles, optional
        Block sizes of the single calls.
    placement : Placement, optional
        Where a tile lies in shared memory; by default as `placement_of` has it.
    threads : int
        Of a block of `tile_gradients`.
    slices : int, optional
        Partial gradients of a batch; by default as `plan_of` has it.
    blocks : int, optional
        Of a launch of `tile_gradients`; the result does not depend on it.
    sums : Sums
        A block of `sum_and_check`.
    """

    # The default one, where the class above has none of its own.
    stream: Any = 0

    def __init__(
        self,
        problem: Problem,
        machine: Machine | None = None,
        tiles: Tiles | None = None,
        placement: Placement | None = None,
        threads: int = THREADS,
        slices: int | None = None,
        blocks: int | None = None,
        sums: Sums | None = None,
    ) -> None:
        machine = machine or Machine()
        if problem.members > 1:
            raise ValueError(f"problem.members: got {problem.members}, wanted 1")
        super().__init__(problem, tiles)
        found = placement or placement_of(problem, machine)
        if isinstance(found, str):
            raise ValueError(f"problem: {found}")
        self.placement, self.threads = found, threads
        plan = plan_of(problem, found.rows)
        self.plan = Plan(plan.tiles, min(slices or plan.slices, plan.tiles))
        self.blocks = blocks or blocks_of(problem, machine, found)
        choice = fused.Choice(
            found.form,
            threads,
            rows_in_use(problem),
            self.plan.accumulate,
            found.gradient_shared,
        )
        self.sums = sums or Sums()
        self.tile_gradients = fused.build(choice)
        self.sum_and_check = fused_step.build_sums(self.sums, problem.dtype)
        self.apply = fused_step.build_update(problem.optimizer)
        self.words = cuda.to_device(self._table())
        self.counter = cuda.device_array(COUNTER_WORDS, np.int64)
        self.partials = self._empty(self.plan.slices * problem.parameter_count)
        self.slice_losses = self._empty(self.plan.slices)
        self.summed = self._empty(problem.parameter_count)
        self.all_factors = self._empty(problem.rows)
        last = problem.rows - (problem.batches - 1) * problem.batch_size
        scales = [problem.scale(problem.batch_size), problem.scale(last)]
        self.scale_pair = cuda.to_device(np.array(scales, self.dtype))

    def _table(self) -> np.ndarray:
        """Return the placement's table, which is that of a tile, with the rows of the epoch."""
        table = self.placement.table()
        table[at.BATCH_SIZE], table[at.EPOCH_ROWS] = self.problem.batch_size, self.problem.rows
        return table

    def prepare(self, parameters, state, X, y, weighted=False, penalized=False):
        """See `Program.prepare`."""
        form, number = self.placement.form, self.problem.dtype
        shared_bytes = self.placement.shared_bytes
        shared_memory.allow(self.tile_gradients, fused.signature(form), shared_bytes)
        shared_memory.allow(self.sum_and_check, fused_step.sum_signature(number), 0)
        shared_memory.allow(self.apply, fused_step.update_signature(number), 0)

    def _step(
        self, parameters: Any, state: Any, X: Any, y: Any, weighted: bool, penalized: bool
    ) -> Callable[[], None]:
        """Return what enqueues the next batch: the same launches, arguments included, for each."""
        slices, stream, count = self.plan.slices, self.stream, self.problem.parameter_count
        factors = self.all_factors if weighted else self.scale_pair
        flat_state = state.reshape(state.size) if state.size > 0 else self.no_state
        # Counter, status and the table; then what a slice has.
        shared = (self.counter, self.status)
        first = (parameters, X, y, self.order, factors, self.partials, self.slice_losses)
        second = (parameters, self.partials, self.slice_losses, self.biases, self.summed)
        third = (parameters, self.summed, flat_state, self.biases, self.hyper)
        # The loss has a block, and so have the squares.
        others = 2 if penalized else 1
        sums = -(-count // self.sums.columns) + others
        launches = (
            (
                self.tile_gradients[self.blocks, self.threads, stream, self.placement.shared_bytes],
                (*first, *shared, self.words, slices, int(weighted)),
            ),
            (
                self.sum_and_check[sums, self.sums.threads, stream],
                (*second, self.losses, self.squares, *shared, self.words, slices, int(penalized)),
            ),
            (
                self.apply[-(-count // UPDATE_THREADS), UPDATE_THREADS, stream],
                (*third, *shared),
            ),
        )

        def enqueue() -> None:
            for launch, arguments in launches:
                launch(*arguments)

        return enqueue

    def _begin(self, order: np.ndarray, hyper: np.ndarray, factors: np.ndarray | None) -> None:
        pairs = [
            (self.order, order),
            (self.hyper, hyper),
            (self.all_factors, factors),
            (self.counter, np.zeros(COUNTER_WORDS, np.int64)),
            (self.status, np.zeros(CONTROL_WORDS, np.int64)),
        ]
        for held, given in pairs:
            if given is not None:
                held.copy_to_device(given, stream=self.stream)

    def epoch(
        self, parameters, state, X, y, order, hyper, losses, control, factors=None, squares=None
    ):
        """See `Program.epoch`; ``control[BATCHES]`` is written at the end alone.

        The GPU may be as many launches behind the host as CUDA lets wait: a stop takes effect after
        the batches that are enqueued by then.
        """
        weighted, penalized = factors is not None, squares is not None
        self.prepare(parameters, state, X, y, weighted, penalized)
        self._begin(order, hyper, factors)
        enqueued = 0
        with _small_grids_allowed():
            enqueue = self._step(parameters, state, X, y, weighted, penalized)
            while enqueued < losses.size and control[STOP] == 0:
                enqueue()
                enqueued += 1
        # The first wait of the epoch.
        failed = int(self._on_host(self.status)[STATUS])
        done = failed - 1 if failed else enqueued
        # What failed has a loss too, though not a finite one.
        counted = done + (1 if failed else 0)
        losses[:counted] = self._on_host(self.losses)[:counted]
        if squares is not None:
            squares[:done] = self._on_host(self.squares)[:done]
        control[BATCHES], control[STATUS] = done, failed

    def _on_host(self, held: Any) -> np.ndarray:
        """Return a copy, once all that was launched before is done."""
        copy = held.copy_to_host(stream=self.stream)
        if self.stream:
            self.stream.synchronize()
        return copy
