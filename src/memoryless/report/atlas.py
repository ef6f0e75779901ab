"""The atlas as tables: on the screen, as Markdown, and as one page that sorts and filters itself and loads nothing."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

import jinja2
from rich import box
from rich.table import Table
from rich.text import Text

from memoryless.experiments.atlas.rows import KINDS, PROBLEMS, SEEDS, Row
from memoryless.experiments.atlas.ways import AGREE, STEP
from memoryless.loss.measures import USUAL
from memoryless.render.numbers import NOTHING, label, number, percent
from memoryless.render.style import SIGN, TERMINAL

RESUMMED = ("flat", "corner")
"""Kinds that have no first order."""
SUBJECT = "network"
"""The problem that tables tell of; the page tells of both."""
PIECES = 4
"""Most pieces of memory whose ages are told."""
FOUND = "found by; the two ways differ by"
_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("memoryless", "report"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
_ENVIRONMENT.filters |= {"percent": percent, "number": number, "label": label}


def ordered(rows: Iterable[Row]) -> list[Row]:
    """By library, then by name.

    Args:
        rows: of the atlas.
    """
    libraries = ("torch", "pytorch_optimizer", "heavyball")
    return sorted(rows, key=lambda row: (libraries.index(row["library"]), row["name"].lower()))


def counts(rows: Iterable[Row]) -> dict[str, Counter[str]]:
    """How many of each kind, by library.

    Args:
        rows: of the atlas.
    """
    found: dict[str, Counter[str]] = {}
    for row in ordered(rows):
        found.setdefault(row["library"], Counter())[row["kind"]] += 1
    return found


def summary(rows: Sequence[Row]) -> list[str]:
    """One sentence per library.

    Args:
        rows: of the atlas.
    """
    return [
        f"{library}: {kinds.total() - kinds['refused']} of {kinds.total()} answered ("
        + "; ".join(f"{kinds[kind]} {text}" for kind, text in KINDS.items() if kinds[kind])
        + ")."
        for library, kinds in counts(rows).items()
    ]


def fading(row: Row) -> str:
    """Whether memory fades, in a word.

    Args:
        row: of the atlas.
    """
    if row["kind"] == "no memory":
        return "no memory"
    return row["memory"].get("judgement", "not known")


def ages(row: Row) -> str:
    """Mean ages in steps, of the update and of the pieces of memory, the longest first.

    Args:
        row: of the atlas.
    """
    memory = row["memory"]
    if row["kind"] == "no memory" or "decays" not in memory:
        return NOTHING
    ages = {piece["name"]: math.inf if piece["mean_age"] is None else piece["mean_age"] for piece in memory["pieces"]}
    longest = sorted(((age, name) for name, age in ages.items() if age), reverse=True)[:PIECES]
    pieces = ", ".join(f"{name} {_age(age)}" for age, name in longest)
    return _age(memory["mean_age"]) + (f" ({pieces})" if pieces else "")


def _age(steps: float | None) -> str:
    return "∞" if steps is None or steps == math.inf else f"{steps:.3g}" if steps < 1000 else f"{steps:,.0f}"


def evidence(row: Row) -> str:
    """Why memory is said to fade or not, or why that is not known.

    Args:
        row: of the atlas.
    """
    return row["memory"].get("evidence", row["memory"].get("reason", ""))


def at_rest(found: Row) -> str:
    """What is known of the steady state.

    Args:
        found: of one problem.
    """
    steady, parts = found.get("steady", {}), []
    if "M" in steady:
        parts.append(f"at rest |M| = {number(steady['M'])} first order, {number(steady.get('resummed'))} resummed")
    if reason := steady.get("reason"):
        parts.append(f"no steady state: {reason}")
    if reason := steady.get("resummed_reason"):
        parts.append(f"steady state not resummed: {reason}")
    return "; ".join(parts)


def ways(found: Row) -> str:
    """How the answer was obtained.

    Args:
        found: of one problem.
    """
    if found["kind"] == "refused":
        return found.get("reason", "")
    if found["kind"] == "no memory":
        return "F[n] is the same after a past of entirely different gradients"
    parts = [f"{found['way']} ({found['why']})", f"Eq. 9 literally differs by {number(found['gap'])}"]
    parts.append(f"resummed with a product per step differs by {number(found['resummed_gap'])}")
    if found["seeds"] > 1:
        parts.append(f"mean of {found['seeds']} seeds")
    return "; ".join(parts)


def agreement(found: Row) -> str:
    """How the answer was found, and how far the two ways to it are apart, in short.

    Args:
        found: of one problem, not refused.
    """
    if found["kind"] == "no memory":
        return "another past"
    return f"{'resummed' if found['kind'] in RESUMMED else found['way']}; {number(_gap(found))}"


def _gap(found: Row) -> float | None:
    return found["resummed_gap" if found["kind"] in RESUMMED else "gap"]


def change(found: Row, k: int) -> str:
    """What memory does to measure k: sign, resummed, first order.

    Args:
        found: of one problem.
        k: index in `USUAL`.
    """
    if "effects" not in found:
        return NOTHING
    effect = found["effects"][k]
    error = effect["standard_error"]
    spread = "" if error is None else f" ± {number(100 * error)}"
    first = NOTHING if found["kind"] == "corner" else "0" if effect["first"] == 0 else percent(effect["first"])
    summed = "0" if effect["resummed"] == 0 else percent(effect["resummed"])
    return f"{SIGN[effect['word']]} {summed}{spread} ({first})"


def table(rows: Sequence[Row]) -> Table:
    """For the screen.

    Args:
        rows: of the atlas.
    """
    shown = Table(
        title=f"The atlas, {SUBJECT}", caption=legend(rows), box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left"
    )
    for column in ("optimizer", "memory", "mean ages", *map(label, USUAL), FOUND):
        shown.add_column(column)
    for row in ordered(rows):
        name = f"{row['library']} {row['name']}"
        if row["kind"] == "refused":
            shown.add_row(name, "refused", "", Text(_reason(row), style=TERMINAL["doubt"]))
            continue
        found, where = _told(row)
        changes = [change(found, k) for k in range(len(USUAL))]
        shown.add_row(name + where, fading(row), ages(row), *changes, agreement(found))
    return shown


def legend(rows: Sequence[Row]) -> str:
    """What the numbers are; those of rows made before changes were what happens are slopes.

    Args:
        rows: of the atlas.
    """
    effects = [effect for row in rows for found in row["problems"].values() for effect in found.get("effects", [])]
    what = "in one step" if all("slopes" in effect for effect in effects) else "per step, to first order in lr (a slope),"
    return (
        f"Change of each measure S {what} that memory causes, relative to S, at step {STEP} of a frozen history: resummed "
        "(first order). ▼ regularizes, ▲ anti-regularizes, ● neutral: no more than a random direction would do."
    )


def markdown(rows: Sequence[Row]) -> str:
    """A document.

    Args:
        rows: of the atlas.
    """
    rows = ordered(rows)
    heads = [
        "optimizer",
        "answer",
        "memory",
        "mean ages",
        *map(label, USUAL),
        "1-norm at rest",
        FOUND,
    ]
    lines = [
        "# Atlas: what the memory of every optimizer does to the loss",
        "",
        "Made by `memoryless atlas --markdown FILE`; the same in full, with the vector problem: `atlas.json`.",
        "",
        *(f"* {line}" for line in summary(rows)),
        "",
        *_how(rows),
    ]
    for library in counts(rows):
        mine = [row for row in rows if row["library"] == library]
        lines += ["", f"## {library} {mine[0]['versions'][library]}", "", _line(heads), _line(["---"] * len(heads))]
        refused = [row for row in mine if row["kind"] == "refused"]
        lines += [_line(_cells(row)) for row in mine if row["kind"] != "refused"]
        if refused:
            lines += ["", "Refused:", "", *(f"* {row['name']}: {_plain(_reason(row))}" for row in refused)]
        if partly := [row for row in mine if row not in refused and _reasons(row)]:
            lines += ["", "Answered with a reservation:", ""]
            lines += [f"* {row['name']}: {_plain('; '.join(_reasons(row)))}" for row in partly]
        if given := [row for row in mine if row["given"]]:
            lines += ["", "Given besides parameters:", "", *(f"* {row['name']}: {_plain(row['given'])}" for row in given)]
        if never := [row for row in mine if row not in refused and fading(row) == "never fades"]:
            lines += ["", "Memory that never fades:", ""]
            lines += [f"* {row['name']}: {_plain(evidence(row))}" for row in never]
    return "\n".join(lines) + "\n"


def _how(rows: Sequence[Row]) -> list[str]:
    return [
        legend(rows),
        "The table is of the network, 6-5-3 with tanh, squared error, 53 parameters; each optimizer at its library's defaults.",
        "",
        "* *agreed*: the first order, by forward mode or by differences of the linearized history, agrees with Eq. 9 taken",
        f"  literally (a difference along the history of live gradients, no curvature) to {AGREE:g}.",
        "* *flat*: the derivative is 0 almost everywhere; *corner*: there is none at the frozen history, and no first order.",
        "  The resummed effect is told, which a Hessian-vector product for every past step confirms.",
        f"* *random*: the mean of {SEEDS} seeds, the same for the frozen and the drifting history, ± its standard error.",
        "* *no memory*: the update is bit for bit the same after another past.",
        "* *another past*: a past at another theta, and one of gradients a million times as large.",
        "* *mean ages*: steps, of past gradients' weight in the update and in the pieces of memory (`memoryless kernel`).",
        "* *1-norm at rest*: in the steady state n → infinity, resummed (first order).",
    ]


def _cells(row: Row) -> list[str]:
    found, where = _told(row)
    changes = [change(found, k) for k in range(len(USUAL))]
    return [row["name"], found["kind"] + where, fading(row), ages(row), *changes, _rest(row, found), agreement(found)]


def _told(row: Row) -> tuple[Row, str]:
    """What tables tell of: the network, or where that is refused the vector, and a word about that."""
    found = row["problems"][SUBJECT]
    return (found, "") if found["kind"] != "refused" else (row["problems"]["vector"], ", on the vector")


def _rest(row: Row, found: Row) -> str:
    effects = found["steady"].get("effects")
    if not effects or not row["memory"].get("decays"):
        return NOTHING
    return f"{percent(effects[0].get('resummed'))} ({percent(effects[0]['first'])})"


def _reason(row: Row) -> str:
    """Of a refusal: that of the network, and of the vector where it is another."""
    reasons = [row["problems"][name].get("reason", "") for name in (SUBJECT, "vector")]
    return "; on the vector: ".join(dict.fromkeys(reasons))


def _reasons(row: Row) -> list[str]:
    return [f"{name}: {found['reason']}" for name, found in row["problems"].items() if found.get("reason")]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_plain(cell) for cell in cells) + " |"


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def page(rows: Sequence[Row]) -> str:
    """One self-contained page.

    Args:
        rows: of the atlas.
    """
    lines = [_shown(row, problem) for row in ordered(rows) for problem in PROBLEMS]
    return _ENVIRONMENT.get_template("atlas.html.j2").render(
        lines=lines,
        problems=PROBLEMS,
        subject=SUBJECT,
        libraries=list(counts(rows)),
        kinds=KINDS,
        summary=summary(rows),
        legend=legend(rows),
        columns=["optimizer", "answer", "memory", "mean ages", *map(label, USUAL), FOUND],
        version=version("memoryless"),
    )


def _shown(row: Row, problem: str) -> dict[str, Any]:
    """A line of the page: what each cell shows and what it is sorted by."""
    found = row["problems"][problem]
    effects = found.get("effects", [])
    answered = found["kind"] != "refused"
    cells: list[tuple[str, Any]] = [(row["name"], row["name"].lower()), (found["kind"], found["kind"])]
    cells.append((fading(row), fading(row)) if answered else (NOTHING, ""))
    cells.append((ages(row), row["memory"].get("mean_age")) if answered else (NOTHING, ""))
    cells.extend((change(found, k), effects[k]["resummed"]) if answered else (NOTHING, "") for k in range(len(USUAL)))
    cells.append((agreement(found), _gap(found)) if answered else (NOTHING, ""))
    details = {
        "given": row["given"],
        "how": ways(found),
        "memory": evidence(row),
        "steady state": at_rest(found),
        "settings": found.get("method", ""),
    }
    return {
        "library": row["library"],
        "problem": problem,
        "kind": found["kind"],
        "words": [effect["word"] for effect in effects] if answered else [],
        "cells": cells,
        "details": {key: text for key, text in details.items() if text},
    }
