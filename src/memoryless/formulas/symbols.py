"""What formulas are made of: symbols, the Hessian as an operator, sums over coordinates, and a stand-in for a tensor.

All products are elementwise. A formula holds for every coordinate at once: g is grad L, theta the parameters, H[v] the Hessian
applied to v, Total[r] the sum of r over the coordinates. phi and the g_l of a method are plain Python functions; fed with
`Symbolic` in place of tensors they give their formula.
"""

# SymPy's annotations do not describe what it returns.
# pyright: reportArgumentType=false, reportReturnType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportAssignmentType=false, reportOperatorIssue=false, reportOptionalOperand=false, reportGeneralTypeIssues=false
# pyright: reportIncompatibleMethodOverride=false, reportOptionalMemberAccess=false, reportIndexIssue=false

import functools
import linecache
import math
import numbers
import operator
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sympy
import torch
from sympy import Expr, Piecewise, S, Symbol
from sympy.functions.elementary.hyperbolic import HyperbolicFunction
from sympy.functions.elementary.trigonometric import TrigonometricFunction
from sympy.printing.precedence import PRECEDENCE

from memoryless.errors import NotDerivable


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


g, theta = Field("g", real=True), Field("theta", real=True)
w, back = Field("w", real=True), Field("b", real=True)  # per step of age: drift of the gradient, way back of theta
h, L = Symbol("h", positive=True), Symbol("L", real=True)
n, k, s = (Symbol(name, integer=True, nonnegative=True) for name in "nks")
update = Field("F", real=True)  # by its name
magnitude = Field("|g|", positive=True)


_grad = Symbol(r"\nabla L", real=True)


class _Linear(sympy.Function):
    """A node linear in its last argument: sums are split, factors that are the same for all coordinates taken out."""

    @classmethod
    def eval(cls, *args: Expr) -> Expr | None:
        *others, x = args
        outer, inner = x.as_independent(Field, as_Add=False)
        if outer == 0:
            return S.Zero
        terms = sympy.Add.make_args(sympy.expand_mul(inner))
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


def rational(x: Any) -> Expr:
    """A number, or an expression with its floats, as the fractions that their first fifteen digits say.

    Args:
        x: number or expression.
    """
    if isinstance(x, numbers.Real) and not isinstance(x, (Expr, bool)):
        return S.Infinity if math.isinf(x) else sympy.Rational(f"{x:.15g}")
    expression = sympy.sympify(x)
    return expression.xreplace({f: rational(float(f)) for f in expression.atoms(sympy.Float)})


def tidy(expression: Expr) -> Expr:
    """The same, with the terms in H, in sums over coordinates and in g and w (or in K) collected, and 1 - beta for beta - 1.

    Args:
        expression: of any kind.
    """
    nodes = expression.atoms(GradK, HessK) or expression.atoms(H, Total) | {L, g, w, theta}

    def collected(sum_: Expr) -> Expr:
        return sympy.collect(sympy.expand_mul(sum_), nodes, func=scalar) if sum_.is_polynomial(*nodes) else sum_

    return _descending(expression.replace(lambda e: e.is_Add, collected))


def shortest(expression: Expr) -> Expr:
    """Simplified if that makes it shorter; with numbers for symbols it may clear denominators instead.

    Args:
        expression: of any kind.
    """
    if expression.has(TrigonometricFunction, HyperbolicFunction):
        return expression  # SymPy would search their identities for seconds
    return min(expression, sympy.simplify(expression), key=sympy.count_ops)


def equal(a: Expr, b: Expr) -> bool:
    """Whether two expressions are the same function: decided in 30 digits at four points, with both signs where there are two.

    Args:
        a: of any kind.
        b: of any kind.
    """
    difference = a - b
    if difference == 0 or not difference.free_symbols or difference.has(GradK, HessK):  # K has no values
        return sympy.simplify(difference) == 0
    for seed in range(4):
        point = {}
        for i, v in enumerate(sorted(difference.free_symbols, key=str)):
            size = S(seed + i + 2) if v.is_integer else sympy.Rational(2 * i + seed + 3, 5 * i + 2 * seed + 17)
            # + + +, - - -, + - +, - + -
            point[v] = size if v.is_nonnegative else (-1) ** (seed + i * (seed // 2)) * size
        value, scale = (x.subs(point).evalf(30) for x in (difference, abs(a) + abs(b)))
        if not value.is_number or not scale.is_number:
            return sympy.simplify(difference) == 0
        if not abs(value) <= 1e-20 * (1 + scale):
            return False
    return True


def scalar(coefficient: Expr) -> Expr:
    """A factor that is the same for all coordinates, in its shortest form; another is left as it is.

    Args:
        coefficient: of any kind.
    """
    if coefficient.has(Field):
        return coefficient
    return _descending(sympy.powsimp(sympy.factor(coefficient), deep=True))


def _descending(expression: Expr) -> Expr:
    """1 - x for x - 1 where it is a factor, likewise 9 - 10 x, if that costs no sign; -(1 + x) for -1 - x."""

    def turned(base: Expr, exponent: Expr) -> Expr:
        return (-1) ** exponent * (-base) ** exponent if exponent.is_Integer and _is_negative(base) else base**exponent

    def signed(product: Expr) -> Expr:
        first = next(filter(_is_negative, product.args), None)
        return product if first is None else -(product / first) * -first

    expression = expression.replace(sympy.Pow, turned)
    return expression.replace(
        lambda e: e.is_Mul and (e.as_coeff_Mul()[0].is_negative or any(_is_negative_sum(x) for x in e.args)), signed
    )


def _is_negative_sum(x: Expr) -> bool:
    return x.is_Add and all(term.could_extract_minus_sign() for term in x.args)


def _is_negative(x: Expr) -> bool:
    return x.is_Add and bool(x.as_coeff_Add()[0].is_negative)


def _piecewise(condition: Any, a: Any, b: Any) -> Expr:
    return Piecewise((a, condition), (b, True))


def _clamp(x: Any, min: Any = None, max: Any = None) -> Expr:
    x = x if min is None else _piecewise(x < min, min, x)
    return x if max is None else _piecewise(x > max, max, x)


# torch's elementwise functions in SymPy's terms.
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{
        name: getattr(sympy, name)
        for name in ["sqrt", "exp", "log", "sin", "cos", "tan", "sinh", "cosh", "tanh", "asinh", "atan", "erf", "sign"]
    },
    **{name: getattr(operator, name) for name in ["add", "sub", "mul", "neg", "pow", "lt", "le", "gt", "ge"]},
    "abs": sympy.Abs,
    "absolute": sympy.Abs,
    "arctan": sympy.atan,
    "sgn": sympy.sign,
    "div": operator.truediv,
    "true_divide": operator.truediv,
    "square": lambda x: x**2,
    "reciprocal": lambda x: 1 / x,
    "rsqrt": lambda x: 1 / sympy.sqrt(x),
    "sigmoid": lambda x: 1 / (1 + sympy.exp(-x)),
    "log1p": lambda x: sympy.log(1 + x),
    "expm1": lambda x: sympy.exp(x) - 1,
    "hypot": lambda x, y: sympy.sqrt(x**2 + y**2),
    "lerp": lambda x, y, weight: x + weight * (y - x),
    "addcmul": lambda x, a, b, value=1: x + value * a * b,
    "addcdiv": lambda x, a, b, value=1: x + value * a / b,
    "where": _piecewise,
    "maximum": lambda a, b: _piecewise(a >= b, a, b),
    "minimum": lambda a, b: _piecewise(a <= b, a, b),
    "clamp": _clamp,
    "clip": _clamp,
    "clamp_min": lambda x, min: _clamp(x, min),
    "clamp_max": lambda x, max: _clamp(x, None, max),
}


def _operator(op: Callable[[Any, Any], Any]) -> Callable[[Any, Any], "Symbolic"]:
    return lambda self, other: Symbolic(op(self.formula, _plain(other)))


def _reflected(op: Callable[[Any, Any], Any]) -> Callable[[Any, Any], "Symbolic"]:
    return lambda self, other: Symbolic(op(_plain(other), self.formula))


class Symbolic:
    """A formula that answers where phi and the g_l expect a tensor: operators, methods, and functions of torch.

    Args:
        formula: SymPy expression, or a condition.
    """

    __array_ufunc__ = None  # numpy scalars leave arithmetic to us

    def __init__(self, formula: Any):
        self.formula = formula

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> "Symbolic":
        return call(getattr(func, "__name__", str(func)), *args, **(kwargs or {}))

    def __getattr__(self, name: str) -> Callable[..., "Symbolic"]:
        if name.startswith("_"):
            raise AttributeError(name)
        return functools.partial(call, name, self)

    def __bool__(self) -> bool:
        raise NotDerivable("branches on a value; torch.where does not")

    def __iter__(self) -> Any:
        raise NotDerivable("takes single coordinates, but a formula holds for all")

    def __getitem__(self, index: Any) -> Any:
        raise NotDerivable("takes single coordinates, but a formula holds for all")

    __add__, __radd__ = _operator(operator.add), _reflected(operator.add)
    __sub__, __rsub__ = _operator(operator.sub), _reflected(operator.sub)
    __mul__, __rmul__ = _operator(operator.mul), _reflected(operator.mul)
    __truediv__, __rtruediv__ = _operator(operator.truediv), _reflected(operator.truediv)
    __pow__, __rpow__ = _operator(operator.pow), _reflected(operator.pow)
    __eq__, __ne__ = _operator(sympy.Eq), _operator(sympy.Ne)  # type: ignore[assignment]
    __hash__ = object.__hash__
    __lt__, __le__ = _operator(operator.lt), _operator(operator.le)
    __gt__, __ge__ = _operator(operator.gt), _operator(operator.ge)

    def __neg__(self) -> "Symbolic":
        return Symbolic(-self.formula)

    def __abs__(self) -> "Symbolic":
        return Symbolic(sympy.Abs(self.formula))

    def __repr__(self) -> str:
        return str(self.formula)


def call(name: str, *args: Any, **kwargs: Any) -> Symbolic:
    """A function of torch, by name, on formulas.

    Args:
        name: such as "sqrt".
        *args: Symbolic or numbers.
        **kwargs: likewise.

    Raises:
        NotDerivable: the function has no formula here.
    """
    if name not in _FUNCTIONS:
        raise NotDerivable(f"calls {name}, which is not an elementwise function with a formula")
    plain = [_plain(x) for x in args]
    return Symbolic(_FUNCTIONS[name](*plain, **{key: _plain(x) for key, x in kwargs.items()}))


def _plain(x: Any) -> Any:
    """What SymPy calculates with; one tensor element is a number."""
    if isinstance(x, Symbolic):
        return x.formula
    if isinstance(x, torch.Tensor):
        if x.numel() != 1:
            raise NotDerivable(f"uses a tensor of shape {tuple(x.shape)} of its own, which differs between coordinates")
        return rational(x.item())
    return rational(x) if isinstance(x, numbers.Real) else x


class Functions:
    """What phi may call, for formulas; the twin of `methods.method.Functions`."""

    def __getattr__(self, name: str) -> Callable[..., Symbolic]:
        return functools.partial(call, name)

    @staticmethod
    def grad(K: Any) -> Callable[[Symbolic], Symbolic]:
        """The gradient of K: the identity for None, half the squared norm; any other K is left abstract."""
        return lambda c: c if K is None else Symbolic(GradK(c.formula))


def formula(what: str, compute: Callable[[], Any]) -> Expr:
    """The formula that a computation with `Symbolic` in place of tensors gives.

    Args:
        what: its name in messages.
        compute: calls phi or a g_l.

    Raises:
        NotDerivable: it does something without a formula; names the line.
    """
    try:
        result = compute()
    except Exception as error:
        raise NotDerivable(f"{what} cannot be derived: it {_reason(error)}{_line(error)}") from error
    if not isinstance(result, (Symbolic, Expr, numbers.Real)):
        raise NotDerivable(f"{what} cannot be derived: it returns {type(result).__name__}, not a function of its arguments")
    return rational(_plain(result))


def _reason(error: Exception) -> str:
    if isinstance(error, NotDerivable):
        return str(error)
    return f"raises {type(error).__name__} when given formulas in place of tensors ({' '.join(str(error).split())[:120]})"


def _line(error: Exception) -> str:
    """Where the author's own code was: the innermost frame outside of what derives and of the libraries it calls."""
    found = ""
    for frame, number in traceback.walk_tb(error.__traceback__):
        module = frame.f_globals.get("__name__", "")
        if not module.startswith("memoryless.formulas.") and module.partition(".")[0] not in (
            "torch",
            "sympy",
            "numpy",
            "functools",
        ):
            path = frame.f_code.co_filename
            source = linecache.getline(path, number).strip()
            found = f" (line {number} of {Path(path).name}" + (f": {source})" if source else ")")
    return found
