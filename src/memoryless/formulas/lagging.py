"""phi over a frozen history and over one that lags: F and M as they come out of the definition.

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

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import sympy
from sympy import Expr, S, Symbol

from memoryless.errors import NotDerivable
from memoryless.formulas.algebra import equal, evaluated, scalar, shortest
from memoryless.formulas.symbols import Field, H, back, g, magnitude, s, theta, w
from memoryless.formulas.variable import Variable, series


@dataclass(frozen=True)
class LaggingUpdate:
    """The update of a method whose history lags, in terms of the gradient with any coupled decay in it.

    Attributes:
        name: of the method.
        lr: step size, h or a number.
        variables: its momentum variables, their g_l in terms of that gradient.
        readout: phi in terms of the variables' symbols and theta.
        coupling: lambda of a decay that is added to the gradient, 0 for none.
        step: n, or None for the steady state.
    """

    name: str
    lr: Expr
    variables: tuple[Variable, ...]
    readout: Expr
    coupling: Expr
    step: Expr | None

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
            for v, (drift, way) in zip(self.variables, self.drift_of, strict=True)
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
        """F[s] / F[n] of `_past`, none in the steady state; None where it differs between coordinates."""
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
                age = scalar(shortest(self._way(v, self._shares) / v.moment(0, self.step)))
            same = (tau for tau, other in ages.values() if equal(other, age))
            ages[v.m] = next(same, Symbol(f"tau_{l}", positive=True)), age
        return ages

    @cached_property
    def drift_of(self) -> list[tuple[Expr, Expr]]:
        """For each variable, the drift of the gradient and the way back of theta per step of age."""
        if not self.aligned:
            return [(_of(w, v), _of(back, v)) if v.m in self.ages else (S.Zero, S.Zero) for v in self.variables]
        found = []
        for v in self.variables:
            share = self.ages[v.m][1] / v.mean_age(self.step) if v.m in self.ages else S.Zero
            found.append((share * w, share * self.lr * self.frozen))
        return found

    def drifts_along(self, F: Expr) -> dict[Symbol, Expr]:
        """What the drifts' symbols stand for; see `Formulas.drifts`.

        Args:
            F: the update, as it shall stand under H where all variables share the drift w.
        """
        if self.aligned:
            return {w: self.lr * H(F)}
        drifts = {}
        for v in self.variables:
            if v.m in self.ages:
                way = self.lr * self._way(v, self._past) / v.moment(1, self.step)
                drifts |= {_of(w, v): H(way), _of(back, v): way}
        return drifts

    @cached_property
    def _past_steps(self) -> list[Expr]:
        """0..n-1; where n is a symbol, the symbol s stands for those that are not numbers."""
        assert self.step is not None
        if self.step.is_Integer:
            return [S(i) for i in range(int(self.step))]
        # No formula in s holds at 0 where nothing is read yet and then something that is not the sum's first term.
        return [S.Zero, s] if any(v.lag and v.first != 1 for v in self.variables) else [s]

    @cached_property
    def _past(self) -> list[Expr]:
        """F[s] of `_past_steps`."""
        return [self._frozen(i) for i in self._past_steps]

    def _frozen(self, step: Expr | None) -> Expr:
        F = self.readout.subs({v.m: v.moment(0, step) * v.g for v in self.variables}, simultaneous=True)
        return _finite(F, f"the update of {self.name} where the history is frozen")

    def _way(self, v: Variable, past: list[Expr]) -> Expr:
        """sum_k kernel[k] D[k] = sum_{s<n} tails(n - s) F[s], the F[s] or what they are multiples by given as `_past` is."""
        assert self.step is not None
        total = S.Zero
        for i, F in zip(self._past_steps, past, strict=True):
            term = v.tails(self.step - i, self.step) * F
            total += _sum(term, S(len(past) - 1), self.step) if i == s else term
        return total

    def slope(self, m: Mapping[Symbol, Expr], y: Symbol) -> Expr:
        """d/dy of phi at y = 0, the variables not given being frozen.

        Args:
            m: some of the variables, as functions of y.
            y: real symbol.
        """
        frozen = {v.m: v.moment(0, self.step) * v.g for v in self.variables}
        return slope_at_0(self.readout.subs(frozen | dict(m), simultaneous=True), y)


def _of(symbol: Field, v: Variable) -> Field:
    """w_l or b_l of variable l."""
    return Field(str(v.m).replace("m", str(symbol)), real=True)


def slope_at_0(expression: Expr, y: Symbol) -> Expr:
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


def _sum(terms: Expr, start: Expr, end: Expr) -> Expr:
    """sum_{start <= s < end} of the terms: geometric series in closed form, the rest left as sums."""
    if not terms.has(Field):
        terms = shortest(terms)  # where a denominator cancels, a series may be geometric that was none
    total = S.Zero
    for term in sympy.Add.make_args(terms):
        outer, inner = term.as_independent(s, as_Add=False)
        parts = [x.as_independent(s, as_Add=False) for x in sympy.Add.make_args(_distributed(inner))]
        found = [(factor, _geometric(product, start, end)) for factor, product in parts]
        if any(series is None for _, series in found):
            total += outer * sympy.Sum(inner, (s, start, end - 1))
        else:
            total += outer * sum((factor * series for factor, series in found), S.Zero)
    return total


def _distributed(product: Expr) -> Expr:
    """Multiplied out but for the sums that it is divided by."""
    below = [x for x in sympy.Mul.make_args(product) if x.is_Pow and x.base.is_Add]
    return sympy.expand_mul(sympy.expand_power_exp(product / sympy.Mul(*below)) * sympy.Mul(*below), deep=False)


def _geometric(product: Expr, start: Expr, end: Expr) -> Expr | None:
    """sum_{start <= s < end} of s^p z^s, or None of another product: SymPy's own search for a series need not end."""
    p, z = S.Zero, S.One
    for base, exponent in product.as_powers_dict().items():
        slope = exponent.diff(s)
        if base == s and exponent.is_Integer and exponent > 0:
            p += exponent
        elif not base.has(s) and exponent == slope * s:
            z *= base**slope
        elif base == 1:
            continue
        else:
            return None
    if evaluated(z) == 1:
        return sympy.summation(s**p, (s, start, end - 1))
    return z**start * series(int(p), int(start), end - 1, z)
