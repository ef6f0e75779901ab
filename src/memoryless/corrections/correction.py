"""The memoryless update F and its correction M: first order (Eq. 9), resummed, and to any order R.

    t[n+1] = t[n] - lr (F[n](t) + M[n](t))      follows the optimizer to O(lr^2), with M = 0 to O(lr) only    (Theorem 3.2)

The gradient of k steps ago is, on average over the memory of variable l, g + k w_l, w_l = lr H Fbar_l (`corrections.history`):

    first order:  M = sum_l dphi/dm_l . e_l (dg_l/dg . w_l + dg_l/dtheta . lr Fbar_l),      e_l = sum_k k kernel_l[k]
    resummed:     M = phi(..., sum_k kernel_l[k] g_l(g + k w_l, theta + k lr Fbar_l), ...) - F

The two agree to O(lr^2) and cost the same. First order linearizes the trajectory and the optimizer, resummed only the
trajectory; order R linearizes neither and costs gradients in place of Hessian-vector products (`corrections.relaxation`).
"""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from memoryless.corrections import history
from memoryless.corrections.averages import products
from memoryless.corrections.history import History, Lag
from memoryless.corrections.relaxation import relaxed
from memoryless.corrections.steady import steady
from memoryless.corrections.unrolled import Response, unrolled
from memoryless.errors import BadInput
from memoryless.loss.loss import Loss
from memoryless.methods.black_box.torch_method import AnyOptimizer, TorchMethod
from memoryless.methods.blocks import pieces
from memoryless.methods.method import AnyMethod, Index, Momentum, Part

Order = Literal["first", "resummed"] | int
ORDERS = ("first", "resummed")


@dataclass(frozen=True)
class Correction:
    """The memoryless step theta - lr * (F + M) at one theta.

    Attributes:
        F: update with the history frozen at theta, shape (d,), in the units of an update.
        M: what memory adds, shape (d,), same units.
        order: "first", "resummed" or R.
        step: n, or None for the steady state.
        products: Hessian-vector products spent.
        method: it belongs to.
        history: the linearized history it was made of; None at order R, which linearizes nothing, and for a black box.
        response: how a black box answered, with the way its step was differentiated; None for a method in momentum form.
    """

    F: Tensor
    M: Tensor
    order: Order
    step: int | None
    products: int
    method: AnyOptimizer = field(repr=False)
    history: History | None = field(repr=False)
    response: Response | None = field(default=None, repr=False)

    @cached_property
    def outside(self) -> float:
        """Share of the coordinates outside the expansion's radius, where first order means nothing.

        There the gradient drifts by as much as itself within the mean age of some memory,
        |mean age * lr (H Fbar)_i| >= |g_i|. A black box tells no mean ages: there it is where |M_i| >= |F_i|.

        Raises:
            BadInput: the correction is of order R, not an expansion's.
        """
        if self.response is not None:
            return self.response.outside
        if self.history is None or isinstance(self.method, TorchMethod):
            raise BadInput(f"order {self.order} expands nothing and has no radius; ask a correction of order 'first'")
        return outside(self.method, self.history)


def correction(
    method: AnyOptimizer,
    loss: Loss,
    theta: Tensor | None = None,
    step: int | None = None,
    order: Order = "first",
    batches: Iterable[int] | None = None,
) -> Correction:
    """F[n](theta) and M[n](theta) of Eq. 9 (https://arxiv.org/abs/2502.02132), or the resummed M, or M to order R.

    Args:
        method: from the catalogue, from `method_of`, a `Method` of your own, or any optimizer as a `TorchMethod`.
        loss: the loss; its curvature is used, at order R only its gradients.
        theta: shape (d,); default `loss.theta`.
        step: n, the number of past iterates, with exact transients; None is the steady state n -> infinity.
        order: "first", "resummed", or an integer R: F + M accurate to O(lr^R), so that M = 0 at 1, and 2 is as good as
            "first".
        batches: index of the batch used at each step 0..n; None is full batch.

    Returns:
        F and M with the number of Hessian-vector products spent and the share of coordinates outside the radius.

    Raises:
        NeverForgets: steady state of a memory that does not fade.
        BadInput: bad step, order, batches or theta; says what was expected.

    Example:
        >>> import memoryless as ml
        >>> loss = ml.Loss.of(lambda theta: (theta**2).sum() / 2, torch.tensor([1.0, -2.0]))
        >>> ml.correction(ml.HeavyBall(lr=0.01, momentum=0.9), loss).M  # lr beta / (1 - beta)^3 H g
        tensor([  9.0000, -18.0000])
    """
    if not is_order(order):
        raise BadInput(f"order must be one of {', '.join(ORDERS)}, or an integer >= 1, got {order!r}")
    require_step(step)
    theta = loss.theta if theta is None else theta.detach()
    sequence = None if batches is None else batch_sequence(batches, step, len(loss))
    step = step if sequence is None else len(sequence) - 1
    if isinstance(order, int):
        F, G = relaxed(method, loss, theta, step, order, sequence)
        return Correction(F, G - F, order, step, 0, method, None)
    if isinstance(method, TorchMethod):
        r = steady(method, loss, theta, order) if step is None else unrolled(method, loss, theta, step, order, sequence)
        return Correction(r.F, r.M, order, step, r.products, method, None, r)
    if sequence is None:
        linearization = loss.linearize(theta, products=products(method, step))
        past = history.full_batch(method, linearization, theta, step)
    else:
        past = history.of_batches(method, loss, theta, sequence)
    M = (first_order if order == "first" else resummed)(method, past, theta)
    return Correction(past.F, M, order, step, past.products, method, past)


def first_order(method: AnyMethod, past: History, theta: Tensor) -> Tensor:
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
        for piece in pieces(part, theta):
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

    with forward_ad.dual_level():
        F, M = forward_ad.unpack_dual(_readout(part, lags, theta, memory))
        return torch.zeros_like(F) if M is None else part.scale * M


def resummed(method: AnyMethod, past: History, theta: Tensor) -> Tensor:
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
        for piece in pieces(part, theta):

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


def outside(method: AnyMethod, past: History) -> float:
    """Share of the coordinates with |mean age * drift| >= |g| for some memory; see `Correction`.

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
        for piece in pieces(part, past.F):
            far = [_far(lag, piece.index) for lag in oldest.values()]
            if far:
                flagged += int(functools.reduce(torch.logical_or, far).count_nonzero())
            count += past.F[piece.index].numel()
    return flagged / max(count, 1)


def _far(lag: Lag, index: Index) -> Tensor:
    assert lag.drift is not None
    # Where both are 0, nothing drifts.
    return (lag.drift[index] * lag.mean_age).abs_() >= lag.gradient[index].abs().clamp_min_(torch.finfo(lag.drift.dtype).tiny)


def is_order(order: Any) -> bool:
    """Whether `correction` knows the order.

    Args:
        order: "first", "resummed" or an integer R >= 1.
    """
    return order in ORDERS if isinstance(order, str) else type(order) is int and order >= 1


def require_step(step: Any) -> None:
    """Raise if it is no step.

    Args:
        step: n, or None for the steady state.

    Raises:
        BadInput: neither.
    """
    if step is not None and (isinstance(step, bool) or not isinstance(step, int) or step < 0):
        raise BadInput(f"step must be None (steady state) or an integer >= 0, got {step!r}")


def batch_sequence(batches: Iterable[int], step: int | None, count: int) -> list[int]:
    """The batch of each step, checked.

    Args:
        batches: index of the batch used at each step 0..step.
        step: n, or None if the batches say it.
        count: number of batches of the loss.

    Returns:
        One index for each step 0..n.

    Raises:
        BadInput: too few, too many, or out of range.
    """
    sequence = [int(i) for i in batches]
    if not sequence or (step is not None and len(sequence) != step + 1):
        expected = "at least one batch index" if step is None else f"{step + 1} batch indices, one for each step 0..{step}"
        raise BadInput(f"batches must give {expected}, got {len(sequence)}")
    if bad := [i for i in sequence if not 0 <= i < count]:
        raise BadInput(f"batches must be indices in 0..{count - 1}, got {bad[0]}")
    return sequence
