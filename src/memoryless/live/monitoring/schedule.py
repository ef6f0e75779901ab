"""When to measure: every so many steps, at given steps, or as often as a share of the wall time allows."""

import math
from collections.abc import Sequence

from memoryless.errors import BadInput, BadType


class Schedule:
    """The steps at which to measure, known in advance: what is drawn for a stop must be kept from its first age on.

    With a budget the stops lie so far apart that their gradients, each counted as long as a step, stay within it; one that
    would overdraw it, by the clock, is left out.

    Args:
        every: so many steps, or the steps themselves; None goes by the budget.
        budget: share of the wall time, in (0, 1).
        gradients: that a stop takes.

    Raises:
        BadInput: out of range.
    """

    def __init__(self, every: int | Sequence[int] | None, budget: float, gradients: int):
        if not 0 < budget < 1:
            raise BadInput(f"budget must be a share of the wall time in (0, 1), got {budget}")
        if isinstance(every, bool) or not (every is None or isinstance(every, (int, Sequence))) or isinstance(every, str):
            raise BadType(f"every must be a number of steps, a list of steps, or None, got {every!r}")
        self.budget = budget if every is None else None
        self._steps = None if every is None or isinstance(every, int) else sorted(set(every))
        self.period = every if isinstance(every, int) else math.ceil(gradients / budget)
        if self.period < 1 or (self._steps is not None and (not self._steps or self._steps[0] < 1)):
            raise BadInput(f"every must be at least 1 step, at least one of them, got {every}")

    def within(self, after: int, last: int) -> list[int]:
        """The stops after a step, up to another.

        Args:
            after: not one of them.
            last: may be one of them.
        """
        if self._steps is not None:
            return [n for n in self._steps if after < n <= last]
        first = (after // self.period + 1) * self.period
        return list(range(first, last + 1, self.period))

    def affords(self, cost: float, spent: float, wall: float) -> bool:
        """Whether a stop may be paid for.

        Args:
            cost: seconds that it will take.
            spent: seconds that stops took.
            wall: seconds that the run has taken, these among them.
        """
        return self.budget is None or spent + cost <= self.budget * (wall + cost)
