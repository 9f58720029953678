"""The comparison of `dev.py gpu`, on the CPU at toy sizes: oracle, peers, turns, crossover."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import validation
from benchmarks.cases import CASES as NAMED
from benchmarks.gpu import cases, comparison, crossover, ours, peers, prediction, report
from benchmarks.gpu.cases import GpuCase, expected, validate
from benchmarks.gpu.processes import Failed, Process
from benchmarks.gpu.provider import Provider, way
from benchmarks.gpu.providers import FAMILIES
from benchmarks.gpu.steps import Context, Skipped
from benchmarks.validation import Disagreement
from fastmlp_kernels.registry import KERNELS
from tests import ROOT

TOY = GpuCase("toy", (5, 9, 7, 3), 8, 6, "a toy", 1.0)
MEMBERS = replace(TOY, name="toys", members=3)
PRECISIONS = ("float32", "tf32", "bfloat16")


def trained(provider, case):
    """Return a provider's parameters after an epoch, and what is wanted."""
    data, weights = case.data(), case.member_weights()
    provider.prepare(case, data, weights)()
    return weights, expected(case, data, weights), provider.parameters()


def test_the_oracle_is_that_of_the_cpu_benchmarks():
    for case in (TOY, replace(NAMED[1].with_steps(4))):
        single = GpuCase(case.name, case.sizes, case.batch, case.steps, "", 1.0)
        data, weights = case.data(), case.initial_weights()
        wanted = validation.expected_parameters(case, data, weights)
        np.testing.assert_allclose(expected(single, data, [weights])[0], wanted, rtol=1e-12)


def test_members_are_trained_each_from_weights_of_its_own():
    data, weights = MEMBERS.data(), MEMBERS.member_weights()
    assert not np.array_equal(weights[0][0][0], weights[2][0][0])
    together = expected(MEMBERS, data, weights)
    assert together.shape == (3, sum(W.size + b.size for W, b in weights[0]))
    for k, each in enumerate(weights):
        np.testing.assert_allclose(together[k], expected(TOY, data, [each])[0], rtol=1e-12)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_validation_refuses_what_is_beyond_the_precision(precision):
    case = replace(MEMBERS, precision=precision)
    weights = case.member_weights()
    wanted = expected(case, case.data(), weights)
    initial = np.stack([validation.flatten(each) for each in weights])
    limit = cases.TOLERANCES[precision]
    near = wanted + 0.9 * limit * (wanted - initial)
    assert validate(case, weights, wanted, near) == pytest.approx(0.9 * limit, rel=1e-6)
    far = wanted.copy()
    far[1] += 1.1 * limit * (wanted - initial)[1]
    with pytest.raises(Disagreement, match=f"of member 1 .* in {precision}"):
        validate(case, weights, wanted, far)
    far[1] = np.nan
    with pytest.raises(Disagreement):
        validate(case, weights, wanted, far)
    with pytest.raises(Disagreement, match="got shape"):
        validate(case, weights, wanted, wanted[:2])


def test_the_cases_are_the_ones_that_were_promised():
    assert [case.name for case in cases.CASES[:7]] == [case.name for case in NAMED[:7]]
    shapes = {(case.name, case.batch) for case in cases.CASES[7:]}
    assert {("64x4", 16384), ("64x4-large", 262144), ("128x4", 65536), ("1024x3", 8192)} < shapes
    assert [case.sizes for case in cases.CASES if case.members == 132] == [
        (16, 64, 1),
        (64, 64, 10),
    ]
    assert [case.name for case in cases.choose(None, quick=True)] == list(cases.QUICK)
    assert all(case.steps <= 3 for case in cases.choose(None, quick=True))
    assert [case.name for case in cases.choose(["64x4"], quick=False)] == ["64x4"]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", [TOY, MEMBERS], ids=lambda case: case.name)
@pytest.mark.parametrize("name", ["Torch", "Jax"])
@pytest.mark.peer
def test_a_peer_trains_what_the_oracle_trains(name, case, precision):
    pytest.importorskip(name.lower(), reason=f"{name} is not installed")
    asked = replace(case, precision=precision)
    weights, wanted, got = trained(getattr(peers, name)("cpu"), asked)
    error = validate(asked, weights, wanted, got)
    # bfloat16 is seen to round; a CPU has no tf32.
    assert (error > 1e-3) == (precision == "bfloat16")


@pytest.mark.peer
def test_the_compiled_peer_trains_what_the_oracle_trains():
    pytest.importorskip("torch", reason="PyTorch is not installed")
    try:
        weights, wanted, got = trained(peers.TorchCompiled("cpu"), MEMBERS)
    except Skipped as reason:
        pytest.skip(str(reason))
    validate(MEMBERS, weights, wanted, got)


@pytest.mark.peer
@pytest.mark.parametrize("name", ["torch", "jax"])
def test_a_peer_with_another_rate_is_refused(name, monkeypatch):
    pytest.importorskip(name, reason=f"{name} is not installed")
    monkeypatch.setattr(peers, "LEARNING_RATE", 0.05)
    provider = {"torch": peers.Torch, "jax": peers.Jax}[name]("cpu")
    for precision in PRECISIONS:
        weights, wanted, got = trained(provider, replace(TOY, precision=precision))
        with pytest.raises(Disagreement):
            validate(replace(TOY, precision=precision), weights, wanted, got)


@pytest.mark.peer
def test_a_captured_graph_needs_a_gpu():
    pytest.importorskip("torch", reason="PyTorch is not installed")
    with pytest.raises(Skipped, match="CUDA graphs do not run on 'cpu'"):
        trained(peers.TorchGraph("cpu"), TOY)


def test_layouts_of_members_and_of_one_network():
    weights = MEMBERS.member_weights()
    parts = peers.layout(weights)
    assert [part.shape for part in parts[:2]] == [(3, 5, 9), (3, 1, 9)]
    wanted = np.stack([validation.flatten(each) for each in weights])
    np.testing.assert_array_equal(peers.flattened(parts, 3), wanted)
    parts = peers.layout(weights[:1])
    assert [part.shape for part in parts[:2]] == [(5, 9), (9,)]
    np.testing.assert_array_equal(peers.flattened(parts, 1), wanted[:1])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_fastmlp_trains_what_the_oracle_trains(precision):
    case = replace(TOY, precision=precision)
    for provider in (ours.Fastmlp("cpu", "cpu.fused"), ours.FastmlpFit("cpu")):
        weights, wanted, got = trained(provider, case)
        validate(case, weights, wanted, got)


def test_fastmlp_trains_members_where_a_kernel_can():
    able = [name for name in ours.kernels_for(MEMBERS, "cpu")]
    problem = ours.problem(MEMBERS)
    if problem.members != 3 or not refuses_members():
        pytest.skip("no kernel of the CPU says how many networks it trains")
    for name in able:
        weights, wanted, got = trained(ours.Fastmlp("cpu", name), MEMBERS)
        validate(MEMBERS, weights, wanted, got)


def refuses_members():
    """Return whether kernels know of members: the reference trains one network at a time."""
    from fastmlp_kernels.problem import Machine

    (reference,) = [kernel for kernel in KERNELS if kernel.name == "reference"]
    return reference.supports(ours.problem(MEMBERS), Machine()) is not None


def test_notes_say_where_products_come_from():
    provider = ours.Fastmlp("cpu", "cpu.fused")
    provider.program = SimpleNamespace(
        products=SimpleNamespace(name="tiles", reason="cuBLASLt was not found"),
        steps=SimpleNamespace(reason=""),
    )
    assert provider.notes() == {"products": "tiles, cuBLASLt was not found", "graphs": ""}


def test_every_way_has_a_label_of_its_own():
    labels = [
        each["label"]
        for family in FAMILIES.values()
        for provider in family
        for each in provider.ways(TOY, "cpu")
    ]
    assert len(set(labels)) == len(labels)
    chosen = [each for each in ours.Fastmlp.ways(TOY, "cpu") if each["chosen"]]
    assert [each["kernel"] for each in chosen] == ["cpu.fused"]


@pytest.fixture
def process():
    made = Process("fastmlp", "cpu")
    yield made
    made.close()


def test_a_process_answers_times_and_survives_its_own_death(process):
    (kernel, fit) = process.ask(60, "ways", TOY)
    answer = process.ask(60, "prepare", TOY, kernel)
    assert answer["notes"] == {}
    got, weights = answer["parameters"], TOY.member_weights()
    validate(TOY, weights, expected(TOY, TOY.data(), weights), got)
    assert 0 < process.ask(60, "epochs", kernel["label"], 3) < 1
    with pytest.raises(Failed, match="KeyError"):
        process.ask(60, "epochs", fit["label"], 1)
    process.ask(60, "release")
    with pytest.raises(Failed, match="KeyError"):
        process.ask(60, "epochs", kernel["label"], 1)
    os.kill(process.process.pid, signal.SIGKILL)
    with pytest.raises(Failed, match=r"epochs: the process died with exit code -9"):
        process.ask(60, "epochs", kernel["label"], 1)
    assert process.ask(60, "ways", TOY) == [kernel, fit]


def test_a_process_that_does_not_answer_is_ended(process):
    process.ask(60, "ways", TOY)
    number = process.process.pid
    with pytest.raises(Failed, match="prepare: no answer in 0 seconds"):
        process.ask(0.0, "prepare", replace(TOY, steps=50000), process_way())
    assert process.process is None
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


def process_way():
    return way(ours.Fastmlp, "cpu.fused")


class Answers:
    """A process that answers as it is told, for what the turns make of it."""

    def __init__(self, answers, seconds=0.01):
        self.answers, self.seconds, self.asked = answers, seconds, []
        self.process = self

    def ask(self, patience, name, *arguments):
        self.asked.append((name, *arguments))
        if name == "ways":
            return [{**way(Named), "label": label} for label in self.answers]
        if name == "prepare":
            found = self.answers[arguments[1]["label"]]
            if isinstance(found, Exception):
                raise found
            return {"parameters": found, "notes": {}}
        if name == "epochs" and arguments[0] == "dies":
            raise Failed("epochs: the process died")
        return self.seconds

    def close(self):
        self.process = None


class Named(Provider):
    name = "named"


def context(seconds=120.0, **options):
    return Context({"quick": True, "device": "cpu", **options}, {}, time.monotonic() + seconds)


def test_a_row_has_a_time_a_refusal_or_a_reason_for_each(monkeypatch):
    monkeypatch.setattr(comparison, "TURN_SECONDS", 0.05)
    weights = TOY.member_weights()
    wanted = expected(TOY, TOY.data(), weights)
    answers = {
        "right": wanted,
        "wrong": wanted + 1.0,
        "absent": Skipped("not installed"),
        "broken": Failed("ValueError: no"),
        "dies": wanted,
    }
    processes = {"a": Answers(answers), "b": Answers({})}
    row = comparison.Row(TOY, ("a", "b"))
    found = comparison.measure(row, processes, comparison.Oracles(), 3, context())
    entries = {each["label"]: each for each in found["entries"]}
    assert list(entries["right"]["turns"]) == [0, 1, 2] and entries["right"]["epochs"] == 5
    assert entries["right"]["error"] == 0.0
    assert "refused" in entries["wrong"] and "turns" not in entries["wrong"]
    assert entries["absent"]["skipped"] == "not installed"
    assert entries["broken"]["failed"] == "ValueError: no"
    assert "the process died" in entries["dies"]["failed"] and entries["dies"]["turns"] == {}
    assert entries["b"]["skipped"] == "no kernel of the device can run it"
    assert processes["a"].asked[-1] == ("release",)
    # The parameters are no part of the record.
    assert not any("parameters" in each for each in found["entries"])


def test_every_pass_begins_with_another_one():
    order = []

    class Ordered(Answers):
        def ask(self, patience, name, *arguments):
            if name == "epochs":
                order.append(arguments[0])
            return super().ask(patience, name, *arguments)

    wanted = expected(TOY, TOY.data(), TOY.member_weights())
    processes = {"a": Ordered({"x": wanted, "y": wanted, "z": wanted})}
    comparison.measure(comparison.Row(TOY, ("a",)), processes, comparison.Oracles(), 3, context())
    assert "".join(order) == "xyz" + "xyz" + "yzx" + "zxy"


def test_what_is_far_behind_has_one_turn(monkeypatch):
    monkeypatch.setattr(comparison, "LONG_SECONDS", 0.005)
    wanted = expected(TOY, TOY.data(), TOY.member_weights())

    class Uneven(Answers):
        def ask(self, patience, name, *arguments):
            answer = super().ask(patience, name, *arguments)
            return 0.1 if name == "epochs" and arguments[0] == "slow" else answer

    processes = {"a": Uneven({"slow": wanted, "fast": wanted})}
    row = comparison.Row(TOY, ("a",))
    found = comparison.measure(row, processes, comparison.Oracles(), 3, context())
    slow, fast = found["entries"]
    assert slow["turns"] == {0: 0.1} and len(fast["turns"]) == 3
    assert report.ratio(slow, fast).median == pytest.approx(10)


def test_a_wrong_kernel_of_ours_fails_the_step_and_a_wrong_peer_does_not():
    entries = [
        {"label": "JAX", "family": "JAX", "refused": "wrong"},
        {"label": "fastmlp (k)", "family": "fastmlp", "refused": "wrong too"},
    ]
    here = context()
    comparison.complain(here, comparison.Row(TOY, ("JAX",)), {"entries": entries})
    assert here.failures == ["toy, 8, float32: fastmlp (k): wrong too"]


def test_rows_come_in_order_of_interest():
    found = comparison.rows([TOY, MEMBERS], list(PRECISIONS), quick=False)
    names = [row.name for row in found]
    assert names[:4] == [
        "toy, 8, float32",
        "toys, 8, float32",
        "toy, 8, bfloat16",
        "toys, 8, bfloat16",
    ]
    assert names[4] == "toy, 8, float32, compiled" and names[12] == "toy, 8, float32, tuned"
    assert len(set(names)) == len(names) == 18
    assert len(comparison.rows([TOY], ["tf32"], quick=True)) == 1


@pytest.mark.peer
def test_the_whole_comparison_on_a_cpu(monkeypatch):
    """Real processes, real peers: what a run on a GPU does, with the CPU in its place."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    pytest.importorskip("jax", reason="JAX is not installed")
    monkeypatch.setattr(comparison, "choose", lambda names, quick: [TOY])
    here = context(precisions=["bfloat16"])
    comparison.run(here)
    assert here.failures == []
    row = here.results["toy, 8, bfloat16"]
    timed = {each["label"] for each in row["entries"] if each.get("turns")}
    assert timed == {"fastmlp (cpu.fused)", "fastmlp.fit", "PyTorch eager", "JAX"}
    record = {"steps": {"comparison": {"results": here.results}}}
    assert len(report.compared(record)) == 1


def test_no_row_is_begun_without_time(monkeypatch):
    monkeypatch.setattr(comparison, "choose", lambda names, quick: [TOY])
    late = context(seconds=5.0, precisions=["float32"])
    comparison.run(late)
    assert late.results == {"unfinished": ["toy, 8, float32"]}


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
    assert len({case.title for case in rungs}) == len(rungs)


def test_predictions_are_bounds_by_hand():
    (case,) = [case for case in cases.CASES if case.name == "128x4"]
    # 128-128-128-128-128-16 forward, backward and weights, 65,536 rows.
    products = 4 * 128 * 128 + 128 * 16
    flops = 2 * 65536 * (3 * products - 128 * 128)
    assert case.flops_per_step == flops
    bound = prediction.floors(case, "float32")
    assert bound.graph == pytest.approx(flops / 51.5e12)
    assert bound.fused == pytest.approx(flops / 51.5e12)
    assert bound.resident is None and bound.ours == bound.fused
    (small,) = [case for case in cases.CASES if case.name == "2-20-5"]
    assert prediction.floors(small, "float32").graph == pytest.approx(10 * 2e-6)
    (wide,) = [case for case in cases.CASES if case.name == "1024x3"]
    assert prediction.floors(wide, "bfloat16").fused is None


def test_the_page_holds_the_predictions_of_today():
    page = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    assert prediction.markdown() in page
    assert page.count("\n") < 200


INSTRUCTIONS = """
import numpy as np
from benchmarks.gpu import instructions
for name, check in instructions.CHECKS.items():
    print(name, check())
kernels = instructions.kernels()
from fastmlp_kernels.cuda.instructions import intrinsics

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
caught("load4_store4", intrinsics, "store4", lambda out, place, values: None)
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
        "caught store4 Wrong",
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
    assert "cudaCGSynchronize" in compile_ptx(ceiling_kernels.meet_grid, whole, (9, 0))
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
