"""From what the user names to its formulas, and the formulas printed: the door of this room."""

# SymPy's annotations do not describe what it returns.
# pyright: reportArgumentType=false, reportReturnType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportAssignmentType=false, reportOperatorIssue=false, reportOptionalOperand=false, reportGeneralTypeIssues=false
# pyright: reportIncompatibleMethodOverride=false, reportOptionalMemberAccess=false, reportIndexIssue=false

import json
from dataclasses import dataclass
from typing import Any

from sympy import Expr, S
from torch import nn

from memoryless.errors import BadInput, BadType
from memoryless.formulas import printing
from memoryless.formulas.formulas import Formulas
from memoryless.formulas.hyperparameters import assigned, maker
from memoryless.formulas.symbols import Step, n
from memoryless.loss.loss import Loss
from memoryless.methods.named import resolve

LITERAL = 6
"""Up to this step sums over the past are written out, which is shorter; beyond, they are geometric series."""


@dataclass(frozen=True)
class Derivation(Formulas):
    """The formulas of a method, which print themselves."""

    def text(self) -> str:
        """The derivation in plain text: assumptions, each step, result, limits, the reading in words."""
        return printing.text(self)

    def markdown(self) -> str:
        """The same in Markdown with LaTeX formulas."""
        return printing.markdown(self)

    def latex(self) -> str:
        """The same as a LaTeX article that compiles as it is."""
        return printing.latex(self)

    def to_html(self) -> str:
        """The same as one self-contained HTML page."""
        return printing.html(self)

    def as_dict(self) -> dict[str, Any]:
        """The formulas in SymPy's notation, as text and in LaTeX."""
        return printing.as_dict(self)

    def to_json(self) -> str:
        """`as_dict` as JSON text."""
        return json.dumps(self.as_dict(), indent=2, ensure_ascii=False)


def derive(method: Any, step: int | str | None = None, **values: Any) -> Derivation:
    """The formulas of a method: F, M, the resummed correction, the modified loss where one exists, the modified flow.

    Args:
        method: text such as "adamw", "adamw(eps=0)", "torch.optim.AdamW", "module:name" or "script.py:name"; a `Method`, a
            function or class that makes one, or a torch optimizer or its class in momentum form.
        step: None for the steady state, an integer n, or "n" for a symbolic one.
        **values: hyperparameters by their names (betas=(0.9, 0.999), or one by one, beta1=0.9); a number, or the name of
            another symbol (beta2="beta1"). What is not given stays a symbol, but the number of a `Method` or an optimizer.

    Returns:
        The formulas, which print themselves as text, Markdown, LaTeX and HTML.

    Raises:
        NotDerivable: no formula; says which line of phi stopped it, or why it is a black box.
        NeverForgets: steady state of a memory that does not fade.
        BadType: a loss or a model.
        BadInput: unknown name or hyperparameter, or a value out of range.

    Example:
        >>> derive("heavy_ball").M
        beta*h*H(g)/(1 - beta)**3
        >>> derive("adamw", eps=0, weight_decay=0).modified_loss
        L + h*(beta_1 - beta_2)*Total(Abs(g))/((1 - beta_1)*(1 - beta_2))
    """
    if isinstance(method, (Loss, nn.Module)):
        raise BadType(f"derive takes a method alone, without a loss, got {type(method).__name__}; expected a name or a Method")
    if isinstance(method, str):
        named = resolve(method)
        method, values = named.target, {**named.options, **values}
    make, given = maker(method)
    return Derivation.of(make, assigned(make, given, values, method), _step(step))


def _step(step: int | str | None) -> Expr | None:
    if step is None:
        return None
    if step == "n":
        return n
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise BadInput(f'step must be None (steady state), an integer >= 0 or "n", got {step!r}')
    return S(step) if step <= LITERAL else Step(step)
