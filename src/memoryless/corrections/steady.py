"""The steady state of a black box: how far its memory at rest lags behind a drifting gradient.

Let the gradient of k steps ago be g + k w, w = lr H F, and theta have been theta + k lr F. The memory before that step is then
s + a + k b, to first order, with

    (I - A_s) b = A_g w + A_theta lr F,      (I - A_s) a = b,      M = U_s a      (the present g and theta have no lag)

so any optimizer costs one Hessian-vector product and some tens of its own steps (`methods.black_box.state_map`).

Resummed, the memory of k steps ago is a polynomial in k wherever it averages polynomials of g and theta: the ansatz gets a
square, is solved for in three lags and believed if it holds in others too. Elsewhere the drifting history is unrolled.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from memoryless.corrections.unrolled import RESUMMED, Derivative, NoForwardMode, Order, Response, derivative, response
from memoryless.errors import BadInput
from memoryless.isolation import isolated
from memoryless.loss.loss import Loss
from memoryless.methods.black_box.state_map import Memory, Stalled
from memoryless.methods.black_box.torch_method import TorchMethod

UNROLLED = 200_000
"""Most lags to unroll for a resummed steady state."""


def steady(method: TorchMethod, loss: Loss, theta: Tensor, order: Order = "first") -> Response:
    """F and M of the limit n -> infinity, full batch.

    Args:
        method: any torch optimizer.
        loss: the loss; its curvature is used once.
        theta: shape (d,).
        order: "first" or "resummed".

    Returns:
        F and M, with what they cost and how the derivative was found.

    Raises:
        NeverForgets: the memory does not come to rest, with the evidence.
        BadInput: no steady state for another reason (a schedule, a corner), or no derivative.
    """
    if method.scheduled:
        raise BadInput(f"{method}: a schedule moves the learning rate, so there is no steady state; give step=n")
    gradient, product = loss.linearize(theta, products=1)
    with isolated(theta.device):
        memory = Memory(method.exact, gradient.double(), theta.double())

        def curvature(v: Tensor) -> Tensor:
            return product(v.to(theta.dtype)).double()

        s, F = memory.rest()
        if not len(s):
            M = Derivative(torch.zeros_like(F), "none", "nothing in its memory moves")
        else:
            back = method.lr * F
            drift = curvature(back)
            lag = Lag(memory, drift, back, *memory.lag(drift, back))
            M = lag.first(F) if order == "first" else Derivative(lag.resummed(F) - F, "none", RESUMMED)
        if method.exact is not method:
            memory.method = method
            _, F = memory.advance(s)
    return response(method, theta, F, M, order, None, int(len(s) > 0), memory.steps)


@dataclass(frozen=True)
class Lag:
    """The memory of k steps ago is s + a + k b, to first order.

    Attributes:
        memory: at rest.
        drift: w, of the gradient, per step.
        back: lr F, of theta, per step.
        a: how far it lags at present.
        b: how much further per step.
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
            F: at rest.
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
            F: at rest.

        Raises:
            BadInput: the memory is too long to unroll.
        """
        s = self._polynomial()
        return self._unrolled() if s is None else self.at(s, 0)[1]

    def _polynomial(self) -> Tensor | None:
        """The memory before the present step, s(0), from s(k) = c0 + c1 k + c2 k^2; None if it is no such polynomial."""
        memory, T = self.memory, max(1, round(self.age))
        c = [memory.s + self.a, self.b, torch.zeros_like(self.b)]

        def gap(k: int) -> tuple[Tensor, float]:
            now, earlier = (c[0] + j * c[1] + j * j * c[2] for j in (k, k + 1))
            residual = now - self.at(earlier, k + 1)[0]
            parts = zip(*map(memory._split, (residual, now)), strict=True)
            return residual, max(float(x.norm() / (y.norm() or 1)) for x, y in parts)

        try:
            for _ in range(3):
                (e0, worst), (e1, worse), (e2, worst_of_all) = gap(0), gap(T), gap(2 * T)
                if not max(worst, worse, worst_of_all) > 100 * memory.epsilon:
                    break
                # The residual's coefficients, and the same recursion for the change of c, highest power first.
                curve = (e0 - 2 * e1 + e2) / (2 * T * T)
                slope = (e1 - e0) / T - curve * T
                d2 = memory.solve(-curve)
                right = 2 * (d2 + curve) - slope  # A_s x = x - (I - A_s) x
                d1 = memory.solve(right)
                d0 = memory.solve((d1 - right) + (d2 + curve) - e0)
                c = [x + dx for x, dx in zip(c, (d0, d1, d2), strict=True)]
        except Stalled:
            return None
        holds = all(gap(k)[1] <= 1000 * memory.epsilon for k in (1, T // 3 + 2, 3 * T + 1, 7 * T))
        return c[0] if holds else None

    def _unrolled(self) -> Tensor:
        memory, last, lags = self.memory, None, max(16, round(20 * self.age))
        while lags <= UNROLLED:
            s, F = memory.s, self.back
            for k in range(lags, -1, -1):
                s, F = self.at(s, k)
            if last is not None and float((F - last).norm()) <= 1e-10 * float(F.norm()):
                return F
            last, lags = F, 2 * lags
        raise BadInput(f"{memory.method}: the drifting history has not settled after {UNROLLED} lags; give step=n")
