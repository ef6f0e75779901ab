"""A comparison of optimizers as a table and a picture."""

from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from memoryless.audits.compare import Compared
from memoryless.render.numbers import label, percent
from memoryless.render.style import COLOUR, PICTURE, TERMINAL


def print_comparison(rows: Sequence[Compared], about: str, console: Console) -> None:
    """One table per measure, and the reasons of the rows without numbers.

    Args:
        rows: from `compare`.
        about: problem and number of steps, in words.
        console: where to.
    """
    done = [(row.name, row.audit) for row in rows if row.audit is not None]
    console.print(about)
    for k in range(len(done[0][1].effects) if done else 0):
        title = f"Change of the {label(done[0][1].effects[k].measure)} S in one step caused by memory"
        bent = any(not audit.effects[k].straight for _, audit in done)
        caption = "! one step is too long here for slopes" if bent else None
        table = Table(title=title, caption=caption, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD)
        table.padding = (0, 1, 0, 0)
        table.add_column("optimizer", overflow="fold")
        for column in ("S", "measured", "path", "resummed", "first order", "slope", "memory"):
            table.add_column(column, justify="right", no_wrap=True)
        for name, audit in done:
            e = audit.effects[k]
            changes = map(percent, (e.measured, e.path, e.resummed, e.first))
            slope = percent(e.slopes.best) + ("" if not bent else "  " if e.straight else " !")
            table.add_row(_short(name), f"{e.value:.3g}", *changes, slope, Text(e.word, style=TERMINAL[e.word]))
        console.print(table)
    for row in rows:
        if row.reason is not None:
            console.print(Text(f"{row.name}: {row.reason}", style=TERMINAL["doubt"]))


def _short(name: str) -> str:
    """Without the modules' path."""
    path, bracket, options = name.partition("(")
    return path.rpartition(".")[2] + bracket + options


def picture(rows: Sequence[Compared], about: str) -> Figure:
    """Bars by optimizer, one panel per measure; a change beyond the measured ones' range is cut and written out.

    Args:
        rows: from `compare`, at least one with an audit.
        about: below the title.
    """
    done = [(row.name, row.audit) for row in rows if row.audit is not None]
    measures = [e.measure for e in done[0][1].effects]
    with matplotlib.rc_context(PICTURE | {"axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(4.2 * len(measures) + 1.5, 0.62 * len(done) + 2.2), layout="constrained")
        figure.suptitle(f"Memory's change of the loss's shape, per step\n{about}", x=0.01, ha="left", fontsize=11)
        panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
        for k, (panel, measure) in enumerate(zip(panels, measures, strict=True)):
            effects = [audit.effects[k] for _, audit in done]
            reach = 1.6 * max((abs(c) for e in effects for c in (e.measured, e.resummed) if c is not None), default=1) or 1
            for j, (kind, name) in enumerate({"measured": "measured", "resummed": "resummed", "first": "first order"}.items()):
                changes = [getattr(e, kind) or 0.0 for e in effects]
                places = [i + 0.26 * (j - 1) for i in range(len(done))]
                shown = [max(-reach, min(reach, c)) for c in changes]
                panel.barh(places, [100 * c for c in shown], height=0.22, color=COLOUR[kind], label=name)
                for place, change, cut in zip(places, changes, shown, strict=True):
                    if change != cut:
                        side = "right" if cut > 0 else "left"
                        panel.text(100 * cut, place, f" {percent(change)} ", va="center", ha=side, fontsize=7, color="white")
            panel.axvline(0, color=COLOUR["soft"], linewidth=0.8)
            panel.set_xlim(-100 * reach, 100 * reach)
            panel.set_title(label(measure), loc="left", fontsize=10)
            panel.set_xlabel("% per step: regularizes < 0 < anti-regularizes", fontsize=8)
        panels[0].set_yticks(range(len(done)), [_short(name) for name, _ in done])
        panels[0].invert_yaxis()
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure
