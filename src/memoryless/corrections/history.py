"""How an optimizer's history lags behind the present, to first order: what both corrections are made of.

Replace the iterate of k steps ago by theta + lr D[k], D[k] = sum_{s = n-k..n-1} F[s](theta). With e_l = sum_k k kernel_l[k],
the age moment of variable l, its memory sees the past updates through one average,

    Fbar_l = (1/e_l) sum_k kernel_l[k] D[k] = sum_{s<n} (T_l[n-s] / e_l) F[s](theta),        T_l[j] = sum_{k >= j} kernel_l[k]

(exchange the sums), so that per step of age theta lies lr Fbar_l back and the gradient changes by lr H Fbar_l: one
Hessian-vector product per distinct Fbar. Where F[s] does not depend on s (Adam with bias correction, every steady state) all
Fbar_l are F.
With mini-batches the ages split by batch, each with its own gradient, H and Fbar.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from memoryless.corrections import averages
from memoryless.corrections.sequences import Pool
from memoryless.loss.point import Point
from memoryless.methods import kernel
from memoryless.methods.method import AnyOptimizer, Index, Momentum, variables_of

Memory = Callable[[Momentum, Index], Tensor]
"""(variable, coordinates) -> m_l there."""


@dataclass(frozen=True)
class Lag:
    """How the gradients of one batch enter one variable.

    Attributes:
        gradient: grad L_i(theta), shape (d,).
        ages: quadrature nodes over the ages at which the batch was used.
        weights: their weights, which sum to the frozen weight c.
        back: lr Fbar, shape (d,): how far theta lies back per step of age; None if only the present enters.
        drift: H_i back, shape (d,): how far the gradient lies back per step of age.
    """

    gradient: Tensor
    ages: np.ndarray
    weights: np.ndarray
    back: Tensor | None = None
    drift: Tensor | None = None

    @property
    def weight(self) -> float:
        """c = sum_k kernel[k]."""
        return float(self.weights.sum())

    @property
    def mean_age(self) -> float:
        """sum_k k kernel[k] / c; 0 without weight."""
        return float(self.ages @ self.weights) / self.weight if self.weight else 0.0


@dataclass(frozen=True)
class History:
    """The linearized history of a method at theta.

    Attributes:
        F: update with the history frozen at theta, shape (d,).
        lags: for each part of the method and each of its variables, one Lag per batch.
        products: Hessian-vector products spent.
    """

    F: Tensor
    lags: list[list[list[Lag]]]
    products: int

    def only(self, j: int, l: int) -> "History":
        """The history with all but variable l of part j frozen."""
        lags = [
            [
                per_batch if (j, l) == (jj, ll) else [replace(lag, back=None, drift=None) for lag in per_batch]
                for ll, per_batch in enumerate(variables)
            ]
            for jj, variables in enumerate(self.lags)
        ]
        return replace(self, lags=lags)


def update_of(method: AnyOptimizer, theta: Tensor, memory: Memory) -> Tensor:
    """F from any memory, shape (d,).

    Args:
        method: in momentum form.
        theta: shape (d,).
        memory: (variable, coordinates) -> m_l.
    """
    F = torch.zeros_like(theta)
    for part in method.parts:
        for piece in part.pieces(theta):
            m = [memory(v, piece.index) for v in part.method.variables]
            F[piece.index] = part.scale * part.method.readout(m, theta[piece.index])
    return F


def frozen(method: AnyOptimizer, gradient: Tensor, theta: Tensor, step: int | None) -> Tensor:
    """F[n](theta), full batch: the update had the iterate never moved.

    Args:
        method: in momentum form.
        gradient: grad L(theta), shape (d,).
        theta: shape (d,).
        step: n, or None for the limit.

    Returns:
        Shape (d,).
    """
    F = torch.zeros_like(theta)
    for part in method.parts:
        totals = [kernel.total(v, step) for v in part.method.variables]
        for piece in part.pieces(theta):
            g, point = gradient[piece.index], theta[piece.index]
            m = [total * v.g(g, point) for v, total in zip(part.method.variables, totals, strict=True)]
            F[piece.index] = part.scale * part.method.readout(m, point)
    return F


def full_batch(method: AnyOptimizer, point: Point, step: int | None) -> History:
    """The history when every step used the full batch.

    Args:
        method: in momentum form.
        point: of the loss; its curvature is used once for each distinct average of past updates.
        step: n, or None for the steady state.

    Returns:
        The linearized history.

    Raises:
        NeverForgets: steady state of a memory that does not fade.
    """
    gradient, theta = point.gradient, point.theta
    variables = variables_of(method)
    F = frozen(method, gradient, theta, step)
    past, owner, scale = averages.averages(method, gradient, theta, step, F)
    backs = [method.lr * average for average in past]
    drifts = [point.drift(back) for back in backs]
    flat = iter(
        Lag(gradient, *kernel.gauss(v, step), *((_times(a, backs[i]), _times(a, drifts[i])) if i >= 0 else ()))
        for v, i, a in zip(variables, owner, scale, strict=True)
    )
    return History(F, [[[next(flat)] for _ in part.method.variables] for part in method.parts], len(backs))


def _times(a: float, x: Tensor) -> Tensor:
    return x if a == 1 else a * x


def reach(variables: Sequence[Momentum], n: int) -> int:
    """How many of the steps 0..n, counted back from n, some variables remember to double precision.

    Args:
        variables: of one method, or of several.
        n: step.
    """
    # Many quadrature nodes weigh high powers of the age, which reach further back.
    factor = 4 if any(v.degree is None for v in variables) else 1
    # One more, which the update before a lagging variable's oldest gradient still read.
    return min(factor * kernel.window(tuple(variables), n) + 1, n + 1)


def mini_batch(method: AnyOptimizer, point: Point, sequence: Sequence[int]) -> History:
    """The history when step s used batch sequence[s].

    Args:
        method: in momentum form.
        point: of the loss; the gradient of each batch that is remembered is used, and H_i once per kernel and batch.
        sequence: batch of each step 0..n.

    Returns:
        The linearized history.
    """
    variables = variables_of(method)
    path = along(method, point, sequence, variables)
    found = list(path.lags)
    flat = iter([[lags[v] for lags in found if v in lags] for v in variables])
    return History(path.F, [[next(flat) for _ in part.method.variables] for part in method.parts], path.products)


class Path(NamedTuple):
    """A path along mini-batches at frozen theta, seen by some variables.

    Attributes:
        F: update of its last step, shape (d,).
        lags: for each batch in turn the lag of every variable that remembers it; found when asked for.
        products: Hessian-vector products that all of them take.
    """

    F: Tensor
    lags: Iterator[dict[Momentum, Lag]]
    products: int


def along(method: AnyOptimizer, point: Point, sequence: Sequence[int], variables: Sequence[Momentum]) -> Path:
    """How the gradients along a method's path lie back, as variables see them that need not be its own.

    Fbar_{l,i} depends on variable l through its kernel up to a factor, (beta, lag, first), alone: variables that share it
    share products.

    Args:
        method: in momentum form, whose updates make the path.
        point: of the loss; the gradient of each batch that is remembered is used, and H_i once per kernel and batch.
        sequence: batch of each step 0..n.
        variables: that see the gradients.
    """
    n, theta = len(sequence) - 1, point.theta
    count = reach([*variables_of(method), *variables], n)
    recent = sequence[n + 1 - count :]
    used = np.array(recent[::-1])  # batch by age
    ages = {i: np.flatnonzero(used == i) for i in sorted(set(recent))}
    gradients = {i: point.gradient_of(i) for i in ages}
    shares: dict[tuple[int, Kernel], np.ndarray] = {}
    for v in dict.fromkeys(variables):
        whole = kernel.kernel(v, n, count)
        for i in ages:
            if (key := (i, _kernel(v))) not in shares:
                tails = kernel.tails(np.where(used == i, whole, 0))
                if moment := tails[1:].sum():
                    shares[key] = tails[::-1] / moment  # by step, the oldest first
    place = {i: row for row, i in enumerate(gradients)}
    pool = Pool(method, torch.stack(list(gradients.values())), theta)
    F = theta
    weights = torch.from_numpy(np.array(list(shares.values()))).to(theta)
    sums = theta.new_zeros(len(shares), len(theta))
    for s, updates in pool.updates(np.array([place[i] for i in recent]), first=n + 1 - count):
        F = updates[-1]
        before = slice(s, min(s + len(updates), count - 1))
        if shares and s < count - 1:
            sums += weights[:, before] @ updates[: before.stop - s]
    backs = dict(zip(shares, method.lr * sums, strict=True))

    def lags() -> Iterator[dict[Momentum, Lag]]:
        for i, at in ages.items():
            mine = {key: back for (j, key), back in backs.items() if j == i}
            drifts: dict[Kernel, Tensor] = {}
            if mine:
                drifts = dict(zip(mine, point.loss.curvatures(theta, torch.stack(list(mine.values())), i), strict=True))
            found = {}
            for v in dict.fromkeys(variables):
                nodes = kernel.gauss_at(at, kernel.kernel(v, n, count)[at], kernel.node_count(v))
                if len(nodes[0]):
                    found[v] = Lag(gradients[i], *nodes, mine.get(_kernel(v)), drifts.get(_kernel(v)))
            yield found

    return Path(F, lags(), len(backs))


Kernel = tuple[float, int, float]
"""(beta, lag, first): all that a kernel is but for its weight."""


def _kernel(v: Momentum) -> Kernel:
    return v.beta, v.lag, v.first
