"""The effect of memory over a grid of (beta_1, beta_2), at the price of about one correction.

Where F does not depend on the betas, all pairs share g, w = lr H F and the slope of the measure. First order is linear in the
age moments e_l, so the map is sum_l e_l <grad S, dphi/dm_l dg_l w>: one inner product per variable for the whole grid. The
resummed, the path's and the measured (shadow) maps need phi at every pair (`audits.grid`). One path serves all pairs that share
F: the method's own, as far back as the oldest of them remembers.

So a map shows slopes. Beside them stands what happens (`audits.effect`) at the method's own pair and at the corners.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from memoryless.audits.deviation import settles, usual
from memoryless.audits.effect import Changes
from memoryless.audits.grid import Grid, from_memory, pair_by_pair, share_update
from memoryless.audits.shadow import Shadow
from memoryless.corrections import history
from memoryless.corrections.expansion import expansion, first_order
from memoryless.corrections.history import History, Memory
from memoryless.corrections.path import GROWTH
from memoryless.errors import BadInput
from memoryless.loss.measures import Value
from memoryless.loss.point import Point
from memoryless.methods import kernel
from memoryless.methods.method import AnyOptimizer, Index, Momentum
from memoryless.render.numbers import plain
from memoryless.render.result import Result

Order = Literal["first", "resummed", "path", "state", "measured"]


@dataclass(frozen=True)
class Check:
    """A pair of betas where the slopes stand beside what happens, for the measures that take no more than a gradient.

    Attributes:
        betas: the pair.
        slopes: by measure, as in the map.
        changes: by measure, (S(theta - lr (F + effect)) - S(theta - lr F)) / S(theta).
    """

    betas: tuple[float, float]
    slopes: dict[str, float]
    changes: dict[str, float]


@dataclass(frozen=True)
class Guess:
    """What a live optimizer's buffers tell of another method (`audits.state_map`).

    Attributes:
        method: as text, its lr that of the live one.
        error: of its effect, relative; infinite where the buffers tell nothing of it.
        changes: slope of each measure; None where the error is too large.
        intervals: half the width of one of 90 % around each.
    """

    method: str
    error: float
    changes: dict[str, float] | None
    intervals: dict[str, float] | None


@dataclass(frozen=True)
class BetaMap(Result):
    """Relative change per step that memory would cause, over (beta_1, beta_2), to first order in lr.

    Attributes:
        betas_1: first axis.
        betas_2: second axis.
        order: "first", "resummed", "path", "state" or "measured": of the effect.
        changes: of each measure, the slope -lr <grad S, effect> / S, shape (len(betas_1), len(betas_2)); NaN at pairs that a
            live optimizer's buffers tell nothing of.
        checks: at the method's own pair and the corners; none where they were not asked for.
        growth: of the method's own path (`corrections.path`), for order "path".
        deviation: for order "measured", by how much each pair's own last updates leave the live path (`audits.deviation`), same
            shape; None where that is not known.
        error: for order "state", by how much the effect at each pair may be wrong, |error| / |effect|, same shape.
        intervals: for order "state", of each measure half the width of a 90 % interval around the change, same shape.
        others: for order "state", what is known of methods that are not on the grid.
        notes: what a reader must know besides.
        anchor: for a run with anchors, off which of the runs each pair is read, same shape: 0 is the live one.
        usual: for a run with anchors, of each measure the size of the usual change on the run that a pair is read off.
    """

    betas_1: tuple[float, ...]
    betas_2: tuple[float, ...]
    order: Order
    changes: dict[str, np.ndarray]
    checks: tuple[Check, ...] = ()
    growth: float | None = None
    deviation: np.ndarray | None = None
    anchor: np.ndarray | None = None
    usual: dict[str, np.ndarray] | None = None
    error: np.ndarray | None = None
    intervals: dict[str, np.ndarray] | None = None
    others: tuple[Guess, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def settled(self) -> np.ndarray | None:
        """Where the live run speaks for a pair in every measure: booleans, shape (betas_1, betas_2); None where not known."""
        settled = [each for each in map(self.settled_for, self.changes) if each is not None]
        return np.all(settled, axis=0) if settled else None

    def settled_for(self, measure: str) -> np.ndarray | None:
        """Where the live run speaks for a pair's change of a measure (`audits.deviation`).

        Args:
            measure: one of `changes`.

        Returns:
            Booleans, shape (len(betas_1), len(betas_2)); None where that is not known.
        """
        if self.deviation is None:
            return None
        change = self.changes[measure]
        return settles(self.deviation, change, usual(change) if self.usual is None else self.usual[measure])

    @property
    def trusted(self) -> bool | None:
        """Of a path's map, whether its gradient has grown by so little that the past may have been such; else None."""
        return None if self.growth is None else self.growth <= GROWTH

    def misleads(self, measure: str) -> np.ndarray:
        """Where the slopes are not to be believed: the checked pair nearest by has a change of the other sign.

        Args:
            measure: one of `changes`.

        Returns:
            Booleans, shape (len(betas_1), len(betas_2)); near is meant on the axes -log(1 - beta) of a picture.
        """
        known = [check for check in self.checks if measure in check.changes]
        if not known:
            return np.zeros((len(self.betas_1), len(self.betas_2)), dtype=bool)
        wrong = np.array([check.slopes[measure] * check.changes[measure] < 0 for check in known])
        at = [np.log1p(-np.array(axis)) for axis in zip(*(check.betas for check in known), strict=True)]
        rows, columns = (np.log1p(-np.array(axis)) for axis in (self.betas_1, self.betas_2))
        far = (rows[:, None, None] - at[0]) ** 2 + (columns[None, :, None] - at[1]) ** 2
        return wrong[far.argmin(axis=-1)]

    @property
    def change(self) -> np.ndarray:
        """The map of the only measure, shape (betas_1, betas_2).

        Raises:
            BadInput: there are several measures.
        """
        if len(self.changes) > 1:
            raise BadInput(f"the map has several measures, {', '.join(self.changes)}; pick one of map.changes")
        return next(iter(self.changes.values()))

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and text."""
        axes = {"betas_1": self.betas_1, "betas_2": self.betas_2}
        known = {} if self.deviation is None else {"deviation": self.deviation, "settled": self.settled}
        known |= {} if self.anchor is None else {"anchor": self.anchor}
        if self.error is not None:
            known |= {"error": self.error, "intervals": self.intervals, "others": self.others, "notes": self.notes}
        growth = {} if self.growth is None else {"growth": self.growth, "trusted": self.trusted}
        return plain(axes | {"order": self.order, "changes": self.changes, "checks": self.checks} | growth | known)


def predicted_effect(method: AnyOptimizer, point: Point, step: int | None, order: Order) -> tuple[Tensor, Tensor]:
    """F and the predicted effect of memory, each of shape (d,).

    Args:
        method: to expand.
        point: of the loss.
        step: n, or None for the steady state.
        order: "first" or "resummed".
    """
    found = expansion(method, point, step)
    return found.F, (found.first() if order == "first" else found.resummed()).value


def checked(
    found: BetaMap,
    grid: Grid,
    values: Sequence[Value],
    point: Point,
    effect: Callable[[AnyOptimizer], tuple[Tensor, Tensor] | None],
) -> BetaMap:
    """The map with what happens in one step at the method's own pair and the corners, of measures that need no product.

    Args:
        found: without checks.
        grid: the pairs.
        values: the measures at the point.
        point: of the loss.
        effect: method -> F and the effect that the map is of, None where it is not known; asked of `grid.method` and its cells.
    """
    quick = [value for value in values if not value.products]
    if not quick:
        return found
    changes = Changes(quick, point, grid.method.lr)
    ends = {(i, j): grid.cell(i, j) for i in (0, grid.shape[0] - 1) for j in (0, grid.shape[1] - 1)}
    pairs = {(grid.betas_1[i], grid.betas_2[j]): method for (i, j), method in ends.items()}
    own = grid.method.parts[0].method.hyper["betas"]
    checks = []
    for betas, method in ({own: grid.method} | {betas: method for betas, method in pairs.items() if betas != own}).items():
        if (told := effect(method)) is None:
            continue
        F, E = told
        slopes = {value.name: value.slope(E, grid.method.lr) for value in quick}
        happens = dict(zip((value.name for value in quick), changes(F, E), strict=True))
        checks.append(Check(betas, slopes, happens))
    return replace(found, checks=tuple(checks))


@lru_cache(maxsize=8)
def grid_of(method: AnyOptimizer, betas_1: tuple[float, ...], betas_2: tuple[float, ...]) -> Grid:
    """A method at all pairs of betas; its variants are built once for all the points at which the same method is mapped."""
    return Grid(method, betas_1, betas_2)


def predicted_maps(
    grid: Grid, point: Point, step: int | None, values: Sequence[Value], orders: Sequence[Order] = ("first", "resummed")
) -> list[BetaMap]:
    """Maps of the predicted effect, from what is known at theta already.

    Args:
        grid: a method at all pairs of betas.
        point: the loss at theta.
        step: n, or None for the steady state.
        values: the measures at theta.
        orders: which predictions: "first", "resummed".

    Returns:
        One map per order.
    """
    slopes = torch.stack([value.gradient for value in values])
    shared = share_update(grid, point.gradient, point.theta, step)
    past = history.full_batch(grid.oldest, point, step) if shared else None
    found = []
    for order in orders:
        if past is not None and not past.products:
            inner = np.zeros((*grid.shape, len(values)))  # nothing is remembered yet
        elif past is None:

            def effect(method: AnyOptimizer, order: Order = order) -> Tensor:
                each = expansion(method, point, step)
                return (each.first() if order == "first" else each.resummed()).value

            inner = pair_by_pair(grid, slopes, effect)
        elif order == "first":
            inner = _linear(grid, past, slopes, point.theta, step)
        else:
            inner = from_memory(grid, past.F, slopes, point.theta, _drifting(past, point.theta, step))
        found.append(map_of(inner, grid, values, order))
    return found


def measured_map(grid: Grid, shadow: Shadow, gradient: Tensor, theta: Tensor, values: Sequence[Value]) -> BetaMap:
    """What shadows of every pair measure at the live theta.

    Args:
        grid: the pairs.
        shadow: of all the grid's methods, fed with the live run's gradients.
        gradient: full-batch gradient at theta, not fed yet.
        theta: shape (d,).
        values: the measures at theta.
    """
    slopes = torch.stack([value.gradient for value in values])
    if share_update(grid, gradient, theta, shadow.step):
        F = history.frozen(grid.oldest, gradient, theta, shadow.step)
        inner = from_memory(grid, F, slopes, theta, lambda v, index: shadow.memory(v, gradient, theta, index))
    else:
        inner = pair_by_pair(grid, slopes, lambda m: shadow.effect(m, gradient, theta))
    return map_of(inner, grid, values, "measured")


def _linear(grid: Grid, past: History, slopes: Tensor, theta: Tensor, step: int | None) -> np.ndarray:
    """First order: sum_l e_l <grad S, u_l>, u_l the response of phi to a unit age moment of variable l."""
    total = np.zeros((*grid.shape, len(slopes)))
    for p, part in enumerate(grid.oldest.parts):
        for l, variable in enumerate(part.method.variables):
            if not variable.has_memory:
                continue
            alone = first_order(grid.oldest, past.only(p, l), theta)
            unit = (slopes @ alone).cpu().numpy() / kernel.age_moment(variable, step)
            variables, number = grid.variables(p, l)
            moments = np.array([kernel.age_moment(v, step) for v in variables])
            total += moments[number][:, :, None] * unit
    return total


def _drifting(past: History, theta: Tensor, step: int | None) -> Memory:
    """The memory of any variable of a gradient that drifts as `past` says."""
    lag = next(lag for lags in past.lags for per_batch in lags for lag in per_batch if lag.drift is not None)

    def memory(variable: Momentum, index: Index) -> Tensor:
        assert lag.drift is not None
        assert lag.back is not None
        g, point, drift, back = (x[index] for x in (lag.gradient, theta, lag.drift, lag.back))
        ages, weights = kernel.gauss(variable, step)
        terms = (w * variable.g(g + age * drift, point + age * back) for age, w in zip(ages.tolist(), weights, strict=True))
        return sum(terms, torch.zeros_like(point))

    return memory


def map_of(inner: np.ndarray, grid: Grid, values: Sequence[Value], order: Order) -> BetaMap:
    """The map of an effect E from its inner products; 0 for a measure that is 0.

    Args:
        inner: <grad S, E>, over (betas_1, betas_2, measures).
        grid: the pairs.
        values: the measures.
        order: of the effect.
    """
    changes = {v.name: -grid.method.lr * inner[:, :, k] / (abs(v.value) or np.inf) for k, v in enumerate(values)}
    return BetaMap(grid.betas_1, grid.betas_2, order, changes)
