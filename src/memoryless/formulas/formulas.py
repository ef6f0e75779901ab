"""Formulas: what an optimizer's memory does, derived from the same phi that computes it.

Give phi symbols for its memories, freeze the history, let it lag, differentiate: `corrections.correction` with symbols for
tensors. The gradient of k steps ago is g + k w, w = h H F, and theta was theta + k h F, so with c_l the frozen weight of
variable l, tau_l its mean age and dg_l the change of g_l per step of age,

    F = phi(c_l g_l, theta),        M = d/dy phi(c_l (g_l + y tau_l dg_l), theta) at y = 0                           (Eq. 9)

At a finite step n the updates F[s] of the past differ, and w_l = h H Fbar_l with the average of `corrections.history`. Where
they are multiples of F, as heavy ball's are, age_l = sum_k kernel[k] D[k] / (c_l F) takes the place of tau_l.
"""

# SymPy's annotations do not describe what it returns.
# pyright: reportArgumentType=false, reportReturnType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportAssignmentType=false, reportOperatorIssue=false, reportOptionalOperand=false, reportGeneralTypeIssues=false
# pyright: reportIncompatibleMethodOverride=false, reportOptionalMemberAccess=false, reportIndexIssue=false

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import sympy
from sympy import Expr, S, Symbol

from memoryless.errors import NotDerivable
from memoryless.formulas.net_age import NetAge
from memoryless.formulas.symbols import Beta, Field, H, back, equal, g, k, magnitude, s, scalar, theta, tidy, w
from memoryless.formulas.variable import Variable


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
        return tidy(self._uncoupled(self.anatomy.M if self.anatomy else self.lagging.subs(self._drifts)))

    @cached_property
    def drifts(self) -> dict[Symbol, Expr]:
        """What w stands for, h H(F), the change of the gradient per step of age.

        Where the updates of the past are no multiples of the present one, each variable l has its own w_l, and b_l of theta.
        """
        return {symbol: tidy(self._uncoupled(drift)) for symbol, drift in self._drifts.items()}

    @cached_property
    def resummed(self) -> Expr:
        """Resummed correction, in terms of g and w; without w where variables have a drift of their own."""
        return self.moved if self.aligned else tidy(self.moved.subs(self.drifts))

    @cached_property
    def moved(self) -> Expr:
        """The resummed correction in terms of g and `drifts`."""
        m = {}
        for v, (drift, way) in zip(self.variables, self._drift_of, strict=True):
            g_l = v.g.subs({g: g + k * drift, theta: theta + k * way}, simultaneous=True)
            if g_l.is_polynomial(k):
                powers = sympy.Poly(g_l, k).all_coeffs()[::-1]
                m[v.m] = sum((term * v.moment(p, self.step) for p, term in enumerate(powers)), S.Zero)
            else:
                m[v.m] = v.sum(g_l, self.step)
        F = self.anatomy.F if self.anatomy else self.frozen
        return self._uncoupled(tidy(self.readout.subs(m, simultaneous=True)) - tidy(F))

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
            NotDerivable: the update is not a function of g on each coordinate beside a decay, or F[s] is no multiple of F[n].
        """
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
        from memoryless.formulas.printing import text

        return text(self)

    def markdown(self) -> str:
        """The same in Markdown with LaTeX formulas."""
        from memoryless.formulas.printing import markdown

        return markdown(self)

    def latex(self) -> str:
        """The same as a LaTeX article that compiles as it is."""
        from memoryless.formulas.printing import latex

        return latex(self)

    def to_html(self) -> str:
        """The same as one self-contained HTML page."""
        from memoryless.formulas.printing import html

        return html(self)

    def as_dict(self) -> dict[str, Any]:
        """The formulas in SymPy's notation, as text and in LaTeX."""
        from memoryless.formulas.printing import as_dict

        return as_dict(self)

    def to_json(self) -> str:
        """`as_dict` as JSON text."""
        return json.dumps(self.as_dict(), indent=2, ensure_ascii=False)

    @cached_property
    def frozen(self) -> Expr:
        """F as a function of the gradient with any coupled decay in it."""
        return self._frozen(self.step)

    @cached_property
    def lagging(self) -> Expr:
        """M as it comes out of the definition, in terms of that gradient and `drifts`."""
        y = sympy.Dummy("y", real=True)
        m = {
            v.m: v.moment(0, self.step) * v.g + y * v.moment(1, self.step) * (v.g.diff(g) * drift + v.g.diff(theta) * way)
            for v, (drift, way) in zip(self.variables, self._drift_of, strict=True)
        }
        return self.slope(m, y)

    @property
    def settled(self) -> bool:
        """Whether F[s] = F[n] at every past step s."""
        return self._shares is not None and all(share == 1 for share in self._shares)

    @property
    def aligned(self) -> bool:
        """Whether F[s] is a multiple of F[n] at every past step s, so that all variables share the drift w."""
        return self._shares is not None

    @cached_property
    def _shares(self) -> list[Expr] | None:
        """F[s] / F[n] of the steps in `_past`, none in the steady state; None where it differs between coordinates."""
        if self.step is None:
            return []
        at_1 = {g: 1, theta: 1}
        shares = []
        for F in self._past:
            share = S.One if equal(F, self.frozen) else sympy.simplify(F.subs(at_1) / self.frozen.subs(at_1))
            if share.has(sympy.zoo, sympy.nan, sympy.oo) or not equal(F, share * self.frozen):
                return None
            shares.append(share)
        return shares

    @cached_property
    def ages(self) -> dict[Symbol, tuple[Symbol, Expr]]:
        """For each variable with memory, tau_l and how many steps of the present update it lags, sum_k kernel[k] D[k] / (c F).

        Its mean age where F[s] = F, and where F[s] is no multiple of F. Equal ages share a symbol.
        """
        ages: dict[Symbol, tuple[Symbol, Expr]] = {}
        for l, v in enumerate(self.variables, 1):
            if not v.moment(1, self.step):
                continue
            age = v.mean_age(self.step)
            if self.aligned and not self.settled:
                age = scalar(sympy.simplify(self._way(v, self._shares) / v.moment(0, self.step)))
            same = (tau for tau, other in ages.values() if equal(other, age))
            ages[v.m] = next(same, Symbol(f"tau_{l}", positive=True)), age
        return ages

    @cached_property
    def _drift_of(self) -> list[tuple[Expr, Expr]]:
        """For each variable, the drift of the gradient and the way back of theta per step of age."""
        if not self.aligned:
            return [(_of(w, v), _of(back, v)) if v.m in self.ages else (S.Zero, S.Zero) for v in self.variables]
        found = []
        for v in self.variables:
            share = self.ages[v.m][1] / v.mean_age(self.step) if v.m in self.ages else S.Zero
            found.append((share * w, share * self.lr * self.frozen))
        return found

    @cached_property
    def _drifts(self) -> dict[Symbol, Expr]:
        if self.aligned:
            return {w: self.lr * H(self.anatomy.F if self.anatomy else self.frozen)}
        drifts = {}
        for v in self.variables:
            if v.m in self.ages:
                way = self.lr * self._way(v, self._past) / v.moment(1, self.step)
                drifts |= {_of(w, v): H(way), _of(back, v): way}
        return drifts

    @cached_property
    def _past(self) -> list[Expr]:
        """F[s], s = 0..n-1; of a symbolic s where n is a symbol."""
        assert self.step is not None
        return [self._frozen(S(i)) for i in range(int(self.step))] if self.step.is_Integer else [self._frozen(s)]

    def _frozen(self, step: Expr | None) -> Expr:
        F = self.readout.subs({v.m: v.moment(0, step) * v.g for v in self.variables}, simultaneous=True)
        return _finite(F, f"the update of {self.name} where the history is frozen")

    def _way(self, v: Variable, past: list[Expr]) -> Expr:
        """sum_k kernel[k] D[k] = sum_{s<n} tails(n - s) F[s], the F[s] or what they are multiples by given as `_past` is."""
        assert self.step is not None
        if self.step.is_Integer:
            return sum((v.tails(self.step - i, self.step) * F for i, F in enumerate(past)), S.Zero)
        if v.lag and v.first != 1:
            raise NotDerivable(f"{self.name}: give an integer step, a symbolic one has no formula for variable {v.m}")
        return _sum(v.tails(self.step - s, self.step) * past[0], self.step)

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


def _of(symbol: Field, v: Variable) -> Field:
    """w_l or b_l of variable l."""
    return Field(str(v.m).replace("m", str(symbol)), real=True)


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
