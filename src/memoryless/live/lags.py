"""The frozen memory of a mini-batch run: what the same batches would have left at the present theta.

Exact: the memory of a variable is a weighted sum over the batches (`corrections.sequences`), one gradient per batch and stop.
By random lags, which costs as many gradients as there are lags: the steps of a few drawn ages, taken again at the present
theta, stand for all (`monitoring.draws`, `monitoring.frozen`).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from memoryless.audits.shadow import Shadow
from memoryless.corrections.history import Memory
from memoryless.corrections.sequences import Order, shares
from memoryless.isolation import Standing
from memoryless.live.loop import Sight
from memoryless.live.monitoring.draws import draw, sizes
from memoryless.live.monitoring.frozen import Reading, Terms, frozen_memory
from memoryless.loss.point import Point
from memoryless.methods import kernel
from memoryless.methods.method import Index, Momentum
from memoryless.methods.past import Through, changed


class Replay:
    """The gradients of past steps at the present theta: of the same batches, and of the same noise where there is any.

    Args:
        point: of the loss.
        order: batch of each step 0..n.
        noise: where the generators stood at each of the steps that will be asked for; None for a loss without noise.
        through: what the loop does to a gradient before the optimizer sees it.
    """

    def __init__(self, point: Point, order: Order, noise: Mapping[int, Standing] | None = None, through: Through | None = None):
        self.point, self._order, self._noise, self._through = point, order, noise, through
        self._drawn: dict[int, Tensor] = {}

    @property
    def gradients(self) -> int:
        """How many have been taken."""
        return self.point.batches_seen if self._noise is None else len(self._drawn)

    @property
    def sources(self) -> tuple[Order, int]:
        """Which gradient each step has, and how many different ones there may be: one a batch, or with noise one a step."""
        if self._noise is None:
            return self._order, len(self.point.loss)
        return np.arange(len(self._order)), len(self._order)

    def gradient_of(self, source: int) -> Tensor:
        """grad at the present theta, shape (d,).

        Args:
            source: one of `sources`.
        """
        if self._noise is None:
            return changed(self.point.gradient_of(source), self._through)
        if source not in self._drawn:
            loss, batch = self.point.loss, int(self._order[source])
            self._drawn[source] = changed(loss.gradient(self.point.theta, batch, self._noise[source]), self._through)
        return self._drawn[source]

    def gradient_at(self, step: int) -> Tensor:
        """grad at the present theta of what a step saw, shape (d,).

        Args:
            step: past.
        """
        return self.gradient_of(int(self.sources[0][step]))


def exact(replay: Replay) -> Memory:
    """The memory that the same batches give at the present theta.

    Args:
        replay: of the steps so far.
    """
    (sources, count), theta = replay.sources, replay.point.theta

    def memory(v: Momentum, index: Index = slice(None)) -> Tensor:
        weights = shares(v, sources, [len(sources) - 1], count)[0]
        used = np.flatnonzero(weights)
        if not len(used):
            return torch.zeros_like(theta[index])
        images = torch.stack([v.g(replay.gradient_of(int(i))[index], theta[index]) for i in used])
        return torch.from_numpy(weights[used]).to(images) @ images

    return memory


class RandomLags:
    """The same from gradients of the steps that lie a drawn age before a stop (`monitoring.draws`, `monitoring.frozen`).

    Args:
        variables: all that remember.
        stops: steps at which the memory will be asked for.
        lags: to draw for each stop.
        seed: of the draws.
    """

    def __init__(self, variables: Sequence[Momentum], stops: Sequence[int], lags: int, seed: int):
        self.drawn = {n: draw(sizes(variables, (), n, n), lags, np.random.default_rng([seed, n])) for n in stops}
        self._last = {n - k: n for n in sorted(stops) for k in self.drawn[n].ages.tolist() if k}
        self.wanted = frozenset(self._last)
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(self, sight: Sight) -> None:
        """Keep what a later stop will ask for, and drop what no stop will ask for any more."""
        if sight.taken in self.wanted:
            self._kept[sight.taken] = sight.gradient, sight.theta
        for old in [s for s in self._kept if self._last[s] <= sight.taken]:
            del self._kept[old]

    def memory(self, replay: Replay, shadow: Shadow, sight: Sight) -> Memory:
        """The frozen memory, estimated.

        Args:
            replay: of the steps up to the stop.
            shadow: what the memory really is.
            sight: of the stop.
        """
        n, theta, gradient = sight.taken, sight.theta, sight.gradient
        drawn, kept = self.drawn[n], self._kept | {n: (gradient, theta)}
        steps = (n - drawn.ages).tolist()
        now = torch.stack([gradient if s == n else replay.gradient_at(s) for s in steps])
        then, there = (torch.stack([kept[s][i] for s in steps]) for i in range(2))

        def memory(v: Momentum, index: Index = slice(None)) -> Tensor:
            m = shadow.memory(v, gradient, theta, index)
            terms = Terms(drawn, now[:, index], then[:, index], theta[index], there[:, index])
            return frozen_memory(Reading(v, kernel.kernel(v, n)[drawn.ages], m), terms, m)[0].to(m)

        return memory
