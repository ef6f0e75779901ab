"""A shadow checked by a branch: real steps of the method itself, from where the run was, with the memory that its shadow had.

    theta'[n-20] = theta[n-20], m' = the shadow's;  20 steps of the method on a copy;  Delta' = u'(m', theta') - F'(theta')

Where the effect there is the shadow's within 30 %, the run speaks for the method. It costs 20 gradients for each method and
stop.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from memoryless.audits.effect import Changes
from memoryless.audits.grid import Grid
from memoryless.audits.shadow import Shadow
from memoryless.corrections import history
from memoryless.corrections.history import update_of
from memoryless.live.loop import Sight
from memoryless.loss.loss import Loss
from memoryless.loss.measures import Differentiable, Value, evaluate
from memoryless.loss.point import Point
from memoryless.methods.method import AnyOptimizer

LENGTH = 20
AGREES = 0.3


@dataclass(frozen=True)
class Branch:
    """What a method's memory does by its shadow, and after real steps of its own.

    Attributes:
        method: as text.
        betas: its pair, for a cell of a map; None for another method.
        shadow: by measure that takes no products, relative change in one step at the live theta.
        branch: the same at the end of the branch.
    """

    method: str
    betas: tuple[float, float] | None
    shadow: dict[str, float]
    branch: dict[str, float]

    @property
    def agrees(self) -> dict[str, bool]:
        """By measure, whether the two differ by no more than `AGREES` of the branch's."""
        return {name: abs(self.shadow[name] - own) <= AGREES * abs(own) for name, own in self.branch.items()}


class Branches:
    """Branches of some methods at some stops of a full-batch run.

    Args:
        loss: of the run.
        methods: the others, by name.
        grid: whose corners are checked, or None.
        stops: of the run.
        measures: of the run.
    """

    def __init__(
        self,
        loss: Loss,
        methods: dict[str, AnyOptimizer],
        grid: Grid | None,
        stops: Sequence[int],
        measures: Sequence[str | Differentiable],
    ):
        self._loss, self._measures = loss, measures
        self._cells: list[tuple[str, tuple[float, float] | None, AnyOptimizer]] = [(n, None, m) for n, m in methods.items()]
        if grid is not None:
            for i, j in dict.fromkeys((i, j) for i in (0, grid.shape[0] - 1) for j in (0, grid.shape[1] - 1)):
                pair = grid.betas_1[i], grid.betas_2[j]
                self._cells.append((str(grid.cell(i, j)), pair, grid.cell(i, j)))
        self._starts = {stop: max(stop - LENGTH, 0) for stop in stops if stop > 0}
        self._kept: dict[int, tuple[Tensor, Shadow]] = {}

    def keep(self, shadow: Shadow, sight: Sight) -> None:
        """Keep what a later stop branches off.

        Args:
            shadow: not fed with the step's gradient yet.
            sight: before the step.
        """
        if sight.taken in self._starts.values():
            self._kept[sight.taken] = sight.theta, shadow.copy()

    def at(self, stop: int, shadow: Shadow, point: Point, values: Sequence[Value]) -> tuple[Branch, ...]:
        """Every method's branch at a stop.

        Args:
            stop: one of the stops.
            shadow: not fed with the gradient there yet.
            point: of the loss, there.
            values: the measures there.
        """
        if stop not in self._starts:
            return ()
        quick = [value for value in values if not value.products]
        start, kept = self._kept[self._starts[stop]]
        found = []
        for name, pair, method in self._cells:
            here = _changes(quick, point, method, shadow)
            there, own = self._walk(method, start, kept, stop - self._starts[stop])
            names = {value.name for value in quick}
            ends = [value for value in evaluate(self._measures, there) if value.name in names] if quick else []
            found.append(Branch(name, pair, here, _changes(ends, there, method, own)))
        for past in [past for past in self._kept if past not in [s for n, s in self._starts.items() if n > stop]]:
            del self._kept[past]
        return tuple(found)

    def _walk(self, method: AnyOptimizer, theta: Tensor, kept: Shadow, steps: int) -> tuple[Point, Shadow]:
        """Where the method's own steps lead, and its memory there."""
        own = Shadow([method], theta)
        g = self._loss.gradient(theta)
        own.start(kept.step, lambda v, index: kept.memory(v, g, theta, index), g, theta)
        for _ in range(steps):
            u = update_of(method, theta, lambda v, index, g=g, at=theta: own.memory(v, g, at, index))
            own.update(g, theta)
            theta = theta - method.lr * u
            g = self._loss.gradient(theta)
        return Point(self._loss, theta), own


def _changes(values: Sequence[Value], point: Point, method: AnyOptimizer, shadow: Shadow) -> dict[str, float]:
    """What the method's memory does to the measures in one step."""
    F = history.frozen(method, point.gradient, point.theta, shadow.step)
    happens = Changes(values, point, method.lr)(F, shadow.effect(method, point.gradient, point.theta))
    return dict(zip((value.name for value in values), happens, strict=True))
