"""The net age kappa of an update's memory, and what follows from it: potential, modified loss, reading.

Where phi acts on each coordinate, and beside a decay lambda theta on the gradient only, F = lambda theta + P(g) g and

    M = h kappa(g) P(g) H F,        kappa = sum_l tau_l (elasticity of phi in m_l) (elasticity of g_l in g)

with tau_l the mean age of variable l: to first order the update is that of a gradient which lags by kappa steps. With
R' = P(g) g, H F is the gradient of Total[R(grad L)] + lambda (grad L . theta - L), and F + M = lambda theta + P grad L~ for

    L~ = (1 - h kappa lambda) L + h kappa (Total[R(grad L)] + lambda grad L . theta)

if and only if kappa is the same for every g. For AdamW with eps -> 0 it is that of https://arxiv.org/abs/2502.02132.
Along the memoryless path and without decay, memory changes Total[R(grad L)] per step by -h^2 Total[kappa P (H F)^2]: it
regularizes coordinates with kappa P > 0 and anti-regularizes those with kappa P < 0, whatever the loss.
"""

# SymPy's annotations do not describe what it returns.
# pyright: reportArgumentType=false, reportReturnType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportAssignmentType=false, reportOperatorIssue=false, reportOptionalOperand=false, reportGeneralTypeIssues=false
# pyright: reportIncompatibleMethodOverride=false, reportOptionalMemberAccess=false, reportIndexIssue=false

from dataclasses import dataclass, field
from functools import cached_property

import sympy
from sympy import Expr, S, Symbol

from memoryless.errors import NotDerivable
from memoryless.formulas.algebra import equal, number, scalar, shortest, sign_of_number, tidy
from memoryless.formulas.lagging import LaggingUpdate
from memoryless.formulas.symbols import Beta, GradK, H, HessK, L, Rate, Total, g, sums_of, theta, w

x = Symbol("x", positive=True)
"""|g| of one coordinate, of an update that is odd in g."""


@dataclass(frozen=True)
class NetAge:
    """The elementwise anatomy of an update F = decay theta + P g.

    Attributes:
        lr: step size, h or a number.
        decay: lambda of the decay beside the gradient's part, 0 for none.
        coupling: lambda of a decay added to the gradient, 0 for none; then g and L stand for those of L + lambda/2 |theta|^2.
        P: preconditioner, a function of g.
        ages: the age of each variable with memory, by its symbol tau_l; equal ages share the first one's.
        elasticities: of P g in the variables of age tau_l, functions of g: kappa = sum_l tau_l elasticity_l.
        at: `x` if the update is odd, else `g`: what P and the elasticities depend on before |g| is put in.
    """

    lr: Expr
    decay: Expr
    coupling: Expr
    at: Symbol
    ages: dict[Symbol, Expr]
    _P: Expr = field(repr=False)
    _elasticities: dict[Symbol, Expr] = field(repr=False)

    @classmethod
    def of(cls, lagging: LaggingUpdate) -> "NetAge":
        """Take an update apart.

        Args:
            lagging: with one drift for all its variables.

        Raises:
            NotDerivable: phi mixes coordinates, or g and theta, or the updates of the past are no multiples of the present one.
        """
        decay, update = _split(lagging)
        odd = equal(update.subs(g, -x), -update.subs(g, x))
        at = x if odd else g
        size = update.subs(g, at)
        ages, elasticities = {}, {}
        y = sympy.Dummy("y", real=True)
        if not lagging.aligned:
            raise NotDerivable("at this step the updates of the past are no multiples of the present one: no single net age")
        for v in lagging.variables:
            if v.m not in lagging.ages:
                continue
            if v.g.has(theta):
                raise NotDerivable(f"variable {v.m} remembers theta apart from the gradient: no net age")
            tau, ages[tau] = lagging.ages[v.m]
            only = lagging.slope({v.m: v.moment(0, lagging.step) * (v.g + y * v.g.diff(g) * w)}, y)
            elasticities[tau] = shortest(elasticities.get(tau, 0) + (only.diff(w) * g).subs(g, at) / size)
        return cls(lagging.lr, decay, lagging.coupling, at, ages, shortest(size / at), elasticities)

    def _in_g(self, expression: Expr) -> Expr:
        return expression.subs(x, sympy.Abs(g))

    @property
    def P(self) -> Expr:
        """The preconditioner: F = decay theta + P g."""
        return tidy(self._in_g(self._P))

    @property
    def F(self) -> Expr:
        """Update with the history frozen, decay theta + P g."""
        return self.decay * theta + self.P * g

    @property
    def M(self) -> Expr:
        """First-order correction, h kappa P H(F)."""
        return self.lr * self.symbolic.subs(self.ages) * self.P * H(self.F)

    @property
    def flow(self) -> Expr:
        """The sum -(F + M + (h/2) (dF/dtheta) F): half the update's elasticity in g joins kappa, h/2 decay F the decay."""
        kappa = self.symbolic.subs(self.ages) + self._in_g(self._elasticity) / 2
        return -((1 + self.lr * self.decay / 2) * self.F) - self.lr * kappa * self.P * H(self.F)

    @cached_property
    def _elasticity(self) -> Expr:
        """Of the update P g in g."""
        size = self._P * self.at
        return shortest(size.diff(self.at) * self.at / size)

    @property
    def symbolic(self) -> Expr:
        """Kappa as a function of g, in terms of the mean ages' symbols."""
        return self._in_g(self._symbolic)

    @property
    def _symbolic(self) -> Expr:
        return sum((tau * e for tau, e in self._elasticities.items()), S.Zero)

    @cached_property
    def kappa(self) -> Expr:
        """Kappa as a function of g."""
        return tidy(self._in_g(self._kappa))

    @cached_property
    def _kappa(self) -> Expr:
        return scalar(shortest(self._symbolic.subs(self.ages)))

    @cached_property
    def constant(self) -> bool:
        """Is kappa the same for every g? Then a modified loss exists."""
        if not self._kappa.has(self.at):
            return True
        kappa = self._kappa.xreplace(sums_of(self._kappa))
        values = {v: S(i + 2) / (2 * i + 7) for i, v in enumerate(sorted(kappa.free_symbols - {self.at}, key=str))}
        points = [S(3) / 7, S(5) / 3] + ([] if self.at == x else [-S(3) / 7])
        here, *there = (kappa.subs(values | {self.at: point}).evalf() for point in points)
        return all(abs(here - other) < 1e-9 for other in there) and equal(kappa.diff(self.at), S.Zero)

    @cached_property
    def R(self) -> Expr | None:
        """The potential of a coordinate, R' = P g; None if SymPy finds no integral."""
        R = sympy.integrate(self._P * self.at, self.at, meijerg=False)
        if R.has(sympy.Integral) or sympy.simplify(R.diff(self.at) - self._P * self.at) != 0:
            return None
        # log(1 + |g|/eps) rather than log(eps + |g|): the constant is free, and this one makes R(0) = 0.
        R = R.replace(sympy.log, lambda u: sympy.log(sympy.expand(u / at_0) if (at_0 := u.subs(self.at, 0)) else u))
        factor, rest = sympy.factor_terms(R).as_independent(x, g, as_Add=False)
        return self._in_g(scalar(factor) * rest)

    @cached_property
    def modified_loss(self) -> Expr | None:
        """The L~ with F + M = decay theta + P grad L~; None where kappa differs between coordinates or R is unknown."""
        return self.loss_of(self.kappa) if self.constant and self.R is not None else None

    def uncoupled(self, loss: Expr) -> Expr:
        """A loss in terms of L and grad L where decay is coupled into the gradient.

        Args:
            loss: from `modified_loss` or `flow_loss`.
        """
        if self.coupling == 0:
            return loss
        return loss.subs(L, L + self.coupling / 2 * Total(theta**2)).subs(g, g + self.coupling * theta)

    def loss_of(self, kappa: Expr) -> Expr:
        """The L~ of a constant net age, in terms of L and g = grad L.

        Args:
            kappa: free of g.
        """
        assert self.R is not None
        factor, norm = Total(self.R).as_independent(Total, as_Add=False)
        return (
            (1 - self.lr * kappa * self.decay) * L
            + scalar(self.lr * kappa * factor) * norm
            + self.lr * kappa * self.decay * Total(g * theta)
        )

    @cached_property
    def flow_loss(self) -> Expr | None:
        """The L~ of the modified flow, -P grad L~; None with decay, or where its net age is not constant.

        Its (h/2) (dF/dtheta) F adds half the elasticity of the update in g to kappa.
        """
        kappa = sympy.simplify(self._kappa + self._elasticity / 2)
        return self.loss_of(kappa) if not (kappa.has(self.at) or self.decay or self.R is None) else None

    @cached_property
    def ends(self) -> tuple[Expr, Expr]:
        """Kappa for |g| -> 0 and |g| -> infinity, in terms of the mean ages' symbols where that decides their signs."""
        low, high = (sympy.limit(self._symbolic, x, end, "+" if end == 0 else "-") for end in (0, sympy.oo))
        return sympy.expand(low), sympy.expand(high)

    @cached_property
    def crossing(self) -> tuple[Expr, Expr] | None:
        """|g| or g^2 and the value at which kappa changes sign, in terms of the mean ages' symbols; None if there is none."""
        numerator, z = sympy.numer(sympy.together(self._symbolic)), sympy.Dummy("z")
        for quantity, root in ((g**2, sympy.sqrt(z)), (sympy.Abs(g), z)):
            polynomial = numerator.subs(x, root)
            if polynomial.is_polynomial(z) and sympy.degree(polynomial, z) == 1:
                top, bottom = sympy.fraction(sympy.factor(sympy.solve(polynomial, z)[0]))
                sign = -1 if top.could_extract_minus_sign() else 1
                return quantity, sign * top / (sign * bottom)
        return None

    def sign_of_P(self, factor: Expr) -> int | None:
        """Sign of P over a factor that is free of g, for every g; None if it depends on g or the symbols."""
        return sign_of(self._P / factor)

    def sign(self, kappa: Expr) -> int | None:
        """Sign of an expression in the ages' symbols; see `sign_of`."""
        value = kappa.subs(self.ages)
        if (known := number(value)) is not None:
            return sign_of_number(known)
        return 1 if kappa.is_positive else -1 if kappa.is_negative else sign_of(value)


def sign_of(expression: Expr) -> int | None:
    """Sign for all values of the symbols, betas in (0, 1) and the others positive; None if it depends on them.

    Args:
        expression: in symbols that are positive.
    """
    expression = expression.xreplace({rate: rate.number for rate in expression.atoms(Rate)})
    # 1 - beta is positive where beta = 1 / (1 + a), a > 0.
    rates = {beta: 1 / (1 + Symbol(f"a_{beta}", positive=True)) for beta in expression.atoms(Beta)}
    value = sympy.factor(sympy.simplify(expression.subs(rates)))
    return 0 if value.is_zero else 1 if value.is_positive else -1 if value.is_negative else None


def _split(lagging: LaggingUpdate) -> tuple[Expr, Expr]:
    """Lambda and the rest of F = lambda theta + rest(g)."""
    F = lagging.frozen
    if F.has(GradK, HessK, H):
        raise NotDerivable("phi does not act on each coordinate: kappa is a matrix")
    decay, rest = S.Zero, S.Zero
    for term in sympy.Add.make_args(sympy.expand_mul(F)):
        if term.has(g):
            rest += term
        else:
            decay += term
    if rest == 0:
        raise NotDerivable("the update does not depend on the gradient where the history is frozen: no net age")
    rate = sympy.simplify(decay / theta)
    if rest.has(theta) or rate.has(theta):
        raise NotDerivable("phi is not a function of the gradient beside lambda theta: no net age")
    return rate, rest
