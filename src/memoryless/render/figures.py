"""The charts of the page, from the plain numbers of `Run.as_dict`."""

import html
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from memoryless.render.numbers import SignedLog, cosine, number, percent

KINDS = {"measured": "measured", "resummed": "resummed prediction", "first": "first-order prediction"}
"""Where a number comes from, with its name, in the order of the charts."""

INK, GRID, NEUTRAL = "#1b1f24", "#e4e7eb", "#8a939d"
REGULARIZES, ANTI = "#0063a6", "#c04a00"
"""Blue and vermilion: told apart with any colour vision, and nowhere used for anything but the direction of an effect."""

LOOK = {
    "measured": {"color": INK, "symbol": "circle", "dash": "solid", "size": 9},
    "resummed": {"color": "#00876c", "symbol": "diamond", "dash": "solid", "size": 9},
    "first": {"color": "#aa4499", "symbol": "triangle-up", "dash": "dot", "size": 8},
}
DIVERGING = [
    [0.0, "#003f73"],
    [0.28, "#2e7ebc"],
    [0.445, "#a6cbe6"],
    [0.5, "#ffffff"],
    [0.555, "#f6c6a3"],
    [0.72, "#d9692b"],
    [1.0, "#7f2f00"],
]
BETAS = (0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999)
MOST_TENSORS = 20

TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif", "size": 13, "color": INK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "margin": {"l": 12, "r": 16, "t": 36, "b": 12},
        "dragmode": False,
        "hovermode": "closest",
        "hoverlabel": {"bgcolor": "white", "bordercolor": NEUTRAL, "font": {"color": INK}, "align": "left"},
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.0, "yanchor": "bottom", "tracegroupgap": 0},
        **{
            axis: {
                "gridcolor": GRID,
                "linecolor": NEUTRAL,
                "zerolinecolor": INK,
                "zerolinewidth": 1.5,
                "automargin": True,
                "ticks": "outside",
                "tickcolor": GRID,
                "title": {"standoff": 10},
            }
            for axis in ("xaxis", "yaxis")
        },
    }
).to_plotly_json()
"""Sent once, for all charts."""


def plain(figure: go.Figure) -> dict[str, Any]:
    """A figure as JSON values: no NaN, and without the template that all charts share.

    Args:
        figure: any.
    """
    found = figure.to_plotly_json()
    found["layout"].pop("template", None)
    return _jsonable(found)


def effect_along_run(stops: Sequence[dict[str, Any]], k: int) -> go.Figure:
    """Change per step of measure k against step.

    Args:
        stops: of the run.
        k: index of the measure.
    """
    effects = [stop["effects"][k] for stop in stops]
    steps = [stop["step"] for stop in stops]
    random = [e["random"] for e in effects]
    axis = SignedLog.of([*(e[kind] for e in effects for kind in KINDS), *random, *(-r for r in random)])
    known = [(s, axis.place([-r, r])) for s, r in zip(steps, random, strict=True) if math.isfinite(r)]
    figure = go.Figure(layout={"height": 400})
    figure.add_scatter(
        x=[s for s, _ in known] + [s for s, _ in reversed(known)],
        y=[band[0] for _, band in known] + [band[1] for _, band in reversed(known)],
        fill="toself",
        fillcolor="rgba(138,147,157,0.18)",
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        name="neutral: no more than chance",
    )
    for kind, name in reversed(KINDS.items()):
        values = [e[kind] for e in effects]
        if any(v is not None for v in values):
            text = [f"step {s}<br>{name}: {percent(v)} per step" for s, v in zip(steps, values, strict=True)]
            figure.add_scatter(x=steps, y=axis.place(values), text=text, **_line(kind))
    figure.update_xaxes(**_steps(steps))
    figure.update_yaxes(title_text="change per step", **axis.axis(gap=0.075))
    figure.update_layout(legend_traceorder="reversed")
    return figure


def agreement_along_run(stops: Sequence[dict[str, Any]]) -> go.Figure:
    """Cosine of each prediction to the measured effect against step.

    Args:
        stops: of the run.
    """
    steps = [stop["step"] for stop in stops]
    figure = go.Figure(layout={"height": 320})
    for kind in ("first", "resummed"):
        found = [stop["validity"][kind] or {"cosine": None, "error": None} for stop in stops]
        text = [
            f"step {s}<br>{KINDS[kind]}<br>cosine {cosine(a['cosine'])}, relative error {number(a['error'])}"
            for s, a in zip(steps, found, strict=True)
        ]
        figure.add_scatter(x=steps, y=[a["cosine"] for a in found], text=text, **_line(kind))
    figure.update_xaxes(**_steps(steps))
    figure.update_yaxes(title_text="cosine to measured", range=[-1.08, 1.08], tickvals=[-1, -0.5, 0, 0.5, 1])
    figure.update_layout(legend_traceorder="reversed")
    return figure


def radius_along_run(stops: Sequence[dict[str, Any]]) -> go.Figure:
    """Share of the coordinates outside the first-order expansion's radius against step.

    Args:
        stops: of the run.
    """
    steps = [stop["step"] for stop in stops]
    shares = [stop["validity"]["outside"] for stop in stops]
    text = [f"step {s}<br>{number(100 * share)} % outside" for s, share in zip(steps, shares, strict=True)]
    figure = go.Figure(layout={"height": 320})
    figure.add_scatter(x=steps, y=shares, text=text, **(_line("first") | {"showlegend": False}))
    figure.update_xaxes(**_steps(steps))
    figure.update_yaxes(title_text="share of coordinates", range=[-0.03, 1.03], tickformat=".0%", dtick=0.25)
    return figure


def dots(labels: Sequence[str], changes: Mapping[str, Sequence[float | None]], random: Sequence[float] = ()) -> go.Figure:
    """Measured and predicted change of some rows, each row one method or one measure.

    Args:
        labels: of the rows, from the top.
        changes: by kind, one per row.
        random: half width of each row's neutral zone, if known.
    """
    axis = SignedLog.of([*(c for values in changes.values() for c in values), *random, *(-r for r in random)])
    wrapped = ["<br>".join(map(_text, textwrap.wrap(label, 34))) for label in labels]
    lines = max(label.count("<br>") + 1 for label in wrapped)
    figure = go.Figure(layout={"height": 110 + (26 + 14 * lines) * len(labels)})
    if random:
        ends = [axis.place([-r, r]) for r in random]
        figure.add_scatter(
            x=[x for pair in ends for x in (*pair, None)],
            y=[y for row in range(len(ends)) for y in (row, row, None)],
            mode="lines",
            line={"color": "rgba(138,147,157,0.3)", "width": 16},
            hoverinfo="skip",
            name="neutral: no more than chance",
        )
    for kind in reversed(KINDS):
        values = changes.get(kind, ())
        if any(v is not None for v in values):
            text = [f"{_text(label)}<br>{KINDS[kind]}: {percent(v)} per step" for label, v in zip(labels, values, strict=True)]
            look = _line(kind) | {"mode": "markers"}
            figure.add_scatter(x=axis.place(values), y=list(range(len(labels))), text=text, **look)
    figure.update_xaxes(title_text="change per step", **axis.axis(gap=0.15))
    figure.update_yaxes(tickvals=list(range(len(labels))), ticktext=wrapped, range=[len(labels) - 0.5, -0.5], zeroline=False)
    figure.update_layout(legend_traceorder="reversed")
    return figure


def by_tensor(layers: dict[str, float]) -> go.Figure:
    """Contribution of each parameter tensor; the smallest of many are summed.

    Args:
        layers: change per step by name of the tensor, in the model's order.
    """
    finite = {name: change for name, change in layers.items() if math.isfinite(change)}
    largest = sorted(finite, key=lambda name: -abs(finite[name]))[:MOST_TENSORS]
    shown = {name: finite[name] for name in finite if name in set(largest)}
    rest = len(finite) - len(shown)
    if rest:
        shown[f"the other {rest}"] = sum(finite.values()) - sum(shown.values())
    names = [_text(name) for name in shown]
    changes = list(shown.values())
    figure = go.Figure(layout={"height": 110 + 26 * len(shown), "margin": {"t": 12}, "bargap": 0.35})
    figure.add_bar(
        x=[100 * c for c in changes],
        y=list(range(len(shown))),
        orientation="h",
        marker={"color": [REGULARIZES if c < 0 else ANTI for c in changes]},
        text=[percent(c) for c in changes],
        textposition="outside",
        cliponaxis=False,
        hovertext=[f"{name}: {percent(c)} per step" for name, c in zip(names, changes, strict=True)],
        hoverinfo="text",
    )
    low, high = 100 * min([0.0, *changes]), 100 * max([0.0, *changes])
    room = 0.16 * ((high - low) or 1)
    ends = [low - room if low else -room / 4, high + room if high else room / 4]
    ticks = [_text(name if len(name) <= 40 else f"{name[:21]}…{name[-18:]}") for name in shown]
    figure.update_xaxes(title_text="change per step", ticksuffix=" %", range=ends)
    figure.update_yaxes(tickvals=list(range(len(shown))), ticktext=ticks, range=[len(shown) - 0.5, -0.5], zeroline=False)
    return figure


def beta_axes(run: dict[str, Any]) -> dict[str, Any]:
    """What all beta maps share: coordinates and hover text of the cells; the page adds them, and z to the contour.

    Args:
        run: whole.
    """
    pairs = [[f"β₁ {b1:g}, β₂ {b2:g}" for b1 in run["betas_1"]] for b2 in run["betas_2"]]
    return {"x": [_memory(b) for b in run["betas_1"]], "y": [_memory(b) for b in run["betas_2"]], "text": pairs}


def beta_map(run: dict[str, Any], change: Sequence[Sequence[float]], limit: float) -> go.Figure:
    """Change per step over (beta_1, beta_2), with its zero contour; cells lie at -log10(1 - beta), the log of age + 1.

    Args:
        run: whole.
        change: relative, beta_1 along the rows.
        limit: relative change at which the colours end.
    """
    z = 100 * np.asarray(change, dtype=np.float32).T
    finite = z[np.isfinite(z)]
    figure = go.Figure(layout={"height": 440, "margin": {"t": 34, "l": 8, "r": 8}})
    shades = {"colorscale": DIVERGING, "zmin": -100 * limit, "zmax": 100 * limit, "zmid": 0}
    bar = {
        "orientation": "h",
        "thickness": 10,
        "len": 1,
        "x": 0.5,
        "y": -0.3,
        "ticksuffix": " %",
        "nticks": 5,
        "outlinewidth": 0,
    }
    hover = "%{text}<br>%{z:+.2~g} % per step<extra></extra>"
    z = np.where(np.isfinite(z), z, np.nan)
    figure.add_heatmap(z=z, hovertemplate=hover, colorbar=bar | {"yanchor": "top"}, **shades)
    if min(z.shape) > 1 and len(finite) and finite.min() < 0 < finite.max():
        zero = {"start": 0, "end": 0, "size": 1, "coloring": "none"}
        figure.add_contour(contours=zero, line={"color": INK, "width": 1.5}, hoverinfo="skip", showscale=False)
    own = run["betas"]
    if own:
        marker = {"symbol": "x", "size": 12, "color": "white", "line": {"width": 2, "color": INK}}
        hover = f"this run: β₁ {own[0]:g}, β₂ {own[1]:g}<extra></extra>"
        figure.add_scatter(x=[_memory(own[0])], y=[_memory(own[1])], mode="markers", marker=marker, hovertemplate=hover)
    if len(finite):
        ends = f"{percent(float(finite.min()) / 100)} … {percent(float(finite.max()) / 100)}"
        figure.update_layout(
            title={"text": f"from {ends}", "font": {"size": 12}, "x": 0.5, "y": 1, "yanchor": "top", "pad_t": 8}
        )
    figure.update_layout(showlegend=False)
    figure.update_xaxes(title_text="β₁ (mean age, steps)", **_betas(run["betas_1"], own and own[0]))
    figure.update_yaxes(title_text="β₂ (mean age, steps)", **_betas(run["betas_2"], own and own[1]))
    return figure


def colour_limit(maps: Sequence[dict[str, Any]]) -> float:
    """Where the colours of one stop's maps of one measure end: at the largest measured change, or resummed, or first order.

    Args:
        maps: of all kinds.
    """
    for kind in KINDS:
        for found in (np.asarray(m["change"], dtype=float) for m in maps if m["kind"] == kind):
            sizes = np.abs(found[np.isfinite(found)])
            if len(sizes) and sizes.max() > 0:
                return float(sizes.max())
    return 1.0


def _line(kind: str) -> dict[str, Any]:
    look = LOOK[kind]
    return {
        "name": KINDS[kind],
        "mode": "lines+markers",
        "hoverinfo": "text",
        "line": {"color": look["color"], "dash": look["dash"], "width": 2},
        "marker": {"color": look["color"], "symbol": look["symbol"], "size": look["size"]},
    }


def _steps(steps: Sequence[int]) -> dict[str, Any]:
    """Axis of steps: logarithmic where they span a decade."""
    if steps[0] < 1 or steps[-1] < 10 * steps[0]:
        return {"title_text": "step", "zeroline": False}
    room = 0.03 * math.log10(steps[-1] / steps[0])
    ends = [math.log10(steps[0]) - room, math.log10(steps[-1]) + room]
    every = (1,) if ends[1] - ends[0] > 3.5 else (1, 2, 5)
    ticks = [m * 10**k for k in range(math.floor(ends[0]), math.ceil(ends[1]) + 1) for m in every]
    return {"title_text": "step", "type": "log", "range": ends, "tickvals": ticks, "ticktext": [f"{t:g}" for t in ticks]}


def _memory(beta: float) -> float:
    return -math.log10(1 - beta)


def _betas(betas: Sequence[float], own: float | None) -> dict[str, Any]:
    """Axis of one beta: its range, and round ticks that say the mean age beta / (1 - beta), too."""
    at = [_memory(b) for b in (*betas, *([own] if own is not None else []))]
    low, high = min(at), max(at)
    room = 0.03 * (high - low) or 0.5
    ticks: list[float] = []
    for beta in sorted(BETAS, key=lambda b: b not in (0, 0.9, 0.99, 0.999)):
        near = [abs(_memory(beta) - _memory(t)) for t in ticks]
        if low - room <= _memory(beta) <= high + room and min(near, default=math.inf) > 0.13 * (high - low):
            ticks.append(beta)
    labels = [f"{b:g}<br>({b / (1 - b):.0f})" for b in ticks]
    return {
        "tickvals": [_memory(b) for b in ticks],
        "ticktext": labels,
        "range": [low - room, high + room],
        "zeroline": False,
        "showgrid": False,
    }


def _text(name: str) -> str:
    """Plotly reads a subset of HTML in every label: take it literally instead."""
    return html.escape(str(name), quote=False)


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
