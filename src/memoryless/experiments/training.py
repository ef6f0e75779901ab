"""Full-batch training of many small networks at once, or of one large network, to a training loss or to a validation loss.

The method's momentum form acts coordinate by coordinate, so that parameters and memories of n networks are rows of one matrix
and one update moves all of them; where the network is small, one call finds all gradients.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from memoryless.flat import Layout, flat
from memoryless.methods.method import State

Batch = tuple[Tensor, Tensor]
TOGETHER = 16
"""Networks in one call, at most."""


class Rule(Protocol):
    """How networks are trained: an elementwise method in momentum form, or what acts like one."""

    @property
    def lr(self) -> float:
        """The step size."""
        ...

    def init(self, theta: Tensor) -> State:
        """Empty memory, for theta of shape (n, d)."""
        ...

    def update(self, state: State, gradient: Tensor, theta: Tensor) -> tuple[State, Tensor]:
        """The next state and the update, (n, d)."""
        ...


class Networks:
    """L at several parameter vectors of one architecture, full batch: the mean over batches of equal size.

    Args:
        model: the architecture; its own parameters are overwritten where `together` is not.
        criterion: (model, batch) -> mean loss of the batch.
        batches: physical batches.
        together: find several networks' gradients in one call, by torch.func.vmap; else one after the other by `backward`,
            which any model allows.
    """

    def __init__(
        self, model: nn.Module, criterion: Callable[[nn.Module, Any], Tensor], batches: Sequence[Batch], together: bool = True
    ):
        self.model, self.criterion, self.batches, self.together = model, criterion, batches, together
        self.layout = Layout(dict(model.named_parameters()))

        def value(theta: Tensor, batch: Batch) -> Tensor:
            views = dict(zip(self.layout.names, self.layout.views(theta), strict=True))
            return criterion(_With(model, views), batch)  # pyright: ignore[reportArgumentType]

        self._value = value
        each = torch.func.grad_and_value(value)
        self._mapped = torch.func.vmap(each, in_dims=(0, None), chunk_size=TOGETHER)
        self._apart = torch.func.vmap(each, in_dims=(0, 0), chunk_size=TOGETHER)

    def at(self, thetas: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (n,) and gradients (n, d).

        Args:
            thetas: shape (n, d).
        """
        if not self.together:
            rows = [self._one(theta) for theta in thetas]
            return torch.stack([value for value, _ in rows]), torch.stack([gradient for _, gradient in rows])
        gradients, values = torch.zeros_like(thetas), thetas.new_zeros(len(thetas))
        for batch in self.batches:
            gradient, value = self._mapped(thetas, batch)
            gradients += gradient / len(self.batches)
            values += value / len(self.batches)
        return values, gradients

    def each_at(self, thetas: Tensor, batches: Batch) -> Tensor:
        """Gradients (n, d), every network's of a batch of its own.

        Args:
            thetas: shape (n, d).
            batches: of n networks, along the first dimension.
        """
        if self.together:
            return self._apart(thetas, batches)[0]
        return torch.stack([self._one(theta, [batch])[1] for theta, *batch in zip(thetas, *batches, strict=True)])

    def _one(self, theta: Tensor, batches: Sequence[Any] | None = None) -> tuple[Tensor, Tensor]:
        self.put(theta)
        batches = self.batches if batches is None else batches
        parameters, total = self.layout.tensors, theta.new_zeros(())
        for p in parameters:
            p.grad = None
        for batch in batches:
            value = self.criterion(self.model, batch) / len(batches)
            value.backward()
            total += value.detach()
        return total, flat(torch.zeros_like(p) if p.grad is None else p.grad for p in parameters)

    def put(self, theta: Tensor) -> None:
        """Make theta, shape (d,), the model's own parameters."""
        with torch.no_grad():
            for p, view in zip(self.layout.tensors, self.layout.views(theta), strict=True):
                p.copy_(view)

    def losses(self, thetas: Tensor, batches: Sequence[Batch]) -> Tensor:
        """Mean loss on other batches, (n,); the model is evaluated in the mode it is in.

        Args:
            thetas: shape (n, d).
            batches: of equal size.
        """
        found = []
        with torch.no_grad():
            for theta in thetas:
                self.put(theta)
                found.append(torch.stack([self.criterion(self.model, batch) for batch in batches]).mean())
        return torch.stack(found)


class _With:
    """A model that is called with other parameters."""

    def __init__(self, model: nn.Module, views: dict[str, Tensor]):
        self.model, self.views = model, views

    def __call__(self, *inputs: Any) -> Any:
        return torch.func.functional_call(self.model, self.views, inputs)


def iterates(networks: Networks, method: Rule, thetas: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Parameters and their losses along training, of all networks.

    Args:
        networks: the loss.
        method: the optimizer, elementwise.
        thetas: starts, shape (n, d).

    Yields:
        theta[k] of shape (n, d) and L of shape (n,), for k = 0, 1, ...
    """
    state = method.init(thetas)
    while True:
        values, gradients = networks.at(thetas)
        yield thetas, values
        state, F = method.update(state, gradients, thetas)
        thetas = thetas - method.lr * F


@dataclass(frozen=True)
class Reached:
    """Where networks met a training loss.

    Attributes:
        thetas: between the last iterate above and the first one at or below it, by the loss, shape (n, d); NaN if not reached.
        steps: the first step at or below it, (n,); -1 where not reached.
    """

    thetas: Tensor
    steps: Tensor


def train_to(networks: Networks, method: Rule, thetas: Tensor, target: float, limit: int) -> Reached:
    """Train until the training loss has fallen to a target, each network for itself.

    Args:
        networks: the loss.
        method: the optimizer, elementwise.
        thetas: starts, shape (n, d), with losses above the target.
        target: training loss.
        limit: steps at most.

    Returns:
        The points at equal loss.
    """
    met, steps = torch.full_like(thetas, torch.nan), torch.full((len(thetas),), -1)
    rows, state, last = torch.arange(len(thetas)), method.init(thetas), None
    for n in range(limit + 1):
        values, gradients = networks.at(thetas)
        done = values <= target
        if done.any():
            before, above = (thetas, values) if last is None else last
            share = ((above - target) / (above - values).clamp_min(1e-30))[:, None]
            met[rows[done]] = torch.where(above[:, None] > target, before + share * (thetas - before), thetas)[done]
            steps[rows[done]] = n
        left = ~done & values.isfinite()
        if not left.any():
            break
        if not left.all():
            rows, thetas, values, gradients = rows[left], thetas[left], values[left], gradients[left]
            state = State(state.n, tuple(s[left] for s in state.sums))
        last = thetas, values
        state, F = method.update(state, gradients, thetas)
        thetas = thetas - method.lr * F
    return Reached(met, steps)


def best_loss(
    networks: Networks, method: Rule, theta: Tensor, validation: Sequence[Batch], limit: int, patience: int
) -> tuple[float, int]:
    """Train one network until its validation loss has not improved for a while.

    Args:
        networks: the training loss.
        method: the optimizer.
        theta: start, shape (d,).
        validation: batches of equal size.
        limit: steps at most.
        patience: steps without a better validation loss after which training ends.

    Returns:
        The least validation loss, and its step; -1 if it was still falling at the limit.
    """
    best, at = float("inf"), 0
    for n, (thetas, _) in enumerate(iterates(networks, method, theta[None])):
        value = float(networks.losses(thetas, validation)[0])
        if value < best:
            best, at = value, n
        if n - at >= patience:
            return best, at
        if n == limit:
            break
    return best, -1
