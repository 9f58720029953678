"""PPO on CartPole: the gallery's program learns, and everybody who is timed does the same.

All that compiles runs in processes of its own. A fork after a parallel loop of Numba, or after JAX,
is not safe, and other tests fork.
"""

import dataclasses
import json
import subprocess

import numpy as np
import pytest

from benchmarks.reinforcement_learning import (
    LONGEST,
    Settings,
    oracle,
    running_mean,
    steps_until_solved,
)
from benchmarks.validation import Disagreement

# The environment first: a whole episode under each of three policies, with its last step.
PUSHES = """
import json
import numpy as np
from benchmarks.reinforcement_learning.ours import gallery
push, found = gallery().push, []
for seed in range(3):
    generator = np.random.default_rng(seed)
    cart = generator.uniform(-0.05, 0.05, 4)
    carts, rights, failed = [cart.tolist()], [], False
    while not failed and len(rights) < 500:
        swaying = cart[2] + 0.5 * cart[3] + 0.05 * np.sin(len(rights) / 20) > 0
        rights.append([bool(swaying), True, bool(generator.integers(2))][seed])
        failed = push(cart, rights[-1])
        carts.append(cart.tolist())
    found.append((carts, rights, failed))
print(json.dumps(found))
"""

LEARNING = """
import numpy as np
from benchmarks.reinforcement_learning.ours import gallery
program = gallery()
actor, returns = program.learn_from_scratch(0, updates=20)
again, others = program.learn_from_scratch(0, updates=20)
print(program.running_mean(returns)[1][[0, -1]].tolist())
print(actor.parameters.tobytes() == again.parameters.tobytes(), (returns == others).all())
print(np.abs(actor.parameters - program.networks(0)[0].parameters).max())
"""

ANSWERS = """
from benchmarks.reinforcement_learning import Settings, oracle
from benchmarks.reinforcement_learning.{module} import Program
print(oracle.check(Program(Settings(), 1).answers(), oracle.answers(Settings())))
"""


@pytest.fixture
def output(child_python, child_environment):
    """Return a function that runs a program in a process of its own and returns what it prints."""

    def run(program):
        # PyTorch is compared uncompiled: compiling it would take half a minute.
        environment = {**child_environment, "TORCHDYNAMO_DISABLE": "1"}
        command = [child_python, "-c", program]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_the_cart_moves_as_the_equations_say(output):
    episodes = json.loads(output(PUSHES))
    lengths = []
    for carts, rights, failed in episodes:
        ends = []
        for cart, right, moved in zip(carts, rights, carts[1:], strict=False):
            expected, over = oracle.push(np.array(cart), right)
            np.testing.assert_allclose(moved, expected, rtol=0, atol=1e-14)
            ends.append(over)
        assert ends == [False] * (len(rights) - 1) + [failed]
        lengths.append(len(rights))
    assert lengths[0] > 3 * max(lengths[1:]), "one of them keeps the pole up for a while"


def test_the_cart_moves_as_that_of_gymnasium():
    gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed")
    environment = gymnasium.make("CartPole-v1").unwrapped
    for seed in range(5):
        environment.reset(seed=seed)
        generator, over = np.random.default_rng(seed), False
        while not over:
            right = bool(generator.integers(2))
            expected, failed = oracle.push(np.array(environment.state), right)
            _, reward, over, _, _ = environment.step(int(right))
            np.testing.assert_allclose(environment.state, expected, rtol=0, atol=1e-13)
            assert (failed, reward) == (over, 1.0)
    assert gymnasium.spec("CartPole-v1").max_episode_steps == LONGEST


def test_the_compiled_program_learns_and_a_seed_says_it_all(output):
    means, same, moved = output(LEARNING).splitlines()
    first, last = json.loads(means)
    assert 15 < first < 40, "a policy that knows nothing"
    assert last > 3 * first
    assert same == "True True"
    assert float(moved) > 0.01, "the model has what the handle has learnt"


@pytest.mark.peer
@pytest.mark.parametrize(
    ("module", "package"),
    [("ours", "fastmlp"), ("jax_program", "jax"), ("torch_program", "torch")],
    ids=["fastmlp", "JAX", "PyTorch"],
)
def test_everybody_has_the_losses_and_gradients_of_the_oracle(output, module, package):
    pytest.importorskip(package, reason=f"{package} is not installed")
    assert float(output(ANSWERS.format(module=module))) < oracle.TOLERANCE


def test_a_program_that_does_something_else_is_refused():
    settings = Settings()
    right = oracle.answers(settings)
    assert oracle.check(right, right) == 0
    other = oracle.answers(dataclasses.replace(settings, clip=0.3))
    with pytest.raises(Disagreement, match="losses: relative error"):
        oracle.check(other, right)
    for name in ("policy_gradient", "value_gradient", "carts"):
        wrong = getattr(right, name).copy()
        wrong.flat[3] += 1e-3 * abs(wrong).max()
        with pytest.raises(Disagreement, match=f"{name}: relative error"):
            oracle.check(dataclasses.replace(right, **{name: wrong}), right)
    assert right.failed.any()
    assert not right.failed.all()
    with pytest.raises(Disagreement, match="failed: other carts"):
        oracle.check(dataclasses.replace(right, failed=~right.failed), right)


def test_the_oracles_gradients_are_the_slopes_of_its_losses(monkeypatch):
    settings = Settings(batch=32)
    actor, critic, batch, carts = oracle.sample(settings)
    right, width = oracle.answers(settings), 1e-6
    for which, weights in ((0, actor), (1, critic)):
        gradient = (right.policy_gradient, right.value_gradient)[which]
        for index in (0, 3):
            losses = []
            for sign in (1, -1):
                W = weights[0][0].astype(np.float64)
                W.flat[index] += sign * width
                changed = [(W, weights[0][1]), *weights[1:]]
                both = (changed, critic) if which == 0 else (actor, changed)
                monkeypatch.setattr(oracle, "sample", lambda _, b=both: (*b, batch, carts))
                losses.append(oracle.answers(settings).losses[which])
            assert np.isclose((losses[0] - losses[1]) / (2 * width), gradient[index], rtol=1e-5)


def test_the_task_is_solved_by_a_hundred_episodes():
    returns = np.zeros((2, 300, 2))
    returns[0, :, 0] = 100
    returns[1, :100, 1] = 500
    steps, means = running_mean(returns)
    assert (steps[0], means[0]) == (199, 100)
    assert means[-1] == 500
    # So many episodes of 500 are needed: 94 with 6 of 100 have a mean of 476.
    assert steps_until_solved(returns) == 600 + 2 * 94
    assert steps_until_solved(returns[:1]) is None
