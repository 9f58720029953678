"""A run of the benchmarks loses nothing that was measured, whatever ends it."""

import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from benchmarks import cases, record, run, validation
from benchmarks.suites import conftest
from tests import ROOT
from tests.benchmarking.records import benchmark

TOY = cases.find("2-20-5").with_steps(3)


def test_an_unknown_case_is_named_with_the_known_ones(capsys):
    with pytest.raises(SystemExit):
        run.parse(["--cases", "2-20-6"])
    message = capsys.readouterr().err
    assert "'2-20-6'" in message and "16-64-1" in message


def test_what_is_named_wins_over_quick():
    options = run.parse(["--quick", "--threads", "1", "2", "--passes", "4", "--device", "cpu"])
    found = run.pytest_options(options, run.parts(options)[0])
    assert (found["threads"], found["passes"], found["devices"]) == ("1,2", "4", "cpu")
    assert (found["steps"], found["cases"]) == ("3", cases.QUICK_CASES[0])
    both = run.parse(["--device", "both"])
    assert run.pytest_options(both, run.Part("overhead")) == {"devices": "cpu,cuda"}


def test_what_is_here_is_measured(monkeypatch):
    monkeypatch.setattr(run, "detect", lambda: SimpleNamespace(cuda_missing="no GPU"))
    assert run.devices(run.parse([])) == ["cpu"]
    monkeypatch.setattr(run, "detect", lambda: SimpleNamespace(cuda_missing=None))
    assert run.devices(run.parse([])) == ["cpu", "cuda"]
    names = [part.name for part in run.parts(run.parse(["--suites", "training"]))]
    assert names == [f"training {case.name}" for case in cases.EVERY_CASE]
    assert run.devices(run.parse(["--device", "cuda"])) == ["cuda"]


def test_a_name_that_is_no_providers_is_refused(capsys):
    with pytest.raises(SystemExit):
        run.parse(["--providers", "fastmpl"])
    assert "got 'fastmpl', wanted some of fastmlp, " in capsys.readouterr().err


def test_a_run_has_a_part_for_each_case_and_kind():
    names = [part.name for part in run.parts(run.parse([]))]
    assert names[: len(cases.CASES)] == [f"training {case.name}" for case in cases.CASES]
    assert [name.split()[1] for name in names if name.startswith("variants")] == list(cases.KINDS)
    assert names.index("overhead") == names.index("fits breast-cancer") - 1
    assert names[-2:] == ["fits grid-search", "first_fits"]
    few = [part.name for part in run.parts(run.parse(["--cases", "2-20-5", "64-64-10"]))]
    kinds = "variants activation 2-20-5,64-64-10"
    assert few == ["training 2-20-5", "training 64-64-10", kinds, "overhead"]


def part_of_a_record(provider, **more):
    return {
        "benchmarks": [benchmark(provider, "ours", 0, [0.01])],
        "refusals": [{"kind": "missing", "provider": "JAX", "device": "cuda", "reason": "no"}],
        **more,
    }


def test_a_record_grows_and_keeps_its_first_facts(tmp_path):
    first = part_of_a_record("fastmlp", datetime="first", commit_info={"id": "1"})
    grown = record.grown(None, first)
    assert grown == first
    other = {"kind": "failed", "provider": "JAX", "device": "cpu", "reason": "why"}
    second = part_of_a_record("PyTorch", datetime="second", commit_info={"id": "2"})
    second["refusals"].append(other)
    grown = record.grown(grown, second)
    providers = [item["extra_info"]["provider"] for item in grown["benchmarks"]]
    assert providers == ["fastmlp", "PyTorch"]
    assert (grown["datetime"], grown["commit_info"]) == ("first", {"id": "1"})
    assert grown["refusals"] == [*first["refusals"], other]
    path = tmp_path / "one.json"
    grown["benchmarks"][0]["params"] = {"measurement": "a printout of every competitor"}
    record.save(grown, path)
    kept = [item | {"params": None} for item in grown["benchmarks"]]
    assert record.load(path) == grown | {"benchmarks": kept}
    assert [each.name for each in tmp_path.iterdir()] == ["one.json"]
    path.write_text("{", encoding="utf-8")
    assert record.load(path) is None
    assert record.load(tmp_path / "none.json") is None


def a_run(monkeypatch, tmp_path, fate):
    """Run two parts, of which `fate` tells what becomes; return the status and the record."""
    monkeypatch.setattr(run, "compile_ahead", lambda options: None)

    def run_part(options, part, path, listener):
        left = part_of_a_record(part.name, datetime="now", commit_info={}, machine_info={})
        if fate(part.name) != "nothing":
            path.write_text(json.dumps(left), encoding="utf-8")
        if fate(part.name) == "interrupted":
            listener.hear(signal.SIGTERM, None)
        return 0 if fate(part.name) == "whole" else 2

    monkeypatch.setattr(run, "run_part", run_part)
    words = ["--suites", "training", "--cases", "2-20-5", "16-64-1", "--out", str(tmp_path)]
    status = run.main(words)
    found = list(tmp_path.glob("*.json"))
    return status, record.load(found[0]) if found else None


def test_what_was_measured_before_the_end_is_kept(monkeypatch, tmp_path, capsys):
    def fate(name):
        return "interrupted" if "16-64-1" in name else "whole"

    status, kept = a_run(monkeypatch, tmp_path, fate)
    assert status == 128 + signal.SIGTERM
    assert len(kept["benchmarks"]) == 2
    assert kept["unfinished"] == ["training 16-64-1"]
    printed = capsys.readouterr().out
    assert "- Not measured, or not in all of their turns: training 16-64-1" in printed
    # Half a run is no result to compare others with.
    assert not (tmp_path / "results.csv").exists()


def test_a_part_that_dies_is_no_end(monkeypatch, tmp_path):
    status, kept = a_run(
        monkeypatch, tmp_path, lambda name: "nothing" if "2-20-5" in name else "whole"
    )
    assert status == 1
    assert [item["extra_info"]["provider"] for item in kept["benchmarks"]] == ["training 16-64-1"]
    assert kept["unfinished"] == ["training 2-20-5"]
    assert (tmp_path / "results.csv").read_text(encoding="utf-8").count("\n") == 2


def test_nothing_measured_is_said(monkeypatch, tmp_path, capsys):
    status, kept = a_run(monkeypatch, tmp_path, lambda name: "nothing")
    assert status and kept is None
    assert "Nothing was measured" in capsys.readouterr().err


def test_a_turn_that_is_cut_short_is_not_saved():
    class CutShort:
        has_error = False

        def pedantic(self, target, **_):
            raise KeyboardInterrupt

    benchmark = CutShort()
    with pytest.raises(KeyboardInterrupt):
        conftest.take_rounds(benchmark, None, 1)
    assert benchmark.has_error


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_an_interrupted_run_leaves_what_it_had(tmp_path):
    command = [sys.executable, "-m", "benchmarks.run", "--quick", "--suites", "training"]
    command += ["--cases", "2-20-5", "16-64-1", "--device", "cpu", "--passes", "1000"]
    command += ["--providers", "FMA peak", "--out", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        dots = ""
        while dots.count(".") < 20:
            dots += process.stdout.read(1)
            assert process.poll() is None, dots
        process.terminate()
        printed, _ = process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGTERM, printed
    assert "Record: " in printed, printed
    (file,) = tmp_path.glob("*.json")
    kept = record.load(file)
    assert 10 < len(kept["benchmarks"]) < 1000
    assert kept["unfinished"] == ["training 2-20-5", "training 16-64-1"]
    assert "FMA peak of this machine" in file.with_suffix(".md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_quick_run_leaves_a_record_and_its_report(tmp_path):
    command = [sys.executable, "-m", "benchmarks.run", "--quick", "--suites", "training"]
    command += ["--cases", "2-20-5", "--device", "cpu", "--out", str(tmp_path)]
    command += ["--providers", "fastmlp", "fastmlp.fit", "scikit-learn"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stdout + result.stderr
    (file,) = tmp_path.glob("*.json")
    document = json.loads(file.read_text(encoding="utf-8"))
    assert "node" not in document["machine_info"]
    assert document["machine_info"]["versions"]["numba"]
    assert document["commit_info"]["id"]
    assert document["unfinished"] == []
    by_provider = {}
    for item in document["benchmarks"]:
        about = item["extra_info"]
        by_provider.setdefault(about["provider"], []).append(about["turn"])
        assert about["error"] < validation.TOLERANCES["float32"]
        assert min(item["stats"]["data"]) > 0
        assert (about["shape"], about["dtype"], about["per"]) == ([10, 2], "float32", 3)
        assert about["flops"] == TOY.flops_per_step
        assert about["goal"] == TOY.target
    assert by_provider["fastmlp"] == by_provider["fastmlp.fit"] == [0, 1]
    assert file.with_suffix(".md").read_text(encoding="utf-8") in result.stdout
    assert "| 2-20-5 |" in result.stdout


def test_a_timing_covers_tens_of_milliseconds_of_epochs():
    assert [conftest.epochs_of(seconds) for seconds in (1e-3, 0.019, 0.02, 5.0)] == [20, 2, 1, 1]
