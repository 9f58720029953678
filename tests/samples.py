"""Random parameters, inputs and targets for any problem, inside the domains of its loss."""

from dataclasses import dataclass, replace

import numpy as np

from fastmlp_kernels.algebra import (
    ACTIVATIONS,
    LOSSES,
    OPTIMIZERS,
    hyper_table,
    loss_rules,
    rules_of,
)
from fastmlp_kernels.algebra.dropout import step_keys
from fastmlp_kernels.algebra.optimizers import DROPOUT_KEY
from fastmlp_kernels.problem import CONTROL_WORDS, Problem, parameter_layout
from fastmlp_kernels.reference import keep_masks

SETTINGS = {
    "sgd": {"learning_rate": 0.05, "weight_decay": 0.01},
    "momentum": {"learning_rate": 0.05, "weight_decay": 0.01, "momentum": 0.9},
    "nesterov": {"learning_rate": 0.05, "weight_decay": 0.01, "momentum": 0.9},
    "velocity": {"learning_rate": 0.05, "weight_decay": 0.01, "momentum": 0.9},
    "nesterov_velocity": {"learning_rate": 0.05, "weight_decay": 0.01, "momentum": 0.9},
    "adam": {
        "learning_rate": 0.01,
        "beta1": 0.9,
        "beta2": 0.999,
        "epsilon": 1e-8,
        "weight_decay": 0.01,
    },
    "adamw": {
        "learning_rate": 0.01,
        "beta1": 0.9,
        "beta2": 0.999,
        "epsilon": 1e-8,
        "weight_decay": 0.1,
    },
    "rmsprop": {"learning_rate": 0.01, "decay": 0.99, "epsilon": 1e-8, "weight_decay": 0.01},
    "adagrad": {"learning_rate": 0.01, "epsilon": 1e-10, "weight_decay": 0.01},
}
for _row in OPTIMIZERS:
    if _row.name not in SETTINGS:
        more = {"learning_rate": 0.01, "weight_decay": 0.01}
        SETTINGS[_row.name] = {**_row.public.defaults, **more}


# Losses with other numbers than their table's: each that has any, and each form of a power.
NUMBERED = (
    "huber(delta=0.7)",
    "quantile(level=0.9)",
    "binary_focal(gamma=0.0, alpha=0.3)",
    "binary_focal(gamma=1.0, alpha=0.5)",
    "binary_focal(gamma=1.5, alpha=0.7)",
    "softmax_cross_entropy(label_smoothing=0.1)",
    "gaussian_nll(epsilon=0.01)",
)
EVERY_LOSS = (*LOSSES.names, *NUMBERED)
EVERY_RULE = (*loss_rules(), *(rule for name in NUMBERED for rule in rules_of(LOSSES[name])))


def outputs_for(loss, count):
    """Return so many outputs, or the next number of them that the loss takes."""
    each = LOSSES[loss].outputs_per_target
    return -(-count // each) * each


def epoch_order(seed, epoch, rows):
    """Return the shuffled order of the rows in an epoch, by a generator of its own."""
    key = np.array([seed, epoch], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).permutation(rows)


@dataclass
class Sample:
    """The arguments of `Program.epoch`, in the problem's dtype."""

    parameters: np.ndarray
    state: np.ndarray
    X: np.ndarray
    y: np.ndarray
    order: np.ndarray
    hyper: np.ndarray
    losses: np.ndarray
    control: np.ndarray
    factors: np.ndarray | None = None
    squares: np.ndarray | None = None

    def arguments(self) -> tuple:
        """Return the arguments in order."""
        return tuple(vars(self).values())

    def copy(self) -> "Sample":
        """Return copies of everything."""
        arrays = self.arguments()
        return Sample(*(None if array is None else array.copy() for array in arrays))


def targets(problem: Problem, rows: int, generator: np.random.Generator) -> np.ndarray:
    """Return targets in the domain of the loss."""
    outputs = problem.target_columns
    if problem.labels:
        return generator.integers(0, problem.sizes[-1], (rows, 1)).astype(problem.dtype)
    if LOSSES[problem.loss].label_rule is not None:
        y = generator.dirichlet(np.ones(outputs), rows)
    elif LOSSES[problem.loss].target_domain.high == 1:
        y = generator.random((rows, outputs))
        y[::2] = np.round(y[::2])
    elif LOSSES[problem.loss].target_domain.low == 0:
        y = generator.poisson(2.0, (rows, outputs))
    else:
        y = generator.normal(0, 1.5, (rows, outputs))
    return y.astype(problem.dtype)


def weights(problem: Problem, generator: np.random.Generator) -> np.ndarray:
    """Return parameters that keep the activations near 1."""
    parameters = np.empty(problem.parameter_count)
    for layer in parameter_layout(problem.sizes):
        shape = layer.fan_in * layer.fan_out
        parameters[layer.weight] = generator.normal(0, layer.fan_in**-0.5, shape)
        parameters[layer.bias] = generator.normal(0.1, 0.3, layer.fan_out)
    if LOSSES[problem.loss].outputs_per_target > 1:
        # Small variances make slopes too large for the rates here.
        parameters[layer.weight].reshape(layer.fan_in, -1)[:, problem.target_columns :] *= 0.2
        parameters[layer.bias][problem.target_columns :] += 1
    return parameters.astype(problem.dtype)


# A limit of the norm and rates by layer; a limit of the elements.
CLIPPED = Problem(
    (3, 4, 3, 2),
    ("silu", "relu", "sigmoid"),
    "binary_cross_entropy",
    "momentum",
    clipping="norm",
    layer_rates=True,
)
# Slopes that read z and slopes that read f(z), of layers with dropout and of one without.
DROPPED = Problem(
    (3, 5, 6, 2),
    ("gelu", "relu", "identity"),
    "half_squared_error",
    "adam",
    dropout=(0.25, 0.4),
)
DROPPED_AND_CLIPPED = Problem(
    (3, 5, 6, 4, 2),
    ("tanh", "silu", "sigmoid", "silu"),
    "half_squared_error",
    "momentum",
    clipping="norm",
    layer_rates=True,
    dropout=(0.4, 0.25, 0.0),
)
LIMITED = Problem((2, 4, 3), ("gelu", "softplus"), "poisson", "sgd", "sum", clipping="value")


def hyper_of(
    problem: Problem, learning_rate: float | None = None, dropout_seed: int = 5
) -> np.ndarray:
    """Return the hyper-parameters of an epoch; limits that some of a gradient exceeds."""
    settings = SETTINGS[problem.optimizer]
    if learning_rate is not None:
        settings = settings | {"learning_rate": learning_rate}
    if problem.clipping != "none":
        settings = settings | {"clip_value": 0.1}
    if problem.clipping == "norm":
        settings = settings | {"clip_norm": 0.05}
    layers = len(problem.activations) if problem.layer_rates else 1
    tables = []
    for index in range(layers):
        rate = settings["learning_rate"] * (1 + index)
        own, rest = settings | {"learning_rate": rate}, (1, problem.batches, problem.dtype)
        tables.append(hyper_table(OPTIMIZERS[problem.optimizer], own, *rest, penalty=0.02))
    hyper = np.hstack(tables)
    if problem.dropout:
        hyper[:, DROPOUT_KEY : DROPOUT_KEY + 2] = step_keys(dropout_seed, 1, problem.batches)
    return hyper


def sample(
    problem: Problem,
    seed: int = 0,
    spare_rows: int = 3,
    weighted: bool = False,
    penalized: bool = False,
) -> Sample:
    """Return a whole epoch's arguments: shuffled, and with rows that `order` never visits."""
    generator = np.random.default_rng(seed)
    rows = problem.rows + spare_rows
    return Sample(
        parameters=weights(problem, generator),
        state=np.zeros((problem.slots, problem.parameter_count), problem.dtype),
        X=generator.normal(0, 1, (rows, problem.sizes[0])).astype(problem.dtype),
        y=targets(problem, rows, generator),
        order=generator.permutation(rows)[: problem.rows].astype(np.int64),
        hyper=hyper_of(problem),
        losses=np.full(problem.batches, np.nan, problem.dtype),
        control=np.zeros(CONTROL_WORDS, np.int64),
        factors=row_factors(problem, generator) if weighted else None,
        squares=np.full(problem.batches, np.nan) if penalized else None,
    )


def overflowing() -> tuple[Problem, Sample]:
    """Return a problem and a batch of it: one activation is too large, and dropout leaves it out.

    Nothing else is infinite: neither the loss nor an element of the gradient.
    """
    problem = Problem((2, 3, 1), ("relu", "identity"), "squared_error", dropout=(0.5,))
    problem = replace(problem, batch_size=4, rows=4)
    data = sample(problem)
    row, unit = np.argwhere(keep_masks(problem, data.hyper[0], 4)[0] == 0)[-1]
    data.X[data.order[row]] = [1e30, 0]
    data.parameters[:3] = 0
    data.parameters[unit] = 1e10
    return problem, data


def first_batches(problem: Problem, data: Sample, count: int) -> tuple[Problem, Sample]:
    """Return the problem of an epoch's first mini-batches alone, and copies of its arguments."""
    rows = min(problem.rows, count * problem.batch_size)
    first = data.copy()
    for name, length in (
        ("order", rows),
        ("factors", rows),
        ("hyper", count),
        ("losses", count),
        ("squares", count),
    ):
        if getattr(first, name) is not None:
            setattr(first, name, getattr(first, name)[:length])
    return replace(problem, rows=rows), first


def row_factors(problem: Problem, generator: np.random.Generator) -> np.ndarray:
    """Return the reduction's factor times a weight for each row, a few of them 0.

    Of a single batch some are below 0. Several such steps climb some losses, and may not end.
    """
    weights = generator.uniform(0.2, 2, problem.rows)
    weights[generator.random(problem.rows) < 0.1] = 0
    if problem.batches == 1:
        weights[generator.random(problem.rows) < 0.2] *= -1
    return (problem.scale(problem.batch_size) * weights).astype(problem.dtype)


def poison(program) -> None:
    """Fill a program's workspace with NaN: what it does not write first, it must not read."""
    for array in program.workspace:
        array.fill(np.nan)


def in_a_chain(activation: str) -> str:
    """Return the activation, or a tame one: a tower of exponentials overflows for any weights."""
    with np.errstate(over="ignore"):
        large = ACTIVATIONS[activation].value(np.float32(100))
    return activation if abs(large) < 1e30 else "tanh"


def output_activations(loss: str) -> list[str]:
    """Return the names of the activations that may stand before a loss."""
    return [row.name for row in ACTIVATIONS if LOSSES[loss].refusal(row) is None]
