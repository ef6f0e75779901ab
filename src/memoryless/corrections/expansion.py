"""What a method's memory adds to its update at one theta, linearized: the one form in which every optimizer answers.

The gradient of k steps ago is, on average over the memory of variable l, g + k w_l, w_l = lr H Fbar_l (`corrections.history`):

    first order:  M = sum_l dphi/dm_l . e_l (dg_l/dg . w_l + dg_l/dtheta . lr Fbar_l),      e_l = sum_k k kernel_l[k]
    resummed:     M = phi(..., sum_k kernel_l[k] g_l(g + k w_l, theta + k lr Fbar_l), ...) - F

The two agree to O(lr^2) and cost the same. First order linearizes the trajectory and the optimizer, resummed only the
trajectory. A black box answers the same questions by its own steps (`corrections.unrolled`, `corrections.steady`).
"""

import functools
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from memoryless.corrections import averages, history
from memoryless.corrections.history import History, Lag
from memoryless.corrections.path import Path, follow
from memoryless.corrections.sequences import Pool
from memoryless.corrections.steady import Steady
from memoryless.corrections.unrolled import Unrolled
from memoryless.loss.point import Point
from memoryless.methods.black_box.derivative import Derivative
from memoryless.methods.black_box.torch_method import TorchMethod
from memoryless.methods.forward_mode import forward_mode
from memoryless.methods.method import AnyOptimizer, Index, Momentum, Part

FORMULA = Derivative(torch.zeros(0), "momentum form", "the momentum form is differentiated")


class Expansion(Protocol):
    """Every optimizer's answers at one theta, each found when asked for, and once."""

    @property
    def F(self) -> Tensor:
        """Update with the history frozen, shape (d,), in the type of theta and the units of an update."""
        ...

    @property
    def precise_F(self) -> Tensor:
        """F in float64."""
        ...

    def first(self) -> Derivative:
        """M of Eq. 9, shape (d,), with the way it was differentiated."""
        ...

    def resummed(self) -> Derivative:
        """M resummed, shape (d,)."""
        ...

    def path(self) -> Path | None:
        """The way back; None where memory is not in momentum form or steps took batches."""
        ...

    @property
    def outside(self) -> float:
        """Share of the coordinates outside the expansion's radius, where first order means nothing."""
        ...

    @property
    def products(self) -> int:
        """Hessian-vector products that the drift takes."""
        ...

    @property
    def steps(self) -> int:
        """Steps of the optimizer itself spent so far; 0 in momentum form."""
        ...


def expansion(
    method: AnyOptimizer,
    point: Point,
    step: int | None = None,
    batches: Sequence[int] | None = None,
    only: int | None = None,
) -> Expansion:
    """How an optimizer's memory answers at a point.

    Args:
        method: in momentum form, or a black box.
        point: of the loss.
        step: n, or None for the steady state.
        batches: index of the batch of each step 0..n; None is full batch.
        only: of the past only the iterate of so many steps ago lies back; None is all of it. Black boxes only.

    Returns:
        Nothing is computed before it is asked for, but for a black box's steady state.

    Raises:
        NeverForgets: steady state of a memory that does not fade.
        BadInput: the optimizer has no answer here; says why.
    """
    if isinstance(method, TorchMethod):
        return Steady(method, point) if step is None else Unrolled(method, point, step, batches, only)
    return Linearized(method, point, step, batches)


def products(method: AnyOptimizer, step: int | None) -> int | None:
    """Hessian-vector products of the full batch that an expansion takes; None where that is not known beforehand.

    A `Point` that is told frees the graph with the last of them.

    Args:
        method: in momentum form, or a black box.
        step: n, or None for the steady state.
    """
    if method.parts:
        return averages.products(method, step)
    return 1 if step is None else None


class Linearized:
    """An `Expansion` of a method in momentum form.

    Args:
        method: in momentum form.
        point: of the loss.
        step: n, or None for the steady state.
        batches: index of the batch of each step 0..n; None is full batch.
    """

    steps = 0

    def __init__(self, method: AnyOptimizer, point: Point, step: int | None, batches: Sequence[int] | None = None):
        self.method, self.point, self.step, self._batches = method, point, step, batches

    @cached_property
    def history(self) -> History:
        """The linearized history."""
        if self._batches is None:
            return history.full_batch(self.method, self.point, self.step)
        return history.mini_batch(self.method, self.point, self._batches)

    @property
    def F(self) -> Tensor:
        """Update with the history frozen, shape (d,)."""
        return self.history.F

    @property
    def precise_F(self) -> Tensor:
        """F in float64."""
        return self._precise_F

    @cached_property
    def _precise_F(self) -> Tensor:
        theta = self.point.theta.double()
        if self._batches is None and theta.dtype == self.point.theta.dtype:
            return self.F
        if self._batches is None:
            return history.frozen(self.method, self.point.gradient.double(), theta, self.step)
        used = sorted(set(self._batches))
        place = {i: row for row, i in enumerate(used)}
        pool = Pool(self.method, self.point.gradients_of(used).double(), theta)
        return pool.update(np.array([place[i] for i in self._batches]))

    @property
    def products(self) -> int:
        """Hessian-vector products that the drift takes."""
        return self.history.products

    def first(self) -> Derivative:
        """M of Eq. 9."""
        return self._first

    def resummed(self) -> Derivative:
        """M resummed."""
        return self._resummed

    def path(self) -> Path | None:
        """The way back, if every step took the full batch; not kept. The drift is found before, which frees its graph."""
        if self._batches is not None:
            return None
        self.history.products  # noqa: B018
        return follow(self.method, self.point, self.step)

    @cached_property
    def _first(self) -> Derivative:
        return FORMULA._replace(value=first_order(self.method, self.history, self.point.theta))

    @cached_property
    def _resummed(self) -> Derivative:
        return FORMULA._replace(value=resummed(self.method, self.history, self.point.theta))

    @property
    def outside(self) -> float:
        """Share of the coordinates where the gradient drifts by as much as itself within the mean age of some memory."""
        return outside(self.method, self.history)


def first_order(method: AnyOptimizer, past: History, theta: Tensor) -> Tensor:
    """M of Eq. 9: the derivative of phi along the lag of each variable.

    Args:
        method: in momentum form.
        past: its linearized history at theta.
        theta: shape (d,).

    Returns:
        Shape (d,), in the units of an update.
    """
    M = torch.zeros_like(theta)
    for part, lags in zip(method.parts, past.lags, strict=True):
        derivative = _elementwise_derivative if part.method.elementwise else _derivative
        for piece in part.pieces(theta):
            M[piece.index] = derivative(piece, lags, theta)
    return M


def _elementwise_derivative(part: Part, lags: list[list[Lag]], theta: Tensor) -> Tensor:
    """By reverse mode, which a diagonal Jacobian allows; torch's forward mode spends 0.3 ms wherever a constant enters."""
    leaves: list[Tensor] = []
    directions: list[tuple[Tensor, float]] = []

    def memory(lag: Lag, v: Momentum) -> Tensor:
        g, point = lag.gradient[part.index].detach(), theta[part.index].detach()
        if lag.back is not None and lag.drift is not None:
            leaves.append(g.requires_grad_())
            directions.append((lag.drift, lag.mean_age))
            if v.uses_theta:
                leaves.append(point.requires_grad_())
                directions.append((lag.back, lag.mean_age))
        return lag.weight * v.g(g, point)

    with torch.enable_grad():
        F = _readout(part, lags, theta, memory)
    M = torch.zeros_like(F)
    if F.requires_grad:
        slopes = torch.autograd.grad(F, leaves, torch.full_like(F, part.scale), allow_unused=True)
        for slope, (direction, age) in zip(slopes, directions, strict=True):
            if slope is not None:
                M.addcmul_(slope, direction[part.index], value=age)
    return M


def _derivative(part: Part, lags: list[list[Lag]], theta: Tensor) -> Tensor:
    """By forward mode."""

    def memory(lag: Lag, v: Momentum) -> Tensor:
        g, point = lag.gradient[part.index], theta[part.index]
        if lag.back is not None and lag.drift is not None:
            g = forward_ad.make_dual(g, lag.mean_age * lag.drift[part.index])
            point = forward_ad.make_dual(point, lag.mean_age * lag.back[part.index])
        return lag.weight * v.g(g, point)

    with forward_mode():
        F, M = forward_ad.unpack_dual(_readout(part, lags, theta, memory))
        return torch.zeros_like(F) if M is None else part.scale * M


def resummed(method: AnyOptimizer, past: History, theta: Tensor) -> Tensor:
    """phi at the memory of the drifting history, less F.

    Args:
        method: in momentum form.
        past: its linearized history at theta.
        theta: shape (d,).

    Returns:
        Shape (d,), in the units of an update.
    """
    M = torch.zeros_like(theta)
    for part, lags in zip(method.parts, past.lags, strict=True):
        for piece in part.pieces(theta):

            def memory(lag: Lag, v: Momentum, index: Index = piece.index) -> Tensor:
                g, point = lag.gradient[index], theta[index]
                if lag.back is None or lag.drift is None:
                    return lag.weight * v.g(g, point)
                drift, back = lag.drift[index], lag.back[index]
                total = torch.zeros_like(point)
                for age, weight in zip(lag.ages.tolist(), lag.weights.tolist(), strict=True):
                    earlier = point.add(back, alpha=age) if v.uses_theta else point
                    total.add_(v.g(g.add(drift, alpha=age), earlier), alpha=weight)
                return total

            M[piece.index] = part.scale * _readout(piece, lags, theta, memory) - past.F[piece.index]
    return M


def _readout(part: Part, lags: list[list[Lag]], theta: Tensor, memory: Callable[[Lag, Momentum], Tensor]) -> Tensor:
    """Phi of the variables' memories, each summed over the batches."""
    point = theta[part.index]
    variables = zip(part.method.variables, lags, strict=True)
    m = [_sum([memory(lag, v) for lag in per_batch], point) for v, per_batch in variables]
    return part.method.readout(m, point)


def _sum(terms: list[Tensor], like: Tensor) -> Tensor:
    return functools.reduce(torch.add, terms) if terms else torch.zeros_like(like)


def outside(method: AnyOptimizer, past: History) -> float:
    """Share of the coordinates with |mean age * drift| >= |g| for some memory: there first order means nothing.

    Args:
        method: in momentum form.
        past: its linearized history.

    Returns:
        Between 0 and 1.
    """
    flagged, count = 0, 0
    for part, lags in zip(method.parts, past.lags, strict=True):
        drifting = [lag for per_batch in lags for lag in per_batch if lag.drift is not None]
        # Of the lags that share a batch and a drift the oldest decides.
        oldest = {(id(lag.gradient), id(lag.drift)): lag for lag in sorted(drifting, key=lambda lag: lag.mean_age)}
        for piece in part.pieces(past.F):
            far = [_far(lag, piece.index) for lag in oldest.values()]
            if far:
                flagged += int(functools.reduce(torch.logical_or, far).count_nonzero())
            count += past.F[piece.index].numel()
    return flagged / max(count, 1)


def _far(lag: Lag, index: Index) -> Tensor:
    assert lag.drift is not None
    # Where both are 0, nothing drifts.
    return (lag.drift[index] * lag.mean_age).abs_() >= lag.gradient[index].abs().clamp_min_(torch.finfo(lag.drift.dtype).tiny)
