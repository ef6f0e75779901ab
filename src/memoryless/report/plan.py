"""What a sweep will take, as a table and in words."""

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table

from memoryless.experiments.sweep.planning import Kind, Plan
from memoryless.render.numbers import number


def print_plan(plan: Plan, console: Console) -> None:
    """Print what each kind of run costs, and what all come to.

    Args:
        plan: to show.
        console: where to.
    """
    if plan.kinds:
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for name in (
            "problem",
            "optimizer",
            "batch",
            "runs\nleft",
            "para-\nmeters",
            "ms a\nstep",
            "ms a\nrecord",
            "memory",
            "time",
        ):
            table.add_column(name, justify="left" if name in ("problem", "optimizer") else "right", overflow="fold")
        for kind in plan.kinds:
            run, cost = kind.run, kind.cost
            table.add_row(
                run.problem,
                (run.optimizer or "the script's own") + (", dialled" if run.dial else ""),
                str(run.batch_size or "own"),
                f"{len(kind.left):,}",
                f"{cost.d:,}",
                number(1e3 * cost.step, 3),
                number(1e3 * cost.record, 3),
                size(cost.memory),
                span(kind.seconds),
            )
        console.print(table)
    for line in lines(plan):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def lines(plan: Plan) -> Iterator[str]:
    """What all comes to, and how it grows.

    Args:
        plan: to tell of.
    """
    sweep, left = plan.sweep, plan.sweep.count("left")
    failed = f", {sweep.count('failed')} failed" if sweep.count("failed") else ""
    yield f"{len(sweep.rows):,} runs: {sweep.count('done'):,} done{failed}, {left:,} left"
    if not plan.kinds:
        return
    disk = sum(len(kind.left) * 200 * (2 + len(kind.run.recorded)) for kind in plan.kinds)
    disk += plan.jobs * max(kind.cost.checkpoint for kind in plan.kinds)
    yield (
        f"{span(plan.seconds)} with {plan.jobs} at a time ({span(plan.work)} one by one, as measured alone); "
        f"{size(plan.memory)} of memory, about {size(disk)} on the disk"
    )
    axes = [f"{name.replace('_', ' ')} +{1 / count:.0%}" for name, count in plan.axes.items() if count > 1]
    if axes:
        yield f"grid: in proportion to its runs; one more value of {', '.join(axes)}"
    told = set()
    for kind in plan.kinds:
        which = f"{kind.run.problem}, batch {kind.run.batch_size or 'own'}"
        if which not in told and (growth := _growth(kind)):
            yield f"{which}: {growth}"
        told.add(which)


def _growth(kind: Kind) -> str:
    cost, told = kind.cost, []
    if cost.data is not None:
        told.append(f"a step takes {number(cost.data)} times as long as on half of the data")
    if cost.wide is not None:
        d, step = cost.wide
        told.append(f"{number(step)} times as long with twice the width ({number(d)} times the parameters)")
    return ", ".join(told)


def span(seconds: float) -> str:
    """A time in the unit in which one says it.

    Args:
        seconds: >= 0.

    Example:
        >>> span(0.25), span(8.2), span(9000), span(9e5)
        ('0.25 s', '8.2 s', '2.50 h', '250 h')
    """
    if seconds < 100:
        return f"{number(seconds)} s"
    return f"{number(seconds / 60)} min" if seconds < 6000 else f"{number(seconds / 3600, 3)} h"


def size(count: float) -> str:
    """Bytes in the unit in which one says it.

    Args:
        count: of bytes.

    Example:
        >>> size(2_500), size(3.1e8), size(4e10)
        ('2.5 kB', '310 MB', '40 GB')
    """
    power = 3 if count >= 1e9 else 2 if count >= 1e6 else 1
    return f"{number(count / 1000**power)} {('', 'kB', 'MB', 'GB')[power]}"
