#!/usr/bin/env python3
"""Set up and run fastmlp's demo, tests, benchmarks and checks. Needs Python and nothing else.

    python3 dev.py demo    train on real data and print a table
    python3 dev.py test    run the tests; further arguments go to pytest (test -k sheet)
    python3 dev.py bench   compare with PyTorch, JAX and scikit-learn
    python3 dev.py gpu     check and measure everything that needs an NVIDIA GPU (see docs/gpu.md)
    python3 dev.py lint    ruff, mypy and import-linter
    python3 dev.py write   write anew what follows from the code: tables of pages, messages.txt
    python3 dev.py docs    build the site into build/site, and check its links and its pages
    python3 dev.py oldest  the tests of fastmlp.sklearn beside the oldest scikit-learn and Numba
    python3 dev.py setup   install everything the commands above need, and nothing more

Options:
    --here    use this Python, install nothing (a machine that has everything, or no network)
    --peers   with test: also install PyTorch and JAX, so that the comparisons with them run

The first run makes .venv (`oldest`: .venv-oldest) and installs into it; a later one starts at once,
until pyproject.toml changes. A command that some optional package is missing for says so in one
line and goes on; `setup` tries those packages again.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

OLDEST_PYTHON = (3, 11)
ROOT = Path(__file__).resolve().parent
LINT_IMPORTS = "from importlinter.cli import lint_imports_command as main; main()"


@dataclass(frozen=True)
class Command:
    """What a command needs installed, where, and the Python invocations it is."""

    steps: tuple[tuple[str, ...], ...]
    groups: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    environment: Path = ROOT / ".venv"

    @property
    def python(self) -> Path:
        """The Python inside the environment."""
        return self.environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def stamp(self) -> Path:
        """The file that says what the environment holds."""
        return self.environment / "fastmlp-installed.json"


# A process a processor, and one more: tests that wait for processes of their own left two of them
# idle for a sixth of the time. Whoever has nothing left takes over tests of another.
CAN_ASK = hasattr(os, "sched_getaffinity")
PROCESSORS = len(os.sched_getaffinity(0)) if CAN_ASK else os.cpu_count() or 1
TESTS = ("-m", "pytest", "-n", str(PROCESSORS + 1), "--dist", "worksteal")
# "demo" is an extra of the package; the others are dependency groups.
# A page that has not changed may show what has: each is read anew.
SITE = ("-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q", "-E", "-j", "auto", "-c", "docs")
COMMANDS = {
    "demo": Command((("-m", "benchmarks.demo"),), optional=("data", "demo")),
    "test": Command((TESTS,), ("test",), ("data", "cuda-compile")),
    "bench": Command((("-m", "benchmarks.run"),), ("test",), ("data", "peers")),
    "gpu": Command((("-m", "benchmarks.gpu"),), ("test",), ("cuda-compile", "peers")),
    "lint": Command(
        (
            ("-m", "ruff", "check", "."),
            ("-m", "ruff", "format", "--check", "."),
            ("-m", "mypy"),
            ("-c", LINT_IMPORTS),
        ),
        ("lint",),
    ),
    "write": Command(
        (("-m", "tests.house.test_messages"), ("-m", "tests.house.test_pages")), ("test",)
    ),
    "docs": Command(
        ((*SITE, ".", "build/site"), ("-m", "pytest", "-q", "tests/pages/site_cases.py")),
        ("test", "docs"),
        ("browser", "data"),
    ),
    "oldest": Command(
        ((*TESTS, "-m", "not any_version", "tests/scikit_learn"),),
        ("oldest",),
        environment=ROOT / ".venv-oldest",
    ),
    "setup": Command(
        (), ("test", "lint", "docs"), ("browser", "data", "demo", "cuda-compile", "peers")
    ),
}
# Only files inside these packages are read, so what they depend on stays out.
WITHOUT_DEPENDENCIES = {"data"}


class Failure(Exception):
    """A message for the user that ends the program."""


def pip_command(python: Path) -> list[str]:
    """Return how to call pip for an environment: its own, or this Python's with --python."""
    inner = [str(python), "-m", "pip"]
    if subprocess.run([*inner, "--version"], capture_output=True).returncode == 0:
        return inner
    outer = [sys.executable, "-m", "pip", "--python", str(python)]
    if subprocess.run([*outer, "--version"], capture_output=True).returncode == 0:
        return outer
    raise Failure(
        "This Python has neither ensurepip nor a pip of at least 22.3. Install one of them "
        "(on Debian: apt install python3-venv), or use --here to run with what is installed."
    )


def make_environment(command: Command) -> None:
    """Create an environment, with pip in it where this Python can do that."""
    if command.python.exists():
        return
    folder = command.environment
    print(f"dev.py: making {folder.name}", flush=True)
    try:
        import ensurepip  # noqa: F401  Debian ships a Python without it
    except ImportError:
        venv.create(folder, with_pip=False, symlinks=os.name != "nt", clear=True)
    else:
        venv.create(folder, with_pip=True, symlinks=os.name != "nt", clear=True)


def requirements(group: str) -> list[str]:
    """Return what pip installs for a dependency group or for the extra "demo"."""
    import tomllib  # not at the top: an old Python must reach the message that it is too old

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    groups = {"demo": project["project"]["optional-dependencies"]["demo"]}
    groups.update(project["dependency-groups"])
    return list(groups[group])


def install(command: Command, optional: tuple[str, ...], retry: bool) -> None:
    """Bring an environment to hold the package and its groups; skip what the stamp names."""
    content = (ROOT / "pyproject.toml").read_bytes()
    state = hashlib.sha256(content + str(ROOT).encode()).hexdigest()
    try:
        done = json.loads(command.stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        done = {}
    if done.get("state") != state or not command.python.exists():
        done = {"state": state, "installed": [], "skipped": []}
    make_environment(command)

    wanted = [group for group in ("package", *command.groups) if group not in done["installed"]]
    tried = [] if retry else done["skipped"]
    extra = [group for group in optional if group not in done["installed"] and group not in tried]
    pip = pip_command(command.python) if wanted or extra else []
    if wanted:
        names = [name for group in wanted if group != "package" for name in requirements(group)]
        package = ["--editable", str(ROOT)] if "package" in wanted else []
        if not pip_install(pip, wanted, [*package, *names]):
            raise Failure(
                f"pip could not install {', '.join(wanted)}: see its message above. "
                "Without a network, use --here."
            )
        done["installed"] += wanted
    for group in extra:
        flags = ["--no-deps"] if group in WITHOUT_DEPENDENCIES else []
        if pip_install(pip, [group], [*flags, *requirements(group)], quiet=True):
            done["installed"].append(group)
            done["skipped"] = [name for name in done["skipped"] if name != group]
        elif group not in done["skipped"]:
            done["skipped"].append(group)
    command.stamp.write_text(json.dumps(done, indent=1), encoding="utf-8")
    for group in optional:
        if group in done["skipped"]:
            names = ", ".join(requirements(group))
            print(
                f"dev.py: skipped {group} ({names}): pip could not install it here. "
                "What needs it is skipped; `python3 dev.py setup` tries again."
            )


def pip_install(pip: list[str], groups: list[str], arguments: list[str], quiet=False) -> bool:
    """Run one pip install; return whether it succeeded. pip's words are shown when it failed."""
    print(f"dev.py: installing {', '.join(groups)}", flush=True)
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    command = [*pip, "install", "--quiet", *arguments]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if result.returncode and not quiet:
        print(result.stdout + result.stderr, file=sys.stderr)
    return result.returncode == 0


def run(command: Command, python: str, arguments: list[str], here: bool) -> int:
    """Run every step of the command, each whatever became of the one before."""
    environment = dict(os.environ)
    if here:
        paths = [str(ROOT), str(ROOT / "kernels"), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    codes = []
    for step in command.steps:
        # Only a command of one step takes further arguments: lint's tools share none.
        more = arguments if len(command.steps) == 1 else []
        sys.stdout.flush()
        codes.append(subprocess.run([python, *step, *more], cwd=ROOT, env=environment).returncode)
    if len(codes) > 1:
        for step, code in zip(command.steps, codes, strict=True):
            name = "import-linter" if step[0] == "-c" else " ".join(step[1:3])
            print(f"dev.py: {name:14} {'passed' if code == 0 else 'FAILED'}")
    return next((code for code in codes if code), 0)


def main(arguments: list[str]) -> int:
    """Read the command line, install what is needed and run."""
    if sys.version_info < OLDEST_PYTHON:
        wanted, got = (".".join(map(str, pair)) for pair in (OLDEST_PYTHON, sys.version_info[:2]))
        raise Failure(f"fastmlp needs Python {wanted} or newer; this is {got} ({sys.executable}).")
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(__doc__)
        return 0 if arguments else 2
    # The two options may stand before the command as well as after it.
    here, peers = "--here" in arguments, "--peers" in arguments
    words = [word for word in arguments if word not in ("--here", "--peers")]
    name, rest = (words[0], words[1:]) if words else ("", [])
    if name not in COMMANDS:
        raise Failure(f"Unknown command {name!r}; the commands are {', '.join(COMMANDS)}.")
    command = COMMANDS[name]
    if rest and len(command.steps) != 1:
        raise Failure(f"{name} takes no further arguments; got {' '.join(rest)}.")
    if here:
        return run(command, sys.executable, rest, here=True)
    optional = command.optional + (("peers",) if peers and "peers" not in command.optional else ())
    install(command, optional, retry=name == "setup")
    return run(command, str(command.python), rest, here=False)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Failure as failure:
        sys.exit(f"dev.py: {failure}")
    except KeyboardInterrupt:
        sys.exit(130)
