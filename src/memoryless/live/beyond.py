"""For which of its shadows a run speaks: how far their own updates would have left it, branches, anchors."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from memoryless.audits.deviation import STEPS, Deviations, usual
from memoryless.audits.shadow import Shadow
from memoryless.errors import BadInput
from memoryless.live.anchors import Anchors
from memoryless.live.branches import Branches
from memoryless.live.loop import Sight
from memoryless.live.stop import Other, Stop
from memoryless.live.watches import Watched
from memoryless.loss.measures import evaluate
from memoryless.loss.point import Point


class Beyond:
    """For which of its shadows a run speaks, and what is asked of others where it does not.

    Args:
        watched: what is looked at.
        stops: after how many steps.
        full_batch: whether each step takes the full batch.
        branch: whether to check by real steps.
        anchors: further pairs to run beside.
        seed: of the coordinates on which paths are compared.

    Raises:
        BadInput: branches or anchors cannot be taken.
    """

    def __init__(
        self,
        watched: Watched,
        stops: Sequence[int],
        full_batch: bool,
        branch: bool,
        anchors: Sequence[tuple[float, float]],
        seed: int,
    ):
        optimizer, loss, others, grid = watched.optimizer, watched.loss, watched.others, watched.grid
        if (branch or anchors) and not full_batch:
            raise BadInput("branches and anchors take full-batch steps of their own; leave them out, or give steps as a number")
        if (branch or anchors) and (watched.followed or watched.through):
            raise BadInput("branches and anchors take steps of their own, which no schedule or change of gradients reaches")
        if anchors and any(optimizer.state.values()):
            raise BadInput("anchors start with the run, and the optimizer has steps behind it; start it anew")
        self._stops, self._measures, self._loss = stops, watched.measures, loss
        self._recent = Deviations(others, grid, loss.theta, watched.method.lr, seed)
        self._anchors = Anchors(anchors, grid, loss, stops, measures=watched.measures, seed=seed)
        named = {watched.name(other): other for other in others}
        self._branches = Branches(loss, named, grid, stops, watched.measures) if branch else None

    def look(self, shadow: Shadow, sight: Sight) -> None:
        """Before each step."""
        if any(0 < stop - sight.taken <= STEPS for stop in self._stops):
            self._recent.feed(shadow, sight.gradient, sight.theta)
        if self._branches is not None:
            self._branches.keep(shadow, sight)
        self._anchors.step(sight.taken)

    def told(self, stop: Stop, shadow: Shadow, sight: Sight) -> Stop:
        """The stop with what is known of its shadows."""
        others, pairs = self._recent.of(sight.theta)
        told = _with_deviations(stop, others)
        maps = (replace(m, deviation=pairs) if m.order == "measured" else m for m in stop.maps)
        stop = replace(stop, others=told, maps=tuple(self._anchors.read(m) for m in maps))
        if self._branches is None:
            return stop
        point = Point(self._loss, sight.theta)
        return replace(stop, branches=self._branches.at(sight.taken, shadow, point, evaluate(self._measures, point)))


def _with_deviations(stop: Stop, deviations: Sequence[float | None]) -> tuple[Other, ...]:
    """The others with their deviations, and with the usual change among them and the live optimizer."""
    own = [effect.measured for effect in stop.audit.effects]
    rows = np.array([[np.nan if x is None else x for x in own], *(other.happens for other in stop.others)])
    common = tuple(usual(column) for column in rows.T)
    return tuple(replace(other, deviation=each, usual=common) for other, each in zip(stop.others, deviations, strict=True))
