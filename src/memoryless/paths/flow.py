"""The differential equation that an optimizer follows, Section 5.1 of https://arxiv.org/abs/2502.02132.

    dtheta/dt = -F - M - (lr/2) (dF/dtheta) F

M is memory's term, the last one the bias of the finite step itself. Heavy ball's is that of Kovachki and Stuart,
https://arxiv.org/abs/1906.04285: -1/(1-beta) grad(L + lr (1+beta) / (4 (1-beta)^2) |grad L|^2).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from memoryless.corrections import history
from memoryless.corrections.arguments import valid_arguments
from memoryless.corrections.expansion import expansion
from memoryless.errors import BadInput, NotFinite
from memoryless.loss.loss import Loss
from memoryless.loss.point import Point
from memoryless.methods.kernel import require_fading
from memoryless.methods.method import AnyOptimizer, variables_of


@dataclass(frozen=True)
class ModifiedFlow:
    """The vector field dtheta/dt = -F - memory - discretization that an optimizer follows, steady state.

    Attributes:
        method: in momentum form.
        loss: L.
    """

    method: AnyOptimizer
    loss: Loss

    def __call__(self, theta: Tensor) -> Tensor:
        """dtheta/dt, shape (d,).

        Args:
            theta: shape (d,).
        """
        F, M, half = self.terms(theta)
        return -(F + M + half)

    def terms(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """F, M and (lr/2) (dF/dtheta) F: update, memory, discretization, each of shape (d,).

        Args:
            theta: shape (d,).
        """
        point = Point(self.loss, theta, products=1)
        found = expansion(self.method, point)
        M, back = found.first().value, self.method.lr * found.F
        drift = point.drift(back)  # H (lr F), the one product, which M takes too
        half = torch.func.jvp(
            lambda g, x: history.frozen(self.method, g, x, None), (point.gradient, point.theta), (drift, back)
        )[1]
        return found.F, M, half / 2

    def memory(self, theta: Tensor) -> Tensor:
        """-M, what memory adds to dtheta/dt, shape (d,).

        Args:
            theta: shape (d,).
        """
        return -self.terms(theta)[1]

    def discretization(self, theta: Tensor) -> Tensor:
        """-(lr/2) (dF/dtheta) F, what the finite step adds to dtheta/dt, shape (d,).

        Args:
            theta: shape (d,).
        """
        return -self.terms(theta)[2]

    def path(self, theta: Tensor, times: Tensor, solver: str | None = None) -> Tensor:
        """The path of the flow through theta at times[0].

        Args:
            theta: shape (d,).
            times: shape (n,), increasing, in units of n lr.
            solver: a method of torchdiffeq such as "dopri5", or "rk4", one classical Runge-Kutta step between two times, which
                needs nothing installed; default "dopri5" if torchdiffeq is there, else "rk4".

        Returns:
            Shape (n, d).

        Raises:
            NotFinite: the path leaves the finite numbers.
            BadInput: the solver needs torchdiffeq, which is not installed.
        """
        return integrate(self, theta, times, solver)


@valid_arguments
def modified_flow(method: AnyOptimizer, loss: Loss) -> ModifiedFlow:
    """The differential equation that the optimizer follows to O(lr^2), Section 5.1 of https://arxiv.org/abs/2502.02132.

    Args:
        method: in momentum form, full batch, steady state: the first steps' transients are not in it.
        loss: L; one gradient and one Hessian-vector product for each evaluation.

    Returns:
        theta -> dtheta/dt, with `memory` and `discretization` separately.

    Raises:
        NeverForgets: memory does not fade.

    Example:
        >>> from memoryless.methods.catalogue import HeavyBall
        >>> loss = Loss.of(lambda theta: (theta**2).sum() / 2, torch.tensor([1.0, -2.0]))
        >>> modified_flow(HeavyBall(lr=0.1, momentum=0.5), loss)(loss.theta)  # -2 (1 + lr (1 + beta) / (2 (1 - beta)^2)) g
        tensor([-2.6000,  5.2000])
    """
    for v in variables_of(method):
        require_fading(v)
    return ModifiedFlow(method, loss)


def integrate(flow: Callable[[Tensor], Tensor], theta: Tensor, times: Tensor, solver: str | None = None) -> Tensor:
    """The path of dtheta/dt = flow(theta), as `ModifiedFlow.path` gives it.

    Args:
        flow: any vector field.
        theta: shape (d,).
        times: shape (n,).
        solver: "rk4", or a method of torchdiffeq.

    Returns:
        Shape (n, d).

    Raises:
        NotFinite: the path leaves the finite numbers.
        BadInput: the solver needs torchdiffeq, which is not installed.
    """
    try:
        from torchdiffeq import odeint
    except ImportError:
        odeint = None
    solver = solver or ("dopri5" if odeint else "rk4")
    if odeint:
        try:
            return odeint(lambda t, x: flow(x), theta, times, method=solver, rtol=1e-9, atol=1e-11)  # type: ignore[return-value]
        except AssertionError as error:  # its step underflows
            raise NotFinite(f"the flow leaves the finite numbers: {error}") from error
    if solver != "rk4":
        raise BadInput(f"solver {solver!r} is torchdiffeq's, which is not installed: pip install 'memoryless[flow]', or 'rk4'")
    points = [theta]
    for step in times.diff().tolist():
        x = points[-1]
        a = flow(x)
        b = flow(x + step / 2 * a)
        c = flow(x + step / 2 * b)
        d = flow(x + step * c)
        points.append(x + step / 6 * (a + 2 * b + 2 * c + d))
    return torch.stack(points)
