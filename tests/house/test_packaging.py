"""What is shipped: the wheel, used with nothing else of the repository in reach, and the sdist."""

import posixpath
import re
import subprocess
import sys
import tarfile
import zipfile

import pytest

from fastmlp.version import VERSION
from tests import ROOT

# Fenced or between backticks.
CODE = r"```.*?```|`[^`]*`"

USE = """
import sys
import fastmlp
assert fastmlp.__file__.startswith(sys.argv[1]), fastmlp.__file__
import fastmlp_kernels
assert fastmlp_kernels.__file__.startswith(sys.argv[1]), fastmlp_kernels.__file__
import numpy as np
X = np.random.default_rng(0).normal(size=(64, 3)).astype("float32")
y = (X @ np.array([[1.0], [-2.0], [0.5]], "float32")).astype("float32")
model = fastmlp.MLP([3, 8, 1], seed=0)
kernel = sys.argv[2] or None
history = model.fit(X, y, epochs=8, batch_size=16, optimizer=fastmlp.SGD(0.1), kernel=kernel)
assert history.loss[-1] < history.loss[0] / 2, history.loss
assert history.kernel == kernel or kernel is None and history.kernel.startswith("cpu."), history
print("trained")
"""


def build(target, folder):
    """Build a wheel or an sdist with hatchling; return its path."""
    pytest.importorskip("hatchling", reason="hatchling, the build backend, is not installed")
    plugin = "hatch_fancy_pypi_readme"
    pytest.importorskip(plugin, reason=f"{plugin}, which writes the README, is not installed")
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert built.returncode == 0, built.stderr
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """Return the text of every file of the sdist that is one, and None for the others."""
    found = {}
    with tarfile.open(build("sdist", tmp_path_factory.mktemp("sdist"))) as archive:
        for member in archive.getmembers():
            name = member.name.partition("/")[2]
            text = name.endswith((".md", ".py"))
            found[name] = archive.extractfile(member).read().decode() if text else None
    return found


def test_the_sdist_holds_what_its_own_commands_need(shipped):
    for folder in ("fastmlp", "kernels", "benchmarks", "tests"):
        expected = {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*.py")}
        assert expected and expected <= shipped.keys(), folder
    data = {"tests/house/messages.txt", "tests/cpu/bits.json"}
    assert {"dev.py", "LICENSE", *data} <= shipped.keys()
    made = {name for name in shipped if name.endswith((".pyc", ".nbi", ".nbc", ".json"))}
    assert made == {"tests/cpu/bits.json"}


def test_the_sdist_holds_every_file_of_the_repository(shipped):
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no checkout of git")
    tracked = {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}
    assert len(tracked) > 400 and tracked <= shipped.keys(), tracked - shipped.keys()


def test_every_link_of_a_shipped_page_leads_to_a_shipped_file(shipped):
    pages = {name: text for name, text in shipped.items() if name.endswith(".md")}
    links = [
        (page, posixpath.normpath(posixpath.join(posixpath.dirname(page), target)))
        for page, text in pages.items()
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", re.sub(CODE, "", text, flags=re.DOTALL))
        if "://" not in target
    ]
    assert len(links) > 10
    for page, target in links:
        inside = any(name == target or name.startswith(f"{target}/") for name in shipped)
        assert inside, f"{page} links to {target}"


def test_the_wheel_holds_the_two_packages_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"fastmlp", "fastmlp_kernels"}
    assert not [name for name in names if "test" in name or "benchmark" in name]
    assert not [name for name in names if name.endswith((".pyc", ".nbi", ".nbc"))]
    expected = {str(path.relative_to(ROOT)) for path in (ROOT / "fastmlp").rglob("*.py")}
    expected |= {
        str(path.relative_to(ROOT / "kernels"))
        for path in (ROOT / "kernels" / "fastmlp_kernels").rglob("*.py")
    }
    assert expected | {"fastmlp/py.typed", "fastmlp_kernels/py.typed"} <= set(names)


def test_the_wheel_states_its_dependencies(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        metadata = archive.read(name).decode()
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:")]
    names = {f"Provides-Extra: {name}" for name in ("sklearn", "save", "onnx", "all")}
    assert names <= set(metadata.splitlines())
    plain = {line.split()[1].split(">")[0] for line in required if "extra ==" not in line}
    assert plain == {"numba", "numpy", "llvmlite"}
    assert "License-File: LICENSE" in metadata


def test_the_version_is_stated_once(wheel):
    stated = re.compile(rf"(?<![\w.]){re.escape(VERSION)}(?![\w.])")
    text = [*ROOT.glob("*.toml"), *ROOT.glob("*.cff"), *(ROOT / "fastmlp").rglob("*.py")]
    assert [path.name for path in text if stated.search(path.read_text())] == ["version.py"]
    assert wheel.name.startswith(f"fastmlp-{VERSION}-")


def test_a_package_index_gets_links_that_lead_to_the_repository(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        metadata = archive.read(name).decode()
    readme = metadata.partition("\n\n")[2]
    links = re.findall(r"\]\(([^)]+)\)", re.sub(CODE, "", readme, flags=re.DOTALL))
    assert len(links) > 10 and all(link.startswith("https://") for link in links)
    (source,) = re.findall(r"^Project-URL: Source, (.+)$", metadata, re.MULTILINE)
    assert f"{source}/docs/guide.md" in links and f"{source}/docs/images/ratios.png" in links


# The reference needs no compiling; the compiled kernels do, anew, since nothing is cached there.
@pytest.mark.parametrize("kernel", ["reference", pytest.param("", marks=pytest.mark.slow)])
def test_the_wheel_trains_on_its_own(wheel, tmp_path, child_environment, kernel):
    target = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    work = tmp_path / "elsewhere"
    work.mkdir()
    environment = {**child_environment, "PYTHONPATH": str(target)}
    result = subprocess.run(
        [sys.executable, "-c", USE, str(target), kernel],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.split()[-1] == "trained"
