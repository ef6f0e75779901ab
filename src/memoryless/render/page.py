"""Self-contained HTML pages: nothing is loaded, which each page's own security policy enforces.

All stand in one frame, `frame.html.j2`: colours for light and dark paper, and a foot that says what made the page, and when.
"""

import datetime
from importlib.metadata import version
from typing import Any

import jinja2
from markupsafe import Markup

from memoryless.errors import BadInput
from memoryless.render.numbers import broken, cell, cosine, finite, label, number, percent, share
from memoryless.render.style import COLOUR, DARK, FONT, IN_THE_DARK, KINDS, SIGN

MOST = 12
"""Numbers of a list that a table of plain data shows; longer ones are folded."""


def scalar(value: Any) -> bool:
    """Whether a value of JSON is one number or text, or nothing.

    Args:
        value: of JSON.
    """
    return not isinstance(value, (dict, list))


def flat(value: Any) -> bool:
    """Whether a value of JSON is a list of such.

    Args:
        value: of JSON.
    """
    return isinstance(value, list) and all(map(scalar, value))


def records(value: list[Any]) -> list[list[Any]]:
    """A list of dictionaries as a table: their keys, then a row each, with empty text where a key is missing.

    Args:
        value: of JSON.

    Returns:
        Nothing where anything but dictionaries is in it, or nothing in them.
    """
    if not all(isinstance(row, dict) for row in value):
        return []
    names = list(dict.fromkeys(key for row in value for key in row))
    return [names, *([row.get(name, "") for name in names] for row in value)] if names else []


_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("memoryless", "."),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
_ENVIRONMENT.filters |= {f.__name__: f for f in (broken, cell, cosine, label, number, percent, records, share)}
_ENVIRONMENT.tests |= {f.__name__: f for f in (scalar, flat)}


def fill(template: str, /, **values: Any) -> str:
    """A page from its template.

    Args:
        template: path in the package, such as "report/atlas.html.j2"; it extends "render/frame.html.j2".
        **values: what the template asks for, `title` and `description` among it; `command` is the command line for the foot.

    Returns:
        HTML; a <meta name="generator"> says memoryless.
    """
    made = {"memoryless": version("memoryless"), "torch": version("torch"), "date": datetime.date.today().isoformat()}
    frame = {"made": made, "font": FONT, "light": COLOUR, "dark": DARK, "signs": SIGN, "command": None}
    return _ENVIRONMENT.get_template(template).render(frame | values)


def charted(template: str, /, **values: Any) -> str:
    """A page with charts from its template, which ends as "render/run.html.j2" does.

    Args:
        template: path in the package.
        **values: as for `fill`; `charts` are figures from `figures.bare`, by name and variant.
    """
    from plotly.offline import get_plotlyjs  # half a second, which only charts need

    from memoryless.render.figures import TEMPLATE

    return fill(template, template=TEMPLATE, in_the_dark=IN_THE_DARK, plotly=Markup(get_plotlyjs()), **values)


def tables(title: str, description: str, data: dict[str, Any]) -> str:
    """A page of plain data as nested tables.

    Args:
        title: its head.
        description: one line below.
        data: numbers, text and None in dictionaries and lists.
    """
    return fill("render/tables.html.j2", title=title, description=description, data=data, most=MOST)


def page(run: dict[str, Any]) -> str:
    """The page of an audited run, with charts.

    Args:
        run: from `Run.as_dict`; "command" in its `about` goes to the foot, the rest to the head.

    Returns:
        HTML; a <meta name="generator"> says memoryless.

    Raises:
        BadInput: the run has no audited stop.
    """
    stops = run["stops"]
    if not stops:
        raise BadInput("expected a run with at least one audited stop, got none")
    from memoryless.render import figures  # half a second, which only charts need

    measures = [effect["measure"] for effect in stops[0]["effects"]]
    last = stops[-1]
    return charted(
        "render/run.html.j2",
        title=f"Memory of {last['method']}",
        description=run["verdict"],
        command=run["about"].get("command"),
        about={name: text for name, text in run["about"].items() if name != "command"},
        betas=run["betas"],
        stops=stops,
        last=last,
        measures=measures,
        summaries=[_summary(stops, k) for k in range(len(measures))],
        notes=list(dict.fromkeys(note for stop in stops for note in stop["validity"]["notes"])),
        measured=any(effect["measured"] is not None for stop in stops for effect in stop["effects"]),
        compared=any(stop["others"] for stop in stops),
        mapped=[kind for kind in KINDS if any(m["kind"] == kind for stop in stops for m in stop["maps"])],
        tensors=len(last["effects"][0]["slopes"]["layers"]) if measures else 0,
        most_tensors=figures.MOST_TENSORS,
        kinds=KINDS,
        charts=figures.charts(run),
        axes=figures.beta_axes(run),
    )


def _best(effect: dict[str, Any]) -> float | None:
    """The measured change, or the predicted one where nothing is measured."""
    return effect["predicted"] if effect["measured"] is None else effect["measured"]


def _size(stop: dict[str, Any], k: int) -> float:
    """Of the change of measure k; -1 where that is not known."""
    change = _best(stop["effects"][k])
    return abs(change) if finite(change) else -1.0


def _summary(stops: list[dict[str, Any]], k: int) -> dict[str, Any]:
    """What the page says of measure k: at the last stop, how often each way, and where most."""
    words = [stop["effects"][k]["word"] for stop in stops]
    peak = max(stops, key=lambda stop: _size(stop, k))
    return {
        "effect": stops[-1]["effects"][k],
        "change": _best(stops[-1]["effects"][k]),
        "slope": _best(stops[-1]["effects"][k]["slopes"]),
        "counts": {word: words.count(word) for word in dict.fromkeys(words)},
        "peak": {"step": peak["step"], "change": _best(peak["effects"][k])},
    }
