"""The figures of the benchmarks' report are what they say."""

import copy
import csv
import json

import numpy as np
import pytest

from benchmarks import plot, report, results_csv
from tests import ROOT
from tests.benchmarking.records import benchmark


def document():
    """Three turns, in the second of which the whole machine is ten times as slow."""
    benchmarks = []
    for turn, slow in enumerate((1, 10, 1)):
        rate = np.array([0.9, 1.0, 1.1]) * slow
        times = {
            ("fastmlp", "ours", 1, "cpu.fused"): 0.01,
            ("FMA peak", "peak", 1, ""): 0.0004,
            ("PyTorch", "peer", 1, ""): 0.05,
            ("PyTorch", "peer", 2, ""): 0.03 + 0.01 * turn,
            ("JAX", "peer", 1, ""): 0.08,
        }
        for (provider, role, threads, kernel), seconds in times.items():
            data = (seconds * rate).tolist()
            more = {"threads": threads, "kernel": kernel, "goal": 2.0}
            if role == "peak":
                more |= {"per": 1, "flops": 8e6}
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
    assert names == ["fastmlp (cpu.fused, 1 thread)", "PyTorch (2 threads)", "JAX (1 thread)"]


def row_of(text, start):
    (row,) = [line for line in text.splitlines() if line.startswith(start)]
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_tables_show_both_devices_beside_each_other():
    text = report.markdown(document())
    cells = row_of(text, "| 16-64-1, 32 | 1.1 (")
    assert cells[1] == "1.1 (1–9) ms"
    assert cells[3] == "**4.00** (3.50–4.50)"
    assert cells[4] == "at least 2: met"
    # 4e6 operations in 1.1 ms; the median of nine values.
    assert cells[5] == "3.64"
    # 4e6 operations in 1 ms are a fifth of 8e6 in 0.4 ms, in every turn.
    assert cells[6] == "20% (20%–20%)"
    assert cells[9] == "**0.50** (0.50–0.50)"
    assert cells[9:12:2] == ["**0.50** (0.50–0.50)", "–"] and cells[12] == "5.00"
    assert "- JAX on cuda: not here: not installed" in text
    assert "- Odd on cpu: refused: toy: wrong" in text
    assert "0123456789ab with uncommitted changes" in text
    assert "- 16-64-1: a critic" in text
    # A median of 8e6 operations in 0.44 ms.
    assert "float32, 1 thread: 18.2 (" in text


def test_a_target_that_is_missed_says_so():
    changed = document()
    for item in changed["benchmarks"]:
        item["extra_info"].update(goal=4.5, cases="own")
    cells = row_of(report.markdown(changed), "| 16-64-1, 32 (own) | 1.1 (")
    assert cells[4] == "at least 4.5: missed"


@pytest.mark.parametrize(
    ("goal", "got", "words"),
    [
        (1.15, 1.15, "at most 1.15: met"),
        (1.15, 1.16, "at most 1.15: missed"),
        (1.15, None, "at most 1.15: not measured"),
        (0.0, 2.0, "–"),
    ],
)
def test_a_bound_is_met_up_to_itself(goal, got, words):
    assert report.at_most(goal, got) == words
    turned = {"met": "missed", "missed": "met"} if got != goal else {}
    last = words.rpartition(" ")[2]
    least = words.replace("most", "least").replace(last, turned.get(last, last))
    assert report.at_least(goal, got) == least


def with_two_threads(seconds):
    """Return the document with fastmlp on two threads as well, as one that was not chosen."""
    changed = document()
    for turn in range(3):
        data = [seconds * (10 if turn == 1 else 1)] * 3
        more = {"threads": 2, "kernel": "cpu.fused", "chosen": False}
        changed["benchmarks"].append(benchmark("fastmlp", "ours", turn, data, **more))
    return changed


def test_regret_is_over_numbers_of_threads_too():
    on_cpu = report.comparisons(with_two_threads(0.008))[0]
    assert on_cpu.regret == pytest.approx(1.25)
    text = report.markdown(with_two_threads(0.008))
    cells = row_of(text, "| 16-64-1, 32 | cpu | cpu.fused on 1 |")
    assert cells[-2:] == ["**1.25** (1.25–1.25)", "1.25"]
    assert "worst regret is 1.25, of 16-64-1 on cpu (at most 1.15: missed)" in text
    # Users get one thread, so that is what the table of everybody shows.
    assert "fastmlp (cpu.fused, 1 thread)" in text
    assert "fastmlp (cpu.fused, 2 threads)" not in text
    best = report.markdown(with_two_threads(0.02))
    assert "worst regret is 1.00, of 16-64-1 on cpu (at most 1.15: met)" in best


def test_variants_are_beside_the_plain_case_of_their_own_turns():
    changed = document()
    for kind, plain, other in (("optimizer", 0.01, 0.011), ("activation", 0.02, 0.04)):
        for turn, slow in enumerate((1, 10, 1)):
            more = {"suite": f"variants: {kind}", "kernel": "cpu.fused"}
            data = [plain * slow]
            changed["benchmarks"].append(benchmark("fastmlp", "ours", turn, data, **more))
            more |= {"case": f"16-64-1 {kind}", "against": "16-64-1", "goal": 1.15}
            data = [other * slow]
            changed["benchmarks"].append(benchmark("fastmlp", "ours", turn, data, **more))
    text = report.markdown(changed)
    cells = row_of(text, "| 16-64-1 optimizer, 32 |")
    assert cells[4:6] == ["**1.10** (1.10–1.10)", "at most 1.15: met"]
    cells = row_of(text, "| 16-64-1 activation, 32 |")
    assert cells[4:6] == ["**2.00** (2.00–2.00)", "at most 1.15: missed"]


def test_small_calls_have_goals_and_their_part_beside_the_kernel():
    changed = document()
    for provider, role, seconds, goal in (
        ("fastmlp", "also", 5e-6, 0.0),
        ("fastmlp.step", "ours", 9e-6, 12e-6),
        ("fastmlp.fit", "also", 65e-6, 0.0),
        ("JAX", "peer", 30e-6, 0.0),
    ):
        more = {"suite": "one batch", "per": 1, "goal": goal}
        changed["benchmarks"].append(benchmark(provider, role, 0, [seconds], **more))
    text = report.markdown(changed)
    assert row_of(text, "| one batch: 16-64-1 | cpu | fastmlp.step")[-1] == "at most 12 µs: met"
    assert row_of(text, "| one batch: 16-64-1 | cpu | JAX")[-1] == "–"
    assert "- fastmlp.fit adds 60 µs to its kernel: one batch of 16-64-1, 32, on cpu" in text
    assert "- fastmlp.step adds 4 µs to its kernel" in text


def test_memory_has_a_column_for_each_provider():
    changed = document()
    for item in changed["benchmarks"]:
        about = item["extra_info"]
        if about["device"] == "cpu":
            about["added_memory_mib"] = {"fastmlp": 1.4, "PyTorch": 80.0}.get(
                about["provider"], float("nan")
            )
    text = report.markdown(changed)
    assert "| network, batch | device | fastmlp | PyTorch | JAX |" in text
    assert "| 16-64-1, 32 | cpu | 1 | 80 | – |" in text
    assert "## Memory" not in report.markdown(document())


def test_regret_is_what_the_chosen_kernel_loses():
    changed = document()
    for item in copy.deepcopy(changed["benchmarks"]):
        about = item["extra_info"]
        if about["role"] == "ours" and about["device"] == "cpu":
            about.update(kernel="cpu.other", chosen=False)
            item["stats"]["data"] = [second / 2 for second in item["stats"]["data"]]
            changed["benchmarks"].append(item)
    on_cpu = report.comparisons(changed)[0]
    assert on_cpu.regret == pytest.approx(2.0)
    # Users get the chosen kernel, so the ratio is still its.
    assert on_cpu.ratio.median == pytest.approx(4.0)
    assert "worst regret is 2.00, of 16-64-1 on cpu" in report.markdown(changed)


def test_without_a_peer_there_is_no_ratio():
    alone = document()
    alone["benchmarks"] = [
        item for item in alone["benchmarks"] if item["extra_info"]["role"] == "ours"
    ]
    assert report.comparisons(alone)[0].ratio is None
    assert row_of(report.markdown(alone), "| 16-64-1, 32 | 1.1 (")[3] == "–"


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


def test_the_plot_has_every_peer_at_its_best():
    on_cpu, on_cuda = report.comparisons(document())
    ratios = {name: ratio.median for name, ratio in plot.peers(on_cpu).items()}
    assert ratios == pytest.approx({"PyTorch": 4.0, "JAX": 8.0})
    assert plot.peers(on_cuda).keys() == {"PyTorch"}


def rows_of(folder):
    with (folder / "results.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_record_becomes_a_row_a_setting_once(tmp_path):
    for stem in ("second", "first", "second"):
        results_csv.add(document(), stem, tmp_path)
    rows = rows_of(tmp_path)
    assert [row["record"] for row in rows] == ["first"] * 7 + ["second"] * 7
    row = rows[0]
    assert tuple(row) == results_csv.COLUMNS
    assert (row["case"], row["provider"], row["threads"]) == ("16-64-1", "fastmlp", "1")
    seconds = on_cpu_seconds()
    for name, value in (
        ("median", seconds.median),
        ("lower_quartile", seconds.low),
        ("upper_quartile", seconds.high),
    ):
        assert float(row[f"{name}_seconds"]) == pytest.approx(value, rel=1e-3)
    assert row["machine"] == "unknown processor, 2 processors"
    assert (row["date"], row["commit"]) == ("2026-01-02", "0123456789ab+")


def on_cpu_seconds():
    return report.comparisons(document())[0].best("ours").seconds


def test_the_command_for_rows_reads_records(tmp_path, capsys):
    file = tmp_path / "one.json"
    file.write_text(json.dumps(document()))
    assert results_csv.main([str(file)]) == 0
    assert {row["record"] for row in rows_of(tmp_path)} == {"one"}
    file.write_text("no JSON")
    assert results_csv.main([str(file)]) == 2
    assert str(file) in capsys.readouterr().err


def test_the_kept_results_have_the_rows_of_every_kept_report():
    folder = ROOT / "benchmarks" / "results"
    reports = {path.stem for path in folder.glob("benchmark-*.md")}
    assert reports and reports <= {row["record"] for row in rows_of(folder)}


def test_command_says_which_file_it_cannot_read(tmp_path, capsys):
    file = tmp_path / "one.json"
    file.write_text("no JSON")
    assert report.main([str(file)]) == 2
    assert str(file) in capsys.readouterr().err
