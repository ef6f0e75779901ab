"""Maps of the predicted effect along one order of mini-batches, all pairs of betas from a few products of each batch.

As shadows do, every pair reads the path of the method at hand: F[s](theta) along the order, and of each kernel and batch i how
far the gradients lie back per step of age, w_{l,i} = lr H_i Fbar_{l,i} (`corrections.history`). With c, e, q the weight and the
first two age moments of batch i in a variable the memories of all pairs are sums over the batches,

    m = sum_i (c g_i + e w_i),        v = sum_i (c g_i^2 + 2 e g_i w_i + q w_i^2),

and a map is their inner products (`audits.grid`): 8 kernels serve 7 x 8 betas, where pair by pair it would be 2 for each of 56.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from memoryless.audits.beta_map import BetaMap, map_of, predicted_maps
from memoryless.audits.grid import Grid, derivatives, inner_products
from memoryless.corrections import history
from memoryless.corrections.history import Lag
from memoryless.corrections.sequences import Order
from memoryless.loss.measures import Value
from memoryless.loss.point import Point
from memoryless.methods.forward_mode import forward_mode
from memoryless.methods.method import Index, Momentum


def order_maps(grid: Grid, point: Point, values: Sequence[Value], order: Order) -> list[BetaMap]:
    """What memory does at every pair of betas along one order of batches, to first order and resummed.

    A Hessian-vector product for each distinct beta and batch. So many vectors of shape (d,) are held too, beside the
    gradients of the batches and three for each beta.

    Args:
        grid: the pairs; the path is that of `grid.method`.
        point: of the loss.
        values: the measures at the point.
        order: batch of each step 0..n.
    """
    if len(point.loss) == 1:
        return predicted_maps(grid, point, len(order) - 1, values)
    memories, theta = _Memories(grid, point.theta), point.theta
    for lags in history.along(grid.method, point, order.tolist(), memories.variables).lags:
        memories.add(lags)
    slopes = torch.stack([value.gradient for value in values])
    first = derivatives(grid, slopes, theta, memories.frozen, memories.tangent)
    resummed = inner_products(grid, slopes, theta, memories.drifting)
    resummed -= inner_products(grid, slopes, theta, memories.frozen)
    return [map_of(first, grid, values, "first"), map_of(resummed, grid, values, "resummed")]


class _Memories:
    """The memories of all variables of a grid, batch by batch: frozen, drifting, and the tangent from one to the other."""

    def __init__(self, grid: Grid, theta: Tensor):
        self.theta = theta
        self._indices: dict[Momentum, list[Index]] = {}
        for p, part in enumerate(grid.oldest.parts):
            for l in range(len(part.method.variables)):
                for v in grid.variables(p, l)[0]:
                    indices = self._indices.setdefault(v, [])
                    if not any(index is part.index for index in indices):
                        indices.append(part.index)
        self.variables = list(self._indices)
        self._frozen, self._drifting, self._tangent = ({v: torch.zeros_like(theta) for v in self.variables} for _ in range(3))

    def add(self, lags: dict[Momentum, Lag]) -> None:
        """Of one batch."""
        for v, lag in lags.items():
            for index in self._indices[v]:
                self._add(v, lag, index)

    def _add(self, v: Momentum, lag: Lag, index: Index) -> None:
        g, theta = lag.gradient[index], self.theta[index]
        image = v.g(g, theta)
        self._frozen[v][index] += lag.weight * image
        if lag.back is None or lag.drift is None:
            self._drifting[v][index] += lag.weight * image
            return
        drift, back = lag.drift[index], lag.back[index]
        for age, weight in zip(lag.ages.tolist(), lag.weights.tolist(), strict=True):
            earlier = theta.add(back, alpha=age) if v.uses_theta else theta
            self._drifting[v][index] += weight * v.g(g.add(drift, alpha=age), earlier)
        with forward_mode():
            dual = v.g(forward_ad.make_dual(g, drift), forward_ad.make_dual(theta, back) if v.uses_theta else theta)
            slope = forward_ad.unpack_dual(dual).tangent
        if slope is not None:
            self._tangent[v][index] += lag.weight * lag.mean_age * slope

    def frozen(self, v: Momentum, index: Index) -> Tensor:
        return self._frozen[v][index]

    def drifting(self, v: Momentum, index: Index) -> Tensor:
        return self._drifting[v][index]

    def tangent(self, v: Momentum, index: Index) -> Tensor:
        return self._tangent[v][index]
