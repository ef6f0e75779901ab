"""The frozen memory of a mini-batch run: what the same batches would have left at the present theta.

Exact: the memory of a variable is a weighted sum over the batches (`corrections.sequences`), one gradient per batch and stop.
By random lags, which costs as many gradients as there are lags: with g_then the gradient that step n-k used and g_now the one
that its batch has at the present theta,

    m_l - m_l(frozen) = sum_k kernel_l[k] (g_l(g_then) - g_l(g_now)) = E[ kernel_l[k] / p_k (g_l(g_then) - g_l(g_now)) ]

whose mean over the drawn lags is unbiased; phi then makes of its variance a bias that falls as 1 / lags.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from memoryless.audits.grid import Memory
from memoryless.audits.shadow import Shadow
from memoryless.corrections.expected.random_lag import lag_probabilities, weight_at
from memoryless.corrections.sequences import Order, shares
from memoryless.live.loop import Sight
from memoryless.loss.point import Point
from memoryless.methods.method import Index, Momentum


def exact(point: Point, order: Order) -> Memory:
    """The memory that the same batches give at the present theta.

    Args:
        point: of the loss; the gradient of every batch is used.
        order: batch of each step 0..n.
    """
    n, count, theta = len(order) - 1, len(point.loss), point.theta

    def memory(v: Momentum, index: Index = slice(None)) -> Tensor:
        weights = shares(v, order, [n], count)[0]
        used = np.flatnonzero(weights)
        if not len(used):
            return torch.zeros_like(theta[index])
        images = torch.stack([v.g(point.gradient_of(int(i))[index], theta[index]) for i in used])
        return torch.from_numpy(weights[used]).to(images) @ images

    return memory


class RandomLags:
    """The same from gradients of the steps that lie a drawn lag before a stop.

    Args:
        variables: all that remember.
        order: batch of each step of the run.
        stops: steps at which the memory will be asked for.
        lags: to draw for each stop.
        seed: of the draws.
    """

    def __init__(self, variables: Sequence[Momentum], order: Order, stops: Sequence[int], lags: int, seed: int):
        self.order, self.lags = order, lags
        rng = np.random.default_rng(seed)
        self.drawn: dict[int, list[tuple[int, float]]] = {}
        for n in stops:
            p = lag_probabilities(tuple(variables), n, False)
            self.drawn[n] = [(int(k) + 1, float(p[k])) for k in rng.choice(len(p), size=lags, p=p)]
        self._wanted = {n - k for n, pairs in self.drawn.items() for k, _ in pairs}
        self._last = {n - k: n for n, pairs in sorted(self.drawn.items()) for k, _ in pairs}
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(self, sight: Sight) -> None:
        """Keep what a later stop will ask for, and drop what no stop will ask for any more."""
        if sight.taken in self._wanted:
            self._kept[sight.taken] = sight.gradient, sight.theta
        for old in [s for s in self._kept if self._last[s] <= sight.taken]:
            del self._kept[old]

    def memory(self, point: Point, shadow: Shadow, sight: Sight) -> Memory:
        """The frozen memory, estimated; the gradients of the batches drawn are taken at the point.

        Args:
            point: of the loss, at the stop.
            shadow: what the memory really is.
            sight: of the stop.
        """
        n, theta, gradient = sight.taken, sight.theta, sight.gradient
        batches = [int(self.order[n - k]) for k, _ in self.drawn[n]]
        terms = [(k, p, *self._kept[n - k], point.gradient_of(i)) for (k, p), i in zip(self.drawn[n], batches, strict=True)]

        def memory(v: Momentum, index: Index = slice(None)) -> Tensor:
            m = shadow.memory(v, gradient, theta, index).clone()
            for k, p, then, there, now in terms:
                if weight := weight_at(v, n, k) / (p * self.lags):
                    m -= weight * (v.g(then[index], there[index]) - v.g(now[index], theta[index]))
            return m

        return memory
