"""What `dev.py gpu` measures, on the CPU at toy sizes: peers, shared processes, crossover."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import cases, peers, peers_jax, servers, validation, workers
from benchmarks.baselines import Entry, Missing
from benchmarks.cases import GPU_CASES, Case
from benchmarks.gpu import comparison, crossover, prediction
from benchmarks.gpu.steps import Context
from benchmarks.ours import Fastmlp, FastmlpFit, choices
from benchmarks.providers import BASELINES, entries, named
from benchmarks.turns import Settings, in_turns
from benchmarks.validation import Disagreement, expected_parameters, validate
from tests import ROOT

TOY = Case("toy", (5, 9, 7, 3), 8, 6, "a toy", 1.0)
MEMBERS = replace(TOY, name="toys", members=3)
PRECISIONS = ("float32", "tf32", "bfloat16")


def trained(provider, case):
    """Return a provider's parameters after an epoch."""
    reason = provider.available()
    if reason is not None:
        pytest.skip(reason)
    provider.prepare(case, case.data(), case.initial_weights())()
    return provider.parameters()


def test_members_are_trained_each_from_weights_of_its_own():
    weights = MEMBERS.initial_weights()
    assert not np.array_equal(weights[0][0][0], weights[2][0][0])
    together = expected_parameters(MEMBERS)
    assert together.shape == (3, sum(W.size + b.size for W, b in weights[0]))
    np.testing.assert_allclose(together[0], expected_parameters(TOY)[0], rtol=1e-12)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_validation_refuses_what_is_beyond_the_precision(precision):
    case = replace(MEMBERS, precision=precision)
    wanted = expected_parameters(case)
    initial = validation.flatten(case.initial_weights())
    limit = validation.TOLERANCES[precision]
    near = wanted + 0.9 * limit * (wanted - initial)
    assert validate(case, wanted, near) == pytest.approx(0.9 * limit, rel=1e-6)
    far = wanted.copy()
    far[1] += 1.1 * limit * (wanted - initial)[1]
    with pytest.raises(Disagreement, match=f"of member 1 .* in {precision}"):
        validate(case, wanted, far)
    far[1] = np.nan
    with pytest.raises(Disagreement):
        validate(case, wanted, far)
    with pytest.raises(Disagreement, match="got shape"):
        validate(case, wanted, wanted[:2])


def test_the_cases_are_the_ones_that_were_promised():
    assert GPU_CASES[:7] == cases.CASES[:7]
    shapes = {(case.name, case.batch) for case in GPU_CASES[7:]}
    assert {("64x4", 16384), ("64x4-large", 262144), ("128x4", 65536), ("1024x3", 8192)} < shapes
    assert [case.sizes for case in GPU_CASES if case.members == 132] == [(16, 64, 1), (64, 64, 10)]
    assert {case.devices for case in GPU_CASES[7:]} == {("cuda",)}
    quick = comparison.choose(None, quick=True)
    assert [case.name for case in quick] == list(cases.QUICK_GPU_CASES)
    assert all(case.steps <= 3 for case in quick)
    assert comparison.choose(["64x4"], quick=False) == [cases.find("64x4")]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", [TOY, MEMBERS], ids=lambda case: case.name)
@pytest.mark.parametrize("name", ["PyTorch", "JAX"])
@pytest.mark.peer
def test_a_peer_trains_what_the_oracle_trains(name, case, precision):
    asked = replace(case, precision=precision)
    got = trained(BASELINES[name](Entry(name)), asked)
    error = validate(asked, expected_parameters(case), got)
    # bfloat16 is seen to round; a CPU has no tf32.
    assert (error > 1e-3) == (precision == "bfloat16")


@pytest.mark.peer
def test_the_compiled_peer_trains_members():
    name = "PyTorch compile"
    got = trained(BASELINES[name](Entry(name)), MEMBERS)
    validate(MEMBERS, expected_parameters(MEMBERS), got)


@pytest.mark.peer
@pytest.mark.parametrize("name", ["PyTorch", "JAX"])
def test_a_peer_with_another_rate_is_refused(name, monkeypatch):
    for module in (peers, peers_jax):
        monkeypatch.setattr(module, "LEARNING_RATE", 0.05)
    for precision in PRECISIONS:
        case = replace(TOY, precision=precision)
        got = trained(BASELINES[name](Entry(name)), case)
        with pytest.raises(Disagreement):
            validate(case, expected_parameters(case), got)


def test_layouts_of_members_and_of_one_network():
    weights = MEMBERS.initial_weights()
    parts = peers.layout(weights)
    assert [part.shape for part in parts[:2]] == [(3, 5, 9), (3, 1, 9)]
    wanted = validation.flatten(weights)
    np.testing.assert_array_equal(peers.flattened(parts), wanted)
    parts = peers.layout(weights[:1])
    assert [part.shape for part in parts[:2]] == [(5, 9), (9,)]
    np.testing.assert_array_equal(peers.flattened(parts), wanted[:1])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_fastmlp_trains_what_the_oracle_trains(precision):
    case = replace(TOY, precision=precision)
    for provider in (Fastmlp, FastmlpFit):
        validate(
            case, expected_parameters(TOY), trained(provider(Entry("", kernel="cpu.fused")), case)
        )


def test_fastmlp_trains_members():
    ways = choices(MEMBERS, "cpu", [1])
    assert ways
    for way in ways:
        got = trained(Fastmlp(Entry("fastmlp", "cpu", way.threads, way.kernel)), MEMBERS)
        validate(MEMBERS, expected_parameters(MEMBERS), got)
    with pytest.raises(Missing, match="those of their seeds"):
        trained(FastmlpFit(Entry("fastmlp.fit")), MEMBERS)


def test_notes_say_where_products_come_from():
    provider = Fastmlp(Entry("fastmlp"))
    provider.program = SimpleNamespace(
        products=SimpleNamespace(name="tiles", reason="cuBLASLt was not found"),
        steps=SimpleNamespace(reason=""),
    )
    assert provider.notes() == {"products": "tiles, cuBLASLt was not found", "graphs": ""}


def test_a_name_stands_for_all_providers_of_fastmlp():
    found = named(["fastmlp"])
    assert {"fastmlp", "fastmlp.fit", "fastmlp.step", "fastmlp.predict"} < set(found)
    assert {name.partition(".")[0] for name in found} == {"fastmlp"}
    assert named(["JAX", "PyTorch"]) == ["PyTorch", "JAX"]
    with pytest.raises(ValueError, match="got 'Keras', wanted some of fastmlp, "):
        named(["Keras"])


def test_a_case_is_measured_where_it_belongs():
    large = cases.find("64x4-large")
    assert entries(large, ["cpu"], [1], ["JAX"]) == []
    assert entries(large, ["cpu", "cuda"], [1], ["JAX"]) == [Entry("JAX", "cuda")]
    assert [e.device for e in entries(TOY, ["cpu", "cuda"], [1], ["JAX"])] == ["cpu", "cuda"]


# --- processes that providers share ---------------------------------------------------------------


class Told:
    """A worker that answers as it is told, and remembers who was asked."""

    made = []
    answers = {}

    def __init__(self, entry):
        self.alive, self.asked = True, []
        self.process = SimpleNamespace(is_alive=lambda: self.alive)
        Told.made.append(self)

    def ask(self, name, *arguments, of=None, patience=0.0):
        self.asked.append((name, of and of[1].provider))
        found = Told.answers.get((name, of and of[1].provider), {} if name == "prepare" else 0.01)
        if isinstance(found, list):
            found = found.pop(0) if found else {}
        if isinstance(found, Exception):
            self.alive = "died" not in str(found)
            raise found
        return found

    def close(self):
        self.alive = False

    stop = close


@pytest.fixture
def told(monkeypatch):
    monkeypatch.setattr(workers, "Worker", Told)
    monkeypatch.setattr(workers, "SHARED", {})
    monkeypatch.setattr(Told, "made", [])
    monkeypatch.setattr(Told, "answers", {})
    return Told


def everyone(*names, case=TOY):
    return tuple((case, Entry(name, "cuda")) for name in names)


def test_a_family_shares_a_process_from_case_to_case(told):
    pool = workers.Pool()
    pool.open(everyone("fastmlp", "fastmlp.fit", "PyTorch", "PyTorch graph", "JAX"))
    assert len(told.made) == 3 and len(pool.workers) == 5
    pool.close()
    pool.open(everyone("fastmlp", "JAX", case=MEMBERS))
    assert len(told.made) == 3
    ours = workers.SHARED["fastmlp"]
    assert [name for name, _ in ours.asked].count("release") == 1
    workers.end_shared()
    assert not any(each.alive for each in told.made) and not workers.SHARED


def test_who_was_ready_in_a_process_that_died_is_prepared_again(told):
    told.answers["prepare", "PyTorch graph"] = workers.Failed("the process died")
    pool = workers.Pool()
    pool.open(everyone("PyTorch", "PyTorch graph"))
    assert [each for _, each in pool.workers] == [Entry("PyTorch", "cuda")]
    assert "died" in str(pool.refusals[everyone("PyTorch graph")[0]])
    assert [each.asked[0] for each in told.made] == [("prepare", "PyTorch")] * 2
    assert pool.workers[everyone("PyTorch")[0]][0] is told.made[1]


def test_a_first_epoch_that_fails_is_a_refusal(told):
    told.answers["epoch", "JAX"] = workers.Failed("epoch: no")
    pool = workers.Pool()
    pool.open(everyone("PyTorch", "JAX"))
    assert set(pool.workers) == set(everyone("PyTorch")) and set(pool.refusals) == set(
        everyone("JAX")
    )


def test_what_is_far_behind_has_one_turn(told):
    told.answers = Told.answers
    told.answers.update({("epoch", "PyTorch"): 0.5, ("epoch", "JAX"): 0.19})
    pool = workers.Pool()
    pool.open(everyone("fastmlp", "PyTorch", "JAX"))
    behind = [entry.provider for case, entry in pool.workers if pool.is_far_behind((case, entry))]
    assert behind == ["PyTorch"]


def test_a_worker_that_does_not_answer_is_ended():
    worker = workers.Worker(Entry("fastmlp", kernel="cpu.fused"))
    with pytest.raises(workers.Failed, match="prepare: no answer in 0 seconds"):
        worker.ask("prepare", TOY, expected_parameters(TOY), patience=0.0)
    assert not worker.process.is_alive()
    worker.close()


def test_a_worker_holds_several_and_lets_go_of_them():
    held = {}
    ours = (TOY, Entry("fastmlp", kernel="cpu.fused"))
    request = ("prepare", (TOY, expected_parameters(TOY)))
    assert servers.answer(held, ours[1], ours, *request)[0] == "done"
    wrong = ("prepare", (TOY, expected_parameters(MEMBERS)))
    assert servers.answer(held, ours[1], (MEMBERS, ours[1]), *wrong)[0] == "refused"
    assert servers.answer(held, ours[1], ours, "epoch", ())[1] > 0
    assert set(held) == {ours, (MEMBERS, ours[1])}
    assert servers.answer(held, ours[1], None, "release", ()) == ("done", None)
    assert not held


# --- the step ------------------------------------------------------------------------------------


def context(seconds=120.0, **options):
    return Context({"quick": True, "device": "cpu", **options}, {}, time.monotonic() + seconds)


def test_rows_come_in_order_of_interest():
    found = comparison.rows([TOY, MEMBERS], list(PRECISIONS), quick=False)
    names = [row.name for row in found]
    assert names[:4] == ["toy, 8", "toys, 8", "toy bfloat16, 8", "toys bfloat16, 8"]
    assert names[4] == "toy, 8, compiled" and names[12] == "toy, 8, tuned"
    assert len(set(names)) == len(names) == 18
    assert len(comparison.rows([TOY], ["tf32"], quick=True)) == 1


def test_a_wrong_kernel_of_ours_fails_the_step_and_a_wrong_peer_does_not():
    refusals = [
        {"kind": "disagreement", "provider": "JAX", "reason": "wrong"},
        {"kind": "missing", "provider": "fastmlp.fit", "reason": "members"},
        {"kind": "failed", "provider": "fastmlp", "reason": "wrong too"},
    ]
    here = context()
    comparison.complain(here, comparison.Row(TOY, ""), refusals)
    assert here.failures == ["toy, 8: fastmlp: wrong too"]


@pytest.mark.peer
def test_the_whole_comparison_on_a_cpu(monkeypatch):
    """Real processes, real peers: what a run on a GPU does, with the CPU in its place."""
    monkeypatch.setattr(comparison, "ORDER", (("bfloat16", ""), ("bfloat16", ", compiled")))
    monkeypatch.setitem(comparison.GROUPS, ", compiled", ("fastmlp",))
    monkeypatch.setattr(comparison, "QUICK_STEPS", 2)
    here = context(cases=["2-20-5"], precisions=["bfloat16"])
    plain = comparison.rows
    monkeypatch.setattr(comparison, "rows", lambda cases, known, quick: plain(cases, known, False))
    comparison.run(here)
    assert here.failures == []
    (item,) = comparison.comparisons(here.results)
    assert (item.case, item.precision, item.device) == ("2-20-5 bfloat16", "bfloat16", "cpu")
    (ours,) = [each for each in item.settings if each.provider == "fastmlp" and each.chosen]
    # Turns of two groups are not the same turns.
    assert list(ours.turns) == [0, 1, 1000, 1001]
    assert all(each.turns.keys() <= ours.turns.keys() for each in item.settings)
    assert not {each.provider for each in item.settings} - {
        "fastmlp",
        "fastmlp.fit",
        "PyTorch",
        "JAX",
        "JAX unroll",  # of the CPU alone
    }


def test_no_row_is_begun_without_time():
    late = context(seconds=5.0, precisions=["float32"], cases=["2-20-5"])
    comparison.run(late)
    assert late.results == {"unfinished": ["2-20-5, 10"]}


def test_a_case_has_its_precisions_in_its_turns():
    several = [replace(TOY, precision=name) for name in PRECISIONS]
    found = in_turns(Settings(several, ["cpu"], [1], ["JAX"], passes=1, seconds=0.0))
    assert [item.case.title for item in found] == ["toy", "toy tf32", "toy bfloat16"]


def test_cpu_and_gpu_side_by_side():
    found = crossover.beside(TOY, {}, "cpu")
    assert set(found["seconds"]) == {"cpu.fused"} and found["failed"] == {}
    assert found["auto"] == found["auto_measured"] == "cpu.fused"
    assert found["regret_auto"] == 1.0 and found["seconds"]["cpu.fused"] > 0


def test_the_ladder_goes_up():
    rungs = crossover.ladder(quick=False)
    flops = {case.batch: [] for case in rungs}
    for case in rungs:
        flops[case.batch].append(case.flops_per_step)
    assert all(values == sorted(values) and len(values) == 4 for values in flops.values())
    here = context(cases=["2-20-5"])
    crossover.run(here)
    assert list(here.results) == ["16-16-16-8, 32", "2-20-5, 10"] and here.failures == []


def test_predictions_are_bounds_by_hand():
    (case,) = [case for case in GPU_CASES if case.name == "128x4"]
    # 128-128-128-128-128-16 forward, backward and weights, 65,536 rows.
    products = 4 * 128 * 128 + 128 * 16
    flops = 2 * 65536 * (3 * products - 128 * 128)
    assert case.flops_per_step == flops
    bound = prediction.floors(case, "float32")
    assert bound.graph == pytest.approx(flops / 51.5e12)
    assert bound.fused == pytest.approx(flops / 51.5e12)
    assert bound.resident is None and bound.ours == bound.fused
    (small,) = [case for case in GPU_CASES if case.name == "2-20-5"]
    assert prediction.floors(small, "float32").graph == pytest.approx(10 * 2e-6)
    (wide,) = [case for case in GPU_CASES if case.name == "1024x3"]
    assert prediction.floors(wide, "bfloat16").fused is None


def test_the_page_holds_the_predictions_of_today():
    page = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    assert prediction.markdown() in page
    assert page.count("\n") < 200


INSTRUCTIONS = """
import numpy as np
from benchmarks.gpu import instructions
# The threads of a block might each have shared memory of its own, where the machine is busy.
import tests.gpu.simulated_blocks
for name, check in instructions.CHECKS.items():
    print(name, check())
kernels = instructions.kernels()
from fastmlp_kernels.cuda.instructions import intrinsics, pointers

def caught(name, module, attribute, wrong):
    right = getattr(module, attribute)
    setattr(module, attribute, wrong)
    instructions.kernels.cache_clear()
    try:
        instructions.CHECKS[name]()
    except Exception as error:
        print("caught", attribute, type(error).__name__)
    finally:
        setattr(module, attribute, right)

bfloat16, tf32 = intrinsics.mma_bfloat16, intrinsics.mma_tf32
# What a machine with another layout would do: registers of a fragment exchanged.
caught("mma_bfloat16", intrinsics, "mma_bfloat16",
       lambda a, b, c: bfloat16((a[1], a[0], a[2], a[3]), b, c))
caught("mma_tf32", intrinsics, "mma_tf32", lambda a, b, c: tf32(a, (b[1], b[0]), c))
straight = intrinsics.load_matrix_x4
caught("load_matrix_x4", intrinsics, "load_matrix_x4_transposed", straight)
caught("conversions", intrinsics, "to_bfloat16", lambda x: np.float32(x).view(np.uint32) >> 16)
caught("load_store", pointers, "store", lambda pointer, values: None)
"""


def test_the_instructions_in_the_simulator(child_python, child_environment):
    pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
    answer = subprocess.run(
        [child_python, "-W", "ignore", "-c", INSTRUCTIONS],
        env={**child_environment, "NUMBA_ENABLE_CUDASIM": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    lines = answer.stdout.splitlines()
    assert len([line for line in lines if "{" in line]) == 6
    # Planted one at a time, each is seen.
    assert [line for line in lines if line.startswith("caught")] == [
        "caught mma_bfloat16 Wrong",
        "caught mma_tf32 Wrong",
        "caught load_matrix_x4_transposed Wrong",
        "caught to_bfloat16 Wrong",
        "caught store Wrong",
    ]


@pytest.mark.cuda_compile
@pytest.mark.skipif(bool(os.environ.get("NUMBA_ENABLE_CUDASIM", "0") != "0"), reason="simulated")
def test_the_kernels_of_the_command_compile():
    pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
    from numba import types

    from benchmarks.cuda_compilation import compile_ptx
    from benchmarks.gpu import ceiling_kernels, ceilings, instruction_kernels, instructions

    def arrays(*names):
        return tuple(types.Array(getattr(types, name), 1, "C") for name in names)

    real, half, word, count = "float32", "uint16", "uint32", types.int64
    made = instructions.kernels()
    signatures = {
        "bfloat16": arrays(half, half, real, real),
        "tf32": arrays(real, real, real, real),
        "load_matrix": (*arrays(half), count, *arrays(word, word)),
        "copy_async_16": arrays(half, half),
        "convert": arrays(real, half, real, word, real, word),
        "four": arrays(real, real),
    }
    assert signatures.keys() == made.keys()
    for name, signature in signatures.items():
        compile_ptx(made[name].py_func, signature, (9, 0))
    for name in ("tf32", "bfloat16"):
        kernel = instruction_kernels.peak_kernel(name).py_func
        ptx = compile_ptx(kernel, (count, *arrays(real)), (9, 0))
        assert ptx.count("mma.sync") >= ceilings.ACCUMULATORS
    whole = (count, *arrays("int64"))
    assert "bar" in compile_ptx(ceiling_kernels.meet_block, whole, (9, 0))
    for name, number in (("empty", 0), ("one", 1), ("eight", 8)):
        compile_ptx(getattr(ceiling_kernels, name), arrays(*[real] * number), (9, 0))


def test_importing_the_command_imports_no_heavy_library():
    code = (
        "import sys, benchmarks.gpu.__main__, benchmarks.gpu.steps; "
        "print([n for n in ('torch', 'jax', 'numba') if n in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"
