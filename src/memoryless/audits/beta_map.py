"""The effect of memory over a grid of (beta_1, beta_2), at the price of about one correction.

Where F does not depend on the betas, all pairs share g, w = lr H F and the slope of the measure. First order is linear in the
age moments e_l, so the map is sum_l e_l <grad S, dphi/dm_l dg_l w>: one inner product per variable for the whole grid. The
resummed and the measured (shadow) maps need phi at every pair (`audits.grid`).

So a map shows slopes. Beside them stands what happens (`audits.effect`) at the method's own pair and at the corners.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from memoryless.audits.effect import Changes
from memoryless.audits.grid import BETAS_1, BETAS_2, Grid, Memory, from_memory, pair_by_pair, share_update
from memoryless.audits.shadow import Shadow
from memoryless.corrections import history
from memoryless.corrections.arguments import valid_arguments
from memoryless.corrections.expansion import expansion, first_order
from memoryless.corrections.history import History
from memoryless.errors import BadInput
from memoryless.loss.loss import Loss
from memoryless.loss.measures import Differentiable, Value, evaluate
from memoryless.loss.point import Point
from memoryless.methods import kernel
from memoryless.methods.method import AnyOptimizer, Index, Momentum
from memoryless.render.numbers import plain
from memoryless.render.result import Result

Order = Literal["first", "resummed", "measured"]


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
class BetaMap(Result):
    """Relative change per step that memory would cause, over (beta_1, beta_2), to first order in lr.

    Attributes:
        betas_1: first axis.
        betas_2: second axis.
        order: "first", "resummed" or "measured": of the effect.
        changes: of each measure, the slope -lr <grad S, effect> / S, shape (len(betas_1), len(betas_2)).
        checks: at the method's own pair and the corners; none where they were not asked for.
    """

    betas_1: tuple[float, ...]
    betas_2: tuple[float, ...]
    order: Order
    changes: dict[str, np.ndarray]
    checks: tuple[Check, ...] = ()

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
        return plain(axes | {"order": self.order, "changes": self.changes, "checks": self.checks})


@valid_arguments
def beta_map(
    method: AnyOptimizer,
    loss: Loss,
    betas_1: Sequence[float] = BETAS_1,
    betas_2: Sequence[float] = BETAS_2,
    theta: Tensor | None = None,
    *,
    step: int | None = None,
    order: Literal["first", "resummed"] = "resummed",
    measures: Sequence[str | Differentiable] = ("gradient_1_norm",),
    check: bool = True,
) -> BetaMap:
    """Predict what memory does to some measures at theta, for every pair of betas.

    Args:
        method: a catalogue method with two betas; its other hyperparameters hold for the whole grid.
        loss: L; full batch.
        betas_1: first axis, each in [0, 1).
        betas_2: second axis, each in [0, 1).
        theta: shape (d,); default `loss.theta`.
        step: n, or None for the steady state.
        order: "first" or "resummed"; `audit_run` gives measured maps, which take a run.
        measures: names in `loss.measures.MEASURES`, or differentiable functions theta -> scalar.
        check: whether to say what happens at the method's own pair and the corners; ten values of a measure at most.

    Returns:
        The map; `.change` where there is one measure.

    Raises:
        BadInput: the method has no pair of betas, or an argument is out of range.

    Example:
        >>> import memoryless as ml
        >>> loss = ml.Loss.of(lambda theta: (theta**4).sum() / 4, torch.tensor([1.0, -2.0]))
        >>> found = ml.beta_map(ml.Adam(eps=1e-3), loss, (0.9,), (0.9, 0.99, 0.999), order="first")
        >>> (1000 * found.change).round(2)  # older memory in the denominator: anti-regularizes
        array([[-0.  ,  0.27,  2.97]])
    """
    if order not in ("first", "resummed"):
        raise BadInput(f"order must be 'first' or 'resummed', got {order!r}; measured maps come from audit_run")
    grid = _grid(method, tuple(betas_1), tuple(betas_2))
    point = Point(loss, theta)
    values = evaluate(measures, point)
    (found,) = predicted_maps(grid, point, step, values, orders=(order,))
    return checked(found, grid, values, point, lambda each: predicted_effect(each, point, step, order)) if check else found


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
    effect: Callable[[AnyOptimizer], tuple[Tensor, Tensor]],
) -> BetaMap:
    """The map with what happens in one step at the method's own pair and the corners, of measures that need no product.

    Args:
        found: without checks.
        grid: the pairs.
        values: the measures at the point.
        point: of the loss.
        effect: method -> F and the effect that the map is of; asked of `grid.method` and of its cells.
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
        F, E = effect(method)
        slopes = {value.name: value.slope(E, grid.method.lr) for value in quick}
        happens = dict(zip((value.name for value in quick), changes(F, E), strict=True))
        checks.append(Check(betas, slopes, happens))
    return replace(found, checks=tuple(checks))


@lru_cache(maxsize=8)
def _grid(method: AnyOptimizer, betas_1: tuple[float, ...], betas_2: tuple[float, ...]) -> Grid:
    """Its variants are built once for all the points at which the same method is mapped."""
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
    if share_update(grid, gradient, theta, shadow.n):
        F = history.frozen(grid.oldest, gradient, theta, shadow.n)
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
