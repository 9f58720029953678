"""The `Program` of `cpu.fused`: the calls of the contract, each one run of some of its stages."""

import time

import numpy as np

from fastmlp_kernels.cpu import call_threads, close_threads, prediction_threads, team_rows
from fastmlp_kernels.cpu.activation import activation_backward, activation_forward
from fastmlp_kernels.cpu.caller_arrays import point_at, point_at_data
from fastmlp_kernels.cpu.fused import run
from fastmlp_kernels.cpu.layout import Layout
from fastmlp_kernels.cpu.loss import loss_and_gradient
from fastmlp_kernels.cpu.loss import predict_rows as link_rows
from fastmlp_kernels.cpu.prediction import FINITE, TOGETHER
from fastmlp_kernels.cpu.prediction import predict as predict_rows
from fastmlp_kernels.cpu.simd import instruction_set
from fastmlp_kernels.cpu.skip_choice import choose_skips
from fastmlp_kernels.cpu.straight_line import StraightLines, connect
from fastmlp_kernels.cpu.tables import (
    BACKWARD,
    DROPOUT,
    FORWARD,
    GATHER,
    GRADIENT,
    INPUT_GRADIENT,
    LOSS,
    OUTPUT,
    PACK,
    PACKED,
    UNPACK,
    UNPACKED,
    UPDATE,
    UPSTREAM,
    address,
    at,
)
from fastmlp_kernels.cpu.team import CALLER, Team, choose_places
from fastmlp_kernels.cpu.thread_choice import ThreadChoice
from fastmlp_kernels.cpu.update import updates_of, write_gradient
from fastmlp_kernels.problem import CONTROL_WORDS, STATUS, STOP, Machine, Problem

# Rows up to which a prediction reads the weights where they are, and a forward pass.
DIRECT_ROWS, FEW_ROWS = 32, 4
# Predictions that begin with weights as the caller has them, without a link and with one.
PREDICTIONS = tuple(("predict", link, True) for link in (False, True))
# Multiply-adds of a prediction between two looks at signals: some hundredths of a second.
PIECE = 10**9
# Words of the optimizer's state, slot by slot.
SLOTS = (at.first, at.second)


class FusedProgram(Layout):
    """A problem's memory and the calls into compiled code; see `problem.Program`."""

    def __init__(self, problem: Problem, machine: Machine | None = None) -> None:
        machine = Machine() if machine is None else machine
        target = instruction_set(machine.instruction_set)
        candidates = close_threads(problem, machine)
        self._team_rows = team_rows(problem, machine)
        predicting = prediction_threads(problem.rows, self._team_rows[0], machine.cores)
        super().__init__(problem, target, max(*candidates, predicting))
        self._thread_choice, self._lines = ThreadChoice(candidates), StraightLines()
        self._call_threads = min(call_threads(problem, machine), self.threads)
        self.control = np.zeros(CONTROL_WORDS, dtype=np.int64)
        self.one_loss = self._zeros(1)
        self._costs = self.unit_costs()
        # Once: a problem counts anew each time. With more than 30 attributes Python 3.11 is slow: a
        # prediction of one row took 2.75 us, not 2.47 (2-core AMD EPYC, 2026-11-28).
        self._count, self._batches = problem.parameter_count, problem.batches
        # In whole batches.
        self._piece = problem.batch_size * -(-PIECE // (self._count * problem.batch_size))
        self._kept: dict[int, np.ndarray] = {}
        self._settled: tuple = ()
        self._team: Team | None = None
        # What epochs skip; `prepare` sets it.
        self.skips = 0

    def _point(self, word: int, array: np.ndarray, rows: int, columns: int) -> None:
        """Point a word at a caller's array; every one of every call comes in here."""
        if not point_at(self.table, word, id(array), rows, columns):
            wanted = (rows,) if columns < 0 else (rows, columns)
            raise ValueError(
                f"a kernel was given an array of shape {array.shape} and strides {array.strides}, "
                f"wanted shape {wanted} without gaps, for {self.problem}"
            )

    def _point_vector(self, word: int, array: np.ndarray, length: int) -> None:
        self._point(word, array, length, -array.itemsize)

    def _keep(self, word: int, array: np.ndarray, length: int) -> None:
        """Point a word at a vector that is passed again and again, and keep it alive."""
        if self._kept.get(word) is not array:
            # In this order: an interrupt at any moment leaves nothing that is believed wrongly.
            self._kept.pop(word, None)
            self._point_vector(word, array, length)
            self._kept[word] = array

    def _keep_state(self, state: np.ndarray) -> None:
        """Point words at an optimizer's state, and keep it alive."""
        self._kept.pop(at.first, None)
        shape = (self.problem.slots, self._count)
        if state.shape != shape:
            raise ValueError(f"a kernel was given a state of {state.shape}, wanted {shape}")
        for word, slot in zip(SLOTS, state, strict=False):
            self._point_vector(word, slot, shape[1])
        self._kept[at.first] = state

    def _point_at_factors(self, factors: np.ndarray | None, rows: int) -> None:
        """Give each row a factor of its own, or all of them the reduction's."""
        words, problem, weighted = self.words, self.problem, factors is not None
        words[at.loss_rule] = loss_and_gradient(problem.rule, problem.dtype, weighted)
        words[at.factors] = 0
        if weighted:
            self._point_vector(at.factors, factors, rows)

    def _settle(self, stages: int, threads: int, sizes: tuple[int, int]) -> None:
        """Set what calls have in common; `sizes` are the rows and the batches.

        Who calls this sets what else a kind of calls has in common, and at last `_settled`.
        """
        self._settled = ()
        words, problem = self.words, self.problem
        columns = self.columns and threads > 1 and stages & (GATHER | UPDATE) == GATHER | UPDATE
        words[at.stages], words[at.threads] = stages, threads
        words[at.columns] = columns
        words[at.skips] = self.skips if stages & UPDATE else 0
        words[at.unit_cost] = max(1, sum(self._costs[columns:]))
        words[at.rows], words[at.batches] = sizes
        words[at.first_row] = 0
        words[at.sequential] = stages & UPDATE == 0
        words[at.panel_stride] = self.capacity * self.panel
        words[at.claims] = 0
        connect(words, None)
        words[at.packed] = PACKED
        words[at.squares_out] = words[at.gradient] = words[at.finish_row] = 0
        words[at.output_gradient] = words[at.slopes]
        words[at.targets] = words[at.own_targets]
        scales, rows = self.constants["scales"], sizes[0]
        full = min(rows, problem.batch_size)
        last = rows - (sizes[1] - 1) * problem.batch_size
        scales[0], scales[1] = (problem.scale(count) if count > 0 else 0 for count in (full, last))

    def _run(self) -> None:
        threads = self.words.item(at.threads)
        if threads == 1:
            run(self.table, CALLER)
        else:
            team = self._team = self._team or Team(self.constants["bells"])
            team.run(self._take_part, threads, self._choose_places)

    def _take_part(self, thread: int) -> bool:
        return run(self.table, thread)

    def _choose_places(self) -> None:
        places = self.constants["places"]
        self.words[at.places] = address(places) if choose_places(places) else 0

    def prepare(self, parameters, state, X, y, weighted=False, penalized=False):
        """See `Program.prepare`: compile what an epoch needs, look at X, and run nothing.

        Epochs then skip zeros where that pays for this X. They may be given any other.
        """
        self.skips = choose_skips(self.problem, self.target, X)
        updates_of(self.problem, self.panel, penalized, self._batches > 1)
        loss_and_gradient(self.problem.rule, self.problem.dtype, weighted)
        self._point(at.X, X, len(X), self.problem.sizes[0])
        self._point(at.Y, y, len(X), self.problem.target_columns)
        self._settle(0, 1, (0, 0))
        self._run()

    def epoch(
        self, parameters, state, X, y, order, hyper, losses, control, factors=None, squares=None
    ):
        """See `Program.epoch`."""
        if control.item(STOP):
            return
        self.set_epoch(parameters, state, X, y, order, hyper, losses, control, factors, squares)
        started = time.perf_counter()
        self._run()
        self.took(time.perf_counter() - started)

    def took(self, seconds):
        """Take note of how long an epoch took: later ones may be computed in another way."""
        self._thread_choice.took(seconds)
        self._lines.took(self._settled[:-1], seconds, self)

    def set_epoch(self, parameters, state, X, y, order, hyper, losses, control, factors, squares):
        """Describe an epoch in the table, and run nothing."""
        kept, rows, count = self._kept, self.problem.rows, len(X)
        # Looked up here: a step of a small network takes as long as some tens of calls.
        if kept.get(at.parameters) is not parameters:
            self._settled = ()
            self._keep(at.parameters, parameters, self._count)
        if kept.get(at.losses) is not losses:
            self._keep(at.losses, losses, self._batches)
        if kept.get(at.control) is not control:
            self._keep(at.control, control, CONTROL_WORDS)
        if kept.get(at.first) is not state:
            self._keep_state(state)
        weighted, penalized = factors is not None, squares is not None
        threads, lines = self._thread_choice.threads(), self._lines.count
        kind = ("epoch", weighted, penalized, threads, self.skips, lines)
        if kind != self._settled:
            self._settle_epoch(kind)
        # The caller's data is not kept: a model would hold on to its last training set.
        if not point_at_data(self.table, id(X), id(y), id(order), id(hyper), count):
            self._point(at.X, X, count, self.problem.sizes[0])
            self._point(at.Y, y, count, self.problem.target_columns)
            self._point_vector(at.order, order, rows)
            self._point(at.hyper, hyper, self._batches, self.problem.hyper_columns)
        if weighted:
            self._point_vector(at.factors, factors, rows)
        if penalized:
            self._point_vector(at.squares_out, squares, self._batches)

    def _settle_epoch(self, kind: tuple) -> None:
        """Set what all epochs of a kind have in common."""
        _, weighted, penalized, threads, *_ = kind
        problem, words = self.problem, self.words
        stages = PACK | GATHER | FORWARD | LOSS | BACKWARD | GRADIENT | UPDATE | DROPOUT
        # A single batch writes its weights to both places at once.
        in_panels = self._batches > 1
        stages |= UNPACK if in_panels else 0
        self._settle(stages, threads, (problem.rows, self._batches))
        words[at.loss_rule] = loss_and_gradient(problem.rule, problem.dtype, weighted)
        words[at.factors] = 0
        leaves = updates_of(problem, self.panel, penalized, in_panels)
        words[at.finish], words[at.finish_row] = leaves
        words[at.target] = words[at.parameters]
        connect(words, self._lines.of(kind[:-1]))
        self._settled = kind

    def take_skips(self, skips: int) -> None:
        """Have epochs skip what another program has chosen for the same X."""
        self.skips, self._settled = skips, ()

    def _once(self, parameters: np.ndarray, stages: int, rows: int) -> None:
        """Set up a call on one batch of the caller's rows, in their own order."""
        if rows > self.problem.batch_size:
            raise ValueError(f"a kernel was given {rows} rows at once, for {self.problem}")
        self._keep(at.parameters, parameters, self._count)
        self._keep(at.control, self.control, CONTROL_WORDS)
        self._keep(at.losses, self.one_loss, 1)
        self.control.fill(0)
        self._settle(stages, self._call_threads, (rows, 1))

    def predict(self, parameters, X, out, link, share=1, unchanged=False):
        """See `Program.predict`."""
        rows, piece = len(X), self._piece
        known = self._kept.get(at.parameters) is parameters
        if known and rows <= FEW_ROWS and self._settled is PREDICTIONS[link]:
            # A call like the one before: a row of a small network takes less than what follows.
            if found := predict_rows(self.table, id(X), id(out), 1):
                return found & FINITE != 0
        if not known:
            self._settled, unchanged = (), False
            self._keep(at.parameters, parameters, self._count)
        threads = 1
        if rows > FEW_ROWS and self.threads > 1:
            # No two threads share a tile, or a row of the panels.
            tiles = -(-rows // self.target.row_tiles[0])
            most = max(1, min(self.threads // share, tiles, self.problem.batch_size))
            threads = prediction_threads(rows, self._team_rows[0], most)
        if rows <= piece:
            return self._predict(X, out, link, threads, unchanged)
        good = True
        # Ctrl-C is heard between two pieces.
        for start in range(0, rows, piece):
            part = slice(start, start + piece)
            good &= self._predict(X[part], out[part], link, threads, unchanged or start > 0)
        return good

    def _predict(self, X, out, link, threads, unchanged):
        # The weights are in panels already, unless the last rows were so few.
        packs = not (unchanged and self.words.item(at.packed) == PACKED)
        kind = PREDICTIONS[link] if packs else ("predict", link, False)
        if kind != self._settled:
            self._settle_prediction(kind)
        if threads > 1:
            self._prepare_team(threads, len(X))
        found = predict_rows(self.table, id(X), id(out), threads)
        if not found:
            self._point(at.X, X, len(X), self.problem.sizes[0])
            self._point(at.out, out, len(X), self.problem.sizes[-1])
        if threads > 1 and not found & TOGETHER:
            team = self._team = self._team or Team(self.constants["bells"])
            team.miss(lambda: self._send_for(threads))
        return found & FINITE != 0

    def _prepare_team(self, threads, rows):
        """Send for the threads that are not there where so many rows are left for them."""
        if self._team is not None:
            self._team.renew()
        if rows >= 2 * self._team_rows[1]:
            self._send_for(threads)

    def _send_for(self, threads):
        team = self._team = self._team or Team(self.constants["bells"])
        team.invite(self._take_part, threads, self._choose_places)

    def _settle_prediction(self, kind: tuple) -> None:
        """Set what all predictions of a kind have in common."""
        _, link, packs = kind
        self._keep(at.control, self.control, CONTROL_WORDS)
        words, packed = self.words, self.words.item(at.packed)
        self._settle((PACK if packs else 0) | GATHER | FORWARD | OUTPUT, 1, (0, 0))
        words[at.claims], words[at.packed] = 1, packed
        words[at.direct_rows] = DIRECT_ROWS if packs else 0
        words[at.few_rows] = packs and self.target.masks
        self._set_outputs(link)
        self._settled = kind

    def _set_outputs(self, link: bool) -> None:
        """Set what becomes of the last layer's outputs."""
        problem, words = self.problem, self.words
        words[at.link] = link_rows(problem.loss, problem.dtype) if link else 0
        output = problem.activations[-1]
        value = activation_forward(output, problem.dtype) if problem.fused_output else 0
        words[at.output_value] = value

    def forward(self, parameters, X, out):
        """See `Program.forward`."""
        if len(X) > self.problem.batch_size:
            raise ValueError(f"a kernel was given {len(X)} rows at once, for {self.problem}")
        self.rows = len(X)
        self._once(parameters, PACK | GATHER | FORWARD | OUTPUT, self.rows)
        few = self.rows <= FEW_ROWS and self.target.masks
        self.words[at.packed] = UNPACKED if few else PACKED
        self._set_outputs(False)
        self._point(at.X, X, self.rows, self.problem.sizes[0])
        self._point(at.out, out, self.rows, self.problem.sizes[-1])
        self._run()

    def loss(self, y, factors=None):
        """See `Program.loss`."""
        rows = self.rows
        self._once(self._kept[at.parameters], LOSS, rows)
        self._point_at_factors(factors, rows)
        self.words[at.threads] = 1
        self._point(at.targets, y, rows, self.problem.target_columns)
        self._run()
        return self.one_loss.item()

    def backward(self, parameters, upstream, gradient, input_gradient):
        """See `Program.backward`."""
        problem, words = self.problem, self.words
        stages = PACK | BACKWARD | GRADIENT
        stages |= INPUT_GRADIENT if len(input_gradient) else 0
        stages |= UPSTREAM if upstream is not None else 0
        self._once(parameters, stages, self.rows)
        words[at.finish] = write_gradient(problem.dtype, True)
        self._point_vector(at.target, gradient, self._count)
        if len(input_gradient):
            word = at.input_gradient_rows
            self._point(word, input_gradient, self.rows, problem.sizes[0])
        if upstream is not None:
            self._point(at.upstream_rows, upstream, self.rows, problem.sizes[-1])
            words[at.output_gradient] = address(self.workspace.upstream)
            if problem.fused_output:
                name = problem.activations[-1]
                words[at.output_value] = activation_forward(name, problem.dtype)
                words[at.output_slope] = activation_backward(name, problem.dtype)
        self._run()

    def value_and_gradient(
        self, parameters, X, y, gradient, factors=None, dropout=None, unchanged=False
    ):
        """See `Program.value_and_gradient`."""
        problem, rows = self.problem, len(X)
        self.rows = rows
        stages = GATHER | FORWARD | LOSS | BACKWARD | GRADIENT
        stages |= 0 if unchanged else PACK
        stages |= 0 if dropout is None else DROPOUT
        self._once(parameters, stages, rows)
        if dropout is not None:
            hyper, self.words[at.first_row] = dropout
            self._point(at.hyper, hyper, 1, problem.hyper_columns)
        self._point(at.X, X, rows, problem.sizes[0])
        self._point(at.Y, y, rows, problem.target_columns)
        self._point_vector(at.target, gradient, self._count)
        self._point_at_factors(factors, rows)
        self.words[at.finish] = write_gradient(problem.dtype, False)
        self._run()
        return self.one_loss.item()

    def update(self, parameters, gradient, state, hyper):
        """See `Program.update`: the second phase of a step, on tiles of the caller's gradient."""
        problem, words = self.problem, self.words
        self._keep(at.parameters, parameters, self._count)
        self._keep(at.control, self.control, CONTROL_WORDS)
        self._keep_state(state)
        self.control.fill(0)
        self._settle(GRADIENT | UPDATE, self._call_threads, (0, 1))
        self._point_vector(at.gradient, gradient, self._count)
        self._point(at.hyper, hyper, 1, problem.hyper_columns)
        words[at.finish], _ = updates_of(problem, self.panel)
        words[at.target] = words[at.parameters]
        self._run()
        if self.control.item(STATUS):
            parameters.fill(np.nan)
