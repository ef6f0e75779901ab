"""The effect of memory over a grid of (beta_1, beta_2), at the price of about one correction.

Where F does not depend on the betas, all pairs share g, w = lr H F and the slope of the measure. First order is linear in the
age moments e_l, so the map is sum_l e_l <grad S, dphi/dm_l dg_l w>: one inner product per variable for the whole grid. The
resummed and the measured (shadow) maps need phi at every pair; where it is affine in the variables of the first beta (Adam's
numerator) the sum over coordinates is a matrix product, elsewhere phi is formed pair by pair. Both go by blocks of
coordinates: memory does not grow with the number of pairs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from memoryless.audits.shadow import Shadow
from memoryless.corrections import history
from memoryless.corrections.averages import settled
from memoryless.corrections.correction import first_order, resummed
from memoryless.corrections.history import History, Linearization
from memoryless.errors import BadInput
from memoryless.loss import measures
from memoryless.loss.loss import Loss
from memoryless.loss.measures import Differentiable, Value
from memoryless.methods import kernel
from memoryless.methods.method import AnyMethod, Groups, Index, Method, Momentum, Part

Kind = Literal["first", "resummed", "measured"]
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
    method: AnyMethod,
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
        BadInput: the method has no pair of betas, or an argument is out of range.

    Example:
        >>> import memoryless as ml
        >>> loss = ml.Loss.of(lambda theta: (theta**4).sum() / 4, torch.tensor([1.0, -2.0]))
        >>> found = ml.beta_map(ml.Adam(eps=1e-3), loss, (0.9,), (0.9, 0.99, 0.999), kind="first")
        >>> (1000 * found.change).round(2)  # older memory in the denominator: anti-regularizes
        array([[-0.  ,  0.27,  2.97]])
    """
    if kind not in ("first", "resummed"):
        raise BadInput(f"kind must be 'first' or 'resummed', got {kind!r}; measured maps come from audit_run")
    theta = loss.theta if theta is None else theta.detach()
    grid = _grid(method, tuple(betas_1), tuple(betas_2))
    linearization = loss.linearize(theta)
    values = measures.evaluate([measure], loss, theta, *linearization)
    (found,) = predicted_maps(grid, linearization, theta, step, values, kinds=(kind,))
    return found


class Grid:
    """A method at every pair of betas; variants are built when asked for, their variables once.

    Args:
        method: from the catalogue, with a pair of betas, or `Groups` of such.
        betas_1: first axis, increasing.
        betas_2: second axis, increasing.

    Raises:
        BadInput: the method has no pair of betas, or an axis is empty, not increasing or out of range.
    """

    def __init__(self, method: AnyMethod, betas_1: Sequence[float], betas_2: Sequence[float]):
        for axis in (betas_1, betas_2):
            if not len(axis) or any(b <= a for a, b in pairwise(axis)):
                raise BadInput(f"the betas of a map must increase, got {tuple(axis)}")
        self.method, self.betas_1, self.betas_2 = method, tuple(betas_1), tuple(betas_2)
        self.shape = len(betas_1), len(betas_2)
        self._cells: dict[tuple[int, int], AnyMethod] = {}
        self._axes: dict[tuple[int, int], tuple[list[Momentum], np.ndarray]] = {}

    def cell(self, i: int, j: int) -> AnyMethod:
        """The method at (betas_1[i], betas_2[j])."""
        if (i, j) not in self._cells:
            self._cells[i, j] = with_betas(self.method, self.betas_1[i], self.betas_2[j])
        return self._cells[i, j]

    @property
    def oldest(self) -> AnyMethod:
        """The corner of the largest betas, whose every variable remembers."""
        return self.cell(self.shape[0] - 1, self.shape[1] - 1)

    def spanning(self) -> list[AnyMethod]:
        """Methods of the grid in which every beta of every variable occurs."""
        crossed = any(
            self.variables(p, l)[1].size == self.shape[0] * self.shape[1] > 1
            for p, part in enumerate(self.oldest.parts)
            for l in range(len(part.method.variables))
        )
        rows, columns = range(self.shape[0]), range(self.shape[1])
        return [self.cell(i, j) for i in rows for j in columns if crossed or i == 0 or j == 0]

    def variables(self, p: int, l: int) -> tuple[list[Momentum], np.ndarray]:
        """The distinct variables l of part p, and which of them each pair has.

        Args:
            p: part.
            l: variable.

        Returns:
            The variables, and their numbers in an array of the grid's shape, of size 1 along an axis that does not matter.
        """
        if (p, l) not in self._axes:
            rows, columns = range(self.shape[0]), range(self.shape[1])

            def at(i: int, j: int) -> Momentum:
                return self.cell(i, j).parts[p].method.variables[l]

            # The axes increase: a variable that is the same at both ends does not depend on that beta.
            if at(0, 0) == at(0, columns[-1]):
                columns = columns[:1]
            if at(0, 0) == at(rows[-1], 0):
                rows = rows[:1]
            found = [at(i, j) for i in rows for j in columns]
            self._axes[p, l] = found, np.arange(len(found)).reshape(len(rows), len(columns))
        return self._axes[p, l]


@lru_cache(maxsize=8)
def _grid(method: AnyMethod, betas_1: tuple[float, ...], betas_2: tuple[float, ...]) -> Grid:
    """Its variants are built once for all the points at which the same method is mapped."""
    return Grid(method, betas_1, betas_2)


def predicted_maps(
    grid: Grid,
    linearization: Linearization,
    theta: Tensor,
    step: int | None,
    values: Sequence[Value],
    kinds: Sequence[Kind] = ("first", "resummed"),
) -> list[BetaMap]:
    """Maps of each kind for each measure.

    Args:
        grid: the pairs.
        linearization: from `Loss.linearize` at theta.
        theta: shape (d,).
        step: n, or None for the steady state.
        values: the measures at theta.
        kinds: "first", "resummed".

    Returns:
        One map per kind and measure, measures varying fastest.
    """
    slopes = torch.stack([value.gradient for value in values])
    shared = _share_update(grid, linearization[0], theta, step)
    past = history.full_batch(grid.oldest, linearization, theta, step) if shared else None
    found = []
    for kind in kinds:
        if past is not None and not past.products:
            inner = np.zeros((*grid.shape, len(values)))  # nothing is remembered yet
        elif past is None:
            respond = first_order if kind == "first" else resummed
            inner = _pair_by_pair(
                grid, slopes, lambda m, f=respond: f(m, history.full_batch(m, linearization, theta, step), theta)
            )
        elif kind == "first":
            inner = _linear(grid, past, slopes, theta, step)
        else:
            inner = _from_memory(grid, past.F, slopes, theta, _drifting(past, theta, step))
        found += _maps(inner, grid, values, kind)
    return found


def measured_maps(grid: Grid, shadow: Shadow, gradient: Tensor, theta: Tensor, values: Sequence[Value]) -> list[BetaMap]:
    """What shadows of every pair measure at the live theta.

    Args:
        grid: the pairs.
        shadow: of all the grid's methods, fed with the live run's gradients.
        gradient: full-batch gradient at theta, not fed yet.
        theta: shape (d,).
        values: the measures at theta.

    Returns:
        One map per measure.
    """
    slopes = torch.stack([value.gradient for value in values])
    if _share_update(grid, gradient, theta, shadow.n):
        F = history.frozen(grid.oldest, gradient, theta, shadow.n)
        inner = _from_memory(grid, F, slopes, theta, lambda v, index: shadow.memory(v, gradient, theta, index))
    else:
        inner = _pair_by_pair(grid, slopes, lambda m: shadow.effect(m, gradient, theta))
    return _maps(inner, grid, values, "measured")


def inner_products(grid: Grid, slopes: Tensor, theta: Tensor, memory: Memory) -> np.ndarray:
    """<grad S, phi(m)> for every pair and measure, of any memory.

    Args:
        grid: the pairs.
        slopes: grad S of each measure, shape (measures, d).
        theta: shape (d,).
        memory: (variable, coordinates) -> m_l.

    Returns:
        Shape (*grid.shape, measures).
    """
    if all(part.method.elementwise for part in grid.oldest.parts):
        return _from_memory(grid, torch.zeros_like(theta), slopes, theta, memory)
    return _pair_by_pair(grid, slopes, lambda method: update_of(method, theta, memory))


def update_of(method: AnyMethod, theta: Tensor, memory: Memory) -> Tensor:
    """F from any memory, shape (d,).

    Args:
        method: in momentum form.
        theta: shape (d,).
        memory: (variable, coordinates) -> m_l.
    """
    F = torch.zeros_like(theta)
    for part in method.parts:
        m = [memory(v, part.index) for v in part.method.variables]
        F[part.index] = part.scale * part.method.readout(m, theta[part.index])
    return F


def with_betas(method: AnyMethod, beta_1: float, beta_2: float) -> AnyMethod:
    """The same method (each group of it) with other betas.

    Args:
        method: from the catalogue, or `Groups` of such.
        beta_1: of the first momentum.
        beta_2: of the second.

    Returns:
        The variant.

    Raises:
        BadInput: the method has no pair of betas.
    """
    if isinstance(method, Method):
        if "betas" not in method.hyper:
            raise BadInput(f"a beta map needs a method with betas=(beta_1, beta_2), got {method.name}")
        return method.with_hyper(betas=(beta_1, beta_2))
    parts = []
    for part in method.parts:
        changed = with_betas(part.method, beta_1, beta_2)
        assert isinstance(changed, Method)
        parts.append(replace(part, method=changed))
    return Groups(tuple(parts), method.lr)


def _share_update(grid: Grid, gradient: Tensor, theta: Tensor, step: int | None) -> bool:
    """Whether F[s](theta) is one vector for all pairs and all past s, and phi one elementwise function of the m_l.

    Where the frozen weights differ, vectors are compared at the corners of the grid, on some coordinates (Lion's rho1 cancels).
    """
    for p, part in enumerate(grid.cell(0, 0).parts):
        plans = [grid.variables(p, l)[0] for l in range(len(part.method.variables))]
        if not part.method.elementwise:
            return False
        if step is not None and not all(settled((v,), step) for variables in plans for v in variables):
            return False
        g, point = gradient[part.index][:64], theta[part.index][:64]
        same = [v.g(g, point) for v in part.method.variables]
        if not torch.equal(part.method.readout(same, point), grid.oldest.parts[p].method.readout(same, point)):
            return False
        if all(np.ptp([kernel.total(v, step) for v in variables]) < 1e-12 for variables in plans):
            continue
        corners = [grid.cell(i, j).parts[p].method for i in (0, grid.shape[0] - 1) for j in (0, grid.shape[1] - 1)]
        first, *others = (history.frozen(method, g, point, step) for method in corners)
        if not all(torch.allclose(first, other, rtol=1e3 * torch.finfo(g.dtype).eps) for other in others):
            return False
    return True


def _pair_by_pair(grid: Grid, slopes: Tensor, effect: Callable[[AnyMethod], Tensor]) -> np.ndarray:
    """<grad S, effect> for every pair, one at a time, shape (*grid.shape, measures)."""
    rows, columns = grid.shape
    return np.array([[(slopes @ effect(grid.cell(i, j))).tolist() for j in range(columns)] for i in range(rows)])


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


def _from_memory(grid: Grid, F: Tensor, slopes: Tensor, theta: Tensor, memory: Memory) -> np.ndarray:
    """<grad S, phi(m) - F> for every pair, shape (*grid.shape, measures), in blocks of coordinates."""
    total = slopes.new_zeros((*grid.shape, len(slopes)))
    for p, part in enumerate(grid.oldest.parts):
        plans = [grid.variables(p, l) for l in range(len(part.method.variables))]
        rows = [l for l, (_, number) in enumerate(plans) if number.shape[0] > 1]
        affine = all(plans[l][1].shape[1] == 1 for l in rows) and _affine(part.method, rows)
        size = F[part.index].numel()
        block = max(1, BLOCK // (sum(grid.shape) if affine else grid.shape[0] * grid.shape[1]))
        for start in range(0, size, block):
            index = _within(part, slice(start, min(start + block, size)))
            m = [torch.stack([memory(v, index) for v in variables])[number] for variables, number in plans]
            inner = (_matrix_product if affine else _broadcast)(part.method, m, rows, slopes[:, index], theta[index])
            total += part.scale * inner - slopes[:, index] @ F[index]
    return total.cpu().numpy()


def _affine(method: Method, rows: Sequence[int]) -> bool:
    """Whether phi is affine in the variables `rows` together, tried at random points."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, len(method.variables), 64, generator=generator, dtype=torch.float64)
    theta = torch.randn(64, generator=generator, dtype=torch.float64)

    def phi(x: Callable[[int], Tensor]) -> Tensor:
        return method.readout([x(l) if l in rows else a[l].abs() for l in range(len(method.variables))], theta)

    sums = phi(lambda l: a[l] + b[l]) + phi(lambda l: torch.zeros_like(a[l]))
    return torch.allclose(sums, phi(lambda l: a[l]) + phi(lambda l: b[l]), rtol=1e-10)


def _broadcast(method: Method, m: list[Tensor], rows: Sequence[int], slopes: Tensor, theta: Tensor) -> Tensor:
    """<grad S, phi(m)> from phi at every pair."""
    return method.readout(m, theta) @ slopes.T


def _matrix_product(method: Method, m: list[Tensor], rows: Sequence[int], slopes: Tensor, theta: Tensor) -> Tensor:
    """The same where phi = offset + sum_{l in rows} coefficient_l m_l, both functions of the second beta alone."""

    def phi(one: int | None) -> Tensor:
        return method.readout([torch.full_like(x[:1], float(l == one)) if l in rows else x for l, x in enumerate(m)], theta)

    offset = phi(None)
    inner = offset @ slopes.T
    for l in rows:
        coefficient = (phi(l) - offset)[0]
        inner = inner + torch.stack([(m[l][:, 0] * slope) @ coefficient.T for slope in slopes], dim=-1)
    return inner


def _within(part: Part, block: slice) -> Index:
    """Coordinates of theta of a block of a part's coordinates."""
    if isinstance(part.index, Tensor):
        return part.index[block]
    start = part.index.start or 0
    return slice(start + block.start, start + block.stop)


def _maps(inner: np.ndarray, grid: Grid, values: Sequence[Value], kind: Kind) -> list[BetaMap]:
    return [
        BetaMap(grid.betas_1, grid.betas_2, kind, v.name, -grid.method.lr * inner[:, :, k] / v.value)
        for k, v in enumerate(values)
    ]
