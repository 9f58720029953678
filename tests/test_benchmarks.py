"""The benchmarks measure what they say: who is wrong is refused, and the report's figures hold."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import cases, report, run, validation, workers
from benchmarks.baselines import Entry
from benchmarks.ours import Fastmlp
from benchmarks.providers import BASELINES, entries, kernels
from benchmarks.turns import Settings, in_turns
from fastmlp_kernels.algebra import OPTIMIZERS
from fastmlp_kernels.algebra.optimizers import hyper_table
from fastmlp_kernels.problem import Problem
from fastmlp_kernels.reference import ReferenceProgram

ROOT = Path(__file__).resolve().parent.parent
TOY = cases.find("2-20-5").with_steps(3)
OURS = Entry("fastmlp", kernel="cpu.layered")


def expected(case):
    return validation.expected_parameters(case, case.data(), case.initial_weights())


# --- the cases and the oracle ---------------------------------------------------------------


@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: case.name)
def test_flops_of_a_step_are_those_of_the_kernels_problem(case):
    activations = (*["relu"] * (len(case.sizes) - 2), "identity")
    problem = Problem(
        case.sizes, activations, "half_squared_error", batch_size=case.batch, rows=case.rows
    )
    assert case.flops_per_step * case.steps == problem.flops
    assert case.name == "-".join(map(str, case.sizes))


def test_oracle_is_the_reference_in_float64():
    problem = Problem(
        TOY.sizes,
        ("relu", "identity"),
        "half_squared_error",
        dtype="float64",
        batch_size=TOY.batch,
        rows=TOY.rows,
    )
    data = TOY.data()
    parameters = validation.flatten(TOY.initial_weights())
    hyper = hyper_table(
        OPTIMIZERS["sgd"],
        {"learning_rate": cases.LEARNING_RATE, "weight_decay": 0.0},
        1,
        TOY.steps,
        np.float64,
    )
    ReferenceProgram(problem).epoch(
        parameters,
        np.zeros((0, parameters.size)),
        data.X.astype(np.float64),
        data.y.astype(np.float64),
        np.arange(TOY.rows),
        hyper,
        np.zeros(TOY.steps),
        np.zeros(3, np.int64),
    )
    np.testing.assert_allclose(expected(TOY), parameters, rtol=1e-12, atol=1e-14)


def test_every_kernel_but_the_reference_is_tried_and_one_is_chosen():
    found = kernels(TOY, "cpu")
    assert "reference" not in dict(found)
    assert [chosen for _, chosen in found].count(True) == 1


# --- validation -------------------------------------------------------------------------------


class DoubleRate(Fastmlp):
    def prepare(self, case, data, weights):
        # Residuals twice as large: the gradient of the squared error, without the half.
        return super().prepare(case, data._replace(y=2 * data.y), weights)


class NoBias(Fastmlp):
    def parameters(self):
        found, last = super().parameters(), 5
        found[-last:] = validation.flatten(TOY.initial_weights())[-last:]
        return found


class OtherBatches(Fastmlp):
    def prepare(self, case, data, weights):
        return super().prepare(case, cases.Data(data.X, data.y[::-1].copy()), weights)


class OneBatchShort(Fastmlp):
    def prepare(self, case, data, weights):
        return super().prepare(case.with_steps(case.steps - 1), data, weights)


class NotANumber(Fastmlp):
    def parameters(self):
        return np.full_like(super().parameters(), np.nan)


class AnotherShape(Fastmlp):
    def parameters(self):
        return super().parameters()[1:]


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
    monkeypatch.setattr(workers, "timed", lambda *_: pytest.fail("it was timed"))
    with pytest.raises(validation.Disagreement, match=words):
        workers.Server(OURS).prepare(TOY, expected(TOY))


def test_the_right_provider_is_far_inside_the_tolerance():
    answer = workers.Server(OURS).prepare(TOY, expected(TOY))
    assert answer["error"] < validation.TOLERANCE / 100
    assert answer["seconds"] > 0


@pytest.mark.peer
@pytest.mark.parametrize(
    ("name", "module"), [("PyTorch", "torch"), ("JAX", "jax"), ("scikit-learn", "sklearn")]
)
def test_peers_train_the_same_network(name, module):
    pytest.importorskip(module, reason=f"{name} is not installed")
    case = cases.find("64-256-256-8").with_steps(2)
    worker = workers.Worker(Entry(name))
    try:
        assert worker.ask("prepare", case, expected(case))["error"] < validation.TOLERANCE
        assert worker.ask("epoch") > 0
        assert worker.ask("predict_row", 2) > 0
    finally:
        worker.close()


# --- workers ----------------------------------------------------------------------------------


def test_what_is_not_installed_is_missing_with_its_reason(monkeypatch):
    monkeypatch.setattr(BASELINES["JAX"], "module", "no_such_module_anywhere")
    with pytest.raises(workers.Missing, match="jax is not installed"):
        workers.Server(Entry("JAX")).prepare(TOY, expected(TOY))


def test_a_provider_that_raises_or_dies_is_a_failure_and_no_end():
    worker = workers.Worker(OURS)
    try:
        with pytest.raises(workers.Failed, match="predict_row: AttributeError"):
            worker.ask("predict_row", 1)  # nothing was prepared
        assert worker.ask("import_time") > 0
        worker.process.kill()
        with pytest.raises(workers.Failed, match="died"):
            worker.ask("import_time")
    finally:
        worker.close()


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


# --- the report -------------------------------------------------------------------------------


def benchmark(provider, role, turn, data, **more):
    about = {
        "suite": "training",
        "case": "16-64-1",
        "reason": "a critic",
        "provider": provider,
        "role": role,
        "device": "cpu",
        "threads": 1,
        "kernel": "",
        "chosen": True,
        "flops": 4e6,
        "per": 10,
        "turn": turn,
    }
    return {"extra_info": about | more, "stats": {"data": data}}


def document():
    """Three turns, in the second of which the whole machine is ten times as slow."""
    benchmarks = []
    for turn, slow in enumerate((1, 10, 1)):
        rate = np.array([0.9, 1.0, 1.1]) * slow
        times = {
            ("fastmlp", "ours", 1, "cpu.layered"): 0.01,
            ("PyTorch", "peer", 1, ""): 0.05,
            ("PyTorch", "peer", 2, ""): 0.03 + 0.01 * turn,
            ("JAX", "peer", 1, ""): 0.08,
        }
        for (provider, role, threads, kernel), seconds in times.items():
            data = (seconds * rate).tolist()
            more = {"threads": threads, "kernel": kernel}
            benchmarks.append(benchmark(provider, role, turn, data, **more))
        for provider, role, seconds in (("fastmlp", "ours", 0.002), ("PyTorch", "peer", 0.001)):
            data = (seconds * rate).tolist()
            benchmarks.append(benchmark(provider, role, turn, data, device="cuda"))
    return {
        "benchmarks": benchmarks,
        "machine_info": {"processors": 2, "gpu": "", "versions": {"fastmlp": "0.1.0"}},
        "commit_info": {"id": "0123456789abcdef", "dirty": True},
        "datetime": "2026-01-02T03:04:05.6",
        "refusals": [
            {"kind": "missing", "provider": "JAX", "device": "cuda", "reason": "not installed"},
            {"kind": "disagreement", "provider": "Odd", "device": "cpu", "reason": "toy: wrong"},
        ],
    }


def test_ratios_are_of_the_same_turn_and_of_the_best_peer():
    on_cpu, on_cuda = report.comparisons(document())
    assert on_cpu.best("ours").seconds.median == pytest.approx(0.0011)
    assert on_cpu.best("peer").name == "PyTorch (2 threads)"
    # 3, 4 and 5 turn by turn: the slow turn changes nothing.
    ratio = on_cpu.ratio
    assert (ratio.low, ratio.median, ratio.high) == pytest.approx((3.5, 4.0, 4.5))
    assert on_cuda.ratio.median == pytest.approx(0.5)
    assert on_cpu.regret is None
    names = [item.name for item in on_cpu.providers()]
    assert names == ["fastmlp (cpu.layered, 1 thread)", "PyTorch (2 threads)", "JAX (1 thread)"]


def test_tables_show_both_devices_beside_each_other():
    text = report.markdown(document())
    (row,) = [line for line in text.splitlines() if line.startswith("| 16-64-1 | 1.1 (")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    # GFLOP/s: 4e6 operations in 1.1 ms; nine values whose quartiles are known.
    assert cells[1] == "1.1 (1–9) ms"
    assert cells[3] == "**4.00** (3.50–4.50)"
    assert cells[4] == "3.64"
    assert cells[7] == "**0.50** (0.50–0.50)"
    assert cells[9] == "5.00"
    assert "- JAX on cuda: not here: not installed" in text
    assert "- Odd on cpu: refused: toy: wrong" in text
    assert "0123456789ab with uncommitted changes" in text
    assert "- 16-64-1: a critic" in text


def test_regret_is_what_the_chosen_kernel_loses():
    changed = document()
    for item in copy.deepcopy(changed["benchmarks"]):
        about = item["extra_info"]
        if about["role"] == "ours" and about["device"] == "cpu":
            about.update(kernel="cpu.other", chosen=False)
            item["stats"]["data"] = [second / 2 for second in item["stats"]["data"]]
            changed["benchmarks"].append(item)
    on_cpu = report.comparisons(changed)[0]
    assert on_cpu.regret == pytest.approx(1.0)
    # Users get the chosen kernel, so the ratio is still its.
    assert on_cpu.ratio.median == pytest.approx(4.0)
    assert "| 16-64-1 | cpu | 100.0% |" in report.markdown(changed)


def test_without_a_peer_there_is_no_ratio():
    alone = document()
    alone["benchmarks"] = [
        item for item in alone["benchmarks"] if item["extra_info"]["role"] == "ours"
    ]
    assert report.comparisons(alone)[0].ratio is None
    assert "| – | – |" in report.markdown(alone)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(2.5, "2.5 (2.5–2.5) s"), (2.5e-3, "2.5 (2.5–2.5) ms"), (2.5e-7, "0.25 (0.25–0.25) µs")],
)
def test_times_have_the_unit_that_suits_them(seconds, words):
    assert report.show_time(report.spread([seconds])) == words


def test_command_writes_tables_and_plot(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    file = tmp_path / "one.json"
    file.write_text(json.dumps(document()))
    assert report.main([str(file), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "out" / "one.md").read_text(encoding="utf-8") in printed
    assert (tmp_path / "out" / "one.png").read_bytes().startswith(b"\x89PNG")


def test_command_says_which_file_it_cannot_read(tmp_path, capsys):
    file = tmp_path / "one.json"
    file.write_text("no JSON")
    assert report.main([str(file)]) == 2
    assert str(file) in capsys.readouterr().err


# --- the run ----------------------------------------------------------------------------------


def test_an_unknown_case_is_named_with_the_known_ones(capsys):
    with pytest.raises(SystemExit):
        run.parse(["--cases", "2-20-6"])
    message = capsys.readouterr().err
    assert "'2-20-6'" in message and "16-64-1" in message


def test_what_is_named_wins_over_quick():
    options = run.parse(["--quick", "--threads", "1", "2", "--passes", "4", "--device", "cpu"])
    found = run.pytest_options(options)
    assert (found["threads"], found["passes"], found["devices"]) == ("1,2", "4", "cpu")
    assert (found["steps"], found["cases"]) == ("3", ",".join(cases.QUICK_CASES))
    assert run.pytest_options(run.parse([])) == {}


@pytest.mark.slow
def test_a_quick_run_leaves_a_record_and_its_report(tmp_path):
    command = [sys.executable, "-m", "benchmarks.run", "--quick", "--suites", "training"]
    command += ["--cases", "2-20-5", "--device", "cpu", "--out", str(tmp_path)]
    command += ["--providers", "fastmlp", "fastmlp.fit", "scikit-learn"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stdout + result.stderr
    (file,) = tmp_path.glob("*.json")
    record = json.loads(file.read_text(encoding="utf-8"))
    assert "node" not in record["machine_info"]
    assert record["machine_info"]["versions"]["numba"]
    by_provider = {}
    for item in record["benchmarks"]:
        about = item["extra_info"]
        by_provider.setdefault(about["provider"], []).append(about["turn"])
        assert about["error"] < validation.TOLERANCE
        assert min(item["stats"]["data"]) > 0
        assert (about["shape"], about["dtype"], about["per"]) == ([10, 2], "float32", 3)
        assert about["flops"] == TOY.flops_per_step
    assert by_provider["fastmlp"] == by_provider["fastmlp.fit"] == [0, 1]
    assert file.with_suffix(".md").read_text(encoding="utf-8") in result.stdout
    assert "| 2-20-5 |" in result.stdout
