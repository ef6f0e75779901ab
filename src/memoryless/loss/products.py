"""Hessian-vector products: reverse over reverse, or differences of gradients where those are wanted, or right where H is wrong.

The first product asks the guard (`loss.guard`), on a part of the first batch. One graph is held at a time.
"""

import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from memoryless.errors import CurvatureWarning
from memoryless.flat import block, norm
from memoryless.isolation import draws, isolated
from memoryless.loss import guard
from memoryless.loss.batches import Batches, head
from memoryless.loss.one_batch import OneBatch
from memoryless.loss.scope import loss_in

Curvature = Callable[[Tensor], Tensor]
"""v -> H v, (d,) -> (d,)."""
ROUNDINGS = 1e3
"""Roundings by which products at once may differ from those one by one."""
GUARDED = 0.25
"""Share of a batch's samples on which the derivatives are tested."""


class Products:
    """Products of one loss; what their arguments are, its public face says (`loss.loss`).

    Args:
        one: L of one batch.
        batches: of the loss.
        gradient: (theta, batch or None for all) -> grad L.
        model: searched for the module at fault; None for plain functions.
        differences: take differences of gradients.

    Attributes:
        differences: whether products are such, by choice or because the guard found the exact ones wrong.
    """

    def __init__(
        self,
        one: OneBatch,
        batches: Batches,
        gradient: Callable[[Tensor, int | None], Tensor],
        model: nn.Module | None,
        differences: bool,
    ):
        self._one, self._batches, self._gradient, self._model = one, batches, gradient, model
        self.differences = differences
        self._guarded = False
        self._rowwise: bool | None = None

    def curvature(self, theta: Tensor, v: Tensor, batch: int | None) -> Tensor:
        """H(theta) v."""
        self.guard(theta)
        if self.differences:
            return _difference(theta, v, lambda x: self._gradient(x, batch))
        return self._batches.average(batch, lambda data, i: self._one.linearize(theta, data, i)[1](v, False))

    def linearize(self, theta: Tensor, batch: int | None, products: int | None) -> tuple[Tensor, Curvature]:
        """grad L(theta) and v -> H(theta) v."""
        self.guard(theta)
        if self.differences or (batch is None and len(self._batches) > 1):
            gradient = self._gradient(theta, batch)
            if self.differences:
                return gradient, lambda v: _difference(theta, v, lambda x: self._gradient(x, batch), gradient)
            return gradient, lambda v: self.curvature(theta, v, batch)
        (index, data), *_ = self._batches.select(batch)
        gradient, product = self._one.linearize(theta, data, index)
        asked = itertools.count(1)
        return gradient, lambda v: product(v, next(asked) != products)

    def of_many(self, theta: Tensor, vs: Tensor, batch: int) -> Tensor:
        """H_i(theta) v of each row."""
        if len(vs) == 1 or vs.numel() > block(theta.device) or self.differences or self._rowwise is False:
            _, product = self.linearize(theta, batch, len(vs))
            return torch.stack([product(v) for v in vs])
        self.guard(theta)
        ((index, data),) = self._batches.select(batch)
        _, product = self._one.linearize(theta, data, index)
        if self._rowwise is None:
            self._rowwise = _same_by_row(lambda v: product(v, True), vs[:2])
        return product(vs, False) if self._rowwise else torch.stack([product(v, True) for v in vs])

    def of_each(self, theta: Tensor, products: int | None) -> Iterator[tuple[Tensor, Curvature]]:
        """`linearize` of every batch in turn."""
        if products != 0:
            self.guard(theta)
        for i, data in self._batches.select(None):
            if products == 0 or self.differences:

                def at(x: Tensor, data: Any = data, i: int = i) -> Tensor:
                    return self._one.gradient(x, data, i)

                gradient = at(theta)
                yield gradient, lambda v, g=gradient, at=at: _difference(theta, v, at, g)
            else:
                gradient, product = self._one.linearize(theta, data, i)
                asked = itertools.count(1)
                yield gradient, lambda v, product=product, asked=asked: product(v, next(asked) != products)

    def guard(self, theta: Tensor) -> None:
        """Test the exact product, once.

        Args:
            theta: shape (d,).
        """
        if self._guarded:
            return
        self._batches.require_replayable()
        if not self.differences:
            self.differences = self._needs_differences(theta)
        self._guarded = True  # not before: what was refused once is refused again

    def _needs_differences(self, theta: Tensor) -> bool:
        (index, data), *_ = self._batches.select(0)
        part = self._part(self._one.layout.views(theta.detach()), data)
        why = self._fault(theta, part, index)
        if why is not None and part is not data:
            why = self._fault(theta, data, index)
        if why is None:
            return False
        warnings.warn(f"Hessian-vector products use differences of gradients: {why}", CurvatureWarning, stacklevel=5)
        return True

    def _fault(self, theta: Tensor, data: Any, index: int) -> str | None:
        one = self._one
        views = one.layout.views(theta.detach())

        def linearized(x: Tensor) -> Curvature:
            product = one.linearize(x, data, index)[1]
            return lambda v: product(v, True)

        return guard.fault(
            gradient=lambda x: one.gradient(x, data, index),
            linearized=linearized,
            theta=theta.detach(),
            slices=one.layout.slices,
            model=self._model,
            evaluate=lambda: one.at(views, lambda: one.value(views, data, index)),
            # With a seed a batch the generators stand where it puts them, and nothing is drawn from where they stood.
            draws=one.noise is None and draws(lambda: one.at(views, lambda: one.function(views, data)), one.layout.device),
        )

    def _part(self, views: Sequence[Tensor], data: Any) -> Any:
        """Some samples of a batch, if its tensors are cut alike and the model takes fewer; otherwise all."""
        found = None if self._model is None else head(data, GUARDED)
        if found is None:
            return data
        try:
            with isolated(self._one.layout.device, 0):
                value = loss_in(self._one.at(views, lambda: self._one.function(views, found)))
            told = isinstance(value, Tensor) and value.numel() == 1 and bool(torch.isfinite(value))
        except Exception:  # whatever a model says to fewer samples than it was made for
            return data
        return found if told else data


def _difference(theta: Tensor, v: Tensor, gradient_at: Curvature, gradient: Tensor | None = None) -> Tensor:
    length = norm(v)
    if length == 0:
        return torch.zeros_like(v)
    if gradient is None:
        gradient = gradient_at(theta)
    # Truncation grows with the step, rounding with its inverse; both relative to |theta| they balance at sqrt(eps).
    step = float(torch.finfo(theta.dtype).eps ** 0.5 * (1 + norm(theta)) / length)
    return gradient_at(theta.add(v, alpha=step)).sub_(gradient).div_(step)


def _same_by_row(product: Curvature, vs: Tensor) -> bool:
    """Whether the product with all rows at once is there and is that of each."""
    one_by_one = torch.stack([product(v) for v in vs])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # torch warns where it would loop itself
            at_once = product(vs)
    except (RuntimeError, TypeError, ValueError, Warning):
        return False
    return bool(norm(one_by_one) > 0 and norm(at_once - one_by_one) <= ROUNDINGS * torch.finfo(vs.dtype).eps * norm(one_by_one))
