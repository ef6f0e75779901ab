"""The catalogue: optimizers in momentum form. Each is its momentum variables and its readout phi, nothing else.

Argument names and defaults are torch's wherever torch has the optimizer; each is proved equal to torch's by test.
Steady-state closed forms of M are in docs/theory.md. Sources: the papers named, and Table 1 and Appendix C of
https://arxiv.org/abs/2502.02132.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from torch import Tensor

from memoryless.errors import BadInput
from memoryless.methods.method import Method, Momentum, gradient, is_number, require_number, square

GFunction = Callable[[Tensor, Tensor], Tensor]


@cache
def _average(beta: float, corrected: bool = False, scale: float = 1.0) -> Callable[[Any], Any]:
    """Weight of an exponential moving average, scale * (1 - beta), with Adam's bias correction if asked."""
    if corrected:
        return lambda n: scale * (1 - beta) / (1 - beta ** (n + 1.0))
    return lambda n: scale * (1 - beta)


@cache
def _constant(value: float) -> Callable[[Any], Any]:
    return lambda n: value


@cache
def _coupled(g: GFunction, weight_decay: float, sign: float) -> GFunction:
    """g_l of the gradient of L + weight_decay/2 |theta|^2, or of -L if sign = -1 (torch's `maximize`)."""
    if weight_decay == 0 and sign == 1:
        return g
    return lambda gradient, theta: g(sign * gradient + weight_decay * theta, theta)


def _checked(name: str, betas: Sequence[float], **nonnegative: float) -> None:
    for beta in betas:
        require_number(f"{name}: every beta", beta)
        if is_number(beta) and not 0 <= beta < 1:
            raise BadInput(f"{name}: every beta must lie in [0, 1), got {beta}")
    for key, value in nonnegative.items():
        require_number(f"{name}: {key}", value)
        if is_number(value) and not value >= 0:
            raise BadInput(f"{name}: {key} must be >= 0, got {value}")


def _pair(name: str, betas: Sequence[float]) -> tuple[float, float]:
    if not isinstance(betas, Sequence) or isinstance(betas, str) or len(betas) != 2:
        raise BadInput(f"{name}: betas must be a pair such as (0.9, 0.999), got {betas!r}")
    first, second = (float(beta) if isinstance(beta, (Tensor, str)) else beta for beta in betas)
    return first, second


def HeavyBall(
    lr: float = 1e-3,
    momentum: float = 0.9,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    *,
    maximize: bool = False,
) -> Method:
    """Heavy ball, torch.optim.SGD with momentum: m <- momentum m + (1 - dampening) g, F = m.

    Polyak (1964), https://doi.org/10.1016/0041-5553(64)90137-5. The first gradient enters undamped, as in torch.

    Args:
        lr: step size.
        momentum: in [0, 1).
        dampening: in [0, 1].
        weight_decay: coupled, added to the gradient.
        maximize: ascend.

    Raises:
        BadInput: a hyperparameter is out of range.
    """
    return _sgd(HeavyBall, "heavy_ball", lr, momentum, dampening, weight_decay, maximize)


def Nesterov(lr: float = 1e-3, momentum: float = 0.9, weight_decay: float = 0.0, *, maximize: bool = False) -> Method:
    """Nesterov momentum in torch's form: m <- momentum m + g, F = g + momentum m.

    Sutskever et al. (2013), https://proceedings.mlr.press/v28/sutskever13.html.

    Args:
        lr: step size.
        momentum: in [0, 1).
        weight_decay: coupled, added to the gradient.
        maximize: ascend.

    Raises:
        BadInput: a hyperparameter is out of range.
    """
    return _sgd(Nesterov, "nesterov", lr, momentum, None, weight_decay, maximize)


def _sgd(
    make: Callable[..., Method],
    name: str,
    lr: float,
    momentum: float,
    dampening: float | None,
    weight_decay: float,
    maximize: bool,
) -> Method:
    """Both SGDs; dampening None is Nesterov's lookahead F = g + momentum m."""
    _checked(name, [momentum], weight_decay=weight_decay)
    g = _coupled(gradient, weight_decay, -1.0 if maximize else 1.0)
    kept = 1 - (dampening or 0.0)
    if is_number(kept) and not 0 <= kept <= 1:
        raise BadInput(f"{name}: dampening must lie in [0, 1], got {dampening}")
    hyper = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "maximize": maximize}
    if dampening is None:
        variables = (
            Momentum(0.0, g, degree=1),
            Momentum(momentum, g, weight=_constant(momentum), degree=1),
        )
        return Method(lr, variables, lambda f, m, theta: m[0] + m[1], name, hyper, make)
    # kept * (first + the others): the first gradient has weight 1 of the whole, 1/kept of a damped one.
    if kept == 0:
        raise BadInput(
            f"{name}: dampening 1 keeps every gradient but the first out of the buffer, where that decays as momentum^n: no "
            "momentum form; expected below 1, or torch.optim.SGD itself as a TorchMethod"
        )
    variables = (Momentum(momentum, g, weight=_constant(kept), first=1 / kept, degree=1),)
    return Method(lr, variables, lambda f, m, theta: m[0], name, hyper | {"dampening": dampening}, make)


def RMSprop(
    lr: float = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    centered: bool = False,
    eps_inside_root: bool = False,
    *,
    maximize: bool = False,
) -> Method:
    """RMSprop: v <- alpha v + (1 - alpha) g^2, F = g / (sqrt(v) + eps), or / sqrt(v + eps).

    Tieleman and Hinton (2012), lecture 6.5. Centered subtracts the square of the gradient's average from v.

    Args:
        lr: step size.
        alpha: in [0, 1).
        eps: >= 0.
        weight_decay: coupled, added to the gradient.
        centered: divide by the root of the variance, E g^2 - (E g)^2, in place of that of E g^2.
        eps_inside_root: eps under the square root.
        maximize: ascend.

    Raises:
        BadInput: a hyperparameter is out of range.
    """
    _checked("rmsprop", [alpha], eps=eps, weight_decay=weight_decay)
    sign = -1.0 if maximize else 1.0
    g = _coupled(gradient, weight_decay, sign)
    variables = [
        Momentum(0.0, g, degree=1),
        Momentum(alpha, _coupled(square, weight_decay, sign), weight=_average(alpha), degree=2),
    ]
    if centered:
        variables.append(Momentum(alpha, g, weight=_average(alpha), degree=1))

    def phi(f: Any, m: Sequence[Any], theta: Any) -> Any:
        variance = m[1] - m[2] * m[2] if centered else m[1]
        return m[0] / _root(f, variance, eps, eps_inside_root)

    hyper = {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay, "centered": centered}
    hyper |= {"eps_inside_root": eps_inside_root, "maximize": maximize}
    return Method(lr, tuple(variables), phi, "rmsprop", hyper, RMSprop)


def Adam(
    lr: float = 1e-3,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    eps_inside_root: bool = False,
    *,
    maximize: bool = False,
) -> Method:
    """Adam: bias-corrected averages m of g and v of g^2, F = m / (sqrt(v) + eps), or / sqrt(v + eps).

    Kingma and Ba (2015), https://arxiv.org/abs/1412.6980.

    Args:
        lr: step size.
        betas: both in [0, 1).
        eps: >= 0.
        weight_decay: coupled, added to the gradient.
        eps_inside_root: eps under the square root.
        maximize: ascend.

    Raises:
        BadInput: a hyperparameter is out of range.
    """
    betas = _pair("adam", betas)
    _checked("adam", betas, eps=eps, weight_decay=weight_decay)
    sign = -1.0 if maximize else 1.0
    variables = _moments(betas, weight_decay, sign)
    hyper = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
    hyper |= {"eps_inside_root": eps_inside_root, "maximize": maximize}
    return Method(lr, variables, lambda f, m, theta: m[0] / _root(f, m[1], eps, eps_inside_root), "adam", hyper, Adam)


def AdamW(
    lr: float = 1e-3,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    eps_inside_root: bool = False,
    *,
    maximize: bool = False,
) -> Method:
    """AdamW: Adam with decoupled decay, F = m / (sqrt(v) + eps) + weight_decay theta.

    Loshchilov and Hutter (2019), https://arxiv.org/abs/1711.05101.

    Args:
        lr: step size.
        betas: both in [0, 1).
        eps: >= 0.
        weight_decay: decoupled.
        eps_inside_root: eps under the square root, as in the paper's formulas; torch has it outside.
        maximize: ascend.

    Raises:
        BadInput: a hyperparameter is out of range.
    """
    betas = _pair("adamw", betas)
    _checked("adamw", betas, eps=eps, weight_decay=weight_decay)
    variables = _moments(betas, 0.0, -1.0 if maximize else 1.0)
    hyper = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
    hyper |= {"eps_inside_root": eps_inside_root, "maximize": maximize}
    return Method(
        lr,
        variables,
        lambda f, m, theta: m[0] / _root(f, m[1], eps, eps_inside_root) + weight_decay * theta,
        "adamw",
        hyper,
        AdamW,
    )


def _moments(betas: tuple[float, float], weight_decay: float, sign: float) -> tuple[Momentum, Momentum]:
    return (
        Momentum(betas[0], _coupled(gradient, weight_decay, sign), weight=_average(betas[0], True), degree=1),
        Momentum(betas[1], _coupled(square, weight_decay, sign), weight=_average(betas[1], True), degree=2),
    )


def _root(f: Any, v: Any, eps: float, inside: bool) -> Any:
    return f.sqrt(v + eps) if inside else f.sqrt(v) + eps


def NAdam(
    lr: float = 2e-3,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    eps_inside_root: bool = False,
    *,
    momentum_decay: float | None = None,
    decoupled_weight_decay: bool = True,
    maximize: bool = False,
) -> Method:
    """NAdam: Adam with Nesterov momentum, F = (beta_1 m + (1 - beta_1) g / (1 - beta_1^(n+1))) / (sqrt(v) + eps).

    Dozat (2016), https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ. With momentum_decay = psi, torch's schedule
    mu[n] = beta_1 (1 - 0.96^(n psi) / 2) takes the place of beta_1 in the readout; None is the paper's constant one.
    `method_of` translates torch's defaults (momentum_decay 4e-3, coupled decay).

    Args:
        lr: step size.
        betas: both in [0, 1).
        eps: >= 0.
        weight_decay: decoupled, or coupled (added to the gradient), as decoupled_weight_decay says.
        eps_inside_root: eps under the square root.
        momentum_decay: psi of torch's schedule, or None.
        decoupled_weight_decay: add weight_decay * theta to F rather than to the gradient.
        maximize: ascend.

    Raises:
        BadInput: a hyperparameter is out of range.
    """
    betas = _pair("nadam", betas)
    _checked("nadam", betas, eps=eps, weight_decay=weight_decay, momentum_decay=momentum_decay or 0.0)
    coupled, decoupled = (0.0, weight_decay) if decoupled_weight_decay else (weight_decay, 0.0)
    m, v = _moments(betas, coupled, -1.0 if maximize else 1.0)
    past, present = _nadam_weights(betas[0], momentum_decay)
    variables = (Momentum(betas[0], m.g, weight=past, degree=1), Momentum(0.0, m.g, weight=present, degree=1), v)
    hyper = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "eps_inside_root": eps_inside_root}
    hyper |= {"momentum_decay": momentum_decay, "decoupled_weight_decay": decoupled_weight_decay, "maximize": maximize}
    return Method(
        lr,
        variables,
        lambda f, m, theta: (m[0] + m[1]) / _root(f, m[2], eps, eps_inside_root) + decoupled * theta,
        "nadam",
        hyper,
        NAdam,
    )


@cache
def _nadam_weights(beta: float, psi: float | None) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Weights of sum beta^k g[n-k] and of g[n] in NAdam's numerator."""
    if psi is None:
        average = _average(beta, True)
        return lambda n: beta * average(n), average
    products = np.ones(1)

    def mu(n: Any) -> Any:
        return beta * (1 - 0.5 * 0.96 ** (n * psi))

    def product(n: Any) -> Any:
        """mu[1] ... mu[n]; 0 in the limit."""
        nonlocal products
        if isinstance(n, float) and math.isinf(n):
            return 0.0
        index = np.asarray(n, dtype=int)
        if (last := int(index.max(initial=0))) >= len(products):
            more = np.arange(len(products), 2 * last + 1)
            products = np.concatenate([products, products[-1] * np.cumprod(mu(more))])
        found = products[index]
        return found if index.ndim else float(found)

    return (
        lambda n: mu(n + 2) * (1 - beta) / (1 - product(n + 2)),
        lambda n: (1 - mu(n + 1)) / (1 - product(n + 1)),
    )


def LionK(
    lr: float = 1e-4,
    betas: Sequence[float] = (0.9, 0.99),
    weight_decay: float = 0.0,
    K: Callable[[Tensor], Tensor] | None = None,
) -> Method:
    """Lion-K: c = rho1 m + (1 - rho1) g, F = grad K(c) + weight_decay theta, then m <- rho2 m + (1 - rho2) g.

    Chen et al. (2024), https://arxiv.org/abs/2310.05898. betas = (rho1, rho2); no bias correction.

    Args:
        lr: step size.
        betas: (rho1, rho2), both in [0, 1).
        weight_decay: decoupled.
        K: convex, (d,) -> scalar, twice differentiable in torch; default the squared norm |c|^2 / 2.

    Raises:
        BadInput: a hyperparameter is out of range.
    """
    betas = _pair("lion_k", betas)
    _checked("lion_k", betas, weight_decay=weight_decay)
    hyper = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "K": K}
    return Method(
        lr,
        _lion_memory(betas),
        lambda f, m, theta: f.grad(K)(m[0] + m[1]) + weight_decay * theta,
        "lion_k",
        hyper,
        LionK,
    )


def Lion(lr: float = 1e-4, betas: Sequence[float] = (0.9, 0.99), weight_decay: float = 0.0, smoothing: float = 0.0) -> Method:
    """Lion: Lion-K with K the 1-norm, F = sign(c) + weight_decay theta; smoothed, c / sqrt(c^2 + smoothing).

    Chen et al. (2023), https://arxiv.org/abs/2302.06675. Unsmoothed, its first-order M is 0 almost everywhere.

    Args:
        lr: step size.
        betas: (rho1, rho2), both in [0, 1).
        weight_decay: decoupled.
        smoothing: >= 0, the eps of the perturbed 1-norm.

    Raises:
        BadInput: a hyperparameter is out of range.
    """
    betas = _pair("lion", betas)
    _checked("lion", betas, weight_decay=weight_decay, smoothing=smoothing)
    hyper = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "smoothing": smoothing}
    return Method(
        lr,
        _lion_memory(betas),
        lambda f, m, theta: _soft_sign(f, m[0] + m[1], smoothing) + weight_decay * theta,
        "lion",
        hyper,
        Lion,
    )


def Signum(lr: float = 1e-4, momentum: float = 0.9, weight_decay: float = 0.0, smoothing: float = 0.0) -> Method:
    """Signum: m <- momentum m + (1 - momentum) g, F = sign(m) + weight_decay theta; smoothed as Lion.

    Bernstein et al. (2018), https://arxiv.org/abs/1802.04434. It is Lion with rho1 = rho2.

    Args:
        lr: step size.
        momentum: in [0, 1).
        weight_decay: decoupled.
        smoothing: >= 0.

    Raises:
        BadInput: a hyperparameter is out of range.
    """
    _checked("signum", [momentum], weight_decay=weight_decay, smoothing=smoothing)
    hyper = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "smoothing": smoothing}
    return Method(
        lr,
        (Momentum(momentum, weight=_average(momentum), degree=1),),
        lambda f, m, theta: _soft_sign(f, m[0], smoothing) + weight_decay * theta,
        "signum",
        hyper,
        Signum,
    )


def _lion_memory(betas: tuple[float, float]) -> tuple[Momentum, Momentum]:
    """rho1 m and (1 - rho1) g; m is read before this step's gradient enters it."""
    rho1, rho2 = betas
    return (
        Momentum(rho2, weight=_average(rho2, scale=rho1), lag=1, degree=1),
        Momentum(0.0, weight=_constant(1 - rho1), degree=1),
    )


def _soft_sign(f: Any, c: Any, eps: float) -> Any:
    return c / f.sqrt(c * c + eps) if eps else f.sign(c)


CATALOGUE: dict[str, Callable[..., Method]] = {
    "heavy_ball": HeavyBall,
    "nesterov": Nesterov,
    "rmsprop": RMSprop,
    "adam": Adam,
    "adamw": AdamW,
    "nadam": NAdam,
    "lion_k": LionK,
    "lion": Lion,
    "signum": Signum,
}
