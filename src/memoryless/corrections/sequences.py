"""Orders of mini-batches: random ones, and what an optimizer does along one with theta frozen.

With theta frozen a step sees the gradient of its batch and nothing else, so a momentum variable at step s is a weighted sum
over the batches, whatever the length of the past,

    m_l[s] = sum_i P_l[s, i] g_l(grad L_i(theta)),        P_l[s, i] = sum of kernel_l[k] over the ages k at which i was used

and all the past that F[s] needs is one row of scalars per variable.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memoryless.methods import kernel
from memoryless.methods.method import AnyOptimizer, Method, Momentum, variables_of

Order = NDArray[np.int64]
"""Batch of each step 0..n."""

ROWS = 2**21
"""Numbers formed at once, steps times coordinates."""


def random_order(count: int, length: int, rng: np.random.Generator, replacement: bool = False, skip: int = 0) -> Order:
    """A random order of batches.

    Args:
        count: number of batches.
        length: number of steps.
        rng: to draw from.
        replacement: every step draws afresh; otherwise every epoch is a random permutation.
        skip: steps that the first epoch has behind it.

    Returns:
        One batch index per step.

    Example:
        >>> random_order(3, 6, np.random.default_rng(0))
        array([2, 0, 1, 2, 1, 0])
    """
    if replacement:
        return rng.integers(count, size=length)
    epochs = -(-(skip + length) // count)
    return rng.permuted(np.tile(np.arange(count), (epochs, 1)), axis=1).ravel()[skip : skip + length]


def shares(variable: Momentum, order: Order, steps: Sequence[int], count: int, limit: bool = False) -> NDArray[np.float64]:
    """P_l[s, i], the weight of each batch in a variable at some steps.

    Args:
        variable: a momentum variable.
        order: batch of each step.
        steps: the steps s.
        count: number of batches.
        limit: take the weight of n -> infinity at every step, as the steady state has it.

    Returns:
        Shape (len(steps), count).
    """
    rows = np.zeros((len(steps), count))
    for row, s in zip(rows, steps, strict=True):
        values = kernel.kernel(variable, s, kernel.window((variable,), s), limit)
        row += np.bincount(order[s + 1 - len(values) : s + 1][::-1], weights=values, minlength=count)
    return rows


@dataclass(frozen=True)
class Pool:
    """The gradients of all batches at one theta: what every order of them is made of.

    Attributes:
        method: in momentum form.
        gradients: shape (batches, d).
        theta: shape (d,).
    """

    method: AnyOptimizer
    gradients: Tensor
    theta: Tensor

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.gradients)

    @cached_property
    def images(self) -> list[Tensor]:
        """For each variable g_l of every batch's gradient, shape (batches, coordinates of its part)."""
        found: dict[tuple[Any, int], Tensor] = {}
        for j, part in enumerate(self.method.parts):
            gradients, theta = self.gradients[:, part.index], self.theta[part.index]
            for g in {v.g for v in part.method.variables}:
                found[g, j] = per_row(g, part.method.elementwise, gradients, theta.expand_as(gradients))
        return [found[v.g, j] for j, part in enumerate(self.method.parts) for v in part.method.variables]

    def memories(self, weights: Sequence[NDArray[np.float64]]) -> list[Tensor]:
        """m_l at several steps, from the weight of each batch.

        Args:
            weights: for each variable (of all parts, one after the other) P_l, shape (steps, batches).

        Returns:
            For each variable, shape (steps, coordinates of its part).
        """
        return [torch.from_numpy(rows).to(g) @ g for rows, g in zip(weights, self.images, strict=True)]

    def readout(self, memories: Sequence[Tensor]) -> Tensor:
        """F at several steps.

        Args:
            memories: from `memories`; dual tensors give a dual result.

        Returns:
            Shape (steps, d).
        """
        parts, flat = self.method.parts, iter(memories)
        read = []
        for part in parts:
            m = [next(flat) for _ in part.method.variables]
            read.append(part.scale * _readout(part.method, m, self.theta[part.index]))
        if len(parts) == 1 and parts[0].index == slice(None):
            return read[0]
        F = read[0].new_zeros(len(read[0]), len(self.theta))
        for part, rows in zip(parts, read, strict=True):
            F[:, part.index] = rows
        return F

    def update(self, order: Order) -> Tensor:
        """F[n](theta) of the last step of an order, shape (d,).

        Args:
            order: batch of each step 0..n.
        """
        variables = variables_of(self.method)
        return self.readout(self.memories([shares(v, order, [len(order) - 1], len(self)) for v in variables]))[0]

    def updates(self, order: Order, first: int = 0) -> Iterator[tuple[int, Tensor]]:
        """F[s](theta) of every step of an order, from empty memory.

        Args:
            order: batch of each step.
            first: number s of the first of these steps.

        Yields:
            Where in the order some consecutive steps begin, and their F, shape (steps, d).
        """
        variables = variables_of(self.method)
        from scipy.signal import lfilter  # as slow to import as torch; full batch does without

        last = [np.zeros((1, len(self))) for _ in variables]
        size = max(1, ROWS // len(self.theta))
        for low in range(0, len(order), size):
            onehot = (order[low : low + size, None] == np.arange(len(self))).astype(float)
            steps = first + low + np.arange(len(onehot))
            weights = []
            for l, v in enumerate(variables):
                entering = onehot if steps[0] else np.vstack([v.first * onehot[:1], onehot[1:]])
                sums, _ = lfilter([1.0], [1.0, -v.beta], entering, axis=0, zi=v.beta * last[l])
                read = np.vstack([last[l], sums[:-1]]) if v.lag else sums
                last[l] = sums[-1:]
                weights.append(np.broadcast_to(v.weight(steps), steps.shape)[:, None] * read)
            yield low, self.readout(self.memories(weights))


def per_row(g: Callable[[Tensor, Tensor], Tensor], elementwise: bool, gradients: Tensor, thetas: Tensor) -> Tensor:
    """g_l of several gradients.

    Args:
        g: of a momentum variable.
        elementwise: whether it acts coordinate by coordinate.
        gradients: shape (rows, coordinates).
        thetas: shape (rows, coordinates).
    """
    return g(gradients, thetas) if elementwise else torch.stack([g(x, y) for x, y in zip(gradients, thetas, strict=True)])


def _readout(method: Method, m: Sequence[Tensor], theta: Tensor) -> Tensor:
    """Phi of each row of memories."""
    rows = len(m[0])
    if method.elementwise:
        return method.readout([x.flatten() for x in m], theta.repeat(rows)).view(rows, -1)
    return torch.stack([method.readout([x[r] for x in m], theta) for r in range(rows)])
