"""One lag at random: what a single Hessian-vector product tells of the first-order correction.

    M[n] = lr sum_k W[k] H_{n-k} D[k] = E[ lr W[k] H_{n-k} D[k] / p_k ],        D[k] = sum_{s=n-k..n-1} F[s]

for a lag k drawn with probability p_k; where D[k] sums over many steps, some drawn at random stand for all. Only memories at
the steps drawn are formed, each a weighted sum over the batches (`corrections.sequences`).
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import forward_ad

from memoryless.corrections.sequences import Order, Pool, per_row, shares
from memoryless.loss.point import Point
from memoryless.methods import kernel
from memoryless.methods.black_box.derivative import tangent
from memoryless.methods.forward_mode import forward_mode
from memoryless.methods.method import Momentum, variables_of

POINTS = 16
"""Of the steps that D[k] sums over, so many are taken where it sums over more: one from each of as many equal stretches."""
ROUND = 2**22
"""Numbers kept at once, draws times coordinates."""

Draws = Iterable[tuple[Order, np.random.Generator]]
"""For each sample an order of batches, and the generator that draws its lag."""
Sample = tuple[Tensor, Tensor, int]
"""F and M of one sample, and the products spent on it."""


@lru_cache(maxsize=16)
def lag_probabilities(variables: tuple[Momentum, ...], n: int, limit: bool) -> NDArray[np.float64]:
    """Probability of drawing each lag k = 1, 2, ...

    A term of M has the size kernel_l[k] |D[k]|, and D[k] grows as k where the updates agree, as sqrt(k) where they are noise:
    every variable and either growth has an equal share.

    Args:
        variables: of a method.
        n: step.
        limit: whether it stands for the steady state.

    Returns:
        Shape (lags,), a sum of 1; empty if nothing is remembered.
    """
    count = min(kernel.window(variables, n), n + 1)
    ages = np.arange(1, count)
    p = np.zeros(count - 1)
    for values in {v: np.abs(kernel.kernel(v, n, count, limit)[1:]) for v in variables}.values():
        for growth in (ages, np.sqrt(ages)):
            if total := values @ growth:
                p += values * growth / total
    return p / (p.sum() or 1.0)


@dataclass(frozen=True)
class Lagged:
    """A draw: an order, a lag and the steps that stand for D[k].

    Attributes:
        batch: of step n - k.
        k: the lag, >= 1.
        probability: p_k, with which that lag is drawn.
        steps: n, then the steps s drawn from n-k..n-1.
        weight: of each drawn s in D[k]: k over their number.
    """

    batch: int
    k: int
    probability: float
    steps: list[int]
    weight: float


def lagged(order: Order, p: NDArray[np.float64], rng: np.random.Generator) -> Lagged:
    """Draw a lag, and steps between it and the present.

    Args:
        order: batch of each step 0..n.
        p: probability of each lag k = 1, 2, ..., from `lag_probabilities`.
        rng: source of the lag and of the steps.
    """
    n, (u, *places) = len(order) - 1, rng.random(1 + POINTS)
    k = 1 + min(int(np.searchsorted(np.cumsum(p), u, side="right")), len(p) - 1)
    # Beyond POINTS uniform within each of so many equal stretches: every s has the same chance.
    stretches = np.floor((np.arange(POINTS) + places) * k / POINTS).astype(int)
    steps = n - k + (np.arange(k) if k <= POINTS else stretches)
    return Lagged(int(order[n - k]), k, float(p[k - 1]), [n, *steps.tolist()], k / len(steps))


def random_lags(pool: Pool, point: Point, n: int, limit: bool, draws: Draws) -> Iterator[Sample]:
    """F[n], and one lag's share in M[n], of random orders.

    Args:
        pool: the gradients of the batches.
        point: of the loss; the curvature of a batch is used once for each order.
        n: step.
        limit: whether it stands for the steady state.
        draws: for each sample the batch of each step 0..n, and the source of its lag.

    Yields:
        F[n] and that share, over its probability.
    """
    variables = variables_of(pool.method)
    p = lag_probabilities(variables, n, limit)
    draws = iter(draws)
    while batch := list(itertools.islice(draws, max(1, ROUND // len(pool.theta)))):
        lags: list[Lagged] = []
        present: list[list[Tensor]] = [[] for _ in variables]
        F, backs = [], []
        for order, rng in batch:
            lag = lagged(order, p, rng) if p.any() else Lagged(int(order[n]), 0, 1.0, [n], 0.0)
            memories = pool.memories([shares(v, order, lag.steps, len(pool), limit) for v in variables])
            updates = pool.readout(memories)
            for rows, m in zip(present, memories, strict=True):
                rows.append(m[0])
            lags.append(lag)
            F.append(updates[0])
            backs.append(pool.method.lr * lag.weight * updates[1:].sum(0))
        M = _answers(pool, lags, [torch.stack(rows) for rows in present], torch.stack(backs), n, limit, point)
        yield from zip(F, M, [int(lag.k > 0) for lag in lags], strict=True)


def _answers(
    pool: Pool, lags: Sequence[Lagged], present: Sequence[Tensor], backs: Tensor, n: int, limit: bool, point: Point
) -> Tensor:
    """What one lag each contributes to M[n], over its probability, shape (lags, d)."""
    drifts = torch.zeros_like(backs)
    for i in sorted({lag.batch for lag in lags if lag.k}):
        mine = [r for r, lag in enumerate(lags) if lag.k and lag.batch == i]
        _, product = point.loss.linearize(pool.theta, i, products=len(mine))
        for r in mine:
            drifts[r] = product(backs[r])
    batches = [lag.batch for lag in lags]
    duals = []
    with forward_mode():
        flat = iter(present)
        for part in pool.method.parts:
            g = forward_ad.make_dual(pool.gradients[batches][:, part.index], drifts[:, part.index].contiguous())
            theta = pool.theta[part.index].expand(len(lags), -1).contiguous()
            theta = forward_ad.make_dual(theta, backs[:, part.index].contiguous())
            for v in part.method.variables:
                share = [weight_at(v, n, lag.k, limit) / lag.probability for lag in lags]
                slope = tangent(per_row(v.g, part.method.elementwise, g, theta))
                duals.append(forward_ad.make_dual(next(flat), slope * slope.new_tensor(share)[:, None]))
        return tangent(pool.readout(duals)).detach()


def weight_at(variable: Momentum, n: int, k: int, limit: bool = False) -> float:
    """kernel[k] for one age k >= 1.

    Args:
        variable: a momentum variable.
        n: step.
        k: age.
        limit: take the weight of n -> infinity.
    """
    if k < max(variable.lag, 1):
        return 0.0
    weight = variable.weight(np.inf if limit else n)
    return float(weight * variable.beta ** (k - variable.lag) * (variable.first if k == n and not limit else 1.0))
