"""The frozen memory of a mini-batch run: what the same batches would have left at the present theta.

Exact: the memory of a variable is a weighted sum over the batches (`corrections.sequences`), one gradient per batch and stop.
By random lags, which costs as many gradients as there are lags: with g_then the gradient that step n-k used and g_now the one
that its batch has at the present theta,

    m_l - m_l(frozen) = sum_k kernel_l[k] (g_l(g_then) - g_l(g_now)) = E[ kernel_l[k] / p_k (g_l(g_then) - g_l(g_now)) ]

whose mean over the drawn lags is unbiased; phi then makes of its variance a bias that falls as 1 / lags.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from memoryless.audits.grid import Memory
from memoryless.audits.shadow import Shadow
from memoryless.corrections.expected.random_lag import lag_probabilities, weight_at
from memoryless.corrections.sequences import Order, shares
from memoryless.isolation import Standing
from memoryless.live.loop import Sight
from memoryless.loss.point import Point
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
    """The same from gradients of the steps that lie a drawn lag before a stop.

    Args:
        variables: all that remember.
        stops: steps at which the memory will be asked for.
        lags: to draw for each stop.
        seed: of the draws.
    """

    def __init__(self, variables: Sequence[Momentum], stops: Sequence[int], lags: int, seed: int):
        self.lags = lags
        rng = np.random.default_rng(seed)
        self.drawn: dict[int, list[tuple[int, float]]] = {}
        for n in stops:
            p = lag_probabilities(tuple(variables), n, False)
            self.drawn[n] = [(int(k) + 1, float(p[k])) for k in rng.choice(len(p), size=lags, p=p)]
        self._last = {n - k: n for n, pairs in sorted(self.drawn.items()) for k, _ in pairs}
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
        terms = [(k, p, *self._kept[n - k], replay.gradient_at(n - k)) for k, p in self.drawn[n]]

        def memory(v: Momentum, index: Index = slice(None)) -> Tensor:
            m = shadow.memory(v, gradient, theta, index).clone()
            for k, p, then, there, now in terms:
                if weight := weight_at(v, n, k) / (p * self.lags):
                    m -= weight * (v.g(then[index], there[index]) - v.g(now[index], theta[index]))
            return m

        return memory
