"""Expressions in the shape in which one writes them, and whether two are the same function."""

# SymPy's annotations do not describe what it returns.
# pyright: reportArgumentType=false, reportReturnType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportAssignmentType=false, reportOperatorIssue=false, reportOptionalOperand=false, reportGeneralTypeIssues=false
# pyright: reportIncompatibleMethodOverride=false, reportOptionalMemberAccess=false, reportIndexIssue=false

import functools
import math
import numbers
import operator
from collections.abc import Callable
from typing import Any

import mpmath
import sympy
from sympy import Expr, S
from sympy.core.relational import Relational
from sympy.functions.elementary.hyperbolic import HyperbolicFunction
from sympy.functions.elementary.trigonometric import TrigonometricFunction

from memoryless.formulas.symbols import Exponent, Field, GradK, H, HessK, L, Rate, Step, Total, around_sums, g, theta, w

_MULTIPLIED_OUT = 20
"""The largest exponent that stays an integer of SymPy's."""

TERMS = 300
"""Of a sum that are written out."""


def rational(x: Any) -> Expr:
    """A number, or an expression with its floats, as the fractions that their first fifteen digits say.

    Args:
        x: number or expression.
    """
    if isinstance(x, numbers.Real) and not isinstance(x, (Expr, bool)):
        return S.Infinity if math.isinf(x) else sympy.Rational(f"{x:.15g}")
    expression = sympy.sympify(x)
    return expression.xreplace({f: rational(float(f)) for f in expression.atoms(sympy.Float)})


def evaluated(expression: Expr) -> Expr:
    """With the numbers of the step and of decay rates in place of their symbols.

    Args:
        expression: of any kind.
    """
    if isinstance(expression, Relational):  # which would be decided
        return expression.func(evaluated(expression.lhs), evaluated(expression.rhs), evaluate=False)
    numbers = {step: sympy.Integer(str(step)) for step in expression.atoms(Step)}
    numbers |= {rate: rate.number for rate in expression.atoms(Rate)}

    def power(base: Expr, exponent: Expr) -> Expr:
        exponent = exponent.xreplace(numbers)
        if not exponent.is_Integer or abs(exponent) <= _MULTIPLIED_OUT:
            return base**exponent
        return base ** (sympy.sign(exponent) * Exponent(abs(int(exponent))))

    return expression.replace(lambda e: e.is_Pow and e.exp.has(Step), lambda e: power(*e.args)).xreplace(numbers)


def number(expression: Expr) -> Expr | None:
    """`evaluated` where that is a number, its sums over the past added up; None where symbols are left, or a sum is too long.

    Args:
        expression: of any kind.
    """
    value = evaluated(expression)
    if value.free_symbols:
        return None
    if any(last - first >= TERMS for x in value.atoms(sympy.Sum) for _, first, last in x.limits):
        return None

    return added_up(value)


def added_up(expression: Expr) -> Expr:
    """Its sums over the past written out, in 30 digits: exact, their terms have numbers as long as the past.

    Args:
        expression: without symbols in the sums' limits.
    """
    return expression.replace(sympy.Sum, _added_up)


@functools.cache
def _added_up(term: Expr, ages: sympy.Tuple) -> Expr:
    index, *ends = ages
    first, last = map(int, ends)
    if term.free_symbols - {index}:
        return sympy.Add(*(approximated(term.subs(index, i), 30, lambda _: True) for i in range(first, last + 1)))
    with mpmath.workdps(30):
        at = sympy.lambdify(index, term, "mpmath")
        return sympy.Float(mpmath.fsum(at(i) for i in range(first, last + 1)), 30)


def sign_of_number(number: Expr) -> int:
    """Its sign, by its digits where they decide it.

    Args:
        number: without symbols.
    """
    digits = number.evalf(15)
    return int(sympy.sign(digits if digits.is_Float and digits._prec > 1 else sympy.simplify(number)))


def approximated(expression: Expr, digits: int, which: Callable[[Expr], bool]) -> Expr:
    """Numbers in it as decimals, each as a whole: what cancels in it costs no digits.

    Args:
        expression: of any kind.
        digits: significant ones.
        which: of the numbers.
    """
    if expression.is_number and which(expression):
        return expression.evalf(digits)
    parts = args = expression.args
    if (expression.is_Mul or expression.is_Add) and not expression.is_number:
        parts = (expression.func(*(x for x in args if x.is_number)), *(x for x in args if not x.is_number))
    found = [approximated(x, digits, which) for x in parts]
    return expression if all(map(operator.is_, found, parts)) else expression.func(*found)


def tidy(expression: Expr) -> Expr:
    """The same, with the terms in H, in sums over coordinates and in g and w (or in K) collected, and 1 - beta for beta - 1.

    Args:
        expression: of any kind.
    """
    nodes = expression.atoms(GradK, HessK) or expression.atoms(H, Total) | {L, g, w, theta}

    def collected(sum_: Expr) -> Expr:
        return sympy.collect(sympy.expand_mul(sum_), nodes, func=scalar) if sum_.is_polynomial(*nodes) else sum_

    def tidied(e: Expr) -> Expr:
        return _descending(e.replace(lambda e: e.is_Add, collected))

    return around_sums(expression.replace(sympy.Sum, lambda term, ages: sympy.Sum(tidied(term), ages)), tidied)


def shortest(expression: Expr) -> Expr:
    """Simplified if that makes it shorter; with numbers for symbols it may clear denominators instead.

    Args:
        expression: of any kind.
    """
    if expression.has(TrigonometricFunction, HyperbolicFunction):
        return expression  # SymPy would search their identities for seconds
    return min(expression, around_sums(expression, sympy.simplify), key=sympy.count_ops)


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


@functools.lru_cache(maxsize=4096)  # the terms of a sum share their factors
def scalar(coefficient: Expr) -> Expr:
    """A factor that is the same for all coordinates, in its shortest form; another is left as it is.

    Args:
        coefficient: of any kind.
    """
    if coefficient.has(Field):
        return coefficient
    return around_sums(coefficient, lambda x: _descending(sympy.powsimp(sympy.factor(x), deep=True)))


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
