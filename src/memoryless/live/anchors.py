"""Further live pairs of betas beside the run, and each cell of a map read off the one whose path is nearest to its own.

An anchor runs on a copy of theta from the run's start, at one gradient a step, with shadows of every pair. By how much a pair's
own updates would have left the path of each (`audits.deviation`) tells off which to read it.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from memoryless.audits.beta_map import BetaMap, measured_map
from memoryless.audits.deviation import STEPS, Deviations, usual
from memoryless.audits.grid import Grid
from memoryless.audits.shadow import Shadow
from memoryless.corrections.history import update_of
from memoryless.errors import BadInput
from memoryless.loss.loss import Loss
from memoryless.loss.measures import Differentiable, evaluate
from memoryless.loss.point import Point


class Anchor:
    """A pair of betas that runs on a copy.

    Args:
        betas: the pair.
        grid: whose pairs its gradients feed.
        loss: full batch; it starts at its theta, with empty memory.
        measures: of the run.
    """

    def __init__(
        self, betas: tuple[float, float], grid: Grid, loss: Loss, measures: Sequence[str | Differentiable], seed: int = 0
    ):
        self.betas, self._grid, self._loss, self._measures = betas, grid, loss, measures
        self._method, self._theta = grid.method.with_betas(*betas), loss.theta
        self._shadow = Shadow([self._method, *grid.spanning()], self._theta)
        self._recent = Deviations([], grid, self._theta, self._method.lr, seed)

    def step(self, near: bool) -> None:
        """Take a step.

        Args:
            near: whether a stop is so near that its last updates count.
        """
        theta, method, shadow = self._theta, self._method, self._shadow
        g = self._loss.gradient(theta)
        if near:
            self._recent.feed(shadow, g, theta)
        u = update_of(method, theta, lambda v, index: shadow.memory(v, g, theta, index))
        shadow.update(g, theta)
        self._theta = theta - method.lr * u

    def map(self) -> tuple[BetaMap, float]:
        """What shadows of every pair measure on its path, with their deviations, and its loss."""
        point = Point(self._loss, self._theta)
        values = evaluate(self._measures, point)
        found = measured_map(self._grid, self._shadow, point.gradient, self._theta, values)
        return replace(found, deviation=self._recent.of(self._theta)[1]), point.value


class Anchors:
    """All of them.

    Args:
        pairs: of betas.
        grid: of the run.
        loss: full batch.
        stops: of the run.
        measures: of the run.
        seed: of the coordinates that are compared.

    Raises:
        BadInput: the run has no map, or a pair is none.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[float, float]],
        grid: Grid | None,
        loss: Loss,
        stops: Sequence[int],
        *,
        measures: Sequence[str | Differentiable],
        seed: int = 0,
    ):
        if pairs and grid is None:
            raise BadInput("anchors are read off into a map of betas; give betas, and an optimizer with a pair of them")
        if bad := next((pair for pair in pairs if not (isinstance(pair, tuple) and len(pair) == 2)), None):
            raise BadInput(f"anchors must be pairs such as [(0.9, 0.9)], got {bad!r}")
        self._all = [Anchor(pair, grid, loss, measures, seed) for pair in pairs if grid is not None]
        self._stops = stops

    def step(self, taken: int) -> None:
        """Take the step of the run that comes after so many."""
        for anchor in self._all:
            anchor.step(any(0 < stop - taken <= STEPS for stop in self._stops))

    def read(self, live: BetaMap) -> BetaMap:
        """A measured map each of whose cells is read off the nearest path.

        Args:
            live: the run's own, at a stop.
        """
        if not self._all or live.order != "measured" or live.deviation is None:
            return live
        found = [live, *(anchor.map()[0] for anchor in self._all)]
        deviations = np.stack([np.full(live.deviation.shape, np.inf) if m.deviation is None else m.deviation for m in found])
        nearest = deviations.argmin(axis=0)

        def pick(each: Sequence[np.ndarray]) -> np.ndarray:
            return np.take_along_axis(np.stack(each), nearest[None], axis=0)[0]

        changes = {name: pick([m.changes[name] for m in found]) for name in live.changes}
        size = {name: pick([np.full(nearest.shape, usual(m.changes[name])) for m in found]) for name in live.changes}
        cells = {(b1, b2): nearest[i, j] for i, b1 in enumerate(live.betas_1) for j, b2 in enumerate(live.betas_2)}
        checks = tuple(check for check in live.checks if not cells.get(check.betas, 0))  # the others are of the live path
        return replace(live, changes=changes, checks=checks, deviation=pick(list(deviations)), anchor=nearest, usual=size)
