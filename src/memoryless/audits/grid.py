"""A method at every pair of betas, and sums over theta for all pairs at once.

Where phi is affine in the variables of the first beta (Adam's numerator) the sum over coordinates <grad S, phi(m)> is a matrix
product, elsewhere phi is formed pair by pair. Both go by blocks of coordinates: memory does not grow with the number of pairs.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import forward_ad

from memoryless.corrections import history
from memoryless.corrections.averages import settled
from memoryless.errors import BadInput
from memoryless.methods import kernel
from memoryless.methods.forward_mode import forward_mode
from memoryless.methods.method import AnyOptimizer, Index, Method, Momentum, Part

Array = NDArray[np.float64]

BETAS_1 = tuple(float(b) for b in np.round(np.append(np.linspace(0, 0.8, 9), 1 - np.geomspace(0.15, 0.01, 11)), 4))
BETAS_2 = tuple(float(b) for b in np.round(1 - np.geomspace(0.5, 0.0005, 20), 5))

BLOCK = 2**19
"""Elements formed at once, pairs times coordinates: half of them takes up to twice the time, twice as many no less."""


class Grid:
    """A method at every pair of betas; variants are built when asked for, their variables once.

    Args:
        method: from the catalogue, with a pair of betas, or `Groups` of such.
        betas_1: first axis, increasing.
        betas_2: second axis, increasing.

    Raises:
        BadInput: the method has no pair of betas, or an axis is empty, not increasing or out of range.
    """

    def __init__(self, method: AnyOptimizer, betas_1: Sequence[float], betas_2: Sequence[float]):
        for axis in (betas_1, betas_2):
            if not len(axis) or any(b <= a for a, b in pairwise(axis)):
                raise BadInput(f"the betas of a map must increase, got {tuple(axis)}")
        self.method, self.betas_1, self.betas_2 = method, tuple(betas_1), tuple(betas_2)
        self.shape = len(betas_1), len(betas_2)
        self._cells: dict[tuple[int, int], AnyOptimizer] = {}
        self._axes: dict[tuple[int, int], tuple[list[Momentum], np.ndarray]] = {}

    def cell(self, i: int, j: int) -> AnyOptimizer:
        """The method at (betas_1[i], betas_2[j])."""
        if (i, j) not in self._cells:
            self._cells[i, j] = self.method.with_betas(self.betas_1[i], self.betas_2[j])
        return self._cells[i, j]

    @property
    def oldest(self) -> AnyOptimizer:
        """The corner of the largest betas, whose every variable remembers."""
        return self.cell(self.shape[0] - 1, self.shape[1] - 1)

    def spanning(self) -> list[AnyOptimizer]:
        """Methods of the grid in which every beta of every variable occurs."""
        crossed = any(
            self.variables(p, l)[1].size == self.shape[0] * self.shape[1] > 1
            for p, part in enumerate(self.oldest.parts)
            for l in range(len(part.method.variables))
        )
        rows, columns = range(self.shape[0]), range(self.shape[1])
        return [self.cell(i, j) for i in rows for j in columns if crossed or i == 0 or j == 0]

    def every(self) -> list[Momentum]:
        """The distinct variables of all pairs."""
        parts = enumerate(self.oldest.parts)
        return list(
            dict.fromkeys(v for p, part in parts for l in range(len(part.method.variables)) for v in self.variables(p, l)[0])
        )

    def variables(self, p: int, l: int) -> tuple[list[Momentum], np.ndarray]:
        """The distinct variables l of part p, and which of them each pair has.

        Args:
            p: index of the part (a param group).
            l: index of the variable in that part's method.

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


def inner_products(grid: Grid, slopes: Tensor, theta: Tensor, memory: history.Memory) -> np.ndarray:
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
        return from_memory(grid, torch.zeros_like(theta), slopes, theta, memory)
    return pair_by_pair(grid, slopes, lambda method: history.update_of(method, theta, memory))


def derivatives(grid: Grid, slopes: Tensor, theta: Tensor, memory: history.Memory, tangent: history.Memory) -> Array:
    """<grad S, sum_l dphi/dm_l tangent_l> for every pair and measure, by forward mode through `inner_products`.

    Args:
        grid: the pairs.
        slopes: grad S of each measure, shape (measures, d).
        theta: shape (d,).
        memory: (variable, coordinates) -> m_l, where phi is differentiated.
        tangent: (variable, coordinates) -> direction.

    Returns:
        Shape (*grid.shape, measures).
    """

    def dual(v: Momentum, index: Index) -> Tensor:
        return forward_ad.make_dual(memory(v, index), tangent(v, index))

    def of(x: Tensor) -> Tensor:
        found = forward_ad.unpack_dual(x).tangent
        return torch.zeros_like(x) if found is None else found

    with forward_mode():
        if all(part.method.elementwise for part in grid.oldest.parts):
            return of(_sums(grid, torch.zeros_like(theta), slopes, theta, dual)).cpu().numpy()
        return pair_by_pair(grid, slopes, lambda method: of(history.update_of(method, theta, dual)))


def share_update(grid: Grid, gradient: Tensor, theta: Tensor, step: int | None) -> bool:
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


def pair_by_pair(grid: Grid, slopes: Tensor, effect: Callable[[AnyOptimizer], Tensor]) -> np.ndarray:
    """<grad S, effect> for every pair, one at a time, shape (*grid.shape, measures)."""
    rows, columns = grid.shape
    return np.array([[(slopes @ effect(grid.cell(i, j))).tolist() for j in range(columns)] for i in range(rows)])


def from_memory(grid: Grid, F: Tensor, slopes: Tensor, theta: Tensor, memory: history.Memory) -> np.ndarray:
    """<grad S, phi(m) - F> for every pair, shape (*grid.shape, measures)."""
    return _sums(grid, F, slopes, theta, memory).cpu().numpy()


def _sums(grid: Grid, F: Tensor, slopes: Tensor, theta: Tensor, memory: history.Memory) -> Tensor:
    """The same, in blocks of coordinates."""
    total = slopes.new_zeros((*grid.shape, len(slopes)))
    for p, part in enumerate(grid.oldest.parts):
        plans = [grid.variables(p, l) for l in range(len(part.method.variables))]
        rows = [l for l, (_, number) in enumerate(plans) if number.shape[0] > 1]
        product = all(plans[l][1].shape[1] == 1 for l in rows) and affine(part.method, rows)
        size = F[part.index].numel()
        block = max(1, BLOCK // (sum(grid.shape) if product else grid.shape[0] * grid.shape[1]))
        for start in range(0, size, block):
            index = _within(part, slice(start, min(start + block, size)))
            # The pairs' numbers are those of the variables, row by row: a view, no copy.
            m = [torch.stack([memory(v, index) for v in variables]).view(*number.shape, -1) for variables, number in plans]
            inner = (_matrix_product if product else _broadcast)(part.method, m, rows, slopes[:, index], theta[index])
            total = total + part.scale * inner - slopes[:, index] @ F[index]
    return total


def affine(method: Method, rows: Sequence[int]) -> bool:
    """Whether phi is affine in the variables `rows` together, tried at random points.

    Args:
        method: in momentum form.
        rows: indices of variables.
    """
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
