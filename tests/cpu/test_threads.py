"""The same bits for any number of threads and any size of block.

This is promised for one instruction set. Two sets may differ in the last bits: one without a
fused multiply-add rounds every product.
"""

import ctypes
import itertools
import json
import platform
import subprocess
import sys

import numpy as np
import pytest

from fastmlp_kernels.algebra import ACTIVATIONS, LOSSES, OPTIMIZERS
from fastmlp_kernels.cpu.activation import activation_backward, activation_forward
from fastmlp_kernels.cpu.loss import loss_and_gradient, losses_per_row, predict_rows
from fastmlp_kernels.cpu.program import FusedProgram
from fastmlp_kernels.problem import DTYPES, REDUCTIONS, Problem
from tests.machines import HOST, team
from tests.samples import (
    EVERY_LOSS,
    EVERY_RULE,
    in_a_chain,
    output_activations,
    outputs_for,
    poison,
    sample,
    targets,
)

THREADS = (1, 2, 3, 5, 8)


def outputs():
    """Return every loss with each of its output activations, and with labels where it has them."""
    found = []
    for loss in EVERY_LOSS:
        for last in output_activations(loss):
            found += [
                (loss, last, labels)
                for labels in (False, True)
                if not labels or LOSSES[loss].label_rule is not None
            ]
    return found


def problems():
    """Return problems in which every row of every table, and either dtype, has a part."""
    combinations = outputs()
    hidden, optimizers, reductions = (
        itertools.cycle(names) for names in (ACTIVATIONS.names, OPTIMIZERS.names, REDUCTIONS)
    )
    made = []
    for index, (loss, last, labels) in enumerate(combinations):
        place, around = index % len(ACTIVATIONS), index // len(ACTIVATIONS)
        problem = Problem(
            (5, 19, 33, outputs_for(loss, 3)),
            # Only one exponential in a chain.
            (in_a_chain(next(hidden)), "tanh", last),
            loss,
            next(optimizers),
            # The gradients of a sum of exponentials are too large for the rates here.
            "mean" if last == "exp" else next(reductions),
            # The other dtype when an activation comes again.
            DTYPES[(place + around) % 2],
            labels,
            batch_size=23,
            rows=59,
        )
        made.append(problem)
    exponential = Problem((9, 6, 2), ("exp", "identity"), "huber", batch_size=23, rows=59)
    # More panels and units of weights than threads, in either direction.
    large = [
        Problem(
            (70, 100, 71, 40),
            ("gelu", "relu", "identity"),
            "softmax_cross_entropy",
            "adam",
            dtype=dtype,
            labels=True,
            batch_size=150,
            rows=370,
        )
        for dtype in DTYPES
    ]
    # More inputs than rows: a team shares the columns of the first layer.
    wide = [
        Problem(
            (70, 960, 3),
            ("silu", "identity"),
            "huber",
            "momentum",
            dtype=dtype,
            batch_size=23,
            rows=59,
        )
        for dtype in DTYPES
    ]
    return [*made, exponential, *wide, *large]


PROBLEMS = problems()
LARGE = PROBLEMS[-2:]


def test_every_row_of_every_table_has_a_part():
    named = {(name, p.dtype) for p in PROBLEMS for name in p.activations}
    assert named == set(itertools.product(ACTIVATIONS.names, DTYPES))
    assert {p.rule for p in PROBLEMS} == {rule.name for rule in EVERY_RULE}
    assert {p.optimizer for p in PROBLEMS} == set(OPTIMIZERS.names)
    assert {(p.reduction, p.dtype) for p in PROBLEMS} == set(itertools.product(REDUCTIONS, DTYPES))


def test_both_ways_to_share_the_first_layer_are_there():
    shared = [program.columns for program in (built(p, 3, HOST[0]) for p in PROBLEMS)]
    assert len(set(shared)) == 2


def results(problem, program):
    """Return what every method of a program makes of one sample, as bytes by name."""
    data = sample(problem, seed=1)
    poison(program)
    start, rows = data.parameters.copy(), problem.batch_size - 1
    X, y = data.X[:rows], data.y[:rows]
    program.epoch(*data.arguments())
    assert data.control.tolist() == [0, problem.batches, 0]
    assert np.isfinite(data.losses).all() and not np.array_equal(data.parameters, start)
    out = np.full((rows, problem.sizes[-1]), np.nan, problem.dtype)
    found = {"parameters": data.parameters, "state": data.state, "losses": data.losses}
    program.forward(start, X, out)
    found["forward"] = out.copy()
    found["loss"] = np.array(program.loss(y))
    pulled, inputs = np.zeros_like(start), np.full_like(X, np.nan)
    program.backward(start, None, pulled, inputs)
    found["backward"], found["inputs"] = pulled.copy(), inputs.copy()
    program.backward(start, out, pulled, inputs)
    found["pullback"], found["pulled inputs"] = pulled, inputs
    gradient = np.full_like(start, np.nan)
    found["value"] = np.array(program.value_and_gradient(start, X, y, gradient))
    found["gradient"] = gradient
    updated, state = start.copy(), np.zeros_like(data.state)
    program.update(updated, gradient, state, data.hyper[:1].copy())
    found["updated"] = updated
    other = sample(problem, seed=1, weighted=True, penalized=True)
    program.epoch(*other.arguments())
    found["weighted"], found["weighted losses"] = other.parameters, other.losses
    found["squares"] = other.squares
    found["weighted value"] = np.array(
        program.value_and_gradient(start, X, y, gradient, other.factors[:rows].copy())
    )
    # As a part of a larger batch, of a training step.
    dropout = data.hyper[:1].copy(), 7
    found["part value"] = np.array(
        program.value_and_gradient(start, X, y, gradient, None, dropout, unchanged=True)
    )
    found["part gradient"] = gradient.copy()
    program.value_and_gradient(start, X, y, gradient, None, dropout)
    np.testing.assert_array_equal(gradient, found["part gradient"])
    for link in (False, True):
        predictions = np.full((len(data.X), problem.sizes[-1]), np.nan, problem.dtype)
        program.predict(start, data.X, predictions, link)
        found[f"predict, link {link}"] = predictions
    for name, array in found.items():
        assert np.isfinite(array).all(), name
    return {name: array.tobytes() for name, array in found.items()}


def differing(expected, found):
    """Return the names of the results that are not the same bits."""
    return [name for name in expected if found[name] != expected[name]]


def built(problem, threads, instruction_set):
    program = FusedProgram(problem, team(threads, instruction_set))
    assert program.threads == threads
    return program


@pytest.mark.parametrize("index", range(len(PROBLEMS)), ids=lambda k: PROBLEMS[k].rule)
def test_the_same_bits_for_any_number_of_threads(index):
    problem = PROBLEMS[index]
    alone = results(problem, built(problem, 1, HOST[0]))
    for threads in THREADS[1:]:
        assert differing(alone, results(problem, built(problem, threads, HOST[0]))) == [], threads


@pytest.mark.parametrize("instruction_set", HOST[1:])
@pytest.mark.parametrize("index", range(0, len(PROBLEMS), 4), ids=lambda k: PROBLEMS[k].rule)
def test_the_same_bits_on_every_instruction_set(index, instruction_set):
    problem = PROBLEMS[index]
    alone = results(problem, built(problem, 1, instruction_set))
    for threads in (3, 8):
        found = results(problem, built(problem, threads, instruction_set))
        assert differing(alone, found) == [], threads


BLOCKS = {
    "row_block": (1, 5, 14, 50, 149, 10**6),
    "depth_block": (1, 2, 10**4),  # in panels
    "sum_block": (1, 7, 100, 10**6),
}


@pytest.mark.parametrize("instruction_set", HOST)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("problem", LARGE, ids=lambda problem: problem.dtype)
def test_the_same_bits_for_any_size_of_block(problem, block, instruction_set):
    """Blocks follow the caches: what they are is no part of the result."""
    expected = results(problem, built(problem, 1, instruction_set))
    for size in BLOCKS[block]:
        for threads in (1, 3):
            program = built(problem, threads, instruction_set)
            program.step[block] = size * (program.panel if block == "depth_block" else 1)
            found = results(problem, program)
            assert differing(expected, found) == [], (size, threads)


# Of one call; whole vectors, parts of one, and what is left over by a loop that takes several.
COUNTS = (1, 2, 3, 5, 8, 13, 23, 33, 67)


def called(address, *arguments):
    """Call a leaf with arrays and whole numbers."""
    words = [a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments]
    kinds = [ctypes.c_int64] * len(words)
    ctypes.CFUNCTYPE(ctypes.c_int64, *kinds)(address)(*words)


def apart(count):
    """Return pieces of so many rows: every size, at several places."""
    for size in COUNTS:
        for start in range(0, count - size + 1, max(1, size // 2)):
            yield slice(start, start + size)


def same_rows(compute, *arrays):
    """Assert that rows have the bits that each has alone, whichever rows are given with it."""
    rows = len(arrays[0])
    alone = [compute(*(array[i : i + 1].copy() for array in arrays)) for i in range(rows)]
    expected = [np.concatenate(each) for each in zip(*alone, strict=True)]
    for piece in apart(rows):
        found = compute(*(array[piece].copy() for array in arrays))
        for one, other in zip(found, expected, strict=True):
            assert one.tobytes() == other[piece].tobytes(), piece


def problem_of(rule, outputs, dtype):
    """Return a problem that a rule belongs to."""
    for loss, last, labels in outputs_of_losses:
        sizes = (1, outputs_for(loss, outputs))
        problem = Problem(sizes, (last,), loss, dtype=dtype, labels=labels)
        if problem.rule == rule:
            return problem
    raise KeyError(rule)


outputs_of_losses = outputs()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", [rule.name for rule in EVERY_RULE])
def test_a_loss_has_the_same_bits_wherever_its_row_stands(rule, dtype, weighted):
    leaf, generator = loss_and_gradient(rule, dtype, weighted), np.random.default_rng(0)
    for outputs in (1, 3, 10, 17):
        problem, rows = problem_of(rule, outputs, dtype), max(COUNTS)
        outputs, y = problem.sizes[-1], targets(problem, rows, generator)
        A = generator.normal(0, 3, (rows, outputs))
        if rule == problem.loss:
            A = 1 / (1 + np.exp(-A))
        factors = generator.uniform(0.2, 2, rows).astype(dtype)

        def compute(A, y, factors, outputs=outputs):
            losses = np.full((len(A), losses_per_row(rule, outputs)), np.nan, dtype)
            slopes = np.full_like(A, np.nan)
            own = factors if weighted else np.full(1, 0.7, dtype)
            called(leaf, A, y, len(A), outputs, y.shape[1], own, losses, slopes)
            return losses, slopes

        same_rows(compute, A.astype(dtype), y, factors)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS.names)
def test_an_activation_has_the_same_bits_wherever_it_stands(name, dtype):
    """Kernels give whole panels, but for the activation of the outputs that are predicted."""
    row, generator = ACTIVATIONS[name], np.random.default_rng(0)
    Z, dA = (generator.normal(0, 2, max(COUNTS)).astype(dtype) for _ in range(2))

    def forward(Z):
        A = Z.copy()
        called(activation_forward(name, dtype), Z, A, len(A))
        return (A,)

    def backward(kept, dA):
        called(activation_backward(name, dtype), kept, dA, len(dA))
        return (dA,)

    same_rows(forward, Z)
    same_rows(backward, Z if row.keeps == "input" else forward(Z)[0], dA)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", [name for name in EVERY_LOSS if LOSSES[name].link is not None])
def test_a_prediction_has_the_same_bits_wherever_its_row_stands(loss, dtype):
    for outputs in (outputs_for(loss, count) for count in (1, 3, 10, 17)):

        def compute(A, outputs=outputs):
            called(predict_rows(loss, dtype), A, len(A), outputs)
            return (A,)

        A = np.random.default_rng(0).normal(0, 3, (max(COUNTS), outputs))
        same_rows(compute, A.astype(dtype))


# Machine code of leaves for a processor that need not be this one.
COMPILED = """
import json, re, sys
from fastmlp_kernels.algebra import ACTIVATIONS, loss_rules
from fastmlp_kernels.cpu import activation, loss
leaves, made = {}, loss.leaf
def leaf(function, name, signature):
    leaves[name] = made(function, name, signature)
    return leaves[name]
loss.leaf = activation.leaf = leaf
for dtype in ("float32", "float64"):
    for rule in loss_rules():
        if not rule.by_row:
            for weighted in (False, True):
                loss.loss_and_gradient(rule.name, dtype, weighted)
    for name in ACTIVATIONS.names:
        activation.activation_forward(name, dtype)
KINDS = "fn?m(?:add|sub)[0-9]+", "div", "mul", "(?:add|sub)"
def counts(code, lanes):
    return [len(re.findall(rf"\tv?{kind}{lanes}[sd]\\b", code)) for kind in KINDS]
found = {}
for name, leaf in leaves.items():
    code = leaf._library.get_asm_str()
    found[name] = counts(code, "p"), counts(code, "s")
print(json.dumps(found))
"""
# Vectors of masks are where the compiler has most to choose.
MASKS = "+avx,+avx2,+fma,+bmi,+bmi2,+avx512f,+avx512dq,+avx512bw,+avx512vl,+avx512cd"


@pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="the code is that of x86"
)
def test_vectors_and_what_is_left_over_fuse_the_same_products(child_environment, tmp_path):
    """Also where this machine has no such vectors: for each division, as many fused products.

    (In a rule that has none, for each product or sum. Copies of a loop for vectors of another width
    have as many again.)
    """
    chosen = {
        "NUMBA_CPU_NAME": "x86-64-v4",
        "NUMBA_CPU_FEATURES": MASKS,
        "NUMBA_CACHE_DIR": str(tmp_path),
    }
    finished = subprocess.run(
        [sys.executable, "-c", COMPILED],
        env={**child_environment, **chosen},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    compiled = json.loads(finished.stdout)
    assert len(compiled) >= 70 and sum(vectors[0] > 0 for vectors, _ in compiled.values()) >= 30
    different = {
        name: (vectors, single)
        for name, (vectors, single) in compiled.items()
        if vectors[0] * unit(single) != single[0] * unit(vectors)
    }
    assert not different


def unit(counts):
    """Return how often the code has what others are counted by: the rarest kind that it has."""
    return next((count for count in counts[1:] if count), 1)


def test_the_comparison_sees_one_bit():
    """And every result is looked at: each one is spoilt in turn."""
    problem = PROBLEMS[0]
    expected = results(problem, built(problem, 1, HOST[0]))
    for name, bits in expected.items():
        if bits:
            spoilt = expected | {name: bytes([bits[0] ^ 1]) + bits[1:]}
            assert differing(expected, spoilt) == [name]
