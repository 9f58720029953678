"""What a small call costs: the import, the first call, one batch and one row.

For fastmlp the calls are those of its users; its bare kernel stands beside one batch, so that what
`fit` and `step` add to it can be read off.
"""

import tempfile

import pytest

from benchmarks.workers import CLOCK, caches, fresh

CALLS = 50
ROWS = 200

# Of fastmlp, who is compared with the peers in which test; "also" stands beside them.
ROLES = {
    "one batch": {"fastmlp.step": "ours", "fastmlp.fit": "also", "fastmlp": "also"},
    "one row": {"fastmlp.step": "ours"},
    "import": {"fastmlp.fit": "ours"},
    "first call": {"fastmlp.fit": "ours"},
}

# Seconds that a call of fastmlp may take, on the machine that its records are made on.
GOALS = {
    "one batch": 12e-6,
    "one row": 8e-6,
    "first call, cold": 6.0,
    "first call, from the disk cache": 1.0,
}


@pytest.fixture
def single(measurement, turn):
    """What times a call under a name, with the role that the provider has there."""

    def take(name, target, rounds):
        provider = measurement.entry.provider
        role = ROLES[name.partition(",")[0]].get(provider, "peer")
        turn(name, target, rounds, role=role, goal=GOALS.get(name, 0.0) if role == "ours" else 0.0)

    return take


def only_with_a_role(name, measurement):
    provider = measurement.entry.provider
    if provider.startswith("fastmlp") and provider not in ROLES[name]:
        pytest.skip("another call of fastmlp is measured here")


@pytest.mark.benchmark(timer=CLOCK.now)
def test_one_batch(ask, single):
    single("one batch", lambda: ask("epoch", CALLS), 3)


@pytest.mark.benchmark(timer=CLOCK.now)
def test_one_row(measurement, ask, single):
    only_with_a_role("one row", measurement)
    single("one row", lambda: ask("predict", ROWS), 3)


@pytest.mark.benchmark(timer=CLOCK.now)
def test_import(measurement, prepared, single):
    only_with_a_role("import", measurement)
    single("import", lambda: CLOCK.advance(fresh(measurement.entry, {}, "import_time")), 1)


@pytest.mark.benchmark(timer=CLOCK.now)
def test_first_call(measurement, prepared, single, cache_folder):
    """Without a cache. Only the first process of a run is that cold, so each has its own."""
    only_with_a_role("first call", measurement)
    environment = caches(tempfile.mkdtemp(dir=cache_folder))
    request = ("first_call", measurement.case)

    def call():
        CLOCK.advance(fresh(measurement.entry, environment, *request))

    single("first call, cold", call, 1)


@pytest.mark.benchmark(timer=CLOCK.now)
def test_first_call_cached(measurement, prepared, single, cache_folder):
    """The same in a second process, which finds what the first has compiled."""
    only_with_a_role("first call", measurement)
    request = ("first_call", measurement.case)
    environment = caches(f"{cache_folder}/warm")
    if measurement.number == 0:
        fresh(measurement.entry, environment, *request)
    single(
        "first call, from the disk cache",
        lambda: CLOCK.advance(fresh(measurement.entry, environment, *request)),
        1,
    )
