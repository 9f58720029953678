"""The rows of the algebra on the page of formulas: typeset, and each with a plot.

`docs/formulas.md` has a table of each kind, which `python3 dev.py write` writes from the rows. On
the site, cards take the place of the tables. They are made from the same rows.
"""

import re

import numpy as np
from drawing import BLUE, GREY, ORANGE, picture, save
from latex import SIGNS, formulas

from fastmlp import SGD, schedules
from fastmlp.losses import LossWithNumbers
from fastmlp.optimizers import by_name
from fastmlp_kernels.algebra import ACTIVATIONS, LOSSES, OPTIMIZERS, hyper_table
from fastmlp_kernels.algebra.optimizers import RULE_START

PAGE = "docs/formulas"
RATE = {"adam": 0.1, "adamw": 0.1, "rmsprop": 0.05, "adagrad": 0.5}


def card(title, typeset, lines, image):
    """Return one card in Markdown."""
    body = "\n\n".join([*(f"$${each}$$" for each in typeset), *lines])
    shown = f"![Plot of {title}](generated/{image}.svg)"
    return f":::{{grid-item-card}} {title}\n{body}\n\n{shown}\n:::\n"


def grid(cards, columns="1 1 2 2"):
    """Return cards side by side; on a phone, one below the other."""
    return f"::::{{grid}} {columns}\n:gutter: 3\n\n{''.join(cards)}::::\n"


def activations():
    """Return the cards of the activations."""
    z, cards = np.linspace(-4, 4, 401), []
    for row in ACTIVATIONS:
        values = np.array([row.value(each) for each in z])
        slopes = np.array([row.slope(*each) for each in zip(z, values, strict=True)])
        figure, axes = picture()
        axes.plot(z, values, color=BLUE, label="value")
        axes.plot(z, slopes, color=ORANGE, linestyle="--", label="slope")
        axes.set(xlabel="z", ylim=(-2, 4.2))
        axes.legend()
        save(figure, f"activation-{row.name}")
        lines = [f"Range {row.range}. First weights: {row.initializer}."]
        cards.append(card(row.name, formulas(row.formula), lines, f"activation-{row.name}"))
    return grid(cards)


def loss_curves(row):
    """Return the label of the abscissa, its points, and the loss there for two targets."""
    if row.name == "gaussian_nll":
        z = np.linspace(-4, 4, 401)
        curves = {
            f"variance {v}": [row_loss(row, [m, np.log(v)], [0.0]) for m in z] for v in (0.5, 2)
        }
        return "mean, for a target of 0", z, curves
    if row.by_row:
        z = np.linspace(-6, 6, 401)
        pairs = {"right class": (1.0, 0.0), "wrong class": (0.0, 1.0)}
        curves = {key: [row_loss(row, [m, 0.0], y) for m in z] for key, y in pairs.items()}
        return "logit over that of the other class", z, curves
    if row.target_domain.high == 1:
        p, targets = np.linspace(0.005, 0.995, 301), (0.0, 1.0)
    elif row.prediction_domain.low == 0:
        p, targets = np.linspace(0.05, 6, 301), (1.0, 3.0)
    else:
        p, targets = np.linspace(-3, 3, 301), (0.0,)
    curves = {f"target {y:g}": [row.rule(each, y)[0] for each in p] for y in targets}
    return "prediction", p, curves


def row_loss(row, outputs, target):
    """Return the loss of one row by a row rule."""
    outputs, target = np.array([outputs], float), np.array([target], float)
    return row.rule(outputs, target, 0, np.empty_like(outputs))


def losses():
    """Return the cards of the losses."""
    written, cards = {each.row: repr(each()) for each in LossWithNumbers.__subclasses__()}, []
    for row in LOSSES:
        label, points, curves = loss_curves(row)
        figure, axes = picture()
        for (key, values), color, style in zip(curves.items(), (BLUE, ORANGE), "-:", strict=False):
            axes.plot(points, values, style, color=color, label=key)
        axes.set(xlabel=label)
        axes.legend()
        save(figure, f"loss-{row.name}")
        lines = [f"Predictions in {row.prediction_domain}, targets in {row.target_domain}."]
        if row.name in written:
            lines.append(f"`{written[row.name]}`")
        cards.append(card(row.name, formulas(row.formula), lines, f"loss-{row.name}"))
    # Their formulas are long.
    return grid(cards, "1 1 1 1") + signs()


def signs():
    """Return what the signs of the formulas stand for."""
    pairs = [f"${sign}$ `{key}`" for key, sign in SIGNS.items() if key != "pi"]
    return f"\nThe signs stand for settings: {', '.join(pairs)}, $s$ `label_smoothing`.\n"


SETTINGS = {
    "momentum": SGD(momentum=0.9),
    "nesterov": SGD(momentum=0.9, nesterov=True),
    "velocity": SGD(momentum=0.9, rate_in_velocity=True),
    "nesterov_velocity": SGD(momentum=0.9, nesterov=True, rate_in_velocity=True),
}


def descent(row, settings, steps=60):
    """Return the points of a rule's way down the valley ``(x**2 + 8 * y**2) / 2``."""
    settings = {**settings, "learning_rate": RATE.get(row.name, 0.02)}
    table = hyper_table(row, settings, 1, steps, "float64")
    place, m, v, found = np.array([-3.0, 1.5]), np.zeros(2), np.zeros(2), []
    for hyper in table:
        found.append(place.copy())
        gradient = np.array([1.0, 8.0]) * place
        for i in range(2):
            numbers = hyper[RULE_START:]
            place[i], m[i], v[i] = row.update(place[i], gradient[i], m[i], v[i], numbers)
    return np.array(found)


def optimizers():
    """Return the cards of the rules of the optimizers."""
    given, cards = {**SETTINGS, **by_name()}, []
    x, y = np.meshgrid(np.linspace(-3.5, 1.5, 60), np.linspace(-2, 2, 60))
    for row in OPTIMIZERS:
        figure, axes = picture()
        levels = np.geomspace(0.05, 25, 9)
        axes.contour(x, y, (x**2 + 8 * y**2) / 2, levels, colors=GREY, linewidths=0.6)
        way = descent(row, given[row.name].settings)
        axes.plot(*way.T, ".-", color=BLUE, linewidth=1, markersize=4)
        axes.plot(0, 0, "+", color=ORANGE, markersize=12)
        axes.set(xlim=(-3.5, 1.5), ylim=(-2, 2), xticks=[], yticks=[])
        save(figure, f"optimizer-{row.name}")
        lines = [f"`{given[row.name]!r}`"]
        cards.append(card(row.name, formulas(row.formula), lines, f"optimizer-{row.name}"))
    note = "\nEach plot is the way of 60 steps down a narrow valley to its lowest point.\n"
    return note + grid(cards)


SHOWN = {
    "ExponentialDecay": schedules.ExponentialDecay(1.0, 0.5, 25),
    "StepDecay": schedules.StepDecay(1.0, 0.5, 25),
    "PiecewiseConstant": schedules.PiecewiseConstant([30, 70], [1.0, 0.5, 0.1]),
    "InverseScaling": schedules.InverseScaling(1.0),
    "LinearDecay": schedules.LinearDecay(1.0, 80),
    "CosineDecay": schedules.CosineDecay(1.0, 80),
    "OneCycle": schedules.OneCycle(1.0, 100),
    "LinearWarmup": schedules.LinearWarmup(20, schedules.CosineDecay(1.0, 80)),
}


def learning_rates():
    """Return the cards of the schedules."""
    steps, cards = np.arange(101), []
    kinds = [each for each in vars(schedules).values() if isinstance(each, type)]
    for kind in kinds:
        if schedules.Schedule in kind.__bases__:
            shown = SHOWN[kind.__name__]
            figure, axes = picture()
            axes.plot(steps, shown(steps), color=BLUE)
            axes.set(xlabel="step", ylabel="rate", ylim=(-0.05, 1.1))
            image = f"schedule-{kind.__name__}"
            save(figure, image)
            words = kind.__doc__.split("\n")[0].replace("``", "`")
            cards.append(card(kind.__name__, [], [words, f"`{shown!r}`"], image))
    return grid(cards)


KINDS = {
    "activations": activations,
    "losses": losses,
    "optimizers": optimizers,
    "learning_rates": learning_rates,
}


def replace_tables(app, docname, source):
    """Put the cards in the place of the tables."""
    if docname != PAGE:
        return
    for kind, make in KINDS.items():
        pattern = rf"<!-- {kind}: .*?-->\n.*?<!-- end of {kind} -->\n"
        source[0], count = re.subn(pattern, lambda _, m=make: m(), source[0], flags=re.DOTALL)
        assert count == 1, kind


def setup(app):
    """Have the page changed as it is read."""
    app.connect("source-read", replace_tables)
    return {"parallel_read_safe": True}
