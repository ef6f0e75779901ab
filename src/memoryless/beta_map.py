"""The effect of memory over a grid of (beta_1, beta_2), at the price of about one correction.

At a theta where F does not depend on the betas, all pairs share g, w = lr H F and the slope of the measure. First order is linear in the
age moments e_l, so the map is sum_l e_l <grad S, dphi/dm_l dg_l w>: one inner product per variable for the whole grid. The
resummed and the measured (shadow) maps need phi at every pair, but each variable depends on one beta, so only
their combination is formed pair by pair, in blocks of coordinates: memory does not grow with the number of pairs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from memoryless import history, kernel, measures
from memoryless.correction import first_order, resummed
from memoryless.history import History, Linearization
from memoryless.loss import Loss
from memoryless.measures import Differentiable, Value
from memoryless.method import Groups, Index, Method, Momentum, Optimizer, Part
from memoryless.shadow import Shadow

Kind = Literal["first", "resummed", "measured"]
Grid = list[list[Optimizer]]
Memory = Callable[[Momentum, Index], Tensor]

BETAS_1 = tuple(float(b) for b in np.round(np.append(np.linspace(0, 0.8, 9), 1 - np.geomspace(0.15, 0.01, 11)), 4))
BETAS_2 = tuple(float(b) for b in np.round(1 - np.geomspace(0.5, 0.0005, 20), 5))

BLOCK = 2**18
"""Elements formed at once, pairs times coordinates: about what the second-level cache holds."""


@dataclass(frozen=True)
class BetaMap:
    """Relative change per step that memory would cause, over (beta_1, beta_2).

    Attributes:
        betas_1: first axis.
        betas_2: second axis.
        kind: "first", "resummed" or "measured".
        measure: what changes.
        change: -lr <grad S, effect> / S, shape (len(betas_1), len(betas_2)).
    """

    betas_1: tuple[float, ...]
    betas_2: tuple[float, ...]
    kind: Kind
    measure: str
    change: np.ndarray


def beta_map(
    method: Optimizer,
    loss: Loss,
    betas_1: Sequence[float] = BETAS_1,
    betas_2: Sequence[float] = BETAS_2,
    *,
    kind: Kind = "resummed",
    measure: str | Differentiable = "gradient_1_norm",
    theta: Tensor | None = None,
    step: int | None = None,
) -> BetaMap:
    """Predict what memory does to a measure at theta, for every pair of betas.

    Args:
        method: a catalogue method with two betas; its other hyperparameters hold for the whole grid.
        loss: the loss.
        betas_1: first axis, each in [0, 1).
        betas_2: second axis, each in [0, 1).
        kind: "first" or "resummed"; a measured map needs a run, see `audit_run`.
        measure: name or function, as for `audit`.
        theta: shape (d,); default `loss.theta`.
        step: n, or None for the steady state.

    Returns:
        The map.

    Raises:
        ValueError: the method has no pair of betas, or an argument is out of range.

    Example:
        >>> import memoryless as ml
        >>> loss = ml.Loss.of(lambda theta: (theta**4).sum() / 4, torch.tensor([1.0, -2.0]))
        >>> found = ml.beta_map(ml.Adam(eps=1e-3), loss, (0.9,), (0.9, 0.99, 0.999), kind="first")
        >>> found.change.round(4)  # older memory in the denominator: anti-regularizes
        array([[-0.0001, 0.2983, 3.2729]])
    """
    if kind not in ("first", "resummed"):
        raise ValueError(f"kind must be 'first' or 'resummed', got {kind!r}; measured maps come from audit_run")
    theta = loss.theta if theta is None else theta.detach()
    linearization = loss.linearize(theta)
    values = measures.evaluate([measure], loss, theta, *linearization)
    (found,) = predicted_maps(method, linearization, theta, step, values, betas_1, betas_2, kinds=(kind,))
    return found


def predicted_maps(
    method: Optimizer,
    linearization: Linearization,
    theta: Tensor,
    step: int | None,
    values: Sequence[Value],
    betas_1: Sequence[float],
    betas_2: Sequence[float],
    kinds: Sequence[Kind] = ("first", "resummed"),
) -> list[BetaMap]:
    """Maps of each kind for each measure.

    Args:
        method: with a pair of betas.
        linearization: from `Loss.linearize` at theta.
        theta: shape (d,).
        step: n, or None for the steady state.
        values: the measures at theta.
        betas_1: first axis.
        betas_2: second axis.
        kinds: "first", "resummed".

    Returns:
        One map per kind and measure, measures varying fastest.

    Raises:
        ValueError: the method has no pair of betas.
    """
    grid = [[with_betas(method, b1, b2) for b2 in betas_2] for b1 in betas_1]
    slopes = torch.stack([value.gradient for value in values])
    shared = _share_update(grid, linearization[0], theta, step)
    past = history.full_batch(_oldest(grid), linearization, theta, step) if shared else None
    found = []
    for kind in kinds:
        if past is None:
            respond = first_order if kind == "first" else resummed
            inner = _pair_by_pair(
                grid, slopes, lambda m, f=respond: f(m, history.full_batch(m, linearization, theta, step), theta)
            )
        elif kind == "first":
            inner = _linear(grid, past, slopes, theta, step)
        else:
            inner = _from_memory(grid, past.F, slopes, theta, _drifting(past, theta, step))
        found += _maps(inner, method.lr, values, betas_1, betas_2, kind)
    return found


def measured_maps(
    method: Optimizer,
    shadow: Shadow,
    gradient: Tensor,
    theta: Tensor,
    values: Sequence[Value],
    betas_1: Sequence[float],
    betas_2: Sequence[float],
) -> list[BetaMap]:
    """What shadows of every pair measure at the live theta.

    Args:
        method: the live method, with a pair of betas.
        shadow: of `with_betas(method, b1, b2)` for all pairs, fed with the live run's gradients.
        gradient: full-batch gradient at theta, not fed yet.
        theta: shape (d,).
        values: the measures at theta.
        betas_1: first axis.
        betas_2: second axis.

    Returns:
        One map per measure.
    """
    grid = [[with_betas(method, b1, b2) for b2 in betas_2] for b1 in betas_1]
    slopes = torch.stack([value.gradient for value in values])
    if _share_update(grid, gradient, theta, shadow.n):
        F = history.frozen(method, gradient, theta, shadow.n)
        inner = _from_memory(grid, F, slopes, theta, lambda v, index: shadow.memory(v, gradient, theta, index))
    else:
        inner = _pair_by_pair(grid, slopes, lambda m: shadow.effect(m, gradient, theta))
    return _maps(inner, method.lr, values, betas_1, betas_2, "measured")


def with_betas(method: Optimizer, beta_1: float, beta_2: float) -> Optimizer:
    """The same method (each group of it) with other betas.

    Args:
        method: from the catalogue, or `Groups` of such.
        beta_1: of the first momentum.
        beta_2: of the second.

    Returns:
        The variant.

    Raises:
        ValueError: the method has no pair of betas.
    """
    if isinstance(method, Method):
        if "betas" not in method.hyper:
            raise ValueError(f"a beta map needs a method with betas=(beta_1, beta_2), got {method.name}")
        return method.with_hyper(betas=(beta_1, beta_2))
    changed = (part._replace(method=with_betas(part.method, beta_1, beta_2)) for part in method.parts)
    return Groups(tuple(part for part in changed if isinstance(part.method, Method)), method.lr)


def _oldest(grid: Grid) -> Optimizer:
    """The corner whose every variable has a memory, so that its history holds the drift that all pairs share."""
    return grid[-1][-1]


def _share_update(grid: Grid, gradient: Tensor, theta: Tensor, step: int | None) -> bool:
    """Whether F[s](theta) is one vector for all pairs and all past s, and phi one elementwise function of the m_l."""
    first, last = grid[0][0], grid[-1][-1]
    for a, b in zip(first.parts, last.parts, strict=True):
        if not (a.method.elementwise and b.method.elementwise):
            return False
        some = [v.g(gradient[a.index][:64], theta[a.index][:64]) for v in a.method.variables]
        if not torch.equal(a.method.readout(some, theta[a.index][:64]), b.method.readout(some, theta[b.index][:64])):
            return False
    variables = {v for row in grid for method in row for part in method.parts for v in part.method.variables}
    if step is not None and not all(history.settled((v,), step) for v in variables):
        return False
    totals = [[kernel.total(v, step) for part in method.parts for v in part.method.variables] for row in grid for method in row]
    return bool(np.ptp(totals, axis=0).max() < 1e-12)


def _pair_by_pair(grid: Grid, slopes: Tensor, effect: Callable[[Optimizer], Tensor]) -> np.ndarray:
    """<grad S, effect> for every pair, one at a time, shape (P1, P2, measures)."""
    return np.array([[(slopes @ effect(method)).tolist() for method in row] for row in grid])


def _linear(grid: Grid, past: History, slopes: Tensor, theta: Tensor, step: int | None) -> np.ndarray:
    """First order: sum_l e_l <grad S, u_l>, u_l the response of phi to a unit age moment of variable l."""
    total = np.zeros((len(grid), len(grid[0]), len(slopes)))
    for j, part in enumerate(_oldest(grid).parts):
        for l, variable in enumerate(part.method.variables):
            if not variable.has_memory:
                continue
            alone = first_order(_oldest(grid), past.only(j, l), theta)
            unit = (slopes @ alone).cpu().numpy() / kernel.age_moment(variable, step)
            moments = [[kernel.age_moment(m.parts[j].method.variables[l], step) for m in row] for row in grid]
            total += np.array(moments)[:, :, None] * unit
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


def _from_memory(grid: Grid, F: Tensor, slopes: Tensor, theta: Tensor, memory: Memory) -> np.ndarray:
    """<grad S, phi(m) - F> for every pair, shape (P1, P2, measures), in blocks of coordinates."""
    rows, columns = len(grid), len(grid[0])
    total = slopes.new_zeros((rows, columns, len(slopes)))
    for j, part in enumerate(grid[0][0].parts):
        methods = [[method.parts[j].method for method in row] for row in grid]
        size = F[part.index].numel()
        block = max(1, BLOCK // (rows * columns))
        for start in range(0, size, block):
            index = _within(part, slice(start, min(start + block, size)))
            m = [
                _spread([[method.variables[l] for method in row] for row in methods], lambda v, i=index: memory(v, i))
                for l in range(len(part.method.variables))
            ]
            effect = part.scale * part.method.readout(m, theta[index]) - F[index]
            total += effect.expand(rows, columns, -1) @ slopes[:, index].T
    return total.cpu().numpy()


def _spread(cells: list[list[Momentum]], memory: Callable[[Momentum], Tensor]) -> Tensor:
    """The memory of a variable in every pair, of size 1 along an axis on which the variable does not depend."""
    rows = cells[:1] if all(row == cells[0] for row in cells) else cells
    rows = [row[:1] for row in rows] if all(v == row[0] for row in rows for v in row) else rows
    return torch.stack([torch.stack([memory(v) for v in row]) for row in rows])


def _within(part: Part, block: slice) -> Index:
    """Coordinates of theta of a block of a part's coordinates."""
    if isinstance(part.index, Tensor):
        return part.index[block]
    start = part.index.start or 0
    return slice(start + block.start, start + block.stop)


def _maps(
    inner: np.ndarray,
    lr: float,
    values: Sequence[Value],
    betas_1: Sequence[float],
    betas_2: Sequence[float],
    kind: Kind,
) -> list[BetaMap]:
    axes = tuple(betas_1), tuple(betas_2)
    return [BetaMap(*axes, kind, v.name, -lr * inner[:, :, k] / v.value) for k, v in enumerate(values)]
