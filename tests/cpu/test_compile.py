"""The compiler's promises: a cache that is hit and never stale, no new compiles, open tables."""

import ast
import importlib
import inspect
import json
import os
import pkgutil
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
from numba.core.dispatcher import Dispatcher

import fastmlp_kernels.cpu
from fastmlp_kernels import compile as compiler
from fastmlp_kernels.algebra import ACTIVATIONS, OPTIMIZERS
from fastmlp_kernels.cpu import activation, loss, update
from fastmlp_kernels.cpu.program import FusedProgram
from fastmlp_kernels.cpu.simd import instruction_set
from fastmlp_kernels.problem import DTYPES
from tests.samples import EVERY_LOSS, EVERY_RULE

KERNELS_FOLDER = Path(compiler.__file__).parents[1]


def cpu_modules():
    names = [module.name for module in pkgutil.iter_modules(fastmlp_kernels.cpu.__path__)]
    return [importlib.import_module(f"fastmlp_kernels.cpu.{name}") for name in sorted(names)]


def dispatchers():
    """Return everything that Numba compiles for the CPU but the leaves, by module and name."""
    return {
        (module.__name__.rpartition(".")[2], name): value
        for module in cpu_modules()
        for name, value in vars(module).items()
        if isinstance(value, Dispatcher) and value.py_func.__module__ == module.__name__
    }


def cached_kernels():
    """Return those that Python calls, which the disk cache keeps."""
    return {
        key: value
        for key, value in dispatchers().items()
        if isinstance(value._cache, compiler.StampedCache)
    }


class Leaf:
    """What a leaf is compiled with, instead of compiling it."""

    made = []

    def __init__(self, function, signature, local_types, options, pipeline_class):
        self.function, self.options, self.address = function, options, 1
        self.made.append(self)

    def compile(self):
        self.compiled = True


@pytest.fixture
def leaves(monkeypatch):
    """Return every leaf of every row of the tables, uncompiled."""
    monkeypatch.setattr(compiler, "CFunc", Leaf)
    monkeypatch.setattr(Leaf, "made", [])
    for dtype in DTYPES:
        for row in ACTIVATIONS:
            activation.activation_forward.__wrapped__(row.name, dtype)
            activation.activation_backward.__wrapped__(row.name, dtype)
        for rule in EVERY_RULE:
            for weighted in (False, True):
                loss.loss_and_gradient.__wrapped__(rule.name, dtype, weighted)
        for name in EVERY_LOSS:
            loss.predict_rows.__wrapped__(name, dtype)
        loss.sum_losses.__wrapped__(dtype)
        for flag in (False, True):
            for row in OPTIMIZERS:
                for penalized in (False, True):
                    update.update.__wrapped__(row.name, dtype, flag, penalized)
            update.write_gradient.__wrapped__(dtype, flag)
    return Leaf.made


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


# What every script below begins with: how to see whatever is compiled, and what is kept.
WATCH = """
import json, os, sys
from pathlib import Path
import numpy as np
from numba.core import event
import fastmlp_kernels
from fastmlp_kernels.cpu import machine_code
from fastmlp_kernels.problem import Problem
from tests.samples import sample

class Watch(event.Listener):
    # Dispatchers announce that they compile; leaves and parts are seen by their passes.
    compiled = set()
    def on_start(self, what):
        if what.kind == "numba:compile":
            self.compiled.add(what.data["dispatcher"].py_func.__name__)
        else:
            self.compiled.add(what.data["qualname"])
    def on_end(self, what):
        pass

for kind in ("numba:compile", "numba:run_pass"):
    event.register(kind, Watch())
objects = []
make_object = machine_code._object_file
def watched(target, dtype):
    objects.append(f"{target.name} {dtype}")
    return make_object(target, dtype)
machine_code._object_file = watched

def kept():
    folder = Path(os.environ["NUMBA_CACHE_DIR"])
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}

files = kept()
def seen():
    # What was compiled and written since the last call.
    global files
    now = kept()
    changed = sorted(name for name in now if files.get(name) != now[name])
    files = now
    found = {"compiled": sorted(Watch.compiled), "objects": list(objects), "files": changed}
    Watch.compiled.clear()
    objects.clear()
    return found

def exercise(problem, machine=None):
    from fastmlp_kernels.cpu.program import FusedProgram
    data = sample(problem)
    program = FusedProgram(problem, machine)
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
    predictions = np.empty((len(data.X), out.shape[1]), out.dtype)
    program.predict(data.parameters, data.X, predictions, True)
    return float(data.losses[-1])
"""

FORWARD = (
    WATCH
    + """
import ctypes
from fastmlp_kernels.cpu.activation import activation_forward
A = np.array([-1.0, 6.0])
kind = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
kind(activation_forward("relu", "float64"))(0, A.ctypes.data, 2)
machine_code.microkernels(machine_code.host_instruction_sets()[0], "float64")
print(json.dumps({"values": A.tolist(), "from": fastmlp_kernels.__file__, **seen()}))
"""
)


def test_an_edit_of_the_algebra_is_never_served_stale(tmp_path, child_environment):
    """The leaf is two files away from the edit: Numba's own stamp would not see it."""
    copy = tmp_path / "kernels"
    shutil.copytree(KERNELS_FOLDER, copy, ignore=shutil.ignore_patterns("__pycache__", "*.nb?"))
    environment = {
        **child_environment,
        "PYTHONPATH": f"{copy}:{KERNELS_FOLDER.parent}",
        "NUMBA_CACHE_DIR": str(tmp_path / "c"),
    }
    first = run(FORWARD, environment)
    assert first["from"].startswith(str(copy))
    assert first["values"] == [0.0, 6.0] and first["compiled"] and len(first["objects"]) == 1
    again = run(FORWARD, environment)
    assert again["values"] == [0.0, 6.0] and not again["compiled"] and not again["objects"]
    source = copy / "fastmlp_kernels" / "algebra" / "activations.py"
    text = source.read_text()
    edited = text.replace(
        "return ZERO if z <= ZERO else z", "return ZERO if z <= ZERO else TWO * z"
    )
    assert edited != text
    source.write_text(edited)
    after = run(FORWARD, environment)
    assert after["values"] == [0.0, 12.0] and after["compiled"]
    # Object files are of the same stamp, and an old one is taken away.
    assert len(after["objects"]) == 1
    assert len(list((tmp_path / "c").rglob("*.o"))) == 1


SMALL = 'Problem((3, 4, 2), ("relu", "sigmoid"), "binary_cross_entropy", batch_size=4, rows=8)'
EPOCH = WATCH + f"print(json.dumps({{'loss': exercise({SMALL}), **seen()}}))"


@pytest.fixture(scope="module")
def first_process(tmp_path_factory):
    """Return a disk cache that one process has filled, its environment and what it compiled."""
    folder = tmp_path_factory.mktemp("cache")
    path = f"{KERNELS_FOLDER}:{KERNELS_FOLDER.parent}"
    environment = {
        **dict(os.environ),
        "PYTHONPATH": path,
        "PYTHONDONTWRITEBYTECODE": "1",
        "NUMBA_CACHE_DIR": str(folder),
    }
    return folder, environment, run(EPOCH, environment)


def test_a_second_process_compiles_nothing(first_process):
    folder, environment, first = first_process
    assert {"run"} <= set(first["compiled"])
    assert len(first["objects"]) == 1 and len(first["files"]) > 10
    second = run(EPOCH, environment)
    assert second == {"loss": first["loss"], "compiled": [], "objects": [], "files": []}


NEW_SHAPES = (
    WATCH
    + """
from fastmlp_kernels.problem import Machine
small = {"batch_size": 4, "rows": 8}
exercise(SMALL)
found = {"what another process has compiled": seen()}
names = ("relu", "sigmoid"), "binary_cross_entropy"
exercise(Problem((1, 1, 1), *names, batch_size=2, rows=3))
exercise(Problem((64, 128, 10), *names, reduction="sum", batch_size=32, rows=50))
exercise(Problem((9, 70, 33, 5), ("relu", *names[0]), names[1], batch_size=130, rows=600),
         Machine(cores=3))
found["shapes"] = seen()
exercise(Problem((1, 1, 1), *names, batch_size=1, rows=3))
found["single rows"] = seen()
given = sample(Problem((3, 4, 2), *names, **small))
for array in (given.X, given.y, given.order, given.hyper):
    array.flags.writeable = False
from fastmlp_kernels.cpu.program import FusedProgram
FusedProgram(Problem((3, 4, 2), *names, **small)).epoch(*given.arguments())
found["read-only"] = seen()
exercise(Problem((3, 4, 2), ("tanh", "sigmoid"), names[1], **small))
found["activation"] = seen()
exercise(Problem((3, 4, 2), ("tanh", "sigmoid"), "half_squared_error", **small))
found["loss"] = seen()
exercise(Problem((3, 4, 2), *names, "adam", **small))
found["optimizer"] = seen()
exercise(Problem((5, 9, 2), ("tanh", "sigmoid"), "half_squared_error", "adam", "sum", **small))
found["all again"] = seen()
exercise(Problem((3, 4, 2), *names, dtype="float64", **small))
found["dtype"] = seen()
print(json.dumps(found))
"""
).replace("SMALL", SMALL)


def leaf_names(found):
    """Return the names of the leaves among the files of the cache: without a module's name."""
    names = {name.partition("-cpython")[0] for name in found["files"] if name.endswith(".nbc")}
    return {name for name in names if "." not in name}


def test_new_shapes_compile_nothing_and_a_new_name_its_own_leaf(first_process, tmp_path):
    """Seen by Numba's own events, and by what is written beside the first process's files."""
    folder, environment, first = first_process
    copy = shutil.copytree(folder, tmp_path / "cache")
    found = run(NEW_SHAPES, {**environment, "NUMBA_CACHE_DIR": str(copy)})
    nothing = {"compiled": [], "objects": [], "files": []}
    for step in ("what another process has compiled", "shapes", "read-only", "all again"):
        assert found[step] == nothing, step
    panel = instruction_set().panel("float32")
    forward, backward = "activation_forward", "activation_backward"
    assert leaf_names(found["activation"]) == {
        f"{forward}-tanh-float32",
        f"{backward}-tanh-float32",
    }
    rule = "loss_and_gradient-half_squared_error-float32"
    # The sigmoid was a part of the rule before; now it has a slope of its own.
    assert leaf_names(found["loss"]) in ({rule}, {rule, f"{backward}-sigmoid-float32"})
    updates = {f"update-adam-tile{panel}{way}-float32" for way in ("", "-panels")}
    assert leaf_names(found["optimizer"]) == updates
    assert leaf_names(found["single rows"]) == {f"update-sgd-tile{panel}-panels-row-float32"}
    doubles = leaf_names(found["dtype"])
    narrow = [name.replace(f"tile{panel}", f"tile{panel // 2}") for name in leaf_names(first)]
    # Sums of squares are float64 in either dtype: that leaf is there already.
    assert doubles | {"sum_losses-float64"} == {n.replace("float32", "float64") for n in narrow}
    assert len(found["dtype"]["objects"]) == 1
    for step in ("activation", "loss", "optimizer", "dtype"):
        assert found[step]["compiled"]
        assert not {"run"} & set(found[step]["compiled"])
        assert not [name for name in found[step]["files"] if name.startswith("fused.")]
    for step in ("activation", "loss", "optimizer", "single rows"):
        assert found[step]["objects"] == []


def damaged(data, how):
    """Return the bytes of a file with something wrong."""
    if how == "empty":
        return b""
    if how == "half":
        return data[: len(data) // 2]
    if how == "zeros":
        return bytes(len(data))
    place, change = {"begin": (0, 0xFF), "header": (70, 1), "end": (len(data) - 1, 1)}[how]
    return data[:place] + bytes([data[place] ^ change]) + data[place + 1 :]


DAMAGES = ["empty", "half", "zeros", "begin", "header", "end"]


def test_damaged_files_are_made_anew_and_no_others(first_process, tmp_path):
    """Not trusted, and not a crash: compiled and written once more. One function reads them all."""
    folder, environment, first = first_process
    copy = shutil.copytree(folder, tmp_path / "cache")
    environment = {**environment, "NUMBA_CACHE_DIR": str(copy)}
    (microkernels,), functions = copy.rglob("*.o"), sorted(copy.rglob("*.nbc"))
    # Each damage meets a function of its own; the others stay whole.
    assert len(functions) >= 2 * len(DAMAGES)
    damages = {microkernels: "header", **dict(zip(functions[::2], DAMAGES, strict=False))}
    for file, how in damages.items():
        file.write_bytes(damaged(file.read_bytes(), how))
    again = run(EPOCH, environment)
    assert again["loss"] == first["loss"]
    assert again["files"] == sorted(file.name for file in damages)
    assert len(again["objects"]) == 1 and again["compiled"]
    last = run(EPOCH, environment)
    assert last == {"loss": first["loss"], "compiled": [], "objects": [], "files": []}


NOTHING_KEPT = FORWARD.replace(
    "import ctypes\n",
    """import ctypes
from fastmlp_kernels import compile as compiler
def nowhere(*arguments):
    raise RuntimeError("cannot cache function: no locator available")
compiler.StampedCache = nowhere
from fastmlp_kernels.cpu import caller_arrays, tables
table, X = np.zeros(1, tables.STEP), np.ones(3, np.float32)
assert caller_arrays.point_at(table.ctypes.data, tables.at.X, id(X), 3, -4)
""",
)


def test_where_nothing_can_be_kept_everything_is_compiled(tmp_path, child_environment):
    """A kernel that Python calls, a leaf and microkernels: there are no other doors."""
    environment = {**child_environment, "NUMBA_CACHE_DIR": str(tmp_path)}
    for _ in range(2):
        found = run(NOTHING_KEPT, environment)
        assert found["values"] == [0.0, 6.0] and found["files"] == []
        assert {"point_at"} < set(found["compiled"]) and len(found["objects"]) == 1


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


def test_the_kernels_that_python_calls_are_cached():
    """And they close over nothing: a dispatcher in a closure hashes anew in each process."""
    kernels = cached_kernels()
    assert set(kernels) == {
        ("fused", "run"),
        ("caller_arrays", "point_at"),
        ("caller_arrays", "point_at_data"),
        ("members", "train_in_turns"),
        ("prediction", "predict"),
        ("handle_calls", "enter"),
    }
    for key, dispatcher in kernels.items():
        assert not dispatcher.py_func.__closure__, key


def test_every_leaf_is_cached_under_a_name_of_its_own(leaves):
    """Its key in the cache holds no closure, so the name must say it all."""
    names = [leaf._cache.base for leaf in leaves]
    assert all(isinstance(leaf._cache, compiler.StampedCache) for leaf in leaves)
    assert all(leaf.compiled for leaf in leaves)
    assert len(set(names)) == len(names)
    rows = len(ACTIVATIONS.names) + len(OPTIMIZERS.names)
    assert len(names) >= 2 * (2 * rows + len(EVERY_RULE))
    for name in names:
        assert name.endswith(DTYPES), name


def has_the_flags(options):
    """Without nnan and ninf, which hide a NaN, and reassoc, which makes results depend on tiles."""
    return (
        options["error_model"] == "numpy"
        and options["nogil"]
        and set(options["fastmath"]) <= {"contract"}
        and not options.get("parallel")
    )


def test_every_kernel_has_the_flags_of_one_file(leaves):
    found = dispatchers()
    assert len(found) >= 15 and len(leaves) > 100
    for key, dispatcher in found.items():
        assert has_the_flags(dispatcher.targetoptions), key
    for leaf in leaves:
        assert has_the_flags(leaf.options), leaf.function
    for path in KERNELS_FOLDER.rglob("*.py"):
        if path.name != "compile.py":
            text = path.read_text()
            for word in ("njit(", "@njit", "cuda.jit", "cfunc("):
                assert word not in text, path


# Twins share names and meaning, not parameters: on the CPU a kernel works on a block of rows or on
# a unit of weights that the program's tables describe, and rows of the algebra are leaves, so that
# some of these functions make a leaf. Whether everything is finite is seen by the leaves there, and
# `update` itself sums squares. On CUDA the loss sums itself, and an update collects the next rows.
TWINS = {
    "activation": ["activation_forward", "activation_backward"],
    "linear": ["linear_forward", "linear_backward", "weight_gradient"],
    "loss": ["loss_and_gradient", "predict_rows"],
    "update": ["update"],
    "clipping": ["clip_by_norm"],
    "dropout": ["dropout"],
    "gather": ["gather_rows"],
}
# What surrounds a product of cuBLASLt, which the tiles of both sides have in themselves, and the
# roundings of its factors.
ON_CUDA_ONLY = {
    "bias_and_activation",
    "check_finite",
    "round_rows",
    "slope_and_sums",
    "sum_squares",
    "update_and_gather",
}


def public_functions(module):
    """Return what a module itself defines, compiled, cached or plain, by name."""
    found = {}
    for name, value in vars(module).items():
        function = inspect.unwrap(getattr(value, "py_func", value))
        own = getattr(function, "__module__", None) == module.__name__
        if own and not name.startswith("_") and isinstance(function, types.FunctionType):
            found[name] = function
    return found


@pytest.mark.parametrize("module", TWINS)
def test_cpu_kernels_are_the_named_ones(module):
    functions = public_functions(importlib.import_module(f"fastmlp_kernels.cpu.{module}"))
    assert set(TWINS[module]) <= set(functions)


def defined_in(path):
    """Return the functions of a file, wherever in it: the CUDA twins are made by factories."""
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("module", TWINS)
def test_twins_have_the_same_names_in_the_same_modules(module):
    folder = KERNELS_FOLDER / "fastmlp_kernels"
    assert set(TWINS[module]) <= defined_in(folder / "cpu" / f"{module}.py")
    assert set(TWINS[module]) <= defined_in(folder / "cuda" / "layered" / f"{module}.py")


def test_nothing_on_cuda_lacks_a_twin_but_what_is_listed():
    from fastmlp_kernels.cuda.layered.launching import Kernels

    assert (
        set(Kernels._fields) == {name for names in TWINS.values() for name in names} | ON_CUDA_ONLY
    )


def test_programs_have_the_methods_of_the_contract():
    from fastmlp_kernels.problem import Program
    from fastmlp_kernels.reference import ReferenceProgram

    wanted = {
        name: list(inspect.signature(value).parameters)
        for name, value in vars(Program).items()
        if inspect.isfunction(value) and not name.startswith("_")
    }
    assert len(wanted) >= 9
    for kind in (FusedProgram, ReferenceProgram):
        for name, parameters in wanted.items():
            assert list(inspect.signature(getattr(kind, name)).parameters) == parameters, (
                kind,
                name,
            )


ADDED_ROW = """
import json, sys
import numpy as np
from fastmlp_kernels.algebra import ACTIVATIONS, OPTIMIZERS, Activation
from fastmlp_kernels.algebra.activations import REAL
from fastmlp_kernels.algebra.constants import HALF, ONE

# Only so that it compiles sooner: the rows that are not used are left out.
ACTIVATIONS.rows = ACTIVATIONS.rows[:2]
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
    from fastmlp_kernels.cpu.program import FusedProgram as Program
else:
    from fastmlp_kernels.cuda.layered.program import LayeredProgram as Program
program = Program(problem)
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
from numba.core.runtime import _nrt_python, rtsys
from fastmlp_kernels.cpu.program import FusedProgram
from fastmlp_kernels.problem import Problem
from tests.machines import team
from tests.samples import sample
# Not by NUMBA_NRT_STATS: as with any other setting, all would be compiled anew.
_nrt_python.memsys_enable_stats()
counts = {}
for rule, names, loss, threads in (("sgd", ("relu", "identity"), "half_squared_error", 1),
                                   ("adam", ("gelu", "identity"), "softmax_cross_entropy", 3)):
    for batches in (1, 2, 100):
        problem = Problem((7, 9, 3), names, loss, rule, batch_size=4, rows=4 * batches)
        data = sample(problem)
        program = FusedProgram(problem, team(threads))
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
    found = run(ALLOCATIONS, child_environment)
    assert found.pop("planted") == 1
    assert len(found) == 6 and all(count == [0, 0] for count in found.values()), found
