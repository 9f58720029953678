"""Adam on rows in a random order, and many networks at once: everybody computes just that."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import cases, peers, peers_jax, report, run, validation
from benchmarks.baselines import Entry
from benchmarks.ours import Fastmlp
from benchmarks.providers import BASELINES, entries
from benchmarks.turns import Settings, in_turns
from benchmarks.validation import Disagreement, expected_parameters, validate
from fastmlp_kernels.cpu import KERNELS as CPU_KERNELS
from tests import ROOT

KERNEL = CPU_KERNELS[0].name
SHUFFLED = cases.Case(
    "toy", (5, 9, 7, 3), 8, 6, "a toy", 1.0, optimizer="adam", devices=("cpu",), shuffled=61
)
LONG = replace(SHUFFLED, steps=50, shuffled=411)
MEMBERS = cases.Case("toys", (5, 9, 7, 3), 8, 11, "toys", 1.0, members=3, devices=("cpu",))


def error_of(provider, case):
    """Return a provider's error after an epoch; raise if it is too large."""
    reason = provider.available()
    if reason is not None:
        pytest.skip(reason)
    provider.prepare(case, case.data(), case.initial_weights())()
    return validate(case, expected_parameters(case), provider.parameters())


# --- the cases ------------------------------------------------------------------------------------


def test_the_cases_are_the_ones_that_were_promised():
    found = [(case.title, case.batch, case.optimizer) for case in cases.SHUFFLED]
    assert found == [
        ("784-128-10 adam of 60,000 rows", 128, "adam"),
        ("64-256-256-8 adam of 60,000 rows", 256, "adam"),
        ("256-512-512-16 adam of 200,000 rows", 512, "adam"),
    ]
    # All of an epoch but an incomplete mini-batch.
    assert all(0 <= case.shuffled - case.rows < case.batch for case in cases.SHUFFLED)
    found = [(case.sizes, case.batch, case.members) for case in cases.ENSEMBLES]
    assert found == [((16, 64, 1), 32, 132), ((8, 32, 1), 32, 1000)]
    for case in (*cases.SHUFFLED, *cases.ENSEMBLES):
        assert case.devices == ("cpu",) and cases.find(case.name).sizes == case.sizes


def test_the_order_is_random_of_all_rows_and_always_the_same():
    order = SHUFFLED.order()
    assert len(SHUFFLED.data().X) == 61 and len(set(order)) == len(order) == 48
    assert order.max() > 48 and (np.diff(order) != 1).any()
    np.testing.assert_array_equal(order, SHUFFLED.order())
    np.testing.assert_array_equal(MEMBERS.order(), np.arange(88))


def test_each_suite_tries_who_belongs_there():
    def names(case, suite):
        found = in_turns(Settings([case], ["cpu"], [1], list(BASELINES), 1, 0.0), suite)
        assert {item.goal for item in found} == {0.0}
        return [(item.entry.provider, item.entry.kernel) for item in found if item.entry.chosen]

    assert names(cases.SHUFFLED[1], "shuffled") == [
        ("fastmlp", KERNEL),
        ("PyTorch", "fused"),
        ("PyTorch", "foreach"),
        ("PyTorch compile", ""),
        ("JAX", ""),
        ("scikit-learn", ""),
    ]
    of_members = [name for name, _ in names(cases.ENSEMBLES[0], "ensembles")]
    assert of_members == ["fastmlp", "PyTorch", "PyTorch compile", "JAX", "JAX map"]
    everyone = in_turns(Settings([cases.CASES[0]], ["cpu"], [1], list(BASELINES), 1, 0.0))
    assert {"JAX", "JAX unroll"} < {item.entry.provider for item in everyone}
    assert "JAX map" not in {item.entry.provider for item in everyone}


def test_a_run_measures_those_that_are_named():
    def parts(*words):
        return [part.name for part in run.parts(run.parse(["--device", "cpu", *words]))]

    every = [f"shuffled {case.name}" for case in cases.SHUFFLED]
    assert parts("--suites", "shuffled") == every
    assert parts("--suites", "shuffled", "--quick") == every[:1]
    assert parts("--cases", "64-256-256-8", "--suites", "shuffled", "ensembles") == every[1:2]
    named = parts("--cases", "1000 x 8-32-1", "--suites", "ensembles", "training", "shuffled")
    assert named == ["ensembles 1000 x 8-32-1"]


# --- providers ------------------------------------------------------------------------------------


class InOrder(Fastmlp):
    def prepare(self, case, data, weights):
        return super().prepare(replace(case, shuffled=0), data, weights)


class AnotherRate(Fastmlp):
    def prepare(self, case, data, weights):
        plain = replace(case, optimizer="sgd")
        return super().prepare(plain, data, weights)


@pytest.mark.parametrize("case", [SHUFFLED, LONG], ids=["few steps", "many steps"])
def test_fastmlp_takes_the_rows_in_the_order(case):
    assert error_of(Fastmlp(Entry("fastmlp", kernel=KERNEL)), case) < 1e-2
    for wrong in (InOrder, AnotherRate):
        with pytest.raises(Disagreement):
            error_of(wrong(Entry("fastmlp", kernel=KERNEL)), case)


def test_many_steps_of_adam_may_stray_further_but_no_others():
    for steps, optimizer, limit in (
        (40, "adam", 1e-2),
        (41, "adam", validation.PARTED),
        (50, "sgd", 1e-2),
    ):
        case = replace(LONG, steps=steps, optimizer=optimizer)
        wanted = expected_parameters(case)
        moved = wanted - validation.flatten(case.initial_weights())
        validate(case, wanted, wanted + 0.9 * limit * moved)
        with pytest.raises(Disagreement):
            validate(case, wanted, wanted + 1.1 * limit * moved)


def providers_of(case, *names):
    return [pytest.param(e, id=e.label) for e in entries(case, ["cpu"], [1], list(names))]


@pytest.mark.peer
@pytest.mark.parametrize(
    "entry", providers_of(SHUFFLED, "PyTorch", "PyTorch compile", "JAX", "scikit-learn")
)
def test_peers_gather_the_rows_and_compute_adam(entry, monkeypatch):
    provider = BASELINES[entry.provider]
    # scikit-learn's epsilon is beside another root.
    limit = 1e-3 if entry.provider == "scikit-learn" else 1e-4
    assert error_of(provider(entry), SHUFFLED) < limit
    other = np.random.default_rng(1).permutation(SHUFFLED.shuffled)[: SHUFFLED.rows]
    expected = expected_parameters(SHUFFLED)
    monkeypatch.setattr(cases.Case, "order", lambda case: other)
    wrong = provider(entry)
    wrong.load()
    wrong.prepare(SHUFFLED, SHUFFLED.data(), SHUFFLED.initial_weights())()
    with pytest.raises(Disagreement):
        validate(SHUFFLED, expected, wrong.parameters())


@pytest.mark.peer
@pytest.mark.parametrize("name", ["PyTorch", "PyTorch compile", "JAX", "JAX map"])
def test_peers_train_members_and_another_rate_is_refused(name, monkeypatch):
    assert error_of(BASELINES[name](Entry(name)), MEMBERS) < 1e-4
    for module in (peers, peers_jax):
        monkeypatch.setattr(module, "LEARNING_RATE", 0.05)
    with pytest.raises(Disagreement):
        error_of(BASELINES[name](Entry(name)), MEMBERS)


@pytest.mark.peer
def test_an_unrolled_scan_takes_the_steps_that_are_left_over_too(monkeypatch):
    case = replace(MEMBERS, members=1)
    assert case.steps % peers_jax.JaxUnroll.unroll
    assert error_of(BASELINES["JAX unroll"](Entry("JAX unroll")), case) < 1e-4
    monkeypatch.setattr(peers_jax, "LEARNING_RATE", 0.05)
    with pytest.raises(Disagreement):
        error_of(BASELINES["JAX unroll"](Entry("JAX unroll")), case)


# --- the suites -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suite", "case", "heading"),
    [
        ("shuffled", cases.SHUFFLED[1], "## Shuffled rows"),
        ("ensembles", cases.ENSEMBLES[0], "## Ensembles"),
    ],
)
def test_a_suite_leaves_its_table(suite, case, heading, tmp_path):
    command = [sys.executable, "-m", "benchmarks.run", "--quick", "--suites", suite]
    command += ["--cases", case.name, "--device", "cpu", "--passes", "1", "--out", str(tmp_path)]
    command += ["--providers", "fastmlp", "scikit-learn"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stdout + result.stderr
    (file,) = tmp_path.glob("*.json")
    document = json.loads(file.read_text(encoding="utf-8"))
    text = report.markdown(document)
    assert heading in text and f"| {case.title}, {case.batch} |" in text
    for item in document["benchmarks"]:
        assert item["extra_info"]["flops"] == case.flops_per_step
        assert item["extra_info"]["error"] < 1e-2
