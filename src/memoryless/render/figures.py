"""The charts of an audited run's page, from the plain numbers of `Run.as_dict`."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from memoryless.render.numbers import SignedLog, broken, cosine, finite, label, number, percent, plain, share
from memoryless.render.style import BAND, COLOUR, DIVERGING, FONT, KINDS, MARK

BETAS = (0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999)
MOST_TENSORS = 20

TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": FONT, "size": 13, "color": COLOUR["ink"]},
        "paper_bgcolor": COLOUR["paper"],
        "plot_bgcolor": COLOUR["paper"],
        "margin": {"l": 12, "r": 16, "t": 36, "b": 12},
        "dragmode": False,
        "hovermode": "closest",
        "hoverlabel": {
            "bgcolor": COLOUR["paper"],
            "bordercolor": COLOUR["axis"],
            "font": {"color": COLOUR["ink"]},
            "align": "left",
        },
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.0, "yanchor": "bottom", "tracegroupgap": 0},
        **{
            axis: {
                "gridcolor": COLOUR["grid"],
                "linecolor": COLOUR["axis"],
                "zerolinecolor": COLOUR["ink"],
                "zerolinewidth": 1.5,
                "automargin": True,
                "ticks": "outside",
                "tickcolor": COLOUR["grid"],
                "title": {"standoff": 10},
            }
            for axis in ("xaxis", "yaxis")
        },
    }
).to_plotly_json()
"""Sent once, for all charts."""


def charts(run: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every variant of every chart: by its name and "measure", "measure/stop" or "" for the only one.

    Args:
        run: whole, with at least one stop.

    Returns:
        Figures as JSON values, without the template that all share.
    """
    stops = run["stops"]
    measures = [effect["measure"] for effect in stops[0]["effects"]]
    found: dict[str, dict[str, Any]] = {}

    def add(chart: str, variant: str, figure: go.Figure) -> None:
        found.setdefault(chart, {})[variant] = bare(figure)

    if len(stops) > 1:
        add("radius", "", radius_along_run(stops))
        if any(stop["validity"]["resummed"] for stop in stops):
            add("agreement", "", agreement_along_run(stops))
        for k in range(len(measures)):
            add("effect", f"{k}", effect_along_run(stops, k))
    elif measures:
        effects = stops[0]["effects"]
        changes = {kind: [e[kind] for e in effects] for kind in KINDS}
        add("effect", "", dots([label(name) for name in measures], changes, [e["random"] for e in effects]))
    for s, stop in enumerate(stops):
        for k, (name, effect) in enumerate(zip(measures, stop["effects"], strict=True)):
            maps = [m for m in stop["maps"] if m["measure"] == name]
            limit = colour_limit(maps)
            for each in maps:
                add(f"map {each['kind']}", f"{k}/{s}", beta_map(run, each, limit))
            if stop["others"]:
                add("others", f"{k}/{s}", _others(stop, effect))
            add("tensors", f"{k}/{s}", by_tensor(effect["slopes"]["layers"]))
    return found


def bare(figure: go.Figure) -> dict[str, Any]:
    """A figure as JSON values, without the template that all share.

    Args:
        figure: of plotly.
    """
    values = figure.to_plotly_json()
    values["layout"].pop("template", None)
    return plain(values)


def _others(stop: dict[str, Any], effect: dict[str, Any]) -> go.Figure:
    """This run's change of a measure above the other methods', whose predictions are slopes."""
    rows = [effect, *(_row(other, effect["measure"]) for other in stop["others"])]
    names = [
        other["method"]
        + ("" if other["same_update"] else " (indicative only)")
        + (" (not settled)" if other["changes"][effect["measure"]].get("settled") is False else "")
        for other in stop["others"]
    ]
    return dots([f"{stop['method']} (this run)", *names], {kind: [row.get(kind) for row in rows] for kind in KINDS})


def _row(other: dict[str, Any], measure: str) -> dict[str, float | None]:
    """What happens where it is known, the slope of the measured effect elsewhere; the slopes of the predictions."""
    change = other["changes"][measure]
    return change["slopes"] | ({} if change["measured"] is None else {"measured": change["measured"]})


def effect_along_run(stops: Sequence[dict[str, Any]], k: int) -> go.Figure:
    """Change per step of measure k against step.

    Args:
        stops: of the run.
        k: index of the measure.
    """
    effects = [stop["effects"][k] for stop in stops]
    steps = [stop["step"] for stop in stops]
    random = [e["random"] for e in effects]
    axis = SignedLog.of([*(e[kind] for e in effects for kind in KINDS), *_both(random)])
    known = [(s, axis.place([-r, r])) for s, r in zip(steps, random, strict=True) if finite(r)]
    figure = go.Figure(layout={"height": 400})
    figure.add_scatter(
        x=[s for s, _ in known] + [s for s, _ in reversed(known)],
        y=[band[0] for _, band in known] + [band[1] for _, band in reversed(known)],
        fill="toself",
        fillcolor=BAND,
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
    for kind in reversed(KINDS):
        if not any(stop["validity"].get(kind) for stop in stops):
            continue
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
    text = [f"step {s}<br>{share(part)} outside" for s, part in zip(steps, shares, strict=True)]
    figure = go.Figure(layout={"height": 320})
    figure.add_scatter(x=steps, y=shares, text=text, **(_line("first") | {"showlegend": False}))
    figure.update_xaxes(**_steps(steps))
    figure.update_yaxes(title_text="share of coordinates", range=[-0.03, 1.03], tickformat=".0%", dtick=0.25)
    return figure


def dots(
    labels: Sequence[str], changes: Mapping[str, Sequence[float | None]], random: Sequence[float | None] = ()
) -> go.Figure:
    """Measured and predicted change of some rows, each row one method or one measure.

    Args:
        labels: of the rows, from the top.
        changes: by kind, one per row.
        random: half width of each row's neutral zone, if known.
    """
    axis = SignedLog.of([*(c for values in changes.values() for c in values), *_both(random)])
    wrapped = [_text(broken(label, 24)).replace("\n", "<br>") for label in labels]
    lines = max(label.count("<br>") + 1 for label in wrapped)
    figure = go.Figure(layout={"height": 110 + (26 + 14 * lines) * len(labels)})
    if random:
        ends = [axis.place([-r, r]) if finite(r) else [None, None] for r in random]
        figure.add_scatter(
            x=[x for pair in ends for x in (*pair, None)],
            y=[y for row in range(len(ends)) for y in (row, row, None)],
            mode="lines",
            line={"color": BAND, "width": 16},
            hoverinfo="skip",
            name="neutral: no more than chance",
        )
    for kind in reversed(KINDS):
        values = changes.get(kind, ())
        if any(v is not None for v in values):
            text = [f"{_text(label)}<br>{KINDS[kind]}: {percent(v)} per step" for label, v in zip(labels, values, strict=True)]
            look = _line(kind) | {"mode": "markers"}
            figure.add_scatter(x=axis.place(values), y=list(range(len(labels))), text=text, **look)
    figure.update_xaxes(title_text="change per step", **axis.axis(gap=0.2))
    figure.update_yaxes(tickvals=list(range(len(labels))), ticktext=wrapped, range=[len(labels) - 0.5, -0.5], zeroline=False)
    figure.update_layout(legend_traceorder="reversed")
    return figure


def by_tensor(layers: dict[str, float | None]) -> go.Figure:
    """Contribution of each parameter tensor; the smallest of many are summed.

    Args:
        layers: change per step by name of the tensor, in the model's order.
    """
    known = {name: change for name, change in layers.items() if finite(change)}
    largest = sorted(known, key=lambda name: -abs(known[name]))[:MOST_TENSORS]
    shown = {name: known[name] for name in known if name in set(largest)}
    rest = len(known) - len(shown)
    if rest:
        shown[f"the other {rest}"] = sum(known.values()) - sum(shown.values())
    names = [_text(name) for name in shown]
    changes = list(shown.values())
    figure = go.Figure(layout={"height": 110 + 26 * len(shown), "margin": {"t": 12}, "bargap": 0.35})
    figure.add_bar(
        x=[100 * c for c in changes],
        y=list(range(len(shown))),
        orientation="h",
        marker={"color": [COLOUR["regularizes" if c < 0 else "anti-regularizes"] for c in changes]},
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


def beta_map(run: dict[str, Any], found: dict[str, Any], limit: float) -> go.Figure:
    """Slopes over (beta_1, beta_2), with their zero contour; cells lie at -log10(1 - beta), the log of age + 1.

    Cells are grey where slopes mislead, pale where the run does not speak for the pair; what happens stands beside the pairs at
    which it is known.

    Args:
        run: whole.
        found: one of a stop's maps; beta_1 along the rows.
        limit: relative change at which the colours end.
    """
    z = 100 * np.asarray(found["change"], dtype=np.float32).T
    known = z[np.isfinite(z)]
    figure = go.Figure(layout={"height": 440, "margin": {"t": 34, "l": 8, "r": 8}})
    shades = {"colorscale": [list(stop) for stop in DIVERGING], "zmin": -100 * limit, "zmax": 100 * limit, "zmid": 0}
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
    settled = np.ones(z.T.shape, bool) if found.get("settled") is None else np.asarray(found["settled"])
    doubt = np.where(settled.T, "", "<br>not settled by this run: its own would leave this path")
    hover = "%{text}<br>%{z:+.2~g} % per step%{customdata}<extra></extra>"
    z = np.where(np.isfinite(z), z, np.nan)
    figure.add_heatmap(z=z, customdata=doubt, hovertemplate=hover, colorbar=bar | {"yanchor": "top"}, **shades)
    if np.any(found["misleads"]):
        grey = np.where(np.asarray(found["misleads"]).T, 0.0, np.nan)
        shade = [[0, COLOUR["axis"]], [1, COLOUR["axis"]]]
        why = found.get("grey", "what happens has the other sign nearby: slopes mislead")
        hover = f"%{{text}}<br>{why}<extra></extra>"
        figure.add_heatmap(z=grey, colorscale=shade, showscale=False, opacity=0.85, hovertemplate=hover)
    if not settled.all():
        pale = np.where(settled.T, np.nan, 0.0)
        shade = [[0, COLOUR["axis"]], [1, COLOUR["axis"]]]
        figure.add_heatmap(z=pale, colorscale=shade, showscale=False, opacity=0.5, hoverinfo="skip")
    if min(z.shape) > 1 and len(known) and known.min() < 0 < known.max():
        zero = {"start": 0, "end": 0, "size": 1, "coloring": "none"}
        figure.add_contour(contours=zero, line={"color": COLOUR["ink"], "width": 1.5}, hoverinfo="skip", showscale=False)
    own = run["betas"]
    if own:
        marker = {"symbol": "x", "size": 12, "color": COLOUR["paper"], "line": {"width": 2, "color": COLOUR["ink"]}}
        hover = f"this run: β₁ {own[0]:g}, β₂ {own[1]:g}<extra></extra>"
        figure.add_scatter(x=[_memory(own[0])], y=[_memory(own[1])], mode="markers", marker=marker, hovertemplate=hover)
    if found["checks"]:
        _add_checks(figure, found["checks"])
    if len(known):
        ends = f"{percent(float(known.min()) / 100)} … {percent(float(known.max()) / 100)}"
        figure.update_layout(
            title={"text": f"from {ends}", "font": {"size": 12}, "x": 0.5, "y": 1, "yanchor": "top", "pad_t": 8}
        )
    figure.update_layout(showlegend=False)
    figure.update_xaxes(title_text="β₁ (mean age, steps)", **_betas(run["betas_1"], own and own[0]))
    figure.update_yaxes(title_text="β₂ (mean age, steps)", **_betas(run["betas_2"], own and own[1]))
    return figure


def _add_checks(figure: go.Figure, checks: Sequence[dict[str, Any]]) -> None:
    """What happens at some pairs, written in the map beside them, away from its edge."""
    x, y = ([_memory(check["betas"][k]) for check in checks] for k in (0, 1))
    hover = [
        f"β₁ {c['betas'][0]:g}, β₂ {c['betas'][1]:g}<br>happens {percent(c['change'])}<br>slope {percent(c['slope'])}"
        for c in checks
    ]
    marker = {"symbol": "circle-open", "size": 5, "color": COLOUR["ink"]}
    figure.add_scatter(x=x, y=y, mode="markers", marker=marker, hovertext=hover, hoverinfo="text")
    for a, b, check in zip(x, y, checks, strict=True):
        left, low = a <= (min(x) + max(x)) / 2, b <= (min(y) + max(y)) / 2
        figure.add_annotation(
            x=a,
            y=b,
            text=percent(check["change"]),
            showarrow=False,
            font={"size": 11, "color": COLOUR["ink"]},
            bgcolor=COLOUR["paper"],
            opacity=0.8,
            borderpad=1,
            xanchor="left" if left else "right",
            yanchor="bottom" if low else "top",
            xshift=5 if left else -5,
            yshift=7 if low else -7,
        )


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


def _both(random: Sequence[float | None]) -> list[float]:
    """The ends of the neutral zones."""
    return [sign * r for r in random if finite(r) for sign in (-1, 1)]


def _line(kind: str) -> dict[str, Any]:
    mark = MARK[kind]
    return {
        "name": KINDS[kind],
        "mode": "lines+markers",
        "hoverinfo": "text",
        "line": {"color": COLOUR[kind], "dash": mark.dash, "width": 2},
        "marker": {"color": COLOUR[kind], "symbol": mark.symbol, "size": mark.size},
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
