"""Every CPU kernel of the registry against the float64 oracle, on random problems and exactly.

All of it for every instruction set that this machine can run, and for teams of threads. The first
of these machines is what users get; the others are given fewer random examples.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fastmlp_kernels.algebra import ACTIVATIONS, LOSSES, OPTIMIZERS
from fastmlp_kernels.algebra.optimizers import RULE_START
from fastmlp_kernels.problem import (
    BATCHES,
    DTYPES,
    REDUCTIONS,
    STATUS,
    STOP,
    Kernel,
    Machine,
    Problem,
    parameter_layout,
)
from fastmlp_kernels.reference import ReferenceProgram
from fastmlp_kernels.registry import KERNELS
from tests import tolerances
from tests.machines import MACHINES
from tests.samples import (
    EVERY_LOSS,
    first_batches,
    in_a_chain,
    output_activations,
    outputs_for,
    poison,
    sample,
    weights,
)
from tests.tolerances import Bounded, compare, vacuous

COMPILED = [kernel for kernel in KERNELS if kernel.device == "cpu" and kernel.name != "reference"]

# 1, odd sizes, multiples of the unroll by four and their neighbours, and one beyond a panel.
UNITS = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9, 13, 17, 33])


@dataclass
class Builder:
    """Builds a kernel's programs for one machine, with poisoned workspaces."""

    kernel: Kernel
    machine: Machine
    first: bool
    # What check_epoch has seen: the test of the tests reads it.
    problems: set = field(default_factory=set)
    informative: int = 0

    def __call__(self, problem):
        program = self.kernel.build(problem, self.machine)
        assert program.threads == self.machine.cores
        assert program.target.name == self.machine.instruction_set
        poison(program)
        return program

    def examine(self, body: Callable, examples: int = 60, **strategies) -> None:
        """Run a check on random examples, a quarter of them where this is not the first machine."""
        count = examples if self.first else examples // 4
        settings(max_examples=count)(given(**strategies)(body))(self)


VARIANTS = {
    f"{kernel.name}, {name}": (kernel, machine, name == next(iter(MACHINES)))
    for kernel in COMPILED
    for name, machine in MACHINES.items()
}


@pytest.fixture(params=VARIANTS)
def build(request):
    """Return what builds a program with a poisoned workspace."""
    return Builder(*VARIANTS[request.param])


@st.composite
def problems(draw):
    """Draw any problem that the API would accept."""
    loss = draw(st.sampled_from(EVERY_LOSS))
    last = draw(st.sampled_from(output_activations(loss)))
    depth = draw(st.integers(1, 4))
    hidden = draw(
        st.lists(st.sampled_from(ACTIVATIONS.names), min_size=depth - 1, max_size=depth - 1)
    )
    batch_size = draw(st.sampled_from([1, 2, 3, 4, 5, 8, 11]))
    *sizes, last_size = draw(st.lists(UNITS, min_size=depth + 1, max_size=depth + 1))
    return Problem(
        sizes=(*sizes, outputs_for(loss, last_size)),
        # Only one exponential in a chain.
        activations=(*map(in_a_chain, hidden), last),
        loss=loss,
        optimizer=draw(st.sampled_from(OPTIMIZERS.names)),
        reduction=draw(st.sampled_from(REDUCTIONS)),
        dtype=draw(st.sampled_from(DTYPES)),
        labels=draw(st.booleans()) if LOSSES[loss].label_rule else False,
        batch_size=batch_size,
        rows=draw(st.integers(batch_size, 3 * batch_size)),
    )


def assume_informative(*oracles: Bounded) -> None:
    """Drop examples whose comparison would prove nothing (a dead ReLU network, one class)."""
    assume(all(vacuous(oracle) is None for oracle in oracles))


def prefix(build, problem, data, batches: int):
    """Run the first `batches` of the epoch on copies; return them."""
    shorter, part = first_batches(problem, data, batches)
    build(shorter).epoch(*part.arguments())
    return part


SEEDS = st.integers(0, 2**16)


def compare_epoch(build, problem, seed, **features):
    """Compare each batch, from the kernel's own parameters before it; return what was telling."""
    data = sample(problem, seed, **features)
    checked = 0
    before = data
    for batch in range(problem.batches):
        places = slice(batch * problem.batch_size, (batch + 1) * problem.batch_size)
        rows = data.order[places]
        factors = None if data.factors is None else data.factors[places]
        oracle = tolerances.step(problem, before.parameters, data.X[rows], data.y[rows], factors)
        # It diverges: what float32 holds is near.
        if not np.abs(oracle.gradient.value).max() < 1e9:
            return checked
        after = prefix(build, problem, data, batch + 1)
        assert after.control.tolist() == [0, batch + 1, 0]
        hyper = data.hyper[batch]
        parameters, state = tolerances.updated(
            problem, before.parameters, oracle.gradient, before.state, hyper
        )
        results = [(after.losses[batch : batch + 1], oracle.loss), (after.parameters, parameters)]
        if data.squares is not None:
            expected = tolerances.squares(problem, before.parameters)
            results.append((after.squares[batch : batch + 1], expected))
        results += list(zip(after.state, state, strict=True))
        for actual, expected in results:
            if vacuous(expected) is None:
                compare(actual, expected, f"batch {batch}")
                checked += 1
        before = after
    for name in ("X", "y", "order", "hyper"):
        assert getattr(before, name).tobytes() == getattr(data, name).tobytes(), name
    return checked


def check_epoch(build, problem, seed, weighted, penalized):
    checked = compare_epoch(build, problem, seed, weighted=weighted, penalized=penalized)
    assume(checked >= problem.batches)
    build.informative += 1
    build.problems.add((problem.loss, problem.optimizer, problem.dtype, problem.reduction))


def test_epoch_against_the_oracle(build):
    """Each batch, starting from the kernel's own parameters before it, so that no error grows."""
    features = {"weighted": st.booleans(), "penalized": st.booleans()}
    build.examine(check_epoch, 300, problem=problems(), seed=SEEDS, **features)
    assert build.informative >= (100 if build.first else 25)
    losses, optimizers, dtypes, reductions = zip(*build.problems, strict=True)
    assert set(dtypes) == set(DTYPES) and set(reductions) == set(REDUCTIONS)
    if build.first:
        assert set(losses) == set(EVERY_LOSS) and set(optimizers) == set(OPTIMIZERS.names)


def check_value_and_gradient(build, problem, seed):
    data = sample(problem, seed)
    X, y = data.X[: problem.batch_size], data.y[: problem.batch_size]
    oracle = tolerances.step(problem, data.parameters, X, y)
    assume_informative(oracle.loss, oracle.gradient)
    gradient = np.full_like(data.parameters, np.nan)
    loss = build(problem).value_and_gradient(data.parameters, X, y, gradient)
    compare(loss, oracle.loss, "loss")
    compare(gradient, oracle.gradient, "gradient")


def test_value_and_gradient_against_the_oracle(build):
    build.examine(check_value_and_gradient, problem=problems(), seed=SEEDS)


def check_forward_and_pullback(build, problem, seed):
    rows = max(1, problem.batch_size - 1)
    data = sample(problem, seed)
    X = data.X[:rows]
    upstream = np.random.default_rng(seed).normal(0, 1, (rows, problem.sizes[-1]))
    upstream = upstream.astype(problem.dtype)
    outputs = tolerances.forward(problem, data.parameters, X).outputs
    expected, expected_inputs = tolerances.pulled_back(problem, data.parameters, X, upstream)
    assume_informative(outputs, expected, expected_inputs)
    compare_pullback(build(problem), data, upstream, outputs, expected, expected_inputs)


def compare_pullback(program, data, upstream, outputs, expected, expected_inputs):
    X = data.X[: len(upstream)]
    out = np.full_like(upstream, np.nan)
    program.forward(data.parameters, X, out)
    compare(out, outputs, "outputs")
    gradient, inputs = np.zeros_like(data.parameters), np.full_like(X, np.nan)
    kept = upstream.copy()
    program.backward(data.parameters, upstream, gradient, inputs)
    compare(gradient, expected, "gradient")
    compare(inputs, expected_inputs, "gradient by the inputs")
    assert upstream.tobytes() == kept.tobytes()
    # A second call adds the same numbers once more: doubling is exact, to a rounding of each sum.
    program.backward(data.parameters, upstream, gradient, X[:0])
    doubled = Bounded(2 * expected.value, 2.1 * expected.error)
    compare(gradient, doubled, "accumulated gradient")


def test_forward_and_pullback_against_the_oracle(build):
    build.examine(check_forward_and_pullback, problem=problems(), seed=SEEDS)


# Sizes and batches on either side of every border of every instruction set: panels (4 to 32
# columns), tiles (1 to 14 rows), tiles of features (4 or 8), blocks of rows (eight of the tallest
# tile: 32, 48, 112), blocks of k (256, and 2,048 with AVX-512) and blocks of summed rows (256).
BORDERS = [
    ((31, 32, 33), ("tanh", "identity"), 13, 14),
    ((33, 31, 65), ("relu", "identity"), 14, 29),
    ((65, 33, 32), ("silu", "tanh"), 15, 16),
    ((15, 17, 16), ("identity", "silu"), 29, 30),
    ((8, 9, 7, 63), ("gelu", "tanh", "identity"), 5, 7),
    ((9, 64, 8), ("softplus", "identity"), 12, 13),
    ((7, 33), ("tanh",), 111, 111),
    ((5, 9, 3), ("silu", "identity"), 112, 225),
    ((5, 9, 3), ("silu", "identity"), 113, 226),
    ((4, 17, 2), ("tanh", "identity"), 225, 225),
    ((4, 3, 5), ("tanh", "identity"), 31, 64),
    ((3, 5, 4), ("relu", "identity"), 49, 97),
    ((255, 3, 4), ("relu", "identity"), 7, 7),
    ((257, 40, 2), ("relu", "identity"), 9, 18),
    ((2049, 33, 2), ("relu", "identity"), 7, 7),
    ((511, 3, 4), ("tanh", "identity"), 9, 9),
    ((512, 2), ("identity",), 6, 6),
    ((513, 5, 2), ("tanh", "identity"), 15, 15),
    ((1030, 2, 3), ("tanh", "identity"), 15, 17),
    ((3, 513, 2), ("tanh", "identity"), 14, 14),
    ((2, 5, 1030), ("tanh", "identity"), 3, 3),
    ((9, 5, 2), ("silu", "identity"), 255, 255),
    ((9, 5, 2), ("silu", "identity"), 257, 300),
    ((33, 9, 2), ("tanh", "identity"), 600, 600),
    ((40, 96, 3), ("tanh", "identity"), 15, 29),
    ((95, 192, 1), ("silu", "identity"), 13, 15),
    ((33, 1, 4, 1), ("tanh", "silu", "identity"), 14, 31),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "border", range(len(BORDERS)), ids=lambda k: "-".join(map(str, BORDERS[k][0]))
)
def test_borders_against_the_oracle(build, border, dtype):
    """Where a tile, panel or block ends: random small problems do not come here."""
    sizes, activations, batch_size, rows = BORDERS[border]
    optimizer = OPTIMIZERS.names[border % len(OPTIMIZERS.names)]
    problem = Problem(
        sizes,
        activations,
        "half_squared_error",
        optimizer,
        "mean",
        dtype,
        batch_size=batch_size,
        rows=rows,
    )
    assert compare_epoch(build, problem, border) >= 2 * problem.batches
    data = sample(problem, border)
    X, y = data.X[:batch_size], data.y[:batch_size]
    oracle = tolerances.step(problem, data.parameters, X, y)
    gradient = np.full_like(data.parameters, np.nan)
    program = build(problem)
    compare(program.value_and_gradient(data.parameters, X, y, gradient), oracle.loss, "loss")
    compare(gradient, oracle.gradient, "gradient")
    upstream = np.random.default_rng(border).normal(0, 1, (batch_size, sizes[-1])).astype(dtype)
    outputs = tolerances.forward(problem, data.parameters, X).outputs
    expected = tolerances.pulled_back(problem, data.parameters, X, upstream)
    compare_pullback(program, data, upstream, outputs, *expected)


@given(problem=problems(), seed=SEEDS)
def check_the_oracle_against_the_reference(problem, seed):
    """The oracle's formulas for losses and gradients are its own; the reference is the other."""
    data = sample(problem, seed)
    X, y = data.X[: problem.batch_size], data.y[: problem.batch_size]
    oracle = tolerances.step(problem, data.parameters, X, y)
    assume_informative(oracle.loss, oracle.gradient)
    parameters = data.parameters.astype(np.float64)
    gradient = np.empty_like(parameters)
    loss = ReferenceProgram(problem).value_and_gradient(
        parameters, X.astype(np.float64), y.astype(np.float64), gradient
    )
    assert loss == pytest.approx(oracle.loss.value[0], rel=1e-11, abs=1e-12)
    size = np.abs(oracle.gradient.value).max()
    np.testing.assert_allclose(gradient, oracle.gradient.value, rtol=1e-9, atol=1e-12 * size)


def test_the_oracle_agrees_with_the_reference():
    check_the_oracle_against_the_reference()


# Those that PyTorch has too, as functions of `torch.nn.functional` and the pre-activation.
TORCH_ACTIVATIONS = {
    "identity": lambda F, z: z,
    "relu": lambda F, z: z.relu(),
    "leaky_relu": lambda F, z: F.leaky_relu(z, 0.01),
    "elu": lambda F, z: F.elu(z),
    "selu": lambda F, z: F.selu(z),
    "sigmoid": lambda F, z: z.sigmoid(),
    "tanh": lambda F, z: z.tanh(),
    "softplus": lambda F, z: F.softplus(z),
    "silu": lambda F, z: F.silu(z),
    "gelu": lambda F, z: F.gelu(z),
    "gelu_tanh": lambda F, z: F.gelu(z, approximate="tanh"),
    # F.hardsigmoid's slope is a float32 1/6 whatever the dtype (PyTorch 2.13, CPU).
    "hard_sigmoid": lambda F, z: (z / 6 + 0.5).clamp(0, 1),
    "hard_swish": lambda F, z: F.hardswish(z),
    "exp": lambda F, z: z.exp(),
}
# And the losses of outputs (logits for softmax), of each element or row.
TORCH_LOSSES = {
    "half_squared_error": lambda F, p, y: F.mse_loss(p, y, reduction="none") / 2,
    "squared_error": lambda F, p, y: F.mse_loss(p, y, reduction="none"),
    "absolute_error": lambda F, p, y: F.l1_loss(p, y, reduction="none"),
    "huber": lambda F, p, y: F.huber_loss(p, y, reduction="none"),
    "binary_cross_entropy": lambda F, p, y: F.binary_cross_entropy(p, y, reduction="none"),
    "softmax_cross_entropy": lambda F, p, y: F.cross_entropy(p, y, reduction="none"),
    "half_poisson_deviance": lambda F, p, y: p - y * p.log() - y + y.xlogy(y),
    "poisson": lambda F, p, y: F.poisson_nll_loss(p, y, log_input=False, eps=0.0, reduction="none"),
}
# No probability here is near enough to 0 or 1 to be clipped.
for _name in ("binary_cross_entropy", "softmax_cross_entropy"):
    TORCH_LOSSES[f"clipped_{_name}"] = TORCH_LOSSES[_name]


def functional():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    return torch.nn.functional


def torch_outputs(problem, vector, A):
    """Return the outputs of the chain, the output activation included."""
    for layer, name in zip(parameter_layout(problem.sizes), problem.activations, strict=True):
        W = vector[layer.weight].reshape(layer.fan_in, layer.fan_out)
        A = TORCH_ACTIVATIONS[name](functional(), A @ W + vector[layer.bias])
    return A


def torch_loss(problem, yhat, y):
    """Return PyTorch's loss of outputs (logits for softmax), in its reduction."""
    target = y[:, 0].long() if problem.labels else y
    losses = TORCH_LOSSES[problem.loss](functional(), yhat, target)
    if problem.reduction == "batch_mean":
        return losses.reshape(len(yhat), -1).sum(dim=1).mean()
    return losses.mean() if problem.reduction == "mean" else losses.sum()


@pytest.mark.peer
@pytest.mark.parametrize("loss", TORCH_LOSSES)
@pytest.mark.parametrize("hidden", TORCH_ACTIVATIONS)
def test_gradients_equal_pytorchs_autograd(build, loss, hidden):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    place = ACTIVATIONS.code(hidden)
    accepted = [name for name in output_activations(loss) if name in TORCH_ACTIVATIONS]
    labels = LOSSES[loss].label_rule is not None and place % 2 == 0
    last = accepted[place % len(accepted)]
    problem = Problem(
        (5, 6, 7, 3),
        (hidden, "tanh", last),
        loss,
        "sgd",
        REDUCTIONS[place % 3],
        "float64",
        labels,
        batch_size=8,
        rows=8,
    )
    data = sample(problem, seed=place)
    X, y = data.X[:8], data.y[:8]
    vector = torch.tensor(data.parameters, requires_grad=True)
    inputs = torch.tensor(X, requires_grad=True)
    A = torch_outputs(problem, vector, inputs)
    expected = torch_loss(problem, A, torch.tensor(y))
    expected.backward()
    program = build(problem)
    out, gradient, dX = np.empty((8, 3)), np.zeros_like(data.parameters), np.full_like(X, np.nan)
    program.forward(data.parameters, X, out)
    value = program.loss(y)
    program.backward(data.parameters, None, gradient, dX)
    assert value == pytest.approx(expected.item(), rel=1e-12)
    for ours, theirs in ((out, A.detach()), (gradient, vector.grad), (dX, inputs.grad)):
        theirs = theirs.numpy()
        assert np.count_nonzero(theirs) > 0.1 * theirs.size
        np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-12 * np.abs(theirs).max())
    # Any upstream gradient, through the output activation itself.
    upstream = np.random.default_rng(0).normal(0, 1, (8, 3))
    theirs = torch.autograd.grad(
        torch_outputs(problem, vector, inputs), inputs, torch.tensor(upstream)
    )[0].numpy()
    program.forward(data.parameters, X, out)
    program.backward(data.parameters, upstream, gradient, dX)
    np.testing.assert_allclose(dX, theirs, rtol=1e-11, atol=1e-12 * np.abs(theirs).max())


def check_integers(build, sizes, rows, seed, dtype):
    generator = np.random.default_rng(seed)
    names = ("relu",) * (len(sizes) - 2) + ("identity",)
    problem = Problem(
        tuple(sizes), names, "squared_error", "sgd", "sum", dtype, batch_size=rows, rows=rows
    )

    def integers(*shape):
        # Thinned, so that no sum of magnitudes reaches the largest exact integer.
        return generator.integers(-1, 2, shape) * (generator.random(shape) < 0.6)

    parameters = integers(problem.parameter_count)
    X, y = integers(rows, sizes[0]), integers(rows, sizes[-1])
    layout = parameter_layout(problem.sizes)
    activations, largest = [X], 0
    for index, layer in enumerate(layout):
        W = parameters[layer.weight].reshape(layer.fan_in, layer.fan_out)
        Z = activations[-1] @ W + parameters[layer.bias]
        largest = max(largest, (np.abs(activations[-1]) @ np.abs(W)).max() + 1)
        activations.append(Z if index == len(layout) - 1 else np.maximum(Z, 0))
    error = activations[-1] - y
    largest = max(largest, (error * error).sum())
    dZ, expected = 2 * error, np.zeros_like(parameters)
    for index in reversed(range(len(layout))):
        layer, A = layout[index], activations[index]
        expected[layer.weight], expected[layer.bias] = (A.T @ dZ).ravel(), dZ.sum(axis=0)
        largest = max(largest, (np.abs(A).T @ np.abs(dZ)).max(), np.abs(dZ).sum())
        W = parameters[layer.weight].reshape(layer.fan_in, layer.fan_out)
        largest = max(largest, (np.abs(dZ) @ np.abs(W).T).max())
        dZ = (dZ @ W.T) * (A > 0)
    assume(largest < 2**24 and np.count_nonzero(expected) >= 1)
    data = sample(problem, seed, spare_rows=0)
    data.parameters[...], data.X[...], data.y[...] = parameters, X, y
    gradient = np.full_like(data.parameters, np.nan)
    loss = build(problem).value_and_gradient(data.parameters, data.X, data.y, gradient)
    assert loss == (error * error).sum()
    assert np.array_equal(gradient, expected)
    data.hyper[...] = 0
    data.hyper[:, RULE_START] = 1
    build(problem).epoch(*data.arguments())
    assert np.array_equal(data.parameters, parameters - expected)


def test_integers_are_exact(build):
    """Structure, not rounding: a term dropped, doubled or misplaced changes an integer."""
    build.examine(
        check_integers,
        sizes=st.lists(
            st.one_of(UNITS, st.sampled_from([16, 31, 32, 64, 65])), min_size=2, max_size=4
        ),
        rows=st.integers(1, 31),
        seed=SEEDS,
        dtype=st.sampled_from(DTYPES),
    )


# Small, wide enough for several panels and blocks of columns, and one output.
CHAINS = [
    ((9, 13, 5), ("relu", "identity"), "half_squared_error"),
    ((9, 13, 5), ("silu", "sigmoid"), "binary_cross_entropy"),
    ((9, 13, 5), ("gelu", "identity"), "softmax_cross_entropy"),
    ((70, 300, 37), ("tanh", "identity"), "softmax_cross_entropy"),
    ((40, 67, 1), ("softplus", "exp"), "poisson"),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("sizes", "activations", "loss"), CHAINS)
def test_a_row_does_not_depend_on_the_rows_beside_it(build, sizes, activations, loss, dtype):
    total, outputs = 23, sizes[-1]
    whole = Problem(sizes, activations, loss, dtype=dtype, batch_size=8, rows=total)
    data = sample(whole, spare_rows=0)
    expected = np.full((total, outputs), np.nan, dtype)
    program = build(whole)
    program.predict(data.parameters, data.X, expected, True)
    assert np.ptp(expected) > 0
    single = Problem(sizes, activations, loss, dtype=dtype, batch_size=1, rows=1)
    for other in (program, build(single)):
        for i in range(total):
            row = np.full((1, outputs), np.nan, dtype)
            other.predict(data.parameters, data.X[i : i + 1], row, True)
            assert row.tobytes() == expected[i : i + 1].tobytes()
    poisoned = data.X.copy()
    poisoned[3] = np.nan
    leaked = np.empty_like(expected)
    program.predict(data.parameters, poisoned, leaked, True)
    assert np.isnan(leaked[3]).all()
    assert np.delete(leaked, 3, axis=0).tobytes() == np.delete(expected, 3, axis=0).tobytes()


def test_predict_applies_the_link_only_when_asked(build):
    problem = Problem(
        (4, 3), ("identity",), "softmax_cross_entropy", dtype="float64", batch_size=4, rows=6
    )
    data = sample(problem, spare_rows=0)
    logits, probabilities = np.empty((6, 3)), np.empty((6, 3))
    program = build(problem)
    program.predict(data.parameters, data.X, logits, False)
    program.predict(data.parameters, data.X, probabilities, True)
    assert not np.allclose(logits.sum(axis=1), 1)
    powers = np.exp(logits)
    np.testing.assert_allclose(
        probabilities, powers / powers.sum(axis=1, keepdims=True), rtol=1e-14
    )


def long_problem(dtype="float32", batches=400_000):
    return Problem(
        (3, 8, 1),
        ("relu", "identity"),
        "half_squared_error",
        "momentum",
        "mean",
        dtype,
        batch_size=2,
        rows=2 * batches,
    )


def long_sample(problem):
    """Return an epoch that revisits few rows, so that it is long and small."""
    short = Problem(**{**vars(problem), "rows": 40})
    data = sample(short, spare_rows=0)
    data.order = np.resize(data.order, problem.rows)
    data.hyper = np.repeat(data.hyper[:1], problem.batches, axis=0)
    data.hyper[:, RULE_START] = 1e-6
    data.losses = np.full(problem.batches, np.nan, problem.dtype)
    return data


def test_stop_ends_the_epoch_before_the_next_batch(build):
    problem = long_problem()
    data = long_sample(problem)
    start = data.copy()
    prefix(build, problem, start, 1)  # compiled before timing
    worker = threading.Thread(target=build(problem).epoch, args=data.arguments())
    worker.start()
    while data.control[BATCHES] == 0:
        assert worker.is_alive() or data.control[BATCHES] > 0
    data.control[STOP] = 1
    worker.join(30)
    assert not worker.is_alive()
    finished = int(data.control[BATCHES])
    assert 0 < finished < problem.batches
    assert np.isnan(data.losses[finished:]).all() and np.isfinite(data.losses[:finished]).all()
    expected = prefix(build, problem, start, finished)
    assert data.parameters.tobytes() == expected.parameters.tobytes()
    assert data.state.tobytes() == expected.state.tobytes()


def test_stop_set_beforehand_changes_nothing(build):
    problem = long_problem(batches=5)
    data = long_sample(problem)
    before = data.copy()
    data.control[STOP] = 1
    build(problem).epoch(*data.arguments())
    assert data.parameters.tobytes() == before.parameters.tobytes()
    assert data.control.tolist() == [1, 0, 0] and np.isnan(data.losses).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["X", "y"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_non_finite_batch_is_named_and_changes_nothing(build, bad, where, optimizer):
    problem = Problem(
        (5, 7, 2),
        ("tanh", "identity"),
        "half_squared_error",
        optimizer,
        "mean",
        "float32",
        batch_size=4,
        rows=18,
    )
    data = sample(problem)
    expected = prefix(build, problem, data, 2)
    row = data.order[2 * 4 + 1]
    getattr(data, where)[row, 0] = bad
    build(problem).epoch(*data.arguments())
    # An infinity in X saturates tanh: the loss stays finite, and the gradient does not.
    assert data.control.tolist() == [0, 2, 3]
    assert data.parameters.tobytes() == expected.parameters.tobytes()
    assert data.state.tobytes() == expected.state.tobytes()
    assert np.isfinite(data.parameters).all()
    assert data.losses[:2].tobytes() == expected.losses.tobytes()


def test_non_finite_parameters_stop_at_the_first_batch(build):
    problem = Problem((5, 2), ("identity",), "squared_error", dtype="float32", batch_size=4, rows=8)
    data = sample(problem)
    data.parameters[:] = 1e30
    before = data.copy()
    build(problem).epoch(*data.arguments())
    assert data.control[STATUS] == 1 and data.control[BATCHES] == 0
    assert data.parameters.tobytes() == before.parameters.tobytes()


def test_same_bits_every_time(build):
    problem = Problem(
        (9, 17, 5),
        ("gelu", "identity"),
        "softmax_cross_entropy",
        "adam",
        "mean",
        "float32",
        True,
        batch_size=7,
        rows=40,
    )
    runs = []
    for _ in range(3):
        data = sample(problem)
        build(problem).epoch(*data.arguments())
        runs.append(data.parameters.tobytes() + data.losses.tobytes() + data.state.tobytes())
    assert len(set(runs)) == 1


def test_two_epochs_equal_a_longer_one(build):
    """An epoch keeps nothing of its own: the state passed in is all of it."""
    problem = Problem(
        (5, 6, 2),
        ("tanh", "identity"),
        "squared_error",
        "adam",
        "mean",
        "float64",
        batch_size=4,
        rows=24,
    )
    half = Problem(**{**vars(problem), "rows": 12})
    whole, split = sample(problem), sample(problem)
    build(problem).epoch(*whole.arguments())
    program = build(half)
    for part in (slice(0, 3), slice(3, 6)):
        order = split.order[part.start * 4 : part.stop * 4].copy()
        program.epoch(
            split.parameters,
            split.state,
            split.X,
            split.y,
            order,
            split.hyper[part].copy(),
            split.losses[part],
            np.zeros(3, np.int64),
        )
    assert split.parameters.tobytes() == whole.parameters.tobytes()
    assert split.state.tobytes() == whole.state.tobytes()
    assert split.losses.tobytes() == whole.losses.tobytes()


def test_scaling_by_a_power_of_two_is_exact(build):
    """X * 2^k with W1 * 2^-k leaves every bit of the outputs as it was."""
    problem = Problem((9, 6, 2), ("relu", "identity"), "squared_error", batch_size=8, rows=8)
    data = sample(problem)
    out, scaled = np.empty((8, 2), "float32"), np.empty((8, 2), "float32")
    build(problem).predict(data.parameters, data.X[:8], out, False)
    parameters = weights(problem, np.random.default_rng(0))
    assert parameters.tobytes() == data.parameters.tobytes()
    parameters[parameter_layout(problem.sizes)[0].weight] *= np.float32(2**-5)
    build(problem).predict(parameters, data.X[:8] * np.float32(2**5), scaled, False)
    assert out.tobytes() == scaled.tobytes() and np.ptp(out) > 0
