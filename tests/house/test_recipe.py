"""CONTRIBUTING.md's recipe for a new row, followed as it stands: one file each, and it trains."""

import filecmp
import json
import os
import subprocess

import pytest

from tests.house import recipe

NAMES = ("softsign", "log_cosh", "lion")


@pytest.fixture(scope="module")
def edited(tmp_path_factory):
    """Return a copy of the project to which every step of the page has been done."""
    root = tmp_path_factory.mktemp("project")
    recipe.copy_of_the_project(root)
    for step in recipe.steps():
        step.apply(root)
    return root


def run(source, root, python, environment, **more):
    """Run a script on the copy, with a disk cache of its own; return what it prints as JSON."""
    path = [root, root / "kernels", recipe.ROOT]
    environment = {
        **environment,
        "PYTHONPATH": os.pathsep.join(map(str, path)),
        "NUMBA_CACHE_DIR": str(root / "cache"),
        **more,
    }
    done = subprocess.run(
        [python, "-W", "error", "-c", source],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("from") == [str(root / name) for name in ("fastmlp", "kernels")]
    return found


def test_each_kind_of_row_is_one_edit_of_one_file(edited):
    steps = recipe.steps()
    assert [step.file for step in steps] == ["activations.py", "losses.py", "optimizers.py"]
    changed = []
    for package in ("fastmlp", "kernels"):
        for path in sorted((recipe.ROOT / package).rglob("*.py")):
            inside = path.relative_to(recipe.ROOT)
            if not filecmp.cmp(path, edited / inside, shallow=False):
                changed.append(inside)
    left = [step for step in steps if not step.is_done(recipe.ROOT)]
    assert changed == [recipe.ALGEBRA / step.file for step in left]
    assert all(step.is_done(edited) for step in steps)


WHERE = """
import json, pickle
from dataclasses import replace
from pathlib import Path
import numpy as np
import fastmlp, fastmlp_kernels
where = [str(Path(fastmlp.__file__).parent), str(Path(fastmlp_kernels.__file__).parents[1])]
"""

ON_THE_CPU = (
    WHERE
    + """
from fastmlp import ACTIVATIONS, LOSSES, MLP, OPTIMIZERS
from fastmlp import optimizers
from fastmlp.optimizers import Lion
from fastmlp_kernels.algebra.optimizers import PublicClass
from tests import gradients

generator = np.random.default_rng(0)
X = generator.normal(size=(40, 3))
y = np.sin(X[:, :2])
model = MLP([3, 6, 2], ["softsign", "softsign"], "log_cosh", dtype="float64", seed=0)

def loss_at(parameters):
    model.parameters = parameters
    return model.value_and_grad(X, y)[0]

start = model.parameters.copy()
gradient = model.value_and_grad(X, y)[1].flat.copy()
measured = gradients.gradient(loss_at, start)
gradients.assert_derivative(gradient, measured)
model.parameters = start
before = model.evaluate(X, y).loss
first = model.fit(X, y, epochs=20, batch_size=8, optimizer="lion")
model.fit(X, y, epochs=20, batch_size=8, optimizer=Lion(1e-2))
after = model.evaluate(X, y).loss
again = pickle.loads(pickle.dumps(model))
optimizer = pickle.loads(pickle.dumps(Lion(0.5, beta2=0.9)))
# A row that a user adds, by now: its class is not called what the row is.
public = PublicClass("SignOfMean", "As Lion.", {"learning_rate": 0.1, "weight_decay": 0.2})
OPTIMIZERS.append(replace(OPTIMIZERS["lion"], name="sign_of_mean", public=public))
added = optimizers.check_optimizer("sign_of_mean")
messages = []
for mistake in (
    lambda: MLP([3, 1], activations=["softsing"]),
    lambda: MLP([3, 1], loss="logcos"),
    lambda: model.fit(X, y, optimizer="lyon"),
    lambda: Lion(beta1=1.0),
    lambda: Lion(lr=0.1),
    lambda: model.fit(X, y, optimizer=Lion),
):
    try:
        mistake()
    except fastmlp.FastMLPError as error:
        messages.append(str(error))
print(json.dumps({
    "from": where,
    "rows": [*ACTIVATIONS.names, *LOSSES.names, *OPTIMIZERS.names],
    "epochs": len(first.loss), "before": before, "after": after,
    "same": again.predict(X).tobytes() == model.predict(X).tobytes(),
    "optimizer": [repr(optimizer), optimizer == Lion(0.5, beta2=0.9), optimizer.rule],
    "class": [Lion.__module__, Lion.__qualname__, Lion.__doc__],
    "added": [repr(added), added.rule, type(added) is optimizers.SignOfMean],
    "messages": messages,
}))
"""
)


def test_the_rows_train_and_are_named_in_messages(edited, child_python, child_environment):
    found = run(ON_THE_CPU, edited, child_python, child_environment)
    assert all(found["rows"].count(name) == 1 for name in NAMES)
    assert found["epochs"] == 20 and found["after"] < 0.5 * found["before"]
    assert found["same"]
    settings = "learning_rate=0.5, beta1=0.9, beta2=0.9, weight_decay=0.0"
    assert found["optimizer"] == [f"Lion({settings})", True, "lion"]
    module, name, text = found["class"]
    assert (module, name) == ("fastmlp.optimizers", "Lion")
    assert "running mean" in text and "sign(beta1 * m" in text and "weight_decay" in text
    settings = "learning_rate=0.1, weight_decay=0.2"
    assert found["added"] == [f"SignOfMean({settings})", "sign_of_mean", True]
    wanted = [
        "did you mean 'softsign'?",
        "did you mean 'log_cosh'?",
        "did you mean 'lion'?",
        "beta1: got 1.0, wanted a number in [0, 1)",
        "wanted learning_rate, beta1, beta2, weight_decay, clip_norm, clip_value, layer_rates; did",
        "call it: Lion()",
    ]
    assert len(found["messages"]) == len(wanted)
    for message, part in zip(found["messages"], wanted, strict=True):
        assert part in message


IN_THE_SIMULATOR = (
    WHERE
    + """
from fastmlp_kernels.cuda.fused.program import FusedProgram
from fastmlp_kernels.cuda.layered.program import LayeredProgram
from fastmlp_kernels.cuda.resident.program import ResidentProgram
from fastmlp_kernels.problem import Problem
from tests import tolerances
from tests.gpu import simulated_blocks
from tests.samples import sample

problem = Problem((3, 4, 2), ("softsign", "softsign"), "log_cosh", "lion", batch_size=4, rows=4)
furthest = {}
for kind in (LayeredProgram, FusedProgram, ResidentProgram):
    data = sample(problem)
    oracle = tolerances.step(problem, data.parameters, data.X[data.order], data.y[data.order])
    expected, _ = tolerances.updated(
        problem, data.parameters, oracle.gradient, data.state, data.hyper[0]
    )
    program = kind(problem)
    device = [program.to_device(a) for a in (data.parameters, data.state, data.X, data.y)]
    program.epoch(*device, data.order, data.hyper, data.losses, data.control)
    moved = np.empty_like(data.parameters)
    program.to_host(device[0], moved)
    tolerances.compare(data.losses, oracle.loss, "loss")
    furthest[kind.__name__] = tolerances.compare(moved, expected, "parameters")
print(json.dumps({"from": where, "furthest": furthest}))
"""
)


def test_the_rows_train_on_cuda(edited, child_python, child_environment):
    simulator = {"NUMBA_ENABLE_CUDASIM": "1"}
    found = run(IN_THE_SIMULATOR, edited, child_python, child_environment, **simulator)
    assert len(found["furthest"]) == 3
    assert all(0 <= error <= 1 for error in found["furthest"].values())
