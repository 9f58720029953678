"""The algebra: every row against its formula, differences, extremes and its own dtype."""

import inspect
import math
import re

import numba
import numpy as np
import pytest
from numba import types

from fastmlp_kernels.algebra import (
    ACTIVATIONS,
    HYPER_WIDTH,
    INITIALIZERS,
    LOSSES,
    OPTIMIZERS,
    Activation,
    elementary,
    hyper_table,
)
from fastmlp_kernels.algebra.optimizers import RULE_NUMBERS, RULE_START
from fastmlp_kernels.algebra.tables import REAL, Interval
from fastmlp_kernels.compile import cpu_function
from fastmlp_kernels.cpu.program import FusedProgram
from fastmlp_kernels.problem import DTYPES, Problem
from fastmlp_kernels.reference import elementwise
from tests import gradients, tolerances
from tests.samples import EVERY_LOSS, EVERY_RULE, SETTINGS

POINTS = gradients.away_from(np.linspace(-6, 6, 97), (-3, 0, 3))
erf = np.vectorize(math.erf)


def formula_of(row, **more):
    """Return a row's formula as a function of arrays: nothing but the name of the row is shared.

    What overflows is infinite, and what has no value (the logarithm of 0, say) is not a number.
    """
    numbers = getattr(row, "numbers", {})
    code, known = compile(row.formula, row.name, "eval"), {**vars(math), **numbers, **more}

    def value(**variables):
        try:
            return eval(code, known, variables)
        except OverflowError:
            return math.inf
        except (ValueError, ZeroDivisionError):
            return math.nan

    names = "z" if isinstance(row, Activation) else "py"
    return lambda *arrays: np.array(
        [
            value(**dict(zip(names, map(float, each), strict=True)))
            for each in zip(*arrays, strict=True)
        ]
    )


SIZES = {"float32": types.float32, "float64": types.float64}


def looped(function, dtype, arguments=1):
    """Return a scalar function compiled as the kernels compile it, over an array."""

    def loop(z, out):
        for i in range(z.size):
            out[i] = function(z[i])

    def loop_of_two(z, out):
        for i in range(z.size):
            out[i] = function(z[i], z[i])

    compiled = cpu_function(loop if arguments == 1 else loop_of_two)

    def apply(values):
        values = np.ascontiguousarray(values, dtype=dtype)
        out = np.full_like(values, np.nan)
        compiled(values, out)
        return out

    return apply


@pytest.mark.parametrize("row", list(ACTIVATIONS), ids=lambda row: row.name)
class TestActivation:
    def test_value_equals_its_formula(self, row):
        expected = formula_of(row)(POINTS)
        for actual in (elementwise(row.value, POINTS), looped(row.value, "float64")(POINTS)):
            np.testing.assert_allclose(actual, expected, rtol=1e-13, atol=1e-14)

    def test_value_in_float32(self, row):
        points = POINTS.astype(np.float32)
        expected = formula_of(row)(points)
        actual = looped(row.value, "float32")(points)
        assert np.ptp(actual) > 0
        # Twelve roundings of numbers no larger than the larger of the two.
        size = np.maximum(np.abs(expected), np.minimum(np.abs(points), 1))
        assert np.max(np.abs(actual - expected) / size) < 12 * 2.0**-24

    def test_slope_by_finite_differences(self, row):
        z = gradients.away_from(POINTS, row.kinks)
        # ELU is smooth to first order only: its second derivative jumps at 0.
        a = elementwise(row.value, z)
        measured = gradients.central_difference(lambda x: elementwise(row.value, x), z)
        gradients.assert_derivative(elementwise(row.slope, z, a), measured)

    def test_slope_reads_only_what_the_row_keeps(self, row):
        z = np.float64(0.3)
        a = row.value(z)
        nan = np.float64(np.nan)
        known = row.slope(z, nan) if row.keeps == "input" else row.slope(nan, a)
        assert np.isfinite(known) and known == row.slope(z, a)

    def test_values_stay_in_the_stated_range(self, row):
        # -0 and the extremes included; ends that are not included may be reached by rounding.
        extremes = [-0.0, 0.0, 1e-40, 88.8, 104, 1e4, -88.8, -104, -1e4]
        z = np.concatenate([POINTS, extremes]).astype(np.float32)
        z = z[np.abs(formula_of(row)(z)) < np.finfo("float32").max]
        a = looped(row.value, "float32")(z)
        slack = 1e-6 * max(1, abs(row.range.low) if math.isfinite(row.range.low) else 1)
        assert np.isfinite(a).all()
        assert a.min() >= row.range.low - slack and a.max() <= row.range.high

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_saturation_is_finite(self, row, dtype):
        z = np.array([1e4, -1e4, 88.8, -88.8, 104, -104, 745.2, -745.2, -0.0, 0.0], dtype)
        z = z[np.abs(formula_of(row)(z)) < np.finfo("float32").max]
        assert z.size >= 6
        a = looped(row.value, dtype)(z)
        d = looped(row.slope, dtype, 2)(a if row.keeps == "output" else z)
        assert np.isfinite(a).all() and np.isfinite(d).all()

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_nan_passes_through(self, row, dtype):
        assert np.isnan(looped(row.value, dtype)(np.array([np.nan]))).all()

    def test_what_the_row_says_for_speed_is_true(self, row):
        if row.clamp is not None:
            low, high = row.clamp
            assert row.keeps == "output" and low < high
            z = np.concatenate([POINTS, [end for end in row.clamp if math.isfinite(end)]])
            a = elementwise(row.value, z)
            np.testing.assert_array_equal(a, np.clip(z, low, high))
            np.testing.assert_array_equal(elementwise(row.slope, z, a), (low < a) & (a < high))
        if row.short:
            functions = [row.value, *([row.slope] if row.keeps == "input" else [])]
            for function in functions:
                assert not called_by(function) & {each.__name__ for each in elementary.FORMS}
                assert " / " not in inspect.getsource(function)
        a = elementwise(row.value, POINTS)
        kept = elementwise(row.slope, 1.5 * a, 1.5 * a)
        same = np.array_equal(kept, elementwise(row.slope, a, a))
        assert row.sign_only == (row.keeps == "output" and same)

    def test_dtype_is_kept(self, row):
        assert_single_precision(row.value, 1)
        assert_single_precision(row.slope, 2)
        assert compiled_return(row.value, "float64", 1) == types.float64


def wrapped(function, count):
    """Return a compiled function of `count` scalars that calls a plain one."""

    def one(x):
        return function(x)

    def two(x, y):
        return function(x, y)

    return cpu_function({1: one, 2: two}[count])


def compiled_return(function, dtype, count):
    """Return the type that a scalar rule gives for arguments of a dtype."""
    dispatcher = wrapped(function, count)
    signature = (SIZES[dtype],) * count
    dispatcher.compile(signature)
    return dispatcher.overloads[signature].signature.return_type


def assert_single_precision(function, count):
    """Fail when float32 arguments give another dtype or any arithmetic in float64."""
    dispatcher = wrapped(function, count)
    signature = (types.float32,) * count
    dispatcher.compile(signature)
    returned = dispatcher.overloads[signature].signature.return_type
    parts = list(returned.types) if isinstance(returned, types.BaseTuple) else [returned]
    assert parts and all(part == types.float32 for part in parts), returned
    assert not double_arithmetic(dispatcher.inspect_llvm(signature))


def double_arithmetic(source: str) -> list[str]:
    """Return the lines of LLVM code that compute in float64."""
    # The wrapper that boxes the result for Python goes through float64; only the function counts.
    bodies = re.split(r"^define ", source, flags=re.MULTILINE)[1:]
    source = "\n".join(body for body in bodies if "cpython" not in body.split("\n", 1)[0])
    assert source
    pattern = r"= (?:fadd|fsub|fmul|fdiv|fcmp|fneg|fpext)\b.*\bdouble\b|call.* double @"
    return re.findall(pattern, source)


def called_by(function) -> set[str]:
    """Return the names of all that a function uses, by way of other functions too."""
    found, left = set(), {function}
    while left:
        each = left.pop()
        names = set(each.__code__.co_names) - found
        found |= names
        others = (each.__globals__.get(name) for name in names)
        left |= {other for other in others if inspect.isfunction(other)}
    return found


def test_the_search_for_what_is_called_finds_an_exponential():
    assert "exp" in called_by(ACTIVATIONS["gelu"].slope)
    # By way of the sigmoid.
    assert "exp" in called_by(ACTIVATIONS["silu"].value)


def test_the_search_for_double_arithmetic_finds_a_literal():
    """A planted fault: a literal is a float64 to Numba (and 1.1 not one that LLVM can narrow)."""

    def promoted(x):
        return np.float32(1.1 * x)

    with pytest.raises(AssertionError):
        assert_single_precision(promoted, 1)


@pytest.mark.parametrize("rule", EVERY_RULE, ids=lambda rule: rule.name)
def test_loss_rule_keeps_float32(rule):
    if not rule.by_row:
        assert_single_precision(rule.rule, 2)
    row = rule.row
    for name, scalar in SIZES.items():
        dispatcher = cpu_function(row)
        matrix = types.Array(scalar, 2, "C")
        dispatcher.compile((matrix, matrix, types.int64, matrix))
        returned = dispatcher.nopython_signatures[0].return_type
        assert returned == scalar, (rule.name, name)
        if name == "float32":
            code = dispatcher.inspect_llvm(dispatcher.signatures[0])
            assert not double_arithmetic(code), double_arithmetic(code)[:3]


@pytest.mark.parametrize("row", list(OPTIMIZERS), ids=lambda row: row.name)
def test_optimizer_keeps_float32(row):
    update = row.update

    def call(p, g, m, v, h):
        return update(p, g, m, v, h)

    for scalar in SIZES.values():
        dispatcher = cpu_function(call)
        dispatcher.compile((scalar,) * 4 + (types.UniTuple(scalar, RULE_NUMBERS),))
        assert dispatcher.nopython_signatures[0].return_type == types.UniTuple(scalar, 3)
        if scalar == types.float32:
            assert not double_arithmetic(dispatcher.inspect_llvm(dispatcher.signatures[0]))


def prediction_grid(loss):
    """Return predictions inside the domain of a loss, and targets inside its own."""
    domain, target = loss.prediction_domain, loss.target_domain
    low = domain.low + 0.05 if math.isfinite(domain.low) else -4.0
    high = domain.high - 0.05 if math.isfinite(domain.high) else 4.0
    bottom = target.low if math.isfinite(target.low) else -2.5
    top = target.high if math.isfinite(target.high) else bottom + 5
    pairs = np.meshgrid(np.linspace(low, high, 31), np.linspace(bottom, top, 6))
    p, t = (grid.ravel() for grid in pairs)
    delta = loss.numbers.get("delta")
    kinks = loss.kinks if delta is None else (*loss.kinks, -delta, delta)
    keep = np.ones(p.size, dtype=bool)
    for kink in kinks:
        keep &= np.abs(p - t - kink) > 10 * gradients.STEP
    return p[keep], t[keep]


ELEMENT_LOSSES = [LOSSES[name] for name in EVERY_LOSS if not LOSSES[name].by_row]
EPSILON = np.finfo(np.float64).eps


def inside(p):
    return min(max(p, EPSILON), 1 - EPSILON)


@pytest.mark.parametrize("loss", ELEMENT_LOSSES, ids=lambda loss: loss.name)
class TestElementLoss:
    def test_value_equals_its_formula(self, loss):
        p, t = prediction_grid(loss)
        values = np.array([loss.rule(*pair)[0] for pair in zip(p, t, strict=True)])
        expected = formula_of(loss, inside=inside)(p, t)
        # Without the limits, such as that of y log(y / p) where y is 0.
        known = np.isfinite(expected)
        assert np.ptp(values[known]) > 0 and known.mean() > 0.8
        np.testing.assert_allclose(values[known], expected[known], rtol=1e-13, atol=1e-14)

    def test_slope_by_finite_differences(self, loss):
        p, t = prediction_grid(loss)
        step = gradients.STEP if loss.prediction_domain.low == -math.inf else 1e-4
        for x, y in zip(p, t, strict=True):
            claimed = loss.rule(x, y)[1]
            measured = gradients.central_difference(lambda v, y=y: loss.rule(v, y)[0], x, step)
            assert claimed == pytest.approx(measured, rel=1e-7, abs=1e-8)

    def test_fused_equals_the_activation_and_the_loss(self, loss):
        for name, fused in loss.fused.items():
            row = ACTIVATIONS[name]
            for z in np.linspace(-5, 5, 21):
                for y in np.array([0.0, 0.3, 1.0]):
                    a = row.value(z)
                    value, slope = loss.rule(a, y)
                    fused_value, fused_slope = fused(z, y)
                    assert fused_value == pytest.approx(value, rel=1e-11, abs=1e-12)
                    assert fused_slope == pytest.approx(
                        slope * row.slope(z, a), rel=1e-9, abs=1e-12
                    )

    def test_nan_is_not_hidden(self, loss):
        for rule in (loss.rule, *loss.fused.values()):
            with np.errstate(all="ignore"):
                value, slope = rule(np.float64(np.nan), np.float64(0.5))
            assert np.isnan(value) or np.isnan(slope)


ROW_LOSSES = [LOSSES[name] for name in EVERY_LOSS if LOSSES[name].by_row]


# Those that turn outputs into probabilities, whatever they do to the losses.
SOFTMAX_LOSSES = [
    loss for loss in LOSSES if loss.by_row and loss.link is LOSSES["softmax_cross_entropy"].link
]


def row_targets(classes, generator):
    """Return targets of one row: probabilities, those that do not sum to 1, and a single class."""
    targets = generator.dirichlet(np.ones(classes)), generator.uniform(0.1, 0.9, classes)
    return [each.reshape(1, -1) for each in (*targets, np.eye(classes)[classes - 1])]


@pytest.mark.parametrize("loss", ROW_LOSSES, ids=lambda loss: loss.name)
@pytest.mark.parametrize("classes", [1, 2, 5])
def test_row_loss_by_finite_differences(classes, loss):
    generator = np.random.default_rng(0)
    z = generator.normal(0, 2, (1, classes * loss.outputs_per_target))
    for y in row_targets(classes, generator):
        slope = np.full_like(z, np.nan)
        value = loss.rule(z, y, 0, slope)
        measured = gradients.gradient(lambda x: loss.rule(x, y, 0, np.empty_like(x)), z)  # noqa: B023
        np.testing.assert_allclose(slope, measured, atol=1e-9)
    if loss.label_rule is not None:
        by_label = np.full((1, classes), np.nan)
        label_value = loss.label_rule(z, np.array([[float(classes - 1)]]), 0, by_label)
        assert label_value == pytest.approx(value, rel=1e-13, abs=1e-15)
        np.testing.assert_allclose(by_label, slope, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("loss", SOFTMAX_LOSSES, ids=lambda loss: loss.name)
@pytest.mark.parametrize("classes", [1, 2, 5])
def test_softmax_cross_entropy_equals_its_closed_form(classes, loss):
    generator = np.random.default_rng(0)
    z = generator.normal(0, 2, (1, classes))
    p = np.exp(z) / np.exp(z).sum()
    for y in row_targets(classes, generator):
        slope = np.full((1, classes), np.nan)
        value = loss.rule(z, y, 0, slope)
        assert value == pytest.approx(-(y * np.log(p)).sum(), rel=1e-13, abs=1e-15)
        np.testing.assert_allclose(slope, y.sum() * p - y, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("loss", ROW_LOSSES, ids=lambda loss: loss.name)
def test_row_gradient_may_overwrite_the_predictions(loss):
    for rule, y in ((loss.rule, [[0.2, 0.8, 0.0]]), (loss.label_rule, [[1.0]])):
        if rule is not None:
            z, y = np.array([[0.3, -1.0, 2.0] * loss.outputs_per_target]), np.array(y)
            apart = np.full_like(z, np.nan)
            value = rule(z, y, 0, apart)
            assert rule(z, y, 0, z) == value
            np.testing.assert_array_equal(z, apart)


@pytest.mark.parametrize("loss", SOFTMAX_LOSSES, ids=lambda loss: loss.name)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bound_of_any_row_rule_is_that_of_softmax_or_coarser(loss, dtype):
    problem = Problem((2, 4), ("identity",), loss.name, dtype=dtype, batch_size=9, rows=9)
    generator, unit = np.random.default_rng(0), np.finfo(dtype).eps / 2
    logits = generator.normal(0, 2, (9, 4))
    y = generator.dirichlet(np.ones(4), 9)
    for inexact in (0.0, 100 * unit):
        A = tolerances.Bounded(logits, np.abs(logits) * inexact)
        pairs = zip(
            tolerances.row_loss(problem, A, y, unit),
            tolerances.softmax_loss(problem, A, y, unit),
            strict=True,
        )
        for coarse, fine in pairs:
            np.testing.assert_allclose(coarse.value, fine.value, rtol=1e-12, atol=1e-14)
            assert np.all(coarse.error > 0.2 * fine.error)
            assert coarse.error.max() < 20 * fine.error.max()


VECTOR = re.compile(r"= f(?:add|sub|mul|div)\b[^\n]*<\d+ x (?:float|double)>")
# A ReLU computes nothing.
VECTOR_OR_CHOICE = re.compile(rf"{VECTOR.pattern}|= select <\d+ x i1>")
EXPONENT_IN_VECTORS = re.compile(r"= shl[^\n]*<\d+ x i(?:32|64)>")


def assert_vector_code(dispatcher, patterns=(VECTOR,)):
    """Fail when compiled code calls a library's function, or does not compute in vectors."""
    source = dispatcher.inspect_llvm(dispatcher.signatures[0])
    called = re.findall(r"call [^\n]*@(\w*(?:exp|log|erf|tanh|pow)\w*)\(", source)
    assert not called, called
    for pattern in patterns:
        assert pattern.search(source), pattern.pattern


def row_inputs(rule, columns, dtype):
    """Return one row of predictions and of targets, inside the domains of a rule."""
    generator = np.random.default_rng(columns)
    # float32 clips at another probability than the float64 that it is compared with.
    width = 1 if rule.name.startswith("clipped") else 3
    outputs = columns * LOSSES[rule.name.split("/")[0]].outputs_per_target
    z = generator.normal(0, width, (1, outputs)).astype(dtype)
    if LOSSES[rule.name.split("/")[0]].prediction_domain.low == 0 and "/" not in rule.name:
        z = (1 / (1 + np.exp(-z))).astype(dtype)
    y = generator.uniform(0, 1, (1, columns)).astype(dtype)
    if rule.name.endswith("/labels"):
        y = np.full((1, 1), columns - 1, dtype)
    return z, y


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", EVERY_RULE, ids=lambda rule: rule.name)
def test_compiled_row_rule_in_vectors_across_their_borders_and_in_place(rule, dtype):
    compiled = cpu_function(rule.row)
    for columns in (1, 2, 7, 8, 16, 17, 64, 131):
        z, y = row_inputs(rule, columns, dtype)
        exact = np.full(z.shape, np.nan)
        expected = rule.row(z.astype(np.float64), y.astype(np.float64), 0, exact)
        slope = np.full_like(z, np.nan)
        value = compiled(z, y, 0, slope)
        unit = np.finfo(dtype).eps
        # A sum of n terms errs by n units of their sizes; the sizes here are below 30.
        assert abs(value - expected) <= unit * (16 + columns) * (abs(expected) + 30)
        np.testing.assert_allclose(slope, exact, rtol=32 * unit, atol=32 * unit)
        assert compiled(z, y, 0, z) == value
        np.testing.assert_array_equal(z, slope)
    exponential = rule.by_row or rule.name.endswith(("/sigmoid", "/exp"))
    assert_vector_code(compiled, (VECTOR, EXPONENT_IN_VECTORS) if exponential else (VECTOR,))


def loop_over_one(function):
    def loop(z, out):
        for i in range(z.size):
            out[i] = function(z[i])

    return loop


def slope_loop(slope):
    def loop(z, a, out):
        for i in range(z.size):
            out[i] *= slope(z[i], a[i])

    return loop


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "function",
    [each for each in elementary.FORMS if "epsilon" not in each.__name__],
    ids=lambda function: function.__name__,
)
def test_loop_over_an_elementary_function_is_vector_code(function, dtype):
    dispatcher = cpu_function(loop_over_one(function))
    dispatcher.compile((types.Array(SIZES[dtype], 1, "C"),) * 2)
    assert_vector_code(dispatcher)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", list(ACTIVATIONS), ids=lambda row: row.name)
def test_loop_over_an_activation_is_vector_code(row, dtype):
    vector = types.Array(SIZES[dtype], 1, "C")
    if row.name != "identity":
        dispatcher = cpu_function(slope_loop(row.slope))
        dispatcher.compile((vector, vector, vector))
        assert_vector_code(dispatcher)
        dispatcher = cpu_function(loop_over_one(row.value))
        dispatcher.compile((vector, vector))
        assert_vector_code(dispatcher, (VECTOR_OR_CHOICE,))


def test_the_search_for_vector_code_finds_a_library_call_and_an_ordered_sum():
    """Two planted faults."""

    def ordered(prediction, target, i, slope):
        total = prediction[i, 0]
        for j in range(1, prediction.shape[1]):
            error = prediction[i, j] - target[i, j]
            slope[i, j] = error
            total += error * error
        return total

    matrix = types.Array(types.float64, 2, "C")
    dispatcher = cpu_function(ordered)
    dispatcher.compile((matrix, matrix, types.int64, matrix))
    with pytest.raises(AssertionError, match=re.escape(VECTOR.pattern)):
        assert_vector_code(dispatcher)
    dispatcher = cpu_function(loop_over_one(lambda z: math.erf(z) * z))
    dispatcher.compile((types.Array(types.float64, 1, "C"),) * 2)
    with pytest.raises(AssertionError, match="erf"):
        assert_vector_code(dispatcher)


EXTREMES = [1e4, -1e4, 88.8, -88.8, 104.0, -104.0, -0.0, 0.0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("logit", EXTREMES)
@pytest.mark.parametrize("loss", ["binary_cross_entropy", "softmax_cross_entropy"])
@pytest.mark.parametrize("labels", [False, True])
def test_cross_entropies_are_finite_at_extreme_logits(loss, logit, dtype, labels):
    if labels and LOSSES[loss].label_rule is None:
        labels = False
    last = "sigmoid" if loss == "binary_cross_entropy" else "identity"
    problem = Problem(
        (1, 2), (last,), loss, dtype=dtype, labels=labels, reduction="sum", batch_size=2, rows=2
    )
    parameters = np.array([0, 0, logit, -logit], dtype)
    X = np.ones((2, 1), dtype)
    y = np.array([[0], [1]] if labels else [[1, 0], [0, 1]], dtype)
    gradient = np.full(4, np.nan, dtype)
    value = FusedProgram(problem).value_and_gradient(parameters, X, y, gradient)
    assert np.isfinite(value) and np.isfinite(gradient).all()
    # One of the two rows is right and the other wrong by the distance of the logits.
    size = abs(logit)
    wrong = 2 * size if size else 0
    if loss == "binary_cross_entropy":
        expected = wrong if size else 4 * math.log(2)
    else:
        expected = wrong if size else 2 * math.log(2)
    assert value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("name", ["clipped_binary_cross_entropy", "clipped_softmax_cross_entropy"])
def test_clipped_cross_entropies_are_those_of_clipped_probabilities(name, labels, dtype):
    """What scikit-learn's log_loss does; the gradient is the one of the free probability."""
    binary = name == "clipped_binary_cross_entropy"
    problem = Problem(
        (1, 2),
        ("sigmoid" if binary else "identity",),
        name,
        dtype=dtype,
        labels=labels and not binary,
        reduction="sum",
        batch_size=2,
        rows=2,
    )
    y = np.array([[0], [1]] if problem.labels else [[1, 0], [0, 1]], dtype)
    eps = float(np.finfo(dtype).eps)
    for logit in (0.3, -2.0, 12.0, 30.0, 200.0, -1e4):
        parameters = np.array([0, 0, logit, -logit], dtype)
        gradient = np.full(4, np.nan, dtype)
        X = np.ones((2, 1), dtype)
        value = FusedProgram(problem).value_and_gradient(parameters, X, y, gradient)
        gap = (1 if binary else 2) * np.float64(logit)
        losses = [np.logaddexp(0, -gap), np.logaddexp(0, gap)]
        if binary:
            # By way of p: what is left of 1 - p in this dtype.
            p = 1 / (1 + np.exp(np.dtype(dtype).type(-abs(gap))))
            outside = max(float(1 - p), eps)
            losses = [-np.log(float(p)), -np.log(outside)]
        total = sum(np.clip(losses, -np.log1p(-eps), -np.log(eps))) * (2 if binary else 1)
        # The last bit of p may be another.
        lost = 4 * eps / outside if binary else 0.0
        assert value == pytest.approx(total, rel=4 * eps, abs=4 * eps + lost)
        # Right in one row and wrong in the other: sigmoid(gap) - 1 and sigmoid(gap).
        slope = 2 / (1 + np.exp(-gap)) - 1 if gap > -700 else -1.0
        np.testing.assert_allclose(gradient[2:], [slope, -slope], rtol=20 * eps)


def test_unfused_cross_entropy_is_finite_at_zero_and_one():
    rule = LOSSES["binary_cross_entropy"].rule
    for dtype in (np.float32, np.float64):
        for p in (0, 1, 1e-40):
            for y in (0, 1, 0.5):
                value, slope = rule(dtype(p), dtype(y))
                assert np.isfinite(value) and np.isfinite(slope)
                assert 0 <= value <= 100
        assert rule(dtype(0), dtype(1))[0] == rule(dtype(1), dtype(0))[0] == 100


def test_poisson_of_a_rate_that_has_underflowed():
    rule = LOSSES["poisson"].rule
    for dtype in (np.float32, np.float64):
        value, slope = rule(dtype(0), dtype(0))
        assert (value, slope) == (0, 1)
        value, slope = rule(dtype(0), dtype(3))
        assert 200 < value < 300 and slope < -1e38 / 3


@pytest.mark.parametrize("loss", ["binary_cross_entropy", "softmax_cross_entropy"])
def test_relu_before_a_cross_entropy_is_refused_with_the_reason(loss):
    reason = LOSSES[loss].refusal(ACTIVATIONS["relu"])
    assert reason is not None and "[0, inf)" in reason and "relu" in reason and loss in reason
    assert ("'sigmoid'" if loss == "binary_cross_entropy" else "'identity'") in reason


# Of the rows that this file knows; it need not know all.
ACCEPTED = {
    "binary_cross_entropy": ["sigmoid", "hard_sigmoid"],
    "clipped_binary_cross_entropy": ["sigmoid"],
    "softmax_cross_entropy": ["identity", "leaky_relu"],
    "clipped_softmax_cross_entropy": ["identity", "leaky_relu"],
    "half_poisson_deviance": ["softplus", "exp"],
    "poisson": ["softplus", "exp"],
}


@pytest.mark.parametrize("loss", list(LOSSES), ids=lambda loss: loss.name)
def test_refusals_follow_from_the_ranges(loss):
    accepted = [row.name for row in ACTIVATIONS if loss.refusal(row) is None]
    everywhere = loss.prediction_domain == REAL and not loss.by_row
    wanted = ACCEPTED.get(loss.name, ACTIVATIONS.names if everywhere else [])
    assert accepted and set(wanted) <= set(accepted)
    for row in map(ACTIVATIONS.__getitem__, accepted):
        with np.errstate(over="ignore"):
            values = elementwise(row.value, np.concatenate([POINTS, [30.0, -30.0]]))
            size = elementwise(row.value, np.array([-1e6, 1e6]))
        if loss.by_row:
            # Logits: nothing bounds them.
            assert size[0] < -1e3 and size[1] > 1e3, row.name
        for value in values:
            assert loss.prediction_domain.contains(Interval(value, value, True, True)), row.name


def units_in_the_last_place(actual, exact):
    """Return the error in spacings of the actual's dtype at the exact value."""
    spacing = np.spacing(np.abs(exact).astype(actual.dtype)).astype(np.longdouble)
    return np.abs(actual.astype(np.longdouble) - exact) / spacing


def long(values):
    return values.astype(np.longdouble)


def erf_in_long_double(z):
    """Return ``2 z / sqrt(pi) e^(-z^2)`` times the sum of ``(2 z^2)^n / (2n + 1)!!``."""
    if np.finfo(np.longdouble).eps == np.finfo(np.float64).eps:
        return erf(z.astype(np.float64))
    term = total = z.astype(np.longdouble)
    for n in range(1, 200):
        term = term * 2 * z * z / (2 * n + 1)
        total = total + term
    # pi to the long double's digits.
    return 2 * total * np.exp(-z * z) / np.sqrt(4 * np.arctan(np.longdouble(1)))


ELEMENTARY = {
    "exp": (elementary.exp, np.exp, {"float32": (-87, 88.7), "float64": (-708, 709.7)}, 1),
    "expm1": (elementary.expm1, np.expm1, {"float32": (-20, 87), "float64": (-40, 709)}, 2),
    "log": (elementary.log, np.log, {"float32": (0, 3), "float64": (0, 3)}, 1),
    "log1p": (elementary.log1p, np.log1p, {"float32": (0, 1), "float64": (0, 1)}, 2),
    "erf": (
        elementary.erf,
        erf_in_long_double,
        {"float32": (-4.5, 4.5), "float64": (-6.5, 6.5)},
        2,
    ),
    "sigmoid": (
        elementary.sigmoid,
        lambda z: 1 / (1 + np.exp(-z)),
        {"float32": (-80, 80), "float64": (-700, 700)},
        3,
    ),
    "tanh": (elementary.tanh, np.tanh, {"float32": (-15, 15), "float64": (-25, 25)}, 4),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ELEMENTARY)
def test_elementary_functions_in_units_in_the_last_place(name, dtype):
    function, exact, ranges, allowed = ELEMENTARY[name]
    low, high = ranges[dtype]
    generator = np.random.default_rng(0)
    small = 10.0 ** generator.uniform(-30, 0, 20_000)
    signs = 1 if low == 0 else generator.choice([-1.0, 1.0], small.size)
    z = np.concatenate([generator.uniform(low, high, 60_000), small * signs]).astype(dtype)
    # On some platforms long double is double: half a unit more of doubt.
    error = units_in_the_last_place(looped(function, dtype)(z), exact(long(z)))
    assert error.max() <= allowed + 0.5, f"{error.max():.2f} at {z[error.argmax()]!r}"
    assert error.max() > 0.3, "no rounding at all: is this the library's own function?"


@pytest.mark.parametrize("dtype", DTYPES)
def test_elementary_limits(dtype):
    inf, nan = np.inf, np.nan
    ends = {
        "exp": ([inf, -inf, 1e4, -1e4, 0.0, -0.0], [inf, 0, inf, 0, 1, 1]),
        "expm1": ([inf, -inf, 1e4, -1e4, 0.0], [inf, -1, inf, -1, 0]),
        "log": ([inf, 0.0, -0.0, 1.0], [inf, -inf, -inf, 0]),
        "log1p": ([0.0], [0.0]),
        "erf": ([inf, -inf, 1e4, -1e4, 6.0, -6.0, 0.0], [1, -1, 1, -1, 1, -1, 0]),
        "sigmoid": ([inf, -inf, 1e4, -1e4, 0.0], [1, 0, 1, 0, 0.5]),
        "tanh": ([inf, -inf, 1e4, -1e4, 0.0], [1, -1, 1, -1, 0]),
    }
    for name, (points, limits) in ends.items():
        compiled = looped(ELEMENTARY[name][0], dtype)
        assert compiled(np.array(points)).tolist() == limits, name
        assert np.isnan(compiled(np.array([nan]))).all(), name
        low, high = ELEMENTARY[name][2][dtype]
        values = compiled(np.linspace(low, high, 20_001))
        # Where it saturates, neighbours may be reversed by the error of a unit or two.
        assert (np.diff(values) >= -2 * np.spacing(np.abs(values[1:]))).all(), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_erf_is_odd_and_saturates_only_at_its_end(dtype):
    compiled = looped(elementary.erf, dtype)
    generator = np.random.default_rng(0)
    z = np.concatenate([[0.0, 1.0], generator.uniform(0, 7, 20_000), 10.0 ** -np.arange(1.0, 36)])
    values = compiled(z)
    np.testing.assert_array_equal(compiled(-z), -values)
    assert np.signbit(compiled(np.array([-0.0])))[0] and not np.signbit(values[0])
    assert values.max() == 1
    last = {"float32": 3.7, "float64": 5.6}[dtype]
    assert (values[z < last] < 1).all()
    step = np.finfo(dtype).eps
    # Where its two formulas meet.
    assert np.ptp(compiled(np.array([1 - step, 1, 1 + step]))) <= 4 * step


@pytest.mark.parametrize("dtype", DTYPES)
def test_log_over_the_whole_range_near_one_and_below_zero(dtype):
    compiled, limits = looped(elementary.log, dtype), np.finfo(dtype)
    generator = np.random.default_rng(0)
    exponents = generator.uniform(
        np.log10(float(limits.smallest_subnormal)), np.log10(float(limits.max)), 20_000
    )
    near = 1 + generator.choice([-1.0, 1.0], 20_000) * 10.0 ** generator.uniform(-15, -0.3, 20_000)
    ends = [limits.smallest_subnormal, limits.tiny, limits.max]
    z = np.concatenate([10.0**exponents, near, np.array(ends, np.float64)]).astype(dtype)
    z = z[(z > 0) & (z != 1) & (z <= limits.max)]
    error = units_in_the_last_place(compiled(z), np.log(long(z)))
    assert error.max() <= 1.5, f"{error.max():.2f} at {z[error.argmax()]!r}"
    assert np.isnan(compiled(np.array([-1.0, -np.inf, -limits.smallest_subnormal]))).all()


@pytest.mark.parametrize("function", elementary.FORMS, ids=lambda function: function.__name__)
def test_elementary_functions_keep_their_dtype(function):
    assert_single_precision(function, 1)
    assert compiled_return(function, "float64", 1) == types.float64


def test_exp_overflows_and_underflows_where_the_dtype_does():
    single, double = looped(elementary.exp, "float32"), looped(elementary.exp, "float64")
    assert np.isfinite(single(np.array([88.7]))).all() and np.isinf(single(np.array([88.8]))).all()
    assert (
        np.isfinite(double(np.array([709.7]))).all() and np.isinf(double(np.array([709.8]))).all()
    )
    assert single(np.array([-87.3]))[0] > 0 and single(np.array([-104]))[0] == 0
    assert double(np.array([-708.3]))[0] > 0 and double(np.array([-746]))[0] == 0


def test_plain_forms_are_numpys():
    z = np.linspace(0.5, 5, 11)
    for function in (elementary.exp, elementary.expm1, elementary.log, elementary.log1p):
        np.testing.assert_array_equal(elementwise(function, z), getattr(np, function.__name__)(z))


def update_kernel(rule, steps=6, size=12, seed=0):
    """Return the parameters after each of several compiled float64 updates, and the inputs."""
    problem = Problem(
        (size - 1, 1), ("identity",), "squared_error", rule, dtype="float64", batch_size=1, rows=1
    )
    generator = np.random.default_rng(seed)
    start, slopes = generator.normal(0, 1, size), generator.normal(0, 1, (steps, size))
    parameters, state = start.copy(), np.zeros((problem.slots, size))
    program, path = FusedProgram(problem), []
    table = hyper_table(OPTIMIZERS[rule], SETTINGS[rule], 1, steps, "float64")
    for step in range(steps):
        program.update(parameters, slopes[step], state, table[step : step + 1])
        path.append(parameters.copy())
    return start, slopes, np.array(path)


@pytest.mark.parametrize("rule", OPTIMIZERS.names)
def test_optimizer_equals_its_formula(rule):
    row = OPTIMIZERS[rule]
    code = compile(row.formula, rule, "exec")
    start, slopes, path = update_kernel(rule)
    known = {"sqrt": np.sqrt, "sign": np.sign, **SETTINGS[rule]}
    state = {"p": start.copy(), "m": np.zeros_like(start), "v": np.zeros_like(start)}
    for t, (g, ours) in enumerate(zip(slopes, path, strict=True), start=1):
        decay = 0.0 if row.decoupled else known["weight_decay"]
        variables = {**known, **state, "g": g + decay * state["p"], "t": t}
        exec(code, variables)
        state = {name: variables[name] for name in state}
        np.testing.assert_allclose(ours, state["p"], rtol=1e-12, atol=1e-14)
    assert np.abs(path[-1] - start).max() > 1e-4
    used = sum(np.any(state[name] != 0) for name in "mv")
    assert used == row.slots and not (row.slots == 1 and np.any(state["v"] != 0))


def torch_sgd(torch, parameters, s, nesterov=False):
    momentum = s.get("momentum", 0.0)
    more = {"weight_decay": s["weight_decay"], "nesterov": nesterov}
    return torch.optim.SGD([parameters], s["learning_rate"], momentum, **more)


def torch_nesterov(torch, parameters, s):
    return torch_sgd(torch, parameters, s, nesterov=True)


def torch_adam(torch, parameters, s, kind="Adam"):
    betas = s["beta1"], s["beta2"]
    kind = getattr(torch.optim, kind)
    return kind([parameters], s["learning_rate"], betas, s["epsilon"], s["weight_decay"])


def torch_adamw(torch, parameters, s):
    return torch_adam(torch, parameters, s, "AdamW")


def torch_rmsprop(torch, parameters, s):
    numbers = s["learning_rate"], s["decay"], s["epsilon"], s["weight_decay"]
    return torch.optim.RMSprop([parameters], *numbers)


def torch_adagrad(torch, parameters, s):
    numbers = {"weight_decay": s["weight_decay"], "eps": s["epsilon"]}
    return torch.optim.Adagrad([parameters], s["learning_rate"], **numbers)


# Those that PyTorch has too.
PEERS = {
    **dict.fromkeys(("sgd", "momentum", "velocity"), torch_sgd),
    **dict.fromkeys(("nesterov", "nesterov_velocity"), torch_nesterov),
    "adam": torch_adam,
    "adamw": torch_adamw,
    "rmsprop": torch_rmsprop,
    "adagrad": torch_adagrad,
}


@pytest.mark.peer
@pytest.mark.parametrize("rule", PEERS)
def test_optimizer_equals_pytorchs(rule):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    start, slopes, path = update_kernel(rule)
    parameters = torch.tensor(start, requires_grad=True)
    optimizer = PEERS[rule](torch, parameters, SETTINGS[rule])
    for gradient, ours in zip(slopes, path, strict=True):
        parameters.grad = torch.tensor(gradient)
        optimizer.step()
        np.testing.assert_allclose(ours, parameters.detach().numpy(), rtol=1e-12, atol=1e-14)
    assert np.abs(path[-1] - start).min() > 1e-4


RATES = {"adagrad": (0.5,), "sgd": (0.1,)}


def descended(rule, rate):
    """Return p^T D p / 2, over its value at p = 1, after 400 steps with a condition number of 10.

    The rate falls to 0: a rule that steps by a sign alone stays as far away as its rate is large.
    """
    problem = Problem(
        (4, 1), ("identity",), "squared_error", rule, dtype="float64", batch_size=1, rows=1
    )
    rates = rate * np.linspace(1, 0, 400, endpoint=False)
    settings = {**SETTINGS[rule], "learning_rate": rates, "weight_decay": 0.0}
    table = hyper_table(OPTIMIZERS[rule], settings, 1, 400, "float64")
    curvature = np.array([1.0, 2, 4, 7, 10])
    parameters, state = np.ones(5), np.zeros((problem.slots, 5))
    program = FusedProgram(problem)
    for row in table:
        program.update(parameters, curvature * parameters, state, row[None])
    return (curvature * parameters**2).sum() / curvature.sum()


@pytest.mark.parametrize("rule", OPTIMIZERS.names)
def test_optimizer_descends_a_quadratic(rule):
    known = RATES.get(rule, (0.02,)) if rule in PEERS else (0.02, 0.1, 0.5)
    assert min(descended(rule, rate) for rate in known) < 1e-3


def test_bias_correction_survives_float32():
    """1 - 0.999^t in float32 would lose most of its digits at t = 1; it is computed in float64."""
    table = hyper_table(OPTIMIZERS["adam"], SETTINGS["adam"], 1, 2, "float32")
    assert table.dtype == np.float32 and table.shape == (2, HYPER_WIDTH)
    assert table[0, RULE_START + 5] == pytest.approx(1 / math.sqrt(1 - 0.999), rel=1e-7)
    assert table[1, RULE_START] == pytest.approx(0.01 / (1 - 0.9**2), rel=1e-7)
    assert table[0, RULE_START + 4] == pytest.approx(1 - 0.999, rel=1e-7)


VARIANCES = {
    "glorot": lambda i, o: 2 / (i + o),
    "he": lambda i, o: 2 / i,
    "lecun": lambda i, o: 1 / i,
    "orthogonal": lambda i, o: 1 / max(i, o),
}


@pytest.mark.parametrize("row", list(INITIALIZERS), ids=lambda row: row.name)
def test_initializer_variance(row):
    from fastmlp.state.parameters import initialize
    from fastmlp_kernels.problem import parameter_layout

    layout = parameter_layout((200, 300))
    vector = np.full(layout[-1].bias.stop, np.nan)
    initialize(vector, layout, [row], 0, [1.0])
    drawn = vector[layout[0].weight]
    expected = VARIANCES[row.name.split("_")[0]](200, 300) if row.name != "zeros" else 0.0
    assert row.variance(200, 300) == expected
    # 60000 draws: the sample variance is within 2 % with room to spare.
    assert drawn.var() == pytest.approx(expected, rel=0.02, abs=1e-30)
    assert abs(drawn.mean()) <= 0.02 * math.sqrt(expected)
    assert (vector[layout[0].bias] == 0).all()
    if row.distribution == "uniform":
        assert np.abs(drawn).max() <= math.sqrt(3 * expected) + 1e-15


def test_every_activation_names_a_known_initializer():
    assert {row.initializer for row in ACTIVATIONS} <= set(INITIALIZERS.names)


def test_unknown_row_names_the_nearest():
    with pytest.raises(KeyError, match="did you mean 'sigmoid'"):
        ACTIVATIONS["sigmiod"]


def test_numba_is_the_compiler_under_test():
    assert not numba.config.DISABLE_JIT
