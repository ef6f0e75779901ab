"""A black box at a finite step: how F[n] answers a history that lags behind the present, without a formula.

With D[j] = sum_{s = j..n-1} F[s](theta) step j saw theta[j] = theta + lr D[j] and the gradient g_j + lr H_j D[j] of its batch.

    first order:  M[n] = the derivative of F[n] along that drift, at the frozen history     (Eq. 9)
    resummed:     M[n] = F[n] of the drifting history itself - F[n](theta)

The D[j] lie in a space of few dimensions (one, where F[s] keeps its direction): H is applied to a basis of it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from memoryless.flat import dot, norm, total
from memoryless.isolation import isolated
from memoryless.loss.point import Point
from memoryless.methods.black_box.derivative import Counted, Derivative, derivative, tangent
from memoryless.methods.black_box.torch_method import TorchMethod
from memoryless.methods.forward_mode import forward_mode

DIRECTION = 1e-11
"""A new F[s] adds a direction where it leaves the span of those before by this share of its length."""
RANK = 1e-10
"""A direction of the drift counts from this share of the strongest."""
RESUMMED = "resummed: the drifting history itself"

Lag = Callable[[int], tuple[Tensor, Tensor]]
"""j -> how far the gradient and theta of step j lie back."""


class Stepped(ABC):
    """The answers of a black box, found by its own steps, each when asked for, and once; an `Expansion`.

    Attributes:
        method: any torch optimizer.
        point: of the loss.
    """

    method: TorchMethod
    point: Point

    @property
    @abstractmethod
    def precise_F(self) -> Tensor:
        """F in float64, computed in the types that the optimizer itself computes in."""

    @property
    def F(self) -> Tensor:
        """Update with the history frozen, shape (d,), in the type of theta."""
        return self.precise_F.to(self.point.theta.dtype)

    @cached_property
    @abstractmethod
    def _first(self) -> Derivative: ...

    @cached_property
    @abstractmethod
    def _resummed(self) -> Derivative: ...

    def first(self) -> Derivative:
        """M of Eq. 9, with the way it was differentiated.

        Raises:
            BadInput: an update is not finite, or has no derivative.
        """
        return self._first

    def resummed(self) -> Derivative:
        """M resummed.

        Raises:
            BadInput: an update is not finite.
        """
        return self._resummed

    def path(self) -> None:
        """None: a path is read by memory in momentum form."""
        return

    @property
    def outside(self) -> float:
        """Share of the coordinates with |M_i| >= |F_i|, M_i not 0: a black box tells no mean ages."""
        M = self.first().value
        return float(total(((M.abs() >= self.F.abs()) & (M != 0)).double())) / len(M)


class Unrolled(Stepped):
    """What n + 1 steps of the optimizer itself tell of its memory.

    Args:
        method: any torch optimizer.
        point: of the loss.
        step: n, the number of past iterates.
        batches: index of the batch used at each step 0..n; None is full batch.
        only: of the past only the iterate of so many steps ago lies back (0: none); None is all of it.
        through: what the loop does to a gradient, shape (d,), before the optimizer sees it; None is nothing.
    """

    def __init__(
        self,
        method: TorchMethod,
        point: Point,
        step: int,
        batches: Sequence[int] | None = None,
        only: int | None = None,
        through: Callable[[Tensor], Tensor] | None = None,
    ):
        self.method, self.point, self.step = method, point, step
        self._through = through or (lambda gradient: gradient)
        self._sequence: list[int | None] = [None] * (step + 1) if batches is None else list(batches)
        self._only = only
        self._counted = Counted(method.exact)
        self._theta = point.theta.double()

    @property
    def steps(self) -> int:
        """Optimizer steps spent so far."""
        return self._counted.steps

    @property
    def products(self) -> int:
        """Hessian-vector products that the drift takes."""
        return self._drift[1]

    @property
    def precise_F(self) -> Tensor:
        """F in float64, computed in the types that the optimizer itself computes in."""
        return self._precise_F

    @cached_property
    def _precise_F(self) -> Tensor:
        if self.method.exact is self.method:
            return self._frozen[0]
        counted = Counted(self.method)
        with isolated(self.point.theta.device):
            F = counted.last(self._history())
        self._counted.steps += counted.steps
        return F

    @cached_property
    def _first(self) -> Derivative:
        if self.step == 0:
            return self._typed(Derivative(torch.zeros_like(self._theta), "none", "nothing is past at step 0"))

        def forward() -> Tensor:
            with forward_mode():
                return tangent(self._last(forward_ad.make_dual))

        with isolated(self.point.theta.device):
            return self._typed(derivative(self.method.exact, forward, self._along, self._frozen[0], self._theta))

    @cached_property
    def _resummed(self) -> Derivative:
        if self.step == 0:
            return self._typed(Derivative(torch.zeros_like(self._theta), "none", "nothing is past at step 0"))
        with isolated(self.point.theta.device):
            return self._typed(Derivative(self._along(1.0) - self._frozen[0], "none", RESUMMED))

    def _typed(self, M: Derivative) -> Derivative:
        return typed(M, self.method, self.point)

    def _history(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Gradient and theta of each step, frozen."""
        return ((self._through(self._gradient(i)), self._theta) for i in self._sequence)

    def _gradient(self, batch: int | None) -> Tensor:
        return (self.point.gradient if batch is None else self.point.gradient_of(batch)).double()

    def _curvature(self, v: Tensor, batch: int | None) -> Tensor:
        v = v.to(self.point.theta.dtype)
        return (self.point.curvature(v) if batch is None else self.point.curvature_of(v, batch)).double()

    @cached_property
    def _frozen(self) -> tuple[Tensor, list[Tensor], np.ndarray]:
        """F[n], a basis of the F[s] before it, and their coordinates."""
        with isolated(self.point.theta.device):
            return _span(self._counted.run(self._history()))

    @cached_property
    def _drift(self) -> tuple[Lag, int]:
        """How far each step lies back, and the products spent on it."""
        _, directions, coordinates = self._frozen
        n, lr, theta = self.step, self.method.lr, self._theta
        if self._only is None:
            return _lags(directions, coordinates, self._sequence, self._curvature, lr, theta)
        k, still = self._only, torch.zeros_like(theta)
        back = lr * _combined(coordinates[n - k :].sum(axis=0), directions, theta) if k else still
        drift = self._curvature(back, self._sequence[n - k]) if k else still
        return lambda j: (drift, back) if j == n - k else (still, still), int(k > 0)

    def _last(self, shifted: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """F[n] of the history, every gradient and theta shifted by its lag."""
        lag, _ = self._drift
        lags = map(lag, range(self.step + 1))
        return self._counted.last(
            (self._through(shifted(self._gradient(i), dg)), shifted(self._theta, back))
            for i, (dg, back) in zip(self._sequence, lags, strict=True)
        )

    def _along(self, e: float) -> Tensor:
        return self._last(lambda x, dx: x.add(dx, alpha=e))


def typed(M: Derivative, method: TorchMethod, point: Point) -> Derivative:
    """M in the type of theta; the reason says where F was computed in a coarser type than M."""
    reason = M.reason if method.exact is method else f"{M.reason}; M has float64 in place of {method.dtype}, F has not"
    return Derivative(M.value.to(point.theta.dtype), M.way, reason)


def _span(updates: Iterable[Tensor]) -> tuple[Tensor, list[Tensor], np.ndarray]:
    """The last F, an orthonormal basis of those before it, and their coordinates in it, shape (n, rank)."""
    directions: list[Tensor] = []
    rows: list[list[float]] = []
    F = None
    for update in updates:
        if F is not None:
            row, rest = [0.0] * len(directions), F.clone()
            for _ in range(2):  # twice is enough (Giraud et al. 2005)
                for i, q in enumerate(directions):
                    part = float(dot(q, rest))
                    row[i] += part
                    rest.sub_(q, alpha=part)
            if (length := float(norm(rest))) > DIRECTION * float(norm(F)):
                directions.append(rest.div_(length))
                row.append(length)
            rows.append(row)
        F = update
    assert F is not None
    coordinates = np.zeros((len(rows), len(directions)))
    for s, row in enumerate(rows):
        coordinates[s, : len(row)] = row
    return F, directions, coordinates


def _lags(
    directions: list[Tensor],
    coordinates: np.ndarray,
    sequence: Sequence[int | None],
    curvature: Callable[[Tensor, int | None], Tensor],
    lr: float,
    theta: Tensor,
) -> tuple[Callable[[int], tuple[Tensor, Tensor]], int]:
    """j -> how far gradient and theta of step j lie back, lr H_j D[j] and lr D[j]; and the products spent.

    Step j's D[j] = sum_{s >= j} coordinates[s] is row j of `back`. For each batch the rows of its steps span few directions
    (an SVD says which): H_i is applied to those, and lr H_i D[j] is combined from the products.
    """
    n = len(sequence) - 1
    back = np.vstack([np.cumsum(coordinates[::-1], axis=0)[::-1], np.zeros((1, len(directions)))])
    # The mean update since j: every step has the same say in what is small.
    mean = back[:n] / np.arange(n, 0, -1)[:, None]
    images: dict[int | None, tuple[np.ndarray, list[Tensor]]] = {}
    for i in dict.fromkeys(sequence[:n]):
        rows = mean[[j for j in range(n) if sequence[j] == i]]
        _, strength, right = np.linalg.svd(rows, full_matrices=False)
        right = right[strength > RANK * strength.max(initial=0)]
        images[i] = right.T, [curvature(_combined(row, directions, theta), i) for row in right]

    def lag(j: int) -> tuple[Tensor, Tensor]:
        right, products = images[sequence[j]] if j < n else (np.zeros((len(directions), 0)), [])
        return _combined(lr * back[j] @ right, products, theta), _combined(lr * back[j], directions, theta)

    return lag, sum(len(products) for _, products in images.values())


def _combined(weights: np.ndarray, vectors: list[Tensor], like: Tensor) -> Tensor:
    total = torch.zeros_like(like)
    for weight, vector in zip(weights.tolist(), vectors, strict=True):
        total.add_(vector, alpha=weight)
    return total
