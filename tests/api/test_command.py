"""The command ``fastmlp``: compiling ahead, and measured constants that `detect` finds again."""

import inspect
import json
import logging
import math
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import fastmlp
from fastmlp import MLP, DTypeError, UnknownNameError, __main__
from fastmlp.device import machine, machine_file
from fastmlp.device.machine import detect, sharing
from fastmlp.device.machine_file import (
    CONSTANTS,
    configuration_file,
    store_constants,
    stored_constants,
)
from fastmlp.dispatch import calibration, warming
from fastmlp.dispatch.calibration import LEAST_SECONDS, Calibration, EpochTimer, calibrate
from fastmlp_kernels import cpu
from fastmlp_kernels.algebra import ACTIVATIONS, OPTIMIZERS, loss_rules
from fastmlp_kernels.problem import BATCHES, REDUCTIONS, Machine, Problem, Program
from tests import ROOT

TRUE = {
    "cpu_flops": 3.7e10,
    "cpu_bytes": 1.3e10,
    "cpu_step_seconds": 2.5e-6,
    "cpu_barrier_seconds": 4e-7,
    "cpu_thread_seconds": 6e-5,
}


def forget():
    machine_file._stored.cache_clear()
    detect.cache_clear()


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Point the configuration folder to an empty one."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "configuration"))
    forget()
    yield tmp_path / "configuration" / "fastmlp" / "machine.json"
    # The environment is given back after this: nothing of it may be remembered.
    forget()


def modelled(machine):
    return lambda problem, threads: cpu.epoch_seconds(problem, machine, threads)


def test_calibration_recovers_the_constants_of_a_machine_that_follows_the_model():
    result = calibrate(Machine(cores=2), modelled(Machine(cores=2, **TRUE)))
    assert result.constants == pytest.approx(TRUE, rel=1e-6)
    assert result.raised == ()


def test_calibration_says_nothing_of_threads_on_one_core():
    result = calibrate(Machine(cores=1), modelled(Machine(cores=1, **TRUE)))
    alone = ("cpu_flops", "cpu_bytes", "cpu_step_seconds")
    assert result.constants == pytest.approx({name: TRUE[name] for name in alone}, rel=1e-6)


def test_constants_that_noise_makes_negative_are_raised_and_named():
    model = modelled(Machine(cores=2, **TRUE))

    def impossible(problem, threads):
        if threads == 1:
            return model(problem, threads)
        # A team that is faster than its shares of the work, and starts before it is asked.
        return 1e-12 if problem.batches == 1 else 0.1 * model(problem, 1)

    result = calibrate(Machine(cores=2), impossible)
    assert set(result.raised) == {"cpu_barrier_seconds", "cpu_thread_seconds"}
    for name in result.raised:
        assert result.constants[name] == LEAST_SECONDS[name] > 0
    fast = calibrate(Machine(cores=1), lambda problem, threads: 1e-30)
    assert set(fast.raised) == set(fast.constants)
    assert all(value > 0 and math.isfinite(value) for value in fast.constants.values())


def test_epochs_are_timed_on_the_threads_that_are_asked_for(monkeypatch):
    problem = Problem((8, 16, 1), ("relu", "identity"), "half_squared_error", rows=320)
    built = []

    def plan(problem, device, kernel, machine):
        built.append((device, cpu.best_threads(problem, machine)))
        return SimpleNamespace(kernel=cpu.KERNELS[0])

    monkeypatch.setattr(calibration, "plan", plan)
    timer = EpochTimer(Machine(cores=2, cpu_thread_seconds=1e9))
    assert 0 < timer(problem, 1) < 60 and timer(problem, 2) > 0
    assert built == [("cpu", 1), ("cpu", 2)]


@pytest.mark.parametrize(("threads", "got"), [(1, 0.5), (2, 0.75), (2, 1.0)])
def test_a_timer_notices_that_others_use_the_processors(monkeypatch, threads, got):
    """Each epoch takes a second on the clock, in which the process gets a share of its threads."""
    problem = Problem((8, 16, 1), ("relu", "identity"), "half_squared_error", rows=320)
    clock = SimpleNamespace(wall=0.0)

    class Program:
        def prepare(self, *arrays):
            pass

        def epoch(self, *arrays):
            clock.wall += 1.0
            arrays[-1][BATCHES] = problem.batches

    kernel = SimpleNamespace(build=lambda problem, machine: Program())
    monkeypatch.setattr(calibration, "plan", lambda *given: SimpleNamespace(kernel=kernel))
    monkeypatch.setattr(calibration.time, "perf_counter", lambda: clock.wall)
    monkeypatch.setattr(calibration.time, "process_time", lambda: got * threads * clock.wall)
    timer = EpochTimer(Machine(cores=2))
    assert timer(problem, threads) == 1.0 and timer.share == pytest.approx(got)
    assert Calibration({}, (), timer.share).disturbed == (got < 0.9)
    # An epoch of one batch starts its thread: that is not somebody else's doing.
    single = EpochTimer(Machine(cores=2))
    problem = replace(problem, batch_size=320)
    assert single(problem, 2) == 1.0 and single.share == 1.0


def test_constants_of_a_machine_that_is_busy_are_not_stored(home, monkeypatch, capsys):
    monkeypatch.setattr(__main__, "warmup", lambda dtype: 0.0)
    monkeypatch.setattr(__main__, "PAUSE_SECONDS", 0.0)
    shares = iter([0.5, 0.6, 0.55, 0.5, 0.95])
    monkeypatch.setattr(__main__, "calibrate", lambda machine: Calibration(TRUE, (), next(shares)))
    assert __main__.main(["calibrate"]) == 1
    shown = capsys.readouterr().err
    assert "nothing was stored: other programs took 45% of the processors" in shown
    assert shown.count("measuring again") == 2 and not home.exists()
    # The next measurement but one is undisturbed.
    assert __main__.main(["calibrate"]) == 0
    assert "measuring again" in capsys.readouterr().err and stored_constants() == TRUE


def test_a_machine_where_teams_cost_nothing_shares_everything():
    tiny = Problem((1, 1), ("identity",), "half_squared_error", rows=1, batch_size=1)
    machine = Machine(cores=4, cpu_thread_seconds=1.0)
    assert cpu.best_threads(tiny, machine) == 1
    for threads in (1, 2, 3, 8):
        assert cpu.best_threads(tiny, sharing(machine, threads)) == threads


def test_stored_constants_are_found_by_detect(home):
    before = detect()
    assert not stored_constants()
    assert store_constants(TRUE) == home
    detect.cache_clear()
    assert detect() == replace(before, **TRUE)
    assert [path.name for path in home.parent.iterdir()] == ["machine.json"]


def test_explain_says_where_the_constants_come_from(home):
    model = MLP([4, 3, 1])
    assert "constants that are shipped" in str(fastmlp.explain(model))
    assert "python -m fastmlp calibrate" in str(fastmlp.explain(model))
    store_constants(TRUE)
    detect.cache_clear()
    text = str(fastmlp.explain(model))
    assert "measured on this machine" in text and "shipped" not in text


@pytest.mark.parametrize("part", ["processor", "cores", "fastmlp"])
def test_constants_of_another_machine_or_version_are_not_used(home, part, caplog):
    store_constants(TRUE)
    content = json.loads(home.read_text())
    content["stamp"][part] = "another"
    home.write_text(json.dumps(content))
    forget()
    with caplog.at_level(logging.INFO, "fastmlp"):
        assert detect().cpu_flops == Machine().cpu_flops
    assert "another" in caplog.text and not [r for r in caplog.records if r.levelname != "INFO"]


DAMAGED = {
    "empty": "",
    "no JSON": "cpu_flops = 3",
    "a list": "[1, 2]",
    "a number": "3",
    "no stamp": '{"constants": {}}',
    "no constants": '{"stamp": {}}',
    "a list of constants": '{"stamp": {}, "constants": [1]}',
    "null": '{"stamp": {}, "constants": null}',
}
BAD_VALUES = [-1.0, 0, "fast", None, True, math.nan, math.inf]


def assert_warned_once(caplog, path):
    with caplog.at_level(logging.WARNING, "fastmlp"):
        machine = detect()
        detect.cache_clear()
        assert detect() == machine
    assert [getattr(machine, name) for name in CONSTANTS] == [
        getattr(Machine(), name) for name in CONSTANTS
    ]
    (record,) = caplog.records
    assert str(path) in record.message and "got a" in record.message
    assert "shipped constants" in record.message


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_warned_of_once_and_not_used(home, damage, caplog):
    home.parent.mkdir(parents=True)
    home.write_text(DAMAGED[damage])
    assert_warned_once(caplog, home)


@pytest.mark.parametrize("value", BAD_VALUES, ids=repr)
def test_a_bad_constant_is_warned_of_and_none_is_used(home, value, caplog):
    store_constants(TRUE)
    content = json.loads(home.read_text())
    content["constants"]["cpu_bytes"] = value
    home.write_text(json.dumps(content))
    forget()
    assert_warned_once(caplog, home)


def test_a_file_that_is_no_text_or_no_file_is_warned_of(home, caplog):
    home.parent.mkdir(parents=True)
    home.write_bytes(b"\xff\xfe\x00")
    assert_warned_once(caplog, home)
    caplog.clear()
    home.unlink()
    home.mkdir()
    forget()
    assert_warned_once(caplog, home)


def test_the_file_lies_where_the_platform_keeps_settings(monkeypatch, tmp_path):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    tail = Path("fastmlp") / "machine.json"
    for platform, name, inside in (
        ("linux", "XDG_CONFIG_HOME", ".config"),
        ("win32", "APPDATA", "AppData/Roaming"),
    ):
        monkeypatch.setattr(sys, "platform", platform)
        monkeypatch.setenv(name, str(tmp_path / "given"))
        assert configuration_file() == tmp_path / "given" / tail
        # The XDG convention ignores a relative path.
        for absent in ("relative/path", ""):
            monkeypatch.setenv(name, absent)
            assert configuration_file() == tmp_path / inside / tail
        monkeypatch.delenv(name)
        assert configuration_file() == tmp_path / inside / tail
    monkeypatch.setattr(sys, "platform", "darwin")
    assert configuration_file() == tmp_path / "Library" / "Application Support" / tail


def test_a_user_without_a_home_has_the_shipped_constants(monkeypatch, caplog):
    def no_home():
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setenv("XDG_CONFIG_HOME", "")
    monkeypatch.setenv("APPDATA", "")
    machine_file._stored.cache_clear()
    assert stored_constants() == {}
    machine_file._stored.cache_clear()
    assert not caplog.records


def test_calibrate_stores_and_shows_what_it_measured(home, monkeypatch, capsys):
    monkeypatch.setattr(__main__, "warmup", lambda dtype: 0.0)
    found = {name: TRUE[name] for name in CONSTANTS[:-1]}
    result = Calibration(found, ("cpu_step_seconds",))
    monkeypatch.setattr(__main__, "calibrate", lambda machine: result)
    assert __main__.main(["calibrate"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "" and str(home) in shown.err
    assert "cpu_flops               3.7e+10\n" in shown.err
    assert "cpu_step_seconds        2.5e-06  the limit" in shown.err
    assert "not measured" in shown.err
    assert stored_constants() == found
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
    assert __main__.main(["calibrate"]) == 1
    assert "could not be stored" in capsys.readouterr().err


def test_warmup_covers_the_tables():
    covered = list(warming.problems("float64"))
    assert {problem.activations[0] for problem in covered} == set(ACTIVATIONS.names)
    assert {problem.rule for problem in covered} == {rule.name for rule in loss_rules()}
    assert {problem.optimizer for problem in covered} == set(OPTIMIZERS.names)
    assert {problem.reduction for problem in covered} == set(REDUCTIONS)
    assert {problem.dtype for problem in covered} == {"float64"}
    # The last batch is smaller: that may be other code.
    assert all(problem.rows % problem.batch_size for problem in covered)


def test_warmup_calls_every_method_of_a_program():
    problem = next(warming.problems("float32"))
    program = cpu.KERNELS[0].build(problem, Machine())
    called = set()

    class Watched:
        def __getattr__(self, name):
            called.add(name)
            return getattr(program, name)

    warming.exercise(Watched(), problem)
    methods = {name for name, _ in inspect.getmembers(Program, inspect.isfunction)}
    wanted = {name for name in methods if not name.startswith("_")} - {"to_host"}
    assert len(wanted) > 7 and called == wanted


def test_warmup_refuses_an_unknown_dtype():
    with pytest.raises(UnknownNameError, match="dtypes: got 'float16'.* did you mean 'float"):
        fastmlp.warmup("float16")
    with pytest.raises(UnknownNameError, match="dtypes: got 'half'"):
        fastmlp.warmup(["float32", "half"])
    with pytest.raises(DTypeError, match="dtypes: got 3, wanted 'float32', 'float64' or a list"):
        fastmlp.warmup(3)


AFTER_WARMUP = """
import sys
from fastmlp.__main__ import main
assert main(["warmup", "--dtype", "float32"]) == 0

from dataclasses import replace
import numpy as np
from numba.core.ccallback import CFunc
from numba.core.dispatcher import Dispatcher
import fastmlp
from fastmlp import ACTIVATIONS, LOSSES, MLP, SGD
from fastmlp.optimizers import by_name

def refuse(self, *signature):
    raise AssertionError(f"compiles {self} for {signature}")

Dispatcher.compile = CFunc.compile = refuse
X = np.random.default_rng(0).random((33, 7)).astype("float32")
y = X[:, :3] / X[:, :3].sum(axis=1, keepdims=True)
optimizers = [SGD(momentum=0.5), *by_name().values()]
optimizers = [replace(optimizer, learning_rate=1e-4) for optimizer in optimizers]
for index, activation in enumerate(ACTIVATIONS.names):
    for loss in LOSSES:
        output = next(row.name for row in ACTIVATIONS if not loss.refusal(row))
        model = MLP([7, 20, 3 * loss.outputs_per_target], [activation, output], loss)
        optimizer = optimizers[index % len(optimizers)]
        for targets in (y, y.argmax(axis=1))[: 2 if loss.label_rule else 1]:
            model.fit(X, targets, epochs=1, batch_size=8, optimizer=optimizer)
            model.step(X, targets, optimizer)
            model.value_and_grad(X, targets)
            model.evaluate(X, targets)
            model.forward(X)
            model.compute_loss(targets)
            model.backward()
            model.apply(optimizer)
        model.predict(X[:1])
fastmlp.Ensemble([7, 20, 3], 2).fit(X, y, epochs=1, optimizer=SGD(1e-4))
try:
    MLP([7, 3], dtype="float64").predict(X)
except AssertionError:
    print("and would have been seen")
"""


def test_nothing_is_compiled_after_warmup(child_python, child_environment):
    done = subprocess.run(
        [child_python, "-c", AFTER_WARMUP],
        capture_output=True,
        text=True,
        env=child_environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split("\n")[0] == "and would have been seen"
    assert "float32: compiled or loaded in" in done.stderr


@pytest.mark.parametrize("arguments", [[], ["compile"], ["warmup", "--dtype", "float16"]])
def test_a_wrong_command_line_is_explained(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        __main__.main(arguments)
    assert caught.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == "" and "usage: fastmlp" in shown.err


def test_the_command_is_installed_and_of_the_version_of_the_package():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    module, function = config["project"]["scripts"]["fastmlp"].split(":")
    assert module == "fastmlp.__main__" and callable(getattr(__main__, function))
    source = config["tool"]["hatch"]["version"]
    stated = re.search(source["pattern"], (ROOT / source["path"]).read_text())
    assert stated and stated["version"] == fastmlp.__version__
    assert machine_file.stamp()["fastmlp"] == fastmlp.__version__


def test_the_constants_of_a_gpu_hold_for_a_gpu_of_that_name(home, monkeypatch):
    measured = dict.fromkeys(machine_file.GPU_CONSTANTS, 5.0)
    store_constants({"cpu_flops": 3e11}, "A GPU", measured)
    store_constants({"cpu_flops": 4e11}, "Another", {"gpu_bytes": 7.0})
    forget()
    monkeypatch.setattr(machine, "find_gpu", lambda: {"cuda_missing": None, "gpu": "A GPU"})
    found = detect()
    assert found.cpu_flops == 4e11
    assert {name: getattr(found, name) for name in measured} == measured
    assert "has measured on this machine" in str(fastmlp.explain(MLP([2, 3, 1])))
    forget()
    monkeypatch.setattr(machine, "find_gpu", lambda: {"cuda_missing": None, "gpu": "A third"})
    assert detect().gpu_bytes == Machine().gpu_bytes
    assert "measures this machine's" in str(fastmlp.explain(MLP([2, 3, 1])))
    forget()


def test_what_is_no_constant_of_a_gpu_is_refused(home):
    with pytest.raises(ValueError, match="unknown constant 'cpu_flops'"):
        store_constants({"cpu_flops": 3e11}, "A GPU", {"cpu_flops": 5.0})
