"""Which past steps to replay at a stop: a few ages, drawn so that their weighted terms stand for all.

A memory is a sum over ages, sum_k kernel[k] x_k. Of the ages k = 1, 2, ... about R are replayed, age k with probability

    pi_k = min(1, c q_k),   sum_k pi_k = R,   q_k = sum of the normalized kernels of all that remember

and a drawn term has the weight 1/pi_k, which leaves the sum unbiased. The ages with pi_k = 1, the youngest, are exact. Along
the cumulated pi of the others one age is drawn uniformly in each unit of mass (jittered sampling): neighbouring ages have
similar terms, so that the spread is a half to a third of that of independent draws, and successive differences of the drawn
terms tell it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memoryless.methods import kernel
from memoryless.methods.method import Momentum

Array = NDArray[np.float64]

TAIL = 1e-3
"""Share of a memory beyond which its oldest ages are not drawn any more: they count with their old gradients."""


@dataclass(frozen=True)
class Draws:
    """The terms that stand for all ages; age 0, the present gradient, is the first.

    Attributes:
        ages: ascending, shape (terms,); an age may be drawn twice.
        weights: 1/pi of each.
        exact: whether its pi is 1.
    """

    ages: NDArray[np.int64]
    weights: Array
    exact: NDArray[np.bool_]

    @property
    def drawn(self) -> NDArray[np.int64]:
        """Numbers of the terms that are not exact."""
        return np.flatnonzero(~self.exact)


def inclusion(q: Array, count: int) -> Array:
    """pi_k = min(1, c q_k) with sum_k pi_k = count; all that count at all where these are no more.

    Args:
        q: nonnegative sizes, shape (ages,).
        count: R, at least 1.

    Example:
        >>> inclusion(np.array([8.0, 1.0, 1.0]), 2).tolist()
        [1.0, 0.5, 0.5]
    """
    if np.count_nonzero(q) <= count:
        return (q > 0).astype(float)
    order = np.sort(q)[::-1]
    # With the j largest at 1 the others share R - j: the first j at which none of these exceeds 1.
    rest = np.cumsum(order[::-1])[::-1][:count]
    c = (count - np.arange(count)) / rest
    return np.minimum(1.0, c[np.argmax(c * order[:count] <= 1)] * q)


def draw(q: Array, count: int, rng: np.random.Generator) -> Draws:
    """Draw ages.

    Args:
        q: size of each age k = 1, 2, ..., shape (ages,).
        count: how many, at least 1.
        rng: source of the jitter.
    """
    pi = inclusion(q, count)
    exact = np.flatnonzero(pi >= 1 - 1e-12)
    others = np.flatnonzero((pi > 0) & (pi < 1 - 1e-12))
    drawn = others[:0]
    if len(others):
        mass = np.cumsum(pi[others])
        units = max(1, round(mass[-1]))
        at = (np.arange(units) + rng.random(units)) * (mass[-1] / units)
        drawn = others[np.minimum(np.searchsorted(mass, at, side="right"), len(others) - 1)]
        # The mass is a whole number but for rounding where c did not end on a pi of 1.
        pi = pi * np.where(pi < 1 - 1e-12, units / mass[-1], 1.0)
    ages = np.concatenate([[0], exact + 1, drawn + 1])
    weights = np.concatenate([[1.0], np.ones(len(exact)), 1 / pi[drawn]])
    order = np.argsort(ages, kind="stable")
    sure = np.concatenate([[True], np.ones(len(exact), bool), np.zeros(len(drawn), bool)])
    return Draws(ages[order], weights[order], sure[order])


def sizes(own: Iterable[Momentum], others: Sequence[Momentum], n: int, longest: int) -> Array:
    """q_k, k = 1, 2, ...: the sum of the live memories' normalized kernels, and the mean of the others' once more.

    Args:
        own: variables of the live optimizer.
        others: variables of shadows.
        n: step of the stop.
        longest: age beyond which nothing can be replayed.
    """
    count = min(n, longest)
    q, mean = np.zeros(count), np.zeros(count)
    for variables, into in ((list(own), q), (list(others), mean)):
        for v in dict.fromkeys(variables):
            ages = np.abs(kernel.kernel(v, n, count + 1)[1:])
            if (whole := ages.sum()) > 0:
                into += np.where(np.cumsum(ages[::-1])[::-1] > TAIL * whole, ages, 0) / whole
    return q + (mean / len(others) if others else 0.0)


def reach(variables: Iterable[Momentum], longest: int) -> int:
    """The oldest age that may be drawn for any of these memories, however many steps they have behind them.

    Args:
        variables: that remember.
        longest: at most so many.
    """
    betas = [v.beta for v in variables if v.has_memory]
    return min(longest, max((int(np.log(TAIL) / np.log(b)) + 2 if 0 < b < 1 else 2 for b in betas), default=1))
