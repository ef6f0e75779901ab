"""One self-contained HTML page of an audited run: nothing is loaded, which its own security policy enforces."""

from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from plotly.offline import get_plotlyjs

import memoryless
from memoryless.audits.audit import COSINE, ERROR
from memoryless.errors import BadInput
from memoryless.loss.measures import label
from memoryless.render import figures
from memoryless.render.figures import KINDS
from memoryless.render.numbers import cosine, number, percent

_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("memoryless", "report"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
_ENVIRONMENT.filters |= {"percent": percent, "number": number, "label": label, "cosine": cosine}


def page(run: dict[str, Any]) -> str:
    """The page.

    Args:
        run: from `Run.as_dict`.

    Returns:
        HTML; a <meta name="generator"> says memoryless.

    Raises:
        BadInput: the run has no audited stop.
    """
    stops = run["stops"]
    if not stops:
        raise BadInput("expected a run with at least one audited stop, got none")
    measures = [effect["measure"] for effect in stops[0]["effects"]]
    last = stops[-1]
    return _ENVIRONMENT.get_template("page.html.j2").render(
        run=run,
        stops=stops,
        last=last,
        measures=measures,
        summaries=[_summary(stops, k) for k in range(len(measures))],
        notes=list(dict.fromkeys(note for stop in stops for note in stop["validity"]["notes"])),
        measured=any(effect["measured"] is not None for stop in stops for effect in stop["effects"]),
        compared=any(stop["others"] for stop in stops),
        mapped=[kind for kind in KINDS if any(m["kind"] == kind for stop in stops for m in stop["maps"])],
        tensors=len(last["effects"][0]["layers"]) if measures else 0,
        most_tensors=figures.MOST_TENSORS,
        kinds=KINDS,
        limits={"cosine": COSINE, "error": ERROR},
        charts=_charts(run, measures),
        template=figures.TEMPLATE,
        axes=figures.beta_axes(run),
        plotly=Markup(get_plotlyjs()),
        version=memoryless.__version__,
    )


def _best(effect: dict[str, Any]) -> float:
    """The measured change, or the resummed one where nothing is measured."""
    return effect["resummed"] if effect["measured"] is None else effect["measured"]


def _summary(stops: list[dict[str, Any]], k: int) -> dict[str, Any]:
    """What the page says of measure k: at the last stop, how often each way, and where most."""
    words = [stop["effects"][k]["word"] for stop in stops]
    peak = max(stops, key=lambda stop: np.nan_to_num(abs(_best(stop["effects"][k])), nan=-1.0))
    return {
        "effect": stops[-1]["effects"][k],
        "change": _best(stops[-1]["effects"][k]),
        "counts": {word: words.count(word) for word in dict.fromkeys(words)},
        "peak": {"step": peak["step"], "change": _best(peak["effects"][k])},
    }


def _label(other: dict[str, Any]) -> str:
    return other["method"] if other["same_update"] else f"{other['method']} (indicative only)"


def _charts(run: dict[str, Any], measures: list[str]) -> dict[str, dict[str, Any]]:
    """Every variant of every chart, by its name and "measure", "measure/stop" or "" for the only one."""
    stops = run["stops"]
    charts: dict[str, dict[str, Any]] = {}

    def add(chart: str, variant: str, figure: figures.go.Figure) -> None:
        charts.setdefault(chart, {})[variant] = figures.plain(figure)

    if len(stops) > 1:
        add("radius", "", figures.radius_along_run(stops))
        if any(stop["validity"]["resummed"] for stop in stops):
            add("agreement", "", figures.agreement_along_run(stops))
        for k in range(len(measures)):
            add("effect", f"{k}", figures.effect_along_run(stops, k))
    elif measures:
        effects = stops[0]["effects"]
        changes = {kind: [e[kind] for e in effects] for kind in KINDS}
        names = [label(name) for name in measures]
        add("effect", "", figures.dots(names, changes, [e["random"] for e in effects]))
    for s, stop in enumerate(stops):
        for k, (name, effect) in enumerate(zip(measures, stop["effects"], strict=True)):
            maps = [m for m in stop["maps"] if m["measure"] == name]
            limit = figures.colour_limit(maps)
            for found in maps:
                add(f"map {found['kind']}", f"{k}/{s}", figures.beta_map(run, found["change"], limit))
            if stop["others"]:
                rows = [{kind: effect[kind] for kind in KINDS}, *(other["changes"][name] for other in stop["others"])]
                labels = [f"{stop['method']} (this run)", *map(_label, stop["others"])]
                add("others", f"{k}/{s}", figures.dots(labels, {kind: [row[kind] for row in rows] for kind in KINDS}))
            add("tensors", f"{k}/{s}", figures.by_tensor(effect["layers"]))
    return charts
