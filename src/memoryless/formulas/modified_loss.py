"""The loss that an optimizer's memory turns a loss into, where there is one.

    theta - lr (F + M) = theta - lr (lambda theta + P grad L~)

Whether L~ exists is decided by the net age of the derived formula (`formulas.net_age`); `ModifiedLoss.confirm` and
`asymmetry` check that in numbers. Theory: https://arxiv.org/abs/2502.02132.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from sympy import Expr
from torch import Tensor

from memoryless.corrections.arguments import valid_arguments
from memoryless.corrections.correction import correction
from memoryless.errors import NoModifiedLoss, NotDerivable
from memoryless.flat import dot, norm
from memoryless.formulas.compiled import compiled
from memoryless.formulas.derive import Derivation, derive
from memoryless.loss.loss import Loss
from memoryless.methods.method import AnyOptimizer, Method
from memoryless.render.numbers import plain
from memoryless.render.result import Result


@dataclass(frozen=True)
class ModifiedLoss(Result):
    """The loss L~(theta) with F + M = lambda theta + P(theta) grad L~, steady state.

    Attributes:
        formula: L~ in SymPy's terms.
        derivation: of the method.
    """

    formula: Expr
    derivation: Derivation
    _loss: Loss
    _method: Method

    def __call__(self, theta: Tensor) -> Tensor:
        """L~(theta), differentiable once.

        Args:
            theta: shape (d,).

        Returns:
            A scalar in the units of the loss.
        """
        return _Value.apply(theta, self._loss, self._compiled)  # type: ignore[return-value]

    def as_dict(self) -> dict[str, Any]:
        """L~, P and lambda, formulas in SymPy's notation."""
        a = self.derivation.net_age
        formulas = {"modified_loss": str(self.formula), "preconditioner": str(a.P), "decay": str(a.decay)}
        return plain({"method": self.derivation.name, "lr": self._method.lr} | formulas)

    @property
    def _compiled(self) -> Callable[..., Tensor]:
        return compiled(self.formula)

    def preconditioner(self, theta: Tensor) -> Tensor:
        """P(theta), shape (d,); a constant is repeated.

        Args:
            theta: shape (d,).
        """
        return _preconditioner(self.derivation, self._loss, theta)

    def update(self, theta: Tensor) -> Tensor:
        """Lambda theta + P grad L~, what F + M is, shape (d,).

        Args:
            theta: shape (d,).
        """
        x = theta.detach().requires_grad_()
        (slope,) = torch.autograd.grad(self(x), x)
        return _decay(self.derivation) * theta + self.preconditioner(theta) * slope

    def confirm(self, theta: Tensor) -> float:
        """|F + M - update(theta)| / |F + M|: 0 but for rounding, by `ml.correction`, which knows nothing of L~.

        Args:
            theta: shape (d,).
        """
        c = correction(self._method, self._loss, theta)
        expected = c.F + c.M
        return float(norm(expected - self.update(theta)) / norm(expected))


class _Value(torch.autograd.Function):
    """L~ as a function of (L, grad L, theta), its gradient by one Hessian-vector product: no graph of a gradient is kept."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, loss: Loss, formula: Callable[..., Tensor]) -> Tensor:
        x = theta.detach()
        value, gradient = loss(x).detach().requires_grad_(), loss.gradient(x).requires_grad_()
        point = x.clone().requires_grad_()
        with torch.enable_grad():
            result = formula(gradient, point, loss=value)
            slopes = torch.autograd.grad(result, (value, gradient, point), allow_unused=True)
        ctx.loss, ctx.theta, ctx.gradient, ctx.slopes = loss, x, gradient.detach(), slopes
        return result.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        of_value, of_gradient, of_theta = ctx.slopes
        total = of_value * ctx.gradient
        if of_gradient is not None:
            total = total + ctx.loss.curvature(ctx.theta, of_gradient)
        if of_theta is not None:
            total = total + of_theta
        return grad_output * total, None, None


@valid_arguments
def modified_loss(method: AnyOptimizer, loss: Loss) -> ModifiedLoss:
    """The loss that the method with memory descends, as its memoryless iteration, to O(lr^2) per unit of time.

    Args:
        method: full batch, steady state.
        loss: L; its curvature is used by the gradient of the result.

    Returns:
        theta -> L~(theta), differentiable, with `preconditioner`, `update` and `confirm`.

    Raises:
        NoModifiedLoss: none exists, or the method has no formula; says why.

    Example:
        >>> from memoryless.methods.catalogue import HeavyBall
        >>> loss = Loss.of(lambda theta: (theta**2).sum() / 2, torch.tensor([1.0, -2.0]))
        >>> modified_loss(HeavyBall(lr=0.1, momentum=0.5), loss)(loss.theta)  # L + lr beta / (2 (1 - beta)^2) |grad L|^2
        tensor(3.)
    """
    try:
        derivation = derive(method)
        net_age = derivation.net_age
    except NotDerivable as error:
        raise NoModifiedLoss(str(error)) from error
    assert isinstance(method, Method)
    formula = derivation.modified_loss
    if formula is None:
        if net_age.constant:
            raise NoModifiedLoss("no closed form of the update's potential was found")
        raise NoModifiedLoss(
            f"the net age of the update's memory differs between coordinates, kappa = {net_age.kappa}",
            asymmetry(method, loss, derivation),
        )
    return ModifiedLoss(formula, derivation, loss, method)


def asymmetry(method: Method, loss: Loss, derivation: Derivation, seed: int = 0) -> float:
    """How far (F + M - lambda theta) / P is from a gradient at loss.theta; see `NoModifiedLoss`.

    Args:
        method: in momentum form.
        loss: L.
        derivation: of the method, with a net age.
        seed: of the random directions.
    """
    theta = loss.theta
    generator = torch.Generator().manual_seed(seed)
    u, v = torch.randn(2, theta.numel(), generator=generator, dtype=torch.float64).to(theta)

    def field(x: Tensor) -> Tensor:
        c = correction(method, loss, x)
        return (c.F + c.M - _decay(derivation) * x) / _preconditioner(derivation, loss, x)

    step = float(torch.finfo(theta.dtype).eps ** (1 / 3) * (1 + norm(theta)) / norm(u))
    along_u, along_v = ((field(theta + step * x) - field(theta - step * x)) / (2 * step) for x in (u, v))
    a, b = float(dot(u, along_v)), float(dot(v, along_u))
    return abs(a - b) / (abs(a) + abs(b))


def _decay(derivation: Derivation) -> float:
    return float(derivation.net_age.decay)


def _preconditioner(derivation: Derivation, loss: Loss, theta: Tensor) -> Tensor:
    # P belongs to the gradient with any coupled decay in it.
    gradient = loss.gradient(theta) + float(derivation.coupling) * theta
    return compiled(derivation.net_age.P)(gradient, theta)
