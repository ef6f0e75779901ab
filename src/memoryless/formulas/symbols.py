"""What formulas are made of: symbols, the Hessian as an operator, sums over coordinates and their names.

All products are elementwise. A formula holds for every coordinate at once: g is grad L, theta the parameters, H[v] the Hessian
applied to v, Total[r] the sum of r over the coordinates.
"""

# SymPy's annotations do not describe what it returns.
# pyright: reportArgumentType=false, reportReturnType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportAssignmentType=false, reportOperatorIssue=false, reportOptionalOperand=false, reportGeneralTypeIssues=false
# pyright: reportIncompatibleMethodOverride=false, reportOptionalMemberAccess=false, reportIndexIssue=false

from collections.abc import Callable
from typing import Any

import sympy
from mpmath.libmp import from_int
from sympy import Expr, S, Symbol
from sympy.printing.precedence import PRECEDENCE


class Beta(Symbol):
    """A decay rate in (0, 1): its powers vanish in the steady state."""

    def _eval_power(self, other: Expr) -> Expr | None:
        return S.Zero if other is S.Infinity else None


class Field(Symbol):
    """A symbol whose value differs between coordinates; printed after the others, lambda theta."""

    @classmethod
    def class_key(cls) -> Any:
        """SymPy's order of factors."""
        return (*Symbol.class_key()[:2], "Symbol of a field")


class Step(Symbol):
    """A step number as a symbol: simplifying leaves beta^n one power, where a number makes a polynomial of degree n.

    `algebra.evaluated` puts the number in.
    """

    def __new__(cls, number: int) -> "Step":
        """Of a number."""
        return Symbol.__new__(cls, str(number), integer=True, positive=True)


class Rate(Beta):
    """A decay rate's number as a symbol, as `Step` is of a step: (9/10)^n 3^(2 n) 10^-n is a search, b^n c^n is a product."""

    number: Expr

    def __new__(cls, number: Expr) -> "Rate":
        """Of an exact number in (0, 1)."""
        self = Symbol.__new__(cls, str(number), positive=True)
        self.number = number
        return self

    def __reduce__(self) -> Any:
        return Rate, (self.number,)


class Exponent(sympy.NumberSymbol):
    """A large integer exponent: a number that, like pi, SymPy neither multiplies out nor looks for roots with."""

    is_integer = is_positive = True
    __slots__ = ("number",)
    number: int

    def __new__(cls, number: int) -> "Exponent":
        """Of a number."""
        self = super().__new__(cls)
        self.number = number
        return self

    def _hashable_content(self) -> tuple[int]:
        return (self.number,)

    def __getnewargs__(self) -> tuple[int]:
        return (self.number,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Exponent) and self.number == other.number

    __hash__ = sympy.NumberSymbol.__hash__

    def __int__(self) -> int:
        return self.number

    def _as_mpf_val(self, prec: int) -> Any:
        return from_int(self.number, prec)

    def _print(self, _printer: Any) -> str:
        return str(self.number)

    _sympystr = _latex = _print


g, theta = Field("g", real=True), Field("theta", real=True)
w, back = Field("w", real=True), Field("b", real=True)  # per step of age: drift of the gradient, way back of theta
h, L = Symbol("h", positive=True), Symbol("L", real=True)
n, k, s = (Symbol(name, integer=True, nonnegative=True) for name in "nks")
update = Field("F", real=True)  # by its name
magnitude = Field("|g|", positive=True)


_grad = Symbol(r"\nabla L", real=True)


def sums_of(expression: Expr) -> dict[Expr, Symbol]:
    """Its sums over the past, and a symbol for each.

    Args:
        expression: of any kind.
    """
    sums = sorted(expression.atoms(sympy.Sum), key=sympy.default_sort_key)
    return {x: Field(f"sum {i}", real=True) if x.has(Field) else Symbol(f"sum {i}", positive=True) for i, x in enumerate(sums)}


def around_sums(expression: Expr, rewritten: Callable[[Expr], Expr]) -> Expr:
    """Rewritten with its sums over the past as they are: SymPy's search for what they come to need not end.

    Args:
        expression: of any kind.
        rewritten: what to do with it.
    """
    symbols = sums_of(expression)
    return rewritten(expression.xreplace(symbols)).xreplace({symbol: x for x, symbol in symbols.items()})


class _Linear(sympy.Function):
    """A node linear in its last argument: sums are split, factors that are the same for all coordinates taken out."""

    @classmethod
    def eval(cls, *args: Expr) -> Expr | None:
        *others, x = args
        outer, inner = x.as_independent(Field, as_Add=False)
        if outer == 0:
            return S.Zero
        terms = sympy.Add.make_args(around_sums(inner, sympy.expand_mul))
        if len(terms) > 1:
            return outer * sympy.Add(*(cls(*others, term) for term in terms))
        return outer * cls(*others, inner) if outer != 1 else None

    def _eval_is_real(self) -> bool:
        return True


class H(_Linear):
    """Hessian of the loss applied to a vector."""

    def _latex(self, printer: Any) -> str:
        return _applied("H", self.args[0], printer)


class Total(_Linear):
    """Sum over the coordinates; prints as the norm that it is."""

    def _latex(self, printer: Any) -> str:
        if name := norm_of(self.args[0]):
            v, below, power = (printer.doprint(x) for x in (name[0].subs(g, _grad), *name[1:]))
            return rf"\left\lVert {v} \right\rVert_{{{below}}}^{{{power}}}".replace("_{}", "").replace("^{1}", "")
        if self.args[0] == g * theta:
            return r"\nabla L \cdot \theta"
        return rf"\sum_i \left[ {printer.doprint(self.args[0])} \right]_i"


class Grad(sympy.Function):
    """Gradient along theta of a scalar."""

    def _latex(self, printer: Any) -> str:
        return rf"\nabla\left[ {printer.doprint(self.args[0])} \right]"


class GradK(sympy.Function):
    """Gradient of a convex function K of the whole vector; not elementwise."""

    def _eval_derivative(self, s: Symbol) -> Expr:
        return HessK(self.args[0], self.args[0].diff(s))

    def _eval_is_real(self) -> bool:
        return True

    def _latex(self, printer: Any) -> str:
        return rf"\nabla K\left({printer.doprint(self.args[0])}\right)"


class HessK(_Linear):
    """Hessian of K at the first argument applied to the second."""

    def _latex(self, printer: Any) -> str:
        at, v = self.args
        return _applied(rf"\nabla^2 K\left({printer.doprint(at)}\right)", v, printer)


class Product(sympy.Function):
    """A product printed in the order given."""

    def _latex(self, printer: Any) -> str:
        return r" \, ".join(printer.parenthesize(x, PRECEDENCE["Mul"]) for x in self.args)


class Inner(sympy.Function):
    """Inner product of two vectors."""

    def _latex(self, printer: Any) -> str:
        return rf"\left\langle {printer.doprint(self.args[0])}, {printer.doprint(self.args[1])} \right\rangle"


def _applied(matrix: str, v: Expr, printer: Any) -> str:
    text = printer.doprint(v)
    return rf"{matrix} {text}" if v.is_Symbol else rf"{matrix}\left[ {text} \right]"


def norm_of(r: Expr) -> tuple[Expr, Any, Any] | None:
    """The vector, subscript and power of the norm whose sum over coordinates has the summand r; None if it has no name.

    Args:
        r: summand.

    Example:
        >>> norm_of(g**2), norm_of(sympy.Abs(theta)), norm_of(sympy.sqrt(g**2 + 3))
        ((g, , 2), (theta, 1, 1), (g, (1, 3), 1))
    """
    if isinstance(r, sympy.Abs):
        return r.args[0], S.One, 1
    if isinstance(r, sympy.Pow) and isinstance(r.base, sympy.Abs):
        return r.base.args[0], r.exp, r.exp
    if isinstance(r, sympy.Pow) and r.exp == 2:
        return r.base, Symbol(""), 2
    if isinstance(r, sympy.Pow) and r.exp == S.Half:
        eps, squares = r.base.as_independent(Field, as_Add=True)
        if isinstance(squares, sympy.Pow) and squares.exp == 2:
            return squares.base, sympy.Tuple(1, eps), 1
    return None


def name_of(r: Expr) -> str | None:
    """The name in words of a sum over coordinates with the summand r, up to a factor; None if it has none.

    Args:
        r: summand.

    Example:
        >>> name_of(3 * g**2), name_of(sympy.sqrt(g**2 + 3)), name_of(sympy.sin(g))
        ('squared norm', 'perturbed 1-norm', None)
    """
    r = r.as_independent(Field, as_Add=False)[1]
    if norm := norm_of(r):
        _, below, power = norm
        one = "1-norm" if below == 1 else "perturbed 1-norm"
        return one if power == 1 else "squared norm" if power == 2 else "power of a p-norm"
    size = sympy.Dummy("size", positive=True)
    slope = r.subs(sympy.Abs(g), size).diff(size)
    if slope and not slope.has(g) and sympy.cancel(size / slope).is_polynomial(size):
        return "potential of Fair (1974): quadratic for small |g|, the 1-norm for large"  # R' = g / (a |g| + b)
    return None
