"""The bits of recorded fits, as a file: tests/cpu/bits.json, one section for each instruction set.

No change of the library's structure may change them. After a change that is meant to, or on a
machine whose instruction set is not in it yet, write the section of this machine anew::

    python -m tests.cpu.test_bits
"""

import hashlib
import json
import sys
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import fastmlp
from fastmlp.device import machine
from fastmlp.optimizers import SGD, Adagrad, Adam, AdamW, RMSprop
from fastmlp_kernels.algebra import ACTIVATIONS, LOSSES
from fastmlp_kernels.cpu.simd import instruction_set
from tests.samples import output_activations

GOLDEN = Path(__file__).with_name("bits.json")
# The rows of the tables that are recorded: a new row changes nothing here.
RECORDED = json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.exists() else {}
OPTIMIZERS = {
    "sgd": SGD(0.05, weight_decay=0.01),
    "momentum": SGD(0.05, 0.9),
    "nesterov": SGD(0.05, 0.9, nesterov=True),
    "velocity": SGD(0.05, 0.9, rate_in_velocity=True),
    "nesterov_velocity": SGD(0.05, 0.9, nesterov=True, rate_in_velocity=True),
    "adam": Adam(0.01, weight_decay=0.01),
    "adamw": AdamW(0.01, weight_decay=0.1),
    "rmsprop": RMSprop(0.01),
    "adagrad": Adagrad(0.01),
}
# Of a team, threads meet twice a step: where processors are busy that takes long, so that teams do
# the chains of these optimizers alone.
OF_TEAMS = ("sgd", "adam")
ROWS, INPUTS, OUTPUTS, BATCH = 21, 5, 3, 4


def numbers(shape, seed):
    # Sums of uniform numbers: what NumPy's other generators return may differ between machines.
    return np.random.Generator(np.random.PCG64(seed)).random((4, *shape)).sum(axis=0) - 2


def targets(loss, rows=ROWS):
    """Return targets in the domain of a loss, made without any function that may round."""
    y, row = numbers((rows, OUTPUTS), 1), LOSSES[loss]
    if row.label_rule is not None:
        return np.arange(rows) % OUTPUTS
    if row.target_domain.high == 1:
        return (y > 0).astype(float)
    return np.abs(np.round(4 * y)) if row.target_domain.low == 0 else y


class Digest:
    """The hash of a fit's losses, parameters and predictions."""

    def __init__(self):
        self._hash = hashlib.sha256()

    def of(self, model, X, *arguments, **options):
        """Fit a model and add what came of it."""
        history = model.fit(X, *arguments, **options)
        held = model.parameters
        for array in (history.loss, held, model.predict(X)):
            self._hash.update(np.ascontiguousarray(array).tobytes())
        return self

    def __str__(self):
        return self._hash.hexdigest()[:16]


def of_chains(loss, optimizer, dtype):
    """Return the digest of fits of every hidden activation before a loss."""
    digest, X, y = Digest(), numbers((ROWS, INPUTS), 2), targets(loss)
    last = output_activations(loss)[0]
    for activation in RECORDED["activations"]:
        model = fastmlp.MLP([INPUTS, 7, OUTPUTS], [activation, last], loss, dtype=dtype)
        digest.of(model, X, y, epochs=2, batch_size=BATCH, optimizer=OPTIMIZERS[optimizer])
    return digest


def of_outputs(loss, dtype):
    """Return the digest of fits of every output activation before a loss."""
    digest, X, y = Digest(), numbers((ROWS, INPUTS), 2), targets(loss)
    for last in RECORDED["activations"]:
        if LOSSES[loss].refusal(ACTIVATIONS[last]) is None:
            model = fastmlp.MLP([INPUTS, 9, 6, OUTPUTS], ["tanh", "relu", last], loss, dtype=dtype)
            digest.of(model, X, y, epochs=2, batch_size=BATCH, optimizer=SGD(0.02))
    return digest


def of_options(option, dtype):
    """Return the digest of fits with an option, alone and with all the others."""
    options = {
        "penalty": {"l2": 0.01},
        "weights": {"sample_weight": np.arange(ROWS) % 5 / 2},
        "order": {"shuffle": False},
        "whole": {"batch_size": ROWS},
    }
    chosen = {option: options[option]} if option in options else options
    extra = {name: value for each in chosen.values() for name, value in each.items()}
    digest, X = Digest(), numbers((ROWS, INPUTS), 2)
    for loss in ("half_squared_error", "softmax_cross_entropy"):
        for optimizer in ("sgd", "adam"):
            model = fastmlp.MLP([INPUTS, 40, 24, OUTPUTS], "relu", loss, dtype=dtype)
            arguments = {"batch_size": BATCH, **extra, "optimizer": OPTIMIZERS[optimizer]}
            digest.of(model, X, targets(loss), epochs=3, **arguments)
    return digest


def of_members(optimizer, dtype):
    """Return the digest of fits of ensembles."""
    digest, X = Digest(), numbers((ROWS, INPUTS), 2)
    for loss in ("half_squared_error", "softmax_cross_entropy"):
        for options in ({}, {"sample_weight": np.arange(ROWS) % 5 / 2, "l2": 0.01}):
            model = fastmlp.Ensemble([INPUTS, 12, OUTPUTS], 5, "tanh", loss, dtype=dtype)
            arguments = {"batch_size": BATCH, "optimizer": OPTIMIZERS[optimizer], **options}
            digest.of(model, X, targets(loss), epochs=2, **arguments)
    return digest


def of_steps(optimizer, dtype):
    """Return the digest of single steps, whole and in their parts."""
    X, y = numbers((ROWS, INPUTS), 2), targets("half_squared_error")
    X, y = X.astype(dtype), y.astype(dtype)
    model = fastmlp.MLP([INPUTS, 20, OUTPUTS], "silu", "half_squared_error", dtype=dtype)
    found = hashlib.sha256()
    for _ in range(3):
        found.update(np.float64(model.step(X, y, OPTIMIZERS[optimizer])).tobytes())
    for _ in range(2):
        model.zero_grad()
        found.update(model.forward(X).tobytes())
        found.update(np.float64(model.compute_loss(y)).tobytes())
        model.backward()
        model.apply(OPTIMIZERS[optimizer])
    loss, gradient = model.value_and_grad(X, y)
    found.update(np.float64(loss).tobytes() + gradient.flat.tobytes())
    found.update(model.parameters.tobytes())
    return found.hexdigest()[:16]


def cases():
    """Return what is recorded: for each name, a function and its arguments."""
    dtypes = ("float32", "float64")
    found = {}
    for dtype in dtypes:
        for loss in RECORDED["losses"]:
            found[f"{dtype} {loss} outputs"] = (of_outputs, loss, dtype)
            for optimizer in OPTIMIZERS:
                found[f"{dtype} {loss} {optimizer}"] = (of_chains, loss, optimizer, dtype)
        for option in ("penalty", "weights", "order", "whole", "all"):
            found[f"{dtype} options {option}"] = (of_options, option, dtype)
        for optimizer in OPTIMIZERS:
            found[f"{dtype} members {optimizer}"] = (of_members, optimizer, dtype)
            found[f"{dtype} steps {optimizer}"] = (of_steps, optimizer, dtype)
    return found


@contextmanager
def teams_of(threads):
    """Have every call use so many threads, also the small ones that are left to one."""
    detect = machine.detect
    shared = cache(lambda: machine.sharing(detect(), threads))
    users = [each for name, each in sys.modules.items() if name.startswith("fastmlp.")]
    users = [each for each in users if getattr(each, "detect", None) is detect]
    for each in users:
        each.detect = shared
    yield
    for each in users:
        each.detect = detect


def digests(names):
    """Return the digest of each named case."""
    found = cases()
    return {name: str(found[name][0](*found[name][1:])) for name in names}


# `test_threads` compares the numbers of threads; here are none and a team.
@pytest.mark.parametrize("threads", [1, 3, pytest.param(2, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_bits_are_those_that_were_recorded(dtype, threads):
    name = instruction_set().name
    if name not in RECORDED["bits"]:
        pytest.skip(f"no bits are recorded of {name}: run python -m tests.cpu.test_bits")
    expected = {key: value for key, value in RECORDED["bits"][name].items() if dtype in key}
    assert expected
    if threads > 1:
        chosen = {key for key, (made, *_) in cases().items() if made is not of_chains}
        chosen |= {key for key in expected if key.endswith(OF_TEAMS)}
        expected = {key: value for key, value in expected.items() if key in chosen}
    with teams_of(threads):
        assert digests(expected) == expected


def written():
    """Return the file with this machine's section as the code stands."""
    RECORDED.setdefault("activations", list(ACTIVATIONS.names))
    RECORDED.setdefault("losses", list(LOSSES.names))
    RECORDED.setdefault("bits", {})[instruction_set().name] = digests(cases())
    return json.dumps(RECORDED, indent=1) + "\n"


if __name__ == "__main__":
    GOLDEN.write_text(written(), encoding="utf-8")
    sys.exit(0)
