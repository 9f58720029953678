"""The `Program` of `cpu.fused`: the calls of the contract, each one run of some of its stages."""

import time

import numpy as np

from fastmlp_kernels.algebra.optimizers import BIAS_DECAY, WEIGHT_DECAY
from fastmlp_kernels.cpu import call_threads, close_threads, tables
from fastmlp_kernels.cpu.activation import activation_backward, activation_forward
from fastmlp_kernels.cpu.fused import point_at, run
from fastmlp_kernels.cpu.layout import Layout
from fastmlp_kernels.cpu.loss import loss_and_gradient, predict_rows
from fastmlp_kernels.cpu.pace import Pace
from fastmlp_kernels.cpu.sampling import choose_skips
from fastmlp_kernels.cpu.simd import instruction_set
from fastmlp_kernels.cpu.tables import (
    BACKWARD,
    FORWARD,
    GATHER,
    GRADIENT,
    INPUT_GRADIENT,
    LOSS,
    OUTPUT,
    PACK,
    UPDATE,
    UPSTREAM,
    address,
)
from fastmlp_kernels.cpu.team import StayingTeam, choose_places, compile_team, run_together
from fastmlp_kernels.cpu.update import call_update, update, write_gradient
from fastmlp_kernels.problem import CONTROL_WORDS, STOP, Machine, Problem, parameter_layout

# Rows up to which a forward pass reads the weights where they are.
DIRECT_ROWS = 4


class FusedProgram(Layout):
    """A problem's memory and the calls into compiled code; see `problem.Program`."""

    memory = None

    def __init__(self, problem: Problem, machine: Machine | None = None) -> None:
        machine = Machine() if machine is None else machine
        target = instruction_set(machine.instruction_set)
        candidates = close_threads(problem, machine)
        super().__init__(problem, target, max(candidates))
        self._pace = Pace(candidates)
        self._call_threads = min(call_threads(problem, machine), self.threads)
        self.control = np.zeros(CONTROL_WORDS, dtype=np.int64)
        self.one_loss = self._zeros(1)
        self._costs = self.unit_costs()
        self._kept: dict[int, np.ndarray] = {}
        self._settled: tuple = ()
        self._weighted = False
        self._team: StayingTeam | None = None
        compile_team()
        # What epochs skip; `prepare` sets it.
        self.skips = 0

    def _keep(self, word: int, array: np.ndarray) -> None:
        """Point a word at an array that is passed again and again, and keep it alive."""
        # Asking NumPy for an address takes a microsecond.
        if self._kept.get(word) is not array:
            self._kept[word] = array
            self.words[word] = address(array)

    def _keep_state(self, state: np.ndarray) -> None:
        if self._kept.get(tables.FIRST) is not state:
            self._kept[tables.FIRST] = state
            for word, slot in zip((tables.FIRST, tables.SECOND), state, strict=False):
                self.words[word] = address(slot)

    def _point_at_factors(self, factors: np.ndarray | None) -> None:
        """Give each row a factor of its own, or all of them the reduction's."""
        words, problem, weighted = self.words, self.problem, factors is not None
        words[tables.FACTORS] = 0
        if weighted:
            point_at(self.table, tables.FACTORS, id(factors))
        if weighted != self._weighted:
            self._weighted = weighted
            rule = loss_and_gradient(problem.rule, problem.dtype, weighted)
            words[tables.LOSS_RULE] = rule

    def _settle(self, what: tuple, stages: int, threads: int, sizes: tuple[int, int]) -> bool:
        """Set what all calls of a kind have in common; return whether it was not so already.

        `what` tells one kind from another; `sizes` are the rows and the batches.
        """
        if what == self._settled:
            return False
        self._settled = what
        words, problem = self.words, self.problem
        columns = self.columns and threads > 1 and stages & UPDATE != 0
        words[: tables.PLACES] = stages, threads
        words[tables.COLUMNS] = columns
        words[tables.SKIPS] = self.skips if stages & UPDATE else 0
        words[tables.UNIT_COST] = max(1, sum(self._costs[columns:]))
        words[tables.BATCH_SIZE : tables.BATCHES + 1] = problem.batch_size, *sizes
        words[tables.SEQUENTIAL] = stages & UPDATE == 0
        words[tables.PACKED] = 1
        words[tables.SQUARES_OUT] = 0
        words[tables.OUTPUT_GRADIENT] = words[tables.SLOPES]
        scales, rows = self.constants["scales"], sizes[0]
        full = min(rows, problem.batch_size)
        last = rows - (sizes[1] - 1) * problem.batch_size
        scales[0], scales[1] = (problem.scale(count) if count > 0 else 0 for count in (full, last))
        return True

    def _run(self) -> None:
        words = self.words
        words[tables.HALT] = 0
        threads = int(words[tables.MEMBERS])
        words[tables.BELLS] = 0
        if threads == 1:
            words[tables.PLACES] = 0
            run(self.table, 0)
        elif words[tables.STAGES] & UPDATE:
            self._run_with_those_who_stay(threads)
        else:
            self._choose_places()
            run_together(self._take_part, threads)

    def _run_with_those_who_stay(self, threads: int) -> None:
        """Run with members that wait for a while afterwards, as another epoch may follow."""
        bells = self.constants["bells"]
        self.words[tables.BELLS] = address(bells)
        team = self._team = self._team or StayingTeam(bells)
        try:
            team.keep(self._take_part, self._choose_places)
            run(self.table, threads - 1)
        except BaseException:
            # An interrupt may come between the two.
            team.dismiss()
            raise

    def _take_part(self, member: int) -> None:
        run(self.table, member)

    def _choose_places(self) -> None:
        places = self.constants["places"]
        self.words[tables.PLACES] = address(places) if choose_places(places) else 0

    def to_device(self, array: np.ndarray) -> np.ndarray:
        """Return the array itself."""
        return array

    def to_host(self, array: np.ndarray, out: np.ndarray) -> None:
        """Copy, unless it is the same array."""
        if array is not out:
            out[...] = array

    def prepare(self, parameters, state, X, y, weighted=False, penalized=False):
        """See `Program.prepare`: compile what an epoch needs, look at X, and run nothing.

        Epochs then skip zeros where that pays for this X. They may be given any other.
        """
        self.skips = choose_skips(self.problem, self.target, X)
        update(self.problem.optimizer, self.problem.dtype, self.panel, penalized)
        loss_and_gradient(self.problem.rule, self.problem.dtype, weighted)
        for word, array in ((tables.X, X), (tables.Y, y)):
            point_at(self.table, word, id(array))
        self._settle(("nothing",), 0, 1, (0, 0))
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
        self._pace.took(time.perf_counter() - started)

    def set_epoch(self, parameters, state, X, y, order, hyper, losses, control, factors, squares):
        """Describe an epoch in the tables, and run nothing."""
        for word, array in (
            (tables.PARAMETERS, parameters),
            (tables.LOSSES, losses),
            (tables.CONTROL, control),
        ):
            self._keep(word, array)
        self._keep_state(state)
        # The caller's data is not kept: a model would hold on to its last training set.
        given = ((tables.X, X), (tables.Y, y), (tables.ORDER, order), (tables.HYPER, hyper))
        for word, array in given:
            point_at(self.table, word, id(array))
        self._point_at_factors(factors)
        problem, words, sizes = self.problem, self.words, (len(order), len(losses))
        stages = PACK | GATHER | FORWARD | LOSS | BACKWARD | GRADIENT | UPDATE
        penalized, threads = squares is not None, self._pace.threads()
        if self._settle(("epoch", *sizes, penalized, threads), stages, threads, sizes):
            rule = update(problem.optimizer, problem.dtype, self.panel, penalized)
            words[tables.FINISH] = rule
        words[tables.SQUARES_OUT] = 0
        if penalized:
            point_at(self.table, tables.SQUARES_OUT, id(squares))
        words[tables.TARGET] = words[tables.PARAMETERS]

    def take_skips(self, skips: int) -> None:
        """Have epochs skip what another program has chosen for the same X."""
        self.skips, self._settled = skips, ()

    def _once(self, parameters: np.ndarray, stages: int, rows: int) -> None:
        """Set up a call on one batch of the caller's rows, in their own order."""
        self._keep(tables.PARAMETERS, parameters)
        self._keep(tables.CONTROL, self.control)
        self._keep(tables.LOSSES, self.one_loss)
        self.control.fill(0)
        self._settled = ()
        self._settle(("once",), stages, self._call_threads, (rows, 1))

    def predict(self, parameters, X, out, link):
        """See `Program.predict`."""
        problem, words, rows = self.problem, self.words, len(X)
        self._keep(tables.PARAMETERS, parameters)
        self._keep(tables.CONTROL, self.control)
        for word, array in ((tables.X, X), (tables.OUT, out)):
            point_at(self.table, word, id(array))
        direct = rows <= DIRECT_ROWS and self.target.masks
        stages = PACK | GATHER | FORWARD | OUTPUT
        sizes = (rows, -(-rows // problem.batch_size))
        if self._settle(
            ("predict", rows, link), stages, 1 if direct else self._call_threads, sizes
        ):
            words[tables.PACKED] = not direct
            words[tables.LINK] = predict_rows(problem.loss, problem.dtype) if link else 0
            output = problem.activations[-1]
            value = activation_forward(output, problem.dtype) if problem.fused_output else 0
            words[tables.OUTPUT_VALUE] = value
        self._run()

    def forward(self, parameters, X, out):
        """See `Program.forward`."""
        self.rows = len(X)
        self.predict(parameters, X, out, False)

    def loss(self, y, factors=None):
        """See `Program.loss`."""
        words = self.words
        self._once(self._kept[tables.PARAMETERS], LOSS, self.rows)
        self._point_at_factors(factors)
        words[tables.MEMBERS] = 1
        point_at(self.table, tables.TARGETS, id(y))
        self._run()
        words[tables.TARGETS] = address(self.workspace.targets)
        return self.one_loss.item()

    def backward(self, parameters, upstream, gradient, input_gradient):
        """See `Program.backward`."""
        problem, words = self.problem, self.words
        stages = PACK | BACKWARD | GRADIENT
        stages |= INPUT_GRADIENT if len(input_gradient) else 0
        stages |= UPSTREAM if upstream is not None else 0
        self._once(parameters, stages, self.rows)
        words[tables.FINISH] = write_gradient(problem.dtype, True)
        point_at(self.table, tables.TARGET, id(gradient))
        point_at(self.table, tables.INPUT_GRADIENT_ROWS, id(input_gradient))
        if upstream is not None:
            point_at(self.table, tables.UPSTREAM_ROWS, id(upstream))
            words[tables.OUTPUT_GRADIENT] = address(self.workspace.upstream)
            if problem.fused_output:
                name = problem.activations[-1]
                words[tables.OUTPUT_VALUE] = activation_forward(name, problem.dtype)
                words[tables.OUTPUT_SLOPE] = activation_backward(name, problem.dtype)
        self._run()

    def value_and_gradient(self, parameters, X, y, gradient, factors=None):
        """See `Program.value_and_gradient`."""
        self.rows = len(X)
        self._once(parameters, PACK | GATHER | FORWARD | LOSS | BACKWARD | GRADIENT, self.rows)
        for word, array in ((tables.X, X), (tables.Y, y), (tables.TARGET, gradient)):
            point_at(self.table, word, id(array))
        self._point_at_factors(factors)
        self.words[tables.FINISH] = write_gradient(self.problem.dtype, False)
        self._run()
        return self.one_loss.item()

    def update(self, parameters, gradient, state, hyper):
        """See `Program.update`."""
        problem = self.problem
        first, second = (address(state[k]) if k < len(state) else 0 for k in range(2))
        step = update(problem.optimizer, problem.dtype, 0)
        item, numbers = parameters.itemsize, address(hyper)
        vectors = (address(parameters), first, second, address(gradient))
        for layer in parameter_layout(problem.sizes):
            for place, decay in ((layer.weight, WEIGHT_DECAY), (layer.bias, BIAS_DECAY)):
                count = place.stop - place.start
                here = (each + place.start * item for each in vectors)
                run = (0, 1, count, count, count, numbers, numbers + decay * item, 0)
                call_update(step, (*here, *run))
