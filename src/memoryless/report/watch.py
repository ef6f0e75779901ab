"""A monitored run in the terminal: what memory does by now, stop by stop, and what could not be measured."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from memoryless.audits.effect import STRAIGHT
from memoryless.live.monitoring.log import Record, stops, told
from memoryless.live.monitoring.measuring import SURE
from memoryless.render.numbers import finite, label, percent, share
from memoryless.render.style import TERMINAL

LINES = 12
"""Stops shown, the latest."""
BARS = "▁▂▃▄▅▆▇█"


def word(effect: dict[str, Any]) -> str:
    """Regularizes, anti-regularizes, or undecided.

    Undecided: a slope within its 95 % interval of 0, or of another sign than the change, or a change within autocast's digits.

    Args:
        effect: on one measure, as logged.
    """
    change, slope = effect["change"], effect["slope"]
    if not finite(slope) or abs(slope) <= SURE * effect["error"] or not finite(change) or change * slope <= 0:
        return "undecided"
    if abs(change) <= effect.get("rounding", 0.0):
        return "undecided"
    return "regularizes" if change < 0 else "anti-regularizes"


def straight(effect: dict[str, Any]) -> bool:
    """Whether the step is short enough for slopes, by what happens.

    Args:
        effect: on one measure, as logged.
    """
    change, slope = effect["change"], effect["slope"]
    return finite(change) and finite(slope) and bool(slope) and STRAIGHT[0] <= change / slope <= STRAIGHT[1]


def sentence(effect: dict[str, Any], step: int) -> str:
    """What memory did to a measure at a stop, with its error.

    Args:
        effect: as logged.
        step: of the stop.
    """
    said, name, error = word(effect), label(effect["measure"]), percent(SURE * effect["error"]).lstrip("+")
    slope = f"slope {percent(effect['slope'])} ± {error}"
    if rounding := effect.get("rounding"):
        slope += f"; autocast rounds the change by up to {percent(rounding).lstrip('+')}"
    if said == "undecided":
        return (
            f"At step {step:,} it is undecided what memory does to the {name}: {percent(effect['change'])} per step, {slope}."
        )
    doubt = "" if straight(effect) else "; one step is too long for slopes"
    return f"At step {step:,} memory {said} the {name}: {percent(effect['change'])} per step ({slope}{doubt})."


def view(records: Sequence[Record], name: str) -> RenderableType:
    """All of it.

    Args:
        records: of the log.
        name: of the log.
    """
    head, found = records[0], stops(records)
    ended = next((r for r in reversed(records) if r["kind"] == "end"), None)
    where = f"ended at step {ended['step']:,}" if ended else (f"step {found[-1]['step']:,}" if found else "no stop yet")
    lines: list[RenderableType] = [Text(f"{head['method']}, {head['d']:,} parameters: {name}, {where}", style="bold")]
    if found:
        for effect in found[-1]["effects"]:
            style = TERMINAL.get(word(effect), TERMINAL["doubt"])
            lines.append(Text(sentence(effect, found[-1]["step"]), style=style))
        lines += [_table(head, found)]
        for other in found[-1]["shadows"]:
            lines += [
                Text(f"  {other['method']} would: {_slope(e)} on the {label(e['measure'])} (slope)") for e in other["effects"]
            ]
        lines += [line for line in [_best(found[-1])] if line]
        if of_step := made_of(found[-1]):
            lines.append(Text(f"  {of_step}"))
    broken, notes = told(records)
    lines += [Text(text, style=TERMINAL["fails"]) for text in broken]
    lines += [Text(f"Note: {text}", style=TERMINAL["doubt"]) for text in notes]
    return Group(*lines)


def made_of(stop: Record) -> str:
    """What the step of a stop is made of; empty where that is not known.

    Args:
        stop: as logged.
    """
    check = stop.get("check") or {}
    if not check.get("shares"):
        return ""
    parts = ", ".join(f"{share(value)} {name}" for name, value in check["shares"]["whole"].items())
    noise = f"; {share(check['noise'])} of a batch's squared gradient is noise" if check["noise"] is not None else ""
    return f"step {stop['step']:,} is {parts}{noise}"


def _table(head: Record, found: Sequence[Record]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption_justify="left")
    table.caption = "change: what happens in one step; slope: to first order in lr, with its 95 % interval"
    for name in ("step", "lr"):
        table.add_column(name, justify="right", no_wrap=True)
    several = len(head["measures"]) > 1
    for name in head["measures"]:
        title = label(name) if several else "change"
        table.add_column(title, justify="right", no_wrap=True)
        table.add_column("slope", justify="right", no_wrap=True)
    for name in ("noise scale", "overhead"):
        table.add_column(name, justify="right", no_wrap=True)
    for stop in found[-LINES:]:
        row = [f"{stop['step']:,}", f"{stop['lr']:.3g}"]
        for effect in stop["effects"]:
            style = TERMINAL.get(word(effect), TERMINAL["doubt"])
            row += [Text(percent(effect["change"]), style=style), _slope(effect)]  # type: ignore[list-item]
        row += [""] * (2 * len(head["measures"]) - 2 * len(stop["effects"]))
        noise = stop.get("noise_scale")
        table.add_row(*row, f"{noise:.3g} batches" if noise else "-", f"{stop['overhead']:.1%}")
    if len(found) > 1:
        for k, name in enumerate(head["measures"]):
            table.caption = (
                f"{table.caption}\n{label(name)}: {_spark([s['effects'][k]['change'] for s in found if s['effects']])}"
            )
    return table


def _slope(effect: dict[str, Any]) -> str:
    return f"{percent(effect['slope'])} ± {percent(SURE * effect['error']).lstrip('+')}"


def _spark(values: Sequence[float | None]) -> str:
    """The last values as bars from the least to the most."""
    known = [v for v in values[-48:] if v is not None and finite(v)]
    if not known:
        return ""
    low, span = min(known), (max(known) - min(known)) or 1.0
    return "".join(BARS[round((v - low) / span * (len(BARS) - 1))] for v in known) + f" {percent(low)} to {percent(max(known))}"


def _best(stop: Record) -> Text | None:
    """The pairs of betas with the least and the most slope that are told from zero."""
    if not stop.get("map"):
        return None
    said = []
    for name, found in stop["map"]["measures"].items():
        cells = [
            (slope, error, b1, b2)
            for b1, slopes, errors in zip(stop["map"]["betas_1"], found["slope"], found["error"], strict=True)
            for b2, slope, error in zip(stop["map"]["betas_2"], slopes, errors, strict=True)
            if finite(slope) and abs(slope) > SURE * error
        ]
        if cells:
            low, high = min(cells), max(cells)
            ends = (f"{percent(c[0])} at ({c[2]:g}, {c[3]:g})" for c in (low, high))
            told, all_ = len(cells), len(stop["map"]["betas_1"]) * len(stop["map"]["betas_2"])
            said.append(f"  other betas on the {label(name)} (slopes; {told} of {all_} pairs told from 0): {' to '.join(ends)}")
    return Text("\n".join(said)) if said else None


def print_once(records: Sequence[Record], name: str, console: Console) -> None:
    """Print the view.

    Args:
        records: of the log.
        name: of the log.
        console: where to.
    """
    console.print(view(records, name))
