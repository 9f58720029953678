"""The compiler's promises: a cache that is hit and never stale, no new compiles, open tables."""

import importlib
import inspect
import json
import pkgutil
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from numba.core.dispatcher import Dispatcher

import fastmlp_kernels.cpu
from fastmlp_kernels import compile as compiler
from fastmlp_kernels.cpu import layered
from fastmlp_kernels.problem import Problem
from tests.samples import sample

KERNELS_FOLDER = Path(compiler.__file__).parents[1]


def cpu_modules():
    names = [module.name for module in pkgutil.iter_modules(fastmlp_kernels.cpu.__path__)]
    return [importlib.import_module(f"fastmlp_kernels.cpu.{name}") for name in sorted(names)]


def cached_kernels():
    """Return every kernel of the CPU, by module and name."""
    return {
        (module.__name__, name): value
        for module in cpu_modules()
        for name, value in vars(module).items()
        if isinstance(value, Dispatcher) and isinstance(value._cache, compiler.StampedCache)
    }


def run(source, environment, *arguments, cwd=None):
    result = subprocess.run(
        [sys.executable, "-c", source, *arguments],
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


FORWARD = """
import json
import numpy as np
import fastmlp_kernels
from fastmlp_kernels.algebra import ACTIVATIONS
# Only so that it compiles sooner: the rows that are not used are left out.
ACTIVATIONS.rows = ACTIVATIONS.rows[:2]
from fastmlp_kernels.cpu.linear import linear_forward
A, W, b = np.ones((1, 2)), np.full((2, 1), 3.0), np.zeros(1)
out = np.zeros((1, 1))
linear_forward(A, W, b, ACTIVATIONS.code("relu"), 1, out, out)
stats = linear_forward.stats
print(json.dumps({"value": out[0, 0], "hits": sum(stats.cache_hits.values()),
                  "from": fastmlp_kernels.__file__}))
"""


def test_an_edit_of_the_algebra_is_never_served_stale(tmp_path, child_environment):
    """The kernel is two files away from the edit: Numba's own stamp would not see it."""
    copy = tmp_path / "kernels"
    shutil.copytree(KERNELS_FOLDER, copy, ignore=shutil.ignore_patterns("__pycache__", "*.nb?"))
    environment = {
        **child_environment,
        "PYTHONPATH": str(copy),
        "NUMBA_CACHE_DIR": str(tmp_path / "c"),
    }
    first = run(FORWARD, environment)
    assert first["from"].startswith(str(copy))
    assert (first["value"], first["hits"]) == (6.0, 0)
    again = run(FORWARD, environment)
    assert (again["value"], again["hits"]) == (6.0, 1)
    source = copy / "fastmlp_kernels" / "algebra" / "activations.py"
    text = source.read_text()
    edited = text.replace(
        "return ZERO if z <= ZERO else z", "return ZERO if z <= ZERO else TWO * z"
    )
    assert edited != text
    source.write_text(edited)
    after = run(FORWARD, environment)
    assert (after["value"], after["hits"]) == (12.0, 0)


EPOCH = """
import json
from fastmlp_kernels.cpu import layered
from fastmlp_kernels.problem import Problem
from tests.samples import sample
problem = Problem((3, 4, 2), ("relu", "identity"), "half_squared_error", batch_size=4, rows=8)
data = sample(problem)
layered.LayeredProgram(problem).epoch(*data.arguments())
stats = layered.epoch.stats
print(json.dumps({"hits": sum(stats.cache_hits.values()),
                  "misses": sum(stats.cache_misses.values()),
                  "loss": float(data.losses[-1])}))
"""


def test_a_second_process_compiles_nothing(child_environment):
    run(EPOCH, child_environment)
    second = run(EPOCH, child_environment)
    assert (second["hits"], second["misses"]) == (1, 0)
    assert np.isfinite(second["loss"])


def counts():
    """Return how many signatures, cache hits and misses every kernel has seen."""
    return {
        key: (
            len(k.signatures),
            sum(k.stats.cache_hits.values()),
            sum(k.stats.cache_misses.values()),
        )
        for key, k in cached_kernels().items()
    }


def exercise(problem):
    data = sample(problem)
    program = layered.LayeredProgram(problem)
    program.epoch(*data.arguments())
    rows = problem.batch_size
    out = np.empty((rows, problem.sizes[-1]), problem.dtype)
    gradient = np.zeros_like(data.parameters)
    X = data.X[:rows]
    program.forward(data.parameters, X, out)
    program.loss(data.y[:rows])
    program.backward(data.parameters, None, gradient, np.empty_like(X))
    program.backward(data.parameters, out, gradient, X[:0])
    program.value_and_gradient(data.parameters, X, data.y[:rows], gradient)
    program.update(data.parameters, gradient, data.state, data.hyper[:1])
    program.predict(data.parameters, data.X, np.empty((len(data.X), out.shape[1]), out.dtype), True)


def test_new_shapes_and_names_compile_nothing():
    exercise(Problem((3, 4, 2), ("relu", "sigmoid"), "binary_cross_entropy", batch_size=4, rows=8))
    before = counts()
    assert before["fastmlp_kernels.cpu.layered", "epoch"][0] >= 1
    others = [
        Problem((5, 2), ("tanh",), "squared_error", "adam", batch_size=3, rows=10),
        Problem(
            (1, 7, 9, 33, 3),
            ("gelu", "elu", "silu", "identity"),
            "softmax_cross_entropy",
            "rmsprop",
            labels=True,
            batch_size=7,
            rows=7,
        ),
        Problem((16, 1), ("exp",), "poisson", "nesterov", "sum", batch_size=1, rows=2),
        Problem(
            (64, 128, 10),
            ("selu", "identity"),
            "softmax_cross_entropy",
            "adagrad",
            "batch_mean",
            batch_size=32,
            rows=50,
        ),
    ]
    for problem in others:
        exercise(problem)
    assert counts() == before


def test_the_stamp_is_the_same_in_every_process(child_environment):
    source = "import json; from fastmlp_kernels.compile import stamp; print(json.dumps(stamp()))"
    stamps = {
        run(source, {**child_environment, "PYTHONHASHSEED": seed}) for seed in ("0", "1", "random")
    }
    # Taken anew: the cached one is of the sources as they were when this process began.
    assert stamps == {compiler.stamp.__wrapped__()}


def test_the_stamp_sees_a_row_added_by_a_user(child_environment):
    source = (
        "import json, sys; from fastmlp_kernels.algebra import ACTIVATIONS, Activation\n"
        "from fastmlp_kernels.algebra.activations import REAL\n"
        "factor = float(sys.argv[1])\n"
        "code = 'def double(z):\\n    return z * {0}\\ndef slope(z, a):\\n    return {0}'\n"
        "exec(code.format(factor))\n"
        "row = Activation('double', double, slope, 'output', REAL, 'he_normal', '2 z')\n"
        "ACTIVATIONS.append(row)\n"
        "from fastmlp_kernels.compile import stamp; print(json.dumps(stamp()))"
    )
    two, three = (run(source, child_environment, factor) for factor in ("2", "3"))
    assert len({two, three, compiler.stamp.__wrapped__()}) == 3


def test_no_cached_kernel_closes_over_compiled_code():
    """A closure that holds a dispatcher hashes anew in each process: the cache is never hit."""
    kernels = cached_kernels()
    assert len(kernels) >= 10
    for key, dispatcher in kernels.items():
        for cell in dispatcher.py_func.__closure__ or ():
            assert isinstance(cell.cell_contents, int | float | str | tuple), key


def test_every_kernel_has_the_flags_of_one_file():
    for key, dispatcher in cached_kernels().items():
        options = dispatcher.targetoptions
        assert options["error_model"] == "numpy" and options["nogil"], key
        assert set(options["fastmath"]) <= {"contract", "reassoc"}, key
        assert not options.get("parallel"), key
    for path in KERNELS_FOLDER.rglob("*.py"):
        if path.name != "compile.py":
            text = path.read_text()
            assert "njit(" not in text and "@njit" not in text and "cuda.jit" not in text, path


def kernel_functions(module):
    """Return the public kernels that a module itself defines, by name."""
    found = {}
    for name, value in vars(module).items():
        function = getattr(value, "py_func", value)
        own = getattr(function, "__module__", None) == module.__name__
        if own and not name.startswith("_") and isinstance(function, types.FunctionType):
            found[name] = function
    return found


TWINS = {
    "activation": ["activation_forward", "activation_backward"],
    "linear": ["linear_forward", "linear_backward", "weight_gradient"],
    "loss": ["loss_and_gradient", "sum_losses", "check_finite", "predict_rows"],
    "update": ["update"],
    "gather": ["gather_rows"],
}


@pytest.mark.parametrize("module", TWINS)
def test_cpu_kernels_are_the_named_ones(module):
    functions = kernel_functions(importlib.import_module(f"fastmlp_kernels.cpu.{module}"))
    assert set(TWINS[module]) <= set(functions)


CUDA_LAYERED = KERNELS_FOLDER / "fastmlp_kernels" / "cuda" / "layered.py"


def parameters_in_source(path, name):
    """Return the parameter names of a function defined anywhere in a file."""
    import ast

    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return [argument.arg for argument in node.args.args]
    return None


@pytest.mark.parametrize(("module", "name"), [(m, n) for m, names in TWINS.items() for n in names])
def test_twins_have_the_same_parameters(module, name):
    """Read from the source: the CUDA twins are made by factories, one for each size of tile."""
    folder = CUDA_LAYERED.parents[1]
    ours = parameters_in_source(folder / "cpu" / f"{module}.py", name)
    theirs = parameters_in_source(folder / "cuda" / f"{module}.py", name)
    assert ours is not None
    assert theirs == ours


def test_programs_have_the_methods_of_the_contract():
    from fastmlp_kernels.problem import Program
    from fastmlp_kernels.reference import ReferenceProgram

    wanted = {
        name: list(inspect.signature(value).parameters)
        for name, value in vars(Program).items()
        if inspect.isfunction(value) and not name.startswith("_")
    }
    assert len(wanted) >= 9
    for kind in (layered.LayeredProgram, ReferenceProgram):
        for name, parameters in wanted.items():
            assert list(inspect.signature(getattr(kind, name)).parameters) == parameters, (
                kind,
                name,
            )


ADDED_ROW = """
import json, sys
import numpy as np
from fastmlp_kernels.algebra import ACTIVATIONS, LOSSES, OPTIMIZERS, Activation
from fastmlp_kernels.algebra.activations import REAL
from fastmlp_kernels.algebra.constants import HALF, ONE

# Only so that it compiles sooner: the rows that are not used are left out.
ACTIVATIONS.rows = ACTIVATIONS.rows[:2]
LOSSES.rows = LOSSES.rows[:2]
OPTIMIZERS.rows = OPTIMIZERS.rows[:2]

def bend(z):
    return z + HALF * z * z

def bend_slope(z, a):
    return ONE + z

ACTIVATIONS.append(Activation("bend", bend, bend_slope, "input", REAL, "he_normal", "z + z^2 / 2"))
from fastmlp_kernels.problem import Problem
from tests import tolerances
from tests.samples import sample
problem = Problem((3, 4, 2), ("bend", "identity"), "half_squared_error", "sgd", "mean", "float32",
                  batch_size=4, rows=4)
data = sample(problem)
oracle = tolerances.step(problem, data.parameters, data.X[data.order], data.y[data.order])
expected, _ = tolerances.updated(problem, data.parameters, oracle.gradient, [], data.hyper[0])
if sys.argv[1] == "cpu":
    from fastmlp_kernels.cpu.layered import LayeredProgram
else:
    from fastmlp_kernels.cuda.layered import LayeredProgram
program = LayeredProgram(problem)
device = [program.to_device(a) for a in (data.parameters, data.state, data.X, data.y)]
program.epoch(*device, data.order, data.hyper, data.losses, data.control)
moved = np.empty_like(data.parameters)
program.to_host(device[0], moved)
tolerances.compare(data.losses, oracle.loss, "loss")
print(json.dumps(tolerances.compare(moved, expected, "parameters")))
"""


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_a_row_added_by_a_user_trains(target, tmp_path, child_environment):
    """One row in a fresh process, before the kernels are imported: both targets have it."""
    # A cache of its own: the added row changes the stamp, and would evict the real kernels.
    environment = {**child_environment, "NUMBA_CACHE_DIR": str(tmp_path)}
    if target == "cuda":
        environment["NUMBA_ENABLE_CUDASIM"] = "1"
    assert 0 <= run(ADDED_ROW, environment, target) <= 1


ALLOCATIONS = """
import json
import numpy as np
from numba.core.runtime import rtsys
from fastmlp_kernels.cpu.layered import LayeredProgram
from fastmlp_kernels.problem import Problem
from tests.samples import sample
counts = {}
warm = Problem((2, 1), ("identity",), "half_squared_error")
LayeredProgram(warm).epoch(*sample(warm).arguments())
for rule, names, loss in (("sgd", ("relu", "identity"), "half_squared_error"),
                          ("adam", ("gelu", "identity"), "softmax_cross_entropy")):
    for batches in (1, 2, 100):
        problem = Problem((7, 9, 3), names, loss, rule, batch_size=4, rows=4 * batches)
        data = sample(problem)
        program = LayeredProgram(problem)
        before = rtsys.get_allocation_stats()
        program.epoch(*data.arguments())
        after = rtsys.get_allocation_stats()
        counts[f"{rule} {batches}"] = [after.alloc - before.alloc, after.mi_alloc - before.mi_alloc]
# The statistics do count: a compiled function that allocates once a call.
import numba
make = numba.njit(lambda n: np.zeros(n).sum())
make(3)
before = rtsys.get_allocation_stats()
make(3)
counts["planted"] = rtsys.get_allocation_stats().alloc - before.alloc
print(json.dumps(counts))
"""


def test_nothing_is_allocated_within_an_epoch(child_environment):
    found = run(ALLOCATIONS, {**child_environment, "NUMBA_NRT_STATS": "1"})
    assert found.pop("planted") == 1
    for rule in ("sgd", "adam"):
        one, two, many = (found[f"{rule} {batches}"] for batches in (1, 2, 100))
        # Passing an array from Python makes one header for it; the batches add none.
        assert one == two == many, found
        assert many[0] <= len(layered.Workspace._fields) + 10, found
