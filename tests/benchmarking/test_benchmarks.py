"""The benchmarks measure what they say: who is wrong is refused, and everybody has his turn."""

import importlib
import pkgutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import benchmarks
from benchmarks import cases, peak, peers, servers, validation, workers
from benchmarks.baselines import Entry
from benchmarks.ours import Fastmlp, FastmlpStep, choices, machine_with, problem
from benchmarks.providers import BASELINES, entries
from benchmarks.turns import Settings, in_turns, variants_in_turns
from fastmlp.device.machine import detect
from fastmlp_kernels.algebra import OPTIMIZERS
from fastmlp_kernels.algebra.optimizers import hyper_table
from fastmlp_kernels.cpu import KERNELS as CPU_KERNELS
from fastmlp_kernels.cpu import best_threads, close_threads
from fastmlp_kernels.problem import Problem
from fastmlp_kernels.reference import ReferenceProgram

TOY = cases.find("2-20-5").with_steps(3)
OURS = Entry("fastmlp", kernel=CPU_KERNELS[0].name)


def expected(case):
    return validation.expected_parameters(case)


MODULES = [each.name for each in pkgutil.walk_packages(benchmarks.__path__, "benchmarks.")]


@pytest.mark.parametrize("name", MODULES)
def test_every_module_is_imported(name):
    """Those that are started alone too, which nothing else imports. Peers are imported later."""
    assert importlib.import_module(name).__doc__


# --- the cases and the oracle ---------------------------------------------------------------


@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: case.name)
def test_flops_of_a_step_are_those_of_the_kernels_problem(case):
    activations = (*["relu"] * (len(case.sizes) - 2), "identity")
    problem = Problem(
        case.sizes, activations, "half_squared_error", batch_size=case.batch, rows=case.rows
    )
    assert case.flops_per_step * case.steps == problem.flops
    assert case.name == "-".join(map(str, case.sizes))


ADAM_SETTINGS = cases.ADAM
SGD_SETTINGS = {"learning_rate": cases.LEARNING_RATE, "weight_decay": 0.0}
VARIANTS_OF_TOY = [
    TOY,
    replace(TOY, optimizer="adam"),
    *(replace(TOY, activation=name) for name in ("sigmoid", "tanh", "gelu")),
]


@pytest.mark.parametrize("case", VARIANTS_OF_TOY, ids=lambda case: case.title)
def test_oracle_is_the_reference_in_float64(case):
    asked = problem(replace(case, dtype="float64"))
    data = case.data()
    (parameters,) = validation.flatten(case.initial_weights())
    settings = ADAM_SETTINGS if case.optimizer == "adam" else SGD_SETTINGS
    hyper = hyper_table(OPTIMIZERS[case.optimizer], settings, 1, case.steps, np.float64)
    ReferenceProgram(asked).epoch(
        parameters,
        np.zeros((asked.slots, parameters.size)),
        data.X.astype(np.float64),
        data.y.astype(np.float64),
        np.arange(case.rows),
        hyper,
        np.zeros(case.steps),
        np.zeros(3, np.int64),
    )
    np.testing.assert_allclose(expected(case)[0], parameters, rtol=1e-11, atol=1e-13)


def test_named_cases_have_the_targets_and_own_ones_another():
    targets = {case.name: case.target for case in cases.CASES if case.group == "named"}
    assert sorted(targets.values()) == [1.1, 1.3, 2, 2, 2, 2.5, 10]
    assert targets["2-20-5"] == 10 and targets["784-2048-2048-10"] == 1.1
    own = [case for case in cases.CASES if case.group == "own"]
    assert {case.target for case in own if case.batch > 1} == {2}
    online = {case.name: case.target for case in own if case.batch == 1}
    assert online == {"32-64-4": 4, "24-32-32-4": 4}
    assert {case.batch for case in own if len(case.sizes) == 9} == {96, 128}
    assert any((case.sizes, case.batch) == ((3000, 64, 1), 200) for case in own)
    assert any(case.sizes[-1] == 1 for case in own)
    assert any(case.sizes[0] > 4096 for case in own)
    assert any(all(size % 2 for size in (*case.sizes, case.batch)) for case in own)


def test_adam_is_held_against_its_goal_on_the_three_largest():
    named = [case for case in cases.CASES if case.group == "named"]
    largest = sorted((case.flops_per_step, case.name) for case in named)[-3:]
    rows = [row for row in cases.VARIANTS if row.kind == "optimizer"]
    assert {row.plain.name for row in rows} == {name for _, name in largest}
    assert {row.goal for row in rows} == {1.15}


def test_variants_differ_in_one_thing_and_say_so():
    titles = {case.title for row in cases.VARIANTS for case in row.cases}
    assert {"784-2048-2048-10 adam", "64-64-10 gelu", "784-128-10 float64"} <= titles
    for row in cases.VARIANTS:
        for other in row.others:
            assert replace(other, **{row.kind: getattr(row.plain, row.kind)}) == row.plain
    wide = next(row for row in cases.VARIANTS if row.kind == "dtype").others[0].with_steps(1)
    assert {array.dtype for array in wide.data()} == {np.dtype("float64")}


# --- kernels and threads ------------------------------------------------------------------------


@pytest.mark.parametrize("case", [TOY, cases.find("784-2048-2048-10")], ids=lambda case: case.name)
def test_every_kernel_and_number_of_threads_is_tried_and_one_is_chosen(case):
    found = choices(case, "cpu", [1, 2])
    names = {way.kernel for way in found}
    assert names == {kernel.name for kernel in CPU_KERNELS}
    assert {way.threads for way in found} == {1, 2}
    (chosen,) = [way for way in found if way.chosen]
    assert chosen.threads == best_threads(problem(case), replace(detect(), cores=2))


def test_the_chosen_number_of_threads_is_tried_though_nobody_named_it():
    # One thread is best for the toy, and only four were asked for.
    assert [way.threads for way in choices(TOY, "cpu", [4]) if way.chosen] == [1]


def test_threads_are_forced_upon_a_kernel():
    asked = problem(TOY)
    for count in (1, 2, 3):
        machine = machine_with(Entry("fastmlp", threads=count, chosen=False), asked)
        assert machine.cores == count
        assert best_threads(asked, machine) == count


def test_what_is_chosen_tries_one_thread_as_it_does_for_users():
    asked = problem(cases.find("24-128-128-1"))
    machine = machine_with(Entry("fastmlp", threads=2, chosen=True), asked)
    assert close_threads(asked, machine) == (2, 1)


# --- validation -------------------------------------------------------------------------------


class DoubleRate(Fastmlp):
    def prepare(self, case, data, weights):
        # Residuals twice as large: the gradient of the squared error, without the half.
        return super().prepare(case, data._replace(y=2 * data.y), weights)


class NoBias(Fastmlp):
    def parameters(self):
        found, last = super().parameters(), 5
        found[:, -last:] = validation.flatten(TOY.initial_weights())[:, -last:]
        return found


class OtherBatches(Fastmlp):
    def prepare(self, case, data, weights):
        return super().prepare(case, cases.Data(data.X, data.y[::-1].copy()), weights)


class OneBatchShort(Fastmlp):
    def prepare(self, case, data, weights):
        short = case.with_steps(case.steps - 1)
        rows = cases.Data(data.X[: short.rows], data.y[: short.rows])
        return super().prepare(short, rows, weights)


class NotANumber(Fastmlp):
    def parameters(self):
        return np.full_like(super().parameters(), np.nan)


class AnotherShape(Fastmlp):
    def parameters(self):
        return super().parameters()[:, 1:]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (DoubleRate, "weights of layer 1"),
        (NoBias, "biases of layer 2"),
        (OtherBatches, "weights of layer 1"),
        (OneBatchShort, "weights of layer 1"),
        (NotANumber, "weights of layer 1"),
        (AnotherShape, "shape"),
    ],
)
def test_a_wrong_provider_is_refused_before_it_is_timed(monkeypatch, wrong, words):
    monkeypatch.setitem(BASELINES, "fastmlp", wrong)
    monkeypatch.setattr(servers, "timed", lambda *_: pytest.fail("it was timed"))
    with pytest.raises(validation.Disagreement, match=words):
        servers.Server(OURS).prepare(TOY, expected(TOY))


def test_the_right_provider_is_far_inside_the_tolerance():
    answer = servers.Server(OURS).prepare(TOY, expected(TOY))
    assert answer["error"] < validation.TOLERANCES["float32"] / 100
    assert (answer["flops"], answer["per"]) == (TOY.flops_per_step, TOY.steps)


class Hungry(Fastmlp):
    def prepare(self, case, data, weights):
        np.ones(64 * 2**20, np.uint8)  # freed at once: only a peak can tell
        return super().prepare(case, data, weights)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak")
def test_memory_is_what_preparing_adds_at_its_peak(monkeypatch):
    servers.Server(OURS).prepare(TOY, expected(TOY))
    little = servers.Server(OURS).prepare(TOY, expected(TOY))["added_memory_mib"]
    monkeypatch.setitem(BASELINES, "fastmlp", Hungry)
    much = servers.Server(OURS).prepare(TOY, expected(TOY))["added_memory_mib"]
    assert little < 32 < 60 < much < 128


@pytest.mark.parametrize("case", VARIANTS_OF_TOY, ids=lambda case: case.title)
def test_variants_agree_with_the_oracle_and_with_no_other(case):
    for dtype in ("float32", "float64"):
        server = servers.Server(OURS)
        assert server.prepare(replace(case, dtype=dtype), expected(case))["error"] < 1e-4
    for other in VARIANTS_OF_TOY:
        if other != case:
            with pytest.raises(validation.Disagreement):
                servers.Server(OURS).prepare(case, expected(other))


def test_step_trains_what_an_epoch_trains():
    server = servers.Server(Entry("fastmlp.step", kernel=OURS.kernel))
    assert isinstance(server.baseline, FastmlpStep)
    assert server.prepare(TOY, expected(TOY))["error"] < validation.TOLERANCES["float32"] / 100
    assert server.epoch(3) > 0


@pytest.mark.peer
@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("PyTorch", "torch"),
        ("PyTorch compile", "torch"),
        ("JAX", "jax"),
        ("JAX unroll", "jax"),
        ("scikit-learn", "sklearn"),
    ],
)
def test_peers_train_the_same_network(name, module):
    pytest.importorskip(module, reason=f"{name} is not installed")
    case = cases.find("64-256-256-8").with_steps(2)
    worker = workers.Worker(Entry(name))
    try:
        try:
            answer = worker.ask("prepare", case, expected(case))
        except workers.Missing as error:
            pytest.skip(str(error))
        assert answer["error"] < validation.TOLERANCES["float32"]
        assert worker.ask("epoch") > 0
        assert worker.ask("predict", 2) > 0
    finally:
        worker.close()


# --- the peak -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("threads", [1, 2])
def test_every_multiply_add_of_the_peak_is_made(dtype, threads):
    case = replace(TOY, dtype=dtype)
    server = servers.Server(Entry("FMA peak", threads=threads))
    answer = server.prepare(case, expected(case))
    vectors = peak.host_vectors()
    lanes = vectors.width // np.dtype(dtype).itemsize
    rounds = server.baseline.trips * peak.UNROLLED
    assert answer["flops"] == 2 * rounds * lanes * vectors.accumulators * threads
    assert answer["per"] == 1


def test_a_peak_that_leaves_out_work_is_refused(monkeypatch):
    class OneTripShort(peak.Compiled):
        def __init__(self, dtype):
            super().__init__(dtype)
            whole = self.run
            self.run = lambda data, trips, *operands: whole(data, trips - 1, *operands)

    monkeypatch.setattr(peak, "Compiled", OneTripShort)
    with pytest.raises(validation.Disagreement, match="multiply-adds of an accumulator"):
        servers.Server(Entry("FMA peak")).prepare(TOY, expected(TOY))


def test_the_peaks_loop_is_multiply_adds_in_registers_and_nothing_else():
    compiled = peak.Compiled("float32")
    if not compiled.vectors.fused or not any(
        word in compiled.assembly for word in ("zmm", "ymm", "xmm")
    ):
        pytest.skip("the loop is read on x86 with FMA")
    lines = [line.strip() for line in compiled.assembly.splitlines()]
    places = [k for k, line in enumerate(lines) if line.startswith("vfmadd")]
    assert len(places) == compiled.vectors.accumulators * peak.UNROLLED
    # No load, no store and no jump between the first multiply-add and the last.
    between = lines[places[0] : places[-1] + 1]
    assert not [line for line in between if "(" in line or line.startswith("j")]


# --- workers ----------------------------------------------------------------------------------


def test_what_is_not_installed_is_missing_with_its_reason(monkeypatch):
    monkeypatch.setattr(BASELINES["JAX"], "module", "no_such_module_anywhere")
    with pytest.raises(workers.Missing, match="jax is not installed"):
        servers.Server(Entry("JAX")).prepare(TOY, expected(TOY))


def test_a_provider_that_raises_or_dies_is_a_failure_and_no_end():
    worker = workers.Worker(OURS)
    try:
        with pytest.raises(workers.Failed, match="predict: AttributeError"):
            worker.ask("predict", 1)  # nothing was prepared
        assert worker.ask("import_time") > 0
        worker.process.kill()
        with pytest.raises(workers.Failed, match="died"):
            worker.ask("import_time")
    finally:
        worker.close()


def test_without_a_compiler_torch_compile_says_so(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(peers.shutil, "which", lambda name: None)
    assert "needs a C++ compiler" in peers.compiler_missing("cpu")
    monkeypatch.setattr(peers.shutil, "which", lambda name: f"/bin/{name}")
    assert peers.compiler_missing("cpu") is None


def test_a_pool_keeps_going_without_those_who_cannot_run(monkeypatch):
    settings = Settings([TOY], ["cpu"], [1], ["fastmlp", "FMA peak"], passes=1, seconds=0.0)
    found = in_turns(settings)
    absent = replace(found[0], entry=Entry("no such provider"))
    everyone = (*found[0].everyone, (TOY, absent.entry))
    pool = workers.Pool()
    try:
        for item in found:
            worker, about = pool.worker(replace(item, everyone=everyone))
            assert about["seconds"] > 0 and pool.epoch((item.case, item.entry), 2) > 0
            assert worker.process.is_alive()
        for _ in range(2):
            with pytest.raises(workers.Failed, match="KeyError"):
                pool.worker(replace(absent, everyone=everyone))
        alone = replace(found[0], everyone=found[0].everyone)
        assert pool.worker(alone)[0] is not worker
        assert not worker.process.is_alive()
    finally:
        pool.close()


def test_every_pass_has_everybody_and_begins_with_another():
    names = ["fastmlp", "PyTorch", "scikit-learn"]
    settings = Settings([TOY], ["cpu"], [1, 2], names, passes=3, seconds=0.0)
    everyone = entries(TOY, ["cpu"], [1, 2], names)
    found = in_turns(settings)
    passes = [[item.entry for item in found if item.number == number] for number in range(3)]
    assert [item.number for item in found] == sorted(item.number for item in found)
    assert all(set(entry) == set(everyone) for entry in passes)
    assert [entry[0] for entry in passes] == everyone[:3]
    assert len({item.label for item in found}) == len(found)


def test_large_cases_have_half_the_passes():
    settings = Settings(list(cases.CASES), ["cpu"], [1], ["scikit-learn"], passes=5, seconds=0.0)
    last = {item.case.name: item.number for item in in_turns(settings)}
    assert (last["2-20-5"], last["784-2048-2048-10"]) == (4, 2)


def test_variants_take_turns_with_the_plain_case_as_fastmlp_chooses():
    row = next(row for row in cases.VARIANTS if row.kind == "activation")
    settings = Settings([row.plain], ["cpu"], [1, 2], list(BASELINES), passes=2, seconds=0.0)
    found = variants_in_turns(settings, [row])
    first = [item for item in found if item.number == 0]
    ours = [item for item in first if item.entry.provider == "fastmlp"]
    assert [item.case.activation for item in ours] == ["relu", "sigmoid", "tanh", "gelu"]
    assert [item.against for item in ours] == [None, *[row.plain] * 3]
    assert all(item.entry.chosen for item in ours)
    assert {item.entry.provider for item in first} == {"fastmlp", "FMA peak"}
