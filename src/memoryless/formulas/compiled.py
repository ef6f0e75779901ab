"""A derived formula as a function of tensors."""

# SymPy's annotations do not describe what it returns.
# pyright: reportArgumentType=false, reportReturnType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportAssignmentType=false, reportOperatorIssue=false, reportOptionalOperand=false, reportGeneralTypeIssues=false
# pyright: reportIncompatibleMethodOverride=false, reportOptionalMemberAccess=false, reportIndexIssue=false

from collections.abc import Callable
from typing import Any

import sympy
import torch
from sympy import Expr, S
from sympy.printing.pytorch import TorchPrinter
from torch import Tensor

from memoryless.errors import BadInput
from memoryless.formulas.algebra import TERMS, added_up, approximated, evaluated
from memoryless.formulas.symbols import L, g, theta, w


class _Printer(TorchPrinter):
    """Sums of tensors and numbers as operators; relations as operators, which also compare a tensor with a number."""

    def _print_Relational(self, expr: Any) -> str:
        return f"({self._print(expr.lhs)} {expr.rel_op} {self._print(expr.rhs)})"

    def _print_node(self, expr: Expr) -> str:
        return f"{type(expr).__name__}({', '.join(map(self._print, expr.args))})"

    _print_H = _print_Total = _print_GradK = _print_HessK = _print_node


def compiled(expression: Expr, K: Callable[[Tensor], Tensor] | None = None) -> Callable[..., Tensor]:
    """A formula as a differentiable function of tensors.

    Args:
        expression: in g, theta, w, L and the nodes H, Total, GradK, HessK; hyperparameters must be numbers.
        K: what GradK and HessK belong to.

    Returns:
        (gradient, theta, curvature=None, drift=None, loss=None) -> value: gradient, theta and drift of shape (d,), curvature
        v -> H v, loss a scalar.

    Raises:
        BadInput: symbols are left, or a sum without end.

    Example:
        >>> from memoryless.formulas.derive import derive
        >>> M = compiled(derive("heavy_ball", beta=0.5, h=0.1).M)
        >>> M(torch.tensor([1.0, -2.0]), torch.zeros(2), lambda v: 3 * v)
        tensor([ 1.2000, -2.4000])
    """
    expression = evaluated(expression)
    if left := expression.free_symbols - {g, theta, w, L}:
        raise BadInput(f"give these symbols numbers first: {', '.join(sorted(map(str, left)))}")
    if any(S.Infinity in limits for total in expression.atoms(sympy.Sum) for limits in total.limits):
        raise BadInput("the formula holds a sum over infinitely many ages; derive it at a step, or take ml.correction")
    for first, last in (limits[1:] for total in expression.atoms(sympy.Sum) for limits in total.limits):
        if last - first >= TERMS:
            raise BadInput(f"the formula holds a sum of {last - first + 1} terms, expected at most {TERMS}; take ml.correction")
    expression = added_up(expression)
    # torch's functions take no Python numbers, and no fractions.
    numeric = approximated(expression, 17, lambda number: not (number.is_Integer and abs(number) < 2**31))
    here: dict[str, Any] = {}
    slope = torch.func.grad(K) if K else lambda c: c

    def field(v: Any) -> Tensor:
        """A number is the same for all coordinates."""
        return v if isinstance(v, Tensor) else torch.full_like(here["gradient"], v)

    nodes = {
        "H": lambda v: here["curvature"](field(v)),
        "Total": lambda v: field(v).sum(),
        "GradK": lambda at: slope(field(at)),
        "HessK": lambda at, v: torch.func.jvp(slope, (field(at),), (field(v),))[1],
    }
    body = sympy.lambdify((g, theta, w, L), numeric, [nodes, "torch"], printer=_Printer({"fully_qualified_modules": False}))

    def value(
        gradient: Tensor,
        theta: Tensor,
        curvature: Callable[[Tensor], Tensor] | None = None,
        drift: Tensor | None = None,
        loss: Tensor | None = None,
    ) -> Tensor:
        here.update(curvature=curvature, gradient=gradient)
        return field(body(gradient, theta, drift, loss))

    return value
