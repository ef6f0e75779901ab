"""Options that commands share, checked before any work is done; the progress bar."""

import ast
import math
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memoryless.errors import BadInput

EVERY = 10.0
"""Seconds between two lines of progress where there is no terminal."""

FIRST = 2.0
"""Seconds after the first step at which a longer work says there how long it takes; a bar says it from its second step on."""


@contextmanager
def progress(what: str) -> Iterator[Callable[..., None]]:
    """How far work has come and how long it still takes, on stderr: a bar on a terminal, a line every ten seconds elsewhere.

    Args:
        what: is counted, such as "optimizer steps": the words before.

    Yields:
        on_step(done, total); without a total only the time so far is told.
    """
    with (_bar if sys.stderr.isatty() else _lines)(what) as on_step:
        yield on_step


@contextmanager
def _bar(what: str) -> Iterator[Callable[..., None]]:
    from rich.console import Console
    from rich.progress import Progress, TimeElapsedColumn

    with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total=None: bar.update(task, completed=done, total=total)


@contextmanager
def _lines(what: str) -> Iterator[Callable[..., None]]:
    begun, state, first, over = time.monotonic(), (0, 0), None, threading.Event()

    def left() -> float | None:
        """Seconds, by the rate since the first step: before it torch was waited for. What a store held took no time here."""
        (done, total), (since, at) = state, first or (begun, 0)
        if done == at == 1:
            since, at = begun, 0
        return (time.monotonic() - since) * (total - done) / (done - at) if done > at and total else None

    def tell() -> None:
        (done, total), ahead, spent = state, left(), time.monotonic() - begun
        come = f"{done:,} of {total:,}" if done and total else "at work"
        come += "" if ahead is None else f", about {duration(ahead)} left"
        print(f"{what}: {come}, {duration(spent)} so far", file=sys.stderr, flush=True)

    def repeat() -> None:
        while not over.wait(EVERY):
            tell()

    def on_step(done: int, total: int | None = None) -> None:
        nonlocal state, first, early
        state, first = (done, total or 0), first or (time.monotonic(), done)
        if early and time.monotonic() - first[0] >= FIRST:
            early = False
            if (left() or 0.0) >= EVERY:
                tell()

    early = True
    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield on_step
    finally:
        over.set()
        thread.join()


def duration(seconds: float) -> str:
    """In the unit in which one says it.

    Args:
        seconds: >= 0.

    Example:
        >>> duration(8.2), duration(200), duration(9000)
        ('8 s', '3 min', '2.5 h')
    """
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def even(on_step: Callable[..., None], dear: Iterable[int]) -> Callable[[int, int], None]:
    """Steps told as work of one pace, where some take longer than the rest: in units of a plain step's time, as measured.

    Args:
        on_step: told the work done and what it may come to.
        dear: those that take longer.

    Example:
        >>> even(print, [])(1, 4)
        1 4
    """
    dear, at, took = set(dear), time.monotonic(), {True: [0.0, 0], False: [0.0, 0]}

    def told(done: int, total: int) -> None:
        nonlocal at
        spent, count = took[done in dear]
        took[done in dear] = [spent + time.monotonic() - at, count + 1]
        at = time.monotonic()
        each = {which: spent / count if count else 0.0 for which, (spent, count) in took.items()}
        extra = max(each[True] / each[False] - 1, 0.0) if each[False] and each[True] else 0.0
        on_step(round(done + extra * sum(step <= done for step in dear)), round(total + extra * len(dear)))

    return told


def there(problem: str, checkpoint: str | None = None) -> None:
    """Look whether the user's files are there, before torch is waited for.

    Args:
        problem: script.py:function, or a name.
        checkpoint: file or folder; None for none.

    Raises:
        BadInput: one is not.
    """
    script = problem.rpartition(":")[0]
    if script.endswith(".py") and not Path(script).is_file():
        raise BadInput(f"script not found: {script}")
    if checkpoint is not None and not Path(checkpoint).exists():
        raise BadInput(f"checkpoint not found: {checkpoint}")


def assignments(texts: Iterable[str], example: str) -> dict[str, Any]:
    """Values of --set by name: numbers, tuples and flags as such, anything else as text.

    Args:
        texts: what the user gave, each NAME=VALUE.
        example: such as "betas=0.9,0.999", shown where one has another form.

    Raises:
        BadInput: one has another form.
    """
    found = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name.isidentifier() and equals and value):
            raise BadInput(f"--set expects NAME=VALUE such as {example}, got {text!r}")
        if not all(map(_finite, value.strip("()[] ").split(","))):
            raise BadInput(f"--set {name} must be finite, got {value}")
        try:
            found[name] = ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(value, value))
        except (ValueError, SyntaxError):
            found[name] = value
    return found


def _finite(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return True  # a name


def device_of(name: str) -> Any:
    """The torch device, None for cpu: work stays where it is.

    Args:
        name: cpu, cuda or cuda:N.

    Raises:
        BadInput: unknown, or not there.
    """
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise BadInput(f"--device must be cpu, cuda or cuda:N, got {name!r}")
    if name == "cpu":
        return None
    import torch

    if not torch.cuda.is_available():
        raise BadInput("--device cuda asked for, but torch sees no CUDA device; use --device cpu")
    return torch.device(name)


def dtype_of(name: str | None) -> Any:
    """The torch dtype, None for None.

    Args:
        name: float32 or float64.

    Raises:
        BadInput: it is neither.
    """
    if name not in (None, "float32", "float64"):
        raise BadInput(f"--dtype must be float32 or float64, got {name!r}")
    if name is None:
        return None
    import torch

    return getattr(torch, name)
