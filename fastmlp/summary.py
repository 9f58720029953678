"""Tables for people: a network's layers, as text and for notebooks."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from fastmlp_kernels.problem import Problem, parameter_layout

TITLES = ("layer", "shape", "activation", "parameters")


def html_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as notebooks show it."""
    lines = [f"<th>{'</th><th>'.join(map(escape, titles))}</th>"]
    lines += [f"<td>{'</td><td>'.join(map(escape, row))}</td>" for row in rows]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


@dataclass(frozen=True)
class Summary:
    """What a model consists of; its text is a table, and a notebook shows one.

    Attributes
    ----------
    problem : Problem
        What describes the network, or several of one shape.
    """

    problem: Problem

    @property
    def parameters(self) -> int:
        """The number of parameters of all networks."""
        return self.problem.members * self.problem.parameter_count

    @property
    def bytes(self) -> int:
        """What the parameters take of the memory; an optimizer's state takes more."""
        return self.parameters * np.dtype(self.problem.dtype).itemsize

    @property
    def layers(self) -> list[tuple[int, tuple[int, int], str, int]]:
        """Each layer: its number, the shape of its weights, its activation, its parameters."""
        pairs = zip(parameter_layout(self.problem.sizes), self.problem.activations, strict=True)
        return [
            (number, (each.fan_in, each.fan_out), name, (each.fan_in + 1) * each.fan_out)
            for number, (each, name) in enumerate(pairs, start=1)
        ]

    @property
    def total(self) -> str:
        """All parameters and their size in words."""
        members = self.problem.members
        networks = f"{members} networks: " if members > 1 else ""
        return (
            f"{networks}{self.parameters:,} parameters of {self.problem.dtype}, "
            f"{self.bytes:,} bytes; loss: {self.problem.loss}"
        )

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (str(number), f"{inputs} x {outputs}", name, f"{count:,}")
            for number, (inputs, outputs), name, count in self.layers
        ]

    def __str__(self) -> str:
        rows = [TITLES, *self._rows()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = []
        for *words, count in rows:
            cells = [f"{each:<{width}}" for each, width in zip(words, widths, strict=False)]
            lines.append("  ".join([*cells, f"{count:>{widths[-1]}}"]))
        return "\n".join([*lines, self.total])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return f"{html_table(TITLES, self._rows())}<p>{escape(self.total)}</p>"
