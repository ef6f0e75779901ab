"""A memory kernel as a table and as a picture."""

import math

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from scipy.optimize import isotonic_regression

from memoryless.methods.fading.tails import IMPULSE, Array, MemoryKernel
from memoryless.render.style import COLOUR, PICTURE, SERIES, TERMINAL

SHOWN = 1, 10, 100, 1000
"""Ages in the table."""
LOWEST = 1e-4
"""Share of the largest weight down to which weights are drawn."""


def print_kernel(found: MemoryKernel, console: Console) -> None:
    """Print ages and half-lives of the memory, in all and of each piece, and whether it decays.

    Args:
        found: to show.
        console: where to.
    """
    table = Table(title=f"Memory of {found.method}", box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
    table.caption = f"ages in steps; at age k the weight relative to the largest; {found.way}"
    for k, column in enumerate(("memory", "mean age", "half-life", *(f"k = {k:,}" for k in SHOWN))):
        table.add_column(column, justify="right" if k else "left", no_wrap=True)
    rows = [("update", found.kernel, found.mean_age, found.half_life)]
    rows += [(piece.name, piece.kernel, piece.mean_age, piece.half_life) for piece in found.pieces]
    for name, kernel, age, half in rows:
        table.add_row(name, number(age), number(half), *(_share(found, kernel, k) for k in SHOWN))
    console.print(table)
    meaning = {True: "holds", False: "fails", None: "doubt"}[found.decays]
    console.print(Text(f"Memory: {found.judgement}. {found.evidence}.", style=TERMINAL[meaning]))


def number(steps: float) -> str:
    """An age in words.

    Args:
        steps: may be infinite.
    """
    return f"{steps:,.4g}" if steps < 1e4 else f"{steps:,.0f}" if math.isfinite(steps) else "no end"


def _share(found: MemoryKernel, kernel: Array, k: int) -> str:
    if k > found.ages[-1] or not kernel.any():
        return "0" if found.decays else "-"
    share = float(np.interp(k, found.ages, kernel)) / float(kernel.max())
    return f"{share:.2g}" if share else "0"


def picture(found: MemoryKernel) -> Figure:
    """Weight against age, every curve relative to its largest value; half-lives as rings, mean ages as ticks below.

    Args:
        found: to draw.
    """
    curves = [("update", found.kernel, found.mean_age, found.half_life, COLOUR["ink"])]
    for i, piece in enumerate(found.pieces):
        curves.append((piece.name, piece.kernel, piece.mean_age, piece.half_life, SERIES[i % len(SERIES)]))
    with mpl.rc_context(PICTURE):
        figure = Figure(figsize=(9, 5.2), dpi=160)
        ax = figure.add_axes((0.085, 0.125, 0.6, 0.71))
        ax.set_yscale("log")
        ax.set_xscale("symlog", linthresh=1, linscale=0.4)
        ax.set_ylim(LOWEST, 1.5)
        ax.set_xlim(0, _last(found))
        for name, kernel, age, half, color in curves:
            _curve(ax, found, name, kernel, age, half, color)
        if len(found.impulse) and found.impulse.any():
            shown = np.where(found.impulse > 0, found.impulse / found.impulse.max(), np.nan)
            label = f"update, after one gradient\n{IMPULSE:g} times as large"
            ax.plot(found.impulse_ages, shown, color=COLOUR["soft"], linewidth=1.2, linestyle=(0, (1, 1)), label=label)
        ax.axhline(0.5, color=COLOUR["axis"], linewidth=0.8, linestyle=(0, (4, 2)), zorder=0)
        ax.set_xlabel("age $k$ of the gradient, steps")
        ax.set_ylabel("weight, relative to the largest")
        ax.grid(True, color=COLOUR["grid"], linewidth=0.8)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(colors=COLOUR["soft"], labelcolor=COLOUR["ink"], which="both", length=3)
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        _label(ax)
        figure.text(0.03, 0.945, found.method, fontsize=12, weight="bold", va="center")
        about = f"memory: {found.judgement}; {found.way}; ring: half-life, triangle: mean age"
        figure.text(0.03, 0.895, about, color=COLOUR["soft"], va="center")
    return figure


def _last(found: MemoryKernel) -> float:
    """The age up to which anything is seen."""
    curves = [(found.ages, found.kernel), *((found.ages, piece.kernel) for piece in found.pieces)]
    curves.append((found.impulse_ages, found.impulse))
    seen = [ages[values > LOWEST * values.max(initial=0)] for ages, values in curves if values.any()]
    return max(10.0, *(float(ages[-1]) for ages in seen))


def _curve(ax: Axes, found: MemoryKernel, name: str, kernel: Array, age: float, half: float, color: str) -> None:
    if not kernel.any():
        return
    values = kernel / kernel.max()
    label = f"{name}\nmean age {number(age)}, half-life {number(half)}"
    width = 2.2 if name == "update" else 1.6
    ax.plot(found.ages, np.where(values > 0, values, np.nan), color=color, linewidth=width, label=label)
    if math.isfinite(half):
        ax.plot([half], [0.5], "o", color=color, markerfacecolor="white", markersize=6, markeredgewidth=1.5, zorder=4)
    if math.isfinite(age):
        ax.plot([age], [LOWEST], "^", color=color, markersize=8, clip_on=False, zorder=5)


def _label(ax: Axes) -> None:
    """Each curve's name beside where it leaves the picture, moved apart as little as legibility allows."""
    ends = []
    low, high = ax.get_xlim()
    for line in ax.lines:
        if str(line.get_label()).startswith("_"):
            continue
        x, y = (np.asarray(values, dtype=float) for values in line.get_data())
        seen = np.flatnonzero((y >= LOWEST) & (x >= low) & (x <= high))
        ends.append((line, *ax.transAxes.inverted().transform(ax.transData.transform((x[seen[-1]], y[seen[-1]])))))
    # Curves that end at the bottom are named in the order in which they get there, the longest memory highest.
    ends.sort(key=lambda end: (round(end[2], 1), end[1]))
    # Least squares under y[j+1] - y[j] >= gap is isotonic regression of y[j] - j gap.
    steps = 0.11 * np.arange(len(ends))
    apart = isotonic_regression(np.array([max(y, 0.04) for *_, y in ends]) - steps).x + steps if ends else []
    apart = np.maximum(apart, 0.03 + steps)  # which keeps them apart
    for (line, x, y), place in zip(ends, apart, strict=True):
        style = {"color": line.get_color(), "transform": ax.transAxes, "clip_on": False}
        ax.add_line(Line2D([x, max(x, 1) + 0.015, 1.04], [y, place, place], linewidth=0.6, alpha=0.6, **style))
        ax.add_line(
            Line2D([1.045, 1.085], [place, place], linewidth=line.get_linewidth(), linestyle=line.get_linestyle(), **style)
        )
        ax.text(1.095, place, str(line.get_label()), va="center", fontsize=8.5, linespacing=1.25, **style)
