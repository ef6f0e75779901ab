"""From what the user names to its formulas: which hyperparameters are symbols, which numbers."""

# SymPy's annotations do not describe what it returns.
# pyright: reportArgumentType=false, reportReturnType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportAssignmentType=false, reportOperatorIssue=false, reportOptionalOperand=false, reportGeneralTypeIssues=false
# pyright: reportIncompatibleMethodOverride=false, reportOptionalMemberAccess=false, reportIndexIssue=false

import ast
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import sympy
import torch
from sympy import Expr, S, Symbol
from torch.nn import Parameter
from torch.optim import Optimizer

from memoryless.errors import BadInput, NotDerivable, NotRecognised
from memoryless.formulas.formulas import Derivation
from memoryless.formulas.symbols import Beta, Functions, Symbolic, formula, g, h, n, rational, theta
from memoryless.formulas.variable import Variable
from memoryless.methods.catalogue import CATALOGUE
from memoryless.methods.kernel import require_fading
from memoryless.methods.live_optimizer import recognised
from memoryless.methods.method import Groups, Method, is_number
from memoryless.methods.named import resolve

_beta, _beta1, _beta2, _rho1, _rho2 = (Beta(name, positive=True) for name in ["beta", "beta_1", "beta_2", "rho_1", "rho_2"])
_eps, _lam = Symbol("epsilon", positive=True), Symbol("lamda", positive=True)

SYMBOLS: dict[str, dict[str, Any]] = {
    "heavy_ball": {"lr": h, "momentum": _beta},
    "nesterov": {"lr": h, "momentum": _beta},
    "rmsprop": {"lr": h, "alpha": _beta2, "eps": _eps},
    "adam": {"lr": h, "betas": (_beta1, _beta2), "eps": _eps},
    "adamw": {"lr": h, "betas": (_beta1, _beta2), "eps": _eps, "weight_decay": _lam},
    "nadam": {"lr": h, "betas": (_beta1, _beta2), "eps": _eps, "weight_decay": _lam},
    "lion_k": {"lr": h, "betas": (_rho1, _rho2), "weight_decay": _lam, "K": Symbol("K")},
    "lion": {"lr": h, "betas": (_rho1, _rho2), "weight_decay": _lam, "smoothing": _eps},
    "signum": {"lr": h, "momentum": _beta, "weight_decay": _lam, "smoothing": _eps},
}
"""The hyperparameters of the catalogue that stay symbols unless they are given; the others keep their defaults."""

# The symbol of a parameter of a user's own method, by its name.
_CUSTOMARY = {"lr": h, "betas": (_beta1, _beta2), "eps": _eps, "weight_decay": _lam, "smoothing": _eps}
_CUSTOMARY |= {"momentum": _beta, "alpha": _beta, "beta": _beta, "beta1": _beta1, "beta2": _beta2}


def derive(method: Any, step: int | str | None = None, **values: Any) -> Derivation:
    """The formulas of a method: F, M, the resummed correction, the modified loss where one exists, the modified flow.

    Args:
        method: text such as "adamw", "adamw(eps=0)", "torch.optim.AdamW", "module:name" or "script.py:name"; a `Method`, a
            function or class that makes one, or a torch optimizer or its class in momentum form.
        step: None for the steady state, an integer n, or "n" for a symbolic one.
        **values: hyperparameters by their names (betas=(0.9, 0.999), or one by one, beta1=0.9); a number, or the name of
            another symbol (beta2="beta1"). What is not given stays a symbol, but the number of a `Method` or an optimizer.

    Returns:
        The formulas, which print themselves as text, Markdown, LaTeX and HTML.

    Raises:
        NotDerivable: no formula; says which line of phi stopped it, or why it is a black box.
        NeverForgets: steady state of a memory that does not fade.
        BadInput: unknown name or hyperparameter, or a value out of range.

    Example:
        >>> derive("heavy_ball").M
        beta*h*H(g)/(1 - beta)**3
        >>> derive("adamw", eps=0, weight_decay=0).modified_loss
        L + h*(beta_1 - beta_2)*Total(Abs(g))/((1 - beta_1)*(1 - beta_2))
    """
    if isinstance(method, str):
        named = resolve(method)
        method, values = named.target, {**named.options, **values}
    make, given = _maker(method)
    given = _assign(make, given, values, method)
    return _derive(make, given, _step(step))


def _derive(make: Callable[..., Any], given: Mapping[str, Any], step: Expr | None) -> Derivation:
    method = _made(make, given)
    variables = tuple(Variable.of(method, l) for l in range(len(method.variables)))
    if step is None:
        for v in method.variables:
            require_fading(v)
    variables, coupling = _without_coupling(variables)
    symbols = [Symbolic(v.m) for v in variables]
    readout = formula(f"phi of {method.name}", lambda: method.phi(Functions(), symbols, Symbolic(theta)))

    def again(changes: Mapping[Symbol, Any]) -> Derivation:
        return _derive(make, {key: _substituted(value, changes) for key, value in given.items()}, step)

    return Derivation(method.name, rational(method.lr), dict(given), variables, readout, coupling, step, again)


def _without_coupling(variables: tuple[Variable, ...]) -> tuple[tuple[Variable, ...], Expr]:
    """The variables as functions of one gradient + lambda theta, and lambda, if that is how theta enters them all."""
    rates = set()
    for v in variables:
        slope = v.g.diff(g)
        rates.add(sympy.simplify(v.g.diff(theta) / slope) if slope != 0 else sympy.nan)
    if len(rates) != 1 or (rate := rates.pop()).has(g, theta, sympy.nan) or rate == 0:
        return variables, S.Zero
    return tuple(replace(v, g=v.g.subs(theta, 0)) for v in variables), rate


def _maker(method: Any) -> tuple[Callable[..., Any], dict[str, Any]]:
    """A function that builds the method, and its arguments: symbols or numbers."""
    if isinstance(method, type) and issubclass(method, Optimizer):
        make, given = _maker(_with_defaults(method))
        return make, given | next(SYMBOLS[name] for name, known in CATALOGUE.items() if known is make)
    if isinstance(method, Optimizer):
        try:
            method = recognised(method)
        except NotRecognised as error:
            raise NotDerivable(f"{type(method).__name__} is a black box, which has no formula: {error}") from error
    if isinstance(method, Groups):
        raise NotDerivable("param groups have a formula each: derive(groups.parts[0].method)")
    if isinstance(method, Method):
        if method.make is None:
            return lambda: method, {}
        return method.make, {key: _exact(value) for key, value in method.hyper.items()}
    if method in CATALOGUE.values():
        return method, dict(SYMBOLS[next(name for name, make in CATALOGUE.items() if make is method)])
    if callable(method):
        return method, _customary(method)
    name = getattr(method, "__name__", type(method).__name__)
    raise NotDerivable(
        f"{name} is a black box, which has no formula; expected a name, a memoryless.Method or a function that returns one"
    )


def _with_defaults(optimizer: type[Optimizer]) -> Optimizer:
    try:
        return optimizer([Parameter(torch.zeros(1))])  # type: ignore[call-arg]
    except (TypeError, ValueError) as error:
        black_box = f"{optimizer.__name__} is a black box, which has no formula"
        raise NotDerivable(f"{black_box}; its defaults alone do not make one ({error})") from error


def _customary(make: Callable[..., Any]) -> dict[str, Any]:
    """A symbol for every number that a user's function takes."""
    given = {}
    for key, parameter in inspect.signature(make).parameters.items():
        default = parameter.default
        if default is parameter.empty or (is_number(default) and not isinstance(default, bool)):
            kind = Beta if key.startswith(("beta", "rho")) else Symbol
            given[key] = _CUSTOMARY.get(key, kind(key, positive=True))
        elif isinstance(default, tuple) and key == "betas":
            given[key] = tuple(Beta(f"beta_{i}", positive=True) for i in range(1, len(default) + 1))
    return given


def _assign(make: Callable[..., Any], given: dict[str, Any], values: Mapping[str, Any], method: Any) -> dict[str, Any]:
    """The arguments with the user's values in them, found by hyperparameter or by symbol."""
    parameters = inspect.signature(make).parameters
    template = given | SYMBOLS.get(getattr(method, "name", ""), {})
    places = {}
    for key, value in template.items():
        for i, symbol in enumerate(value if isinstance(value, tuple) else (value,)):
            if isinstance(symbol, Symbol):
                places[str(symbol).replace("_", "")] = (key, i, symbol)
    for plain, short in (("epsilon", "eps"), ("lamda", "lam"), ("lamda", "lambda")):
        if plain in places:
            places[short] = places[plain]
    symbols = {key: symbol for key, (_, _, symbol) in places.items()}
    result = dict(given)
    for key, value in values.items():
        if key in parameters:
            result[key] = _read(value, symbols, template.get(key))
        elif key in places:
            name, i, symbol = places[key]
            new = _read(value, symbols, symbol)
            old = result[name]
            result[name] = (*old[:i], new, *old[i + 1 :]) if isinstance(old, tuple) else new
        else:
            known = dict.fromkeys([*parameters, *places])
            raise BadInput(f"no hyperparameter '{key}'; expected one of {', '.join(known) or 'none'}")
    return result


def _read(value: Any, symbols: Mapping[str, Symbol], like: Any) -> Any:
    """A value as the user gives it: a number, a flag, a tuple, or the name of a symbol."""
    if isinstance(value, (tuple, list)):
        return tuple(_read(v, symbols, None) for v in value)
    if not isinstance(value, str):
        return _exact(value)
    try:
        return _exact(ast.literal_eval(value.capitalize() if value in ("true", "false", "none") else value))
    except (ValueError, SyntaxError):
        pass
    plain, symbols = value.replace("_", ""), {"lambda": _lam, "lam": _lam, "eps": _eps} | dict(symbols)
    if plain in symbols:
        return symbols[plain]
    if not value.isidentifier():
        raise BadInput(f"expected a number or a symbol's name, got {value!r}")
    return type(like)(value, positive=True) if isinstance(like, Symbol) else Symbol(value, positive=True)


def _exact(value: Any) -> Any:
    """Numbers as fractions; flags and functions as they are."""
    if isinstance(value, (tuple, list)):
        return tuple(_exact(v) for v in value)
    # What is not finite is left to the method, which says what it expects.
    return rational(value) if is_number(value) and not isinstance(value, bool) and math.isfinite(value) else value


def _substituted(value: Any, changes: Mapping[Symbol, Any]) -> Any:
    if isinstance(value, tuple):
        return tuple(_substituted(v, changes) for v in value)
    return changes.get(value, value) if isinstance(value, Symbol) else value


def _made(make: Callable[..., Any], given: Mapping[str, Any]) -> Method:
    try:
        method = make(**given)
    except TypeError as error:
        name = getattr(make, "__name__", "the method")
        raise NotDerivable(f"{name} does not take symbols ({error}); give its hyperparameters numbers") from error
    if not isinstance(method, Method):
        raise NotDerivable(f"{getattr(make, '__name__', make)} returned {type(method).__name__}, expected a memoryless.Method")
    return method


def _step(step: int | str | None) -> Expr | None:
    if step is None:
        return None
    if step == "n":
        return n
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise BadInput(f'step must be None (steady state), an integer >= 0 or "n", got {step!r}')
    return S(step)
