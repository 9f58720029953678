"""The `Program` of `cuda.resident`: its arrays on the device, and the launches of an epoch."""

from typing import Any

import numpy as np
from numba import cuda

from fastmlp_kernels.contract import check_epoch
from fastmlp_kernels.cuda.device.configurations import configured
from fastmlp_kernels.cuda.layered.launching import Tiles
from fastmlp_kernels.cuda.layered.program import LayeredProgram
from fastmlp_kernels.cuda.layered.single_calls import SingleCalls
from fastmlp_kernels.cuda.on_chip import shared_memory
from fastmlp_kernels.cuda.on_chip.chain import rows_in_use
from fastmlp_kernels.cuda.on_chip.placement import Placement
from fastmlp_kernels.cuda.resident import cost as resident_cost
from fastmlp_kernels.cuda.resident import kernel as resident
from fastmlp_kernels.cuda.resident.cost import THREADS, placement_of
from fastmlp_kernels.problem import BATCHES, CONTROL_WORDS, STATUS, STOP, Machine, Problem


class ResidentProgram(SingleCalls):
    """Epochs by `resident`, on the stream of the `LayeredProgram` that makes single calls.

    Parameters
    ----------
    problem : Problem
        Of one member or many; single calls are of one network.
    machine : Machine, optional
        Its shared memory a block, its capability, and the speeds that launches are measured out by.
    tiles : Tiles, optional
        Block sizes of the single calls.
    placement : Placement, optional
        Where the network lies in shared memory; by default as `placement_of` has it.
    threads : int
        Of a block; those that the placement was made for.
    batches_a_launch : int, optional
        The most batches of a launch; by default what takes `resident_cost.LAUNCH_SECONDS`.
    """

    def __init__(
        self,
        problem: Problem,
        machine: Machine | None = None,
        tiles: Tiles | None = None,
        placement: Placement | None = None,
        threads: int = THREADS,
        batches_a_launch: int | None = None,
    ) -> None:
        machine = machine or Machine()
        super().__init__(LayeredProgram(problem, tiles))
        self.stream = self.layered.stream
        found = placement or placement_of(problem, machine)
        if isinstance(found, str):
            raise ValueError(f"problem: {found}")
        self.placement, self.threads = found, threads
        choice = resident.Choice(
            found.form,
            threads,
            rows_in_use(problem),
            problem.optimizer,
            accumulate=found.rows < problem.batch_size,
            state_shared=found.state_shared,
            clipping=problem.clipping,
            layer_rates=problem.layer_rates,
        )
        self.resident = resident.build(choice)
        self.batches_a_launch = batches_a_launch or resident_cost.batches_a_launch(problem, machine)
        self.resident_launches, self.prepared = 0, False
        self.words = cuda.to_device(found.table(problem))
        members, batches = problem.members, problem.batches
        self.all_orders = cuda.device_array(members * problem.rows, np.int64)
        self.all_hypers = self.layered.empty(members * batches * problem.hyper_columns)
        self.all_losses = self.layered.empty(members * batches)
        self.all_squares = self.layered.empty(members * batches)
        self.all_factors = self.layered.empty(members * problem.rows)
        scales = [problem.scale(problem.batch_size), problem.scale(self._last_rows())]
        self.scale_pair = cuda.to_device(np.array(scales, self.layered.dtype))
        self.all_controls = cuda.device_array(members * CONTROL_WORDS, np.int64)

    def _last_rows(self) -> int:
        problem = self.problem
        return problem.rows - (problem.batches - 1) * problem.batch_size

    def prepare(self, parameters, state, X, y, weighted=False, penalized=False):
        """See `Program.prepare`."""
        if not self.prepared:
            types = resident.signature(self.placement.form)
            shared_memory.allow(self.resident, types, self.placement.shared_bytes)
            self.prepared = True

    def epoch(
        self, parameters, state, X, y, order, hyper, losses, control, factors=None, squares=None
    ):
        """See `Program.epoch`; ``control[BATCHES]`` is written between launches.

        A stop takes effect at the end of the launch that is running: see
        `resident_cost.LAUNCH_SECONDS`.
        """
        arrays = (parameters, state, X, y, order, hyper, losses, control, factors, squares)
        check_epoch(self.problem, *arrays)
        self.prepare(parameters, state, X, y)
        members, batches = self.problem.members, losses.shape[-1]
        self._upload(order, hyper, factors)
        words = control.reshape(members, CONTROL_WORDS)
        words[:, BATCHES], words[:, STATUS] = 0, 0
        known = np.zeros_like(words)
        arguments = (
            *(self._flat(parameters), self._flat(state), X, y, self.all_orders, self.all_hypers),
            self.layered.keep_scales,
            self.scale_pair if factors is None else self.all_factors,
            *(self.all_losses, self.all_squares, self.all_controls, self.words),
        )
        flags = hyper.shape[-2], int(factors is not None), int(squares is not None)
        done = 0
        while done < batches:
            # Read anew for each launch: others write there while the epoch runs.
            known[:, STOP] = words[:, STOP]
            if ((known[:, STOP] != 0) | (known[:, STATUS] != 0)).all():
                break
            last = min(done + self.batches_a_launch, batches)
            self._launch(known, *arguments, done, last, *flags)
            words[:, BATCHES], words[:, STATUS] = known[:, BATCHES], known[:, STATUS]
            done = last
        # What failed has a loss too, though not a finite one.
        counts = known[:, BATCHES] + (known[:, STATUS] != 0)
        self._download(self.all_losses, counts, hyper.shape[-2], losses)
        if squares is not None:
            self._download(self.all_squares, known[:, BATCHES], hyper.shape[-2], squares)

    def _flat(self, array: Any) -> Any:
        return array.reshape(array.size) if array.size > 0 else self.layered.no_state

    def _upload(self, order: np.ndarray, hyper: np.ndarray, factors: np.ndarray | None) -> None:
        pairs = [(self.all_orders, order), (self.all_hypers, hyper), (self.all_factors, factors)]
        for held, given in pairs:
            if given is not None:
                held.copy_to_device(given.reshape(-1), stream=self.stream)

    def _launch(self, known: np.ndarray, *arguments: Any) -> None:
        """Run one launch to its end, from and to the members' words."""
        self.all_controls.copy_to_device(known.reshape(-1), stream=self.stream)
        shape = self.problem.members, self.threads, self.stream, self.placement.shared_bytes
        configured(self.resident, *shape)(*arguments)
        self.resident_launches += 1
        known[:] = self._on_host(self.all_controls).reshape(known.shape)

    def _on_host(self, held: Any) -> np.ndarray:
        """Return a copy, once all that was launched before is done."""
        copy = held.copy_to_host(stream=self.stream)
        if self.stream:
            self.stream.synchronize()
        return copy

    def _download(self, held: Any, counts: np.ndarray, batches: int, out: np.ndarray) -> None:
        """Copy each member's first `counts` numbers."""
        members = len(counts)
        numbers = self._on_host(held)[: members * batches].reshape(members, batches)
        for row, new, count in zip(out.reshape(members, -1), numbers, counts, strict=True):
            row[:count] = new[:count]
