"""Fig. 1 in words and as a picture."""

import math
from collections.abc import Iterator, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from memoryless.experiments.fig1 import KINDS, Closer, Comparison, Fig1
from memoryless.render.style import COLOUR, PICTURE

NAMES = {"frozen": "frozen", "first": "first order", "resummed": "resummed"}
DASHES = "solid", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5))
"""One per learning rate."""


def lines(fig1: Fig1) -> Iterator[str]:
    """What was found: per optimizer, betas and learning rate; then where the paper's claim holds.

    Args:
        fig1: the numbers.
    """
    last = fig1.comparisons[0].setting.steps
    yield f"Distance from the optimizer at step {last}, against frozen's (by seed), and on average over the run"
    for c in fig1.comparisons:
        yield _name(c)
        for kind in KINDS:
            end = c.distances(kind)[:, -1].mean()
            shown = f"  {NAMES[kind]:13}{f'{end:.2g}' if math.isfinite(end) else '-':9}"
            yield shown.rstrip() if kind == "frozen" else f"{shown}{_closer(c.closer(kind))}"
        for run in c.runs:
            for kind, step in run.diverged.items():
                who = "the optimizer itself" if kind == "memory" else NAMES[kind]
                yield f"  {who} diverged at step {step} (seed {run.setting.seed})"
    yield "The paper's claim, that the correction brings the path closer to the optimizer's"
    for kind in KINDS[1:]:
        where: dict[str, list[str]] = {}
        for c in fig1.comparisons:
            where.setdefault(c.closer(kind).verdict, []).append(_name(c))
        for verdict, names in where.items():
            yield f"  {NAMES[kind]:13}{verdict}: {'; '.join(names)}"


def _closer(x: Closer) -> str:
    seeds = f" ({_range(x.end)})" if len(x.end) > 1 else ""
    return f"{_mean(x.end)}{seeds}, on average {_mean(x.average)}"


def _mean(ratios: NDArray[np.float64]) -> str:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = float(np.exp(np.log(ratios).mean()))  # geometric: of the reciprocals it is the reciprocal
    if math.isnan(ratio):
        return "not comparable"
    times, word = _times(ratio)
    return "as close" if times == "1" else f"{times} times {word}"


def _range(ratios: NDArray[np.float64]) -> str:
    (low, below), (high, above) = _times(float(ratios.min())), _times(float(ratios.max()))
    if below != above:
        return f"{low} {below} to {high} {above}"
    return f"{low} to {high}" if above == "closer" else f"{high} to {low}"


def _times(ratio: float) -> tuple[str, str]:
    if ratio > 1:
        return f"{ratio:.2g}", "closer"
    return (f"{1 / ratio:.2g}" if ratio > 0 else "inf"), "FARTHER"


def _name(c: Comparison) -> str:
    return f"{_panel(c)}, lr {_power(c.setting.lr)}"


def _panel(c: Comparison) -> str:
    return f"{c.setting.optimizer} ({', '.join(f'{beta:g}' for beta in c.setting.betas)})"


def _power(lr: float) -> str:
    """1e-4 for 0.0001."""
    digits, _, power = f"{lr:.3e}".partition("e")
    return f"{float(digits):g}e{int(power)}"


def picture(fig1: Fig1) -> Figure:
    """The distances against the step: a column of panels per optimizer, a row per pair of betas.

    Lines are means over the seeds, bands reach from the least to the largest; colour is the kind, dashes the learning rate.

    Args:
        fig1: with at most four learning rates.
    """
    first = fig1.comparisons[0].setting
    columns = list(dict.fromkeys(c.setting.optimizer for c in fig1.comparisons))
    rows = list(dict.fromkeys(c.setting.betas for c in fig1.comparisons))
    lrs = list(dict.fromkeys(c.setting.lr for c in fig1.comparisons))
    seeds = len(fig1.comparisons[0].runs)
    with mpl.rc_context(PICTURE):
        height = 1.35 + 3.55 * len(rows)
        figure = Figure(figsize=(12, height), dpi=150)
        axes = figure.subplots(len(rows), len(columns), sharex=True, sharey=True, squeeze=False)
        figure.subplots_adjust(0.062, 0.55 / height, 0.858, 1 - 1.0 / height, 0.58, 0.3)
        for row, betas in zip(axes, rows, strict=True):
            for ax, optimizer in zip(row, columns, strict=True):
                shown = [c for c in fig1.comparisons if (c.setting.optimizer, c.setting.betas) == (optimizer, betas)]
                _panel_of(ax, shown, lrs)
        for row in axes:  # labels are placed once the common scale is known
            for ax in row:
                _label(ax)
            row[0].set_ylabel(r"$\|\theta_n - t_n\|_\infty$", fontsize=11)
        for ax in axes[-1]:
            ax.set_xlabel("step $n$")
        title = "How far the memoryless iterations stray from the optimizer"
        about = f"{fig1.data}, full batch, eps {_power(first.eps)}; "
        about += f"mean and range of {seeds} seeds" if seeds > 1 else "one seed"
        about += "; † diverged" if any(run.diverged for run in fig1.runs) else ""
        figure.text(0.062, 1 - 0.3 / height, title, fontsize=13, weight="bold", va="center")
        figure.text(0.062, 1 - 0.55 / height, about, color=COLOUR["soft"], va="center")
    return figure


def _panel_of(ax: Axes, comparisons: Sequence[Comparison], lrs: Sequence[float]) -> None:
    ax.set_title(_panel(comparisons[0]), loc="left", fontsize=11, pad=6)
    ax.set_yscale("log")
    for c in comparisons:
        steps = np.array(c.setting.recorded)
        for kind in KINDS:
            d = c.distances(kind)
            d = np.where(np.isfinite(d) & (d > 0), d, np.nan)
            ax.fill_between(steps, d.min(axis=0), d.max(axis=0), color=COLOUR[kind], alpha=0.13, linewidth=0)
            lost = " †" if any(kind in run.diverged for run in c.runs) else ""
            label = f"{NAMES[kind]}, lr {_power(c.setting.lr)}{lost}"
            ax.plot(
                steps, d.mean(axis=0), color=COLOUR[kind], linestyle=DASHES[lrs.index(c.setting.lr)], linewidth=1.6, label=label
            )
    ax.set_xlim(0, comparisons[0].setting.steps)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.grid(True, color=COLOUR["grid"], linewidth=0.8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(colors=COLOUR["soft"], labelcolor=COLOUR["ink"], which="both", labelleft=True, length=3)
    ax.set_axisbelow(True)


def _label(ax: Axes) -> None:
    """Each line's name beside its end, moved apart as little as legibility allows."""
    ends = []
    for line in ax.lines:
        points = np.column_stack(line.get_data())
        if len(points := points[np.isfinite(points).all(axis=1)]):
            ends.append((line, *ax.transAxes.inverted().transform(ax.transData.transform(points[-1]))))
    ends.sort(key=lambda end: end[2])
    # Least squares under y[j+1] - y[j] >= gap is isotonic regression of y[j] - j gap.
    steps = 0.062 * np.arange(len(ends))
    apart = isotonic_regression(np.array([y for _, _, y in ends]) - steps).x + steps if ends else []
    for (line, x, y), place in zip(ends, apart, strict=True):
        style = {"color": line.get_color(), "transform": ax.transAxes, "clip_on": False}
        ax.add_line(Line2D([x, max(x, 1) + 0.015, 1.04], [y, y, place], linewidth=0.6, alpha=0.7, **style))
        ax.add_line(Line2D([1.045, 1.1], [place, place], linewidth=1.6, linestyle=line.get_linestyle(), **style))
        ax.text(1.112, place, str(line.get_label()), va="center", fontsize=9, **style)
