"""The page of several optimizers on one loss, from the plain numbers of `Comparison.as_dict`."""

from typing import Any

from memoryless.render.figures import bare, dots
from memoryless.render.numbers import near, percent
from memoryless.render.page import charted
from memoryless.render.style import KINDS


def page(found: dict[str, Any]) -> str:
    """One self-contained page: the answers, then each measure's changes as a chart and a table, then where each arrived.

    Args:
        found: from `Comparison.as_dict`; "command" in its `about` goes to the foot, the rest to the head.

    Returns:
        HTML; a <meta name="generator"> says memoryless.
    """
    rows = [row for row in found["rows"] if row["audit"] is not None]
    names, audits = [row["name"] for row in rows], [row["audit"] for row in rows]
    by_measure = list(zip(*(audit["effects"] for audit in audits), strict=True))
    charts, far = [], []
    for effects in by_measure:
        random = [e["random"] for e in effects]
        scale = [*random, *(e["measured"] for e in effects)]
        changes = {kind: near([e[kind] for e in effects], scale) for kind in KINDS}
        charts.append(dots(names, changes, random))
        far.append(
            [
                f"{KINDS[kind]} for {name}, {percent(effect[kind])}"
                for kind in KINDS
                for name, effect, drawn in zip(names, effects, changes[kind], strict=True)
                if effect[kind] is not None and drawn is None
            ]
        )
    return charted(
        "render/comparison.html.j2",
        title="What the memory of optimizers does to one loss",
        description=found["verdict"],
        command=found["about"].get("command"),
        about={name: text for name, text in found["about"].items() if name != "command"},
        count=found["steps"],
        answers=found["answers"],
        rows=rows,
        refused=[row for row in found["rows"] if row["reason"] is not None],
        effects=by_measure,
        far=far,
        reached=sorted((audit["loss"], name) for name, audit in zip(names, audits, strict=True)),
        notes=_notes(rows),
        kinds=KINDS,
        charts={f"effect {k}": {"": bare(chart)} for k, chart in enumerate(charts)},
        axes={},
        stops=[],
    )


def _notes(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """What a reader must know besides -> the optimizers that it is about."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for note in row["audit"]["validity"]["notes"]:
            found.setdefault(note, []).append(row["name"])
    return found
