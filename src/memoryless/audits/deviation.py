"""Whether one run can speak for a method that does not run: would it have come the same way?

A shadow memory lives on the live run's path. By how much its own updates u' would have left that path is known without a
gradient, from the same memory,

    deviation = |sum over the last 10 steps of (u' - u)| / |sum of u|,        sum of u = (theta[n-10] - theta[n]) / lr

A change is settled by this run where the deviation is below 0.4 and the change exceeds twice what such a deviation makes of a
change of the usual size,

    |change| > 2 deviation median |change|,        the median over all that was asked of the run

Measured on networks for digits, Adam at several learning rates, full batch, against each pair's own run where that has the same
loss: settled cells have its sign and most of its size (benchmarks/results/shadows.json); beyond, the pair's own run goes
elsewhere and so may its effect, and a change that is small among its neighbours has either sign.

The sums go over 4096 coordinates drawn at random where theta has more, and phi acts coordinate by coordinate: the ratio is then
an estimate, good to a few per cent of itself where no few coordinates dominate.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from memoryless.audits.grid import BLOCK, Grid, affine
from memoryless.audits.shadow import Shadow
from memoryless.flat import norm
from memoryless.methods.method import AnyOptimizer, Method, Momentum, Part, variables_of

STEPS = 10
"""So many last steps are compared."""
SETTLED, MARGIN = 0.4, 2.0
"""A run speaks for a method that deviates by less, and for changes that exceed that deviation of the usual by this factor."""
COORDINATES = 2**12


def usual(changes: np.ndarray) -> float:
    """The size of the usual one among changes that were asked of a run.

    Args:
        changes: of one measure; NaN where none is known.
    """
    known = np.abs(changes[np.isfinite(changes)])
    return float(np.median(known)) if known.size else math.nan


def settles(deviation: np.ndarray, change: np.ndarray, usual: np.ndarray | float) -> np.ndarray:
    """Whether a run speaks for changes of a measure that others' memories make on its path.

    Args:
        deviation: of each, any shape.
        change: of the measure, same shape.
        usual: size of the usual change on the run, or of the run that each was read off.

    Returns:
        Booleans, same shape.
    """
    return (deviation < SETTLED) & (np.abs(change) > MARGIN * deviation * usual)


class _Moment(NamedTuple):
    """What was remembered at a step, on the coordinates looked at."""

    theta: Tensor
    m: Tensor
    """One row for each variable."""


class Deviations:
    """The last updates of methods that do not run, against those of the run.

    Args:
        methods: other methods, in momentum form.
        grid: of pairs of betas, or None.
        theta: shape (d,).
        lr: of the run.
        seed: of the coordinates.

    Attributes:
        exact: whether every coordinate is looked at.
    """

    def __init__(self, methods: Sequence[AnyOptimizer], grid: Grid | None, theta: Tensor, lr: float, seed: int = 0):
        self._methods, self._grid, self._lr = methods, grid, lr
        parts = [part for method in (*methods, *([grid.oldest] if grid else [])) for part in method.parts]
        d = theta.numel()
        self.exact = d <= COORDINATES or not all(part.method.elementwise for part in parts)
        drawn = torch.randperm(d, generator=torch.Generator().manual_seed(seed))[:COORDINATES]
        self._at = (torch.arange(d) if self.exact else drawn.sort().values).to(theta.device)
        self._every = torch.arange(d, device=theta.device)
        variables = [v for method in methods for v in variables_of(method)]
        if grid is not None:
            for p, part in enumerate(grid.oldest.parts):
                variables += [v for l in range(len(part.method.variables)) for v in grid.variables(p, l)[0]]
        self._row = {v: i for i, v in enumerate(dict.fromkeys(variables))}
        self._past: deque[_Moment] = deque(maxlen=STEPS)

    def feed(self, shadow: Shadow, gradient: Tensor, theta: Tensor) -> None:
        """Look at a step before it is taken.

        Args:
            shadow: of all the methods and pairs, not fed with the step's gradient yet.
            gradient: of the step, shape (d,).
            theta: shape (d,).
        """
        g, x = gradient[self._at], theta[self._at]

        def memory(v: Momentum) -> Tensor:
            return shadow.memory(v, gradient, theta, self._at) if v.has_memory else v.weight(shadow.age) * v.g(g, x)

        rows = [memory(v) for v in self._row]
        self._past.append(_Moment(x, torch.stack(rows) if rows else x.new_zeros(0, len(x))))

    def of(self, theta: Tensor) -> tuple[list[float | None], np.ndarray | None]:
        """The deviations of the methods and of every pair at the end of the last steps looked at.

        Args:
            theta: where they led, shape (d,).

        Returns:
            One for each method, None where none was looked at or the run stood still; and of the grid, if there is one.
        """
        if not self._past:
            return [None] * len(self._methods), None
        live = (self._past[0].theta - theta[self._at]) / self._lr
        length = float(norm(live))
        if not length:
            return [None] * len(self._methods), None
        others: list[float | None] = [
            math.sqrt(sum(self._apart(part, live) for part in self._of_all(m, live))) / length for m in self._methods
        ]
        return others, None if self._grid is None else np.sqrt(self._pairs(self._grid, live)) / length

    def _of_all(self, method: AnyOptimizer, live: Tensor) -> Iterator[tuple[Part, Tensor]]:
        """A method's parts, and which of the coordinates looked at each moves."""
        for part in method.parts:
            yield part, torch.isin(self._at, self._every[part.index]).nonzero().flatten()

    def _apart(self, of: tuple[Part, Tensor], live: Tensor) -> float:
        """|sum of (u' - u)|^2 of a part."""
        part, inside = of
        rows = [self._row[v] for v in part.method.variables]
        total = -live[inside]
        for theta, m in self._past:
            total += part.scale * part.method.readout([m[row][inside] for row in rows], theta[inside])
        return float(total.square().sum())

    def _pairs(self, grid: Grid, live: Tensor) -> np.ndarray:
        """|sum of (u' - u)|^2 of every pair, in blocks of coordinates, shape (betas_1, betas_2)."""
        apart = live.new_zeros(grid.shape)
        for p, (part, inside) in enumerate(self._of_all(grid.oldest, live)):
            plans = [grid.variables(p, l) for l in range(len(part.method.variables))]
            rows = [torch.tensor([self._row[v] for v in found], device=live.device)[number] for found, number in plans]
            first = [l for l, (_, number) in enumerate(plans) if number.shape[0] > 1]
            product = all(rows[l].shape[1] == 1 for l in first) and part.method.elementwise and affine(part.method, first)
            size = max(1, BLOCK // apart.numel()) if part.method.elementwise else len(inside)
            for block in inside.split(size):
                read = [[m[:, block][row] for row in rows] for _, m in self._past]
                points = [theta[block] for theta, _ in self._past]
                total = (_product if product else _sum)(part.method, read, points, first, grid.shape)
                apart += (part.scale * total - live[block]).square().sum(-1)
        return apart.cpu().numpy()


def _sum(
    method: Method, read: list[list[Tensor]], points: list[Tensor], first: Sequence[int], shape: tuple[int, int]
) -> Tensor:
    """sum over steps of phi at every pair, shape (betas_1, betas_2, coordinates)."""
    total = points[0].new_zeros(*shape, len(points[0]))
    for m, theta in zip(read, points, strict=True):
        if method.elementwise:
            total += method.readout(m, theta)
        else:
            for i, j in np.ndindex(shape):
                total[i, j] += method.readout([x.expand(*shape, -1)[i, j] for x in m], theta)
    return total


def _product(
    method: Method, read: list[list[Tensor]], points: list[Tensor], first: Sequence[int], shape: tuple[int, int]
) -> Tensor:
    """The same where phi = offset + sum_{l in first} coefficient_l m_l: a matrix product over steps at each coordinate."""
    offset, left, right = points[0].new_zeros(shape[1], len(points[0])), [], []
    for m, theta in zip(read, points, strict=True):

        def phi(one: int | None, m: list[Tensor] = m, theta: Tensor = theta) -> Tensor:
            x = [torch.full_like(each[:1], float(l == one)) if l in first else each for l, each in enumerate(m)]
            return method.readout(x, theta)[0].expand(shape[1], -1)

        base = phi(None)
        offset = offset + base
        left += [m[l][:, 0] for l in first]
        right += [phi(l) - base for l in first]
    if not left:
        return offset.expand(*shape, -1)
    # (coordinates, betas_1, steps) times (coordinates, steps, betas_2)
    inner = torch.bmm(torch.stack(left).permute(2, 1, 0), torch.stack(right).permute(2, 0, 1))
    return inner.permute(1, 2, 0) + offset
