"""Formulas: what an optimizer's memory does, derived from the same phi that computes it.

Give phi symbols for its memories, freeze the history, let it lag, differentiate: `memoryless.correction` with symbols for
tensors. The gradient of k steps ago is g + k w, w = h H F, and theta was theta + k h F, so with c_l the frozen weight of
variable l, tau_l its mean age and dg_l the change of g_l per step of age,

    F = phi(c_l g_l, theta),        M = d/dy phi(c_l (g_l + y tau_l dg_l), theta) at y = 0                           (Eq. 9)

At a finite step n the updates F[s] of the past differ, and w_l = h H Fbar_l with the average of `memoryless.history`.
"""

# SymPy's annotations do not describe what it returns.
# pyright: reportArgumentType=false, reportReturnType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportAssignmentType=false, reportOperatorIssue=false, reportOptionalOperand=false, reportGeneralTypeIssues=false
# pyright: reportIncompatibleMethodOverride=false, reportOptionalMemberAccess=false, reportIndexIssue=false

import functools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import sympy
from sympy import Expr, S, Symbol

from memoryless.method import Method
from memoryless.net_age import NetAge
from memoryless.symbolic import (
    Beta,
    H,
    NotDerivable,
    Symbolic,
    equal,
    formula,
    g,
    k,
    magnitude,
    n,
    rational,
    s,
    scalar,
    theta,
    tidy,
    w,
)


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
        if self.beta == 1:
            return scalar(self.weight(step) * (sympy.summation(k**p, (k, self.lag, step)) + (self.first - 1) * step**p))
        total = _series(p, self.lag, step).subs(_z, self.beta)
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


@functools.cache
def _series(p: int, lag: int, step: Expr | None) -> Expr:
    """sum_{k=lag..n} k^p z^(k-lag): the geometric series, differentiated p times by z d/dz."""
    series = _z**lag * (1 if step is None else 1 - _z ** (step - lag + 1)) / (1 - _z)
    for _ in range(p):
        series = _z * series.diff(_z)
    return sympy.simplify(series / _z**lag)


@dataclass(frozen=True)
class Derivation:
    """The formulas of a method: SymPy expressions in g (grad L), theta, h and the hyperparameters.

    Attributes:
        name: of the method.
        lr: step size, h or a number.
        values: its hyperparameters, symbols or numbers.
        variables: its momentum variables, their g_l in terms of the gradient with any coupled decay in it.
        readout: phi in terms of the variables' symbols and theta.
        coupling: lambda of a decay that is added to the gradient, 0 for none.
        step: n, or None for the steady state.
        again: derives the same method with other values.
    """

    name: str
    lr: Expr
    values: Mapping[str, Any]
    variables: tuple[Variable, ...]
    readout: Expr
    coupling: Expr
    step: Expr | None
    again: Callable[[Mapping[Symbol, Any]], "Derivation"] = field(repr=False, compare=False)

    @cached_property
    def F(self) -> Expr:
        """Update with the history frozen."""
        return tidy(self._uncoupled(self.anatomy.F if self.anatomy else self.frozen))

    @cached_property
    def M(self) -> Expr:
        """First-order correction, Eq. 9; H(v) is the Hessian applied to v."""
        return tidy(self._uncoupled(self.anatomy.M if self.anatomy else self.lagging))

    @cached_property
    def drift(self) -> Expr:
        """What the symbol w in `resummed` stands for: h H(F), the change of the gradient per step of age."""
        return tidy(self._uncoupled(self.lr * H(self.anatomy.F if self.anatomy else self.frozen)))

    @cached_property
    def resummed(self) -> Expr:
        """Resummed correction, in terms of g and w where all variables share one drift w.

        Raises:
            NotDerivable: at a symbolic step, where the variables' drifts differ.
        """
        if not self.has_resummed:
            raise NotDerivable(f"{self.name}: the drifts differ between variables at a symbolic step; give an integer one")
        m = {}
        for v, lag in zip(self.variables, self._lags, strict=True):
            age = v.moment(1, self.step)
            drift, way = (w, self.lr * self.frozen) if self.settled else (S.Zero if age == 0 else part / age for part in lag)
            g_l = v.g.subs({g: g + k * drift, theta: theta + k * way}, simultaneous=True)
            if g_l.is_polynomial(k):
                powers = sympy.Poly(g_l, k).all_coeffs()[::-1]
                m[v.m] = sum((term * v.moment(p, self.step) for p, term in enumerate(powers)), S.Zero)
            else:
                m[v.m] = v.sum(g_l, self.step)
        moved = self.readout.subs(m, simultaneous=True)
        return tidy(self._uncoupled(moved)) - self.F

    @property
    def has_resummed(self) -> bool:
        """Is there a formula for `resummed`? Not at a symbolic step where several variables have a drift of their own."""
        alone = sum(v.moment(1, self.step) != 0 for v in self.variables) <= 1
        return self.settled or alone or (self.step is not None and self.step.is_Integer)

    @cached_property
    def flow(self) -> Expr:
        """Right side of the modified flow dtheta/dt = -(F + M + (h/2) (dF/dtheta) F), section 5.1 of the paper.

        Raises:
            NotDerivable: at a finite step.
        """
        if self.step is not None:
            raise NotDerivable("the flow belongs to the steady state; derive without a step")
        if self.anatomy:
            return tidy(self._uncoupled(self.anatomy.flow))
        F, y = self.frozen, sympy.Dummy("y", real=True)
        own = _slope(F.subs({g: g + y * H(F), theta: theta + y * F}, simultaneous=True), y)
        return tidy(-(self.F + self.M + self._uncoupled(self.lr / 2 * own)))

    @cached_property
    def net_age(self) -> NetAge:
        """kappa, P and what follows from them: the potential, the modified loss, the reading.

        Raises:
            NotDerivable: the update is not a function of g on each coordinate beside a decay, or F[s] differs between steps.
        """
        if not self.settled:
            raise NotDerivable("at a finite step the update with frozen history differs between past steps: no single net age")
        return NetAge.of(self)

    @cached_property
    def anatomy(self) -> NetAge | None:
        """`net_age`, or None without one."""
        try:
            return self.net_age
        except NotDerivable:
            return None

    @cached_property
    def limits(self) -> list[tuple[sympy.Eq, "Derivation"]]:
        """What the formulas become without eps, without decay, at equal rates: (condition, derivation); steady state only."""
        if self.step is not None:
            return []
        symbols = {v for value in self.values.values() for v in (value if isinstance(value, tuple) else (value,))}
        rates = sorted((v for v in symbols if isinstance(v, Beta)), key=str)
        limits = {v: S.Zero for v in sorted(symbols, key=str) if str(v) in ("epsilon", "lamda")}
        if len(rates) == 2:
            limits[rates[1]] = rates[0]
        return [(sympy.Eq(v, to, evaluate=False), self.again({v: to})) for v, to in limits.items()]

    @property
    def modified_loss(self) -> Expr | None:
        """L~ with F + M = lambda theta + P grad L~, in L, g = grad L and theta; None if there is none, or none is found."""
        if self.anatomy is None or self.anatomy.modified_loss is None:
            return None
        return self.anatomy.uncoupled(self.anatomy.modified_loss)

    def text(self) -> str:
        """The derivation in plain text: assumptions, each step, result, limits, the reading in words."""
        from memoryless.report.derivation import text

        return text(self)

    def markdown(self) -> str:
        """The same in Markdown with LaTeX formulas."""
        from memoryless.report.derivation import markdown

        return markdown(self)

    def latex(self) -> str:
        """The same as a LaTeX article that compiles as it is."""
        from memoryless.report.derivation import latex

        return latex(self)

    def to_html(self) -> str:
        """The same as one self-contained HTML page."""
        from memoryless.report.derivation import html

        return html(self)

    def to_json(self) -> str:
        """The formulas in SymPy's notation, as text and in LaTeX."""
        from memoryless.report.derivation import as_dict

        return json.dumps(as_dict(self), indent=2, ensure_ascii=False)

    @cached_property
    def frozen(self) -> Expr:
        """F as a function of the gradient with any coupled decay in it."""
        return self._frozen(self.step)

    @cached_property
    def lagging(self) -> Expr:
        """M as a function of that gradient, as it comes out of the definition."""
        y = sympy.Dummy("y", real=True)
        m = {
            v.m: v.moment(0, self.step) * v.g + y * (v.g.diff(g) * drift + v.g.diff(theta) * way)
            for v, (drift, way) in zip(self.variables, self._lags, strict=True)
        }
        return self.slope(m, y)

    @cached_property
    def settled(self) -> bool:
        """Whether F[s] = F[n] at every past step s, so that all variables share one drift."""
        return self.step is None or all(equal(F, self.frozen) for F in self._past)

    @cached_property
    def _lags(self) -> list[tuple[Expr, Expr]]:
        """For each variable, sum_k k kernel[k] times the drift of g and the way back of theta per step of age."""
        if self.settled:
            return [
                (v.moment(1, self.step) * self.lr * H(self.frozen), v.moment(1, self.step) * self.lr * self.frozen)
                for v in self.variables
            ]
        ways = [self.lr * self._way(v) for v in self.variables]
        return [(H(way), way) for way in ways]

    @cached_property
    def _past(self) -> list[Expr]:
        """F[s], s = 0..n-1; of a symbolic s where n is a symbol."""
        assert self.step is not None
        return [self._frozen(S(i)) for i in range(int(self.step))] if self.step.is_Integer else [self._frozen(s)]

    def _frozen(self, step: Expr | None) -> Expr:
        F = self.readout.subs({v.m: v.moment(0, step) * v.g for v in self.variables}, simultaneous=True)
        return _finite(F, f"the update of {self.name} where the history is frozen")

    def _way(self, v: Variable) -> Expr:
        """sum_k kernel[k] D[k] = sum_{s<n} tails(n - s) F[s]."""
        assert self.step is not None
        if self.step.is_Integer:
            return sum((v.tails(self.step - i, self.step) * F for i, F in enumerate(self._past)), S.Zero)
        if v.lag and v.first != 1:
            raise NotDerivable(f"{self.name}: give an integer step, a symbolic one has no formula for variable {v.m}")
        return _sum(v.tails(self.step - s, self.step) * self._past[0], self.step)

    def slope(self, m: Mapping[Symbol, Expr], y: Symbol) -> Expr:
        """d/dy of phi at y = 0, the variables not given being frozen.

        Args:
            m: some of the variables, as functions of y.
            y: real symbol.
        """
        frozen = {v.m: v.moment(0, self.step) * v.g for v in self.variables}
        return _slope(self.readout.subs(frozen | dict(m), simultaneous=True), y)

    def _uncoupled(self, expression: Expr) -> Expr:
        """In terms of grad L: a gradient with decay in it changes by H v + lambda v as theta moves by v."""
        if self.coupling == 0:
            return expression
        return expression.replace(H, lambda v: H(v) + self.coupling * v).subs(g, g + self.coupling * theta)


def _slope(expression: Expr, y: Symbol) -> Expr:
    """The derivative at y = 0; that of a sign is 0 almost everywhere."""
    slope = expression.diff(y).subs(y, 0).replace(sympy.DiracDelta, lambda *_: S.Zero)
    # |g| for g^2 / |g|, which has no value where g = 0.
    slope = slope.subs(sympy.Abs(g), magnitude).replace(
        lambda e: e.is_Pow and e.base == g and e.exp.is_Integer, lambda e: magnitude ** (e.exp - e.exp % 2) * g ** (e.exp % 2)
    )
    slope = slope.subs(magnitude, sympy.Abs(g))
    return _finite(slope, "the slope of phi where the history is frozen")


def _finite(expression: Expr, what: str) -> Expr:
    if expression.has(sympy.oo, -sympy.oo, sympy.zoo, sympy.nan):
        raise NotDerivable(f"{what} is not finite (a division by zero); a positive eps under the root may help")
    return expression


def _sum(terms: Expr, count: Expr) -> Expr:
    """sum_{s < count} of the terms: geometric series in closed form, the rest left as a sum."""
    total = S.Zero
    for term in sympy.Add.make_args(sympy.expand(terms, power_exp=True, mul=True)):
        outer, inner = term.as_independent(s, as_Add=False)
        series = sympy.Sum(inner, (s, 0, count - 1))
        if not inner.has(g, theta):
            # The other branch is a ratio of 1.
            series = series.doit().replace(sympy.Piecewise, lambda *branches: branches[-1][0])
        total += outer * series
    return total
