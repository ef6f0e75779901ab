"""The formulas of a method in terms of grad L: F, M, the resummed correction, the modified loss, the modified flow."""

# SymPy's annotations do not describe what it returns.
# pyright: reportArgumentType=false, reportReturnType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportAssignmentType=false, reportOperatorIssue=false, reportOptionalOperand=false, reportGeneralTypeIssues=false
# pyright: reportIncompatibleMethodOverride=false, reportOptionalMemberAccess=false, reportIndexIssue=false

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import sympy
from sympy import Expr, S, Symbol

from memoryless.errors import BadInput, NotDerivable
from memoryless.formulas.algebra import evaluated, rational, tidy
from memoryless.formulas.lagging import LaggingUpdate, slope_at_0
from memoryless.formulas.net_age import NetAge
from memoryless.formulas.stand_in import Functions, Symbolic, formula
from memoryless.formulas.symbols import Beta, H, Rate, Step, back, g, k, theta, w
from memoryless.formulas.variable import Variable
from memoryless.methods.kernel import require_fading
from memoryless.methods.method import Method

_LONGEST = 100
"""Of the sums over the past that are written out; see `_at_step`."""


@dataclass(frozen=True)
class Formulas(LaggingUpdate):
    """The formulas of a method: SymPy expressions in g (grad L), theta, h and the hyperparameters.

    Attributes:
        values: its hyperparameters, symbols or numbers.
        make: builds the method from them.
    """

    values: Mapping[str, Any]
    make: Callable[..., Any] = field(repr=False, compare=False)

    @classmethod
    def of(cls, make: Callable[..., Any], values: Mapping[str, Any], step: Expr | None = None) -> Self:
        """The formulas of `make(**values)`.

        Args:
            make: builds a `Method`.
            values: its arguments, symbols or numbers.
            step: n, an integer or a symbol; None for the steady state.

        Raises:
            NotDerivable: no formula; says which line of phi stopped it.
            NeverForgets: steady state of a memory that does not fade.
        """
        method = _made(make, values)
        if isinstance(step, Step):
            method, step = _at_step(method, make, values, step)
        variables = _variables(method)
        if step is None:
            for v in method.variables:
                require_fading(v)
        variables, coupling = _without_coupling(variables)
        symbols = [Symbolic(v.m) for v in variables]
        readout = formula(f"phi of {method.name}", lambda: method.phi(Functions(), symbols, Symbolic(theta)))
        return cls(method.name, rational(method.lr), variables, readout, coupling, step, dict(values), make)

    @cached_property
    def F(self) -> Expr:
        """Update with the history frozen."""
        return evaluated(tidy(self._uncoupled(self._shown)))

    @cached_property
    def M(self) -> Expr:
        """First-order correction, Eq. 9; H(v) is the Hessian applied to v."""
        return evaluated(tidy(self._uncoupled(self.anatomy.M if self.anatomy else self.lagging.subs(self._drifts))))

    @cached_property
    def drifts(self) -> dict[Symbol, Expr]:
        """What w stands for, h H(F), the change of the gradient per step of age.

        Where the updates of the past are no multiples of the present one, each variable l has its own w_l, and b_l of theta.
        """
        return {symbol: evaluated(drift) for symbol, drift in self._tidy_drifts.items()}

    @cached_property
    def _tidy_drifts(self) -> dict[Symbol, Expr]:
        return {symbol: tidy(self._uncoupled(drift)) for symbol, drift in self._drifts.items()}

    @cached_property
    def resummed(self) -> Expr:
        """Resummed correction, in terms of g and w; without w where variables have a drift of their own."""
        return self.moved if self.aligned else evaluated(tidy(self._moved.subs(self._tidy_drifts)))

    @cached_property
    def moved(self) -> Expr:
        """The resummed correction in terms of g and `drifts`."""
        return evaluated(self._moved)

    @cached_property
    def _moved(self) -> Expr:
        m = {}
        for v, (drift, way) in zip(self.variables, self.drift_of, strict=True):
            g_l = v.g.subs({g: g + k * w, theta: theta + k * back}, simultaneous=True)
            m[v.m] = self._remembered(v, g_l).subs({w: drift, back: way}, simultaneous=True)
        return self._uncoupled(tidy(self.readout.subs(m, simultaneous=True)) - tidy(self._shown))

    def _remembered(self, v: Variable, g_l: Expr) -> Expr:
        """sum_k kernel[k] g_l of k steps ago, by the moments of the age where that is a polynomial in it."""
        if not g_l.is_polynomial(k):
            return v.sum(g_l, self.step)
        powers = sympy.Poly(g_l, k).all_coeffs()[::-1]
        return sum((term * v.moment(p, self.step) for p, term in enumerate(powers)), S.Zero)

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
        own = slope_at_0(F.subs({g: g + y * H(F), theta: theta + y * F}, simultaneous=True), y)
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
    def limits(self) -> list[tuple[sympy.Eq, Self]]:
        """What the formulas become without eps, without decay, at equal rates: (condition, formulas); steady state only."""
        if self.step is not None:
            return []
        symbols = {v for value in self.values.values() for v in (value if isinstance(value, tuple) else (value,))}
        rates = sorted((v for v in symbols if isinstance(v, Beta)), key=str)
        limits = {v: S.Zero for v in sorted(symbols, key=str) if str(v) in ("epsilon", "lamda")}
        if len(rates) == 2:
            limits[rates[1]] = rates[0]

        def limit(v: Symbol, to: Expr) -> Self:
            return self.of(self.make, {key: _substituted(value, v, to) for key, value in self.values.items()})

        return [(sympy.Eq(v, to, evaluate=False), limit(v, to)) for v, to in limits.items()]

    @property
    def modified_loss(self) -> Expr | None:
        """L~ with F + M = lambda theta + P grad L~, in L, g = grad L and theta; None if there is none, or none is found."""
        if self.anatomy is None or self.anatomy.modified_loss is None:
            return None
        return evaluated(self.anatomy.uncoupled(self.anatomy.modified_loss))

    @cached_property
    def _drifts(self) -> dict[Symbol, Expr]:
        return self.drifts_along(self._shown)

    @property
    def _shown(self) -> Expr:
        """F with its net age's preconditioner in sight, where it has one."""
        return self.anatomy.F if self.anatomy else self.frozen

    def _uncoupled(self, expression: Expr) -> Expr:
        """In terms of grad L: a gradient with decay in it changes by H v + lambda v as theta moves by v."""
        if self.coupling == 0:
            return expression
        return expression.replace(H, lambda v: H(v) + self.coupling * v).subs(g, g + self.coupling * theta)


def _made(make: Callable[..., Any], given: Mapping[str, Any]) -> Method:
    try:
        method = make(**given)
    except TypeError as error:
        name = getattr(make, "__name__", "the method")
        raise NotDerivable(f"{name} does not take symbols ({error}); give its hyperparameters numbers") from error
    if not isinstance(method, Method):
        raise NotDerivable(f"{getattr(make, '__name__', make)} returned {type(method).__name__}, expected a memoryless.Method")
    return method


def _variables(method: Method) -> tuple[Variable, ...]:
    return tuple(Variable.of(method, l) for l in range(len(method.variables)))


def _at_step(method: Method, make: Callable[..., Any], values: Mapping[str, Any], step: Step) -> tuple[Method, Expr]:
    """The method with symbols for its decay rates where it takes them; n as a number where a weight has no formula in it.

    Raises:
        NotDerivable: for so many steps that writing them out would not end.
    """
    rates = {rate: Rate(rate) for v in method.variables if (rate := rational(v.beta)).is_Rational and 0 < rate < 1}
    try:
        named = _made(make, {key: _with(rates, value) for key, value in values.items()})
        for v in _variables(named):
            v.weight(step)
    except (NotDerivable, BadInput):
        pass
    else:
        return named, step
    try:
        for v in _variables(method):
            v.weight(step)
    except NotDerivable as error:
        if int(str(step)) > _LONGEST:
            way_out = f"give a step of at most {_LONGEST}, or take ml.correction"
            raise NotDerivable(f"{error}; without a formula in n, {way_out}") from error
        return method, S(int(str(step)))
    return method, step


def _with(symbols: Mapping[Expr, Symbol], value: Any) -> Any:
    """A hyperparameter with symbols in place of its numbers."""
    if isinstance(value, tuple):
        return tuple(_with(symbols, v) for v in value)
    return symbols.get(value, value) if isinstance(value, Expr) else value


def _without_coupling(variables: tuple[Variable, ...]) -> tuple[tuple[Variable, ...], Expr]:
    """The variables as functions of one gradient + lambda theta, and lambda, if that is how theta enters them all."""
    rates = set()
    for v in variables:
        slope = v.g.diff(g)
        rates.add(sympy.simplify(v.g.diff(theta) / slope) if slope != 0 else sympy.nan)
    if len(rates) != 1 or (rate := rates.pop()).has(g, theta, sympy.nan) or rate == 0:
        return variables, S.Zero
    return tuple(replace(v, g=v.g.subs(theta, 0)) for v in variables), rate


def _substituted(value: Any, symbol: Symbol, to: Expr) -> Any:
    if isinstance(value, tuple):
        return tuple(_substituted(v, symbol, to) for v in value)
    return to if isinstance(value, Symbol) and value == symbol else value
