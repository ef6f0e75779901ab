"""A momentum variable in symbols: its frozen weight, its mean age, the sums over its kernel."""

# SymPy's annotations do not describe what it returns.
# pyright: reportArgumentType=false, reportReturnType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportAssignmentType=false, reportOperatorIssue=false, reportOptionalOperand=false, reportGeneralTypeIssues=false
# pyright: reportIncompatibleMethodOverride=false, reportOptionalMemberAccess=false, reportIndexIssue=false

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sympy
from sympy import Expr, S, Symbol

from memoryless.errors import NotDerivable
from memoryless.formulas.algebra import rational, scalar
from memoryless.formulas.stand_in import Symbolic, formula
from memoryless.formulas.symbols import g, k, n, theta
from memoryless.methods.method import Method


@dataclass(frozen=True)
class Variable:
    """A momentum variable m = sum_k kernel[k] g_l of k steps ago.

    Attributes:
        m: its symbol, m_1, m_2, ...
        g: g_l as a function of g and theta.
        beta: decay rate.
        weight: n -> weight(n).
        first: relative weight of the very first gradient.
        lag: 1 if it is read before this step's gradient enters.
    """

    m: Symbol
    g: Expr
    beta: Expr
    weight: Callable[[Expr | None], Expr]
    first: Expr
    lag: int

    @classmethod
    def of(cls, method: Method, l: int) -> "Variable":
        """Variable l of a method, l = 0, 1, ..."""
        v = method.variables[l]
        what = f"variable {l + 1} of {method.name}"

        def weight(step: Expr | None) -> Expr:
            """At step n; None is the limit."""

            def at(step: Any) -> Expr:
                return formula(f"the weight of {what}", lambda: v.weight(step))

            if step is None or not step.is_Integer:
                return at(math.inf if step is None else step)
            try:
                return at(n).subs(n, step)  # n as a symbol keeps its powers exact
            except NotDerivable:
                return at(int(step))

        g_l = formula(f"g of {what}", lambda: v.g(Symbolic(g), Symbolic(theta)))
        return cls(Symbol(f"m_{l + 1}", real=True), g_l, rational(v.beta), weight, rational(v.first), v.lag)

    def sum(self, term: Expr, step: Expr | None) -> Expr:
        """sum_k kernel[k] term(k), left as a sum.

        Args:
            term: as a function of the symbol k.
            step: n, an integer or a symbol; None is the limit.
        """
        weighted = self.weight(step) * self.beta ** (k - self.lag) * term
        if step is not None and step.is_Integer and step < self.lag:
            return S.Zero
        if step is None:
            return sympy.Sum(weighted, (k, self.lag, sympy.oo))
        return sympy.Sum(weighted, (k, self.lag, step)) + (self.first - 1) * weighted.subs(k, step)

    @functools.cache  # noqa: B019 (few variables, short lives)
    def moment(self, p: int, step: Expr | None) -> Expr:
        """sum_k k^p kernel[k].

        Args:
            p: >= 0.
            step: n, an integer or a symbol; None is the limit.
        """
        if step is not None and step.is_Integer:
            ages = range(self.lag, int(step) + 1)
            terms = (a**p * self.beta ** (a - self.lag) * (self.first if a == step else 1) for a in ages)
            return scalar(self.weight(step) * sum(terms, S.Zero))
        if self.beta == 0:
            return scalar(self.weight(step) * S(self.lag) ** p)
        if self.beta == 1:
            return scalar(self.weight(step) * (sympy.summation(k**p, (k, self.lag, step)) + (self.first - 1) * step**p))
        total = series(p, self.lag, step, self.beta)
        if step is not None:
            total += (self.first - 1) * step**p * self.beta ** (step - self.lag)
        return scalar(sympy.simplify(self.weight(step) * total))

    def mean_age(self, step: Expr | None) -> Expr:
        """sum_k k kernel[k] / sum_k kernel[k]."""
        weight = self.moment(0, step)
        return scalar(sympy.simplify(self.moment(1, step) / weight)) if weight else S.Zero

    def tails(self, age: Expr, step: Expr) -> Expr:
        """sum_{k >= age} kernel[k] at step n, for 1 <= age <= n."""
        if self.beta == 0:
            return self.weight(step) * (1 if age == self.lag else 0)
        if self.beta == 1:
            return self.weight(step) * (step + 1 - age + self.first - 1)
        run = (self.beta ** (age - self.lag) - self.beta ** (step + 1 - self.lag)) / (1 - self.beta)
        return self.weight(step) * (run + (self.first - 1) * self.beta ** (step - self.lag))


_z = Symbol("z", positive=True)


def series(p: int, lag: int, step: Expr | None, ratio: Expr) -> Expr:
    """sum_{k=lag..n} k^p ratio^(k-lag).

    Args:
        p: >= 0.
        lag: 0 or more.
        step: n, or None for the limit.
        ratio: not 1.
    """
    return _series(p, lag, step).subs(_z, ratio)


@functools.cache
def _series(p: int, lag: int, step: Expr | None) -> Expr:
    """sum_{k=lag..n} k^p z^(k-lag): the geometric series, differentiated p times by z d/dz."""
    series = _z**lag * (1 if step is None else 1 - _z ** (step - lag + 1)) / (1 - _z)
    for _ in range(p):
        series = _z * series.diff(_z)
    return sympy.simplify(series / _z**lag)
