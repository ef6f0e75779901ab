"""How a black box answers a history that lags behind the present: F[n] and its correction without a formula.

With D[j] = sum_{s = j..n-1} F[s](theta) step j saw theta[j] = theta + lr D[j] and the gradient g_j + lr H_j D[j] of its batch.

    first order:  M[n] = the derivative of F[n] along that drift, at the frozen history     (Eq. 9)
    resummed:     M[n] = F[n] of the drifting history itself - F[n](theta)

The D[j] lie in a space of few dimensions (one, where F[s] keeps its direction): H is applied to a basis of it.

The derivative goes by forward mode through step() and by central differences, and neither is believed alone. Forward mode
is exact but blind where an optimizer detaches or calls .item(); a difference sees all, to fewer digits.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from memoryless.errors import BadInput
from memoryless.isolation import isolated
from memoryless.loss.loss import Loss
from memoryless.methods.black_box.torch_method import TorchMethod

Order = Literal["first", "resummed"]
Way = Literal["forward mode", "difference", "none"]
DIRECTION = 1e-11
"""A new F[s] adds a direction where it leaves the span of those before by this share of its length."""
RANK = 1e-10
"""A direction of the drift counts from this share of the strongest."""
RESUMMED = "resummed: the drifting history itself"
RATIO = 8
"""Between successive steps of a difference."""
FINER = 6
"""Steps of a difference, ever finer, to confirm forward mode with."""
CERTAIN = 0.9
"""Differences count if they agree with each other on the whole or at this share of the coordinates; a few may turn sharply."""


@dataclass(frozen=True)
class Response:
    """The memoryless step theta - lr * (F + M) of a black box.

    Attributes:
        F: update with the history frozen at theta, shape (d,), in the units of an update.
        M: what memory adds, shape (d,), same units.
        order: "first" or "resummed".
        step: n, or None for the steady state.
        products: Hessian-vector products spent.
        steps: optimizer steps spent.
        derivative: the way M was differentiated.
        derivative_reason: why that way.
        method: it belongs to.
    """

    F: Tensor
    M: Tensor
    order: Order
    step: int | None
    products: int
    steps: int
    derivative: Way
    derivative_reason: str
    method: TorchMethod = field(repr=False)

    @property
    def outside(self) -> float:
        """Share of the coordinates where M is at least as large as F: outside the expansion's radius, if M is first order."""
        return float(((self.M.abs() >= self.F.abs()) & (self.M != 0)).double().mean())


class Derivative(NamedTuple):
    """A derivative, and how it was found."""

    value: Tensor
    way: Way
    reason: str


class NoForwardMode(Exception):
    """It gives no derivative, or a wrong one; the message says why."""


def no_formula(error: Exception) -> str:
    """Why there is no forward mode, from what torch raised."""
    return f"forward mode has no formula here ({str(error).splitlines()[0]})"


class Counted:
    """A black box whose steps are counted."""

    def __init__(self, method: TorchMethod):
        self.method, self.steps = method, 0

    def run(self, history: Iterable[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
        """F of each step from empty memory.

        Args:
            history: gradient and theta of each step, which may be dual tensors.

        Yields:
            F, shape (d,), float64.

        Raises:
            BadInput: F is not finite, or the memory at the end is not.
        """
        twin, n, F = None, 0, None
        for n, (gradient, theta) in enumerate(history):
            twin = twin or self.method.twin(theta)
            self.steps += 1
            F = self.method.displacement(twin, gradient, theta)
            if not F.isfinite().all():
                raise BadInput(f"{self.method}: the update is not finite at step {n}; lower lr or check the gradient")
            yield F
        if twin is not None and F is not None:
            self.method.require_finite(F, twin.leaves(), n)

    def last(self, history: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        """F of the last step of `run`."""
        *_, F = self.run(history)
        return F


def unrolled(
    method: TorchMethod,
    loss: Loss,
    theta: Tensor,
    step: int,
    order: Order = "first",
    batches: Sequence[int] | None = None,
) -> Response:
    """F[n](theta) and M[n](theta) from n + 1 steps of the optimizer itself.

    Args:
        method: any torch optimizer.
        loss: the loss; its curvature is used.
        theta: shape (d,).
        step: n, the number of past iterates.
        order: "first" or "resummed".
        batches: index of the batch used at each step 0..n; None is full batch.

    Returns:
        F and M, with what they cost and how the derivative was found.

    Raises:
        BadInput: an update is not finite, or has no derivative.
    """
    sequence = [None] * (step + 1) if batches is None else list(batches)
    gradients, curvature = _linearized(loss, theta, sequence)
    point, counted = theta.double(), Counted(method.exact)
    with isolated(theta.device):
        F, directions, coordinates = _span(counted.run((gradients[i], point) for i in sequence))
        lag, products = _lags(directions, coordinates, sequence, curvature, method.lr, point)
        return _answer(counted, method, gradients, sequence, theta, F, lag, products, order)


def one_lag(
    method: TorchMethod, loss: Loss, theta: Tensor, batches: Sequence[int], gradients: dict[int, Tensor], k: int
) -> Response:
    """F[n](theta), and of M[n](theta) to first order what the iterate of k steps ago contributes.

    Args:
        method: any torch optimizer.
        loss: the loss; its curvature is used once.
        theta: shape (d,).
        batches: index of the batch used at each step 0..n.
        gradients: of each batch, float64.
        k: the lag, 1..n; 0 is none.

    Returns:
        F and that part of M, with what they cost and how the derivative was found.

    Raises:
        BadInput: an update is not finite, or has no derivative.
    """
    n, point, counted = len(batches) - 1, theta.double(), Counted(method.exact)
    with isolated(theta.device):
        *past, F = counted.run((gradients[i], point) for i in batches)
        back = method.lr * torch.stack(past[n - k :]).sum(0) if k else torch.zeros_like(F)
        drift = loss.curvature(theta, back.to(theta.dtype), batches[n - k]).double() if k else back
        still = torch.zeros_like(F), torch.zeros_like(F)

        def lag(j: int) -> tuple[Tensor, Tensor]:
            return (drift, back) if j == n - k else still

        return _answer(counted, method, gradients, batches, theta, F, lag, int(k > 0), "first")


def _answer(
    counted: Counted,
    method: TorchMethod,
    gradients: dict[Any, Tensor],
    sequence: Sequence[Any],
    theta: Tensor,
    F: Tensor,
    lag: Callable[[int], tuple[Tensor, Tensor]],
    products: int,
    order: Order,
) -> Response:
    """How F[n] answers a history of which step j lies back by lag(j)."""
    step, point = len(sequence) - 1, theta.double()

    def last(shifted: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        lags = map(lag, range(step + 1))
        return counted.last(
            (shifted(gradients[i], dg), shifted(point, back)) for i, (dg, back) in zip(sequence, lags, strict=True)
        )

    def along(e: float) -> Tensor:
        return last(lambda x, dx: x.add(dx, alpha=e))

    def forward() -> Tensor:
        with forward_ad.dual_level():
            return tangent(last(forward_ad.make_dual))

    if step == 0:
        M = Derivative(torch.zeros_like(F), "none", "nothing is past at step 0")
    elif order == "resummed":
        M = Derivative(along(1.0) - F, "none", RESUMMED)
    else:
        M = derivative(method.exact, forward, along, F, point)
    if method.exact is not method:
        counted.method = method
        F = counted.last((gradients[i], point) for i in sequence)
    return response(method, theta, F, M, order, step, products, counted.steps)


def response(
    method: TorchMethod, theta: Tensor, F: Tensor, M: Derivative, order: Order, step: int | None, products: int, steps: int
) -> Response:
    """F and M in the type of theta, with all that belongs to them."""
    reason = M.reason if method.exact is method else f"{M.reason}; M has float64 in place of {method.dtype}, F has not"
    return Response(F.to(theta.dtype), M.value.to(theta.dtype), order, step, products, steps, M.way, reason, method)


def _linearized(
    loss: Loss, theta: Tensor, sequence: Sequence[int | None]
) -> tuple[dict[int | None, Tensor], Callable[[Tensor, int | None], Tensor]]:
    """The gradient of each batch that occurs, and (v, i) -> H_i v; in float64."""
    if None in sequence:
        gradient, product = loss.linearize(theta)
        return {None: gradient.double()}, lambda v, i: product(v.to(theta.dtype)).double()
    gradients = {i: loss.gradient(theta, i).double() for i in dict.fromkeys(sequence)}
    return gradients, lambda v, i: loss.curvature(theta, v.to(theta.dtype), i).double()


def _span(updates: Iterable[Tensor]) -> tuple[Tensor, list[Tensor], np.ndarray]:
    """The last F, an orthonormal basis of those before it, and their coordinates in it, shape (n, rank)."""
    directions: list[Tensor] = []
    rows: list[list[float]] = []
    F = None
    for update in updates:
        if F is not None:
            row, rest = [0.0] * len(directions), F.clone()
            for _ in range(2):  # twice is enough (Giraud et al. 2005)
                for i, q in enumerate(directions):
                    part = float(q @ rest)
                    row[i] += part
                    rest.sub_(q, alpha=part)
            if (length := float(rest.norm())) > DIRECTION * float(F.norm()):
                directions.append(rest.div_(length))
                row.append(length)
            rows.append(row)
        F = update
    assert F is not None
    coordinates = np.zeros((len(rows), len(directions)))
    for s, row in enumerate(rows):
        coordinates[s, : len(row)] = row
    return F, directions, coordinates


def _lags(
    directions: list[Tensor],
    coordinates: np.ndarray,
    sequence: Sequence[int | None],
    curvature: Callable[[Tensor, int | None], Tensor],
    lr: float,
    theta: Tensor,
) -> tuple[Callable[[int], tuple[Tensor, Tensor]], int]:
    """j -> how far gradient and theta of step j lie back, lr H_j D[j] and lr D[j]; and the products spent."""
    n = len(sequence) - 1
    back = np.vstack([np.cumsum(coordinates[::-1], axis=0)[::-1], np.zeros((1, len(directions)))])
    # The mean update since j: every step has the same say in what is small.
    mean = back[:n] / np.arange(n, 0, -1)[:, None]
    images: dict[int | None, tuple[np.ndarray, list[Tensor]]] = {}
    for i in dict.fromkeys(sequence[:n]):
        rows = mean[[j for j in range(n) if sequence[j] == i]]
        _, strength, right = np.linalg.svd(rows, full_matrices=False)
        right = right[strength > RANK * strength.max(initial=0)]
        images[i] = right.T, [curvature(_combined(row, directions, theta), i) for row in right]

    def lag(j: int) -> tuple[Tensor, Tensor]:
        right, products = images[sequence[j]] if j < n else (np.zeros((len(directions), 0)), [])
        return _combined(lr * back[j] @ right, products, theta), _combined(lr * back[j], directions, theta)

    return lag, sum(len(products) for _, products in images.values())


def _combined(weights: np.ndarray, vectors: list[Tensor], like: Tensor) -> Tensor:
    total = torch.zeros_like(like)
    for weight, vector in zip(weights.tolist(), vectors, strict=True):
        total.add_(vector, alpha=weight)
    return total


def tangent(dual: Tensor) -> Tensor:
    """The tangent of a dual tensor; 0 if it has none."""
    found = forward_ad.unpack_dual(dual).tangent
    return torch.zeros_like(dual) if found is None else found


def derivative(
    method: TorchMethod,
    forward: Callable[[], Tensor],
    along: Callable[[float], Tensor],
    F: Tensor,
    theta: Tensor,
) -> Derivative:
    """d/de along(e) at 0, by forward mode where it is right, else by differences.

    The step e of a difference changes F by a share epsilon^(1/3) of it, where truncation and the rounding epsilon of
    F = (theta - theta_next) / lr balance. Where forward mode disagrees, four steps are compared coordinate by coordinate.

    Args:
        method: any torch optimizer.
        forward: the derivative by forward mode; may raise.
        along: e -> F at e times the direction.
        F: along(0).
        theta: shape (d,), where F was read off.

    Returns:
        The derivative, shape (d,).

    Raises:
        BadInput: neither way gives one.
    """
    try:
        M, missing = forward(), ""
    except NoForwardMode as why:
        M, missing = None, str(why)
    except (RuntimeError, ValueError) as error:  # step() works without tangents: it is their fault
        M, missing = None, no_formula(error)
    epsilon = rounding(method, F, theta)
    tolerance = min(max(1e-5, 30 * epsilon ** (2 / 3)), 0.5)
    digits = "" if method.dtype == torch.float64 else f"; {method.dtype} inside step() limits it"
    along = functools.cache(along)
    e = _scale(M, along, F, epsilon ** (1 / 3))

    def central(e: float) -> Tensor:
        return (along(e) - along(-e)) / (2 * e)

    # Where a corner is near, only a finer difference stays on this side of it.
    finer = FINER if M is not None and M.any() else 1
    if (
        M is not None
        and M.isfinite().all()
        and any(_worst(method, M, central(e / RATIO**k), torch.zeros_like(F), 0.0) <= tolerance for k in range(finer))
    ):
        return Derivative(M, "forward mode", "a difference agrees" + digits)
    steps = [central(e * RATIO**k) for k in range(-2, 2)]
    # Truncation falls with e and rounding grows: of neighbours take those that differ least, and of the two the finer.
    doubt, which = torch.stack([(fine - coarse).abs() for fine, coarse in itertools.pairwise(steps)]).min(dim=0)
    D = torch.stack(steps).gather(0, which[None])[0]
    # Where the terms of D cancel (Adam at n = 1), they count.
    size = max(float(D.norm()), float((along(e) - F).norm()) / e)
    share = float((doubt <= tolerance**0.5 * D.abs()).double().mean())
    certain = float(doubt.norm()) <= tolerance**0.5 * size or share > CERTAIN
    if M is not None:
        holes = ~M.isfinite()
        M = torch.where(holes, D, M)
        if not certain and not holes.any() and M.any():
            return Derivative(M, "forward mode", f"differences are too coarse to check it{digits}")
        if (error := _worst(method, M, D, 10 * doubt, size)) <= tolerance:
            where = f"; at {int(holes.sum())} coordinates, where it is not finite, the difference" if holes.any() else ""
            return Derivative(M, "forward mode", f"a difference agrees{where}{digits}")
        missing = f"forward mode is off by {error:.1g} relative to it: step() drops a tangent"
    if not certain:
        raise BadInput(
            f"{method}: the update has no derivative here ({missing}, and differences of two steps disagree by "
            f'{float(doubt.norm() / D.norm()):.0%}); use order="resummed"'
        )
    return Derivative(D, "difference", missing + digits)


def rounding(method: TorchMethod, F: Tensor, theta: Tensor) -> float:
    """Relative rounding of F: that of the type computed in, or of reading it off theta."""
    double = torch.finfo(torch.float64).eps
    read = double * float(theta.norm()) / (method.lr * float(F.norm())) if F.any() else 0.0
    return min(max(torch.finfo(method.dtype).eps, read), 1e-2)


def _scale(M: Tensor | None, along: Callable[[float], Tensor], F: Tensor, share: float) -> float:
    """The e that changes F by that share of it, from M where that is known."""
    if not F.any():
        return share
    known = M is not None and M.isfinite().all() and M.any()
    e = share * float(F.norm() / M.norm()) if M is not None and known else share
    for _ in range(4):
        change = float((along(e) - F).norm() / F.norm())
        if not change or share / 10 < change < 10 * share:
            break
        e *= min(max(share / change, 1e-3), 1e3)
    return e


def _worst(method: TorchMethod, M: Tensor, D: Tensor, doubt: Tensor, size: float) -> float:
    """The largest relative difference of M and D over the parameters, beyond doubt; against D, or `size` if larger."""
    gap = ((M - D).abs() - doubt).clamp_min(0)
    scales = [float(D[part].norm()) + 1e-2 * max(float(D.norm()), size) for part in method.slices]
    gaps = [float(gap[part].norm()) for part in method.slices]
    return max((g / scale if scale else float(g > 0) for g, scale in zip(gaps, scales, strict=True)), default=0.0)
