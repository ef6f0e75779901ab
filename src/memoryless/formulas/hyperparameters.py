"""What the user names: the function that makes the method, and which of its hyperparameters are symbols, which numbers."""

# SymPy's annotations do not describe what it returns.
# pyright: reportArgumentType=false, reportReturnType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportAssignmentType=false, reportOperatorIssue=false, reportOptionalOperand=false, reportGeneralTypeIssues=false
# pyright: reportIncompatibleMethodOverride=false, reportOptionalMemberAccess=false, reportIndexIssue=false

import ast
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from sympy import Symbol
from torch.nn import Parameter
from torch.optim import Optimizer

from memoryless.errors import BadInput, NotDerivable, NotRecognised
from memoryless.formulas.algebra import rational
from memoryless.formulas.symbols import Beta, h
from memoryless.methods.catalogue import CATALOGUE
from memoryless.methods.live_optimizer import recognised
from memoryless.methods.method import Groups, Method, is_number

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


def maker(method: Any) -> tuple[Callable[..., Any], dict[str, Any]]:
    """A function that builds the method, and its arguments: symbols or numbers."""
    if isinstance(method, type) and issubclass(method, Optimizer):
        make, given = maker(_with_defaults(method))
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


def assigned(make: Callable[..., Any], given: dict[str, Any], values: Mapping[str, Any], method: Any) -> dict[str, Any]:
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
