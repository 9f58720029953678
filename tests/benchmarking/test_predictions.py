"""What is measured of predictions: outputs are compared with float64 before anything is timed."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import prediction, run, servers, workers
from benchmarks.baselines import Entry
from benchmarks.cases import find
from benchmarks.providers import entries
from benchmarks.validation import Disagreement

FEW = prediction.predictions(["16-64-1"])[1]


def test_every_network_has_every_number_of_rows():
    found = prediction.predictions(list(prediction.NETWORKS))
    assert [(case.name, case.batch) for case in found] == [
        (name, rows) for name in prediction.NETWORKS for rows in prediction.ROWS
    ]
    assert [case.target for case in found[:4]] == [2.0, 2.0, 2.0, 1.2]
    assert FEW.title == "16-64-1, 32 rows" and FEW.flops_per_step == 2 * 32 * (16 + 1) * 64
    assert not prediction.predictions(["2-20-5"])


@pytest.mark.parametrize("name", ["fastmlp.predict", "NumPy", "onnxruntime"])
@pytest.mark.parametrize("rows", [1, 32])
def test_whoever_predicts_agrees_with_float64(name, rows):
    case, server = replace(FEW, batch=rows), servers.Server(Entry(name))
    try:
        about = server.prepare(case, workers.oracle(case))
    except workers.Missing as missing:
        pytest.skip(str(missing))
    assert 0 < about["error"] < prediction.TOLERANCE / 10
    assert about["flops"] == case.flops_per_step and about["per"] == 1
    assert server.epoch(2) > 0


def test_mlpfile_predicts_and_trains_single_rows():
    pytest.importorskip("mlpfile", reason="mlpfile is not installed")
    one = replace(FEW, batch=1)
    assert entries(one, ["cpu"], [1, 2], ["mlpfile"]) == [Entry("mlpfile")]
    assert entries(FEW, ["cpu"], [1, 2], ["mlpfile"]) == []
    about = servers.Server(Entry("mlpfile")).prepare(one, workers.oracle(one))
    assert 0 < about["error"] < prediction.TOLERANCE / 10
    online = find("24-32-32-4").with_steps(20)
    server = servers.Server(Entry("mlpfile"))
    assert server.prepare(online, workers.oracle(online))["error"] < 1e-4
    with pytest.raises(Disagreement):
        server.prepare(online, workers.oracle(online.with_steps(19)))


def test_another_network_is_refused(monkeypatch):
    predict = prediction.NumPy.predict
    monkeypatch.setattr(prediction.NumPy, "predict", lambda self, X: 1.001 * predict(self, X))
    with pytest.raises(Disagreement, match="outputs: got an error of 0.001"):
        servers.Server(Entry("NumPy")).prepare(FEW, workers.oracle(FEW))
    with pytest.raises(Disagreement):
        prediction.check_outputs(np.full((32, 1), np.nan), workers.oracle(FEW))


def test_a_run_measures_the_networks_that_are_named():
    options = run.parse(["--cases", "784-128-10", "2-20-5", "--suites", "prediction"])
    assert [part.name for part in run.parts(options)] == ["prediction 784-128-10"]
