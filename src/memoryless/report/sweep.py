"""A sweep as a table and as a picture."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from memoryless.experiments.sweep.results import Row, Sweep
from memoryless.render.numbers import NOTHING, finite, number
from memoryless.render.style import COLOUR, PICTURE, SERIES, TERMINAL

NAMES = {
    "train_loss": "training loss",
    "gradient_1_norm": "gradient 1-norm",
    "test_loss": "test loss",
    "test_accuracy": "test accuracy",
}
WIDE = 160
"""Columns of a table where there is no terminal."""
MOST = 20
"""Failed runs told one by one, and lines drawn."""

Group = tuple[dict[str, Any], list[Row]]


def groups(sweep: Sweep) -> list[Group]:
    """Runs that differ in their seed alone.

    Args:
        sweep: to show.
    """
    found: dict[str, Group] = {}
    for row in sweep.rows:
        axes = {name: value for name, value in row.axes.items() if name != "seed"}
        found.setdefault(str(axes), (axes, []))[1].append(row)
    return list(found.values())


def print_sweep(sweep: Sweep, console: Console) -> None:
    """Print a line for each group of runs that differ in their seed alone, and what failed.

    Args:
        sweep: to show.
        console: where to.
    """
    every = groups(sweep)
    axes, measures = list(every[0][0]), [name for name in NAMES if any(name in row.run.what for row in sweep.rows)]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in (*axes, "done", *(NAMES[name].replace(" ", "\n") for name in measures)):
        left = name in ("problem", "optimizer")
        shown = name.replace("_", " ")
        table.add_column(shown, justify="left" if left else "right", overflow="fold", min_width=12 if left else None)
    for at, rows in every:
        done = [row for row in rows if row.state == "done"]
        count = Text(f"{len(done)}/{len(rows)}", style="" if len(done) == len(rows) else TERMINAL["doubt"])
        table.add_row(*(_value(value) for value in at.values()), count, *(_spread(done, name) for name in measures))
    if not console.is_terminal:  # a file has no width
        console.width = WIDE
    console.print(table)
    diverged = any(row.state == "done" and row.diverged for row in sweep.rows)
    spread = ", mean ± standard deviation over seeds" if max(len(rows) for _, rows in every) > 1 else ""
    console.print(f"at the last step{spread}{'; †n: n runs diverged, and are left out' if diverged else ''}")
    for line in lines(sweep):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def lines(sweep: Sweep) -> Iterator[str]:
    """How far it is, and what failed.

    Args:
        sweep: to tell of.
    """
    done, failed, left = (sweep.count(state) for state in ("done", "failed", "left"))
    counts = [
        f"{done} of {len(sweep.rows)} runs done",
        *([f"{failed} failed"] if failed else []),
        *([f"{left} left"] if left else []),
    ]
    yield f"{', '.join(counts)}: {sweep.folder}"
    if older := sum(row.older for row in sweep.rows):
        yield f"{older} of those left were done by other versions of the code or the libraries, which do not count"
    reasons: dict[str, list[Row]] = {}
    for row in sweep.rows:
        if row.state == "failed" and row.record is not None:
            reasons.setdefault(row.record["reason"], []).append(row)
    for reason, rows in list(reasons.items())[:MOST]:
        where = "; ".join(name_of(row.axes) or "the one run" for row in rows[:3])
        yield f"failed: {where}{f' and {len(rows) - 3} more' if len(rows) > 3 else ''}: {reason}"
    if failed:
        yield "--retry runs these again"


def name_of(axes: dict[str, Any]) -> str:
    """A place in the grid in words.

    Args:
        axes: by name.
    """
    return ", ".join(
        str(value) if name in ("problem", "optimizer") else f"{name.replace('_', ' ')} {_value(value)}"
        for name, value in axes.items()
    )


def _value(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_value, value))})"
    return NOTHING if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _spread(done: Sequence[Row], name: str) -> str:
    """Mean and standard deviation of what was recorded last."""
    diverged = [row for row in done if row.diverged]
    values = [value for row in done if row not in diverged and finite(value := row.last.get(name))]
    mark = f" †{len(diverged)}" if diverged else ""
    if not values:
        return mark.strip() or NOTHING
    mean, digits = float(np.mean(values)), 4
    if len(values) == 1:
        return number(mean, digits) + mark
    deviation = float(np.std(values, ddof=1))
    if deviation and mean:  # two digits of it
        digits = min(8, max(2, 2 + math.floor(math.log10(abs(mean))) - math.floor(math.log10(deviation))))
    return f"{number(mean, digits)} ± {number(deviation)}{mark}"


def picture(sweep: Sweep) -> Figure:
    """What was recorded against the step, a panel each: means over seeds, bands from the least to the largest.

    Runs that diverged are left out, as in the table: they end before the others.

    Args:
        sweep: with at least one run done.
    """
    shown = [(at, done) for at, rows in groups(sweep) if (done := [row for row in rows if row.state == "done"])]
    measures = [name for name in NAMES if any(name in row.run.what for _, rows in shown for row in rows)] or list(NAMES)[:1]
    with mpl.rc_context(PICTURE):
        columns = min(2, len(measures))
        rows = math.ceil(len(measures) / columns)
        legend = 0.22 * min(len(shown), MOST) + 0.3
        height = 3.2 * rows + 0.8 + legend
        figure = Figure(figsize=(5.2 * columns, height), dpi=150)
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        figure.subplots_adjust(0.09, (legend + 0.5) / height, 0.98, 1 - 1.0 / height, 0.22, 0.35)
        for ax, name in zip(axes, measures, strict=False):
            for k, (at, done) in enumerate(shown[:MOST]):
                _curve(ax, done, name, k, name_of(at) or "the one setting")
            _dress(ax, name)
        for ax in axes[len(measures) :]:
            ax.set_visible(False)
        seeds = max((len(done) for _, done in shown), default=0)
        figure.text(0.02, 1 - 0.3 / height, f"Sweep {sweep.grid.path.name}", fontsize=13, weight="bold", va="center")
        about = f"{sweep.count('done')} of {len(sweep.rows)} runs done; mean and range of up to {seeds} seeds"
        diverged = sum(row.diverged for _, done in shown for row in done)
        about += f"; {diverged} diverged, and are left out" if diverged else ""
        about += f"; the first {MOST} of {len(shown)} settings" if len(shown) > MOST else ""
        figure.text(0.02, 1 - 0.55 / height, about, color=COLOUR["soft"], va="center")
        handles, names = axes[0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, names, loc="lower left", bbox_to_anchor=(0.02, 0.01), frameon=False, fontsize=9)
    return figure


def _curve(ax: Axes, done: Sequence[Row], name: str, k: int, label: str) -> None:
    by: dict[int, list[float]] = {}
    for row in done:
        if row.diverged:
            continue
        for record in (row.record or {}).get("records", []):
            if finite(value := record.get(name)):
                by.setdefault(record["step"], []).append(value)
    steps = sorted(by)
    if not steps:
        return
    dashes = ("solid", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))[k // len(SERIES) % 4]
    colour = SERIES[k % len(SERIES)]
    if len(done) > 1:
        low, high = ([f(by[step]) for step in steps] for f in (min, max))
        ax.fill_between(steps, low, high, color=colour, alpha=0.13, linewidth=0)
    ax.plot(steps, [float(np.mean(by[step])) for step in steps], color=colour, linestyle=dashes, linewidth=1.5, label=label)


def _dress(ax: Axes, name: str) -> None:
    ax.set_title(NAMES[name], loc="left", fontsize=11, pad=6)
    if name != "test_accuracy":
        ax.set_yscale("log")
    ax.set_xlabel("step $n$")
    ax.margins(x=0)
    ax.grid(True, color=COLOUR["grid"], linewidth=0.8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(colors=COLOUR["soft"], labelcolor=COLOUR["ink"], which="both", length=3)
    ax.set_axisbelow(True)
