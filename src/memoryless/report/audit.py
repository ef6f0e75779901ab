"""An audited run as tables for the terminal."""

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from memoryless.audits.audit import Audit
from memoryless.audits.effect import Agreement
from memoryless.live.branches import AGREES, LENGTH
from memoryless.live.run import Run
from memoryless.render.numbers import label, percent
from memoryless.render.style import TERMINAL

MOST = 12
"""Parameters listed one by one."""


def print_run(run: Run, console: Console) -> None:
    """Print the run: what memory does at each stop, how well it is predicted, other methods, layers, the verdict.

    Args:
        run: with at least one stop.
        console: where to.
    """
    for k in range(len(run.stops[0].audit.effects)):
        console.print(_changes(run, k))
    for part in (_agreements(run), _others(run), _branches(run), _layers(run)):
        console.print(part)
    console.print(Text(run.verdict, style="bold"))
    for note in run.stops[-1].audit.validity.notes:
        console.print(Text(f"Note: {note}.", style=TERMINAL["doubt"]))


def _table(title: str, caption: str, *columns: str) -> Table:
    table = Table(
        title=title,
        caption=caption or None,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for k, column in enumerate(columns):
        table.add_column(column, justify="left" if k == 0 else "right", overflow="fold", no_wrap=k > 0)
    return table


def _changes(run: Run, k: int) -> Table:
    effects = [(stop.audit, stop.audit.effects[k]) for stop in run.stops]
    title = f"Change of the {label(effects[0][1].measure)} S in one step caused by memory"
    bent = any(not e.straight for _, e in effects)
    caption = "! one step is too long here for slopes" if bent else ""
    table = _table(title, caption, "step", "S", "measured", "path", "resummed", "first order", "slope", "memory")
    for audit, e in effects:
        changes = (percent(c) for c in (e.measured, e.path, e.resummed, e.first))
        slope = percent(e.slopes.best) + ("" if not bent else "  " if e.straight else " !")
        table.add_row(_step(audit), f"{e.value:.3g}", *changes, slope, Text(e.word, style=TERMINAL[e.word]))
    return table


def _agreements(run: Run) -> Table:
    caption = (
        "cosine and relative error against the measured effect; * the prediction to go by, where one holds;\n"
        "growth of the gradient seven steps back on the path; share of coordinates outside first order's radius"
    )
    table = _table("How well it is predicted", caption, "step", "loss", "path", "resummed", "first order", "growth", "outside")
    for stop in run.stops:
        validity = stop.audit.validity
        agreements = [
            _agreement(getattr(validity, kind)) + (" *" if kind == validity.go_by else "")
            for kind in ("path", "resummed", "first")
        ]
        growth = "-" if validity.growth is None else f"{validity.growth:.3g}"
        table.add_row(_step(stop.audit), f"{stop.audit.loss:.3g}", *agreements, growth, _share(validity.outside))
    return table


def _step(audit: Audit) -> str:
    return "steady" if audit.step is None else str(audit.step)


def _agreement(agreement: Agreement | None) -> str:
    return "-" if agreement is None else f"{agreement.cosine:.2f}, {agreement.error:.2g}"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _others(run: Run) -> RenderableType:
    last = run.stops[-1]
    if not last.others:
        return ""
    title = f"Other methods, change of the {label(last.audit.effects[0].measure)} at step {_step(last.audit)}"
    caption = (
        "measured by shadow memory on this run, as it happens and as slope; predicted by this optimizer's own buffers\n"
        "(- where they do not know) and from theta alone, as slopes;\n"
        "(*) has another F, would take another path: indicative only;\n"
        "left by: how far its own last ten updates would have left this path; ~ not settled: by too much for this change"
    )
    table = _table(title, caption, "method", "measured", "slope", "buffers", "resummed", "first order", "left by")
    for other in last.others:
        slopes = ("-" if c is None else percent(c[0]) for c in (other.measured, other.state, other.resummed, other.first))
        name = other.method + ("" if other.same_update else " (*)")
        doubt = "~" if other.settled is not None and not other.settled[0] else ""
        table.add_row(name, doubt + percent(other.change[0]), *slopes, _share(other.deviation))
    return table


def _branches(run: Run) -> RenderableType:
    last = run.stops[-1]
    if not last.branches or not last.branches[0].branch:
        return ""
    name = next(iter(last.branches[0].branch))
    title = f"Shadows checked by {LENGTH} real steps of their own, change of the {label(name)} at step {_step(last.audit)}"
    table = _table(title, f"agrees: within {AGREES:.0%} of its own", "method", "shadow", "own steps", "agrees")
    for branch in last.branches:
        table.add_row(
            branch.method, percent(branch.shadow[name]), percent(branch.branch[name]), "yes" if branch.agrees[name] else "no"
        )
    return table


def _layers(run: Run) -> Table:
    audit = run.stops[-1].audit
    how = "measured" if audit.measured is not None else "predicted"
    names = [label(effect.measure) for effect in audit.effects]
    table = _table(
        f"Which parameters it comes from at step {_step(audit)}",
        f"slopes of the {how} effect, which add up",
        "parameter",
        *names,
    )
    layers = sorted(audit.effects[0].slopes.layers, key=lambda name: -abs(audit.effects[0].slopes.layers[name]))
    for name in layers[:MOST]:
        table.add_row(name, *(percent(effect.slopes.layers[name]) for effect in audit.effects))
    if rest := layers[MOST:]:
        table.add_row(f"{len(rest)} others", *(percent(sum(e.slopes.layers[name] for name in rest)) for e in audit.effects))
    return table
