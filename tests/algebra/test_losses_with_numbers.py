"""Losses with numbers of their own: against PyTorch in float64, at extremes, and by their names."""

import math
import sys
import threading

import numpy as np
import pytest

from fastmlp_kernels.algebra import LOSSES, Loss, loss_rule, loss_rules
from fastmlp_kernels.algebra.constants import split
from fastmlp_kernels.algebra.tables import Table, split_numbers, with_numbers
from fastmlp_kernels.compile import cpu_function, stamp
from fastmlp_kernels.problem import DTYPES, Problem
from tests.samples import EVERY_RULE, NUMBERED

ROWS, TARGETS = 40, 3


def huber(torch, p, y, delta):
    return torch.nn.HuberLoss(reduction="none", delta=delta)(p, y)


def pinball(torch, p, y, level):
    return torch.maximum(level * (y - p), (level - 1) * (y - p))


def focal(torch, z, y, gamma, alpha):
    """As torchvision.ops.sigmoid_focal_loss is written."""
    p = torch.sigmoid(z)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(z, y, reduction="none")
    hit = p * y + (1 - p) * (1 - y)
    return (alpha * y + (1 - alpha) * (1 - y)) * entropy * (1 - hit) ** gamma


def smoothed(torch, z, y, label_smoothing):
    y = y[:, 0].long() if y.shape[1] == 1 else y
    loss = torch.nn.CrossEntropyLoss(reduction="none", label_smoothing=label_smoothing)
    return loss(z, y)[:, None]


def gaussian(torch, z, y, epsilon):
    mean, variance = z[:, :TARGETS], torch.exp(z[:, TARGETS:])
    return torch.nn.GaussianNLLLoss(reduction="none", eps=epsilon)(mean, y, variance)


PEERS = {
    "huber": (huber, ({"delta": 1.0}, {"delta": 0.3}, {"delta": 2.0})),
    "quantile": (pinball, ({"level": 0.5}, {"level": 0.9}, {"level": 0.01})),
    "binary_focal/sigmoid": (
        focal,
        tuple({"gamma": g, "alpha": a} for g, a in ((2, 0.25), (0, 0.3), (1, 0.5), (1.7, 0.9))),
    ),
    "softmax_cross_entropy": (smoothed, ({"label_smoothing": 0.1}, {"label_smoothing": 0.9})),
    "softmax_cross_entropy/labels": (smoothed, ({"label_smoothing": 0.1},)),
    "gaussian_nll": (gaussian, ({"epsilon": 1e-6}, {"epsilon": 0.5})),
}


def sample_of(rule, dtype="float64", width=3.0):
    """Return what a rule reads, and targets in its domain."""
    generator, loss = np.random.default_rng(0), LOSSES[rule.partition("/")[0]]
    z = generator.normal(0, width, (ROWS, TARGETS * loss.outputs_per_target))
    if rule.endswith("/labels"):
        y = generator.integers(0, TARGETS, (ROWS, 1))
    elif loss.label_rule is not None:
        y = generator.dirichlet(np.ones(TARGETS), ROWS)
    elif loss.target_domain.high == 1:
        y = generator.random((ROWS, TARGETS))
        y[::2] = y[::2] > 0.5
    else:
        y = generator.normal(0, 2, (ROWS, TARGETS))
    return z.astype(dtype), y.astype(dtype)


def values_and_slopes(rule, z, y):
    slopes = np.full_like(z, np.nan)
    return np.array([rule(z, y, i, slopes) for i in range(len(z))]), slopes


@pytest.mark.peer
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", PEERS)
def test_values_and_gradients_are_pytorchs(name, compiled):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    peer, choices = PEERS[name]
    row, _, kind = name.partition("/")
    for numbers in choices[-1:] if compiled else choices:
        loss = LOSSES[LOSSES[row].named(**numbers)]
        rule = loss_rule(f"{loss.name}/{kind}" if kind else loss.name).row
        z, y = sample_of(name)
        found, slopes = values_and_slopes(cpu_function(rule) if compiled else rule, z, y)
        given = torch.tensor(z, requires_grad=True)
        expected = peer(torch, given, torch.tensor(y), **numbers)
        expected.sum().backward()
        np.testing.assert_allclose(found, expected.detach().numpy().sum(axis=1), rtol=1e-12)
        largest = np.abs(given.grad.numpy()).max()
        np.testing.assert_allclose(slopes, given.grad.numpy(), rtol=1e-12, atol=1e-14 * largest)


def test_the_defaults_are_the_rows_of_the_table():
    for name in NUMBERED:
        row = LOSSES[split_numbers(name)[0]]
        assert row.named() == row.named(**row.numbers) == row.name
        assert row.with_numbers(**row.numbers).name == row.name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", EVERY_RULE[len(loss_rules()) :], ids=lambda rule: rule.name)
def test_losses_and_slopes_are_finite_at_extreme_outputs(rule, dtype):
    z, y = sample_of(rule.name, dtype)
    row = rule.row
    for size in (1e4, 104.0, 88.8, 0.0):
        for sign in (1, -1):
            extreme = (sign * size * np.sign(z)).astype(dtype)
            value, slopes = values_and_slopes(row, extreme, y)
            assert np.isfinite(value).all() and np.isfinite(slopes).all(), (size, sign)
            if rule.name.startswith(("binary_focal", "softmax")):
                assert (value >= 0).all() and np.abs(slopes).max() <= 2e4


def test_a_variance_that_is_too_small_finds_its_way_back():
    """Where the mean is off, the slope of the variance's logarithm is below 0: it will grow."""
    rule, slope = LOSSES["gaussian_nll"].rule, np.empty((1, 2))
    for logarithm in (-14.0, -20.0, -40.0):
        rule(np.array([[1.0, logarithm]]), np.array([[0.0]]), 0, slope)
        assert slope[0, 1] < 0
    value = rule(np.array([[1e-3, -40.0]]), np.array([[1e-3]]), 0, slope)
    # The loss has its least value there, and the slope has faded.
    assert value == pytest.approx(math.log(1e-6) / 2) and 0 < slope[0, 1] < 1e-10


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_link_gives_variances_of_at_least_epsilon(dtype):
    row = np.array([[3.0, -4.0, -1.5, -50.0]], dtype)
    for link in (LOSSES["gaussian_nll"].link, cpu_function(LOSSES["gaussian_nll"].link)):
        found = row.copy()
        link(found, 0)
        np.testing.assert_allclose(found, [[3.0, -4.0, math.exp(-1.5), 1e-6]], rtol=1e-6)


def test_a_name_has_one_row_and_needs_nothing_else():
    for name in NUMBERED:
        assert LOSSES[name] is LOSSES[name] and LOSSES[name] in LOSSES
        row, numbers = split_numbers(name)
        assert LOSSES[name].name == name == LOSSES[row].named(**numbers)
        assert with_numbers(row, numbers) == name
        assert name not in LOSSES.names
    assert loss_rules() is loss_rules() and not set(NUMBERED) & {r.name for r in loss_rules()}


@pytest.mark.parametrize(
    "name",
    [
        "huber(delta=2)",
        "huber(delta=1.0)",
        "huber(gamma=2.0)",
        "squared_error(delta=2.0)",
        "hubert(delta=2.0)",
    ],
)
def test_only_the_name_itself_is_a_row(name):
    """Another spelling of the same loss would have code of its own."""
    with pytest.raises(KeyError):
        LOSSES[name]


@pytest.mark.parametrize("text", ["huber(", "huber(2)", "huber(a=b)", "huber(a=1,a=2)", "h()"])
def test_numbers_that_cannot_be_read(text):
    with pytest.raises(ValueError):
        split_numbers(text)


def test_threads_that_ask_for_a_row_at_once_get_the_same():
    made, gate = [], threading.Barrier(8)

    def make(number):
        sys.setswitchinterval(1e-6)
        return {"rule": lambda prediction, target: (prediction, target)}

    table = Table("loss", (Loss("own", None, "p", numbers={"number": 1.0}, make=make),))

    def ask():
        gate.wait()
        made.append([table[f"own(number={k}.0)"] for k in range(2, 40)])

    before = sys.getswitchinterval()
    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(before)
    assert len(made) == 8
    for rows in made:
        assert all(row is first for row, first in zip(rows, made[0], strict=True))


def test_the_stamp_of_the_cache_does_not_depend_on_what_was_asked_for(monkeypatch):
    before = stamp.__wrapped__()
    assert LOSSES["huber(delta=0.123)"].name == "huber(delta=0.123)"
    assert stamp.__wrapped__() == before
    # But on the numbers that a user's own row closes over.
    for number in split(2.1):
        rows = (*LOSSES.rows, Loss("own", _closing_over(number), "p"))
        monkeypatch.setattr(LOSSES, "rows", rows)
        loss_rules.cache_clear()
        changed = stamp.__wrapped__()
        assert changed != before
        before = changed
        monkeypatch.undo()
        loss_rules.cache_clear()


def _closing_over(number):
    def rule(prediction, target):
        return number * (prediction - target), number

    return rule


def test_the_mean_is_over_targets_where_each_has_several_outputs():
    problem = Problem((2, 6), ("identity",), "gaussian_nll")
    assert problem.target_columns == 3 and problem.scale(4) == 1 / 12
    assert Problem((2, 6), ("identity",), "softmax_cross_entropy").scale(4) == 1 / 4
    assert Problem((2, 6), ("identity",), "huber(delta=2.0)").scale(4) == 1 / 24
