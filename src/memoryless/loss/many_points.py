"""The gradient at many points at once: small networks spend their time on calls, not on arithmetic."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from memoryless.flat import block, norm
from memoryless.isolation import isolated
from memoryless.loss.batches import Batches


class ManyPoints:
    """Gradients at many points, as many in one call as fit the cache, one by one where torch.func cannot map the loss.

    Args:
        value: (theta, batch data) -> L of that batch, a tensor of shape ().
        gradient: (theta, batch index or None) -> gradient, shape (d,), with every check.
        batches: of the loss.
    """

    def __init__(
        self, value: Callable[[Tensor, Any], Tensor], gradient: Callable[[Tensor, int | None], Tensor], batches: Batches
    ):
        self._value, self._gradient, self._batches = value, gradient, batches
        self._at_once: int | None = None

    def gradients(self, points: Tensor, used: Sequence[int] | None) -> Tensor:
        """grad L at many points, as many at once as pays.

        Args:
            points: theta of each, shape (n, d).
            used: batch of each point; None is full batch.

        Returns:
            The gradient at each, shape (n, d).
        """
        if used is None:
            return self._of(points, None)
        result = torch.empty_like(points)
        for i in sorted(set(used)):
            rows = torch.tensor([row for row, j in enumerate(used) if i == j], device=points.device)
            result[rows] = self._of(points[rows], i)
        return result

    def _of(self, points: Tensor, batch: int | None) -> Tensor:
        if len(points) > 1 and self._at_once is None:
            self._at_once = self._count_at_once(points)
        if len(points) == 1 or (size := self._at_once or 1) == 1:
            return torch.stack([self._gradient(theta, batch) for theta in points])
        return torch.cat([self._mapped(several, batch) for several in points.split(size)])

    def _count_at_once(self, points: Tensor) -> int:
        """So many that what their graphs keep fits the cache; one if torch.func cannot map the loss, or not rightly."""
        kept = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        two = points[-2:]
        try:
            with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
                expected = torch.stack([self._gradient(theta, 0) for theta in two])
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # torch warns where it would loop itself
                actual = self._mapped(two, 0)
        except (RuntimeError, TypeError, ValueError, Warning):
            return 1
        tolerance = 1e4 * torch.finfo(points.dtype).eps
        right = norm(actual - expected) <= tolerance * norm(expected)
        return max(1, 4 * block(points.device) // max(kept, 1)) if right else 1

    def _mapped(self, points: Tensor, batch: int | None) -> Tensor:
        """The gradients at all points from one forward and one backward pass: row i of the graph knows only point i."""
        total, count = torch.zeros_like(points), 0
        for _, data in self._batches.select(batch):
            with isolated(points.device), torch.enable_grad():
                leaves = points.detach().requires_grad_()
                values = torch.func.vmap(lambda theta, data=data: self._value(theta, data))(leaves)
                total += torch.autograd.grad(values.sum(), leaves)[0]
            count += 1
        if not torch.isfinite(total).all():
            return torch.stack([self._gradient(theta, batch) for theta in points])  # says where
        return total / count
