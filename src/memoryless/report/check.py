"""A checked run of steps as tables for the terminal."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from memoryless.live.check.step_check import StepCheck, StepChecks
from memoryless.render.numbers import number, share
from memoryless.render.style import TERMINAL

MOST = 12
"""Tensors listed one by one."""


def print_checks(checks: StepChecks, console: Console) -> None:
    """Print the verdict, then likely causes, what is off, and what the step is made of.

    Args:
        checks: of a run.
        console: where to.
    """
    console.print(
        Text(checks.verdict, style=f"bold {TERMINAL['holds' if checks.ok else 'doubt' if checks.ok is None else 'fails']}")
    )
    print_check(checks.first, console)


def print_check(check: StepCheck, console: Console) -> None:
    """Print the tables of one step.

    Args:
        check: of that step.
        console: where to.
    """
    if check.causes:
        table = _table("Likely causes, each put in and the step taken again", "cause", "explains", "tensors")
        for cause in check.causes:
            named = cause.name + (" (tied)" if cause.tied else "")
            table.add_row(f"{named}: {cause.text}", share(cause.explains), _names(cause.tensors))
        console.print(table)
    if check.tensors:
        table = _table("Off by more than rounding can explain", "tensor", "what", "over the bound", "factor of the step")
        for t in check.tensors[:MOST]:
            table.add_row(t.name, t.what, f"{number(t.times)} x", number(t.factor, 4))
        if len(check.tensors) > MOST:
            table.add_row(f"and {len(check.tensors) - MOST} more", "", "", "")
        console.print(table)
    if check.shares is not None:
        names = [*list(check.shares)[: MOST if len(check.shares) > MOST + 1 else None], "whole"]
        table = _table(f"What the documented step {check.step} is made of", "tensor", "gradient", "memory", "decay")
        for name in dict.fromkeys(names):
            table.add_row(name, *(share(check.shares[name][part]) for part in ("gradient", "memory", "decay")))
        console.print(table)
    if check.noise is not None:
        console.print(Text(f"Noise of the batches: {share(check.noise)} of the gradient's squared norm."))
    for note in check.notes:
        console.print(Text(f"Note: {note}.", style=TERMINAL["doubt"]))


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for k, column in enumerate(columns):
        table.add_column(column, justify="left" if k == 0 else "right", overflow="fold")
    return table
