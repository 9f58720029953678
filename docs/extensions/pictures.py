"""The pictures of the pages: how the kernels work, and what was measured."""

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
from drawing import BLUE, GREEN, GREY, ORANGE, picture, save
from matplotlib.patches import FancyArrowPatch, Rectangle

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "results.csv"
# The record that docs/benchmarks.md has the table of.
TRAINING, FITS = "benchmark-20261124-235012", "benchmark-20261124-204233"
PEERS = {"JAX": "o", "PyTorch compile": "s", "PyTorch": "D", "scikit-learn": "^"}
COLORS = {"JAX": BLUE, "PyTorch compile": ORANGE, "PyTorch": GREEN, "scikit-learn": GREY}


def box(axes, x, y, width, height, color, alpha=0.25, edge=None, **more):
    """Draw a rectangle."""
    edge = edge or color
    axes.add_patch(Rectangle((x, y), width, height, fc=(color, alpha), ec=edge, lw=1, **more))


def product():
    """Draw a layer's product: a block of rows, panels of the weights, a tile of the result."""
    figure, axes = picture(7.2, 3.1)
    axes.axis("off")
    axes.set(xlim=(-0.6, 13.4), ylim=(-1.6, 5.2), aspect="equal")
    # A: a block of rows.
    box(axes, 0, 0, 3, 4, GREY, 0.1)
    box(axes, 0, 2, 3, 1, BLUE)
    axes.text(1.5, 4.15, "A: a block of rows", ha="center")
    axes.text(3.5, 2, "·", ha="center", fontsize=18)
    for panel in range(3):
        box(axes, 4 + panel * 1.1, 0.5, 1, 3, ORANGE if panel == 1 else GREY, 0.3)
    axes.text(5.6, 4.15, "W: panels", ha="center")
    axes.text(7.75, 1.85, "=", ha="center", fontsize=14)
    for panel in range(3):
        box(axes, 8.4 + panel * 1.1, 0, 1, 4, GREY, 0.1)
    box(axes, 9.5, 2, 1, 1, GREEN, 0.6)
    axes.text(10, 4.15, "Z = A W + b: panels", ha="center")
    arrow = FancyArrowPatch((11.9, 0.6), (10.4, 2.2), arrowstyle="->", mutation_scale=12)
    axes.add_patch(arrow)
    axes.text(11.75, 0.1, "a tile:\nits sums stay\nin registers", va="top", fontsize=9)
    axes.text(0, -0.3, "each row is read once\nfor every panel", va="top", fontsize=9)
    axes.text(4, 0.2, "a panel: as many columns\nas two vectors hold", va="top", fontsize=9)
    save(figure, "inside-product")


def phases():
    """Draw a mini-batch of two threads: rows, a meeting, weights, a meeting."""
    figure, axes = picture(7.2, 2.6)
    axes.axis("off")
    axes.set(xlim=(-1.6, 12), ylim=(-0.9, 3.1))
    for thread, low in enumerate((1.4, 0)):
        axes.text(-0.1, low + 0.5, f"thread {thread + 1}", ha="right", va="center")
        x = 0.0
        for text, width, color in (
            ("gather", 0.9, GREY),
            ("forward", 1.5, BLUE),
            ("loss", 0.7, ORANGE),
            ("backward", 1.8, BLUE),
        ):
            box(axes, x, low, width, 1, color)
            axes.text(x + width / 2, low + 0.5, text, ha="center", va="center", fontsize=8)
            x += width
        for text, start, width, color in (
            ("AᵀdZ", 5.6, 2.6, GREEN),
            ("update", 8.2, 1.4, ORANGE),
        ):
            box(axes, start, low, width, 1, color)
            axes.text(start + width / 2, low + 0.5, text, ha="center", va="center", fontsize=8)
    for x in (5.25, 10.0):
        axes.plot([x, x], [-0.15, 2.55], color="black", linewidth=2)
        axes.text(x, -0.3, "they meet", ha="center", va="top", fontsize=9)
    axes.text(2.45, 2.65, "rows: each thread has its own", ha="center")
    axes.text(7.6, 2.65, "weights: each thread has its own units", ha="center")
    axes.text(10.3, 1.2, "next\nmini-batch", va="center", fontsize=9)
    save(figure, "inside-phases")


def settings(record, suite):
    """Return the best median of each case and provider, in seconds, and what was measured where."""
    best, where = defaultdict(dict), ""
    with RESULTS.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["record"] == record and row["suite"] == suite:
                case = f"{row['case']}, {row['batch']}" if suite == "training" else row["case"]
                seconds = float(row["median_seconds"])
                ours = row["provider"] == "fastmlp"
                if ours and row["chosen"] != "yes":
                    continue
                known = best[case].get(row["provider"], seconds)
                best[case][row["provider"]] = min(known, seconds)
                where = f"{row['machine']}, {row['date']}"
    assert best, f"{RESULTS} has no {suite} of {record}"
    return best, where


def training():
    """Draw the time of a training step of each peer over that of fastmlp."""
    best, where = settings(TRAINING, "training")
    cases = list(best)[::-1]
    figure, axes = picture(7.2, 4.2)
    for peer, marker in PEERS.items():
        ratios = [best[case].get(peer, np.nan) / best[case]["fastmlp"] for case in cases]
        axes.plot(ratios, range(len(cases)), marker, color=COLORS[peer], label=peer, markersize=6)
    axes.axvline(1, color="black", linewidth=1)
    axes.set(xscale="log", yticks=range(len(cases)), yticklabels=cases)
    axes.set(xlabel="times as long as fastmlp", title=f"A training step ({where})")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=8)
    save(figure, "performance-training")


def step_times():
    """Draw the time of a training step, of fastmlp and of each peer."""
    best, where = settings(TRAINING, "training")
    cases = sorted(best, key=lambda case: best[case]["fastmlp"])
    figure, axes = picture(7.2, 4.2)
    places = range(len(cases))
    for peer, marker in PEERS.items():
        times = [1e6 * best[case].get(peer, np.nan) for case in cases]
        axes.plot(places, times, marker, color=COLORS[peer], label=peer, markersize=5)
    ours = [1e6 * best[case]["fastmlp"] for case in cases]
    axes.plot(places, ours, "k*-", label="fastmlp", markersize=8, linewidth=0.8)
    axes.set(yscale="log", ylabel="microseconds a step", title=f"A training step ({where})")
    axes.set_xticks(places, cases, rotation=40, ha="right", fontsize=8)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8)
    save(figure, "performance-times")


def whole_fits():
    """Draw whole fits of scikit-learn and of fastmlp.sklearn."""
    best, where = settings(FITS, "whole fits")
    pairs = ("sklearn.neural_network", "fastmlp.sklearn")
    cases = [case for case in best if all(name in best[case] for name in pairs)][::-1]
    assert cases, best
    figure, axes = picture(7.2, 3.4)
    for shift, name, color in zip((0.2, -0.2), pairs, (GREY, BLUE), strict=True):
        seconds = [best[case][name] for case in cases]
        axes.barh(np.arange(len(cases)) + shift, seconds, 0.38, color=color, label=name)
    axes.set(yticks=range(len(cases)), yticklabels=cases, xscale="log", xlabel="seconds a fit")
    axes.set_title(f"Whole fits ({where})")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.legend(fontsize=8)
    save(figure, "performance-fits")


def draw(_=None):
    """Draw all pictures."""
    for each in (product, phases, training, step_times, whole_fits):
        each()


def setup(app):
    """Have the pictures drawn before the pages are read."""
    app.connect("builder-inited", draw)
    return {"parallel_read_safe": True}
