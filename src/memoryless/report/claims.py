"""A reproduced figure in words and as a picture: claims, each with its test, verdict and numbers; panels as in the paper."""

import math
from collections.abc import Iterator

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import MaxNLocator
from scipy import stats

from memoryless.experiments.figure import Cell, Figure, Level, Line, Panel
from memoryless.render.style import COLOUR, PICTURE

FAMILY = LinearSegmentedColormap.from_list("family", ["#00876c", "#2b8cbe", "#332288", "#882255"])
"""Of lines that differ in one number, from the least to the largest."""
MARKERS = "osD^vPX"
"""Of the lines of a panel, in turn."""


def lines(figure: Figure) -> Iterator[str]:
    """What was run, and for each claim the test, the verdict and what it rests on.

    Args:
        figure: that was run.
    """
    yield f"{figure.experiment.title} ({figure.scale}: {figure.experiment.about[figure.scale]})"
    residuals = [x for found in figure.found for x in found.numbers.get("residual", ()) if x is not None and math.isfinite(x)]
    if residuals:
        yield f"residuals of the eigenvalues: up to {max(residuals):.1e} of them; one whose search did not converge is left out"
    for verdict in figure.verdicts:
        yield ""
        yield f"{verdict.claim.text}: {verdict.word}"
        yield f"  test, fixed before the run: {verdict.claim.test}"
        width = max((len(cell.where) for cell in verdict.cells), default=0)
        for cell, answer in zip(verdict.cells, verdict.answers, strict=True):
            yield f"  {cell.where:{width}}  {_interval(cell)}  {answer}"
    for setting, reason in figure.failed:
        yield f"no numbers from {setting}: {reason}"


def _interval(cell: Cell) -> str:
    mean, low, high = cell.interval
    count = len(cell.known)
    if not math.isfinite(low):
        return f"{mean:.3g} ({count} seed{'s' * (count != 1)})" if count else "no number"
    digits = max(0, 1 - math.floor(math.log10(high - low))) if high > low else 3
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}], {count} seeds"


def picture(figure: Figure) -> Picture:
    """Panels in rows, with the claims and verdicts below them.

    Args:
        figure: that was run.
    """
    rows = figure.panels or [[]]
    columns = max(1, *map(len, rows))
    width = max(11.0, 3.6 * columns)
    words = [line for v in figure.verdicts for line in _wrapped(f"{v.claim.text}: {v.word}", round(12 * width))]
    # Where all panels have one legend, and that would hide lines, it stands above them.
    legends = {tuple(line.label for line in panel.lines) for row in rows for panel in row if panel.lines}
    shared = len(legends) == 1 and len(max(legends)) > 3
    with mpl.rc_context(PICTURE):
        foot, head = 0.62 + 0.2 * len(words), 1.05 + 0.3 * shared
        height = head - 0.25 + 3.5 * len(rows) + foot
        shown = Picture(figsize=(width, height), dpi=150)
        grid = shown.add_gridspec(
            len(rows),
            columns,
            left=0.075,
            right=0.98,
            top=1 - head / height,
            bottom=(foot + 0.25) / height,
            hspace=0.42,
            wspace=0.26,
        )
        for i, row in enumerate(rows):
            for j, panel in enumerate(row):
                ax = shown.add_subplot(grid[i, j])
                _draw(ax, panel)
                if (len(panel.lines) > 1 or panel.levels) and not shared:
                    ax.legend(frameon=False, fontsize=8.5, handlelength=1.6, labelspacing=0.25)
        if shared:
            handles, labels = shown.axes[0].get_legend_handles_labels()
            shown.legend(
                handles, labels, frameon=False, ncols=len(labels), loc="center left", bbox_to_anchor=(0.014, 1 - 0.98 / height)
            )
        shown.text(0.02, 1 - 0.28 / height, figure.experiment.title, fontsize=13, weight="bold", va="center")
        seeds = max((line.y.shape[0] for row in rows for panel in row for line in panel.lines), default=0)
        points = any(panel.ticks for row in rows for panel in row)
        bars = f"{'error bars' if points else 'bands'}: {figure.experiment.bars}"
        about = f"{figure.experiment.about[figure.scale]}; {seeds} seeds, {bars}"
        for k, line in enumerate(_wrapped(about, round(12 * width))):
            shown.text(0.02, 1 - (0.52 + 0.18 * k) / height, line.strip(), color=COLOUR["soft"], va="center")
        for k, line in enumerate(words):
            shown.text(0.02, (foot - 0.4 - 0.2 * k) / height, line, fontsize=9, va="center")
    return shown


def _wrapped(text: str, width: int) -> list[str]:
    lines, line = [], ""
    for word in text.split():
        if len(line) + len(word) > width:
            lines.append(line)
            line = "    "
        line += word + " "
    return [*lines, line]


def _draw(ax: Axes, panel: Panel) -> None:
    ax.set_title(panel.title, loc="left", fontsize=10.5, pad=6)
    ax.set_xlabel(panel.x)
    ax.set_ylabel(panel.y)
    for level in panel.levels:
        _level(ax, level)
    for k, line in enumerate(panel.lines):
        _line(ax, line, bool(panel.ticks), MARKERS[k % len(MARKERS)])
    if panel.log:
        ax.set_yscale("log")
    if panel.ticks:
        ax.set_xticks(range(len(panel.ticks)), panel.ticks)
        ax.set_xlim(-0.4, len(panel.ticks) - 0.6)
    else:
        ax.set_xlim(left=0)
        ax.set_ylim(bottom=0, top=panel.top)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if not panel.log:
        ax.yaxis.set_major_locator(MaxNLocator(6))
    ax.grid(True, color=COLOUR["grid"], linewidth=0.8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(colors=COLOUR["soft"], labelcolor=COLOUR["ink"], length=3)
    ax.set_axisbelow(True)


def _line(ax: Axes, line: Line, points: bool, marker: str) -> None:
    colour = FAMILY(line.shade)
    mean, error = _mean(line.y), _error(line.y)
    if points:
        ax.errorbar(
            line.x,
            mean,
            error,
            color=colour,
            marker=marker,
            markersize=5,
            linewidth=1.4,
            capsize=3,
            elinewidth=1.1,
            label=line.label,
        )
        return
    ax.plot(line.x, mean, color=colour, linewidth=1.5, label=line.label)
    ax.fill_between(line.x, mean - error, mean + error, color=colour, alpha=0.18, linewidth=0)


def _mean(y: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.array([column[np.isfinite(column)].mean() if np.isfinite(column).any() else np.nan for column in y.T])


def _error(y: np.ndarray) -> np.ndarray:
    kept = [column[np.isfinite(column)] for column in y.T]
    return np.array([stats.sem(column) if len(column) > 1 else 0.0 for column in kept])


def _level(ax: Axes, level: Level) -> None:
    ax.axhline(level.y, color=COLOUR["ink"], linewidth=1.1, linestyle=(0, (5, 2)), label=level.label)
    if level.error:
        ax.axhspan(level.y - level.error, level.y + level.error, color=COLOUR["ink"], alpha=0.08, linewidth=0)
