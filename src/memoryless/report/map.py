"""A map over betas, as a table and a picture."""

import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from memoryless.audits.beta_map import BetaMap
from memoryless.render.numbers import label, number, percent
from memoryless.render.style import COLOUR, PICTURE, TERMINAL
from memoryless.report.panel import draw, scale, shades

DOUBT = 0.2
"""Relative error of an effect from which its cell is marked."""
HOW = {
    "state": "from the optimizer's own buffers",
    "first": "to first order, from theta alone",
    "resummed": "resummed, from theta alone",
    "path": "along the path back, from theta alone",
    "measured": "by measuring, some real steps on, on a copy",
}


def print_map(found: BetaMap, own: tuple[float, float] | None, about: str, console: Console) -> None:
    """For each measure a table over the pairs; what happens at some of them; other methods.

    Args:
        found: the map.
        own: the optimizer's own pair of betas, if it has one.
        about: problem and optimizer.
        console: where to.
    """
    console.print(Text(about))
    console.print(Text(f"Known {HOW[found.order]}."))
    for name, change in found.changes.items():
        console.print(Text(f"Change of the {label(name)} that memory would cause in one step, in %, as slopes:"))
        console.print(_table(found, change, own))
        console.print(Text(_marks(found, own), style="dim"))
        for check in found.checks:
            if name in check.changes and check.slopes[name] * check.changes[name] < 0:
                slope, change = percent(check.slopes[name]), percent(check.changes[name])
                line = f"at {_pair(check.betas)} slopes say {slope}, but {change} happens"
                console.print(Text(line, style=TERMINAL["doubt"]))
    for guess in found.others:
        told = "not known from these buffers"
        if guess.changes is not None and guess.intervals is not None:
            told = ", ".join(
                f"{label(name)} {percent(change)}" + _within(guess.intervals[name], change)
                for name, change in guess.changes.items()
            )
        console.print(Text(f"{guess.method}: {told}"))
    for note in found.notes:
        console.print(Text(f"Note: {note}.", style=TERMINAL["doubt"]))
    if found.growth is not None and not found.trusted:
        line = f"the gradient grows by {found.growth:.3g} on the path back: it is not to be trusted here"
        console.print(Text(line, style=TERMINAL["doubt"]))


def _table(found: BetaMap, change: np.ndarray, own: tuple[float, float] | None) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    for head in ("β₁ \\ β₂", *(f"{b:g}" for b in found.betas_2)):
        table.add_column(head, justify="right", no_wrap=True)
    doubt = doubtful(found)
    for i, b1 in enumerate(found.betas_1):
        cells = []
        for j, b2 in enumerate(found.betas_2):
            text = (
                "·" if np.isnan(change[i, j]) else ("~" if doubt[i, j] else "") + number(100 * float(change[i, j]), sign=True)
            )
            cells.append(f"*{text}" if own == (b1, b2) else text)
        table.add_row(f"{b1:g}", *cells)
    return table


def _marks(found: BetaMap, own: tuple[float, float] | None) -> str:
    marks = ["* the optimizer's own pair"] if own else []
    if found.error is not None:
        marks.append(f"~ the effect may be wrong by more than {DOUBT:.0%}; · not known from these buffers")
    if found.settled is not None:
        marks.append("~ not settled by these steps")
    return "; ".join(marks)


def doubtful(found: BetaMap) -> np.ndarray:
    """Cells whose number is there and in doubt, shape (betas_1, betas_2).

    Args:
        found: the map.
    """
    doubt = np.zeros((len(found.betas_1), len(found.betas_2)), dtype=bool)
    if found.error is not None:
        doubt |= found.error >= DOUBT
    if found.settled is not None:
        doubt |= ~found.settled
    return doubt & np.isfinite(next(iter(found.changes.values())))


def picture(found: BetaMap, own: tuple[float, float] | None, about: str) -> Figure:
    """A panel for each measure.

    Args:
        found: the map.
        own: the optimizer's own pair of betas, if it has one.
        about: problem and optimizer.
    """
    names: Sequence[str] = list(found.changes)
    with matplotlib.rc_context(PICTURE):
        figure = Figure(figsize=(4.6 * len(names) + 0.6, 4.9), layout="constrained")
        how = f"{about}; {HOW[found.order]}; ring: own betas; line: no effect; dots: in doubt; blank: not known"
        figure.suptitle("\n".join(textwrap.wrap(how, 62 * len(names))), x=0.01, ha="left", fontsize=10)
        panels = np.asarray(figure.subplots(1, len(names), squeeze=False))[0]
        ring = None
        if own and own[0] in found.betas_1 and own[1] in found.betas_2:
            ring = found.betas_1.index(own[0]), found.betas_2.index(own[1])
        for panel, name in zip(panels, names, strict=True):
            reach = float(np.nanmax(np.abs(found.changes[name]), initial=0.0)) or 1.0
            norm = shades(reach)
            draw(panel, found.changes[name], doubtful(found), (found.betas_1, found.betas_2), ring, norm)
            panel.set_title(f"{label(name)}, slope per step", fontsize=9.5)
            panel.set_facecolor(COLOUR["grid"])
            scale(figure, [panel], norm)
        panels[0].set_ylabel("beta 1")
    return figure


def _within(interval: float, change: float) -> str:
    """Half the width of an interval, where it would show."""
    return f" ± {number(100 * interval)} %" if interval > 1e-3 * abs(change) else ", exactly"


def _pair(betas: tuple[float, float]) -> str:
    return f"({betas[0]:g}, {betas[1]:g})"
