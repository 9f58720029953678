"""What the suites are told, and what goes on record beside the times."""

from __future__ import annotations

import importlib.metadata
import math
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from benchmarks import cases, whole_fits
from benchmarks.prediction import predictions
from benchmarks.providers import BASELINES, named
from benchmarks.turns import Measurement, Settings, in_turns, variants_in_turns
from benchmarks.validation import Disagreement
from benchmarks.workers import CLOCK, PATIENCE, Failed, Missing, Pool
from fastmlp.device.machine import count_cores, detect
from fastmlp_kernels.problem import PRECISIONS

MOST_ROUNDS = 5
# Of epochs before anything is timed, whoever runs them: what long fits come to.
STEADY_SECONDS = 1.3
LEAST_SECONDS = 0.02
SMALL_CALLS = "16-64-1"
"""What single calls are measured on: a network whose arithmetic is about as short as a call."""

REPORTED: set[Any] = set()
"""Who has been asked for: a failure is reported in the first turn alone."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that `benchmarks.run` passes on."""
    group = parser.getgroup("fastmlp's benchmarks")
    names = ",".join(case.name for case in cases.CASES)
    # Not one thread per processor: what small networks gain from many threads is a loss.
    threads = ",".join(str(n) for n in (1, 2) if n <= count_cores())
    group.addoption("--cases", default=names, help="names, with commas between them")
    fits = ",".join(case.name for case in whole_fits.WHOLE_FITS)
    group.addoption("--fits", default=fits, help="names of whole fits, with commas between them")
    kinds = ",".join(cases.KINDS)
    group.addoption("--kinds", default=kinds, help="what variants differ in")
    group.addoption("--devices", default="cpu,cuda", help="cpu, cuda or both")
    group.addoption("--precisions", default="float32", help="what products may round to")
    group.addoption("--threads", default=threads, help="numbers of threads to try")
    group.addoption("--providers", default=",".join(BASELINES), help="names")
    group.addoption("--passes", default=7, type=int, help="how often each provider has its turn")
    group.addoption("--turn-seconds", default=0.2, type=float, help="length of a turn, about")
    group.addoption("--patience", default=PATIENCE, type=float, help="seconds for an answer")
    group.addoption("--steps", default=0, type=int, help="most steps of an epoch; 0: the case's")


def read_settings(config: pytest.Config) -> Settings:
    """Turn the options into values; an unknown name ends the run."""
    options = ("cases", "devices", "precisions", "threads", "providers")
    words = {
        name: [word for word in str(config.getoption(name)).split(",") if word] for name in options
    }
    try:
        chosen = shortened([cases.find(name) for name in words["cases"]], config)
        providers = named(words["providers"])
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error
    for option, names in {"devices": ("cpu", "cuda"), "precisions": PRECISIONS}.items():
        for word in words[option]:
            if word not in names:
                raise pytest.UsageError(f"{option}: got {word!r}, wanted {', '.join(names)}")
    return Settings(
        [replace(case, precision=word) for word in words["precisions"] for case in chosen],
        words["devices"],
        [int(word) for word in words["threads"]],
        providers,
        config.getoption("passes"),
        config.getoption("turn_seconds"),
    )


def shortened(chosen: list[cases.Case], config: pytest.Config) -> list[cases.Case]:
    """Return the cases with epochs of at most as many steps as were asked for."""
    most = config.getoption("steps")
    return [case.with_steps(min(case.steps, most or case.steps)) for case in chosen]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each test its measurements."""
    if "measurement" not in metafunc.fixturenames:
        return
    settings = read_settings(metafunc.config)
    suite = metafunc.module.__name__.rpartition("test_")[2]
    if suite == "variants":
        found = variants_in_turns(settings, read_variants(metafunc.config, settings))
    else:
        if suite == "overhead":
            # One batch on one thread. Fewer turns: in each fastmlp compiles everything once.
            few = [cases.find(SMALL_CALLS).with_steps(1)]
            turns = max(1, settings.passes // 3)
            settings = replace(settings, cases=few, threads=[1], passes=turns)
        elif suite in cases.APART:
            names = [case.name for case in settings.cases]
            apart = [case for case in cases.APART[suite] if case.name in names]
            settings = replace(settings, cases=shortened(apart, metafunc.config))
        elif suite == "prediction":
            names = [case.name for case in settings.cases]
            settings = replace(settings, cases=predictions(names))
        elif suite == "fits":
            settings = replace(settings, cases=read_fits(metafunc.config))
        elif suite == "first_fits":
            turns = max(1, settings.passes // 3)
            first = [whole_fits.find(whole_fits.FIRST)]
            settings = replace(settings, cases=first, passes=turns)
        found = in_turns(settings, suite)
    metafunc.parametrize("measurement", found, ids=[item.label for item in found])


def read_variants(config: pytest.Config, settings: Settings) -> list[cases.Variants]:
    """Return the variants of the chosen cases, with epochs as long as theirs."""
    kinds = config.getoption("kinds").split(",")
    steps = {case.name: case.steps for case in settings.cases}
    return [
        replace(
            row,
            plain=row.plain.with_steps(steps[row.plain.name]),
            others=tuple(case.with_steps(steps[case.name]) for case in row.others),
        )
        for row in cases.VARIANTS
        if row.kind in kinds and row.plain.name in steps
    ]


def read_fits(config: pytest.Config) -> list[whole_fits.WholeFit]:
    """Return the chosen fits; an unknown name ends the run."""
    try:
        return [whole_fits.find(name) for name in config.getoption("fits").split(",") if name]
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error


@pytest.fixture(scope="session")
def cache_folder() -> Iterator[str]:
    """Return a folder for the disk caches of compilers that nobody has written to."""
    folder = tempfile.mkdtemp()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def settings(request: pytest.FixtureRequest) -> Settings:
    """What the command line asks for."""
    return read_settings(request.config)


@pytest.fixture(scope="session")
def pool(request: pytest.FixtureRequest) -> Iterator[Pool]:
    """Return the workers of the case that is being measured."""
    config = request.config
    steady = STEADY_SECONDS if read_settings(config).seconds > 0 else 0.0
    workers = Pool(config.getoption("patience"), steady)
    config.refusals = workers.refusals
    yield workers
    workers.close()


@pytest.fixture
def turn(benchmark: Any, measurement: Measurement) -> Callable[..., None]:
    """Return what times a callable that advances the clock, and describes it."""

    def take(name: str, target: Callable[[], None], rounds: int, **more: Any) -> None:
        case, entry = measurement.case, measurement.entry
        provider = BASELINES[entry.provider]
        benchmark.group = f"{name}: {case.title}, {entry.device}"
        benchmark.extra_info.update(
            suite=name,
            case=case.title,
            sizes=list(case.sizes),
            shape=[case.batch, case.sizes[0]],
            batch=case.batch,
            reason=case.reason,
            cases=case.group,
            dtype=case.dtype,
            precision=case.precision,
            provider=entry.provider,
            role=provider.role,
            version=version(provider.packages[0]),
            device=entry.device,
            threads=entry.threads,
            jobs=entry.jobs,
            kernel=entry.kernel,
            chosen=entry.chosen,
            goal=measurement.goal,
            against=measurement.against.title if measurement.against else "",
            turn=measurement.number,
            per=1,
            flops=0.0,
        )
        benchmark.extra_info.update(more)
        take_rounds(benchmark, target, rounds)

    return take


def take_rounds(benchmark: Any, target: Callable[[], None], rounds: int) -> None:
    """Time the rounds of a turn; one that is cut short is not saved with the others."""
    try:
        benchmark.pedantic(target, rounds=rounds, warmup_rounds=1 if rounds > 1 else 0)
    except BaseException:
        # pytest-benchmark does so itself, but not for Ctrl-C: without rounds it could save nothing.
        benchmark.has_error = True
        raise


@pytest.fixture
def ask(prepared: Any, measurement: Measurement) -> Callable[..., None]:
    """Return what asks the worker for seconds and advances the clock."""
    worker, _ = prepared

    def advance(*request: Any) -> None:
        CLOCK.advance(worker.ask(*request, of=(measurement.case, measurement.entry)))

    return advance


@pytest.fixture
def prepared(pool: Pool, measurement: Measurement) -> tuple[Any, dict[str, Any]]:
    """Return the validated worker; skip what is missing, fail what disagrees, each once."""
    known = (measurement.case, measurement.entry) in REPORTED
    REPORTED.add((measurement.case, measurement.entry))
    try:
        return pool.worker(measurement)
    except Missing as error:
        pytest.skip(str(error))
    except (Disagreement, Failed) as error:
        if known:
            pytest.skip("failed in its first turn")
        pytest.fail(str(error), pytrace=False)


@pytest.fixture
def epochs(
    measurement: Measurement, prepared: Any, pool: Pool, turn: Any, settings: Settings
) -> Callable[[str], None]:
    """Return what times whole epochs under the name of a suite."""
    _, about = prepared
    count = epochs_of(about["seconds"])
    competitor = measurement.case, measurement.entry
    if measurement.number and pool.is_far_behind(competitor):
        pytest.skip("far behind: one turn says enough")

    def take(name: str) -> None:
        turn(
            name,
            lambda: CLOCK.advance(pool.epoch(competitor, count)),
            rounds_of(settings, count * about["seconds"]),
            **{word: value for word, value in about.items() if word != "seconds"},
        )

    return take


def epochs_of(seconds: float) -> int:
    """Return how many epochs one timing covers, one after the other as in any training.

    Before each timing the processors have idled: what it takes to have them all at work again would
    be a fifth of an epoch of a millisecond.
    """
    return max(1, math.ceil(LEAST_SECONDS / max(seconds, 1e-9)))


def rounds_of(settings: Settings, seconds: float) -> int:
    """Return how many rounds fit into a turn."""
    return max(1, min(MOST_ROUNDS, int(settings.seconds / max(seconds, 1e-9))))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish() -> Iterator[None]:
    """Save what was measured, whoever presses Ctrl-C now."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return (yield)
    finally:
        signal.signal(signal.SIGINT, before)


def version(package: str) -> str:
    """Return the installed version of a distribution, or an empty string."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """Record what the figures depend on, and drop the machine's name, which they do not."""
    packages = {package for provider in BASELINES.values() for package in provider.packages}
    machine_info.pop("node", None)
    machine_info["processors"] = count_cores()
    machine_info["gpu"] = detect().gpu
    machine_info["versions"] = {name: version(name) for name in sorted(packages) if version(name)}


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict) -> None:
    """Record who could not run, who was refused, and why."""
    found = set()
    for (case, entry), error in getattr(config, "refusals", {}).items():
        # What is missing is missing for every case; a failure is one case's.
        reason = str(error) if isinstance(error, Missing) else f"{case.name}: {error}"
        found.add((type(error).__name__.lower(), entry.provider, entry.device, reason))
    names = ("kind", "provider", "device", "reason")
    output_json["refusals"] = [dict(zip(names, row, strict=True)) for row in sorted(found)]
