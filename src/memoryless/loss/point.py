"""All that is known of a loss at one theta, each thing found when it is first asked for, and once."""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from memoryless.flat import norm
from memoryless.loss.loss import Loss
from memoryless.loss.products import Curvature


class Point:
    """A loss at one theta: value, gradient and curvature, of the full batch and of each batch.

    Args:
        loss: of which parameters theta are the values.
        theta: shape (d,); default the present parameters.
        products: Hessian-vector products of the full batch that will be asked for, if that is known: the last one then frees
            the graph as it goes, and with 0 there is none.
    """

    def __init__(self, loss: Loss, theta: Tensor | None = None, *, products: int | None = None):
        self.loss = loss
        self.theta = loss.theta if theta is None else theta.detach()
        self._products = products
        self._batches: dict[int, Tensor] = {}
        self._known: list[tuple[Tensor, Tensor]] = []

    @cached_property
    def value(self) -> float:
        """L(theta), full batch, in the units of the criterion."""
        return float(self.loss(self.theta).detach())

    @cached_property
    def _linearization(self) -> tuple[Tensor, Curvature]:
        return self.loss.linearize(self.theta, products=self._products)

    @cached_property
    def gradient(self) -> Tensor:
        """grad L(theta), shape (d,)."""
        return self.loss.gradient(self.theta) if self._products == 0 else self._linearization[0]

    def curvature(self, v: Tensor) -> Tensor:
        """H(theta) v, shape (d,)."""
        return self._linearization[1](v)

    def drift(self, back: Tensor) -> Tensor:
        """H(theta) v for a way back along the path, found once for all that agree to rounding: many methods share theirs.

        Args:
            back: shape (d,).
        """
        tolerance = 100 * torch.finfo(back.dtype).eps * norm(back)
        for seen, product in self._known:
            if norm(back - seen) <= tolerance:
                return product
        self._known.append((back, self.curvature(back)))
        return self._known[-1][1]

    def gradient_of(self, batch: int) -> Tensor:
        """grad L_i(theta) of one batch, shape (d,).

        Args:
            batch: its index i.
        """
        if batch not in self._batches:
            self._batches[batch] = self.loss.gradient(self.theta, batch)
        return self._batches[batch]

    @property
    def batches_seen(self) -> int:
        """How many batches have had their gradient taken."""
        return len(self._batches)

    def gradients_of(self, batches: Sequence[int] | None = None) -> Tensor:
        """grad L_i(theta) of several batches, shape (len(batches), d).

        Args:
            batches: their indices; None is all of them.
        """
        return torch.stack([self.gradient_of(i) for i in (range(len(self.loss)) if batches is None else batches)])

    def curvature_of(self, v: Tensor, batch: int) -> Tensor:
        """H_i(theta) v of one batch, shape (d,)."""
        return self.loss.curvature(self.theta, v, batch)
