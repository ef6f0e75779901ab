"""The one callback: `on_step(done, total)`, told how far long work has come."""

from collections.abc import Callable

OnStep = Callable[[int, int], object]
"""(done, total); total may be an upper bound."""


def silent(done: int, total: int) -> None:
    """Says nothing."""
