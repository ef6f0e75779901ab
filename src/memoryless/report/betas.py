"""At my batch size, which betas? As words, a table and a picture."""

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from memoryless.corrections.expected.estimate import Samples
from memoryless.live.advice import advice, answer, said, with_error
from memoryless.live.batch_sizes import AtSize, BatchSizes
from memoryless.loss.noise_scale import GradientNoise
from memoryless.render.numbers import label, percent
from memoryless.render.style import COLOUR, DIVERGING, PICTURE, SERIES, TERMINAL
from memoryless.report.panel import draw, scale, shades, tick

TITLE = {"measured": "measured", "resummed": "resummed", "first": "first order"}
PAPER = {"facecolor": COLOUR["paper"], "alpha": 0.75, "linewidth": 0, "pad": 1}
COLOURS = LinearSegmentedColormap.from_list("effect", DIVERGING)


def as_dict(found: BatchSizes) -> dict[str, Any]:
    """Plain numbers and text, the advice included.

    Args:
        found: at one stage of training.
    """
    plain = found.as_dict()
    for told, size in zip(plain["sizes"], found.sizes, strict=True):
        told["advice"] = {name: advice(found, size, k) for k, name in enumerate(found.measures)}
        told["answer"] = {name: answer(found, size, k) for k, name in enumerate(found.measures)}
    return plain


def print_advice(stages: Sequence[BatchSizes], about: str, console: Console) -> None:
    """For each measure a table over batch sizes and stages; the advice at the last stage; the answer in one sentence each.

    Args:
        stages: of training, in order.
        about: problem and optimizer.
        console: where to.
    """
    last, several = stages[-1], len(stages) > 1
    own = f"betas ({last.betas_1[last.own[0]]:g}, {last.betas_2[last.own[1]]:g}), lr {last.lr:g}"
    for k, name in enumerate(last.measures):
        title = f"Change of the {label(name)} per step caused by memory, at {own}"
        caption = "- regularizes, + anti-regularizes; ± standard error; measured: what happens in one step"
        table = Table(
            title=title,
            caption=caption,
            title_justify="left",
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        for column in (*["steps"] * several, "batch", "measured", "slope", "resummed slope", "first-order slope"):
            table.add_column(column, justify="right", no_wrap=True)
        for stage in stages:
            for size in stage.sizes:
                numbers = (with_error(getattr(size, kind).at((*stage.own, k))) for kind in TITLE)
                happens = size.change.at((k,))
                steps = [f"{stage.taken + stage.steps:,}"] * several
                table.add_row(*steps, _name(size), Text(with_error(happens), style=TERMINAL[said(happens)]), *numbers)
        console.print(table)
    for k, name in enumerate(last.measures):
        steps = f"after {last.taken:,} steps of training and {last.steps:,} at each batch size"
        console.print(Text(f"The {label(name)}, {steps}", style="bold"))
        for size in last.sizes:
            console.print(Text(f"\n{_name(size)}{_known(size, k)}"))
            console.print(Padding("\n".join(advice(last, size, k)), (0, 0, 0, 2)))
        console.print()
    console.print(Text(f"Which betas? {about}", style="bold"))
    for k in range(len(last.measures)):
        for size in last.sizes:
            console.print(answer(last, size, k))


def _known(size: AtSize, k: int) -> str:
    """What else is known at a batch size."""
    noise = "" if size.noise is None else f"noise scale {_samples(size.noise)}; "
    told = []
    for kind in ("resummed", "first"):
        same, known = signs(size, kind, k)
        told.append(f"{'' if told else 'signs as measured, where known: '}{TITLE[kind]} {same} of {known} pairs")
    return f" ({noise}{', '.join(told)})"


def _samples(noise: GradientNoise) -> str:
    low, high = noise.interval or (math.nan, math.nan)
    if not math.isfinite(high):
        return f"at least {low:,.0f} samples (95 %): the gradient cannot be told from its noise"
    return f"{noise.scale:,.0f} samples (95 %: {low:,.0f} to {high:,.0f})"


def _name(size: AtSize) -> str:
    return "full" if size.size is None else str(size.size)


def signs(size: AtSize, kind: str, k: int) -> tuple[int, int]:
    """In how many pairs a prediction has the measured sign, of those where the latter is beyond two standard errors.

    Args:
        size: one batch size.
        kind: "first" or "resummed".
        k: which measure.
    """
    measured, predicted = (maps.at((slice(None), slice(None), k)) for maps in (size.measured, getattr(size, kind)))
    known = np.abs(measured.mean) > 2 * measured.standard_error
    same = known & (np.sign(measured.mean) == np.sign(predicted.mean))
    return int(same.sum()), int(known.sum())


def picture(stages: Sequence[BatchSizes]) -> Figure:
    """Of the first measure: a map per batch size, measured above predicted, at the last stage; and over stages, if several.

    Args:
        stages: of training, in order.
    """
    last = stages[-1]
    columns, several = len(last.sizes), len(stages) > 1
    with matplotlib.rc_context(PICTURE):
        figure = Figure(figsize=(3.1 * columns + 1.2, 9.4 + 3.0 * several), layout="constrained")
        what = f"Change of the {label(last.measures[0])} per step caused by memory, as slopes"
        how = (
            f"lr {last.lr:g}, after {last.taken:,} steps of training and {last.steps:,} at the batch size named; ring: the "
            "optimizer's own betas; line: no effect; dots: not known beyond two standard errors; numbers: what happens in one "
            "step there; grey: it has the other sign"
        )
        title = "\n".join([what, *textwrap.wrap(how, 40 * columns)])
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
        rows = np.atleast_1d(
            np.asarray(figure.subfigures(len(TITLE) + several, 1, height_ratios=[1.0] * len(TITLE) + [0.9] * several))
        )
        for row, kind in zip(rows, TITLE, strict=False):
            panels = np.asarray(row.subplots(1, columns, sharex=True, sharey=True, squeeze=False))[0]
            shown: list[Samples] = [getattr(size, kind).at((slice(None), slice(None), 0)) for size in last.sizes]
            reach = max(float(np.abs(maps.mean).max()) for maps in shown) or 1.0
            norm = shades(reach)
            for panel, size, maps in zip(panels, last.sizes, shown, strict=True):
                betas = last.betas_1, last.betas_2
                draw(panel, maps.mean, np.abs(maps.mean) <= 2 * maps.standard_error, betas, last.own, norm)
                if kind == "measured":
                    _checks(panel, last, size)
                name = "full batch" if size.size is None else f"batch size {size.size}"
                panel.set_title(f"{TITLE[kind]}, {name}", fontsize=9.5)
            panels[0].set_ylabel("beta 1")
            scale(row, list(panels), norm)
        if several:
            _over_training(rows[-1].add_subplot(), stages)
    return figure


def _checks(panel: Axes, found: BatchSizes, size: AtSize) -> None:
    """What happens at the checked pairs, and grey where the slopes of the map have another sign."""
    name = found.measures[0]
    grey = np.ma.masked_where(~size.misleads(found, 0), np.zeros(size.measured.mean.shape[:2]))
    panel.pcolormesh(grey, cmap=ListedColormap([COLOUR["axis"]]), alpha=0.85)
    for check in size.checks:
        i, j = found.betas_1.index(check.betas[0]), found.betas_2.index(check.betas[1])
        if name in check.changes and (i, j) != found.own:
            text = percent(check.changes[name])
            panel.text(j + 0.5, i + 0.5, text, fontsize=6.5, ha="left" if j == 0 else "right", va="center", bbox=PAPER)


def _over_training(panel: Axes, stages: Sequence[BatchSizes]) -> None:
    """The effect at the own betas against the training steps, a line per batch size: measured solid, predicted broken."""
    own = stages[-1].own
    steps = [stage.taken + stage.steps for stage in stages]
    for j, size in enumerate(stages[-1].sizes):
        for kind, style in zip(TITLE, ("-", "--", ":"), strict=True):
            sizes = [stage.sizes[j] for stage in stages]
            series = [s.change.at((0,)) if kind == "measured" else getattr(s, kind).at((*own, 0)) for s in sizes]
            mean, error = (np.array([100 * float(getattr(s, of)) for s in series]) for of in ("mean", "standard_error"))
            name = f"{'full batch' if size.size is None else f'batch size {size.size}'}, {TITLE[kind]}"
            panel.errorbar(
                steps,
                mean,
                error,
                fmt=f"o{style}",
                color=SERIES[j % len(SERIES)],
                label=name,
                markersize=4,
                capsize=2,
                linewidth=1.3,
            )
    panel.axhline(0, color=COLOUR["ink"], linewidth=0.8)
    panel.set_xscale("log")
    panel.set_xticks(steps, [f"{step:,}" for step in steps])
    panel.minorticks_off()
    panel.set_yscale("symlog", linthresh=max(map(abs, panel.get_ylim())) / 100)
    panel.yaxis.set_major_formatter(lambda x, _: tick(x / 100))
    panel.set_xlabel("training steps")
    panel.set_ylabel("per step")
    panel.set_title("At the optimizer's own betas, over training", loc="left", fontsize=9.5)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(fontsize=7.5, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
