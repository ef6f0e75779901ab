"""Training of many small networks at once along mini-batches, each in its own order, as `training` does with the full batch."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from memoryless.experiments.training import Networks, Rule
from memoryless.methods.method import State


class BatchRule(Protocol):
    """How networks are trained along mini-batches by what may need a step's gradient at other points, too."""

    @property
    def lr(self) -> float:
        """The step size."""
        ...

    def init(self, theta: Tensor) -> State:
        """Empty memory, for theta of shape (n, d)."""
        ...

    def update(self, state: State, gradient: Tensor, theta: Tensor, again: Callable[[Tensor], Tensor]) -> tuple[State, Tensor]:
        """The next state and the update, (n, d); `again` gives the gradients of the same batches elsewhere."""
        ...


class Plain:
    """A rule that needs no gradient elsewhere.

    Args:
        rule: an elementwise method.
    """

    def __init__(self, rule: Rule):
        self.rule, self.lr, self.init = rule, rule.lr, rule.init

    def update(self, state: State, gradient: Tensor, theta: Tensor, again: Callable[[Tensor], Tensor]) -> tuple[State, Tensor]:
        """The method's own."""
        return self.rule.update(state, gradient, theta)


def shuffled(count: int, size: int, seed: int) -> Iterator[Tensor]:
    """The samples of each step's batch, (size,): a new order each epoch, what is left over after its last batch left out.

    Args:
        count: samples.
        size: of a batch, at most count.
        seed: of the orders.
    """
    random = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=random)[: count // size * size].split(size)


def shuffled_for_each(count: int, size: int, seeds: Sequence[int], steps: int) -> Iterator[Tensor]:
    """`shuffled` of each network's own seed, (n, size), for so many steps."""
    orders = [shuffled(count, size, seed) for seed in seeds]
    for _ in range(steps):
        yield torch.stack([next(order) for order in orders])


@dataclass(frozen=True)
class Passed:
    """Where networks passed a training loss, and where they came to.

    Attributes:
        thetas: at the first look that found the loss at or below it, shape (n, d); NaN if none did.
        steps: taken until that look, (n,); -1 if none did.
        last: after all steps, shape (n, d); NaN of those that were not trained to the end.
    """

    thetas: Tensor
    steps: Tensor
    last: Tensor


def train_along(
    networks: Networks,
    rule: BatchRule,
    thetas: Tensor,
    samples: Iterable[Tensor],
    target: float,
    every: int,
    *,
    to_the_end: bool = False,
) -> Passed:
    """Train along mini-batches until the whole training loss is seen at or below a target, each network for itself.

    Networks are compared where it is first seen there, with no interpolation: between two iterates of noisy steps lies no path
    that was walked, and an average of them lies lower.

    Args:
        networks: the loss, of one physical batch.
        rule: the optimizer, elementwise.
        thetas: starts, shape (n, d).
        samples: of each step the samples of each network's batch, shape (n, size).
        target: training loss.
        every: steps from one look at the whole training loss to the next.
        to_the_end: train on to the last step.
    """
    ((inputs, targets),) = networks.batches
    met, steps, last = torch.full_like(thetas, torch.nan), torch.full((len(thetas),), -1), torch.full_like(thetas, torch.nan)
    rows, state = torch.arange(len(thetas)), rule.init(thetas)

    def look(n: int) -> Tensor:
        """Which of the rows go on."""
        values = networks.losses(thetas, networks.batches)
        now = (values <= target) & (steps[rows] < 0)
        met[rows[now]], steps[rows[now]] = thetas[now], n
        return values.isfinite() & ((steps[rows] < 0) | to_the_end)

    taken = 0
    for chosen in samples:
        if taken % every == 0 and not (left := look(taken)).all():
            rows, thetas = rows[left], thetas[left]
            state = State(state.n, tuple(s[left] for s in state.sums))
        if not len(rows):
            return Passed(met, steps, last)
        own = chosen[rows]
        at = partial(networks.each_at, batches=(inputs[own], targets[own]))
        state, F = rule.update(state, at(thetas), thetas, at)
        thetas, taken = thetas - rule.lr * F, taken + 1
    if taken % every == 0:
        look(taken)
    last[rows] = thetas
    return Passed(met, steps, last)
