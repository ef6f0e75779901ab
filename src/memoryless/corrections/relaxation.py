"""The memoryless update to any order in lr, by waveform relaxation: gradients only, for any method.

The iteration t[n+1] = t[n] - lr G[n](t[n]) is the optimizer itself if G[n](theta) is F[n] over the history that leads to theta,

    G[n](theta) = F[n](x[n], ..., x[0]),     x[n] = theta,     x[k] = x[k+1] + lr G[k],     G[k] = F[k](x[k], ..., x[0])

Solve it as one solves waveforms: guess that the history stood still, run the method over the guess, which gives every G[k],
rebuild the x[k] from them, and again. G[k] wrong by O(lr^p) makes x[k] wrong by O(lr^(p+1)), and so the next G[k]: the frozen
history gives G[n] = F[n](theta) + O(lr), each pass gains one order, R - 1 passes leave O(lr^R)
(https://arxiv.org/abs/2509.08483 proves that order for heavy ball).

In momentum form only the last W points are kept, W the ages that count in double precision; before them the history is taken to
have stood still. That makes G[k] wrong for the first of them, but those enter G[n] with the weight beta^W only.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memoryless.errors import BadInput
from memoryless.loss.point import Point
from memoryless.methods import kernel
from memoryless.methods.method import AnyOptimizer, Momentum, one, variables_of

BLOCK = 64
"""Steps whose momenta are one product with a triangular matrix; larger blocks waste arithmetic, smaller ones calls."""


def relaxed(
    method: AnyOptimizer, point: Point, step: int | None, order: int, sequence: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """F[n](theta), its history frozen, and G[n](theta), accurate to O(lr^order).

    Args:
        method: in momentum form, or anything with its `lr`, `init` and `update`.
        point: of the loss, only gradients are used: order - 1 for each step that the memory reaches back, and as many vectors
            kept.
        step: n, or None for the steady state.
        order: R >= 1; 1 is frozen, G = F.
        sequence: batch of each step 0..n; None is full batch.

    Returns:
        F and G, both of shape (d,).

    Raises:
        NeverForgets: steady state of a memory that does not fade.
        BadInput: steady state of a method that is not in momentum form.
    """
    loss, theta = point.loss, point.theta
    # The full-batch frozen history stands still: its last point is all of it.
    count = _reach(method, step, order, sequence is not None)
    used = None if sequence is None else list(sequence[len(sequence) - count :])
    if used is None:
        gradients = loss.gradients(theta[None]).expand(count, -1)
    else:
        batches = sorted(set(used))
        gradients = loss.gradients(theta.expand(len(batches), -1), batches)[[batches.index(i) for i in used]]
    G = _updates(method, gradients, theta.expand(count, -1), step, last=order == 1)
    F = G[-1]
    for p in range(1, order):
        # x[k] = theta + lr sum_{s=k..n-1} G[s]
        back = torch.cat([G[:-1].flip(0).cumsum(0).flip(0), torch.zeros_like(G[-1:])])
        points = theta + method.lr * back
        G = _updates(method, loss.gradients(points, used), points, step, last=p == order - 1)
    return F, G[-1]


def _reach(method: AnyOptimizer, step: int | None, order: int, batched: bool) -> int:
    """How many points of the history to keep."""
    if not method.parts:
        if step is None:
            raise BadInput(f"the steady state needs a method in momentum form, got {method}; give step=n")
        return step + 1
    variables = variables_of(method)
    if step is None:
        for v in variables:
            kernel.require_fading(v)
    if order == 1 and not batched:
        return 1
    last = sys.maxsize - 1 if step is None else step
    # A memory of lag alone reaches one step further with each pass.
    return min(kernel.window(variables, last) + order, last + 1)


def _updates(method: AnyOptimizer, gradients: Tensor, points: Tensor, step: int | None, last: bool) -> Tensor:
    """G[s] at each row of points, the last of which is step n's; only that one if `last`."""
    if not method.parts:
        state: Any = method.init(points[0])
        rows = []
        for gradient, theta in zip(gradients, points, strict=True):
            state, F = method.update(state, gradient, theta)
            rows.append(F)
        return torch.stack(rows)
    kept = slice(-1, None) if last else slice(None)
    G = torch.zeros_like(points[kept])
    for part in method.parts:
        g, x = gradients[:, part.index], points[:, part.index]
        each = _rowwise if part.method.elementwise else _row_by_row
        m = [_momenta(v, each(v.g, g, x), step)[kept] for v in part.method.variables]
        G[:, part.index] = part.scale * each(lambda *row, part=part: part.method.readout(row[:-1], row[-1]), *m, x[kept])
    return G


def _rowwise(f: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """f of each row, where f acts coordinate by coordinate: rows end to end are one long vector."""
    return f(*(t.flatten() for t in tensors)).view(tensors[0].shape)


def _row_by_row(f: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    return torch.stack([f(*rows) for rows in zip(*tensors, strict=True)])


def _momenta(variable: Momentum, g: Tensor, step: int | None) -> Tensor:
    """m at each of the steps up to n whose g_l are the rows of g; before the first row g_l is taken to have been that row."""
    count = len(g)
    start = None if step is None else step - count + 1
    if start == 0 and variable.first != 1:
        g = torch.cat([variable.first * g[:1], g[1:]])
    plain = replace(variable, weight=one, lag=0)
    # At start = 0 nothing went before: the total at step -1 is 0.
    before = g[0] * kernel.total(plain, None if start is None else start - 1)
    sums, latest = [], before
    triangle, powers = _decay(variable.beta, g.dtype, g.device)
    for block in g.split(BLOCK):
        size = len(block)
        sums.append(torch.addmm(powers[:size, None] * latest, triangle[:size, :size], block))
        latest = sums[-1][-1]
    read = torch.cat([before[None], *sums])[:-1] if variable.lag else torch.cat(sums)
    if start is None:
        return float(variable.weight(float("inf"))) * read
    weights = np.broadcast_to(variable.weight(np.arange(start, start + count)), count)
    return torch.tensor(weights, dtype=g.dtype, device=g.device)[:, None] * read


@lru_cache(maxsize=64)
def _decay(beta: float, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """beta^(i - j) for j <= i, shape (BLOCK, BLOCK), and beta^(i + 1)."""
    i = torch.arange(BLOCK, dtype=torch.float64)
    triangle = (beta ** (i[:, None] - i).clamp_min(0)).tril()
    return triangle.to(device, dtype), (beta ** (i + 1)).to(device, dtype)
