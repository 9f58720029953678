"""The `Program` of `cuda.fused`: its arrays on the device, and the launches of a batch."""

from typing import Any

import numpy as np
from numba import cuda

from fastmlp_kernels.cuda.fused import kernel as fused
from fastmlp_kernels.cuda.fused import step as fused_step
from fastmlp_kernels.cuda.fused.cost import THREADS, Plan, blocks_of, placement_of, plan_of
from fastmlp_kernels.cuda.fused.step import Sums
from fastmlp_kernels.cuda.layered.launching import Tiles
from fastmlp_kernels.cuda.layered.program import LayeredProgram
from fastmlp_kernels.cuda.layered.single_calls import SingleCalls
from fastmlp_kernels.cuda.on_chip import shared_memory
from fastmlp_kernels.cuda.on_chip.chain import rows_in_use
from fastmlp_kernels.cuda.on_chip.placement import Placement
from fastmlp_kernels.cuda.on_chip.shared_memory import Granted
from fastmlp_kernels.problem import Machine, Problem


class FusedProgram(SingleCalls):
    """Batches by the kernels of `fused` and `fused_step`, in the epochs of a `LayeredProgram`.

    That enqueues the batches of an epoch, replays full ones as a graph, and makes single calls. A
    batch has the same arguments as any other of the epoch: its number is on the device.

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
    sums : Sums, optional
        A block of `sum_and_check`.
    recorder : object, optional
        See `LayeredProgram`.
    """

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
        recorder: Any = None,
    ) -> None:
        machine = machine or Machine()
        if problem.members > 1:
            raise ValueError(f"problem.members: got {problem.members}, wanted 1")
        found = placement or placement_of(problem, machine)
        if isinstance(found, str):
            raise ValueError(f"problem: {found}")
        super().__init__(LayeredProgram(problem, tiles, recorder=recorder))
        self.placement, self.threads, self.sums = found, threads, sums or Sums()
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
        self.tile_gradients = Granted(fused.build(choice), found.shared_bytes)
        self.sum_and_check = fused_step.build_sums(self.sums, problem.dtype)
        self.granted = False
        self.words = cuda.to_device(found.table(problem))
        self.partials = self.layered.empty(self.plan.slices * problem.parameter_count)
        self.slice_losses = self.layered.empty(self.plan.slices)
        self.no_places = cuda.device_array(0, np.int32)
        self.no_rounded = cuda.device_array(0, np.uint16)

    def _grant(self) -> None:
        """Let launches have their shared memory: once, and not while they are recorded."""
        if not self.granted:
            signature = fused.signature(self.placement.form)
            shared_memory.allow(self.tile_gradients.kernel, signature, self.placement.shared_bytes)
            self.granted = True

    def prepare(self, parameters, state, X, y, weighted=False, penalized=False):
        """See `Program.prepare`."""
        self.layered.prepare_batches(self._batch, parameters, state, X, y, weighted, penalized)

    def epoch(
        self, parameters, state, X, y, order, hyper, losses, control, factors=None, squares=None
    ):
        """See `Program.epoch`."""
        arrays = (parameters, state, X, y, order, hyper, losses, control, factors, squares)
        self.layered.epoch_of(self._batch, *arrays)

    def _batch(self, parameters, slots, X, y, rows: int, factors, penalized) -> None:
        """Enqueue everything that one mini-batch of an epoch takes: that of the counter."""
        self._grant()
        layered = self.layered
        gradient, count = layered.workspace.gradient, self.problem.parameter_count
        own = layered.factors_of(rows, None) if factors is None else factors
        shared = (layered.counter, layered.status)
        table = (self.words, self.plan.slices)
        written = (self.partials, self.slice_losses)
        dropout = (layered.hyper, layered.keep_scales)
        arguments = (parameters, X, y, layered.order, *dropout, own, *written, *shared)
        launch = (self.tile_gradients, self.blocks, self.threads)
        layered.launches.grid(*launch, *arguments, *table, int(factors is not None))
        arguments = (
            parameters,
            self.partials,
            self.slice_losses,
            layered.updating.biases,
            gradient,
        )
        # A block for the loss, and one for the squares.
        blocks = -(-count // self.sums.columns) + (2 if penalized else 1)
        launch = (self.sum_and_check, blocks, self.sums.threads)
        arguments += (layered.losses, layered.squares, *shared)
        layered.launches.grid(*launch, *arguments, *table, int(penalized))
        # No product of this step reads weights that are rounded beforehand.
        nowhere = (self.no_places, self.no_rounded)
        vectors = (parameters, gradient, slots, layered.hyper)
        layered.updating.enqueue(*vectors, shared, layered.status, nowhere)
