"""A verification as a table for the terminal and as a picture."""

import itertools
import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from memoryless.experiments.theorem import Verification, holds, label, power
from memoryless.paths.accuracy import Accuracy
from memoryless.paths.trajectory import Kind
from memoryless.render.style import COLOUR, MARK, SERIES, TERMINAL

WORD = {True: ("holds", TERMINAL["holds"]), False: ("not reached", TERMINAL["fails"]), None: ("not judged", TERMINAL["doubt"])}

SIZES = {"frozen": 6.5, "first": 10.0, "resummed": 5.0}
"""First shows behind resummed, which it may equal."""
LOOK = {kind: (COLOUR[kind], MARK[kind].marker, size) for kind, size in SIZES.items()}
ORDERS = tuple(zip(SERIES, ("o", "v", "P", "X", "*"), (7.0, 7.5, 7.5, 7.5, 9.0), strict=True))

GAP = 0.062
"""Least distance between the labels of two lines, in heights of the axes."""


def print_verification(found: Verification, chosen: dict[str, Any], console: Console) -> None:
    """Print what was run, errors and slopes, and the verdict.

    Args:
        found: some kinds may be missing, if it diverged.
        chosen: hyperparameters that the user left open.
        console: where to.
    """
    if chosen:
        options = ", ".join(f"{name}={value}" for name, value in chosen.items())
        why = "a short memory and a smooth update show the powers at these lrs; others need smaller ones"
        console.print(Text(f"Not given, so chosen here: {options} ({why})."))
    console.print(Text(_about(found)))
    if found.accuracies:
        console.print(_table(found))
        console.print(Text(found.verdict, style="bold"))
    if found.dtype != "float64" and found.accuracies:
        floor = f"Note: {found.dtype} rounds at {found.floor:.1e}; errors below that say nothing. Use float64 (model.double())."
        console.print(Text(floor, style=TERMINAL["doubt"]))


def _about(found: Verification) -> str:
    return f"{found.method} on {found.loss}: {found.parameters:,} parameters in {found.dtype}, up to time {found.horizon:g}."


def _table(found: Verification) -> Table:
    title = "Largest distance to the optimizer, and its power of lr per halving"
    caption = f"rounding: {found.floor:.1e}; the power is judged at the finest halving above it"
    if any(abs(h / k - 2) > 1e-9 for h, k in itertools.pairwise(found.lrs)):
        title, caption = title.replace("halving", "step down"), caption.replace("halving", "step down")
    table = Table(
        title=title, caption=caption, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    table.add_column("lr", no_wrap=True)
    for a in found.accuracies:
        table.add_column(label(a.kind), justify="right", no_wrap=True)
    for i, lr in enumerate(found.lrs):
        table.add_row(f"{lr:g}", *(_error(a, i) for a in found.accuracies), end_section=i == len(found.lrs) - 1)
    table.add_row("power", *(_slope(a.order) for a in found.accuracies))
    table.add_row("theorem", *(f"{power(a.kind)}.00" for a in found.accuracies))
    table.add_row("", *(Text(WORD[holds(a)][0], style=WORD[holds(a)][1]) for a in found.accuracies))
    return table


def _error(a: Accuracy, i: int) -> Text:
    """The error, and beside it the slope from the larger lr; dim where rounding has reached it."""
    slope = _slope(a.slopes[i - 1]) if i else "    "
    error = f"{a.errors[i]:.1e}".replace("e-0", "e-")
    return Text(f"{error} {slope}", style="" if a.errors[i] > a.floor else "dim")


def _slope(slope: float) -> str:
    return "  - " if math.isnan(slope) else f"{slope:.2f}"


def picture(found: Verification) -> Figure:
    """The errors against lr, both axes logarithmic.

    Args:
        found: with at least one kind.
    """
    figure = Figure(figsize=(8.4, 5.4))
    axes = figure.add_axes((0.1, 0.1, 0.61, 0.74))
    _frame(axes, found)
    looks = _looks([a.kind for a in found.accuracies])
    drawn = [(a, *looks[a.kind]) for a in found.accuracies if any(e > 0 for e in a.errors)]
    for a, color, marker, size in drawn:
        points = [(lr, e) for lr, e in zip(a.lrs, a.errors, strict=True) if e > 0]
        axes.plot(*zip(*points, strict=True), color=color, marker=marker, markersize=size, linewidth=1.8, zorder=3)
        _reference(axes, a, color)
    _name(axes, drawn)
    name = found.method.partition("(")[0]
    title = f"Distance to {name} falls with the theorem's power of lr" if found.holds else f"Distance to {name}, by step size"
    about = f"{found.method}\n{found.loss}, d = {found.parameters:,}, {found.dtype}; dashed: the theorem's slope"
    axes.set_title(about, loc="left", fontsize=10, color=COLOUR["soft"])
    axes.annotate(title, (0, 1), (0, 40), "axes fraction", "offset points", fontsize=14, fontweight="bold", color=COLOUR["ink"])
    return figure


def _looks(kinds: list[Kind]) -> dict[Kind, tuple[str, str, float]]:
    orders = [kind for kind in dict.fromkeys(kinds) if kind not in LOOK]
    return LOOK | {kind: ORDERS[i % len(ORDERS)] for i, kind in enumerate(orders)}


def _frame(axes: Axes, found: Verification) -> None:
    """Axes that end where the numbers do, the step sizes that were run as ticks, and the region of rounding."""
    axes.set(xscale="log", yscale="log")
    errors = [e for a in found.accuracies for e in a.errors if e > 0] or [found.floor]
    low, high = min(*errors, found.floor), max(*errors, found.floor)
    axes.set_ylim(low / 8, high * 10)
    axes.set_xlim(found.lrs[-1] / 1.15, found.lrs[0] * 1.08)
    axes.set_xticks(found.lrs, [f"{lr:g}" for lr in found.lrs])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("learning rate", color=COLOUR["ink"])
    axes.set_ylabel(f"largest distance of any coordinate, up to time {found.horizon:g}", color=COLOUR["ink"])
    axes.grid(color=COLOUR["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=COLOUR["soft"], length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(COLOUR["soft"])
    axes.axhspan(low / 8, found.floor, color=COLOUR["selected"], zorder=0)
    axes.text(
        0.985, found.floor / 1.3, "rounding", transform=axes.get_yaxis_transform(), ha="right", va="top", color=COLOUR["soft"]
    )


def _reference(axes: Axes, a: Accuracy, color: str) -> None:
    """The theorem's power, dashed, through the finest point above the floor."""
    above = [(lr, e) for lr, e in zip(a.lrs, a.errors, strict=True) if e > a.floor]
    if above:
        lr, e = above[-1]
        ends = [a.lrs[0], a.lrs[-1]]
        axes.plot(ends, [e * (end / lr) ** power(a.kind) for end in ends], color=color, linewidth=1, dashes=(4, 3), alpha=0.75)


def _name(axes: Axes, drawn: list[tuple[Accuracy, str, str, float]]) -> None:
    """Name each line at its right end with its slope beside the theorem's, moved apart where two would overlap."""
    low, high = (math.log(y) for y in axes.get_ylim())
    at = {a.kind: (math.log(next(e for e in a.errors if e > 0)) - low) / (high - low) for a, *_ in drawn}
    ends = sorted(drawn, key=lambda each: at[each[0].kind])
    heights = _apart([at[a.kind] for a, *_ in ends])
    name, slope, theorem = 1.015, 1.27, 1.41
    for x, column in ((slope, "slope"), (theorem, "theorem")):
        axes.text(
            x, max(heights, default=0) + GAP, column, transform=axes.transAxes, ha="right", va="center", color=COLOUR["soft"]
        )
    for height, (a, color, *_) in zip(heights, ends, strict=True):
        row: dict[str, Any] = {"transform": axes.transAxes, "va": "center", "color": color, "fontsize": 11}
        axes.text(name, height, label(a.kind), fontweight="bold", **row)
        axes.text(slope, height, _slope(a.order), ha="right", **row)
        axes.text(theorem, height, str(power(a.kind)), ha="right", **row)


def _apart(heights: list[float]) -> list[float]:
    """The ascending heights, moved as little as keeps neighbours GAP apart: groups that touch share their mean."""
    groups: list[list[float]] = []
    for height in heights:
        groups.append([height])
        while len(groups) > 1 and _start(groups[-1]) < _start(groups[-2]) + GAP * len(groups[-2]):
            last = groups.pop()
            groups[-1] += last
    return [_start(group) + GAP * i for group in groups for i in range(len(group))]


def _start(group: list[float]) -> float:
    return sum(group) / len(group) - GAP * (len(group) - 1) / 2
