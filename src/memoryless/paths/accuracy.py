"""With which power of the step size does a memoryless iteration approach the optimizer? Theorem 3.2, measured.

    error(lr) = max_{n <= T/lr} |theta[n] - t[n]|_inf = C lr^p,       p = log2(error(lr) / error(lr/2))

with p = 1 for the frozen iteration, 2 for first order and resummed, R for order R. The power shows as lr -> 0, so the
halvings are judged one by one, at the finest that rounding has not reached; one fit through all of them misleads.
"""

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from memoryless.errors import BadInput
from memoryless.loss.loss import Loss
from memoryless.methods.black_box.torch_method import AnyOptimizer, TorchMethod
from memoryless.methods.method import Groups
from memoryless.paths.trajectory import Kind, iterates
from memoryless.render.result import Result, plain


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


def order_of_accuracy(
    method: AnyOptimizer,
    loss: Loss,
    horizon: float,
    lrs: Iterable[float],
    kind: Kind = "first",
    theta: Tensor | None = None,
    on_step: Callable[[int], None] = lambda step: None,
) -> Accuracy:
    """Run the optimizer and a memoryless iteration to the same time at several step sizes and compare.

    Args:
        method: its own lr is not used.
        loss: smooth; full batch.
        horizon: time n lr up to which the paths are compared.
        lrs: at least two, strictly decreasing; each a half of the one before, usually.
        kind: of the iteration, as for `trajectory`.
        theta: the start, shape (d,); default `loss.theta`.
        on_step: called with the number of pairs of steps taken, over all step sizes, for progress.

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
    if len(lrs) < 2 or not all(h > k for h, k in itertools.pairwise(lrs)) or not lrs[-1] > 0:
        raise BadInput(f"lrs must be at least two positive numbers, strictly decreasing, got {list(lrs)}")
    if not (math.isfinite(horizon) and horizon >= lrs[0]):
        raise BadInput(f"horizon must be at least one step of the largest lr, {lrs[0]:g}, got {horizon!r}")
    errors, size, steps, taken = [], 0.0, 0, 0
    for lr in lrs:
        variant = at_lr(method, lr)
        steps = math.floor(horizon / lr * (1 + 1e-12))  # 1 / 0.001 is a whole number of steps
        error = 0.0
        paths = (iterates(variant, loss, steps, k, theta) for k in ("memory", kind))
        for n, (theta_n, t_n) in enumerate(zip(*paths, strict=True)):
            error = max(error, float((theta_n - t_n).abs().max()))
            size = max(size, float(theta_n.abs().max()))
            if n > 0:
                taken += 1
                on_step(taken)
        errors.append(error)
    dtype = (loss.theta if theta is None else theta).dtype
    return Accuracy(kind, lrs, tuple(errors), torch.finfo(dtype).eps * size * steps)


def at_lr(method: AnyOptimizer, lr: float) -> AnyOptimizer:
    """The same method at another step size.

    Args:
        method: a `Method`, `Groups` (the ratios between groups stay), or a `TorchMethod`.
        lr: step size of the whole.

    Returns:
        A method of the same type.

    Example:
        >>> from memoryless.methods.catalogue import AdamW
        >>> at_lr(AdamW(lr=1e-3), 5e-4).lr
        0.0005
    """
    if isinstance(method, TorchMethod):
        return method.at_lr(lr)
    if isinstance(method, Groups):
        ratio = lr / method.lr
        parts = tuple(replace(part, method=at_lr(part.method, part.method.lr * ratio)) for part in method.parts)
        return replace(method, parts=parts, lr=lr)
    if method.make and "lr" in method.hyper:
        return method.with_hyper(lr=lr)
    return replace(method, lr=lr, hyper=method.hyper | ({"lr": lr} if "lr" in method.hyper else {}))
