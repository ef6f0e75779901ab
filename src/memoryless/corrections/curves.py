"""Curves through what is known of a coordinate's gradients on the way: the present one, an average of G, an average of G^2.

    G(k) = g + y c(k),    c(k) = tau(k; kappa) / sum_k w1 tau,    y = m - g

has the average m whatever kappa is; kappa is the coordinate's own, so that G^2 has the average v, between two of a family of
curves laid out beforehand. What weights w make of it are three numbers for each curve,

    A = sum_k w c,    B = sum_k w c^2,    C = what is left of v beyond the curve, at w, over that at w2
    average of G = g + y A,    of G^2 = g^2 + 2 g y A + y^2 B + rest C
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memoryless.methods import kernel
from memoryless.methods.method import Momentum

Array = NDArray[np.float64]
Tau = Callable[[Array, float], Array]

HURST = 0.85
GROWTHS = np.concatenate([-np.geomspace(30, 0.03, 31), [0.0], np.geomspace(0.03, 30, 31)])
"""kappa times the longest age, of the curves laid out; fewer than 255."""
BLOCK = 2**12
"""Coordinates whose place is looked for at a time: so many times all curves stay in the cache."""
STILL = math.log(1e6)
"""Beyond an age of so much over 1 - beta_2 the average of G^2 has 1e-6 of its weight, and curves stay as they are."""
_LONG = 2**40
"""A step at which every memory that fades has come to rest."""


def exponential(k: Array, kappa: float) -> Array:
    """(e^(kappa k) - 1) / kappa, k where kappa is 0."""
    return np.expm1(kappa * k) / kappa if kappa else k


def steeper(k: Array, kappa: float) -> Array:
    """k e^(kappa k), and k / (1 - kappa k) for kappa < 0: another way between the same facts."""
    return k * np.exp(kappa * k) if kappa > 0 else k / (1 - kappa * k)


class Ages:
    """Ages at which the memories of some variables are added up: each of the first 64, then ever fewer.

    The weight of those between is shared by their neighbours, so that sums of what is linear in the age are exact.

    Args:
        n: past steps; None for the steady state.
        variables: as far as the oldest of them remembers.

    Attributes:
        at: the ages, shape (ages,).

    Example:
        >>> ages = Ages(2, [Momentum(0.5)])
        >>> ages.at, ages.weights(Momentum(0.5))
        (array([0., 1., 2.]), array([0.57142857, 0.28571429, 0.14285714]))
    """

    def __init__(self, n: int | None, variables: Sequence[Momentum]):
        self._last, self._limit = (_LONG, True) if n is None else (n, False)
        oldest = kernel.window(tuple(variables), self._last) - 1
        fewer = 64 * 1.02 ** np.arange(1, 2 + max(0, math.ceil(math.log(max(oldest, 1) / 64) / math.log(1.02))))
        known = np.unique(np.append(np.arange(64), fewer.astype(int)))
        self.at: Array = np.append(known[known < oldest], oldest).astype(float)

    def weights(self, variable: Momentum) -> Array:
        """The weight that a variable gives to each age, of sum 1; all of it on the present where nothing is remembered.

        Args:
            variable: no older than those of the start.
        """
        count = int(self.at[-1]) + 1
        values = kernel.kernel(variable, self._last, count, limit=self._limit)
        values = np.append(values, np.zeros(count - len(values)))
        if not values.any():
            return (self.at == 0).astype(float)
        starts, width = self.at[:-1].astype(int), np.diff(self.at)
        whole = np.zeros_like(self.at)
        whole[-1] = values[-1]
        if len(starts):
            mass = np.add.reduceat(values[:-1], starts)
            onward = (np.add.reduceat(values[:-1] * np.arange(count - 1), starts) - self.at[:-1] * mass) / width
            whole[:-1] += mass - onward
            whole[1:] += onward
        return whole / whole.sum()


class Facts(NamedTuple):
    """What is known of the coordinates of one part.

    Attributes:
        w1: weights of the average of G, by age, or None.
        w2: weights of the average of G^2, or None.
        still: the age beyond which curves stay as they are.
    """

    w1: Array | None
    w2: Array | None
    still: float


class Curves:
    """A family of curves through such facts, of which each coordinate is on one.

    Args:
        ages: to add up.
        facts: of the coordinates.
        tau: family of curves, for coordinates of which both averages are known.
        second: the other reading: coordinates that no curve fits are on the nearest one, not on a fractional Brownian motion
            pinned at g; where m alone is known G is that motion, not a straight line; where v alone is, all of it is there at
            once, where G^2 was such a motion.
    """

    def __init__(self, ages: Ages, facts: Facts, tau: Tau, *, second: bool):
        self.w1, self._w2, self._second = facts.w1, facts.w2, second
        self._curves = np.zeros((0, len(ages.at)))
        if facts.w1 is not None and facts.w2 is not None:
            k = np.minimum(ages.at, facts.still)
            self._curves = np.stack([tau(k, growth / max(k[-1], 1.0)) for growth in GROWTHS])
            self._curves /= np.maximum(self._curves @ facts.w1, np.finfo(float).tiny)[:, None]
        straight = facts.w2 is None and not second
        self._covariance = np.outer(ages.at, ages.at) if straight else _covariance(ages.at)
        self._own = None if facts.w2 is None else torch.from_numpy(self.table(facts.w2))

    @property
    def rows(self) -> int:
        """How many curves there are, the last one included."""
        return len(self._curves) + 1

    def table(self, w: Array) -> Array:
        """A, B and C of each curve, the motion's or the line's last, shape (curves + 1, 3).

        Args:
            w: weights by age, of sum 1.
        """
        B = self._curves**2 @ w
        C = np.zeros_like(B) if self._w2 is None or not len(B) else _over(B, self._curves**2 @ self._w2)
        return np.vstack([np.stack([self._curves @ w, B, C], axis=-1), self._last(w)])

    def _last(self, w: Array) -> Array:
        """A, B, C of conditional means under the covariance K: c = K w1 / w1'K w1, and K - K w1 w1'K / w1'K w1 is left."""
        K, w1, w2 = self._covariance, self.w1, self._w2
        if w1 is None:  # G^2 itself is the motion
            assert w2 is not None
            return np.array([0.0, 0.0, _over(w @ K @ w2, w2 @ K @ w2) if not self._second else 1.0])
        seen = K @ w1
        spread = w1 @ seen
        c = seen / max(spread, np.finfo(float).tiny)
        left = np.maximum(np.diag(K) - c * seen, 0)
        of = spread if w2 is None else w2 @ left
        return np.array([w @ c, w @ c**2, _over(w @ left, of)])

    def place(self, g: Tensor, m: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Which curve each coordinate is on.

        Args:
            g: G(0), shape (coordinates,).
            m: average of G; not looked at where that is not known.
            v: average of G^2; the same.

        Returns:
            The number of its curve, how far it is on the way to the next one, in [0, 1], and what is left of v beyond it.
        """
        placed = [self._placed(*each) for each in zip(*(x.split(BLOCK) for x in (g, m, v)), strict=True)]
        row, share, rest = (torch.cat(x) for x in zip(*placed, strict=True))
        return row, share, rest

    def _placed(self, g: Tensor, m: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        curves, y, none = len(self._curves), m - g, torch.zeros_like(g)
        last = torch.full(g.shape, curves, dtype=torch.int32, device=g.device)
        if self.w1 is None:
            return last, none, v - g**2
        if self._own is None:
            # One number to go by: y^2 is what such a motion's average has in the mean.
            return last, none, y**2 if self._second else none
        table = self._own.to(g)
        row, share, fits = _between(table[:curves], g, y, v)
        row = torch.where(fits, row, _nearest(table[:curves], g, y, v) if self._second else last)
        A, B = (torch.addcmul(table[row, i], share, table[(row + 1).clamp_max(curves), i] - table[row, i]) for i in (0, 1))
        return row, share, torch.where(fits, 0.0, v - g**2 - 2 * g * y * A - y**2 * B)


def _between(table: Tensor, g: Tensor, y: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The straightest curve of each coordinate that has the average v, its share of the next, and whether there is one."""
    short, twice, square = g**2 - v, 2 * g * y, y**2
    middle = len(table) // 2
    # What each curve's average of G^2 has beyond v, shape (curves, coordinates), and where it changes sign up to the next one.
    if g.device.type == "cpu":
        beyond = torch.addmm(short.expand(len(table), -1), table[:, :2], torch.stack([twice, square]))
    else:  # where a product of matrices may be taken in fewer digits than signs need
        beyond = short + twice * table[:, :1] + square * table[:, 1:2]
    below = beyond <= 0
    crosses = (below[1:] != below[:-1]).view(torch.uint8)
    # On each side of the straight line the crossing nearest to it, by weights that fall away from it; 0 where there is none.
    away = torch.arange(len(crosses), device=g.device) - middle
    weight = torch.where(away < 0, middle + 1 + away, middle - away).to(torch.uint8)[:, None]
    down, up = (side.amax(0).int() for side in (crosses * weight).split([middle, len(crosses) - middle]))
    fits = (up > 0) | (down > 0)
    row = torch.where(fits, torch.where(down > up, down - 1, 2 * middle - up), middle)
    before, after = (short + twice * table[row + k, 0] + square * table[row + k, 1] for k in (0, 1))
    share = torch.where(fits, before / (before - after), 0.0).nan_to_num(0.0).clamp(0, 1)
    return row, share, fits


def _nearest(table: Tensor, g: Tensor, y: Tensor, v: Tensor) -> Tensor:
    short = (g**2 - v) + 2 * table[:, :1] * (g * y) + table[:, 1:2] * y**2
    return short.abs().argmin(dim=0).int()


def _covariance(k: Array) -> Array:
    """Of the fractional Brownian motion that is 0 at age 0, shape (ages, ages)."""
    e = 2 * HURST
    return (k[:, None] ** e + k**e - np.abs(k[:, None] - k) ** e) / 2


def _over(a: Array, b: Array) -> Array:
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)
