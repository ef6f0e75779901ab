"""What the tests of this room share: the symbols, the theory's closed forms, formulas as functions of tensors."""

# SymPy's annotations do not describe what it returns.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAssignmentType=false, reportOptionalIterable=false
# pyright: reportOperatorIssue=false

from collections.abc import Callable
from functools import cache
from typing import Any

import sympy
from sympy import Abs, S, sqrt
from torch import Tensor

import memoryless as ml
from memoryless.formulas.compiled import compiled
from memoryless.formulas.hyperparameters import SYMBOLS
from memoryless.formulas.symbols import L, Total, g, h, theta
from tests.problems import FULL_BATCH, METHODS, THETA

LR = 0.01
derive = cache(ml.derive)

beta = SYMBOLS["heavy_ball"]["momentum"]
b1, b2 = SYMBOLS["adamw"]["betas"]
r1, r2 = SYMBOLS["lion"]["betas"]
eps, lam = SYMBOLS["adamw"]["eps"], SYMBOLS["adamw"]["weight_decay"]
t, t1, t2 = (b / (1 - b) for b in (beta, b1, b2))
s, r = sqrt(g**2 + eps), Abs(g) + eps
decay = lam * theta

INSIDE = {"eps_inside_root": True}
# name: (method, values, F, M / h as a factor of H F)
TABLE: dict[str, tuple[str, dict[str, Any], Any, Any]] = {
    "heavy_ball": ("heavy_ball", {}, g / (1 - beta), beta / (1 - beta) ** 2),
    "nesterov": ("nesterov", {}, g / (1 - beta), beta**2 / (1 - beta) ** 2),
    "rmsprop": ("rmsprop", {}, g / r, -t2 * Abs(g) / r**2),
    "rmsprop_eps_inside": ("rmsprop", INSIDE, g / s, -t2 * g**2 / s**3),
    "adam": ("adam", {}, g / r, (t1 - t2 * Abs(g) / r) / r),
    "adamw": ("adamw", {}, g / r + decay, (t1 - t2 * Abs(g) / r) / r),
    "adamw_eps_inside": ("adamw", INSIDE, g / s + decay, (t1 - t2 * g**2 / s**2) / s),
    "adamw_without_eps": ("adamw", {"eps": 0}, sympy.sign(g) + decay, (t1 - t2) / Abs(g)),
    "nadam": ("nadam", INSIDE, g / s + decay, (b1 * t1 - t2 * g**2 / s**2) / s),
    "lion": ("lion", {}, g / s + decay, r1 / (1 - r2) * eps / s**3),
    "lion_unsmoothed": ("lion", {"smoothing": 0}, sympy.sign(g) + decay, S.Zero),
    "signum": ("signum", {}, g / s + decay, t * eps / s**3),
}


def is_zero(expression: Any) -> bool:
    """Sign and g / |g| are the same away from 0."""
    return sympy.simplify(expression.replace(sympy.sign, lambda x: x / Abs(x)).doit()) == 0


def adam_loss(tau: Any) -> Any:
    dt = t2 - tau
    return (1 + lam * h * dt) * L - h * dt * (Total(Abs(g)) + lam * Total(g * theta))


def single(phi: Callable[..., Any], beta: float = 0.9, lr: float = LR, **options: Any) -> ml.Method:
    return ml.Method(lr, (ml.Momentum(beta, **options),), phi)


g_, hessian = FULL_BATCH.gradient(THETA), FULL_BATCH.hessian(THETA)


def tensors(expression: Any, method: ml.Method, drift: Tensor | None = None) -> Tensor:
    return compiled(expression, method.hyper.get("K"))(g_, THETA, lambda v: hessian @ v, drift)


def close(actual: Tensor, expected: Tensor, scale: Tensor) -> bool:
    """To ten digits of what is expected, and where that is 0 by symmetry, to the last of what it cancels from."""
    assert actual.isfinite().all()
    return bool((actual - expected).norm() <= 1e-10 * expected.norm() + 1e-14 * scale.norm())


ONE_METHOD = [name for name in METHODS if name != "groups"]


WEIGHTS: list[Callable[[float], Callable[[Any], Any]]] = [
    lambda beta: lambda n: 1.0,
    lambda beta: lambda n: 1 - beta,
    lambda beta: lambda n: (1 - beta) / (1 - beta ** (n + 1.0)),
]
