"""The steady state of a black box: how far its memory at rest lags behind a drifting gradient.

Let the gradient of k steps ago be g + k w, w = lr H F, and theta have been theta + k lr F. The memory before that step is then
s + a + k b, to first order, with

    (I - A_s) b = A_g w + A_theta lr F,      (I - A_s) a = b,      M = U_s a      (the present g and theta have no lag)

so any optimizer costs one Hessian-vector product and some tens of its own steps (`methods.black_box.state_map`).

Resummed, the memory of k steps ago is a polynomial in k wherever it averages polynomials of g and theta: the ansatz gets a
square, is solved for in three lags and believed if it holds in others too. Elsewhere the drifting history is unrolled.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from memoryless.corrections.unrolled import RESUMMED, Stepped, typed
from memoryless.errors import NoForwardMode, NoSteadyState, Stalled
from memoryless.flat import norm
from memoryless.isolation import isolated
from memoryless.loss.point import Point
from memoryless.methods.black_box.derivative import Derivative, derivative
from memoryless.methods.black_box.state_map import Memory
from memoryless.methods.black_box.torch_method import TorchMethod

UNROLLED = 200_000
"""Most lags to unroll for a resummed steady state."""


class Steady(Stepped):
    """What the limit n -> infinity tells, full batch.

    Args:
        method: any torch optimizer.
        point: of the loss; its curvature is used once.

    Raises:
        NeverForgets: the memory does not come to rest, or keeps something for ever, with the evidence.
        NotResolved: it is longer than any run.
        NoSteadyState: for another reason (a schedule), or no derivative.
    """

    step = None

    def __init__(self, method: TorchMethod, point: Point):
        if method.scheduled:
            raise NoSteadyState("a schedule moves the learning rate, so there is no steady state", method)
        self.method, self.point = method, point
        with isolated(point.theta.device):
            self._memory = Memory(method.exact, point.gradient.double(), point.theta.double())
            self._s, self._F = self._memory.rest()
            self._memory.require_fading()

    @property
    def steps(self) -> int:
        """Optimizer steps spent so far."""
        return self._memory.steps

    @property
    def products(self) -> int:
        """Hessian-vector products that the drift takes."""
        return int(len(self._s) > 0)

    @property
    def precise_F(self) -> Tensor:
        """F in float64, computed in the types that the optimizer itself computes in."""
        return self._precise_F

    @cached_property
    def _precise_F(self) -> Tensor:
        if self.method.exact is self.method:
            return self._F
        with isolated(self.point.theta.device), self._memory.run_by(self.method) as memory:
            return memory.advance(self._s)[1]

    @cached_property
    def _lag(self) -> "Lag | None":
        """None where nothing moves."""
        if not len(self._s):
            return None
        back = self.method.lr * self._F
        drift = self.point.curvature(back.to(self.point.theta.dtype)).double()
        return Lag(self._memory, drift, back, *self._memory.lag(drift, back))

    @cached_property
    def _first(self) -> Derivative:
        with isolated(self.point.theta.device):
            return self._answer(lambda lag: lag.first(self._F))

    @cached_property
    def _resummed(self) -> Derivative:
        with isolated(self.point.theta.device):
            return self._answer(lambda lag: Derivative(lag.resummed(self._F) - self._F, "none", RESUMMED))

    def _answer(self, of: Callable[["Lag"], Derivative]) -> Derivative:
        still = Derivative(torch.zeros_like(self._F), "none", "nothing in its memory moves")
        return typed(still if self._lag is None else of(self._lag), self.method, self.point)


@dataclass(frozen=True)
class Lag:
    """The memory of k steps ago is s + a + k b, to first order.

    Attributes:
        memory: s, the memory at rest under the gradient g.
        drift: w, of the gradient, per step.
        back: lr F, of theta, per step.
        a: how far the memory before this step lags behind s, shape of the memory.
        b: how much further it lags for each step further back.
        age: mean age of the longest memory.
    """

    memory: Memory
    drift: Tensor
    back: Tensor
    a: Tensor
    b: Tensor
    age: float

    def first(self, F: Tensor) -> Derivative:
        """M = U_s a.

        Args:
            F: the update at rest, shape (d,).
        """
        memory, a = self.memory, self.a

        def forward() -> Tensor:
            M = memory.push(a)[1]
            if memory.missing:
                raise NoForwardMode(memory.missing)
            return M

        return derivative(memory.method, forward, lambda e: memory.advance(memory.s + e * a)[1], F, memory.theta)

    def at(self, s: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The memory and F after a step from s, the memory of k steps ago, with the gradient and theta of that time."""
        memory = self.memory
        return memory.advance(s, memory.gradient + k * self.drift, memory.theta + k * self.back)

    def resummed(self, F: Tensor) -> Tensor:
        """F of the drifting history.

        Args:
            F: the update at rest, shape (d,).

        Raises:
            NoSteadyState: the memory is too long to unroll.
        """
        s = self._polynomial()
        return self._unrolled() if s is None else self.at(s, 0)[1]

    def _polynomial(self) -> Tensor | None:
        """The memory before the present step, s(0), from s(k) = c0 + c1 k + c2 k^2; None if it is no such polynomial.

        s(k) is right if it is where a step of the optimizer leads from s(k + 1), with the gradient and theta of that time:

            e(k) = s(k) - A(s(k + 1); g + (k + 1) w, theta + (k + 1) lr F) = 0        for every k

        To first order a change d0 + d1 k + d2 k^2 of s changes e(k) by (I - A_s)(d0 + d1 k + d2 k^2) - A_s (d1 + d2 (2 k + 1)).
        So Newton's method solves e = E0 + E1 k + E2 k^2, read off at three lags, for the d one power after the other, the
        highest first: (I - A_s) d2 = -E2, and so on down.
        """
        memory, T = self.memory, max(1, round(self.age))
        c = [memory.s + self.a, self.b, torch.zeros_like(self.b)]

        def gap(k: int) -> tuple[Tensor, float]:
            now, earlier = (c[0] + j * c[1] + j * j * c[2] for j in (k, k + 1))
            residual = now - self.at(earlier, k + 1)[0]
            parts = zip(*map(memory.split, (residual, now)), strict=True)
            return residual, max(float(norm(x) / (norm(y) or 1)) for x, y in parts)

        try:
            for _ in range(3):
                (e0, worst), (e1, worse), (e2, worst_of_all) = gap(0), gap(T), gap(2 * T)
                if not max(worst, worse, worst_of_all) > 100 * memory.epsilon:
                    break
                curve = (e0 - 2 * e1 + e2) / (2 * T * T)
                slope = (e1 - e0) / T - curve * T
                # A_s x = x - (I - A_s) x turns the terms with A_s into sums of what is known.
                d2 = memory.solve(-curve)
                right = 2 * (d2 + curve) - slope
                d1 = memory.solve(right)
                d0 = memory.solve((d1 - right) + (d2 + curve) - e0)
                c = [x + dx for x, dx in zip(c, (d0, d1, d2), strict=True)]
        except Stalled:
            return None
        holds = all(gap(k)[1] <= 1000 * memory.epsilon for k in (1, T // 3 + 2, 3 * T + 1, 7 * T))
        return c[0] if holds else None

    def _unrolled(self) -> Tensor:
        """F after twenty mean ages of the drifting history; twice as many until that changes nothing."""
        memory, last, lags = self.memory, None, max(16, round(20 * self.age))
        while lags <= UNROLLED:
            s, F = memory.s, self.back
            for k in range(lags, -1, -1):
                s, F = self.at(s, k)
            if last is not None and float(norm(F - last)) <= 1e-10 * float(norm(F)):
                return F
            last, lags = F, 2 * lags
        raise NoSteadyState(f"the drifting history has not settled after {UNROLLED} lags", memory.method)
