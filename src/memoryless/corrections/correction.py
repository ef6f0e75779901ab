"""The memoryless update F and its correction M: first order (Eq. 9), resummed, along the path back, and to any order R.

    t[n+1] = t[n] - lr (F[n](t) + M[n](t))      follows the optimizer to O(lr^2), with M = 0 to O(lr) only    (Theorem 3.2)

First order and resummed come from the linearized history (`corrections.expansion`), from gradients alone that of the path
(`corrections.path`, a few of them) and order R (`corrections.relaxation`, many).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from memoryless.corrections.arguments import valid_arguments
from memoryless.corrections.expansion import expansion, products
from memoryless.corrections.path import CLOSE, GROWTH, follow
from memoryless.corrections.relaxation import relaxed
from memoryless.errors import BadInput
from memoryless.loss.loss import Loss
from memoryless.loss.point import Point
from memoryless.methods.method import AnyOptimizer
from memoryless.render.numbers import plain
from memoryless.render.result import Result

Order = Literal["first", "resummed", "path"] | int
ORDERS = ("first", "resummed", "path")


@dataclass(frozen=True)
class Correction(Result):
    """The memoryless step theta - lr * (F + M) at one theta.

    Attributes:
        F: update with the history frozen at theta, shape (d,), in the units of an update.
        M: what memory adds, shape (d,), same units.
        order: of accuracy: "first", "resummed", "path", or R for O(lr^R).
        step: n, or None for the steady state.
        products: Hessian-vector products spent.
        steps: steps of the optimizer itself spent, by a black box.
        way: how M was found: "momentum form", "forward mode" or "difference" through a black box's step(), "path",
            "relaxation".
        reason: why that way, in words for a user.
        method: whose F and M these are.
        growth: of a path, |grad L|_1 seven steps back over that at theta (`corrections.path`); None for any other order.
    """

    F: Tensor
    M: Tensor
    order: Order
    step: int | None
    products: int
    steps: int
    way: str
    reason: str
    method: AnyOptimizer = field(repr=False)
    _outside: Callable[[], float] = field(repr=False, compare=False)
    growth: float | None = None

    @property
    def trusted(self) -> bool | None:
        """Of a path, whether the gradient on it has grown by so little that the past may have been such; else None."""
        return None if self.growth is None else self.growth <= GROWTH

    @property
    def outside(self) -> float:
        """Share of the coordinates outside the expansion's radius, where first order means nothing.

        There the gradient drifts by as much as itself within the mean age of some memory,
        |mean age * lr (H Fbar)_i| >= |g_i|. A black box tells no mean ages: there it is where |M_i| >= |F_i|.

        Raises:
            BadInput: the correction is of order R or along a path, not an expansion's.
        """
        return self._outside()

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and text, the vectors too."""
        names = ("F", "M", "order", "step", "products", "steps", "way", "reason", "growth", "trusted")
        return plain({"method": str(self.method)} | {name: getattr(self, name) for name in names})


@valid_arguments
def correction(
    method: AnyOptimizer,
    loss: Loss,
    theta: Tensor | None = None,
    *,
    step: int | None = None,
    batches: Iterable[int] | None = None,
    order: Order = "first",
) -> Correction:
    """F[n](theta) and M[n](theta) of Eq. 9 (https://arxiv.org/abs/2502.02132), or M resummed, along the path back, to order R.

    Args:
        method: from the catalogue, from `method_of`, a `Method` of your own, or any optimizer as a `TorchMethod`.
        loss: the loss; its curvature is used, for "path" and order R only its gradients.
        theta: shape (d,); default `loss.theta`.
        step: n, the number of past iterates, with exact transients; None is the steady state n -> infinity.
        batches: index of the batch used at each step 0..n; None is full batch.
        order: "first", "resummed", "path" (13 gradients or so, full batch, momentum form; look at `.trusted`), or an integer R:
            F + M accurate to O(lr^R), so that M = 0 at 1, and 2 is as good as "first", "resummed" and "path".

    Returns:
        F and M, what they cost and how they were found, and the share of coordinates outside the radius.

    Raises:
        NeverForgets: steady state of a memory that does not fade.
        BadInput: bad step, order, batches or theta; says what was expected.

    Example:
        >>> import torch, memoryless as ml
        >>> loss = ml.Loss.of(lambda theta: (theta**2).sum() / 2, torch.tensor([1.0, -2.0]))
        >>> ml.correction(ml.HeavyBall(lr=0.01, momentum=0.9), loss).M  # lr beta / (1 - beta)^3 H g
        tensor([  9.0000, -18.0000])
    """
    if not is_order(order):
        raise BadInput(f"order must be one of {', '.join(ORDERS)}, or an integer >= 1, got {order!r}")
    require_step(step)
    if batches is not None:
        loss.batches.require_indexed()
    sequence = None if batches is None else batch_sequence(batches, step, len(loss))
    step = step if sequence is None else len(sequence) - 1
    if order == "path":
        if sequence is not None:
            raise BadInput("order 'path' follows full-batch steps back; leave out batches, or use order='resummed'")
        path = follow(method, Point(loss, theta, products=0), step)
        reason = f"{path.spent} gradients; |grad L|_1 is {path.growth:.3g} times as large {CLOSE} steps back"
        outside = lambda: _no_radius(order)  # noqa: E731
        return Correction(path.F, path.effect(method), order, step, 0, 0, "path", reason, method, outside, path.growth)
    if isinstance(order, int):
        F, G = relaxed(method, Point(loss, theta), step, order, sequence)
        return Correction(F, G - F, order, step, 0, 0, "relaxation", "gradients only", method, lambda: _no_radius(order))
    found = expansion(method, Point(loss, theta, products=products(method, step)), step, sequence)
    M = found.first() if order == "first" else found.resummed()
    return Correction(
        found.F, M.value, order, step, found.products, found.steps, M.way, M.reason, method, lambda: found.outside
    )


def _no_radius(order: Order) -> float:
    raise BadInput(f"order {order!r} expands nothing and has no radius; ask a correction of order 'first'")


def is_order(order: Any) -> bool:
    """Whether `correction` knows the order.

    Args:
        order: "first", "resummed", "path" or an integer R >= 1.
    """
    return order in ORDERS if isinstance(order, str) else type(order) is int and order >= 1


def require_step(step: Any) -> None:
    """Raise unless `step` is an integer >= 0 or None.

    Args:
        step: n, or None for the steady state.

    Raises:
        BadInput: it is something else.
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
