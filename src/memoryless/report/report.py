"""The page of a monitored run, from its log."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from memoryless.errors import BadInput
from memoryless.live.monitoring.log import Record, stops, told
from memoryless.live.monitoring.measuring import SURE
from memoryless.render import figures
from memoryless.render.numbers import SignedLog, finite, label, percent
from memoryless.render.page import charted
from memoryless.render.style import COLOUR, MARK
from memoryless.report.watch import made_of, sentence, straight, word

UNKNOWN = "less than its 95 % interval: the sign is not known"


def page(records: Sequence[Record], command: str | None = None) -> str:
    """One self-contained page.

    Args:
        records: of the log.
        command: for the foot.

    Raises:
        BadInput: nothing was measured yet.
    """
    head, found = records[0], [stop for stop in stops(records) if stop["effects"] or stop["shadows"]]
    broken, notes = told(records)
    if not found:
        raise BadInput(f"nothing was measured yet in this run{': ' + (broken + notes)[0] if broken + notes else ''}")
    last = found[-1]
    run = _axes(head, found)
    return charted(
        "report/report.html.j2",
        title=f"Memory of {head['method']}, as it was trained",
        description=" ".join(sentence(e, last["step"]) for e in last["effects"]) or "Shadows only.",
        command=command,
        head=head,
        stops=found,
        last=last,
        measures=head["measures"],
        broken=broken,
        made_of=made_of(last),
        notes=notes,
        charts=_charts(head, found, run),
        words={(s["step"], e["measure"]): word(e) for s in found for e in s["effects"]},
        straight={(s["step"], e["measure"]): straight(e) for s in found for e in s["effects"]},
        sure=SURE,
        axes=figures.beta_axes(run),
    )


def _axes(head: Record, found: Sequence[Record]) -> dict[str, Any]:
    grid = next((stop["map"] for stop in found if stop.get("map")), {"betas_1": [], "betas_2": []})
    return {"betas_1": grid["betas_1"], "betas_2": grid["betas_2"], "betas": head.get("betas")}


def _charts(head: Record, found: Sequence[Record], run: dict[str, Any]) -> dict[str, dict[str, Any]]:
    charts: dict[str, dict[str, Any]] = {}

    def add(chart: str, variant: str, figure: go.Figure) -> None:
        charts.setdefault(chart, {})[variant] = figures.bare(figure)

    for k, name in enumerate(head["measures"]):
        if any(stop["effects"] for stop in found):
            add("effect", f"{k}", effect_over_training(found, k))
        for s, stop in enumerate(found):
            if stop["effects"]:
                add("tensors", f"{k}/{s}", figures.by_tensor(stop["effects"][k]["layers"]))
            if stop.get("map"):
                cells = stop["map"]["measures"][name]
                unknown = np.abs(_array(cells["slope"])) <= SURE * _array(cells["error"])
                each = {"kind": "measured", "change": cells["slope"], "misleads": unknown, "checks": [], "grey": UNKNOWN}
                add("map", f"{k}/{s}", figures.beta_map(run, each, figures.colour_limit([each])))
            if stop["shadows"]:
                rows = [stop["effects"][k]] if stop["effects"] else []
                rows += [other["effects"][k] for other in stop["shadows"]]
                names = [f"{head['method']} (this run)"][: len(stop["effects"][k : k + 1])]
                names += [other["method"] for other in stop["shadows"]]
                slopes = {"measured": [row["slope"] for row in rows]}
                add("shadows", f"{k}/{s}", figures.dots(names, slopes, [SURE * row["error"] for row in rows]))
    for chart, key, title, suffix in (
        ("noise", "noise_scale", "gradient noise scale, batches", ""),
        ("overhead", "overhead", "time spent measuring, share", "%"),
    ):
        values = [stop.get(key) for stop in found]
        if len(found) > 1 and any(v is not None for v in values):
            add(chart, "", _line(found, values, title, suffix))
    return charts


def _array(rows: Sequence[Sequence[float | None]]) -> np.ndarray:
    return np.array([[np.nan if x is None else x for x in row] for row in rows], dtype=float)


def effect_over_training(found: Sequence[Record], k: int) -> go.Figure:
    """Change and slope of measure k against the step, the slope with its 95 % interval.

    Args:
        found: the stops.
        k: number of the measure.
    """
    known = [stop for stop in found if stop["effects"]]
    effects, steps = [stop["effects"][k] for stop in known], [stop["step"] for stop in known]
    ends = [[e["slope"] + sign * SURE * e["error"] for e in effects if finite(e["slope"])] for sign in (-1, 1)]
    axis = SignedLog.of([*(e["change"] for e in effects), *ends[0], *ends[1]])
    figure = go.Figure(layout={"height": 400})
    slopes = axis.place([e["slope"] for e in effects])
    up, down = (
        [
            None if y is None else abs(axis.place([e["slope"] + sign * SURE * e["error"]])[0] - y)  # type: ignore[operator]
            for e, y in zip(effects, slopes, strict=True)
        ]
        for sign in (1, -1)
    )
    bars = {"type": "data", "array": up, "arrayminus": down, "color": COLOUR["soft"], "thickness": 1.2, "width": 4}
    for name, values, kind, extra in (
        ("slope, with its 95 % interval", slopes, "resummed", {"error_y": bars}),
        ("change: what happens", axis.place([e["change"] for e in effects]), "measured", {}),
    ):
        text = [
            f"step {s:,}<br>change {percent(e['change'])}<br>slope {percent(e['slope'])} ± {percent(SURE * e['error'])}"
            for s, e in zip(steps, effects, strict=True)
        ]
        mark = MARK[kind]
        look = {"color": COLOUR[kind], "symbol": mark.symbol, "size": mark.size}
        line = {"color": COLOUR[kind], "width": 2}
        figure.add_scatter(
            x=steps, y=values, text=text, name=name, mode="lines+markers", hoverinfo="text", marker=look, line=line, **extra
        )
    figure.update_xaxes(title_text="step", zeroline=False)
    figure.update_yaxes(title_text=f"{label(effects[0]['measure'])}: change per step", **axis.axis(gap=0.075))
    return figure


def _line(found: Sequence[Record], values: Sequence[float | None], title: str, suffix: str) -> go.Figure:
    figure = go.Figure(layout={"height": 300})
    steps = [stop["step"] for stop in found]
    scale = 100 if suffix else 1
    y = [None if v is None else scale * v for v in values]
    figure.add_scatter(x=steps, y=y, mode="lines+markers", line={"color": COLOUR["measured"]}, showlegend=False)
    figure.update_xaxes(title_text="step", zeroline=False)
    figure.update_yaxes(title_text=title, rangemode="tozero", ticksuffix=f" {suffix}" if suffix else "")
    return figure
