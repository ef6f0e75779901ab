"""The way back that an optimizer came, followed from theta alone by a few gradients, and its memory of the gradients on it.

Where the optimizer was a steps ago is found as it got there, by its own updates: at ages 0 = a_0 < a_1 < ... the update that it
takes at x_j with a gradient that drifts by w_j per step of age leads on to x_{j+1},

    x_{j+1} = x_j + lr ( sum_{s = n-a_{j+1}..n-a_j-1} F[s](x_j) + (a_{j+1} - a_j) E_j )
    w_{j+1} = (g_{j+1} - g_j) / (a_{j+1} - a_j)

with E_j its memory's effect there, resummed. Between the nodes the gradient is taken as linear in the age, beyond the last one
as going on so, and the memory of that is read exactly: m_l = sum_k kernel_l[k] g_l(g(k), x(k)), by as many quadrature nodes in
each interval as g_l's degree asks for.

Where the frozen update moves with s (heavy ball's first steps) the way back bends in the age even to first order, by
r_l = lr sum_k kernel_l[k] (D[k] - its interpolation), known without a gradient: each variable l is read at g + H r_l / c_l,
theta + r_l / c_l instead, so that the effect agrees with M and with the resummed one to O(lr^2) for every method.

It takes gradients only, 13 at most and one for each distinct r_l. A path followed backwards excites stiff directions that the
real past had damped: `growth` tells.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple, cast

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from memoryless.corrections import averages, history
from memoryless.errors import BadInput
from memoryless.flat import dot, norm, total
from memoryless.loss.point import Point
from memoryless.methods import kernel
from memoryless.methods.method import AnyOptimizer, Index, Momentum, variables_of

GROWTH = 1.1
"""A path is trusted where the gradient's 1-norm has grown by no more than this, `CLOSE` steps back."""
CLOSE = 7
FADED = 0.01
"""What is left of the oldest memory's weight at the last node, beyond which the gradient is extrapolated."""
INTERVALS = 10


Bend = tuple[Tensor, Tensor]
"""What g and theta are read further at by a variable, each of shape (d,)."""


@dataclass(frozen=True)
class Path:
    """Where an optimizer came from.

    Attributes:
        ages: of the nodes, in steps, the first is 0.
        theta: where it starts, shape (d,).
        gradient: grad L there, shape (d,).
        points: theta at the nodes, shape (nodes, d); empty where no reader's memory is of theta.
        gradients: grad L at the nodes, shape (nodes, d); empty where none but the method itself reads.
        F: update at theta with the history frozen, shape (d,).
        growth: |grad L|_1 at age 7 (the last node's, if it is younger) over |grad L|_1 at theta.
        spent: gradients, the one at theta included.
        step: n, or None for the steady state.
    """

    ages: tuple[int, ...]
    theta: Tensor
    gradient: Tensor
    points: Tensor
    gradients: Tensor
    F: Tensor
    growth: float
    spent: int
    step: int | None
    _bends: dict[Momentum, Bend]
    _own: dict[Momentum, Tensor]

    @property
    def trusted(self) -> bool:
        """Whether the gradient has grown by so little that the past may have been such: growth <= `GROWTH`."""
        return self.growth <= GROWTH

    def memory(self, variable: Momentum, index: Index = slice(None)) -> Tensor:
        """m_l at theta, the variable's memory of the gradients on the path.

        Args:
            variable: of any method that is taken to have come this way.
            index: coordinates wanted.

        Returns:
            Shape (d,), or of the coordinates.
        """
        if variable in self._own:
            return self._own[variable][index]
        g = self.gradients[:, index]
        x = self.points[:, index] if variable.uses_theta else [None] * len(g)
        bend = self._bends.get(variable)
        m = torch.zeros_like(g[0])
        for reading in readings(variable, self.step, self.ages):
            j, k = reading.j, min(reading.j + 1, len(g) - 1)
            _add(m, variable, reading, (g[j], g[k]), (x[j], x[k]), None if bend is None else (bend[0][index], bend[1][index]))
        return m

    def effect(self, method: AnyOptimizer) -> Tensor:
        """What memory adds to the update of a method that came this way, shape (d,), in the units of an update.

        Args:
            method: in momentum form; the path is its own to first order in lr where it shares F with the one that led here.
        """
        return history.update_of(method, self.theta, self.memory) - history.frozen(method, self.gradient, self.theta, self.step)


class Reading(NamedTuple):
    """One quadrature node: the path at share t of the way from node j to j + 1, and its weight."""

    j: int
    share: float
    weight: float


def _add(
    m: Tensor,
    variable: Momentum,
    reading: Reading,
    g: tuple[Tensor, Tensor],
    x: tuple[Tensor | None, Tensor | None],
    bend: Bend | None,
) -> None:
    """Add what a variable remembers of one quadrature node, between gradients g and points x at both ends of its interval."""

    def between(ends: tuple[Tensor | None, Tensor | None], part: int) -> Tensor:
        start, end = ends
        assert start is not None and end is not None  # noqa: PT018
        at = torch.lerp(start, end, reading.share) if reading.share else start
        return at if bend is None else at + bend[part]

    at_g = between(g, 0)
    at_x = between(x, 1) if variable.uses_theta else at_g  # not looked at
    m.add_(variable.g(at_g, at_x), alpha=reading.weight)


@lru_cache(maxsize=2048)
def readings(variable: Momentum, step: int | None, ages: tuple[int, ...]) -> tuple[Reading, ...]:
    """Quadrature for sum_k kernel[k] p(k), exact where p is on each interval a polynomial of the variable's degree.

    Args:
        variable: any momentum variable.
        step: n, or None for the steady state.
        ages: of the path's nodes; the last interval has no end.

    Returns:
        Nodes, at most `kernel.node_count` in each interval.

    Example:
        >>> readings(Momentum(0.5, degree=1), 3, (0, 1, 3))  # weights 1, 1/2, 1/4, 1/8; age 2 is the middle of the last two
        (Reading(j=0, share=0.0, weight=1.0), Reading(j=1, share=0.2857..., weight=0.875))
    """
    n = _LONG if step is None else step
    values = kernel.kernel(variable, n, _reached(variable, n), limit=step is None)
    starts = [*ages[:-1], len(values)] if len(ages) > 1 else [0, len(values)]
    found = []
    for j, (a, b) in enumerate(pairwise(starts)):
        width = ages[j + 1] - a if j + 1 < len(ages) else math.inf
        nodes, weights = kernel.gauss_of(values[a:b], kernel.node_count(variable))
        found += [Reading(j, float(k) / width, float(w)) for k, w in zip(nodes, weights, strict=True)]
    return tuple(found)


_LONG = 2**40
"""A step at which every memory that fades has come to rest."""


def _reached(variable: Momentum, n: int) -> int:
    """How many ages count: high powers of the age, which many nodes integrate, reach further back."""
    return min(n + 1, (4 if variable.degree is None else 1) * kernel.window((variable,), n))


def follow(
    method: AnyOptimizer,
    point: Point,
    step: int | None,
    readers: Sequence[AnyOptimizer] = (),
    nodes: int | None = None,
) -> Path:
    """The way back from a point.

    Args:
        method: in momentum form, which has come this way.
        point: of the loss.
        step: n, or None for the steady state.
        readers: other methods that will be taken to have come this way: it reaches as far as their memories, and keeps the
            gradients for them. The method's own variables read as the path goes on, and need none.
        nodes: so many at most; 2 is a straight line, on which memory is what `resummed` takes it to be.

    Returns:
        The path; 13 gradients at most, and one for each memory of a method whose frozen update still moves.

    Raises:
        NeverForgets: steady state of a memory that does not fade.
        BadInput: the method is run as it is.
        NotFinite: loss or gradient is not finite on the way.

    Example:
        >>> from memoryless.loss.loss import Loss
        >>> from memoryless.methods.catalogue import HeavyBall
        >>> loss = Loss.of(lambda theta: (theta**2).sum() / 2, torch.tensor([1.0], dtype=torch.float64))
        >>> method = HeavyBall(lr=0.001, momentum=0.9)
        >>> path = follow(method, Point(loss), None)
        >>> path.ages
        (0, 1, 3, 7, 15, 31, 44)
        >>> path.effect(method)  # exact 1.1268, to first order 0.9
        tensor([1.0591], dtype=torch.float64)
    """
    if not method.parts:
        raise BadInput(f"a path reads memory in momentum form, and {method} is run as it is; use order='resummed'")
    lr, theta, g = method.lr, point.theta, point.gradient
    own, read = dict.fromkeys(variables_of(method)), dict.fromkeys(v for m in readers for v in variables_of(m))
    ages = _ages((*own, *read), step)[:nodes]
    F = history.frozen(method, g, theta, step)
    spent, bends = 1, {}
    gradients = _Nodes(theta, len(ages) if read else 0)
    points = _Nodes(theta, len(ages) if any(v.uses_theta for v in read) else 0)
    memory = {v: torch.zeros_like(g) for v in own}

    def reach(j: int, x: tuple[Tensor, Tensor], at_x: tuple[Tensor, Tensor]) -> None:
        points.put(j, x[0])
        gradients.put(j, at_x[0])
        for v in own:
            for reading in readings(v, step, ages):
                if reading.j == j:
                    _add(memory[v], v, reading, at_x, x, bends.get(v))

    x, at_x, close = theta, g, g
    if len(ages) > 1:
        # The drift along F first, then along the update that it gives.
        drift = point.loss.gradient(theta + lr * F) - g
        spent += 1
        if step is not None and not averages.settled(variables_of(method), step):
            bends, more = _bends(method, point, step, ages, F, drift)
            spent += more
        back = lr * (F + _drifting(method, step, g, drift, theta, lr * F))
        drift = point.loss.gradient(theta + back) - g
        for j, (a, b) in enumerate(pairwise(ages)):
            n, old, at_old = None if step is None else step - a, x, at_x
            E = _drifting(method, n, at_old, drift, old, back)
            x = E.mul_(b - a).add_(_travelled(method, at_old, old, n, b - a)).mul_(lr).add_(old)
            del E, back, drift  # not held while the gradient is taken
            at_x = point.loss.gradient(x)
            reach(j, (old, x), (at_old, at_x))
            back, drift = ((new - then).div_(b - a) for then, new in ((old, x), (at_old, at_x)))
            close = at_x if b <= CLOSE else close
        spent += len(ages)
    reach(len(ages) - 1, (x, x), (at_x, at_x))
    size = float(total(g.abs()))
    growth = float(total(close.abs())) / size if size else 1.0
    return Path(ages, theta, g, points.rows, gradients.rows, F, growth, spent, step, bends, memory)


class _Nodes:
    """Rows of shape (d,), if they are wanted."""

    def __init__(self, like: Tensor, count: int):
        self.rows = like.new_empty(count, len(like))

    def put(self, j: int, x: Tensor) -> None:
        if len(self.rows):
            self.rows[j] = x


def _ages(variables: Sequence[Momentum], step: int | None) -> tuple[int, ...]:
    """0, 1, 3, 7, then intervals that double, or grow by more where ten such do not reach the oldest memory's end."""
    if step is None:
        for v in variables:
            kernel.require_fading(v)
    last = _LONG if step is None else step
    oldest = max((_fades(v, last) for v in variables if v.has_memory), default=0)
    if oldest <= CLOSE:
        return tuple(a for a in (0, 1, 3) if a < oldest) + (oldest,) * (oldest > 0) if oldest else (0,)

    def reach(factor: float) -> float:
        return CLOSE + sum(4 * factor**i for i in range(1, INTERVALS - 2))

    factor = 2.0 if reach(2) >= oldest else float(cast(float, brentq(lambda f: reach(f) - oldest, 2, 2 + oldest)))
    ages, interval = [0, 1, 3, CLOSE], 4.0
    while ages[-1] < oldest:
        interval *= factor
        nearly = round(ages[-1] + interval)
        ages.append(oldest if nearly >= oldest - 1 else nearly)
    return tuple(ages)


def _fades(variable: Momentum, last: int) -> int:
    """The first age beyond which no more than `FADED` of the weight lies, at most `last`."""
    count = min(last + 1, kernel.window((variable,), last))
    tails = kernel.tails(np.abs(kernel.kernel(variable, last, count, limit=last == _LONG)))
    beyond = np.flatnonzero(tails <= FADED * tails[0])
    return min(last, max(int(beyond[0]) if len(beyond) else count, 1))


def _drifting(method: AnyOptimizer, step: int | None, g: Tensor, drift: Tensor, theta: Tensor, back: Tensor) -> Tensor:
    """What memory of a gradient that drifts from g by `drift` per step of age, theta by `back`, adds to the update."""

    def memory(v: Momentum, index: Index) -> Tensor:
        m = torch.zeros_like(g[index])
        for age, weight in zip(*kernel.gauss(v, step), strict=True):
            earlier = theta[index].add(back[index], alpha=float(age)) if v.uses_theta else theta[index]
            m.add_(v.g(g[index].add(drift[index], alpha=float(age)), earlier), alpha=float(weight))
        return m

    return history.update_of(method, theta, memory) - history.frozen(method, g, theta, step)


def _travelled(method: AnyOptimizer, g: Tensor, theta: Tensor, step: int | None, count: int) -> Tensor:
    """sum_{s = n-count..n-1} F[s](theta)."""
    if step is None or averages.settled(variables_of(method), step):
        return count * history.frozen(method, g, theta, step)
    weights = averages.row(variables_of(method), step, lambda s: 1.0 * ((s >= step - count) & (s < step)), count)
    return averages.combined(method, g, theta, step, weights[None])[0]


def _bends(
    method: AnyOptimizer, point: Point, step: int, ages: tuple[int, ...], F: Tensor, drift: Tensor
) -> tuple[dict[Momentum, Bend], int]:
    """H r_l / c_l and r_l / c_l of each variable, and the gradients spent on them.

    r_l / lr = sum_k kernel_l[k] (D[k] - sum_j hat_j(k) D[a_j]), D[k] = sum_{s = n-k..n-1} F[s], is a sum over s < n of F[s]
    with the weights T_l[n-s] - sum_j h_lj 1[s >= n - a_j], h_lj = sum_k kernel_l[k] hat_j(k), which add up to 0.
    """
    rows: dict[Momentum, np.ndarray] = {}
    for v in dict.fromkeys(variables_of(method)):
        if not (v.has_memory and kernel.total(v, step)):
            continue
        hats = np.zeros(len(ages))
        for j, share, weight in readings(v, step, ages):
            hats[[j, j + 1]] += weight * (1 - share), weight * share

        def bent(s: np.ndarray, v: Momentum = v, hats: np.ndarray = hats) -> np.ndarray:
            return np.where(s < step, kernel.tail(v, step, step - s) - (s[:, None] >= step - np.array(ages)) @ hats, 0.0)

        each = averages.row(variables_of(method), step, bent, 0.0)
        if np.abs(each).sum() > 1e-13 * ages[-1] * abs(kernel.total(v, step)):
            rows[v] = each
    if not rows:
        return {}, 0
    found: dict[Momentum, Bend] = {}
    seen: list[tuple[Tensor, Tensor]] = [(method.lr * F, drift)]
    sums = averages.combined(method, point.gradient, point.theta, step, np.array(list(rows.values())))
    for v, each in zip(rows, sums, strict=True):
        r = method.lr / kernel.total(v, step) * each
        for direction, answer in seen:
            factor = float(dot(r, direction) / dot(direction, direction).clamp_min(1e-300))
            if norm(r - factor * direction) <= 1e4 * torch.finfo(r.dtype).eps * norm(r):
                found[v] = factor * answer, r
                break
        else:
            seen.append((r, point.loss.gradient(point.theta + r) - point.gradient))
            found[v] = seen[-1][1], r
    return found, len(seen) - 1
