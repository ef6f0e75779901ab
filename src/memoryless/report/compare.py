"""A comparison of optimizers as tables and a picture."""

import re
import textwrap
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from memoryless.audits.audit import Audit
from memoryless.audits.compare import Comparison
from memoryless.render.numbers import SignedLog, broken, cosine, label, near, percent
from memoryless.render.style import COLOUR, KINDS, MARK, PICTURE, SIGN, TERMINAL

HEADS = {kind: "1st order" if kind == "first" else kind for kind in KINDS}


def print_comparison(found: Comparison, console: Console) -> None:
    """The answers, where each optimizer arrived, one table per measure, and the reasons of the rows without numbers.

    Args:
        found: from `compare`.
        console: where to.
    """
    done = {row.name: row.audit for row in found if row.audit is not None}
    rows = dict(zip(_short(list(done)), done.values(), strict=True))
    console.print(_about(found))
    for answer in found.answers:  # rich would part a number from its %
        console.print(Text("\n".join(textwrap.wrap(answer.sentence, console.width, break_on_hyphens=False)), style="bold"))
    if rows:
        console.print()
        console.print(_arrived(rows, console.width))
    for k in range(len(found.answers)):
        console.print(_changes(rows, k, console.width))
    for row in found:
        if row.reason is not None:
            console.print(Text(f"{row.name}: {row.reason}", style=TERMINAL["doubt"]))


def _about(found: Comparison) -> str:
    about = [found.about[name] for name in ("problem", "size") if name in found.about]
    return ", ".join([*about, f"after {found.steps} steps of each optimizer's own run"])


def _table(title: str, caption: str, columns: Sequence[str], rows: Mapping[str, Sequence[str | Text]], width: int) -> Table:
    """Numbers by name; the names take what they leave of the width, or stand below where that is too little."""
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD)
    table.padding, table.show_edge = (0, 1, 0, 0), False
    table.add_column("optimizer", no_wrap=True)
    room = width - 1
    for column, cells in zip(columns, zip(*rows.values(), strict=True), strict=True):
        table.add_column(column, justify="right", no_wrap=True)
        room -= max(map(len, (column, *cells))) + 2
    heads = [broken(name, room) for name in rows]
    if max(len(line) for head in heads for line in head.split("\n")) > room:
        table.caption = "".join(f"{n} {name}\n" for n, name in enumerate(rows, 1)) + caption
        heads = [str(n) for n in range(1, len(rows) + 1)]
    for head, cells in zip(heads, rows.values(), strict=True):
        table.add_row(head, *cells)
    return table


def _arrived(rows: Mapping[str, Audit], width: int) -> Table:
    title = "Where each arrived: the losses differ, so rows are not at equal loss"
    caption = "cosine of each prediction with the measured effect; * the one to go by, where one holds\n"
    kinds = [kind for kind in KINDS if kind != "measured"]

    def agrees(audit: Audit, kind: str) -> str:
        found = getattr(audit.validity, kind)
        return cosine(found and found.cosine) + (" *" if found and kind == audit.validity.go_by else "  ")

    cells = {
        name: [f"{audit.lr:g}", f"{audit.loss:.3g}", *(agrees(audit, kind) for kind in kinds)] for name, audit in rows.items()
    }
    return _table(title, caption, ["lr", "loss", *(HEADS[kind] for kind in kinds)], cells, width)


def _changes(rows: Mapping[str, Audit], k: int, width: int) -> Table:
    effects = {name: audit.effects[k] for name, audit in rows.items()}
    measure = next(iter(effects.values())).measure
    bent = any(not e.straight for e in effects.values())
    caption = ", ".join(f"{sign} {word}" for word, sign in SIGN.items())
    cells = {
        name: [
            f"{e.value:.3g}",
            Text(f"{SIGN[e.word]} {percent(e.measured)}", style=TERMINAL[e.word]),
            *map(percent, (e.path, e.resummed, e.first)),
            percent(e.slopes.measured) + ("" if not bent else "  " if e.straight else " !"),
        ]
        for name, e in effects.items()
    }
    title = f"Change of the {label(measure)} S in one step caused by memory"
    caption += "; ! one step is too long here for slopes\n" if bent else "\n"
    return _table(title, caption, ["S", *HEADS.values(), "slope"], cells, width)


def _short(names: Sequence[str]) -> list[str]:
    """Without the path of their modules, where they are still told apart."""
    short = [re.sub(r"^[^(]*[.:]", "", name) for name in names]
    return short if len(set(short)) == len(short) else list(names)


def picture(found: Comparison) -> Figure:
    """Marks by optimizer on a signed-logarithmic axis, one panel per measure, with each row's neutral band.

    Args:
        found: from `compare`, at least one row with an audit.
    """
    done = [row.audit for row in found if row.audit is not None]
    names = _short([row.name for row in found if row.audit is not None])
    measures = [answer.measure for answer in found.answers]
    with matplotlib.rc_context(PICTURE | {"axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(4.2 * len(measures) + 1.5, 0.5 * len(done) + 2.2), layout="constrained")
        figure.suptitle(f"Memory's change of the loss's shape, per step\n{_about(found)}", x=0.01, ha="left", fontsize=11)
        panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
        for k, (panel, measure) in enumerate(zip(panels, measures, strict=True)):
            effects = [audit.effects[k] for audit in done]
            band = [e.random for e in effects]
            scale = [*band, *(e.measured for e in effects)]
            changes = {kind: near([getattr(e, kind) for e in effects], scale) for kind in KINDS}
            axis = SignedLog.of([*(c for each in changes.values() for c in each), *band, *(-r for r in band)])
            ends = [end or 0.0 for end in axis.place(band)]
            panel.barh(
                range(len(done)),
                [2 * r for r in ends],
                left=[-r for r in ends],
                height=0.5,
                color=COLOUR["axis"],
                alpha=0.25,
                label="neutral: no more than chance",
                linewidth=0,
            )
            for kind in reversed(KINDS):
                mark = MARK[kind]
                panel.plot(
                    axis.place(changes[kind]),
                    range(len(done)),
                    mark.marker,
                    color=COLOUR[kind],
                    markersize=0.75 * mark.size,
                    label=KINDS[kind],
                )
            panel.axvline(0, color=COLOUR["ink"], linewidth=0.8, zorder=0)
            ticks = axis.axis(gap=0.13)
            panel.set_xticks(ticks["tickvals"], ticks["ticktext"], fontsize=8)
            panel.set_xlim(ticks["range"])
            panel.grid(axis="x", color=COLOUR["grid"], zorder=0)
            panel.set_axisbelow(True)
            panel.set_title(label(measure), loc="left", fontsize=10)
            panel.set_xlabel("per step: regularizes < 0 < anti-regularizes", fontsize=8)
        panels[0].set_yticks(range(len(done)), names)
        panels[0].set_ylim(len(done) - 0.5, -0.5)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=5, frameon=False)
    return figure
