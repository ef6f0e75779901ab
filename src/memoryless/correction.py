"""The memoryless update F and its correction M: first order (Eq. 9) and resummed.

    t[n+1] = t[n] - lr (F[n](t) + M[n](t))      follows the optimizer to O(lr^2), with M = 0 to O(lr) only    (Theorem 3.2)

Let e_l = sum_k k kernel_l[k] be the age moment of variable l. Its memory sees the past updates through one average,

    Fbar_l = (1/e_l) sum_k kernel_l[k] D[k] = sum_{s<n} (T_l[n-s] / e_l) F[s](theta),        T_l[j] = sum_{k >= j} kernel_l[k]

(exchange the sums), so the gradient of k steps ago is, on average over the memory, g + k w_l with w_l = lr H Fbar_l, and

    first order:  M = sum_l dphi/dm_l . e_l (dg_l/dg . w_l + dg_l/dtheta . lr Fbar_l)
    resummed:     M = phi(..., sum_k kernel_l[k] g_l(g + k w_l, theta + k lr Fbar_l), ...) - F

The two agree to O(lr^2) and cost the same: one Hessian-vector product per distinct Fbar, and when F[s] does not depend on s
(Adam with bias correction, every steady state) all Fbar_l are F. The first linearizes the trajectory and the optimizer,
the second only the trajectory. With mini-batches the ages split by batch, each with its own gradient, H and Fbar.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from memoryless import kernel
from memoryless.loss import Loss
from memoryless.method import Functions, Momentum, Optimizer, Part

Order = Literal["first", "resummed"]
ORDERS: tuple[Order, ...] = ("first", "resummed")


@dataclass(frozen=True)
class Correction:
    """The memoryless step theta - lr * (F + M) at one theta.

    Attributes:
        F: update with the history frozen at theta, shape (d,), in the units of an update.
        M: what memory adds, shape (d,), same units.
        order: "first" or "resummed".
        step: n, or None for the steady state.
        products: Hessian-vector products spent.
        outside: share of coordinates outside the expansion's radius, where the gradient drifts by as much as itself within the
            mean age of some memory, |mean age * lr (H Fbar)_i| >= |g_i|. There first order means nothing.
    """

    F: Tensor
    M: Tensor
    order: Order
    step: int | None
    products: int
    outside: float


class _Lag(NamedTuple):
    """How the gradients of one batch enter one variable: quadrature over their ages, and the average past update."""

    batch: int | None
    ages: np.ndarray
    weights: np.ndarray
    past: Tensor | None


def correction(
    method: Optimizer,
    loss: Loss,
    theta: Tensor | None = None,
    step: int | None = None,
    order: Order = "first",
    batches: Iterable[int] | None = None,
) -> Correction:
    """F[n](theta) and M[n](theta) of Eq. 9 (https://arxiv.org/abs/2502.02132), or the resummed M.

    Args:
        method: from the catalogue, from `method_of`, or a `Method` of your own.
        loss: the loss; its curvature is used.
        theta: shape (d,); default `loss.theta`.
        step: n, the number of past iterates, with exact transients; None is the steady state n -> infinity.
        order: "first" or "resummed".
        batches: index of the batch used at each step 0..n; None is full batch.

    Returns:
        F and M with the number of Hessian-vector products spent and the share of coordinates outside the radius.

    Raises:
        NeverForgets: steady state of a memory that does not fade.
        ValueError: bad step, order, batches or theta; says what was expected.

    Example:
        >>> import memoryless as ml
        >>> loss = ml.Loss.of(lambda theta: (theta**2).sum() / 2, torch.tensor([1.0, -2.0]))
        >>> ml.correction(ml.HeavyBall(lr=0.01, momentum=0.9), loss).M  # lr beta / (1 - beta)^3 H g
        tensor([  9.0000, -18.0000])
    """
    theta = loss.theta if theta is None else theta.detach()
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
    if step is not None and (isinstance(step, bool) or not isinstance(step, int) or step < 0):
        raise ValueError(f"step must be None (steady state) or an integer >= 0, got {step!r}")
    if batches is None:
        gradient, curvature = loss.linearize(theta)
        gradients: dict[int | None, Tensor] = {None: gradient}
        F, lags = _full_batch_lags(method, gradient, theta, step)
        products = {None: curvature}
    else:
        sequence = _checked(batches, step, len(loss))
        gradients = {i: loss.gradient(theta, i) for i in sorted(set(sequence))}
        F, lags = _batch_lags(method, gradients, theta, sequence)
        step = len(sequence) - 1
        products = {i: (lambda v, i=i: loss.curvature(theta, v, i)) for i in gradients}

    drifts: dict[tuple[int | None, int], Tensor] = {}
    for lag in (lag for variables in lags.values() for per_batch in variables for lag in per_batch):
        if lag.past is not None and (lag.batch, id(lag.past)) not in drifts:
            drifts[lag.batch, id(lag.past)] = method.lr * products[lag.batch](lag.past)
    M = torch.zeros_like(F)
    respond = _first if order == "first" else _resummed
    for j, part in enumerate(method.parts):
        M[part.index] = part.scale * respond(part, method.lr, theta, gradients, drifts, lags[j])
        if order == "resummed":
            M[part.index] -= F[part.index]
    return Correction(F, M, order, step, len(drifts), _outside(method, gradients, drifts, lags))


def frozen(method: Optimizer, gradient: Tensor, theta: Tensor, step: int | None) -> Tensor:
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
    for part, values in zip(method.parts, _values(method, gradient, theta), strict=True):
        m = [kernel.total(v, step) * value for v, value in zip(part.method.variables, values, strict=True)]
        F[part.index] = part.scale * part.method.readout(m, theta[part.index])
    return F


def _values(method: Optimizer, gradient: Tensor, theta: Tensor) -> list[list[Tensor]]:
    """g_l(gradient, theta) of every variable of every part."""
    return [[v.g(gradient[p.index], theta[p.index]) for v in p.method.variables] for p in method.parts]


@lru_cache(maxsize=4096)
def _past(variables: tuple[Momentum, ...], n: int) -> tuple[np.ndarray, np.ndarray]:
    """Steps s and weights, shape (len(variables), steps), with Fbar_l = sum_s weights[l, s] F[s](theta).

    Step n itself stands for every s where F[s](theta) = F[n](theta). Rows of variables without a past at n are zero.
    """
    steps = np.arange(max(n + 1 - kernel.window(variables, n), 0), n + 1)
    weights = np.stack([kernel.tails(kernel.kernel(v, n))[n - steps] for v in variables])
    weights[:, -1] = 0
    sums = weights.sum(axis=1, keepdims=True)
    weights = np.divide(weights, sums, out=np.zeros_like(weights), where=sums != 0)
    index, folded = kernel.compress(np.stack([kernel.totals(v, steps) for v in variables]), weights)
    return steps[index], folded


def _full_batch_lags(
    method: Optimizer, gradient: Tensor, theta: Tensor, step: int | None
) -> tuple[Tensor, dict[int, list[list[_Lag]]]]:
    variables = tuple(v for part in method.parts for v in part.method.variables)
    F = frozen(method, gradient, theta, step)
    pasts: list[Tensor | None]
    if step is None:
        pasts = [F if v.has_memory else None for v in variables]
    else:
        steps, weights = _past(variables, step)
        if list(steps) == [step]:
            pasts = [F if weights[l].any() else None for l in range(len(variables))]
        else:
            rows = _distinct(weights)
            updates = [torch.zeros_like(F) for _ in range(max(rows, default=-1) + 1)]
            for i, s in enumerate(steps):
                at_s = frozen(method, gradient, theta, int(s))
                for row, update in enumerate(updates):
                    update.add_(at_s, alpha=weights[rows.index(row), i])
            pasts = [updates[row] if row >= 0 else None for row in rows]
    numbered = iter(zip(variables, pasts, strict=True))
    lags = {
        j: [[_Lag(None, *kernel.gauss(v, step), past) for v, past in [next(numbered)]] for _ in part.method.variables]
        for j, part in enumerate(method.parts)
    }
    return F, lags


def _distinct(rows: np.ndarray) -> list[int]:
    """Number the distinct rows in order of appearance; zero rows are -1."""
    seen: list[np.ndarray] = []
    numbers = []
    for row in rows:
        if not row.any():
            numbers.append(-1)
            continue
        match = next((i for i, other in enumerate(seen) if np.allclose(row, other, rtol=0, atol=1e-13)), None)
        if match is None:
            match = len(seen)
            seen.append(row)
        numbers.append(match)
    return numbers


def _batch_lags(
    method: Optimizer, gradients: dict[int | None, Tensor], theta: Tensor, sequence: Sequence[int]
) -> tuple[Tensor, dict[int, list[list[_Lag]]]]:
    n = len(sequence) - 1
    used = np.array(sequence[::-1])  # batch by age
    weights, quadratures = {}, {}
    for j, part in enumerate(method.parts):
        for l, v in enumerate(part.method.variables):
            for i in gradients:
                values = np.where(used == i, kernel.kernel(v, n), 0)
                if not values.any():
                    continue
                count = kernel.NODES if v.degree is None else v.degree // 2 + 1
                quadratures[j, l, i] = kernel.gauss_of(values, count)
                tails = kernel.tails(values)
                moment = tails[1:].sum()
                if moment:
                    weights[j, l, i] = tails[::-1] / moment  # by step s = n - age
    state = method.init(theta)
    pasts = {key: torch.zeros_like(theta) for key in weights}
    F = torch.zeros_like(theta)
    for s, i in enumerate(sequence):
        state, F = method.update(state, gradients[i], theta)
        if s < n:
            for key, weight in weights.items():
                pasts[key].add_(F, alpha=float(weight[s]))
    lags = {
        j: [
            [_Lag(i, *quadratures[j, l, i], pasts.get((j, l, i))) for i in gradients if (j, l, i) in quadratures]
            for l in range(len(part.method.variables))
        ]
        for j, part in enumerate(method.parts)
    }
    return F, lags


def _resummed(
    part: Part,
    lr: float,
    theta: Tensor,
    gradients: dict[int | None, Tensor],
    drifts: dict[tuple[int | None, int], Tensor],
    lags: list[list[_Lag]],
) -> Tensor:
    """phi at the memory of the drifting history."""
    point = theta[part.index]
    m = []
    for v, per_batch in zip(part.method.variables, lags, strict=True):
        value = torch.zeros_like(point)
        for lag in per_batch:
            g = gradients[lag.batch][part.index]
            for age, weight in zip(lag.ages, lag.weights, strict=True):
                if lag.past is None:
                    value = value + weight * v.g(g, point)
                else:
                    w, back = drifts[lag.batch, id(lag.past)][part.index], lr * lag.past[part.index]
                    value = value + weight * v.g(g + age * w, point + age * back)
        m.append(value)
    return part.method.readout(m, point)


def _first(
    part: Part,
    lr: float,
    theta: Tensor,
    gradients: dict[int | None, Tensor],
    drifts: dict[tuple[int | None, int], Tensor],
    lags: list[list[_Lag]],
) -> Tensor:
    """The derivative of phi along the lag of each variable, by forward-mode automatic differentiation."""
    point = theta[part.index]
    with forward_ad.dual_level():
        m = []
        for v, per_batch in zip(part.method.variables, lags, strict=True):
            value = torch.zeros_like(point)
            for lag in per_batch:
                g, total = gradients[lag.batch][part.index], float(lag.weights.sum())
                if lag.past is None:
                    value = value + total * v.g(g, point)
                else:
                    age = float(lag.ages @ lag.weights) / total
                    w, back = drifts[lag.batch, id(lag.past)][part.index], lr * lag.past[part.index]
                    value = value + total * v.g(
                        forward_ad.make_dual(g, age * w), forward_ad.make_dual(point, age * back)
                    )
            m.append(value)
        tangent = forward_ad.unpack_dual(part.method.phi(Functions(), m, point)).tangent
    return torch.zeros_like(point) if tangent is None else tangent


def _outside(
    method: Optimizer,
    gradients: dict[int | None, Tensor],
    drifts: dict[tuple[int | None, int], Tensor],
    lags: dict[int, list[list[_Lag]]],
) -> float:
    outside, count = 0, 0
    for j, part in enumerate(method.parts):
        flags = None
        for lag in (lag for per_batch in lags[j] for lag in per_batch):
            g = gradients[lag.batch][part.index]
            if flags is None:
                flags = torch.zeros_like(g, dtype=torch.bool)
            if lag.past is not None:
                age = float(lag.ages @ lag.weights / lag.weights.sum())
                drift = age * drifts[lag.batch, id(lag.past)][part.index]
                flags |= (drift.abs() >= g.abs()) & (drift != 0)
        if flags is not None:
            outside, count = outside + int(flags.sum()), count + flags.numel()
    return outside / max(count, 1)


def _checked(batches: Iterable[int], step: int | None, count: int) -> list[int]:
    sequence = [int(i) for i in batches]
    if not sequence or (step is not None and len(sequence) != step + 1):
        expected = (
            "at least one batch index" if step is None else f"{step + 1} batch indices, one for each step 0..{step}"
        )
        raise ValueError(f"batches must give {expected}, got {len(sequence)}")
    if bad := [i for i in sequence if not 0 <= i < count]:
        raise ValueError(f"batches must be indices in 0..{count - 1}, got {bad[0]}")
    return sequence
