"""A stand-in for a tensor.

phi and the g_l of a method are plain Python functions; fed with `Symbolic` in place of tensors they give their formula.
"""

# SymPy's annotations do not describe what it returns.
# pyright: reportArgumentType=false, reportReturnType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportAssignmentType=false, reportOperatorIssue=false, reportOptionalOperand=false, reportGeneralTypeIssues=false
# pyright: reportIncompatibleMethodOverride=false, reportOptionalMemberAccess=false, reportIndexIssue=false

import functools
import linecache
import numbers
import operator
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sympy
import torch
from sympy import Expr, Piecewise

from memoryless.errors import NotDerivable
from memoryless.formulas.algebra import rational
from memoryless.formulas.symbols import GradK


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
