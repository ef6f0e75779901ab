"""With which power of the step size does a memoryless iteration approach the optimizer? Theorem 3.2, measured.

    error(lr) = max_{n <= T/lr} |theta[n] - t[n]|_inf = C lr^p,       p = log2(error(lr) / error(lr/2))

with p = 1 for the frozen iteration, 2 for first order and resummed, R for order R. The power shows as lr -> 0, so the
halvings are judged one by one, at the finest that rounding has not reached; one fit through all of them misleads.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memoryless.corrections.arguments import valid_arguments
from memoryless.errors import BadInput
from memoryless.loss.loss import Loss
from memoryless.methods.method import AnyOptimizer
from memoryless.paths.trajectory import Kind, iterates
from memoryless.progress import OnStep, silent
from memoryless.render.numbers import plain
from memoryless.render.result import Result


@dataclass(frozen=True)
class Accuracy(Result):
    """Distance between a memoryless iteration and the optimizer, by step size.

    Attributes:
        kind: of the iteration.
        lrs: step sizes, decreasing.
        errors: largest l_inf distance up to the horizon, one per step size.
        floor: where rounding takes over: one rounding of the largest coordinate per step of the finest run.
    """

    kind: Kind
    lrs: tuple[float, ...]
    errors: tuple[float, ...]
    floor: float

    @property
    def slopes(self) -> tuple[float, ...]:
        """The power p of each successive pair of step sizes; NaN where an error is 0."""
        pairs = zip(itertools.pairwise(self.lrs), itertools.pairwise(self.errors), strict=True)
        return tuple(math.log(e / f) / math.log(h / k) if e > 0 and f > 0 else math.nan for (h, k), (e, f) in pairs)

    @property
    def order(self) -> float:
        """The slope at the finest pair whose errors both exceed the floor; NaN if none does."""
        judged = [slope for slope, error in zip(self.slopes, self.errors[1:], strict=True) if error > self.floor]
        return judged[-1] if judged else math.nan

    def as_dict(self) -> dict[str, Any]:
        """Attributes, slopes and order; None for a slope that there is not."""
        return plain(
            {
                "kind": self.kind,
                "lrs": self.lrs,
                "errors": self.errors,
                "slopes": self.slopes,
                "order": self.order,
                "floor": self.floor,
            }
        )


@valid_arguments
def order_of_accuracy(
    method: AnyOptimizer,
    loss: Loss,
    horizon: float,
    lrs: Iterable[float],
    kind: Kind = "first",
    theta: Tensor | None = None,
    *,
    on_step: OnStep = silent,
) -> Accuracy:
    """Run the optimizer and a memoryless iteration to the same time at several step sizes and compare.

    Args:
        method: its own lr is not used.
        loss: smooth; full batch.
        horizon: time n lr up to which the paths are compared.
        lrs: at least two, strictly decreasing; each a half of the one before, usually.
        kind: of the iteration: "frozen", "first", "resummed", "flow", or an integer order R (`trajectory`).
        theta: the start, shape (d,); default `loss.theta`.
        on_step: told the pairs of steps taken, over all step sizes, and their number.

    Returns:
        Errors, slopes and the order they show.

    Raises:
        Diverged: at some step size one of the two left the finite numbers.
        BadInput: bad lrs, horizon or kind; says what was expected.

    Example:
        >>> from memoryless.methods.catalogue import HeavyBall
        >>> theta = torch.tensor([1.0, -2.0], dtype=torch.float64)
        >>> loss = Loss.of(lambda theta: (theta**4).sum() / 4, theta)
        >>> result = order_of_accuracy(HeavyBall(momentum=0.5), loss, horizon=0.1, lrs=[1e-3, 5e-4])
        >>> round(result.order, 1)
        2.0
    """
    lrs = tuple(lrs)
    return accuracy_of(method, loss, horizon, lrs, kind, lambda lr: own_path(method, loss, horizon, lr, theta), theta, on_step)


def own_path(method: AnyOptimizer, loss: Loss, horizon: float, lr: float, theta: Tensor | None = None) -> Iterator[Tensor]:
    """The optimizer's path at a step size, for `accuracy_of`.

    Args:
        method: its own lr is not used.
        loss: full batch.
        horizon: time up to which it goes.
        lr: the step size.
        theta: the start, shape (d,); default `loss.theta`.
    """
    return iterates(method.at_lr(lr), loss, steps_to(horizon, lr), "memory", theta)


def accuracy_of(
    method: AnyOptimizer,
    loss: Loss,
    horizon: float,
    lrs: tuple[float, ...],
    kind: Kind,
    own: Callable[[float], Iterator[Tensor]],
    theta: Tensor | None = None,
    on_step: OnStep = silent,
) -> Accuracy:
    """`order_of_accuracy` with the optimizer's own path given, such as one that several kinds are compared with.

    Args:
        method: its own lr is not used.
        loss: smooth; full batch.
        horizon: time up to which the paths are compared.
        lrs: strictly decreasing.
        kind: of the iteration.
        own: lr -> `own_path` there.
        theta: the start, shape (d,); default `loss.theta`.
        on_step: told the pairs of steps taken, over all step sizes, and their number.

    Raises:
        BadInput: bad lrs or horizon.
    """
    if len(lrs) < 2 or not all(h > k for h, k in itertools.pairwise(lrs)) or not lrs[-1] > 0:
        raise BadInput(f"lrs must be at least two positive numbers, strictly decreasing, got {list(lrs)}")
    if not (math.isfinite(horizon) and horizon >= lrs[0]):
        raise BadInput(f"horizon must be at least one step of the largest lr, {lrs[0]:g}, got {horizon!r}")
    errors, size, steps, taken = [], 0.0, 0, 0
    total = sum(steps_to(horizon, lr) for lr in lrs)
    for lr in lrs:
        steps = steps_to(horizon, lr)
        error = 0.0
        paths = own(lr), iterates(method.at_lr(lr), loss, steps, kind, theta)
        for n, (theta_n, t_n) in enumerate(zip(*paths, strict=True)):
            error = max(error, float((theta_n - t_n).abs().max()))
            size = max(size, float(theta_n.abs().max()))
            if n > 0:
                taken += 1
                on_step(taken, total)
        errors.append(error)
    dtype = (loss.theta if theta is None else theta).dtype
    return Accuracy(kind, lrs, tuple(errors), torch.finfo(dtype).eps * size * steps)


def steps_to(horizon: float, lr: float) -> int:
    """How many steps of size lr lie within a time; 1 / 0.001 is a whole number of them."""
    return math.floor(horizon / lr * (1 + 1e-12))
