"""What skips zeros against what multiplies them: equal, for any zeros, borders and teams."""

import itertools

import numpy as np
import pytest

import fastmlp
from fastmlp_kernels.cpu import sampling
from fastmlp_kernels.cpu.program import FusedProgram
from fastmlp_kernels.cpu.sampling import choose_skips, skipped_shares
from fastmlp_kernels.cpu.simd import instruction_set
from fastmlp_kernels.cpu.tables import SKIPS_COLUMNS, SKIPS_ROWS
from fastmlp_kernels.problem import DTYPES, STATUS, Problem
from tests.machines import HOST, team
from tests.samples import first_batches, poison, sample

BOTH = SKIPS_COLUMNS | SKIPS_ROWS
TEAMS = (1, 2, 3, 5)
# Sizes, batch and rows on either side of tiles (1 to 14 rows), panels (4 to 32 columns), tiles of
# features (4 or 8), blocks of rows (32, 48, 112), of k (512) and of summed rows (256).
SHAPES = [
    ((1, 2), 1, 2),
    ((5, 3, 2), 7, 17),
    ((9, 33, 4), 13, 40),
    ((31, 16, 3), 14, 29),
    ((33, 17, 2), 15, 31),
    ((64, 65, 3), 29, 58),
    ((8, 9, 2), 113, 226),
    ((40, 70, 2), 257, 300),
    ((530, 5, 2), 15, 30),
    ((1030, 34, 2), 16, 33),
    # More inputs than rows, and even shares of columns: a team shares those.
    ((70, 960, 3), 23, 59),
]
PATTERNS = ("random", "rows", "columns", "blocks", "nothing", "everything")


def pattern_of(pattern, shape, generator):
    """Return where X is not zero."""
    rows, columns = shape
    if pattern == "random":
        return generator.random(shape) < 0.15
    if pattern == "rows":
        return np.broadcast_to(generator.random((rows, 1)) < 0.4, shape)
    if pattern == "columns":
        return np.broadcast_to(generator.random((1, columns)) < 0.4, shape)
    if pattern == "blocks":
        # Whole tiles, panels and blocks of k without anything, and others full.
        coarse = generator.random((rows // 20 + 1, columns // 40 + 1)) < 0.5
        return np.kron(coarse, np.ones((20, 40), bool))[:rows, :columns]
    return np.full(shape, pattern == "everything")


def sparse_sample(problem, pattern, seed=0):
    """Return an epoch's arguments with zeros of either sign in X."""
    data, generator = sample(problem, seed), np.random.default_rng(seed)
    data.X[~pattern_of(pattern, data.X.shape, generator)] = 0
    data.X[(data.X == 0) & (generator.random(data.X.shape) < 0.5)] = -0.0
    return data


def make_problem(sizes, batch_size, rows, dtype, optimizer="adam"):
    names = ("tanh",) * (len(sizes) - 2) + ("identity",)
    return Problem(
        sizes,
        names,
        "half_squared_error",
        optimizer,
        dtype=dtype,
        batch_size=batch_size,
        rows=rows,
    )


def lists(program):
    """Return the memory of a program's lists, as bytes."""
    return program.workspace.column_lists.tobytes(), program.workspace.row_lists.tobytes()


def run(problem, data, skips, threads=1, name=HOST[0], **sizes):
    """Train an epoch on copies; return what it changed, and the program."""
    program = FusedProgram(problem, team(threads, name))
    assert program.threads == threads
    program.skips = skips
    poison(program)
    for field, size in sizes.items():
        program.step[field] = size
    before, after = lists(program), data.copy()
    program.epoch(*after.arguments())
    assert after.control.tolist() == [0, problem.batches, 0]
    written = [old != new for old, new in zip(before, lists(program), strict=True)]
    assert written == [bool(skips & bit) for bit in (SKIPS_COLUMNS, SKIPS_ROWS)]
    return {"parameters": after.parameters, "state": after.state, "losses": after.losses}, program


def assert_equal(found, expected, what):
    for key, array in expected.items():
        assert np.isfinite(array).all() and np.array_equal(found[key], array), (key, what)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape[0])))
@pytest.mark.parametrize("name", HOST)
def test_skipping_changes_nothing(name, shape, dtype):
    problem = make_problem(*shape, dtype)
    for index, pattern in enumerate(PATTERNS):
        data = sparse_sample(problem, pattern, index)
        expected, _ = run(problem, data, 0, name=name)
        assert not np.array_equal(expected["parameters"], data.parameters)
        for skips, threads in ((SKIPS_COLUMNS, 1), (SKIPS_ROWS, 1), (BOTH, 1), (BOTH, 3)):
            found, _ = run(problem, data, skips, threads, name)
            assert_equal(found, expected, (pattern, skips, threads))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape[0])))
def test_the_same_bits_for_any_number_of_threads(shape, dtype):
    problem = make_problem(*shape, dtype, optimizer="momentum")
    for pattern, name in itertools.product(("random", "blocks"), (HOST[0], HOST[-1])):
        data = sparse_sample(problem, pattern)
        bits = set()
        for threads in TEAMS:
            found, _ = run(problem, data, BOTH, threads, name)
            bits.add(b"".join(array.tobytes() for array in found.values()))
        assert len(bits) == 1, (pattern, name)


def first_outputs(program):
    """Return Z of the first layer, rows of the last batch, as bytes: zeros with their signs."""
    problem, panel = program.problem, program.panel
    columns, rows = problem.sizes[1], problem.rows - (problem.batches - 1) * problem.batch_size
    panels = -(-columns // panel)
    stored = program.workspace.stored[: panels * panel * program.capacity]
    return stored.reshape(panels, program.capacity, panel)[:, :rows].tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", HOST)
def test_the_sign_of_a_zero_does_not_tell_the_team(name, dtype):
    """Biases of -0 and rows of zeros: which rows share a tile differs from team to team."""
    problem = Problem(
        (20, 33, 2),
        ("identity", "identity"),
        "half_squared_error",
        "sgd",
        dtype=dtype,
        batch_size=53,
        rows=53,
    )
    data = sparse_sample(problem, "rows")
    data.parameters[20 * 33 : 21 * 33] = -0.0
    found = {first_outputs(run(problem, data, BOTH, threads, name)[1]) for threads in TEAMS}
    assert len(found) == 1
    zeros = np.frombuffer(found.pop(), dtype)
    assert np.count_nonzero(zeros == 0) > 100 and not np.signbit(zeros[zeros == 0]).any()


@pytest.mark.parametrize("name", HOST)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_for_any_size_of_block(dtype, name):
    problem = make_problem((70, 40, 3), 61, 150, dtype)
    panel = instruction_set(name).panel(dtype)
    data = sparse_sample(problem, "random")
    expected, _ = run(problem, data, BOTH, name=name)
    bits = {key: array.tobytes() for key, array in expected.items()}
    for block, sizes in (
        ("row_block", (1, 5, 14, 50, 10**6)),
        ("depth_block", (panel, 2 * panel, 10**6)),
        ("sum_block", (1, 7, 10**6)),
    ):
        for size, threads in itertools.product(sizes, (1, 3)):
            found, _ = run(problem, data, BOTH, threads, name, **{block: size})
            assert {key: array.tobytes() for key, array in found.items()} == bits, (block, size)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_number_that_is_not_finite_is_still_seen(bad, threads):
    problem = make_problem((30, 20, 2), 15, 45, "float32")
    data = sparse_sample(problem, "random")
    before = data.copy()
    data.X[data.order[15 + 7], 11] = bad
    program = FusedProgram(problem, team(threads))
    program.skips = BOTH
    program.epoch(*data.arguments())
    assert data.control[STATUS] == 2 and np.isfinite(data.parameters).all()
    # The first batch's alone.
    shorter, prefix = first_batches(problem, before, 1)
    program = FusedProgram(shorter, team(threads))
    program.skips = BOTH
    program.epoch(*prefix.arguments())
    assert data.parameters.tobytes() == prefix.parameters.tobytes()


@pytest.mark.parametrize("threads", [1, 2])
def test_a_fit_that_overflows_goes_back(threads):
    """A weight that overflows, beside a feature that is zero from then on, is found at the end."""
    generator = np.random.default_rng(0)
    X = np.zeros((64, 40), np.float32)
    X[:, 30:] = generator.normal(0, 1, (64, 10))
    y = generator.normal(0, 100, (64, 2)).astype(np.float32)
    # Finite terms in the first batch's gradient, of which the sum is not.
    X[:8, 3] = 3e38
    model = fastmlp.MLP([40, 100, 2], activations=["tanh", "identity"], seed=0)
    model.weights[0][3] = 0
    before = [each.copy() for each in model.weights]
    with pytest.raises(fastmlp.NonFiniteTrainingError, match="before this epoch"):
        model.fit(X, y, batch_size=8, epochs=1, shuffle=False, threads=threads)
    assert all(np.array_equal(new, old) for new, old in zip(model.weights, before, strict=True))


def shares_of(X, height=14, features=8):
    """Return what `skipped_shares` estimates, from all rows."""
    tiles = len(X) // height
    nonzero = X[: tiles * height] != 0
    order = np.random.default_rng(0).permutation(tiles * height)
    columns = nonzero[order].reshape(tiles, height, -1).any(axis=1).mean()
    padded = np.pad(nonzero, ((0, 0), (0, -X.shape[1] % features)))
    return 1 - columns, 1 - padded.reshape(len(nonzero), -1, features).any(axis=2).mean()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_shares_are_estimated_from_some_rows(pattern):
    generator = np.random.default_rng(0)
    X = pattern_of(pattern, (3000, 157), generator) * 1.0
    found, expected = skipped_shares(X, 14, 8), shares_of(X)
    # Blocks of 20 rows are no tiles of a batch in random order.
    np.testing.assert_allclose(found, expected, atol=0.06)
    assert (found == (0, 0)) == (pattern == "everything") and (min(found) == 1) == (
        pattern == "nothing"
    )


def test_rows_that_are_sorted_are_no_tiles():
    """Rows of a kind that follow each other share their zeros; a batch's do not."""
    X = np.kron(np.eye(30), np.ones((100, 1)))
    assert skipped_shares(X, 14, 8)[0] == pytest.approx(1 - (1 - (29 / 30) ** 14), abs=0.1)


@pytest.mark.parametrize("rows", [1, 2, 13, 14, 15, 29, 224, 225])
def test_few_rows_are_enough(rows):
    X = np.zeros((rows, 3))
    assert skipped_shares(X, 14, 8) == (1, 1)
    assert skipped_shares(X + 1, 14, 8) == (0, 0)


CHOICES = [
    # Share of columns of zeros, outputs, what is chosen (avx512, float64: 8 lanes).
    (0.5, 100, BOTH),
    (0.125, 100, BOTH),
    (0.0, 100, 0),
    (0.03125, 1000, 0),
    (0.0625, 1000, BOTH),
    (0.5, 8, 0),
    (0.5, 16, 0),
    (0.5625, 16, BOTH),
    (0.9, 1, 0),
]


@pytest.mark.parametrize(("share", "outputs", "expected"), CHOICES)
def test_what_pays_is_chosen(share, outputs, expected):
    problem = make_problem((1024, outputs, 2), 50, 200, "float64")
    X = np.ones((200, 1024))
    X[:, : int(share * 128) * 8] = 0
    assert choose_skips(problem, instruction_set("avx512"), X) == expected


def test_each_product_is_chosen_apart():
    """One feature of eight: no feature tile is zero, and most of the columns are."""
    X = np.zeros((100, 800))
    X[:, ::8] = 1
    problem = make_problem((800, 100, 2), 50, 100, "float64")
    assert choose_skips(problem, instruction_set("avx512"), X) == SKIPS_COLUMNS
    X = np.zeros((100, 800))
    X[::2, :400] = X[1::2, 400:] = 1
    assert choose_skips(problem, instruction_set("avx512"), X) == SKIPS_ROWS


def test_a_threshold_of_nothing_would_be_seen(monkeypatch):
    monkeypatch.setattr(sampling, "LIST_COST", 0.0)
    monkeypatch.setattr(sampling, "SMALLEST_SHARE", 0.0)
    with pytest.raises(AssertionError):
        test_what_pays_is_chosen(*CHOICES[5])


def test_prepare_decides_and_nothing_else():
    """Each fit anew; epochs that nobody prepared, and all other calls, are dense."""
    problem = make_problem((64, 100, 2), 20, 60, "float64")
    data = sparse_sample(problem, "columns")
    program = FusedProgram(problem, team(1))
    skips = program.step["skips"]

    def epoch():
        data.control[:] = 0
        program.epoch(*data.arguments())
        return skips.item()

    assert epoch() == 0
    program.prepare(data.parameters, data.state, data.X, data.y)
    assert epoch() == program.skips > 0
    X, y = data.X[:20], data.y[:20]
    program.value_and_gradient(data.parameters, X, y, np.empty_like(data.parameters))
    assert skips.item() == 0
    assert epoch() > 0
    program.predict(data.parameters, X, np.empty((20, 2)), False)
    assert skips.item() == 0
    program.prepare(data.parameters, data.state, data.X + 1, data.y)
    assert epoch() == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_fit_that_skips_is_one_that_does_not(monkeypatch, dtype):
    generator = np.random.default_rng(0)
    X = generator.normal(0, 1, (300, 90)) * (generator.random((300, 90)) < 0.05)
    y = generator.integers(0, 3, 300)
    results = []
    for cost in (sampling.LIST_COST, np.inf):
        monkeypatch.setattr(sampling, "LIST_COST", cost)
        chosen = []
        original = sampling.choose_skips
        monkeypatch.setattr(
            "fastmlp_kernels.cpu.program.choose_skips",
            lambda *arguments: chosen.append(original(*arguments)) or chosen[-1],  # noqa: B023
        )
        model = fastmlp.MLP([90, 70, 3], loss="softmax_cross_entropy", dtype=dtype, seed=3)
        model.fit(X, y, batch_size=50, epochs=3)
        results.append((model.predict(X), np.array(model.history.loss), chosen))
    assert results[0][2] == [BOTH] and results[1][2] == [0]
    for skipping, dense in zip(results[0][:2], results[1][:2], strict=True):
        assert np.array_equal(skipping, dense)
