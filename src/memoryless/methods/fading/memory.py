"""How far back an optimizer remembers: the weight of the gradient of k steps ago in its update.

    kernel[k] = |dF[n]/dg[n-k] . dg| / |dg|,      a lower bound of gamma_k of Assumption 3.1 (arXiv 2502.02132)

in the mean square over random dg, at random g and theta. The expansion of memory's effect needs sum_k k^2 gamma_k to converge.
In momentum form, with J_l = dphi/dm_l (dg_l/dg) dg, it is |sum_l kernel_l[k] J_l|, in closed form; a black box is asked by
experiment (`methods.fading.experiment`).
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memoryless.errors import BadInput, BadType, NeverForgets, NotResolved
from memoryless.methods.black_box.torch_method import TorchMethod
from memoryless.methods.fading.experiment import experiment
from memoryless.methods.fading.tails import DRAWS, Array, MemoryKernel, Piece, draws, half_life, log_ages, mean_age
from memoryless.methods.forgetting import LONGEST
from memoryless.methods.kernel import kernel, require_fading, total
from memoryless.methods.method import AnyOptimizer, Index, Momentum, Part, gradient, square
from memoryless.progress import OnStep, silent

FINITE = 10_000
"""Step at which a momentum form that never forgets is shown."""


def memory_kernel(
    method: AnyOptimizer | TorchMethod, *, horizon: int | None = None, seed: int = 0, on_step: OnStep = silent
) -> MemoryKernel:
    """How far back an optimizer remembers, and whether it forgets fast enough for the theory to hold.

    Args:
        method: from the catalogue, of your own, or any torch optimizer as a `TorchMethod`, whose schedule is left out.
        horizon: steps to follow a black box after a disturbance; default 2048, doubled up to 16,384 while that does not tell.
        seed: of the random gradients and parameters.
        on_step: told the optimizer steps taken and the most that may be.

    Returns:
        Kernel, mean age and half-life, in all and of each piece of memory, and whether it decays, with the evidence.

    Raises:
        BadType: neither a method nor a black box.
        BadInput: horizon is too short, or the optimizer fails.

    Example:
        >>> from memoryless.methods.catalogue import HeavyBall
        >>> found = memory_kernel(HeavyBall(momentum=0.9))
        >>> round(found.mean_age, 6), round(found.half_life, 6), found.decays
        (9.0, 6.578813, True)
    """
    if horizon is not None and horizon < 128:
        raise BadInput(f"horizon must be at least 128 steps, got {horizon}")
    if isinstance(method, TorchMethod):
        return experiment(method, horizon, seed, on_step)
    if not hasattr(method, "parts"):
        raise BadType(f"expected a method or a TorchMethod, got {type(method).__name__}; see memoryless.method_of")
    return _closed_form(method, seed)


def _closed_form(method: AnyOptimizer, seed: int) -> MemoryKernel:
    parts = [part for part in method.parts if part.method.variables]
    remembered = [v for part in parts for v in part.method.variables if v.has_memory]
    judged = {v: _fades(v) for v in remembered}
    endless = [v for v in remembered if not judged[v]]
    fading = [v.beta for v in remembered if v.beta > 0 and v not in endless]
    n = FINITE if endless else None
    decays = False if False in judged.values() else None if endless else True
    ages = log_ages(FINITE if endless else -40 / math.log(max(fading)) if fading else 0)
    weights = {v: _weights(v, n, ages) for part in parts for v in part.method.variables}
    d = max(_extent(part.index) for part in parts)
    squares = np.zeros(len(ages))
    for g, theta, dg in draws(d, seed):
        for part in parts:
            J = _responses(part, n, g[part.index], theta[part.index], dg[part.index]).numpy()
            response = np.stack([weights[v] for v in part.method.variables], axis=1) @ (part.scale * J)
            squares += (response**2).sum(axis=1) / float(dg @ dg) / DRAWS
    named = [
        (_name(part, l, v, len(parts)), v) for part in parts for l, v in enumerate(part.method.variables, 1) if v.has_memory
    ]
    pieces = tuple(_exact(name, v, ages, weights[v]) for name, v in named)
    values = np.sqrt(squares)
    if endless:
        longest = next(name for name, v in named if v in endless and judged[v] is decays)
        lasts = "gives every age k its say for ever" if decays is False else f"remembers more than {LONGEST:,} steps"
        why = f"{longest} {lasts}"
        age, half = math.inf, half_life(ages, values)
    else:
        slowest = max(fading, default=0.0)
        fall = f"gamma_k falls by the factor {slowest:g} a step" if fading else "no gradient before the last two counts"
        still = "" if values.any() else "; phi is flat, so the update answers no small change at all"
        why = f"{fall}: sum k^2 gamma_k converges{still}"
        age, half = mean_age(ages, values), half_life(ages, values)
    none = np.zeros(0)
    return MemoryKernel(
        str(method), ages, values, age, half, pieces, decays, LONGEST, why, "closed form", none.astype(np.int64), none
    )


def _fades(v: Momentum) -> bool | None:
    try:
        require_fading(v)
    except NotResolved:
        return None
    except NeverForgets:
        return False
    return True


def _weights(v: Momentum, n: int | None, ages: NDArray[np.int64]) -> Array:
    if n is not None:
        return kernel(v, n)[ages]
    return np.where(ages >= v.lag, float(v.weight(math.inf)) * v.beta ** np.maximum(ages - v.lag, 0.0), 0.0)


def _exact(name: str, v: Momentum, ages: NDArray[np.int64], weights: Array) -> Piece:
    shape = np.abs(weights) / (np.abs(weights).max() or 1.0)
    if _fades(v) is False:
        return Piece(name, shape, math.inf, half_life(ages, shape))
    half = math.log(0.5) / math.log(v.beta) if v.beta > 0 else 0.0
    return Piece(name, shape, v.lag + v.beta / (1 - v.beta), v.lag + half)


def _responses(part: Part, n: int | None, g: Tensor, theta: Tensor, dg: Tensor) -> Tensor:
    """J_l of each variable, shape (variables, coordinates of the part)."""
    method = part.method
    c = [total(v, n) for v in method.variables]
    m, dm = zip(*(torch.func.jvp(lambda x, v=v: v.g(x, theta), (g,), (dg,)) for v in method.variables), strict=True)
    m = tuple(scale * x for scale, x in zip(c, m, strict=True))

    def along(l: int) -> Tensor:
        tangents = tuple(dx if i == l else torch.zeros_like(dx) for i, dx in enumerate(dm))
        return torch.func.jvp(lambda *m: method.readout(m, theta), m, tangents)[1]

    return torch.stack([along(l) for l in range(len(m))])


def _name(part: Part, l: int, v: Momentum, parts: int) -> str:
    what = ", of g" if v.g is gradient else ", of g^2" if v.g is square else ""
    return f"{part.method.name if parts > 1 else ''} m_{l}{what}, beta {v.beta:g}".strip()


def _extent(index: Index) -> int:
    if isinstance(index, Tensor):
        return int(index.max()) + 1
    return 54 if index.stop is None else int(index.stop)
