"""The house: layers, what may be imported where, sizes, and docstrings."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions

import pytest

from tests import ROOT

KERNELS = ROOT / "kernels" / "fastmlp_kernels"
LONGEST_FUNCTION = 80
LONGEST_FILE = 400
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("*.md"))
# A heading and ten lines.
MOST_DECISION_LINES = 11


def sources(*folders):
    """Return the Python files under folders of the repository."""
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert files
    return files


def functions(path):
    """Return every function of a file, nested ones included."""
    tree = ast.parse(path.read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def imported(path):
    """Return the top-level names that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def contract():
    """Return import-linter's contract of the layers."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    return next(c for c in settings["contracts"] if c["type"] == "layers")


def documented_layers():
    """Return the lines of ARCHITECTURE.md's list of layers."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    blocks = re.findall(r"^```layers\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 1
    return blocks[0].splitlines()


def test_the_documented_layers_are_the_enforced_ones():
    assert documented_layers() == contract()["layers"]


def test_every_module_has_a_layer():
    named = {name.strip() for line in documented_layers() for name in re.split(r"[|:]", line)}
    for path in sources("fastmlp"):
        # The modules of a package inside it are in its layer.
        name = path.relative_to(ROOT / "fastmlp").parts[0].removesuffix(".py")
        if name != "__init__":
            assert f"fastmlp.{name}" in named
    for path in KERNELS.iterdir():
        if path.suffix == ".py" and path.stem != "__init__" or (path / "__init__.py").exists():
            assert f"fastmlp_kernels.{path.stem}" in named


def test_every_layer_exists():
    for line in documented_layers():
        for name in re.split(r"[|:]", line):
            package, module = name.strip().split(".")
            base = ROOT / package if package == "fastmlp" else KERNELS
            assert (base / f"{module}.py").exists() or (base / module / "__init__.py").exists(), (
                name
            )


def trips():
    """Return the title, the stations (file, function) and the line of each documented trip."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    section = text.split("\n## Three trips\n")[1].split("\n## ")[0]
    found = []
    for trip in section.split("\n### ")[1:]:
        stations = re.findall(r"^\d+\. `([\w/]+\.py)`, `([\w.]+)`: ", trip, re.MULTILINE)
        assert len(stations) == len(re.findall(r"^\d+\. ", trip, re.MULTILINE)), trip
        (line,) = re.findall(r"^```py\n(.*?)\n```", trip, re.DOTALL | re.MULTILINE)
        found.append((trip.splitlines()[0], stations, line))
    return found


def source_of(file, name):
    """Return the source of a function, or of a class's method, of a file of the repository."""
    text = (ROOT / file).read_text()
    nodes = ast.parse(text).body
    for part in name.split("."):
        (node,) = [each for each in nodes if getattr(each, "name", None) == part]
        nodes = getattr(node, "body", [])
    return ast.get_source_segment(text, node)


def test_there_are_three_trips():
    assert len(trips()) == 3


@pytest.mark.parametrize(("title", "stations", "line"), trips(), ids=[trip[0] for trip in trips()])
def test_a_documented_trip_leads_to_its_line(title, stations, line):
    sources_on_the_way = [source_of(*station) for station in stations]
    assert len(sources_on_the_way) >= 3
    assert line in sources_on_the_way[-1], title


def test_arrows_point_down():
    pytest.importorskip("importlinter", reason="import-linter is not installed")
    # In a process of its own: its logging configuration disables every logger that exists.
    code = (
        "import sys; from importlinter.cli import lint_imports; "
        "sys.exit(lint_imports(no_cache=True, config_filename=sys.argv[1]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / "pyproject.toml")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_api_imports_no_compiler():
    for path in sources("fastmlp"):
        assert not imported(path) & {"numba", "llvmlite"}, path


def test_only_the_package_for_scikit_learn_imports_it():
    for path in sources("fastmlp", "kernels"):
        inside = (ROOT / "fastmlp" / "sklearn") in path.parents
        assert inside or not imported(path) & {"sklearn", "scipy", "joblib"}, path


def test_the_algebra_imports_only_math_numpy_and_the_standard_library():
    allowed = {"numpy", "fastmlp_kernels"} | set(sys.stdlib_module_names)
    for path in sources("kernels/fastmlp_kernels/algebra"):
        assert imported(path) <= allowed, path


def test_siblings_do_not_import_each_other():
    names = {"cpu", "cuda", "reference"}
    for own in sorted(names):
        files = [KERNELS / "reference.py"]
        if own != "reference":
            files = sources(f"kernels/fastmlp_kernels/{own}")
        for path in files:
            for other in names - {own}:
                found = re.search(rf"(from|import) fastmlp_kernels\.{other}\b", path.read_text())
                assert not found, path


def test_the_searches_of_this_file_find_what_they_search():
    assert "numba" in imported(KERNELS / "compile.py")
    assert "numpy" in imported(KERNELS / "problem.py")
    assert any(node.name == "linear_forward" for node in functions(KERNELS / "cpu" / "linear.py"))


def test_functions_and_files_are_short():
    for path in sources("fastmlp", "kernels", "benchmarks"):
        lines = path.read_text().count("\n")
        assert lines <= LONGEST_FILE, f"{path}: {lines} lines"
        for node in functions(path):
            length = node.end_lineno - node.lineno + 1
            assert length <= LONGEST_FUNCTION, f"{path}: {node.name} has {length} lines"


# scikit-learn documents that `verbose` prints there.
PRINTS = ROOT / "fastmlp" / "sklearn" / "stochastic.py"


def test_nothing_prints_to_standard_output():
    """A library logs; standard output belongs to the program that uses it."""
    for path in sources("fastmlp", "kernels"):
        if path == PRINTS:
            continue
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        for call in calls:
            if isinstance(call.func, ast.Name) and call.func.id == "print":
                goes_to = [ast.unparse(k.value) for k in call.keywords if k.arg == "file"]
                assert goes_to == ["sys.stderr"], f"{path}:{call.lineno}"


# What a training step is made of, on either side. On the CPU, whatever makes or copies numbers also
# looks for one that is not finite; on CUDA that may be a pass of its own. To save launches
# the loss sums itself there, and an update collects the next rows.
KERNEL_NAMES = {
    "activation_forward",
    "activation_backward",
    "linear_forward",
    "linear_backward",
    "weight_gradient",
    "loss_and_gradient",
    "predict_rows",
    "update",
    "gather_rows",
}
EXTRA_NAMES = {"cpu": {"sum_losses"}, "cuda": {"check_finite", "update_and_gather"}}
# Programs have methods of these names, which the contract documents, and the products of a layer in
# shared memory are parts of kernels, which `products` documents.
NO_KERNELS = {"__init__", "program", "single_calls", "layered", "block_linear", "tensor_linear"}


def device_of(path):
    """Return which of the twins a file holds."""
    return path.relative_to(KERNELS).parts[0]


def kernel_nodes():
    """Return (file, function) of every public kernel, CPU and CUDA."""
    found = []
    for path in sources("kernels/fastmlp_kernels/cpu", "kernels/fastmlp_kernels/cuda"):
        names = KERNEL_NAMES | EXTRA_NAMES[device_of(path)]
        if path.stem not in NO_KERNELS:
            found += [(path, node) for node in functions(path) if node.name in names]
    return found


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_kernel_is_there(device):
    found = [node.name for path, node in kernel_nodes() if device_of(path) == device]
    assert sorted(found) == sorted(KERNEL_NAMES | EXTRA_NAMES[device])


def arguments_of(node):
    """Return the names of a function's parameters."""
    return [argument.arg for argument in node.args.args]


@pytest.mark.parametrize(("path", "node"), kernel_nodes(), ids=lambda v: getattr(v, "name", None))
def test_every_kernel_documents_parameters_cost_and_source(path, node):
    text = ast.get_docstring(node)
    assert text, f"{path}: {node.name}"
    for heading in ("Parameters\n----------", "Notes\n-----", "Cost:", "Source:"):
        assert heading in text, f"{path}: {node.name} lacks {heading.splitlines()[0]}"
    section = text.split("Parameters\n----------")[1].split("\nNotes\n-----")[0]
    for argument in arguments_of(node):
        assert re.search(rf"\b{argument}\b", section), f"{path}: {node.name}: {argument}"
    # And nothing that is not there: an entry is "names : what they are", two of them with a ";".
    lines = re.findall(r"^\w.*$", section, re.MULTILINE)
    entries = [entry.split(" : ")[0] for line in lines for entry in line.split("; ")]
    documented = [name for entry in entries for name in entry.split(", ")]
    assert set(documented) == set(arguments_of(node)), f"{path}: {node.name}: {documented}"


def makes_a_leaf(node):
    """Return whether a function calls `compile.leaf`."""
    calls = [inner.func for inner in ast.walk(node) if isinstance(inner, ast.Call)]
    return any(isinstance(called, ast.Name) and called.id == "leaf" for called in calls)


LEAF_MAKERS = [(path, node) for path, node in kernel_nodes() if makes_a_leaf(node)]


def test_rows_of_the_algebra_become_leaves():
    assert {(device_of(path), node.name) for path, node in LEAF_MAKERS} == {
        ("cpu", "activation_forward"),
        ("cpu", "activation_backward"),
        ("cpu", "loss_and_gradient"),
        ("cpu", "predict_rows"),
        ("cpu", "sum_losses"),
        ("cpu", "update"),
    }


@pytest.mark.parametrize(("path", "node"), LEAF_MAKERS, ids=lambda v: getattr(v, "name", None))
def test_every_leaf_documents_its_own_parameters(path, node):
    """In the notes of the function that makes it: it is called by address, with words alone."""
    text = " ".join(ast.get_docstring(node).split())
    documented = re.search(r"The leaf is ``\w*\(([\w, ]+)\)", text)
    assert documented, f"{path}: {node.name}"
    for inner in node.body:
        if isinstance(inner, ast.FunctionDef):
            assert documented[1].split(", ") == arguments_of(inner), f"{path}: {inner.name}"


def test_public_things_have_docstrings():
    for path in sources("fastmlp", "kernels"):
        # A rule of the algebra is one formula under the module's explanation.
        if path.parent.name == "algebra":
            continue
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path
        for node in tree.body:
            kinds = (ast.FunctionDef, ast.ClassDef)
            if isinstance(node, kinds) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path}: {node.name}"


@pytest.mark.parametrize("path", DECISIONS, ids=lambda path: path.stem)
def test_a_decision_is_ten_short_lines(path):
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line]
    assert len(lines) <= MOST_DECISION_LINES and max(map(len, lines)) <= 120
    assert lines[0].startswith(f"# {path.stem[:4]}: ")
    starts = [line.split(".**")[0] for line in lines if line.startswith("**")]
    assert starts[:3] == ["**Context", "**Choice", "**Why"]


def test_no_abbreviated_or_vague_module_names():
    for path in sources("fastmlp", "kernels", "benchmarks"):
        assert not re.search(r"util|helper|misc|common|_gpu|_cpu", path.stem), path


def test_no_folder_of_tests_hides_a_package():
    """Python that runs inside `tests` would import the folder in the package's place."""
    packages = {*packages_distributions(), *(path.name for path in ROOT.iterdir())}
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/__init__.py")}
    assert len(folders) >= 8 and {"numpy", "benchmarks"} <= packages
    assert not folders & packages
