"""The tables of rows in the pages: each is written from the rows, between two comments.

Write them anew after a row has changed::

    python3 dev.py write
"""

import inspect
import re
import sys

import pytest

from fastmlp import SGD, schedules
from fastmlp.losses import LossWithNumbers
from fastmlp.optimizers import by_name
from fastmlp_kernels.algebra import ACTIVATIONS, LOSSES, OPTIMIZERS
from tests import ROOT

# How users write the rules that have no class of their own.
BY_SETTINGS = {
    "momentum": SGD(momentum=0.9),
    "nesterov": SGD(momentum=0.9, nesterov=True),
    "velocity": SGD(momentum=0.9, rate_in_velocity=True),
    "nesterov_velocity": SGD(momentum=0.9, nesterov=True, rate_in_velocity=True),
}


def table(*rows):
    """Return a table of Markdown, the first row its head."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    assert not any("|" in cell for line in lines for cell in line)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def code(text):
    return f"`{text}`"


def names():
    takes_labels = {row.name for row in LOSSES if row.label_rule is not None}
    losses = [
        f"{name} (labels or one-hot)" if name in takes_labels else name for name in LOSSES.names
    ]
    optimizers = [type(each).__name__ for each in by_name().values()]
    return table(
        ["what", "names"],
        ["activations", ", ".join(ACTIVATIONS.names)],
        ["losses", ", ".join(losses)],
        ["optimizers", ", ".join(optimizers)],
    )


def activations():
    head = ["name", "value", "range", "initialiser"]
    rows = [[row.name, code(row.formula), str(row.range), row.initializer] for row in ACTIVATIONS]
    return table(head, *rows)


def losses():
    head = ["name", "numbers", "loss", "predictions in", "targets in"]
    written = {each.row: code(each()) for each in LossWithNumbers.__subclasses__()}
    rows = [
        [
            row.name,
            written.get(row.name, "–"),
            code(row.formula),
            str(row.prediction_domain),
            str(row.target_domain),
        ]
        for row in LOSSES
    ]
    return table(head, *rows)


def optimizers():
    of_rule = {**BY_SETTINGS, **by_name()}
    rows = [[row.name, code(of_rule[row.name]), code(row.formula)] for row in OPTIMIZERS]
    return table(["rule", "written as", "step"], *rows)


def learning_rates():
    shipped = [each for each in vars(schedules).values() if isinstance(each, type)]
    ours = [each for each in shipped if schedules.Schedule in each.__bases__]
    settings = [", ".join(inspect.signature(each).parameters) for each in ours]
    rows = [
        [code(f"{each.__name__}({names})"), each.__doc__.split("\n")[0].replace("``", "`")]
        for each, names in zip(ours, settings, strict=True)
    ]
    return table(["written as", "rate of a step, from 0"], *rows)


TABLES = {
    "README.md": [names],
    "docs/formulas.md": [activations, losses, optimizers, learning_rates],
}


def between(name):
    """Return the pattern of a table and of the comments around it."""
    return re.compile(
        rf"(<!-- {name}: python3 dev\.py write -->\n).*?(<!-- end of {name} -->\n)", re.DOTALL
    )


def written(text, tables):
    """Return a page with its tables as the rows stand."""
    for make in tables:
        text, count = between(make.__name__).subn(lambda m, make=make: m[1] + make() + m[2], text)
        assert count == 1, make.__name__
    return text


@pytest.mark.parametrize("page", TABLES)
def test_the_tables_are_those_of_the_rows(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert text == written(text, TABLES[page]), "stale: run python3 dev.py write"


def test_what_is_written_is_the_rule():
    assert set(BY_SETTINGS) | set(by_name()) == set(OPTIMIZERS.names)
    assert all(optimizer.rule == rule for rule, optimizer in BY_SETTINGS.items())


def test_a_formula_that_has_changed_is_seen():
    page = "docs/formulas.md"
    text = (ROOT / page).read_text(encoding="utf-8")
    changed = text.replace(LOSSES["huber"].formula, "p - y")
    assert changed != text and written(changed, TABLES[page]) == text


if __name__ == "__main__":
    for page, tables in TABLES.items():
        path = ROOT / page
        path.write_text(written(path.read_text(encoding="utf-8"), tables), encoding="utf-8")
    sys.exit(0)
